"""Estimates of a training step on N machines, from measurements on one: pure functions.

A step is compute, a + b · clips on each device, then its collectives, one after the other. Inside
one process a collective is a rendezvous and copies. With several processes, every device is a
separate gloo rank: sums and gathers use a ring of all devices, even between those of one process;
sum and scatter is recursive halving with increasing distance.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from math import ceil, inf, log2
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

from benchmarks.full_size import CLIPS, RATES, SECONDS, WIDTHS

MACHINE, VCPUS = "c5.24xlarge", 96
ON_DEMAND, DISK = 4.08, 0.08 / 730  # dollars per hour, for it and for a GiB of gp3, in us-east-1
PRICES = "2026-01"  # when these were published
MOST = 64  # machines
KINDS = ("all-reduce", "all-gather", "reduce-scatter")


class Collective(NamedTuple):
    """One message of the compiled program."""

    kind: str
    size: int
    """Bytes of the full vector."""
    often: str
    """A "step" or a "dispatch"."""


class Link(NamedTuple):
    """Time of a collective: start + messages · latency + bytes / rate."""

    start: float
    """Seconds, once per collective; none inside a process."""
    latency: float
    """Seconds per message; inside a process, per doubling of the devices."""
    rate: float
    """Bytes per second."""


class Fitted(NamedTuple):
    """The fitted constants."""

    step: float
    """Seconds of compute per step, independent of the clips: a."""
    clip: float
    """Seconds of compute per clip on one device, with all cores busy: b."""
    process: Link
    """Between devices of one process."""
    loopback: Link
    """Between gloo ranks on one machine."""
    collectives: tuple[Collective, ...]
    dispatch: int
    """Steps per dispatch."""
    batches: float
    """Clips per second that one process prepares for its devices."""


@dataclass(frozen=True)
class Assumed:
    """Assumptions, not measured."""

    cores: int = VCPUS // 2
    """Physical cores of a machine, with a device each; no gain from hyperthreads."""
    speed: float = 1.0
    """Speed of a core there, with all busy, relative to one here."""
    latency: float = 75e-6
    """Seconds of a message between machines of one placement group, including gloo."""
    network: float = 25e9 / 8
    """Bytes per second of a machine's network."""
    flow: float = 10e9 / 8
    """Bytes per second of one TCP connection in a placement group (EC2's documentation)."""
    memory: float = 200e9
    """Bytes per second of a machine's memory; a collective moves each byte four times."""
    cache: float = 150e9
    """Bytes of a machine's 192 GiB that can hold clips."""
    disk: float = 125e6
    """Bytes per second of a machine's gp3 volume, as `fab deploy` makes it, with no extra."""
    reads: float = 3e3
    """Reads per second of the volume; a clip takes four, of at most 128 KiB."""
    joined: bool = False
    """If each process first summed over its own devices, so that only processes are ranks."""
    clips: int = 10**7
    epochs: int = 30
    spot: float = 1.56
    """Dollars per hour of a spot machine."""
    dearer: float = 1.5
    """Machines stop paying off when a clip costs more than this multiple of its cost on one."""

    @property
    def on_demand(self) -> float:
        """Dollars per hour of a machine."""
        return ON_DEMAND

    @property
    def volume(self) -> float:
        """Dollars per hour of a gp3 volume, with its throughput and reads (us-east-1), of the size
        that `fab deploy` gives it: the corpus, its packed cache, spare, and code."""
        gib = 20 + 2.5 * corpus_bytes(self) / 2**30
        extra = 0.04 * max(0, self.disk / 1e6 - 125) + 0.005 * max(0, self.reads - 3000)
        return gib * DISK + extra / 730


class Plan(NamedTuple):
    """The fastest way for N machines to train with one batch size."""

    machines: int
    devices: int
    """Devices per machine."""
    batch: int
    """Clips per step, over all machines."""
    seconds: float
    """Seconds per step."""
    limit: str
    """The bottleneck of a step."""

    @property
    def rate(self) -> float:
        """Clips per second."""
        return self.batch / self.seconds


# Measured


def read_program(text: str, ranks: int) -> list[Collective]:
    """The collectives in the text of a compiled program (HLO); those in its loop are per step.

    Each array of a collective is a separate message.
    """
    found, often = [], "step"
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            often = "dispatch" if line.startswith("ENTRY") else "step"
        if match := re.search(rf" = (.+?) ({'|'.join(KINDS)})\(", line):
            arrays, kind = match.groups()
            for bits, shape in re.findall(r"[a-z]+(\d*)\[([\d,]*)\]", arrays):
                size = int(np.prod([int(n) for n in shape.split(",") if n])) * int(bits or 8) // 8
                found.append(Collective(kind, size * (ranks if kind == KINDS[2] else 1), often))
    return found


def fit_link(
    timings: Iterable[tuple[int, Sequence[str], int, float]], sockets: bool, without: str = ""
) -> Link:
    """The link with the least relative error on (ranks, kinds, bytes, seconds).

    It can be fitted without "start" or without "latency".
    """
    units = Link(Link(1, 0, inf), Link(0, 1, inf), Link(0, 0, 1))
    rows = [
        [
            sum(inside(Collective(kind, size, ""), ranks, link, sockets) for kind in kinds)
            / seconds
            * (name != without)
            for name, link in units._asdict().items()
        ]
        for ranks, kinds, size, seconds in timings
    ]
    (start, latency, slowness), _ = nnls(np.array(rows), np.ones(len(rows)))
    return Link(float(start), float(latency), 1 / float(slowness) if slowness else inf)


def fit_compute(seconds: Mapping[int, float], exchange: float) -> tuple[float, float]:
    """The a and b of steps with several numbers of clips, minus their exchange."""
    times = np.array([max(time - exchange, 1e-9) for time in seconds.values()])
    rows = np.stack([np.ones(len(times)), np.array(list(seconds))], axis=1)
    (step, clip), _ = nnls(rows / times[:, None], np.ones(len(times)))
    return float(step), float(clip)


def inside(one: Collective, ranks: int, link: Link, sockets: bool) -> float:
    """Seconds on one machine, between gloo ranks (through sockets) or inside a process."""
    if ranks == 1:
        return 0.0
    tours = 2 if one.kind == "all-reduce" else 1
    moved = tours * one.size
    if not sockets:  # each device reads a part of all and writes to all, or vice versa
        return log2(ranks) * link.latency + moved / link.rate
    messages = ceil(log2(ranks)) if one.kind == "reduce-scatter" else tours * (ranks - 1)
    return link.start + messages * link.latency + moved * (ranks - 1) / ranks / link.rate


def predict(fitted: Fitted, processes: int, each: int, clips: int, cores: int) -> float:
    """Seconds of a step with `clips` per device on the measured machine."""
    ranks = processes * each
    link = fitted.loopback if processes > 1 else fitted.process
    exchange = _a_step(fitted, lambda one: inside(one, ranks, link, processes > 1))
    return turns(ranks, cores) * (fitted.step + fitted.clip * clips + exchange)


def turns(ranks: int, cores: int) -> float:
    """The factor on time if there are more devices than cores."""
    return max(1.0, ranks / cores)


# Computed


def collective_seconds(
    one: Collective, machines: int, each: int, fitted: Fitted, assumed: Assumed
) -> float:
    """Seconds of a collective between `each` devices of several machines.

    All-gather: R - 1 sequential messages pass a part around the ring of R devices; all-reduce:
    twice that. A part passes between machines as often as there are machines; all parts share one
    connection there. Reduce-scatter: log2 R messages, the larger ones between near devices; all
    connections to another machine share its network.
    """
    most = assumed.memory / (4 * each)
    process, loopback = (
        link._replace(rate=min(link.rate, most)) for link in (fitted.process, fitted.loopback)
    )
    if machines == 1:
        return inside(one, each, process, sockets=False)
    if assumed.joined and each > 1:
        between = collective_seconds(one, machines, 1, fitted, assumed)
        return inside(one, each, process, sockets=False) + between
    if one.kind == "reduce-scatter":
        sent = one.size * (1 - 1 / machines)
        within = inside(one, each, loopback, sockets=True) if each > 1 else loopback.start
        return within + ceil(log2(machines)) * assumed.latency + sent / assumed.network
    tours = 2 if one.kind == "all-reduce" else 1
    hops = machines * each - 1
    far = min(machines, hops)
    tour = far * assumed.latency + (hops - far) * loopback.latency
    sent = one.size * hops / (hops + 1)
    return loopback.start + tours * (tour + sent / min(loopback.rate, assumed.flow))


def _a_step(fitted: Fitted, seconds) -> float:
    """Seconds of the collectives per step, with its part of those per dispatch."""
    return sum(
        seconds(one) / (fitted.dispatch if one.often == "dispatch" else 1)
        for one in fitted.collectives
    )


def plan(fitted: Fitted, assumed: Assumed, machines: int, batch: int) -> Plan | None:
    """The fastest number of devices per machine; None if there are more machines than clips."""
    found = [
        _plan(fitted, assumed, machines, each, batch)
        for each in range(1, min(assumed.cores, batch // machines) + 1)
    ]
    return min(found, key=lambda one: one.seconds, default=None)


def _plan(fitted: Fitted, assumed: Assumed, machines: int, each: int, batch: int) -> Plan:
    clips = ceil(batch / (machines * each))
    compute = (fitted.step + fitted.clip * clips) / assumed.speed
    exchange = _a_step(fitted, lambda one: collective_seconds(one, machines, each, fitted, assumed))
    read = reading(assumed)
    made = 1 / (fitted.batches * assumed.speed)
    # While the devices train, clips are read and prepared. Reading ahead is assumed to keep the
    # volume busy (`mmattn/train/feed.py`).
    training = {"compute": compute, "collectives": exchange}
    slower = max(
        training,
        {"making batches": clips * each * made},
        {"reading": clips * each * read},
        key=lambda parts: sum(parts.values()),
    )
    return Plan(machines, each, batch, sum(slower.values()), max(slower, key=slower.get))


def reading(assumed: Assumed) -> float:
    """Seconds in which the volume reads a clip; memory holds some of the clips."""
    missing = 1 - min(1, assumed.cache / corpus_bytes(assumed))
    return missing * max(clip_bytes() / assumed.disk, 4 / assumed.reads)


def paying(plans: Iterable[Plan], assumed: Assumed) -> Plan:
    """The last plan up to which each one's clips cost at most `dearer` times the first one's."""
    first, *others = plans

    def worth(one: Plan) -> bool:
        return one.machines * first.rate <= assumed.dearer * first.machines * one.rate

    return [first, *takewhile(worth, others)][-1]


def plans(fitted: Fitted, assumed: Assumed, batch: int | None, weak: int) -> list[Plan]:
    """A plan for each number of machines; without `batch`, `weak` clips per core."""
    found = (
        plan(fitted, assumed, machines, batch or weak * assumed.cores * machines)
        for machines in range(1, MOST + 1)
    )
    return [one for one in found if one is not None]


def hours(one: Plan, assumed: Assumed) -> float:
    """Hours for all epochs over the corpus, including the copying before."""
    training = assumed.epochs * assumed.clips / one.rate / 3600
    return training + copying(assumed)


def copying(assumed: Assumed) -> float:
    """Hours in which all machines, in parallel, copy the corpus from a bucket to their volumes."""
    return corpus_bytes(assumed) / min(assumed.disk, assumed.network) / 3600


def dollars(one: Plan, assumed: Assumed, spot: bool = False) -> float:
    """Cost of machines and volumes for these hours."""
    an_hour = (assumed.spot if spot else assumed.on_demand) + assumed.volume
    return one.machines * an_hour * hours(one, assumed)


def corpus_bytes(assumed: Assumed) -> float:
    """Bytes of all clips."""
    return assumed.clips * clip_bytes()


def clip_bytes() -> float:
    """Bytes of the frames and times of a mean clip of RAVDESS and CREMA-D together."""
    seconds = sum(SECONDS[name] * count for name, count in CLIPS.items()) / sum(CLIPS.values())
    return seconds * sum(rate * (4 * WIDTHS[name] + 8) for name, rate in RATES.items())
