"""What a compositive registration compares: the channels of an image at one level, scaled so that 1 is the whole range.

* mse: the values, robust range scaled to [0, 1].
* lncc: (I - local mean) / (local standard deviation + floor) in a Gaussian window. The squared difference of two images
  standardised like this is 2 (1 - r) with r the local correlation, so it tolerates bias fields and local contrast, and
  because each image is standardised by itself, misalignment does not weaken it. Cachier et al., CVIU 2003.
* mind: the self-similarity descriptor MIND-SSC, for images of different contrast. Heinrich et al., MICCAI 2013.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ..image import Image
from ..ops.features import mind_ssc
from ..ops.filters import gaussian
from ..ops.stats import robust_range

CHANNELS = ("mse", "lncc", "mind")


def normalised(image: Image, limits: tuple[float, float] | None = None) -> Image:
    """The image as float32 with its robust range (or ``limits``) scaled to [0, 1], clamped."""
    low, high = limits or limits_of(image)
    return replace(image, data=((image.data.float() - low) / (high - low)).clamp_(0, 1))


def limits_of(image: Image) -> tuple[float, float]:
    """Robust range of the values inside the mask that differ from the lowest value (background), or the full range."""
    values = image.data if image.mask is None else image.data[image.mask.expand_as(image.data)]
    values = values.reshape(-1).float()
    low = float(values.min())
    content = values[values > low]
    _, high = robust_range(content if content.numel() else values, 5e-3)
    low, _ = robust_range(values, 5e-3)
    return (low, high) if high > low else (float(values.min()), float(values.max()))


def channels(image: Image, kind: str, window: float, noise: float = 0.02) -> Image:
    """The compared channels of a normalised image at its level; ``window`` mm is the sigma of "lncc", noise its floor."""
    if kind == "mse":
        return image
    if kind == "mind":
        parts = [mind_ssc(image.data[:, c : c + 1]) for c in range(image.data.shape[1])]
        return replace(image, data=torch.cat(parts, 1))
    sigma = np.maximum(window / image.grid.spacing, 1.0)
    weight = None if image.mask is None else image.mask.to(image.data.dtype)
    mean = _windowed(image.data, sigma, weight)
    centred = image.data - mean
    deviation = _windowed(centred.square(), sigma, weight).clamp_min(0).sqrt()
    return replace(image, data=centred.div_(deviation.add_(noise)).mul_(0.25))


def _windowed(data, sigma, weight):
    """Gaussian mean, of the masked voxels only where a weight is given."""
    if weight is None:
        return gaussian(data, sigma)
    return gaussian(data * weight, sigma) / gaussian(weight, sigma).clamp_min(1e-3)
