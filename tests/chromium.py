"""A real headless Chromium for the tests that open pages."""

import shutil
from contextlib import AbstractContextManager

import pytest
from selenium import webdriver

from benchmarks import browser


def chromium(*arguments: str) -> AbstractContextManager[webdriver.Chrome]:
    """`benchmarks.browser.chromium`; the test is skipped where there is none."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("needs chromium and chromedriver: apt-get install chromium chromium-driver")
    return browser.chromium(*arguments)
