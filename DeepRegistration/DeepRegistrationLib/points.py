"""Point sets in world space."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .errors import InputError


@dataclass(frozen=True, eq=False)
class Points:
    """``positions`` (B, N, dim) mm (LPS, see geometry); optional ``features`` (B, N, F), ``weights`` (B, N) and names."""

    positions: torch.Tensor
    features: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    names: tuple[str, ...] = ()

    def __post_init__(self):
        if self.positions.ndim != 3 or self.positions.shape[-1] not in (2, 3):
            raise InputError(f"points of shape {tuple(self.positions.shape)} were given; (B, N, 2) or (B, N, 3) in mm is needed")
        for values, what in ((self.features, "features"), (self.weights, "weights")):
            if values is not None and (values.shape[:2] != self.positions.shape[:2] or values.ndim != (3 if what == "features" else 2)):
                raise InputError(f"{what} of shape {tuple(values.shape)} were given for points of shape {tuple(self.positions.shape)}; "
                                 "one entry a point is needed")
        if not bool(torch.isfinite(self.positions).all()):
            raise InputError("the points hold NaN or infinite coordinates; remove or correct these points")

    @property
    def dim(self) -> int:
        return self.positions.shape[-1]

    def __len__(self) -> int:
        return self.positions.shape[1]

    def moved(self, transform) -> "Points":
        """The points after ``transform`` (a map of (B, N, dim) mm)."""
        return Points(transform(self.positions), self.features, self.weights, self.names)

    def taken(self, rows: list[int]) -> "Points":
        """The points of ``rows``, in that order."""
        features, weights = (None if values is None else values[:, rows] for values in (self.features, self.weights))
        return Points(self.positions[:, rows], features, weights, tuple(self.names[row] for row in rows if self.names))
