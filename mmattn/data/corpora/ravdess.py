"""RAVDESS: its file names, the published folds, and text for model cards."""

import re

from mmattn.data.labels import RAVDESS8

TITLE = "RAVDESS"
EXAMPLE = "03-01-05-01-02-01-12"
SOURCE = "Livingstone and Russo (2018), doi:10.1371/journal.pone.0196391"
LICENCE = "CC BY-NC-SA 4.0"
SPEECH = (
    "two English sentences, spoken or sung by 24 professional actors with a North American accent"
)
LABEL = "the emotion that an actor was asked to play"
FOLDS = [[f"ravdess-{actor:02d}" for actor in range(n, n + 4)] for n in range(1, 25, 4)]  # HiCMAE's
# modality-channel-emotion-intensity-statement-repetition-actor
_NAME = re.compile(
    r"0([123])-0([12])-0([1-8])-0([12])-0([12])-0([12])-(0[1-9]|1\d|2[0-4])", re.ASCII
)


def row(stem: str) -> dict[str, str] | None:
    """The cells of a clip by column; None if the name is another corpus's."""
    match = _NAME.fullmatch(stem)
    if not match:
        return None
    modality, channel, emotion, intensity, statement, repetition, actor = match.groups()
    return {
        "corpus": "ravdess",
        "speaker": actor,
        "emotion": RAVDESS8[int(emotion) - 1],
        "intensity": ("normal", "strong")[int(intensity) - 1],
        "statement": statement,
        "repetition": repetition,
        "modality": ("audio-video", "video", "audio")[int(modality) - 1],
        "channel": ("speech", "song")[int(channel) - 1],
        "sex": ("female", "male")[int(actor) % 2],
    }


def audio_of(stem: str) -> str | None:
    """The name of the audio-only file of the same take, for names of files with video."""
    return f"03-{stem[3:]}" if _NAME.fullmatch(stem) and not stem.startswith("03") else None
