"""Corpora whose file names are known; a corpus is a module with TITLE, EXAMPLE, FOLDS and row.

Nothing below knows a corpus by name.
"""

from collections.abc import Sequence
from pathlib import PurePath

import numpy as np

from mmattn.data.corpora import crema_d, ravdess
from mmattn.data.manifest import Manifest

CORPORA = {"ravdess": ravdess, "crema-d": crema_d}


def row_of(stem: str) -> dict[str, str]:
    """The cells of a clip by column from its name without suffix; ValueError if no corpus has it.

    >>> row_of("1001_DFA_ANG_XX")["speaker"]
    '1001'
    """
    for corpus in CORPORA.values():
        if cells := corpus.row(stem):
            return cells
    known = " nor ".join(f"{corpus.TITLE} ({corpus.EXAMPLE})" for corpus in CORPORA.values())
    raise ValueError(f"the name is neither {known}")


def from_names(files: Sequence[str]) -> Manifest:
    """The table of files without one, by their names alone; ValueError as in `row_of`.

    Their ids are their names without suffix.
    """
    clips = [PurePath(file).stem for file in files]
    rows = [row_of(clip) for clip in clips]
    names = dict.fromkeys(name for cells in rows for name in cells)
    columns = {name: [cells.get(name, "") for cells in rows] for name in names}
    speakers = [f"{cells['corpus']}-{cells['speaker']}" for cells in rows]
    emotions, corpora = ([cells[name] for cells in rows] for name in ("emotion", "corpus"))
    known = (None, clips, {"": list(files)}, speakers, emotions, {})
    open_bounds = np.full((2, len(rows)), np.nan)
    return Manifest(*known, *open_bounds, [""] * len(rows), corpora, columns, [0] * len(rows))
