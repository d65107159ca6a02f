"""Steps of a compositive registration along the slope of a similarity that has no form as squared differences: ncc, mi.

With s = dC/dw the slope of the cost C by the warped image w, smoothed by a Gaussian G (fluid),
    v = -c G * (s grad w),   c so that the longest step is ``share`` of half the step limit.
The share starts at 1, falls by ``SHORTER`` after a step that did not lower the cost and grows by ``LONGER`` after one that did. Only
voxels inside the moving field of view and both masks are compared, and the field of the lowest cost is kept, not the last.
Steepest descent with such a rule: Nocedal and Wright, Numerical Optimization, 2006, chapter 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..geometry import Grid
from ..ops import demons
from ..ops.nd import index_gradient
from ..terms import SIMILARITIES, Similarity

SLOPES = ("ncc", "mi")
SHORTER, LONGER = 0.9, 1.1
LEAST_FLUID = 1.0


@dataclass
class SlopeDescent:
    """The descent of ``term`` on one level, whose lattice is ``grid``: ``limit`` mm is twice the longest step, ``fluid`` voxels the
    smoothing of a step. Nothing asks the device for a cost, so that a GPU need not wait."""

    term: Similarity
    grid: Grid
    limit: float
    fluid: float
    share: torch.Tensor | None = None
    last: torch.Tensor | None = None
    lowest: torch.Tensor | None = None
    best: torch.Tensor | None = None
    scale: torch.Tensor = field(init=False)

    def __post_init__(self):
        self.scale = torch.as_tensor(self.grid.spacing.copy(), dtype=torch.float32).reshape(1, -1, *[1] * self.grid.dim)

    @classmethod
    def of(cls, similarity: str, grid: Grid, limit: float, fluid: float) -> "SlopeDescent | None":
        """The descent of the named similarity, None for one that is no slope."""
        return cls(SIMILARITIES[similarity](), grid, limit, max(fluid, LEAST_FLUID)) if similarity in SLOPES else None

    def step(self, u, fixed, warped, mask) -> tuple[torch.Tensor, torch.Tensor]:
        """(v (1, dim, *S) voxels, cost (1,)) at the displacement u (1, dim, *S) voxels; fixed and warped (1, C, *S), mask (1, 1, *S) bool."""
        cost, slope = self.term.gradient(fixed, warped, mask, self.grid)
        self.offer(u, cost)
        scale = self.scale.to(warped.device)
        v, _ = demons.smooth(-(slope[:, :, None] * index_gradient(warped)).sum(1) / scale.square(), self.fluid)
        longest = (v * scale).square().sum(1).max().sqrt().clamp_min(1e-30)
        return v * (0.5 * self.limit * self.share / longest), cost

    def offer(self, u, cost) -> None:
        """Keep a copy of ``u`` if its cost is the lowest so far, and adapt the length of the next step."""
        if self.best is None:
            self.share, self.lowest, self.best = torch.ones_like(cost), cost.clone(), u.clone()
        else:
            self.share = torch.where(cost < self.last, self.share * LONGER, self.share * SHORTER).clamp_max(1)
            self.best = torch.where(cost < self.lowest, u, self.best)
            self.lowest = torch.minimum(cost, self.lowest)
        self.last = cost

    def finished(self, u, fixed, warped, mask) -> torch.Tensor:
        """The field of the lowest cost, ``u`` being the last one, which no step has looked at yet."""
        self.offer(u, self.term.compare(fixed, warped, mask, self.grid))
        return self.best


__all__ = ["SLOPES", "SlopeDescent"]
