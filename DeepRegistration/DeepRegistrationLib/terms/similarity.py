"""Costs of two images on one grid; only voxels of the mask count, a cost is averaged over channels.

MSE   mean (f - w)^2
NCC   1 - r, r the correlation coefficient over the mask (elastix's choice: a reversed contrast is not a match)
NGF   mean 1 - <n_f, n_w>^2, n the normalised gradients
MIND  mean (m_f - m_w)^2, m the self-similarity context

Local correlation and mutual information have files of their own. References are on the classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import InputError
from ..ops import nd
from ..ops.features import mind_floor, mind_ssc, ngf
from .base import Similarity
from .voxels import counted, folded, moments, slabs, unfolded

SLAB_VOXELS = 1 << 20


@dataclass(frozen=True)
class MSE(Similarity):
    """Mean squared difference, in squared intensities: for images whose tissues are equally bright; 0 without overlap."""

    reference = """@book{Modersitzki2009FAIR,
  author = {Modersitzki, Jan}, title = {{FAIR}: Flexible Algorithms for Image Registration},
  publisher = {SIAM}, year = {2009}, doi = {10.1137/1.9780898718843}}"""

    def compare(self, fixed, warped, mask=None, grid=None):
        return nd.spatial_mean((fixed - warped).square(), _batched(mask, warped))

    def gradient(self, fixed, warped, mask=None, grid=None):
        difference = warped.detach() - fixed.detach()
        weight = counted(mask, warped)
        if weight is None:
            count = difference[0].numel()
        else:
            difference.mul_(weight)
            count = (weight.flatten(1).sum(1) * warped.shape[1]).clamp_min(1)
        flat = difference.flatten(1)
        cost = torch.linalg.vecdot(flat, flat) / count
        factor = 2 / count if weight is None else _column(2 / count, difference)
        return cost, difference.mul_(factor)


@dataclass(frozen=True)
class NCC(Similarity):
    """1 - r, from 0 to 2, r the correlation coefficient: for images that differ by gain and offset; 1 without overlap."""

    reference = """@article{Klein2010elastix,
  author = {Klein, Stefan and Staring, Marius and Murphy, Keelin and Viergever, Max A. and Pluim, Josien P. W.},
  title = {elastix: A Toolbox for Intensity-Based Medical Image Registration},
  journal = {IEEE Transactions on Medical Imaging}, volume = {29}, number = {1}, pages = {196--205}, year = {2010},
  doi = {10.1109/TMI.2009.2035616}}"""

    def compare(self, fixed, warped, mask=None, grid=None):
        return self._parts(fixed, warped, mask)[0]

    def _parts(self, fixed, warped, mask):
        f, w, weight = folded(fixed, warped, mask)
        (mean_f, std_f, _), (mean_w, std_w, count) = moments(f, weight), moments(w, weight)
        f = (f - mean_f) / std_f
        w = (w - mean_w) / std_w
        f = f if weight is None else f * weight
        r = torch.linalg.vecdot(f.flatten(1), w.flatten(1)) / count
        return (1 - r).reshape(warped.shape[0], -1).mean(1), f, w, r, std_w, count, weight

    def gradient(self, fixed, warped, mask=None, grid=None):
        cost, f, w, r, std, count, weight = self._parts(fixed.detach(), warped.detach(), mask)
        slope = w.mul_(_column(r, w)).sub_(f)
        slope.mul_(1 / (std * _column(count, w) * warped.shape[1]))
        return cost, unfolded(slope if weight is None else slope.mul_(weight), warped)


@dataclass(frozen=True)
class NGF(Similarity):
    """Angle between image gradients, from 0 to 1: for different modalities; a flat voxel costs 1.

    eta in intensity per mm is the gradient that counts as noise; 0 takes half of each image's root mean square gradient.
    """

    eta: float = 0.0

    reference = """@inproceedings{Haber2006NGF,
  author = {Haber, Eldad and Modersitzki, Jan},
  title = {Intensity Gradient Based Registration and Fusion of Multi-modal Images},
  booktitle = {Medical Image Computing and Computer-Assisted Intervention}, pages = {726--733}, year = {2006},
  doi = {10.1007/11866763_89}}"""

    def compare(self, fixed, warped, mask=None, grid=None):
        if grid is None:
            raise InputError("NGF was called without a grid; gradients are per mm, give the grid of the images")
        mask = _batched(mask, warped)
        n_f, n_w = ngf(fixed, grid, self.eta, mask), ngf(warped, grid, self.eta, mask)
        return 1 - nd.spatial_mean((n_f * n_w).sum(2).square(), mask)


@dataclass(frozen=True)
class MINDSSC(Similarity):
    """Mean squared difference of self-similarity contexts, from 0 to 1: for different modalities, also reversed contrast.

    radius of the patches and dilation (distance of the compared patches) are in voxels of the grid, as the descriptor is
    defined on the lattice. 0 without overlap.
    """

    radius: int = 1
    dilation: int = 2

    reference = """@inproceedings{Heinrich2013SSC,
  author = {Heinrich, Mattias P. and Jenkinson, Mark and Papie{\\.z}, Bart{\\l}omiej W. and Brady, Sir Michael and Schnabel, Julia A.},
  title = {Towards Realtime Multimodal Fusion for Image-Guided Interventions Using Self-similarities},
  booktitle = {Medical Image Computing and Computer-Assisted Intervention}, pages = {187--194}, year = {2013},
  doi = {10.1007/978-3-642-40811-3_24}}"""

    def compare(self, fixed, warped, mask=None, grid=None):
        f, w, weight = folded(fixed, warped, mask)
        keep = None if weight is None else weight > 0
        floors = [mind_floor(x, self.dilation, keep) for x in (f, w)]
        total = self._squares(f, w, keep, floors, 0, f.shape[2])
        return total.reshape(warped.shape[0], -1).mean(1)

    def _squares(self, f, w, keep, floors, start, length):
        """(N,) sum of squared differences over ``length`` slices from ``start``, over the channels' number."""
        m_f, m_w = (mind_ssc(x, self.radius, self.dilation, keep, c) for x, c in zip((f, w), floors))
        difference = (m_w - m_f).narrow(2, start, length)
        return nd.spatial_mean(difference.square(), None if keep is None else keep.narrow(2, start, length))

    def gradient(self, fixed, warped, mask=None, grid=None):
        """As in the base, slab by slab: a dozen channels of the whole volume never exist at the same time."""
        f, w, weight = folded(fixed.detach(), warped.detach(), mask)
        keep = None if weight is None else weight > 0
        floors = [mind_floor(x, self.dilation, keep) for x in (f, w)]
        whole = f[0].numel() if weight is None else weight.flatten(1).sum(1).clamp_min(1)
        total, slope = torch.zeros_like(f.flatten(1)[:, 0]), torch.zeros_like(w)
        for (low, high), (start, length) in slabs(w, self.radius + self.dilation, SLAB_VOXELS):
            part = slice(low, high)
            inner = None if keep is None else keep[:, :, part]
            count = f[0, :, start + low:start + low + length].numel() if weight is None else (
                weight[:, :, start + low:start + low + length].flatten(1).sum(1).clamp_min(1))
            with torch.enable_grad():
                leaf = w[:, :, part].detach().requires_grad_(True)
                cost = self._squares(f[:, :, part], leaf, inner, floors, start, length) * (count / whole)
                slope[:, :, part] += torch.autograd.grad(cost.sum(), leaf)[0]
            total += cost.detach()
        channels = warped.shape[1]
        return total.reshape(-1, channels).mean(1), unfolded(slope.div_(channels), warped)


def _batched(mask, like):
    return None if mask is None else mask.expand(like.shape[0], *mask.shape[1:])


def _column(values, like):
    """(N,) -> (N, 1, ..., 1)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))
