"""The delay of `mmattn live`, by the page's own clock: from the last audio and frame of a window to
the moment when the screen with its prediction was painted.

In headless Chromium, with a clip as camera and microphone, on the same cores as `mmattn live`. The
hop is not included: a shown prediction may be older by up to one hop.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from benchmarks import machine
from benchmarks.browser import ALLOWED, chromium, fake_devices
from mmattn.console import say_table
from mmattn.errors import UserError

GOAL = 400  # ms that 95 % of the predictions should be within


@dataclass(frozen=True)
class Live:
    """Options of the command."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """As of `mmattn live`."""
    clip: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CLIP")]
    """A clip of a few seconds with audio and video."""
    seconds: float = 60.0
    """Seconds to measure, after the first ten predictions."""
    hop: float = 0.5
    """As of `mmattn live`."""
    json: Path | None = None
    """File to write the machine and every delay to."""

    def __call__(self) -> None:
        """Measure and print."""
        machine.check_json(self.json)
        about = machine.describe()
        machine.say_machine(about)
        words = ["live", self.run, "--no-browser", "--port", 0, "--hop", self.hop]
        program = [sys.executable, "-m", "mmattn", *map(str, words)]
        with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as server:
            try:
                shown, cores = self._measure(server)
            finally:
                server.kill()
        delays = np.array([one["delay"] for one in shown])
        left_out = shown[-1]["left_out"] - shown[0]["left_out"]
        row = [f"{value:.0f}" for value in np.quantile(delays, [0.5, 0.95, 1.0])]
        columns = ("median ms", "95 % ms", "most ms", "predictions", "left out", "server's cores")
        title = f"From capture to screen, hop {self.hop:g} s (the goal: 95 % within {GOAL} ms)"
        say_table(title, columns, [(*row, len(delays), left_out, f"{cores:.2f}")])
        machine.write_json(self.json, about, {"delays_ms": delays.tolist(), "left_out": left_out})

    def _measure(self, server: subprocess.Popen) -> tuple[list[dict], float]:
        """The predictions shown, and the cores that the server used meanwhile."""
        urls = (found[0] for line in server.stdout if (found := re.search(r"http\S+", line)))
        if (url := next(urls, None)) is None:
            raise UserError(f"mmattn live {self.run} does not start")
        with tempfile.TemporaryDirectory() as folder:
            devices = fake_devices(self.clip, Path(folder))
            with chromium(ALLOWED, *devices) as browser:
                return self._watch(browser, url, server.pid)

    def _watch(self, browser, url: str, pid: int) -> tuple[list[dict], float]:
        browser.get(url)
        browser.execute_script(
            "window.all = [];"
            "document.addEventListener('shown', ({detail: {delay, left_out}}) =>"
            "  window.all.push({delay, left_out}));"
            "document.getElementById('start').click()"
        )
        until = time.monotonic() + 60
        while browser.execute_script("return window.all.length") < 10:
            if time.monotonic() > until:
                raise UserError("the page shows no predictions")
            time.sleep(0.2)
        browser.execute_script("window.all = []")
        begin = time.monotonic(), cpu_seconds(pid)
        time.sleep(self.seconds)
        end = time.monotonic(), cpu_seconds(pid)
        shown = browser.execute_script("return window.all")
        return shown, (end[1] - begin[1]) / (end[0] - begin[0])


def cpu_seconds(pid: int) -> float:
    """CPU seconds that a process has used, by Linux."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    machine.command(Live, "live", __doc__)
