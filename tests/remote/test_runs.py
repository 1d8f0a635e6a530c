"""The local state of runs: found, broken, locked."""

import json
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from mmattn.errors import UserError
from mmattn.remote.access import own_network
from mmattn.remote.runs import Busy, Member, Run, changing, locked, read_run, runs
from mmattn.remote.ssh import Access, RemoteError, ssh_config


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


def test_a_state_of_when_a_run_had_but_one_machine_is_read(folder):
    run = Run("no_aug-20260101-000000-aaaa", "no_aug")
    state = asdict(run) | {"instance_id": "i-1", "address": "192.0.2.7", "launched": 5.0}
    del state["members"], state["trains_on"]
    (folder / "state.json").write_text(json.dumps(state))
    found = read_run(folder / "state.json")
    assert found.members == [Member("i-1", "192.0.2.7", launched=5.0)]
    assert found.trains_on == ["i-1"]


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
    assert f"`fab deploy` (process {holder.pid}) is at work" in str(error.value)
    with locked("teardown"):
        assert json.loads(Path(".fab/lock").read_text())["what"] == "teardown"


def test_a_run_that_was_just_changed_is_not_changed_back(folder):
    Run("no_aug-20260102-000000-aaaa", "no_aug", region="us-east-1").save()
    run = Run.find("no_aug-20260102-000000-aaaa")
    with changing("deploy", run):
        run.members = [Member("i-1")]
        run.save()
    old = replace(run, members=[])
    changed = pytest.raises(Busy, match="just changed no_aug-20260102-000000-aaaa: try again")
    with changed, changing("resume", old):
        pass
    assert Run.find(run.name).instance_id == "i-1"


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
    assert machine.remote("run/") == f"instance:mmattn/{run.name}/run/"
    other = run.machine(1)
    assert other.access.known_hosts.read_text() == "192.0.2.2 ssh-ed25519 AAAA\n"
    assert machine.ssh_config != other.ssh_config


def test_openssh_trusts_this_host_key_and_offers_this_key_alone(folder):
    known, key = folder / "known hosts", folder / "key"
    lines = ssh_config(Access("ec2-user", "192.0.2.1", 22, known, key)).split("\n    ")
    assert "StrictHostKeyChecking yes" in lines
    assert f'UserKnownHostsFile "{known}"' in lines
    assert f'IdentityFile "{key}"' in lines
    assert {"IdentitiesOnly yes", "BatchMode yes", "ForwardAgent no"} <= set(map(str.strip, lines))
    with pytest.raises(UserError, match="expected a path without quotes"):
        ssh_config(Access("me", "x", 22, folder / 'a"b', key))


@pytest.mark.parametrize(
    ("answer", "network"),
    [("192.0.2.7\n", "192.0.2.7/32"), ("2001:db8::7", "2001:db8::7/128")],
)
def test_own_network(answer, network, monkeypatch, tmp_path, own_ip_service):
    own_ip_service(answer)
    assert own_network() == network


@pytest.mark.parametrize("answer", ["0.0.0.0/0", "<html>", ""])
def test_no_answer_opens_more_than_one_address(answer, own_ip_service):
    own_ip_service(answer)
    with pytest.raises(RemoteError, match="expected an IP address"):
        own_network()


def test_a_silent_service_is_named(monkeypatch):
    monkeypatch.setenv("MMATTN_IP_SERVICE", "http://127.0.0.1:9")
    with pytest.raises(RemoteError, match=r"127\.0\.0\.1:9 does not tell .* Connection refused;"):
        own_network()
    monkeypatch.setenv("MMATTN_IP_SERVICE", "file:///etc/passwd")
    with pytest.raises(RemoteError, match="expected an http or https address"):
        own_network()


@pytest.fixture
def own_ip_service(monkeypatch):
    """Start a server that answers with a text."""

    servers = []

    def start(text: str) -> None:
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_):
                pass

        server = HTTPServer(("127.0.0.1", 0), Answer)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        monkeypatch.setenv("MMATTN_IP_SERVICE", f"http://127.0.0.1:{server.server_port}")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
