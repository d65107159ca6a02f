"""Values of registered slices on the surface of a structure of the volume.

The surface is that of naive surface nets (Gibson, Constrained Elastic Surface Nets, MICCAI 1998): the label map, smoothed by 0.7 voxels, changes its
sign along edges between voxels; every cell of eight voxels with such edges has one vertex, the mean of the crossings, and every crossing
joins the four cells around it. A vertex has the value of the nearest valid pixel, at its registered place, if that is at most a stated distance
away, and NaN otherwise. Values are never scaled or mixed.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import cKDTree

from ..errors import InputError
from ..image import Labels
from ..ops.filters import gaussian
from .slice_bends import bent_points

SMOOTH, PAD = 0.7, 3
"""Voxels."""


def surface_of(labels: Labels) -> tuple[np.ndarray, np.ndarray]:
    """(vertices (N, 3) mm, triangles (M, 3) that are seen counterclockwise from outside) of all that is above 0. InputError where nothing is."""
    marked = labels.data[:1, :1] > 0
    if labels.dim != 3 or not bool(marked.any()):
        raise InputError(f"{labels.name} marks nothing in a volume; give a label map of the volume that shows the structure")
    inside = gaussian(torch.nn.functional.pad(marked.float(), [PAD] * 6), SMOOTH)[0, 0].numpy() - 0.5
    corners, crossings = [], []
    for axis in range(3):
        first, second = np.take(inside, range(inside.shape[axis] - 1), axis), np.take(inside, range(1, inside.shape[axis]), axis)
        edges = np.argwhere((first > 0) != (second > 0))
        before, after = first[tuple(edges.T)], second[tuple(edges.T)]
        crossing = edges.astype(float)
        crossing[:, axis] += before / (before - after)
        one, other = np.eye(3, dtype=int)[(axis + 1) % 3], np.eye(3, dtype=int)[(axis + 2) % 3]
        around = np.stack([edges - one - other, edges - other, edges, edges - one], 1)
        corners.append(np.where((before > 0)[:, None, None], around, around[:, ::-1]))
        crossings.append(crossing)
    cells, crossings = np.concatenate(corners), np.concatenate(crossings)
    found, quads = np.unique(np.ravel_multi_index(tuple(np.moveaxis(cells, -1, 0)), inside.shape), return_inverse=True)
    quads = quads.reshape(-1, 4)
    count = np.bincount(quads.ravel(), minlength=len(found))
    middle = np.stack([np.bincount(quads.ravel(), np.repeat(crossings[:, a], 4), len(found)) for a in (2, 1, 0)], 1) / count[:, None]
    triangles = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    if np.linalg.det(labels.grid.matrix) > 0:
        triangles = triangles[:, ::-1]  # array axes run z, y, x
    return labels.grid.index_to_world(middle - PAD), triangles


def values_on(vertices, images, matrices, bends, distance: float) -> tuple[np.ndarray, np.ndarray]:
    """((N,) value of the nearest valid pixel, (N,) mm to it) of ``vertices`` (N, 3) mm, NaN where that is more than ``distance`` mm away.

    images: one-slice, NaN or masked where they have no value; matrices (S, 4, 4) slice mm -> volume mm; bends: the small deformations before.
    """
    places, values = [], []
    for image, matrix, bend in zip(images, matrices, bends or [None] * len(images)):
        valid = torch.isfinite(image.data) if image.mask is None else torch.isfinite(image.data) & image.mask
        keep = valid[0, 0].numpy()
        places.append(bent_points(bend, image.grid.points()[keep]) @ matrix[:3, :3].T + matrix[:3, 3])
        values.append(image.data[0, 0].numpy()[keep].astype(float))
    places, values = np.concatenate(places), np.concatenate(values)
    away, nearest = cKDTree(places).query(vertices, distance_upper_bound=distance)
    there = np.isfinite(away)
    return np.where(there, values[np.where(there, nearest, 0)], np.nan), np.where(there, away, np.nan)


def surface_with_values(labels: Labels, maps, matrices, bends, distance: float) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """(vertices (N, 3) mm, triangles (M, 3), name -> (N,)) of a structure; ``maps`` [(name, unit, images)], and the distance of the pixels of each."""
    vertices, triangles = surface_of(labels)
    columns = {}
    for name, unit, images in maps:
        value, away = values_on(vertices, images, matrices, bends, distance)
        columns |= {f"{name} ({unit})" if unit else name: value, f"distance of {name} (mm)": away}
    return vertices, triangles, columns
