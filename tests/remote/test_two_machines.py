"""`fab deploy --instances N` on real machines: they find each other, and one, or two, are lost.

A stand-in for the experiment tells what it was told and reaches; a real one trains, too.
"""

import json
import os
import re
import shlex
import shutil
import socket
from pathlib import Path

import pytest

from mmattn.remote.jobs import PORT
from mmattn.remote.runs import Run
from tests.remote.test_whole import PROJECT, Session, copy_project
from tests.remote.waiting import wait_until

EXPERIMENT = "pair"
ENVIRONMENT_FILE = "mmattn/remote/agent/environment.sh"
ENVIRONMENT = "#!/usr/bin/env bash\nexec python3.11 -m venv --without-pip ../venv\n"
CLIPS = ("1001_DFA_ANG_XX.npz", "1002_DFA_ANG_XX.npz")


@pytest.fixture
def session(tmp_path, cloud, monkeypatch) -> Session:
    """A shell in a copy of the project in which the experiment is the stand-in."""
    project = tmp_path / "project"
    copy_project(project)
    shutil.copy(Path(__file__).parent / "machines/pair.py", project / "experiments/pair.py")
    (project / ENVIRONMENT_FILE).write_text(ENVIRONMENT)
    (project.parent / "clips").mkdir()
    for name in CLIPS:
        (project.parent / "clips" / name).write_bytes(name.encode() * 1000)
    monkeypatch.chdir(project)
    return Session(project, cloud.environment)


def test_three_machines_from_deploy_to_teardown(session, cloud):
    """Of which one is lost, and then the first, with the results but for what was fetched."""
    asked = ("deploy", "--experiment", EXPERIMENT, "--instances", "3", "--max-hours", "2", "--yes")
    asked += ("--data", str(session.folder.parent / "clips"))
    assert "3 x c5.24xlarge" in session.fab(*asked, "--dry-run")
    session.fab_killed_at("building the environment", *asked)
    assert "is training" in session.fab(*asked)
    assert cloud.api.resources() == {
        "instances": 3, "key pairs": 1, "security groups": 1, "placement groups": 1,
        "volumes": 3, "alarms": 6,
    }  # fmt: skip
    run = Run.find()
    ids = [one.id for one in run.members]
    guests = [cloud.guest(id) for id in ids]
    homes = [home_of(cloud, run, id) for id in ids]
    logs = [home / "job/job.log" for home in homes]

    wait_until(lambda: "from step 0" in logs[0].read_text())
    for rank, one in enumerate(run.members):
        if rank:
            assert f"process {rank} listens at {one.private}" in logs[0].read_text()
        wait_until(lambda rank=rank: "called" in logs[rank].read_text() or not rank)
        assert f"process {rank} of 3, resume False\ndata: {list(CLIPS)}" in logs[rank].read_text()
    with pytest.raises(ConnectionRefusedError):  # it listens at the private address alone
        socket.create_connection((guests[0].address, PORT), 5)
    for guest, home in zip(guests, homes, strict=True):
        for name in CLIPS:
            assert (home / "data/0" / name).read_bytes() == name.encode() * 1000
        assert guest.run("getent ahosts $(hostname)").split()[0] == guest.private

    text = session.fab("monitor", "--quick")
    assert "machine 0" in text and "machine 2" in text and text.count("CPU load") == 3, text
    assert "3 x c5.24xlarge" in text
    session.fab("stop")
    assert all("stopped and saved" in log.read_text() for log in logs[1:])
    before = (homes[0] / "run/checkpoints/latest").iterdir()
    (step,) = [path.name for path in before if path.name.isdigit()]
    assert "is training" in session.fab("resume", "--yes")
    wait_until(lambda: f"from step {step}" in logs[0].read_text())
    assert "process 2 of 3, resume True" in logs[2].read_text()
    assert not (homes[1] / "run").exists()  # the first alone has the results
    assert "is running: `fab monitor`" in session.fab("resume", "--yes", code=2)

    cloud.api.end(ids[1], "Server.SpotInstanceTermination")
    guests[1].wait_until_off()
    text = session.fab("monitor", code=2)
    assert f"machine 1, {ids[1]}, is terminated at EC2" in text
    text = session.fab("resume", "--yes")
    assert "on 2 of 3 machines: the others are gone" in text
    assert [one.id for one in Run.find().members] == [ids[0], ids[2]]
    wait_until(lambda: "process 1 of 2, resume True" in logs[2].read_text())

    session.fab("fetch")
    (fetched,) = [path.name for path in (run.results / "checkpoints/latest").iterdir()]
    guests[0].power_off()
    text = session.fab("monitor", code=2)
    assert f"machine 0, {ids[0]}, is terminated at EC2" in text
    assert "continues from its disk, which is kept" in text
    text = session.fab("resume", "--yes")
    assert f"the machine with the results is gone: {ids[2]} replaces it" in text
    assert "continues from its kept disk" in text
    went_on = re.compile(r"process 0 of 1, resume True\nfrom step (\d+)")
    wait_until(lambda: went_on.search(logs[2].read_text()))
    assert int(went_on.search(logs[2].read_text())[1]) >= int(fetched)  # all that was saved

    (homes[2] / "run/finish").touch()
    os.chown(homes[2] / "run/finish", homes[2].stat().st_uid, -1)  # only an owner makes hard links
    assert "ended well" in session.fab("monitor")
    assert "not fetched" in session.fab("teardown", code=2)
    session.fab("fetch")
    assert (run.results / "summary.json").exists()
    assert "nothing is left" in session.fab("teardown")
    assert not cloud.api.resources()


def home_of(cloud, run: Run, instance_id: str) -> Path:
    """The run's folder on a machine."""
    guest = cloud.guest(instance_id)
    return guest.root / guest.home.lstrip("/") / run.base


def test_two_machines_train_as_one(session, cloud, wheelhouse, commands):
    """The real experiment: one training by a process on each machine."""
    shutil.copy(PROJECT / ENVIRONMENT_FILE, session.folder / ENVIRONMENT_FILE)
    options = list(commands.tiny)
    options[options.index("--train.epochs") + 1] = "4"
    session.fab("deploy", "--args", shlex.join(options), "--instances", "2", "--yes")
    run = Run.find()
    text = session.fab("monitor")
    assert "ended well" in text and "machine 1" in text, text
    session.fab("fetch")
    environment = json.loads((run.results / "environment.json").read_text())
    assert [start["processes"] for start in environment["starts"]] == [2]
    assert len((run.results / "metrics.jsonl").read_text().splitlines()) == 4
    assert (run.results / "summary.json").exists()
    session.fab("teardown")
    assert not cloud.api.resources()
