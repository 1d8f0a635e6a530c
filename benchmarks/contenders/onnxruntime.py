"""ONNX Runtime: the file of `mmattn export`; it only predicts. One thread per core.

Its first step includes the export, in another process, as a user's process has no JAX.
"""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NoReturn

import numpy as np
import onnxruntime

from benchmarks.contenders.base import Contender, draw_parameters
from benchmarks.work import Work
from mmattn.data.batches import Batch
from mmattn.data.normalise import neutral
from mmattn.errors import UserError
from mmattn.machine import cores


class Contestant(Contender):
    """See the module."""

    trains = False

    def __init__(self, work: Work):
        self.work = work
        self.load(draw_parameters(work))

    def load(self, parameters: dict[str, np.ndarray]) -> None:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            content = pool.submit(exported, self.work, parameters).result()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = cores()
        self.session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])

    def predict(self, batches: list[Batch]) -> np.ndarray:
        found = []
        for batch in batches:
            inputs = {}
            for name, stream in batch.streams.items():
                inputs[name] = stream.frames
                inputs[f"{name}_length"] = stream.length.astype(np.int32)
            found.append(self.session.run(["probabilities"], inputs)[0])
        return np.concatenate(found)

    def place(self, work: Work) -> NoReturn:
        raise UserError("onnxruntime predicts, and trains nothing")

    train = first_moments = place


def exported(work: Work, parameters: dict[str, np.ndarray]) -> bytes:
    """The file of a network with these parameters."""
    from flax import nnx

    from mmattn.export.onnx_file import onnx_model
    from mmattn.train.inference import Restored, learner_for
    from mmattn.train.step import Weights

    state = learner_for(work.config, work.corpus, 1).initial(0)
    paths = nnx.to_flat_state(state.params)
    for path, variable in paths:
        variable.set_value(parameters[".".join(map(str, path))])
    weights = Weights(nnx.from_flat_state(paths), state.batch_stats)
    network = Restored({"config": work.config.to_json()}, weights, neutral(work.widths))
    return onnx_model([network], [None], work.corpus, {}).SerializeToString()
