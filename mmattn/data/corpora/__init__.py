"""From `--data.roots` to one table: manifests, and folders of files named as in a known corpus.

A corpus is a module with TITLE, EXAMPLE, FOLDS, row and, for model cards, SOURCE, LICENCE, SPEECH
(what is spoken, by whom) and LABEL (what a label means). Nothing below knows a corpus by name.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path, PurePath

from mmattn.data.corpora import crema_d, ravdess
from mmattn.data.corpora.folders import find_clips
from mmattn.data.manifest import TABLES, Manifest, columns_of, read_manifest, rows_of
from mmattn.errors import UserError

CORPORA = {"ravdess": ravdess, "crema-d": crema_d}
MANIFESTS = tuple(f"manifest{suffix}" for suffix in TABLES)


def row_of(stem: str) -> dict[str, str]:
    """The cells of a clip by column, from its name without suffix; ValueError if no corpus fits.

    >>> row_of("1001_DFA_ANG_XX")["speaker"]
    '1001'
    """
    for corpus in CORPORA.values():
        if cells := corpus.row(stem):
            return cells
    known = " nor ".join(f"{corpus.TITLE} ({corpus.EXAMPLE})" for corpus in CORPORA.values())
    raise ValueError(f"the name is neither {known}")


def read_table(
    roots: Sequence[Path], rename: Mapping[str, str], target: str
) -> tuple[Manifest, list[tuple[str, str]]]:
    """The clips of all roots, and the feature files whose names fit no corpus, with the reason.

    Raises UserError if a root is neither a manifest nor a folder of feature files.
    """
    tables, folders = [], []
    for root in sorted({root.expanduser().resolve() for root in roots}):
        if manifest := find_manifest(root):
            tables.append(read_manifest(manifest, rename, target))
        elif root.is_dir():
            folders.append(root)
        else:
            found = "another file" if root.exists() else "nothing"
            raise UserError(
                f"{root}: expected a folder of feature files or a manifest "
                f"({', '.join(TABLES)}), found {found}"
            )
    rows, unnamed = {}, []
    for path in find_files(folders):
        try:
            cells = row_of(PurePath(path).stem)
            rows[path] = cells | {target: cells.get(target, cells["emotion"])}
        except ValueError as error:
            unnamed.append((path, f"{error}; `mmattn manifest` writes a table for other names"))
    if rows or not tables:
        clips = [PurePath(path).stem for path in rows]
        columns = columns_of(rows.values())
        tables.append(Manifest(None, columns, [0] * len(rows), {"": [*rows]}, clips, target))
    return (tables[0] if len(tables) == 1 else join(tables, target)), unnamed


def join(tables: Sequence[Manifest], target: str) -> Manifest:
    """All clips of several tables; a column that a table lacks is empty for its clips."""
    parts = ((rows_of(one.columns), rows_of(one.files), one.lines, one.clips) for one in tables)
    columns, files, lines, clips = ([*chain(*part)] for part in zip(*parts, strict=True))
    path = tables[0].path  # manifests come first
    return Manifest(path, columns_of(columns), lines, columns_of(files), clips, target)


def find_manifest(path: Path) -> Path | None:
    """The manifest at a path, or in the folder at that path."""
    if path.suffix.lower() in TABLES and path.is_file():
        return path
    return next((one for name in MANIFESTS if (one := path / name).is_file()), None)


def find_files(folders: Iterable[Path]) -> list[str]:
    """Every .npz file below the folders, sorted by file name, then by path; each once, even if one
    folder is inside another."""
    found: dict[str, tuple[str, str, str]] = {}
    for folder in sorted(set(folders)):
        for below in find_clips(folder, (".npz",))[0]:
            path = str(folder / below)
            found.setdefault(os.path.realpath(path), (PurePath(path).stem, below, path))
    return [path for *_, path in sorted(found.values())]
