"""Code, data and earlier results to the machines, verified there against a manifest."""

import hashlib
import subprocess
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distributions
from pathlib import Path

from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_exponential

from mmattn.console import progress, say
from mmattn.errors import UserError
from mmattn.files import write_text
from mmattn.remote import agent
from mmattn.remote.agent.outbox import sha256
from mmattn.remote.plan import folder_size
from mmattn.remote.runs import Run, is_uri
from mmattn.remote.ssh import CommandFailed, Machine, RemoteError, Unreachable

AGENT = Path(agent.__file__).parent
OWN = ("mmattn", "pip", "setuptools", "wheel")  # versions of which do not matter
MANIFEST, CONSTRAINTS = "manifest.sha256", "constraints.txt"

persistent = retry(
    retry=retry_if_exception_type(Unreachable),
    stop=stop_after_attempt(20),
    wait=wait_exponential(max=30),
    before_sleep=lambda state: say(f"{state.outcome.exception()}; continuing"),
    reraise=True,
)
"""For a transfer that is cut: what came is kept, and the next attempt continues from it."""


def folders(run: Run) -> list[tuple[int, str]]:
    """The data that are sent from here, with their numbers among the data."""
    return [(number, one) for number, one in enumerate(run.data) if not is_uri(one)]


def survey(run: Run) -> dict[str, str]:
    """The sha256 of all that is to be sent, by its path on the machine; UserError if unreadable.

    Agent, code that git does not ignore, and data.
    """
    sources = {f"agent/{path.name}": path for path in sorted(AGENT.iterdir()) if path.is_file()}
    sources |= {f"code/{path}": Path(path) for path in _code_files()}
    for number, folder in folders(run):
        inside = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        sources |= {f"data/{number}/{path.relative_to(folder)}": path for path in inside}
    with progress("hashing", len(sources), "files") as advance, ThreadPoolExecutor() as pool:
        found = {}
        for name, digest in zip(sources, pool.map(sha256, sources.values()), strict=True):
            if digest is None:
                raise UserError(f"{sources[name]}: cannot be read")
            found[name] = digest
            advance(1)
    return found


def send(run: Run, machines: list[Machine], manifest: dict[str, str]) -> None:
    """What was surveyed, and what was fetched of an earlier machine."""
    text = "".join(f"{digest}  {path}\n" for path, digest in manifest.items())
    digest = hashlib.sha256(text.encode()).hexdigest()
    if run.is_past("sent") and run.uploaded == digest:
        return
    if run.began_with not in (None, digest):
        say("code or data are not those that the run began with: the results mix both")
    write_text(run.folder / MANIFEST, text)
    for machine in machines:
        _send(run, machine, [name[5:] for name in manifest if name.startswith("code/")])
        check = f"cd {run.base} && sha256sum --check --quiet {MANIFEST} 2>&1"
        try:
            machine.run(check, timeout=3600)
        except CommandFailed as error:
            raise RemoteError(
                f"files differ on {machine.access.name} from those here: did they change while "
                f"they were sent?\n{error.output}"
            ) from error
    run.uploaded = digest
    run.to(run.state if run.is_past("sent") else "sent")


def _send(run: Run, machine: Machine, code: list[str]) -> None:
    """Send everything that the machine does not have yet, the manifest last."""
    names = ["code", "data", "job", *(["run"] if machine.rank == 0 else [])]
    machine.run(f"umask 077 && mkdir -p {' '.join(f'{run.base}/{name}' for name in names)}")
    send_agent(machine)

    @persistent
    def copy(*arguments: str, title: str, total: int = 0) -> None:
        machine.run("true")  # lets this computer in, should its address have changed
        machine.rsync(*arguments, progress=title, total=total)

    (run.folder / "code_files").write_bytes(b"\0".join(path.encode() for path in code))
    listed = ("--from0", f"--files-from={run.folder / 'code_files'}")
    size = sum(Path(path).stat().st_size for path in code)
    copy(*listed, "./", machine.remote("code/"), title="code", total=size)
    for number, folder in folders(run):
        links = ("--copy-links", "--delete", f"{folder}/", machine.remote(f"data/{number}/"))
        copy(*links, title=f"data {folder}", total=folder_size(Path(folder)))
    if machine.rank == 0 and not run.uri and (run.results / "config.json").exists():
        earlier = ("--ignore-existing", "--exclude=/job", f"{run.results}/", machine.remote("run/"))
        copy(*earlier, title="earlier results", total=folder_size(run.results))
        log = run.results / "job" / "job.log"  # keeps growing there
        if log.exists():
            copy("--ignore-existing", str(log), machine.remote("job/"), title="earlier log")
    write_text(run.folder / CONSTRAINTS, constraints())
    for name in (CONSTRAINTS, MANIFEST):
        copy(str(run.folder / name), machine.remote(), title=name)


def constraints() -> str:
    """The versions that are installed here, for pip: the machine gets the same."""
    found = {one.metadata["Name"].lower(): one.version for one in distributions()}
    return "".join(
        f"{name}=={version}\n"
        for name, version in sorted(found.items())
        if name not in OWN and "+" not in version  # a local version is in no index
    )


@persistent
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
