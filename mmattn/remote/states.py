"""The states of a run and what leads from one to another; docs/remote.md shows this table."""

from typing import NamedTuple


class State(NamedTuple):
    """What is so in a state, what costs money then, and which states may come next."""

    so: str
    costs: str
    next: tuple[str, ...]


STATES = {
    "planned": State(
        "no machine was asked for yet, or none was given",
        "nothing",
        ("asked", "there", "removed"),
    ),
    "asked": State(
        "EC2 was asked for the machines; its answer may have been lost",
        "perhaps the machines",
        ("there", "planned", "lost", "removed"),
    ),
    "there": State(
        "the machines are known",
        "the machines",
        ("sent", "lost", "removed"),
    ),
    "sent": State(
        "code and data are on every machine, verified",
        "the machines",
        ("there", "built", "lost", "removed"),
    ),
    "built": State(
        "every machine has its environment",
        "the machines",
        ("there", "started", "lost", "removed"),
    ),
    "started": State(
        "the job was started; it runs or has ended",
        "the machines",
        ("there", "built", "lost", "removed"),
    ),
    "lost": State(
        "the machines are gone; their first volume may be kept",
        "the volume",
        ("asked", "removed"),
    ),
    "removed": State(
        "nothing is left but what was fetched, or is in the bucket",
        "the bucket",
        ("asked", "there"),
    ),
}
ORDER = tuple(STATES)


def is_past(state: str, other: str) -> bool:
    """Whether a run on its machines is in a state or has come further.

    >>> is_past("built", "sent"), is_past("there", "sent"), is_past("lost", "sent")
    (True, False, False)
    """
    way = ORDER[: ORDER.index("lost")]
    return state in way and way.index(state) >= way.index(other)


def table() -> str:
    """The states as a table in Markdown."""
    rows = ["| state | what is so | what costs | next |", "|---|---|---|---|"]
    rows += [
        f"| {name} | {state.so} | {state.costs} | {', '.join(state.next)} |"
        for name, state in STATES.items()
    ]
    return "\n".join(rows)
