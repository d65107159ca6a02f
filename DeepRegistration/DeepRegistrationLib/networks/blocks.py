"""Building blocks of all networks, in 2D and 3D by the number of axes of their input (B, C, *S)."""

from __future__ import annotations

import math
from itertools import product

import torch
import torch.nn.functional as F
from torch import nn

from ..ops import nd

SLOPE = 0.2


class Convolution(nn.Module):
    """Convolution of ``dim`` axes with ``size`` taps an axis, zero padding and an optional ``stride``.

    (B, inputs, *S) -> (B, outputs, *S / stride). Weights start as He et al., ICCV 2015, for leaky rectifiers.
    """

    def __init__(self, dim: int, inputs: int, outputs: int, size: int = 3, stride: int = 1):
        super().__init__()
        self.stride, self.padding = stride, size // 2
        self.weight = nn.Parameter(torch.empty(outputs, inputs, *[size] * dim))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.kaiming_normal_(self.weight, a=SLOPE, nonlinearity="leaky_relu")

    def forward(self, x):
        return nd.conv(x, self.weight, self.bias, self.stride, self.padding)


def of_doubled(convolution: Convolution, x, kept):
    """``convolution`` (3 taps) of [``x`` doubled by its nearest neighbour, ``kept``]: (B, C, *S), (B, K, *2 S) -> (B, outputs, *2 S).

    Equal to ``convolution(torch.cat([nd.repeat(x), kept], 1))``, without making the doubled channels: of three taps two fall on one voxel of
    ``x``, so every one of the 2^dim places in a block is a convolution with two taps an axis on the coarse lattice. Half of the time.
    """
    dim, channels = nd.dim_of(x), x.shape[1]
    out = nd.conv(kept, convolution.weight[:, channels:], convolution.bias, 1, 1)
    padded, places = F.pad(x, (1, 1) * dim), list(product((0, 1), repeat=dim))
    parts = []
    for place in places:
        weight, part = convolution.weight[:, :channels], padded
        for axis, k in enumerate(place, 2):
            first, middle, last = weight.unbind(axis)
            weight = torch.stack([first + middle, last] if k else [first, middle + last], axis)
            part = part.narrow(axis, k, x.shape[axis] + 1)
        parts.append(nd.conv(part, weight))
    for place, part in zip(places, parts):
        out[(slice(None), slice(None), *(slice(k, None, 2) for k in place))] += part
    return out


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
