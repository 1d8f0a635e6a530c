"""Audio and video frames of a clip with the times at which they are heard and seen.

Both streams keep their own times: seconds on the container's clock, which starts with the earlier
of the two. A stream that starts late (in FLV by 25 ms, say) is late here too.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from mmattn.media.lfs import POINTER, is_pointer

RATE = 16000  # Hz; speech above 8 kHz tells little of emotion
SILENT = 1e-3  # of full scale: a track that never gets louder has no audio
SHORT = 0.5  # seconds that may be missing of what the header promises …
SHORT_SHARE = 0.1  # … or this share of it, whichever is more
# Of MP4: what its edit list says is a shift of all times, no more. Otherwise FFmpeg drops RAVDESS's
# last frame and shows the others a frame (33 ms) too early, for their list does not make up for
# the delay of the encoder; the audio, which is delayed as much, stays where it is.
#
# No list of other files is read, which FFmpeg would follow: a clip is what is in its own file.
_OPTIONS = {
    "advanced_editlist": "0",
    "format_whitelist": "mov,flv,avi,matroska,wav,flac,aac,mp3,ogg,mpegts,mpeg,asf",
}
GAP = 0.05  # seconds without audio that are packets lost, not rounded times
LONGEST_GAP = 60.0
_EARLY = 1e-3  # seconds that a frame may come before it is due, for times that are rounded


class BadMedia(Exception):
    """A clip that cannot be used; the message says why."""


class Audio(NamedTuple):
    """One channel of audio."""

    samples: np.ndarray  # [n] float32, full scale is 1
    rate: int  # Hz
    start: float  # seconds, the time of the first sample

    @property
    def end(self) -> float:
        """Seconds, the time after the last sample."""
        return self.start + len(self.samples) / self.rate

    @property
    def silent(self) -> bool:
        """Whether nothing is heard, as in the silent track of RAVDESS's 02-* clips."""
        return not len(self.samples) or float(np.abs(self.samples).max()) < SILENT


def read_audio(path: Path) -> Audio | None:
    """The audio of a clip as one channel of 16 kHz; None if the clip has no audio track.

    Where packets were lost it is silent, so that what follows keeps its time. Raises BadMedia.
    """
    with _opened(path) as container:
        if not container.streams.audio:
            return None
        _check_codec(container.streams.audio[0])
        parts: list[np.ndarray] = []
        resampler = form = start = None
        due = ended = 0.0  # when the next sample is due, and when the last frame ended
        for frame in container.decode(container.streams.audio[0]):
            time = _time(frame, container)
            if start is None:
                start = due = ended = time
            if not ended - GAP <= time <= due + LONGEST_GAP:
                raise BadMedia(f"its audio jumps from {ended:.2f} to {time:.2f} s")
            if time - due > GAP:
                parts += [*_rest(resampler), np.zeros(round((time - due) * RATE), np.float32)]
                resampler, due = None, time
            if resampler is None or form != _form(frame):
                parts += _rest(resampler)
                resampler, form = av.AudioResampler("flt", "mono", RATE), _form(frame)
            parts += [part.to_ndarray()[0] for part in resampler.resample(frame)]
            due += frame.samples / frame.sample_rate
            ended = time + frame.samples / frame.sample_rate
        if start is None:
            raise BadMedia("its audio track is empty")
        return Audio(np.concatenate([*parts, *_rest(resampler)]), RATE, start)


def _check_codec(stream: av.stream.Stream) -> None:
    """Raise BadMedia where PyAV knows no decoder; older ones crash when they are to decode then."""
    if stream.codec_context is None:
        raise BadMedia(f"its {stream.type} is in an unknown codec")


def _form(frame: av.AudioFrame) -> tuple:
    return frame.format.name, frame.layout.name, frame.sample_rate


def _rest(resampler: av.AudioResampler | None) -> list[np.ndarray]:
    """What a resampler still holds; it cannot be used again."""
    return [part.to_ndarray()[0] for part in resampler.resample(None)] if resampler else []


def read_frames(path: Path, rate: float) -> Iterator[tuple[float, np.ndarray]]:
    """Times (s) and video frames [H, W, 3] uint8 RGB of a clip, at most `rate` (fps).

    Nothing for a clip without video. Turned upright, as a telephone's clips ask for.
    Raises BadMedia.
    """
    with _opened(path) as container:
        videos = [
            stream
            for stream in container.streams.video
            if not stream.disposition & av.stream.Disposition.attached_pic  # the cover of a song
        ]
        if not videos:
            return
        _check_codec(videos[0])
        videos[0].codec_context.thread_count = 1  # clips are read in parallel, each on a core
        due = -np.inf
        for frame in container.decode(videos[0]):
            time = _time(frame, container)
            if time >= due - _EARLY:
                due = time + 1 / rate
                pixels = frame.to_ndarray(format="rgb24")
                yield time, np.rot90(pixels, round(frame.rotation / 90))


def claimed_seconds(path: Path) -> float | None:
    """How long the header says that the clip is; None if it does not. Raises BadMedia."""
    with _opened(path) as container:
        return None if container.duration is None else container.duration / av.time_base


def last_packet(path: Path, kind: str) -> float:
    """When the last packet of the streams of a kind (audio, video) begins, in seconds; else 0.

    For streams that are not decoded. Raises BadMedia.
    """
    with _opened(path) as container:
        streams = [stream for stream in container.streams if stream.type == kind]
        packets = container.demux(streams) if streams else ()
        times = [float(one.pts * one.time_base) for one in packets if one.pts is not None]
        return max(times) - (container.start_time or 0) / av.time_base if times else 0.0


def check_length(claimed: float | None, found: float) -> None:
    """Raise BadMedia if a clip ends (s) well before its header says it does."""
    if claimed is not None and claimed - found > max(SHORT, SHORT_SHARE * claimed):
        raise BadMedia(f"cut short: its header says {claimed:.1f} s, it ends at {found:.1f} s")


@contextmanager
def _opened(path: Path) -> Iterator[av.container.InputContainer]:
    try:
        if not path.stat().st_size:
            raise BadMedia("the file is empty")
        if is_pointer(path):
            raise BadMedia(POINTER)
        with av.open(
            str(path.absolute()), options=_OPTIONS, metadata_errors="replace"
        ) as container:
            yield container
    except av.FFmpegError as error:
        raise BadMedia(f"no audio or video can be read: {error.strerror}") from error
    except IndexError as error:  # PyAV's own, of a stream that the header does not list
        raise BadMedia("no audio or video can be read: its packets are of no stream") from error
    except (ValueError, MemoryError) as error:  # PyAV's own, of frames that do not fit
        raise BadMedia(f"no audio or video can be read: {error}") from error
    except OSError as error:
        raise BadMedia(f"unreadable: {error.strerror or error}") from error


def _time(frame: av.frame.Frame, container: av.container.InputContainer) -> float:
    if frame.time is None:
        raise BadMedia("it does not say when its frames are heard or seen")
    return frame.time - (container.start_time or 0) / av.time_base
