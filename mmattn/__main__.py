"""`python -m mmattn` is the `mmattn` command."""

from mmattn.cli import main

main()
