"""CREMA-D: its file names, the raters' votes, the published folds, and text for model cards."""

import csv
import io
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from mmattn.data.labels import SIX
from mmattn.errors import UserError

TITLE = "CREMA-D"
EXAMPLE = "1001_DFA_ANG_XX"
SOURCE = (
    "Cao et al. (2014), doi:10.1109/TAFFC.2014.2336244; github.com/CheyneyComputerScience/CREMA-D"
)
LICENCE = "Open Database License 1.0"
SPEECH = "twelve English sentences, spoken by 91 actors"
LABEL = "the emotion that an actor was asked to play"
_ENDS = (1001, 1019, 1037, 1055, 1073, 1092)
FOLDS = [[f"crema-d-{actor}" for actor in range(*ends)] for ends in pairwise(_ENDS)]  # HiCMAE's
VOTES = {"voice": 1, "face": 2, "audio-visual": 3}  # what raters were shown
_EMOTIONS = dict(zip(("ANG", "DIS", "FEA", "HAP", "NEU", "SAD"), SIX, strict=True))
_LEVELS = {"LO": "low", "MD": "medium", "HI": "high", "XX": "unspecified", "X": "unspecified"}
_NAME = re.compile(
    rf"(1\d{{3}})_([A-Z]{{3}})_({'|'.join(_EMOTIONS)})_({'|'.join(_LEVELS)})", re.ASCII
)


def row(stem: str) -> dict[str, str] | None:
    """The cells of a clip by column; None if the name is another corpus's."""
    match = _NAME.fullmatch(stem)
    if not match:
        return None
    actor, sentence, emotion, level = match.groups()
    return {
        "corpus": "crema-d",
        "speaker": actor,
        "emotion": _EMOTIONS[emotion],
        "level": _LEVELS[level],
        "sentence": sentence,
    }


def ratings(folder: Path, votes: str = "audio-visual") -> dict[str, dict[str, str]]:
    """The raters' votes on each clip, and data on its actor: further cells by stem.

    `emotion.NAME` are the votes of the raters who were shown `votes`, one of VOTES; `perceived` is
    the majority of the audio-visual votes, empty if tied. A clip has three rows in the table; the
    first digit of a row's id tells what its raters were shown.

    The folder has tabulatedVotes.csv and VideoDemographics.csv of the repository. UserError, with
    the line, if one is malformed.
    """
    actors: dict[str, dict[str, str]] = {}
    counts: dict[tuple[int, str], dict[str, int]] = {}

    def read_actor(cells: Mapping[str, str]) -> None:
        further = {name.lower(): cells[name] for name in ("Age", "Race", "Ethnicity")}
        actors[cells["ActorID"]] = {"sex": cells["Sex"].lower(), **further}

    def read_votes(cells: Mapping[str, str]) -> None:
        kind, stem = int(cells[""]) // 100_000, cells["fileName"]
        of = {name: int(cells[letter]) for name, letter in zip(SIX, "ADFHNS", strict=True)}
        if kind not in VOTES.values() or not row(stem) or stem[:4] not in actors:
            raise ValueError("expected the id and the name of a clip of one of the actors")
        if min(of.values()) < 0 or not any(of.values()):
            raise ValueError("expected votes, of sum 1 or more")
        counts[kind, stem] = of

    for name, read in (("VideoDemographics.csv", read_actor), ("tabulatedVotes.csv", read_votes)):
        reader = csv.DictReader(io.StringIO((folder / name).read_text(encoding="utf-8-sig")))
        for cells in reader:
            try:
                read(cells)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                where = f"{folder / name}, line {reader.line_num}"
                raise UserError(f"{where}: {error!r}, found {cells}") from error
    found = {}
    for (kind, stem), of in counts.items():
        if kind == VOTES[votes]:
            both = counts.get((VOTES["audio-visual"], stem), dict.fromkeys(SIX, 0))
            most = [name for name, n in both.items() if n == max(both.values())]
            found[stem] = {
                **actors[stem[:4]],
                "perceived": most[0] if len(most) == 1 else "",
                **{f"emotion.{name}": str(n) for name, n in of.items()},
            }
    return found
