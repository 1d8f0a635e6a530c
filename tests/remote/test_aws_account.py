"""Remote training once from end to end on your own AWS account.

`MMATTN_AWS=1 pytest -m aws tests/remote/test_aws_account.py`, with credentials that have
docs/remote-policy.json, in the region of your AWS configuration, which needs a default VPC.

It costs about one cent: a t3.small with its address and disk (0.03 dollars an hour) for at most ten
minutes. All that it makes is removed, also when it fails. Should this computer be switched off
meanwhile, the machine ends itself within a quarter of an hour; `fab teardown --run NAME --region
REGION` removes what is left, which is free.
"""

import os
import subprocess
import sys
from pathlib import Path

import boto3
import pytest

from mmattn.remote.runs import Run, runs
from tests.remote.test_whole import FAB, copy_project, read_rows

ARGS = (
    "--data.synthetic.clips 144 --data.synthetic.speakers 12 --data.synthetic.audio-width 8 "
    "--data.synthetic.video-width 6 --model.units audio=8 video=8 --train.batch 8 --train.epochs 1"
)
DEPLOY = ("deploy", "--args", ARGS, "--instance-type", "t3.small", "--max-hours", "0.25", "--yes")


@pytest.mark.aws
@pytest.mark.timeout(600)
@pytest.mark.skipif(os.environ.get("MMATTN_AWS") != "1", reason="costs a cent: MMATTN_AWS=1")
def test_on_a_real_account(tmp_path, monkeypatch):
    train_and_remove(tmp_path / "project", monkeypatch)


def test_on_what_stands_in_for_aws(tmp_path, monkeypatch, cloud, wheelhouse):
    cloud.api.prices["t3.small"] = 0.0208
    for name, value in cloud.environment.items():
        monkeypatch.setenv(name, value)
    train_and_remove(tmp_path / "project", monkeypatch)
    assert not cloud.api.resources()


def train_and_remove(project: Path, monkeypatch) -> None:
    """Deploy, watch, fetch and tear down; whatever fails, nothing is left."""
    copy_project(project)
    monkeypatch.chdir(project)
    try:
        fab(*DEPLOY)
        assert "exit code 0" in fab("monitor")
        fab("fetch")
        run = Run.find()
        assert len(read_rows(run.results)) == 1 and (run.results / "summary.json").exists()
        assert "nothing is left" in fab("teardown")
    finally:
        for made in runs():
            if made.state != "removed":
                fab("teardown", "--run", made.name, "--force")
    assert not left(run)


def fab(*words: str) -> str:
    """Run a task to its end, and show what it says."""
    done = subprocess.run(
        [*FAB, *words],
        env={**os.environ, "COLUMNS": "100"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(f"$ fab {' '.join(words)}\n{done.stdout}", file=sys.stderr)
    assert done.returncode == 0, done.stdout
    return done.stdout


def left(run: Run) -> list[str]:
    """What AWS itself still lists of a run."""
    ec2 = boto3.client("ec2", region_name=run.region)
    alarms = boto3.client("cloudwatch", region_name=run.region)
    of_run = {"Filters": [{"Name": "tag:mmattn:run", "Values": [run.name]}]}
    groups = ec2.describe_instances(**of_run)["Reservations"]
    living = [one for group in groups for one in group["Instances"]]
    return [
        *(one["InstanceId"] for one in living if one["State"]["Name"] != "terminated"),
        *(one["VolumeId"] for one in ec2.describe_volumes(**of_run)["Volumes"]),
        *(one["GroupId"] for one in ec2.describe_security_groups(**of_run)["SecurityGroups"]),
        *(one["KeyName"] for one in ec2.describe_key_pairs(**of_run)["KeyPairs"]),
        *(
            one["AlarmName"]
            for one in alarms.describe_alarms(AlarmNamePrefix=run.label)["MetricAlarms"]
        ),
    ]
