"""Small cohorts of image files for the tests of training: blobs of known places, with label maps and points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image, Labels
from DeepRegistrationLib.io import write_image, write_points
from DeepRegistrationLib.points import Points


def blob(grid: Grid, middle, radius: float = 6.0) -> torch.Tensor:
    """(1, 1, *S) in [0, 1]: a ball about ``middle`` mm with a soft edge, on a faint ramp."""
    points = torch.as_tensor(grid.points()).float()
    distance = torch.linalg.vector_norm(points - torch.as_tensor(np.array(middle, np.float32)), dim=-1)
    return ((radius - distance).sigmoid() + 0.02 * points[..., 0] / 20)[None, None]


def subject(k: int, dim: int) -> np.ndarray:
    """The middle of the ball of subject ``k``, mm."""
    return np.array([10.0 + (k % 3), 12.0 - (k % 4), 11.0 + 0.5 * (k % 5)][:dim])


def write(folder: Path, count: int, dim: int = 2, labels: str = "{name}_seg", points: bool = False, spacing: float = 1.0, shift: float = 0.0,
          suffix: str = ".nii.gz", side: int = 24) -> Path:
    """``count`` images s00, s01, ... in ``folder``; ``labels`` '' for none; ``shift`` mm moves the header of the k-th image k times."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        grid = Grid.from_parts((side,) * dim, spacing, np.full(dim, k * shift))
        middle = subject(k, dim) * spacing + k * shift
        data = 1000 * blob(grid, middle, 6.0 * spacing)
        write_image(Image(data, grid), folder / f"s{k:02d}{suffix}")
        if labels:
            path = folder / (labels.format(name=f"s{k:02d}") + suffix)
            path.parent.mkdir(exist_ok=True)
            write_image(Labels((data > 500).to(torch.int32), grid), path)
        if points:
            write_points(Points(torch.as_tensor(middle)[None, None], names=("middle",)), folder / f"s{k:02d}_points.csv")
    return folder
