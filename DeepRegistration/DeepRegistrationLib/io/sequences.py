"""Sequences of volumes in one file, as 3D Slicer's Sequences module reads and writes them (.seq.nrrd).

A NRRD file of four axes, the first of them a list; "axis 0 index values" says what every item stands for, for example its age. A slice is a volume of
one slice. Format: teem.sourceforge.net/nrrd/format.html and Slicer's user guide (Sequences).
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..geometry import Grid
from ..image import Image


def write_sequence(images: tuple[Image, ...], values, path: Path, name: str) -> None:
    """Write ``images`` (1, 1, *S) on one lattice with the rising number that each stands for (``values``) as float32; ``name`` of these numbers.

    InputError for images on several lattices.
    """
    first = images[0].grid
    if any(not image.grid.same_as(first) for image in images):
        raise InputError("the images of a sequence lie on several lattices; resample them onto one")
    grid = solid(first)
    data = np.stack([image.data[0, 0].float().numpy().reshape(grid.shape) for image in images], -1)

    def vector(numbers) -> str:
        return "(" + ",".join(f"{v:.17g}" for v in numbers) + ")"

    lines = ["NRRD0005", "type: float", "dimension: 4", "space: left-posterior-superior", f"sizes: {len(images)} {' '.join(map(str, grid.size))}",
             f"space directions: none {' '.join(vector(column) for column in grid.matrix.T)}", "kinds: list domain domain domain",
             f'labels: "{name}" "" "" ""', "endian: little", "encoding: gzip", f"space origin: {vector(grid.origin)}",
             "measurement frame: (1,0,0) (0,1,0) (0,0,1)", "DataNodeClassName:=vtkMRMLScalarVolumeNode", "axis 0 index type:=numeric",
             f"axis 0 index values:={' '.join(f'{v:g}' for v in values)}"]
    Path(path).write_bytes(("\n".join(lines) + "\n\n").encode("ascii") + gzip.compress(np.ascontiguousarray(data, "<f4").tobytes(), 6))


def solid(grid: Grid) -> Grid:
    """A lattice of three axes: that of a slice lies in the plane z = 0 and is 1 mm thick."""
    if grid.dim == 3:
        return grid
    affine = np.eye(4)
    affine[:2, :2], affine[:2, 3] = grid.matrix, grid.origin
    return Grid((1, *grid.shape), affine)
