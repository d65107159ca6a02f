"""Mutual information from a joint histogram with Parzen windows.

I = sum p_ij log(p_ij / (p_i p_j)), p the joint histogram of the voxels in the mask: the fixed image chooses a bin, the
warped image spreads over four bins with cubic B-spline weights. Mattes et al., IEEE TMI 2003. The cost is log(bins) - I
(nats, never negative), or 1 - 2 I / (H_f + H_w) in [0, 1], the entropy correlation coefficient, which depends less on the
overlap (Maes et al., IEEE TMI 1997; it orders transforms as Studholme's ratio does).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..errors import InputError
from ..ops.stats import joint_histogram, robust_range
from .base import Similarity
from .voxels import folded


@dataclass(frozen=True)
class MutualInformation(Similarity):
    """log(bins) - mutual information in nats, or its normalised form: for any pair of modalities.

    bins per image, at least 8. fixed_range and warped_range (low, high) in intensities; by default the 0.1 % and 99.9 %
    quantiles inside the mask. Values outside are clamped; the range counts as constant in derivatives, and the cost is
    differentiable in the warped image only.
    """

    bins: int = 32
    normalised: bool = False
    fixed_range: tuple[float, float] | None = None
    warped_range: tuple[float, float] | None = None

    reference = """@article{Mattes2003MI,
  author = {Mattes, David and Haynor, David R. and Vesselle, Hubert and Lewellen, Thomas K. and Eubank, William},
  title = {{PET-CT} Image Registration in the Chest Using Free-form Deformations},
  journal = {IEEE Transactions on Medical Imaging}, volume = {22}, number = {1}, pages = {120--128}, year = {2003},
  doi = {10.1109/TMI.2003.809072}}"""

    def __post_init__(self):
        if self.bins < 8:
            raise InputError(f"mutual information with {self.bins} bins was asked for; use at least 8, 32 is usual")

    def compare(self, fixed, warped, mask=None, grid=None):
        f, w, weight = folded(fixed, warped, mask)
        costs = []
        for k in range(f.shape[0]):
            values = f[k].flatten(), w[k].flatten()
            if weight is not None:
                keep = weight[k].flatten().nonzero()[:, 0]
                values = tuple(v[keep] for v in values)
            costs.append(self._cost(*values))
        return torch.stack(costs).reshape(warped.shape[0], -1).mean(1).to(warped.dtype)

    def _cost(self, fixed, warped):
        """(N,), (N,) -> (), float64."""
        of_fixed, of_warped, of_both = entropies(fixed, warped, self.bins, self.fixed_range, self.warped_range)
        information = of_fixed + of_warped - of_both
        if self.normalised:
            return 1 - 2 * information / (of_fixed + of_warped).clamp_min(1e-12)
        return math.log(self.bins) - information


def entropies(fixed: torch.Tensor, warped: torch.Tensor, bins: int, fixed_range=None, warped_range=None):
    """Entropies in nats, float64 (), of the fixed values (N,), of the warped ones (N,) and of both together; ranges as in ``MutualInformation``."""
    rows = _scaled(fixed.detach(), fixed_range).mul_(bins).long().clamp_(0, bins - 1)
    columns = 1 + _scaled(warped, warped_range) * (bins - 4)
    joint = joint_histogram(rows, columns, bins) / max(1, len(rows))
    return tuple(_entropy(p) for p in (joint.sum(1), joint.sum(0), joint))


def _scaled(values, limits):
    """Values to [0, 1] over ``limits``, clamped."""
    low, high = limits or robust_range(values)
    return ((values - low) / max(high - low, 1e-30)).clamp(0, 1)


def _entropy(p):
    return -torch.xlogy(p, p.clamp_min(1e-300)).sum()
