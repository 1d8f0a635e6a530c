"""The agent's programs as the machine starts them: by path, with Python 3.9 if there is one."""

import shutil
import subprocess
import sys
from pathlib import Path

from mmattn.remote.send import AGENT

PLACES = (
    ".pyenv/versions/3.9.*/bin/python3.9",
    ".local/share/uv/python/cpython-3.9*/bin/python3.9",
)


def _find() -> str:
    """A Python 3.9 that starts (pyenv's stand-in for one may not), or else the running Python."""
    found = (path for place in PLACES for path in Path.home().glob(place))
    for path in filter(None, (shutil.which("python3.9"), *found)):
        if subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:
            return str(path)
    return sys.executable


PYTHON = _find()


def program(name: str, *arguments: object, **constants: object) -> list[str]:
    """The command line of one of the agent's programs, some of whose constants may be others."""
    start = [str(AGENT), name]
    if constants:
        lines = [f"import sys; sys.path.insert(0, {str(AGENT.parent)!r}); from agent import {name}"]
        lines += [f"{name}.{constant} = {value!r}" for constant, value in constants.items()]
        start = ["-c", "\n".join([*lines, f"{name}.main()"])]
    return [PYTHON, *start, *map(str, arguments)]
