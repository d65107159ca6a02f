"""What is done for one subject, or for a few in turn, while an atlas is built: registered, summed, judged.

These functions run in the processes of a ``Crew``: their orders are plain data, subjects are read one at a time and only sums leave them. Sums are
taken over the same few subjects in the same order however many processes there are, so that the numbers do not depend on that.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

import numpy as np
import torch

from ..errors import Cancelled, RegistrationError
from ..geometry import Grid
from ..image import Image
from ..ops import fields, nd
from ..ops.sample import sample
from ..runtime import Monitor, Runtime, fewer_threads
from ..terms.base import Alignment
from ..transforms import Affine
from .channels import normalised
from .cohort_store import Store, SubjectMap
from .crew import Lost

CHUNK = 8
"""Subjects whose sums are made together."""
FLOOR = 1e-6
"""Determinants below count as this in logarithms."""
LEAST_SEEN = 0.25
"""A map that shows less than this share of what an image of that size could show has lost the image: likeness over a few voxels means nothing."""
UNUSABLE = (RegistrationError, OSError, RuntimeError, ValueError, MemoryError)
"""What a subject may fail with without stopping the others."""


@dataclass(frozen=True, eq=False)
class Member:
    """A subject (``name``, ``read()`` -> Image, ``read_labels()``) and ``start``, the map atlas mm -> subject mm that its header says."""

    subject: object
    start: np.ndarray

    @property
    def name(self) -> str:
        return self.subject.name


@dataclass(frozen=True)
class Place:
    """Where and how the work is done: the store's folder, the device, the seed and the threads of each process."""

    folder: Path
    device: str = "cpu"
    seed: int = 0
    threads: int = 0

    @property
    def store(self) -> Store:
        return Store(self.folder)

    def runtime(self, monitor: Monitor) -> Runtime:
        return Runtime(self.device, self.seed, self.threads, monitor=monitor)

    @contextmanager
    def working(self, grid: Grid):
        """Settings of the process for work on images of the size of ``grid``."""
        with self.runtime(Monitor()).active(), fewer_threads(grid.voxels):
            yield


@dataclass(frozen=True, eq=False)
class Registration:
    """One subject, one iteration. pairwise(fixed, moving, start, runtime) -> Transform (fixed mm -> moving mm); ``factor`` is the spacing in
    units of that of the lattice."""

    member: Member
    iteration: int
    pairwise: Callable
    factor: float
    place: Place

    def begin(self, grid: Grid) -> SubjectMap:
        """The map to start from, read where it is needed: the one of the iteration before, or that of the header."""
        if self.iteration == 0:
            return SubjectMap(self.member.start, None, grid)
        return self.place.store.corrected(self.iteration - 1, self.member.name)


@dataclass(frozen=True, eq=False)
class Several:
    """A few subjects to be summed over, with the corrected maps of ``iteration``, or with the headers' where that is None."""

    members: tuple[Member, ...]
    iteration: int | None
    grid: Grid
    place: Place
    threshold: torch.Tensor | None = None

    def maps(self, monitor: Monitor):
        """(member, its map) one after the other."""
        for member in self.members:
            monitor.check()
            yield member, SubjectMap(member.start, None, self.grid) if self.iteration is None else self.place.store.corrected(self.iteration, member.name)


@dataclass(eq=False)
class Sums:
    """Sums over subjects on the lattice, float64: ``data`` and ``weight`` of images, ``log`` and ``square`` of log-Jacobians, ``moved`` of where
    the maps lead (mm); ``energies`` of the images by name, ``unusable`` name -> reason."""

    data: torch.Tensor
    weight: torch.Tensor
    log: torch.Tensor
    square: torch.Tensor
    moved: torch.Tensor
    count: int = 0
    energies: dict[str, float] = field(default_factory=dict)
    unusable: dict[str, str] = field(default_factory=dict)

    @classmethod
    def zero(cls, grid: Grid) -> "Sums":
        return cls(*(torch.zeros(1, count, *grid.shape, dtype=torch.float64) for count in (1, 1, 1, 1, grid.dim)))

    def add(self, other: "Sums") -> None:
        for name in ("data", "weight", "log", "square", "moved"):
            getattr(self, name).add_(getattr(other, name))
        self.count += other.count
        self.energies |= other.energies
        self.unusable |= other.unusable


# ------------------------------------------------------------------------------------------------------------- reading


def read(member: Member) -> Image:
    """The image of a subject with its robust range scaled to [0, 1]."""
    return normalised(member.subject.read())


def on_atlas(image: Image, made: SubjectMap, mode: str = "linear") -> tuple[torch.Tensor, torch.Tensor]:
    """(values, weight) (1, 1, *S): the image pulled back onto the lattice of its map, weight 1 where it has something to say. What an atlas is made of
    is read by 'cubic': linear interpolation would take a fifth of its gradient energy."""
    image = image.smoothed_to(made.grid.spacing.min())
    alignment = Alignment(Image(torch.zeros(1, 1, *made.grid.shape), made.grid), image, made.transform)
    return sample(image.data, alignment.moving_index, mode), alignment.mask.float()


def gradient_energy(data: torch.Tensor, grid: Grid) -> float:
    """Mean over voxels of |grad I|^2, per mm^2."""
    return float(gradient_square(data, grid).mean())


def gradient_square(data: torch.Tensor, grid: Grid) -> torch.Tensor:
    """|grad I|^2 (1, 1, *S) of (1, 1, *S), by central differences in world axes."""
    slope = nd.index_gradient(data)[:, 0]
    to_index = torch.as_tensor(grid.inverse_affine[:-1, :-1].copy(), dtype=data.dtype)
    return torch.einsum("bi...,ij->bj...", slope, to_index).square().sum(1, keepdim=True)


def correlation(one: torch.Tensor, other: torch.Tensor, weight: torch.Tensor) -> float:
    """Pearson's coefficient of two images over the voxels of ``weight`` > 0; 0 where a side is constant there."""
    a, b = (x[weight > 0].double() for x in (one, other))
    if a.numel() < 2:
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    norm = float(a.norm() * b.norm())
    return float(a @ b) / norm if norm > 0 else 0.0


# ------------------------------------------------------------------------------------------------------- the work itself


def registered(order: Registration, monitor: Monitor) -> dict | Lost:
    """Find the map of one subject and keep it; the figures of an earlier run are taken where they are. ``Lost`` where it cannot be done."""
    store, name = order.place.store, order.member.name
    known = store.figures(order.iteration, name)
    if known is not None:
        return known
    runtime = order.place.runtime(monitor)
    try:
        with runtime.active():
            template, image = store.template(order.iteration), read(order.member)
            with fewer_threads(max(template.grid.voxels, image.grid.voxels)):
                begin = order.begin(template.grid)
                made, figures = better(template, image, begin, _mapped(order, template, image, begin, runtime))
        store.keep(order.iteration, name, made, figures)
        return figures
    except Cancelled:
        raise
    except UNUSABLE as error:
        return Lost(" ".join(str(error).split()) or type(error).__name__)


def _mapped(order, template, image, begin, runtime) -> SubjectMap:
    spacing = template.grid.spacing * order.factor
    fixed, moving = template.smoothed_to(spacing), image.smoothed_to(spacing)
    transform = order.pairwise(fixed, moving, begin.transform, runtime)
    return SubjectMap.of(transform, template.grid)


def better(template, image, begin, found) -> tuple[SubjectMap, dict]:
    """The new map with its figures, or the one it began with where that makes the subject more like the template or the new one has lost it (``kept`` 1)."""
    before, after = judged(template, image, begin), judged(template, image, found)
    lost = [loses(made.transform, template.grid, image.grid) for made in (begin, found)]
    improved = lost[0] if lost[0] != lost[1] else after["similarity"] >= before["similarity"]
    return (found, {**after, "kept": 0}) if improved else (begin, {**before, "kept": 1})


def frame_of(lattice: Grid, grid: Grid, transform) -> Alignment:
    """The alignment of two images of which nothing but the lattices is known; ``transform`` maps mm of the first -> mm of the second."""
    return Alignment(*(Image(torch.zeros(1, 1, *[1] * each.dim).expand(1, 1, *each.shape), each) for each in (lattice, grid)), transform)


def loses(transform, lattice: Grid, grid: Grid) -> bool:
    """Does a map from the ``lattice`` to an image on ``grid`` show less than ``LEAST_SEEN`` of what an image of that size could show?"""
    seen = float(frame_of(lattice, grid, transform).mask.float().mean())
    return seen < LEAST_SEEN * min(1.0, float(np.prod(grid.extent) / np.prod(lattice.extent)))


def judged(template: Image, image: Image, made: SubjectMap) -> dict:
    """similarity (correlation with the template), folds (share), sdlogj, displacement (root mean square of u, mm)."""
    values, weight = on_atlas(image, made)
    weight = weight if template.mask is None else weight * template.mask
    determinant = _determinant(made)
    positive = determinant[determinant > 0]
    u = made.displacement
    return {"similarity": correlation(template.data, values, weight), "folds": float((determinant <= 0).float().mean()),
            "sdlogj": float(positive.log().std()) if positive.numel() > 1 else 0.0,
            "displacement": 0.0 if u is None else float(u.square().sum(1).mean().sqrt())}


def _determinant(made: SubjectMap) -> torch.Tensor:
    """(1, 1, *S) of the whole map."""
    size = float(np.linalg.det(made.matrix[:-1, :-1]))
    if made.displacement is None:
        return torch.full((1, 1, *made.grid.shape), size)
    return size * fields.jacobian_determinant(made.displacement, made.grid)


def summed(order: Several, monitor: Monitor) -> Sums:
    """The images and the log-Jacobians of a few subjects on the lattice. Subjects that cannot be read are named in ``unusable``."""
    total = Sums.zero(order.grid)
    with order.place.working(order.grid):
        for member, made in order.maps(monitor):
            try:
                image = read(member)
                values, weight = on_atlas(image, made, "cubic")
            except UNUSABLE as error:
                total.unusable[member.name] = " ".join(str(error).split())
                continue
            log = _determinant(made).clamp_min(FLOOR).log().double()
            total.data.add_(values.double() * weight)
            total.weight.add_(weight)
            total.log.add_(log)
            total.square.add_(log.square())
            total.moved.add_(moved(member, made))
            total.count += 1
            total.energies[member.name] = gradient_energy(values * weight, order.grid)
    return total


def displaced(order: Several, monitor: Monitor) -> torch.Tensor:
    """(1, dim, *S) float64: the sum of ``moved`` over a few subjects, by their uncorrected maps."""
    total = torch.zeros(1, order.grid.dim, *order.grid.shape, dtype=torch.float64)
    with order.place.working(order.grid):
        for member in order.members:
            monitor.check()
            total += moved(member, order.place.store.map(order.iteration, member.name))
    return total


def grown(order: Several, monitor: Monitor) -> torch.Tensor:
    """(1, 1, *S) float64: the sum of the log-Jacobians of a few subjects' corrected maps."""
    total = torch.zeros(1, 1, *order.grid.shape, dtype=torch.float64)
    with order.place.working(order.grid):
        for _, made in order.maps(monitor):
            total += _determinant(made).clamp_min(FLOOR).log().double()
    return total


def moved(member: Member, made: SubjectMap) -> torch.Tensor:
    """(1, dim, *S) float64, mm: where the map leads, seen from where the header puts the subject."""
    back = Affine(torch.as_tensor(np.linalg.inv(member.start)))
    return (back @ made.transform).field(made.grid).double()


def below(order: Several, monitor: Monitor) -> tuple[torch.Tensor, torch.Tensor]:
    """(how many of a few subjects are at most ``threshold``, how many are seen), (1, 1, *S) each."""
    under, seen = (torch.zeros(1, 1, *order.grid.shape, dtype=torch.float64) for _ in range(2))
    with order.place.working(order.grid):
        for member, made in order.maps(monitor):
            values, weight = on_atlas(read(member), made)
            under += (values <= order.threshold).double() * weight
            seen += weight
    return under, seen
