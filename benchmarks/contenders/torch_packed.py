"""PyTorch on packed sequences: no arithmetic on padding, but no fused layer either.

The backward pass of the step's `narrow` fills a gradient of all frames with zeros at each time
step, so the time is quadratic in length if clips differ in length
(https://github.com/pytorch/pytorch/issues/149194).
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from benchmarks.contenders.base import Layer
from benchmarks.contenders.torch_network import Branch, Frames, TorchContender, name_lstm


class PackedBranch(Branch):
    """Bidirectional layers."""

    def build(self, pairs: list[tuple[Layer, Layer]]) -> None:
        self.layers = nn.ModuleList()
        for ahead, back in pairs:
            lstm = nn.LSTM(ahead.features, ahead.units, bidirectional=True)
            self.layers.append(lstm)
            self.named |= name_lstm(ahead, lstm) | name_lstm(back, lstm, "_reverse")

    def run(self, stream: Frames) -> Tensor:
        packed = pack_padded_sequence(stream.frames, stream.length, enforce_sorted=False)
        places = torch.arange(len(stream.length))
        clips = torch.cat([places[:count] for count in packed.batch_sizes])
        for number, lstm in enumerate(self.layers):
            mask = self.mask(number, len(places), packed.data.shape[-1])
            if mask is not None:
                packed = _replace(packed, packed.data * mask[clips])
            packed = lstm(packed)[0]
        return pad_packed_sequence(packed, total_length=len(stream.frames))[0]


def _replace(packed: PackedSequence, data: Tensor) -> PackedSequence:
    return PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)


class Contestant(TorchContender):
    """See the module."""

    branch = PackedBranch
