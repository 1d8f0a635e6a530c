"""Timelines of recordings: a run's predictions for each person in sliding windows."""

import base64
import csv
import hashlib
import io
import json
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmattn.config import ExtractConfig
from mmattn.console import counted, progress, say, say_table
from mmattn.errors import Incomplete, UserError
from mmattn.files import check_folder, check_folder_place, explain_full_disk, read_json, write_text
from mmattn.machine import give_large_memory_back, give_memory_back
from mmattn.media import SUFFIXES, explain_missing_library
from mmattn.report.footage import portrait
from mmattn.report.timeline import write_timeline_page
from mmattn.run.folder import make_folder
from mmattn.run.run import Clip, Failure, Prediction, Run, load_run
from mmattn.train.checkpoints import Chosen
from mmattn.train.devices import start_devices

with explain_missing_library():
    from mmattn.media.faces import area
    from mmattn.media.parallel import find_clips
    from mmattn.media.survey import BadMedia, Plan, survey
    from mmattn.media.windows import Person, Window, Windows, read_windows

LONGEST = 60.0  # seconds of a window
NEARER = 1.5  # take a new portrait if the area of the face has grown by this factor
TIDY = 60  # windows between releases of memory
FORMATS = ("csv", "html", "srt")


@dataclass(frozen=True)
class Sliding:
    """The sliding windows over a recording, and what is a gap; see `mmattn timeline --help`."""

    window: float = 3.0  # seconds
    hop: float = 0.5  # seconds
    silence: float = -55.0  # dB of full scale
    partial: bool = False  # predict from one modality where another is missing

    def check(self) -> None:
        """Raise UserError at the first invalid option."""
        for option, value, right, expected in (
            ("window", self.window, 0.5 <= self.window <= LONGEST, f"0.5 to {LONGEST:g} seconds"),
            ("hop", self.hop, 0.05 <= self.hop <= self.window, "0.05 seconds to --window"),
            ("silence", self.silence, -120 <= self.silence < 0, "-120 to below 0 dB"),
        ):
            if not right:
                raise UserError(f"--{option} {value:g}: expected {expected}")


class Recording(NamedTuple):
    """A recording, and the file of its timeline."""

    path: Path
    target: Path

    @property
    def identity(self) -> str:
        """Distinguishes it from other recordings of the same name."""
        return f"{self.path.name}, {self.path.stat().st_size} bytes"

    def output(self, suffix: str) -> Path:
        """The path of another file made from the timeline."""
        return self.target.with_name(f"{self.path.stem}.{suffix}")


def make_timelines(
    folder: Path,
    given: Sequence[Path],
    to: Path,
    sliding: Sliding,
    formats: Sequence[str] = FORMATS,
    kind: Chosen = "best",
    calibrated: bool = True,
    media: ExtractConfig | None = None,
) -> None:
    """Write the timeline of each recording below the folder `to`; existing ones stay.

    Args:
        folder: of the run, see `load_run`.
        given: recordings, and folders to search for them.
        to: for NAME.timeline.json and the files made from it.
        sliding: the windows.
        formats: the files to make: csv, html, srt.
        kind: which checkpoint.
        calibrated: see `load_run`.
        media: where the models are.

    Raises:
        UserError: no such run, or `to` has timelines with other options.
        Incomplete: some recordings have no timeline; the others are done.
    """
    sliding.check()
    check_folder_place("to", to)
    start()
    run = load_run(folder, kind, media, calibrated, apart=True)
    recordings, failures = find_recordings(given, to)
    for line in run.trust:
        say(line)
    config, made_by = run.extraction(), settings(run, sliding)
    left = [one for one in recordings if not is_done(one, made_by)]
    if len(left) < len(recordings):
        say(f"{len(recordings) - len(left)} of {len(recordings)} timelines are in {to} already")
    check_folder(make_folder(to))
    plans: dict[Recording, Plan] = {}
    with progress("look through", len(left), "recordings") as advance:
        for one in left:
            try:
                plan = survey(one.path)
                plan.check_length()
                plans[one] = plan
            except BadMedia as error:
                failures.append(Failure(Clip(one.path), str(error)))
            advance(1)
    total = sum(round(plan.end) for plan in plans.values())
    with explain_full_disk(f"timelines to {to}"), progress("timeline", total, "s") as advance:
        for one, plan in plans.items():
            try:
                timeline = predict_recording(run, config, plan, sliding, advance)
            except BadMedia as error:
                failures.append(Failure(Clip(one.path), str(error)))
                continue
            one.target.parent.mkdir(parents=True, exist_ok=True)
            made = {**made_by, "recording": one.identity}
            text = json.dumps({"settings": made, **timeline}, ensure_ascii=False)
            write_text(one.target, text + "\n")
        failed = {failure.path for failure in failures}
        done = [one for one in recordings if one.path not in failed]
        for one in done:
            write_formats(one, formats)
    _say_results(done, failures, to)


def start() -> None:
    """Prepare this process for long recordings: one device, and freed memory goes back."""
    start_devices(1, batch=1)
    give_large_memory_back()


def find_recordings(given: Sequence[Path], to: Path) -> tuple[list[Recording], list[Failure]]:
    """The recordings given and those in folders given; and failures for missing ones.

    Raises UserError: none is given, or two would have the same timeline.
    """
    if not given:
        raise UserError("RECORDING...: expected recordings or folders of them, one or more")
    there = [path for path in given if path.exists()]
    owners: dict[Path, Path] = {}
    for path, below in find_clips(there, SUFFIXES) if there else []:
        target = (to / below).with_name(f"{below.stem}.timeline.json")
        if owners.setdefault(target, path) != path:
            raise UserError(f"{owners[target]} and {path} would both become {target}")
    missing = [Failure(Clip(path), "there is no such file") for path in given if not path.exists()]
    return [Recording(path, target) for target, path in owners.items()], missing


def settings(run: Run, sliding: Sliding) -> dict[str, Any]:
    """What a timeline depends on besides its recording, as JSON values."""
    about = json.dumps([one.about for one in run.networks], sort_keys=True, default=str)
    return {
        "run": run.name,
        "networks": hashlib.sha256(about.encode()).hexdigest()[:16],
        "checkpoint": run.checkpoint,
        "calibrated": run.is_calibrated,
        **asdict(sliding),
    }


def is_done(one: Recording, made_by: dict[str, Any]) -> bool:
    """Whether its timeline exists and is newer. UserError if it was made with other settings."""
    if not one.target.exists():
        return False
    found = read_json(one.target).get("settings") or {}
    wanted = {**made_by, "recording": one.identity}
    wanted.pop("run")  # only its networks count, not its name
    if differ := [name for name in wanted if found.get(name) != wanted[name]]:
        raise UserError(
            f"{one.target} was made with other settings ({', '.join(differ)}); choose another "
            "--to, or delete it to make it again"
        )
    return one.target.stat().st_mtime >= one.path.stat().st_mtime


def predict_recording(
    run: Run,
    config: ExtractConfig,
    plan: Plan,
    sliding: Sliding,
    advance: Callable[[float], None] = lambda seconds: None,
) -> dict[str, Any]:
    """The timeline of a recording as JSON values.

    Its `windows` have a row for each person and window: start and end (s), person (a number from 1,
    None without a face), speaking (None if unclear), probabilities (None in a gap), and gap, the
    reason.

    Args:
        run: predicts.
        config: of its features.
        plan: of the recording.
        sliding: the windows.
        advance: called with the seconds done since the last call.

    Raises:
        BadMedia: the recording cannot be read, or lacks a modality that the run needs.
    """
    has = {kind for kind in ("audio", "video") if plan.of(kind)}
    wanted = {kind for kind in ("audio", "video") if getattr(config, kind)}
    lacks = sorted(wanted - has)
    if lacks == sorted(wanted) or (lacks and not sliding.partial):
        more = "; --partial also predicts recordings of one" if lacks != sorted(wanted) else ""
        raise BadMedia(f"it has no {' and no '.join(lacks)}, which the run needs{more}")
    # For a run on video only, the audio still shows who speaks.
    kinds = has if "video" in wanted else {"audio"}
    portraits = Portraits()
    windows = Windows(config, sliding.window, sliding.hop, kinds, sliding.silence)
    rows = []
    for window in read_windows(plan, windows, portraits.see, advance):
        for person in window.people:
            rows.append(row_of(window, person, *predict_person(run, person, sliding.partial)))
        if window.number % TIDY == 0:  # at the first one, memory of loading and compiling
            give_memory_back()
    shown = list(dict.fromkeys(row["person"] for row in rows if row["person"]))
    return {
        "recording": plan.path.name,
        "seconds": round(plan.end, 3),
        "trust": [*run.trust],
        "notes": plan.notes,
        "classes": [*run.class_names],
        "people": [{"portrait": portraits.of(number - 1)} for number in shown],
        "windows": [
            {**row, "person": row["person"] and 1 + shown.index(row["person"])} for row in rows
        ],
    }


def predict_person(
    run: Run, person: Person, partial: bool = False
) -> tuple[Prediction | None, str]:
    """The prediction for a person in a window, None in a gap; and what is missing, if anything."""
    gap = "; ".join(person.gaps.values())
    if not person.streams or (gap and not partial):
        return None, gap
    # One by one: a batch through an ensemble takes 100 MB and is no faster.
    (found,) = run.predict_streams([person.streams])
    return (None, found.reason) if isinstance(found, Failure) else (found, gap)


def row_of(window: Window, person: Person, found: Prediction | None, gap: str) -> dict[str, Any]:
    """A row of a timeline's windows, see `predict_recording`."""
    return {
        "start": round(window.start, 3),
        "end": round(window.end, 3),
        "person": None if person.number is None else 1 + person.number,
        "speaking": person.speaking,
        "probabilities": found and [round(float(share), 6) for share in found.probabilities],
        "gap": gap,
    }


class Portraits:
    """A portrait of each person, from the first frame in which the face is nearly largest."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[float, bytes]] = {}  # area and JPEG, by number

    def see(self, frame: np.ndarray, faces: Sequence[Any], numbers: Sequence[int]) -> None:
        """Look at the faces in a frame [H, W, 3] uint8."""
        for seen, number in zip(faces, numbers, strict=True):
            size = area(seen.face)
            if size > NEARER * self._kept.get(number, (0.0, b""))[0]:
                self._kept[number] = size, portrait(frame, seen.face.box)

    def of(self, number: int) -> str:
        """The portrait as a data URL."""
        return f"data:image/jpeg;base64,{base64.b64encode(self._kept[number][1]).decode()}"


def write_formats(one: Recording, formats: Sequence[str]) -> None:
    """Make the files of these formats from a timeline, unless they exist and are newer."""
    made = one.target.stat().st_mtime
    paths = {name: one.output(name) for name in formats}
    old = [name for name, of in paths.items() if not (of.exists() and of.stat().st_mtime >= made)]
    if not old:
        return
    timeline = read_json(one.target)
    if "csv" in old:
        write_text(paths["csv"], to_csv(timeline))
    if "srt" in old:
        write_text(paths["srt"], to_srt(timeline))
    if "html" in old:
        command = shlex.join(["mmattn", *sys.argv[1:]])
        write_timeline_page(paths["html"], timeline, one.path, command)


def to_csv(timeline: dict[str, Any]) -> str:
    """A timeline as CSV: a row for each person and window, times in seconds."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = timeline["classes"]
    writer.writerow(["start", "end", "person", "speaking", "predicted", *names, "gap"])
    for row in timeline["windows"]:
        shares = row["probabilities"]
        speaking = {True: "yes", False: "no", None: ""}[row["speaking"]]
        found = ["", *[""] * len(names)] if shares is None else [_top(timeline, shares), *shares]
        writer.writerow(
            [row["start"], row["end"], row["person"] or "", speaking, *found, row["gap"]]
        )
    return text.getvalue()


def to_srt(timeline: dict[str, Any]) -> str:
    """A timeline as subtitles: each class for as long as it is the most probable one.

    A window counts for one hop around its centre.
    """
    cues: list[str] = []
    for lines, rows in groupby(_subtitles(timeline), key=lambda cue: cue[0]):
        rows = list(rows)
        if not lines:
            continue
        means = np.mean([shares for *_, shares in rows], axis=0)
        text = "\n".join(f"{line} {share:.0%}" for line, share in zip(lines, means, strict=True))
        times = f"{_clock(rows[0][1])} --> {_clock(rows[-1][2])}"
        cues.append(f"{len(cues) + 1}\n{times}\n{text}\n")
    return "\n".join(cues)


def _subtitles(
    timeline: dict[str, Any],
) -> Iterator[tuple[tuple[str, ...], float, float, list[float]]]:
    """For each window: a line for each person with a prediction, start, end (s), probabilities."""
    half = timeline["settings"]["hop"] / 2
    several = len(timeline["people"]) > 1
    for (start, end), rows in groupby(
        timeline["windows"], key=lambda row: (row["start"], row["end"])
    ):
        lines, shares = [], []
        for row in rows:
            if row["probabilities"] is None:
                continue
            who = ", speaking" if row["speaking"] else ""
            who = f"Person {row['person']}{who}: " if several and row["person"] else ""
            lines.append(who + _top(timeline, row["probabilities"]))
            shares.append(max(row["probabilities"]))
        middle = (start + end) / 2
        yield tuple(lines), middle - half, middle + half, shares


def _top(timeline: dict[str, Any], shares: Sequence[float]) -> str:
    return timeline["classes"][int(np.argmax(shares))]


def _clock(seconds: float) -> str:
    """A time in the format of subtitles.

    >>> _clock(3661.5)
    '01:01:01,500'
    """
    milliseconds = round(1000 * max(seconds, 0.0))
    minutes, rest = divmod(milliseconds, 60000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02},{rest % 1000:03}"


def _say_results(done: Sequence[Recording], failures: Sequence[Failure], to: Path) -> None:
    """Print a summary of each timeline; Incomplete if some recordings have none."""
    rows = []
    for one in done:
        timeline = read_json(one.target)
        shares = [row["probabilities"] for row in timeline["windows"]]
        found = Counter(_top(timeline, one) for one in shares if one is not None)
        most = ", ".join(f"{name} {count}" for name, count in found.most_common())
        gaps = Counter(row["gap"] for row in timeline["windows"] if row["probabilities"] is None)
        why = ", ".join(f"{reason} {count}" for reason, count in gaps.most_common())
        seconds, people = f"{timeline['seconds']:.0f}", len(timeline["people"])
        rows.append((one.path, seconds, people or "-", most or "none", why or "none"))
    if rows:
        columns = ("recording", "seconds", "people", "windows by class", "no prediction")
        say_table(f"{counted(len(rows), 'timeline')} in {to}", columns, rows, left=True)
    if failures:
        rows = [(failure.path, failure.reason) for failure in failures]
        say_table("Without a timeline", ("recording", "reason"), rows, left=True)
        raise Incomplete(
            f"{len(failures)} of {len(done) + len(failures)} recordings have no timeline; the "
            "table gives the reasons"
        )
