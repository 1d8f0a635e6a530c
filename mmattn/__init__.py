"""Audio-visual emotion recognition with branched LSTMs and temporal attention, in JAX."""

__version__ = "0.1.0"
