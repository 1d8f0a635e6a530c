"""Audio and faces of a raw clip that was predicted, for the page."""

from pathlib import Path

from mmattn.config import ExtractConfig
from mmattn.evaluate.views import StreamView
from mmattn.media.decode import read_audio, read_frames
from mmattn.media.extract import face_tracker, heard_audio
from mmattn.report.footage import Envelope, Face, envelope, most_attended, portrait


def audio_envelope(path: Path) -> Envelope | None:
    """The envelope of the audio that a clip was predicted from; None without. Raises BadMedia."""
    audio, _ = heard_audio(path, read_audio(path))
    return None if audio is None else envelope(*audio)


def faces_of(path: Path, video: StreamView, config: ExtractConfig) -> tuple[Face, ...]:
    """The face where the attention is highest, in the order of time.

    Args:
        path: of the clip.
        video: what was predicted from, extracted from this clip.
        config: how.

    Raises:
        BadMedia: the clip cannot be read.
        UserError: the face detector's file is missing.
    """
    wanted = {float(video.times[frame]): video.ratio[frame] for frame in most_attended(video)}
    track = face_tracker(config)  # sees every frame, so that it follows the same face as before
    found = []
    for time, frame in read_frames(path, config.video_rate):
        face = track(frame)
        if face is not None and time in wanted:
            found.append(Face(time, float(wanted[time]), portrait(frame, face.box)))
        if len(found) == len(wanted):
            break
    return tuple(found)
