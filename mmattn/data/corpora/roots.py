"""From `--data.roots` to one table: manifests, and folders of files named as a known corpus's."""

import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from mmattn.data.corpora import from_names, row_of
from mmattn.data.corpora.folders import find_clips
from mmattn.data.manifest import Manifest, read_manifest
from mmattn.errors import UserError

MANIFESTS = ("manifest.csv", "manifest.tsv")


def read_table(
    roots: Sequence[Path], rename: Mapping[str, str], target: str
) -> tuple[Manifest, list[tuple[str, str]]]:
    """The clips of all roots; the feature files that no corpus names so, each with the reason.

    Raises UserError if a root is neither a manifest nor a folder of feature files.
    """
    tables, folders = [], []
    for root in sorted({root.expanduser().resolve() for root in roots}):
        if manifest := find_manifest(root):
            tables.append(read_manifest(manifest, rename, target))
        elif root.is_dir():
            folders.append(root)
        else:
            raise UserError(f"there is no folder or manifest {root} (--data.roots)")
    named, unnamed = [], []
    for path in find_files(folders):
        try:
            row_of(Path(path).stem)
            named.append(path)
        except ValueError as error:
            unnamed.append((path, f"{error}; `mmattn manifest` makes a table of other clips"))
    tables.append(from_names(named))
    return join(tables), unnamed


def find_manifest(path: Path) -> Path | None:
    """The manifest that a path is or that lies in the folder that it is."""
    if path.suffix.lower() in (".csv", ".tsv") and path.is_file():
        return path
    return next((one for name in MANIFESTS if (one := path / name).is_file()), None)


def join(tables: Sequence[Manifest]) -> Manifest:
    """All clips of several tables; a column that one of them lacks is empty there."""

    def cells(name: str) -> list:
        return [*chain(*(getattr(table, name) for table in tables))]

    def columns(name: str, fill: object) -> dict[str, list]:
        parts = [(getattr(table, name), [fill] * len(table)) for table in tables]
        names = dict.fromkeys(chain(*(part for part, _ in parts)))
        return {one: [*chain(*(part.get(one, none) for part, none in parts))] for one in names}

    return Manifest(
        path=next((table.path for table in tables if table.path), None),
        clips=cells("clips"),
        files=columns("files", ""),
        speakers=cells("speakers"),
        emotions=cells("emotions"),
        votes={name: np.array(of) for name, of in columns("votes", 0.0).items()},
        start=np.array(cells("start")),
        end=np.array(cells("end")),
        splits=cells("splits"),
        corpora=cells("corpora"),
        columns=columns("columns", ""),
        lines=cells("lines"),
    )


def find_files(folders: Iterable[Path]) -> list[str]:
    """Every .npz file below the folders, sorted by file name, then by place; each once, although a
    folder may be inside another."""
    found: dict[str, tuple[str, str, str]] = {}
    for folder in sorted(set(folders)):
        for below in find_clips(folder, (".npz",))[0]:
            path = str(folder / below)
            found.setdefault(os.path.realpath(path), (Path(path).stem, below, path))
    return [path for *_, path in sorted(found.values())]
