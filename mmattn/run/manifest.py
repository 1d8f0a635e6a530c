"""Write a corpus manifest from its files, and summarise it."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.special import entr

from mmattn.console import SHOWN, counted, say, say_table
from mmattn.data.corpora import CORPORA, crema_d, row_of
from mmattn.data.corpora.audformat import read_database
from mmattn.data.corpora.folders import Row, by_name, by_pattern, list_clips, read_rows
from mmattn.data.feature_file import training_command
from mmattn.data.labels import SIX, majority
from mmattn.data.manifest import TABLES, columns_of, say_lacking, write_manifest
from mmattn.errors import UserError
from mmattn.media import SUFFIXES


def make_manifest(
    folder: Path,
    to: Path,
    corpus: str | None = None,
    pattern: str | None = None,
    database: Path | None = None,
    rated: Path | None = None,
    votes: str = "audio-visual",
    overwrite: bool = False,
) -> None:
    """Write the manifest of the clips in a folder to `to`, and print a summary.

    Args:
        folder: raw clips or feature files.
        to: in the folder or above it.
        corpus: one of CORPORA; exactly one of this, `pattern` and `database` is given.
        pattern: as in `folders.by_pattern`.
        database: a folder in audformat; its paths are relative to `folder`.
        rated: folder of CREMA-D's rating files, for the `votes` of its raters.
        overwrite: replace an existing table.

    Raises:
        UserError: options conflict, no clip can be read, or the table exists.
    """
    if sum(way is not None for way in (corpus, pattern, database)) != 1:
        raise UserError("expected exactly one of --corpus, --pattern and --audformat")
    if corpus not in (None, *CORPORA):
        raise UserError(f"--corpus {corpus}: expected {' or '.join(CORPORA)}")
    if rated and corpus != "crema-d":
        raise UserError("--ratings: expected --corpus crema-d")
    if to.suffix.lower() not in TABLES:
        raise UserError(f"--to {to}: expected a name that ends in {' or '.join(TABLES)}")
    try:
        below = folder.resolve().relative_to(to.parent.resolve())
    except ValueError as error:
        raise UserError(f"--to {to}: expected a file in {folder} or a parent folder") from error
    if database:
        rows, left_out = read_database(database)
    else:
        read = by_name(CORPORA[corpus]) if corpus else by_pattern(pattern or "")
        rows, left_out = read_rows(list_clips(folder, (".npz", *SUFFIXES)), read)
    if rated:
        rows, unrated = _add_ratings(rows, rated, votes)
        left_out += unrated
    if left_out:
        title = f"{len(left_out)} of {len(left_out) + len(rows)} clips left out"
        say_table(title, ("file", "why"), left_out, left=True, most=SHOWN)
    if not rows:
        raise UserError(f"{folder}: no clips left; nothing was written")
    rows = [{"corpus": folder.resolve().name, **row} for row in rows]
    for row in rows:
        row["file"] = (below / row["file"]).as_posix()
    write_manifest(to, rows, overwrite)
    _say_contents(rows, to)


def agreement(rated: Mapping[str, Mapping[str, str]]) -> tuple[int, float, float, float]:
    """How the votes in `crema_d.ratings` agree with the intended emotion.

    Returns:
        Clips; fraction whose sole majority is the intended emotion; fraction tied; mean entropy of
        a clip's votes, -sum p log2 p, in bits (biased low, with about ten votes).
    """
    votes = np.array([[int(cells[f"emotion.{name}"]) for name in SIX] for cells in rated.values()])
    p = votes / votes.sum(axis=1, keepdims=True)
    intended = [SIX.index(row_of(stem)["emotion"]) for stem in rated]
    seen = majority(p)
    entropy = entr(p).sum(axis=1).mean() / np.log(2)
    return len(rated), float(np.mean(seen == intended)), float(np.mean(seen < 0)), float(entropy)


def _add_ratings(
    rows: Sequence[Row], folder: Path, votes: str
) -> tuple[list[Row], list[tuple[str, str]]]:
    """The rows with their clips' ratings, and the clips without ratings, with the reason."""
    rated = crema_d.ratings(folder, votes)
    here = {row["clip"]: rated[row["clip"]] for row in rows if row["clip"] in rated}
    table = []
    for name, some in (("all rated clips", rated), ("clips here", here)):
        if some:
            clips, agreed, tied, bits = agreement(some)
            table.append((name, clips, f"{agreed:.1%}", f"{tied:.1%}", f"{bits:.3f}"))
    columns = ("", "clips", "intended", "tied", "entropy (bits)")
    title = f"Raters' votes ({votes}): majority = intended emotion"
    say_table(title, columns, table)
    unrated = [(row["file"], "no ratings") for row in rows if row["clip"] not in rated]
    return [row | here[row["clip"]] for row in rows if row["clip"] in here], unrated


def _say_contents(rows: Sequence[Row], path: Path) -> None:
    clips = Counter(row.get("emotion", "") for row in rows)
    pairs = {(row.get("emotion", ""), row["corpus"], row.get("speaker", "")) for row in rows}
    speakers = Counter(emotion for emotion, _, speaker in pairs if speaker)
    known = len({(corpus, speaker) for _, corpus, speaker in pairs if speaker})
    who = counted(known, "speaker") if known else "SPEAKERS UNKNOWN"
    say_table(
        f"{counted(len(rows), 'clip')}, {who}, in {path}",
        ("emotion", "clips", "speakers"),
        [(emotion or "unknown", clips[emotion], speakers[emotion]) for emotion in sorted(clips)],
    )
    if say_lacking(columns_of(rows)):
        return
    if all(row["file"].lower().endswith(".npz") for row in rows):
        say(f"next: {training_command(path, [path.parent / row['file'] for row in rows])}")
    else:
        say(f"next: mmattn extract {shlex.quote(str(path))} --to FEATURES")
