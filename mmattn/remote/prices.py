"""What machines cost by the hour: EC2 on demand, Linux, us-east-1, as published on DATE.

The API for prices needs a permission of its own and answers only in two regions; a dated table
tells the order of magnitude, which is what a plan needs. Spot prices are asked from EC2.
"""

DATE = "2026-01"
DISK = 0.08 / 730  # a GiB and hour of gp3

_PER_LARGE = {  # dollars an hour for the size `large` (2 vCPUs); a family's prices are linear
    "c5": 0.085,
    "c6i": 0.085,
    "c6a": 0.0765,
    "c7i": 0.08925,
    "c7a": 0.10264,
    "c6g": 0.068,
    "c7g": 0.0725,
    "m5": 0.096,
    "m6i": 0.096,
    "m7i": 0.1008,
    "r5": 0.126,
    "r6i": 0.126,
}


def on_demand(instance_type: str, vcpus: int) -> float | None:
    """Dollars an hour; None for a family that is not in the table."""
    family, _, size = instance_type.partition(".")
    if family not in _PER_LARGE or size.startswith("metal"):
        return None
    return _PER_LARGE[family] * vcpus / 2
