"""The predictions of a run for new clips: on the screen, as JSON, as a page."""

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from mmattn.config import ExtractConfig
from mmattn.console import be_quiet, progress, say, say_table, waiting
from mmattn.errors import Incomplete, UserError
from mmattn.evaluate.views import ClipView, StreamView
from mmattn.media import is_feature_file
from mmattn.report.footage import Footage
from mmattn.report.page import write_prediction_page
from mmattn.run.folder import read_config
from mmattn.run.predictor import Outcome, Prediction, Predictor
from mmattn.train.checkpoints import Kind
from mmattn.train.devices import start_devices

BLOCKS = " ▁▂▃▄▅▆▇█"
EIGHTHS = " ▏▎▍▌▋▊▉█"
BAR = 50  # characters of a probability of 1
LINE = 40  # characters of attention over time
NO_DATA = "·"


def predict_run(
    run: Path,
    clips: Sequence[Path],
    kind: Kind,
    as_json: bool,
    html: Path | None,
    media: ExtractConfig,
) -> None:
    """Say what a run predicts for clips; those that fail are listed at the end.

    Args:
        run: the run's folder.
        clips: raw clips or feature files, one or more.
        kind: which checkpoint.
        as_json: print one JSON document and nothing else.
        html: the page to write, if any clip can be predicted.
        media: where the models for raw clips are.

    Raises:
        UserError: no such run or checkpoint.
        Incomplete: some clips could not be predicted.
    """
    if as_json:
        be_quiet()
    if not clips:
        raise UserError("CLIP...: expected one clip or more")
    if html is not None and (html.is_dir() or not html.parent.is_dir()):
        raise UserError(f"--html {html}: expected a file in a folder that is there")
    start_devices(1, read_config(run).train.batch)
    predictor = Predictor(run, kind, media)
    with progress("read", len(clips)) as advance:
        outcome = predictor.predict_all(clips, advance)
    if as_json:
        print(json.dumps(to_json(predictor, outcome), indent=2, ensure_ascii=False))
    else:
        _say_outcome(predictor, outcome)
    if html is not None and outcome.predictions:
        with waiting(f"writing {html}"):
            write_html(html, predictor, outcome)
    if outcome.failures:
        raise Incomplete(
            f"{len(outcome.failures)} of {len(clips)} clips could not be predicted; "
            f"{'the JSON' if as_json else 'the table'} gives the reasons"
        )


def to_json(predictor: Predictor, outcome: Outcome) -> dict:
    """An outcome as JSON values; attention as in a Prediction, times in seconds."""
    return {
        "run": str(predictor.run),
        "checkpoint": predictor.checkpoint,
        "networks": len(predictor.trainings),
        "predictions": [
            {
                "clip": str(one.path),
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
        "failures": [{"clip": str(path), "reason": reason} for path, reason in outcome.failures],
    }


def write_html(path: Path, predictor: Predictor, outcome: Outcome) -> None:
    """Write the page of an outcome with a prediction or more; see `write_prediction_page`."""
    predictions = outcome.predictions
    views = [
        ClipView(str(one.path), None, None, one.probabilities, one.streams) for one in predictions
    ]
    write_prediction_page(
        path,
        f"{predictor.config.name}: predictions for {_count(len(predictions), 'clip')}",
        {"Run": str(predictor.run), "Networks": _about(predictor)},
        views,
        [_footage(predictor, one) for one in predictions],
        predictor.class_names,
        [(str(failed), reason) for failed, reason in outcome.failures],
        shlex.join(["mmattn", *sys.argv[1:]]),
    )


def _footage(predictor: Predictor, prediction: Prediction) -> Footage:
    if is_feature_file(prediction.path):
        return Footage(prediction.notes)
    from mmattn.run.footage import audio_envelope, faces_of

    path, video = prediction.path, prediction.streams.get("video")
    faces = faces_of(path, video, predictor.extraction()) if video else ()
    return Footage(prediction.notes, audio_envelope(path), faces)


def _say_outcome(predictor: Predictor, outcome: Outcome) -> None:
    say(f"{predictor.run}: {_about(predictor)}")
    for one in outcome.predictions:
        rows = [
            (name, f"{probability:.3f}", bar(probability))
            for name, probability in zip(one.class_names, one.probabilities, strict=True)
        ]
        say_table(f"{one.path}: {one.predicted}", ("class", "probability", ""), rows, left=True)
        say("\n".join([*attention_lines(one.streams), *one.notes, ""]))
    if outcome.failures:
        say_table("Not predicted", ("clip", "reason"), outcome.failures, left=True)


def _about(predictor: Predictor) -> str:
    """The networks that are asked, in words."""
    folders = predictor.trainings
    if folders == [predictor.run]:
        return f"{predictor.checkpoint} checkpoint"
    names = [str(folder.relative_to(predictor.run)) for folder in folders]
    shown = names if len(names) <= 3 else [names[0], "…", names[-1]]
    what = f"mean of {len(names)} networks ({', '.join(shown)})"
    return f"{what}, {predictor.checkpoint} checkpoint of each"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def bar(share: float, width: int = BAR) -> str:
    """A bar of blocks, `width` long for 1.

    >>> bar(0.55, 10)
    '█████▌'
    """
    whole, eighths = divmod(round(8 * width * share), 8)
    return "█" * whole + EIGHTHS[eighths].strip()


def attention_lines(streams: dict[str, StreamView]) -> Iterator[str]:
    """Of each modality, attention over the same seconds in blocks, and where it is highest.

    The highest block is the highest attention of the modality; dots are frames without data.
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
    """The highest attention from `low` to `high` (s), or of the next frame if there is none."""
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
