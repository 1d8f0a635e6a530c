"""The page of predictions in a real headless Chromium, offline."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from selenium.webdriver.common.keys import Keys

import mmattn
from mmattn.evaluate.views import ClipView, StreamView
from mmattn.report.footage import Envelope, Face, Footage, most_attended, portrait
from mmattn.report.page import write_prediction_page
from mmattn.run import predict

NAMES = ("anger", "happy", "sad")
HOSTILE = '</script><img src=x onerror="window.hacked=1"><b>&amp;'
REASON = "no audio or video can be read"


def stream(rate: float, start: float, peak: float, seed: int) -> StreamView:
    random = np.random.default_rng(seed)
    times = start + np.arange(int(3 * rate)) / rate
    attention = 0.2 + np.exp(-(((times - peak) / 0.2) ** 2))
    features = random.normal(size=(len(times), 4))
    return StreamView(times, attention / attention.sum(), features)


def picture(shade: int) -> bytes:
    return portrait(np.full((60, 60, 3), shade, np.uint8), (15, 15, 45, 45))


@pytest.fixture(scope="module")
def views() -> list[ClipView]:
    audio, video = stream(50, 0.0, 1.0, 0), stream(15, 0.1, 1.4, 1)
    valid = np.arange(45) < 40
    video = replace(video, valid=valid, attention=video.attention * valid)
    both = {"audio": audio, "video": video}
    return [
        ClipView("clips/talk.mp4", None, None, np.array([0.2, 0.7, 0.1]), both),
        ClipView("clips/features.npz", None, None, np.array([0.1, 0.3, 0.6]), both),
        ClipView("clips/mute.mp4", None, None, np.array([0.5, 0.3, 0.2]), {"video": video}),
    ]


@pytest.fixture(scope="module")
def footage(views) -> list[Footage]:
    video = views[0].streams["video"]
    faces = tuple(
        Face(float(video.times[frame]), float(video.ratio[frame]), picture(40 * number))
        for number, frame in enumerate(most_attended(video))
    )
    times = np.linspace(0, 3.2, 300)
    audio = Envelope(times, np.abs(np.sin(4 * times)))
    mute = ("it has no audio track", "no audio: predicted from video only")
    return [Footage((), audio, faces), Footage(), Footage(mute, None, faces[:2])]


def write(path: Path, views, footage, failures=(), names=NAMES, title="Three clips") -> Path:
    about = {"Run": "runs/no_aug/x", "Networks": "best checkpoint"}
    command = "mmattn predict runs/no_aug/x clips"
    write_prediction_page(path, title, about, views, footage, names, failures, command)
    return path


@pytest.fixture(scope="module")
def page(views, footage, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    return write(path, views, footage, [("clips/broken.flv", REASON)])


def names_of(browser) -> list[str]:
    return [trace["name"] for trace in browser.data("clip-time")]


def test_nothing_is_complained_of_and_nothing_is_asked_of_the_network(browser, page):
    browser.open(page)
    browser.press("body", Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert browser.complaints() == []
    assert browser.requests() == []


def test_audio_attention_and_features_are_over_the_same_seconds(browser, page, views, footage):
    browser.open(page)
    assert names_of(browser) == [
        *("audio", "audio", "audio attention", "video attention", "faces"),
        *("audio features", "video features"),
    ]
    below, above, audio, video, *_ = browser.data("clip-time")
    heard = footage[0].audio
    np.testing.assert_allclose(above["x"], heard.times, atol=1e-5)
    np.testing.assert_allclose(above["y"], heard.loudness, atol=1e-5)
    np.testing.assert_allclose(below["y"], -heard.loudness, atol=1e-5)
    np.testing.assert_allclose(audio["y"], views[0].streams["audio"].ratio, rtol=1e-5)
    ratio = views[0].streams["video"].ratio
    np.testing.assert_allclose(np.array(video["y"], float), ratio, rtol=1e-5)
    low, high = browser.run("return document.getElementById('clip-time').layout.xaxis.range")
    assert low <= 0 and high >= 3.2  # the audio lasts longer than the features
    text = browser.hover("clip-time", 2, audio["x"][50], audio["y"][50])
    assert f"audio attention {audio['y'][50]:.2f}" in text
    text = browser.hover("clip-time", 1, heard.times[100], heard.loudness[100])
    loudness = float(re.search(r"loudness (0\.\d{3})$", text)[1])
    assert loudness == pytest.approx(heard.loudness[100], abs=0.05)  # a pixel is a point or two


def test_the_faces_of_a_clip_are_pictures_with_time_and_attention(browser, page, footage):
    browser.open(page)
    wait = "return Promise.all([...document.images].map((image) => image.decode()))"
    browser.run(wait)
    shown = browser.run(
        "return [...document.querySelectorAll('#faces li')].map((item) => "
        "[item.textContent, item.firstChild.alt, item.firstChild.naturalWidth])"
    )
    faces = footage[0].faces
    assert len(faces) == 5 and min(np.diff([face.time for face in faces])) >= 0.2 - 1e-9
    assert shown == [
        [f"{face.time:.2f} s · {face.attention:.2f}×", f"face at {face.time:.2f} s", 112]
        for face in faces
    ]
    marks = browser.data("clip-time")[4]
    np.testing.assert_allclose(marks["x"], [face.time for face in faces], atol=1e-4)
    browser.choose("#clip", "clips/features.npz · sad")
    assert browser.run("return document.getElementById('faces').checkVisibility()") is False
    assert "audio" not in names_of(browser) and "faces" not in names_of(browser)
    assert browser.run("return document.images.length") == 0


def test_a_clip_is_named_with_what_was_predicted(browser, page):
    browser.open(page)
    assert browser.text("#clip-title") == "clips/talk.mp4: predicted happy"
    assert browser.text("#clip-about") == "Clip 1 of 3 in the list."
    visible = "return document.querySelector(arguments[0]).checkVisibility()"
    assert browser.run(visible, "#filter") is False  # nobody knows what is right
    bold = "return document.querySelector('#clip-classes .ytick [style*=bold]').textContent"
    assert browser.run(bold) == "happy"
    browser.press("#search", "anger")
    assert browser.text("#clip-title") == "clips/mute.mp4: predicted anger"


def test_keys_go_from_clip_to_clip_and_a_missing_modality_is_said(browser, page):
    browser.open(page)
    browser.press("body", Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert browser.text("#clip-title") == "clips/mute.mp4: predicted anger"
    assert browser.text("#clip-about") == (
        "Clip 3 of 3 in the list; it has no audio track; no audio: predicted from video only."
    )
    assert names_of(browser) == ["video attention", "faces", "video features"]
    assert browser.text("#key") == "video attentionface shown belowno data"
    browser.press("body", Keys.ARROW_LEFT)
    assert browser.text("#clip-title") == "clips/features.npz: predicted sad"


def test_tables_hold_the_probabilities_and_the_failures(browser, page):
    browser.open(page)
    rows = browser.run(
        "return [...document.querySelectorAll('#predictions tbody tr, #failures tbody tr')]"
        ".map((row) => [...row.children].map((cell) => cell.textContent))"
    )
    assert rows == [
        ["clips/talk.mp4", "happy", "0.200", "0.700", "0.100"],
        ["clips/features.npz", "sad", "0.100", "0.300", "0.600"],
        ["clips/mute.mp4", "anger", "0.500", "0.300", "0.200"],
        ["clips/broken.flv", REASON],
    ]


def test_a_narrow_screen_scrolls_down_only(browser, page):
    browser.open(page, width=375)
    assert browser.run("return document.documentElement.scrollWidth") == 375


def test_hostile_names_are_text(browser, views, footage, tmp_path):
    clips = [replace(views[0], clip=HOSTILE)]
    noted = [replace(footage[0], notes=(HOSTILE,), faces=())]
    failures = [(HOSTILE, HOSTILE)]
    path = write(tmp_path / "p.html", clips, noted, failures, (HOSTILE, *NAMES[1:]), HOSTILE)
    browser.open(path)
    assert browser.text("h1") == HOSTILE
    assert browser.text("#clip-title") == f"{HOSTILE}: predicted happy"
    assert HOSTILE in browser.text("#clip-about") and HOSTILE in browser.text("#failures")
    assert browser.run("return [window.hacked ?? null, document.images.length]") == [None, 0]
    assert browser.complaints() == []


def test_the_page_of_a_run_shows_what_it_predicts(browser, tiny_run, tmp_path):
    path = tmp_path / "clip.npz"
    times = np.arange(40) / 20
    np.savez(
        path,
        audio_features=np.random.default_rng(0).normal(size=(40, 8)),
        audio_timestamps=times,
    )
    run = mmattn.load(tiny_run)
    outcome = run.predict_all([path, tmp_path / "lost.npz"])
    predict.write_html(tmp_path / "page.html", run, outcome)
    browser.open(tmp_path / "page.html")
    (one,) = outcome.predictions
    assert browser.text("#clip-title") == f"{path}: predicted {one.predicted}"
    (bars,) = browser.data("clip-classes")
    np.testing.assert_allclose(bars["x"], one.probabilities, atol=1e-4)
    (attention, features) = browser.data("clip-time")
    np.testing.assert_allclose(attention["y"], one.streams["audio"].ratio, rtol=1e-5)
    assert features["name"] == "audio features"
    assert "no video: predicted from audio only" in browser.text("#clip-about")
    assert re.search("lost.npz.*No such file", browser.text("#failures"))
    assert browser.text("h1") == "no_aug: predictions for 1 clip"
    assert browser.complaints() == []
