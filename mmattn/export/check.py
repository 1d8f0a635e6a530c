"""The difference between an exported file and its networks, on random clips of many lengths."""

from collections.abc import Callable, Sequence

import numpy as np

from mmattn.config import DataConfig
from mmattn.data.corpus import Corpus
from mmattn.data.normalise import Normaliser
from mmattn.data.stream import make_stream, pack_streams
from mmattn.evaluate.calibration import calibrated
from mmattn.evaluate.predictions import pool
from mmattn.train.inference import Ensemble, Restored

SHORT, LONG = 48, 200  # frames: clips of every length up to SHORT, and one of LONG

Arrays = dict[str, np.ndarray]


def draw_clips(
    modalities: Sequence[str], normaliser: Normaliser, data: DataConfig, class_names: Sequence[str]
) -> Corpus:
    """Unlabelled noise with the features' mean and standard deviation, of every length.

    Some clips lack a modality. If zeros are a gap in a modality, a fifth of its frames are zero,
    and all of them in the second clip.
    """
    rng, every = np.random.default_rng(0), 1 + np.arange(SHORT)
    lengths = [[LONG] * len(modalities), [SHORT] * len(modalities)]
    lengths += np.stack([rng.permutation(every) for _ in modalities], axis=1).tolist()
    if len(modalities) > 1:
        lengths += [[SHORT * (name != lacks) for name in modalities] for lacks in modalities]
    streams = {}
    for place, name in enumerate(modalities):
        clips, gap = [], data.zero_is_gap(name)
        mean, deviation = normaliser[f"{name}_mean"], normaliser[f"{name}_std"]
        for number, own in enumerate(lengths):
            frames = rng.normal(mean, deviation, (own[place], len(mean))).astype(np.float32)
            if gap:
                frames[rng.random(len(frames)) < (1 if number == 1 else 0.2)] = 0
            times = rng.uniform(0, 0.1) + np.cumsum(rng.uniform(0.01, 0.06, len(frames)))
            clips.append(make_stream(frames, times))
        streams[name] = pack_streams(clips, gap)
    return Corpus(
        description="drawn clips",
        names=tuple(map(str, range(len(lengths)))),
        speakers=np.full(len(lengths), ""),
        labels=np.full(len(lengths), -1, np.int32),
        class_names=tuple(class_names),
        streams=streams,
    )


def inputs_of(corpus: Corpus) -> Arrays:
    """All clips of a corpus as inputs of `onnx_model`, with NaN in the padding."""
    inputs = {}
    for name, ragged in corpus.streams.items():
        shape = len(corpus), ragged.lengths.max(initial=0)
        inputs[name] = np.full((*shape, ragged.width), np.nan, np.float32)
        inputs[f"{name}_length"] = ragged.lengths.astype(np.int32)
        inputs[f"{name}_times"] = np.full(shape, np.nan, np.float32)
        for clip, own in enumerate(ragged.lengths):
            frames, times, _ = ragged.clip(clip)
            inputs[name][clip, :own], inputs[f"{name}_times"][clip, :own] = frames, times
    return inputs


def largest_difference(
    call: Callable[[Arrays], Arrays],
    networks: Sequence[Restored],
    temperatures: Sequence[float | None],
    corpus: Corpus,
) -> float:
    """The largest difference of probabilities and attention between a file and its networks.

    NaN if a value is not finite.

    Args:
        call: the function of the file.
        networks: in the file, of one architecture.
        temperatures: of the networks, None for none.
        corpus: the clips, from `draw_clips`.
    """
    each, attention = Ensemble(networks).predict(corpus)
    votes = [
        each[:, number] if one is None else calibrated(each[:, number], one)
        for number, one in enumerate(temperatures)
    ]
    found = call(inputs_of(corpus))
    differences = [np.abs(found["probabilities"] - pool(votes)).max()]
    for clip, expected in enumerate(attention):
        for name, of in expected.items():
            padded = np.zeros_like(found[f"{name}_attention"][clip])
            padded[: of.shape[1]] = of.mean(axis=0)
            differences.append(np.abs(found[f"{name}_attention"][clip] - padded).max())
    return float(np.max(differences))
