"""A smooth map of intensities between two images that are not aligned yet.

Around every voxel the fixed intensities f are related to the warped moving intensities w by w = a f + b, where a and b are
the weighted least squares fit in a Gaussian window. The weights p = 1 / (1 + (a f + b - w)^2 / s^2) of the last fit take out
what does not correspond yet, so that a ventricle of another size does not change the map of the tissue around it: this is
what sets it apart from the window statistics of the local correlation, whose slope fades where the images are misaligned.
With the map, the squared difference tolerates bias fields and local contrast. s is the robust standard deviation of the
residual; a ridge pulls a to the global slope where a window is flat.

One fit leaves a strong shading behind, since it changes within a window of which the anatomy fills one side more than the other, and what is
left moves edges where nothing is to be moved. Where there is one it is fitted instead: in wider windows, every fit being one of what those before
it leave, which makes the windows sharp (long waves pass whole, short ones not at all). What spreads by less than ``SHADED`` is no shading, as
misaligned anatomy looks like that too.

References: Holland and Welsch, Communications in Statistics 1977 (Cauchy weights); Tukey, Exploratory Data Analysis, 1977 (twicing); Nesterov, Soviet
Mathematics Doklady 1983 (the push that saves repeats).
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
WIDER = 7 / 3
REPEATS = 8
SHADED = 0.1
"""Spread of the logarithm of a shading from which on it is taken out. On copies of the MNI template under known maps that of misalignment was at
most 0.06, that of shadings with a spread of 0.15 at least 0.12."""


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
    slope, offset = _fitted(sums, window / (grid.spacing * block))
    lines = [_between_blocks(n, b) for n, b in zip(grid.size, block)]
    return IntensityMap(tensor_product(slope, lines), tensor_product(offset, lines))


def _fitted(sums, sigma):
    """Slope and offset on the lattice of the weighted ``sums`` of 1, f, w, f f and f w: a shading, or else the local fit. Whether there is a shading is
    seen on a lattice of half the size, so that images without one cost no more."""
    half = [2 if n > 1 else 1 for n in sums[0].shape[:1:-1]]
    coarse = [_pooled(x, half) for x in sums]
    if _spread(coarse, *_shading(coarse, WIDER * sigma / half)) > SHADED:
        return _shading(sums, WIDER * sigma)
    return _refitted(sums, sigma, torch.ones_like(sums[1]), torch.zeros_like(sums[1]))


def _shading(sums, sigma):
    """Slope and offset of the shading: fits in wide windows, each of what those before it leave, with Nesterov's push."""
    last = now = torch.ones_like(sums[1]), torch.zeros_like(sums[1])
    for k in range(REPEATS):
        push = max(k - 1, 0) / (k + 2)
        last, now = now, _refitted(sums, sigma, *(x + push * (x - y) for x, y in zip(now, last)))
    return now


def _spread(sums, slope, offset) -> float:
    """The standard deviation of log((a f + b) / f) within the channels, f f being its weight."""
    _, f, _, ff, _ = sums
    gain = ((slope * ff + offset * f) / ff.clamp_min(1e-6)).clamp_min(0.05).log().flatten(2)
    weight = ff.flatten(2)
    mean = (weight * gain).sum(2, keepdim=True) / weight.sum(2, keepdim=True).clamp_min(1e-6)
    return float(((weight * (gain - mean).square()).sum() / weight.sum().clamp_min(1e-6)).sqrt())


def _refitted(sums, sigma, slope, offset):
    """Slope and offset to which the fit of ``slope`` f + ``offset`` to w leads; sigma in voxels of the sums."""
    ones, f, w, ff, fw = sums
    mapped = torch.stack([ones, slope * f + offset * ones, w, slope * (slope * ff + 2 * offset * f) + offset.square() * ones, slope * fw + offset * w])
    total = mapped.flatten(3).sum(3).reshape(*mapped.shape[:3], *[1] * (f.ndim - 2))
    more, shift = _fit(total, gaussian(mapped.flatten(0, 2)[None], sigma).reshape(mapped.shape))
    return more * slope, more * offset + shift


def _fit(total, local):
    """Slope and offset of the local fits, the slope drawn to that of the whole image by the ridge."""
    n = local[0].clamp_min(1e-3)
    mean_f, mean_w = local[1] / n, local[2] / n
    variance, covariance = (local[3] / n - mean_f.square()).clamp_min(0), local[4] / n - mean_f * mean_w
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
