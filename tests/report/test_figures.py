import json

import numpy as np

from mmattn.evaluate.metrics import confusion
from mmattn.evaluate.predictions import Predictions
from mmattn.evaluate.tables import Interval
from mmattn.report.figures import (
    Curve,
    CurvePlot,
    Forest,
    confusion_figure,
    curves_figure,
    epoch_figures,
    forest_figure,
    reliability_figure,
)

NAMES = ("anger", "<b>happy</b>", "sad")


def drawn(seed=0, clips=200) -> Predictions:
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet([0.6] * 3, clips)
    labels = random.integers(0, 3, clips)
    names = tuple(f"clip{row}" for row in range(clips))
    return Predictions(names, ["a", "b"] * (clips // 2), labels, probabilities, NAMES)


def history(accuracies, rates) -> list[dict]:
    return [
        {
            "epoch": number,
            "train_loss": 2 / number,
            "validation_loss": float("nan") if number == 2 else 3 / number,
            "train_accuracy": 0.9,
            "validation_accuracy": accuracy,
            "validation_uar": accuracy - 0.1,
            "learning_rate": rate,
        }
        for number, (accuracy, rate) in enumerate(zip(accuracies, rates, strict=True), start=1)
    ]


def test_every_figure_is_plain_json():
    curve = Curve("a", np.arange(3), np.array([1, np.nan, 2]), np.zeros(3), np.ones(3))
    rows = history([0.4, 0.6, 0.5], [1, 1, 0.5])
    for figure in (
        *epoch_figures(rows, "accuracy"),
        *epoch_figures(rows, "loss"),
        confusion_figure(drawn()),
        reliability_figure(drawn()),
        curves_figure(CurvePlot("t", "x", "y", [curve])),
        forest_figure(Forest("t", "x", [("a", Interval(0.1, 0.0, 0.2)), ("b", Interval(0.1))])),
    ):
        json.dumps([figure.data, figure.layout], allow_nan=False)


def test_learning_curves_mark_the_best_epoch_and_a_fall_of_the_rate():
    rows = history([0.4, 0.6, 0.6, 0.5], [1, 1, 0.5, 0.5])
    loss, score = epoch_figures(rows, "accuracy")
    train, validation = loss.data
    assert train["y"] == [2, 1, 2 / 3, 0.5]
    assert validation["y"] == [3, None, 1, 0.75]  # not a number is a gap
    lines = {line["x0"]: line["line"]["dash"] for line in loss.layout["shapes"]}
    assert lines == {3: "dot", 2: "solid"}
    assert [line["name"] for line in score.data] == [
        "training accuracy",
        "validation accuracy",
        "validation UAR",
        "best epoch",
    ]
    star = score.data[-1]
    assert (star["x"], star["y"]) == ([2], [0.6])
    assert "epoch 2, validation accuracy 0.600" in score.caption
    assert (loss.title, score.title) == ("Loss", "Accuracy and UAR")


def test_the_star_is_on_the_monitor():
    rows = [
        one | {"validation_brier": brier, "validation_top2": brier}
        for one, brier in zip(history([0.4, 0.6, 0.6], [1, 1, 1]), [0.7, 0.5, 0.4], strict=True)
    ]
    low, high = epoch_figures(rows, "brier")
    assert (low.title, high.title) == ("Loss and Brier score", "Accuracy and UAR")
    assert (low.data[-1]["x"], low.data[-1]["y"]) == ([3], [0.4])
    assert "epoch 3, validation Brier score 0.400" in low.caption and "Best:" not in high.caption
    assert [one["name"] for one in high.data][-1] == "validation UAR"
    assert {line["x0"] for one in (low, high) for line in one.layout["shapes"]} == {3}
    _, high = epoch_figures(rows, "top2")
    assert high.title == "Accuracy, UAR and top-2 accuracy"
    assert (high.data[-1]["x"], high.data[-1]["y"]) == ([1], [0.7])


def test_a_rate_that_falls_all_the_time_has_no_marks():
    figure, _ = epoch_figures(history([0.4, 0.6, 0.5], [3, 2, 1]), "accuracy")
    assert [line["x0"] for line in figure.layout["shapes"]] == [2]
    assert "Dotted" not in figure.caption


def test_the_confusion_matrix_has_counts_and_shares_of_rows():
    predictions = drawn()
    (data,) = confusion_figure(predictions).data
    counts = confusion(predictions)
    np.testing.assert_array_equal(data["text"], counts)
    np.testing.assert_allclose(np.sum(data["z"], axis=1), 1)
    np.testing.assert_allclose(data["z"], counts / counts.sum(axis=1)[:, None])
    assert data["customdata"][0][1] == ["anger", "&lt;b&gt;happy&lt;/b&gt;"]


def test_the_reliability_diagram_shows_accuracy_confidence_and_clips():
    # 0.5 and 0.6 fall into the bins (7/15, 8/15] and (8/15, 9/15]; one of the two 0.6 is right.
    rows = [[0.5, 0.5, 0], [0.6, 0.4, 0], [0.6, 0.4, 0]]
    predictions = Predictions(("a", "b", "c"), ["s"] * 3, [0, 0, 1], rows, NAMES)
    figure = reliability_figure(predictions)
    accuracy, points, clips = figure.data
    np.testing.assert_allclose(accuracy["x"], [7.5 / 15, 8.5 / 15])
    assert accuracy["y"] == [1, 0.5] and clips["y"] == [1, 2]
    assert points["x"] == [0.5, 0.6]
    assert accuracy["customdata"] == [["0.47 to 0.53", 1, 0.5], ["0.53 to 0.60", 2, 0.6]]
    assert figure.title == "Reliability, ECE 0.233"  # (1 · 0.5 + 2 · 0.1) / 3


def test_a_band_goes_along_the_upper_and_back_along_the_lower_end():
    x, nothing = np.array([-1, 0, 1]), np.full(3, np.nan)
    with_band = Curve("a", x, np.array([1, 2, 3]), np.array([0, 1, 2]), np.array([2, 3, 4]))
    without = Curve("b<", x, np.array([3, 2, 1]), nothing, nothing)
    figure = curves_figure(CurvePlot("t", "x", "UAR", [with_band, without]))
    band, line, other = figure.data
    assert (band["x"], band["y"]) == ([-1, 0, 1, 1, 0, -1], [2, 3, 4, 2, 1, 0])
    assert line["y"] == [1, 2, 3] and line["customdata"] == [[0, 2], [1, 3], [2, 4]]
    assert other["name"] == "b&lt;" and "customdata" not in other["hovertemplate"]
    assert figure.numbers.columns == ["x", "a", "b<"]
    assert figure.numbers.rows[0] == ["-1", Interval(1, 0, 2), Interval(3, None, None)]


def test_a_forest_fills_the_points_whose_interval_leaves_zero_out():
    differences = [
        ("up", Interval(0.2, 0.1, 0.4)),
        ("unclear", Interval(0.1, -0.1, 0.2)),
        ("down", Interval(-0.2, -0.3, -0.1)),
        ("no interval", Interval(0.3)),
    ]
    (data,) = forest_figure(Forest("t", "x", differences)).data
    assert data["marker"]["symbol"] == ["circle", "circle-open", "circle", "circle-open"]
    np.testing.assert_allclose(data["error_x"]["array"][:3], [0.2, 0.1, 0.1])
    np.testing.assert_allclose(data["error_x"]["arrayminus"][:3], [0.1, 0.2, 0.1])
    assert data["error_x"]["array"][3] is None
