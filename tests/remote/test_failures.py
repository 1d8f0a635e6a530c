"""That docs/remote-failures.md names tests that there are."""

import re
from pathlib import Path

HERE = Path(__file__).parent
TABLE = HERE.parents[1] / "docs/remote-failures.md"


def test_each_failure_has_a_test_that_exists():
    rows = re.findall(r"^\| .* \| `([\w/]+): (\w+)` \|$", TABLE.read_text(), re.M)
    assert len(rows) > 50
    for name, test in rows:
        folder, _, file = name.rpartition("/")
        source = (HERE / folder / f"test_{file}.py").read_text()
        assert f"\ndef test_{test}(" in source, (name, test)
