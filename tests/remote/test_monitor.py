"""The poll loop against a machine that is cut off, answers in pieces, ends or goes away."""

import base64
import contextlib
import io
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
from rich.console import Console

from mmattn.console import start_logging
from mmattn.errors import UserError
from mmattn.remote import monitor as module
from mmattn.remote.cloud import CloudError, Instance
from mmattn.remote.monitor import Follower, Lines, Link, backoff, exit_code, gone_text, watch
from mmattn.remote.runs import Member, Run
from mmattn.remote.screen import Touch
from mmattn.remote.ssh import CommandFailed, NotLoggedIn, RemoteError, Unreachable

ENDED = {"state": "ended", "exit_code": 3}


def make_snapshot(log=None, epochs=0, **job):
    rows = [
        {
            "epoch": epoch,
            "train_loss": 1.0,
            "train_accuracy": 0.5,
            "validation_loss": 1.0,
            "validation_accuracy": 0.5,
            "validation_uar": 0.5,
            "learning_rate": 5e-4,
            "clips_per_s": 100.0,
            "seconds": 10.0,
        }
        for epoch in range(1, epochs + 1)
    ]
    now = time.time()
    state = {"state": "running", "start": 1, "exit_code": None, "started": now - 60, "ended": now}
    size = {"memory_used": 1, "memory_total": 2, "disk_used": 1, "disk_total": 2}
    return {
        "now": now,
        "job": {**state, "supervised": True, "out_of_memory": False, **job},
        "complete": False,
        "guard": None,
        "machine": {"cores": 2, "cpu": 0.5, **size},
        "others": [],
        "part": "",
        "epochs": 50,
        "metrics": rows,
        "checkpoints": [],
        "log": log or {"inode": 1, "offset": 0, "size": 0, "data": ""},
    }


class FakeMachine:
    """Answers by a script: a snapshot, or an error to raise; the last one for ever."""

    def __init__(self, *answers):
        self.answers, self.calls, self.closed = list(answers), 0, False

    def call(self, name, *options, timeout):
        assert name == "snapshot" and timeout == module.CALL_S
        self.calls += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if callable(answer):
            answer = answer()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self):
        self.closed = True


class LoggingMachine(FakeMachine):
    """A job that writes a log; connections break before and after the answer was made."""

    def __init__(self, log: bytes, rng: random.Random, failures: float = 0.4):
        super().__init__()
        self.log, self.rng, self.failures = log, rng, failures
        self.written, self.inode, self.ended = 0, 1, False

    def call(self, name, *options, timeout):
        self.calls += 1
        if self.rng.random() < self.failures:
            raise Unreachable("cut before")
        asked = dict(zip(options[::2], map(int, options[1::2]), strict=True))
        job = ENDED if self.ended else {}
        # The job continues, and may end, while the snapshot is made.
        self.written = min(len(self.log), self.written + self.rng.randrange(200))
        self.ended = self.written == len(self.log)
        size = 0 if self.written == 0 else self.written
        begin = asked["--offset"]
        if asked.get("--inode", self.inode) != self.inode or size < begin:
            begin = 0
        end = min(size, begin + self.rng.randrange(1, 100), begin + asked["--limit"])
        data = base64.b64encode(self.log[begin:end]).decode()
        if self.rng.random() < self.failures:
            raise Unreachable("cut after")
        inode = self.inode if size else None
        return make_snapshot({"inode": inode, "offset": begin, "size": size, "data": data}, **job)


class FakeRun(Run):
    """A run with the machines of a test, and EC2's answer."""

    def machine(self):
        return self.machines.pop(0) if len(self.machines) > 1 else self.machines[0]

    def cloud(self):
        self.asked = getattr(self, "asked", 0) + 1
        if isinstance(self.found, Exception):
            raise self.found
        return self

    def instance(self, instance_id):
        assert instance_id == self.instance_id
        return self.found


def make_run(*machines, found=None, **values) -> FakeRun:
    values = {"host": "me@192.0.2.1", **values}
    run = FakeRun("no_aug-20261118-102000-ab12", "no_aug", **values)
    run.machines, run.found = list(machines), found
    return run


def ec2_run(*machines, found, **values) -> FakeRun:
    values = {"members": [Member("i-1", "192.0.2.1")], "region": "eu-west-1", **values}
    return make_run(*machines, found=found, host=None, deadline=time.time() + 60, **values)


def instance(state, reason="", address="192.0.2.1"):
    return Instance("i-1", "", state, reason, "c5.large", address, 0.0, None, None, False, None, 0)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    for name in ("POLL_S", "FIRST_S", "LONGEST_S"):
        monkeypatch.setattr(module, name, 0.0)
    start_logging()


def follow(run) -> tuple[int, bytes]:
    out = io.BytesIO()
    link = Link(run)
    return watch(link, Follower(out)), out.getvalue()


def test_backoff(monkeypatch):
    monkeypatch.undo()
    assert [backoff(n, 0.0) for n in (1, 2, 50)] == [1, 1, 1]
    assert [backoff(n, 1.0) for n in (1, 2, 3, 4, 5, 50)] == [2, 4, 8, 16, 20, 20]
    assert backoff(3, 0.5) == 4.5
    assert all(1 <= backoff(n, random.random()) <= 20 for n in range(1, 2000))


def test_exit_code():
    run = make_run()
    assert exit_code(run, {"state": "running", "exit_code": None}) == 0
    assert exit_code(run, {"state": "ended", "exit_code": 75}) == 75
    assert exit_code(run, {"state": "lost", "exit_code": None}) == 70
    with pytest.raises(UserError, match="no job was started; `fab deploy`"):
        exit_code(run, {"state": "absent", "exit_code": None})


@pytest.mark.parametrize("seed", range(60))
def test_followed_log_is_the_log(seed):
    """Through drops before and after the answer, in pieces, with words written at the last."""
    rng = random.Random(seed)
    log = rng.randbytes(rng.choice([0, 1, 700, 5000]))
    machine = LoggingMachine(log, rng)
    assert follow(make_run(machine)) == (3, log)


@pytest.mark.parametrize("seed", range(5))
def test_output_that_takes_a_part(seed):
    class Slow(io.BytesIO):
        def write(self, data):
            return super().write(data[: rng.randrange(1, 5)])

    rng = random.Random(seed)
    log, out = rng.randbytes(3000), Slow()
    assert watch(Link(make_run(LoggingMachine(log, rng))), Follower(out)) == 3
    assert out.getvalue() == log


def test_truncated_log(capsys):
    machine = LoggingMachine(b"old" * 500, random.Random(0), failures=0.0)
    out = io.BytesIO()
    link, view = Link(make_run(machine)), Follower(out)
    while out.tell() < 600:
        view.take(link.snapshot(view), link.touch)
    before = out.getvalue()
    machine.log, machine.written = b"new", 0
    assert watch(link, view) == 3
    assert out.getvalue() == before + b"new"
    assert "cut or replaced" in capsys.readouterr().err


def test_replaced_log(capsys):
    machine = LoggingMachine(b"old" * 500, random.Random(0), failures=0.0)
    out = io.BytesIO()
    link, view = Link(make_run(machine)), Follower(out)
    while out.tell() < 100:
        view.take(link.snapshot(view), link.touch)
    before = out.getvalue()
    machine.log, machine.inode = b"N" * 9000, 2
    assert watch(link, view) == 3
    assert out.getvalue() == before + b"N" * 9000
    assert capsys.readouterr().err.count("cut or replaced") == 1


def test_log_that_is_away_for_a_moment(capsys):
    """While it is being replaced; what was read is not read again."""

    def piece(inode, offset, data):
        return {
            "inode": inode,
            "offset": offset,
            "size": offset + len(data),
            "data": base64.b64encode(data).decode(),
        }

    answers = [piece(1, 0, b"one\n"), piece(None, 0, b""), piece(1, 4, b"two\n")]
    last = make_snapshot(piece(1, 8, b""), **ENDED)
    run = make_run(FakeMachine(*map(make_snapshot, answers), last))
    assert follow(run) == (3, b"one\ntwo\n")
    assert capsys.readouterr().err == ""


def test_follow_tells_of_drops_on_the_standard_error(capsys):
    answers = [
        make_snapshot(),
        Unreachable("a cut"),
        Unreachable("another"),
        make_snapshot(**ENDED),
    ]
    assert follow(make_run(FakeMachine(*answers))) == (3, b"")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "out of touch, trying again: a cut",
        "in touch again after 0 s",
    ]


def test_job_that_ends_while_out_of_touch():
    machine = LoggingMachine(b"x" * 100_000, random.Random(0), failures=0.0)
    out = io.BytesIO()
    link, view = Link(make_run(machine)), Follower(out)
    view.take(link.snapshot(view), link.touch)
    machine.written, machine.ended = len(machine.log), True
    assert watch(link, view) == 3
    assert out.getvalue() == machine.log


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (instance("terminated", "Server.SpotInstanceTermination"), "SpotInstanceTermination"),
        (instance("shutting-down"), "is shutting-down at EC2"),
        (None, "terminated and forgotten"),
        (instance("stopped"), "the disk exists and costs"),
    ],
)
def test_machine_that_is_gone(found, expected):
    machine = FakeMachine(make_snapshot(), Unreachable("silence"))
    with pytest.raises(RemoteError, match="`fab resume`") as caught:
        follow(ec2_run(machine, found=found))
    assert expected in str(caught.value)
    assert not isinstance(caught.value, Unreachable)


def test_gone_text_tells_what_is_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    last = make_snapshot() | {"guard": {"reason": "deadline"}}
    text = gone_text(ec2_run(found=None), instance("terminated", "Client.x"), last)
    assert "(Client.x; its guard had reported: its deadline has come)" in text
    assert "Nothing was fetched" in text and "costs nothing any more" in text
    run = ec2_run(found=None)
    run.folder.mkdir(parents=True)
    run.fetched = "partial"
    assert "from what was fetched, in runs/no_aug/20261118-102000-ab12" in gone_text(
        run, None, None
    )


@pytest.mark.parametrize("error", [CloudError("offline"), UserError("no credentials")])
def test_cloud_that_does_not_answer_is_not_fatal(error):
    machine = FakeMachine(*[Unreachable("offline")] * 5, make_snapshot(**ENDED))
    run = ec2_run(machine, found=error)
    assert follow(run)[0] == 3
    assert run.asked == 1  # each 30 s


def test_cloud_is_asked_again(monkeypatch):
    monkeypatch.setattr(module, "ASK_CLOUD_S", 0.0)
    answers = [make_snapshot(), *[Unreachable("silence")] * 200]
    run = ec2_run(FakeMachine(*answers), found=instance("running"))
    threading.Timer(0.05, lambda: setattr(run, "found", instance("terminated"))).start()
    with pytest.raises(RemoteError, match="terminated"):
        follow(run)
    assert run.asked > 1


def test_without_ec2_it_continues():
    run = make_run(FakeMachine(*[Unreachable("x")] * 100, make_snapshot(**ENDED)))
    assert follow(run)[0] == 3


def test_new_address():
    old = FakeMachine(make_snapshot(), Unreachable("silence"))
    new = FakeMachine(make_snapshot(**ENDED))
    run = ec2_run(old, new, found=instance("running", address="192.0.2.9"))
    assert follow(run)[0] == 3
    assert run.address == "192.0.2.9" and old.closed


def test_old_address_that_belongs_to_another_now():
    old = FakeMachine(make_snapshot(), RemoteError("another host key"))
    new = FakeMachine(make_snapshot(**ENDED))
    assert follow(ec2_run(old, new, found=instance("running", address="192.0.2.9")))[0] == 3


def test_wrong_host_key_ends_at_once():
    machine = FakeMachine(make_snapshot(), RemoteError("another host key"))
    with pytest.raises(RemoteError, match="another host key"):
        follow(ec2_run(machine, found=instance("running")))
    assert machine.calls == 2


@pytest.mark.parametrize("error", [NotLoggedIn("refused"), CommandFailed("python3", 137, "killed")])
def test_refusal_counts_before_the_first_contact_only(error):
    """A machine that goes down lets nobody in, and one without memory starts nothing."""
    with pytest.raises(type(error)):
        follow(make_run(FakeMachine(error, make_snapshot(**ENDED))))
    answers = [make_snapshot(), error, error, make_snapshot(**ENDED)]
    assert follow(make_run(FakeMachine(*answers)))[0] == 3


def test_call_that_never_ends(monkeypatch):
    monkeypatch.setattr(module, "HANG_S", 0.05)
    stuck = FakeMachine(threading.Event().wait)
    assert follow(make_run(stuck, FakeMachine(make_snapshot(**ENDED))))[0] == 3


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("follow", [True, False])
def test_interrupt_in_the_middle_of_a_call(quick, follow, capsys):
    if quick and follow:
        return
    machine = FakeMachine(threading.Event().wait)
    threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    start = time.monotonic()
    assert module.monitor(make_run(machine), quick, follow) == 130
    assert time.monotonic() - start < 2
    assert machine.closed
    assert "continues: `fab monitor --run " in capsys.readouterr().err


def test_quick(capsys):
    assert module.monitor(make_run(FakeMachine(make_snapshot(epochs=3))), True, False) == 0
    assert "epoch 3 of 50" in capsys.readouterr().out
    assert module.monitor(make_run(FakeMachine(make_snapshot(**ENDED))), True, False) == 3
    with pytest.raises(UserError, match="one of them"):
        module.monitor(make_run(), True, True)


def test_quick_out_of_reach():
    machine = FakeMachine(Unreachable("silence"))
    with pytest.raises(Unreachable, match="silence; EC2 reports that it is running"):
        module.monitor(ec2_run(machine, found=instance("running")), True, False)
    assert machine.calls == 1 and machine.closed
    with pytest.raises(RemoteError, match="terminated"):
        module.monitor(ec2_run(machine, found=instance("terminated")), True, False)


def test_without_a_terminal(capsys):
    """A line for each thing that happened; the report at the end has no control characters."""
    answers = [make_snapshot(), make_snapshot(), Unreachable("cut"), make_snapshot(**ENDED)]
    said, run = [], make_run(FakeMachine(*answers))
    assert watch(Link(run), Lines(run, said.append)) == 3
    assert "running for 60 s" in said[0]
    assert said[1:] == ["out of touch, trying again: cut", "in touch again after 0 s"]
    assert module.monitor(make_run(FakeMachine(make_snapshot(None, 2, **ENDED))), False, False) == 3
    report = capsys.readouterr().out
    assert "diverged" in report and "\x1b" not in report


def test_lines_at_the_end_of_an_epoch(monkeypatch):
    said = []
    lines = Lines(make_run(), said.append)
    clock = iter([0.0, 0.0, 5.0, 12.0, 12.0, 30.0, 73.0, 73.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    for epochs in (0, 1, 1, 1, 1):  # at 0 s, 5 s, 12 s, 30 s, 73 s
        lines.take(make_snapshot(epochs=epochs), Touch(heard=0.0))
    assert ["epoch 1" in line for line in said] == [False, True, True]


def test_screen(monkeypatch, capsys):
    """The terminal's other screen is left as it was, and the last report stays."""
    terminal = io.StringIO()
    console = Console(file=terminal, force_terminal=True, width=100, height=40)
    monkeypatch.setattr(module, "Console", lambda **_: console)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    answers = [Unreachable("cut"), make_snapshot(epochs=2), make_snapshot(None, 2, **ENDED)]
    assert module.monitor(make_run(FakeMachine(*answers)), False, False) == 3
    shown = terminal.getvalue()
    assert "out of touch for" in shown
    before, _, after = shown.rpartition("\x1b[?1049l")
    assert "\x1b[?1049h" in before and "running for" in before
    assert "diverged" in after and "running for" not in after


PIPE = """
import base64, sys
from mmattn.remote import monitor as module
from tests.remote.test_monitor import FakeMachine, make_run, make_snapshot
module.POLL_S = 0.0
data = b"0123456789" * 10_000
class Endless(FakeMachine):
    def call(self, name, *options, timeout):
        offset = int(options[1])
        text = base64.b64encode(data).decode()
        log = {"inode": 1, "offset": offset, "size": offset + 2 * len(data), "data": text}
        return make_snapshot(log)
sys.exit(module.monitor(make_run(Endless()), False, True))
"""


def test_the_log_has_no_reader_any_more():
    """`fab monitor --follow | head`"""
    command = [sys.executable, "-W", "error", "-c", PIPE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.read(20) == b"01234567890123456789"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=30) == 141


def test_interrupt_is_not_swallowed_between_calls(monkeypatch):
    monkeypatch.setattr(module, "POLL_S", 60.0)
    threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with contextlib.redirect_stderr(io.StringIO()):
        assert module.monitor(make_run(FakeMachine(make_snapshot())), False, False) == 130
