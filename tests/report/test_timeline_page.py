"""The page of a timeline in a real headless Chromium: moments, people, gaps, and the player."""

import json

import numpy as np
import pytest
from scipy.io import wavfile
from selenium.webdriver.common.keys import Keys

from mmattn.report.timeline import write_timeline_page
from tests.report.timelines import row

CLASSES = ["anger", "calm", "happy"]
HOSTILE = '</script><img src=x onerror="window.hacked=1"><b>&amp;'
PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="


def write(folder, windows, people=0, name="talk & more.wav", classes=CLASSES):
    """The page of a recording of 20 s, which lies in a folder beside that of the page."""
    timeline = {
        "settings": {"run": "runs/x", "checkpoint": "best", "window": 3, "hop": 0.5},
        "seconds": 20.0,
        "trust": ["Of actors."],
        "notes": [],
        "classes": classes,
        "people": [{"portrait": PIXEL}] * people,
        "windows": windows,
    }
    recording = folder / "recordings" / name
    recording.parent.mkdir(parents=True, exist_ok=True)
    wavfile.write(recording, 8000, np.zeros(20 * 8000, np.int16))
    page = folder / "timelines" / "talk.html"
    page.parent.mkdir(exist_ok=True)
    write_timeline_page(page, json.loads(json.dumps(timeline)), recording, "mmattn timeline")
    return page, recording


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Calm, then silence, then happy: the page and the recording."""
    windows = [row(k / 2, [0.2, 0.7, 0.1]) for k in range(10)]
    windows += [row(5 + k / 2, None, gap="silence") for k in range(10)]
    windows += [row(10 + k / 2, [0.1, 0.1, 0.8]) for k in range(15)]
    return write(tmp_path_factory.mktemp("alone"), windows)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Two people who take turns, then nobody."""
    other = "another person speaks"
    windows = []
    for k in range(20):
        first = k < 10
        both = ([0.2, 0.7, 0.1], ""), (None, other)
        for person, (shares, gap) in zip((1, 2), both if first else both[::-1], strict=True):
            windows.append(row(k / 2, shares, person, shares is not None, gap))
    windows += [row(10 + k / 2, None, gap="no face") for k in range(15)]
    return write(tmp_path_factory.mktemp("several"), windows, people=2)


def quiet(browser, page, width=1280):
    """Open the page so that clicks do not play."""
    browser.open(page, width)
    browser.wait(lambda: browser.run("return document.querySelector('#player').duration"))
    browser.click("#plays")


def readouts(browser) -> list[str]:
    """What is said of each person now, without the time."""
    script = "return Array.from(document.querySelectorAll('.readout'), e => e.innerText)"
    return [" ".join(text.split()[1:]) for text in browser.run(script)]


def moment(browser) -> float:
    return float(browser.run("return document.querySelector('.strip').ariaValueNow"))


def click_at(browser, share: float) -> None:
    browser.run(
        """const strip = document.querySelector(".strip"), box = strip.getBoundingClientRect();
        const x = box.left + 92 + (box.width - 92) * arguments[0];
        strip.dispatchEvent(new MouseEvent("click", {clientX: x, bubbles: true}));""",
        share,
    )


def test_nothing_but_the_recording_is_asked_for_and_nothing_complained_of(browser, alone):
    page, recording = alone
    quiet(browser, page)
    browser.press(".strip", Keys.ARROW_RIGHT, Keys.PAGE_DOWN)
    assert browser.complaints() == []
    assert {*browser.requests()} == {recording.as_uri()}
    assert not browser.run("return !document.querySelector('#trouble').hidden")
    assert "Of actors." in browser.text("header")


def test_a_click_goes_to_its_moment_and_says_what_is_there(browser, alone):
    quiet(browser, alone[0])
    for share, time, said in (
        (0.2, 4, "calm 70 %, anger 20 %, happy 10 %"),
        (0.4, 8, "silence"),
        (0.75, 15, "happy 80 %, anger 10 %, calm 10 %"),
        (0.01, 0.2, ""),
    ):
        click_at(browser, share)
        played = browser.run("return document.querySelector('#player').currentTime")
        assert [played, moment(browser)] == pytest.approx([time] * 2, abs=0.06)
        assert readouts(browser) == [said]


def test_a_click_plays(browser, alone):
    browser.open(alone[0])
    browser.driver.find_element("css selector", ".strip").click()
    browser.wait(lambda: not browser.run("return document.querySelector('#player').paused"))
    before = moment(browser)
    browser.wait(lambda: moment(browser) > before)


def test_the_keyboard_moves_by_windows(browser, alone):
    quiet(browser, alone[0])
    for key, time in (
        (Keys.PAGE_DOWN, 5.0),
        (Keys.ARROW_RIGHT, 5.5),
        (Keys.ARROW_LEFT, 5.0),
        (Keys.END, 20.0),
        (Keys.ARROW_RIGHT, 20.0),
        (Keys.HOME, 0.0),
    ):
        browser.press(".strip", key)
        assert moment(browser) == time


def test_passages_are_runs_of_a_class(browser, alone):
    quiet(browser, alone[0])
    rows = "return Array.from(document.querySelectorAll('#list tbody tr'), e => e.innerText)"
    assert [text.split("\t") for text in browser.run(rows)] == [
        ["0:01.2 – 0:06.2", "calm", "70 %"],
        ["0:11.2 – 0:18.7", "happy", "80 %"],
    ]
    browser.run("document.querySelectorAll('#list button')[1].click()")
    assert moment(browser) == pytest.approx(11.25, abs=0.06)
    assert readouts(browser)[0].startswith("happy")


def test_people_have_timelines_of_their_own(browser, several):
    quiet(browser, several[0])
    names = "return Array.from(document.querySelectorAll('.person h3'), e => e.textContent)"
    assert browser.run(names) == ["Person 1", "Person 2", "No face"]
    said = "speaking; calm 70 %, anger 20 %, happy 10 %"
    for share, expected in (
        (0.15, [said, "another person speaks", ""]),
        (0.45, ["another person speaks", said, ""]),
        (0.75, ["not seen", "not seen", "no face"]),
    ):
        click_at(browser, share)
        assert readouts(browser) == expected


def test_a_part_is_shown_larger_and_follows(browser, alone):
    quiet(browser, alone[0])
    browser.choose("#span", "15 seconds")
    browser.press(".strip", Keys.END)
    click_at(browser, 0.2)
    assert moment(browser) == pytest.approx(8, abs=0.06)


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_window(browser, several, width):
    quiet(browser, several[0], width)
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")


def test_a_recording_that_is_gone_is_said(browser, tmp_path):
    page, recording = write(tmp_path, [row(0, [0.2, 0.7, 0.1])])
    recording.unlink()
    browser.open(page)
    trouble = browser.wait(lambda: browser.text("#trouble"))
    assert trouble.startswith("../recordings/talk & more.wav cannot be played: it was moved")


def test_names_are_text(browser, tmp_path):
    windows = [row(0, [0.2, 0.8]), row(0.5, None, gap=HOSTILE)]
    page, _ = write(tmp_path, windows, name="a %23 #?<b>.wav", classes=[HOSTILE, "calm"])
    quiet(browser, page)
    browser.press(".strip", Keys.ARROW_RIGHT, *[Keys.ARROW_RIGHT] * 3)
    assert HOSTILE in readouts(browser)[0]
    assert not browser.run("return window.hacked")
    assert browser.complaints() == []
