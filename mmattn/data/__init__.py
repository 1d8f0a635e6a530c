"""Clip files, checks and cache, the built-in corpus, splits, normalisation. NumPy only."""
