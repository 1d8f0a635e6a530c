"""Programs for the rented machine: Python 3.9's standard library, nothing else of mmattn."""

MARKER = "mmattn:"  # follows whatever a noisy .bashrc prints
