from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from mmattn.evaluate.plots import (
    epoch_curves,
    epoch_plots,
    learning_rate_drops,
    modality_colours,
    plot_attention,
    plot_confusion,
    plot_curves,
)
from mmattn.evaluate.predictions import Predictions
from mmattn.evaluate.views import ClipView, StreamView

pytestmark = pytest.mark.slow

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"


def history(accuracies, rates=None) -> list[dict]:
    rates = rates or [1e-3] * len(accuracies)
    return [
        {
            "epoch": number,
            "train_loss": 1.5 / number,
            "validation_loss": 1.6 / number,
            "train_accuracy": 0.9,
            "validation_accuracy": accuracy,
            "validation_uar": accuracy - 0.1,
            "learning_rate": rate,
        }
        for number, (accuracy, rate) in enumerate(zip(accuracies, rates, strict=True), start=1)
    ]


def predictions(labels, predicted, classes=8) -> Predictions:
    return Predictions(
        tuple(f"clip{row}" for row in range(len(labels))),
        ["a"] * len(labels),
        labels,
        np.eye(classes)[predicted],
        tuple(f"class {number}" for number in range(classes)),
    )


def stream(rate: int, peak: float) -> StreamView:
    times = np.arange(3 * rate) / rate
    attention = np.exp(-(((times - peak) / 0.2) ** 2))
    return StreamView(times, attention, np.zeros((len(times), 2)), np.ones(len(times), bool))


def example(peak: float = 1.0, without: str = "", cues=None, **streams) -> ClipView:
    streams = {"audio": stream(100, peak), "video": stream(15, peak), **streams}
    streams.pop(without, None)
    name = "clip_$1_$2"  # no mathematics
    return ClipView(name, "s", "happy", np.array([0.1, 0.9]), streams, cues)


def image(path: Path) -> np.ndarray:
    """Pixels [height, width, 3] of a PNG."""
    return imread(path)[..., :3]


def coloured(pixels: np.ndarray, colour: str, tolerance: float = 0.02) -> np.ndarray:
    """Which pixels [height, width] have about this colour."""
    return np.abs(pixels - to_rgb(colour)).max(axis=-1) < tolerance


def share(pixels: np.ndarray, colour: str) -> float:
    """How much of the image has about this colour."""
    return float(coloured(pixels, colour).mean())


def places(pixels: np.ndarray, colour: str) -> np.ndarray:
    """Where in the width, 0 to 1, each pixel of roughly this colour is."""
    return np.nonzero(coloured(pixels, colour, tolerance=0.15))[1] / pixels.shape[1]


def attention_image(tmp_path: Path, *clips: ClipView, note=None) -> np.ndarray:
    plot_attention(clips, ("happy", "sad"), tmp_path / "attention.png", note)
    return image(tmp_path / "attention.png")


@pytest.mark.parametrize(
    ("monitor", "low", "high"),
    [
        ("accuracy", ["loss"], ["accuracy", "uar"]),
        ("loss", ["loss"], ["accuracy", "uar"]),
        ("macro_f1", ["loss"], ["accuracy", "uar", "macro_f1"]),
        ("log_loss", ["loss", "log_loss"], ["accuracy", "uar"]),
    ],
)
def test_the_monitor_is_in_one_of_the_plots(monitor, low, high):
    assert epoch_plots(monitor) == (low, high)


def test_curves_are_named_as_the_metrics_are():
    rows = [one | {"validation_macro_f1": 0.5} for one in history([0.3])]
    curves = list(epoch_curves(rows, ["accuracy", "uar", "macro_f1"]))
    assert [(key, label) for key, label, _ in curves] == [
        ("train_accuracy", "training accuracy"),
        ("validation_accuracy", "validation accuracy"),
        ("validation_uar", "validation UAR"),
        ("validation_macro_f1", "validation macro-F1"),
    ]
    assert len({colour for *_, colour in curves}) == 4


def test_learning_rate_drops():
    assert learning_rate_drops(history([0.1] * 5, [4, 4, 2, 2, 1])) == [3, 5]
    assert learning_rate_drops(history([0.1])) == []


def curves_image(tmp_path: Path, rows: list[dict], monitor="accuracy", note=None) -> np.ndarray:
    plot_curves(rows, monitor, tmp_path / "curves.png", note)
    return image(tmp_path / "curves.png")


def test_curves_mark_the_best_epoch(tmp_path):
    early, late = history([0.3, 0.7, 0.5, 0.6, 0.6]), history([0.3, 0.6, 0.5, 0.6, 0.7])
    drawn = [(early, "accuracy"), (late, "accuracy"), (early, "loss")]  # which falls to the end
    pixels = [curves_image(tmp_path, *one) for one in drawn]
    left = [places(one[: len(one) // 2], GREEN).min() for one in pixels]  # above the legend
    assert left[0] + 0.1 < left[1] == pytest.approx(left[2], abs=0.02)


@pytest.mark.parametrize(("monitor", "half"), [("accuracy", 1), ("loss", 0), ("log_loss", 0)])
def test_the_star_is_on_the_monitor(tmp_path, monitor, half):
    rows = [one | {"validation_log_loss": 1.0} for one in history([0.3, 0.7, 0.5, 0.6, 0.6])]
    green = coloured(curves_image(tmp_path, rows, monitor), GREEN)
    left, right = green[:, : green.shape[1] // 2].sum(), green[:, green.shape[1] // 2 :].sum()
    assert (left > right, right > left) == (half == 0, half == 1)


def test_curves_of_one_epoch_and_with_a_falling_learning_rate(tmp_path):
    noted = curves_image(tmp_path, history([0.3]), note="the split leaks speakers")
    assert share(noted, ORANGE) > share(curves_image(tmp_path, history([0.3])), ORANGE)
    steady, falling = history([0.3, 0.4]), history([0.3, 0.4], [1e-3, 5e-4])
    assert not np.array_equal(curves_image(tmp_path, steady), curves_image(tmp_path, falling))


@pytest.mark.parametrize("classes", [2, 6, 8])
def test_confusion_is_dark_where_the_clips_are(tmp_path, classes):
    labels = np.arange(classes)
    for name, predicted in (("right", labels), ("wrong", labels[::-1])):
        plot_confusion(predictions(labels, predicted, classes), tmp_path / f"{name}.png", name)
    dark = "#08306b"  # the end of the scale
    right, wrong = (image(tmp_path / f"{name}.png") for name in ("right", "wrong"))
    assert right.shape == wrong.shape
    assert share(right, dark) > 0.02 and share(wrong, dark) > 0.02
    assert np.abs(right - wrong).mean() > 0.02


def test_confusion_colour_is_the_share_of_the_row_and_a_note_is_drawn(tmp_path):
    few, many = [0] * 10 + [1] * 10, [0] * 10 + [1] * 90
    plot_confusion(predictions(few, few, 2), tmp_path / "few.png", "test")
    plot_confusion(predictions(many, many, 2), tmp_path / "many.png", "test")
    dark = [share(image(tmp_path / f"{name}.png"), "#08306b") for name in ("few", "many")]
    assert dark[0] == pytest.approx(dark[1], rel=0.15)
    plot_confusion(predictions(few, few, 2), tmp_path / "noted.png", "test", note="leaks")
    notes = [share(image(tmp_path / f"{name}.png"), ORANGE) for name in ("few", "noted")]
    assert notes[0] == 0 < notes[1]


def test_attention_is_drawn_where_it_is(tmp_path):
    early = attention_image(tmp_path, example(peak=0.7))
    late = attention_image(tmp_path, example(peak=2.3))
    assert early.shape == late.shape
    upper = slice(len(early) // 4, len(early) // 2)  # only the peak reaches it
    for colour in (BLUE, ORANGE):
        before, after = (np.median(places(pixels[upper], colour)) for pixels in (early, late))
        assert 0.4 < after - before < 0.6  # 1.6 of 3 s


def test_a_missing_modality_is_not_drawn(tmp_path):
    assert share(attention_image(tmp_path, example(without="audio")), BLUE) == 0
    assert share(attention_image(tmp_path, example(without="video")), ORANGE) == 0
    assert share(attention_image(tmp_path, example()), BLUE) > 0


def test_a_third_modality_has_a_colour_of_its_own(tmp_path):
    drawn = modality_colours([example(text=stream(5, 1.0))])["text"]
    assert share(attention_image(tmp_path, example(text=stream(5, 1.0))), drawn) > 0
    pixels = attention_image(tmp_path, example())
    assert share(pixels, drawn) == 0 < share(pixels, BLUE)


@pytest.mark.parametrize("name", ["video", "text"])
def test_frames_without_data_are_shaded(tmp_path, name):
    video = stream(15, peak=1.0)
    valid = (video.times < 1.3) | (video.times > 2)
    gap = replace(video, valid=valid)
    shade = "#e0e0e0"
    assert share(attention_image(tmp_path, example(**{name: gap})), shade) > 0.1
    assert share(attention_image(tmp_path, example()), shade) < 0.01


def test_cues_and_several_clips(tmp_path):
    cues = [("audio", 0.5, False), ("video", 2.5, False)]
    plain, cued = example(), example(cues=cues)
    decoys = example(cues=[("audio", 0.5, True)])
    assert np.array_equal(attention_image(tmp_path, plain), attention_image(tmp_path, decoys))
    assert np.abs(attention_image(tmp_path, plain) - attention_image(tmp_path, cued)).max() > 0.3
    mixed = [
        plain,
        cued,
        example(without="audio", cues=cues),
        replace(plain, probabilities=np.array([1.0, 0.0])),
    ]
    assert len(attention_image(tmp_path, *mixed)) > 2 * len(attention_image(tmp_path, plain))


def test_a_note_is_drawn(tmp_path):
    plain = attention_image(tmp_path, example(without="video"))
    noted = attention_image(tmp_path, example(without="video"), note="leaks $ speakers $")
    assert share(plain, ORANGE) == 0
    assert share(noted, ORANGE) > 0


def test_a_clip_without_any_face_or_frame(tmp_path):
    video = stream(15, peak=1.0)
    none = replace(video, attention=np.zeros(45), valid=np.zeros(45, bool))
    attention_image(tmp_path, example(video=none))
    empty = StreamView(np.zeros(0), np.zeros(0), np.zeros((0, 2)), np.zeros(0, bool))
    attention_image(tmp_path, example(video=empty))
