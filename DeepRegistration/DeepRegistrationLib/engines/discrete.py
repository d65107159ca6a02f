"""Displacements by exhaustive search on a lattice: cost volume, coupled convex optimisation, inverse consistency.

E(v, u) = sum_x D(x, v(x)) + 1 / (2 theta) |v - u|^2 + alpha |grad u|^2 is lowered by turns: v is the best of all displacements of the
lattice at every control point, given u (exact, D is tabulated); u is v after a box filter; 1 / (2 theta) grows. D(x, d) is the sum of
squared differences of the features at x and x + d, averaged over neighbouring control points.

Heinrich, Papiez, Schnabel, Handels, "Non-parametric discrete registration with convex optimisation", WBIR 2014; Siebert and Heinrich,
WBIR 2022 (the softmin version, which backpropagates); Siebert, Hansen, Heinrich, Learn2Reg 2021 (inverse consistency).

Fields here are (1, dim, *S) in cells of the control grid, components (x, y, z).
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
import torch.nn.functional as F

from ..ops.filters import box
from ..ops.sample import sample
from ..runtime import Silent
from .feature_lattice import Features

COUPLING = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Weights 1 / (2 theta) per squared cell; the growing series of the reference implementation."""


def displacement_lattice(reach, dtype=torch.float32, device="cpu") -> torch.Tensor:
    """All whole displacements up to ``reach`` (x, y, z) cells -> (K, dim), K = prod(2 reach + 1); z varies slowest."""
    axes = [range(-int(r), int(r) + 1) for r in reach][::-1]
    return torch.tensor(list(itertools.product(*axes)), dtype=dtype, device=device).flip(1)


class CostVolume:
    """D(x, d) for every control point and every displacement of the lattice; two to three space and as many search axes.

    fixed, moving: features on one grid; reach (x, y, z) cells; costs are averaged over a box of ``aggregate`` cells
    radius.
    Held whole where it fits in ``memory`` bytes, computed anew slab by slab where it does not. A displacement that ends outside the moving
    image or its mask is unknown and costs the middle of the mean and the least of the others at this point, so it neither repels nor
    attracts; a point outside the fixed mask costs nothing anywhere.
    """

    def __init__(self, fixed: Features, moving: Features, reach, aggregate: int = 1, memory: float = 1e9):
        self.fixed, self.aggregate = fixed, int(aggregate)
        self.reach = tuple(int(r) if n > 1 else 0 for r, n in zip(reach, fixed.grid.size))
        self.lattice = displacement_lattice(self.reach, fixed.data.dtype, fixed.data.device)
        margin = [m for r in self.reach for m in (r, r)]
        self._moving = F.pad(moving.data, margin, mode="replicate")[0]
        self._weight = F.pad(moving.weight, margin)[0, 0]
        row_bytes = fixed.grid.voxels // fixed.grid.shape[0] * len(self.lattice) * fixed.data.element_size()
        self.rows = int(np.clip(memory / 2 // row_bytes, 1, fixed.grid.shape[0]))
        self._whole = self._compute(0, fixed.grid.shape[0]) if self.rows == fixed.grid.shape[0] else None

    def slabs(self):
        """Yields (first row, row after the last, costs (K, points)) along the first tensor axis."""
        n = self.fixed.grid.shape[0]
        if self._whole is not None:
            yield 0, n, self._whole
            return
        for start in range(0, n, self.rows):
            stop = min(start + self.rows, n)
            yield start, stop, self._compute(start, stop)

    def _compute(self, start, stop):
        """Costs (K, points) of the rows from ``start`` to before ``stop``, averaged with their neighbours."""
        low, high = max(0, start - self.aggregate), min(self.fixed.grid.shape[0], stop + self.aggregate)
        shape = (high - low, *self.fixed.grid.shape[1:])
        target, weight = self.fixed.data[0, :, low:high], self.fixed.weight[0, 0, low:high]
        costs = target.new_empty((len(self.lattice), *shape))
        shares = torch.empty_like(costs)
        difference = torch.empty_like(target)
        for k, offset in enumerate(self.lattice.tolist()):
            starts = [int(r + d) for r, d in zip(self.reach[::-1], offset[::-1])]
            starts[0] += low
            view = tuple(slice(s, s + n) for s, n in zip(starts, shape))
            torch.sub(target, self._moving[(slice(None), *view)], out=difference)
            torch.sum(difference.square_(), 0, out=costs[k])
            torch.mul(weight, self._weight[view], out=shares[k])
        costs.mul_(shares)
        unknown = 0.5 * (costs.sum(0) / shares.sum(0).clamp_min(1e-6) + _least_known(costs, shares, weight))
        costs.add_(shares.neg_().add_(weight).mul_(unknown))
        del shares
        for part in costs.split(64):
            part.copy_(box(part[None], self.aggregate)[0])
        return costs[:, start - low:costs.shape[1] - (high - stop)].reshape(len(self.lattice), -1)


def _least_known(costs, shares, weight):
    """(*S) the least cost over displacements whose share of weight is above a half; 0 where there is none."""
    least = costs.new_full(costs.shape[1:], float("inf"))
    for cost, share in zip(costs, shares):
        least = torch.where(share > 0.5 * weight, torch.minimum(least, cost), least)
    return least.nan_to_num(posinf=0.0)


def best_displacement(volume: CostVolume, field: torch.Tensor | None = None, weight: float = 0.0) -> torch.Tensor:
    """The displacement d of the lattice with least D(x, d) + weight |d - field(x)|^2 at every point -> (1, dim, *S) cells."""
    shape, dim = volume.fixed.grid.shape, volume.fixed.grid.dim
    lattice = volume.lattice
    best = torch.empty((dim, *shape), dtype=lattice.dtype, device=lattice.device)
    for start, stop, costs in volume.slabs():
        if field is not None and weight > 0:
            costs = costs + _parabola(lattice, field[0, :, start:stop].reshape(dim, -1), weight)
        best[:, start:stop] = lattice[costs.argmin(0)].T.reshape(dim, stop - start, *shape[1:])
    return best[None]


def _parabola(lattice, field, weight):
    """weight |d - u|^2 for all d (K, dim) and u (dim, n) -> (K, n), without |u|^2, which is the same for every d."""
    left = torch.cat([lattice.square().sum(1, keepdim=True) * weight, lattice * (-2 * weight)], 1)
    return left @ torch.cat([torch.ones_like(field[:1]), field], 0)


def coupled_convex(volume: CostVolume, coupling=COUPLING, radius: int = 1, monitor=None, preview=None) -> torch.Tensor:
    """Field (1, dim, *S) in cells by turns of the best displacement and a box filter of ``radius`` cells, with growing coupling.

    ``preview`` is called with the field of every step.
    """
    monitor = monitor or Silent()
    field = box(best_displacement(volume), radius)
    for k in monitor.steps(len(coupling), "discrete search"):
        field = box(best_displacement(volume, field, coupling[k]), radius)
        if preview is not None:
            preview(field)
    return field


def soft_displacement(costs: torch.Tensor, lattice: torch.Tensor, temperature: float) -> torch.Tensor:
    """Mean displacement under softmin weights exp(-temperature D): costs (K, *S), lattice (K, dim) -> (1, dim, *S).

    The differentiable stand-in for the best displacement, which it approaches as ``temperature`` grows.
    """
    share = torch.softmax(-temperature * costs, 0)
    return torch.einsum("kd,k...->d...", lattice, share)[None]


def soft_coupled_convex(fixed: torch.Tensor, moving: torch.Tensor, reach, temperature: float = 10.0, coupling=COUPLING,
                        radius: int = 1, aggregate: int = 1) -> torch.Tensor:
    """The coupled convex steps with softmin in place of the best displacement; differentiable in both features.

    fixed, moving (1, C, *S) on one control grid -> field (1, dim, *S) in cells.
    """
    dim, shape = fixed.ndim - 2, fixed.shape[2:]
    reach = tuple(int(r) if n > 1 else 0 for r, n in zip(reach, shape[::-1]))
    lattice = displacement_lattice(reach, fixed.dtype, fixed.device)
    padded = F.pad(moving, [m for r in reach for m in (r, r)], mode="replicate")
    costs = []
    for offset in lattice.tolist():
        starts = [int(r + d) for r, d in zip(reach[::-1], offset[::-1])]
        view = tuple(slice(s, s + n) for s, n in zip(starts, shape))
        costs.append((fixed - padded[(slice(None), slice(None), *view)]).square().sum(1))
    costs = box(torch.stack(costs, 1), aggregate)[0]
    field = box(soft_displacement(costs, lattice, temperature), radius)
    for weight in coupling:
        pull = _parabola(lattice, field.reshape(dim, -1), weight).reshape(costs.shape)
        field = box(soft_displacement(costs + pull, lattice, temperature), radius)
    return field


def make_inverse_consistent(forward: torch.Tensor, backward: torch.Tensor, iterations: int = 15) -> tuple[torch.Tensor, torch.Tensor]:
    """Both fields (1, dim, *S) in cells, each moved half-way towards the inverse of the other, ``iterations`` times.

    The two are treated alike, so exchanging the arguments exchanges the results.
    """
    shape = forward.shape[2:]
    base = torch.stack(torch.meshgrid(*[torch.arange(n, device=forward.device) for n in shape], indexing="ij")[::-1], -1)[None].to(forward)
    for _ in range(iterations):
        forward, backward = (0.5 * (one - sample(other, base + one.movedim(1, -1)))
                             for one, other in ((forward, backward), (backward, forward)))
    return forward, backward


def search_both_ways(fixed: Features, moving: Features, reach, memory: float = 1e9, consistent: bool = True, monitor=None, preview=None):
    """(forward field, backward field) in cells, made inverse to each other; (forward field, None) where not ``consistent``."""
    monitor = monitor or Silent()
    share = 0.5 if consistent else 1.0
    forward = coupled_convex(CostVolume(fixed, moving, reach, memory=memory), monitor=monitor.part(0.0, share), preview=preview)
    if not consistent:
        return forward, None
    backward = coupled_convex(CostVolume(moving, fixed, reach, memory=memory), monitor=monitor.part(share, 1.0))
    return make_inverse_consistent(forward, backward)
