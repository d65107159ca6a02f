"""A small deformation of every slice at its pose: bounded, smooth, and kept only where pixels that it was not fitted to agree with it.

Slice s is then emulated at T_s(p + u_s(p)), u_s = a tanh(q_1) e_1 + a tanh(q_2) e_2 + b tanh(q_3) n: cubic B-splines in its plane (Rueckert et al., IEEE
TMI 1999) along its axes e_1, e_2 with at most a mm, along its normal n with at most b mm. The control values q lower

    C({S, E(u)}) + STIFFNESS mean (second differences of q)^2 + PULL mean q^2

of all slices together, C their mutual information as in ``slices``, by Adam. A field with a hundred values always finds something
to fit in the noise. So it is first fitted to one half of the pixels, the black fields of a checkerboard; for the tiles of the white ones the
gain is the mean of log p(S, E(u)) / (p(S) p(E(u))) minus the same without u, p the joint histogram of all slices. Where the mean gain of a slice's
tiles is ``CERTAIN`` standard errors above 0 the slice is fitted again, to all of its pixels; the others keep their rigid pose.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from ..geometry import Grid
from ..ops.spline import tensor_product, upsampling_matrix
from ..transforms.dense import Displacement
from ..transforms.spline import BSpline
from . import sampled
from .slices import SliceLevel, normal_of

STIFFNESS, PULL = 0.3, 0.01
STEPS, RATE, BINS, CERTAIN = 60, 0.06, 24, 2.5
SQUARE, TILES = 3, 4
"""Pixels along an edge of a field of the checkerboard; tiles along an edge of a slice that the gain is judged by."""


@dataclass(frozen=True)
class BendSettings:
    """Largest displacement ``plane`` and ``through`` the plane, mm; ``knots`` mm between control points."""

    plane: float
    through: float
    knots: float


@dataclass(frozen=True)
class Bend:
    """The deformation of a slice: ``field``, points of the slice where its header has them -> where they are read, mm, None where it was not kept;
    ``gain`` of similarity at pixels that were left out, and its standard error."""

    field: Displacement | None
    gain: float
    error: float

    @property
    def largest(self) -> float:
        """mm."""
        return 0.0 if self.field is None else float(self.field.displacement.square().sum(1).max().sqrt())

    def before(self, move: np.ndarray) -> "Bend":
        """The same for points that the linear ``move`` (4, 4) brings to where this one has them."""
        if self.field is None:
            return self
        turn = torch.as_tensor(np.linalg.inv(move[:3, :3]), dtype=self.field.displacement.dtype)
        return replace(self, field=Displacement(torch.einsum("ij,bjzyx->bizyx", turn, self.field.displacement), self.field.grid.moved(np.linalg.inv(move))))


def bent_points(bend: Bend | None, points: np.ndarray) -> np.ndarray:
    """points (..., 3) mm of a slice -> where they are read, before its rigid map; the points themselves without a ``bend`` that was kept."""
    if bend is None or bend.field is None:
        return points
    flat = torch.as_tensor(points.reshape(1, -1, 3), dtype=torch.float32)
    return points + (bend.field(flat) - flat)[0].double().numpy().reshape(points.shape)


def unbent_points(bend: Bend | None, points: np.ndarray) -> np.ndarray:
    """The inverse of ``bent_points``, by iteration: the fields are small and smooth."""
    found = points
    for _ in range(0 if bend is None or bend.field is None else 8):
        found = points - (bent_points(bend, found) - found)
    return found


def bends(level: SliceLevel, matrices, grids: list[Grid], settings: BendSettings, monitor) -> list[Bend]:
    """One a slice. ``matrices`` (S, 4, 4) slice mm -> volume mm; ``grids``: where the pixels of ``level`` lie; fields are on them."""
    level = replace(level, measure=sampled.Information(level.values))
    board = torch.cat([torch.as_tensor(_checkerboard(grid)) for grid in grids]).to(level.points.device)
    shown = level.counted if level.counted is not None else torch.ones(len(board), device=board.device)
    half = _Fit(replace(level, counted=shown * board), matrices, grids, settings)
    half.run(range(level.count), monitor.part(0.0, 0.5, "deformation, half of the pixels"))
    gains = half.gains(shown * (1 - board))
    kept = [s for s, (gain, error) in enumerate(gains) if gain > CERTAIN * error]
    whole = _Fit(level, matrices, grids, settings, half.control)
    whole.run(kept, monitor.part(0.5, 1.0, "deformation"))
    return [Bend(whole.field(s) if s in kept else None, *gains[s]) for s in range(level.count)]


def _checkerboard(grid: Grid) -> np.ndarray:
    """(N,) 1 on the black fields of a one-slice grid."""
    rows, columns = np.indices([n for n in grid.shape if n != 1]) // SQUARE
    return ((rows + columns) % 2).astype(np.float32).ravel()


class _Fit:
    """The control values of all slices, and what they make of the level."""

    def __init__(self, level, matrices, grids, settings, start=None):
        self.level, self.grids, self.settings = level, grids, settings
        self.matrices = level.index_matrices(np.asarray(matrices))
        self.rigid = level.index(self.matrices)
        self.lines = [_lines(grid, settings.knots) for grid in grids]
        self.control = [torch.zeros(1, 3, *(m.shape[1] for m in reversed(lines)), device=level.points.device) for lines in self.lines]
        for values, first in zip(self.control, start or self.control):
            values.copy_(first)
        self.bound = torch.tensor([settings.plane, settings.plane, settings.through], device=level.points.device).reshape(1, 3, 1, 1)

    def displacement(self, s: int) -> torch.Tensor:
        """(N_s, 3) mm of the pixels of slice ``s``, x, y, z."""
        values = tensor_product(self.bound * torch.tanh(self.control[s]), self.lines[s])[0].flatten(1).T
        return values @ torch.as_tensor(_frame(self.grids[s]).T, dtype=values.dtype, device=values.device)

    def index(self, chosen) -> torch.Tensor:
        """(K, N, 3) where the samples land in the volume, with the ``chosen`` slices bent."""
        moved = [self.rigid[:, a:b] for a, b in self.level.spans()]
        for s in chosen:
            turn = torch.as_tensor(self.matrices[s, :, :3].T.copy(), dtype=torch.float32, device=self.rigid.device)
            moved[s] = moved[s] + self.displacement(s) @ turn
        return torch.cat(moved, 1)

    def cost(self, chosen) -> torch.Tensor:
        values, weight = self.level.read(self.index(chosen))
        rough = sum(_roughness(self.control[s]) for s in chosen) / self.level.count
        size = sum(self.control[s].square().mean() for s in chosen) / self.level.count
        return self.level.measure(values, weight) + STIFFNESS * rough + PULL * size

    def run(self, chosen, monitor) -> None:
        """Fit the ``chosen`` slices; the others stay as they are."""
        chosen = list(chosen)
        if not chosen:
            return
        fitted = [self.control[s].requires_grad_(True) for s in chosen]
        search = torch.optim.Adam(fitted, RATE)
        with torch.enable_grad():
            for k in monitor.steps(STEPS, "deformation of the slices"):
                search.param_groups[0]["lr"] = RATE * (1 - k / STEPS)
                search.zero_grad()
                cost = self.cost(chosen)
                cost.backward()
                search.step()
                monitor.log(loss=float(cost.detach()))
        self.control = [values.detach() for values in self.control]

    def gains(self, weight) -> list[tuple[float, float]]:
        """(mean, standard error) over the tiles of every slice of what its pixels of ``weight`` (N,) gain by the deformation."""
        with torch.no_grad():
            with_it, without = (self._information(index, weight) for index in (self.index(range(self.level.count)), self.rigid))
        gain, counts, out = (with_it - without).cpu().numpy(), weight.cpu().numpy(), []
        for grid, (a, b) in zip(self.grids, self.level.spans()):
            shape = [n for n in grid.shape if n != 1]
            rows, columns = (i * TILES // n for i, n in zip(np.indices(shape), shape))
            tile = (rows * TILES + columns).ravel()
            pixels = np.bincount(tile, counts[a:b], TILES**2)
            means = np.bincount(tile, gain[a:b] * counts[a:b], TILES**2)[pixels > 0] / pixels[pixels > 0]
            out.append((float(means.mean()), float(means.std(ddof=1) / np.sqrt(len(means)))) if len(means) > 1 else (0.0, 0.0))
        return out

    def _information(self, index, chosen) -> torch.Tensor:
        """(N,) log p(S, E) / (p(S) p(E)) of every pixel, p the joint histogram of the ``chosen`` ones."""
        made, weight = replace(self.level, counted=None).read(index)
        a, b = ((v[0] * BINS).long().clamp(0, BINS - 1) for v in (self.level.values, made))
        inside = (chosen > 0) & (weight > 0.5 * weight.max())
        table = torch.bincount((a * BINS + b)[inside], minlength=BINS**2).reshape(BINS, BINS).double() + 1.0 / BINS
        p = table / table.sum()
        ratio = (p / (p.sum(1, keepdim=True) * p.sum(0, keepdim=True))).log()
        return torch.where(inside, ratio[a, b], 0.0)

    def field(self, s: int) -> Displacement:
        """Of slice ``s``, on its plane and on one beside it on either side, so that points a little off the plane are moved alike."""
        grid = self.grids[s]
        axis = grid.size.index(1)
        values = self.displacement(s).T.reshape(1, 3, *grid.shape).cpu()
        margin = [1 if n == axis else 0 for n in range(3)]
        return Displacement(values.repeat_interleave(3, 4 - axis), grid.pad(margin))


def _lines(grid: Grid, knots: float) -> list[np.ndarray]:
    """One matrix an axis of the plane (x, y, z order): control points, about ``knots`` mm apart, to pixels."""
    out = []
    for n, spacing in zip(grid.size, grid.spacing):
        if n != 1:
            step = max(1.0, knots / spacing)
            out.append(upsampling_matrix(n, BSpline.control_shape(Grid.from_parts((2, n)), (step, step))[1], -step, step))
    return out


def _frame(grid: Grid) -> np.ndarray:
    """(3, 3) columns: the axes of the plane and its normal."""
    wide = [n for n in range(3) if grid.size[n] != 1]
    return np.stack([*grid.direction[:, wide].T, normal_of(grid)], 1)


def _roughness(control) -> torch.Tensor:
    """Mean square of the second differences along and across the plane."""
    along = [control.diff(2, dim) for dim in (2, 3)]
    mixed = control.diff(1, 2).diff(1, 3)
    parts = [v.square().mean() for v in (*along, mixed) if v.numel()]
    return torch.stack(parts).sum()
