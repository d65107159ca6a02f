"""A generated hip at any point of space, in two unlike contrasts, and sets of radial slices of it at known poses.

Femur (ball, neck, shaft, trochanter) and acetabulum with ilium are cortical shells around marrow; cartilage lies on ball and socket; muscles, fat and
the skin surround them. Shapes are signed distances in mm, so nothing is interpolated: a slice is the mean over its thickness of the contrast at
its own points. 'volume' is like a T1-weighted scan, 'slice' like a T2 map in ms, in which bright and dark are not just swapped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

from DeepRegistrationLib.engines.slices import normal_of, profile_nodes, rigid
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image, Labels
from DeepRegistrationLib.problem import Slices
from DeepRegistrationLib.transforms import Affine

AIR, FAT, MUSCLE, CORTEX, MARROW, CARTILAGE, MUSCLE2 = range(7)
CONTRAST = {"volume": (0.0, 220.0, 90.0, 25.0, 190.0, 130.0, 80.0), "slice": (0.0, 85.0, 35.0, 8.0, 62.0, 45.0, 40.0)}
FEMUR, SOCKET, CARTILAGE_LABEL = 1, 2, 3


def _ball(p, centre, radius):
    return np.linalg.norm(p - np.asarray(centre), axis=-1) - radius


def _capsule(p, a, b, radius):
    a, b = np.asarray(a, float), np.asarray(b, float)
    t = np.clip(((p - a) @ (b - a)) / ((b - a) @ (b - a)), 0, 1)
    return np.linalg.norm(p - a - t[..., None] * (b - a), axis=-1) - radius


def _joined(*parts):
    return np.minimum.reduce(parts)


@dataclass(frozen=True)
class Hip:
    """One hip; ``seed`` varies its sizes by some percent, and the texture of its tissues."""

    seed: int = 0

    def femur(self, p):
        """Signed distance of the femur, mm; the ball is around the origin, its neck points to (+x, 0, -z)."""
        s = 1 + 0.06 * np.random.default_rng(self.seed).standard_normal(6).clip(-1.5, 1.5)
        neck = np.array([38.0, 6.0, -32.0]) * s[0]
        return _joined(_ball(p, (0, 0, 0), 23 * s[1]), _capsule(p, (0, 0, 0), neck, 13 * s[2]), _ball(p, neck + [4, -4, 8], 15 * s[3]),
                       _capsule(p, neck, neck + [8, 4, -90], 14 * s[4]))

    def socket(self, p):
        """Signed distance of acetabulum and ilium, mm."""
        s = 1 + 0.06 * np.random.default_rng(self.seed + 1000).standard_normal(6).clip(-1.5, 1.5)
        shell = np.maximum(np.abs(np.linalg.norm(p, axis=-1) - 31 * s[0]) - 4, p @ np.array([0.83, -0.2, -0.52]) - 6)
        ilium = _capsule(p, (-26, 4, 24), (-40 * s[1], 18, 75), 11 * s[2])
        return _joined(shell, ilium, _capsule(p, (-30, -10, -14), (-55, -28 * s[3], -34), 8))

    def fractions(self, p) -> np.ndarray:
        """(..., 7) share of every tissue at points (..., 3) mm."""
        femur, socket = self.femur(p), self.socket(p)
        bone = np.minimum(femur, socket)
        radius = np.linalg.norm(p, axis=-1)
        cartilage = np.maximum(np.maximum(np.abs(radius - 25.5) - 2.2, p @ np.array([0.83, -0.2, -0.52]) - 10), -bone)
        muscle = _joined(_capsule(p, (30, -38, -70), (-10, -42, 60), 16), _capsule(p, (55, 10, 50), (35, 30, -60), 15),
                         _capsule(p, (-25, 40, -60), (15, 45, 40), 18))
        second = _joined(_capsule(p, (-50, -5, -70), (-12, 0, -40), 17), _capsule(p, (15, -30, 45), (60, -15, 10), 12))
        skin = np.linalg.norm((p - [5, 0, 0]) / [95, 80, 130], axis=-1) * 90 - 90
        out, left = np.zeros((*p.shape[:-1], 7)), np.ones(p.shape[:-1])
        for tissue, d in ((AIR, -skin), (MARROW, bone + 3), (CORTEX, bone), (CARTILAGE, cartilage), (MUSCLE, muscle), (MUSCLE2, second)):
            share = left / (1 + np.exp(np.clip(4 * d, -60, 60)))
            out[..., tissue] += share
            left = left - share
        out[..., FAT] = left
        return out

    def values(self, p, contrast: str) -> np.ndarray:
        """Intensity or T2 in ms at points (..., 3) mm."""
        rng = np.random.default_rng(self.seed + 7)
        texture = sum(np.sin(p @ rng.normal(0, 0.12, 3) + rng.uniform(0, 6)) for _ in range(6)) / 6
        tissues = self.fractions(p) @ np.array(CONTRAST[contrast])
        return tissues * (1 + (0.1 if contrast == "volume" else -0.06) * texture)

    def labels(self, p) -> np.ndarray:
        """0, FEMUR, SOCKET or CARTILAGE_LABEL at points (..., 3) mm."""
        femur, socket, shares = self.femur(p), self.socket(p), self.fractions(p)
        out = np.where(shares[..., CARTILAGE] > 0.5, CARTILAGE_LABEL, 0)
        return np.where(femur < 0, FEMUR, np.where(socket < 0, SOCKET, out))


def bias_of(p, seed: int, strength: float) -> np.ndarray:
    """Smooth gain around 1 at points (..., 3) mm."""
    rng = np.random.default_rng(seed + 31)
    return np.exp(strength * sum(np.sin(p @ rng.normal(0, 0.012, 3) + rng.uniform(0, 6)) for _ in range(3)) / 1.7)


def volume_grid(size: int = 64, extent: float = 170.0) -> Grid:
    """A cube around the hip, a little oblique as scans are."""
    direction = rigid(np.zeros(3), [0.04, -0.03, 0.06], np.zeros(3))[:3, :3]
    spacing = extent / size
    origin = -direction @ np.full(3, (size - 1) / 2 * spacing)
    return Grid.from_parts((size, size, size), spacing, origin, direction)


def hip_volume(hip: Hip, grid: Grid, noise: float = 4.0, bias: float = 0.1) -> Image:
    """The scan of the hip on ``grid`` with Gaussian noise (of 220 at most) and a bias field."""
    points = grid.points()
    values = hip.values(points, "volume") * bias_of(points, hip.seed, bias)
    values = values + noise * np.random.default_rng(hip.seed + 3).standard_normal(values.shape)
    return Image(torch.as_tensor(values, dtype=torch.float32)[None, None], grid, name="volume")


def radial_grids(size: int = 64, extent: float = 130.0, thickness: float = 3.0, count: int = 6, centre=(8.0, 0.0, -8.0)) -> list[Grid]:
    """``count`` planes around the axis of the neck through ``centre``, 180 / count degrees apart; v runs along the axis."""
    axis = np.array([0.76, 0.1, -0.64])
    axis /= np.linalg.norm(axis)
    first = np.cross(axis, [0.0, 1.0, 0.0])
    first /= np.linalg.norm(first)
    second = np.cross(axis, first)
    grids, spacing = [], extent / size
    for k in range(count):
        angle = np.pi * k / count
        u = np.cos(angle) * first + np.sin(angle) * second
        direction = np.stack([u, axis, np.cross(u, axis)], 1)
        origin = np.asarray(centre) - direction @ np.array([(size - 1) / 2 * spacing, (size - 1) / 2 * spacing, 0])
        grids.append(Grid.from_parts((1, size, size), [spacing, spacing, thickness], origin, direction))
    return grids


def cut(values, grid: Grid, matrix, thickness: float) -> np.ndarray:
    """(1, H, W) mean over the thickness of ``values`` (function of points) on the slice ``grid`` placed by ``matrix`` slice mm -> volume mm."""
    offsets, weights = profile_nodes(thickness, thickness / 3, "box")
    points = grid.points()
    return sum(w * values((points + d * normal_of(grid)) @ matrix[:3, :3].T + matrix[:3, 3]) for d, w in zip(offsets, weights))


@dataclass(frozen=True)
class KnownSet:
    """A request with the true maps (S, 4, 4) header mm of every slice -> volume mm, and that of the set."""

    problem: Slices
    truth: np.ndarray
    each: np.ndarray


def random_pose(rng: np.random.Generator, degrees: float, shift: float, centre) -> np.ndarray:
    """A turn about a random axis and a shift in a random direction, of these sizes."""
    axis, way = rng.normal(size=3), rng.normal(size=3)
    return rigid(shift * way / np.linalg.norm(way), np.deg2rad(degrees) * axis / np.linalg.norm(axis), centre)


def known_set(seed: int, degrees: float = 25.0, shift: float = 12.0, *, hip: Hip | None = None, volume: Image | None = None, size: int = 64,
              thickness: float = 3.0, noise: float = 1.5, bias: float = 0.08, segments: bool = False, order=None, flips=None,
              bend: tuple[float, float] = (0.0, 0.0)) -> KnownSet:
    """Six radial slices of a hip, whose headers are wrong by a turn and a shift; ``order`` and ``flips`` [(u, v)] say which picture each header gets.

    Slice k of the request shows plane ``order[k]``, mirrored along u or v where ``flips[k]`` says so. With ``bend`` (mm in the plane, mm through it at
    most) its pixel at p shows what is at p + ``bent(shown grid, seed + k, *bend)(p)``.
    """
    rng, hip = np.random.default_rng(seed), hip or Hip(seed)
    volume = volume or hip_volume(hip, volume_grid())
    grids = radial_grids(size, thickness=thickness)
    wrong = random_pose(rng, degrees, shift, grids[0].centre)
    truth = np.linalg.inv(wrong)
    order, flips = list(order or range(len(grids))), list(flips or [(False, False)] * len(grids))
    slices, marks, each = [], [], []
    for k, (plane, flip) in enumerate(zip(order, flips)):
        shown = mirrored(grids[plane], *flip)
        away = bent(shown, seed + k, *bend)
        values = cut(lambda p: hip.values(p + away(p), "slice"), shown, np.eye(4), thickness) * bias_of(shown.points(), seed + 5, bias)
        values = values + noise * rng.standard_normal(values.shape)
        header = grids[k].moved(wrong)
        slices.append(Image(torch.as_tensor(values, dtype=torch.float32)[None, None], header, name=f"slice {k + 1}"))
        marks.append(Labels(torch.as_tensor((hip.femur(shown.points()) < 0).astype(np.int64))[None, None], header, name=f"segment {k + 1}"))
        each.append(shown.affine @ np.linalg.inv(header.affine))
    bone = Labels(torch.as_tensor((hip.femur(volume.grid.points()) < 0).astype(np.int64))[None, None], volume.grid, name="bone") if segments else None
    problem = Slices(tuple(slices), volume, segments=tuple(marks) if segments else None, volume_segment=bone)
    return KnownSet(problem, truth, np.stack(each))


def bent(grid: Grid, seed: int, plane: float, through: float):
    """points (..., 3) mm -> displacement (..., 3) mm, at most ``plane`` mm in the plane of ``grid`` and ``through`` mm across it: three smooth bumps."""
    rng, size = np.random.default_rng(seed + 900), float(grid.extent.max())
    middles = grid.centre + rng.uniform(-0.25, 0.25, (3, 2)) * size @ grid.direction[:, :2].T
    angles = rng.uniform(0, 2 * np.pi, 3)
    pushes = np.stack([plane * np.cos(angles), plane * np.sin(angles), through * rng.choice([-1, 1], 3)], 1) @ grid.direction.T

    def away(points):
        bumps = np.exp(-((points[..., None, :] - middles) ** 2).sum(-1) / (2 * (0.14 * size) ** 2))
        return (bumps / np.maximum(bumps.sum(-1, keepdims=True), 1)) @ pushes

    return away


def strokes_on(segment: Labels) -> Labels:
    """What a hand might draw on a slice whose bone is ``segment``: 1 on some lines within it, 2 on parts of a line around it and on lines elsewhere."""
    bone = segment.data[0, 0, 0].numpy() > 0
    within, around = distance_transform_edt(bone), distance_transform_edt(~bone)
    row, column = np.indices(bone.shape)
    inner = (within >= 3) & (row % 10 == 4) | (within >= 2) & (within < 3) & (column % 8 < 4)
    outer = (around >= 3) & (around < 4) & ((row + column) % 12 < 7) | (around > 6) & (row % 14 == 7)
    return Labels(torch.as_tensor((inner + 2 * outer).astype(np.int64))[None, None, None], segment.grid, name="strokes")


def mirrored(grid: Grid, u: bool, v: bool) -> Grid:
    """The lattice whose pixel (i, j) lies where (n - 1 - i, j) of ``grid`` is, and so on; turned about its middle, so that it stays a rotation."""
    flip = np.diag([-1.0 if u else 1.0, -1.0 if v else 1.0, -1.0 if u != v else 1.0, 1.0])
    local = np.eye(4)
    local[:3, :3], local[:3, 3] = grid.direction, grid.centre
    return grid.moved(local @ flip @ np.linalg.inv(local))


def errors(found: np.ndarray, truth: np.ndarray, points: np.ndarray) -> tuple[float, float, float]:
    """(degrees, mm at the middle of ``points``, root mean square mm over ``points`` (N, 3)) between two maps slice mm -> volume mm."""
    turn = found[:3, :3].T @ truth[:3, :3]
    angle = np.rad2deg(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1)))
    apart = (points @ (found - truth)[:3, :3].T) + (found - truth)[:3, 3]
    middle = (found - truth)[:3] @ np.r_[points.mean(0), 1]
    return float(angle), float(np.linalg.norm(middle)), float(np.sqrt((apart**2).sum(1).mean()))


def pixels(problem: Slices) -> np.ndarray:
    """(N, 3) a fifth of the slices' pixels each way, mm as their headers say."""
    return np.concatenate([s.grid.points()[0, ::5, ::5].reshape(-1, 3) for s in problem.slices])


def affine(matrix) -> Affine:
    return Affine(torch.as_tensor(matrix))
