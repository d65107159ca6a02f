"""Sections of a volume whose place is known: oblique, deformed, torn, in another brightness, with noise. Made by scipy from the volume's own
voxels, apart from what the library does to train its network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image


@dataclass(frozen=True, eq=False)
class Section:
    """A picture as it comes from a microscope; position: mm along the normal of the plates of the middle of its tissue, before parts were lost;
    tilt: degrees; frame (4, 4): its plane, (u, v, w) mm -> LPS mm."""

    image: Image
    position: float
    tilt: float
    frame: np.ndarray


def section(volume: Image, axes: np.ndarray, position: float, generator: np.random.Generator, name: str, tilt: float = 8.0,
            partial: bool = True, spoil: bool = True) -> Section:
    """A section near ``position`` mm along the normal ``axes[:, 2]``, tilted by up to ``tilt`` degrees; ``axes`` (3, 3): LPS of u, v, normal."""
    data, grid = volume.data[0, 0].numpy(), volume.grid
    ceiling = np.quantile(data, 0.998)
    extent = float(grid.extent.max()) * 1.1
    step = float(grid.spacing.min())
    count = int(extent / step)
    direction = generator.uniform(0, 2 * np.pi)
    amount = generator.uniform(tilt / 2, tilt)
    turned = axes @ Rotation.from_rotvec(np.deg2rad(amount) * np.array([np.cos(direction), np.sin(direction), 0])).as_matrix()
    spin = Rotation.from_rotvec([0, 0, np.deg2rad(generator.uniform(-10, 10) if spoil else 0.0)]).as_matrix()
    frame = np.eye(4)
    frame[:3, :3] = turned @ spin
    middle = axes.T @ grid.centre
    frame[:3, 3] = axes @ np.array([middle[0], middle[1], position])
    line = (np.arange(count) - (count - 1) / 2) * step
    u, v = np.meshgrid(line, line)
    stretch = np.exp(generator.uniform(-0.08, 0.08, 2)) if spoil else np.ones(2)
    field = [gaussian_filter(generator.standard_normal(u.shape), count / 12) for _ in range(2)] if spoil else [0 * u, 0 * u]
    bend = [f / max(f.std(), 1e-9) * 0.012 * extent if spoil else f for f in field]
    points = np.stack([u * stretch[0] + bend[0], v * stretch[1] + bend[1], 0 * u, 0 * u + 1], -1) @ frame.T
    index = grid.world_to_index(points[..., :3])
    picture = np.clip(map_coordinates(data, np.moveaxis(index, -1, 0)[::-1], order=1) / ceiling, 0, 1)
    tissue = picture > 0.1
    where = float((points[..., :3] @ axes[:, 2])[tissue].mean())
    if partial:
        picture = torn(picture, tissue, u, v, generator)
    if spoil:
        picture = stained(picture, generator)
    shape = Grid.from_parts(picture.shape, step, (3.0, -5.0))
    return Section(Image(torch.from_numpy(picture.astype(np.float32))[None, None], shape, name=name), where, amount, frame)


def torn(picture, tissue, u, v, generator) -> np.ndarray:
    """Without a quarter to two fifths of the tissue on one side, and with a hole."""
    angle = generator.uniform(0, 2 * np.pi)
    along = u * np.cos(angle) + v * np.sin(angle)
    limit = np.quantile(along[tissue], 1 - generator.uniform(0.25, 0.4))
    out = np.where(along < limit, picture, 0)
    column, row = generator.integers(0, tissue.sum()), generator.uniform(0.02, 0.05) * (u.max() - u.min())
    center = np.stack([u[tissue], v[tissue]], 1)[column]
    return np.where((u - center[0]) ** 2 + (v - center[1]) ** 2 < row**2, 0, out)


def stained(picture, generator) -> np.ndarray:
    """Another curve of brightness, a shading, noise and pepper."""
    out = picture ** generator.uniform(0.6, 1.6)
    shade = gaussian_filter(generator.standard_normal(out.shape), out.shape[0] / 5)
    out = out * np.exp(0.25 * shade / shade.std()) * (picture > 0)
    out = np.clip(out + generator.uniform(0.01, 0.06) * generator.standard_normal(out.shape) * (picture > 0.02), 0, None)
    spots = generator.random(out.shape) < generator.uniform(0, 0.02)
    return np.where(spots, generator.random(out.shape) > 0.5, out)
