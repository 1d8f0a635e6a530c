"""Extract one clip repeatedly in one process: speed on a core, and growth of memory.

python -m benchmarks.extraction CLIP --times 1000
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.machine import command, describe, say_machine
from benchmarks.memory import megabytes
from mmattn.config import ExtractConfig
from mmattn.console import progress, say_table
from mmattn.errors import UserError

PARTS = 10  # rows of the table


@dataclass(frozen=True)
class Options:
    """Extract one clip repeatedly."""

    clip: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CLIP")]
    times: int = 1000
    features: tyro.conf.OmitArgPrefixes[ExtractConfig] = field(default_factory=ExtractConfig)

    def __call__(self) -> None:
        from mmattn.media.extract import extract_clip
        from mmattn.media.survey import BadMedia

        if self.times < PARTS:
            raise UserError(f"--times {self.times}: expected {PARTS} or more")
        say_machine(describe())
        rows = []
        try:
            seconds = extract_clip(self.clip, self.features).seconds  # loads the models
            with progress("extract", self.times) as advance:
                for part in range(PARTS):
                    count = self.times * (part + 1) // PARTS - self.times * part // PARTS
                    begin = time.process_time()
                    for _ in range(count):
                        extract_clip(self.clip, self.features)
                        advance(1)
                    work = (time.process_time() - begin) / (count * seconds)
                    rows.append((self.times * (part + 1) // PARTS, f"{work:.3f}", megabytes()))
        except BadMedia as error:
            raise UserError(f"{self.clip}: {error}") from error
        columns = ("clips so far", "core seconds per second of clip", "resident MB")
        say_table(f"{self.clip.name}, {seconds:.1f} s, {self.times} times", columns, rows)


if __name__ == "__main__":
    command(Options, "extraction", Options.__doc__)
