"""Images and label maps: tensors on a Grid. They know nothing of files or of Slicer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from .errors import InputError
from .geometry import Grid
from .ops.filters import coarsened, resolution_sigma
from .ops.sample import index_points, inside, resample


LOW = 0.1
"""Share of the voxels at the border of an image that may lie below its background."""

FEWEST = 1e-4
"""Share of the voxels that have to hold a number for an image to be used."""


@dataclass(frozen=True, eq=False)
class Image:
    """Intensities ``data`` (B, C, *S) on ``grid``; ``mask`` (B, 1, *S) bool marks the voxels that count, None means all."""

    data: torch.Tensor
    grid: Grid
    mask: torch.Tensor | None = None
    name: str = "image"

    def __post_init__(self):
        if self.data.ndim != self.grid.dim + 2 or tuple(self.data.shape[2:]) != self.grid.shape:
            raise InputError(f"{self.name}: values of shape {tuple(self.data.shape)} do not fit a grid of {self.grid.shape}; (B, C, *S) is needed")
        if self.mask is not None and (self.mask.ndim != self.data.ndim or tuple(self.mask.shape[2:]) != self.grid.shape):
            raise InputError(f"{self.name}: its mask has {tuple(self.mask.shape[2:])} voxels, the image {self.grid.shape}; resample the mask first")
        if self.mask is None:
            return
        if self.mask.dtype != torch.bool or self.mask.shape[1] != 1 or self.mask.shape[0] not in (1, self.data.shape[0]):
            raise InputError(f"{self.name}: a mask of {tuple(self.mask.shape)} {self.mask.dtype} was given; "
                             "one channel of true and false is needed")

    @property
    def dim(self) -> int:
        return self.grid.dim

    @property
    def device(self):
        return self.data.device

    def to(self, device=None, dtype=None) -> "Image":
        mask = None if self.mask is None else self.mask.to(device)
        return replace(self, data=self.data.to(device=device, dtype=dtype), mask=mask)

    def with_mask(self, mask) -> "Image":
        """The image with ``mask`` given as a tensor or as a Labels image (resampled to this grid, > 0 counts)."""
        if isinstance(mask, Image):
            if mask.dim != self.dim or mask.data.shape[1] != 1:
                raise InputError(f"the mask of {self.name} is {mask.dim}D with {mask.data.shape[1]} channels; "
                                 f"{self.dim}D with one channel is needed")
            mask = resample(mask.data.float(), mask.grid, self.grid, "nearest", fill=0.0) > 0
            if not bool(mask.any()):
                raise InputError(f"the mask of {self.name} has no voxel inside the image; check that it belongs to this image")
        return replace(self, mask=mask if mask is None or mask.dtype == torch.bool else mask > 0)

    @property
    def background(self) -> float:
        """The value of places that an image says nothing of: 0, or where its border lies below 0, a low value there.

        Around a CT lies air, and 0 would be water; maps with values below 0 inside have 0 around them, as other images do.
        """
        faces = []
        for axis, n in enumerate(self.grid.shape, 2):
            ends = [self.data.select(axis, k).flatten() for k in (0, n - 1) if n > 1]
            faces += [end[end.isfinite()] for end in ends]
        border = torch.cat(faces) if faces else self.data.new_zeros(0)
        return min(0.0, float(border.kthvalue(1 + int(LOW * (len(border) - 1))).values)) if len(border) else 0.0

    def completed(self) -> "Image":
        """The image with voxels that hold no number (NaN or infinite) left out by its mask and read as its background; itself where all do.

        InputError where hardly any voxel that counts holds a number.
        """
        known = self.data.isfinite().all(1, keepdim=True)
        if bool(known.all()):
            return self
        counted = known if self.mask is None else known & self.mask
        if int(counted.sum()) <= FEWEST * counted.numel():
            raise InputError(f"{self.name} holds numbers in {int(counted.sum())} of {counted.numel()} voxels that count, the others are NaN or infinite; "
                             "check the file and its mask")
        return replace(self, data=self.data.where(known, self.background), mask=counted)

    def region(self) -> Grid:
        """The grid, cropped to the bounding box of the mask where there is one."""
        if self.mask is None:
            return self.grid
        where = self.mask[0, 0].nonzero().cpu().numpy()[:, ::-1]
        return self.grid.crop(where.min(0), where.max(0) + 1)

    def at(self, grid: Grid, mode: str = "linear", fill: float | None = 0.0) -> "Image":
        """The image on another grid, without smoothing; ``fill`` outside its field of view."""
        mask = None if self.mask is None else resample(self.mask.float(), self.grid, grid, "nearest", fill=0.0) > 0.5
        return replace(self, data=resample(self.data, self.grid, grid, mode, fill), grid=grid, mask=mask)

    def smoothed_to(self, spacing) -> "Image":
        """The image at about ``spacing`` mm over the same field of view, smoothed against aliasing (never upsampled)."""
        grid = self._coarser(spacing)
        if grid.shape == self.grid.shape:
            return self
        data = coarsened(self.data, grid.size, resolution_sigma(self.grid.spacing, grid.spacing))
        mask = None if self.mask is None else resample(self.mask.float(), self.grid, grid, "nearest", fill=0.0) > 0.5
        return replace(self, data=data, grid=grid, mask=mask)

    def _coarser(self, spacing) -> Grid:
        return self.grid.resample(np.maximum(np.asarray(spacing, float), self.grid.spacing))

    def overlap(self, grid: Grid) -> torch.Tensor:
        """(1, 1, *S) True on the voxels of ``grid`` that lie in this image's field of view."""
        return inside(index_points(grid, self.grid, device=self.device), self.grid.shape)[:, None]


@dataclass(frozen=True, eq=False)
class Labels(Image):
    """A label map: whole numbers (B, 1, *S), 0 is background; always resampled by nearest neighbour."""

    name: str = "labels"
    names: tuple[tuple[int, str], ...] = ()
    background = 0.0

    def values(self) -> list[int]:
        """The labels that occur, without 0."""
        return [int(v) for v in torch.unique(self.data) if int(v) != 0]

    def at(self, grid: Grid, mode: str = "nearest", fill: float | None = 0.0) -> "Labels":
        if mode != "nearest":
            raise InputError(f"labels cannot be resampled with '{mode}'; use 'nearest'")
        return replace(self, data=resample(self.data, self.grid, grid, "nearest", fill), grid=grid, mask=None)

    def smoothed_to(self, spacing) -> "Labels":
        """The labels at about ``spacing`` mm over the same field of view, by nearest neighbour (never upsampled)."""
        grid = self._coarser(spacing)
        return self if grid.shape == self.grid.shape else self.at(grid, fill=None)


def matched(fixed: Labels | None, moving: Labels | None) -> tuple[Labels | None, Labels | None]:
    """Two label maps with the structures that both name, under the values of ``fixed``; as they are where one of them names nothing.

    Segments are numbered in the order of their segmentation, so equal numbers mean nothing. InputError where no name is common.
    """
    if fixed is None or moving is None or not (fixed.names and moving.names):
        return fixed, moving
    mine, other = ({name: value for value, name in reversed(labels.names)} for labels in (fixed, moving))
    common = [name for _, name in fixed.names if name in other]
    if not common:
        raise InputError(f"'{fixed.name}' and '{moving.name}' have no structure of the same name ({', '.join(sorted(mine))} and "
                         f"{', '.join(sorted(other))}); give corresponding structures the same name")
    names = tuple((mine[name], name) for name in common)

    def keep(labels, values):
        data = torch.zeros_like(labels.data)
        for name in common:
            data[labels.data == values[name]] = mine[name]
        return replace(labels, data=data, names=names)

    return keep(fixed, mine), keep(moving, other)
