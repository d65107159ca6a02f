"""Do two images show their structures in the same order of brightness?

With g and h the gradients of the fixed and of the warped moving image at a coarse spacing, the agreement is
    sum g.h / sum |g.h|
over the voxels in which either image shows anything: 1 where every edge goes the same way in both, 0 where as many go the
other way, -1 for a negative. Edges that do not meet weigh little, so the figure is meaningful before the deformation is
known. The products are those of normalised gradient fields (Haber and Modersitzki, MICCAI 2006), with their sign kept.

A map of one tissue has the order of brightness of a T1 image and yet another contrast: all but that tissue is one value. So the
relation of the intensities must be straight, too: of what one image tells of the other by any function, the correlation ratio eta^2
(Roche et al., MICCAI 1998), a line must tell most, r^2 / eta^2, both ways.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from ..image import Image
from ..ops.nd import index_gradient
from ..terms.base import Alignment
from .channels import normalised_pair
from .compositive import CompositiveSettings, register

VOXELS = 32
CONTENT = 0.05
SAME = 0.9
"""Agreement above which two images are taken to have one contrast. A template and its warped copies (14 mm) reached 0.92 before and 1.00
after a coarse deformation by structure; with the brightness of the tissues exchanged 0.85 before and 0.78 after."""
SAME_AFTER = 0.95
"""The same once a coarse deformation is known."""
STRAIGHT = 0.85
"""Straightness that one contrast has at least: a template and its copies of other brightness (gamma 0.7 to 1.4, up to 12 mm away) had 0.88 or
more, T1 and the mask of one tissue 0.66 or less."""
LEVELS = 16

STIFF = (1.7, 0.8)
"""Smoothing of steps and of the field, voxels, that a comparison by structure needs at least."""
COARSE_LOOK = CompositiveSettings("mind", (2.0, 1.0), (40, 30), fluid=2.5, elastic=1.5)


@dataclass(frozen=True)
class Relation:
    """How the intensities of two images are related: ``agreement`` of their gradients, -1 to 1, and ``straightness`` 0 to 1."""

    agreement: float = 1.0
    straightness: float = 1.0

    def one_contrast(self, least: float) -> bool:
        """Is the agreement ``least`` or more, and the relation straight?"""
        return self.agreement >= least and self.straightness >= STRAIGHT


def one_contrast(fixed: Image, moving: Image, linear, start, monitor) -> tuple[bool, float]:
    """(is it one contrast?, the agreement of gradients). Where the first look under ``start`` or ``linear`` is not sure, a coarse
    deformation by structure alone (MIND) is made for a second look; it is not used for anything else."""
    seen = relation(fixed, moving, start or linear)
    if seen.one_contrast(SAME):
        return True, seen.agreement
    finest = _edge(fixed, 2 * VOXELS)
    coarse = register(fixed, moving, linear, replace(COARSE_LOOK, finest=finest), monitor, start)[0]
    seen = relation(fixed, moving, linear @ coarse.to("cpu"))
    return seen.one_contrast(SAME_AFTER), seen.agreement


def relation(fixed: Image, moving: Image, transform) -> Relation:
    """The relation of two images under ``transform`` (fixed mm -> moving mm), on about ``VOXELS`` voxels an axis; channels are put
    together. 1 and 1 where nothing can be compared."""
    spacing = _edge(fixed, VOXELS)
    fixed, moving = normalised_pair(fixed.smoothed_to(spacing), moving.smoothed_to(spacing))
    alignment = Alignment(fixed, moving, transform)
    warped = alignment.warped
    shown = (alignment.mask & ((fixed.data > CONTENT) | (warped > CONTENT)).any(1, keepdim=True))[:, 0]
    scale = torch.as_tensor(fixed.grid.spacing.copy(), dtype=warped.dtype, device=warped.device).reshape(1, 1, -1, *[1] * fixed.dim)
    product = (index_gradient(fixed.data) / scale * index_gradient(warped) / scale).sum((1, 2))[shown]
    total = float(product.abs().sum())
    if not total > 0:
        return Relation()
    pairs = [(one[shown], other[shown]) for one, other in zip(fixed.data.unbind(1), warped.unbind(1))]
    return Relation(float(product.sum()) / total, min(straightness(*pair) for pair in pairs))


def straightness(one: torch.Tensor, other: torch.Tensor) -> float:
    """The smaller of r^2 / eta^2 of ``other`` (N,) as a function of ``one`` (N,) and the other way round, values in [0, 1]; 1 where either
    is constant."""
    variances = [float(x.var(correction=0)) for x in (one, other)]
    if min(variances) < 1e-8:
        return 1.0
    line = float(((one - one.mean()) * (other - other.mean())).mean()) ** 2 / (variances[0] * variances[1])
    told = [_explained(*pair) / variance for pair, variance in (((one, other), variances[1]), ((other, one), variances[0]))]
    return min(line / max(line, each, 1e-9) for each in told)


def _explained(given, values):
    """Variance of the mean of ``values`` (N,) at each of ``LEVELS`` levels of ``given`` (N,)."""
    level = (given.clamp(0, 1) * (LEVELS - 1)).round().long()
    nothing, values = torch.zeros(LEVELS, dtype=torch.float64, device=level.device), values.double()
    count, total = (nothing.index_add(0, level, each) for each in (torch.ones_like(values), values))
    mean = total / count.clamp_min(1)
    return float((count * (mean - values.mean()).square()).sum() / count.sum())


def _edge(image: Image, voxels: int) -> float:
    """mm: the voxel edge with about ``voxels`` voxels along an axis of the image."""
    wide = [k for k, n in enumerate(image.grid.size) if n > 1]
    return float(np.prod(image.grid.extent[wide])) ** (1 / len(wide)) / voxels
