"""A run of two networks."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def committee(commands, made_once) -> Path:
    """The folder of a run of one epoch with a committee of two; not to be altered."""
    options = (*commands.tiny, "--devices", 2, "--train.epochs", 1, "--members", 2)
    return made_once(
        "committee", lambda to: commands.run("experiments.no_aug", *options, "--out", to)
    )
