"""Refinement of a displacement field on feature vectors by Adam with closed-form gradients.

The data term is the mean over cells of |F(x) - M(phi(x))|^2 over all channels, phi = id + u. Its slope is written down, so no
graph is kept.

* 'elastic': u = G w with G a Gaussian that stands for the cubic B-spline of the reference, plus lambda sum over axes of mean |du/dx|^2;
  Adam moves w. dE/du = -2 (F - M o phi) . (grad M) o phi / cells - 2 lambda laplace(u), dE/dw = G dE/du; (grad M) o phi is
  taken as grad(M o phi).
* 'fluid': phi <- phi o (id - step G d), u <- G' u, where d is Adam's direction for the slope with respect to a small map applied
  before phi, which is -2 (F - M o phi) . grad(M o phi) exactly. Steps under half a cell that are smooth and composed do not fold.

Siebert, Hansen, Heinrich, "Fast 3D registration with accurate optimisation and little learning", Learn2Reg 2021; Heinrich and Hansen,
"Voxelmorph++", WBIR 2022 (multi-channel instance optimisation); Christensen et al., IEEE TIP 1996 (fluid), Kingma and Ba, ICLR 2015 (Adam).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..errors import InputError
from ..ops import fields, nd
from ..ops.filters import gaussian
from ..ops.sample import index_points, sample_rows
from ..runtime import Silent
from ..transforms import Displacement, Velocity
from .feature_lattice import Features

SLAB_CELLS = 200_000
"""Cells worked on at a time on a CPU: few enough to bound the memory, enough to keep the threads busy."""

UPDATES = ("fluid", "elastic")


@dataclass(frozen=True)
class Descent:
    """Steps and widths are in cells of the lattice. ``smoothness`` is lambda of 'elastic', ``field_width`` the width of G' of 'fluid'."""

    update: str = "fluid"
    step: float = 0.3
    width: float = 1.0
    field_width: float = 0.7
    smoothness: float = 1.25

    def __post_init__(self):
        if self.update not in UPDATES:
            raise InputError(f"an update '{self.update}' was asked for; expected one of {', '.join(UPDATES)}")


ELASTIC = Descent("elastic", step=1.0, width=1.4)
"""The settings of the reference: Adam with a rate of one cell, a B-spline as wide as three box filters, lambda 1.25."""


def feature_match(fixed: Features, table: torch.Tensor, field: torch.Tensor, base: torch.Tensor):
    """Cost and slope of the data term: (cost, d cost / d field (1, dim, *S) per cell).

    table (cells, C + 1): the moving features and, last, their weight; field (1, dim, *S) cells; base (cells, dim) index of every cell.
    """
    shape, dim = fixed.grid.shape, fixed.grid.dim
    parts = _slabs(shape, field.is_cuda)
    warped = table.new_empty((table.shape[1], *shape))
    for part in parts:
        shift = field[0, :, part].flatten(1).T
        rows = sample_rows(table, shape, base.reshape(*shape, dim)[part].reshape(-1, dim) + shift)
        warped[:, part] = rows.T.reshape(-1, *warped[0, part].shape)
    mass = fixed.weight[0, 0] * warped[-1]
    mass /= mass.sum().clamp_min(1e-6)
    warped, slope, cost = warped[:-1], torch.zeros_like(field), 0.0
    for part in parts:
        residual = fixed.data[0, :, part] - warped[:, part]
        cost = cost + (residual.square().sum(0) * mass[part]).sum()
        residual *= mass[part]
        for component in range(dim):
            _write_slope(slope[0, component], residual, warped, nd.axis_of(component, dim) + dim, part)
    return cost, slope


def _slabs(shape, whole):
    """Rows of the first axis in groups of about ``SLAB_CELLS`` cells, or all at once."""
    thickness = shape[0] if whole else max(1, SLAB_CELLS * shape[0] // math.prod(shape))
    return [slice(start, min(start + thickness, shape[0])) for start in range(0, shape[0], thickness)]


def _write_slope(slope, residual, warped, axis, part):
    """Writes -2 residual . (central difference of ``warped`` along ``axis``) into the rows ``part`` of ``slope``; 0 at the ends."""
    n = slope.shape[axis]
    first, last = (max(part.start, 1), min(part.stop, n - 1)) if axis == 0 else (1, n - 1)
    if last <= first:
        return
    count, channel_axis = last - first, axis + 1
    rows = warped if axis == 0 else warped[:, part]
    difference = rows.narrow(channel_axis, first - 1, count) - rows.narrow(channel_axis, first + 1, count)
    offset = part.start if axis == 0 else 0
    difference *= residual.narrow(channel_axis, first - offset, count)
    target = slope if axis == 0 else slope[part]
    torch.sum(difference, 0, out=target.narrow(axis, first, count))


def diffusion(field: torch.Tensor, spacing) -> tuple[torch.Tensor, torch.Tensor]:
    """(cost, slope) of sum over axes of the mean squared difference of neighbours, in mm per mm; field (1, dim, *S) cells."""
    dim = field.shape[1]
    size = torch.tensor([float(s) ** 2 for s in spacing], dtype=field.dtype, device=field.device).reshape(1, dim, *[1] * dim)
    cost, slope = field.new_zeros(()), torch.zeros_like(field)
    for component in range(dim):
        axis = nd.axis_of(component, dim)
        n = field.shape[axis]
        if n == 1:
            continue
        step = field.narrow(axis, 1, n - 1) - field.narrow(axis, 0, n - 1)
        scaled = step * size.div(float(spacing[component]) ** 2 * field.numel())
        cost = cost + (step * scaled).sum()
        slope.narrow(axis, 1, n - 1).add_(scaled, alpha=2)
        slope.narrow(axis, 0, n - 1).sub_(scaled, alpha=2)
    return cost, slope


class _Adam:
    """Adam's direction from a series of slopes; its floor is a tenth of the root mean square slope, so that empty regions stay at rest."""

    def __init__(self, like, betas=(0.9, 0.99), floor=0.1):
        self.first, self.second = torch.zeros_like(like), torch.zeros_like(like)
        self.betas, self.floor, self.count = betas, floor, 0

    def direction(self, slope):
        one, two = self.betas
        self.count += 1
        self.first.lerp_(slope, 1 - one)
        self.second.mul_(two).addcmul_(slope, slope, value=1 - two)
        root = self.second.div(1 - two**self.count).sqrt_()
        root += self.floor * root.square().mean().sqrt() + torch.finfo(root.dtype).tiny
        return self.first.div(1 - one**self.count).div_(root)


def refine(fixed: Features, moving: Features, field: torch.Tensor, iterations: int, settings: Descent = Descent(), monitor=None,
           preview=None, text: str = "refinement") -> tuple[torch.Tensor, list[dict]]:
    """The field (1, dim, *S) in cells of the features' grid after ``iterations``, and the cost of each of them.

    ``preview`` is called with the field at the start of every iteration.
    """
    monitor, history = monitor or Silent(), []
    table = torch.cat([moving.data, moving.weight], 1)[0].flatten(1).T.contiguous()
    base = index_points(fixed.grid, dtype=field.dtype, device=field.device).reshape(-1, fixed.grid.dim)
    adam, control, width = _Adam(field), field, settings.width
    for _ in monitor.steps(iterations, text):
        if settings.update == "elastic":
            field = gaussian(control, width)
        cost, slope = feature_match(fixed, table, field, base)
        figures = {"feature_cost": float(cost)}
        if settings.update == "elastic":
            roughness, bend = diffusion(field, fixed.grid.spacing)
            figures["roughness"] = float(roughness)
            control = control - settings.step * adam.direction(gaussian(slope.add_(bend, alpha=settings.smoothness), width))
        else:
            step = gaussian(adam.direction(gaussian(slope, width)), width).mul_(-settings.step)
            field = gaussian(compose(field, step, base), settings.field_width)
        monitor.log(**figures)
        history.append(figures)
        if preview is not None:
            preview(field)
    return (gaussian(control, width) if settings.update == "elastic" else field), history


def compose(outer: torch.Tensor, inner: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """inner(p) + outer(p + inner(p)) for fields (1, dim, *S) in cells; clamped at the border, so that a shift stays a shift there."""
    there = base + inner[0].flatten(1).T
    return inner + sample_rows(outer[0].flatten(1).T.contiguous(), outer.shape[2:], there).T.reshape(outer.shape)


def nearest_flow(displacement: Displacement, iterations: int = 8, width: float = 0.7, monitor=None) -> Velocity:
    """The flow of a stationary velocity close to ``displacement``: a projection onto diffeomorphisms.

    v <- v + G ((id + u) o exp(-v) - id), G a Gaussian of ``width`` voxels, until the mean residual grows; a fold, which no flow has, is
    smoothed away. The lattice grows by as many voxels as the field reaches, and the field fades over them, so that the flow is not cut at
    the border of the image.
    """
    monitor = monitor or Silent()
    displacement = _faded(displacement)
    u, grid = displacement.displacement, displacement.grid
    best = velocity = gaussian(u, width)
    least = float("inf")
    for _ in monitor.steps(iterations, "diffeomorphic projection"):
        rest = fields.compose(u, fields.exp(-velocity, grid), grid)
        size = float(rest.square().sum(1).sqrt().mean())
        if size >= least:
            break
        best, least = velocity, size
        velocity = velocity + gaussian(rest, width)
    return Velocity(best, grid)


def _faded(transform):
    """The map on a wider lattice, where it falls to 0 by less than half a voxel per voxel."""
    u, grid = transform.displacement, transform.grid
    reach = int(fields.to_index_units(u, grid).abs().max().ceil()) * 2 + 1
    margin = [reach if n > 1 else 0 for n in grid.size]
    wide = F.pad(u, [m for r in margin for m in (r, r)], mode="replicate")
    for component, r in enumerate(margin):
        axis = nd.axis_of(component, grid.dim)
        n = wide.shape[axis]
        place = torch.arange(n, device=u.device, dtype=u.dtype)
        fade = (torch.minimum(place, n - 1 - place) / max(r, 1)).clamp_max(1) if r else torch.ones_like(place)
        wide = wide * fade.reshape([-1] + [1] * component)
    return Displacement(wide, grid.pad(margin))
