"""The predictions of a run for new clips: on the screen, as JSON, CSV or HTML."""

import csv
import glob
import io
import json
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from mmattn.config import ExtractConfig, kind_of
from mmattn.console import be_quiet, counted, progress, say, say_table, screen, waiting
from mmattn.data.corpora import find_manifest
from mmattn.data.corpora.folders import choose_clips
from mmattn.data.manifest import read_manifest
from mmattn.errors import Incomplete, UserError
from mmattn.evaluate.views import ClipView, StreamView
from mmattn.files import check_place, write_text
from mmattn.media import SUFFIXES, is_feature_file
from mmattn.report.footage import Footage, footage_of
from mmattn.report.page import write_prediction_page
from mmattn.run.run import Clip, Outcome, Prediction, Run, load_run
from mmattn.run.shared import CARD
from mmattn.train.checkpoints import Chosen
from mmattn.train.devices import start_devices

BLOCKS = " ▁▂▃▄▅▆▇█"
EIGHTHS = " ▏▎▍▌▋▊▉█"
BAR = 50  # characters for a probability of 1
LINE = 40  # characters for attention over time
NO_DATA = "·"


def predict_run(
    folder: Path,
    given: Sequence[Path],
    kind: Chosen = "best",
    calibrated: bool = True,
    as_json: bool = False,
    table: Path | None = None,
    html: Path | None = None,
    media: ExtractConfig | None = None,
) -> None:
    """Print a run's predictions for clips; failed clips are listed at the end.

    Args:
        folder: see `load_run`.
        given: one or more, see `find_given`.
        kind: which checkpoint.
        calibrated: see `load_run`.
        as_json: print only a JSON document.
        table: the CSV to write instead of printing each clip's predictions.
        html: the page to write, if any clip can be predicted.
        media: where the models for raw clips are.

    Raises:
        UserError: no such run or checkpoint.
        Incomplete: some clips could not be predicted.
    """
    if as_json:
        be_quiet()
    for option, path in (("html", html), ("csv", table)):
        if path is not None:
            check_place(option, path)
    start_devices(1, batch=1)
    run = load_run(folder, kind, media, calibrated)
    clips = find_given(given)
    for line in run.trust:
        say(line)
    if run.trust and (card := run.saved_in.with_name(CARD)).exists():
        say(f"Its card: {card}\n")
    with progress("predict", len(clips)) as advance:
        outcome = run.predict_all(clips, advance)
    if as_json:
        print(json.dumps(to_json(run, outcome), indent=2, ensure_ascii=False))
    elif table is None:
        _say_outcome(run, outcome)
    if table is not None:
        write_text(table, to_csv(run, outcome))
        say(f"{run.folder}: {_about(run)}")
        found = Counter(one.predicted for one in outcome.predictions)
        rows = [(name, found[name]) for name in run.class_names]
        say_table(f"{table}: {counted(len(clips), 'clip')}", ("predicted", "clips"), rows)
    if html is not None and outcome.predictions:
        with waiting(f"writing {html}"):
            write_html(html, run, outcome)
    if outcome.failures:
        where = "the JSON" if as_json else table or "the table"
        raise Incomplete(
            f"{len(outcome.failures)} of {len(clips)} clips could not be predicted; {where} gives "
            "the reasons"
        )


def find_given(given: Sequence[Path]) -> list[Clip]:
    """The given clips, those in given folders and manifests, and those that match a pattern like
    `clips/**/*.mp4`.

    Raises UserError if there is none.
    """
    if not given:
        raise UserError("CLIP...: expected one clip or more")
    found: list[Clip] = []
    for path in given:
        if manifest := find_manifest(path):
            table = read_manifest(manifest, target=None)
            if "" not in table.files:
                raise UserError(f"{manifest}: expected a column file that names the clips")
            found += map(Clip, map(Path, table.files[""]), table.start, table.end)
        elif path.is_dir():
            found += map(Clip, choose_clips(path, (".npz", *SUFFIXES)))
        elif glob.has_magic(str(path)) and not path.exists():
            if not (matches := sorted(glob.glob(str(path), recursive=True))):
                raise UserError(f"{path}: expected clips, but nothing matches the pattern")
            found += map(Clip, map(Path, matches))
        else:
            found.append(Clip(path))
    return found


def to_json(run: Run, outcome: Outcome) -> dict:
    """An outcome as JSON values; attention as in a Prediction, times in seconds."""
    return {
        "run": run.name,
        "checkpoint": run.checkpoint,
        "networks": len(run.networks),
        "calibrated": run.is_calibrated,
        "trust": [*run.trust],
        "predictions": [
            {
                **_where(one.clip),
                "predicted": one.predicted,
                "probabilities": dict(
                    zip(one.class_names, one.probabilities.tolist(), strict=True)
                ),
                "attention": {
                    name: {"times": stream.times.tolist(), "weights": stream.attention.tolist()}
                    for name, stream in one.streams.items()
                },
                "missing": list(one.missing),
                "notes": list(one.notes),
            }
            for one in outcome.predictions
        ],
        "failures": [{**_where(clip), "reason": reason} for clip, reason in outcome.failures],
    }


def _where(clip: Clip) -> dict[str, str | float]:
    """The clip's path, and start and end (s) of a segment."""
    times = {"start": float(clip.start), "end": float(clip.end)}
    return {"clip": str(clip.path)} | {name: at for name, at in times.items() if not np.isnan(at)}


def to_csv(run: Run, outcome: Outcome) -> str:
    """An outcome as a table: one row per clip, failures last."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["clip", "start", "end", "predicted", *run.class_names, "notes", "failure"])
    for one in outcome.predictions:
        shares = map(repr, one.probabilities.tolist())
        writer.writerow([*_cells(one.clip), one.predicted, *shares, "; ".join(one.notes), ""])
    for clip, reason in outcome.failures:
        writer.writerow([*_cells(clip), "", *[""] * len(run.class_names), "", reason])
    return text.getvalue()


def _cells(clip: Clip) -> list[str | float]:
    where = _where(clip)
    return [where.get(name, "") for name in ("clip", "start", "end")]


def write_html(path: Path, run: Run, outcome: Outcome) -> None:
    """Write the page of an outcome with at least one prediction; see `write_prediction_page`."""
    predictions = outcome.predictions
    views = [
        ClipView(one.clip.title, None, None, one.probabilities, one.streams) for one in predictions
    ]
    write_prediction_page(
        path,
        f"{run.config.name}: predictions for {counted(len(predictions), 'clip')}",
        {
            "Run": run.name,
            "Networks": _about(run),
            **({"Trust": " ".join(run.trust)} if run.trust else {}),
        },
        views,
        [_footage(run, one) for one in predictions],
        run.class_names,
        [(clip.title, reason) for clip, reason in outcome.failures],
        shlex.join(["mmattn", *sys.argv[1:]]),
    )


def _footage(run: Run, prediction: Prediction) -> Footage:
    if is_feature_file(prediction.path):
        return Footage(prediction.notes)
    videos = (one for name, one in prediction.streams.items() if kind_of(name) == "video")
    return footage_of(prediction.path, next(videos, None), run.extraction(), prediction.notes)


def _say_outcome(run: Run, outcome: Outcome) -> None:
    say(f"{run.folder}: {_about(run)}")
    width = bar_width(run.class_names, screen.width)
    for one in outcome.predictions:
        rows = [
            (name, f"{probability:.3f}", bar(probability, width))
            for name, probability in zip(one.class_names, one.probabilities, strict=True)
        ]
        title = f"{one.clip.title}: {one.predicted}"
        say_table(title, ("class", "probability", ""), rows, left=True)
        say("\n".join([*attention_lines(one.streams), *one.notes, ""]))
    if outcome.failures:
        failed = [(clip.title, reason) for clip, reason in outcome.failures]
        say_table("Not predicted", ("clip", "reason"), failed, left=True)


def _about(run: Run) -> str:
    """The networks that predict, in words."""
    kind = f"{run.checkpoint} checkpoint{' of each' if run.parts else ''}"
    kind += ", calibrated" if run.is_calibrated else ", not calibrated"
    if not run.parts:
        return kind
    names = [str(network.saved_in.relative_to(run.saved_in)) for network in run.networks]
    shown = names if len(names) <= 3 else [names[0], "…", names[-1]]
    return f"pool of {len(names)} networks ({', '.join(shown)}), {kind}"


def bar(share: float, width: int = BAR) -> str:
    """A bar of blocks, `width` long for 1.

    >>> bar(0.55, 10)
    '█████▌'
    """
    whole, eighths = divmod(round(8 * width * share), 8)
    return "█" * whole + EIGHTHS[eighths].strip()


def bar_width(names: Sequence[str], room: int) -> int:
    """Characters for a probability of 1, if the whole table has `room` characters.

    >>> bar_width(["calm", "surprised"], 60)
    34
    """
    return max(8, min(BAR, room - max(map(len, names)) - 17))


def attention_lines(streams: dict[str, StreamView]) -> Iterator[str]:
    """For each modality, attention over time as blocks, and the time of its maximum.

    The highest block is the modality's maximum; dots are frames without data.
    """
    ends = [stream.times[place] for stream in streams.values() for place in (0, -1)]
    if not ends:
        return
    edges = np.linspace(min(ends), max(ends), LINE + 1)
    for name, stream in streams.items():
        if np.isnan(stream.ratio).all():
            yield f"{name}  no attention at all"
            continue
        top = np.nanargmax(stream.ratio)
        shown = "".join(_block(stream, low, high) for low, high in pairwise(edges))
        most = f"most at {stream.times[top]:.2f} s ({stream.ratio[top]:.1f} × uniform)"
        yield f"{name}  {shown}  {edges[0]:.1f} to {edges[-1]:.1f} s, {most}"


def _block(stream: StreamView, low: float, high: float) -> str:
    """The highest attention from `low` to `high` (s), or the next frame's if it has no frame."""
    half = (high - low) / 2 + np.diff(stream.times).mean() / 2
    away = np.abs(stream.times - (low + high) / 2)
    inside = (stream.times >= low) & (stream.times <= high)
    if not inside.any():
        inside = away == away.min()
    if away[inside].min() > half:
        return BLOCKS[0]
    known = stream.ratio[inside & stream.known]
    if not len(known):
        return NO_DATA
    return BLOCKS[max(1, round(8 * known.max() / np.nanmax(stream.ratio)))]
