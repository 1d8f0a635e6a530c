"""A timeline of a long recording: speed, and growth of memory with its length.

python -m benchmarks.timeline RUN CLIP --minutes 15
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import av
import tyro

from benchmarks.machine import command, describe, say_machine
from benchmarks.memory import megabytes
from mmattn.console import progress, say, say_table
from mmattn.errors import UserError

SHOWN = (1, 5, 15, 30, 60)  # minutes
SIZES = ("resident MB", "own MB", "most MB")


@dataclass(frozen=True)
class Options:
    """Make the timeline of a clip repeated for minutes."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    clip: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CLIP")]
    minutes: int = 15

    def __call__(self) -> None:
        from mmattn.media.survey import BadMedia, survey
        from mmattn.run.run import load_run
        from mmattn.run.timeline import Sliding, predict_recording, start

        if self.minutes < 1:
            raise UserError(f"--minutes {self.minutes}: expected 1 or more")
        say_machine(describe())
        start()
        left = [minute for minute in SHOWN if minute < self.minutes] + [self.minutes]
        rows, done, begin = [], 0.0, (time.perf_counter(), time.process_time())
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"long{self.clip.suffix}"
            try:
                repeat_clip(self.clip, path, 60 * self.minutes)
                run = load_run(self.run, apart=True)
                plan, config = survey(path), run.extraction()
                with progress("timeline", round(plan.end), "s") as advance:

                    def count(seconds: float) -> None:
                        nonlocal done, begin
                        done += seconds
                        advance(seconds)
                        if left and done >= 60 * left[0] - 1:  # the last window ends before the end
                            now = time.perf_counter(), time.process_time()
                            spent = (new - old for new, old in zip(now, begin, strict=True))
                            minutes = left[0] - (rows[-1][0] if rows else 0)
                            each = (f"{one / 60 / minutes:.2f}" for one in spent)
                            sizes = map(megabytes, ("VmRSS", "RssAnon", "VmHWM"))
                            rows.append((left.pop(0), *each, *sizes))
                            begin = now

                    timeline = predict_recording(run, config, plan, Sliding(), count)
            except BadMedia as error:
                raise UserError(f"{self.clip}: {error}") from error
            finally:  # Ctrl-C too: an hour is long
                columns = ("minute", "seconds per second", "core seconds per second", *SIZES)
                say_table(f"{self.run}, {self.clip.name} for {self.minutes} minutes", columns, rows)
        say(f"{len(timeline['windows'])} windows of {len(timeline['people'])} people")


def repeat_clip(clip: Path, to: Path, seconds: float) -> None:
    """Write a file that repeats a clip for `seconds`, without re-encoding."""
    with av.open(clip) as source, av.open(to, "w") as file:
        streams = {one.index: file.add_stream_from_template(one) for one in source.streams}
        packets = [packet for packet in source.demux() if packet.dts is not None]
        starts = (one.dts * one.time_base for one in packets)
        ends = ((one.pts + one.duration) * one.time_base for one in packets)
        lasts = float(max(ends) - min(starts))
        bases = {one.index: one.time_base for one in source.streams}
        own = [(one.stream_index, one.pts, one.dts) for one in packets]
        for turn in range(round(seconds / lasts + 0.5)):
            for packet, (number, pts, dts) in zip(packets, own, strict=True):
                shift = round(turn * lasts / bases[number])
                packet.pts, packet.dts, packet.time_base = pts + shift, dts + shift, bases[number]
                packet.stream = streams[number]
                file.mux_one(packet)


if __name__ == "__main__":
    command(Options, "timeline", Options.__doc__)
