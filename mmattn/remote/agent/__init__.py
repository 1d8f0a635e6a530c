"""What runs on the rented machine: Python 3.9's standard library, and nothing else of mmattn."""

MARKER = "mmattn:"  # what a noisy .bashrc prints comes before it
