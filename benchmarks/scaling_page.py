"""Writes docs/scaling.md: what several processes take here, and what a cluster would.

python -m benchmarks.scaling_page             # measures first: several minutes on an idle machine

python -m benchmarks.scaling_page --stored    # from docs/scaling.json, measured before

Nothing that depends on the machine stands in the text below: numbers and verdicts are filled in.
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
GLOO = {  # how its latency can be split, and what is left out of the fit
    "as above": "",
    "all of gloo's latency in its messages": "start",
    "none of it in messages": "latency",
}


@dataclass(frozen=True)
class Page(Options):
    """Measure several processes on this machine and write a page about it."""

    page: Path = Path("docs/scaling.md")
    """The page; measurements and plot are kept beside it."""
    stored: bool = False
    """Measure nothing: write the page from what was measured last."""

    def __call__(self) -> None:
        path = self.json or self.page.with_suffix(".json")
        if not self.stored:
            Options.__call__(replace(self, json=path))
        elif not path.exists():
            raise UserError(f"--stored: expected measurements in {path}, which is not there")
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
    """Collectives measured by themselves: ranks, kinds, bytes, seconds as if without turns."""
    return [
        (one.devices, kinds, 4 * size, times[size] / cluster.turns(one.devices, cores))
        for kinds, times in (
            (("reduce-scatter", "all-gather"), one.exchange),
            (("all-reduce",), one.total),
        )
        for size in lengths
    ]


def ends(one: Result) -> tuple[int, int]:
    """The shortest and the longest vector: about as long as those of a training step."""
    return min(one.total), max(one.total)


def rings(results: Sequence[Result]) -> list[Result]:
    """Several processes: every device is a rank of gloo, and its time grows with them."""
    return [one for one in results if one.processes > 1]


def fit(results: Sequence[Result], cores: int, without: str = "") -> Fitted:
    """The model's constants, from one process on all cores and collectives of several.

    Of gloo's a "start" or a "latency" can be left out.
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
    """The shapes that the model is fitted to: one process, and one device a process.

    Both have as many devices as there are cores, or as near to it as was measured.
    """
    several = [one for one in results if 1 < one.devices <= cores]
    alone = [one for one in several if one.processes == 1]
    together = [one for one in several if one.processes == one.devices]
    if not (alone and together):
        raise UserError(f"--shapes: expected both 1xN and Nx1, N from 2 to the {cores} cores")
    return max(alone, key=lambda one: one.devices), max(together, key=lambda one: one.devices)


# The page


def opening(about: dict, name: str) -> str:
    """Title, and where the measurements come from."""
    versions = ", ".join(f"{package} {number}" for package, number in about["versions"].items())
    return f"""# Scaling over processes and machines

Written by `python -m benchmarks.scaling_page`, which measures what is headed *measured* on one
machine, fits a model to it, and computes what is headed *computed* for N machines of
{cluster.MACHINE}. **No cluster was used: what is said of one is computed.** `--stored` writes the
page again from [{name}]({name}); the model is `benchmarks/cluster.py`.

Measured {about["date"]} on {about["cores"]} cores of {about["cpu"]}, {about["memory_gb"]} GB;
Python {about["python"]}, {versions};
commit {about["commit"]}, `{about["command"]}`."""


def short(fitted: Fitted, assumed: Assumed, batch: int, verdicts: Mapping[str, "Verdict"]) -> str:
    """The answers in a paragraph; ranges are over the fits of gloo's latency."""
    found = [verdicts[name] for name in GLOO]
    one = every(fitted, assumed, None, disk=True)[0]
    return f"""In short, computed: with all clips in memory and {WEAK} of them a core and step,
machines pay up to N = {span((x.weak for x in found), count)}; with
{batches(batch, assumed)[-1]:,} clips a step, up to N = {span((x.strong for x in found), count)}.
{assumed.epochs} epochs over {assumed.clips:,} clips
from disk take {cluster.hours(one, assumed):,.1f} hours and ${cluster.dollars(one, assumed):,.0f} on
one machine, and on as many as pay with {WEAK} a core
{span((x.hours for x in found), "{:,.1f}".format)} hours and
{span((x.dollars for x in found), "${:,.0f}".format)}. Where there is a range, it is over the least
certain of the constants: how much of gloo's latency is in its messages, all, none, or what was
fitted (which gives N = {count(found[0].weak)} and {count(found[0].strong)}). What else that rests
on is below; whether batches of that size train as well is not known."""


def measured(results: Sequence[Result], batch: int, cores: int) -> list[str]:
    """What was measured, as it was."""
    first, names = results[0], [one.name for one in results]
    program = max(results, key=lambda one: (one.processes > 1, -one.devices))
    kinds = Counter(program.collectives)
    cells = [
        (one.kind, f"{number}", f"{one.size:,}", f"a {one.often}")
        for one, number in sorted(kinds.items(), key=lambda item: -item[0].size)
    ]
    return [
        "## Measured: the training step",
        f"""The network of `experiments.no_aug` ({first.parameters:,} parameters), clips of full
size padded to {first.frames["audio_frames"]} audio and {first.frames["video_frames"]} video frames,
{first.dispatch} steps a dispatch. Strong: {batch} clips a step; weak: {WEAK} clips a device. In
brackets: times the first row. All rows have the same {cores} cores: more devices than that take
turns.""",
        table(
            "processes × devices | strong, clips/s | weak, clips/s", scaling_rows(results, batch)
        ),
        "## Measured: collectives by message size",
        *(
            part
            for title, rows in zip(EXCHANGES, exchange_rows(results), strict=True)
            for part in (f"{title}.", table("float32 | " + " | ".join(names), rows))
        ),
        f"""Measured in the compiled program of {program.name}: what a step exchanges, of which
gradient and parameters are the large ones and batch norm the small ones
({sum(one.size for one in program.collectives if one.often == "step"):,} bytes a step).""",
        table("collective | number | bytes | once", cells),
    ]


def model(results: Sequence[Result], fitted: Fitted, assumed: Assumed, cores: int) -> list[str]:
    """What was fitted, how well it fits, and what is assumed."""
    alone, _ = bases(results, cores)
    busy = WEAK / fitted.batches / (fitted.step + fitted.clip * WEAK)
    of_gloo = ", ".join(one.name for one in rings(results))
    rows = [
        (f"compute of a step, a ({alone.name})", f"{1e3 * fitted.step:.2f} ms"),
        (f"compute of a clip, b ({alone.name})", f"{1e3 * fitted.clip:.2f} ms"),
        (f"devices of a process meet ({alone.name})", f"{1e6 * fitted.process.latency:.0f} µs"),
        (f"and exchange bytes ({alone.name})", rate(fitted.process)),
        (f"a collective of gloo begins ({of_gloo})", f"{1e6 * fitted.loopback.start:.0f} µs"),
        (f"each of its messages ({of_gloo})", f"{1e6 * fitted.loopback.latency:.0f} µs"),
        (f"and their bytes, on loopback ({of_gloo})", rate(fitted.loopback)),
        (f"batches made ready by a process ({alone.name})", f"{fitted.batches:,.0f} clips/s"),
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
        """A step takes a + b · clips on each device, and then its collectives, one after the other;
meanwhile the volume reads clips ahead and a thread makes batches of them, and the slowest of the
three counts. JAX makes every device a rank of gloo by itself, also those that share a process, and
picks a ring for the all-gather (R − 1 messages one after the other between R ranks) and the
all-reduce (2 (R − 1)), and halving with ever farther partners for reduce-scatter (log₂ R): that is
read in the sources of XLA and gloo, not measured. Of a ring's messages as many pass between
machines as there are machines; the others stay on loopback. A machine uses as many of its cores as
are quickest.""",
        """Fitted, by least relative error; of the collectives to the shortest and the longest
vectors, which are about as long as those of a step:""",
        table("constant | value", rows),
        f"""Computed beside measured: ms a step. Only the rows marked so were fitted to. Of several
processes with no more devices than cores, computed is {span(ratios, "{:.2f}".format)}
times measured.""",
        table("processes × devices | clips a device | computed | measured | ratio | ", steps),
        """Computed beside measured: ms a collective. How gloo's time grows with its ranks can be
seen on few of them here, and beyond the cores only if they take turns. So of all constants it is
the least certain what a message takes and what a collective takes whatever its messages; the last
table has both extremes.""",
        table(
            "processes × devices | collective | bytes | computed | measured | ratio | ", exchanges
        ),
        "### Assumed, not measured",
        f"""- {cluster.MACHINE}: {assumed.cores} physical cores ({cluster.VCPUS} vCPUs; hyperthreads
  bring nothing), one process with a device a core. A core there, with all {assumed.cores} at work,
  does what one did here with {cores} at work.
- A message between machines of a placement group takes {1e6 * assumed.latency:.0f} µs, gloo and
  kernel included; a machine sends {8e-9 * assumed.network:.0f} Gbit/s, one TCP connection
  {8e-9 * assumed.flow:.0f} Gbit/s; no other job is on the network.
- Memory moves {1e-9 * assumed.memory:.0f} GB/s on a machine, and a collective each byte four times.
  A rendezvous in a process grows as log₂ of its devices. A gloo rank's latency does not grow with
  the ranks beside it, though all ranks of a process share one thread for their sockets: with many
  devices this is too kind.
- The halves of a reduce-scatter are taken to keep to machines, so that all but an Nth of a vector
  crosses; with {assumed.cores} devices a machine they do not, and more does: too kind as well.
- The thread that makes batches takes nothing from the cores, though all compute: with {WEAK} clips
  a device that would be {100 * busy:.1f} % of their time.
- No machine is slower than the others; validation, checkpoints and start are left out.
- Every machine has the corpus on a gp3 volume of its own, as `fab deploy` makes it, with
  {assumed.disk / 1e6:,.0f} MB/s and {assumed.reads:,.0f} reads/s (a clip takes four), and
  {assumed.cache / 1e9:.0f} GB of it in memory: each epoch deals the clips anew, so a machine needs
  all of them. Reading ahead is taken to keep the volume busy; that was not measured on one, but
  `python -m benchmarks.pipeline` measures it on a disk here.
- Each machine reads the corpus from a bucket (`fab deploy --data s3://…`), all at once, as fast as
  its network and its volume allow.
- ${assumed.on_demand:.2f} an hour on demand (us-east-1, {cluster.PRICES}), ${assumed.spot:.2f} on
  spot, ${assumed.volume:.2f} for the volume.
- **An epoch of large batches is taken for as good as one of small ones. It is not**: with more
  clips a step there are fewer steps an epoch, and from some size on more epochs are needed, or
  another learning rate, or the result is worse. Nothing here tells where.""",
    ]


def checks(results: Sequence[Result], fitted: Fitted, cores: int) -> tuple[list, list]:
    """The model's values for all that was measured: steps, and collectives by themselves."""

    def row(one: Result, said: float, found: float, *about: str) -> tuple[str, ...]:
        times = f"{1e3 * said:.2f}", f"{1e3 * found:.2f}", f"{said / found:.2f}"
        return one.name, *about, *times

    alone, _ = bases(results, cores)
    steps, exchanges = [], []
    for one in results:
        for clips, seconds in one.steps.items():
            each = one.devices // one.processes
            said = cluster.predict(fitted, one.processes, each, clips, cores)
            known = "fitted" if one is alone else "not fitted"
            steps.append((*row(one, said, seconds, f"{clips}"), known))
        sockets = one.processes > 1
        link = fitted.loopback if sockets else fitted.process
        shown = (min(one.total), sorted(one.total)[len(one.total) // 2], max(one.total))
        for ranks, kinds, size, seconds in timings(one, shown, cores) if one.devices > 1 else ():
            said = sum(
                cluster.inside(Collective(kind, size, ""), ranks, link, sockets) for kind in kinds
            )
            factor = cluster.turns(ranks, cores)
            found = row(one, factor * said, factor * seconds, " + ".join(kinds), f"{size:,}")
            known = one in (alone, *rings(results)) and size // 4 in ends(one)
            exchanges.append((*found, "fitted" if known else "not fitted"))
    return steps, exchanges


class Verdict(NamedTuple):
    """What is concluded from one set of constants and assumptions."""

    strong: int
    """So many machines pay with the largest batch, clips in memory."""
    weak: int
    """And with the same clips on each core."""
    rate: float
    """Clips a second of the latter from disk; what the corpus takes with them:"""
    hours: float
    dollars: float


def verdict(fitted: Fitted, assumed: Assumed, batch: int) -> Verdict:
    """How many machines pay, and what the corpus takes on them."""
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
        "a core 30 % quicker": replace(assumed, speed=1.3 * assumed.speed),
        "if processes were the ranks, not devices": replace(assumed, joined=True),
        "half of what the volume can do": replace(
            assumed, disk=assumed.disk / 2, reads=assumed.reads / 2
        ),
        f"a volume of 1,000 MB/s and 16,000 reads/s (${volume.volume:.2f} an hour)": volume,
    }
    return {name: (fitted, assumed) for name, fitted in fits.items()} | {
        name: (fits["as above"], other) for name, other in others.items()
    }


def computed(fitted: Fitted, assumed: Assumed, batch: int, figure: str) -> list[str]:
    """The model's values for clusters whose clips are in memory."""
    sizes = (*batches(batch, assumed), None)
    found = {size: every(fitted, assumed, size) for size in sizes}
    stops = []
    for size, plans in found.items():
        best, quickest = cluster.paying(plans, assumed), max(plans, key=lambda one: one.rate)
        cells = [x for one in (best, quickest) for x in (count(one.machines), f"{one.rate:,.0f}")]
        stops.append((f"{size:,}" if size else f"{WEAK} a core", *cells))
    strong = sizes[-2]
    return [
        f"## Computed: N machines of {cluster.MACHINE}",
        f"![Clips a second and dollars by the number of machines]({figure})",
        f"Computed, strong scaling: {strong:,} clips a step, all clips in memory.",
        plan_table(found[strong]),
        f"Computed, weak scaling: {WEAK} clips a core and step, all clips in memory.",
        plan_table(found[None]),
        f"""### Where it stops paying

N machines pay if with up to N a clip costs at most {assumed.dearer:g} times what it costs on one,
that is, if the efficiency is at least {1 / assumed.dearer:.2f}. Up to {cluster.MOST} machines were
looked at. Computed, with all clips in memory:""",
        table("clips a step | pay up to | clips/s | quickest are | clips/s", stops),
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
volume of each machine. The compute is that of the padded clips measured above,
{results[0].frames["audio_frames"] / 100:.1f} s long; a clip of RAVDESS has
{SECONDS["ravdess"]:.1f} s in the mean, one of CREMA-D {SECONDS["crema-d"]:.1f} s. Hours and dollars
are those of training and, before it, of copying from the bucket; the upload to it comes on top.
Computed:""",
        table(
            "machines | clips a step | hours | of them copying | $ on demand | $ spot | "
            "most of the step is",
            rows,
        ),
    ]


def firm(verdicts: Mapping[str, Verdict], strong: int) -> list[str]:
    """What other constants and assumptions would change."""
    rows = []
    for name, one in verdicts.items():
        costs = f"{one.rate:,.0f}", f"{one.hours:,.1f}", f"{one.dollars:,.0f}"
        rows.append((name, count(one.strong), count(one.weak), *costs))
    return [
        f"""### How firm this is

Computed with other assumptions: up to where machines pay with {strong:,} clips a step (strong) and
with {WEAK} a core (weak), as above with clips in memory, and what the corpus takes on the latter
number.""",
        table("assumption | strong | weak | clips/s | hours | $ on demand", rows),
    ]


def batches(batch: int, assumed: Assumed) -> tuple[int, ...]:
    """Clips a step in strong scaling: the default, and full cores on one machine and on eight."""
    return batch, WEAK * assumed.cores, 8 * WEAK * assumed.cores


def every(fitted: Fitted, assumed: Assumed, batch: int | None, disk: bool = False) -> list[Plan]:
    """Each number of machines, with one batch or with the same clips on each core.

    Clips are in memory, unless the corpus comes from the disk.
    """
    assumed = assumed if disk else replace(assumed, cache=inf)
    return cluster.plans(fitted, assumed, batch, WEAK)


def rate(link: Link) -> str:
    """Bytes a second as text."""
    return f"{link.rate / 1e9:.2f} GB/s" if link.rate < inf else "no limit measured"


def count(machines: int) -> str:
    """The number of machines; the last that was looked at may not be the last there is."""
    return f"{machines}" + (" or more" if machines == cluster.MOST else "")


def span(values: Iterable[float], text: Callable[[float], str]) -> str:
    """The least and the most, or one text if they look the same."""
    values = list(values)
    return " to ".join(dict.fromkeys((text(min(values)), text(max(values)))))


def plan_table(plans: Sequence[Plan]) -> str:
    """Some of the plans, one a row."""
    return table(
        "machines | devices each | ms a step | clips/s | efficiency | most of it is",
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
