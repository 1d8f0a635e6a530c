"""A run on one screen, drawn from a snapshot of its machine, without any I/O."""

import base64
import math
import signal
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rich.columns import Columns
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.constrain import Constrain
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from mmattn.console import WIDTH
from mmattn.remote.runs import Run
from mmattn.train.history import best_epoch, by_split, monitor_of, shown_scores

LOG_LINES = 8
GUARD_SILENT_S = 60
BARS, CURVE = "▁▂▃▄▅▆▇█", 10  # at most so many bars
ENDINGS = {0: "ended well", 3: "diverged", 75: "stopped and saved: `fab resume` continues"}
GUARD_REASONS = {
    "deadline": "its deadline has come",
    "spot": "AWS takes the spot machine back",
    "ended": "the job has ended and no user is logged in",
}


class Touch(NamedTuple):
    """When the last snapshot came; since when and why none came (this computer's time)."""

    heard: float | None = None
    since: float | None = None
    reason: str = ""


def report(
    run: Run, snapshot: dict | None, touch: Touch, now: float, height: int | None = None
) -> RenderableType:
    """The screen of a run, at most 100 columns wide.

    `snapshot` is the last one, None before the first; `now` is this computer's time, from which
    the machine's clock may differ; the log gets the lines that are left of `height`.
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


def cost(run: Run, then: float) -> float:
    """Dollars that the machines cost up to a time, past or future, at the run's price."""
    began = [one.launched for one in run.members if one.launched is not None]
    return sum(max(0.0, then - one) for one in began) / 3600 * (run.price or 0)


def duration(seconds: float) -> str:
    """A readable time span.

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
    """The state of a job at a time of the machine's clock, in words, and their style."""
    if job["state"] == "absent":
        return "no job was started: `fab deploy` continues", "yellow"
    if job["state"] == "lost":
        return "lost: killed, exit code unknown; `fab resume` continues", "bold red"
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
    """The guard's report at a time there, `then`, and here, `now`, in words, and their style."""
    guard, works = snapshot["guard"], snapshot["job"]["state"] == "running"
    if guard is None:
        return "has not reported: only the deadline ends this machine", "bold red"
    if guard["reason"]:
        return f"is ending the machine: {GUARD_REASONS[guard['reason']]}", "bold red"
    if (silent := snapshot["now"] - guard["beat"]) > GUARD_SILENT_S:
        return f"silent for {duration(silent)}: see `fab ssh`", "bold red"
    if works:
        return "watches", ""
    off = guard["off_at"]
    off = f"at {clock(now + off - then)}" if off else "after the grace period"
    return f"powers off {off} unless that changes: no job, no user logged in", "yellow"


def log_lines(log: bytes, count: int) -> list[str]:
    """The last lines of a log, without control characters.

    >>> log_lines(b"old\\nepoch 1\\r\\x1b[31mepoch 2\\x1b[0m\\x07\\na\\tb\\xff", 2)
    ['epoch 2', 'a   b\ufffd']
    """
    lines = log.decode("utf-8", "replace").rstrip("\r\n").split("\n")[-count:]
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in lines]  # as a terminal shows it
    texts = (Text.from_ansi(line).plain.expandtabs(4) for line in lines)
    return ["".join(filter(str.isprintable, text)) for text in texts]


class _Page:
    """Facts, and as much of the log's end as the height allows."""

    def __init__(self, facts: Table, snapshot: dict, height: int | None):
        self.facts, self.snapshot, self.height = facts, snapshot, height or 10**6

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.facts
        left = self.height - len(console.render_lines(self.facts, options)) - 1
        log = base64.b64decode(self.snapshot["log"]["data"])
        yield Rule(Text("log", style="dim"), align="left", style="dim")
        for line in log_lines(log, max(1, min(left, LOG_LINES))):
            yield Text(line, no_wrap=True, overflow="ellipsis")


def curve(values: Sequence[float]) -> str:
    """Values over the epochs as bars from the lowest to the highest, subsampled if many.

    >>> curve([0.0, 0.1, math.nan, 0.5, 1.0]), curve([2.0]), len(curve(range(99)))
    ('▁▂▅█', '▁', 10)
    """
    finite = [value for value in values if math.isfinite(value)]
    shown = finite[:: -max(1, math.ceil(len(finite) / CURVE))][::-1]  # the last one always
    low, high = min(shown, default=0), max(shown, default=0)
    return "".join(BARS[round(7 * (value - low) / (high - low or 1))] for value in shown)


def _head(run: Run, touch: Touch, now: float) -> Iterator[tuple]:
    name = Text(run.name, "bold").append(f" (machine {run.attempt})" if run.attempt > 1 else "")
    each = f"{len(run.members)} x " if len(run.members) > 1 else ""
    kind = f"{each}{run.instance_type}{', spot' if run.spot else ''}, {run.region}"
    where = [run.host] if run.host else [kind, f"{run.instance_id} at {run.members[0].address}"]
    yield "run", name, *where
    if touch.since is not None:
        text = f"no connection for {duration(now - touch.since)}, trying again"
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
            so_far = f"{'at most ' * run.spot}${cost(run, then):.2f} so far"
            yield "cost", so_far, each, most
        left = duration(run.deadline - then)
        yield "deadline", f"{clock(run.deadline + now - then)}, in {left}: the machine ends itself"
        yield "guard", Text(*guard_text(snapshot, then, now))
    if job["state"] in ("ended", "lost"):
        yield "next", "`fab fetch` downloads the results, `fab teardown` removes the rest"


def _training(snapshot: dict) -> Iterator[tuple]:
    metrics, monitor = snapshot["metrics"], snapshot["monitor"]
    if not metrics:
        yield "training", "no epoch has ended yet"
        return
    last, best = metrics[-1], metrics[best_epoch(metrics, monitor) - 1]
    epochs, part = snapshot["epochs"], [snapshot["part"]] if snapshot["part"] else []
    epoch = f"epoch {last['epoch']} of {epochs}" if epochs else f"epoch {last['epoch']}"
    texts = [*part, epoch, f"{last['clips_per_s']:.0f} clips/s"]
    if epochs and snapshot["job"]["state"] == "running":  # no epoch longer than the last
        texts.append(f"at most {duration((epochs - last['epoch']) * last['seconds'])} left")
    yield "training", *texts
    for name in shown_scores(monitor)[:2]:
        title, _, form = monitor_of(name)
        parts = [
            f"{split} {value:{form}} {curve([row[f'{split}_{name}'] for row in metrics])}"
            for split, value in by_split(last, name).items()
        ]
        if name == monitor:
            parts.append(f"best {best[f'validation_{name}']:{form}} in epoch {best['epoch']}")
        yield title, *parts


def _load(machine: dict) -> Iterator[Text]:
    """Use of the processors, the memory and the disk."""
    yield Text(f"CPU load {machine['load']:.1f} of {machine['cores']}")
    for what in ("memory", "disk"):
        used, total = (machine[f"{what}_{kind}"] / 2**30 for kind in ("used", "total"))
        style = "bold red" if used > 0.9 * total else ""
        yield Text(f"{what} {used:.1f} of {total:.0f} GiB", style)
