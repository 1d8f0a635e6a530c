"""What RAVDESS and CREMA-D file names say, and the label schemes."""

import re
from dataclasses import dataclass

SIX = ("anger", "disgust", "fear", "happy", "neutral", "sad")
RAVDESS8 = ("neutral", "calm", "happy", "sad", "anger", "fear", "disgust", "surprised")
CORPUS_TITLES = {"ravdess": "RAVDESS", "crema-d": "CREMA-D"}

_CREMA_D_EMOTIONS = {
    "ANG": "anger",
    "DIS": "disgust",
    "FEA": "fear",
    "HAP": "happy",
    "NEU": "neutral",
    "SAD": "sad",
}
_CREMA_D_LEVELS = {
    "LO": "low",
    "MD": "medium",
    "HI": "high",
    "XX": "unspecified",
    "X": "unspecified",
}
# modality-channel-emotion-intensity-statement-repetition-actor
_RAVDESS = re.compile(
    r"0[123]-0[12]-0([1-8])-0([12])-0([12])-0([12])-(0[1-9]|1\d|2[0-4])", re.ASCII
)
_CREMA_D = re.compile(
    rf"(1\d{{3}})_([A-Z]{{3}})_({'|'.join(_CREMA_D_EMOTIONS)})_({'|'.join(_CREMA_D_LEVELS)})",
    re.ASCII,
)


@dataclass(frozen=True)
class ClipName:
    """A clip's file name, read: ravdess-12 and crema-d-1001 are speakers."""

    stem: str
    corpus: str  # ravdess or crema-d
    speaker: str
    emotion: str  # one of RAVDESS8
    intensity: str  # normal or strong; low, medium, high or unspecified
    sentence: str  # 1 or 2; three letters
    repetition: int


def parse_name(stem: str) -> ClipName:
    """Read a file name without its ending; ValueError if neither corpus names files so.

    >>> parse_name("1001_DFA_ANG_XX").speaker
    'crema-d-1001'
    """
    if match := _RAVDESS.fullmatch(stem):
        emotion, intensity, statement, repetition, actor = match.groups()
        return ClipName(
            stem,
            "ravdess",
            f"ravdess-{actor}",
            RAVDESS8[int(emotion) - 1],
            ("normal", "strong")[int(intensity) - 1],
            statement,
            int(repetition),
        )
    if match := _CREMA_D.fullmatch(stem):
        actor, sentence, emotion, level = match.groups()
        return ClipName(
            stem,
            "crema-d",
            f"crema-d-{actor}",
            _CREMA_D_EMOTIONS[emotion],
            _CREMA_D_LEVELS[level],
            sentence,
            1,
        )
    raise ValueError(
        "the name is neither RAVDESS (03-01-05-01-02-01-12) nor CREMA-D (1001_DFA_ANG_XX)"
    )


def class_names(scheme: str) -> tuple[str, ...]:
    """The classes of label scheme `six` or `ravdess8`, in the order of their labels."""
    return {"six": SIX, "ravdess8": RAVDESS8}[scheme]


def label_of(emotion: str, scheme: str) -> int | None:
    """The label of an emotion; None where the scheme leaves it out."""
    if scheme == "six" and emotion == "calm":
        emotion = "neutral"
    classes = class_names(scheme)
    return classes.index(emotion) if emotion in classes else None
