"""The page of `mmattn live` in a real headless Chromium, with a clip for camera and microphone."""

import base64
import csv
import io
import json
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.support.wait import WebDriverWait

import mmattn
from benchmarks.browser import ALLOWED, fake_devices
from mmattn.run.run import Clip
from mmattn.server.session import AUDIO, HEADER
from tests.chromium import chromium
from tests.server.talking_run import face_models, live, talking_run  # noqa: F401

pytestmark = pytest.mark.browser


class Page:
    """The page in a browser."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, url: str) -> "Page":
        self.driver.get(url)
        self.watch()
        return self

    def watch(self) -> None:
        """Keep what is shown from now on."""
        self.run(
            "window.all = []; window.states = [];"
            "const state = document.getElementById('state');"
            "new MutationObserver(() => window.states.push(state.textContent))"
            "  .observe(state, {childList: true});"
            "document.addEventListener('shown', ({detail}) => window.all.push(detail))"
        )

    def run(self, script: str):
        return self.driver.execute_script(script)

    def press(self, text: str) -> None:
        self.driver.find_element("xpath", f"//button[text()='{text}']").click()

    def text(self, selector: str) -> str:
        return self.driver.find_element("css selector", selector).text

    def wait(self, ready):
        return WebDriverWait(self.driver, 120).until(lambda _: ready())

    def shown(self, count: int = 1) -> list[dict]:
        """What was shown, as soon as it is so many windows."""
        self.wait(lambda: self.run("return window.all.length") >= count)
        return self.run("return window.all")

    def notices(self, said: str) -> str:
        """The notices, as soon as they say something."""
        return self.wait(lambda: said in (text := self.text("#notices")) and text)


@pytest.fixture(scope="module")
def devices(talking_run, tmp_path_factory):  # noqa: F811
    return fake_devices(talking_run.talking, tmp_path_factory.mktemp("devices"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("recorded")


@pytest.fixture(scope="module")
def url(commands, talking_run, folder):  # noqa: F811
    with live(commands, talking_run.run, "--record", folder) as (url, _):
        yield url


@pytest.fixture(scope="module")
def driver(devices):
    with chromium(ALLOWED, *devices) as driver:
        yield driver


@pytest.fixture
def browser(driver):
    page = Page(driver)
    yield page
    driver.get("about:blank")  # ends the session
    if driver.window_handles[1:]:
        driver.close()
        driver.switch_to.window(driver.window_handles[0])


def test_the_class_on_the_page_is_what_predict_says_of_the_clip(
    browser,
    url,
    talking_run,  # noqa: F811
    folder,
):
    run = mmattn.load_run(talking_run.run)
    said = run.predict(talking_run.talking)
    page = browser.open(url)
    page.press("Start")
    shown = page.shown(12)
    predicted = Counter(one["predicted"] for one in shown)
    assert predicted.most_common(1)[0][0] == said.predicted == "talking"
    last = page.run("return [window.all.at(-1), document.getElementById('predicted').textContent]")
    assert last[0]["predicted"] == last[1]
    rows = page.text("#classes").split()
    assert rows[::2] == list(run.class_names) and sum(map(float, rows[1::2])) == pytest.approx(
        1, abs=0.02
    )
    assert page.text("#notes").startswith("from audio and video")
    assert all(0 < one["delay"] < 30_000 for one in shown)
    assert "ms from capture to screen" in page.text("#state")
    assert page.run(
        "const c = document.getElementById('mesh');"
        "return c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(Boolean)"
    )
    page.press("Stop")
    features, table = map(Path, page.notices("Recorded: ").split("Recorded: ")[1].split(", "))
    assert page.text("#state") == "Stopped"
    assert page.driver.get_log("browser") == []
    with open(table) as file:
        rows = {
            round(float(row["start"]), 1): row for row in csv.DictReader(file) if not row["gap"]
        }
    for one in filter(lambda one: one["predicted"], shown):  # it is in the table and the features
        [(start, row)] = [
            (start, row)
            for start, row in rows.items()
            if float(row["talking"]) == pytest.approx(one["probabilities"][1], abs=1e-5)
        ]
        assert row["predicted"] == one["predicted"]
        [same], _ = run.predict_all([Clip(features, start, start + 3.0)])
        np.testing.assert_allclose(one["probabilities"], same.probabilities, atol=0.08)


def test_a_page_that_is_loaded_again_continues(browser, url, folder):
    page = browser.open(url)
    page.press("Start")
    page.shown()
    before = len([*folder.iterdir()])
    page.driver.refresh()
    page.watch()
    assert page.shown(2)[-1]["end"] > 0
    assert len([*folder.iterdir()]) == before + 2  # what was before is recorded
    page.press("Stop")
    page.driver.refresh()
    assert page.text("#state") == ""


def test_a_second_tab_takes_over_and_the_first_can_take_back(browser, url):
    first = browser.driver.current_window_handle
    page = browser.open(url)
    page.press("Start")
    page.shown()
    page.driver.switch_to.new_window("tab")
    page.open(url).press("Start")
    page.shown()
    second = page.driver.current_window_handle
    page.driver.switch_to.window(first)
    assert "Another tab or window has taken over." in page.notices("taken over")
    assert page.text("#state") == "Stopped"
    page.watch()
    page.press("Use this one")
    page.shown()
    assert "taken over" not in page.text("#notices")
    page.driver.switch_to.window(second)
    page.notices("taken over")


@contextmanager
def injected(driver, script: str):
    """Pages run a script before their own."""
    added = driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})
    yield
    driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


def test_a_lost_connection_is_made_again(browser, url):
    script = """
        window.WebSocket = class extends WebSocket {
            constructor(...given) { super(...given); window.connection = this; }
        };"""
    with injected(browser.driver, script):
        page = browser.open(url)
    page.press("Start")
    before = len(page.shown())
    page.run("window.connection.close()")
    page.wait(lambda: "Connection lost; trying again …" in page.run("return window.states"))
    page.shown(before + 2)
    page.wait(lambda: page.text("#state").startswith("Running"))


def test_another_start_of_the_program_is_told_from_a_lost_connection(
    browser,
    commands,
    talking_run,  # noqa: F811
):
    with live(commands, talking_run.run) as (url, process):
        page = browser.open(url)
        page.press("Start")
        page.shown()
        process.kill()
        process.wait()
        page.notices("Was it stopped?")
        with live(commands, talking_run.run, "--port", urlsplit(url).port):
            page.notices("was restarted: open the address that it printed")
            assert page.text("#state") == "Stopped"


def test_without_permission_it_says_what_to_do(devices, url):
    with chromium(f"{ALLOWED}=deny", *devices) as driver:
        page = Page(driver).open(url)
        page.press("Start")
        said = page.notices("No microphone")
        assert said.count("the browser may not use it") == 2
        assert page.text("#state") == "Stopped"
        page.press("Try again")
        page.notices("No microphone")


@pytest.mark.parametrize(
    ("device", "lacks", "has"), [("camera", "video", "audio"), ("microphone", "audio", "video")]
)
def test_without_one_device_the_other_is_enough(browser, url, device, lacks, has):
    script = """
        const own = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
        navigator.mediaDevices.getUserMedia = (wanted) => wanted.LACKS
            ? Promise.reject(new DOMException("", "NotFoundError")) : own(wanted);"""
    with injected(browser.driver, script.replace("LACKS", lacks)):
        page = browser.open(url)
    page.press("Start")
    [one, *_] = page.shown()
    assert one["predicted"] and list(one["streams"]) == [has]
    said = page.notices(f"No {device}")
    assert f"No {device}: there is none. Predictions are from {has} only." in said


FLASH_AND_TONE = """
    navigator.mediaDevices.getUserMedia = async () => {
        const canvas = Object.assign(document.createElement("canvas"), {width: 160, height: 120});
        const paint = canvas.getContext("2d");
        const sound = new AudioContext();
        const [out, gain] = [sound.createMediaStreamDestination(), sound.createGain()];
        const tone = sound.createOscillator();
        tone.connect(gain).connect(out);
        tone.start();
        sound.resume();
        setInterval(() => {
            const lit = performance.now() % 1000 < 300;
            gain.gain.value = Number(lit);
            paint.fillStyle = lit ? "white" : "black";
            paint.fillRect(0, 0, 160, 120);
        }, 10);
        const seen = canvas.captureStream(30);
        return new MediaStream([...seen.getTracks(), ...out.stream.getTracks()]);
    };
    window.sent = [];
    const send = WebSocket.prototype.send;
    WebSocket.prototype.send = function (data) {
        if (data.buffer) {
            window.sent.push(btoa(String.fromCharCode(...data)));
        }
        send.call(this, data);
    };"""


def test_a_flash_and_a_tone_at_the_same_moment_are_sent_with_the_same_time(url):
    with chromium("--autoplay-policy=no-user-gesture-required") as driver:
        with injected(driver, FLASH_AND_TONE):
            page = Page(driver).open(url)
        page.press("Start")
        page.wait(lambda: page.run("return performance.now()") > 14_000)
        sent = [base64.b64decode(one) for one in page.run("return window.sent")]
    loud, lit = [], []  # ms of each sample, and of each frame
    for one in sent:
        kind, time = HEADER.unpack_from(one)
        if kind == AUDIO:
            samples = np.frombuffer(one[HEADER.size :], "<i2").astype(float)
            loud += (time + np.flatnonzero(np.abs(samples) > 3000) / 16).tolist()
        else:
            frame = Image.open(io.BytesIO(one[HEADER.size :])).convert("L")
            lit += [time] if np.asarray(frame).mean() > 128 else []
    apart = []
    for second in range(4000, 13_000, 1000):  # when the page has settled
        near = [[at for at in of if second - 300 < at < second + 600] for of in (loud, lit)]
        if all(near):
            apart.append(min(near[1]) - min(near[0]))
    # A frame is the first of 15 a second, so late by half of 67 ms in the mean.
    assert abs(np.median(apart) - 33) < 60


def test_the_benchmark_of_the_delay(commands, talking_run, tmp_path):  # noqa: F811
    found = tmp_path / "found.json"
    words = (talking_run.run, talking_run.talking, "--seconds", 3, "--json", found)
    with chromium():  # or it is skipped
        pass
    said = commands.run("benchmarks.live", *words)
    delays = json.loads(found.read_text())["delays_ms"]
    assert delays and f"{np.median(delays):.0f}" in said
