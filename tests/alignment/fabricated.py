"""Measures of made-up trainings, whose differences are known."""

import numpy as np

CLASSES, SPEAKERS, CLIPS = 3, 8, 12  # clips of each speaker

Measures = dict[str, np.ndarray]


def measures(seed: int, right: float = 0.8, auroc: float = 0.7, gain: float = 0.3) -> Measures:
    """A training that gets the share `right` of each speaker's clips right, give or take."""
    rng = np.random.default_rng(seed)
    count = SPEAKERS * CLIPS
    label = np.tile(np.arange(CLASSES), count // CLASSES)
    hit = rng.random(count) < right
    probabilities = np.full((count, CLASSES), 0.1)
    probabilities[np.arange(count), np.where(hit, label, (label + 1) % CLASSES)] = 0.8
    attention = np.full((count, 6), np.nan, np.float32)
    attention[:: CLIPS // 2] = rng.random((SPEAKERS * 2, 6))
    noise = rng.normal(0, 0.01, count)
    return {
        "clip": np.array([f"clip-{number:03d}" for number in range(count)]),
        "speaker": np.repeat([f"speaker-{number}" for number in range(SPEAKERS)], CLIPS),
        "label": label,
        "probabilities": probabilities,
        "meeting": np.linspace(0.2, 4.8, count),
        "cue_auroc": auroc + noise,
        "correlation_gain": gain + noise,
        "faithfulness": 0.1 + noise,
        "agreement": np.full(count, np.nan),
        "lag_curve": np.tile(1 - np.linspace(-0.4, 0.4, 21) ** 2, (count, 1)),
        "right_at_offset": np.tile(hit[:, None], 9).astype(float),
        "right_at_tempo": np.tile(hit[:, None], 5).astype(float),
        "attention_audio": attention,
        "attention_video": attention,
        "validation_uar": np.array(right),
        "seconds": np.array(1.0),
    }
