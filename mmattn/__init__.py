"""Audio-visual emotion recognition with branched LSTMs and temporal attention, in JAX.

What notebooks need is here, imported when it is first used; docs/tour.ipynb shows it.
"""

import importlib
import logging

__version__ = "0.1.0"

_HOME = {
    "mmattn.config": ("AugmentConfig", "DataConfig", "ModelConfig", "TrainConfig"),
    "mmattn.run.fit": ("fit",),
    "mmattn.run.run": ("load_run",),
    "mmattn.train.callbacks": ("Callback", "Console"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}
__all__ = sorted(_MODULE)

logging.getLogger("mmattn").addHandler(logging.NullHandler())


def __getattr__(name: str) -> object:
    if name not in _MODULE:
        raise AttributeError(f"module 'mmattn' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
