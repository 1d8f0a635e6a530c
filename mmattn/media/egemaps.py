"""The eGeMAPS acoustic features of the voice, computed by openSMILE."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mmattn.data.stream import Stream, make_stream
from mmattn.errors import UserError
from mmattn.media.audio import check_lasts

LICENCE = (
    "eGeMAPS is computed by openSMILE, copyright audEERING GmbH. Its licence is for research, "
    "teaching and private use; a product, paid or free, needs another one, even if it contains "
    "only the features or a model trained on them."
)
SHORTEST = 0.06  # seconds, the window of the pitch
_MIDDLE = 0.01  # seconds from a frame's start to the centre of its 20 ms window
_LOUDEST = 1 - 2**-15  # openSMILE turns 1 into the integer 32768, which wraps to full negative


@dataclass(frozen=True)
class EGeMAPS:
    """The 25 low-level descriptors of eGeMAPSv02, every 10 ms (Eyben et al. 2016).

    Loudness, spectrum, cepstrum and formants come from windows of 20 ms, pitch and voice quality
    from windows of 60 ms with the same start, and openSMILE smooths them over three frames. The
    time of a frame is the centre of its 20 ms; pitch and voice quality are 20 ms early. Most values
    depend on the sampling rate: compare only audio of the same rate.
    """

    def record(self) -> dict:
        """What a feature file records of its audio features."""
        return {"name": "egemaps", "version": 2, "settings": {}}

    def start(self) -> Callable[[np.ndarray, int], Stream]:
        """Load openSMILE: frames [T, 25] of samples [n] and their times in seconds.

        T is floor((d - 0.06) / 0.01) + 2 for d seconds of audio; the last frame comes from the
        smoothing. Raises UserError without openSMILE; the returned function raises BadMedia if the
        audio is shorter than 60 ms.
        """
        try:
            import opensmile
        except ImportError as error:
            raise UserError(
                f"eGeMAPS needs openSMILE ({error}): pip install 'mmattn[opensmile]'"
            ) from error
        smile = opensmile.Smile(
            feature_set=opensmile.FeatureSet.eGeMAPSv02,
            feature_level=opensmile.FeatureLevel.LowLevelDescriptors,
        )

        def features(samples: np.ndarray, rate: int) -> Stream:
            check_lasts(samples, rate, SHORTEST)
            table = smile.process_signal(np.clip(samples, -1, _LOUDEST), rate)
            # Only the starts: the ends are not those of the windows, and the last is the audio's.
            starts = table.index.get_level_values("start").total_seconds().to_numpy()
            return make_stream(table.to_numpy(np.float32), starts + _MIDDLE)

        return features
