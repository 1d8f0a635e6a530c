"""Training: loss, step, devices, checkpoints and the one loop."""
