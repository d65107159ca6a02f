"""Values of slices carried into the volume, and read per region of a label map of the volume.

A voxel x of the volume has the value of a slice where T^-1 x lies within half of the slice's thickness (at least half a voxel) of its plane
and inside its picture: the mean of the four pixels around it, of those that are valid, weighed linearly; where several slices cross, their
mean. Values are never scaled; elsewhere, and where a slice is not valid (NaN or masked), the volume has NaN. Regions are read at the
pixels themselves, not at voxels: the label at T p, nearest neighbour.
"""

from __future__ import annotations

import numpy as np
import torch

from ..geometry import Grid
from ..image import Image, Labels
from ..ops.sample import sample
from .slice_bends import bent_points, unbent_points
from .slices import normal_of, thickness_of

SLAB_VOXELS = 1 << 20
MANY_ZEROS = 0.01
"""Share of the pixels in regions from which zeros are remarked on."""


def into_volume(images, matrices, grid: Grid, thickness: float, monitor, name: str = "map", bends=()) -> Image:
    """The ``images`` (one-slice, NaN or masked where they have no value) on ``grid`` (volume mm), float32 with NaN where there is none.

    matrices (S, 4, 4) slice mm -> volume mm; thickness mm, 0 for that of the headers; bends: the small deformations of the slices before.
    """
    out = np.full(grid.shape, np.nan, np.float32)
    deep = max(1, SLAB_VOXELS // int(np.prod(grid.shape[1:])))
    slices = [_Reader(image, np.linalg.inv(m), grid, thickness, bend) for image, m, bend in zip(images, matrices, bends or [None] * len(images))]
    for k in monitor.steps(-(-grid.shape[0] // deep), name):
        lower, upper = np.zeros(3, int), np.array(grid.size)
        lower[2], upper[2] = k * deep, min((k + 1) * deep, grid.shape[0])
        part = grid.crop(lower, upper)
        total, count = np.zeros(part.shape), np.zeros(part.shape)
        for reader in slices:
            reader.add(part, total, count)
        with np.errstate(invalid="ignore", divide="ignore"):
            out[lower[2]:upper[2]] = np.where(count > 0, total / count, np.nan)
    return Image(torch.as_tensor(out)[None, None], grid, name=name)


class _Reader:
    """A slice that gives its values to voxels of the volume."""

    def __init__(self, image: Image, matrix, grid: Grid, thickness: float, bend):
        """``matrix`` (4, 4) volume mm -> slice mm."""
        self.grid, self.matrix, self.bend = image.grid, matrix, bend
        valid = torch.isfinite(image.data) if image.mask is None else torch.isfinite(image.data) & image.mask
        self.data = torch.cat([torch.where(valid, image.data, 0.0).float(), valid.float()], 1)
        self.half = max(thickness or thickness_of(image.grid), float(grid.spacing.max())) / 2
        self.normal = normal_of(image.grid)

    def add(self, part: Grid, total, count) -> None:
        """Add value and 1 to ``total`` and ``count`` (z, y, x) at the voxels of ``part`` that lie in the slice."""
        across = self.normal @ self.matrix[:3, :3] @ part.matrix
        start = self.normal @ (self.matrix[:3, :3] @ part.origin + self.matrix[:3, 3] - self.grid.centre)
        z, y, x = (np.arange(n, dtype=float) * c for n, c in zip(part.shape, across[::-1]))
        near = np.argwhere(np.abs(start + z[:, None, None] + y[:, None] + x) <= self.half)
        if not len(near):
            return
        world = part.index_to_world(near[:, ::-1]) @ self.matrix[:3, :3].T + self.matrix[:3, 3]
        index = self.grid.world_to_index(unbent_points(self.bend, world))
        index[:, self.grid.size.index(1)] = 0
        value, weight = sample(self.data, torch.as_tensor(index, dtype=torch.float32)[None], padding="border", fill=0.0)[0].double().numpy()
        good = weight > 0.5
        where = tuple(near[good].T)
        total[where] += value[good] / weight[good]
        count[where] += 1


def region_rows(images, matrices, labels: Labels, name: str, unit: str, bends=()) -> list[dict]:
    """One dict a region that the valid pixels of ``images`` meet: map, unit, label, region, pixels, mean, sd, median, p05, p95, area in mm2 of the volume,
    and how many of the pixels are exactly 0."""
    values, marks, areas = [], [], []
    for image, matrix, bend in zip(images, matrices, bends or [None] * len(images)):
        valid = torch.isfinite(image.data) if image.mask is None else torch.isfinite(image.data) & image.mask
        keep = valid[0, 0].numpy()
        points = bent_points(bend, image.grid.points()[keep]) @ matrix[:3, :3].T + matrix[:3, 3]
        index = torch.as_tensor(labels.grid.world_to_index(points), dtype=torch.float32)[None]
        marks.append(sample(labels.data, index, "nearest", fill=0.0)[0, 0].numpy().astype(int))
        values.append(image.data[0, 0].numpy()[keep].astype(float))
        area = np.linalg.norm(np.cross(*(matrix[:3, :3] @ np.delete(image.grid.matrix, image.grid.size.index(1), 1)).T))
        areas.append(np.full(keep.sum(), area))
    values, marks, areas = (np.concatenate(parts) for parts in (values, marks, areas))
    names, rows = dict(labels.names), []
    for label in np.unique(marks[marks != 0]):
        v = values[marks == label]
        low, middle, high = np.percentile(v, [5, 50, 95])
        rows.append({"map": name, "unit": unit, "label": int(label), "region": names.get(int(label), ""), "pixels": len(v), "mean": v.mean(),
                     "sd": v.std(ddof=1) if len(v) > 1 else float("nan"), "median": middle, "p05": low, "p95": high,
                     "area_mm2": areas[marks == label].sum(), "zeros": int((v == 0).sum())})
    return rows


def remarks_on(rows: list[dict], where: str, remedy: str) -> list[str]:
    """What a reader of the ``rows`` of ``region_rows`` has to know: that no pixel lies in a region of ``where``, and maps with more than
    ``MANY_ZEROS`` of their pixels exactly 0, as fits leave them that have failed, with the ``remedy``."""
    if not rows:
        return [f"no pixel of the slices lies in a region of {where}, so the table of values is empty; check that it belongs to the volume"]
    told = []
    for name in dict.fromkeys(row["map"] for row in rows):
        zeros, pixels = (sum(row[key] for row in rows if row["map"] == name) for key in ("zeros", "pixels"))
        if zeros > MANY_ZEROS * pixels:
            told.append(f"{zeros} of the {pixels} pixels of '{name}' in the regions are exactly 0 and count as values; if 0 says that there is none, {remedy}")
    return told
