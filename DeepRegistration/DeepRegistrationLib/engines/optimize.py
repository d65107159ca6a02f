"""Registration of one pair by gradient descent on any objective, for any parameterisation of the map, coarse to fine.

At each spacing the objective of the alignment (similarity + weighted regularisers, ``terms``) is lowered by Adam (Kingma and
Ba, ICLR 2015) over the parameters p of

    displacement   phi(x) = x + p(x)                 velocity   phi = exp(p), a stationary flow, invertible by construction
    bspline        phi(x) = x + sum_k p_k B(x - x_k)

which are kept in voxels of the level, so that one step length serves all levels. Regularisers see phi alone: the linear start
is folded into the header of the moving image. A displacement or spline has no exact inverse; ``paired`` optimises a second one,
from moving to fixed, beside it, and the consistency terms of the objective tie the two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import ConvergenceError, InputError
from ..geometry import Grid
from ..ops import fields
from ..ops.sample import resample
from ..ops.spline import cubic_coefficients
from ..parameters import require_counts
from ..points import Points
from ..runtime import Monitor
from ..terms import Alignment, Term
from ..transforms import Affine, BSpline, Displacement, Transform, Velocity
from ..transforms.base import require_finite
from .channels import folded

MODELS = ("displacement", "velocity", "bspline")
FAINT = 1e-5


@dataclass(frozen=True)
class DescentSettings:
    """spacings mm of the levels, coarse to fine; iterations per level; step in voxels; control distance in voxels (bspline);
    symmetric adds the cost of the swapped pair under the inverse map (velocity only), paired the cost of the swapped pair under a map
    of its own (displacement and bspline); tolerance ends a level early."""

    model: str = "velocity"
    spacings: tuple[float, ...] = (4.0, 2.0)
    iterations: tuple[int, ...] = (100, 50)
    step: float = 0.1
    control: float = 4.0
    symmetric: bool = False
    tolerance: float = 1e-4
    paired: bool = False


def descend(pair, linear: Affine, objective: Term, settings: DescentSettings, monitor: Monitor, device="cpu",
            start: Transform | None = None) -> tuple[Transform, list[dict]]:
    """The deformation phi with moving = linear(phi(x)) that lowers ``objective``, and one dict per step.

    ``pair`` as ``problem.Pair`` (labels and points are handed to the terms). ``start`` is a deformation to begin from.
    Raises InputError for settings that do not fit together, ConvergenceError where the parameters diverge, Cancelled.
    """
    _check(settings, pair)
    fixed, moving = pair.fixed.to(device, torch.float32), folded(pair.moving.to(device, torch.float32), linear)
    work = np.array([n / s**fixed.dim for n, s in zip(settings.iterations, settings.spacings)], float)
    ends = np.concatenate([[0], np.cumsum(work) / max(work.sum(), 1e-12)])
    maps, history = _starts(start, settings.paired), []
    for k, (spacing, iterations) in enumerate(zip(settings.spacings, settings.iterations)):
        guides = _guides(pair, linear, spacing, device)
        level = fixed.smoothed_to(spacing), moving.smoothed_to(spacing)
        part = monitor.part(ends[k], ends[k + 1], f"level {k + 1}/{len(settings.spacings)}")
        maps = _descend_level(level, guides, maps, linear, objective, settings, iterations, part, history)
    return maps[0], history


def _starts(start, paired):
    """The maps that the first level takes over: fixed -> moving and, where two are optimised, moving -> fixed."""
    if not paired:
        return (start,)
    return start, None if start is None else start.inverse()


def _check(settings, pair):
    if settings.model not in MODELS:
        raise InputError(f"model '{settings.model}' is not known here; expected one of {', '.join(MODELS)}")
    if settings.symmetric and settings.model != "velocity":
        raise InputError(f"the symmetric form needs the model 'velocity' (or 'greedy'); '{settings.model}' has no exact inverse")
    if settings.paired and settings.model == "velocity":
        raise InputError("a second map was asked for beside the model 'velocity', which has an exact inverse; use 'displacement' or 'bspline'")
    require_counts(settings.spacings, settings.iterations)
    if pair.fixed.data.shape[0] != 1:
        raise InputError(f"a batch of {pair.fixed.data.shape[0]} images was given; this optimiser registers one pair at a time")


def _guides(pair, linear, spacing, device):
    """Labels at the level's spacing and points, in the frames that the alignment uses."""
    guides = {}
    if pair.fixed_labels is not None:
        guides["fixed_labels"] = pair.fixed_labels.to(device).smoothed_to(spacing)
        guides["moving_labels"] = folded(pair.moving_labels.to(device), linear).smoothed_to(spacing)
    if pair.fixed_points is not None:
        guides["fixed_points"] = _on(device, pair.fixed_points)
        guides["moving_points"] = _on(device, pair.moving_points.moved(linear.inverse()))
    return guides


def _on(device, points):
    """Positions and weights in the precision and on the device of the optimisation; nothing else is used."""
    weights = None if points.weights is None else points.weights.to(device, torch.float32)
    return Points(points.positions.to(device, torch.float32), weights=weights)


def _parameters(model, previous, grid, control, device):
    """(p, maker): the level's parameters in voxels, taken over from the previous transform, and p -> Transform."""
    scale = torch.as_tensor(grid.matrix.copy(), dtype=torch.float32, device=device)
    step, shape = _control(grid, control) if model == "bspline" else (None, grid.shape)
    p = torch.zeros(1, grid.dim, *shape, device=device)
    if previous is not None:
        p = torch.einsum("ij,bj...->bi...", torch.linalg.inv(scale), _taken_over(model, previous, grid, step, shape, device).detach())

    def make(q):
        millimetres = torch.einsum("ij,bj...->bi...", scale, q)
        if model == "bspline":
            return BSpline(millimetres, grid, step)
        return Velocity(millimetres, grid) if model == "velocity" else Displacement(millimetres, grid)

    return p, make


def _taken_over(model, previous, grid, step, shape, device):
    """(1, dim, *shape) mm: the parameters on ``grid`` that describe ``previous`` best."""
    if model == "velocity" and isinstance(previous, Velocity):
        return resample(previous.velocity, previous.grid, grid)
    field = previous.field(grid, device=device)
    if model == "velocity":
        return fields.logarithm(field, grid)
    return _fitted(field, grid, step, shape) if model == "bspline" else field


def _control(grid, control):
    """(step in voxels per axis (x, y, z), shape (z, y, x)) of the control points; a short axis has at least two."""
    size = np.array(grid.size)
    step = np.where(size > 1, np.minimum(control, np.maximum(size - 1, 1)), 1.0)
    return step, BSpline.control_shape(grid, step)


def _fitted(field, grid, step, shape):
    """Control points whose spline passes through ``field`` (mm on ``grid``) at the knots, which start one step outside."""
    affine = grid.affine.copy()
    affine[:-1, -1] = grid.index_to_world(-np.where(np.array(grid.size) > 1, step, 0.0))
    affine[:-1, :-1] = grid.matrix * step
    return cubic_coefficients(resample(field, grid, Grid(shape, affine)))


def _descend_level(level, guides, previous, linear, objective, settings, iterations, monitor, history):
    """The maps of ``previous`` after the steps of one level: one, or fixed -> moving and moving -> fixed."""
    grid, leaves, makers = level[0].grid, [], []
    for before, image in zip(previous, level):
        p, make = _parameters(settings.model, before, image.grid, settings.control, image.device)
        leaves.append(p.detach().clone().requires_grad_(True))
        makers.append(make)
    # Costs are means, so their slope at one voxel shrinks with the size of the image until Adam takes it for nothing; times the
    # number of voxels it does not, and slopes under FAINT are rounding noise for any image.
    adam = torch.optim.Adam(leaves, lr=settings.step, eps=FAINT)
    best, best_cost, costs = [p.detach().clone() for p in leaves], float("inf"), []
    for _ in monitor.steps(iterations):
        adam.zero_grad(set_to_none=True)
        alignment = _alignment(level, makers, leaves, guides, settings.symmetric)
        cost = objective(alignment).sum()
        if alignment.reverse is not None:
            cost = (cost + objective(alignment.reverse).sum()) / 2
        (cost * grid.voxels).backward()
        value = float(cost.detach())
        if not math.isfinite(value):
            raise ConvergenceError(f"the cost became {value} at spacing {grid.spacing.min():.3g} mm; use a smaller step or more smoothing")
        if value < best_cost:
            best, best_cost = [p.detach().clone() for p in leaves], value
        adam.step()
        costs.append(value)
        history.append({"spacing": float(grid.spacing.min()), "cost": value})
        monitor.log(cost=value)
        if monitor.wants_preview:
            monitor.preview(linear @ makers[0](leaves[0].detach().clone()))
        if len(costs) > 20 and min(costs[:-10]) - min(costs[-10:]) < settings.tolerance * abs(costs[0]):
            break
    maps = tuple(make(p) for make, p in zip(makers, best))
    for transform in maps:
        require_finite(transform)
    return maps


def _alignment(level, makers, leaves, guides, symmetric):
    """The alignment and, where the swapped pair counts, its reverse: by a map of its own or by the exact inverse."""
    fixed, moving = level
    forward = Alignment(fixed, moving, makers[0](leaves[0]), **guides)
    if symmetric or len(makers) > 1:
        swapped = {key.replace("fixed", "@").replace("moving", "fixed").replace("@", "moving"): value for key, value in guides.items()}
        back = makers[1](leaves[1]) if len(makers) > 1 else makers[0](-leaves[0])
        forward.reverse = Alignment(moving, fixed, back, **swapped, reverse=forward)
    return forward
