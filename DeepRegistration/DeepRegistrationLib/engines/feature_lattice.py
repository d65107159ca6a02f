"""A pair of images as feature vectors on one common lattice, and coarser lattices made from it.

The lattice covers the fixed image (and the part of the moving image around it that the search can reach); the moving image is read there
through the initial transform. Features are MIND-SSC of the intensities, and one-hot label channels where label maps are given, as means
over blocks of voxels. Everything after this works in cells of that lattice, so oblique and differing grids need no further care.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import InputError
from ..geometry import Grid
from ..image import Image, Labels
from ..ops import nd
from ..ops.features import mind_ssc
from ..ops.filters import box
from ..ops.sample import inside, resample, sample
from ..runtime import Silent
from ..terms.base import Alignment
from ..transforms import Affine, Displacement, Identity, Transform
from ..transforms.base import linear_part

SLAB_VOXELS = 400_000
MOST_VOXELS = 8_000_000


@dataclass(frozen=True, eq=False)
class Features:
    """``data`` (1, C, *S) feature vectors, ``weight`` (1, 1, *S) from 0 (ignore) to 1, on ``grid``."""

    data: torch.Tensor
    weight: torch.Tensor
    grid: Grid

    def pooled(self, factor) -> "Features":
        """Means over blocks of ``factor`` (x, y, z) cells, weighted."""
        if max(factor) == 1:
            return self
        grid = self.grid.resample(self.grid.spacing * np.asarray(factor))
        weight = nd.average_pool(self.weight, factor)
        data = nd.average_pool(self.data * self.weight, factor).div_(weight.clamp_min(1e-6))
        return Features(data, weight, grid)


@dataclass(frozen=True)
class Spacings:
    """mm: voxel of the features, cell of the finest lattice, of the control grid, and how far the search goes."""

    feature: float
    refinement: float
    control: float
    reach: float

    @classmethod
    def of(cls, grid: Grid, feature=0.0, refinement=0.0, control=0.0, reach=0.0) -> "Spacings":
        """What is 0 follows from the fixed ``grid``: its voxel, but at most ``MOST_VOXELS`` of them; 1 to 2 and 2 to 6 of these; an eighth
        of the longest edge.
        """
        finest = float(grid.spacing[grid.wide].min())
        feature = feature or max(finest, float(np.prod(grid.extent[grid.wide]) / MOST_VOXELS) ** (1 / int(grid.wide.sum())))
        voxels = float(grid.extent.max()) / feature
        refinement = refinement or feature * (2 if voxels >= 96 else 1)
        control = max(control or feature * float(np.clip(voxels // 32, 2, 6)), refinement)
        return cls(feature, refinement, control, reach or float(grid.extent.max()) / 8)


@dataclass(frozen=True, eq=False)
class FeaturePair:
    """(fixed, moving) features on the finest lattice, on one of twice the cell, and on the control grid; ``reach`` in control cells."""

    fine: tuple[Features, Features]
    coarse: tuple[Features, Features]
    control: tuple[Features, Features]
    reach: tuple[int, ...]


def feature_pair(fixed: Image, moving: Image, initial: Transform, spacings: Spacings, patches=(1, 2), labels=None,
                 label_weight: float = 1.0, monitor=None) -> FeaturePair:
    """Features of both images on the lattices of ``spacings``, the moving image read through ``initial`` (fixed mm -> moving mm).

    patches: radius and dilation of MIND-SSC in voxels; labels: (fixed, moving) Labels whose values become channels, or None.
    Raises InputError for a batch and for labels without a common value.
    """
    for image in (fixed, moving):
        if image.data.shape[0] != 1:
            raise InputError(f"{image.name} is a batch of {image.data.shape[0]} images; discrete search takes one pair at a time")
    values = () if labels is None else _common_values(*labels)
    frame, block, coarse, control = _lattices(fixed.grid, moving.grid, initial, spacings)
    pair = []
    for k in (monitor or Silent()).steps(2, "features"):
        image, transform = ((fixed, Identity(fixed.dim)), (moving, initial))[k]
        features = image_features(image, frame, transform, block, *patches)
        if values:
            extra = label_features(labels[k], values, frame, transform, block, label_weight)
            features = Features(torch.cat([features.data, extra.to(features.data)], 1), features.weight, features.grid)
        pair.append(features)
    if float((pair[0].weight * pair[1].weight).sum()) == 0:
        raise InputError(f"{fixed.name} and {moving.name} do not overlap after the initial transform; "
                         "choose another start or check the masks")
    lattices = [tuple(f.pooled(factor) for f in pair) for factor in (coarse, control)]
    cells = lattices[1][0].grid
    reach = tuple(int(np.ceil(spacings.reach / s - 1e-6)) if n > 1 else 0 for s, n in zip(cells.spacing, cells.size))
    return FeaturePair(tuple(pair), lattices[0], lattices[1], reach)


def _common_values(fixed: Labels, moving: Labels):
    values = sorted(set(fixed.values()) & set(moving.values()))
    if not values:
        raise InputError(f"{fixed.name} and {moving.name} have no label value in common; "
                         "give label maps with the same numbering or a label weight of 0")
    return values


def _lattices(fixed: Grid, moving: Grid, initial: Transform, spacings: Spacings):
    """The frame, voxels per cell, and cells per coarse and per control cell, (x, y, z) each."""
    grid = fixed.resample(np.maximum(spacings.feature, fixed.spacing))
    block = _whole(spacings.refinement / grid.spacing, grid.size)
    cells, cell = -(-np.array(grid.size) // block), grid.spacing * block
    coarse, control = _whole(2 * spacings.refinement / cell, cells), _whole(spacings.control / cell, cells)
    frame = _widened(grid, moving, initial, block * np.lcm(coarse, control), spacings.reach)
    return frame, block.tolist(), coarse.tolist(), control.tolist()


def _whole(ratio, most):
    return np.clip(np.round(ratio), 1, most).astype(int)


def _widened(grid: Grid, moving: Grid, initial: Transform, multiple, reach: float) -> Grid:
    """``grid`` with what ``moving`` shows within ``reach`` mm around it, and axes that are multiples of ``multiple`` voxels."""
    corners = linear_part(initial).inverse()(torch.as_tensor(moving.corners())[None].double())[0].cpu().numpy()
    index, size = grid.world_to_index(corners), np.array(grid.size)
    limit = np.where(size > 1, np.round(reach / grid.spacing), 0)
    lower = np.clip(np.round(-0.5 - index.min(0)), 0, limit).astype(int)
    upper = np.clip(np.round(index.max(0) - size + 0.5), 0, limit).astype(int)
    missing = -(size + lower + upper) % multiple
    return grid.crop(-(lower + missing // 2), size + upper + missing - missing // 2)


def image_features(image: Image, frame: Grid, transform: Transform, block, radius: int = 1, dilation: int = 2) -> Features:
    """MIND-SSC of ``image`` read at ``transform`` of every voxel of ``frame``, as means over ``block`` (x, y, z) voxels.

    Weights are 0 outside the field of view and the mask. Channels are scaled so that two vectors differ by as much as twelve channels of
    [0, 1] would, whatever the dimension.
    """
    cells = frame.resample(frame.spacing * np.asarray(block))
    data, mask, seen = _on_frame(image, frame, cells, transform)
    scale = (12 / (data.shape[1] * (12 if frame.dim == 3 else 4))) ** 0.5
    means = []
    for rows, inner, wide in _row_slabs(data, block[-1], radius + dilation):
        inside_mask = None if mask is None else mask.narrow(2, *wide) > 0.5
        features = mind_ssc(data.narrow(2, *wide), radius, dilation, inside_mask).narrow(2, *inner).mul_(scale)
        if mask is not None:
            features.mul_(mask.narrow(2, *rows))
        means.append(nd.average_pool(features, block))
    pooled, weight = torch.cat(means, 2), seen.to(data.dtype)
    if mask is not None:
        share = nd.average_pool(mask, block)
        pooled, weight = _filled(pooled, share), weight * share
    return Features(pooled, weight, cells)


def _filled(sums, share, radius=2):
    """Means sums / share; cells without a share get the mean of their neighbours, so that no edge is made where a mask ends."""
    around = box(sums, radius).div_(box(share, radius).clamp_min(1e-6))
    return torch.where(share > 0, sums / share.clamp_min(1e-6), around)


def _row_slabs(data, block_rows, margin):
    """Cuts (1, C, *S) along its first spatial axis: (first, count) of the rows, of these within their widened slab, of the widened slab."""
    n = data.shape[2]
    rows = max(1, SLAB_VOXELS // (data[0, :, 0].numel() * block_rows)) * block_rows
    for start in range(0, n, rows):
        stop = min(start + rows, n)
        low, high = max(0, start - margin), min(n, stop + margin)
        yield (start, stop - start), (start - low, stop - start), (low, high - low)


def _on_frame(image, frame, cells, transform):
    """(values (1, C, *S) on the frame, mask (1, 1, *S) or None, (1, 1, *cells) True in the field of view)."""
    if isinstance(transform, (Affine, Identity)):
        there, cells_there = (g.moved(linear_part(transform).numpy()) for g in (frame, cells))
        image = image.smoothed_to(there.spacing.min())
        read = _padded(image, there) or image.at(there, fill=None)
        mask = None if read.mask is None else read.mask.to(read.data.dtype)
        return read.data, mask, image.overlap(cells_there)
    image = image.smoothed_to(frame.spacing.min())
    index = _index_in(image, frame, transform)
    mask = None if image.mask is None else sample(image.mask.to(image.data.dtype), index, "nearest", fill=0.0)
    return sample(image.data, index), mask, inside(_index_in(image, cells, transform), image.grid.shape)[:, None]


def _padded(image, grid):
    """``image`` on ``grid`` by repeating its border, where the lattices coincide and ``grid`` holds all of it; else None."""
    lower = np.round(grid.world_to_index(image.grid.origin)).astype(int)
    upper = np.array(grid.size) - lower - np.array(image.grid.size)
    if (lower < 0).any() or (upper < 0).any() or not grid.crop(lower, lower + np.array(image.grid.size)).same_as(image.grid):
        return None
    margin = [int(m) for pair in zip(lower, upper) for m in pair]
    mask = None if image.mask is None else F.pad(image.mask, margin)
    return replace(image, data=F.pad(image.data, margin, mode="replicate"), mask=mask, grid=grid)


def _index_in(image, grid, transform):
    """(1, *S, dim) where ``transform`` takes the voxels of ``grid`` in the lattice of ``image``."""
    blank = Image(torch.zeros((1, 1, *grid.shape), dtype=torch.float32, device=image.device), grid)
    return Alignment(blank, image, transform).moving_index


def label_features(labels: Labels, values, frame: Grid, transform: Transform, block, weight: float) -> torch.Tensor:
    """One channel (1, len(values), *cells) per label: its share of each block, times the square root of ``weight``."""
    if isinstance(transform, (Affine, Identity)):
        data = resample(labels.data, labels.grid, frame.moved(linear_part(transform).numpy()), "nearest", fill=0.0)
    else:
        data = sample(labels.data, _index_in(labels, frame, transform), "nearest", fill=0.0)
    return torch.cat([nd.average_pool((data == value).float(), block) for value in values], 1) * weight**0.5


def between(field: torch.Tensor, source: Grid, target: Grid) -> torch.Tensor:
    """A field (1, dim, *S) in cells of ``source`` as one in cells of ``target``, a lattice of the same directions."""
    ratio = torch.as_tensor(source.spacing / target.spacing, dtype=field.dtype, device=field.device)
    return resample(field, source, target) * ratio.reshape(1, -1, *[1] * source.dim)


def to_displacement(field: torch.Tensor, grid: Grid) -> Displacement:
    """A field (1, dim, *S) in cells of ``grid`` as a transform in mm, with a ring of repeated border cells, so that it falls to 0 outside."""
    matrix = torch.as_tensor(grid.matrix.copy(), dtype=field.dtype, device=field.device)
    ring = [int(n > 1) for n in grid.size]
    wide = F.pad(field, [m for r in ring for m in (r, r)], mode="replicate")
    return Displacement(torch.einsum("ij,bj...->bi...", matrix, wide), grid.pad(ring))


def shown(monitor, initial: Transform, grid: Grid):
    """A function of a field in cells that previews ``initial`` after it: each where somebody looks, else every tenth."""
    count = itertools.count()

    def preview(field):
        if next(count) % 10 == 0 or monitor.wants_preview:
            monitor.preview(initial @ to_displacement(field, grid))

    return preview
