"""Networks as one StableHLO file, which `jax.export` writes and reads: for programs with JAX."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, export

from mmattn.data.batches import Batch
from mmattn.data.corpus import Corpus
from mmattn.data.stream import PADDING, Stream
from mmattn.errors import UserError
from mmattn.evaluate.predictions import SMALLEST_PROBABILITY
from mmattn.train.inference import Ensemble, Restored, learner_for

PLATFORMS = ("cpu", "cuda", "tpu")


def stablehlo(
    networks: Sequence[Restored], temperatures: Sequence[float | None], corpus: Corpus
) -> bytes:
    """The networks as a function from a dict of arrays to a dict; see `onnx_model` for both.

    Batch and frames have any size, except 0 frames: a modality that all clips lack has frames of
    padding. `corpus` is one that the networks can predict.

    Raises:
        UserError: the fusion needs the clips' times.
    """
    ensemble = Ensemble(networks)
    model, data = ensemble.config.model, ensemble.config.data
    if model.fusion == "cross":
        raise UserError(
            "fusion cross cannot be exported to StableHLO, because it is compiled for the times of "
            "its clips; expected concat or late, or --to FILE.onnx"
        )
    learner = learner_for(ensemble.config, corpus, 1)
    scale = np.array([1 / (one or 1) for one in temperatures], np.float32)[:, None, None]

    def predict(inputs: Mapping[str, Array]) -> dict[str, Array]:
        streams = {
            name: _stream(inputs[name], inputs[f"{name}_length"], data.zero_is_gap(name))
            for name in model.modalities
        }
        weight = jnp.ones(inputs[model.modalities[0]].shape[0])
        unused = jnp.zeros(0)
        batch = Batch(streams, unused, unused, unused, None, weight, unused)
        votes = learner.ask_ensemble(ensemble.weights, ensemble.normalisers, batch)
        each = jnp.log(jnp.maximum(votes.probabilities, SMALLEST_PROBABILITY)) * scale
        pooled = jax.nn.softmax(jax.nn.log_softmax(each).mean(0))
        attention = {f"{name}_attention": of.mean(0) for name, of in votes.attention.items()}
        return {"probabilities": pooled} | attention

    names = [f"{name}_frames" for name in model.modalities]
    batch, *frames = export.symbolic_shape(
        ", ".join(["batch", *names]), constraints=[f"{name} >= 1" for name in names]
    )
    shapes = {}
    for name, count in zip(model.modalities, frames, strict=True):
        width = corpus.streams[name].width
        shapes[name] = jax.ShapeDtypeStruct((batch, count, width), jnp.float32)
        shapes[f"{name}_length"] = jax.ShapeDtypeStruct((batch,), jnp.int32)
    return bytes(export.export(jax.jit(predict), platforms=PLATFORMS)(shapes).serialize())


def call_stablehlo(content: bytes) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """The function of a file; inputs that it does not have are dropped."""
    function = export.deserialize(bytearray(content))
    (tree,), _ = jax.tree.unflatten(function.in_tree, function.in_avals)

    def call(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return jax.device_get(function.call({name: inputs[name] for name in tree}))

    return call


def _stream(frames: Array, length: Array, zero_is_gap: bool) -> Stream:
    """A batch of one modality, with zeros in the padding."""
    inside = jnp.arange(frames.shape[1]) < length[:, None]
    frames = jnp.where(inside[..., None], frames, 0)
    valid = frames.any(-1) if zero_is_gap else inside
    return Stream(frames, jnp.where(inside, 0, PADDING), valid)
