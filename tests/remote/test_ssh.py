"""Commands and transfers to a real sshd, through what goes wrong with it."""

import json
import threading
import time

import pytest

from mmattn.remote import ssh
from mmattn.remote.ssh import (
    Access,
    CommandFailed,
    Machine,
    NotLoggedIn,
    RemoteError,
    Unreachable,
    make_key,
)
from tests.remote.machines.image import RELEASES


@pytest.fixture(scope="module", params=RELEASES)
def guest(request, boot_guest):
    with boot_guest(release=request.param) as guest:
        yield guest


@pytest.fixture
def access(guest, tmp_path) -> Access:
    known = tmp_path / "known_hosts"
    known.write_text(guest.known_hosts_line + "\n")
    return Access(guest.address, guest.user, own=(known, guest.key_file))


@pytest.fixture
def machine(access, tmp_path):
    return Machine(access, tmp_path, "mmattn/run")


def there(access: Access) -> str:
    return f"{access.address}:"


def test_a_command_runs_and_its_failure_is_told(machine):
    assert machine.run("echo one; echo two >&2") == "one\n"
    with pytest.raises(CommandFailed) as error:
        machine.run("echo out; echo why >&2; exit 7")
    assert (error.value.exit_code, error.value.output) == (7, "why")


def test_an_unknown_host_key_is_refused(access, tmp_path):
    access.own[0].write_text("")
    with pytest.raises(RemoteError, match="has an unknown host key") as error:
        Machine(access, tmp_path, "mmattn/run").run("true")
    assert not isinstance(error.value, Unreachable)
    with pytest.raises(RemoteError, match="Host key verification failed"):
        Machine(access, tmp_path, "mmattn/run").rsync(__file__, there(access))
    assert access.own[0].read_text() == ""


def test_another_host_key_is_refused(access, tmp_path):
    other = " ".join(make_key(tmp_path / "other").split()[:2])
    access.own[0].write_text(f"{access.address} {other}\n")
    machine = Machine(access, tmp_path, "mmattn/run")
    with pytest.raises(RemoteError, match="has a different host key") as error:
        machine.run("true")
    assert not isinstance(error.value, Unreachable)
    with pytest.raises(RemoteError, match="Host key verification failed"):
        machine.rsync(__file__, there(access))


def test_a_key_that_is_not_accepted(access, tmp_path):
    make_key(tmp_path / "wrong")
    with pytest.raises(NotLoggedIn, match="refuses the key: Permission denied"):
        Machine(access._replace(own=(access.own[0], tmp_path / "wrong")), tmp_path, "x").run("true")


def test_connection_refused(guest, machine):
    guest.stop_sshd()
    try:
        with pytest.raises(Unreachable, match="is unreachable: Connection refused"):
            machine.run("true")
        with pytest.raises(Unreachable, match="Connection refused"):
            machine.rsync(__file__, machine.remote())
    finally:
        guest.start_sshd()
    assert machine.run("echo back") == "back\n"


@pytest.mark.parametrize("fault", ["freeze_sshd", "cut_link"])
def test_a_silent_peer_is_found_out(guest, access, tmp_path, monkeypatch, fault):
    monkeypatch.setattr(ssh, "CONNECT_S", 3)
    machine = Machine(access, tmp_path, "mmattn/run")
    getattr(guest, fault)()
    begin = time.monotonic()
    try:
        with pytest.raises(Unreachable):
            machine.run("true", timeout=5)
        assert time.monotonic() - begin < 10
    finally:
        guest.thaw_sshd()
        guest.mend_link()
    assert machine.run("echo back") == "back\n"


def test_a_connection_that_is_cut_is_told(guest, machine):
    threading.Timer(1, guest.kill_ssh_connections).start()
    with pytest.raises(Unreachable, match="is unreachable"):
        machine.run("sleep 60", timeout=60)
    assert machine.run("echo back") == "back\n"


def test_a_command_that_hangs(machine):
    with pytest.raises(Unreachable, match="silent for 1 s"):
        machine.run("sleep 60", timeout=1)


@pytest.fixture
def answering(guest):
    """Make the agent one that prints a text, whatever is called."""
    inside = f"{guest.home}/mmattn/run/agent"

    def make(text: str) -> None:
        guest.run(f"mkdir -p {inside}")
        (guest.root / inside.lstrip("/") / "__main__.py").write_text(f"print({text!r})")

    yield make
    guest.run(f"rm -r {guest.home}/mmattn")


def test_a_noisy_shell(guest, machine, answering):
    answering('mmattn:{"a": 1}')
    guest.run(f"cp {guest.home}/.bashrc /tmp && sed -i '1i echo mmattn:noise' {guest.home}/.bashrc")
    try:
        assert machine.call("answer") == {"a": 1}
        with pytest.raises(CommandFailed, match="is your shell clean"):
            machine.rsync(__file__, machine.remote())
    finally:
        guest.run(f"cp /tmp/.bashrc {guest.home}")


def test_nothing_of_the_run_is_there(machine):
    with pytest.raises(CommandFailed, match="`fab deploy` continues"):
        machine.call("snapshot")


def test_what_is_no_json_is_shown(machine, answering):
    answering("1 {")
    with pytest.raises(RemoteError, match=r"expected JSON from answer, got '1 \{'"):
        machine.call("answer")


def test_files_arrive_whole_and_with_their_times(guest, machine, tmp_path):
    source = tmp_path / "a file"
    source.write_text(json.dumps(list(range(10_000))))
    machine.run("mkdir -p mmattn/run")
    machine.rsync(str(source), machine.remote(), progress="a file")
    arrived = guest.root / f"{guest.home}/mmattn/run/a file".lstrip("/")
    assert arrived.read_bytes() == source.read_bytes()
    assert int(arrived.stat().st_mtime) == int(source.stat().st_mtime)


def test_no_space_on_the_machine(guest, machine, tmp_path):
    source = tmp_path / "big"
    source.write_bytes(b"\0" * 1_000_000)
    machine.run("mkdir -p mmattn/run")
    guest.fill_disk()
    try:
        with pytest.raises(CommandFailed, match="the receiving disk is full"):
            machine.rsync(str(source), machine.remote("big"))
    finally:
        guest.free_disk()


def test_the_own_address_changed(guest, access, tmp_path, monkeypatch):
    """Whoever is not admitted meets silence, mends it once, and gets in."""
    monkeypatch.setattr(ssh, "CONNECT_S", 3)
    mended = []

    def mend() -> Access:
        guest.mend_link()
        mended.append(True)
        return access

    guest.cut_link()
    machine = Machine(access, tmp_path, "mmattn/run", mend)
    assert machine.run("echo in") == "in\n"
    assert mended == [True]
