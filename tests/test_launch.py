"""The launcher by itself: what it starts is no training."""

from pathlib import Path

import pytest

from mmattn.config import DistributedConfig
from mmattn.errors import UserError
from mmattn.launch import launch


@pytest.mark.parametrize(
    ("count", "command", "said"),
    [
        (0, ["experiments.no_aug"], "-n 0: expected 1 process or more"),
        (2, [], "expected an experiment, as in"),
        (2, ["experiments.compare"], "experiments.compare is a study"),
        (2, ["experiments.ablation"], "experiments.ablation is a study"),
        (
            2,
            ["experiments.no_aug", "--distributed.timeout", "9"],
            "--distributed.timeout: mmattn launch sets",
        ),
    ],
)
def test_a_launch_of_nothing(count, command, said):
    with pytest.raises(UserError, match=said):
        launch(count, command)


def test_an_experiment_needs_no_dashes_before_it(commands):
    for words in (
        ("-n", 0, "experiments.no_aug", "--seed", 1),
        ("experiments.no_aug", "--seed", 1, "-n", 0),
        ("-n", 0, "--", "experiments.no_aug", "--seed", 1),
    ):
        assert "-n 0: expected 1 process" in commands.run("mmattn", "launch", *words, code=2)


def test_options_that_do_not_fit_together():
    with pytest.raises(UserError, match=r"there is no --distributed\.coordinator"):
        DistributedConfig(num_processes=2).check()


@pytest.fixture
def module(commands, tmp_path, monkeypatch):
    """`module(name, text)`: a module that the commands find."""
    monkeypatch.setitem(commands.environment, "PYTHONPATH", f"{tmp_path}:{Path.cwd()}")
    return lambda name, text: (tmp_path / f"{name}.py").write_text(text)


def test_an_error_of_another_process_is_shown_with_its_number(commands, module):
    module(
        "breaks",
        "import sys, time\n"
        "if sys.argv[-1] == '0': time.sleep(60)\n"
        "print('the disk is upside down'); sys.exit(9)\n",
    )
    module(
        "impatient",
        "from mmattn import cli, launch; launch.GRACE = 0.5\n"
        "cli.end_process_after(lambda: launch.launch(2, ['breaks']))\n",
    )
    text = commands.run("impatient", code=9)
    assert "process 1 of 2 ended with exit code 9; its last lines:" in text
    assert "the disk is upside down" in text


def test_cores_are_divided_also_where_no_process_can_be_pinned(commands, module, tmp_path):
    module(
        "tells",
        "import sys; from pathlib import Path; from mmattn.machine import cores\n"
        f"Path({str(tmp_path)!r}, sys.argv[-1]).write_text(str(cores()))\n",
    )
    module(
        "as_on_macos",
        "import os; del os.sched_getaffinity, os.sched_setaffinity; os.cpu_count = lambda: 5\n"
        "from mmattn.launch import launch; launch(2, ['tells'])\n",
    )
    commands.run("as_on_macos")
    assert [(tmp_path / name).read_text() for name in "01"] == ["2", "3"]
