"""Audio-visual emotion recognition with branched LSTMs and temporal attention, in JAX.

The interface for notebooks, imported lazily; docs/tour.ipynb shows it.
"""

import importlib
import logging

__version__ = "0.2.0"

_PLACES = {
    "AugmentConfig": "mmattn.config",
    "Callback": "mmattn.train.callbacks",
    "Config": "mmattn.config:ExperimentConfig",
    "Console": "mmattn.train.callbacks",
    "DataConfig": "mmattn.config",
    "Diverged": "mmattn.errors",
    "LeakWarning": "mmattn.library",
    "MLflow": "mmattn.train.trackers",
    "ModelConfig": "mmattn.config",
    "Network": "mmattn.model.network",
    "TensorBoard": "mmattn.train.trackers",
    "TrainConfig": "mmattn.config",
    "UserError": "mmattn.errors",
    "WandB": "mmattn.train.trackers",
    "fit": "mmattn.run.fit",
    "folds": "mmattn.library",
    "load": "mmattn.run.run:load_run",
    "load_corpus": "mmattn.library",
    "load_run": "mmattn.run.run",
    "paired": "mmattn.evaluate.metrics",
    "scores": "mmattn.library",
    "split": "mmattn.library",
    "start": "mmattn.train.devices",
}
__all__ = list(_PLACES)

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, other = _PLACES[name].partition(":")
    return getattr(importlib.import_module(module), other or name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
