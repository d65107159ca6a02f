"""Slices from files: each file one slice at its own place, from a list or from a folder of DICOM files in the order of their instances."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from ..exchange import PICTURES
from ..geometry import Grid
from ..image import Image
from .files import suffix
from .images import Volume, read_image, read_volume

SERIES, INSTANCE, THICKNESS = "0020|0011", "0020|0013", "0018|0050"
UNSAID = (1.0, 25.4 / 72, 25.4 / 96)
"""mm: the size of pixels of a picture that says none, and that of a screen, which programs write into pictures that know none."""
MOST_COLOR = 8
"""Difference of red, green and blue, of 255, up to which a picture counts as gray; JPEG mixes them a little."""


def read_slice(path, no_value=None) -> Image:
    """One slice (1, 1, *S) as stored, as thick as a DICOM header says; NaN stay, they mark pixels without a value, as ``no_value`` does (see ``without``).
    InputError as ``read_image``, and for a picture in colors, which are no values."""
    image = read_image(path, channels="gray")
    if suffix(path) in PICTURES:
        _require_gray(path)
    return without(replace(image, grid=_as_thick_as_said(image.grid, path)), no_value)


def without(image: Image, no_value) -> Image:
    """The image with NaN where it has ``no_value``, a number or several; None for none."""
    if no_value is None:
        return image
    data = image.data.float()
    return replace(image, data=data.masked_fill(torch.isin(data, torch.tensor(no_value, dtype=torch.float32)), float("nan")))


def is_picture(path) -> bool:
    """True for a file of a kind that most often does not say how large its pixels are."""
    return suffix(path) in PICTURES


def is_unsized(path, grid: Grid) -> bool:
    """True for a picture whose file does not say how large its pixels are, read onto ``grid``."""
    return is_picture(path) and any(np.allclose(grid.spacing, size, rtol=1e-3) for size in UNSAID)


def _require_gray(path) -> None:
    colors = read_image(path, channels="vector").data[0]
    if len(colors) >= 3 and float((colors[:3].amax(0) - colors[:3].amin(0)).max()) > MOST_COLOR:
        raise InputError(f"{path} is a picture in colors, which are no values of a map; save the values themselves, as DICOM, NIfTI or NRRD, "
                         "or a gray picture")


def _as_thick_as_said(grid: Grid, path) -> Grid:
    """``grid`` of one slice with the thickness of a DICOM header: ITK has the distance of slices instead, and 1 mm where there is none."""
    if grid.dim != 3 or grid.size[2] != 1 or not (Path(path).is_dir() or _is_dicom(Path(path))):
        return grid
    text = read_volume(path).fields.get(THICKNESS, "").strip()
    try:
        thickness = float(text)
    except ValueError:
        return grid
    return Grid.from_parts(grid.shape, np.r_[grid.spacing[:2], thickness], grid.origin, grid.direction) if thickness > 0 else grid


def slice_files(folder) -> list[Path]:
    """The DICOM files of ``folder``, whatever their endings, by the numbers of series and instance, then by name. InputError where there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; give the folder that holds the DICOM files of the slices, or list files after --slices")
    files = [p for p in folder.iterdir() if p.is_file() and _is_dicom(p)]
    if not files:
        raise InputError(f"{folder} holds no DICOM file; give the folder with the DICOM files of the slices, or list files or their folders after --slices")
    numbers = {path: _numbers(read_volume(path)) for path in files}
    return sorted(files, key=lambda path: (numbers[path], path.name))


def _is_dicom(path: Path) -> bool:
    """By the ending, or, as scanners write files without one, by the mark at the beginning."""
    if path.suffix.lower() in (".dcm", ".ima"):
        return True
    if path.name.upper() == "DICOMDIR" or not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _numbers(volume: Volume) -> tuple[int, ...]:
    texts = (volume.fields.get(key, "").strip() for key in (SERIES, INSTANCE))
    return tuple(int(text) if text.isdigit() else 0 for text in texts)
