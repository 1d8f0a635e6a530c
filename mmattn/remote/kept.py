"""The disk that outlives its machine: without a bucket, the only copy of unfetched results."""

from typing import Any

from mmattn.console import say, waiting
from mmattn.remote.cloud import GONE, RUN
from mmattn.remote.runs import Run
from mmattn.remote.ssh import Machine

DEVICE = "/dev/sdf"
COPY_S = 3600
COPY = """
set -e
for second in $(seq 60); do
    for disk in /dev/disk/by-id/*{name}*-part1 /dev/disk/by-id/*{name}; do
        test -e $disk && break 2
    done
    sleep 1
done
sudo mkdir -p /mnt/kept
mountpoint -q /mnt/kept || sudo mount -o ro,nouuid $disk /mnt/kept 2>&- ||
    sudo mount -o ro $disk /mnt/kept
mkdir -p {base}/job
cd /mnt/kept$HOME/{base} 2>&- || {{ cd; sudo umount /mnt/kept; exit 0; }}
test ! -d run || cp -a run ~/{base}/
cp -a job/job.log* ~/{base}/job/ 2>&- || true
cd && sudo umount /mnt/kept
"""


def kept_disks(run: Run) -> list[dict[str, Any]]:
    """The disks of a run that no machine boots from, as EC2 describes them.

    The oldest has the results: newer ones are of machines that never finished copying it.
    """
    if run.host is not None or run.uri is not None:
        return []
    cloud = run.cloud()
    gone = [one.id for one in cloud.instances(run=run.name) if one.state in GONE]

    def is_left(one: dict[str, Any]) -> bool:
        """Whether a gone instance leaves it behind, or an instance has it attached for a copy."""
        leaves = one["InstanceId"] in gone and not one.get("DeleteOnTermination")
        return one["Device"] == DEVICE or leaves

    disks = cloud.listed("volume", RUN, run.name)
    free = [disk for disk in disks if all(map(is_left, disk["Attachments"]))]
    return sorted(free, key=lambda disk: disk["CreateTime"])


def take_up(run: Run, machine: Machine) -> None:
    """Copy the results from the kept disk to the run's first machine, then delete the disks."""
    disks = kept_disks(run) if run.leader is None else []
    if not disks:
        return
    disk, *others = disks
    cloud, name, first = run.cloud(), disk["VolumeId"], run.members[0].id
    with waiting(f"copying the results from {name}"):
        if first not in [one["InstanceId"] for one in disk["Attachments"]]:
            cloud.attach(name, first, DEVICE)
        machine.run(COPY.format(name=name.replace("-", ""), base=run.base), COPY_S)
        cloud.detach(name, first)
        for one in (*others, disk):
            cloud.delete("volume", one["VolumeId"])
    say(f"{run.name} continues from its kept disk")
