"""What a run gives back."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Callable

import torch

from .engines.slice_bends import Bend, bent_points
from .engines.slices import emulate, thickness_of
from .errors import InputError
from .image import Image, Labels
from .ops.sample import sample, sample_known
from .points import Points
from .terms.base import Alignment
from .transforms import Affine, Transform
from .transforms.base import linear_part


@dataclass(eq=False)
class Result:
    """``transform`` maps fixed mm -> moving mm. Images and maps are made when first asked for.

    ``scalars`` name -> number; ``history`` list of dicts, one a logged step; ``provenance`` method, parameters, seed,
    versions, device, wall seconds per stage.
    """

    problem: object
    transform: Transform
    inverse_transform: Transform | None = None
    scalars: dict = field(default_factory=dict)
    history: list = field(default_factory=list)
    provenance: dict = field(default_factory=dict)
    maps: dict = field(default_factory=dict)

    @cached_property
    def inverse(self) -> Transform:
        """Moving mm -> fixed mm."""
        return self.inverse_transform if self.inverse_transform is not None else self.transform.inverse()

    @property
    def affine(self) -> Affine:
        """The linear part, applied after the deformation (identity where there is none)."""
        return linear_part(self.transform)

    @cached_property
    def warped(self) -> Image:
        """The moving image on the fixed grid, by the very transform that is saved; its background outside its field of view."""
        return warp(self.problem.moving, self.transform, self.problem.fixed.grid, fill=self.problem.moving.background)

    @cached_property
    def log_jacobian(self) -> torch.Tensor:
        """(B, 1, *S) on the fixed grid."""
        return self.transform.log_jacobian(self.problem.fixed.grid)


@dataclass(eq=False)
class GroupResult:
    """An atlas of a cohort. ``transform_of(name)`` maps atlas mm -> mm of a subject (read when asked for, so that no cohort is held).

    ``names`` of the subjects that take part; ``set_aside`` name -> reason; ``quality`` one dict a subject; ``labels`` the consensus label maps
    ('majority', 'staple') and ``maps`` Images on the atlas lattice; ``probability_of(value)`` the share of the subjects that have one of the
    labels ``values``; ``history`` one dict an iteration; ``files`` name -> file that belongs to it (a network); ``remarks`` name -> what was
    left out of a subject that takes part; ``scalars`` and ``provenance`` as in ``Result``.
    """

    problem: object
    atlas: Image
    names: tuple[str, ...]
    transform_of: Callable[[str], Transform]
    set_aside: dict = field(default_factory=dict)
    quality: list = field(default_factory=list)
    labels: dict = field(default_factory=dict)
    maps: dict = field(default_factory=dict)
    values: list = field(default_factory=list)
    probability_of: Callable[[int], Image] | None = None
    scalars: dict = field(default_factory=dict)
    history: list = field(default_factory=list)
    files: dict = field(default_factory=dict)
    remarks: dict = field(default_factory=dict)
    provenance: dict = field(default_factory=dict)

    def bridge(self, start: str, end: str) -> Transform:
        """Subject ``start`` mm -> atlas -> subject ``end`` mm: pulls the image of ``end`` back onto ``start``."""
        return bridge(self.transform_of(start), self.transform_of(end))


@dataclass(eq=False)
class GrowthResult(GroupResult):
    """An atlas over age: ``transform_of(name)`` maps mm of the atlas at the age of the subject -> mm of the subject, ``atlas`` is that of the middle one
    of ``ages``, whose templates are ``atlases``.

    ``age_of`` name -> age; ``growth`` one dict an age: "age", "subjects" (weight of those around it), "volume" and "length" of what is bright,
    "volume_VALUE" and "length_VALUE" of labels, "mean_displacement" of the maps, mm.
    """

    ages: tuple[float, ...] = ()
    atlases: tuple[Image, ...] = ()
    age_of: dict = field(default_factory=dict)
    growth: list = field(default_factory=list)

    def bridge(self, start: str, end: str) -> Transform:
        """As in ``GroupResult``, for subjects of one age. InputError for others: between ages points are not known to correspond."""
        if self.age_of[start] != self.age_of[end]:
            raise InputError(f"'{start}' has the age {self.age_of[start]:g} and '{end}' {self.age_of[end]:g}; only subjects of one age share a template")
        return super().bridge(start, end)


@dataclass(eq=False)
class SeriesResult:
    """The motion of repeated scans. ``transforms``, one a scan, map reference mm -> scan mm.

    ``average`` of the realigned scans, ``signal`` without the floor of the noise and ``sigma`` of the noise at every voxel, on the lattice
    of the scans, NaN where fewer than two scans have a value; ``motion`` one dict a scan; the rest as in ``Result``.
    """

    problem: object
    transforms: list[Transform]
    average: Image
    signal: Image
    sigma: Image
    motion: list = field(default_factory=list)
    scalars: dict = field(default_factory=dict)
    history: list = field(default_factory=list)
    provenance: dict = field(default_factory=dict)


def bridge(to_start: Transform, to_end: Transform) -> Transform:
    """Two maps atlas mm -> subject mm as one map of the first subject's points onto the second's, through the atlas."""
    return to_end @ to_start.inverse()


@dataclass(eq=False)
class SlicesResult:
    """Where slices lie in a volume. ``transform`` maps the set and ``transforms`` every slice, slice mm (as its header says) -> volume mm.

    ``registered`` False where the evidence is too weak, with ``reasons`` in sentences: then the maps must not be used. ``plane`` of which header
    every picture lies on and ``flips`` (along u, along v) say what was found wrong with order and directions; ``shift_std`` (3,) mm, ``turn_std``
    (3,) degrees and ``distance_std`` mm (root mean square over the pixels) are standard deviations; ``evidence`` name -> figure; ``curve`` the
    similarity of set and slices over the turn about the axis ('degrees', 'set', 'slices'; empty without an axis); ``votes`` the steps of the
    binary search; ``start`` where the search began; ``bends`` the small deformation of every slice before its map, where it was asked for;
    ``remarks`` sentences that whoever uses the maps has to know.
    """

    problem: object
    transform: Affine
    transforms: tuple[Affine, ...]
    registered: bool
    reasons: tuple[str, ...] = ()
    plane: tuple[int, ...] = ()
    flips: tuple[tuple[bool, bool], ...] = ()
    shift_std: tuple[float, ...] = ()
    turn_std: tuple[float, ...] = ()
    distance_std: float = float("inf")
    evidence: dict = field(default_factory=dict)
    curve: dict = field(default_factory=dict)
    votes: list = field(default_factory=list)
    start: str = "header"
    profile: str = "box"
    bends: tuple[Bend, ...] = ()
    remarks: tuple[str, ...] = ()
    scalars: dict = field(default_factory=dict)
    history: list = field(default_factory=list)
    provenance: dict = field(default_factory=dict)

    def emulated(self, k: int) -> Image:
        """Slice ``k`` as the volume shows it, on the slice's grid; NaN outside the volume."""
        grid = self.problem.slices[k].grid
        thickness = self.problem.thickness or thickness_of(grid)
        points = bent_points(self.bend(k), grid.points().reshape(-1, 3))
        return emulate(self.problem.volume, grid, self.transforms[k].numpy(), thickness, self.profile, float("nan"), points)

    def bend(self, k: int) -> Bend | None:
        """Of slice ``k``, None where none was asked for."""
        return self.bends[k] if self.bends else None

    def placed(self, k: int) -> Transform:
        """Points of slice ``k`` as its header says -> volume mm, with its deformation where one was kept."""
        bend = self.bend(k)
        return self.transforms[k] if bend is None or bend.field is None else self.transforms[k] @ bend.field


def warp(image: Image, transform, grid, mode: str | None = None, fill: float = 0.0) -> Image:
    """``image`` pulled back by ``transform`` onto ``grid``; labels by nearest neighbour, images linearly unless told.

    Where the image has no number (NaN), the warped one has none (see ``sample_known``).
    """
    labels = isinstance(image, Labels)
    mode, read = mode or ("nearest" if labels else "linear"), sample if labels else sample_known
    frame = Image(torch.zeros((1, 1, *grid.shape), dtype=torch.float32, device=image.data.device), grid)
    index = Alignment(frame, image, transform).moving_index
    return replace(image, data=read(image.data, index, mode, fill=fill), grid=grid, mask=None)


def warp_points(points: Points, transform) -> Points:
    """Points in fixed space carried to moving space (the direction of the transform); use the inverse for the other way."""
    return points.moved(transform)
