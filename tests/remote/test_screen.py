"""What the screen says, against values found by hand, and that nothing on it can do harm."""

import base64
import doctest
import io
import math
import time

import pytest
from rich.console import Console

from mmattn.remote import screen
from mmattn.remote.runs import Member, Run
from mmattn.remote.screen import Touch, cost, guard_text, job_text, log_lines, report

NOW = 1_795_000_000.0  # here
THERE = NOW + 400  # the machine's clock is ahead
RUN = Run(
    name="no_aug-20261118-102000-ab12",
    experiment="no_aug",
    region="us-east-1",
    instance_type="c5.24xlarge",
    price=4.08,
    deadline=THERE + 5 * 3600,
    members=[Member("i-0a1b2c3d4e5f60718", "203.0.113.27", "172.31.0.5", THERE - 3600)],
)
HOST = Run(name="no_aug-20261118-102000-ab12", experiment="no_aug", host="me@192.0.2.1:2222")
IN_TOUCH = Touch(NOW)
OUT = Touch(NOW - 300, NOW - 290, "ec2-user@203.0.113.27 is silent for 15 s; it is running at EC2")
ENDED = {"state": "ended", "exit_code": 0, "ended": THERE - 10}
QUIET = {"off_at": THERE + 3590}


@pytest.fixture(autouse=True)
def utc(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def row(epoch, **values):
    return {
        "epoch": epoch,
        "train_loss": 1.5 / epoch,
        "train_accuracy": 0.5,
        "validation_loss": 1.75 / epoch,
        "validation_accuracy": 0.25 + 0.01 * epoch,
        "validation_uar": 0.3,
        "learning_rate": 5e-4,
        "clips_per_s": 411.7,
        "seconds": 10.0,
        **values,
    }


def snapshot(epochs=0, log=b"", job=None, guard=None, **values):
    quiet = {"reason": None, "off_at": None}
    state = {"state": "running", "start": 1, "exit_code": None, "started": THERE - 3000}
    size = {"memory_used": 34, "memory_total": 192, "disk_used": 7.25, "disk_total": 40}
    load = {name: value * 2**30 for name, value in size.items()}
    return {
        "now": THERE,
        "job": {**state, "ended": None, "out_of_memory": False, **(job or {})},
        "complete": False,
        "guard": {"beat": THERE - 2, **quiet, **(guard or {})},
        "machine": {"cores": 96, "load": 60.5, **load},
        "others": [],
        "part": "",
        "epochs": 50,
        "monitor": "accuracy",
        "metrics": [row(epoch + 1) for epoch in range(epochs)],
        "checkpoints": [{"kind": "best", "step": 96, "time": THERE - 300}],
        "log": {"offset": 0, "size": 0, "data": base64.b64encode(log).decode()},
        **values,
    }


def drawn(found, run=RUN, touch=IN_TOUCH, now=NOW, width=100, height=None):
    console = Console(width=width, file=io.StringIO())
    console.print(report(run, found, touch, now, height))
    return console.file.getvalue()


def test_examples():
    assert doctest.testmod(screen).failed == 0


def test_cost():
    assert cost(RUN, THERE) == 4.08
    assert cost(RUN, THERE + 1800) == pytest.approx(6.12)
    assert cost(RUN, RUN.members[0].launched - 5) == 0  # clocks differ


def test_the_machines_clock_counts():
    """Ages are by its clock, clock times by that of this computer."""
    text = drawn(snapshot(2), now=NOW + 60)
    assert "running for 51 min" in text
    assert "best: step 96, 6 min ago" in text
    assert "$4.15 so far   $4.08 an hour   at most $24.48" in text
    ends = time.strftime("%a %d %b %H:%M", time.gmtime(NOW + 5 * 3600))
    assert f"{ends}, in 4 h 59 min" in text
    assert "CPU load 60.5 of 96   memory 34.0 of 192 GiB   disk 7.2 of 40 GiB" in text


def test_curves():
    text = drawn(snapshot(8))
    assert "train 0.500 ▁▁▁▁▁▁▁▁   validation 0.330 ▁▂▃▄▅▆▇█" in text
    rows = [row(n, train_accuracy=math.nan, validation_accuracy=math.inf) for n in (1, 2, 3)]
    assert "train nan    validation inf    best" in drawn(snapshot(metrics=rows))


def test_the_monitor_has_a_line():
    rows = [row(n, validation_brier=abs(n - 3) / 8) for n in range(1, 6)]
    text = drawn(snapshot(metrics=rows, monitor="brier"))
    assert "Brier score  validation 0.250 █▅▁▅█   best 0.000 in epoch 3" in text
    assert "accuracy" not in text
    text = drawn(snapshot(metrics=rows, monitor="loss"))
    assert "train 0.3000 █▄▂▁▁   validation 0.3500 █▄▂▁▁   best 0.3500 in epoch 5" in text


def test_log_lines_cannot_move_the_cursor():
    nasty = (
        b"\x1b[2J\x1b[Htop\x1b]0;title\x07\x1b]8;;http://x\x1b\\link\r\n"
        b"50%\r100%\n"
        b"\x1bPq\x9b31m \xe2\x80\xae reversed\x00\n"
        b"caf\xc3\xa9 \xff\n"
    )
    lines = log_lines(nasty, 8)
    assert lines[:2] == ["toplink", "100%"]
    assert "reversed" in lines[2]
    assert lines[3] == "café \ufffd"
    assert all(char.isprintable() for line in lines for char in line)
    assert log_lines(b"", 8) == [""]
    assert log_lines(b"1\n2\n3\n", 2) == ["2", "3"]


def test_the_log_is_plain_text():
    text = drawn(snapshot(12, log=b"[red]x[/nonsense] :smile: \x1b[31mred\x1b[0m\n"))
    assert "[red]x[/nonsense] :smile: red" in text
    assert all(char.isprintable() or char == "\n" for char in text)


OTHER = {"rank": 1, "snapshot": snapshot(), "trouble": ""}
STATES = {
    "early": (RUN, snapshot(checkpoints=[]), Touch(NOW), "none yet"),
    "middle": (RUN, snapshot(30), Touch(NOW), "at most 3 min left"),
    "folds": (RUN, snapshot(30, part="fold3"), Touch(NOW), "fold3   epoch 30"),
    "ended": (RUN, snapshot(30, job=ENDED, complete=True), Touch(NOW), "results complete"),
    "lost": (RUN, snapshot(30, job={"state": "lost"}), Touch(NOW), "`fab resume` continues"),
    "out of touch": (RUN, snapshot(30), OUT, "no connection for 4 min, trying again"),
    "several": (RUN, snapshot(30, others=[OTHER] * 2), Touch(NOW), "machine 1"),
    "host": (HOST, snapshot(30), Touch(NOW), "me@192.0.2.1:2222"),
}


@pytest.mark.parametrize("width", [80, 100, 140])
@pytest.mark.parametrize("state", STATES)
def test_fits_any_width(width, state):
    run, found, touch, expected = STATES[state]
    log = base64.b64encode(("日本語 " * 50 + "\n").encode() * 12).decode()
    text = drawn(found | {"log": {"data": log}}, run, touch, width=width)
    lines = text.splitlines()
    assert max(Console().render_str(line).cell_len for line in lines) <= min(width, 100)
    assert len(lines) < 40 and expected in text
    assert ("guard" in text) == (run is RUN)
    assert (" left" in text) == (found["job"]["state"] == "running" and bool(found["metrics"]))


@pytest.mark.parametrize("height", [12, 18, 24, 30, 50])
def test_fits_any_height(height):
    found = snapshot(30, log=b"".join(b"line %d\n" % number for number in range(40)))
    lines = drawn(found, width=80, height=height).splitlines()
    assert len(lines) <= max(height, 14)  # the facts and one line of log are always there
    assert lines[-1].strip() == "line 39"


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        ({}, "running for 50 min"),
        ({"start": 3}, "running for 50 min (start 3)"),
        ({"state": "lost"}, "`fab resume` continues"),
        ({"state": "absent"}, "`fab deploy` continues"),
        ({"state": "ended", "exit_code": 0}, "ended well (exit code 0), 10 s ago"),
        ({"state": "ended", "exit_code": 1}, "ended, see its log (exit code 1)"),
        ({"state": "ended", "exit_code": 75}, "stopped and saved"),
        ({"state": "ended", "exit_code": 137}, "killed by SIGKILL (exit code 137)"),
        ({"state": "ended", "exit_code": 137, "out_of_memory": True}, "ran out of memory"),
    ],
)
def test_job(job, expected):
    assert expected in job_text(snapshot(job={"ended": THERE - 10, **job})["job"], THERE)[0]


@pytest.mark.parametrize(
    ("job", "guard", "expected"),
    [
        (None, {}, "watches"),
        (None, {"reason": "spot"}, "is ending the machine: AWS takes the spot machine back"),
        (None, {"beat": THERE - 180}, "silent for 3 min"),
        (ENDED, QUIET, "powers off at Wed 18 Nov 12:06 unless that changes: no job, no user"),
        (ENDED, {}, "powers off after the grace period"),
    ],
)
def test_guard(job, guard, expected):
    assert expected in guard_text(snapshot(job=job, guard=guard), THERE, NOW)[0]


def test_what_is_not_known_is_not_said():
    """The guard is not silent because the line is."""
    assert "watches" in drawn(snapshot(3), touch=OUT)
    assert "has not reported" in drawn(snapshot(1) | {"guard": None})
    assert "connecting" in drawn(None, touch=Touch())
    assert "refused [x]" in drawn(None, touch=Touch(None, NOW - 5, "refused [x]"))
