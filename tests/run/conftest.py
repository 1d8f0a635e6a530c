"""A run of two networks."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def ensemble(commands, made_once) -> Path:
    """The folder of a run of one epoch with an ensemble of two; not to be altered."""
    options = (*commands.tiny, "--devices", 2, "--train.epochs", 1, "--members", 2)
    return made_once(
        "ensemble", lambda to: commands.run("experiments.no_aug", *options, "--out", to)
    )
