"""Video frames of a clip with their presentation times, and the decoding of any stream.

A clip is read by its Plan, which also records what was done and what the user should know.

Both streams keep their own times: seconds on the container's clock, which starts with the earlier
of the two. A stream that starts late (e.g. by 25 ms in FLV) is late here too.
"""

from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.format import Flags

from mmattn.media.survey import UNKNOWN, BadMedia, Plan, opened, survey

DARK = 64  # of 255: if 95 % of the pixels stay below, a face is hardly visible
HDR = {16: "PQ", 18: "HLG"}  # transfer functions, by their number in ITU-T H.273
FLATTEST = 4  # aspect ratio of a pixel, or its inverse; beyond, the header is wrong
_EARLY = 1e-3  # seconds that a frame may come early, because times are rounded


def read_frames(clip: Path | Plan, rate: float) -> Iterator[tuple[float, np.ndarray]]:
    """Times (s) and video frames [H, W, 3] uint8 RGB of a clip, at most `rate` (fps).

    Nothing for a clip without video. Frames are rotated upright, as the metadata of phone clips
    asks, and non-square pixels are made square by stretching the shorter side.

    Args:
        clip: its path, or its plan by `survey`, which records at the end what was done.
        rate: fps.

    Raises:
        BadMedia: the video cannot be decoded.
    """
    plan = clip if isinstance(clip, Plan) else survey(clip)
    if not plan.of("video"):
        return
    videos = [n for n in plan.of("video") if plan.tracks[n].form != UNKNOWN] or plan.of("video")
    number = max(videos, key=lambda n: plan.tracks[n].packets)  # a stream of one frame is an image
    with opened(plan.path, plan.edits) as container:
        stream = decoded_stream(container, number)
        stream.codec_context.thread_count = 1  # clips are read in parallel, each on a core
        # A decoder outputs frames in presentation order. If packets have only decoding times, the
        # frames take these in order: in AVI, frame n is shown at the time of packet n; in other
        # formats such times increase although the codec reorders frames.
        avi, reorders = container.format.name == "avi", stream.codec_context.has_b_frames
        in_turn = reorders and (avi or plan.tracks[number].rising)
        reordered = False
        aspect, clock, broken = _aspect(stream, plan), Clock(container, plan.start), Broken()
        lasts = float(1 / (stream.guessed_rate or 25))  # seconds
        decoded: deque[tuple[int | None, int | None]] = deque()
        due, latest, count, back, brightest = -np.inf, -np.inf, 0, 0, 0.0
        for packet, frames in broken.decode(container, stream, clock):
            if packet.size and in_turn:  # else they would pile up: 13 MB in an hour
                decoded.append((packet.pts, packet.dts if avi else packet.pts))
            for frame in frames:
                if in_turn:
                    # Packets before the first frame's output nothing.
                    if clock.due is None and any(frame.pts == own for own, _ in decoded):
                        while decoded[0][0] != frame.pts:
                            decoded.popleft()
                    _, turn = decoded.popleft() if decoded else (None, None)
                    reordered, frame.pts = reordered or frame.pts != turn, turn
                time = clock(frame, lasts)
                back, latest = back + (time < latest - 2 * lasts), max(time, latest)
                if time < due - _EARLY:
                    continue
                due, count = time + 1 / rate, count + 1
                turned = round(frame.rotation / 90) % 4
                pixels = np.rot90(_square(frame, aspect), turned)
                brightest = max(brightest, np.percentile(pixels[::16, ::16], 95))
                shape = frame.width, frame.height
                yield time, pixels
        if not count:
            if reason := broken.reason("video"):
                raise BadMedia(reason)
            return
        done = plan.done["video"]
        plan.notes.extend(broken.said("video"))
        if number != plan.of("video")[0]:
            plan.notes.append(f"its video is that of stream {number}, which has the most frames")
        if back:
            plan.notes.append(f"{back} of its video frames go back in time: left out")
        if len(plan.of("video")) > 1:
            done.append(f"stream {number}, of {len(plan.of('video'))} with video")
        if aspect != 1:
            done.append(f"pixels of {aspect} made square: {shape[0]} x {shape[1]} stretched")
        if turned:
            done.append(f"turned by {90 * turned} degrees")
        if reordered:
            plan.notes.append("it has no presentation times: its frames are dated in their order")
        done += [f"{count} frames, at most {rate:g} fps", *clock.said()]
        if brightest < DARK:
            plan.notes.append(
                f"its video is dark: 95 % of all pixels are below {brightest:.0f} of 255"
            )
        if transfer := HDR.get(stream.codec_context.color_trc):
            plan.notes.append(f"its video is HDR ({transfer}), not converted: colours look flat")


class Broken:
    """Decodes a stream; skips and counts the packets that cannot be decoded."""

    def __init__(self) -> None:
        self.count = 0
        self.error: av.FFmpegError | None = None

    def decode(
        self, container: av.container.InputContainer, stream: av.stream.Stream, clock: "Clock"
    ) -> Iterator[tuple[av.Packet, list[Any]]]:
        """Each packet that can be decoded, with the frames that it yields."""
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.FFmpegError as error:
                if isinstance(error, MemoryError):
                    raise
                self.count, self.error = self.count + 1, error
                clock.skip(float((packet.duration or 0) * packet.time_base))
            else:
                yield packet, frames

    def reason(self, kind: str) -> str | None:
        """Why nothing could be decoded, if there were packets."""
        return f"no {kind} can be decoded: {self.error.strerror}" if self.error else None

    def said(self, kind: str) -> list[str]:
        """Notes for the user."""
        packets = "1 packet" if self.count == 1 else f"{self.count} packets"
        return [f"{packets} of its {kind} cannot be decoded: left out"] if self.count else []


class Clock:
    """Times of frames, in seconds of the clip; a frame without one follows the frame before.

    Formats like MP3 and WAV have no times: FFmpeg counts frames, wrongly if the rate changes. There
    too, frames after the first follow the frame before.
    """

    def __init__(self, container: av.container.InputContainer, start: float):
        flags: Any = container.format.flags  # an int, of the bits of Flags
        own_times, counted = Flags.ts_discont.value, Flags.generic_index.value
        self.counted = bool(flags & counted) and not flags & own_times
        self.start, self.undated = start, 0
        self.due: float | None = None

    def __call__(self, frame: av.frame.Frame, lasts: float) -> float:
        self.undated += frame.pts is None
        if frame.pts is None or (self.counted and self.due is not None):
            time = self.due or 0.0
        else:
            assert frame.time_base is not None  # what has a time has its unit
            time = float(frame.pts * frame.time_base) - self.start
        self.due = time + lasts
        return time

    def skip(self, lasts: float) -> None:
        """Skip a missing part of this duration (s)."""
        if self.due is not None:
            self.due += lasts

    def said(self) -> list[str]:
        """What was done."""
        return [f"{self.undated} frames dated from the frame before"] if self.undated else []


def _aspect(stream: av.VideoStream, plan: Plan) -> Fraction:
    """Width over height of a pixel; 1 if the header's value is impossible."""
    stored = stream.sample_aspect_ratio  # a Fraction, from PyAV 19 on another kind of number
    aspect = Fraction(stored.numerator, stored.denominator) if stored else Fraction(1)
    if 1 / FLATTEST <= aspect <= FLATTEST:
        return aspect
    plan.done["video"].append(f"pixels of {aspect}, by the header, are taken for square")
    return Fraction(1)


def _square(frame: av.VideoFrame, aspect: Fraction) -> np.ndarray:
    """The frame's pixels, [H, W, 3] uint8 RGB; the shorter side of a pixel is stretched."""
    if aspect == 1:
        return frame.to_ndarray(format="rgb24")
    width = round(frame.width * max(aspect, Fraction(1)))
    height = round(frame.height / min(aspect, Fraction(1)))
    # FFmpeg's default, bilinear, has twice the landmark error against a square copy.
    return frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="LANCZOS")


def decoded_stream(container: av.container.InputContainer, number: int) -> Any:
    """The stream with this number; BadMedia if FFmpeg has no decoder for it."""
    stream = container.streams[number]
    if stream.codec_context is None:
        raise BadMedia(f"its {stream.type} is of an unknown codec")
    return stream
