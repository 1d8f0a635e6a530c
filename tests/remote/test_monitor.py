"""The poll loop against a machine that is cut off, answers in pieces, ends or goes away."""

import base64
import contextlib
import functools
import io
import os
import random
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from mmattn.console import complain, start_logging
from mmattn.errors import UserError
from mmattn.remote import monitor as module
from mmattn.remote.cloud import CloudError
from mmattn.remote.monitor import Link, ask_cloud, copy_log
from mmattn.remote.runs import Member, Run
from mmattn.remote.ssh import CommandFailed, NotLoggedIn, RemoteError, Unreachable
from tests.remote.test_screen import snapshot

ENDED = {"state": "ended", "exit_code": 3}


def make_snapshot(log=None, epochs=0, **job):
    now = time.time()
    made = snapshot(epochs, job={"started": now - 60, "ended": now, **job}, now=now)
    return made | {"log": log or {"offset": 0, "size": 0, "data": ""}}


class FakeMachine:
    """Answers by a script: a snapshot, or an error to raise; the last one for ever."""

    def __init__(self, *answers):
        self.answers, self.calls = list(answers), 0

    def call(self, name, *options, timeout):
        assert name == "snapshot" and timeout == module.CALL_S
        self.calls += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if callable(answer):
            answer = answer()
        if isinstance(answer, Exception):
            raise answer
        return answer


class LoggingMachine(FakeMachine):
    """A job that writes a log; connections break before and after the answer was made."""

    def __init__(self, log: bytes, rng: random.Random, failures: float = 0.4):
        super().__init__()
        self.log, self.rng, self.failures = log, rng, failures
        self.written, self.ended = 0, False

    def call(self, name, *options, timeout):
        self.calls += 1
        if self.rng.random() < self.failures:
            raise Unreachable("cut before")
        offset, limit = map(int, options)
        job = ENDED if self.ended else {}
        # The job continues, and may end, while the snapshot is made.
        self.written = min(len(self.log), self.written + self.rng.randrange(200))
        self.ended = self.written == len(self.log)
        begin = offset if offset <= self.written else 0
        end = min(self.written, begin + self.rng.randrange(1, 100), begin + limit)
        data = base64.b64encode(self.log[begin:end]).decode()
        if self.rng.random() < self.failures:
            raise Unreachable("cut after")
        return make_snapshot({"offset": begin, "size": self.written, "data": data}, **job)


class FakeRun(Run):
    """A run with the machines of a test, and EC2's answer."""

    def machine(self, rank=0):
        return self.there[rank]

    def cloud(self):
        if isinstance(self.found, Exception):
            raise self.found
        return self

    def instance(self, instance_id):
        assert instance_id == self.instance_id
        return self.found


def make_run(machine=None, found=None, **values) -> FakeRun:
    values = {"host": "me@192.0.2.1", **values}
    run = FakeRun("no_aug-20261118-102000-ab12", "no_aug", **values)
    run.there, run.found = [machine or FakeMachine(make_snapshot())], found
    return run


def ec2_run(machine=None, found=None) -> FakeRun:
    values = {"members": [Member("i-1", "192.0.2.1")], "region": "eu-west-1"}
    return make_run(machine, found, host=None, deadline=time.time() + 60, **values)


def instance(state, reason="", address="192.0.2.1"):
    return SimpleNamespace(id="i-1", state=state, reason=reason, address=address)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    for name in ("POLL_S", "FIRST_S", "LONGEST_S"):
        monkeypatch.setattr(module, name, 0.0)
    start_logging()


def follow(machine, out=None) -> tuple[int, bytes]:
    """The exit code of its job, and the log that came."""
    out = out or io.BytesIO()
    run = machine if isinstance(machine, Run) else make_run(machine)
    link = Link(run, complain)
    copy_log(link, out)
    return link.last["job"]["exit_code"], out.getvalue()


@pytest.mark.parametrize("seed", range(30))
def test_followed_log_is_the_log(seed):
    """Through drops before and after the answer, in pieces, with words written at the last."""
    rng = random.Random(seed)
    log = rng.randbytes(rng.choice([0, 1, 700, 5000]))
    machine = LoggingMachine(log, rng)
    assert follow(machine) == (3, log)


def test_truncated_log(capsys):
    machine, out = LoggingMachine(b"old" * 500, random.Random(0), failures=0.0), io.BytesIO()

    def write(data):
        if out.tell() > 600 and machine.log[0] == ord("o"):
            machine.log, machine.written = b"new", 0
        return io.BytesIO.write(out, data)

    follow(machine, SimpleNamespace(write=write, flush=out.flush, getvalue=out.getvalue))
    assert out.getvalue().startswith(b"old" * 200) and out.getvalue().endswith(b"new")
    assert capsys.readouterr().err.count("the log was truncated") == 1


def test_follow_tells_of_drops_on_the_standard_error(capsys):
    cuts = Unreachable("a cut"), Unreachable("another")
    assert follow(FakeMachine(make_snapshot(), *cuts, make_snapshot(**ENDED))) == (3, b"")
    captured = capsys.readouterr()
    assert captured.out == ""
    told = ["connection lost, trying again: a cut", "connected again after 0 s"]
    assert captured.err.splitlines() == told


def test_pauses_while_out_of_touch(monkeypatch):
    monkeypatch.undo()
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    follow(FakeMachine(*[Unreachable("silence")] * 50, make_snapshot(**ENDED)))
    assert all(1 <= pause <= 20 for pause in pauses[:50])
    assert pauses[0] <= 2 and pauses[1] <= 4 and max(pauses) > 10


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (instance("terminated", "Server.SpotInstanceTermination"), "SpotInstanceTermination"),
        (instance("shutting-down"), "is shutting-down at EC2"),
        (None, "terminated and no longer listed"),
        (instance("stopped"), "Its disk costs"),
    ],
)
def test_machine_that_is_gone(found, expected):
    machine = FakeMachine(make_snapshot(), Unreachable("silence"))
    with pytest.raises(RemoteError, match="`fab resume`") as caught:
        follow(ec2_run(machine, found))
    assert expected in str(caught.value)
    assert not isinstance(caught.value, Unreachable)


def test_gone_machine_and_what_is_left_of_its_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, last = ec2_run(None, instance("terminated", "Client.x")), make_snapshot()
    with pytest.raises(RemoteError) as caught:
        ask_cloud(run, 0, last | {"guard": {"reason": "deadline"}})
    assert str(caught.value) == (
        "machine 0, i-1, is terminated at EC2 (Client.x); its guard had reported: its deadline has "
        "come. `fab resume` continues from its disk, which is kept and costs until `fab teardown`"
    )
    run.results_uri = "s3://bucket/runs"
    with pytest.raises(
        RemoteError, match=f"continues from s3://bucket/runs/{run.name}, `fab fetch"
    ):
        ask_cloud(run, 0, None)


@pytest.mark.parametrize("found", [CloudError("offline"), UserError("no credentials"), "running"])
def test_silence_ends_nothing_while_ec2_does_not_say_so(found, capsys):
    machine = FakeMachine(*[Unreachable("offline")] * 50, make_snapshot(**ENDED))
    found = instance(found) if isinstance(found, str) else found
    assert follow(ec2_run(machine, found))[0] == 3
    assert follow(FakeMachine(Unreachable("silence"), make_snapshot(**ENDED)))[0] == 3


def test_wrong_host_key_ends_at_once():
    machine = FakeMachine(make_snapshot(), RemoteError("another host key"))
    with pytest.raises(RemoteError, match="another host key; EC2 says running"):
        follow(ec2_run(machine, instance("running")))
    assert machine.calls == 2


@pytest.mark.parametrize("error", [NotLoggedIn("refused"), CommandFailed("python3", 137, "killed")])
def test_refusal_counts_before_the_first_contact_only(error):
    """A machine that goes down lets nobody in, and one without memory starts nothing."""
    with pytest.raises(type(error)):
        follow(FakeMachine(error, make_snapshot(**ENDED)))
    answers = [make_snapshot(), error, error, make_snapshot(**ENDED)]
    assert follow(FakeMachine(*answers))[0] == 3


@pytest.mark.parametrize(("quick", "follow"), [(True, False), (False, True), (False, False)])
def test_interrupt_in_the_middle_of_a_call(quick, follow, capsys):
    machine = FakeMachine(threading.Event().wait)
    threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    start = time.monotonic()
    assert module.monitor(make_run(machine), quick, follow) == 130
    assert time.monotonic() - start < 2
    assert "continues: `fab monitor --run " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("job", "code"),
    [({}, 0), ({"state": "ended", "exit_code": 75}, 75), ({"state": "lost"}, 70)],
)
def test_exit_code(job, code):
    assert module.monitor(make_run(FakeMachine(make_snapshot(**job))), True, False) == code


def test_no_job():
    run = make_run(FakeMachine(make_snapshot(state="absent")))
    for quick in (True, False):
        with pytest.raises(UserError, match="no job was started; `fab deploy`"):
            module.monitor(run, quick, False)


def test_quick(capsys):
    assert module.monitor(make_run(FakeMachine(make_snapshot(epochs=3))), True, False) == 0
    assert "epoch 3 of 50" in capsys.readouterr().out
    with pytest.raises(UserError, match="one of them"):
        module.monitor(make_run(), True, True)


def test_quick_out_of_reach(capsys):
    machine = FakeMachine(Unreachable("silence"))
    with pytest.raises(Unreachable, match="silence; EC2 says running"):
        module.monitor(ec2_run(machine, instance("running")), True, False)
    assert machine.calls == 1 and capsys.readouterr().out == ""
    with pytest.raises(RemoteError, match="terminated"):
        module.monitor(ec2_run(machine, instance("terminated")), True, False)


def test_without_a_terminal(capsys, monkeypatch):
    """Losses of touch, and the report at the end, which has no control characters."""
    said = []
    monkeypatch.setattr(module, "say", said.append)
    answers = [make_snapshot(), Unreachable("cut"), make_snapshot(None, 2, **ENDED)]
    assert module.monitor(make_run(FakeMachine(*answers)), False, False) == 3
    assert said == ["connection lost, trying again: cut", "connected again after 0 s"]
    report = capsys.readouterr().out
    assert "diverged" in report and "\x1b" not in report


def test_screen(monkeypatch, capsys):
    """The terminal's other screen is left as it was, and the last report stays."""
    terminal = io.StringIO()
    console = Console(file=terminal, force_terminal=True, width=100, height=40)
    monkeypatch.setattr(module, "Console", lambda **_: console)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)

    def then(answer):
        time.sleep(0.6)  # the screen is drawn each half second
        return answer

    answers = [Unreachable("cut"), make_snapshot(epochs=2), make_snapshot(None, 2, **ENDED)]
    answers = [functools.partial(then, answer) for answer in answers]
    assert module.monitor(make_run(FakeMachine(*answers)), False, False) == 3
    shown = terminal.getvalue()
    assert "no connection for" in shown
    before, _, after = shown.rpartition("\x1b[?1049l")
    assert "\x1b[?1049h" in before and "running for" in before
    assert "diverged" in after and "running for" not in after


PIPE = """
import base64, sys
from mmattn.cli import end_process_after
from mmattn.remote import monitor as module
from tests.remote.test_monitor import FakeMachine, make_run, make_snapshot
module.POLL_S = 0.0
data = b"0123456789" * 10_000
class Endless(FakeMachine):
    def call(self, name, *options, timeout):
        offset = int(options[0])
        text = base64.b64encode(data).decode()
        log = {"offset": offset, "size": offset + 2 * len(data), "data": text}
        return make_snapshot(log)
end_process_after(lambda: module.monitor(make_run(Endless()), False, True))
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
