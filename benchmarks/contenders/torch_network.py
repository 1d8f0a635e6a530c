"""The network in PyTorch: time-major, one thread per core; subclasses handle padding."""

from abc import abstractmethod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.contenders.base import (
    ADAM_B1,
    BATCH_NORM_EPSILON,
    BATCH_NORM_MOMENTUM,
    Contender,
    Layer,
    lstm_layers,
    reorder_gates,
)
from benchmarks.work import Work
from mmattn.data.batches import Batch
from mmattn.data.stream import Stream
from mmattn.machine import cores


class Frames(NamedTuple):
    """One modality of a batch."""

    frames: Tensor
    """[T, B, F]"""
    valid: Tensor
    """[T, B] bool"""
    length: Tensor
    """[B] int64"""
    mirror: Tensor
    """[T B] rows of the flattened frames that reverse each clip within its own length."""


class TorchBatch(NamedTuple):
    """A batch as tensors."""

    streams: dict[str, Frames]
    label: Tensor
    """[B] int64"""


class Branch(nn.Module):
    """LSTM layers, run by subclasses, and temporal attention."""

    def __init__(self, pairs: list[tuple[Layer, Layer]], rates: list[float], pooled_rate: float):
        super().__init__()
        self.rates, self.pooled_rate = rates, pooled_rate
        self.named: dict[str, Tensor] = {}
        self.build(pairs)
        self.attention = nn.Parameter(torch.empty(2 * pairs[-1][0].units, 1))
        nn.init.xavier_uniform_(self.attention)

    @abstractmethod
    def build(self, pairs: list[tuple[Layer, Layer]]) -> None:
        """Make the layers, with each parameter in `self.named`."""

    @abstractmethod
    def run(self, stream: Frames) -> Tensor:
        """Hidden states [T, B, H]; those in the padding do not matter."""

    def forward(self, stream: Frames) -> Tensor:
        hidden = self.run(stream)
        scores = torch.tanh((hidden @ self.attention)[..., 0])
        weights = scores.masked_fill(~stream.valid, -torch.inf).softmax(0)
        pooled = torch.einsum("tb,tbh->bh", weights, hidden)
        return functional.dropout(pooled, self.pooled_rate, self.training)

    def mask(self, number: int, clips: int, features: int) -> Tensor | None:
        """The dropout before a layer: factors [B, F], the same at all times; None for none."""
        rate = self.rates[number]
        if not self.training or not rate:
            return None
        return torch.empty(clips, features).bernoulli_(1 - rate).div_(1 - rate)


def name_lstm(layer: Layer, lstm: nn.LSTM, suffix: str = "") -> dict[str, Tensor]:
    """The parameters of a direction, without one of its two biases."""
    found = {
        f"{layer.name}.input_kernel": f"weight_ih_l0{suffix}",
        f"{layer.name}.recurrent_kernel": f"weight_hh_l0{suffix}",
        f"{layer.name}.bias": f"bias_ih_l0{suffix}",
    }
    nn.init.zeros_(getattr(lstm, f"bias_hh_l0{suffix}"))
    return {name: getattr(lstm, attribute) for name, attribute in found.items()}


class Network(nn.Module):
    """The branches and the dense head."""

    def __init__(self, work: Work, branch: type[Branch]):
        super().__init__()
        model = work.config.model
        branches, features = {}, 0
        self.named: dict[str, Tensor] = {}
        for modality, pairs in lstm_layers(work):
            rates = [model.layer_dropout if n else model.input_dropout for n in range(len(pairs))]
            branches[modality] = branch(pairs, rates, model.pooled_dropout)
            features += 2 * pairs[-1][0].units
            self.named |= branches[modality].named
            self.named[f"branches.{modality}.attention.kernel"] = branches[modality].attention
        self.branches, head = nn.ModuleDict(branches), []
        for number, (width, rate) in enumerate(
            zip(model.head_units, model.head_dropout, strict=True)
        ):
            dense = nn.Linear(features, width)
            norm = nn.BatchNorm1d(width, BATCH_NORM_EPSILON, 1 - BATCH_NORM_MOMENTUM)
            head += [dense, nn.ReLU(), norm, nn.Dropout(rate)]
            self.named |= _name_linear(f"dense.{number}", dense)
            self.named |= {f"norms.{number}.scale": norm.weight, f"norms.{number}.bias": norm.bias}
            features = width
        classifier = nn.Linear(features, work.classes)
        self.named |= _name_linear("classifier", classifier)
        self.head = nn.Sequential(*head, classifier)

    def forward(self, batch: TorchBatch) -> Tensor:
        """Logits [B, K]."""
        pooled = [self.branches[modality](batch.streams[modality]) for modality in self.branches]
        return self.head(torch.cat(pooled, dim=-1))


def _name_linear(name: str, linear: nn.Linear) -> dict[str, Tensor]:
    return {f"{name}.kernel": linear.weight, f"{name}.bias": linear.bias}


class TorchContender(Contender):
    """Training and prediction; subclasses choose the branch."""

    branch: type[Branch]

    def __init__(self, work: Work):
        torch.set_num_threads(cores())
        torch.manual_seed(work.config.seed)
        train = work.config.train
        self.gamma = train.gamma
        self.class_weights = torch.from_numpy(work.class_weights)
        self.network = Network(work, self.branch)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), train.learning_rate, (ADAM_B1, 0.999), fused=True
        )

    def place(self, work: Work) -> list[TorchBatch]:
        return [_place(batch) for batch in work.batches()]

    def train(self, placed: list[TorchBatch]) -> float:
        self.network.train()
        losses = [self._step(batch) for batch in placed]
        return float(torch.stack(losses).mean())

    def _step(self, batch: TorchBatch) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        log_p = functional.log_softmax(self.network(batch), dim=-1)
        log_p = log_p.gather(1, batch.label[:, None])[:, 0]
        loss = -log_p * (1 - log_p.exp()) ** self.gamma * self.class_weights[batch.label]
        loss = loss.mean()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def predict(self, batches: list[Batch]) -> np.ndarray:
        self.network.eval()
        with torch.inference_mode():
            return torch.cat([self.network(_place(batch)).softmax(-1) for batch in batches]).numpy()

    def load(self, parameters: dict[str, np.ndarray]) -> None:
        with torch.no_grad():
            for name, tensor in self.network.named.items():
                tensor.copy_(torch.from_numpy(_to_torch(name, parameters[name])))

    def first_moments(self) -> dict[str, np.ndarray]:
        return {
            name: _from_torch(name, self.optimizer.state[tensor]["exp_avg"].numpy())
            for name, tensor in self.network.named.items()
        }


def _place(batch: Batch) -> TorchBatch:
    streams = {name: _place_stream(stream) for name, stream in batch.streams.items()}
    return TorchBatch(streams, torch.from_numpy(batch.label.astype(np.int64)))


def _place_stream(stream: Stream) -> Frames:
    length = torch.from_numpy(stream.length.astype(np.int64))
    clips, frames = stream.valid.shape
    time = torch.arange(frames)[:, None]
    mirror = torch.where(time < length, length - 1 - time, time)
    return Frames(
        torch.from_numpy(stream.frames).swapaxes(0, 1).contiguous(),
        torch.from_numpy(stream.valid).T.contiguous(),
        length,
        (mirror * clips + torch.arange(clips)).flatten(),
    )


def _to_torch(name: str, array: np.ndarray) -> np.ndarray:
    if ".layers." in name:
        array = reorder_gates(array, "ifog", "ifgo")
    return array if ".attention." in name else np.ascontiguousarray(array.T)


def _from_torch(name: str, array: np.ndarray) -> np.ndarray:
    array = array if ".attention." in name else array.T
    return reorder_gates(array, "ifgo", "ifog") if ".layers." in name else array
