"""Two neighboring stained sections of one generated tissue with the displacement between them known.

A tissue of a few classes with texture is made in 3D; two of its planes are the sections, so that large structures correspond and the fine
texture only in part. Each has noise of its own (cells), and the second stain colors some of the classes anew.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image

CLASSES = 6


def sections(seed: int, edge: int = 512, gap: int = 3, motion: float = 12.0) -> tuple[Image, Image, np.ndarray, np.ndarray]:
    """(fixed, moving, displacement (2, edge, edge) pixels as (y, x), tissue (edge, edge) bool): fixed(p) shows what moving(p + u(p)) shows."""
    rng = np.random.default_rng(seed)
    scale, planes = edge / 512, (gap + 1, edge, edge)
    y, x = np.mgrid[:edge, :edge] / edge - 0.5
    tissue = 0.42 - np.hypot(1.1 * x, y) + 0.05 * _noise(rng, planes, (4, 30 * scale, 30 * scale)) > 0
    classes = np.argmax([_noise(rng, planes, (6, 20 * scale, 20 * scale)) for _ in range(CLASSES)], 0)
    texture = 0.12 * _noise(rng, planes, (2, 2, 2))
    stain = rng.uniform(0.25, 1, CLASSES)
    other = np.where(rng.random(CLASSES) < 0.4, rng.uniform(0.25, 1, CLASSES), stain)
    fixed, moving = (np.where(tissue[k], np.clip(colors[classes[k]] + texture[k] + 0.1 * _noise(rng, (edge, edge), 1), 0.05, 1.5), 0)
                     for k, colors in ((0, stain), (gap, other)))
    u = motion * np.stack([0.8 * _noise(rng, (edge, edge), 60 * scale) + 0.2 * _noise(rng, (edge, edge), 25 * scale) for _ in range(2)])
    grid = Grid.from_parts((edge, edge))
    images = [Image(torch.as_tensor(a, dtype=torch.float32)[None, None], grid) for a in (fixed, _moved(moving, u))]
    return *images, u, tissue[0]


def _noise(rng, shape, sigma):
    values = gaussian_filter(rng.standard_normal(shape), sigma, mode="wrap")
    return values / values.std()


def _moved(values, u):
    """The image M with M(p + u(p)) = values(p), the inverse displacement found by iteration."""
    place = np.mgrid[: values.shape[0], : values.shape[1]]
    back = -u
    for _ in range(40):
        back = -np.stack([map_coordinates(c, place + back, order=1, mode="nearest") for c in u])
    return map_coordinates(values, place + back, order=1, mode="nearest")
