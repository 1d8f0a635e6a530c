"""Networks of one, two and three modalities: what may change a prediction, and what may not."""

from itertools import permutations

import jax
import numpy as np
import pytest

from mmattn.config import ModelConfig
from mmattn.data.batches import Batch
from mmattn.data.stream import PADDING, Stream, make_stream, pack_streams
from mmattn.model.fusion import fusion_of
from tests.model.compiled import Model
from tests.model.test_network import batch_of

RATES = {"audio": 12.0, "text": 2.0, "video": 5.0}
WIDTHS = {"audio": 3, "text": 5, "video": 4}
LENGTHS = {"audio": (36, 20, 30), "text": (6, 1, 5), "video": (15, 9, 10)}
CHOSEN = {
    1: ("text",),
    2: ("audio", "text"),
    3: ("text", "audio", "video"),  # in an order of its own
}
CASES = [
    pytest.param(("concat", 1), marks=pytest.mark.slow),
    ("concat", 3),
    ("late", 2),
    ("cross", 1),
    pytest.param(("cross", 2), marks=pytest.mark.slow),
    ("cross", 3),
]


def stream(name: str, more: int = 0) -> Stream:
    """Regular frames of three clips, some invalid; `more` frames of padding."""
    rng = np.random.default_rng(sum(map(ord, name)))
    length = np.array(LENGTHS[name])[:, None]
    number = np.arange(length.max() + 2)
    valid = (number < length) & ((rng.random((3, len(number))) < 0.9) | (number == 0))
    frames = rng.standard_normal((*valid.shape, WIDTHS[name])).astype(np.float32)
    frames *= valid[..., None]
    times = np.where(number < length, np.float32(0.05 + number / RATES[name]), PADDING)
    padding = ((0, 0), (0, more))
    return Stream(
        np.pad(frames, (*padding, (0, 0))),
        np.pad(times, padding, constant_values=PADDING),
        np.pad(valid, padding),
    )


def changed(batch: Batch, change) -> Batch:
    return batch_of(**{name: change(part) for name, part in batch.streams.items()})


def shifted(part: Stream, seconds: float) -> Stream:
    later = part.times + np.float32(seconds)
    return part._replace(times=np.where(part.times < PADDING, later, PADDING))


@pytest.fixture(scope="module")
def batch() -> Batch:
    """All three modalities, whichever a network uses."""
    return batch_of(**{name: stream(name) for name in WIDTHS})


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(map(str, case)))
def network(request, batch) -> tuple[Model, ModelConfig]:
    fusion, count = request.param
    config = ModelConfig(
        modalities=CHOSEN[count],
        fusion=fusion,
        cross_units=8,
        units=dict.fromkeys(CHOSEN[count], (4,)),
        head_units=(),
        head_dropout=(),
    )
    clips = {
        name: pack_streams(
            [make_stream(x[:n], t[:n]) for x, t, n in zip(*part[:2], part.length, strict=True)]
        )
        for name, part in batch.streams.items()
    }
    geometry = fusion_of(fusion).geometry({name: clips[name] for name in CHOSEN[count]}, config)
    return Model(config, WIDTHS, geometry), config


@pytest.mark.slow
def test_padding_and_the_order_of_clips_have_no_influence(network, batch):
    model, config = network
    expected = model.predict(batch)
    assert np.abs(expected.logits[0] - expected.logits[1]).max() > 1e-2

    def spoil(part: Stream) -> Stream:
        noise = 1e3 * np.random.default_rng(9).standard_normal(part.frames.shape)
        inside = (part.times < PADDING)[..., None]
        return part._replace(frames=np.where(inside, part.frames, noise).astype(np.float32))

    garbage = changed(batch, spoil)
    for run in (model.predict, model.train):
        jax.tree.map(np.testing.assert_array_equal, run(garbage), run(batch))
    order = np.array([2, 0, 1])
    found = model.predict(changed(batch, lambda part: Stream(*(x[order] for x in part))))
    np.testing.assert_allclose(found.logits, expected.logits[order], atol=1e-5)
    for name in config.modalities:
        np.testing.assert_allclose(
            found.fused.attention[name], expected.fused.attention[name][order], atol=1e-5
        )


def test_longer_padding_changes_nothing(network, batch):
    model, _ = network
    longer = batch_of(**{name: stream(name, more=3) for name in batch.streams})
    expected = model.predict(batch).logits
    np.testing.assert_allclose(model.predict(longer).logits, expected, atol=1e-5)


@pytest.mark.parametrize("seconds", [0.1, -0.9])
def test_times_matter_to_cross_alone_and_only_their_differences(network, batch, seconds):
    model, config = network
    expected = model.predict(batch).logits
    all_of_them = model.predict(changed(batch, lambda part: shifted(part, seconds))).logits
    np.testing.assert_allclose(all_of_them, expected, atol=5e-4)
    for name in config.modalities:
        one = batch.streams | {name: shifted(batch.streams[name], seconds)}
        moved = np.abs(model.predict(batch_of(**one)).logits - expected).max()
        if config.fusion == "cross" and len(config.modalities) > 1:
            assert moved > 1e-3
        else:
            assert moved == 0


def test_each_modality_of_the_network_counts_and_no_other(network, batch):
    model, config = network
    expected = model.predict(batch)
    assert [*expected.fused.attention] == sorted(config.modalities)
    for name, part in batch.streams.items():
        spoilt = part._replace(frames=-part.frames)
        moved = model.predict(batch_of(**batch.streams | {name: spoilt})).logits - expected.logits
        assert (np.abs(moved).max(1) > 1e-4).all() == (name in config.modalities)
        assert np.abs(moved).max() > 0 or name not in config.modalities
    _, gradients = model.train(batch)
    for gradient in jax.tree.leaves(gradients):
        assert np.abs(gradient).max() > 0
    if config.fusion == "cross":
        total = sum(weights.sum(1) for weights in expected.fused.attention.values())
        np.testing.assert_allclose(total, 1, rtol=1e-5)
        pairs = [(name, other) for name, of in expected.fused.attended.items() for other in of]
        assert sorted(pairs) == sorted(permutations(config.modalities, 2))
        for name, other in pairs:
            sums = np.asarray(expected.fused.attended[name][other].weights).sum(-1)
            near = sums > 0
            np.testing.assert_allclose(sums[near], 1, rtol=1e-5)
            assert near[batch.streams[name].valid].mean() > 0.3


@pytest.mark.parametrize("how", ["no frames", "all invalid"])
def test_a_clip_may_lack_any_of_them(network, batch, how):
    model, config = network
    expected = model.predict(batch)
    for name in config.modalities:
        part = Stream(*(array.copy() for array in batch.streams[name]))
        part.frames[0], part.valid[0] = 0, False
        if how == "no frames":
            part.times[0] = PADDING
        lacking = batch_of(**batch.streams | {name: part})
        output = model.predict(lacking)
        for values in jax.tree.leaves((output, model.train(lacking))):
            assert np.isfinite(values).all()
        assert not output.fused.attention[name][0].any()
        np.testing.assert_allclose(output.logits[1:], expected.logits[1:], atol=1e-5)
        assert np.abs(output.logits[0] - expected.logits[0]).max() > 1e-4


def test_no_two_pairs_have_the_same_name():
    names = ("a", "a_b", "b_c", "c")
    clip = make_stream(np.ones((9, 2), np.float32), np.arange(9.0))
    streams = dict.fromkeys(names, pack_streams([clip]))
    geometry = fusion_of("cross").geometry(streams, ModelConfig(modalities=names))
    assert len(dict(geometry)) == 12
