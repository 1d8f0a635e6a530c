"""Runs a program of this folder by its path: `python3 .../agent NAME ARGS`.

Prints the program's answer, if any, as JSON after the marker.
"""

import json
import sys
from importlib import import_module
from pathlib import Path


def main() -> None:
    """Run the `main` of the module that the first argument names."""
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    del sys.argv[0]
    answer = import_module(f"agent.{sys.argv[0]}").main()
    if answer is not None:
        print(import_module("agent").MARKER + json.dumps(answer))


if __name__ == "__main__":
    main()
