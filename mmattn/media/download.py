"""RAVDESS's clips from Zenodo: checked, resumed after a lost connection, unpacked safely.

RAVDESS (Livingstone & Russo 2018) is a Zenodo record with an MD5 for each archive.
"""

import os
import shutil
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pooch
import requests
from pooch.downloaders import REQUESTS_HEADERS

from mmattn.console import progress, say
from mmattn.errors import UserError
from mmattn.files import explain_full_disk, read_json, write_json
from mmattn.media.models import FOLDER, WHEELS, fetch_models

ADDRESS = "MMATTN_ZENODO"  # another server, such as a lab's mirror
DOI = "10.5281/zenodo.1188976"
ARCHIVES = {
    **{f"Actor_{actor:02}": f"Video_Speech_Actor_{actor:02}.zip" for actor in range(1, 25)},
    "Audio": "Audio_Speech_Actors_01-24.zip",
}
LICENCE = (
    f"RAVDESS (doi:{DOI}) is licensed CC BY-NC-SA 4.0: not for commercial use. Cite Livingstone "
    "and Russo (2018), PLoS ONE 13(5): e0196391."
)
RETRIES = 4  # after lost connections and wrong content, 1, 2, 3 and 4 s later
TIMEOUT = 30  # seconds without a byte
UNPACKED = {"Video": 1.1, "Audio": 3.0}  # maximum size of the clips over that of their archive
BOMB = 20  # the same ratio, above which an archive is rejected
_CHUNK = 1 << 14  # bytes; a lost connection loses the unfinished one
_WORK = ".download"  # archives until they are unpacked, then lists of their clips


def download(
    what: Literal["models", "face-models", "audio-models", "ravdess"],
    folder: Path | None,
    only: Sequence[str] = (),
) -> None:
    """Download models for feature extraction, or RAVDESS's clips, into a folder.

    Args:
        what: what to download.
        folder: where to; the default for models is their cache.
        only: as for `download_ravdess`.
    """
    if what in WHEELS:
        if only:
            raise UserError(f"--only: not for {what}, which are few files")
        fetch_models(what, folder or FOLDER)
        return
    if folder is None:
        raise UserError(f"--to: expected a folder for the clips of {what}")
    with explain_full_disk(f"{what} in {folder}"):
        download_ravdess(folder.expanduser(), only)


def download_ravdess(folder: Path, only: Sequence[str] = ()) -> None:
    """Download RAVDESS's speech clips into folder/Actor_01 … Actor_24.

    Archives whose clips are all present are not downloaded again; a partial one is resumed.
    Archives are deleted as soon as they are unpacked.

    Args:
        folder: new, or of an earlier call.
        only: Actor_01 … Actor_24 for the clips with video, Audio for the audio-only clips of all
            actors; by default everything.

    Raises UserError if the server does not answer or sends something else, an archive is damaged or
    too large unpacked, the folder cannot be written, or the disk is too small.
    """
    if unknown := [word for word in only if word not in ARCHIVES]:
        raise UserError(f"--only: expected Actor_01 … Actor_24 or Audio, got {', '.join(unknown)}")
    say(LICENCE)
    names = [ARCHIVES[word] for word in only or ARCHIVES]
    work = folder / _WORK
    if missing := [name for name in names if not _is_complete(name, folder)]:
        try:
            work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--to: cannot make the folder {work}: {error.strerror}") from error
        archives = _find_archives(missing)
        left = [archive.missing(work) for archive in archives]
        clips = sum(archive.size * UNPACKED[archive.name.partition("_")[0]] for archive in archives)
        _check_space(folder, clips + max(left), ", ".join(missing))
        with progress("Downloading RAVDESS", -(-sum(left) // 10**6), "MB") as advance:
            for archive in archives:
                _unpack(archive.fetch(work, advance), folder)
    say(f"RAVDESS: {', '.join(only) or 'all speech clips'} in {folder}.")


@dataclass(frozen=True)
class _Archive:
    name: str
    url: str
    checksum: str  # md5:…
    size: int  # bytes

    def missing(self, work: Path) -> int:
        """Bytes not yet in the folder."""
        return max(self.size - _size(work / self.name) - _size(_partial(work, self.name)), 0)

    def fetch(self, work: Path, advance: Callable[[float], None]) -> Path:
        """The archive in the folder `work`, its MD5 checked; advances by megabytes.

        pooch's own downloader starts over after a lost connection.
        """
        partial = _partial(work, self.name)

        def resume(url: str, output_file: str, _: pooch.Pooch) -> None:
            start = _size(partial)
            if start < self.size:
                headers = {"Accept-Encoding": "identity", "Range": f"bytes={start}-"}
                with requests.get(
                    url, headers=REQUESTS_HEADERS | headers, stream=True, timeout=TIMEOUT
                ) as answer:
                    answer.raise_for_status()
                    resumed = answer.status_code == requests.codes.partial_content
                    with open(partial, "ab" if resumed else "wb") as file:
                        for chunk in answer.iter_content(_CHUNK):
                            file.write(chunk)
                            advance(len(chunk) / 1e6)
            os.replace(partial, output_file)

        pooch.get_logger().setLevel("ERROR")
        book = pooch.create(
            work,
            base_url="",
            registry={self.name: self.checksum},
            urls={self.name: self.url},
            retry_if_failed=RETRIES,
        )
        try:
            return Path(book.fetch(self.name, downloader=resume))
        except requests.RequestException as error:
            raise _no_answer(self.url, error) from error
        except ValueError as error:
            raise UserError(
                f"{self.url}: expected a file with {self.checksum}, got another; it was deleted "
                f"({error})"
            ) from error


def _find_archives(names: Sequence[str]) -> list[_Archive]:
    """The archives of RAVDESS, as listed by Zenodo or a mirror."""
    base = (os.environ.get(ADDRESS) or "https://zenodo.org").rstrip("/")
    address = f"{base}/api/records/{DOI.rpartition('.')[2]}"
    try:
        answer = requests.get(address, headers=REQUESTS_HEADERS, timeout=TIMEOUT)
        answer.raise_for_status()
        files = {file["key"]: file for file in answer.json()["files"]}
        return [
            _Archive(name, file["links"]["self"], file["checksum"], file["size"])
            for name in names
            for file in [files[name]]
        ]
    except (KeyError, TypeError, requests.JSONDecodeError) as error:
        raise UserError(
            f"{address}: expected Zenodo's record of RAVDESS with {', '.join(names)}; {error!r} in "
            f"{answer.text[:200]}"
        ) from error
    except requests.RequestException as error:
        raise _no_answer(address, error) from error


def _no_answer(address: str, error: requests.RequestException) -> UserError:
    return UserError(
        f"{address}: expected an answer, got {str(error)[:300]}; partial downloads are kept; "
        f"the same command resumes ({ADDRESS} sets a mirror's address)"
    )


def _unpack(archive: Path, folder: Path) -> None:
    """Put an archive's files into the folder, then delete the archive.

    zipfile writes no links, nothing outside the folder, and no more of a file than the archive
    lists, so only the total size needs a check. pooch.Unzip does not check it, and accepts a
    half-written clip as complete.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            members = [member for member in file.infolist() if not member.is_dir()]
            size = sum(member.file_size for member in members)
            if size > BOMB * archive.stat().st_size:
                raise UserError(
                    f"{archive}: expected at most {BOMB} times its size when unpacked, got "
                    f"{size:,} bytes"
                )
            _check_space(folder, size, archive.name)
            clips = {os.path.relpath(file.extract(m, folder), folder): m.file_size for m in members}
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise UserError(f"{archive}: expected a zip archive: {error}") from error
    except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        raise UserError(f"{archive}: cannot be unpacked: {error}") from error
    write_json(_contents(archive.name, folder), clips)
    archive.unlink()


def _partial(work: Path, name: str) -> Path:
    return work / f"{name}.partial"


def _contents(name: str, folder: Path) -> Path:
    """The list of names and sizes of an unpacked archive's files."""
    return folder / _WORK / f"{name}.json"


def _is_complete(name: str, folder: Path) -> bool:
    contents = _contents(name, folder)
    return contents.exists() and all(
        _size(folder / clip) == size for clip, size in read_json(contents).items()
    )


def _check_space(folder: Path, needed: float, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: expected {needed / 1e6:,.0f} MB free on its disk for {what}, "
            f"got {free / 1e6:,.0f} MB"
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
