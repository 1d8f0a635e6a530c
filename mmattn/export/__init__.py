"""A run as a file for prediction elsewhere: ONNX without JAX, StableHLO with only JAX."""
