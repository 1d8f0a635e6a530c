"""A run, from options to results, and its use afterwards."""
