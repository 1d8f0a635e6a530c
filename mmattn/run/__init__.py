"""A run from options to results, and what is done with a run afterwards."""
