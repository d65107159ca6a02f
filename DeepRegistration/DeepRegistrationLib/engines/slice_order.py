"""Which picture belongs on which plane, and whether it is mirrored there: found together with the pose of the set.

For a pose, every plane j of the set is emulated from the volume, and every picture i is compared with it in each of its four directions f
(as it is, mirrored along u, along v, or both). The joint histograms of all i, j, f at once are one product of indicator matrices,
h(i, f; j) = R_if^T C_j with R and C the pixels' bins. The placement is the assignment of pictures to planes with the largest sum of normalized
mutual information (Kuhn 1955), and a pose is worth the normalized mutual information of the added histograms of its placement. As in
``slice_search`` poses that fill the reach are scored, and the best of them alternate between a quasi-Newton search and a new placement.

A turn by the angle between planes and a cyclic shift of the order are one and the same; of two that are equally good, the one
that changes fewer slices is taken, then the smaller motion.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from ..errors import InputError
from ..geometry import Grid
from ..ops.sample import sample
from ..runtime import fewer_threads
from . import sampled
from .slice_search import SliceSettings, apart, distance, longest_edge, out_of_reach, reach_of, spread_poses
from .slices import SliceLevel, build_levels, normalised_information, placed_about, refine

FLIPS = ((False, False), (True, False), (False, True), (True, True))
"""(along u, along v) of the directions that are tried; u runs along rows of pixels, v from row to row."""
BINS = 12
SAME = 0.02
"""Share of the size of a set that two maps of it may differ by and count as one."""
TIE = 2e-3
"""Relative difference of costs up to which two placements count as equally good."""


@dataclass(frozen=True)
class Placement:
    """Picture i lies on the plane of the header ``plane[i]``, mirrored by ``flips[i]`` (along u, along v); ``matrix`` (4, 4) the pose that it was found
    with, its ``cost``; ``margin`` (S,) how much better each picture fits there than at its next best place, normalized mutual information."""

    plane: tuple[int, ...]
    flips: tuple[tuple[bool, bool], ...]
    matrix: np.ndarray
    cost: float
    margin: tuple[float, ...] = ()

    @property
    def is_as_given(self) -> bool:
        """True where every picture is where its header says."""
        return self.plane == tuple(range(len(self.plane))) and not any(any(f) for f in self.flips)


def mirrored(grid: Grid, flip: tuple[bool, bool]) -> Grid:
    """The one-slice ``grid`` whose pixels run the other way along u and v; one mirrored axis turns the normal, so that it stays a rotation."""
    keep = [n for n in range(3) if grid.size[n] != 1]
    signs = np.ones(3)
    signs[keep] = np.where(flip, -1.0, 1.0)
    signs[grid.size.index(1)] = signs.prod()
    affine = grid.affine.copy()
    affine[:3, :3] = grid.matrix * signs
    affine[:3, 3] = grid.centre - affine[:3, :3] @ ((np.array(grid.size) - 1) / 2)
    return Grid(grid.shape, affine)


def moves_of(problem, placement: Placement) -> np.ndarray:
    """(S, 4, 4) rigid motion of every picture from where its header has it to where it is placed, mm: middle to middle, as large and as thick as it is."""
    out = []
    for image, plane, flip in zip(problem.slices, placement.plane, placement.flips):
        there, target = mirrored(problem.slices[plane].grid, flip), np.eye(4)
        target[:3, :3] = there.direction * image.grid.spacing
        if np.linalg.det(target[:3, :3]) * np.linalg.det(image.grid.matrix) < 0:
            target[:3, image.grid.size.index(1)] *= -1
        target[:3, 3] = there.centre - target[:3, :3] @ ((np.array(image.grid.size) - 1) / 2)
        out.append(target @ image.grid.inverse_affine)
    return np.stack(out)


def mirrors_the_set(slices, moves) -> bool:
    """True where the ``moves`` (S, 4, 4) of the slices are together a mirror image of the whole set, and no rigid motion of it."""
    corners = [image.grid.points().squeeze(image.grid.shape.index(1))[[0, 0, -1, -1], [0, -1, 0, -1]] for image in slices]
    before = np.concatenate(corners)
    after = np.concatenate([points @ move[:3, :3].T + move[:3, 3] for points, move in zip(corners, moves)])
    before, after = before - before.mean(0), after - after.mean(0)
    u, _, v = np.linalg.svd(before.T @ after)
    left = [np.abs(before @ (u * [1, 1, side * np.linalg.det(u @ v)]) @ v - after).max() for side in (1, -1)]
    return bool(left[1] < SAME * np.abs(before).max() < left[0])


def groups_of_one_size(slices) -> list[list[int]]:
    """The numbers of the one-slice images that have as many pixels of one size, to a hundredth: only these can have been exchanged."""
    groups = []
    for k, image in enumerate(slices):
        group = next((group for group in groups if _same_size(slices[group[0]].grid, image.grid)), None)
        if group is None:
            groups.append([k])
        else:
            group.append(k)
    return groups


def _same_size(one: Grid, other: Grid) -> bool:
    wide = np.array(one.size) != 1
    return one.shape == other.shape and np.allclose(one.spacing[wide], other.spacing[wide], rtol=0.01)


def moves_about(images, axis, degrees: float, pixel=None) -> np.ndarray:
    """(S, 4, 4) motion of one-slice ``images`` from where their headers have them to where ``placed_about`` has them: slice k turned by k * ``degrees``
    about ``axis`` (point, direction), and stretched in its plane where ``pixel`` (2,) mm takes the place of the header's pixels. InputError where the
    slices are more than a whole turn, or not apart at all."""
    if not 0 < abs(degrees) * len(images) <= 360:
        raise InputError(f"slices {degrees:g} degrees apart were asked for, {len(images)} of them; give the angle between neighbors, for six slices 30")
    out = []
    for k, image in enumerate(images):
        target, flat = placed_about(image, axis, k * degrees, pixel=pixel).grid.affine.copy(), image.grid.size.index(1)
        header = image.grid.affine[:, [*(n for n in range(3) if n != flat), flat, 3]]
        if np.linalg.det(target[:3, :3]) * np.linalg.det(header[:3, :3]) < 0:
            target[:3, 2] *= -1
        out.append(target @ np.linalg.inv(header))
    return np.stack(out)


def moved(problem, moves):
    """The problem with every slice (and its segment) carried along its motion of ``moves`` (S, 4, 4)."""
    slices = tuple(replace(image, grid=image.grid.moved(m)) for image, m in zip(problem.slices, moves))
    segments = problem.segments and tuple(replace(image, grid=image.grid.moved(m)) for image, m in zip(problem.segments, moves))
    return replace(problem, slices=slices, segments=segments)


def placed(problem, placement: Placement):
    """The problem with every picture where ``placement`` has it."""
    return moved(problem, moves_of(problem, placement))


class Table:
    """The pictures of a level as indicators of their bins, in every direction, to be compared with all planes at a pose."""

    def __init__(self, level: SliceLevel, slices, order: bool, flips: bool):
        """``slices`` on this level; ``order`` and ``flips`` say what may be changed."""
        self.level, shapes = level, shapes_at(slices, level.spacing)
        groups = groups_of_one_size(slices) if order else [[k] for k in range(level.count)]
        self.groups = [[k for k in group if shapes[k] == shape] for group in groups for shape in sorted({shapes[k] for k in group})]
        self.free = np.zeros((level.count, level.count), bool)
        for group in self.groups:
            self.free[np.ix_(group, group)] = True
        self.flips = FLIPS if flips else FLIPS[:1]
        self.pictures = [self._turned(level.values[0], s, shape) for s, shape in enumerate(shapes)]
        self.masks = None if level.counted is None else [self._turned(level.counted, s, shape) for s, shape in enumerate(shapes)]
        self.rows = [self._indicators(k) for k in range(len(shapes))]
        self.rows_of_groups = [torch.cat([self.rows[k] for k in group], 1) for group in self.groups]
        self.total = sum(float(r.sum()) / len(self.flips) for r in self.rows)

    def _turned(self, values, s, shape):
        """(F, P) the picture of slice ``s`` in every direction."""
        picture = values[self.level.bounds[s]:self.level.bounds[s + 1]].reshape(shape)
        return torch.stack([picture.flip([a for a, on in ((1, u), (0, v)) if on]).flatten() for u, v in self.flips])

    def _indicators(self, s):
        """(P, F * BINS)."""
        bins = (self.pictures[s] * BINS).long().clamp(0, BINS - 1)
        marks = torch.nn.functional.one_hot(bins, BINS).float()
        marks = marks if self.masks is None else marks * self.masks[s][..., None]
        return marks.movedim(0, 1).flatten(1)

    def tables(self, matrix) -> np.ndarray:
        """(S pictures, S planes, F, BINS, BINS) joint histograms at the map ``matrix`` of the set, filled where a picture may lie on a plane."""
        level, count = self.level, self.level.count
        out = np.zeros((count, count, len(self.flips), BINS, BINS))
        with torch.no_grad():
            index = level.index(level.index_matrices(matrix)).mean(0)
            read = sample(level.stack, index[None])[0]
            size = torch.tensor(level.grid.size, dtype=index.dtype, device=index.device)
            inside = ((index >= -0.5) & (index <= size - 0.5)).all(-1)
            inside = inside if len(read) == 1 else inside & (read[1] > 0.5)
            columns = torch.nn.functional.one_hot((read[0] * BINS).long().clamp(0, BINS - 1), BINS).float() * inside[:, None]
            spans = list(level.spans())
            for group, rows in zip(self.groups, self.rows_of_groups):
                planes = torch.cat([columns[slice(*spans[k])] for k in group], 1)
                found = (rows.T @ planes).reshape(len(group), len(self.flips), BINS, len(group), BINS)
                out[np.ix_(group, group)] = found.permute(0, 3, 1, 2, 4).double().cpu().numpy()
        return out

    def place(self, matrix) -> tuple[Placement, float]:
        """(the best placement at a pose, its overlap)."""
        tables = self.tables(matrix)
        single = normalised_information(tables)
        best = single.max(2)
        plane = linear_sum_assignment(np.where(self.free, -best, 1.0))[1]
        picks = [(i, j, int(single[i, j].argmax())) for i, j in enumerate(plane)]
        total = sum(tables[p] for p in picks)
        placement = Placement(tuple(int(j) for j in plane), tuple(self.flips[f] for _, _, f in picks), np.asarray(matrix),
                              1 - float(normalised_information(total)), tuple(self._margin(single, p) for p in picks))
        return placement, float(total.sum() / max(self.total, 1e-9))

    def _margin(self, single, pick) -> float:
        others = np.where(self.free[pick[0], :, None], single[pick[0]], -np.inf)
        others[pick[1:]] = -np.inf
        return float(single[pick] - others.max()) if np.isfinite(others).any() else 1.0

    def shown(self, placement: Placement) -> SliceLevel:
        """The level with the pictures on the planes as placed."""
        where = np.argsort(placement.plane)
        chosen = [(i, self.flips.index(placement.flips[i])) for i in where]
        values = torch.cat([self.pictures[i][f] for i, f in chosen])[None]
        counted = None if self.masks is None else torch.cat([self.masks[i][f] for i, f in chosen])
        return replace(self.level, values=values, counted=counted, measure=sampled.Information(values, 16))


def shapes_at(slices, spacing: float) -> list[tuple[int, int]]:
    """(rows, columns) of every slice on the level of ``spacing`` mm."""
    grids = [s.grid.resample(np.maximum(spacing, s.grid.spacing)) for s in slices]
    return [tuple(n for n, size in zip(g.shape, g.size[::-1]) if size != 1) for g in grids]


def find_placement(problem, starts, settings: SliceSettings, order: bool, flips: bool, runtime, monitor) -> Placement:
    """The best placement within reach of ``starts`` (4, 4) slice mm -> volume mm. InputError where no pose brings the slices into the volume, and
    where the ``order`` of slices is asked for that all have different sizes."""
    if order and len(groups_of_one_size(problem.slices)) == len(problem.slices):
        raise InputError("the order of slices of different sizes was asked for, of which none can have been exchanged; let only the directions be found")
    device = runtime.torch_device()
    device = torch.device("cpu") if device.type == "mps" else device
    spacings = [longest_edge(problem) / 28, longest_edge(problem) / 44]
    levels = build_levels(problem, spacings, "mi", settings.profile, device)
    coarse, fine = (Table(level, problem.slices, order, flips) for level in levels)
    with fewer_threads(levels[-1].points.shape[1]):
        poses = spread_poses(levels[0], starts, settings.tried, *reach_of(problem, settings))
        scored, batch = [], 50
        for k in monitor.part(0.0, 0.6).steps(-(-len(poses) // batch), f"order and directions, {len(poses)} poses"):
            for matrix in poses[k * batch:(k + 1) * batch]:
                placement, overlap = coarse.place(matrix)
                if overlap >= coarse.level.lowest:
                    scored.append((placement, -(1 - placement.cost) * overlap))
        if not scored:
            raise out_of_reach(problem)
        kept = _apart(coarse.level, scored, settings.kept[0], 2 * coarse.level.spacing)
        kept = [_alternate(coarse, p, monitor.part(0.6 + 0.3 * n / len(kept), 0.6 + 0.3 * (n + 1) / len(kept))) for n, p in enumerate(kept)]
        kept = _apart(coarse.level, [(p, p.cost) for p in kept], 6, coarse.level.spacing)
        kept = [_alternate(fine, p, monitor.part(0.9 + 0.1 * n / len(kept), 0.9 + 0.1 * (n + 1) / len(kept))) for n, p in enumerate(kept)]
    return _preferred(fine.level, kept, starts[0])


def _apart(level, scored, count, least) -> list[Placement]:
    """As ``slice_search.apart``; the same pose with another placement counts as the same."""
    by_matrix = {id(p.matrix): p for p, _ in scored}
    return [by_matrix[id(matrix)] for matrix, _ in apart(level, [(p.matrix, c) for p, c in scored], count, least)]


def _alternate(table: Table, placement: Placement, monitor) -> Placement:
    """Pose and placement in turn, until the placement stays."""
    for k in range(4):
        level = table.shown(placement)
        matrix, cost = refine(level, placement.matrix, 12, monitor.part(k / 4, (k + 1) / 4), tolerance=0.05 * level.spacing)
        found = table.place(matrix)[0]
        same = (found.plane, found.flips) == (placement.plane, placement.flips)
        placement = replace(found, cost=cost)
        if same:
            break
    return placement


def _preferred(level, found: list[Placement], start) -> Placement:
    """The lowest cost; of equally good ones that which changes the fewest slices, then that which moves the set least from ``start``."""
    best = min(p.cost for p in found)

    def changes(p):
        return sum(plane != k or any(flip) for k, (plane, flip) in enumerate(zip(p.plane, p.flips))), distance(level, p.matrix, start)

    return min((p for p in found if p.cost <= best + TIE * max(1 - best, 0.05)), key=changes)


def check_placement(problem, matrix, order: bool, flips: bool, settings: SliceSettings, runtime) -> Placement:
    """The best placement at the one pose ``matrix``: a quick question whether the headers' order and directions hold there."""
    device = runtime.torch_device()
    device = torch.device("cpu") if device.type == "mps" else device
    level = build_levels(problem, [longest_edge(problem) / 44], "mi", settings.profile, device)[0]
    return Table(level, problem.slices, order, flips).place(matrix)[0]
