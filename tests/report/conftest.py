"""A browser for the pages."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from tests.chromium import chromium

T = TypeVar("T")


@pytest.fixture(scope="session")
def browser() -> Iterator["Page"]:
    """A page in a real headless Chromium."""
    with chromium() as driver:
        yield Page(driver)


class Page:
    """A page in the browser."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, path: Path, width: int = 1280, colours: str = "light") -> None:
        self.command("Emulation.setDeviceMetricsOverride", **_screen(width))
        self.prefer(colours)
        for log in ("browser", "performance"):
            self.driver.get_log(log)  # of the page before
        self.driver.get(path.as_uri())

    def command(self, name: str, **arguments) -> None:
        self.driver.execute_cdp_cmd(name, arguments)

    def prefer(self, colours: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": colours}]
        self.command("Emulation.setEmulatedMedia", features=features)

    def run(self, script: str, *arguments):
        return self.driver.execute_script(script, *arguments)

    def text(self, selector: str) -> str:
        return self.run("return document.querySelector(arguments[0]).textContent", selector)

    def click(self, selector: str) -> None:
        self.run("document.querySelector(arguments[0]).click()", selector)

    def choose(self, selector: str, value: str) -> None:
        """Choose the option of a select box by its text."""
        Select(self.driver.find_element("css selector", selector)).select_by_visible_text(value)

    def press(self, selector: str, *keys: str) -> None:
        self.driver.find_element("css selector", selector).send_keys(*keys)

    def data(self, name: str) -> list[dict]:
        """The traces of a plot: type, name, x, y, z."""
        return self.run(
            """const rows = (a) => a && Array.from(a, (v) => v?.length >= 0 && typeof v != "string"
                ? Array.from(v) : v);
            return document.getElementById(arguments[0]).data.map(
                (t) => ({type: t.type, name: t.name, x: rows(t.x), y: rows(t.y), z: rows(t.z)}));
            """,
            name,
        )

    def hover(self, name: str, trace: int, x: float, y: float) -> str:
        """The hover text at (x, y) of the axes of a trace."""
        left, top = self.run(
            """const plot = document.getElementById(arguments[0]);
            plot.scrollIntoView({block: "center", behavior: "instant"});
            const box = plot.getBoundingClientRect(), {xaxis, yaxis} = plot._fullData[arguments[1]],
                side = (name) => plot._fullLayout[name.replace(/^[xy]/, (a) => a + "axis")],
                [h, v] = [side(xaxis), side(yaxis)];
            return [box.left + h._offset + h.d2p(arguments[2]),
                    box.top + v._offset + v.d2p(arguments[3])];""",
            *(name, trace, x, y),
        )
        for shift in (2, 0):
            self.command(
                "Input.dispatchMouseEvent", type="mouseMoved", x=left + shift, y=top, button="none"
            )
        return self.wait(lambda: self.text(f"#{name} .hoverlayer"))

    def wait(self, ready: Callable[[], T]) -> T:
        """What `ready` returns as soon as it is true."""
        return WebDriverWait(self.driver, 60).until(lambda _: ready())

    def complaints(self) -> list[dict]:
        return self.driver.get_log("browser")

    def requests(self) -> list[str]:
        """What the page asked for since it was opened, other than itself."""
        messages = [
            json.loads(row["message"])["message"] for row in self.driver.get_log("performance")
        ]
        urls = [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]
        assert self.driver.current_url in urls  # the log is on
        return [
            url
            for url in urls
            if url != self.driver.current_url and not url.startswith(("data:", "blob:"))
        ] + self.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")


def _screen(width: int) -> dict:
    return {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
