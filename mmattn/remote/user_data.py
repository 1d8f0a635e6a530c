"""The user data of an instance, for cloud-init at its first boot: host key, timer and guard."""

import base64
import gzip
import json
import time
from pathlib import Path

from mmattn.remote import agent
from mmattn.remote.runs import LOGIN, Run
from mmattn.remote.ssh import make_key

TIMER, GUARD = "mmattn-deadline.timer", "mmattn-guard.service"
LIMIT = 16 * 1024  # of EC2, before its own encoding
STOP_S = 85  # for the job to save: a spot machine has 120 s, the rest is to fetch the results
_AGENT = "/opt/mmattn/agent"
_MODULES = ("__init__.py", "__main__.py", "job.py", "guard.py")


def user_data(run: Run) -> str:
    """The cloud-config of an instance (JSON, which is YAML too); the same at each call.

    Its host key is made here, so that the first connection is verified too. A timer ends it at the
    deadline; a guard does so too, or when its job is over or EC2 takes it away.
    """
    public = make_key(run.host_key)
    keys = {"ed25519_private": run.host_key.read_text(encoding="utf-8"), "ed25519_public": public}
    guard = {
        "job": f"/home/{LOGIN}/{run.base}/job",
        "deadline": run.deadline,
        "grace_s": run.grace_minutes * 60,
        "stop_s": STOP_S,
    }
    end = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(run.deadline))
    files = {
        "/etc/mmattn/guard.json": json.dumps(guard),
        # The guard looks at connections: those of a vanished computer must end.
        "/etc/ssh/sshd_config.d/10-mmattn.conf": "ClientAliveInterval 30\nClientAliveCountMax 10\n",
        f"/etc/systemd/system/{TIMER}": (
            "[Unit]\nDescription=the machine's absolute deadline\n"
            f"[Timer]\nOnCalendar={end}\nAccuracySec=1s\nPersistent=true\nUnit=poweroff.target\n"
            "[Install]\nWantedBy=timers.target\n"
        ),
        f"/etc/systemd/system/{GUARD}": (
            "[Unit]\nDescription=ends the machine when its job is over\n"
            f"[Service]\nExecStart=/usr/bin/python3 {_AGENT} guard\n"
            "Restart=always\nRestartSec=5\nOOMScoreAdjust=-900\n"
            "[Install]\nWantedBy=multi-user.target\n"
        ),
    }
    source = Path(agent.__file__).parent
    for name in _MODULES:
        files[f"{_AGENT}/{name}"] = (source / name).read_text(encoding="utf-8")
    document = {
        "ssh_keys": keys,
        "write_files": [
            {"path": path, "encoding": "gz+b64", "content": _packed(text)}
            for path, text in files.items()
        ],
        "runcmd": [["systemctl", "daemon-reload"], ["systemctl", "enable", "--now", TIMER, GUARD]],
    }
    text = "#cloud-config\n" + json.dumps(document)
    assert len(text) <= LIMIT, f"user data of {len(text)} bytes, EC2 takes {LIMIT}"
    return text


def _packed(text: str) -> str:
    # Without a time stamp, so that the launch parameters of a token stay the same.
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
