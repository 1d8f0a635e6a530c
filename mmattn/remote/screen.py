"""A run on one screen, drawn from a snapshot of its machine; nothing here asks, waits or prints."""

import base64
import re
import signal
import statistics
import time
import unicodedata
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.constrain import Constrain
from rich.measure import Measurement
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from mmattn.console import WIDTH
from mmattn.errors import UserError
from mmattn.remote.runs import Run
from mmattn.train.history import best_epoch, by_split, monitor_of, score_text, shown_scores

LOG_LINES = 8
RECENT = 5  # epochs whose time tells how long the next ones take
GUARD_SILENT_S = 60
BAR_CELLS = 6
PLOT_ROWS = 5
PLOT_LINES = PLOT_ROWS + 2  # title and axis
STYLES = {"train": "yellow", "validation": "cyan"}
GAP = "   "
BLANK = "\u2800"

_ENDINGS = {
    0: "ended well",
    2: "ended with an error, see its log",
    3: "diverged, see its log",
    75: "stopped and saved: `fab resume` continues",
    76: "ended because another process of it is gone: `fab resume` continues",
}
GUARD_REASONS = {
    "deadline": "its deadline has come",
    "spot": "AWS takes the spot machine back",
    "ended": "the job has ended and no user is logged in",
    "idle": "the job uses no CPU time",
}
# Sequences that terminals obey: colours and cursor (CSI), titles and links (OSC), others of two.
_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\].*?(\x07|\x1b\\)|[ -~])")


class Touch(NamedTuple):
    """How things stand between this computer and the machine, in this computer's time."""

    heard: float | None = None
    """When the last snapshot came."""
    since: float | None = None
    """Since when nothing was heard; None while in touch."""
    reason: str = ""
    """What failed last."""
    cloud: str = ""
    """EC2's state of the machine meanwhile, or why there is none."""


def report(
    run: Run, snapshot: dict | None, touch: Touch, now: float, height: int | None = None
) -> RenderableType:
    """Everything worth knowing about a run, at most 100 columns wide.

    Args:
        run: what this computer knows.
        snapshot: the last that came from the machine; None before the first.
        touch: when that was, and what is wrong since.
        now: this computer's time.
        height: lines of the terminal; lines of the log and the plots give way to it.
    """
    head = [_title(run), *_touch_lines(touch, now)]
    if snapshot is None:
        return Constrain(Group(*head), WIDTH)
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    for name, text in _rows(run, snapshot, machine_time(snapshot, touch, now), now):
        facts.add_row(name, text)
    lines = log_lines(base64.b64decode(snapshot["log"]["data"]), LOG_LINES)
    return Constrain(_Page(Group(*head, facts), _plots(snapshot), lines, height), WIDTH)


def summary_line(run: Run, snapshot: dict, now: float) -> str:
    """A snapshot in one line, for where there is no terminal."""
    text, _ = job_text(snapshot["job"], snapshot["now"])
    parts = [time.strftime("%H:%M:%S", time.localtime(now)), text]
    metrics = snapshot["metrics"]
    if metrics:
        last = metrics[-1]
        parts += [
            _epoch(snapshot),
            *(score_text(last, name) for name in shown_scores(_monitor(snapshot))[:2]),
            f"{last['clips_per_s']:.0f} clips/s",
        ]
        left = time_left(metrics, snapshot["epochs"])
        if left is not None and snapshot["job"]["state"] == "running":
            parts.append(f"at most {duration(left)} left")
    for one in snapshot["others"]:
        if one["trouble"]:
            parts.append(f"machine {one['rank']}: {one['trouble']}")
    spent = cost(run, snapshot["now"])
    if spent is not None:
        parts.append(f"${spent:.2f}")
    return "  ".join(parts)


def machine_time(snapshot: dict, touch: Touch, now: float) -> float:
    """The machine's time now: its clock may differ from this computer's."""
    return snapshot["now"] + (now - touch.heard)


def time_left(metrics: Sequence[dict], epochs: int | None) -> float | None:
    """Seconds that a training needs at most: epochs left times the mean of the last ones.

    The first epoch, which compiles, counts only while it is the only one. None if unknown.

    >>> time_left([{"epoch": 1, "seconds": 60.0}, {"epoch": 2, "seconds": 8.0}], 12)
    80.0
    """
    if not metrics or epochs is None:
        return None
    recent = [row["seconds"] for row in metrics if row["epoch"] > 1][-RECENT:]
    mean = statistics.fmean(recent or [metrics[0]["seconds"]])
    return max(0, epochs - metrics[-1]["epoch"]) * mean


def cost(run: Run, then: float) -> float | None:
    """Dollars that the machines have cost up to a time; None if they or the price are unknown."""
    began = [one.launched for one in run.members if one.launched is not None]
    if run.price is None or not began:
        return None
    return sum(max(0.0, then - one) for one in began) / 3600 * run.price


def duration(seconds: float) -> str:
    """A time span as one says it.

    >>> [duration(s) for s in (-3, 119.4, 120, 3599, 3600, 11_100, 100_000)]
    ['0 s', '119 s', '2 min', '59 min', '1 h 00 min', '3 h 05 min', '1 d 3 h']
    """
    whole = max(0, round(seconds))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60:02d} min"
    return f"{minutes} min" if minutes > 1 else f"{whole} s"


def clock(moment: float, now: float) -> str:
    """A moment in local time, with the day unless it is today."""
    there, here = time.localtime(moment), time.localtime(now)
    return time.strftime("%H:%M" if there[:3] == here[:3] else "%a %d %b %H:%M", there)


def job_text(job: dict, then: float) -> tuple[str, str]:
    """The state of a job in words, and their style.

    Args:
        job: as the snapshot has it.
        then: the machine's time.
    """
    if job["state"] == "absent":
        return "no job was started: `fab deploy` continues", "yellow"
    if job["state"] == "lost":
        return "lost: killed together with its supervisor; `fab resume` continues", "bold red"
    if job["state"] == "running":
        again = f" (start {job['start']})" if job["start"] > 1 else ""
        text = f"running for {duration(then - job['started'])}{again}"
        if job["supervised"]:
            return text, "green"
        return f"{text}; its supervisor is dead: its end will not be recorded", "yellow"
    code = job["exit_code"]
    if job["out_of_memory"]:
        text = "killed: the machine ran out of memory"
    elif code - 128 in set(signal.Signals):
        text = f"killed by {signal.Signals(code - 128).name}"
    else:
        text = _ENDINGS.get(code, "ended")
    text = f"{text} (exit code {code}), {duration(then - job['ended'])} ago"
    return text, {0: "green", 75: "yellow"}.get(code, "bold red")


def guard_text(snapshot: dict, then: float, now: float) -> tuple[str, str]:
    """What the machine's guard announces, and its style.

    Args:
        snapshot: holds its last words.
        then: the machine's time.
        now: this computer's time, in which clock times are shown.
    """
    guard, reported = snapshot["guard"], snapshot["now"]
    if guard is None:
        return "has not reported: the deadline alone ends this machine", "bold red"
    if guard["reason"]:
        return f"is ending the machine: {GUARD_REASONS[guard['reason']]}", "bold red"
    if reported - guard["beat"] > GUARD_SILENT_S:
        return f"silent for {duration(reported - guard['beat'])}: see `fab ssh`", "bold red"
    if guard["held"]:
        return "held by `fab hold`: the machine stays until its deadline", "yellow"
    quiet = guard["quiet_since"]
    works = snapshot["job"]["state"] == "running"
    if quiet is not None and (not works or reported - quiet > GUARD_SILENT_S):
        why = "the job uses no CPU time" if works else "no job, no user logged in"
        off = clock(now + guard["off_at"] - then, now)
        return f"powers off at {off} unless that changes: {why}", "yellow"
    if not works:
        return "will power the machine off when its grace is over: `fab hold` keeps it", "yellow"
    return "watches", ""


def log_lines(data: bytes, count: int) -> list[str]:
    """The last lines of a log as a terminal may show them: nothing in it can move the cursor.

    >>> log_lines(b"old\\nepoch 1\\r\\x1b[31mepoch 2\\x1b[0m\\x07\\na\\tb\\xff", 2)
    ['epoch 2', 'a   b\ufffd']
    """
    found = []
    for line in data.decode("utf-8", "replace").rstrip("\r\n").split("\n")[-count:]:
        shown = _ESCAPES.sub("", line.rstrip("\r").rpartition("\r")[2]).expandtabs(4)
        found.append("".join(c for c in shown if unicodedata.category(c) not in ("Cc", "Cf")))
    return found


def bar(share: float, width: int) -> str:
    """A share as a bar.

    >>> bar(0.5, 4), bar(0.05, 4), bar(1.2, 4)
    ('██░░', '░░░░', '████')
    """
    full = round(min(1.0, max(0.0, share)) * width)
    return "█" * full + "░" * (width - full)


def curve(
    values: Sequence[float], low: float, high: float, width: int, height: int
) -> set[tuple[int, int]]:
    """The dots (row from the top, column) of a line through equally spaced values.

    Args:
        values: one or more.
        low: value of the lowest row.
        high: of the highest; if it is `low`, the line lies in the middle.
        width: columns of dots.
        height: rows of dots.
    """
    dots, before = set(), None
    for column in range(width):
        place = column / (width - 1) * (len(values) - 1)
        left = int(place)
        right = min(left + 1, len(values) - 1)
        value = values[left] + (place - left) * (values[right] - values[left])
        share = (value - low) / (high - low) if high > low else 0.5
        row = round((1 - share) * (height - 1))
        before = row if before is None else before
        dots |= {(between, column) for between in range(min(row, before), max(row, before) + 1)}
        before = row
    return dots


def braille(dots: set[tuple[int, int]], row: int, column: int) -> str:
    """The character for the 4 x 2 dots of one cell."""
    bits = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
    code = sum(
        bits[y][x] for y in range(4) for x in range(2) if (4 * row + y, 2 * column + x) in dots
    )
    return chr(0x2800 + code)


class Curves:
    """A small plot of training and validation over the epochs, as wide as there is room.

    Args:
        title: of the plot.
        epochs: number of each epoch.
        values: its values in each epoch, by split; the last is drawn above the other.
    """

    def __init__(
        self,
        title: str,
        epochs: Sequence[int],
        values: Mapping[str, Sequence[float]],
    ):
        self.title, self.epochs = title, epochs
        self.series = {split: (own, STYLES[split]) for split, own in values.items()}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        low, high = self._range()
        top, bottom = f"{high:.3f}", f"{low:.3f}"
        margin = max(5, len(top), len(bottom))
        names = self._names(low, high)
        width = max(4, options.max_width - margin - 2 - max(map(len, self.series)))
        dots = {
            name: curve(values, low, high, 2 * width, 4 * PLOT_ROWS)
            for name, (values, _) in self.series.items()
        }
        yield Text(f"{'':{margin}} {self.title}", "dim")
        for row in range(PLOT_ROWS):
            label = {0: top, PLOT_ROWS - 1: bottom if high > low else ""}.get(row, "")
            line = Text.assemble((f"{label:>{margin}} ", "dim"))
            for column in range(width):
                line.append(*self._cell(dots, row, column))
            name = names.get(row, "")
            yield line.append(f" {name}", self.series[name][1] if name else "")
        first, last = f"epoch {self.epochs[0]}", str(self.epochs[-1])
        yield Text(f"{'':{margin}} {first}{last:>{max(1, width - len(first))}}", "dim")

    def _range(self) -> tuple[float, float]:
        every = [value for values, _ in self.series.values() for value in values]
        return min(every), max(every)

    def _cell(self, dots: dict, row: int, column: int) -> tuple[str, str]:
        """A character of all series, in the colour of the last that passes here."""
        style = ""
        for name, (_, colour) in self.series.items():
            if braille(dots[name], row, column) != BLANK:
                style = colour
        return braille(set().union(*dots.values()), row, column), style

    def _names(self, low: float, high: float) -> dict[int, str]:
        """The row in which each series' name stands: that of its last value, never the same."""
        order = sorted(self.series, key=lambda name: -self.series[name][0][-1])
        rows = []
        for name in order:
            share = (self.series[name][0][-1] - low) / (high - low) if high > low else 0.5
            rows.append(round((1 - share) * (4 * PLOT_ROWS - 1)) // 4)
        if len(set(rows)) < len(rows):
            rows = [rows[0] - 1, rows[1]] if rows[1] == PLOT_ROWS - 1 else [rows[0], rows[1] + 1]
        return dict(zip(rows, order, strict=True))


class _Page:
    """Facts, plots and the log's end; where the height is limited, log and plots give way."""

    def __init__(
        self, facts: RenderableType, plots: Table | None, log: list[str], height: int | None
    ):
        self.facts, self.plots, self.log, self.height = facts, plots, log, height

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.facts
        plots, log = self.plots, self.log
        if self.height is not None:
            left = self.height - len(console.render_lines(self.facts, options)) - 1
            if plots and left < PLOT_LINES + 3:
                plots = None
            left -= PLOT_LINES if plots else 0
            log = log[-max(1, left) :]
        if plots:
            yield plots
        yield Rule(Text("log", style="dim"), align="left", style="dim")
        for line in log:
            yield Text(line, no_wrap=True, overflow="ellipsis")


class Packed:
    """Short texts side by side, as many in a line as there is room for."""

    def __init__(self, *parts: str | Text):
        self.parts = [part if isinstance(part, Text) else Text(part) for part in parts]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        line = Text()
        for part in self.parts:
            if line and line.cell_len + len(GAP) + part.cell_len > options.max_width:
                yield line
                line = Text()
            line.append(GAP if line else "").append_text(part)
        yield line

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        longest = max(part.cell_len for part in self.parts)
        whole = sum(part.cell_len + len(GAP) for part in self.parts)
        return Measurement(min(longest, options.max_width), min(whole, options.max_width))


def _title(run: Run) -> RenderableType:
    title = Text(run.name, "bold")
    if run.attempt > 1:
        title.append(f" (machine {run.attempt})")
    if run.host is not None:
        return Packed(title, run.host)
    each = f"{len(run.members)} x " if len(run.members) > 1 else ""
    kind = f"{each}{run.instance_type}{', spot' if run.spot else ''}, {run.region}"
    return Packed(title, kind, f"{run.instance_id} at {run.address}")


def _touch_lines(touch: Touch, now: float) -> list[Text]:
    if touch.since is None:
        return [] if touch.heard else [Text("connecting", "dim")]
    old = f"; the rest is of {clock(touch.heard, now)}" if touch.heard else ""
    head = f"out of touch for {duration(now - touch.since)}, trying again{old}"
    reasons = [Text(f"  {reason}", "yellow") for reason in (touch.reason, touch.cloud) if reason]
    return [Text(head, "bold yellow"), *reasons]


def _rows(run: Run, snapshot: dict, then: float, now: float) -> list[tuple[str, RenderableType]]:
    rows = [("job", _state(snapshot, then)), *_training_rows(snapshot)]
    others = snapshot["others"]
    rows.append(("machine 0" if others else "machine", _load(snapshot["machine"])))
    rows += [(f"machine {one['rank']}", _other(one, then)) for one in others]
    rows.append(("checkpoints", _checkpoints(snapshot, then)))
    if run.host is None:
        rows.append(("cost", _cost(run, then)))
        rows.append(("deadline", _deadline(run, then, now)))
        rows.append(("guard", Text(*guard_text(snapshot, then, now))))
    if snapshot["job"]["state"] in ("ended", "lost"):
        end = "" if run.host else ", `fab teardown` ends the machine"
        rows.append(("next", Text(f"`fab fetch` brings the results{end}")))
    return rows


def _state(snapshot: dict, then: float) -> Text:
    text = Text(*job_text(snapshot["job"], then))
    if snapshot["complete"]:
        text.append("; results complete")
    return text


def _training_rows(snapshot: dict) -> list[tuple[str, RenderableType]]:
    metrics = snapshot["metrics"]
    if not metrics:
        return [("training", Text("no epoch has ended yet", "dim"))]
    last = metrics[-1]
    monitor = _monitor(snapshot)
    best = metrics[best_epoch(metrics, monitor) - 1]
    rows = [
        (
            "training",
            Packed(
                Text(_epoch(snapshot), "bold"),
                f"{last['clips_per_s']:.0f} clips/s",
                f"{last['seconds']:.3g} s an epoch",
                f"learning rate {last['learning_rate']:.2g}",
            ),
        ),
    ]
    *names, third = shown_scores(monitor)
    for name in names:
        title, _, form = monitor_of(name)
        parts = [
            Text(f"{split} {value:{form}}", STYLES[split])
            for split, value in by_split(last, name).items()
        ]
        if name != "loss":
            parts.append(Text(score_text(last, third)))
        if name == monitor:
            value = by_split(best, name)["validation"]
            parts.append(Text(f"best {value:{form}} in epoch {best['epoch']}"))
        rows.append((title, Packed(*parts)))
    left = time_left(metrics, snapshot["epochs"])
    if left is not None and snapshot["job"]["state"] == "running":
        whose = f" for {snapshot['part']}" if snapshot["part"] else ""
        text = f"at most {duration(left)}{whose}, less if it stops early"
        rows.append(("time left", Text(text)))
    return rows


def _monitor(snapshot: dict) -> str:
    """What selects the run's epoch; accuracy, if that is a metric which this computer lacks."""
    monitor = snapshot.get("monitor") or "accuracy"  # earlier versions have no choice
    try:
        monitor_of(monitor)
    except UserError:
        return "accuracy"
    return monitor


def _epoch(snapshot: dict) -> str:
    of = f" of {snapshot['epochs']}" if snapshot["epochs"] else ""
    part = f"{snapshot['part']}, " if snapshot["part"] else ""
    return f"{part}epoch {snapshot['metrics'][-1]['epoch']}{of}"


def _load(machine: dict) -> Packed:
    memory, disk = (
        machine[f"{what}_used"] / machine[f"{what}_total"] for what in ("memory", "disk")
    )
    sizes = (_sizes(machine, what) for what in ("memory", "disk"))
    return Packed(
        _meter("CPU", machine["cpu"], f"{machine['cpu']:.0%} of {machine['cores']} cores", 2.0),
        _meter("memory", memory, next(sizes), 0.9),
        _meter("disk", disk, next(sizes), 0.9),
    )


def _other(other: dict, then: float) -> Packed:
    """Another machine of the run: its job if it does not run, and its load."""
    if other["trouble"]:
        return Packed(Text(other["trouble"], "bold red"))
    if other["snapshot"] is None:
        return Packed(Text("not heard of yet", "dim"))
    job = other["snapshot"]["job"]
    state = [] if job["state"] == "running" else [Text(*job_text(job, then))]
    return Packed(*state, *_load(other["snapshot"]["machine"]).parts)


def _sizes(machine: dict, what: str) -> str:
    used, total = (machine[f"{what}_{kind}"] / 2**30 for kind in ("used", "total"))
    return f"{used:.{1 if used < 10 else 0}f} of {total:.0f} GiB"


def _meter(name: str, share: float, text: str, alarm: float) -> Text:
    style = "bold red" if share >= alarm else "green"
    return Text.assemble(f"{name} ", (bar(share, BAR_CELLS), style), f" {text}")


def _checkpoints(snapshot: dict, then: float) -> RenderableType:
    found = [one for one in snapshot["checkpoints"] if one["part"] == snapshot["part"]]
    others = len(snapshot["checkpoints"]) - len(found)
    parts = [
        f"{one['kind']}: step {one['step']}, {duration(then - one['time'])} ago"
        for one in sorted(found, key=lambda one: one["kind"])
    ]
    if others:
        parts.append(f"{others} of other parts")
    return Packed(*parts) if parts else Text("none yet", "dim")


def _cost(run: Run, then: float) -> RenderableType:
    spent = cost(run, then)
    if spent is None:
        return Text(f"unknown: no price is known for {run.instance_type}", "dim")
    parts = [f"${spent:.2f} so far", f"${len(run.members) * run.price:.2f} an hour"]
    if run.deadline is not None:
        parts.append(f"at most ${cost(run, run.deadline):.2f}")
    return Packed(*parts)


def _deadline(run: Run, then: float, now: float) -> Text:
    left = run.deadline - then
    text = f"{clock(now + left, now)}, in {duration(left)}: the machine ends itself"
    return Text(text, "yellow" if left < 1800 else "")


def _plots(snapshot: dict) -> Table | None:
    """The monitor and the loss side by side, from the second epoch on."""
    metrics = snapshot["metrics"]
    if len(metrics) < 2:
        return None
    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    table.add_column(ratio=1)
    table.add_column(ratio=1)
    table.add_row(*(_curves(metrics, name) for name in shown_scores(_monitor(snapshot))[1::-1]))
    return table


def _curves(metrics: Sequence[dict], name: str) -> Curves:
    epochs = [row["epoch"] for row in metrics]
    values = {
        split: [by_split(row, name)[split] for row in metrics]
        for split in by_split(metrics[0], name)
    }
    return Curves(monitor_of(name).title, epochs, values)
