"""Rows of timelines."""


def row(start: float, shares, person=None, speaking=None, gap="") -> dict:
    return {
        "start": start,
        "end": start + 3,
        "person": person,
        "speaking": speaking,
        "probabilities": shares,
        "gap": gap,
    }
