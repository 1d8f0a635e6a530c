"""Writes docs/scaling.md: what several processes take here, and what a cluster would.

python -m benchmarks.scaling_page             # measures first: several minutes on an idle machine
python -m benchmarks.scaling_page --stored    # from docs/scaling.json, measured before

Nothing that depends on the machine stands in the text below: numbers and verdicts are filled in.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from textwrap import TextWrapper

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
from benchmarks.machine import REPOSITORY, command
from benchmarks.scaling import WEAK
from mmattn.console import say
from mmattn.data.write import SECONDS
from mmattn.errors import UserError
from mmattn.evaluate.plots import BLUE, DPI, GREEN, ORANGE
from mmattn.remote import prices

PAGE = REPOSITORY / "docs" / "scaling.md"
SHOWN = (1, 2, 4, 8, 16, 32, 64)  # machines


@dataclass(frozen=True)
class Page(Options):
    """Measure several processes on this machine and write a page about it."""

    page: Path = PAGE
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
        fitted, assumed = fit(results, cores), Assumed()
        plot(fitted, assumed, self.page.with_suffix(".png"), batch)
        parts = [
            opening(found["machine"], self.page.stem),
            short(fitted, assumed, batch),
            *measured(results, batch, cores),
            *model(results, fitted, assumed, cores),
            *computed(results, fitted, assumed, batch, cores),
        ]
        self.page.write_text(
            "\n\n".join(filled(x) for part in parts for x in part.split("\n\n")) + "\n"
        )
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
page again from [{name}.json]({name}.json); the model is `benchmarks/cluster.py`.

Measured {about["date"]} on {about["cores"]} cores of {about["cpu"]}, {about["memory_gb"]} GB;
Python {about["python"]}, {versions};
commit {about["commit"]}, `{about["command"]}`."""


def short(fitted: Fitted, assumed: Assumed, batch: int) -> str:
    """The answers in a paragraph."""
    strong = batches(batch, assumed)[-1]
    best, fixed = (cluster.paying(every(fitted, assumed, size), assumed) for size in (None, strong))
    corpus = " and ".join(
        f"{cluster.hours(plan, assumed):.1f} hours and ${cluster.dollars(plan, assumed):,.0f} "
        f"with N = {plan.machines}"
        for plan in every(fitted, assumed, None, disk=True)
        if plan.machines in (1, best.machines)
    )
    return f"""In short, computed: with {WEAK} clips a core and step, machines pay up to
N = {count(best)}; with {strong:,} clips a step, up to N = {count(fixed)}. {assumed.epochs} epochs
over {assumed.clips:,} clips take {corpus}. What that rests on, and how firm it is, is below;
whether batches of that size train as well is not known."""


def measured(results: Sequence[Result], batch: int, cores: int) -> list[str]:
    """What was measured, as it was."""
    first, names = results[0], [one.name for one in results]
    program = max(results, key=lambda one: (one.processes > 1, -one.devices))
    kinds = Counter(program.collectives)
    cells = [
        (one.kind, f"{number}", f"{one.size:,}", f"a {one.often}")
        for one, number in sorted(kinds.items(), key=lambda item: -item[0].size)
    ]
    clips = sorted({number for one in results for number in one.steps})
    steps = [
        (f"{n}", *(f"{1e3 * one.steps[n]:.1f}" if n in one.steps else "" for one in results))
        for n in clips
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
        "Measured: ms a step by the clips on each device.",
        table("clips | " + " | ".join(names), steps),
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
    spread = min(ratios), max(ratios)
    return [
        "## The model",
        """A step takes a + b · clips on each device, and then its collectives, one after the other;
making batches and reading clips go on meanwhile, and the slowest of the three counts. JAX makes
every device a rank of gloo by itself, also those that share a process, and picks a ring for the
all-gather (R − 1 messages one after the other between R ranks) and the all-reduce (2 (R − 1)), and
halving with ever farther partners for reduce-scatter (log₂ R): that is read in the sources of XLA
and gloo, not measured. Of a ring's messages as many pass between machines as there are machines;
the others stay on loopback. A machine uses as many of its cores as are quickest.""",
        """Fitted, by least relative error; of the collectives to the shortest and the longest
vectors, which are about as long as those of a step:""",
        table("constant | value", rows),
        f"""Computed beside measured: ms a step. Only the rows marked so were fitted to. Of several
processes with no more devices than cores, computed is {" to ".join(map("{:.2f}".format, spread))}
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
  {8e-9 * assumed.flow:.0f} Gbit/s; nobody else is on the network.
- Memory moves {1e-9 * assumed.memory:.0f} GB/s on a machine, and a collective each byte four times.
  A rendezvous in a process grows as log₂ of its devices. A gloo rank's latency does not grow with
  the ranks beside it, though all ranks of a process share one thread for their sockets: with many
  devices this is too kind.
- Nobody waits for a slow machine; validation, checkpoints and start are left out.
- Every machine has the corpus on a gp3 volume of its own with {assumed.disk / 1e6:,.0f} MB/s and
  {assumed.reads:,.0f} reads/s (a clip takes four), and {assumed.cache / 1e9:.0f} GB of it in
  memory: each epoch deals the clips anew, so a machine needs all of them.
- ${assumed.on_demand:.2f} an hour on demand (us-east-1, {prices.DATE}), ${assumed.spot:.2f} on
  spot, ${assumed.volume:.2f} for the volume.
- **An epoch of large batches is taken for as good as one of small ones. It is not**: with more
  clips a step there are fewer steps an epoch, and from some size on more epochs are needed, or
  another learning rate, or the result is worse. Nothing here says where.""",
    ]


def checks(results: Sequence[Result], fitted: Fitted, cores: int) -> tuple[list, list]:
    """What the model says of all that was measured: steps, and collectives by themselves."""

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


def computed(
    results: Sequence[Result], fitted: Fitted, assumed: Assumed, batch: int, cores: int
) -> list[str]:
    """What the model says of clusters."""
    stops = []
    for size in (*batches(batch, assumed), None):
        found = every(fitted, assumed, size)
        best = cluster.paying(found, assumed)
        quickest = max(found, key=lambda one: one.rate)
        stops.append(
            (
                f"{size:,}" if size else f"{WEAK} a core",
                count(best),
                f"{best.devices}",
                f"{best.rate:,.0f}",
                f"{efficiency(best, found[0]):.2f}",
                count(quickest),
                f"{quickest.rate / found[0].rate:.1f}",
            )
        )
    extremes = {
        "all of gloo's latency in its messages": fit(results, cores, without="start"),
        "none of it in messages": fit(results, cores, without="latency"),
    }
    variants = {
        "as above": assumed,
        "latency between machines × 3": replace(assumed, latency=3 * assumed.latency),
        **dict.fromkeys(extremes, assumed),
        "half the network": replace(assumed, network=assumed.network / 2, flow=assumed.flow / 2),
        "a core 30 % slower": replace(assumed, speed=0.7 * assumed.speed),
        "a core 30 % quicker": replace(assumed, speed=1.3 * assumed.speed),
        "if processes were the ranks, not devices": replace(assumed, joined=True),
    }
    firm = []
    for name, other in variants.items():
        here = extremes.get(name, fitted)
        found = every(here, other, None)
        fixed = every(here, other, batches(batch, other)[-1])
        best = cluster.paying(found, other)
        corpus = every(here, other, None, disk=True)[best.machines - 1]
        firm.append(
            (
                name,
                count(cluster.paying(fixed, other)),
                count(best),
                f"{corpus.rate:,.0f}",
                f"{cluster.hours(corpus, other):.1f}",
                f"{cluster.dollars(corpus, other):,.0f}",
            )
        )
    gigabytes = assumed.clips * cluster.clip_bytes() / 1e9
    middle = results[0].frames["audio_frames"] / 100
    strong = batches(batch, assumed)
    return [
        f"## Computed: N machines of {cluster.MACHINE}",
        f"![Clips a second and dollars by the number of machines]({PAGE.stem}.png)",
        f"Computed, strong scaling: {strong[-1]:,} clips a step, all clips in memory.",
        plan_table(every(fitted, assumed, strong[-1])),
        f"Computed, weak scaling: {WEAK} clips a core and step, all clips in memory.",
        plan_table(every(fitted, assumed, None)),
        f"""### Where it stops paying

N machines pay while a clip costs at most {assumed.dearer:g} times what it costs on one, that is,
while the efficiency is at least {1 / assumed.dearer:.2f}. Beyond, they may be quicker still, up to
the number in the column "quickest" (up to {cluster.MOST} machines were looked at). With all clips
in memory.""",
        "Computed:",
        table(
            "clips a step | pay up to | devices each | clips/s | efficiency | quickest | times one",
            stops,
        ),
        f"""### A corpus of {assumed.clips:,} clips

Clips like those of RAVDESS and CREMA-D together ({cluster.clip_bytes() / 1e3:.0f} kB each,
{gigabytes:,.0f} GB), {assumed.epochs} epochs, weak scaling, read from each machine's disk. The
compute is that of the padded clips measured above, {middle:.1f} s long; a clip of RAVDESS has
{SECONDS["ravdess"]:.1f} s in the mean, one of CREMA-D {SECONDS["crema-d"]:.1f} s. The dollars
include {cluster.copying(assumed):.1f} hours to copy the corpus to each machine; the hours do
not.""",
        "Computed:",
        table(
            "machines | clips a step | hours | $ on demand | $ spot | most of the step is",
            [
                (
                    count(one),
                    f"{one.batch:,}",
                    f"{cluster.hours(one, assumed):,.1f}",
                    f"{cluster.dollars(one, assumed):,.0f}",
                    f"{cluster.dollars(one, assumed, spot=True):,.0f}",
                    one.limit,
                )
                for one in every(fitted, assumed, None, disk=True)
                if one.machines in SHOWN
            ],
        ),
        f"""### How firm this is

Computed with other assumptions: up to where machines pay with {strong[-1]:,} clips a step and with
{WEAK} a core, as above with clips in memory, and what the corpus takes on the latter number.""",
        table("assumption | strong | weak | clips/s | hours | $ on demand", firm),
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
    return f"{link.rate / 1e9:.2f} GB/s" if link.rate < inf else "no limit seen"


def count(one: Plan) -> str:
    """The number of machines; the last that was looked at may not be the last there is."""
    return f"{one.machines}" + (" or more" if one.machines == cluster.MOST else "")


def efficiency(one: Plan, first: Plan) -> float:
    """Clips a second of a machine, as a share of what the first plan's does."""
    return one.rate / one.machines / (first.rate / first.machines)


def plan_table(plans: Sequence[Plan]) -> str:
    """Some of the plans, one a row."""
    return table(
        "machines | devices each | ms a step | clips/s | times one | efficiency | most of it is",
        [
            (
                f"{one.machines}",
                f"{one.devices}",
                f"{1e3 * one.seconds:.1f}",
                f"{one.rate:,.0f}",
                f"{one.rate / plans[0].rate:.2f}",
                f"{efficiency(one, plans[0]):.2f}",
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
