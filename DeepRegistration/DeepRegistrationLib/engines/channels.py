"""What a compositive registration compares: the channels of an image at one level, scaled so that 1 is the whole range.

* mse and lncc: the values, robust range scaled to [0, 1]; for lncc ``matching.py`` maps them locally.
* mind: the self-similarity descriptor MIND-SSC, for images of different contrast. Heinrich et al., MICCAI 2013.
* ngf: the products n_i n_j of the normalised gradient n, in which a reversed contrast is no difference; the squared difference
  of two is |n|^4 + |m|^4 - 2 (n.m)^2. Haber and Modersitzki, MICCAI 2006 (the same angle between gradients).
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ..image import Image
from ..ops.features import mind_ssc, ngf
from ..ops.filters import gaussian
from ..ops.stats import robust_range
from ..transforms import Affine

FILL_SIGMA = 4.0
CHANNELS = ("mse", "lncc", "mind", "ngf")


def normalised(image: Image, limits: tuple[float, float] | None = None) -> Image:
    """The image as float32 with its robust range (or ``limits``) scaled to [0, 1], clamped; masked voxels are filled."""
    low, high = limits or limits_of(image)
    return _filled(replace(image, data=((image.data.float() - low) / (high - low)).clamp_(0, 1)))


def _filled(image: Image) -> Image:
    """What the mask leaves out is replaced by a blur of what it keeps, so that it reaches neither gradients nor coarser levels."""
    if image.mask is None:
        return image
    weight = image.mask.to(image.data.dtype)
    near = gaussian(weight, FILL_SIGMA)
    blurred = gaussian(image.data * weight, FILL_SIGMA) / near.clamp_min(1e-6)
    mean = (image.data * weight).sum() / (weight.sum() * image.data.shape[1])
    return replace(image, data=torch.where(image.mask, image.data, torch.where(near > 1e-4, blurred, mean)))


def normalised_pair(fixed: Image, moving: Image, shared: bool = False) -> tuple[Image, Image]:
    """Both images as float32 with their robust ranges scaled to [0, 1]; with ``shared`` one range serves both."""
    limits = limits_of(fixed), limits_of(moving)
    if shared:
        limits = ((min(limits[0][0], limits[1][0]), max(limits[0][1], limits[1][1])),) * 2
    return normalised(fixed, limits[0]), normalised(moving, limits[1])


def limits_of(image: Image) -> tuple[float, float]:
    """Robust range of the values inside the mask that differ from the lowest value (background), or the full range."""
    values = image.data if image.mask is None else image.data[image.mask.expand_as(image.data)]
    values = values.reshape(-1).float()
    low = float(values.min())
    content = values[values > low]
    _, high = robust_range(content if content.numel() else values, 5e-3)
    low, _ = robust_range(values, 5e-3)
    return (low, high) if high > low else (float(values.min()), float(values.max()))


def folded(image: Image, linear: Affine) -> Image:
    """The moving image as seen before the linear map: header surgery, no resampling."""
    return replace(image, grid=image.grid.moved(linear.inverse().numpy()))


def channels(image: Image, kind: str) -> Image:
    """The compared channels of a normalised image at its level."""
    if kind == "mind":
        parts = [mind_ssc(image.data[:, c : c + 1]) for c in range(image.data.shape[1])]
    elif kind == "ngf":
        parts = [_products(n) for n in ngf(image.data, image.grid, mask=image.mask).unbind(1)]
    else:
        return image
    return replace(image, data=torch.cat(parts, 1))


def _products(n):
    """n (1, dim, *S) -> (1, dim (dim + 1) / 2, *S): the products of its components, mixed ones times the root of 2 for both of their places."""
    dim = n.shape[1]
    pairs = [(i, j) for i in range(dim) for j in range(i, dim)]
    return torch.stack([n[:, i] * n[:, j] * (1.0 if i == j else 2**0.5) for i, j in pairs], 1)
