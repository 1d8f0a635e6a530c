"""Movements of a mouth and of what is heard, drawn without drawing a face: hundreds in a second.

Their ranges hold those of the real clips at hand: see test_real_clips_are_near_zero.
"""

import numpy as np
from scipy.ndimage import gaussian_filter1d

from mmattn.data.stream import make_stream
from mmattn.media.align import SMOOTH, Movement


def talk(seed: int, step: float = 0.005) -> Movement:
    """A mouth that speaks some syllables between pauses, and what a microphone in a room hears.

    How far the mouth opens follows how loud a syllable is more or less, and so does when; it moves
    by itself too, sometimes (a breath, a smile) a lot, and is measured with noise.
    """
    rng = np.random.default_rng(seed)
    before, after, speech = *rng.uniform(0.2, 1, 2), rng.uniform(1.2, 4)
    lengths = rng.uniform(0.12, 0.35, 40)
    pauses = np.where(rng.random(40) < 0.12, rng.uniform(0.15, 0.6, 40), 0)
    starts = before + np.cumsum(lengths * rng.uniform(0.4, 1.2, 40) + pauses) - lengths[0]
    said = starts < before + speech
    starts, lengths = starts[said], lengths[said]
    loud, own = rng.uniform(0.3, 1, (2, said.sum()))
    times = np.arange(0, before + speech + after, step)

    def bumps(starts, lengths, heights):
        phase = (times[:, None] - starts) / lengths
        return (heights * np.sin(np.pi * phase.clip(0, 1)) ** 2).sum(axis=1)

    def noise(width: float) -> np.ndarray:
        """Smooth over `width` (s), of standard deviation 1."""
        smooth = gaussian_filter1d(rng.standard_normal(len(times)), width / step)
        return smooth / smooth.std()

    seconds = rng.uniform(0.15, 0.8)  # in which the room's reverberation falls by 60 dB
    reverberation = 10 ** (-3 * np.arange(0, 2 * seconds, step) / seconds)
    dry, wet = bumps(starts, lengths, loud) ** 2, rng.uniform(0, 0.6)
    power = np.convolve(dry, reverberation / reverberation.sum())[: len(times)] * wet
    power += dry * (1 - wet)
    power += 10 ** -rng.uniform(0.5, 3.5) * power.max() * (1 + 0.3 * noise(0.01)).clip(0.1)

    free = rng.uniform(0.2, 1.5)
    early = rng.uniform(0, 0.08) + 0.03 * free * rng.standard_normal(len(starts))
    width = lengths * rng.uniform(0.6, 1.3)
    middles = starts + lengths / 2 - early
    mouth = bumps(middles - width / 2, width, loud ** (1.5 - free) * own**free)
    mouth += 0.5 * free * mouth.std() * noise(0.2)
    if rng.random() < 0.5 * free:
        mouth += bumps(
            [rng.choice([before - 0.4, before + speech + 0.1])], 0.5, rng.uniform(0, 0.8)
        )
    video, audio = np.arange(rng.uniform(0, 0.03), times[-1], 1 / 30), np.arange(0, times[-1], 0.02)
    opening = 9 + np.interp(video, times, mouth)
    opening += rng.uniform(0.05, 0.3) * opening.std() * rng.standard_normal(len(video))
    heard = gaussian_filter1d(np.sqrt(np.interp(audio, times, power)), SMOOTH / 0.02)
    return Movement(make_stream(opening[:, None], video), make_stream(heard[:, None], audio))
