"""That what runs on the machine needs Python 3.9 and its standard library alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from mmattn.remote.send import AGENT
from tests.remote.programs import PYTHON, program

SOURCES = sorted(AGENT.glob("*.py"))
SIBLINGS = {path.stem for path in SOURCES}
NEWER = {"tomllib", "compression", "annotationlib"}  # in the standard library, but not of 3.9
NEEDS = "from __future__ import annotations"
IN_THE_RUNS_VENV = {"bucket"}  # where boto3 is; none else may import them
BOTO = {"boto3", "botocore"}


@pytest.fixture(params=SOURCES, ids=lambda path: path.stem)
def source(request) -> Path:
    return request.param


@pytest.fixture
def tree(source) -> ast.Module:
    """A module of the agent, parsed as by Python 3.9."""
    return ast.parse(source.read_text(encoding="utf-8"), feature_version=(3, 9))


def test_it_imports_the_standard_library_and_its_siblings_alone(source, tree):
    in_venv = source.stem in IN_THE_RUNS_VENV
    siblings = SIBLINGS if in_venv else SIBLINGS - IN_THE_RUNS_VENV
    library = sys.stdlib_module_names - NEWER | (BOTO if in_venv else set())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            assert node.level == 1 and siblings.issuperset(names), names
            continue
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            assert name.split(".")[0] in library, name


def test_no_annotation_of_newer_pythons_is_evaluated(tree):
    """`X | Y` of types is an error in 3.9, unless it stands in an annotation that stays text."""
    nodes = list(ast.walk(tree))
    asked = [node.annotation for node in nodes if isinstance(node, ast.arg | ast.AnnAssign)]
    asked += [node.returns for node in nodes if isinstance(node, ast.FunctionDef)]
    parts = [part for annotation in filter(None, asked) for part in ast.walk(annotation)]
    newer = any(isinstance(part, ast.BinOp) for part in parts)
    assert not newer or NEEDS in ast.unparse(tree)


def test_each_module_is_imported_and_each_program_started():
    names = ", ".join(sorted(SIBLINGS - IN_THE_RUNS_VENV - {"__init__", "__main__"}))
    code = f"import sys; sys.path.insert(0, {str(AGENT.parent)!r}); from agent import {names}"
    code += "; print([name for name in sys.modules if name.startswith('mmattn')])"
    command = [PYTHON, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
    command = program("job", "/nowhere/job", "stop", 0)
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert done.stdout.startswith('mmattn:{"start": null') and not done.stderr, done
