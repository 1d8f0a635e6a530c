"""Side-by-side measurements of speed: each module is a command, see README.md."""
