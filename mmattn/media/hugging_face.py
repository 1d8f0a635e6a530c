"""Hidden states of a speech encoder from Hugging Face: WavLM, HuBERT, wav2vec 2.0, …"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mmattn.data.stream import Stream, make_stream
from mmattn.errors import UserError
from mmattn.media.audio import check_lasts, in_windows
from mmattn.media.sound import RATE

UNUSED = "masked_spec_embed"  # a weight used only in training, which some files lack


@dataclass(frozen=True)
class HuggingFace:
    """Hidden states of one layer of a speech encoder."""

    model: str | None  # a folder or a name on the Hugging Face Hub
    layer: int  # 0 is the input of the first, -1 the output of the last

    def record(self) -> dict:
        """What a feature file records of its audio features. Raises UserError as `start`."""
        _, network, weights = _load(self.model)
        folder = Path(self.model or "").expanduser()
        settings = {
            "hf_model": folder.resolve().name if folder.is_dir() else self.model,
            "hf_layer": self._layer(network),
            "sha256": weights,
        }
        return {"name": "hf", "version": 1, "settings": settings}

    def start(self) -> Callable[[np.ndarray, int], Stream]:
        """Load the encoder: states [T, F] of samples [n] at 16 kHz, and their times.

        The time (s) of a state is the centre of the receptive field of the convolutions before the
        first layer; if these are not plain, the centre of an equal part of the audio. Raises
        UserError if transformers or the model is missing, or the model is unsuitable; the returned
        function raises BadMedia if the audio is shorter than a receptive field.
        """
        prepare, network, _ = _load(self.model)
        import torch

        layer = self._layer(network)
        torch.set_num_threads(1)  # clips are extracted in parallel, each on a core

        @torch.inference_mode()
        def states(samples: np.ndarray) -> np.ndarray:
            given = prepare(samples, sampling_rate=RATE, return_tensors="pt")
            return network(**given, output_hidden_states=True).hidden_states[layer][0].numpy()

        seen, hop = self._rhythm(states, network.config)

        def encode(samples: np.ndarray, rate: int) -> Stream:
            check_lasts(samples, rate, seen / RATE)
            frames = states(samples)
            return make_stream(frames, (np.arange(len(frames)) * hop + seen / 2) / RATE)

        return in_windows(encode)

    def _layer(self, network: Any) -> int:
        """The layer, counted from 0."""
        count = network.config.num_hidden_layers + 1
        if not -count <= self.layer < count:
            raise UserError(
                f"--hf-layer {self.layer}: expected {-count} to {count - 1} with {self.model}"
            )
        return self.layer % count

    def _rhythm(self, states: Callable[[np.ndarray], np.ndarray], config: Any) -> tuple[float, ...]:
        """Samples in the receptive field of a state, and from one state to the next."""
        one, two = (len(states(np.zeros(count * RATE, np.float32))) for count in (1, 2))
        if one == two:
            raise UserError(
                f"--hf-model {self.model}: expected an encoder of audio of any length; it pads all "
                "to the same (for a Whisper: --audio whisper)"
            )
        seen = hop = 1
        convolutions = (getattr(config, name, ()) for name in ("conv_kernel", "conv_stride"))
        for kernel, stride in zip(*convolutions, strict=True):
            seen += (kernel - 1) * hop
            hop *= stride
        if one == (RATE - seen) // hop + 1:
            return seen, hop
        return RATE / (two - one), RATE / (two - one)


@lru_cache(1)
def _load(model: str | None) -> tuple[Callable, Any, str]:
    """The audio preprocessor of a model, its encoder, and the SHA-256 of the weights."""
    if model is None:
        raise UserError(
            "--hf-model is missing: expected a folder or a name on the Hugging Face Hub, such as "
            "microsoft/wavlm-base-plus"
        )
    try:
        import torch  # noqa: F401, or transformers has no models
        from transformers import AutoFeatureExtractor, AutoModel
        from transformers.utils import logging
    except ImportError as error:
        raise UserError(
            f"--audio hf needs transformers ({error}): pip install 'mmattn[transformers]'"
        ) from error
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # hides warnings on unused heads; missing weights raise below
    place = str(Path(model).expanduser())
    try:
        prepare = AutoFeatureExtractor.from_pretrained(place)
        network, info = AutoModel.from_pretrained(
            place, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError) as error:  # no network, no such name, weights only in pickle
        reason = str(error).partition("\n")[0]
        raise UserError(f"--hf-model {model}: cannot be loaded: {reason}") from error
    if lacking := {*info["missing_keys"]} - {UNUSED}:
        raise UserError(f"--hf-model {model}: the weights lack {', '.join(sorted(lacking))}")
    if (rate := getattr(prepare, "sampling_rate", None)) != RATE:
        raise UserError(f"--hf-model {model}: expected a model of audio of {RATE} Hz, found {rate}")
    network = network.get_encoder() if network.config.is_encoder_decoder else network
    network = network.float().eval()
    digest = hashlib.sha256()
    for name, weights in sorted(network.state_dict().items()):
        if name != UNUSED:
            digest.update(weights.numpy().tobytes())
    return prepare, network, digest.hexdigest()
