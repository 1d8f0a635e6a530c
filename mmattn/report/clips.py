"""Clips for the report's viewer, compact: arrays in base64, equal ones stored once."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmattn.evaluate.plots import modality_colours
from mmattn.evaluate.views import ClipView, StreamView
from mmattn.report.footage import Footage

STEP = 0.05  # of a normalised feature, whose standard deviation is 1
LARGEST = 127 * STEP  # features are clipped to ±6.35


def pack_viewer(
    arms: Mapping[str, Sequence[ClipView]],
    class_names: Sequence[str],
    footage: Sequence[Footage] = (),
) -> dict[str, Any]:
    """The same clips as seen by each arm, as JSON values that `page.js` reads.

    Times (s) and attention (relative to uniform) are float32 [T]; features int8 [F, T] in units
    of STEP, within ±LARGEST. Each array is an index into `pool`. `footage`, if any, has an
    entry for each clip.

    Raises:
        ValueError: the arms show different clips.
    """
    first = next(iter(arms.values()))
    for arm, views in arms.items():
        if [view.clip for view in views] != [view.clip for view in first]:
            raise ValueError(
                f"expected the same clips in the same order from every arm, also {arm}"
            )
    pool: dict[str, int] = {}
    clips = [
        _pack_clip(views, list(class_names), pool) for views in zip(*arms.values(), strict=True)
    ]
    for packed, one in zip(clips, footage or [Footage()] * len(clips), strict=True):
        packed |= _pack_footage(one, pool)
    return {
        "arms": list(arms),
        "classes": list(class_names),
        "colours": modality_colours([view for views in arms.values() for view in views]),
        "step": STEP,
        "clips": clips,
        "pool": list(pool),
    }


def _pack_clip(
    views: Sequence[ClipView], class_names: list[str], pool: dict[str, int]
) -> dict[str, Any]:
    """A clip as seen by each arm."""
    first = views[0]
    return {
        "clip": first.clip,
        "speaker": first.speaker,
        "label": None if first.label is None else class_names.index(first.label),
        "cues": [
            {"modality": modality, "time": round(float(time), 4), "decoy": bool(decoy)}
            for modality, time, decoy in first.cues or ()
        ],
        "views": [
            {
                "probabilities": np.round(view.probabilities, 4).tolist(),
                "streams": {
                    name: _pack_stream(stream, pool) for name, stream in view.streams.items()
                },
            }
            for view in views
        ],
    }


def _pack_stream(stream: StreamView, pool: dict[str, int]) -> dict[str, Any]:
    valid = stream.known
    steps = np.clip(np.round(stream.features / STEP), -127, 127)
    return {
        "count": stream.features.shape[1],
        "times": _keep(stream.times.astype("<f4"), pool),
        "attention": _keep(stream.ratio.astype("<f4"), pool),
        "features": _keep(np.where(valid[:, None], steps, 0).astype(np.int8).T, pool),
        "valid": _keep(valid.astype(np.uint8), pool),
        "gaps": np.round(stream.gaps, 4).tolist(),
    }


def _pack_footage(footage: Footage, pool: dict[str, int]) -> dict[str, Any]:
    audio = footage.audio
    return {
        "notes": list(footage.notes),
        "audio": audio
        and {
            "times": _keep(audio.times.astype("<f4"), pool),
            "loudness": _keep(audio.loudness.astype("<f4"), pool),
        },
        "faces": [
            {
                "time": round(face.time, 4),
                "attention": round(face.attention, 4),
                "image": f"data:image/jpeg;base64,{base64.b64encode(face.jpeg).decode()}",
            }
            for face in footage.faces
        ],
    }


def _keep(array: np.ndarray, pool: dict[str, int]) -> int:
    """The index of this array in the pool; added if new."""
    return pool.setdefault(base64.b64encode(array.tobytes()).decode(), len(pool))
