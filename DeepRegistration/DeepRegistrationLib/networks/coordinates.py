"""Networks of a position: what a registration of one pair can be written as, instead of a lattice of vectors.

    T(p) = p + h R N(R^-1 (p - c) / h),   N = layers o encoding,   R, c, h from the lattice of an image,

so N sees positions of about [-1, 1]^dim and says displacements in units of h, half of the longest edge. The encoding decides how fine N
can be: Fourier features sin(2 pi B x), cos(2 pi B x) with normal B (Tancik et al., NeurIPS 2020), or features on lattices of several
resolutions, the fine ones kept in a hash table (Müller et al., ACM TOG 2022), read with the smooth weights 3 t^2 - 2 t^3 so that T has a
continuous derivative. Both are sums and products of differentiable functions: autograd may be applied as often as is needed.
"""

from __future__ import annotations

import copy
import itertools
import math

import torch
from torch import nn

from ..geometry import Grid
from ..ops.sample import world_points
from ..transforms import Displacement, Transform

PRIMES = (1, 2654435761, 805459861)
POINTS_AT_ONCE = 1 << 17


class FourierFeatures(nn.Module):
    """x (..., dim) -> (..., dim + 2 count): x, and sine and cosine of ``count`` waves with normal frequencies.

    deviation: standard deviation of the frequencies, in waves per unit of x (the unit is half of the longest edge).
    """

    def __init__(self, dim: int, count: int = 48, deviation: float = 0.8, generator: torch.Generator | None = None):
        super().__init__()
        self.width = dim + 2 * count
        self.register_buffer("frequencies", 2 * math.pi * deviation * torch.randn(dim, count, generator=generator))

    def forward(self, x):
        waves = x @ self.frequencies
        return torch.cat([x, waves.sin(), waves.cos()], -1)


class HashGrid(nn.Module):
    """x (N, dim) -> (N, dim + levels * features): x, and what lattices of ``coarsest`` * ``growth``^k cells over [-1, 1]^dim hold around it.

    A lattice with more than 2^``table`` points shares the rows of its table by a hash of the point's index; positions outside are
    clamped.
    """

    def __init__(self, dim: int, levels: int = 6, features: int = 2, coarsest: int = 4, growth: float = 1.6, table: int = 14,
                 generator: torch.Generator | None = None):
        super().__init__()
        self.dim, self.width = dim, dim + levels * features
        cells = [max(1, round(coarsest * growth**k)) for k in range(levels)]
        rows = [min((n + 1) ** dim, 2**table) for n in cells]
        self.hashed = [(n + 1) ** dim > 2**table for n in cells]
        self.register_buffer("cells", torch.tensor(cells))
        self.register_buffer("rows", torch.tensor(rows))
        self.register_buffer("begin", torch.tensor([0, *itertools.accumulate(rows[:-1])]))
        self.register_buffer("corners", torch.tensor(list(itertools.product((0, 1), repeat=dim))))
        self.values = nn.Parameter((2 * torch.rand(sum(rows), features, generator=generator) - 1) * 1e-2)

    def forward(self, x):
        place = ((x[:, None].clamp(-1, 1) + 1) / 2) * self.cells[:, None]
        low = torch.minimum(place.detach().floor(), self.cells[:, None] - 1)
        t = place - low
        t = t * t * (3 - 2 * t)
        corner = self.corners.to(t.dtype)
        weight = (t[:, :, None] * corner + (1 - t[:, :, None]) * (1 - corner)).prod(-1)
        found = nn.functional.embedding(self._row(low.long()[:, :, None] + self.corners), self.values)
        return torch.cat([x, (found * weight[..., None]).sum(2).flatten(1)], -1)

    def _row(self, index):
        """Lattice points (N, levels, corners, dim) -> rows of the table."""
        found = []
        for k, hashed in enumerate(self.hashed):
            point, total = index[:, k], 0
            for c in range(self.dim):
                total = total ^ (point[..., c] * PRIMES[c]) if hashed else total + point[..., c] * (self.cells[k] + 1) ** c
            found.append(total % self.rows[k] + self.begin[k])
        return torch.stack(found, 1)


class CoordinateNetwork(nn.Module):
    """x (N, dim) -> (N, dim): ``depth`` layers of ``width`` on top of ``encoding``; 0 everywhere until it is trained."""

    def __init__(self, dim: int, encoding: nn.Module, width: int = 48, depth: int = 2, generator: torch.Generator | None = None):
        super().__init__()
        self.encoding, sizes = encoding, [encoding.width, *[width] * depth]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes[:-1], sizes[1:]))
        self.last = nn.Linear(sizes[-1], dim)
        for layer in self.layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x):
        x = self.encoding(x)
        for layer in self.layers:
            x = nn.functional.silu(layer(x))
        return self.last(x)


class CoordinateMap(Transform):
    """T(p) = p + h R N(R^-1 (p - c) / h) with ``network`` N; R the directions, c the centre of ``frame``, h half of its longest edge.

    There is no lattice to read from: the map is defined, and smooth, at every point.
    """

    def __init__(self, network: nn.Module, frame: Grid):
        self.network, self.frame, self.dim = network, frame, frame.dim

    def __call__(self, points):
        batch, centred = points.shape[:-1], points - self._tensor(self.frame.centre, points)
        inward = self._tensor(self._scale.inverse().numpy(), points)
        said = self.network((centred @ inward.T).reshape(-1, self.dim)).reshape(*batch, self.dim)
        return points + said @ self._tensor(self._scale.numpy(), points).T

    @property
    def _scale(self):
        """(dim, dim) float64: h R."""
        return torch.as_tensor(self.frame.direction * float(self.frame.extent.max()) / 2)

    def _tensor(self, values, like):
        return torch.as_tensor(values.copy(), dtype=like.dtype, device=like.device)

    def field(self, grid, dtype=torch.float32, device="cpu"):
        """As in the base, in portions where no gradient is wanted."""
        flat = world_points(grid, torch.float32, self.device).reshape(1, -1, grid.dim)
        portions = flat.split(flat.shape[1] if torch.is_grad_enabled() else POINTS_AT_ONCE, 1)
        moved = torch.cat([self(p) - p for p in portions], 1).reshape(1, *grid.shape, grid.dim)
        return moved.movedim(-1, 1).to(device=device, dtype=dtype)

    def sampled(self, grid: Grid) -> Displacement:
        """The map as a lattice of vectors on ``grid``; later changes of the network do not reach it."""
        with torch.no_grad():
            return Displacement(self.field(grid, device=self.device), grid)

    def inverse(self):
        """The inverse of the map as it is read on its frame."""
        return self.sampled(self.frame).inverse()

    def parameters(self):
        return tuple(self.network.parameters())

    def to(self, device=None, dtype=None):
        return CoordinateMap(copy.deepcopy(self.network).to(device=device, dtype=dtype), self.frame)
