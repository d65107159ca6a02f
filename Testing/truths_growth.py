"""Cohorts of growing shapes: textured bodies whose mean at every age is known.

The body of an age a (0 to 1) is a phantom (``truths.Phantom``) that has grown to ``sizes(a)`` of its full size along every axis and turned in itself
a little: mean_a(p) = phantom(grown_a(p)). A subject is mean_a(T^-1(p)) with T = id + u, mean shape mm -> subject mm, and for every subject there is a
twin of the same age with id - u, so that the mean over the subjects of an age of their maps is the identity: what the groupwise constraint of
an atlas asks for. The inverse is numerical, to ``TOLERANCE`` mm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import truths

from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image, Labels
from DeepRegistrationLib.problem import Group, Subject
from DeepRegistrationLib.transforms import Affine, Composite, Displacement, Transform

SMALLEST = (0.72, 0.62, 0.8)
"""Size at age 0 along x, y and z, as a share of that at age 1."""
TOLERANCE = 0.02
TURN = 0.35
"""How far the middle of the body has turned against its ends at age 1, radians."""


@dataclass(frozen=True)
class Growth:
    """The phantom and its ages: ``span`` in the units of the covariate, for example weeks."""

    grid: Grid
    seed: int = 7
    span: tuple[float, float] = (8.0, 12.0)

    @property
    def phantom(self) -> truths.Phantom:
        return truths.Phantom(self.seed, self.grid)

    def sizes(self, age: float) -> np.ndarray:
        """(dim,) sizes along the axes at an age, shares of the full size."""
        a = (age - self.span[0]) / (self.span[1] - self.span[0])
        smallest = np.array(SMALLEST[: self.grid.dim])
        return smallest + (1 - smallest) * a

    def grown(self, age: float) -> Transform:
        """Points of an age's mean shape -> points of the phantom."""
        a, centre, dim = (age - self.span[0]) / (self.span[1] - self.span[0]), self.grid.centre, self.grid.dim
        matrix = np.eye(dim + 1)
        matrix[:dim, :dim] = np.diag(1 / self.sizes(age))
        matrix[:dim, dim] = centre - matrix[:dim, :dim] @ centre
        turn = truths.Swirl(centre, TURN * a, 0.18 * float(self.grid.extent.min()), np.eye(dim)[-1] if dim == 3 else None)
        return Composite((Affine(torch.as_tensor(matrix)), turn))

    def mean(self, age: float) -> Image:
        """The true mean shape of an age."""
        return self.phantom.image(self.grid, self.grown(age))

    def inside(self, age: float, transform: Transform | None = None) -> Labels:
        """1 in the body, of the mean shape or of a subject; ``transform``: subject mm -> mean shape mm."""
        labels = self.phantom.label_map(self.grid, self.grown(age) if transform is None else Composite((self.grown(age), transform)))
        return Labels((labels.data > 0).to(torch.int32), self.grid, name="body")

    def maps(self, count: int, seed: int = 0, strength: float = 0.25) -> list[Displacement]:
        """``count`` (even) maps mean shape mm -> subject mm: twins with opposite displacements follow each other."""
        fields = [truths.random_diffeomorphism(1000 * seed + 10 * k, self.grid, strength, strength).field(self.grid) for k in range(count // 2)]
        return [Displacement(sign * u, self.grid) for u in fields for sign in (1, -1)]

    def cohort(self, ages, each: int, seed: int = 0, strength: float = 0.25, labels: bool = False, noise: float = 0.0) -> tuple[Group, list[Transform]]:
        """(``each`` subjects (even) of every age, their maps mean shape -> subject); ``noise``: deviation of what is added to every voxel."""
        subjects, maps = [], []
        generator = torch.Generator().manual_seed(seed)
        for n, age in enumerate(ages):
            for k, true in enumerate(self.maps(each, seed + n, strength)):
                made = true.inverse(TOLERANCE)
                image = self.phantom.image(self.grid, Composite((self.grown(age), made)))
                image = Image(image.data + noise * torch.randn(image.data.shape, generator=generator), self.grid, name=f"a{n}s{k}")
                body = self.inside(age, made) if labels else None
                subjects.append(Subject(f"a{n}s{k:02d}", image, body, covariate=float(age)))
                maps.append(true)
        return Group(tuple(subjects)), maps
