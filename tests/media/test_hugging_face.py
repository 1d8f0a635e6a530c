"""Hidden states of speech encoders: tiny ones, made here, by transformers itself and at their
times."""

import sys
from pathlib import Path

import numpy as np
import pytest

from mmattn.errors import UserError
from mmattn.media.hugging_face import HuggingFace, _load
from mmattn.media.survey import BadMedia

RATE = 16000
TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (8,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}


@pytest.fixture(scope="session")
def make(tmp_path_factory):
    """`make(name, **options)`: the folder of a tiny model with weights drawn at random."""
    torch = pytest.importorskip("torch", reason="torch is not installed: extra [transformers]")
    transformers = pytest.importorskip("transformers", reason="not installed: extra [transformers]")

    def save(name: str, seed: int = 0, **options) -> Path:
        torch.manual_seed(seed)
        config = getattr(transformers, f"{name}Config")(**{**TINY, **options})
        folder = tmp_path_factory.mktemp("model") / name
        getattr(transformers, f"{name}Model")(config).save_pretrained(folder)
        transformers.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
        return folder

    return save


def voice(seconds: float) -> np.ndarray:
    times = np.arange(round(seconds * RATE)) / RATE
    noise = np.random.default_rng(0).normal(size=len(times))
    return (0.3 * np.sin(2 * np.pi * 200 * times) + 0.01 * noise).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["WavLM", "Hubert", "Wav2Vec2"])
def test_the_states_are_those_of_transformers(make, name):
    import torch
    import transformers

    folder = make(name)
    samples = voice(1.5)
    network = getattr(transformers, f"{name}Model").from_pretrained(folder).eval()
    normal = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
    with torch.no_grad():
        expected = network(torch.tensor(normal)[None], output_hidden_states=True)
    for layer in (-1, 0, 1, 3):
        found = HuggingFace(str(folder), layer).start()(samples, RATE)
        states = expected.hidden_states[layer][0].numpy()
        np.testing.assert_allclose(found.frames, states, atol=1e-4)
    np.testing.assert_allclose(found.frames, expected.last_hidden_state[0].numpy(), atol=1e-4)


@pytest.mark.slow
def test_the_time_of_a_state_is_the_middle_of_what_its_convolutions_see(make):
    """Before the first layer's attention a click changes the states that see it, no others."""
    folder = make("WavLM", feat_extract_norm="layer", num_conv_pos_embeddings=1)
    features = HuggingFace(str(folder), 0).start()
    quiet = np.full(RATE, 1e-3, np.float32)
    quiet[::2] *= -1
    before = features(quiet, RATE)
    assert len(before.times) == 49
    np.testing.assert_allclose(before.times, 0.0125 + 0.02 * np.arange(49))
    for place in (4000, 8100):
        clicking = quiet.copy()
        clicking[place] = 0.01
        change = np.abs(features(clicking, RATE).frames - before.frames).max(axis=1)
        top = before.times[change.argmax()]
        assert abs(top - place / RATE) <= 0.0125


@pytest.mark.slow
def test_any_length_and_the_same_again(make):
    features = HuggingFace(str(make("WavLM")), -1).start()
    assert len(features(voice(0.1), RATE).times) == 4
    audio = voice(31)
    stream = features(audio, RATE)
    assert (np.diff(stream.times) > 0).all() and stream.times[-1] < 31
    half = features(audio[: len(audio) // 2], RATE)
    np.testing.assert_array_equal(stream.frames[: len(half.times)], half.frames)
    np.testing.assert_array_equal(features(audio, RATE).frames, stream.frames)
    with pytest.raises(BadMedia, match=r"lasts 20\.0 ms; expected 25 ms"):
        features(voice(0.02), RATE)


@pytest.mark.slow
def test_the_record_tells_model_layer_and_weights(make, tmp_path):
    folder = make("WavLM")
    record = HuggingFace(str(folder), -1).record()
    assert record["settings"]["hf_model"] == "WavLM" and record["settings"]["hf_layer"] == 3
    assert HuggingFace(str(folder), 3).record() == record
    _load.cache_clear()
    assert HuggingFace(str(folder), 3).record() == record
    other = HuggingFace(str(make("WavLM", seed=1)), 3).record()
    assert other["settings"]["sha256"] != record["settings"]["sha256"]
    with pytest.raises(UserError, match="--hf-layer 4: expected -4 to 3"):
        HuggingFace(str(folder), 4).record()


@pytest.mark.slow
def test_what_cannot_be_used_is_refused(make, monkeypatch, tmp_path):
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    folder = make("WavLM")
    weights = load_file(folder / "model.safetensors")
    lacking = {name: one for name, one in weights.items() if "layers.1.final_layer" not in name}
    save_file(lacking, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"weights lack encoder\.layers\.1\.final_layer_norm\.bias"):
        HuggingFace(str(folder), -1).start()
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    _load.cache_clear()
    with pytest.raises(UserError, match=r"cannot be loaded: .*safetensors"):
        HuggingFace(str(folder), -1).start()
    whisper = transformers.WhisperConfig(
        **{"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 60},
        **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "pad_token_id": 0},
        **{"bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
    )
    transformers.WhisperModel(whisper).save_pretrained(tmp_path)
    transformers.WhisperFeatureExtractor().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"any length; .*--audio whisper"):
        HuggingFace(str(tmp_path), -1).start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="--hf-model nobody/nothing: cannot be loaded"):
        HuggingFace("nobody/nothing", -1).start()


def test_a_missing_option_is_named():
    with pytest.raises(UserError, match=r"--hf-model is missing: .*wavlm"):
        HuggingFace(None, -1).start()


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install 'mmattn\[transformers\]'"):
        HuggingFace("anything", -1).start()
