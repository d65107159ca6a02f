"""Registration of one pair by two maps that are formulas of the point, tied to each other and fitted at random points.

With T: fixed -> moving and R: moving -> fixed (coordinate networks, ``networks/coordinates.py``) every step draws points p of the fixed
and q of the moving image and lowers

    [ S(f(p), m(T(p))) + S(m(q), f(R(q))) ] / 2 + weight [ tie(T, R) + tie(R, T) ] / 2

by Adam, S any similarity that compares voxel by voxel and the tie a consistency term (``terms/consistency.py``): the gradient of inverse
consistency, differentiated exactly. It is the only regulariser. Images are smooth at first and sharp in the end; the rate falls as half
a cosine. As costs at random points are noisy, both maps are looked at now and then at points of their own, and the best state is kept.
Tian, Greer et al., GradICON, CVPR 2023, for the tie; implicit maps of one pair: Wolterink et al., MIDL 2022.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..errors import ConvergenceError, InputError
from ..image import Image
from ..networks.coordinates import CoordinateMap
from ..ops.sample import apply_matrix, inside, sample
from ..parameters import require_counts
from ..runtime import Monitor
from ..terms import Alignment, GradientInverseConsistency, Similarity
from ..transforms import Affine, Displacement
from ..transforms.base import require_finite
from .channels import channels

LOOKED_AT = 8192


@dataclass(frozen=True)
class PointwiseSettings:
    """spacings mm to which the images are smoothed, coarse to fine; iterations on each; rate: first step length of Adam; samples: points
    of the similarity in each image, tied: of the tie in each direction; probes: see ``GradientInverseConsistency``; look: steps between
    looks at the state; channels: what is compared, as in ``engines/channels.py``."""

    spacings: tuple[float, ...] = (4.0, 2.0)
    iterations: tuple[int, ...] = (150, 150)
    rate: float = 2e-3
    weight: float = 0.05
    samples: int = 4096
    tied: int = 1024
    probes: int = 1
    look: int = 10
    channels: str = "mse"


def fit(pair, linear: Affine, maps: tuple[CoordinateMap, CoordinateMap], similarity: Similarity, settings: PointwiseSettings, monitor: Monitor,
        device="cpu", seed: int = 0) -> tuple[tuple[Displacement, Displacement], list[dict]]:
    """(phi on the fixed lattice with moving = linear(phi(x)), its reverse on the moving lattice), and one dict per step.

    ``maps`` are changed: fixed -> moving and back, in the frame in which the linear start is part of the header of the moving image.
    Raises InputError for settings that do not fit together or a batch, ConvergenceError where the maps diverge, Cancelled.
    """
    _check(settings, pair)
    fixed = pair.fixed.to(device, torch.float32)
    moving = replace(pair.moving.to(device, torch.float32), grid=pair.moving.grid.moved(linear.inverse().numpy()))
    maps = tuple(CoordinateMap(m.network.to(device), m.frame) for m in maps)
    adam = torch.optim.Adam([p for m in maps for p in m.parameters()], lr=settings.rate)
    generator, history = torch.Generator().manual_seed(seed), []
    ends = np.cumsum([0, *settings.iterations]) / sum(settings.iterations)
    for k, (spacing, iterations) in enumerate(zip(settings.spacings, settings.iterations)):
        level = tuple(channels(image.smoothed_to(spacing), settings.channels) for image in (fixed, moving))
        part = monitor.part(ends[k], ends[k + 1], f"level {k + 1}/{len(settings.spacings)}")
        _fit_level(level, maps, linear, similarity, settings, iterations, adam, generator, part, history)
    found = maps[0].sampled(fixed.grid), maps[1].sampled(moving.grid)
    for transform in found:
        require_finite(transform)
    return found, history


def _check(settings, pair):
    require_counts(settings.spacings, settings.iterations)
    if pair.fixed.data.shape[0] != 1:
        raise InputError(f"a batch of {pair.fixed.data.shape[0]} images was given; this optimiser registers one pair at a time")


def _fit_level(level, maps, linear, similarity, settings, iterations, adam, generator, monitor, history):
    """The steps on images of one sharpness; ``maps`` end in the best state that a look found."""
    tie = GradientInverseConsistency(settings.tied, generator=generator, exact=True, probes=settings.probes)
    best, best_cost, spacing = None, math.inf, float(level[0].grid.spacing.min())
    for k in monitor.steps(iterations):
        share = (len(history) + 1) / sum(settings.iterations)
        adam.param_groups[0]["lr"] = settings.rate * (0.02 + 0.98 * (1 + math.cos(math.pi * share)) / 2)
        adam.zero_grad(set_to_none=True)
        cost = _cost(level, maps, similarity, settings.weight, tie, settings.samples, generator)
        cost.backward()
        value = float(cost.detach())
        if not math.isfinite(value):
            raise ConvergenceError(f"the cost became {value} at spacing {spacing:.3g} mm; use a smaller rate")
        adam.step()
        history.append({"spacing": spacing, "cost": value})
        monitor.log(cost=value)
        if (k + 1) % settings.look == 0 or k + 1 == iterations:
            found = _looked_at(level, maps, similarity, settings.weight)
            if found < best_cost:
                best, best_cost = [copy.deepcopy(m.network.state_dict()) for m in maps], found
        if monitor.wants_preview:
            monitor.preview(linear @ maps[0].sampled(level[0].grid))
    for m, state in zip(maps, best or ()):
        m.network.load_state_dict(state)


def _cost(level, maps, similarity, weight, tie, samples, generator):
    """The cost () of both directions at points that ``generator`` gives."""
    (fixed, moving), (there, back) = level, maps
    forward = Alignment(fixed, moving, there)
    forward.reverse = Alignment(moving, fixed, back, reverse=forward)
    likeness = _compared(fixed, moving, there, similarity, samples, generator) + _compared(moving, fixed, back, similarity, samples, generator)
    return (likeness + weight * (tie(forward) + tie(forward.reverse)).sum()) / 2


def _compared(fixed: Image, moving: Image, transform, similarity, samples, generator):
    """The similarity () of both images at random points of ``fixed``; masks and the field of view of ``moving`` decide which count."""
    last = torch.tensor(fixed.grid.size, dtype=torch.float32, device=fixed.device) - 1
    index = torch.rand(1, samples, fixed.dim, generator=generator).to(fixed.device) * last
    moved = apply_matrix(moving.grid.inverse_affine, transform(apply_matrix(fixed.grid.affine, index)))
    counts = inside(moved.detach(), moving.grid.shape)[:, None]
    for image, where in ((fixed, index), (moving, moved.detach())):
        if image.mask is not None:
            counts = counts & (sample(image.mask.float(), where, "nearest") > 0.5)
    return similarity.compare(sample(fixed.data, index), sample(moving.data, moved), counts).sum()


def _looked_at(level, maps, similarity, weight) -> float:
    """The cost at points that are always the same."""
    tie = GradientInverseConsistency(LOOKED_AT // 4)
    with torch.no_grad():
        return float(_cost(level, maps, similarity, weight, tie, LOOKED_AT, torch.Generator().manual_seed(1)))
