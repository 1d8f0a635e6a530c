"""A headless Chromium whose camera and microphone play a clip in a loop."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
from scipy.io import wavfile
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from mmattn.errors import UserError

ALLOWED = "--use-fake-ui-for-media-stream"  # every page may use camera and microphone


@contextmanager
def chromium(*arguments: str) -> Iterator[webdriver.Chrome]:
    """A browser with its own profile and further arguments.

    Raises UserError if there is no Chromium.
    """
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (program and driver):
        raise UserError("needs chromium, chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for argument in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", *arguments):
        options.add_argument(argument)
    if os.getuid() == 0:
        options.add_argument("--no-sandbox")
    with tempfile.TemporaryDirectory() as profile:
        options.add_argument(f"--user-data-dir={profile}")
        browser = webdriver.Chrome(options, Service(driver))
        try:
            yield browser
        finally:
            browser.quit()


def fake_devices(clip: Path, folder: Path) -> list[str]:
    """The arguments that make a clip Chromium's camera and microphone; writes its frames and
    samples, uncompressed, to a folder."""
    camera, microphone = folder / "camera.y4m", folder / "microphone.wav"
    with av.open(clip) as file, open(camera, "wb") as frames:
        video = file.streams.video[0]
        rate = video.average_rate
        form = f"W{video.width} H{video.height} F{rate.numerator}:{rate.denominator}"
        frames.write(f"YUV4MPEG2 {form} Ip A1:1 C420\n".encode())
        for frame in file.decode(video):
            frames.write(b"FRAME\n" + frame.to_ndarray(format="yuv420p").tobytes())
    with av.open(clip) as file:
        audio = file.streams.audio[0]
        samples = np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio)])
        wavfile.write(microphone, audio.rate, np.rint(32767 * samples.clip(-1, 1)).astype("<i2"))
    return [
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-video-capture={camera}",
        f"--use-file-for-fake-audio-capture={microphone}",
    ]
