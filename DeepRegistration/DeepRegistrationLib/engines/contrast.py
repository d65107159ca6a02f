"""Do two images show their structures in the same order of brightness?

With g and h the gradients of the fixed and of the warped moving image at a coarse spacing, the agreement is
    sum g.h / sum |g.h|
over the voxels in which either image shows anything: 1 where every edge goes the same way in both, 0 where as many go the
other way, -1 for a negative. Edges that do not meet weigh little, so the figure is meaningful before the deformation is
known. The products are those of normalised gradient fields (Haber and Modersitzki, MICCAI 2006), with their sign kept.
"""

from __future__ import annotations

from dataclasses import replace

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
"""Above it two images are taken to have one contrast. A template and its warped copies (14 mm) reached 0.92 before and 1.00
after a coarse deformation by structure; with the brightness of the tissues exchanged 0.85 before and 0.78 after."""
SAME_AFTER = 0.95
"""The same once a coarse deformation is known."""

STIFF = (1.7, 0.8)
"""Smoothing of steps and of the field, voxels, that a comparison by structure needs at least."""
COARSE_LOOK = CompositiveSettings("mind", (2.0, 1.0), (40, 30), fluid=2.5, elastic=1.5)


def one_contrast(fixed: Image, moving: Image, linear, start, monitor) -> tuple[bool, float]:
    """(is it one contrast?, the agreement). Where the first look under ``start`` or ``linear`` is not sure, a coarse
    deformation by structure alone (MIND) is made for a second look; it is not used for anything else."""
    agreement = gradient_agreement(fixed, moving, start or linear)
    if agreement >= SAME:
        return True, agreement
    finest = _edge(fixed, 2 * VOXELS)
    coarse = register(fixed, moving, linear, replace(COARSE_LOOK, finest=finest), monitor, start)[0]
    agreement = gradient_agreement(fixed, moving, linear @ coarse.to("cpu"))
    return agreement >= SAME_AFTER, agreement


def gradient_agreement(fixed: Image, moving: Image, transform) -> float:
    """The agreement, -1 to 1, of two scalar images under ``transform`` (fixed mm -> moving mm), on about ``VOXELS`` voxels an axis;
    channels are summed. 1 where nothing can be compared."""
    spacing = _edge(fixed, VOXELS)
    fixed, moving = normalised_pair(fixed.smoothed_to(spacing), moving.smoothed_to(spacing))
    alignment = Alignment(fixed, moving, transform)
    warped = alignment.warped
    shown = (alignment.mask & ((fixed.data > CONTENT) | (warped > CONTENT)).any(1, keepdim=True))[:, 0]
    scale = torch.as_tensor(fixed.grid.spacing.copy(), dtype=warped.dtype, device=warped.device).reshape(1, 1, -1, *[1] * fixed.dim)
    product = (index_gradient(fixed.data) / scale * index_gradient(warped) / scale).sum((1, 2))[shown]
    total = float(product.abs().sum())
    return float(product.sum()) / total if total > 0 else 1.0


def _edge(image: Image, voxels: int) -> float:
    """mm: the voxel edge with about ``voxels`` voxels along an axis of the image."""
    wide = [k for k, n in enumerate(image.grid.size) if n > 1]
    return float(np.prod(image.grid.extent[wide])) ** (1 / len(wide)) / voxels
