"""Where the search for a set of slices begins: at its headers, at the visual hull of a bone, or at a stack made of the slices.

Hull. Every slice's segment is the cross section of a prism along the slice's normal; the bone lies in the intersection of the prisms (shape
from silhouette with an orthographic camera, as in the report of ``methods/qmri.py``; Laurentini, PAMI 1994). The hull is brought
to the bone of the volume by centroids and principal axes, in all of their four directions and in that of the headers; then its surface, and
last the contours of the segments themselves, which lie on the bone's surface, slide to one level b of the bone's signed distance D: the
mean of sqrt((D - b)^2 + s^2) - s is lowered, s the spacing. The level is the median of D, at most s from 0: segments of one hand, or of one
forest, are all a little too small or too large, and contours that are pushed to 0 all the same make up for it by sliding along the bone.

Stack. Around a common axis the slices are interpolated by angle into a volume, which the global search by gradient directions
(``global_rigid``) aligns with the volume without any start.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import binary_erosion, distance_transform_edt

from ..errors import InputError
from ..geometry import Grid
from ..image import Image
from ..ops.sample import sample
from .search import minimise
from .slices import centre_of, common_axis, normal_of, rigid

HULL_VOXELS = 64
"""Along the longest edge of the hull."""
MOST_POINTS = 3000


def hull_start(problem, monitor) -> tuple[np.ndarray, float]:
    """((4, 4) slice mm -> volume mm, mean distance of the contours from one level of the bone's signed distance in mm).

    InputError for planes without a common axis, whose prisms have no bounded intersection, and for segments without a common part.
    """
    if common_axis([s.grid for s in problem.slices]) is None:
        raise InputError("the slices are parallel, so their prisms enclose no hull; start from the headers, or give slices of several directions")
    spacing = max(float(problem.volume_segment.grid.spacing.max()), 1e-3)
    signed = signed_distance(problem.volume_segment)
    grid, inside = visual_hull(problem)
    if not inside.any():
        raise InputError("the prisms of the segments have no common part; check that each segment lies on its slice, or leave the segments out")
    surface = thinned(grid.points()[inside & ~binary_erosion(inside)])
    contours = thinned(np.concatenate([contour_points(s) for s in problem.segments]))
    if len(contours) < 20:
        raise InputError(f"the segments have {len(contours)} contour points in all, at least 20 are needed; draw the whole bone on the slices")
    bone = problem.volume_segment
    starts = moment_starts(grid.points()[inside], bone.grid.points()[bone.data[0, 0].cpu().numpy() > 0])
    best = None
    for k in monitor.steps(len(starts), "visual hull"):
        matrix = slide(signed, surface, starts[k], spacing, 15, monitor.part(0, 0))
        matrix = slide(signed, contours, matrix, spacing, 40, monitor.part(0, 0))
        away = distances(signed, contours, matrix)
        away = float(np.abs(away - np.clip(np.median(away), -spacing, spacing)).mean())  # not squares: learned segments have a few outliers
        best = (matrix, away) if best is None or away < best[1] else best
    return best


def visual_hull(problem) -> tuple[Grid, np.ndarray]:
    """(lattice in slice mm, (z, y, x) True inside all prisms)."""
    marked = np.concatenate([s.grid.points()[s.data[0, 0].cpu().numpy() > 0] for s in problem.segments])
    low, high = marked.min(0), marked.max(0)
    spacing = float((high - low).max() / HULL_VOXELS)
    size = np.ceil((high - low) / spacing).astype(int) + 3
    grid = Grid.from_parts(tuple(size[::-1]), spacing, low - spacing)
    points, inside = grid.points(), np.ones(grid.shape, bool)
    for segment in problem.segments:
        inside &= in_prism(segment, points)
    return grid, inside


def in_prism(segment, points) -> np.ndarray:
    """(...) True where points (..., 3) mm, carried along the normal, meet the segment."""
    index = segment.grid.world_to_index(points)
    size, axis = np.array(segment.grid.size), segment.grid.size.index(1)
    index[..., axis] = 0
    nearest = np.floor(index + 0.5).astype(int)
    valid = ((nearest >= 0) & (nearest < size)).all(-1)
    nearest = nearest.clip(0, size - 1)
    return valid & (segment.data[0, 0].cpu().numpy()[nearest[..., 2], nearest[..., 1], nearest[..., 0]] > 0)


def contour_points(segment) -> np.ndarray:
    """(N, 3) mm: pixels on the segment's outline, without those on the border of the picture, where the bone goes on."""
    axis = 2 - segment.grid.size.index(1)
    flat = np.take(segment.data[0, 0].cpu().numpy() > 0, 0, axis)
    edge = flat & ~binary_erosion(flat, border_value=1)
    return segment.grid.points()[np.expand_dims(edge, axis)]


def thinned(points) -> np.ndarray:
    return points[:: max(1, -(-len(points) // MOST_POINTS))]


def signed_distance(segment) -> Image:
    """mm to the surface of the segment, negative inside, on its grid."""
    inside, spacing = segment.data[0, 0].cpu().numpy() > 0, segment.grid.spacing[::-1]
    outer, inner = distance_transform_edt(~inside, spacing), distance_transform_edt(inside, spacing)
    half = float(segment.grid.spacing.mean()) / 2
    values = np.where(inside, half - inner, outer - half)
    return Image(torch.as_tensor(values, dtype=torch.float32)[None, None], segment.grid, name="distance")


def moment_starts(points, bone) -> list[np.ndarray]:
    """(4, 4) maps of the hull's ``points`` (N, 3) onto the ``bone`` (M, 3): that of the headers' directions, and the four of the principal axes."""
    middle, target = points.mean(0), bone.mean(0)
    axes = [np.linalg.eigh(np.cov(p.T))[1] for p in (points, bone)]
    turns = [np.eye(3)]
    for signs in ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)):
        turn = axes[1] @ np.diag(signs) @ axes[0].T
        turns.append(turn if np.linalg.det(turn) > 0 else axes[1] @ np.diag(np.multiply(signs, -1)) @ axes[0].T)
    starts = []
    for turn in turns:
        m = np.eye(4)
        m[:3, :3], m[:3, 3] = turn, target - turn @ middle
        starts.append(m)
    return starts


def distances(signed: Image, points, matrix) -> np.ndarray:
    """(N,) signed distance of the images of ``points`` (N, 3) mm, mm; outside the field of view that of its border and the way to it."""
    index = signed.grid.world_to_index(points @ matrix[:3, :3].T + matrix[:3, 3])
    inside = index.clip(0, np.array(signed.grid.size) - 1)
    read = sample(signed.data, torch.as_tensor(index, dtype=torch.float32)[None])[0, 0].numpy()
    return read + np.linalg.norm((index - inside) @ signed.grid.matrix.T, axis=-1)


def slide(signed: Image, points, matrix, spacing: float, iterations: int, monitor) -> np.ndarray:
    """(4, 4) the rigid map near ``matrix`` that brings ``points`` (N, 3) mm to one level of ``signed``, at most ``spacing`` from 0."""
    centre = points.mean(0)
    offsets = points - centre
    radius = float(np.sqrt((offsets**2).sum(1).mean()))

    def evaluate(m):
        index = torch.as_tensor(signed.grid.world_to_index(points @ m[:3, :3].T + m[:3, 3]), dtype=torch.float32)[None].requires_grad_(True)
        with torch.enable_grad():
            read = sample(signed.data, index)[0, 0]
            read = read - read.detach().median().clamp(-spacing, spacing)
            cost = (read.square() + spacing**2).sqrt().mean() - spacing
        (slope,) = torch.autograd.grad(cost, index)
        push = slope[0].double().numpy() @ (signed.grid.inverse_affine[:3, :3] @ m[:3, :3])
        return float(cost.detach()), np.r_[push.sum(0), np.cross(offsets, push).sum(0) / radius]

    def move(m, q):
        return m @ rigid(q[:3], q[3:] / radius, centre)

    return minimise(evaluate, np.asarray(matrix), move, np.eye(6), longest=6 * spacing, tolerance=0.02 * spacing, iterations=iterations,
                    monitor=monitor, text="surface")[0]


def stack_of(problem) -> Image:
    """A volume (with its mask) made of the slices around their axis: between two planes their values are mixed by angle.

    InputError for planes without a common axis.
    """
    axis = problem.axis if problem.axis is not None else common_axis([s.grid for s in problem.slices])
    if axis is None:
        raise InputError("the slices are parallel and have no common axis to make a stack around; search from the headers instead")
    point, direction = axis
    edge = max(s.grid.extent.max() for s in problem.slices)
    count = 48
    grid = Grid.from_parts((count,) * 3, edge / count, centre_of(problem) - edge / 2 + edge / count / 2)
    points = grid.points()
    along = (points - point) @ direction
    across = points - point - along[..., None] * direction
    radius, total, weight = np.linalg.norm(across, axis=-1), np.zeros(grid.shape), np.zeros(grid.shape)
    for image in problem.slices:
        u = np.cross(direction, normal_of(image.grid))
        u /= np.linalg.norm(u)
        inside_plane = across @ u
        angle = np.arccos(np.clip(np.abs(inside_plane) / np.maximum(radius, 1e-9), 0, 1))
        place = point + along[..., None] * direction + (np.sign(inside_plane) * radius)[..., None] * u
        index = torch.as_tensor(image.grid.world_to_index(place), dtype=torch.float32)[None]
        index[..., image.grid.size.index(1)] = 0
        share = np.maximum(0, 1 - angle * len(problem.slices) / np.pi) * (sample(torch.ones_like(image.data), index, fill=0.0)[0, 0].numpy() > 0)
        total += share * sample(image.data.float(), index)[0, 0].numpy()
        weight += share
    mask = torch.as_tensor(weight > 0.05)[None, None]
    return Image(torch.as_tensor(total / np.maximum(weight, 0.05), dtype=torch.float32)[None, None], grid, mask, "stack of the slices")
