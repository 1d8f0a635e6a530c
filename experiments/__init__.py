"""Experiments: each a config of a few lines, run as `python -m experiments.NAME`."""
