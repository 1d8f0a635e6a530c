"""PyTorch on padded frames, with its fused layer.

A bidirectional `nn.LSTM` would start the backward direction in the padding, so each direction is
a separate layer and the frames of each clip are reversed within its length.
"""

import torch
from torch import Tensor, nn

from benchmarks.contenders.base import Layer
from benchmarks.contenders.torch_network import Branch, Frames, TorchContender, name_lstm


class _Mirror(torch.autograd.Function):
    """Take rows of the flattened [T B, F] frames; the rows are their own inverse."""

    @staticmethod
    def forward(ctx, x, rows):
        ctx.save_for_backward(rows)
        return x.flatten(0, 1).index_select(0, rows).view_as(x)

    @staticmethod
    def backward(ctx, d_out):
        (rows,) = ctx.saved_tensors
        return d_out.flatten(0, 1).index_select(0, rows).view_as(d_out), None


class PaddedBranch(Branch):
    """Two layers of one direction each, concatenated."""

    def build(self, pairs: list[tuple[Layer, Layer]]) -> None:
        self.layers = nn.ModuleList()
        for pair in pairs:
            lstms = [nn.LSTM(layer.features, layer.units) for layer in pair]
            self.layers.append(nn.ModuleList(lstms))
            for layer, lstm in zip(pair, lstms, strict=True):
                self.named |= name_lstm(layer, lstm)

    def run(self, stream: Frames) -> Tensor:
        x = stream.frames
        for number, (ahead, back) in enumerate(self.layers):
            mask = self.mask(number, *x.shape[1:])
            x = x if mask is None else x * mask
            mirrored = _Mirror.apply(back(_Mirror.apply(x, stream.mirror))[0], stream.mirror)
            x = torch.cat([ahead(x)[0], mirrored], dim=-1)
        return x


class Contestant(TorchContender):
    """See the module."""

    branch = PaddedBranch
