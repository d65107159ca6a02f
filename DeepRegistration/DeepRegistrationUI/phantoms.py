"""Head phantoms with a known answer, made with numpy alone: two images of one anatomy, structures and landmarks of both, and the map.

The anatomy is a list of ellipsoids, painted one over the other in its own frame (LPS mm, origin in the middle of the head). With
u(x) = sum_i v_i (1 - |x - m_i|^2 / R_i^2)^2 inside the radii R_i and 0 elsewhere, and a linear map A,

    fixed image (x) = anatomy(x + u(x)),   moving image (y) = anatomy(A^-1 y),   truth T(x) = A (x + u(x)),

so that the moving image at T(x) is the fixed image at x. Nothing is interpolated: both images and both label maps are evaluated from
the formulas at their own voxels. Noise and a bias field are added to the intensities afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from DeepRegistrationLib.exchange import LabelMap, Lattice, Matrix, PointSet, Volume
from DeepRegistrationLib.geometry import Grid

EDGE = 2.0
"""Width in mm of the ramp between two tissues, about that of a voxel's partial volume."""
NOISE, BIAS = 4.0, 0.12
"""Standard deviation of the Rician noise, in units of intensity (brain about 100 to 160); largest relative error of the bias field."""
STRUCTURES = ((1, "gray matter"), (2, "white matter"), (3, "left ventricle"), (4, "right ventricle"), (5, "cerebellum"), (6, "brainstem"),
              (7, "left deep gray"), (8, "right deep gray"), (9, "lesion"))
SLICE_HEIGHT = 12.0
"""z in mm of the plane of the slice pair, the middle of the ventricles."""


@dataclass(frozen=True)
class Part:
    """An ellipsoid of ``radii`` mm about ``centre``, its surface folded by ``waves`` (share of the radius), and what it is made of."""

    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    label: int
    t1: float
    t2: float
    waves: float = 0.0
    period: float = 8.0

    def depth(self, points: np.ndarray) -> np.ndarray:
        """points (3, ...) float32 mm -> (...) about the distance from the surface in mm, positive inside."""
        depth = 1 - np.sqrt(sum(((axis - c) / r) ** 2 for axis, c, r in zip(points, self.centre, self.radii)))
        if self.waves:
            x, y, z = points / np.float32(self.period)
            depth += self.waves * np.sin(x) * np.cos(y + 0.5) * np.cos(z - 0.3)
        return depth * float(np.mean(self.radii))


ANATOMY = (
    Part((0, 0, 0), (76, 92, 86), 0, 200, 190),  # scalp, skull, fluid
    Part((0, 0, 0), (71, 87, 81), 0, 30, 30),
    Part((0, 0, 0), (67, 83, 77), 0, 40, 220),
    Part((0, 0, 2), (64, 80, 73), 1, 110, 150, waves=0.03),
    Part((0, 0, 3), (54, 69, 61), 2, 160, 100, waves=0.15, period=5.5),
    Part((0, 0, 38), (2.5, 70, 36), 0, 40, 250),  # the gap between the halves of the brain
    Part((0, 45, -48), (38, 24, 21), 5, 125, 135, waves=0.12, period=3.0),
    Part((0, 22, -52), (12, 12, 30), 6, 155, 105),
    Part((11, -2, SLICE_HEIGHT), (7, 28, 11), 3, 40, 250),
    Part((-11, -4, SLICE_HEIGHT), (6, 26, 10), 4, 40, 250),
    Part((15, 8, -6), (9, 14, 9), 7, 130, 125),
    Part((-15, 8, -6), (9, 14, 9), 8, 130, 125),
    Part((36, -24, 16), (10, 12, 9), 9, 90, 230),
    Part((30, -74, -25), (11, 11, 11), 0, 50, 240),  # eyes
    Part((-30, -74, -25), (11, 11, 11), 0, 50, 240),
)
HEAD_LANDMARKS = {
    "left ventricle front": (11, -30, 12), "left ventricle back": (11, 26, 12), "right ventricle front": (-11, -30, 12),
    "right ventricle back": (-11, 22, 12), "left deep gray": (15, 8, -6), "right deep gray": (-15, 8, -6), "lesion": (36, -24, 16),
    "left eye": (30, -74, -25), "right eye": (-30, -74, -25), "cerebellum lowest": (0, 45, -69), "brainstem lowest": (0, 22, -82),
    "vertex": (0, 0, 86)}
SLICE_LANDMARKS = {
    "left ventricle front": (11, -30, 12), "left ventricle back": (11, 26, 12), "right ventricle front": (-11, -30, 12),
    "right ventricle back": (-11, 22, 12), "lesion": (36, -24, 12), "lesion outer rim": (45, -24, 12)}


def anatomy(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """points (..., 3) mm -> (...) label uint8, T1-like and T2-like intensity float32."""
    points = np.ascontiguousarray(np.moveaxis(points, -1, 0), np.float32)
    labels = np.zeros(points.shape[1:], np.uint8)
    images = [np.zeros(points.shape[1:], np.float32) for _ in range(2)]
    for part in ANATOMY:
        depth = part.depth(points)
        labels[depth > 0] = part.label
        weight = np.clip(0.5 + depth / EDGE, 0, 1)
        for image, value in zip(images, (part.t1, part.t2)):
            image += weight * (value - image)
    x, y, z = points
    texture = 1 + 0.05 * np.sin(x / 5 + 1) * np.sin(y / 6) + 0.04 * np.sin((x + y) / 9) * np.cos(z / 6)
    return labels, images[0] * texture, images[1] * texture


@dataclass(frozen=True)
class Bump:
    """A displacement of ``vector`` mm at ``centre`` that falls to 0 at ``radius`` mm; in the plane only, for all z, where ``planar``."""

    centre: tuple[float, float, float]
    radius: float
    vector: tuple[float, float, float]
    planar: bool = False

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """points (..., 3) mm -> (..., 3) mm."""
        square = sum((points[..., k] - self.centre[k]) ** 2 for k in range(2 if self.planar else 3)) / self.radius**2
        return (np.clip(1 - square, 0, None) ** 2)[..., None] * np.array(self.vector)


@dataclass(frozen=True, eq=False)
class Truth:
    """T(x) = A (x + u(x)), fixed mm -> moving mm: ``matrix`` A (4, 4), ``bumps`` the terms of u."""

    matrix: np.ndarray
    bumps: tuple[Bump, ...]

    def displacement(self, points: np.ndarray) -> np.ndarray:
        """u at points (..., 3) mm."""
        return sum(bump(points) for bump in self.bumps)

    def linear(self, points: np.ndarray) -> np.ndarray:
        """A at points (..., 3) mm."""
        return points @ self.matrix[:3, :3].T + self.matrix[:3, 3]

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """T at points (..., 3) mm."""
        return self.linear(points + self.displacement(points))

    def undisplaced(self, points: np.ndarray) -> np.ndarray:
        """x with x + u(x) = points (..., 3), by a fixed-point iteration: u's largest slope is below 0.6."""
        found = points
        for _ in range(60):
            found = points - self.displacement(found)
        return found

    def parts(self, grid: Grid) -> tuple[Matrix, Lattice]:
        """T as the parts of a transform, u sampled on ``grid``."""
        return Matrix(self.matrix), Lattice(self.displacement(grid.points()).astype(np.float32), grid)


@dataclass(frozen=True, eq=False)
class Pair:
    """Two images with all that is known of them; ``moving_t2`` is the moving image in another contrast."""

    fixed: Volume
    moving: Volume
    moving_t2: Volume
    fixed_labels: LabelMap
    moving_labels: LabelMap
    fixed_points: PointSet
    moving_points: PointSet
    truth: Truth


def head_pair(edge: int = 96) -> Pair:
    """A head of 192 mm on ``edge`` voxels an axis, and the same head deformed, turned and shifted on an oblique lattice of other voxels."""
    bumps = (Bump((22, -20, 20), 55, (7, -5, 3)), Bump((-25, 10, 10), 50, (-6, 6, -4)), Bump((0, 35, -35), 45, (3, 5, 6)),
             Bump((5, -30, -20), 50, (-4, 3, -5)), Bump((-15, -35, 35), 45, (4, 5, -5)), Bump((20, 35, 30), 45, (-5, -4, 4)))
    truth = Truth(_rotation((0.3, -0.4, 0.85), 9.0, scale=1.03, shift=(6.0, -5.0, 7.0)), bumps)
    finer = edge / 96
    fixed = _centred((edge, edge, edge), np.array((2.0, 2.0, 2.0)) / finer, np.eye(4))
    moving = _centred([round(finer * n) for n in (102, 106, 100)], np.array((2.1, 2.0, 2.2)) / finer,
                      _rotation((0.6, 0.2, 0.5), -12.0, shift=(6.0, -5.0, 7.0)))
    return _pair("PhantomHead", fixed, moving, truth, HEAD_LANDMARKS)


def slice_pair() -> Pair:
    """One transverse slice of the head of 5 mm thickness, 144 x 160 pixels of 1.25 mm, and the same slice deformed in its plane."""
    bumps = (Bump((25, -25, 0), 50, (6, -4, 0), True), Bump((-25, 5, 0), 50, (-5, 6, 0), True), Bump((5, 40, 0), 45, (4, 5, 0), True),
             Bump((-10, -40, 0), 40, (-4, -4, 0), True))
    truth = Truth(_rotation((0, 0, 1), 8.0, shift=(5.0, -4.0, 0.0)), bumps)
    middle = np.eye(4)
    middle[2, 3] = SLICE_HEIGHT
    fixed = _centred((1, 160, 144), (1.25, 1.25, 5.0), middle)
    moving = _centred((1, 166, 160), (1.3, 1.3, 5.0), _rotation((0, 0, 1), -10.0, shift=(5.0, -4.0, SLICE_HEIGHT)))
    return _pair("PhantomSlice", fixed, moving, truth, SLICE_LANDMARKS)


def _pair(name: str, fixed: Grid, moving: Grid, truth: Truth, landmarks: dict) -> Pair:
    """Evaluate the anatomy on both grids."""
    rng, there = np.random.default_rng(20), fixed.points()
    back = np.linalg.inv(truth.matrix)
    fixed_labels, fixed_t1, _ = anatomy(there + truth.displacement(there))
    moving_labels, moving_t1, moving_t2 = anatomy(moving.points() @ back[:3, :3].T + back[:3, 3])
    bias = _bias(moving)
    images = [_noisy(image, rng) for image in (fixed_t1, moving_t1 * bias, moving_t2 * bias)]
    names, marks = tuple(landmarks), np.array(list(landmarks.values()), float)
    return Pair(
        Volume(images[0], fixed, f"{name}Fixed"), Volume(images[1], moving, f"{name}Moving"), Volume(images[2], moving, f"{name}MovingT2"),
        LabelMap(fixed_labels, fixed, STRUCTURES, f"{name}FixedStructures"), LabelMap(moving_labels, moving, STRUCTURES, f"{name}MovingStructures"),
        PointSet(truth.undisplaced(marks), names, f"{name}FixedLandmarks"), PointSet(truth.linear(marks), names, f"{name}MovingLandmarks"), truth)


def _noisy(image: np.ndarray, rng) -> np.ndarray:
    """Magnitude of a complex image with Gaussian noise in both parts, rounded to int16 as scanners store it."""
    real, imaginary = rng.normal(0, NOISE, (2, *image.shape)).astype(np.float32)
    return np.round(np.hypot(image + real, imaginary)).astype(np.int16)


def _bias(grid: Grid) -> np.ndarray:
    """(z, y, x) a smooth factor about 1."""
    x, y, z = np.moveaxis((grid.points() - grid.centre) / 110.0, -1, 0)
    return (1 + BIAS * np.sin(1.5 * x + 0.7) * np.cos(1.2 * y - z)).astype(np.float32)


def _centred(shape, spacing, placement: np.ndarray) -> Grid:
    """A grid whose field of view has its middle at 0, moved by ``placement`` (4, 4)."""
    grid = Grid.from_parts(shape, spacing)
    shift = np.eye(4)
    shift[:3, 3] = -grid.centre
    return grid.moved(placement @ shift)


def _rotation(axis, degrees: float, scale: float = 1.0, shift=(0.0, 0.0, 0.0)) -> np.ndarray:
    """(4, 4) rotation about ``axis`` through 0, times ``scale``, then ``shift`` mm (Rodrigues' formula)."""
    axis, angle = np.array(axis, float) / np.linalg.norm(axis), np.deg2rad(degrees)
    skew = np.cross(np.eye(3), -axis)
    matrix = np.eye(4)
    matrix[:3, :3] = scale * (np.eye(3) + np.sin(angle) * skew + (1 - np.cos(angle)) * skew @ skew)
    matrix[:3, 3] = shift
    return matrix
