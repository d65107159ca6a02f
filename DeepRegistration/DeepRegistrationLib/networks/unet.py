"""Networks that see two images: a U-Net that says a displacement or a velocity, and an encoder that says a linear map; 2D and 3D.

The U-Net halves its input once a level of ``encoder``, doubles it once a level of ``decoder`` and keeps at every doubling what the
encoder had at that size:

    e_0 = [moving, fixed],   e_k = down(convolutions(e_(k-1))),   d_0 = convolutions(e_n),   d_k = convolutions([up(d_(k-1)), e_(n-k)])

Ronneberger et al., MICCAI 2015. With down = 'stride' its first convolution of a level reads every second voxel and the sizes are those
of VoxelMorph-2 (Balakrishnan et al., CVPR 2018); with 'pool' the maximum of every block is kept, as in the package ``voxelmorph`` since
2020. With ``half`` the last doubling is left out and the output lattice is twice as coarse. What is said is in voxels of the output
lattice, components (x, y, z), and in the precision of the images where the convolutions have 16 bits; ``heads`` makes transforms of it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..ops import nd
from ..transforms.linear import parameter_count
from .blocks import SLOPE, Convolution, of_doubled, silent
from .heads import OUTPUTS, channels_of

CERTAIN = -10.0
"""The log-variance that a probabilistic network begins with: next to none, so that training starts from the mean."""


class Halving(Convolution):
    """A convolution with three taps that reads every second voxel: output i sees the inputs 2 i, 2 i + 1 and 2 i + 2, zeros after the end.

    (B, inputs, *S) -> (B, outputs, *S / 2) for even S; the lattice of blocks of two voxels, as in the frameworks that pad 'same'.
    """

    def __init__(self, dim: int, inputs: int, outputs: int):
        super().__init__(dim, inputs, outputs, 3, 2)

    def forward(self, x):
        return nd.conv(F.pad(x, (0, 1) * nd.dim_of(x)), self.weight, self.bias, 2)


class UNet(nn.Module):
    """(fixed, moving), both (B, channels, *S) with sides divisible by ``multiple`` -> (B, C, *S), or (B, C, *S / 2) with ``half``.

    encoder, decoder: widths of the convolutions of each level, one number or several; tail: widths at the finest size; output: a kind
    of ``heads.OUTPUTS``, from which C follows. ValueError for widths or sides that do not fit.
    """

    def __init__(self, dim: int, encoder=(16, 32, 32, 32), decoder=(32, 32, 32, (32, 32)), tail=(16, 16), output: str = "displacement",
                 down: str = "stride", half: bool = False, channels: int = 1):
        super().__init__()
        encoder, decoder = _levels(encoder), _levels(decoder)
        if len(encoder) != len(decoder) or not encoder or down not in ("stride", "pool") or output not in OUTPUTS:
            raise ValueError(f"{len(encoder)} levels down and {len(decoder)} up, down '{down}', output '{output}'; equal numbers of levels, "
                             f"'stride' or 'pool' and one of {', '.join(OUTPUTS)} are needed")
        self.dim, self.output, self.down, self.half = dim, output, down, half
        self.levels = len(encoder)
        self.encoder, kept, width = self._encoder(encoder, 2 * channels)
        self.decoder = nn.ModuleList()
        for k, widths in enumerate(decoder):
            stages, width = _stages(dim, width, widths)
            self.decoder.append(stages)
            width += 0 if half and k == self.levels - 1 else kept.pop()
        self.tail, width = _stages(dim, width, tuple(tail))
        self.flow = silent(Convolution(dim, width, channels_of(output, dim)))
        if output == "probabilistic":
            nn.init.constant_(self.flow.bias[dim:], CERTAIN)
            self.register_buffer("drawn", torch.zeros((), dtype=torch.int64))

    @property
    def multiple(self) -> int:
        """Sides of the input have to be divisible by this."""
        return 2**self.levels

    def forward(self, fixed, moving):
        if any(n % self.multiple for n in fixed.shape[2:]):
            raise ValueError(f"sides {tuple(fixed.shape[2:])} of the images; this network needs multiples of {self.multiple}")
        x, kept = torch.cat([moving, fixed], 1), []
        for stages in self.encoder:
            if self.down == "stride":
                kept.append(x)
                x = stages(x)
            else:
                kept.append(stages(x))
                x = nd.max_pool(kept[-1], 2)
        x = self.decoder[0](x)
        for stages in [*self.decoder[1:], nn.Sequential(*self.tail, self.flow)][: self.levels - self.half]:
            x = stages[1:](of_doubled(stages[0], x, kept.pop()))
        return (self.flow(self.tail(x)) if self.half else x).to(fixed.dtype)

    def next_draw(self) -> int:
        """Counts the samples that training has taken from a probabilistic network; the count is saved with it, so a resumed run goes on."""
        self.drawn += 1
        return int(self.drawn)

    def _encoder(self, encoder, width):
        """(modules, channels kept at each level, channels at the bottom)."""
        modules, kept = nn.ModuleList(), []
        for widths in encoder:
            before = width
            stages, width = _stages(self.dim, width, widths, halving=self.down == "stride")
            modules.append(stages)
            kept.append(before if self.down == "stride" else width)
        return modules, kept, width


class AffineEncoder(nn.Module):
    """(fixed, moving), both (B, channels, *S) -> (B, P), the parameters of a linear map for ``heads.affine``; any sides.

    A strided encoder, then the mean of every feature and its first moments along the axes (where in the image it is), then one linear
    layer that starts at 0, the identity. The moments keep what a plain mean forgets: de Vos et al., MedIA 2019, use a fixed image size
    instead. ``kind`` is a kind of ``Affine.from_parameters``.
    """

    def __init__(self, dim: int, widths=(16, 32, 32, 32), kind: str = "affine", channels: int = 1):
        super().__init__()
        self.dim, self.output = dim, kind
        stages, width = [], 2 * channels
        for outputs in widths:
            stages += [Halving(dim, width, outputs), nn.LeakyReLU(SLOPE)]
            width = outputs
        self.encoder = nn.Sequential(*stages)
        self.last = nn.Linear(width * (1 + dim), parameter_count(kind, dim))
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    @property
    def multiple(self) -> int:
        return 1

    def forward(self, fixed, moving):
        x = self.encoder(torch.cat([moving, fixed], 1))
        found = [x.flatten(2).mean(2)]
        for component in range(self.dim):
            axis = nd.axis_of(component, self.dim)
            n = x.shape[axis]
            place = (torch.arange(n, dtype=x.dtype, device=x.device) + 0.5) / n * 2 - 1
            line = [1] * x.ndim
            line[axis] = n
            found.append((x * place.reshape(line)).flatten(2).mean(2))
        return self.last(torch.cat(found, 1))


def _levels(widths) -> tuple[tuple[int, ...], ...]:
    """(16, (32, 32)) -> ((16,), (32, 32)); lists, as JSON has them, are taken too."""
    return tuple((int(w),) if isinstance(w, int) else tuple(int(v) for v in w) for w in widths)


def _stages(dim: int, width: int, widths: tuple[int, ...], halving: bool = False):
    """(convolutions with a leaky rectifier after each, channels at their end); the first one halves where ``halving``."""
    stages = []
    for k, outputs in enumerate(widths):
        layer = Halving(dim, width, outputs) if halving and k == 0 else Convolution(dim, width, outputs)
        stages += [layer, nn.LeakyReLU(SLOPE)]
        width = outputs
    return nn.Sequential(*stages), width
