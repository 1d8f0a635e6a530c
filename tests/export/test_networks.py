"""Files of every architecture predict what their networks do, of clips of every length."""

import re

import numpy as np
import pytest

from mmattn.config import DataConfig
from mmattn.errors import UserError
from mmattn.export.check import SHORT, inputs_of, largest_difference
from mmattn.export.onnx_file import call_onnx, onnx_model
from mmattn.export.stablehlo import call_stablehlo, stablehlo
from tests.export.drawn import WIDTHS, draw

THREE = tuple(WIDTHS)
ARCHITECTURES = {
    "concat": {},
    "concat, functionals": {"statistics": True},
    "late": {"fusion": "late", "statistics": True},
    "cross": {"fusion": "cross", "statistics": True},
    "no LSTM, mean, no head": {
        "encoder": "none",
        "pooling": "mean",
        "head_units": (),
        "head_dropout": (),
    },
    "a loss of the branches": {"branch_loss": 0.5},
    "audio": {"modalities": ("audio",)},
    "video, cross": {"modalities": ("video",), "fusion": "cross"},
    "three": {"modalities": THREE},
    "three, late": {"modalities": THREE, "fusion": "late"},
    "three, cross, mean": {"modalities": THREE, "fusion": "cross", "pooling": "mean"},
}


def file_of(networks, temperatures, corpus):
    return call_onnx(onnx_model(networks, temperatures, corpus, {}).SerializeToString())


@pytest.mark.parametrize(
    "name",
    ["concat", *(pytest.param(name, marks=pytest.mark.slow) for name in [*ARCHITECTURES][1:])],
)
def test_both_formats(name):
    networks, corpus = draw(**ARCHITECTURES[name])
    assert largest_difference(file_of(networks, [None], corpus), networks, [None], corpus) < 1e-5
    if ARCHITECTURES[name].get("fusion") == "cross":
        with pytest.raises(UserError, match="fusion cross cannot be exported to StableHLO"):
            stablehlo(networks, [None], corpus)
    else:
        call = call_stablehlo(stablehlo(networks, [None], corpus))
        assert largest_difference(call, networks, [None], corpus) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("temperatures", [[0.5, 1.5, 4.0], [None] * 3], ids=["calibrated", "raw"])
def test_an_ensemble_is_pooled_with_its_temperatures(temperatures):
    networks, corpus = draw(3, statistics=True)
    given = networks, temperatures, corpus
    for call in (file_of(*given), call_stablehlo(stablehlo(*given))):
        assert largest_difference(call, *given) < 1e-5
        assert largest_difference(call, networks, [0.9, 1.5, 4.0], corpus) > 1e-3


def test_zeros_are_data_where_the_run_says_so():
    networks, corpus = draw(data=DataConfig(zero_is_missing=()))
    other, gaps = draw(data=DataConfig(zero_is_missing=("audio", "video")))
    for ours, clips in ((networks, corpus), (other, gaps)):
        assert largest_difference(file_of(ours, [None], clips), ours, [None], clips) < 1e-5
    inputs = inputs_of(gaps)
    both = [file_of(ours, [None], gaps)(inputs)["probabilities"] for ours in (networks, other)]
    assert np.abs(both[0] - both[1]).max() > 1e-3


@pytest.mark.parametrize("fusion", ["concat", "late", "cross"])
def test_clips_are_predicted_as_alone_and_without_a_frame(fusion):
    networks, corpus = draw(fusion=fusion, statistics=True)
    call, inputs = file_of(networks, [None], corpus), inputs_of(corpus)
    together = call(inputs)
    for clip in range(len(corpus)):
        alone = {name: of[clip : clip + 1] for name, of in inputs.items()}
        for name in ("audio", "video"):
            length = alone[f"{name}_length"][0]
            alone |= {key: alone[key][:, :length] for key in (name, f"{name}_times")}
        found = call(alone)
        expected = together["probabilities"][clip]
        np.testing.assert_allclose(found["probabilities"][0], expected, atol=1e-6)
        for name in ("audio", "video"):
            assert found[f"{name}_attention"].shape == (1, alone[f"{name}_length"][0])
    assert {0, 1, SHORT} < {*inputs["audio_length"]}  # some lack a modality


def test_attention_sums_to_one_where_there_are_frames():
    networks, corpus = draw(2)
    found = file_of(networks, [None] * 2, corpus)(inputs_of(corpus))
    for name, ragged in corpus.streams.items():
        known = [ragged.clip(clip).valid.any() for clip in range(len(corpus))]
        np.testing.assert_allclose(found[f"{name}_attention"].sum(1), known, atol=1e-5)


@pytest.mark.parametrize("fusion", ["concat", "late", "cross"])
def test_what_is_not_finite_does_not_look_like_a_prediction(fusion):
    networks, corpus = draw(2, fusion=fusion, statistics=True)
    inputs = inputs_of(corpus)
    inputs["audio"][0, 3, 1] = np.nan
    call = file_of(networks, [2.0, 2.0], corpus)
    found = call(inputs)["probabilities"]
    assert np.isnan(found[0]).all() and np.isfinite(found[1:]).all()


def test_a_length_beyond_the_frames_is_an_error():
    networks, corpus = draw()
    inputs = inputs_of(corpus)
    inputs["audio_length"][0] = inputs["audio"].shape[1] + 1
    with pytest.raises(Exception, match=re.compile("seq", re.IGNORECASE)):
        file_of(networks, [None], corpus)(inputs)
