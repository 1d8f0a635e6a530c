"""RAVDESS and CREMA-D from where their authors keep them, checked, resumed where they were cut.

RAVDESS (Livingstone & Russo 2018) is a record of Zenodo with an MD5 for each archive. CREMA-D (Cao
et al. 2014) is a git repository whose clips are kept by git-lfs, which checks their SHA-256.
"""

import lzma
import os
import re
import shutil
import stat
import subprocess
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from mmattn.console import progress, say, waiting
from mmattn.errors import UserError
from mmattn.files import explain_full_disk, read_json, write_json
from mmattn.media.models import FOLDER, fetch_face_models

# Other addresses, for mirrors (a laboratory's copy, or when GitHub's quota for CREMA-D is used up).
RAVDESS_ADDRESS = "MMATTN_ZENODO"
CREMA_D_ADDRESS = "MMATTN_CREMA_D"
DOI = "10.5281/zenodo.1188976"
CREMA_D = "https://github.com/CheyneyComputerScience/CREMA-D.git"
CREMA_D_MIRROR = "https://gitlab.com/cs-cooper-lab/crema-d-mirror.git"  # its authors'
ACTORS = tuple(f"Actor_{number:02}" for number in range(1, 25))
AUDIO = "Audio"
RAVDESS_LICENCE = (
    f"RAVDESS (doi:{DOI}) is licensed CC BY-NC-SA 4.0: not for commercial use. Cite Livingstone "
    "and Russo (2018), PLoS ONE 13(5): e0196391."
)
CREMA_D_LICENCE = (
    "CREMA-D is licensed under the Open Database License (ODbL) 1.0. Cite Cao et al. (2014), "
    "doi:10.1109/TAFFC.2014.2336244."
)
CREMA_D_BAD = {
    "1064_IEO_DIS_MD": "a minute long",
    "1064_TIE_SAD_XX": "without a duration",
    "1076_MTI_NEU_XX": "without audio",
    "1076_MTI_SAD_XX": "without audio",
}
WAITS = (1, 2, 4, 8, 16)  # seconds before another try, as long as nothing more comes
TIMEOUT = 30  # seconds without a byte
UNPACKED = {"Video": 1.1, AUDIO: 3.0}  # size of the clips over that of their archive, at most
BOMB = 20  # the same, from which on an archive is refused
_CHUNK = 1 << 14  # bytes; a cut loses the one that was not full
_WORK = ".download"  # archives, what is half unpacked, lists of what is complete
_CLIPS = "VideoFlash"
_OURS = ".git/mmattn"  # a mark in the repository
# What zipfile raises on archives that are damaged, encrypted or packed in an unknown way.
_UNREADABLE = (
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    lzma.LZMAError,
    zipfile.BadZipFile,
    zlib.error,
)


def download(
    corpus: Literal["ravdess", "crema-d", "face-models"], folder: Path | None, only: Sequence[str]
) -> None:
    """Fetch a corpus of clips, or the models that find faces, into a folder.

    Args:
        corpus: what to fetch.
        folder: where to; for the models the default is their cache.
        only: actors, as `download_ravdess` and `download_crema_d` name them; by default all.
    """
    if corpus == "face-models":
        if only:
            raise UserError("--only: expected without face-models, which are two files")
        fetch_face_models(folder or FOLDER)
        return
    if folder is None:
        raise UserError(f"--to: expected a folder for the clips of {corpus}")
    fetch = download_ravdess if corpus == "ravdess" else download_crema_d
    with explain_full_disk(f"{corpus} in {folder}"):
        fetch(folder.expanduser(), only)


def download_ravdess(folder: Path, only: Sequence[str] = ()) -> None:
    """Fetch RAVDESS's speech clips into folder/Actor_01 … Actor_24.

    Archives that were unpacked completely are not fetched again; one that was cut continues where
    it was. They are deleted as soon as they are unpacked.

    Args:
        folder: new, or of an earlier call.
        only: Actor_01 … Actor_24 for the clips with video, Audio for the audio alone of all
            actors; by default everything.

    Raises UserError if the server does not answer, sends something else or an archive that is not
    safe, or the disk is too small.
    """
    names = _archive_names(only)
    say(RAVDESS_LICENCE)
    work = folder / _WORK
    missing = [name for name in names if not _is_complete(name, folder)]
    if missing:
        _make_folder(work)
        archives = _find_archives(missing)
        left = {archive.name: archive.size - _fetched(archive.name, work) for archive in archives}
        unpacked = sum(archive.size * UNPACKED[archive.kind] for archive in archives)
        _check_space(folder, unpacked + max(left.values()), ", ".join(missing))
        with _megabytes("Downloading RAVDESS", sum(left.values())) as advance:
            for archive in archives:
                _unpack(_fetch(archive, work, advance), folder)
    say(f"RAVDESS: {', '.join(only) or 'all speech clips'} in {folder}.")


def download_crema_d(folder: Path, only: Sequence[str] = ()) -> None:
    """Fetch CREMA-D's clips into folder/CREMA-D/VideoFlash, a git repository without history.

    Args:
        folder: new, or of an earlier call: clips that are complete are not fetched again.
        only: actors, 1001 … 1091; by default all.

    Raises UserError if git or git-lfs is missing or fails, or the disk is too small.
    """
    _check_git()
    say(CREMA_D_LICENCE)
    clone = folder / "CREMA-D"
    _make_folder(folder)
    with _say_how_to_go_on():
        _clone(clone)
    clips = _list_clips(clone)
    if unknown := [actor for actor in only if actor not in clips]:
        raise UserError(f"--only: expected {min(clips)} … {max(clips)}, got {', '.join(unknown)}")
    wanted = {actor: clips[actor] for actor in only or clips}
    missing = {actor: _incomplete(sizes, clone) for actor, sizes in wanted.items()}
    left = {actor: sum(sizes.values()) for actor, sizes in missing.items()}
    # git-lfs holds the clips of an actor a second time, until the next one's turn.
    _check_space(folder, sum(left.values()) + max(left.values()), "the clips")
    with _megabytes("Downloading CREMA-D", sum(left.values())) as advance:
        for actor in filter(left.get, wanted):
            _pull(clone, missing[actor])
            advance(left[actor])
    say(f"CREMA-D: {sum(map(len, wanted.values()))} clips in {clone / _CLIPS}.")
    for stem, fault in CREMA_D_BAD.items():
        if stem[:4] in wanted:
            say(f"Known to be bad: {stem} is {fault}.")


def _archive_names(only: Sequence[str]) -> list[str]:
    known = {actor: f"Video_Speech_{actor}.zip" for actor in ACTORS}
    known[AUDIO] = "Audio_Speech_Actors_01-24.zip"
    if unknown := [word for word in only if word not in known]:
        raise UserError(
            f"--only: expected {ACTORS[0]} … {ACTORS[-1]} or {AUDIO}, got {', '.join(unknown)}"
        )
    return [name for word, name in known.items() if not only or word in only]


@dataclass(frozen=True)
class _Archive:
    name: str
    url: str
    checksum: str  # md5:…
    size: int  # bytes

    @property
    def kind(self) -> str:
        return self.name.partition("_")[0]


def _find_archives(names: Sequence[str]) -> list[_Archive]:
    """What Zenodo, or a mirror of its interface, tells about archives of RAVDESS."""
    pooch = _import_pooch()
    from pooch.downloaders import REQUESTS_HEADERS, ZenodoRepository

    base = (os.environ.get(RAVDESS_ADDRESS) or "https://zenodo.org").rstrip("/")
    number = DOI.rpartition(".")[2]
    address = f"{base}/api/records"
    repository = ZenodoRepository(
        DOI, f"{base}/records/{number}", headers=REQUESTS_HEADERS, timeout=TIMEOUT
    )
    repository.base_api_url = address
    answer = _persist(lambda: repository.api_response, base)
    try:
        old = repository.api_version == "legacy"
        name_key, size_key = ("key", "size") if old else ("filename", "filesize")
        sizes = {file[name_key]: file[size_key] for file in answer["files"]}
        book = pooch.create(FOLDER, base)
        repository.populate_registry(book)
        return [
            _Archive(name, repository.download_url(name), book.registry[name], sizes[name])
            for name in names
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{address}/{number}: expected Zenodo's record of RAVDESS with {', '.join(names)}; "
            f"{error!r} in {str(answer)[:200]}"
        ) from error


def _fetch(archive: _Archive, work: Path, advance: Callable[[int], None]) -> Path:
    pooch = _import_pooch()
    downloader = _Resuming(_partial(archive.name, work), archive.size, advance)
    try:
        path = pooch.retrieve(
            archive.url, archive.checksum, archive.name, work, downloader=downloader
        )
    except ValueError as error:
        raise UserError(
            f"{archive.url}: expected a file with {archive.checksum}, got another; it was deleted "
            f"({error})"
        ) from error
    return Path(path)


@dataclass(frozen=True)
class _Resuming:
    """Downloads for pooch, whose own downloader starts anew after each cut."""

    partial: Path
    size: int  # bytes
    advance: Callable[[int], None]

    def __call__(self, url: str, output_file: str, pooch: object) -> None:
        _persist(lambda: self._receive(url), url, lambda: _size(self.partial))
        os.replace(self.partial, output_file)

    def _receive(self, url: str) -> None:
        import requests
        from pooch.downloaders import REQUESTS_HEADERS

        start = _size(self.partial)
        if start == self.size:
            return
        headers = {"Accept-Encoding": "identity", "Range": f"bytes={start}-"}
        with requests.get(
            url, headers=REQUESTS_HEADERS | headers, stream=True, timeout=TIMEOUT
        ) as answer:
            if start and answer.status_code == requests.codes.requested_range_not_satisfiable:
                self.partial.unlink()  # of another file; the next try starts anew
            answer.raise_for_status()
            goes_on = answer.status_code == requests.codes.partial_content
            with open(self.partial, "ab" if goes_on else "wb") as file:
                for chunk in answer.iter_content(_CHUNK):
                    file.write(chunk)
                    self.advance(len(chunk))
                    if file.tell() > self.size:
                        return  # the checksum will be wrong
        if _size(self.partial) < self.size:
            raise requests.ConnectionError(f"cut after {_size(self.partial)} of {self.size} bytes")


def _persist(attempt: Callable, address: str, reached: Callable[[], int] = lambda: 0):
    """The result of `attempt`, tried again after cuts and while a server is busy.

    Args:
        attempt: what may raise requests' errors.
        address: of the server, for messages.
        reached: bytes so far; the count of failures starts anew when they get more.
    """
    import requests

    failures = 0
    while True:
        before = reached()
        try:
            return attempt()
        except requests.RequestException as error:
            failures = 1 if reached() > before else failures + 1
            if failures > len(WAITS) or _is_final(error):
                raise UserError(
                    f"{address}: expected an answer, got {str(error)[:300]}; what came is kept, "
                    f"the same command continues ({RAVDESS_ADDRESS} sets a mirror's address)"
                ) from error
            again = WAITS[failures - 1]
            say(f"{address}: {type(error).__name__}, trying again in {again} s")
        time.sleep(again)


def _is_final(error: Exception) -> bool:
    import requests

    if not isinstance(error, requests.HTTPError):
        return False
    busy = (requests.codes.request_timeout, requests.codes.too_many_requests)
    wrong_range = requests.codes.requested_range_not_satisfiable
    code = error.response.status_code
    return 400 <= code < 500 and code not in (*busy, wrong_range)


def _unpack(archive: Path, folder: Path) -> None:
    """Put an archive's files into the folder, each at once; then delete the archive."""
    place = archive.with_suffix("")
    shutil.rmtree(place, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as file:
            members = _safe_members(file, archive)
            _check_space(folder, sum(member.file_size for member in members), archive.name)
            for member in members:
                file.extract(member, place)
        for member in members:
            target = folder / member.filename
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(place / member.filename, target)
    except _UNREADABLE as error:
        raise UserError(f"{archive}: expected a zip archive: {error}") from error
    finally:
        shutil.rmtree(place, ignore_errors=True)
    write_json(_contents(archive.name, folder), {m.filename: m.file_size for m in members})
    archive.unlink()


def _safe_members(file: zipfile.ZipFile, archive: Path) -> list[zipfile.ZipInfo]:
    """The files of an archive without hidden ones; UserError if any is not to be unpacked."""
    size = sum(member.file_size for member in file.infolist())
    if size > BOMB * archive.stat().st_size:
        raise UserError(
            f"{archive}: expected at most {BOMB} times its size when unpacked, got {size:,} bytes"
        )
    for member in file.infolist():
        path = PurePosixPath(member.filename)
        if path.is_absolute() or ".." in path.parts or set("\\:") & set(member.filename):
            raise UserError(f"{archive}: {member.filename!r} leads out of the folder")
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise UserError(f"{archive}: {member.filename!r} is neither a file nor a folder")
    if len({member.filename for member in file.infolist()}) < len(file.infolist()):
        raise UserError(f"{archive}: expected each name once")
    return [
        member
        for member in file.infolist()
        if not member.is_dir()
        # What macOS adds: __MACOSX/Actor_01/._01-01-01-01-01-01-01.mp4 is no clip.
        and not any(part.startswith((".", "__")) for part in PurePosixPath(member.filename).parts)
    ]


def _is_complete(name: str, folder: Path) -> bool:
    contents = _contents(name, folder)
    return contents.exists() and not _incomplete(read_json(contents), folder)


def _incomplete(sizes: dict[str, int], folder: Path) -> dict[str, int]:
    return {name: size for name, size in sizes.items() if _size(folder / name) != size}


def _contents(name: str, folder: Path) -> Path:
    """Names and sizes of the files of an archive that was unpacked."""
    return folder / _WORK / f"{name}.json"


def _partial(name: str, work: Path) -> Path:
    return work / f"{name}.partial"


def _fetched(name: str, work: Path) -> int:
    return max(_size(work / name), _size(_partial(name, work)))


def _check_git() -> None:
    for tool, command in (("git", ["git", "version"]), ("git-lfs", ["git", "lfs", "version"])):
        if shutil.which("git") is None or subprocess.run(command, capture_output=True).returncode:
            raise UserError(
                f"crema-d: expected {tool} on this machine (Debian, Ubuntu: apt-get install git "
                "git-lfs)"
            )


def _clone(clone: Path) -> None:
    """A repository without history in which all clips are pointers to what git-lfs keeps."""
    address = os.environ.get(CREMA_D_ADDRESS) or CREMA_D
    if not clone.exists():
        partial = clone.with_name(".CREMA-D.partial")
        shutil.rmtree(partial, ignore_errors=True)
        # The tables of ratings are large and not needed: git fetches those when they are asked for.
        options = ("--depth=1", "--filter=blob:limit=16k", "--no-checkout", "--quiet")
        with waiting(f"Fetching the list of clips from {address}"):
            _git("clone", *options, "--", address, str(partial))
            _git("lfs", "install", "--local", "--skip-repo", folder=partial)
            wanted = (f"/{_CLIPS}/", "/README.md", "/.gitattributes")
            _git("sparse-checkout", "set", "--no-cone", *wanted, folder=partial)
            _git("checkout", "--quiet", folder=partial)
        (partial / _OURS).touch()
        partial.rename(clone)
    if not (clone / _OURS).exists():  # what follows would change a repository of the user's
        raise UserError(f"{clone}: expected a folder that `mmattn download crema-d` has made")
    _git("remote", "set-url", "origin", address, folder=clone)


def _list_clips(clone: Path) -> dict[str, dict[str, int]]:
    """Bytes of each clip by actor and by path in the repository, from the pointers to them."""
    lines = _git("ls-tree", "-r", "HEAD", f"{_CLIPS}/", folder=clone).splitlines()
    names = [line.partition("\t")[2] for line in lines]
    blobs = "".join(f"{line.split()[2]}\n" for line in lines)
    pointers = _git("cat-file", "--batch", folder=clone, words=blobs)
    sizes = re.findall(r"^size (\d+)$", pointers, re.MULTILINE)
    if not names or len(sizes) != len(names):
        raise UserError(
            f"{clone}: expected clips in {_CLIPS}, kept by git-lfs; got {len(names)} files and "
            f"{len(sizes)} pointers"
        )
    clips = {}
    for name, size in zip(names, sizes, strict=True):
        clips.setdefault(Path(name).name[:4], {})[name] = int(size)
    return clips


def _pull(clone: Path, sizes: dict[str, int]) -> None:
    # git-lfs passes over files that are missing or cut short: let them be pointers again.
    _git("checkout", "--quiet", "--", *sizes, folder=clone)
    with _say_how_to_go_on():
        _git("lfs", "pull", "--include", ",".join(sizes), folder=clone)
    shutil.rmtree(clone / ".git" / "lfs" / "objects", ignore_errors=True)  # the clips once more
    if bad := _incomplete(sizes, clone):
        raise UserError(f"{clone / next(iter(bad))}: expected {next(iter(bad.values()))} bytes")


@contextmanager
def _say_how_to_go_on() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(
            f"{error}; what came is kept, the same command continues ({CREMA_D_ADDRESS} sets "
            f"another address; {CREMA_D_MIRROR} is its authors' mirror)"
        ) from error


def _git(*arguments: str, folder: Path | None = None, words: str = "") -> str:
    """What git prints; UserError with its last lines if it fails."""
    environment = {"GIT_LFS_SKIP_SMUDGE": "1", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    done = subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env=os.environ | environment,
        input=words,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise UserError(f"git {arguments[0]}: {' / '.join(lines[-4:])}")
    return done.stdout


def _import_pooch():
    try:
        import pooch
    except ImportError as error:
        raise UserError("downloads need pooch: pip install 'mmattn[media]'") from error
    pooch.get_logger().setLevel("ERROR")
    return pooch


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--to: cannot make the folder {folder}: {error.strerror}") from error


def _check_space(folder: Path, needed: float, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: expected {needed / 1e6:,.0f} MB free on its disk for {what}, "
            f"got {free / 1e6:,.0f} MB"
        )


@contextmanager
def _megabytes(title: str, size: int) -> Iterator[Callable[[int], None]]:
    """A bar of megabytes that advances by bytes."""
    done = 0
    with progress(title, -(-size // 10**6), "MB") as advance:

        def advance_bytes(count: int) -> None:
            nonlocal done
            before, done = done, done + count
            advance(done // 10**6 - before // 10**6)

        yield advance_bytes


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
