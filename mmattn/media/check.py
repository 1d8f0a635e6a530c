"""`mmattn align`: the offsets of clips, the suspect ones, and a plot of one."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import zscore

from mmattn.config import ExtractConfig
from mmattn.console import SHOWN, counted, progress, say, say_table
from mmattn.data.feature_file import BadClip, read_features
from mmattn.errors import Incomplete, Misaligned, UserError
from mmattn.files import check_place, printable, write_text
from mmattn.media import is_feature_file
from mmattn.media.align import ALIGNED, LAGS, Alignment, Movement, align, movement, read_curve
from mmattn.media.extract import extract_clip
from mmattn.media.mesh import OPENING
from mmattn.media.parallel import DIED, SUFFIXES, Job, find_clips, run_jobs
from mmattn.media.survey import BadMedia

RATE = 30.0  # fps: the resolution of an offset is a frame
COLUMNS = ("clip", "audio delay (ms)", "r", "confidence", "")


class Checked(NamedTuple):
    """The alignment of a clip, or why it has none."""

    found: Alignment | None = None
    failure: str | None = None


def check_clips(
    clips: Sequence[Path], models: Path, workers: int, plot: Path | None, table: Path | None
) -> None:
    """Report the alignment of audio and mouth in clips, or in the clips of folders.

    Args:
        clips: raw clips, feature files (.npz), folders.
        models: folder of the face models.
        workers: processes.
        plot: a PNG to write, of the clip furthest out of sync.
        table: a CSV file to write, one row per clip that can be checked.

    Raises:
        UserError: no clips, or a missing model file.
        Incomplete: some clips have no audio or face, or cannot be read.
        Misaligned: in some clips the audio is more than 45 ms early or 125 ms late.
    """
    for option, path in (("plot", plot), ("csv", table)):
        if path is not None:
            check_place(option, path)
    config = ExtractConfig(
        models=models,
        audio={"audio": "log-mel"},
        video={"video": "face-mesh"},
        video_rate=RATE,
    )
    jobs = [Job(clip, below) for clip, below in find_clips(clips, (".npz", *SUFFIXES))]
    results: dict[Path, Checked] = {}
    with progress("align", len(jobs)) as advance:
        for job, result in run_jobs(check_clip, jobs, config, min(workers, len(jobs))):
            results[job.clip] = result or Checked(failure=DIED)
            advance(1)
    found = {clip: one.found for clip, one in sorted(results.items()) if one.found}
    if table:
        write_text(table, _csv(found))
    if plot and found:
        worst = max(found, key=lambda clip: (found[clip].sure, abs(found[clip].offset)))
        plot_alignment(printable(worst.name), _movement(worst, config), found[worst], plot)
        say(f"{plot} shows {worst}")
    _say_results(found, {clip: one.failure for clip, one in results.items() if one.failure})


def check_clip(job: Job, config: ExtractConfig) -> Checked:
    """The alignment of one clip."""
    try:
        return Checked(align(_movement(job.clip, config)))
    except (BadMedia, BadClip) as error:
        return Checked(failure=str(error))
    except (UserError, OSError):  # missing models: no clip could be checked
        raise
    except Exception as error:  # no error of one clip stops the others
        return Checked(failure=repr(error))


def _movement(clip: Path, config: ExtractConfig) -> Movement:
    if is_feature_file(clip):
        return movement(*read_features(clip))
    found = extract_clip(clip, config)
    return movement(found.streams, found.extractor)


def _say_results(found: dict[Path, Alignment], failed: dict[Path, str]) -> None:
    suspects = {clip: one for clip, one in found.items() if one.suspect}
    shown = found if len(found) <= SHOWN else suspects
    if shown:
        rows = [(clip, *_cells(one)) for clip, one in shown.items()]
        say_table("Offset of the audio" if shown is found else "Suspects", COLUMNS, rows)
    if failed:
        title = f"{counted(len(failed), 'clip')} cannot be checked"
        say_table(title, ("clip", "reason"), failed.items(), left=True)
    if found:
        _say_summary(list(found.values()))
    if suspects:
        raise Misaligned(
            f"in {len(suspects)} of {len(found)} clips the audio is more than {-ALIGNED[0]:.0f} ms "
            f"early or {ALIGNED[1]:.0f} ms late"
        )
    if failed:
        raise Incomplete(f"{len(failed)} of {len(failed) + len(found)} clips cannot be checked")


def _cells(one: Alignment) -> tuple[str, str, str, str]:
    word = "suspect" if one.suspect else "" if one.sure else "unclear"
    return f"{round(one.offset):+d}", f"{one.correlation:.2f}", f"{one.confidence:.2f}", word


def _say_summary(found: Sequence[Alignment]) -> None:
    sure = [one.offset for one in found if one.sure]
    if sure:
        low, middle, high = map(round, np.percentile(sure, (25, 50, 75)))
        say(
            f"audio delay: median {middle:+d} ms, quartiles {low:+d} and {high:+d} ms, "
            f"of the {len(sure)} of {len(found)} clips with a clear offset"
        )
    together = read_curve(np.mean([one.curve for one in found], axis=0))
    say(f"all clips together: {round(together.offset):+d} ms, r {together.correlation:.2f}")
    say("above 0 the audio is late; a mouth naturally opens up to 0.1 s before it is heard")


def _csv(found: dict[Path, Alignment]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("clip", "offset_ms", "r", "confidence", "sure", "suspect"))
    for clip, one in found.items():
        numbers = (f"{value:.4f}" for value in (one.offset, one.correlation, one.confidence))
        writer.writerow((clip, *numbers, int(one.sure), int(one.suspect)))
    return file.getvalue()


def plot_alignment(title: str, clip: Movement, found: Alignment, path: Path) -> None:
    """A PNG of a clip's loudness and mouth opening on one axis, and their r at each lag."""
    # Imported here: without a plot, matplotlib is not needed.
    from matplotlib.figure import Figure

    from mmattn.evaluate.plots import BLUE, DPI, GREEN, GREY, ORANGE

    figure = Figure((9, 5.4), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(3, 2))
    opening, audio = clip
    seen = opening.frames[:, 0] > 0
    mouth = np.where(seen, opening.frames[:, 0], np.nan)
    above.plot(audio.times, zscore(audio.frames[:, 0]), color=BLUE, label="loudness")
    above.plot(opening.times, zscore(mouth, nan_policy="omit"), ".-", color=ORANGE, label=OPENING)
    above.set(xlabel="time (s)", ylabel="standard deviations from the mean")
    above.set_title(title, parse_math=False, fontsize=11)
    above.legend(loc="upper right", ncols=2, frameon=False)
    above.set_ylim(top=1.2 * above.get_ylim()[1])
    below.axvspan(*ALIGNED, color=GREY, alpha=0.2, linewidth=0, label="not noticeable")
    below.plot(1000 * LAGS, found.curve, color="black")
    label = f"{found.offset:+.0f} ms, r {found.correlation:.2f}" + (
        "" if found.sure else ", unclear"
    )
    below.plot(found.offset, found.correlation, "*", color=GREEN, markersize=13, label=label)
    below.set(xlabel="audio delay against the mouth (ms)", ylabel="r", xlim=(-600, 600))
    below.legend(loc="best", frameon=False)
    figure.savefig(path, dpi=DPI, format="png")
