"""Send code, data and earlier results to the machines, verified there against a manifest."""

import hashlib
import subprocess
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distributions
from pathlib import Path

from mmattn.console import progress, say
from mmattn.errors import UserError
from mmattn.files import write_text
from mmattn.remote import agent
from mmattn.remote.agent.outbox import sha256
from mmattn.remote.runs import Run, is_uri
from mmattn.remote.ssh import CommandFailed, Machine, RemoteError, persistent

AGENT = Path(agent.__file__).parent
OWN = ("mmattn", "pip", "setuptools", "wheel")  # whose versions do not matter
MANIFEST, CONSTRAINTS = "manifest.sha256", "constraints.txt"


def folders(run: Run) -> list[tuple[int, str]]:
    """The data folders to send from here, with their numbers among the data."""
    return [(number, one) for number, one in enumerate(run.data) if not is_uri(one)]


def survey(run: Run) -> dict[str, str]:
    """The SHA-256 of agent, code that git does not ignore, and data, by path on the machine."""
    sources = {f"agent/{path.name}": path for path in sorted(AGENT.iterdir()) if path.is_file()}
    sources |= {f"code/{path}": Path(path) for path in _code_files()}
    for number, folder in folders(run):
        inside = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        sources |= {f"data/{number}/{path.relative_to(folder)}": path for path in inside}
    for name, path in sources.items():
        if not name.isprintable():
            raise UserError(f"{str(path)!r}: expected a UTF-8 name without line breaks")
    with progress("hashing", len(sources), "files") as advance, ThreadPoolExecutor() as pool:
        found = {}
        for name, digest in zip(sources, pool.map(sha256, sources.values()), strict=True):
            if digest is None:
                raise UserError(f"{sources[name]}: cannot be read")
            found[name] = digest
            advance(1)
    return found


def send(run: Run, machines: list[Machine], manifest: dict[str, str]) -> None:
    """Send the files of the manifest, and results that were fetched from an earlier machine."""
    text = "".join(f"{digest}  {path}\n" for path, digest in manifest.items())
    digest = hashlib.sha256(text.encode()).hexdigest()
    if run.is_past("sent") and run.uploaded == digest:
        return
    if run.began_with not in (None, digest):
        say("code or data differ from those that the run began with: the results mix both")
    write_text(run.folder / MANIFEST, text)
    write_text(run.folder / CONSTRAINTS, constraints())
    code = [name[5:] for name in manifest if name.startswith("code/")]
    (run.folder / "code_files").write_bytes(b"\0".join(path.encode() for path in code))
    for machine in machines:
        _send(run, machine)
        check = f"cd {run.base} && sha256sum --check --quiet {MANIFEST} 2>&1"
        try:
            machine.run(check, timeout=3600)
        except CommandFailed as error:
            raise RemoteError(
                f"files on {machine.access.name} differ from those here: did they change during "
                f"the transfer?\n{error.output}"
            ) from error
    run.uploaded = digest
    run.to("sent")  # also from "built": the required packages may have changed


def _send(run: Run, machine: Machine) -> None:
    """Send to a machine all that it does not have yet."""
    names = ["code", "data", "job", *(["run"] if machine.rank == 0 else [])]
    machine.run(f"umask 077 && mkdir -p {' '.join(f'{run.base}/{name}' for name in names)}")
    send_agent(machine)
    listed = ("--from0", f"--files-from={run.folder / 'code_files'}")
    _copy(machine, *listed, "./", machine.remote("code/"), progress="code")
    for number, folder in folders(run):
        links = ("--copy-links", "--delete", f"{folder}/", machine.remote(f"data/{number}/"))
        _copy(machine, *links, progress=f"data {folder}")
    if machine.rank == 0 and not run.uri and (run.results / "config.json").exists():
        earlier = ("--ignore-existing", "--exclude=/job", f"{run.results}/", machine.remote("run/"))
        _copy(machine, *earlier, progress="earlier results")
        log = run.results / "job" / "job.log"  # continues there
        if log.exists():
            _copy(machine, "--ignore-existing", str(log), machine.remote("job/"))
    lists = (str(run.folder / CONSTRAINTS), str(run.folder / MANIFEST))
    _copy(machine, *lists, machine.remote())


def constraints() -> str:
    """The package versions installed here, for pip on the machine."""
    found = {one.metadata["Name"].lower(): one.version for one in distributions()}
    return "".join(
        f"{name}=={version}\n"
        for name, version in sorted(found.items())
        if name not in OWN and "+" not in version  # no index has a local version
    )


def send_agent(machine: Machine) -> None:
    """Send the programs that look after the job; they need only the system's Python."""
    _copy(machine, "--delete", "--exclude=__pycache__", f"{AGENT}/", machine.remote("agent/"))


@persistent
def _copy(machine: Machine, *arguments: str, progress: str = "") -> None:
    machine.run("true")  # lets this computer in if its address has changed
    machine.rsync(*arguments, progress=progress)


def _code_files() -> list[str]:
    """The project's files that git does not ignore, relative to the current folder."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"fab deploy sends files that git lists: {done.stderr.strip()}")
    return [path for path in done.stdout.split("\0") if path and Path(path).is_file()]
