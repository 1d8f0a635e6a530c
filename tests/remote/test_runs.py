"""The local state of runs: found, broken, locked."""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmattn.errors import UserError
from mmattn.remote import send
from mmattn.remote.access import own_network
from mmattn.remote.runs import STATES, TABLE, Busy, Member, Run, changing, locked, read_run, runs
from mmattn.remote.ssh import Access, RemoteError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_is_saved_comes_back_and_the_latest_is_found(folder):
    old = Run("ravdess-20260101-000000-aaaa", "ravdess", args=["--seed", "1"], host="me@x")
    new = Run("no_aug-20260102-000000-aaaa", "no_aug", region="us-east-1", price=4.08, spot=True)
    new.save()
    old.save()
    assert runs() == [old, new]
    assert Run.find() == new
    assert Run.find(old.name) == old
    assert (folder / ".fab" / old.name).stat().st_mode & 0o777 == 0o700


def test_an_unknown_run_is_answered_with_the_known_ones():
    with pytest.raises(UserError, match=r"^there is no run in \.fab yet"):
        Run.find()
    Run("no_aug-20260102-000000-aaaa", "no_aug").save()
    with pytest.raises(UserError, match=r"--run x: .* no_aug-20260102-000000-aaaa"):
        Run.find("x")


@pytest.mark.parametrize("text", ["{", "[]", '{"name": "x"}', '{"name": "x", "other": 1}'])
def test_a_broken_state_is_named(folder, text):
    path = folder / "state.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"state\.json: expected"):
        read_run(path)


def test_a_run_goes_from_state_to_state_as_the_table_says():
    run = Run("no_aug-20260101-000000-aaaa", "no_aug", members=[Member("i-1")], deadline=5.0)
    with pytest.raises(AssertionError):
        run.to("built")
    for state in ("asked", "there", "sent", "built", "started"):
        run.to(state)
    assert run.is_past("sent") and Run.find() == run
    run.to("there")  # one of several machines is lost: what is on the others is sent again
    assert not run.is_past("sent") and run.members
    run.to("lost")
    assert (run.members, run.deadline, run.is_past("there")) == ([], None, False)
    run.to("asked")
    assert {name for following in STATES.values() for name in following} == set(STATES)
    assert TABLE in (Path(__file__).parents[2] / "docs/remote.md").read_text()


def test_a_second_command_says_who_holds_the_lock():
    code = (
        "from mmattn.remote.runs import locked\n"
        "with locked('deploy'):\n    print('held', flush=True)\n    input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Busy) as error, locked("teardown"):
            pass
        holder.communicate("\n")
    assert error.value.exit_code == 75
    assert f"`fab deploy` (process {holder.pid}) is running" in str(error.value)
    with locked("teardown"):
        assert Path(".fab/lock").read_text().startswith("`fab teardown` (process ")


def test_a_run_that_was_just_changed_is_read_again(folder):
    Run("no_aug-20260102-000000-aaaa", "no_aug", region="us-east-1").save()
    run = Run.find("no_aug-20260102-000000-aaaa")
    with changing("deploy", run):
        run.members = [Member("i-1")]
        run.save()
    old = replace(run, members=[])
    with changing("resume", old):
        assert old == run


def test_credentials_of_another_account_are_refused_each_time(folder, monkeypatch):
    class Other:
        def __init__(self, region):
            pass

        def check_account(self, owner):
            raise UserError("another account")

    monkeypatch.setattr("mmattn.remote.runs.Cloud", Other)
    run = Run("no_aug-20260102-000000-aaaa", "no_aug", owner="arn:aws:iam::1:user/me")
    for _ in range(2):
        with pytest.raises(UserError, match="another account"):
            run.cloud()


def test_a_key_that_others_can_read_is_closed(folder):
    run = Run("no_aug-20260102-000000-aaaa", "no_aug", region="us-east-1")
    run.members = [Member("i-1", "192.0.2.1"), Member("i-2", "192.0.2.2")]
    run.save()
    run.key.write_text("secret")
    run.host_key.write_text("secret")
    run.host_key.with_name("host_key.pub").write_text("ssh-ed25519 AAAA mmattn\n")
    run.key.chmod(0o644)
    machine = run.machine()
    assert run.key.stat().st_mode & 0o777 == 0o600
    assert (run.folder / "known_hosts").read_text() == "192.0.2.1 ssh-ed25519 AAAA\n"
    assert machine.remote("run/") == f"192.0.2.1:mmattn/{run.name}/run/"
    other = run.machine(1)
    assert other.access.own[0].read_text() == "192.0.2.2 ssh-ed25519 AAAA\n"
    assert machine.ssh_config != other.ssh_config


def test_openssh_trusts_this_host_key_and_offers_this_key_alone(folder):
    known, key = folder / "known hosts", folder / "key"
    lines = Access("192.0.2.1", "ec2-user", own=(known, key)).settings().splitlines()
    assert "StrictHostKeyChecking yes" in lines
    assert f'UserKnownHostsFile "{known}"' in lines
    assert f'IdentityFile "{key}"' in lines
    assert {"IdentitiesOnly yes", "BatchMode yes", "ForwardAgent no"} <= set(lines)


def test_own_network(monkeypatch):
    monkeypatch.setenv("MMATTN_IP_SERVICE", "data:,192.0.2.7%0A")
    assert own_network() == "192.0.2.7/32"


@pytest.mark.parametrize(
    "answer", ["0.0.0.0/0", "<html>", "", "2001:db8::7", "10.0.0.3", "192.168.1.2", "100.64.0.1"]
)
def test_no_answer_opens_more_than_one_public_address(answer, monkeypatch):
    monkeypatch.setenv("MMATTN_IP_SERVICE", f"data:,{answer}")
    with pytest.raises(RemoteError, match="did not return this computer's IPv4 address"):
        own_network()


def test_the_address_is_asked_for_by_ipv4(monkeypatch):
    six = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 443))
    four = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 9))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *asked: [six, four])
    tried, bind = [], socket.socket.bind
    monkeypatch.setattr(
        socket.socket, "bind", lambda self, to: (tried.append(self.family), bind(self, to))
    )
    monkeypatch.setenv("MMATTN_IP_SERVICE", "https://localhost")
    with pytest.raises(RemoteError, match="Connection refused"):
        own_network()
    assert tried == [socket.AF_INET6, socket.AF_INET]  # the first cannot leave by IPv4


def test_a_silent_service_is_named(monkeypatch):
    monkeypatch.setenv("MMATTN_IP_SERVICE", "http://127.0.0.1:9")
    with pytest.raises(RemoteError, match=r"127\.0\.0\.1:9 did not return .* Connection refused"):
        own_network()


def test_a_name_that_cannot_be_sent_is_refused_before_anything_is_made(folder, monkeypatch):
    monkeypatch.setattr(send, "_code_files", lambda: [])
    (folder / "data").mkdir()
    for name in ("a\nb.npz", os.fsdecode(b"\xff.npz")):
        path = folder / "data" / name
        path.touch()
        run = Run("no_aug-20260101-000000-aaaa", "no_aug", data=[str(folder / "data")])
        with pytest.raises(UserError, match="expected a UTF-8 name without line breaks"):
            send.survey(run)
        path.unlink()


def test_what_is_sent_again_has_its_environment_made_anew():
    machine = SimpleNamespace(
        rank=1, **dict.fromkeys(("run", "rsync", "remote"), lambda *_, **__: "")
    )
    run = Run("no_aug-20260101-000000-aaaa", "no_aug", host="me@nowhere")
    run.to("there")
    for code, then in (("old", "sent"), ("old", "built"), ("new", "sent")):
        send.send(run, [machine], {"code/setup.cfg": code})
        assert run.state == then
        run.to("built")
