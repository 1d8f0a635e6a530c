"""A corpus of feature files with the names, sizes and lengths of RAVDESS and CREMA-D together.

python -m benchmarks.full_size FOLDER
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from benchmarks.machine import command
from mmattn.console import progress
from mmattn.data.corpora import row_of
from mmattn.data.labels import RAVDESS8, SIX
from mmattn.errors import UserError

CLIPS = {"ravdess": 1440, "crema-d": 7442}
SECONDS = {"ravdess": 3.838, "crema-d": 2.666}  # mean length
SPREAD = 0.12  # standard deviation of the length over its mean
WIDTHS = {"audio": 89, "video": 512}
RATES = {"audio": 100.0, "video": 15.0}
CREMA_D_SENTENCES = (
    *("IEO", "TIE", "IOM", "IWW", "TAI", "MTI"),
    *("IWL", "ITH", "DFA", "ITS", "TSI", "WSI"),
)


@dataclass(frozen=True)
class Options:
    """Write a synthetic corpus of feature files as large as RAVDESS and CREMA-D together."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """A new or empty folder."""
    clips: int = sum(CLIPS.values())
    """Number of clips; fewer give a random subset of both corpora."""
    seed: int = 0

    def __call__(self) -> None:
        write_full_size(self.folder, self.clips, self.seed)


def write_full_size(folder: Path, clips: int = sum(CLIPS.values()), seed: int = 0) -> None:
    """Write `clips` feature files (fewer: a random subset of both corpora) below `folder`.

    The frames are noise with a weak offset for the emotion: sizes are real, contents are not.
    Raises UserError if the folder is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; a new folder is needed")
    if seed < 0:
        raise UserError(f"--seed {seed}: expected 0 or more")
    names = _choose_names(clips, seed)
    offsets = {
        modality: np.random.default_rng([seed, width]).standard_normal((len(RAVDESS8), width))
        for modality, width in WIDTHS.items()
    }
    with progress("Writing feature files", len(names)) as advance:
        for number, name in enumerate(names):
            row, rng = row_of(name), np.random.default_rng([seed, 0, number])
            place = _place(folder, name, row)
            place.parent.mkdir(parents=True, exist_ok=True)
            np.savez(place, **_draw(row, offsets, rng))
            advance(1)


def _choose_names(clips: int, seed: int) -> list[str]:
    total = sum(CLIPS.values())
    if not 2 <= clips <= total:
        raise UserError(f"between 2 and {total} clips can be written, not {clips}")
    ravdess = max(1, round(clips * CLIPS["ravdess"] / total))
    rng = np.random.default_rng(seed)
    chosen = []
    for stems, count in ((_ravdess_stems(), ravdess), (_crema_d_stems(), clips - ravdess)):
        every = list(stems)
        chosen += [every[index] for index in sorted(rng.permutation(len(every))[:count])]
    return chosen


def _ravdess_stems() -> Iterator[str]:
    """60 takes of each of 24 actors: neutral has no strong intensity."""
    for actor, emotion, strength, statement, take in product(
        range(1, 25), range(1, 9), (1, 2), (1, 2), (1, 2)
    ):
        if (emotion, strength) != (1, 2):
            yield f"01-01-{emotion:02d}-{strength:02d}-{statement:02d}-{take:02d}-{actor:02d}"


def _crema_d_stems() -> Iterator[str]:
    """82 takes of each of 91 actors: three levels in one sentence only, and not of neutral."""
    for actor, sentence, emotion in product(
        range(1001, 1092), CREMA_D_SENTENCES, ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")
    ):
        three = sentence == "IEO" and emotion != "NEU"
        for level in ("LO", "MD", "HI") if three else ("XX",):
            yield f"{actor}_{sentence}_{emotion}_{level}"


def _place(folder: Path, name: str, row: dict[str, str]) -> Path:
    if row["corpus"] == "ravdess":
        return folder / "RAVDESS" / f"Actor_{row['speaker']}" / f"{name}.npz"
    return folder / "CREMA-D" / f"{name}.npz"


def _draw(
    row: dict[str, str], offsets: dict[str, np.ndarray], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    corpus, emotion = row["corpus"], row["emotion"]
    seconds = max(1.0, SECONDS[corpus] * (1 + SPREAD * rng.standard_normal()))
    arrays = {"emotion_label": np.array(SIX.index(emotion) if emotion in SIX else -1)}
    for modality, width in WIDTHS.items():
        frames = round(seconds * RATES[modality])
        noise = rng.standard_normal((frames, width), np.float32)
        offset = 0.1 * offsets[modality][RAVDESS8.index(emotion)]
        arrays[f"{modality}_features"] = noise + offset.astype(np.float32)
        arrays[f"{modality}_timestamps"] = np.arange(frames) / RATES[modality]
    return arrays


if __name__ == "__main__":
    command(Options, "full_size", Options.__doc__)
