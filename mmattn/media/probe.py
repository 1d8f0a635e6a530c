"""`mmattn probe`: a clip's streams, those that extraction uses, and possible problems."""

from pathlib import Path

from mmattn.console import say_table
from mmattn.errors import Incomplete
from mmattn.media.decode import read_frames
from mmattn.media.extract import heard_audio
from mmattn.media.sound import read_audio
from mmattn.media.survey import BadMedia, survey


def probe_clip(path: Path, rate: float) -> None:
    """Decode a clip as extraction does, and show its streams and how each is used.

    Args:
        path: of the clip.
        rate: of video frames, fps.

    Raises:
        Incomplete: it cannot be used.
    """
    try:
        plan = survey(path)
        rows = [
            (number, track.kind, track.form, f"{track.start:.2f} to {track.end:.2f}")
            for number, track in enumerate(plan.tracks)
        ]
        claimed = "" if plan.claimed is None else f", {plan.claimed:.2f} s by its header"
        title = f"{path}: {plan.form}, {plan.end:.2f} s{claimed}"
        say_table(title, ("stream", "kind", "codec", "seconds"), rows, left=True)
        plan.check_length()
        audio, heard = heard_audio(path, read_audio(plan))
        plan.notes.extend(heard)
        if audio is not None:
            plan.done["audio"].append(f"{audio.start:.2f} to {audio.end:.2f} s")
        times = [time for time, _ in read_frames(plan, rate)]
        if times:
            plan.done["video"].append(f"{times[0]:.2f} to {times[-1]:.2f} s")
        else:
            plan.notes.append("it has no video frames")
    except BadMedia as error:
        raise Incomplete(f"{path}: {error}") from error
    used = [(kind, "; ".join(done) or "nothing") for kind, done in plan.done.items()]
    say_table("What extraction uses", ("", ""), used, left=True)
    notes = [(note,) for note in plan.notes] or [("none; `mmattn align` compares both streams",)]
    say_table("Possible problems", ("",), notes, left=True)
