"""The notebook runs from its first to its last cell."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tour.ipynb"
RUN = """
import json, sys
from pathlib import Path
with open(sys.argv[1]) as file:
    cells = json.load(file)["cells"]
names = {}
for cell in cells:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
accuracy = (names["found"].predicted == names["found"].labels).mean()
assert Path(names["folder"], "checkpoints/best").is_dir()
print("accuracy", accuracy)
"""


@pytest.mark.slow
def test_every_cell_runs(commands, tmp_path):
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert len(cells) < 12
    done = subprocess.run(
        [sys.executable, "-c", RUN, NOTEBOOK],
        cwd=tmp_path,
        env={**commands.environment, "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) > 0.5  # chance is 0.17
