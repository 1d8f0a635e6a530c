"""Audio-visual emotion recognition with branched LSTMs and temporal attention, in JAX."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mmattn.config import ExtractConfig
    from mmattn.run.predictor import Predictor

__version__ = "0.1.0"


def load(
    run: Path | str,
    checkpoint: Literal["best", "final"] = "best",
    media: "ExtractConfig | None" = None,
) -> "Predictor":
    """The networks of a run, ready to predict clips.

    Args:
        run: the run's folder; the networks of folds or an ensemble are averaged.
        checkpoint: of each network.
        media: where the models for raw clips are, if not in their usual places.

    Raises:
        UserError: no run, one that is not complete, or no such checkpoint.

    >>> predictor = mmattn.load(run)  # a folder like "runs/no_aug/20260101-120000"
    >>> found = predictor.predict(clip)  # a raw clip, "talk.mp4", or a feature file, "talk.npz"
    >>> found.predicted == found.class_names[found.probabilities.argmax()]
    True
    >>> audio = found.streams["audio"]
    >>> most = audio.times[audio.attention.argmax()]  # seconds
    >>> predictions, failures = predictor.predict_all([clip, "nowhere.npz"])
    >>> failures[0].reason
    'unreadable: No such file or directory'
    """
    from mmattn.run.predictor import Predictor

    return Predictor(Path(run), checkpoint, media)
