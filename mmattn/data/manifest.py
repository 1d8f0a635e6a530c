"""The table of a corpus, a row a clip: files, speaker, emotion, votes, segment, split, groups."""

import csv
import io
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np

from mmattn.console import say, say_table
from mmattn.data.labels import RESERVED
from mmattn.errors import UserError
from mmattn.files import write_text

VOTES = "emotion."  # prefix of columns
FIRST = ("file", "clip", "corpus", "speaker", "emotion", "start", "end", "split")
SHOWN = 20  # faults
_SPLITS = {name: name for name in ("", "train", "validation", "test")}
_SPLITS |= dict.fromkeys(("dev", "val", "valid"), "validation")
_NOT_PORTABLE = re.compile(r"^/|\\|(^|/)\.{0,2}(/|$)")
_Cells = dict[str, list[str]]  # by column
_Folders = dict[str, dict[str, os.DirEntry]]  # below the table's: what is there by name in NFC


@dataclass(frozen=True)
class Manifest:
    """N clips in the table's order; text is in NFC, and empty where nothing is known."""

    path: Path | None  # None if made from the names of files
    clips: list[str]  # unique
    files: dict[str, list[str]]  # absolute, by modality; under "" those that may hold every one
    speakers: list[str]  # corpus-speaker
    emotions: list[str]
    votes: dict[str, np.ndarray]  # [N] float64 by emotion
    start: np.ndarray  # [N] float64, seconds; NaN where the clip begins with its file
    end: np.ndarray  # the same
    splits: list[str]  # train, validation or test
    corpora: list[str]
    columns: _Cells  # the whole table as it is written
    lines: list[int]  # of the rows in the table; the header is line 1

    def __len__(self) -> int:
        return len(self.clips)


class Fault(NamedTuple):
    """A cell of a table that cannot be used."""

    row: int  # from 0
    column: str
    expected: str
    found: str = ""  # if it is not what the cell says


def read_manifest(
    path: Path, rename: Mapping[str, str] = {}, target: str | None = "emotion"
) -> Manifest:
    """Read a table and check all of it, and that its files are there; none of them is opened.

    Args:
        path: CSV in UTF-8 with commas, .tsv with tabs.
        rename: columns that have another name there, as {"speaker": "speaker_id"}.
        target: column of the emotion; None where emotions may be missing.

    Raises:
        UserError: it is no such table, or has faults; the first are shown with line and column.
    """
    path = path.expanduser().absolute()
    columns, lines, faults = _read_cells(path, rename)
    empty = [""] * len(lines)
    ragged = {fault.row for fault in faults}
    names = [name.removeprefix(VOTES) for name in columns if name.startswith(VOTES)]
    if target not in (None, *columns) and not (target == "emotion" and names):
        raise UserError(f"{path}: no column {target!r}; there are: {', '.join(columns)}")
    paths = {name: cells for name, cells in columns.items() if name.split(".")[0] == "file"}
    files = _find_files(path.parent, paths, faults)
    start, end = (_numbers(name, columns.get(name, empty), faults) for name in ("start", "end"))
    begin = np.nan_to_num(start)
    turned = np.flatnonzero(end <= begin)
    faults += [Fault(row, "end", f"above start, {begin[row]:g}") for row in turned]
    votes = {name: _numbers(VOTES + name, columns[VOTES + name], faults) for name in names}
    votes = {name: np.nan_to_num(column) for name, column in votes.items()}
    emotions = columns.get(target, empty)
    if target is not None:
        faults += _check_emotions(target, emotions, votes)
    splits = [_SPLITS.get(cell.lower()) for cell in columns.get("split", empty)]
    unknown = (row for row, split in enumerate(splits) if split is None)
    faults += [Fault(row, "split", "train, validation or test") for row in unknown]
    clips = _name_clips(columns, list(paths.values()))
    bounds = (begin.tolist(), np.nan_to_num(end, nan=np.inf).tolist())
    parts = zip(*paths.values(), *bounds, strict=True)
    faults += _find_doubles(next(iter(paths)), parts, clips, lines)
    faults = [fault for fault in faults if fault.row not in ragged or not fault.column]
    if faults:
        refuse(path, columns, lines, faults)
    folder = path.parent.name
    corpora = [cell or folder for cell in columns.get("corpus", empty)]
    said = zip(corpora, columns.get("speaker", empty), strict=True)
    speakers = [speaker and f"{corpus}-{speaker}" for corpus, speaker in said]
    known = (path, clips, files, speakers, emotions, votes, start, end, splits, corpora)
    return Manifest(*known, columns, lines)


def refuse(path: Path, columns: _Cells, lines: Sequence[int], faults: Iterable[Fault]) -> NoReturn:
    """Show the first faults of a table with line and column; the UserError says how many."""
    faults = sorted(set(faults))
    title = f"{path}: {len(faults)} fault{'s' * (len(faults) > 1)} in {len(lines)} rows"
    rows = [
        (lines[row], column, found or columns[column][row] or "nothing", expected)
        for row, column, expected, found in faults[:SHOWN]
    ]
    first = f", the first {SHOWN}" if len(faults) > SHOWN else ""
    say_table(title + first, ("line", "column", "found", "expected"), rows, left=True)
    raise UserError(title)


def write_manifest(path: Path, rows: Iterable[Mapping[str, str]], overwrite: bool = False) -> None:
    """Write a table with a column for each name in the rows; UserError if it is there already."""
    if path.exists() and not overwrite:
        raise UserError(f"{path} is there already; --overwrite replaces it")
    rows = list(rows)
    text = io.StringIO()
    names = sorted(dict.fromkeys(name for row in rows for name in row), key=_place)
    writer = csv.DictWriter(text, names, "", delimiter=_separator(path), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def rows_of(manifest: Manifest) -> list[dict[str, str]]:
    """The cells of each row by column."""
    names = [*manifest.columns]
    return [
        dict(zip(names, cells, strict=True))
        for cells in zip(*manifest.columns.values(), strict=True)
    ]


def _place(column: str) -> int:
    """Known columns come first, votes last."""
    name = "file" if column.startswith("file.") else column
    return FIRST.index(name) if name in FIRST else len(FIRST) + name.startswith(VOTES)


def _separator(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


def _read_cells(path: Path, rename: Mapping[str, str]) -> tuple[_Cells, list[int], list[Fault]]:
    """Columns, the line of each row, and a fault for each row that is too short or too long."""
    try:
        text = unicodedata.normalize("NFC", path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: expected UTF-8, found the byte {error.object[error.start]:#x}; "
            'in Excel save as "CSV UTF-8", or use: iconv -f LATIN1 -t UTF-8'
        ) from error
    stream = io.StringIO(text, newline="")
    reader = csv.reader(stream, delimiter=_separator(path), skipinitialspace=True)
    rows = filter(None, reader)
    cells, lines, faults = [], [], []
    try:
        header = _read_header(path, next(rows, []), rename)
        width = len(header)
        for row in rows:
            if len(row) != width:
                expected = f"{width}, as in the header"
                faults.append(Fault(len(lines), "", expected, f"{len(row)} cells"))
                row = [""] * width
            cells += row  # flat: a million lists would keep the garbage collector busy
            lines.append(reader.line_num)
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: expected CSV: {error}") from error
    if not lines:
        raise UserError(f"{path}: expected a row a clip, found none")
    return {name: cells[at::width] for at, name in enumerate(header)}, lines, faults


def _read_header(path: Path, header: list[str], rename: Mapping[str, str]) -> list[str]:
    """The names that the columns have here."""
    there = f"the first line is: {_separator(path).join(header)[:200]}"
    for missing in set(rename.values()) - set(header):
        raise UserError(f"{path}: no column {missing!r}; {there}")
    known = {"file_name": "file"} | {theirs: ours for ours, theirs in rename.items()}
    names = [known.get(name, name) for name in header]
    if ("file" in names) == any(name.startswith("file.") for name in names):
        between = "tabs" if _separator(path) == "\t" else "commas"
        raise UserError(
            f"{path}: expected column names with {between} between them, either file or "
            f"file.audio, file.video and the like; {there}"
        )
    if len(set(names)) < len(names):
        raise UserError(f"{path}: expected each column once; {there}")
    return names


def _numbers(column: str, cells: list[str], faults: list[Fault]) -> np.ndarray:
    """[N] float64, NaN where a cell is empty or not a finite number of at least 0."""
    values = np.full(len(cells), np.nan)
    for row, cell in enumerate(cells):
        if cell:
            try:
                values[row] = float(cell)
            except ValueError:
                values[row] = -1
    bad = (values < 0) | np.isinf(values)
    faults += [Fault(row, column, "a number, 0 or more") for row in np.flatnonzero(bad)]
    return np.where(bad, np.nan, values)


def _check_emotions(
    target: str, emotions: list[str], votes: Mapping[str, np.ndarray]
) -> Iterator[Fault]:
    expected = f"an emotion, but not {', '.join(RESERVED)}"
    for row, name in enumerate(emotions):
        if name in RESERVED or not (name or votes):
            yield Fault(row, target, expected)
    for row in np.flatnonzero(np.sum(list(votes.values()), axis=0) == 0 if votes else []):
        yield Fault(row, VOTES + next(iter(votes)), "a vote for any emotion", "sum 0")
    yield from (Fault(0, VOTES + name, expected, name) for name in RESERVED if name in votes)


def _find_files(folder: Path, paths: _Cells, faults: list[Fault]) -> dict[str, list[str]]:
    """Absolute paths by modality; every folder that is named is listed once."""
    known: _Folders = {"": _list(str(folder))}
    files = {name[5:]: [_find(cell, known) for cell in cells] for name, cells in paths.items()}
    for name, cells in paths.items():
        missing = [row for row, path in enumerate(files[name[5:]]) if path is None]
        for number, row in enumerate(missing):
            expected = f"a file below {folder.name}/"
            if _NOT_PORTABLE.search(cells[row]):
                expected += ", with / and without . and .."
            elif number < SHOWN and (near := _near(cells[row], known)):
                expected += f" ({near} is {'no file' if near == cells[row] else 'there'})"
            faults.append(Fault(row, name, expected))
    for row, cells in enumerate(zip(*paths.values(), strict=True)):
        if not any(cells):
            faults.append(Fault(row, next(iter(paths)), f"a file below {folder.name}/"))
    here = sum(name.endswith(".npz") for entries in known.values() for name in entries)
    named = {path for found in files.values() for path in found if path and path.endswith(".npz")}
    if here > len(named):
        say(f"{here - len(named)} .npz files below {folder} are in no row and are not read")
    return files


def _find(path: str, known: _Folders) -> str | None:
    """The absolute path of a file; "" for "", None if it is not there or not portable."""
    folder, _, name = path.rpartition("/")
    entry = None if _NOT_PORTABLE.search(path) else _entries(folder, known).get(name)
    return entry.path if entry and entry.is_file() else None if path else ""


def _near(path: str, known: _Folders) -> str:
    """The path that differs from this one in upper and lower case alone, or ""."""
    found: list[str] = []
    for part in path.casefold().split("/"):
        entries = _entries("/".join(found), known)
        found += [name for name in entries if name.casefold() == part][:1]
    return "/".join(found) if len(found) == path.count("/") + 1 else ""


def _entries(folder: str, known: _Folders) -> dict[str, os.DirEntry]:
    """What is in a folder; nothing if there is no such folder."""
    if folder not in known:
        parent, _, name = folder.rpartition("/")
        entry = _entries(parent, known).get(name)
        known[folder] = _list(entry.path) if entry and entry.is_dir() else {}
    return known[folder]


def _list(folder: str) -> dict[str, os.DirEntry]:
    with os.scandir(folder) as entries:
        return {unicodedata.normalize("NFC", entry.name): entry for entry in entries}


def _name_clips(columns: _Cells, paths: Sequence[list[str]]) -> list[str]:
    """`clip`, or the first file's path without suffix, then @start-end of a segment."""
    empty = [""] * len(paths[0])
    given = (columns.get(name, empty) for name in ("clip", "start", "end"))
    return [
        clip
        or os.path.splitext(next(filter(None, files), ""))[0]
        + (f"@{start}-{end}" if start or end else "")
        for clip, start, end, *files in zip(*given, *paths, strict=True)
    ]


def _find_doubles(
    column: str, parts: Iterable[tuple], clips: list[str], lines: list[int]
) -> Iterator[Fault]:
    """A fault for each row with the part of a file, or else the id, of an earlier one."""
    first: dict[object, int] = {}
    for row, (part, clip) in enumerate(zip(parts, clips, strict=True)):
        for name, key, found in ((column, part, ""), ("clip", clip, clip)):
            if (earlier := first.setdefault(key, row)) != row:
                yield Fault(row, name, f"once, it is in line {lines[earlier]}", found)
                break
