"""In place of an experiment: its processes find each other as those of a training do, and wait.

The first writes steps and checkpoints until it is asked to stop (exit code 75) or finds a file
`finish` in its folder; each of the others waits with it, and fails when it goes. What one listens
at is the meaning of its machine's name, as with gloo.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

if __name__ != "__main__":
    from experiments.no_aug import CONFIG  # noqa: F401  what `fab deploy` checks options with

STEP_S = 0.2


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--data.roots", dest="roots", default="")
    parser.add_argument("--distributed.coordinator", dest="coordinator", default="")
    parser.add_argument("--distributed.num-processes", dest="count", type=int, default=1)
    parser.add_argument("--distributed.process-id", dest="rank", type=int, default=0)
    parser.add_argument("--distributed.timeout", type=float)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(stop(options)))
    print(f"process {options.rank} of {options.count}, resume {options.resume}", flush=True)
    if options.roots and not options.resume:
        print("data:", sorted(path.name for path in Path(options.roots).rglob("*.npz")))
    host, _, port = options.coordinator.partition(":")
    if options.rank == 0:
        others = meet(host, int(port), options.count - 1) if options.count > 1 else []
        train(options.out, options.resume, others)
    else:
        join(host, int(port), options.rank)


def meet(host: str, port: int, count: int) -> list[socket.socket]:
    """Wait for the others, and call each back where it listens."""
    server = socket.create_server((host, port))
    server.settimeout(60)
    found = []
    for _ in range(count):
        caller, _ = server.accept()
        about = json.loads(caller.recv(1000))
        found.append(socket.create_connection(about["address"], timeout=10))
        print(f"process {about['rank']} listens at {about['address'][0]}", flush=True)
        found.append(caller)
    return found


def join(host: str, port: int, rank: int) -> None:
    """Listen at this machine's name, tell the first where, and stay as long as it does."""
    server = socket.create_server((socket.gethostbyname(socket.gethostname()), 0))
    end = time.monotonic() + 60
    while True:
        try:
            first = socket.create_connection((host, port), timeout=10)
            break
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)
    first.sendall(json.dumps({"rank": rank, "address": server.getsockname()}).encode())
    called, _ = server.accept()
    print("called back", flush=True)
    word = called.recv(100)
    print(f"the first has left: {word.decode() or 'without a word'}", flush=True)
    sys.exit({b"stopped": 75, b"finished": 0}.get(word, 1))


def train(out: Path, resume: bool, others: list[socket.socket]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps({"train": {"epochs": 1}}))
    step = newest(out) if resume else 0
    print(f"from step {step}", flush=True)
    while not (out / "finish").exists():
        step += 1
        save(out, step)
        time.sleep(STEP_S)
    (out / "summary.json").write_text(json.dumps({"steps": step}))
    for other in others[::2]:
        other.sendall(b"finished")
    print(f"finished after {step} steps", flush=True)


def newest(out: Path) -> int:
    return max(int(path.name) for path in (out / "checkpoints/latest").glob("[0-9]*"))


def save(out: Path, step: int) -> None:
    folder = out / "checkpoints/latest"
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{step}"
    partial.mkdir()
    (partial / "state").write_text(str(step))
    os.replace(partial, folder / str(step))
    for old in folder.glob("[0-9]*"):
        if int(old.name) < step:
            shutil.rmtree(old)


def stop(options: argparse.Namespace) -> int:
    print("stopped and saved", flush=True)
    return 75


if __name__ == "__main__":
    main()
