"""What the screen says, against values found by hand, and that nothing on it can do harm."""

import base64
import doctest
import io
import time

import pytest
from rich.console import Console

from mmattn.remote import screen
from mmattn.remote.runs import Member, Run
from mmattn.remote.screen import (
    Touch,
    braille,
    cost,
    curve,
    guard_text,
    job_text,
    log_lines,
    report,
    summary_line,
    time_left,
)

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
IN_TOUCH = Touch(heard=NOW)


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
    quiet = {"reason": None, "quiet_since": None, "held": False, "off_at": None}
    state = {"state": "running", "start": 1, "exit_code": None, "started": THERE - 3000}
    return {
        "now": THERE,
        "job": {**state, "ended": None, "supervised": True, "out_of_memory": False, **(job or {})},
        "complete": False,
        "guard": {"beat": THERE - 2, **quiet, **(guard or {})},
        "machine": {
            "cores": 96,
            "cpu": 0.63,
            "memory_used": 34 * 2**30,
            "memory_total": 192 * 2**30,
            "disk_used": 7.25 * 2**30,
            "disk_total": 40 * 2**30,
        },
        "others": [],
        "part": "",
        "epochs": 50,
        "metrics": [row(epoch + 1) for epoch in range(epochs)],
        "checkpoints": [{"part": "", "kind": "best", "step": 96, "time": THERE - 300}],
        "log": {
            "inode": 1,
            "offset": 0,
            "size": len(log),
            "data": base64.b64encode(log).decode(),
        },
        **values,
    }


def drawn(found, run=RUN, touch=IN_TOUCH, now=NOW, width=100, height=None, **options):
    console = Console(width=width, file=io.StringIO(), **options)
    console.print(report(run, found, touch, now, height))
    return console.file.getvalue()


def test_examples():
    assert doctest.testmod(screen).failed == 0


def test_time_left():
    rows = [row(1, seconds=60.0), *(row(n, seconds=float(n)) for n in range(2, 9))]
    assert time_left(rows, 50) == 42 * 6.0  # epochs 4 to 8
    assert time_left(rows[:1], 50) == 49 * 60.0
    assert time_left(rows[:3], 50) == 47 * 2.5  # the first, which compiled, no longer counts
    assert time_left([row(50)], 50) == 0
    assert time_left([], 50) is None
    assert time_left(rows, None) is None


def test_cost():
    assert cost(RUN, THERE) == 4.08
    assert cost(RUN, THERE + 1800) == pytest.approx(6.12)
    assert cost(RUN, RUN.members[0].launched - 5) == 0  # clocks differ
    assert cost(HOST, THERE) is None


def test_the_machines_clock_counts():
    """Ages are by its clock, clock times by that of this computer."""
    text = drawn(snapshot(2), now=NOW + 60)
    assert "running for 51 min" in text
    assert "best: step 96, 6 min ago" in text
    assert "$4.15 so far   $4.08 an hour   at most $24.48" in text
    assert time.strftime("%H:%M", time.gmtime(NOW + 5 * 3600)) + ", in 4 h 59 min" in text


def test_curve():
    assert curve([0.0, 1.0], 0.0, 1.0, 4, 4) >= {(3, 0), (2, 1), (1, 2), (0, 3)}
    assert curve([0.0, 0.0], 0.0, 1.0, 3, 4) == {(3, 0), (3, 1), (3, 2)}
    assert curve([7.0], 7.0, 7.0, 2, 5) == {(2, 0), (2, 1)}
    # A jump is a line: no row between is left out.
    assert {y for y, _ in curve([0.0, 0.0, 1.0, 1.0], 0.0, 1.0, 4, 40)} == set(range(40))


def test_braille():
    assert braille({(0, 0)}, 0, 0) == "⠁"
    assert braille({(3, 0), (3, 1)}, 0, 0) == "⣀"
    assert braille({(4, 2)}, 1, 1) == "⠁"
    assert braille({(y, x) for y in range(4) for x in range(2)}, 0, 0) == "⣿"
    assert braille(set(), 0, 0) == screen.BLANK


def test_plot():
    lines = drawn(snapshot(9)).splitlines()
    top = next(number for number, line in enumerate(lines) if line.split() == ["accuracy", "loss"])
    assert lines[top + 1].split()[0] == "0.500"  # training, all the time
    assert lines[top + 1].split()[2:3] == ["train"]
    assert lines[top + 5].split()[0] == "0.260"  # validation, first epoch
    assert "epoch 1" in lines[top + 6] and "9" in lines[top + 6]
    assert "1.750" in lines[top + 1] and "0.167" in lines[top + 5]
    assert not any("⠀" in line for line in drawn(snapshot(1)).splitlines())


def test_the_monitor_has_a_line_and_a_plot():
    rows = [row(n, validation_brier=abs(n - 3) / 8) for n in range(1, 6)]
    text = drawn(snapshot(metrics=rows, monitor="brier"))
    lines = [line.split() for line in text.splitlines()]
    line = next(line for line in lines if line[:2] == ["Brier", "score"])
    assert " ".join(line[2:]) == "validation 0.250 UAR 0.300 best 0.000 in epoch 3"
    assert "accuracy" not in text and ["Brier", "score", "loss"] in lines
    assert "Brier score 0.250  412" in summary_line(
        RUN, snapshot(metrics=rows, monitor="brier"), NOW
    )
    text = drawn(snapshot(metrics=rows, monitor="loss"))
    assert "train 0.3000   validation 0.3500   best 0.3500 in epoch 5" in text
    unknown = drawn(snapshot(metrics=rows, monitor="the experiment's own"))
    assert unknown == drawn(snapshot(metrics=rows, monitor=None)) == drawn(snapshot(metrics=rows))
    assert "best 0.300 in epoch 5" in unknown


@pytest.mark.parametrize("equal", [0.0, 1.0])
def test_plot_of_what_never_changes(equal):
    rows = [row(n, train_accuracy=equal, validation_accuracy=equal) for n in (1, 2, 3)]
    text = drawn(snapshot(metrics=rows))
    assert "train" in text and f"{equal:.3f} " in text


def test_log_lines_cannot_move_the_cursor():
    nasty = (
        b"\x1b[2J\x1b[Htop\x1b]0;title\x07\x1b]8;;http://x\x1b\\link\r\n"
        b"50%\r100%\n"
        b"\x1bPq\x9b31m \xe2\x80\xae reversed\x00\n"
        b"caf\xc3\xa9 \xff\n"
    )
    lines = log_lines(nasty, 8)
    assert lines[0] == "toplink"
    assert lines[1] == "100%"
    assert "reversed" in lines[2]
    assert lines[3] == "café \ufffd"
    assert all(char.isprintable() for line in lines for char in line)
    assert log_lines(b"", 8) == [""]
    assert log_lines(b"1\n2\n3\n", 2) == ["2", "3"]


def test_markup_in_the_log_is_text():
    assert "[red]x[/nonsense] :smile:" in drawn(snapshot(log=b"[red]x[/nonsense] :smile:\n"))


def test_no_control_characters_without_a_terminal():
    text = drawn(snapshot(12, log=b"\x1b[31mred\x1b[0m\n"))
    assert all(char.isprintable() or char == "\n" for char in text)


@pytest.mark.parametrize("width", [80, 100, 140])
@pytest.mark.parametrize("state", ["early", "middle", "folds", "ended", "out of touch", "host"])
def test_fits_any_width(width, state):
    log = ("日本語 " * 50 + "\n").encode() * 12
    run, touch, found = RUN, IN_TOUCH, snapshot(30, log=log)
    if state == "early":
        found = snapshot(log=log, checkpoints=[])
    elif state == "folds":
        kinds = [("fold0/member1", kind) for kind in ("best", "final", "latest")]
        checkpoints = [{"part": p, "kind": k, "step": 1, "time": 0.0} for p, k in kinds]
        found = snapshot(30, log=log, part="fold3/member0", checkpoints=checkpoints)
        assert "3 of other parts" in drawn(found, width=width)
    elif state == "ended":
        found = snapshot(30, job={"state": "ended", "exit_code": 0, "ended": THERE - 5})
    elif state == "out of touch":
        touch = Touch(NOW - 95, NOW - 80, "ec2-user@203.0.113.27 is silent for 15 s", "running")
    else:
        run = HOST
    lines = drawn(found, run, touch, width=width).splitlines()
    assert max(Console().render_str(line).cell_len for line in lines) <= min(width, 100)
    assert len(lines) < 40


@pytest.mark.parametrize("height", [12, 18, 24, 30, 50])
def test_fits_any_height(height):
    found = snapshot(30, log=b"".join(b"line %d\n" % number for number in range(40)))
    lines = drawn(found, width=80, height=height).splitlines()
    assert len(lines) <= max(height, 17)  # the facts and one line of log are always there
    assert lines[-1].strip() == "line 39"
    assert ("⠀" in "".join(lines)) == (height >= 24)


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        ({}, "running for 50 min"),
        ({"start": 3}, "running for 50 min (start 3)"),
        ({"supervised": False}, "its supervisor is dead"),
        ({"state": "lost"}, "`fab resume` continues"),
        ({"state": "absent"}, "`fab deploy` continues"),
        ({"state": "ended", "exit_code": 0}, "ended well (exit code 0), 10 s ago"),
        ({"state": "ended", "exit_code": 1}, "ended (exit code 1)"),
        ({"state": "ended", "exit_code": 3}, "diverged"),
        ({"state": "ended", "exit_code": 75}, "stopped and saved"),
        ({"state": "ended", "exit_code": 137}, "killed by SIGKILL (exit code 137)"),
        ({"state": "ended", "exit_code": 137, "out_of_memory": True}, "ran out of memory"),
        ({"state": "ended", "exit_code": 255}, "ended (exit code 255)"),
    ],
)
def test_job(job, expected):
    assert expected in job_text(snapshot(job={"ended": THERE - 10, **job})["job"], THERE)[0]


ENDED = {"state": "ended", "exit_code": 0, "ended": THERE - 10}
QUIET = {"quiet_since": THERE - 10, "off_at": THERE + 3590}


@pytest.mark.parametrize(
    ("job", "guard", "expected"),
    [
        (None, {}, "watches"),
        (None, {"held": True}, "held by `fab hold`"),
        (None, {"reason": "spot"}, "is ending the machine: AWS takes the spot machine back"),
        (None, {"beat": THERE - 180}, "silent for 3 min"),
        (None, QUIET, "watches"),  # a pause of ten seconds
        (None, {**QUIET, "quiet_since": THERE - 61}, "the job uses no CPU time"),
        (ENDED, QUIET, "powers off at 12:06 unless that changes: no job, no user logged in"),
    ],
)
def test_guard(job, guard, expected):
    found = snapshot(job=job, guard=guard)
    assert time.strftime("%H:%M", time.gmtime(NOW + 3590)) == "12:06"
    assert expected in guard_text(found, THERE, NOW)[0]


def test_guard_that_never_reported():
    assert "has not reported" in drawn(snapshot(1) | {"guard": None})
    assert "guard" not in drawn(snapshot(1) | {"guard": None}, run=HOST)


def test_out_of_touch():
    """What is not known is not said: the guard is not silent because the line is."""
    touch = Touch(NOW - 300, NOW - 290, "connection lost", "EC2 reports that it is running")
    text = drawn(snapshot(3), touch=touch)
    assert "out of touch for 4 min, trying again" in text
    assert "connection lost" in text and "EC2 reports" in text and "the rest is of" in text
    assert "watches" in text
    assert "connecting" in drawn(None, touch=Touch())
    assert "refused" in drawn(None, touch=Touch(None, NOW - 5, "refused"))


def test_ended():
    text = drawn(snapshot(3, job=ENDED) | {"complete": True})
    assert "results complete" in text and "`fab teardown` ends the machine" in text
    assert "time left" not in text
    assert "teardown" not in drawn(snapshot(3, job=ENDED), run=HOST)


def test_summary_line():
    line = summary_line(RUN, snapshot(2), NOW)
    assert line == (
        "11:06:40  running for 50 min  epoch 2 of 50  loss 0.7500 / 0.8750  "
        "accuracy 0.500 / 0.270  412 clips/s  at most 8 min left  $4.08"
    )
    assert summary_line(HOST, snapshot(), NOW) == "11:06:40  running for 50 min"
