"""Distance of corresponding landmarks: |T(p_i) - q_i|, p in the fixed and q in the moving image, mm."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import InputError
from .base import Term


@dataclass(frozen=True)
class LandmarkDistance(Term):
    """Weighted mean of the squared distances (mm^2), or of the distances (mm) with ``squared`` False.

    Weights are those of the fixed points where they have any. InputError where points are missing or do not correspond.
    """

    squared: bool = True

    reference = """@article{Fitzpatrick1998TRE,
  author = {Fitzpatrick, J. Michael and West, Jay B. and Maurer, Calvin R.},
  title = {Predicting Error in Rigid-Body Point-Based Registration},
  journal = {IEEE Transactions on Medical Imaging}, volume = {17}, number = {5}, pages = {694--702}, year = {1998},
  doi = {10.1109/42.736021}}"""

    def __call__(self, alignment):
        fixed, moving = alignment.fixed_points, alignment.moving_points
        if fixed is None or moving is None:
            raise InputError("a landmark distance was asked for without points; give points of both images or remove the cost")
        if len(fixed) != len(moving):
            raise InputError(f"{len(fixed)} fixed and {len(moving)} moving points were given; they must correspond one to one")
        offset = alignment.transform(fixed.positions) - moving.positions
        distance = offset.square().sum(-1) if self.squared else torch.linalg.vector_norm(offset, dim=-1)
        if fixed.weights is None:
            return distance.mean(1)
        weights = fixed.weights.to(distance)
        return (distance * weights).sum(1) / weights.sum(1).clamp_min(torch.finfo(distance.dtype).tiny)
