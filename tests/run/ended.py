"""How far a run has come, and whether two have ended alike."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

TIMED = ("clips_per_s", "seconds")


def arrays(folder: Path, kind: str) -> dict[str, np.ndarray]:
    (step,) = (folder / "checkpoints" / kind).iterdir()
    checkpointer = ocp.PyTreeCheckpointer()
    names = checkpointer.metadata(step / "arrays").item_metadata.tree
    # The devices that wrote it are not here.
    numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
    return checkpointer.restore(step / "arrays", restore_args=numpy)


def metrics(folder: Path) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMED} for line in lines]


def epochs_done(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def half_written(folder: Path) -> set[str]:
    """Checkpoints that are being saved, or were when the process was killed."""
    latest = folder / "checkpoints" / "latest"
    return {path.name for path in latest.glob("*tmp*")} if latest.is_dir() else set()


def wait_until(
    true: Callable[[], object], process: subprocess.Popen, interval: float = 0.005
) -> None:
    """Wait as long as the process lives."""
    while not true():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(interval)


def assert_same_end(folder: Path, reference: Path) -> None:
    """To the bit."""
    assert metrics(folder) == metrics(reference)
    for name in ("predictions.csv", "predictions_validation.csv", "split.json"):
        assert (folder / name).read_bytes() == (reference / name).read_bytes()
    for kind in ("best", "final"):
        found, expected = arrays(folder, kind), arrays(reference, kind)
        assert found.keys() == expected.keys()
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name], err_msg=f"{kind} {name}")
