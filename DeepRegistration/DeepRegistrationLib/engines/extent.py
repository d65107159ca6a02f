"""Which part of the fixed grid a compositive registration works on, how finely, and how its field ends.

The working lattice covers the content of both images with a margin of ``MARGIN`` voxels. On a side where the lattice ends
inside the image the field fades to 0 by a cosine, over the outer half of the margin and ``RUNOUT`` voxels more; on a side where
the image itself ends it is left as it is.
"""

from __future__ import annotations

import numpy as np
import torch

from ..geometry import Grid
from ..image import Image
from ..transforms import Affine
from .starts import background

MARGIN = 8
RUNOUT = 16


def finest_spacing(box: Grid, settings) -> float:
    """mm: the spacing ``finest`` of the settings or the smallest voxel edge, coarser where the lattice would pass ``largest`` voxels."""
    wide = np.array(box.size) > 1
    step = max(settings.finest, float(box.spacing[wide].min()) if wide.any() else float(box.spacing.min()))
    while np.prod(np.maximum(box.extent / np.maximum(box.spacing, step), 1)) > settings.largest:
        step *= 1.05
    return step


def content_box(fixed: Image, moving: Image, linear: Affine) -> Grid:
    """The part of the fixed grid that holds anything of either image, with a margin; background is what the faces show."""
    lower, upper = _content(fixed)
    corners = _box_corners(moving.grid, *_content(moving))
    mapped = linear.inverse()(torch.as_tensor(corners)[None])[0].numpy()
    index = fixed.grid.world_to_index(mapped)
    size = np.array(fixed.grid.size)
    margin = np.maximum(np.ceil(MARGIN * fixed.grid.spacing.min() / fixed.grid.spacing), 2)
    lower = np.clip(np.minimum(lower, np.floor(index.min(0))) - margin, 0, size - 1)
    upper = np.clip(np.maximum(upper, np.ceil(index.max(0)) + 1) + margin, lower + 1, size)
    return fixed.grid.crop(lower, upper)


def _content(image):
    """Index bounds (lower, upper) in (x, y, z) of the voxels that differ from the background by over 2 % of the range."""
    where = torch.zeros(image.grid.shape, dtype=torch.bool, device=image.device)
    for data in image.data[0]:
        where |= (data - background(data)).abs() > 0.02 * float(data.max() - data.min())
    lower, upper = [], []
    for axis in range(where.ndim - 1, -1, -1):
        line = where.movedim(axis, 0).flatten(1).any(1).nonzero()
        lower.append(int(line[0]) if len(line) else 0)
        upper.append(int(line[-1]) + 1 if len(line) else where.shape[axis])
    return np.array(lower), np.array(upper)


def _box_corners(grid, lower, upper):
    return grid.crop(lower, upper).corners()


def widened(grid, whole):
    """``grid`` with up to ``RUNOUT`` voxels more on every side, as far as the image reaches."""
    lower, upper = _room(grid, whole)
    size = np.array(grid.size)
    room = [np.where(size > 1, np.clip(np.floor(side + 1e-6), 0, RUNOUT), 0).astype(int) for side in (lower, upper)]
    return grid.crop(-room[0], size + room[1])


def _room(grid, whole):
    """Voxels of ``grid`` between its border and that of the image, at the lower and the upper end of every axis."""
    corner = grid.world_to_index(whole.corners())
    return -0.5 - corner.min(0), corner.max(0) - (np.array(grid.size) - 0.5)


def fade(grid, wide, whole):
    """(1, 1, *S) weights on ``wide``: a cosine from the border to the middle of the margin of ``grid``, 1 where the image ends."""
    start = wide.world_to_index(grid.origin)
    left = _room(wide, whole)
    total = torch.ones(1, 1, *wide.shape)
    for c, n in enumerate(wide.size):
        weight = np.ones(n)
        ends = int(round(start[c])), n - int(round(start[c])) - grid.size[c]
        for side, (extra, room) in enumerate(zip(ends, (left[0][c], left[1][c]))):
            length = min(extra + MARGIN // 2, n // 3)
            if (extra == 0 and room < 0.5) or length < 1:
                continue
            ramp = 0.5 - 0.5 * np.cos(np.pi * (np.arange(length) + 1) / (length + 1))
            weight[:length] *= ramp if side == 0 else 1
            weight[n - length:] *= ramp[::-1] if side == 1 else 1
        shape = [1] * wide.dim
        shape[-1 - c] = n
        total = total * torch.as_tensor(weight, dtype=total.dtype).reshape(1, 1, *shape)
    return total


__all__ = ["MARGIN", "RUNOUT", "content_box", "fade", "finest_spacing", "widened"]
