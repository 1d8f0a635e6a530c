"""Inception-ResNet-v1 (Szegedy et al. 2017) as in FaceNet, in torch.

Parameters are named as in facenet-pytorch, so that its weights fit.
"""

from collections import OrderedDict

import torch
from torch import nn

EPSILON = 1e-3  # of the batch normalisation, as in the TensorFlow model that the weights come from


def inception_resnet_v1() -> nn.Sequential:
    """The network without its classifier: frames [B, 3, 160, 160] to embeddings [B, 512]."""
    return nn.Sequential(
        OrderedDict(
            conv2d_1a=_conv(3, 32, 3, stride=2),
            conv2d_2a=_conv(32, 32, 3),
            conv2d_2b=_conv(32, 64, 3, padding=1),
            maxpool_3a=nn.MaxPool2d(3, stride=2),
            conv2d_3b=_conv(64, 80, 1),
            conv2d_4a=_conv(80, 192, 3),
            conv2d_4b=_conv(192, 256, 3, stride=2),
            repeat_1=nn.Sequential(*(_block35() for _ in range(5))),
            mixed_6a=_mixed_6a(),
            repeat_2=nn.Sequential(*(_block17() for _ in range(10))),
            mixed_7a=_mixed_7a(),
            repeat_3=nn.Sequential(*(_block8(0.2, nn.ReLU()) for _ in range(5))),
            block8=_block8(1.0, nn.Identity()),
            avgpool_1a=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            last_linear=nn.Linear(1792, 512, bias=False),
            last_bn=nn.BatchNorm1d(512, eps=EPSILON),
        )
    )


class _Branches(nn.Module):
    """Parallel branches with concatenated channels."""

    def __init__(self, *branches: nn.Module):
        super().__init__()
        self._branches = branches
        for number, branch in enumerate(branches):
            self.add_module(f"branch{number}", branch)

    def forward(self, x):
        return torch.cat([branch(x) for branch in self._branches], dim=1)


class _Residual(_Branches):
    """x + scale · (the branches, projected to the channels of x), then the activation."""

    def __init__(self, joined: int, channels: int, scale: float, activation: nn.Module, *branches):
        super().__init__(*branches)
        self.conv2d = nn.Conv2d(joined, channels, 1)
        self._scale, self._activation = scale, activation

    def forward(self, x):
        return self._activation(x + self._scale * self.conv2d(super().forward(x)))


def _conv(inputs: int, outputs: int, size, stride: int = 1, padding=0) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(inputs, outputs, size, stride, padding, bias=False),
            bn=nn.BatchNorm2d(outputs, eps=EPSILON),
            relu=nn.ReLU(),
        )
    )


def _block35() -> _Residual:
    return _Residual(
        *(96, 256, 0.17, nn.ReLU()),
        _conv(256, 32, 1),
        nn.Sequential(_conv(256, 32, 1), _conv(32, 32, 3, padding=1)),
        nn.Sequential(_conv(256, 32, 1), _conv(32, 32, 3, padding=1), _conv(32, 32, 3, padding=1)),
    )


def _block17() -> _Residual:
    return _Residual(
        *(256, 896, 0.1, nn.ReLU()),
        _conv(896, 128, 1),
        nn.Sequential(
            _conv(896, 128, 1),
            _conv(128, 128, (1, 7), padding=(0, 3)),
            _conv(128, 128, (7, 1), padding=(3, 0)),
        ),
    )


def _block8(scale: float, activation: nn.Module) -> _Residual:
    return _Residual(
        *(384, 1792, scale, activation),
        _conv(1792, 192, 1),
        nn.Sequential(
            _conv(1792, 192, 1),
            _conv(192, 192, (1, 3), padding=(0, 1)),
            _conv(192, 192, (3, 1), padding=(1, 0)),
        ),
    )


def _mixed_6a() -> _Branches:
    return _Branches(
        _conv(256, 384, 3, stride=2),
        nn.Sequential(_conv(256, 192, 1), _conv(192, 192, 3, padding=1), _conv(192, 256, 3, 2)),
        nn.MaxPool2d(3, stride=2),
    )


def _mixed_7a() -> _Branches:
    return _Branches(
        nn.Sequential(_conv(896, 256, 1), _conv(256, 384, 3, stride=2)),
        nn.Sequential(_conv(896, 256, 1), _conv(256, 256, 3, stride=2)),
        nn.Sequential(_conv(896, 256, 1), _conv(256, 256, 3, padding=1), _conv(256, 256, 3, 2)),
        nn.MaxPool2d(3, stride=2),
    )
