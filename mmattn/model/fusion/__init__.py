"""Fusion of the embedded frames of all modalities into one vector per clip; a line for each."""

from mmattn.errors import UserError
from mmattn.model.fusion.base import Fusion
from mmattn.model.fusion.concat import Concat
from mmattn.model.fusion.cross import Cross
from mmattn.model.fusion.late import Late

FUSIONS = {"concat": Concat, "late": Late, "cross": Cross}


def fusion_of(name: str) -> type[Fusion]:
    """The fusion of that name; UserError if there is none."""
    if name not in FUSIONS:
        raise UserError(f"--model.fusion {name}: expected {' or '.join(FUSIONS)}")
    return FUSIONS[name]
