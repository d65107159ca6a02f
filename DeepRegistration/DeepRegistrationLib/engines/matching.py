"""A smooth map of intensities between two images that are not aligned yet.

Around every voxel the fixed intensities f are related to the warped moving intensities w by w = a f + b, where a and b are
the weighted least squares fit in a Gaussian window. The weights p = 1 / (1 + (a f + b - w)^2 / s^2) of the last fit take out
what does not correspond yet, so that a ventricle of another size does not change the map of the tissue around it: this is
what sets it apart from the window statistics of the local correlation, whose slope fades where the images are misaligned.
With the map, the squared difference tolerates bias fields and local contrast. s is the robust standard deviation of the
residual; a ridge pulls a to the global slope where a window is flat. Reference for the estimator: Holland and Welsch,
Communications in Statistics 1977 (Cauchy weights).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..geometry import Grid
from ..ops import nd
from ..ops.filters import gaussian
from ..ops.spline import tensor_product
from ..ops.stats import robust_range

FOREGROUND = 0.02
RIDGE = 0.02
SMALLEST_SCALE = 0.02


@dataclass(frozen=True)
class IntensityMap:
    """w = slope * f + offset, (1, C, *S) each; applied where the fixed image is not background."""

    slope: torch.Tensor
    offset: torch.Tensor

    def __call__(self, fixed: torch.Tensor, background: float = 0.0) -> torch.Tensor:
        """fixed (1, C, *S) in the units of the warped image; background voxels keep their value."""
        mapped = torch.addcmul(self.offset, self.slope, fixed)
        return torch.where((fixed - background).abs() > FOREGROUND, mapped, fixed)


def local_map(fixed: torch.Tensor, warped: torch.Tensor, mapped: torch.Tensor, grid: Grid, window: float,
              background: float = 0.0) -> IntensityMap:
    """The map from fixed (1, C, *S), the warped image and the fixed image under the last map (or itself at first).

    Intensities have the range 1; ``window`` is the sigma in mm. Voxels where ``warped`` equals ``mapped`` are those that
    cannot be compared (``demons.pull``) and have no weight.
    """
    residual = mapped - warped
    counts = (((fixed - background).abs() > FOREGROUND) | ((warped - background).abs() > FOREGROUND)) & (residual != 0)
    if int(counts.sum()) < 100:
        return IntensityMap(torch.ones_like(fixed), torch.zeros_like(fixed))
    scale = max(1.4826 * _median(residual[counts].abs()), SMALLEST_SCALE)
    weight = residual.div_(scale).square_().add_(1).reciprocal_().mul_(counts)
    block = [max(1, int(round(window / 3 / s))) if n > 1 else 1 for s, n in zip(grid.spacing, grid.size)]
    sums = [_pooled(weight, block)]
    for factors in ((fixed,), (warped,), (fixed, fixed), (fixed, warped)):
        product = weight * factors[0]
        sums.append(_pooled(product.mul_(factors[1]) if len(factors) == 2 else product, block))
    sigma = window / (grid.spacing * block)
    slope, offset = _fit([x.flatten(2).sum(2).reshape(1, -1, *[1] * grid.dim) for x in sums], [gaussian(x, sigma) for x in sums])
    lines = [_between_blocks(n, b) for n, b in zip(grid.size, block)]
    return IntensityMap(tensor_product(slope, lines), tensor_product(offset, lines))


def _fit(total, local):
    """Slope and offset of the local fits, the slope drawn to that of the whole image by the ridge."""
    n = [x.clamp_min(1e-3) if k == 0 else x for k, x in enumerate(local)]
    mean_f, mean_w = n[1] / n[0], n[2] / n[0]
    variance, covariance = (n[3] / n[0] - mean_f.square()).clamp_min(0), n[4] / n[0] - mean_f * mean_w
    whole_f, whole_w = total[1] / total[0], total[2] / total[0]
    whole = (total[4] / total[0] - whole_f * whole_w) / (total[3] / total[0] - whole_f.square()).clamp_min(1e-6)
    whole = torch.where(total[0] > 1, whole, torch.ones_like(whole))  # a channel in which nothing can be compared stays as it is
    slope = (covariance + RIDGE**2 * whole) / (variance + RIDGE**2)
    return slope, mean_w - slope * mean_f


def _median(values):
    return robust_range(values, 0.5)[0]


def _pooled(x, block):
    pad = [v for n, b in zip(x.shape[:1:-1], block) for v in (0, -n % b)]
    return nd.average_pool(F.pad(x, pad), block)


def _between_blocks(n: int, block: int) -> np.ndarray:
    """(n, blocks) weights that interpolate values at the centres of blocks linearly at n voxels, clamped at the ends."""
    blocks = -(-n // block)
    position = np.clip((np.arange(n) + 0.5) / block - 0.5, 0, blocks - 1)
    low = np.minimum(position.astype(int), max(blocks - 2, 0))
    weights = np.zeros((n, blocks))
    weights[np.arange(n), low] = 1 - (position - low)
    weights[np.arange(n), np.minimum(low + 1, blocks - 1)] += position - low
    return weights
