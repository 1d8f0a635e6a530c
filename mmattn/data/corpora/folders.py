"""A corpus in folders: finds its clips and reads table rows from their paths."""

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from types import ModuleType
from typing import NoReturn

from mmattn.console import counted, say
from mmattn.data.corpora import ravdess
from mmattn.errors import UserError
from mmattn.files import printable

Row = dict[str, str]
Read = Callable[
    [str], tuple[str, Row]
]  # path without suffix: a key unique to the clip, and its cells


def find_clips(folder: Path, suffixes: Sequence[str]) -> tuple[list[str], Counter[str]]:
    """Paths of the clips below a folder, by name and suffix, and a count of other files by suffix.

    Hidden files and folders are skipped. OSError if a folder cannot be read; UserError if there are
    no clips.
    """
    found, others, seen, root = [], Counter[str](), set(), os.path.realpath(folder)
    for place, below, names in os.walk(folder, onerror=_raise, followlinks=True):
        real = os.path.realpath(place)
        linked = place != str(folder) and os.path.islink(place)
        if real in seen or (linked and Path(real).is_relative_to(root)):  # found under its own path
            below.clear()
            continue
        seen.add(real)
        below[:] = [name for name in sorted(below) if not name.startswith(".")]
        for path in (Path(place, name) for name in names if not name.startswith(".")):
            if path.suffix.lower() in suffixes and path.is_file():
                found.append(path.relative_to(folder))
            else:
                others[path.suffix] += 1
    if not found:
        kinds = f"only other files: {count_kinds(others)}" if others else "none"
        raise UserError(f"{folder}: expected clips ({', '.join(suffixes)}), found {kinds}")
    found.sort(key=lambda path: (path.stem, suffixes.index(path.suffix.lower()), path))
    return [path.as_posix() for path in found], others


def list_clips(folder: Path, suffixes: Sequence[str]) -> list[str]:
    """As `find_clips`, and tell the user how many other files there are, by suffix."""
    found, others = find_clips(folder, suffixes)
    if others:
        say(f"{folder}: other files, which are ignored: {count_kinds(others)}")
    return found


def choose_clips(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """As `list_clips`, but one file for each clip; the user is told what is left out.

    Of files with the same name, the first suffix is used; of a RAVDESS take, the most complete
    file: audio and video (01-*) before video (02-*) before audio (03-*).
    """
    listed = [folder / below for below in list_clips(folder, suffixes)]
    named = sorted({clip.with_suffix(""): clip for clip in reversed(listed)}.values())
    for clip in sorted({*listed} - {*named}):
        say(f"{clip} is left out: its name is another's but for the suffix")
    takes: dict[str, str] = {}
    for stem in (clip.stem for clip in named if ravdess.row(clip.stem)):
        takes[stem[3:]] = min(takes.get(stem[3:], stem), stem)
    chosen = [
        clip for clip in named if not ravdess.row(clip.stem) or takes[clip.stem[3:]] == clip.stem
    ]
    if left_out := sorted({*named} - {*chosen}):
        files = f"{counted(len(left_out), 'file')}, such as {left_out[0]}"
        say(f"left out {files}: more complete ones of the same takes exist (01-, 02-, 03-*)")
    return chosen


def count_kinds(others: Counter[str]) -> str:
    """How many files have each suffix, in words.

    >>> count_kinds(Counter({".txt": 2, "": 1}))
    '1 without suffix, 2 .txt'
    """
    return ", ".join(
        f"{count} {suffix or 'without suffix'}" for suffix, count in sorted(others.items())
    )


def _raise(error: OSError) -> NoReturn:
    raise error


def read_rows(files: Sequence[str], read: Read) -> tuple[list[Row], list[tuple[str, str]]]:
    """A row for each file, in path order, and the files left out, each with the reason."""
    rows, left_out, first = [], [], dict[str, str]()
    for file in files:
        try:
            if file != printable(file):
                raise ValueError("its name is not UTF-8, which a table requires: rename it")
            key, cells = read(os.path.splitext(file)[0])
            if first.setdefault(key, file) != file:
                raise ValueError(f"the same clip as {first[key]}")
            rows.append({"file": file, **cells})
        except ValueError as error:
            left_out.append((file, str(error)))
    return sorted(rows, key=lambda cells: cells["file"]), left_out


def by_name(corpus: ModuleType) -> Read:
    """Rows from the file names of a corpus; files that differ only in modality are one clip."""

    def read(path: str) -> tuple[str, Row]:
        stem = PurePath(path).name
        if not (cells := corpus.row(stem)):
            raise ValueError(f"not named as in {corpus.TITLE} ({corpus.EXAMPLE})")
        return str(cells | {"modality": ""}), {"clip": stem, **cells}

    return read


def by_pattern(pattern: str) -> Read:
    """Rows from paths like '{emotion}/{speaker}_{take}', without suffix.

    A name in braces is a column and matches one character or more, but no /. A path that matches in
    several ways is rejected: '{speaker}_{take}' is ambiguous for 'a_1_2'.

    >>> by_pattern("{emotion}/{speaker}_{take}")("bored/01_2")[1]
    {'emotion': 'bored', 'speaker': '01', 'take': '2'}
    """
    names = re.findall(r"\{(.*?)\}", pattern)
    once = len({*names, "file", "clip"}) == len(names) + 2
    closed = pattern.count("{") == pattern.count("}") == len(names)
    if not (names and once and closed and all(map(str.isidentifier, names))):
        raise UserError(
            f"--pattern {pattern!r}: expected names of columns in braces, each once and none of "
            "them file or clip, as in '{emotion}/{speaker}_{take}'"
        )
    least, most = (
        re.compile(re.sub(r"\\{.*?\\}", group, re.escape(pattern)))
        for group in ("([^/]+?)", "([^/]+)")
    )

    def read(path: str) -> tuple[str, Row]:
        short, long = least.fullmatch(path), most.fullmatch(path)
        if not (short and long):
            raise ValueError(f"does not fit the pattern {pattern}")
        if short.groups() != long.groups():
            raise ValueError(f"fits the pattern {pattern} in several ways")
        return path, dict(zip(names, short.groups(), strict=True))

    return read
