"""What runs on the machine itself: Python 3.9 and its standard library, nothing else of mmattn."""
