"""The table of a corpus, a row a clip: files, speaker, emotion, votes, segment, split, groups."""

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from pathlib import Path
from unicodedata import normalize

import numpy as np

from mmattn.console import SHOWN, counted, say, say_table
from mmattn.errors import UserError
from mmattn.files import write_text

TABLES = (".csv", ".tsv")  # suffixes: separated by commas, by tabs
VOTES = "emotion."  # prefix of columns
FIRST = ("file", "clip", "corpus", "speaker", "emotion", "start", "end", "split")
_SPLITS = {name: name for name in ("", "train", "validation", "test")}
_SPLITS |= dict.fromkeys(("dev", "val", "valid"), "validation")
_nfc = partial(normalize, "NFC")

Columns = dict[str, list[str]]
_Fault = tuple[int, str, str, str]  # row, column, expected, found (or "" for the cell's text)


@dataclass
class Manifest:
    """N clips in the table's order; text is in NFC, and empty if unknown."""

    path: Path | None  # None if made from the names of files
    columns: Columns  # as written; always includes corpus
    lines: list[int]  # of the rows in the table; the header is line 1
    files: Columns  # absolute, by modality; under "" files that may hold every modality
    clips: list[str]  # unique
    target: str | None = "emotion"  # column of the emotion

    def __post_init__(self):
        cells = dict.fromkeys((*FIRST, self.target), [""] * len(self)) | self.columns
        pairs = zip(cells["corpus"], cells["speaker"], strict=True)
        self.speakers = [speaker and f"{corpus}-{speaker}" for corpus, speaker in pairs]
        self.emotions = cells[self.target]
        votes = [name for name in self.columns if name.startswith(VOTES)]
        # [N] float64 by emotion
        self.votes = {name[len(VOTES) :]: _numbers(cells[name], empty=0) for name in votes}
        # [N] float64, seconds; NaN if the clip begins or ends with its file
        self.start, self.end = (_numbers(cells[name], empty=np.nan) for name in ("start", "end"))
        self.splits = [_SPLITS.get(cell.lower(), cell) for cell in cells["split"]]

    def __len__(self) -> int:
        return len(self.clips)


def _numbers(cells: list[str], empty: float) -> np.ndarray:
    """[N] float64, -1 where a cell is not a finite number of at least 0."""

    def number(cell: str) -> float:
        try:
            value = float(cell)
            return value if 0 <= value < np.inf else -1.0
        except ValueError:
            return -1.0

    return np.fromiter((number(cell) if cell else empty for cell in cells), float)


def read_manifest(
    path: Path, rename: Mapping[str, str] = {}, target: str | None = "emotion"
) -> Manifest:
    """Read a table and check it, and that its files exist; no file is opened.

    Args:
        path: CSV in UTF-8 with commas, .tsv with tabs.
        rename: columns with another name there, e.g. {"speaker": "speaker_id"}.
        target: column of the emotion; None if emotions may be missing.

    Raises:
        UserError: it is not such a table, or has faults; the first are shown with line and column.
    """
    path = path.expanduser().absolute()
    columns, lines, ragged = _read_columns(path, rename)
    voted = target == "emotion" and any(name.startswith(VOTES) for name in columns)
    if target not in (None, *columns) and not voted:
        raise UserError(f"{path}: no column {target!r}; there are: {', '.join(columns)}")
    cells = dict.fromkeys(FIRST, [""] * len(lines)) | columns
    corpora = [corpus or path.parent.name for corpus in cells["corpus"]]
    paths = {name: cells for name, cells in columns.items() if name.split(".")[0] == "file"}
    files, missing = _find_files(path.parent, paths)
    clips = [*map(_name_clip, cells["clip"], cells["start"], cells["end"], *paths.values())]
    table = Manifest(path, columns | {"corpus": corpora}, lines, files, clips, target)
    faults = ragged + [
        (lines[row], column, found or columns[column][row] or "nothing", expected)
        for row, column, expected, found in chain(missing, _check(table, paths))
    ]
    if faults:
        count = len(lines) + len(ragged)
        title = f"{path}: {counted(len(faults), 'fault')} in {count} rows"
        head = ("line", "column", "found", "expected")
        say_table(title, head, sorted(faults), left=True, most=SHOWN)
        raise UserError(title)
    return table


def read_cells(path: Path) -> list[dict[str, str]]:
    """The rows of a table as they are, unchecked; UserError if it is no table."""
    return rows_of(_read_columns(path, {})[0])


def write_manifest(path: Path, rows: Iterable[Mapping[str, str]], overwrite: bool = False) -> None:
    """Write a table with a column for each name in the rows, known ones first and votes last.

    Raises UserError if it exists.
    """
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists; --overwrite replaces it")
    columns = columns_of(rows)
    names = sorted(columns, key=lambda name: (*FIRST, name).index(name) + name.startswith(VOTES))
    text = io.StringIO()
    writer = csv.writer(text, delimiter=_separator(path), lineterminator="\n")
    writer.writerows([names, *zip(*(columns[name] for name in names), strict=True)])
    write_text(path, text.getvalue())


def say_lacking(columns: Columns) -> list[str]:
    """Tell the user which columns that training needs are missing or empty; returns them."""
    options = {"emotion": "--data.target", "speaker": "--data.disjoint"}
    filled = [name for name, cells in columns.items() if any(cells)]
    there = {"emotion" if name.startswith(VOTES) else name for name in filled}
    lacking = [name for name in options if name not in there]
    for name in lacking:
        say(
            f"No clip has a value in the column {name}, which training needs; the columns with "
            f"values are {', '.join(filled)}. Name it in the table or the pattern, or see "
            f"--data.columns and {options[name]}"
        )
    return lacking


def rows_of(columns: Columns) -> list[dict[str, str]]:
    """The cells of each row by column."""
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, cells, strict=True)) for cells in rows]


def columns_of(rows: Iterable[Mapping[str, str]]) -> Columns:
    """The cells of each column, empty in rows that lack it."""
    rows = list(rows)
    return {name: [row.get(name, "") for row in rows] for name in dict.fromkeys(chain(*rows))}


def _separator(path: Path) -> str:
    return "\t" if path.suffix.lower() == TABLES[1] else ","


def _read_columns(path: Path, rename: Mapping[str, str]) -> tuple[Columns, list[int], list[tuple]]:
    """Columns, the line of each row, and faults (line, column, found, expected) of other rows."""
    try:
        text = _nfc(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: expected UTF-8, found the byte {error.object[error.start]:#x}; "
            'in Excel save as "CSV UTF-8", or use: iconv -f LATIN1 -t UTF-8'
        ) from error
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=_separator(path), skipinitialspace=True
    )
    rows = filter(None, reader)
    cells, lines, faults = list[str](), [], []
    try:
        header = _read_header(path, [*map(str.strip, next(rows, []))], rename)
        for row in rows:
            if len(row) == len(header):
                cells += map(
                    str.strip, row
                )  # flat, because a million lists slow down garbage collection
                lines.append(reader.line_num)
            else:
                expected = f"{len(header)}, as in the header"
                faults.append((reader.line_num, "", f"{len(row)} cells", expected))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: expected CSV: {error}") from error
    if not lines and not faults:
        raise UserError(f"{path}: expected a row for each clip, found none")
    return {name: cells[at :: len(header)] for at, name in enumerate(header)}, lines, faults


def _read_header(path: Path, header: list[str], rename: Mapping[str, str]) -> list[str]:
    """The columns by their names in this package."""
    between = {",": "commas", "\t": "tabs"}[_separator(path)]
    there = f"the first line is: {_separator(path).join(header)[:200]}"
    for missing in set(rename.values()) - set(header):
        raise UserError(f"{path}: no column {missing!r}; {there}")
    own = {name: f"replaced {name}" for name in rename}  # the user names another in its place
    known = {"file_name": "file"} | own | {theirs: ours for ours, theirs in rename.items()}
    names = [known.get(name, name) for name in header]
    files = [name for name in names if name.startswith("file.")]
    # Modalities become file names, and some file systems ignore case.
    once = {name.casefold() if name in files else name for name in names}
    if "file" not in once and not files:
        raise UserError(
            f"{path}: no column 'file' (nor file.audio, file.video and so on; names need "
            f"{between} between them); {there}"
        )
    if len(once) < len(names) or ("file" in once and files):
        raise UserError(
            f"{path}: expected column names with {between} between them, each column once, either "
            f"file or file.audio, file.video and so on; {there}"
        )
    return names


def _name_clip(clip: str, start: str, end: str, *files: str) -> str:
    """`clip`, or the first file's path without suffix, with @start-end for a segment."""
    name = os.path.splitext(next(filter(None, files), ""))[0]
    return clip or name + f"@{start}-{end}" * bool(start or end)


def _check(table: Manifest, paths: Columns) -> Iterator[_Fault]:
    """All faults except missing files."""
    votes = {VOTES + name: of for name, of in table.votes.items()}
    for column, values in {"start": table.start, "end": table.end, **votes}.items():
        for row in np.flatnonzero(values < 0).tolist():
            yield row, column, "a number, 0 or more", ""
    start, end = np.fmax(table.start, 0), np.nan_to_num(table.end, nan=-1)
    for row in np.flatnonzero((end >= 0) & (end <= start)).tolist():
        yield row, "end", f"above start, {start[row]:g}", ""
    if votes:
        for row in np.flatnonzero(~np.any([of > 0 for of in votes.values()], axis=0)).tolist():
            yield row, next(iter(votes)), "a vote for any emotion", "sum 0"
    for row, (emotion, split) in enumerate(zip(table.emotions, table.splits, strict=True)):
        if not (emotion or votes or table.target is None):
            yield row, table.target, "an emotion", ""
        if split not in _SPLITS:
            yield row, "split", "train, validation or test", ""
    first: dict[object, int] = {}
    parts = zip(*paths.values(), start.tolist(), end.tolist(), strict=True)
    for row, (part, clip) in enumerate(zip(parts, table.clips, strict=True)):
        same_part, same_clip = first.setdefault(part, row), first.setdefault(clip, row)
        if (same := min(same_part, same_clip)) < row:
            column, found = (next(iter(paths)), "") if same_part < row else ("clip", clip)
            yield row, column, f"once, it is in line {table.lines[same]}", found


def _find_files(folder: Path, paths: Columns) -> tuple[Columns, list[_Fault]]:
    """Absolute paths by modality; each folder is listed only once."""

    def kind(name: str) -> str:
        return name.rpartition(".")[2].lower()

    there: set[str] = set()
    kinds = {kind(path) for cells in paths.values() for path in cells if path}

    @cache
    def entries(below: str) -> tuple[str, dict[str, os.DirEntry]]:
        below, entry = find(below) if below else ("", None)
        if below and not (entry and entry.is_dir()):
            return below, {}
        with os.scandir(entry.path if entry else str(folder)) as found:
            names = {_nfc(entry.name): entry for entry in found}
        seen = ((name, entry.path) for name, entry in names.items() if not name.startswith("."))
        there.update(path for name, path in seen if kind(name) in kinds)
        return below, {name.casefold(): entry for name, entry in names.items()} | names

    def find(path: str) -> tuple[str, os.DirEntry | None]:
        """The path as found, ignoring case if need be, and its entry."""
        below, slash, name = path.rpartition("/")
        below, names = entries(below)
        entry = names.get(name) or names.get(name.casefold())
        return below + slash + (_nfc(entry.name) if entry else name), entry

    def locate(path: str) -> tuple[str, str]:
        """The absolute path, and what was expected if it is wrong."""
        expected = f"a file below {folder.name}/"
        if "\\" in path or {"", ".", ".."} & {*path.split("/")}:
            return "", f"{expected}, relative to it, with / and no part . or .."
        real, entry = find(path)
        if entry and real == path and entry.is_file():
            return entry.path, ""
        found = "not a file" if real == path else "there"
        return "", f"{expected} ({real} is {found})" if entry else f"{expected}, which exists"

    faults, files = [], {}
    for column, cells in paths.items():
        found = {path: locate(path) for path in dict.fromkeys(cells)} | {"": ("", "")}
        files[column[5:]] = [found[path][0] for path in cells]
        faults += [
            (row, column, found[path][1], "") for row, path in enumerate(cells) if found[path][1]
        ]
    for row, cells in enumerate(zip(*paths.values(), strict=True)):
        if not any(cells):
            faults.append((row, next(iter(paths)), f"a file below {folder.name}/", ""))
    if unread := there.difference(*files.values()):
        files_of = f"{counted(len(unread), 'file')}, such as {min(unread)}"
        say(f"{folder}: beside the clips of its table, but in none of its rows: {files_of}")
    return files, faults
