"""Local normalised cross-correlation, squared.

cost = mean over the mask of 1 - (s_fw + e)^2 / ((s_ff + e) (s_ww + e)), with s the (co)variances in a window around the
voxel (a box, or a Gaussian), from the voxels of the mask only. Both images are first brought to mean 0 and variance 1
over the mask; e is a noise variance that both are taken to share, so a patch that is flat in both images is a match and
noise is not made into structure. e = 0 gives the usual definition.

Gradient, with the window sums K (self-adjoint, zeros outside), n = K(m), m the mask, N voxels, r2 the squared correlation:

    P = m (s_fw + e) / ((s_ff + e) (s_ww + e) n),   Q = m r2 / ((s_ww + e) n)
    d cost / d w = -2 m / N (f K(P) - w K(Q) - K(P mean_f - Q mean_w))

followed by the derivative of the scaling of w. Avants et al., Medical Image Analysis 2008 (squared local correlation);
Cachier et al., Computer Vision and Image Understanding 2003 (Gaussian window).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from ..ops.filters import box, gaussian, gaussian_kernel
from .base import Similarity
from .voxels import folded, moments, slabs, unfolded

SLAB_VOXELS = 1 << 23


@dataclass(frozen=True)
class LNCC(Similarity):
    """1 - squared local correlation, from 0 to 1: for images of one modality with bias fields; 1 without overlap.

    radius (mm) of a box window, at least one voxel; sigma (mm) above 0 takes a Gaussian window instead. noise is the
    standard deviation that counts as noise, as a share of the image's own.
    """

    radius: float = 2.0
    sigma: float = 0.0
    noise: float = 0.01

    reference = """@article{Avants2008SyN,
  author = {Avants, Brian B. and Epstein, Charles L. and Grossman, Murray and Gee, James C.},
  title = {Symmetric Diffeomorphic Image Registration with Cross-Correlation},
  journal = {Medical Image Analysis}, volume = {12}, number = {1}, pages = {26--41}, year = {2008},
  doi = {10.1016/j.media.2007.06.004}}"""

    def compare(self, fixed, warped, mask=None, grid=None):
        f, w, weight = folded(fixed, warped, mask)
        window, _ = self._window(grid, w)
        (mean_f, std_f, _), (mean_w, std_w, count) = moments(f, weight), moments(w, weight)
        f, w = (f - mean_f) / std_f, (w - mean_w) / std_w
        if weight is not None:
            f, w = f * weight, w * weight
        share = _share(window, weight, f)
        local_f, local_w = window(f) * share, window(w) * share
        noise = self.noise**2
        both = window(f * w) * share - local_f * local_w + noise
        var_f = (window(f * f) * share - local_f.square()).clamp_min(0) + noise
        var_w = (window(w * w) * share - local_w.square()).clamp_min(0) + noise
        r2 = both.square() / (var_f * var_w)
        r2 = r2 if weight is None else r2 * weight
        return (1 - r2.flatten(1).sum(1) / count).reshape(warped.shape[0], -1).mean(1)

    def gradient(self, fixed, warped, mask=None, grid=None):
        """The closed form above, slab by slab: its dozen temporaries never have the size of a large volume."""
        f, w, weight = folded(fixed.detach(), warped.detach(), mask)
        window, reach = self._window(grid, w)
        (mean_f, std_f, _), (mean_w, std_w, count) = moments(f, weight), moments(w, weight)
        slope, agreement = torch.empty_like(w), torch.zeros_like(count)
        scaling = torch.zeros_like(count)
        for (low, high), (start, length) in slabs(w, 2 * reach, SLAB_VOXELS):
            part_f = f[:, :, low:high].sub(mean_f).div_(std_f)
            part_w = w[:, :, low:high].sub(mean_w).div_(std_w)
            part = None if weight is None else weight[:, :, low:high]
            if part is not None:
                part_f.mul_(part)
                part_w.mul_(part)
            r2, force = _closed_form(part_f, part_w, part, window, self.noise**2)
            r2, force, part_w = (x.narrow(2, start, length) for x in (r2, force, part_w))
            agreement += r2.flatten(1).sum(1)
            scaling += (force * part_w).flatten(1).sum(1)
            slope[:, :, low + start:low + start + length] = force
        cost = (1 - agreement / count).reshape(warped.shape[0], -1).mean(1)
        return cost, unfolded(_unscaled(slope, w, weight, mean_w, std_w, count, scaling, warped.shape[1]), warped)

    def _window(self, grid, x):
        """The window as a filter with zeros outside, and how many slices it reaches along the first spatial axis."""
        dim = x.ndim - 2
        spacing = np.ones(dim) if grid is None else grid.spacing
        size = np.array(x.shape[:1:-1])
        if self.sigma > 0:
            sigma = np.where(size > 1, np.maximum(self.sigma / spacing, 0.5), 0)
            return partial(gaussian, sigma=sigma, border="zero"), len(gaussian_kernel(sigma[-1])) // 2 if sigma[-1] > 0 else 0
        radius = np.where(size > 1, np.maximum(1, np.round(self.radius / spacing)), 0)
        return partial(box, radius=radius, border="zero"), int(radius[-1])


def _share(window, weight, like):
    """1 / (sum of the mask's weights in the window of every voxel); broadcasts where every voxel counts."""
    if weight is not None:
        return 1 / window(weight).clamp_min(1e-6)
    share = torch.ones((1,) * like.ndim, dtype=like.dtype, device=like.device)
    for axis in range(2, like.ndim):
        line = [1] * like.ndim
        line[axis] = like.shape[axis]
        share = share / window(torch.ones(line, dtype=like.dtype, device=like.device))
    return share


def _closed_form(f, w, weight, window, noise):
    """Squared correlation times the mask, and f K(P) - w K(Q) - K(P mean_f - Q mean_w) of the module's equation."""
    share = _share(window, weight, f)
    mean_f, mean_w = window(f).mul_(share), window(w).mul_(share)
    both = window(f * w).mul_(share).addcmul_(mean_f, mean_w, value=-1).add_(noise)
    var_f = window(f * f).mul_(share).addcmul_(mean_f, mean_f, value=-1).clamp_min_(0).add_(noise)
    var_w = window(w * w).mul_(share).addcmul_(mean_w, mean_w, value=-1).clamp_min_(0).add_(noise)
    p = var_f.mul_(var_w).reciprocal_().mul_(both)
    r2 = both.mul_(p)
    if weight is not None:
        r2.mul_(weight)
        p.mul_(weight)
    p.mul_(share)
    q = torch.div(r2, var_w, out=var_w).mul_(share)
    mean = mean_f.mul_(p).addcmul_(mean_w, q, value=-1)
    force = window(p).mul_(f).addcmul_(window(q), w, value=-1).sub_(window(mean))
    return r2, force if weight is None else force.mul_(weight)


def _unscaled(slope, w, weight, mean, std, count, scaling, channels):
    """Chain rule through (w - mean) / std: the part along w is taken out and the rest divided by std; in place."""
    shape = mean.shape
    along = (scaling / count).reshape(shape) / std
    offset = w - mean
    slope.addcmul_(offset if weight is None else offset.mul_(weight), along, value=-1)
    return slope.mul_(-2 / (count.reshape(shape) * std * channels))
