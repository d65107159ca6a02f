"""Slices from files: each file one slice at its own place, from a list or from a folder of DICOM files in the order of their instances."""

from __future__ import annotations

from pathlib import Path

import torch

from ..errors import InputError
from ..image import Image
from .images import Volume, read_image, read_volume

INSTANCE = "0020|0013"


def read_slice(path) -> Image:
    """One slice (1, 1, *S) as stored; NaN stay, they mark pixels without a value. InputError as ``read_image``."""
    return read_image(path, channels="gray")


def compared(image: Image) -> Image:
    """The slice as it can be compared: pixels without a value (NaN or infinite) are masked and 0. InputError where none is left."""
    valid = torch.isfinite(image.data) if image.mask is None else torch.isfinite(image.data) & image.mask
    if bool(valid.all()):
        return image
    if not bool(valid.any()):
        raise InputError(f"{image.name} has no pixel with a value; check the file or its mask")
    return Image(torch.where(valid, image.data, 0.0), image.grid, valid, image.name)


def slice_files(folder) -> list[Path]:
    """The DICOM files of ``folder``, by instance number, then by name. InputError where there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; give the folder that holds the DICOM files of the slices, or list files after --slices")
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix.lower() in (".dcm", ".ima"))
    if not files:
        raise InputError(f"{folder} holds no .dcm or .ima file; give the folder with the DICOM files of the slices, or list files after --slices")
    numbers = {path: _instance(read_volume(path)) for path in files}
    return sorted(files, key=lambda path: (numbers[path], path.name))


def _instance(volume: Volume) -> int:
    text = volume.fields.get(INSTANCE, "").strip()
    return int(text) if text.isdigit() else 0
