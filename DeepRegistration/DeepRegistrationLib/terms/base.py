"""What a registration is scored by: Alignment, Term and Objective.

A term maps an alignment to a cost (B,): lower is better, 0 is ideal. The same objective serves per-pair optimisation,
training (its expectation over pairs) and evaluation.
"""

from __future__ import annotations

from functools import cached_property

import torch

from ..geometry import Grid
from ..image import Image, Labels
from ..ops import fields
from ..ops.sample import index_points, inside, sample
from ..points import Points


class Alignment:
    """Two images and a map between them on the grid of ``fixed``; everything is computed when first asked for.

    ``transform`` maps fixed mm -> moving mm: a Transform or any callable on points (B, N, dim). ``reverse`` is the
    alignment of the swapped pair, for the terms that need both directions. Labels and points are optional.
    """

    def __init__(self, fixed: Image, moving: Image, transform, *, fixed_labels: Labels | None = None, moving_labels: Labels | None = None,
                 fixed_points: Points | None = None, moving_points: Points | None = None, reverse: "Alignment | None" = None):
        self.fixed, self.moving, self.transform = fixed, moving, transform
        self.fixed_labels, self.moving_labels = fixed_labels, moving_labels
        self.fixed_points, self.moving_points = fixed_points, moving_points
        self.reverse = reverse

    @property
    def grid(self) -> Grid:
        return self.fixed.grid

    @cached_property
    def field(self) -> torch.Tensor:
        """(B, dim, *S) displacement of the whole map on the fixed grid, mm."""
        data = self.fixed.data
        if hasattr(self.transform, "field"):
            return self.transform.field(self.grid, data.dtype, data.device)
        points = index_points(self.grid, dtype=data.dtype, device=data.device)
        world = points @ torch.as_tensor(self.grid.matrix.copy(), dtype=data.dtype, device=data.device).T
        world = world + torch.as_tensor(self.grid.origin.copy(), dtype=data.dtype, device=data.device)
        moved = self.transform(world.reshape(1, -1, self.grid.dim)).reshape(-1, *self.grid.shape, self.grid.dim)
        return (moved - world).movedim(-1, 1)

    @cached_property
    def moving_index(self) -> torch.Tensor:
        """(B, *S, dim) where each fixed voxel lands in the moving lattice, in voxels."""
        data = self.fixed.data
        base = index_points(self.grid, self.moving.grid, data.dtype, data.device)
        return base + fields.to_index_units(self.field, self.moving.grid)

    @cached_property
    def warped(self) -> torch.Tensor:
        """(B, C, *S) the moving image on the fixed grid."""
        return sample(self.moving.data, self.moving_index)

    @cached_property
    def mask(self) -> torch.Tensor:
        """(B, 1, *S) bool: fixed mask, moving mask and moving field of view together."""
        valid = inside(self.moving_index.detach(), self.moving.grid.shape)[:, None]
        if self.fixed.mask is not None:
            valid = valid & self.fixed.mask
        if self.moving.mask is not None:
            valid = valid & (sample(self.moving.mask.to(self.fixed.data.dtype), self.moving_index.detach(), "nearest") > 0.5)
        return valid

    @cached_property
    def jacobian(self) -> torch.Tensor:
        """(B, dim, dim, *S) Jacobian matrix of the map."""
        return fields.jacobian(self.field, self.grid)

    @cached_property
    def determinant(self) -> torch.Tensor:
        """(B, 1, *S) its determinant."""
        return fields.determinant(self.jacobian)


class Term:
    """One cost. Subclasses are frozen dataclasses and implement ``__call__(alignment) -> (B,)``.

    Similarities that compare two images voxel by voxel are ``Similarity`` and implement ``compare`` instead.
    """

    reference: str = ""
    """BibTeX of the source, for citations."""

    def __call__(self, alignment: Alignment) -> torch.Tensor:
        raise NotImplementedError

    def __add__(self, other) -> "Objective":
        return Objective(((1.0, self),)) + other

    def __rmul__(self, weight: float) -> "Objective":
        return Objective(((float(weight), self),))

    @property
    def name(self) -> str:
        return type(self).__name__


class Similarity(Term):
    """A cost of two images on one grid. ``compare`` is differentiable; ``gradient`` may be a faster closed form."""

    def compare(self, fixed: torch.Tensor, warped: torch.Tensor, mask: torch.Tensor | None = None, grid: Grid | None = None) -> torch.Tensor:
        """fixed, warped (B, C, *S), mask (B, 1, *S) bool or None, grid for widths in mm -> (B,)."""
        raise NotImplementedError

    def gradient(self, fixed, warped, mask=None, grid=None) -> tuple[torch.Tensor, torch.Tensor]:
        """(cost (B,), d cost / d warped (B, C, *S)); this default differentiates ``compare``."""
        with torch.enable_grad():
            leaf = warped.detach().requires_grad_(True)
            cost = self.compare(fixed, leaf, mask, grid)
            (slope,) = torch.autograd.grad(cost.sum(), leaf)
        return cost.detach(), slope

    def __call__(self, alignment):
        return self.compare(alignment.fixed.data, alignment.warped, alignment.mask, alignment.grid)


class Objective(Term):
    """A weighted sum of terms, with a breakdown by name."""

    def __init__(self, parts: tuple[tuple[float, Term], ...]):
        self.parts = tuple(parts)

    def __add__(self, other) -> "Objective":
        return Objective(self.parts + (other.parts if isinstance(other, Objective) else ((1.0, other),)))

    def __rmul__(self, weight):
        return Objective(tuple((float(weight) * w, t) for w, t in self.parts))

    def __call__(self, alignment):
        return sum(w * t(alignment) for w, t in self.parts)

    def breakdown(self, alignment) -> dict[str, torch.Tensor]:
        """Name -> unweighted cost (B,) of every term; equal names are numbered."""
        out: dict[str, torch.Tensor] = {}
        for _, term in self.parts:
            name, k = term.name, 2
            while name in out:
                name, k = f"{term.name}{k}", k + 1
            out[name] = term(alignment)
        return out
