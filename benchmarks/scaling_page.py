"""Writes docs/scaling.md: measured times of several processes, and estimates for a cluster.

python -m benchmarks.scaling_page             # measures first: several minutes on an idle machine

python -m benchmarks.scaling_page --stored    # from docs/scaling.json, measured before

The text below has no machine-dependent content: numbers and verdicts are filled in.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from textwrap import TextWrapper
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, ScalarFormatter

from benchmarks import cluster
from benchmarks.cluster import Assumed, Collective, Fitted, Link, Plan
from benchmarks.distributed import (
    EXCHANGES,
    Options,
    Result,
    exchange_rows,
    read_result,
    scaling_rows,
)
from benchmarks.full_size import SECONDS
from benchmarks.machine import command
from benchmarks.scaling import WEAK
from mmattn.console import say
from mmattn.errors import UserError
from mmattn.evaluate.plots import BLUE, DPI, GREEN, ORANGE

SHOWN = (1, 2, 4, 8, 16, 32, 64)  # machines
GLOO = {  # splits of its latency, and what each leaves out of the fit
    "as above": "",
    "all of gloo's latency in its messages": "start",
    "none of it in messages": "latency",
}


@dataclass(frozen=True)
class Page(Options):
    """Measure several processes on this machine and write a page about it."""

    page: Path = Path("docs/scaling.md")
    """The page; measurements and plot are stored next to it."""
    stored: bool = False
    """Measure nothing: write the page from the last measurements."""

    def __call__(self) -> None:
        path = self.json or self.page.with_suffix(".json")
        if not self.stored:
            Options.__call__(replace(self, json=path))
        elif not path.exists():
            raise UserError(f"--stored: expected measurements in {path}, found no file")
        found = json.loads(path.read_text())
        results = [read_result(result) for result in found["results"]]
        batch, cores = found["batch"], found["machine"]["cores"]
        fits = {name: fit(results, cores, without) for name, without in GLOO.items()}
        fitted, assumed, figure = fits["as above"], Assumed(), self.page.with_suffix(".png")
        plot(fitted, assumed, figure, batch)
        verdicts = {
            name: verdict(*constants, batch) for name, constants in variants(fits, assumed).items()
        }
        parts = [
            opening(found["machine"], os.path.relpath(path, self.page.parent)),
            short(fitted, assumed, batch, verdicts),
            *measured(results, batch, cores),
            *model(results, fitted, assumed, cores),
            *computed(fitted, assumed, batch, figure.name),
            *corpus(results, fitted, assumed),
            *firm(verdicts, batches(batch, assumed)[-1]),
        ]
        texts = (filled(x) for part in parts for x in part.split("\n\n") if x)
        self.page.write_text("\n\n".join(texts) + "\n")
        say(f"written: {self.page}")


def timings(one: Result, lengths: Sequence[int], cores: int) -> list[tuple]:
    """Collectives measured separately: ranks, kinds, bytes, seconds corrected for taking turns."""
    return [
        (one.devices, kinds, 4 * size, times[size] / cluster.turns(one.devices, cores))
        for kinds, times in (
            (("reduce-scatter", "all-gather"), one.exchange),
            (("all-reduce",), one.total),
        )
        for size in lengths
    ]


def ends(one: Result) -> tuple[int, int]:
    """The shortest and the longest vector: about the lengths in a training step."""
    return min(one.total), max(one.total)


def rings(results: Sequence[Result]) -> list[Result]:
    """Results with several processes: every device is a gloo rank, and its time grows with them."""
    return [one for one in results if one.processes > 1]


def fit(results: Sequence[Result], cores: int, without: str = "") -> Fitted:
    """The model's constants, from one process on all cores and collectives of several processes.

    `without` leaves out gloo's "start" or "latency".
    """
    alone, together = bases(results, cores)
    process, loopback = (
        cluster.fit_link(
            [t for one in shapes for t in timings(one, ends(one), cores)], sockets, without
        )
        for shapes, sockets, without in (([alone], False, ""), (rings(results), True, without))
    )
    found = Fitted(
        *(0, 0, process, loopback), tuple(together.collectives), alone.dispatch, alone.batches
    )
    exchange = cluster.predict(found, 1, alone.devices, 0, cores)
    step, clip = cluster.fit_compute(alone.steps, exchange)
    return found._replace(step=step, clip=clip)


def bases(results: Sequence[Result], cores: int) -> tuple[Result, Result]:
    """The shapes that the model is fitted to: one process, and one device per process.

    Both have as many devices as cores, or the nearest number measured.
    """
    several = [one for one in results if 1 < one.devices <= cores]
    alone = [one for one in several if one.processes == 1]
    together = [one for one in several if one.processes == one.devices]
    if not (alone and together):
        raise UserError(f"--shapes: expected both 1xN and Nx1, N from 2 to the {cores} cores")
    return max(alone, key=lambda one: one.devices), max(together, key=lambda one: one.devices)


# The page


def opening(about: dict, name: str) -> str:
    """Title, and the source of the measurements."""
    versions = ", ".join(f"{package} {number}" for package, number in about["versions"].items())
    return f"""# Scaling over processes and machines

Written by `python -m benchmarks.scaling_page`. It measures on one machine (sections *Measured*),
fits a model to the measurements, and computes times for N {cluster.MACHINE} machines (sections
*Computed*). **No cluster was used: all numbers for one are computed.** `--stored` rewrites the page
from [{name}]({name}); the model is `benchmarks/cluster.py`.

Measured {about["date"]} on {about["cores"]} cores of {about["cpu"]}, {about["memory_gb"]} GB;
Python {about["python"]}, {versions};
commit {about["commit"]}, `{about["command"]}`."""


def short(fitted: Fitted, assumed: Assumed, batch: int, verdicts: Mapping[str, "Verdict"]) -> str:
    """The answers in a paragraph; ranges are over the fits of gloo's latency."""
    found = [verdicts[name] for name in GLOO]
    one = every(fitted, assumed, None, disk=True)[0]
    return f"""In short, computed: with all clips in memory and {WEAK} clips per core and step,
more machines pay off up to N = {span((x.weak for x in found), count)}; with
{batches(batch, assumed)[-1]:,} clips per step, up to N =
{span((x.strong for x in found), count)}. {assumed.epochs} epochs over {assumed.clips:,} clips
from disk take {cluster.hours(one, assumed):,.1f} hours and ${cluster.dollars(one, assumed):,.0f} on
one machine, and {span((x.hours for x in found), "{:,.1f}".format)} hours and
{span((x.dollars for x in found), "${:,.0f}".format)} on the number that pays off with {WEAK} per
core. Ranges are over the least certain constant: the part of gloo's latency that is in its
messages, which may be all, none, or the fitted part (which gives N = {count(found[0].weak)} and
{count(found[0].strong)}). Other assumptions are below; whether batches of that size train as well
is not known."""


def measured(results: Sequence[Result], batch: int, cores: int) -> list[str]:
    """The measurements."""
    first, names = results[0], [one.name for one in results]
    program = max(results, key=lambda one: (one.processes > 1, -one.devices))
    kinds = Counter(program.collectives)
    cells = [
        (one.kind, f"{number}", f"{one.size:,}", f"{one.often}")
        for one, number in sorted(kinds.items(), key=lambda item: -item[0].size)
    ]
    return [
        "## Measured: the training step",
        f"""The network has {first.parameters:,} parameters, as that of `experiments.no_aug` if no
option changes it. Full-size clips are padded to {first.frames["audio_frames"]} audio and
{first.frames["video_frames"]} video frames, {first.dispatch} steps per dispatch. Strong: {batch}
clips per step; weak: {WEAK} clips per device. In brackets: ratio to the first row. All rows have
the same {cores} cores: more devices than that take turns.""",
        table(
            "processes × devices | strong, clips/s | weak, clips/s", scaling_rows(results, batch)
        ),
        "## Measured: collectives by message size",
        *(
            part
            for title, rows in zip(EXCHANGES, exchange_rows(results), strict=True)
            for part in (f"{title}.", table("float32 | " + " | ".join(names), rows))
        ),
        f"""The collectives in the compiled program of {program.name}: the large ones are gradient
and parameters, the small ones batch norm
({sum(one.size for one in program.collectives if one.often == "step"):,} bytes per step).""",
        table("collective | number | bytes | once per", cells),
    ]


def model(results: Sequence[Result], fitted: Fitted, assumed: Assumed, cores: int) -> list[str]:
    """The fit, its quality, and the assumptions."""
    alone, _ = bases(results, cores)
    busy = WEAK / fitted.batches / (fitted.step + fitted.clip * WEAK)
    of_gloo = ", ".join(one.name for one in rings(results))
    rows = [
        (f"compute per step, a ({alone.name})", f"{1e3 * fitted.step:.2f} ms"),
        (f"compute per clip, b ({alone.name})", f"{1e3 * fitted.clip:.2f} ms"),
        (
            f"rendezvous of a process's devices ({alone.name})",
            f"{1e6 * fitted.process.latency:.0f} µs",
        ),
        (f"their exchange ({alone.name})", rate(fitted.process)),
        (f"start of a gloo collective ({of_gloo})", f"{1e6 * fitted.loopback.start:.0f} µs"),
        (f"each gloo message ({of_gloo})", f"{1e6 * fitted.loopback.latency:.0f} µs"),
        (f"gloo over loopback ({of_gloo})", rate(fitted.loopback)),
        (f"batches prepared by a process ({alone.name})", f"{fitted.batches:,.0f} clips/s"),
    ]
    steps, exchanges = checks(results, fitted, cores)
    ratios = [
        cluster.predict(fitted, one.processes, one.devices // one.processes, clips, cores) / seconds
        for one in results
        if one.processes > 1 and one.devices <= cores
        for clips, seconds in one.steps.items()
    ]
    return [
        "## The model",
        """A step takes a + b · clips on each device, then its collectives, one after the other.
Meanwhile the volume reads clips ahead and a thread makes batches; the slowest of the three
determines the time. JAX makes every device a separate gloo rank, even within a process. It uses a
ring for all-gather (R − 1 sequential messages between R ranks) and all-reduce (2 (R − 1)), and
recursive halving with increasing distance for reduce-scatter (log₂ R): this comes from the sources
of XLA and gloo, and was not measured. As many of a ring's messages pass between machines as there
are machines; the others stay on loopback. A machine uses the number of cores that is fastest.""",
        """Fitted by least relative error; for collectives, to the shortest and the longest vectors,
which have about the lengths in a step:""",
        table("constant | value", rows),
        f"""Computed and measured ms per step. Only the rows marked "fitted" entered the fit. For
several processes with no more devices than cores, computed is {span(ratios, "{:.2f}".format)}
times measured.""",
        table("processes × devices | clips per device | computed | measured | ratio | ", steps),
        """Computed and measured ms per collective. The growth of gloo's time with its ranks was
measured on only a few ranks, and beyond the cores only with devices taking turns. So the least
certain constants are the times per message and per collective; the last table has both
extremes.""",
        table(
            "processes × devices | collective | bytes | computed | measured | ratio | ", exchanges
        ),
        "### Assumed, not measured",
        f"""- {cluster.MACHINE}: {assumed.cores} physical cores ({cluster.VCPUS} vCPUs; no gain
  from hyperthreads), one process with a device per core. A core there, with all {assumed.cores}
  busy, is as fast as one here with {cores} busy.
- A message between machines of a placement group takes {1e6 * assumed.latency:.0f} µs, including
  gloo and kernel; a machine sends {8e-9 * assumed.network:.0f} Gbit/s, one TCP connection
  {8e-9 * assumed.flow:.0f} Gbit/s; no other job is on the network.
- Memory bandwidth is {1e-9 * assumed.memory:.0f} GB/s per machine, and a collective moves each byte
  four times. A rendezvous in a process grows as log₂ of its devices. A gloo rank's latency does not
  grow with other ranks of its process, though they share one thread for their sockets: optimistic
  with many devices.
- The halves of a reduce-scatter are assumed to align with machines, so that all but an Nth of a
  vector crosses; with {assumed.cores} devices per machine they do not, and more crosses: optimistic
  too.
- The thread that makes batches takes no time from the cores, though all compute: with {WEAK} clips
  per device it would take {100 * busy:.1f} % of their time.
- No machine is slower than the others; validation, checkpoints and start-up are left out.
- Every machine has the corpus on its own gp3 volume, as `fab deploy` makes it, with
  {assumed.disk / 1e6:,.0f} MB/s and {assumed.reads:,.0f} reads/s (a clip takes four), and
  {assumed.cache / 1e9:.0f} GB of it in memory: each epoch distributes the clips anew, so a machine
  needs all of them. Reading ahead is assumed to keep the volume busy; this was not measured on such
  a volume, but `python -m benchmarks.pipeline` measures it on a local disk.
- All machines read the corpus from a bucket (`fab deploy --data s3://…`) in parallel, as fast as
  their networks and volumes allow.
- ${assumed.on_demand:.2f} per hour on demand (us-east-1, {cluster.PRICES}), ${assumed.spot:.2f} on
  spot, ${assumed.volume:.2f} for the volume.
- **An epoch with large batches is assumed to be as good as one with small ones. It is not**: more
  clips per step mean fewer steps per epoch, and beyond some size training needs more epochs or
  another learning rate, or the result is worse. Nothing here shows where.""",
    ]


def checks(results: Sequence[Result], fitted: Fitted, cores: int) -> tuple[list, list]:
    """The model's values for all measurements: steps and separate collectives."""

    def row(one: Result, expected: float, found: float, *about: str) -> tuple[str, ...]:
        times = f"{1e3 * expected:.2f}", f"{1e3 * found:.2f}", f"{expected / found:.2f}"
        return one.name, *about, *times

    alone, _ = bases(results, cores)
    steps, exchanges = [], []
    for one in results:
        for clips, seconds in one.steps.items():
            each = one.devices // one.processes
            expected = cluster.predict(fitted, one.processes, each, clips, cores)
            known = "fitted" if one is alone else "not fitted"
            steps.append((*row(one, expected, seconds, f"{clips}"), known))
        sockets = one.processes > 1
        link = fitted.loopback if sockets else fitted.process
        shown = (min(one.total), sorted(one.total)[len(one.total) // 2], max(one.total))
        for ranks, kinds, size, seconds in timings(one, shown, cores) if one.devices > 1 else ():
            expected = sum(
                cluster.inside(Collective(kind, size, ""), ranks, link, sockets) for kind in kinds
            )
            factor = cluster.turns(ranks, cores)
            found = row(one, factor * expected, factor * seconds, " + ".join(kinds), f"{size:,}")
            known = one in (alone, *rings(results)) and size // 4 in ends(one)
            exchanges.append((*found, "fitted" if known else "not fitted"))
    return steps, exchanges


class Verdict(NamedTuple):
    """The conclusions from one set of constants and assumptions."""

    strong: int
    """Number of machines that pay off with the largest batch, clips in memory."""
    weak: int
    """The same with a fixed number of clips per core."""
    rate: float
    """Clips/s of the latter from disk; then hours and dollars for the corpus."""
    hours: float
    dollars: float


def verdict(fitted: Fitted, assumed: Assumed, batch: int) -> Verdict:
    """How many machines pay off, and the time and cost of the corpus on them."""
    strong, weak = (
        cluster.paying(every(fitted, assumed, size), assumed).machines
        for size in (batches(batch, assumed)[-1], None)
    )
    one = every(fitted, assumed, None, disk=True)[weak - 1]
    costs = cluster.hours(one, assumed), cluster.dollars(one, assumed)
    return Verdict(strong, weak, one.rate, *costs)


def variants(fits: Mapping[str, Fitted], assumed: Assumed) -> dict[str, tuple[Fitted, Assumed]]:
    """Other constants, and other assumptions."""
    volume = replace(assumed, disk=1e9, reads=16e3)
    others = {
        "latency between machines × 3": replace(assumed, latency=3 * assumed.latency),
        "half the network": replace(assumed, network=assumed.network / 2, flow=assumed.flow / 2),
        "a core 30 % slower": replace(assumed, speed=0.7 * assumed.speed),
        "a core 30 % faster": replace(assumed, speed=1.3 * assumed.speed),
        "processes, not devices, as ranks": replace(assumed, joined=True),
        "half the throughput of the volume": replace(
            assumed, disk=assumed.disk / 2, reads=assumed.reads / 2
        ),
        f"a volume of 1,000 MB/s and 16,000 reads/s (${volume.volume:.2f} per hour)": volume,
    }
    return {name: (fitted, assumed) for name, fitted in fits.items()} | {
        name: (fits["as above"], other) for name, other in others.items()
    }


def computed(fitted: Fitted, assumed: Assumed, batch: int, figure: str) -> list[str]:
    """The model's values for clusters with all clips in memory."""
    sizes = (*batches(batch, assumed), None)
    found = {size: every(fitted, assumed, size) for size in sizes}
    stops = []
    for size, plans in found.items():
        best, quickest = cluster.paying(plans, assumed), max(plans, key=lambda one: one.rate)
        cells = [x for one in (best, quickest) for x in (count(one.machines), f"{one.rate:,.0f}")]
        stops.append((f"{size:,}" if size else f"{WEAK} per core", *cells))
    strong = sizes[-2]
    return [
        f"## Computed: N {cluster.MACHINE} machines",
        f"![Clips per second and dollars by number of machines]({figure})",
        f"Computed, strong scaling: {strong:,} clips per step, all clips in memory.",
        plan_table(found[strong]),
        f"Computed, weak scaling: {WEAK} clips per core and step, all clips in memory.",
        plan_table(found[None]),
        f"""### Where it stops paying off

N machines pay off if, up to N, a clip costs at most {assumed.dearer:g} times its cost on one
machine, that is, if the efficiency is at least {1 / assumed.dearer:.2f}. Up to {cluster.MOST}
machines were considered. Computed, with all clips in memory:""",
        table("clips per step | pay off up to | clips/s | fastest | clips/s", stops),
    ]


def corpus(results: Sequence[Result], fitted: Fitted, assumed: Assumed) -> list[str]:
    """The model's values for a large corpus on each machine's disk."""
    found = [one for one in every(fitted, assumed, None, disk=True) if one.machines in SHOWN]
    rows = [
        (
            f"{one.machines}",
            f"{one.batch:,}",
            f"{cluster.hours(one, assumed):,.1f}",
            f"{cluster.copying(assumed):,.1f}",
            f"{cluster.dollars(one, assumed):,.0f}",
            f"{cluster.dollars(one, assumed, spot=True):,.0f}",
            one.limit,
        )
        for one in found
    ]
    return [
        f"""### A corpus of {assumed.clips:,} clips

Clips like those of RAVDESS and CREMA-D together ({cluster.clip_bytes() / 1e3:.0f} kB each,
{cluster.corpus_bytes(assumed) / 1e9:,.0f} GB), {assumed.epochs} epochs, weak scaling, read from the
volume of each machine. Compute is that of the padded clips measured above,
{results[0].frames["audio_frames"] / 100:.1f} s long; the mean clip of RAVDESS has
{SECONDS["ravdess"]:.1f} s, that of CREMA-D {SECONDS["crema-d"]:.1f} s. Hours and dollars include
training and, before it, copying from the bucket, but not the upload to it. Computed:""",
        table(
            "machines | clips per step | hours | of them copying | $ on demand | $ spot | "
            "bottleneck",
            rows,
        ),
    ]


def firm(verdicts: Mapping[str, Verdict], strong: int) -> list[str]:
    """The effect of other constants and assumptions."""
    rows = []
    for name, one in verdicts.items():
        costs = f"{one.rate:,.0f}", f"{one.hours:,.1f}", f"{one.dollars:,.0f}"
        rows.append((name, count(one.strong), count(one.weak), *costs))
    return [
        f"""### Sensitivity

Computed with other assumptions: the number of machines that pays off with {strong:,} clips per step
(strong) and with {WEAK} per core (weak), as above with clips in memory, and the rate, hours and
dollars of the corpus on the latter number.""",
        table("assumption | strong | weak | clips/s | hours | $ on demand", rows),
    ]


def batches(batch: int, assumed: Assumed) -> tuple[int, ...]:
    """Clips per step in strong scaling: the default, and full cores on one and eight machines."""
    return batch, WEAK * assumed.cores, 8 * WEAK * assumed.cores


def every(fitted: Fitted, assumed: Assumed, batch: int | None, disk: bool = False) -> list[Plan]:
    """Each number of machines, with one batch size or a fixed number of clips per core.

    Clips are in memory, unless `disk`.
    """
    assumed = assumed if disk else replace(assumed, cache=inf)
    return cluster.plans(fitted, assumed, batch, WEAK)


def rate(link: Link) -> str:
    """Bytes per second as text."""
    return f"{link.rate / 1e9:.2f} GB/s" if link.rate < inf else "no limit measured"


def count(machines: int) -> str:
    """The number of machines; the maximum considered means that or more."""
    return f"{machines}" + (" or more" if machines == cluster.MOST else "")


def span(values: Iterable[float], text: Callable[[float], str]) -> str:
    """The least and the most, or one text if they look the same."""
    values = list(values)
    return " to ".join(dict.fromkeys((text(min(values)), text(max(values)))))


def plan_table(plans: Sequence[Plan]) -> str:
    """Some of the plans, one per row."""
    return table(
        "machines | devices each | ms per step | clips/s | efficiency | bottleneck",
        [
            (
                f"{one.machines}",
                f"{one.devices}",
                f"{1e3 * one.seconds:.1f}",
                f"{one.rate:,.0f}",
                f"{one.rate / one.machines / plans[0].rate:.2f}",
                one.limit,
            )
            for one in plans
            if one.machines in SHOWN
        ],
    )


def table(columns: str, rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; the columns' names are divided by " | "."""
    lines = [f"| {' | '.join(row)} |" for row in (columns.split(" | "), *rows)]
    lines.insert(1, "|---" * (columns.count(" | ") + 1) + "|")
    return "\n".join(lines)


def filled(text: str) -> str:
    """A paragraph or a list with lines of equal length."""
    if text[0] in "#|!":
        return text
    items = text.split("\n- ") if text.startswith("- ") else [text]
    indent = "  " * text.startswith("- ")
    wrap = TextWrapper(100, subsequent_indent=indent, break_on_hyphens=False).fill
    return "\n".join(
        wrap(("- " if number else "") + " ".join(item.split())) for number, item in enumerate(items)
    )


def plot(fitted: Fitted, assumed: Assumed, path: Path, batch: int) -> None:
    """Clips a second and dollars a million clips by machines; a dot where they stop paying."""
    figure = Figure(figsize=(9, 3.8))
    figure.set_layout_engine("constrained")
    rates, costs = figure.subplots(1, 2)
    sizes = (*batches(batch, assumed)[1:], None)
    for size, colour in zip(sizes, (GREEN, ORANGE, BLUE), strict=True):
        found = every(fitted, assumed, size)
        machines = [one.machines for one in found]
        cost = [1e6 / 3600 * one.machines * assumed.on_demand / one.rate for one in found]
        label = f"{size:,} clips a step" if size else f"{WEAK} clips a core and step"
        last = machines.index(cluster.paying(found, assumed).machines)
        for axes, values in ((rates, [one.rate for one in found]), (costs, cost)):
            axes.plot(machines, values, color=colour, label=label)
            axes.plot(machines[last], values[last], "o", color=colour)
    rates.set_ylabel("clips/s (computed)")
    costs.set_ylabel("$ a million clips (computed)")
    for axes in (rates, costs):
        axes.set(xlabel=f"machines, {cluster.MACHINE}", xscale="log", yscale="log")
        axes.set_xticks(SHOWN)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,g}"))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    rates.legend(
        fontsize=9, frameon=False, title="dot: the last machine that pays", title_fontsize=9
    )
    figure.savefig(path, dpi=DPI, metadata={"Software": None})


if __name__ == "__main__":
    command(Page, "scaling_page", __doc__)
