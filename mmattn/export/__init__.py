"""A run as a file that predicts elsewhere: ONNX without JAX, StableHLO with JAX alone."""
