"""The pages in a real headless Chromium, offline."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from selenium.webdriver.common.keys import Keys

from mmattn.config import SyntheticConfig
from mmattn.data.corpora.synthetic import draw_clips
from mmattn.data.labels import SIX
from mmattn.evaluate.metrics import METRICS, Metric, group_scores, scores
from mmattn.evaluate.predictions import Predictions
from mmattn.evaluate.tables import Interval, Table, cell_text
from mmattn.evaluate.views import ClipView, StreamView
from mmattn.report.clips import STEP
from mmattn.report.figures import Curve, CurvePlot, Forest, plain
from mmattn.report.page import Verdict, write_run_page, write_study_page

HOSTILE = '</script><img src=x onerror="window.hacked=1"><b>&amp;'
SHORT = '<i>&lt;<img src=x onerror="window.hacked=1">'


def view(seed: int, clip, sharp: float = 2.0) -> ClipView:
    """A synthetic clip with attention that rises at its cues."""
    random = np.random.default_rng([seed, int(clip.name[-6:])])
    streams = {}
    for modality, stream in clip.streams.items():
        near = sum(
            sharp * np.exp(-(((stream.times - cue.time) / 0.1) ** 2))
            for cue in clip.cues
            if cue.modality == modality and not cue.decoy
        )
        attention = np.exp(near + 0.1 * random.normal(size=len(stream.times)))
        features = (stream.frames - stream.frames.mean(0)) / stream.frames.std(0)
        streams[modality] = StreamView(stream.times, attention / attention.sum(), features)
    valid = np.ones(len(streams["video"].times), bool)
    valid[10:14] = False
    video = replace(streams["video"], valid=valid, attention=streams["video"].attention * valid)
    probabilities = random.dirichlet([0.3] * 6)
    cues = [(cue.modality, cue.time, cue.decoy) for cue in clip.cues]
    speaker, label = clip.speaker, SIX[clip.label]
    return ClipView(clip.name, speaker, label, probabilities, {**streams, "video": video}, cues)


@pytest.fixture(scope="module")
def drawn() -> list:
    config = SyntheticConfig(
        rule="coincidence", clips=8, speakers=2, audio_rate=50, audio_width=6, video_width=5
    )
    return list(draw_clips(config))


def answers(names=SIX, clips: int = 60) -> Predictions:
    random = np.random.default_rng(0)
    probabilities = random.dirichlet([0.5] * len(names), clips)
    labels = random.integers(0, len(names), clips)
    clip_names = tuple(f"clip{row}" for row in range(clips))
    return Predictions(clip_names, ["a", "b", "c"] * (clips // 3), labels, probabilities, names)


def history(epochs: int) -> list[dict]:
    return [
        {
            "epoch": epoch,
            "train_loss": 1.5 / epoch,
            "validation_loss": 1.6 / epoch,
            "train_accuracy": 0.8,
            "validation_accuracy": 0.7 - 0.01 * (epoch - 5) ** 2,
            "validation_uar": 0.5,
            "learning_rate": 1e-3,
        }
        for epoch in range(1, epochs + 1)
    ]


def write_run(
    path: Path, clips, names=SIX, epochs: int = 9, title: str = "A synthetic run"
) -> Path:
    predictions = answers(names)
    found = {"validation": scores(predictions), "test": scores(predictions, seed=1)}
    about = {"Data": "synthetic", "Best epoch": f"5 of {epochs}"}
    command = "python -m experiments.no_aug"
    write_run_page(path, title, about, found, predictions, command, history(epochs), clips=clips)
    return path


@pytest.fixture(scope="module")
def views(drawn) -> list[ClipView]:
    return [view(0, clip) for clip in drawn]


@pytest.fixture(scope="module")
def run_page(views, tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("run") / "report.html", views)


ARMS = ("no_aug", "audio_tempo", SHORT)
OFFSETS = np.arange(-400, 401, 200)


@pytest.fixture(scope="module")
def study_page(drawn, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("study") / "report.html"
    rows = [[arm, Interval(0.5, 0.4, 0.6), 432] for arm in ARMS]
    curves = [
        Curve(arm, OFFSETS, np.full(5, 0.1 * row), np.zeros(5), np.ones(5))
        for row, arm in enumerate(ARMS)
    ]
    write_study_page(
        path,
        "A study of synthetic clips",
        ["What was asked."],
        [Verdict("Claim 1", "coincidence, cross", "refuted", "By 0.10 [0.05, 0.15].")],
        [Table("Scores.", ["arm", "UAR", "clips"], rows)],
        [Forest("UAR", "difference to no_aug", [(arm, rows[0][1]) for arm in ARMS[1:]])],
        [CurvePlot("Audio offset", "offset (ms)", "UAR", curves)],
        {arm: [view(seed, clip) for clip in drawn] for seed, arm in enumerate(ARMS)},
        SIX,
        "python -m experiments.compare --quick",
        "4 minutes",
    )
    return path


@pytest.mark.parametrize("page", ["run_page", "study_page"])
def test_nothing_is_complained_of_and_nothing_is_asked_of_the_network(browser, page, request):
    browser.open(request.getfixturevalue(page))
    browser.press("body", Keys.ARROW_RIGHT)
    assert browser.complaints() == []
    assert browser.requests() == []


@pytest.mark.parametrize("page", ["run_page", "study_page"])
def test_a_narrow_screen_scrolls_down_only(browser, page, request):
    browser.open(request.getfixturevalue(page), width=375)
    assert browser.run("return document.documentElement.scrollWidth") == 375
    widths = browser.run(
        "return [...document.querySelectorAll('.drawing .main-svg')].map((e) => e.clientWidth)"
    )
    assert widths and 300 < min(widths) <= max(widths) <= 375


def test_the_plots_of_a_run_hold_its_numbers(browser, run_page):
    browser.open(run_page)
    train, validation = browser.data("plot-0")
    np.testing.assert_allclose(train["y"], [row["train_loss"] for row in history(9)])
    np.testing.assert_allclose(validation["y"], [row["validation_loss"] for row in history(9)])
    assert browser.data("plot-1")[-1]["x"] == [5]  # the star at the best epoch
    score = scores(answers())["uar"]
    text = f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"
    assert text in browser.text("#scores")


def test_the_viewer_shows_what_it_was_given(browser, run_page, views):
    browser.open(run_page)
    first = views[0]
    heard, seen = first.streams["audio"], first.streams["video"]
    audio, video, audio_features, video_features = browser.data("clip-time")
    valid = seen.valid
    np.testing.assert_allclose(audio["x"], heard.times, atol=1e-5)
    np.testing.assert_allclose(audio["y"], heard.ratio, rtol=1e-5)
    shown = np.array(video["y"], float)  # null where there was no face
    np.testing.assert_allclose(shown, seen.ratio, rtol=1e-5)
    z = np.array(audio_features["z"]).T
    np.testing.assert_allclose(z, heard.features.clip(-6.35, 6.35), atol=STEP / 2 + 1e-6)
    z = np.array(video_features["z"], float).T
    assert np.isnan(z[~valid]).all()
    np.testing.assert_allclose(z[valid], seen.features[valid], atol=STEP / 2 + 1e-6)
    (bars,) = browser.data("clip-classes")
    np.testing.assert_allclose(bars["x"], first.probabilities, atol=1e-4)
    shapes = browser.run("return document.getElementById('clip-time').layout.shapes")
    drawn_at = {(shape.get("name"), shape["x0"]) for shape in shapes}
    for modality, time, decoy in first.cues:
        assert (f"{modality} {'decoy' if decoy else 'cue'}", round(time, 4)) in drawn_at
    gap = next(shape for shape in shapes if shape.get("name") == "no data")
    assert (gap["x0"], gap["x1"]) == pytest.approx((9.5 / 15, 13.5 / 15), abs=1e-3)


def test_pointing_at_a_frame_reads_its_values(browser, run_page, views):
    browser.open(run_page)
    audio = views[0].streams["audio"]
    ratio = audio.attention[40] * len(audio.times)
    text = browser.hover("clip-time", 0, audio.times[40], ratio)
    assert f"audio attention {ratio:.2f}" in text and f"{audio.times[40]:.2f}" in text
    text = browser.hover("clip-time", 2, audio.times[40], 3)
    value = STEP * np.round(audio.features[40, 3] / STEP)
    assert f"{audio.times[40]:.2f} s, audio feature 3: {value:.2f}" in text.replace("−", "-")
    text = browser.hover("clip-classes", 0, views[0].probabilities[0] / 2, 0)
    assert f"anger: {views[0].probabilities[0]:.3f}" in text
    assert "of the class" in browser.hover("plot-2", 0, 0, 0)
    assert "UAR 0.500" in browser.hover("plot-1", 1, 5, 0.7)


def test_choosing_another_clip_redraws(browser, run_page, views):
    browser.open(run_page)
    before = browser.data("clip-time")
    third = views[2]
    browser.choose("#clip", f"{third.clip} · {third.label}")
    assert browser.text("#clip-title").startswith(f"{third.clip}: {third.label}, ")
    after = browser.data("clip-time")
    np.testing.assert_allclose(after[0]["x"], third.streams["audio"].times, atol=1e-5)
    assert after[0]["y"] != before[0]["y"] and after[2]["z"] != before[2]["z"]
    np.testing.assert_allclose(browser.data("clip-classes")[0]["x"], third.probabilities, atol=1e-4)


def test_keys_and_buttons_go_from_clip_to_clip(browser, run_page, views):
    left, right = Keys.ARROW_LEFT, Keys.ARROW_RIGHT
    browser.open(run_page)

    def current() -> int:
        shown = browser.text("#clip-title").split(":")[0]
        return [one.clip for one in views].index(shown)

    browser.press("body", left)
    assert current() == 0  # there is none before the first
    browser.press("body", right, right)
    assert current() == 2
    browser.click("#previous")
    assert current() == 1
    browser.click("#next")
    assert current() == 2
    browser.press("#search", "synth", left)
    assert current() == 2  # there it moves the cursor
    browser.press("#clip", Keys.ARROW_DOWN)  # the box itself
    assert current() == 3


def test_clips_are_found_by_text_and_by_being_right(browser, run_page, views):
    browser.open(run_page)

    def listed() -> list[str]:
        return browser.run("return [...document.querySelectorAll('#clip option')].map(o => o.text)")

    right = [SIX.index(one.label) == one.probabilities.argmax() for one in views]
    assert 0 < sum(right) < len(views)
    browser.choose("#filter", "wrong")
    assert len(listed()) == len(views) - sum(right)
    browser.choose("#filter", "right")
    assert len(listed()) == sum(right)
    assert browser.text("#clip-title").endswith(", correct")
    browser.choose("#filter", "all clips")
    browser.press("#search", f"{views[5].speaker} {views[5].clip[-3:]}")
    assert listed() == [f"{views[5].clip} · {views[5].label}"]
    browser.press("#search", " nothing")
    assert listed() == [] and browser.text("#clip-title") == "No such clip."
    assert browser.complaints() == []


def test_every_control_has_a_label_and_takes_the_keyboard(browser, run_page):
    browser.open(run_page)
    unlabelled = """return [...document.querySelectorAll("input, select")]
        .filter((control) => !control.labels.length || control.tabIndex < 0).length"""
    assert browser.run(unlabelled) == 0
    headings = browser.run("return [...document.querySelectorAll('h1,h2,h3')].map(h => h.tagName)")
    assert headings[:2] == ["H1", "H2"] and headings.count("H1") == 1


def test_hostile_names_are_text(browser, views, tmp_path):
    names = (SHORT, *SIX[1:])
    clips = [replace(views[0], clip=HOSTILE, speaker=HOSTILE, label=SHORT), *views[2:]]
    browser.open(write_run(tmp_path / "r.html", clips[:1], names=names, title=HOSTILE))
    assert browser.text("h1") == browser.text("title") == HOSTILE
    assert browser.text("#clip-title").startswith(f"{HOSTILE}: {SHORT}, ")
    assert browser.text("#clip option") == f"{HOSTILE} · {SHORT}"
    ticks = browser.run(
        "return [...document.querySelectorAll('#clip-classes .ytick, #plot-2 .xtick')]"
        ".map((tick) => tick.textContent)"
    )
    assert ticks.count(SHORT) == 2
    assert SHORT in browser.hover("plot-2", 0, 0, 0)
    assert SHORT in browser.hover("clip-classes", 0, views[0].probabilities[0] / 2, 0)
    assert browser.run("return [window.hacked ?? null, document.images.length]") == [None, 0]
    assert browser.complaints() == []


def test_a_third_modality_has_its_line_its_panel_and_its_gaps(browser, views, tmp_path):
    times = np.arange(10) / 4
    valid = times != 1
    text = StreamView(times, valid / 9, np.ones((10, 3)), valid)
    clips = [replace(one, streams={**one.streams, "text": text}) for one in views[:2]]
    browser.open(write_run(tmp_path / "p.html", clips))
    assert [trace["name"] for trace in browser.data("clip-time")] == [
        f"{name} {what}"
        for what in ("attention", "features")
        for name in ("audio", "video", "text")
    ]
    line = browser.data("clip-time")[2]
    np.testing.assert_allclose(np.array(line["y"], float), text.ratio, rtol=1e-5)
    shapes = browser.run("return document.getElementById('clip-time').layout.shapes")
    gaps = [shape for shape in shapes if shape.get("name") == "no data" and shape["x0"] == 0.875]
    assert len(gaps) == 2  # over the attention and over its features
    assert "video attentiontext attention" in browser.text("#key")
    assert browser.complaints() == []


def test_a_run_without_audio_and_with_one_epoch(browser, views, tmp_path):
    clips = [replace(one, streams={"video": one.streams["video"]}, cues=None) for one in views[:2]]
    browser.open(write_run(tmp_path / "r.html", clips, epochs=1))
    assert [trace["name"] for trace in browser.data("clip-time")] == [
        "video attention",
        "video features",
    ]
    assert browser.text("#key") == "video attentionno data"
    (train, _) = browser.data("plot-0")
    assert train["x"] == [1]
    assert browser.run("return document.querySelectorAll('#plot-0 .point').length") == 2
    assert browser.complaints() == []


def test_a_page_without_history_and_clips_leaves_them_out(tmp_path):
    path = tmp_path / "report.html"
    found = {"test": scores(answers())}
    write_run_page(path, "A run", {}, found, answers(), "python -m it", note="It leaks.")
    page = path.read_text()
    assert re.findall('<a href="(#[^"]+)"', page) == ["#scores", "#answers"]
    assert '<p class="note" role="note">It leaks.</p>' in page


def test_groups_and_ties_have_their_place(browser, tmp_path, monkeypatch):
    error = Metric(
        "error rate", "share of wrong clips", 0.0, lambda sums: 1 - METRICS["accuracy"].value(sums)
    )
    monkeypatch.setitem(METRICS, "error", error)
    hard = answers()
    tied = replace(
        hard,
        labels=np.where(np.arange(60) < 6, -1, hard.labels),
        targets=np.full((60, 6), 1 / 6),
        speakers=np.repeat([f"s{n}" for n in range(12)], 5),
    )
    columns = {HOSTILE: np.repeat(["f", SHORT, ""], 20), "age": np.arange(60).astype(str)}
    groups = group_scores(tied, columns)
    path = tmp_path / "report.html"
    write_run_page(path, "A run", {}, {"test": scores(tied)}, tied, "it", groups=groups)
    browser.open(path, width=375)
    assert "6 of 60 test clips have no label" in browser.text("#scores")
    assert "error rate: share of wrong clips" in browser.text("#scores")
    cells = browser.run(
        "return [...document.querySelectorAll('#groups tr')]"
        ".map((row) => [...row.children].map((cell) => cell.textContent))"
    )
    found = groups[HOSTILE]["values"]
    assert cells[0] == [HOSTILE, *found, "largest difference"]
    assert list(found) == [SHORT, "f", "unknown"]
    assert cells[1:3] == [["speakers", "4", "4", "4", "–"], ["clips", "20", "20", "20", "–"]]
    for row, (name, metric) in zip(cells[3:], METRICS.items(), strict=True):
        assert row[:-1] == [
            metric.title,
            *(cell_text(Interval(**one[name])) for one in found.values()),
        ]
    assert browser.run("return window.hacked ?? null") is None
    assert browser.run("return document.documentElement.scrollWidth") == 375
    assert browser.complaints() == []


def test_dark_screens_get_dark_plots(browser, run_page):
    colour = "return document.querySelector('#plot-0 .main-svg').style.background"
    browser.open(run_page, colours="dark")
    assert browser.run(colour) == "rgb(20, 23, 27)"
    browser.prefer("light")
    browser.wait(lambda: browser.run(colour) == "rgb(255, 255, 255)")


def test_a_study_draws_its_verdicts_forests_and_curves(browser, study_page):
    browser.open(study_page)
    assert "✗ refuted" in browser.text("#verdicts")
    assert "python -m experiments.compare --quick" in browser.text("footer")
    (forest,) = browser.data("plot-0")
    assert forest["x"] == [0.5, 0.5]
    assert browser.run("return document.querySelectorAll('#plot-0 .errorbar').length") == 2
    curves = browser.data("plot-1")
    assert [curve["name"] for curve in curves[1::2]] == list(map(plain, ARMS))
    assert curves[3]["y"] == [0.1] * 5
    assert "[0.000, 1.000]" in browser.hover("plot-1", 3, -200, 0.1)
    legend = browser.run(
        "return [...document.querySelectorAll('#plot-1 .legendtext')].map((e) => e.textContent)"
    )
    assert legend == list(ARMS)
    assert browser.run("return window.hacked ?? null") is None


def test_a_study_shows_a_clip_under_the_chosen_arms(browser, study_page):
    browser.open(study_page)
    boxes = "#arms input"
    assert browser.run("return document.querySelectorAll(arguments[0]).length", boxes) == 3
    three = [trace for trace in browser.data("clip-time") if trace["type"] == "scatter"]
    assert len(three) == 6 and three[0]["y"] != three[2]["y"]
    browser.click('#arms input[value="1"]')
    two = [trace for trace in browser.data("clip-time") if trace["type"] == "scatter"]
    assert [trace["y"] for trace in two] == [three[place]["y"] for place in (0, 1, 4, 5)]
    assert len(browser.data("clip-classes")) == 2
    browser.click('#arms input[value="0"]')
    browser.click('#arms input[value="2"]')
    assert browser.text("#clip-title") == "No arm is selected."
    assert browser.complaints() == []


def test_sixty_clips_are_three_megabytes(tmp_path):
    random = np.random.default_rng(0)

    def noise(frames: int, width: int) -> StreamView:
        times = np.arange(frames) / frames
        return StreamView(times, random.random(frames), random.normal(size=(frames, width)))

    clips = []
    for row in range(60):
        streams = {"audio": noise(350, 64), "video": noise(105, 7)}
        clips.append(ClipView(f"c{row}", "s", "sad", np.full(6, 1 / 6), streams))
    page, without = write_run(tmp_path / "r.html", clips), write_run(tmp_path / "w.html", [])
    assert page.stat().st_size - without.stat().st_size < 3e6


def test_a_page_is_made_without_jax():
    script = "import sys, mmattn.report.page; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
