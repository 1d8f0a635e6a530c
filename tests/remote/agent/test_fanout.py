"""Copies among a run's machines: whole, to known machines only, and without a key left behind."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from mmattn.remote.agent import fanout, hosts
from mmattn.remote.upload import AGENT
from tests.remote.programs import program

RSYNC = """#!/bin/sh
echo x >>{folder}/tries
test -e {folder}/key || exit 9
{what}
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """A job's folder with its key, in that of a run."""
    folder = tmp_path / "run/fanout"
    folder.mkdir(parents=True)
    (folder / "key").write_text("secret")
    (folder / "known_hosts").touch()
    return folder


def begin(folder: Path, what: str) -> subprocess.Popen:
    """Copy to two machines with an rsync of the test's."""
    rsync = folder / "bin/rsync"
    rsync.parent.mkdir()
    rsync.write_text(RSYNC.format(folder=folder, what=what))
    rsync.chmod(0o755)
    return subprocess.Popen(
        program("fanout", folder, "10.0.0.1", "10.0.0.2", PAUSE_S=0),
        env={**os.environ, "PATH": f"{rsync.parent}:{os.environ['PATH']}"},
        stderr=subprocess.PIPE,
        text=True,
    )


def tries(folder: Path) -> int:
    path = folder / "tries"
    return path.read_text().count("x") if path.exists() else 0


def test_what_is_cut_is_copied_again(folder):
    process = begin(folder, f"mkdir {folder}/once 2>/dev/null && exit 12; exit 0")
    assert process.communicate(timeout=60)[1] == ""
    assert (process.returncode, tries(folder)) == (0, 3)
    assert not (folder / "key").exists()


@pytest.mark.parametrize("end", ["failed", "stopped"])
def test_the_key_is_gone_whatever_the_end(folder, end):
    process = begin(folder, "exit 12" if end == "failed" else "exec sleep 60")
    if end == "stopped":
        while tries(folder) < 2:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
    assert process.wait(60) == (1 if end == "failed" else 143)
    with process.stderr:
        told = process.stderr.read() if end == "failed" else ""
    assert told == ("not copied to 10.0.0.1, 10.0.0.2\n" if end == "failed" else "")
    assert tries(folder) == (2 * fanout.ATTEMPTS if end == "failed" else 2)
    assert not (folder / "key").exists()


@pytest.mark.parametrize("known", [True, False])
def test_another_host_key_is_refused(guest, known):
    """A machine copies to itself, at its own address."""
    quick = Path(fanout.__file__).read_text().replace("PAUSE_S = 5, 3.0", "PAUSE_S = 2, 0")
    files = {
        "x/agent/__init__.py": "",
        "x/agent/__main__.py": (AGENT / "__main__.py").read_text(),
        "x/agent/fanout.py": quick,
        "x/fanout/known_hosts": guest.known_hosts_line if known else guest.known_hosts_line[:-9],
        "x/code/file": "",
    }
    for name, text in files.items():
        path = guest.root / guest.home.lstrip("/") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    guest.run(f"chown -R {guest.user}: {guest.home}")
    guest.ssh("ssh-keygen -q -t ed25519 -N '' -f x/fanout/key; "
              "cat x/fanout/key.pub >>.ssh/authorized_keys")  # fmt: skip
    guest.run(f"ip route replace {guest.address} dev lo", check=False)
    text = guest.ssh(f"python3 x/agent fanout x/fanout {guest.address} 2>&1; echo $?", check=False)
    assert text.endswith("0\n" if known else f"not copied to {guest.address}\n1\n"), text
    assert known or "Host key verification failed" in text
    assert "key\n" not in guest.ssh("ls x/fanout")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "127.0.0.1 localhost\n127.0.1.1 box.here box\n",
            "127.0.0.1 localhost\n127.0.1.1 box.here\n",
        ),
        ("127.0.0.1 box localhost\n::1\tbox\n", "127.0.0.1 localhost\n::1\n"),
        ("127.0.0.1 boxes a-box\n", "127.0.0.1 boxes a-box\n"),
    ],
)
def test_a_name_means_one_address(before, after):
    found = hosts.mended(before, "box", "10.0.0.5").replace("  ", " ")
    assert found == f"10.0.0.5 box\n{after}"


def test_a_name_without_an_address():
    assert hosts.meaning("no-such-name.invalid") is None
    assert hosts.meaning("127.0.0.9") == "127.0.0.9"
