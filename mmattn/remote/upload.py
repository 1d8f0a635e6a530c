"""Code, data and earlier results to the machine, verified there against a manifest."""

import hashlib
import json
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mmattn.console import progress, say
from mmattn.errors import UserError
from mmattn.files import write_json
from mmattn.remote import agent
from mmattn.remote.agent.verify import sha256
from mmattn.remote.plan import folder_size
from mmattn.remote.runs import Run
from mmattn.remote.ssh import Machine, RemoteError, Unreachable

AGENT = Path(agent.__file__).parent
MANIFEST = "manifest.json"
RETRIES = 20  # of a transfer that is cut


def upload(run: Run, machine: Machine) -> None:
    """Agent, code that git does not ignore, data, and what was fetched of an earlier machine."""
    code = _code_files()
    sources = {f"agent/{path.name}": path for path in sorted(AGENT.iterdir()) if path.is_file()}
    sources |= {f"code/{path}": Path(path) for path in code}
    for number, folder in enumerate(run.data):
        inside = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        sources |= {f"data/{number}/{path.relative_to(folder)}": path for path in inside}
    manifest = _hash(sources)
    text = json.dumps(manifest)
    digest = hashlib.sha256(text.encode()).hexdigest()
    if run.uploaded == digest:
        return
    write_json(run.folder / MANIFEST, manifest)
    _send(run, machine, code)
    wrong = machine.call("verify", timeout=3600)["wrong"]
    if wrong:
        raise RemoteError(
            f"{len(wrong)} files differ on the machine from those here, e.g. {wrong[0]}: did they "
            "change while they were sent?"
        )
    if run.began_with not in (None, digest):
        say("code or data are not those that the run began with: the results mix both")
    run.uploaded, run.began_with = digest, run.began_with or digest
    run.save()


def _send(run: Run, machine: Machine, code: list[str]) -> None:
    """Send everything that the machine does not have yet, the manifest last."""
    machine.run(
        f"umask 077 && mkdir -p {run.base}/code {run.base}/data {run.base}/run {run.base}/job"
    )
    persist(machine, lambda: send_agent(machine))

    def send(*arguments: str, title: str, total: int) -> None:
        persist(machine, lambda: machine.rsync(*arguments, progress=title, total=total))

    size = sum(Path(path).stat().st_size for path in code)
    (run.folder / "code_files").write_bytes(b"\0".join(path.encode() for path in code))
    listed = ("--from0", f"--files-from={run.folder / 'code_files'}")
    send(*listed, "./", machine.remote("code/"), title="code", total=size)
    for number, folder in enumerate(run.data):
        target = machine.remote(f"data/{number}/")
        links = ("--copy-links", "--delete")
        send(*links, f"{folder}/", target, title=f"data {folder}", total=folder_size(Path(folder)))
    if (run.results / "config.json").exists():
        keep = "--ignore-existing"
        send(
            *("--exclude=/job", keep, f"{run.results}/", machine.remote("run/")),
            title="earlier results",
            total=folder_size(run.results),
        )
        log = run.results / "job" / "job.log"  # keeps growing there
        if log.exists():
            send(keep, str(log), machine.remote("job/"), title="earlier log", total=0)
    send(str(run.folder / MANIFEST), machine.remote(), title="manifest", total=0)


def send_agent(machine: Machine) -> None:
    """The programs that look after the job; of their own, they need the system's Python alone."""
    own = ("--delete", "--exclude=__pycache__")
    machine.rsync(*own, f"{AGENT}/", machine.remote("agent/"), progress="agent")


def _code_files() -> list[str]:
    """The project's files that git does not ignore, relative to the current folder."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"fab deploy sends what git does not ignore: {done.stderr.strip()}")
    return [path for path in done.stdout.split("\0") if path and Path(path).is_file()]


def _hash(sources: dict[str, Path]) -> dict[str, str]:
    """sha256 by the path on the machine."""
    with progress("hashing", len(sources), "files") as advance, ThreadPoolExecutor() as pool:
        found = {}
        for name, digest in zip(sources, pool.map(sha256, sources.values()), strict=True):
            if digest is None:
                raise UserError(f"{sources[name]}: cannot be read")
            found[name] = digest
            advance(1)
    return found


def persist(machine: Machine, transfer: Callable[[], None]) -> None:
    """Go on with a transfer that is cut, with growing pauses."""
    for attempt in range(RETRIES):
        try:
            if attempt:
                machine.run("true")  # lets this computer in, should its address have changed
            transfer()
            return
        except Unreachable as error:
            if attempt == RETRIES - 1:
                raise
            say(f"{error}; continuing")
            time.sleep(min(2**attempt, 30))
