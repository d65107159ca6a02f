"""Which part of the fixed grid a compositive registration works on, how finely, and how its field ends.

The working lattice covers the content of both images with a margin of ``MARGIN`` voxels. On a side where the lattice ends
inside the image the field fades to 0 by a cosine, over the outer half of the margin and ``RUNOUT`` voxels more, or as many as it needs
not to fold; on a side where the image itself ends, or ends too early for that, it is left as it is.
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
    step = max(settings.finest, float(box.spacing[box.wide].min()))
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
    lower, upper = [], []
    for axis in range(image.dim - 1, -1, -1):
        line = torch.zeros(image.grid.shape[axis], dtype=torch.bool, device=image.device)
        for data in image.data[0]:
            others = [a for a in range(image.dim) if a != axis]
            low, high = data.amin(others), data.amax(others)
            ground, share = background(data), 0.02 * float(high.max() - low.min())
            line |= torch.maximum((low - ground).abs(), (high - ground).abs()) > share
        line = line.nonzero()
        lower.append(int(line[0]) if len(line) else 0)
        upper.append(int(line[-1]) + 1 if len(line) else image.grid.shape[axis])
    return np.array(lower), np.array(upper)


def _box_corners(grid, lower, upper):
    return grid.crop(lower, upper).corners()


def ramp_lengths(u: torch.Tensor, margin: int = MARGIN) -> np.ndarray:
    """(2, dim) voxels at the lower and upper end of every axis over which the displacement u (1, dim, *S), voxels, can fall to 0 without folding.

    A ramp w turns the determinant into about 1 + u . grad w: only motion out of the lattice counts, along its axis. A cosine of this length
    takes at most half of the volume away.
    """
    out = np.zeros((2, u.shape[1]))
    for c in range(u.shape[1]):
        count = min(margin, u.shape[-1 - c])
        if u.shape[-1 - c] > 1:
            lower, upper = (u[0, c].narrow(-1 - c, start, count) for start in (0, u.shape[-1 - c] - count))
            out[:, c] = np.pi * max(-float(lower.min()), 0.0), np.pi * max(float(upper.max()), 0.0)
    return out


def widened(grid, whole, lengths):
    """``grid`` with up to ``RUNOUT`` voxels more on every side, or as many as a ramp of ``lengths`` (2, dim) voxels needs, as far as the image
    reaches."""
    size = np.array(grid.size)
    asked = np.maximum(np.ceil(lengths), RUNOUT)
    room = [np.where(size > 1, np.clip(np.floor(side + 1e-6), 0, most), 0).astype(int) for side, most in zip(_room(grid, whole), asked)]
    return grid.crop(-room[0], size + room[1])


def _room(grid, whole):
    """Voxels of ``grid`` between its border and that of the image, at the lower and the upper end of every axis."""
    corner = grid.world_to_index(whole.corners())
    return -0.5 - corner.min(0), corner.max(0) - (np.array(grid.size) - 0.5)


def fade(grid, wide, whole, lengths):
    """(1, 1, *S) weights on ``wide``: a cosine from the border to the middle of the margin of ``grid``; 1 where the image ends and leaves no
    room for a ramp of ``lengths`` (2, dim) voxels."""
    start = np.round(wide.world_to_index(grid.origin)).astype(int)
    left = _room(wide, whole)
    total = torch.ones(1, 1, *wide.shape)
    for c, n in enumerate(wide.size):
        weight = np.ones(n)
        ends = start[c], n - start[c] - grid.size[c]
        for side, extra in enumerate(ends):
            length = extra + min(MARGIN // 2, grid.size[c] // 3)
            if (left[side][c] <= 0.5 and (extra == 0 or length < lengths[side][c])) or length < 1:
                continue
            ramp = 0.5 - 0.5 * np.cos(np.pi * (np.arange(length) + 1) / (length + 1))
            weight[:length] *= ramp if side == 0 else 1
            weight[n - length:] *= ramp[::-1] if side == 1 else 1
        shape = [1] * wide.dim
        shape[-1 - c] = n
        total = total * torch.as_tensor(weight, dtype=total.dtype).reshape(1, 1, *shape)
    return total


__all__ = ["MARGIN", "RUNOUT", "content_box", "fade", "finest_spacing", "ramp_lengths", "widened"]
