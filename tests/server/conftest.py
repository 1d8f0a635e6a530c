"""A browser for the pages."""

from tests.report.conftest import browser  # noqa: F401
