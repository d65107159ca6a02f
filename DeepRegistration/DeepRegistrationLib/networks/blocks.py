"""Building blocks of all networks, in 2D and 3D by the number of axes of their input (B, C, *S)."""

from __future__ import annotations

import math

import torch
from torch import nn

from ..ops import nd

SLOPE = 0.2


class Convolution(nn.Module):
    """Convolution of ``dim`` axes with ``size`` taps an axis, zero padding and an optional ``stride``.

    (B, inputs, *S) -> (B, outputs, *S / stride). Weights start as Kaiming et al., ICCV 2015, for leaky rectifiers.
    """

    def __init__(self, dim: int, inputs: int, outputs: int, size: int = 3, stride: int = 1):
        super().__init__()
        self.stride, self.padding = stride, size // 2
        self.weight = nn.Parameter(torch.empty(outputs, inputs, *[size] * dim))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.kaiming_normal_(self.weight, a=SLOPE, nonlinearity="leaky_relu")

    def forward(self, x):
        return nd.conv(x, self.weight, self.bias, self.stride, self.padding)


def silent(convolution: Convolution, deviation: float = 1e-5) -> Convolution:
    """The same layer with weights near 0, as the last layer of a registration network starts near the identity."""
    nn.init.normal_(convolution.weight, 0.0, deviation)
    nn.init.zeros_(convolution.bias)
    return convolution


def chain(dim: int, widths: tuple[int, ...], size: int = 3) -> nn.Sequential:
    """Convolutions from ``widths[0]`` to ``widths[-1]`` channels with a leaky rectifier after each."""
    layers = []
    for inputs, outputs in zip(widths[:-1], widths[1:]):
        layers += [Convolution(dim, inputs, outputs, size), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers)


def parameter_count(network: nn.Module) -> int:
    """Numbers that training changes."""
    return sum(math.prod(p.shape) for p in network.parameters() if p.requires_grad)
