"""A run on one screen, drawn from a snapshot of its machine; nothing here asks, waits or prints."""

import base64
import math
import signal
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rich.columns import Columns
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.constrain import Constrain
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from mmattn.console import WIDTH
from mmattn.remote.runs import Run
from mmattn.train.history import Row, best_epoch, by_split, monitor_of, score_text, shown_scores

LOG_LINES = 8
GUARD_SILENT_S = 60
PLOT_LINES = 8  # with the title and the epochs
# Colour, plotext's marker and how that looks: the splits differ without colours as well.
LOOKS = {"train": ("yellow", "dot", "•"), "validation": ("cyan", "braille", "⠤")}
ENDINGS = {0: "ended well", 3: "diverged", 75: "stopped and saved: `fab resume` continues"}
GUARD_REASONS = {
    "deadline": "its deadline has come",
    "spot": "AWS takes the spot machine back",
    "ended": "the job has ended and no user is logged in",
}


class Touch(NamedTuple):
    """When the last snapshot came; since when, and why, there is none (this computer's time)."""

    heard: float | None = None
    since: float | None = None
    reason: str = ""


def report(
    run: Run, snapshot: dict | None, touch: Touch, now: float, height: int | None = None
) -> RenderableType:
    """Everything worth knowing about a run, at most 100 columns wide.

    Args:
        run: what this computer knows.
        snapshot: the last; None before the first.
        touch: when that came, and what is wrong since.
        now: this computer's time; the machine's clock may differ.
        height: lines of the terminal; lines of the log and the plots give way to it.
    """
    rows = [*_head(run, touch, now)]
    if snapshot is not None:
        rows += _facts(run, snapshot, snapshot["now"] + now - touch.heard, now)
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    for name, *parts in rows:
        texts = (Text(part) if isinstance(part, str) else part for part in parts)
        facts.add_row(name, Columns(texts, padding=(0, 3)))
    return Constrain(_Page(facts, snapshot, height) if snapshot else facts, WIDTH)


def summary_line(run: Run, snapshot: dict, now: float) -> str:
    """A snapshot in one line, for where there is no terminal."""
    text, _ = job_text(snapshot["job"], snapshot["now"])
    parts = [time.strftime("%H:%M:%S", time.localtime(now)), text]
    if snapshot["metrics"]:
        parts += _progress(snapshot)
        names = shown_scores(snapshot["monitor"])[:2]
        parts += [score_text(snapshot["metrics"][-1], name) for name in names]
    troubles = [other for other in snapshot["others"] if other["trouble"]]
    return "  ".join([*parts, *(f"machine {one['rank']}: {one['trouble']}" for one in troubles)])


def cost(run: Run, then: float) -> float:
    """Dollars that the machines have cost at a time, or will have by then, at the known price."""
    began = [one.launched for one in run.members if one.launched is not None]
    return sum(max(0.0, then - one) for one in began) / 3600 * run.price


def duration(seconds: float) -> str:
    """A time span as one says it.

    >>> [duration(seconds) for seconds in (-3, 119.4, 120, 3599, 3600, 100_000)]
    ['0 s', '119 s', '2 min', '59 min', '1 h 00 min', '27 h 46 min']
    """
    whole = max(0, round(seconds))
    if whole >= 3600:
        return f"{whole // 3600} h {whole // 60 % 60:02d} min"
    return f"{whole // 60} min" if whole >= 120 else f"{whole} s"


def clock(moment: float) -> str:
    """A moment in local time."""
    return time.strftime("%a %d %b %H:%M", time.localtime(moment))


def job_text(job: dict, then: float) -> tuple[str, str]:
    """The state of a snapshot's job at a time of the machine, in words, and their style."""
    if job["state"] == "absent":
        return "no job was started: `fab deploy` continues", "yellow"
    if job["state"] == "lost":
        return "lost: killed, and no exit code is known; `fab resume` continues", "bold red"
    if job["state"] == "running":
        again = f" (start {job['start']})" if job["start"] > 1 else ""
        return f"running for {duration(then - job['started'])}{again}", "green"
    code = job["exit_code"]
    text = ENDINGS.get(code, "ended, see its log")
    if job["out_of_memory"]:
        text = "killed: the machine ran out of memory"
    elif code - 128 in set(signal.Signals):
        text = f"killed by {signal.Signals(code - 128).name}"
    text = f"{text} (exit code {code}), {duration(then - job['ended'])} ago"
    return text, {0: "green", 75: "yellow"}.get(code, "bold red")


def guard_text(snapshot: dict, then: float, now: float) -> tuple[str, str]:
    """What the machine's guard announces at a time there, `then`, and here, and its style."""
    guard, works = snapshot["guard"], snapshot["job"]["state"] == "running"
    if guard is None:
        return "has not reported: the deadline alone ends this machine", "bold red"
    if guard["reason"]:
        return f"is ending the machine: {GUARD_REASONS[guard['reason']]}", "bold red"
    if (silent := snapshot["now"] - guard["beat"]) > GUARD_SILENT_S:
        return f"silent for {duration(silent)}: see `fab ssh`", "bold red"
    if guard["held"]:
        return "held by `fab hold`: the machine stays until its deadline", "yellow"
    if works:
        return "watches", ""
    off = guard["off_at"]
    off = f"at {clock(now + off - then)}" if off else "when its grace is over"
    return f"powers off {off} unless that changes: no job, no user logged in", "yellow"


def log_lines(log: bytes, count: int) -> list[str]:
    """The last lines of a log as a terminal may show them: nothing in it can move the cursor.

    >>> log_lines(b"old\\nepoch 1\\r\\x1b[31mepoch 2\\x1b[0m\\x07\\na\\tb\\xff", 2)
    ['epoch 2', 'a   b\ufffd']
    """
    lines = log.decode("utf-8", "replace").rstrip("\r\n").split("\n")[-count:]
    texts = (Text.from_ansi(line.rstrip("\r")).plain.expandtabs(4) for line in lines)
    return ["".join(filter(str.isprintable, text)) for text in texts]


class _Page:
    """Facts, plots and the log's end; where the height is limited, log and plots give way."""

    def __init__(self, facts: Table, snapshot: dict, height: int | None):
        self.facts, self.snapshot, self.height = facts, snapshot, height or 10**6

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.facts
        left = self.height - len(console.render_lines(self.facts, options)) - 1
        metrics, log = self.snapshot["metrics"], base64.b64decode(self.snapshot["log"]["data"])
        if len(metrics) > 1 and left > PLOT_LINES:
            left -= PLOT_LINES
            names = shown_scores(self.snapshot["monitor"])[1::-1]  # the monitor and the loss
            plots = (_plot(metrics, name, options.max_width // 2 - 1) for name in names)
            yield Columns(plots, padding=(0, 2))
        yield Rule(Text("log", style="dim"), align="left", style="dim")
        for line in log_lines(log, max(1, min(left, LOG_LINES))):
            yield Text(line, no_wrap=True, overflow="ellipsis")


def _plot(metrics: Sequence[Row], name: str, width: int) -> Group:
    """A score over the epochs, under its title and the names of the splits."""
    import plotext  # takes a while, and `fab stop`, say, does without

    splits = list(by_split(metrics[0], name))
    metrics = [row for row in metrics if math.isfinite(sum(by_split(row, name).values()))]
    every = [value for row in metrics for value in by_split(row, name).values()]
    ends = [min(every), max(every)] if every else []
    epochs = [row["epoch"] for row in metrics]
    title = Text(monitor_of(name).title, "dim")
    plotext.clear_figure()
    plotext.limit_size(False, False)
    plotext.plot_size(width, PLOT_LINES - 1)
    plotext.theme("clear")
    plotext.frame(False)
    plotext.yticks(ends, [f"{value:.3f} " for value in ends])
    plotext.xticks(epochs[:: max(1, len(epochs) - 1)])
    for split in splits:
        colour, marker, sample = LOOKS[split]
        values = [row[f"{split}_{name}"] for row in metrics]
        plotext.plot(epochs, values, color=colour, marker=marker)
        title.append(f"   {sample} {split}", colour)
    return Group(title, Text.from_ansi(plotext.build().rstrip("\n")))


def _head(run: Run, touch: Touch, now: float) -> Iterator[tuple]:
    name = Text(run.name, "bold").append(f" (machine {run.attempt})" if run.attempt > 1 else "")
    each = f"{len(run.members)} x " if len(run.members) > 1 else ""
    kind = f"{each}{run.instance_type}{', spot' if run.spot else ''}, {run.region}"
    where = [run.host] if run.host else [kind, f"{run.instance_id} at {run.address}"]
    yield "run", name, *where
    if touch.since is not None:
        text = f"out of touch for {duration(now - touch.since)}, trying again"
        yield "link", Text(f"{text}\n{touch.reason}", "bold yellow")
    elif touch.heard is None:
        yield "link", "connecting"


def _facts(run: Run, snapshot: dict, then: float, now: float) -> Iterator[tuple]:
    job = snapshot["job"]
    yield "job", Text(*job_text(job, then)), *["results complete"] * snapshot["complete"]
    yield from _training(snapshot)
    yield "machine 0" if snapshot["others"] else "machine", *_load(snapshot["machine"])
    for other in snapshot["others"]:
        there, trouble = other["snapshot"], [Text(other["trouble"], "bold red")]
        ended = there and there["job"]["state"] != "running"
        parts = [Text(*job_text(there["job"], then))] if ended else []
        parts += _load(there["machine"]) if there else []
        yield f"machine {other['rank']}", *(trouble if other["trouble"] else parts)
    ages = [
        f"{one['kind']}: step {one['step']}, {duration(then - one['time'])} ago"
        for one in snapshot["checkpoints"]
    ]
    yield "checkpoints", *(ages or ["none yet"])
    if run.deadline is not None:
        if run.price is not None:
            each = f"${len(run.members) * run.price:.2f} an hour"
            most = f"at most ${cost(run, run.deadline):.2f}"
            yield "cost", f"${cost(run, then):.2f} so far", each, most
        left = duration(run.deadline - then)
        yield "deadline", f"{clock(run.deadline + now - then)}, in {left}: the machine ends itself"
        yield "guard", Text(*guard_text(snapshot, then, now))
    if job["state"] in ("ended", "lost"):
        yield "next", "`fab fetch` brings the results, `fab teardown` removes the rest"


def _training(snapshot: dict) -> Iterator[tuple]:
    metrics, monitor = snapshot["metrics"], snapshot["monitor"]
    if not metrics:
        yield "training", "no epoch has ended yet"
        return
    last, best = metrics[-1], metrics[best_epoch(metrics, monitor) - 1]
    yield "training", *_progress(snapshot)
    for name in shown_scores(monitor)[:2]:
        title, _, form = monitor_of(name)
        values = by_split(last, name).items()
        parts = [Text(f"{split} {value:{form}}", LOOKS[split][0]) for split, value in values]
        if name == monitor:
            parts.append(f"best {best[f'validation_{name}']:{form}} in epoch {best['epoch']}")
        yield title, *parts


def _progress(snapshot: dict) -> list[str]:
    """Epoch, speed and, while it runs, the time left at most, from that of the last epoch."""
    last, epochs = snapshot["metrics"][-1], snapshot["epochs"]
    epoch = f"epoch {last['epoch']} of {epochs}" if epochs else f"epoch {last['epoch']}"
    texts = [*filter(None, [snapshot["part"]]), epoch, f"{last['clips_per_s']:.0f} clips/s"]
    if epochs and snapshot["job"]["state"] == "running":
        texts.append(f"at most {duration((epochs - last['epoch']) * last['seconds'])} left")
    return texts


def _load(machine: dict) -> Iterator[Text]:
    """Use of the processors, the memory and the disk."""
    yield Text(f"CPU load {machine['load']:.1f} of {machine['cores']}")
    for what in ("memory", "disk"):
        used, total = (machine[f"{what}_{kind}"] / 2**30 for kind in ("used", "total"))
        style = "bold red" if used > 0.9 * total else ""
        yield Text(f"{what} {used:.1f} of {total:.0f} GiB", style)
