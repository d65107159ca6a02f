"""Images from and to files: NIfTI, NRRD, MetaImage, DICOM (file, multi-frame, folder), TIFF, PNG, JPEG, BMP.

Geometry is taken from the header as ITK reads it (LPS, see geometry). No axis is dropped: a volume of one slice stays
3D with one voxel on that axis; trailing axes of length 1 beyond the third are removed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from ..exchange import LUMINANCE
from ..geometry import Grid
from ..image import Image, Labels
from . import dicom
from .files import atomic, display_name, gzip_file, place_of, quiet, reason, require_complete, require_file, require_suffix, suffix, unheard
from .nifti import is_version_two, placements, read_voxels

READABLE = (".nii.gz", ".nii", ".hdr", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm", ".ima", ".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp")
WRITABLE = (".nii.gz", ".nii", ".nrrd", ".mha", ".png")
CHANNELS = ("scalar", "gray", "vector")
LARGEST_SHEAR = 0.05
"""Shift in voxels at the far end of a volume below which directions count as orthogonal."""


@dataclass(frozen=True)
class Volume:
    """What a file holds: ``array`` (*S) or (*S, C) as stored, its grid, and the header's text fields."""

    array: np.ndarray
    grid: Grid
    channels: int
    fields: dict

    @property
    def channels_first(self) -> np.ndarray:
        """(C, *S)."""
        return np.moveaxis(self.array, -1, 0) if self.array.ndim > self.grid.dim else self.array[None]


def read_image(path, *, dtype=torch.float32, channels: str = "scalar") -> Image:
    """An image file or a folder with one DICOM series as an Image (1, C, *S) of ``dtype``.

    path: a file, a folder, 'folder#SeriesUID' where a folder holds several series, or 'file#N' for time point N (from 0) of a 4D file.
    channels: 'scalar' asks for one value per voxel; 'gray' also takes color (its luminance, ITU-R BT.601); 'vector'
    takes every component of a vector image and every time point of a series as a channel.
    Raises InputError for what is missing, empty, incomplete, of another type, or has other channels than asked for.
    """
    if channels not in CHANNELS:
        raise InputError(f"channels='{channels}' was asked for; use one of {', '.join(CHANNELS)}")
    volume = read_volume(path, time_as_channels=channels == "vector")
    data = _select(volume, channels, path)
    if np.iscomplexobj(data):
        raise InputError(f"{path} holds complex numbers; save its magnitude or phase as an image of real numbers")
    data = torch.from_numpy(np.array(data, np.float64 if dtype == torch.float64 else np.float32, order="C")).to(dtype)
    return Image(data[None], volume.grid, name=display_name(path))


def _select(volume: Volume, channels: str, path) -> np.ndarray:
    """(C, *S) as asked for by ``channels``."""
    if volume.channels == 1 or channels == "vector":
        return volume.channels_first
    colour = volume.channels in (3, 4) and volume.array.dtype in (np.uint8, np.uint16)
    if channels == "gray" and colour:
        return np.tensordot(np.asarray(LUMINANCE, np.float32), volume.channels_first[:3], (0, 0))[None]
    if colour:
        raise InputError(f"{path} is a color image (RGB, {volume.channels} channels) where one value per voxel is needed; "
                         "convert it to gray, or read it as gray with --color gray, in Python channels='gray'")
    raise InputError(f"{path} holds {volume.channels} values per voxel where one is needed; "
                     "extract one component or, in Python, read it with channels='vector'")


def read_volume(path, time_as_channels: bool = False) -> Volume:
    """The content of an image file or DICOM folder as stored; a series in time only where ``time_as_channels``."""
    whole, part = place_of(path)
    if os.path.isdir(whole):
        array, image, affine = dicom.read_series(whole, part)
        return _volume(array, image, path, affine)
    frame = part if os.path.isfile(whole) else ""
    path = require_file(whole if frame else path, "an image")
    require_complete(path)
    with quiet() as sitk:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        try:
            reader.ReadImageInformation()
            _require_axes(reader, path, time_as_channels or bool(frame))
            if suffix(path) in (".nii", ".nii.gz"):
                volume = _volume(read_voxels(path, reader.GetSize(), reader.GetNumberOfComponents()), reader, path)
            else:
                image = reader.Execute()
                volume = _volume(sitk.GetArrayFromImage(image), image, path)
        except RuntimeError as error:
            raise InputError(_why_unreadable(path, error)) from None
    in_time = reader.GetDimension() == 4 or path.name.lower().endswith(".seq.nrrd")  # 3D Slicer's sequences keep time where components are
    return _frame(volume, frame, path, in_time) if frame else volume


def _frame(volume: Volume, number: str, path, in_time: bool) -> Volume:
    """Time point ``number`` of a 4D file."""
    if not in_time:
        raise InputError(f"time point {number} of {path} was asked for, which is no series in time; name the file without '#{number}'")
    if not number.isdecimal() or int(number) >= volume.channels:
        raise InputError(f"time point '{number}' of {path} was asked for, which has the points 0 to {volume.channels - 1}; choose one of these")
    array = volume.array[..., int(number)] if volume.channels > 1 else volume.array
    return Volume(array, volume.grid, 1, volume.fields)


def read_grid(path) -> Grid:
    """The grid of an image file by its header alone (a DICOM folder is read whole). InputError as ``read_image``."""
    if os.path.isdir(path) or place_of(path)[1]:
        return read_volume(path).grid
    path = require_file(path, "an image")
    header = _header(path)
    _require_axes(header, path, False)
    return grid_of(header, path)


def _header(path):
    """SimpleITK's reader of a file, which has read its header. InputError for a file that is no image."""
    with quiet() as sitk:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise InputError(_why_unreadable(path, error)) from None
        return reader


def other_placement(path, grid: Grid) -> tuple[str, str, float] | None:
    """(placement taken, placement left, largest distance in mm) of a NIfTI file on ``grid`` whose header states two that differ by more than
    a tenth of a voxel; None for every other file."""
    whole = Path(place_of(path)[0])
    if grid.dim != 3 or suffix(whole) not in (".nii", ".nii.gz"):
        return None
    placed = placements(whole)
    corners = grid.world_to_index(grid.corners())
    distance = {name: float(np.linalg.norm(corners @ affine[:3, :3].T + affine[:3, 3] - grid.corners(), axis=1).max()) for name, affine in placed.items()}
    if len(distance) < 2 or max(distance.values()) < 0.1 * grid.spacing.min():
        return None
    taken, left = sorted(distance, key=distance.get)
    return taken, left, distance[left]


def _why_unreadable(path, error) -> str:
    kind = suffix(path)
    if "orthonormal" in str(error):
        return (f"{path} has sheared voxel axes (its sform is not a rotation with spacings), which cannot be represented; "
                "resample it onto a regular grid first, for example with nibabel or in 3D Slicer")
    if kind in (".nii", ".nii.gz") and is_version_two(path):
        return f"{path} is a NIfTI-2 file, which ITK cannot read; save it as NIfTI-1, NRRD or MetaImage"
    if kind == "":
        return f"{path} has no ending and is no DICOM file that can be read ({reason(error)}); add the ending of its type, for example .nii.gz"
    if kind in READABLE:
        return f"{path} could not be read as {kind} ({reason(error)}): it is damaged, incomplete or of another type; export it again"
    return f"{path} has the type '{kind}', which is not an image that can be read; convert it to NIfTI, NRRD, MetaImage, DICOM, TIFF or PNG"


def _require_axes(reader, path, time_as_channels: bool) -> None:
    size = list(reader.GetSize())
    while len(size) > 3 and size[-1] == 1:
        size.pop()
    if len(size) < 2:
        raise InputError(f"{path} has one axis; an image of 2 or 3 axes is needed")
    if len(size) == 4 and time_as_channels and reader.GetNumberOfComponents() == 1:
        return
    if len(size) > 3:
        text = " x ".join(map(str, size))
        raise InputError(f"{path} is {len(size)}D ({text}) where a 2D or 3D image is needed; "
                         f"name one time point, as in {Path(path).name}#0, or, in Python, read it with channels='vector'")


def _volume(array: np.ndarray, header, path, affine=None) -> Volume:
    """``array`` with the ``header`` (a SimpleITK image or reader) -> Volume; a fourth axis becomes channels."""
    dim, components = min(header.GetDimension(), 3), array.shape[-1] if array.ndim > header.GetDimension() else 1
    axes = header.GetDimension()
    while axes > 3 and array.shape[0] == 1:
        array, axes = array[0], axes - 1
    if axes == 4:
        components, array = array.shape[0], np.moveaxis(array, 0, -1)
    fields = {key: header.GetMetaData(key) for key in header.GetMetaDataKeys()}
    return Volume(array, grid_of(header, path, array.shape[:dim], affine), components, fields)


def grid_of(image, path, shape=None, affine=None) -> Grid:
    """The Grid of a SimpleITK image or reader, its first three axes; InputError names the file where the header is unusable."""
    dim = min(image.GetDimension(), 3)
    shape = tuple(image.GetSize()[:dim][::-1]) if shape is None else shape
    try:
        if affine is not None:
            return Grid(shape, affine)
        direction = np.array(image.GetDirection()).reshape(image.GetDimension(), -1)[:dim, :dim]
        return Grid.from_parts(shape, image.GetSpacing()[:dim], image.GetOrigin()[:dim], direction)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def time_step(path) -> float | None:
    """Time between the points of a 4D file, in the unit of its header as ITK reads it (s for NIfTI); None where a file holds no series in time."""
    if not os.path.isfile(path):
        return None
    header = _header(path)
    return header.GetSpacing()[3] if header.GetDimension() == 4 and header.GetSize()[3] > 1 else None


def is_color(path) -> bool:
    """True for a file with red, green and blue (and opacity) of 8 bits a voxel."""
    import SimpleITK as sitk

    if not os.path.isfile(path):
        return False
    header = _header(path)
    return header.GetNumberOfComponents() in (3, 4) and header.GetPixelID() == sitk.sitkVectorUInt8


def write_image(image: Image, path, *, compress: bool = True, time_step: float | None = None) -> None:
    """Write an Image (1, C, *S) as .nii.gz, .nii, .nrrd, .mha, or as .png (2D, whole numbers from 0 to 65535).

    With ``time_step`` the channels are time points so far apart, and the file is 4D. Labels are stored in the smallest integer
    type. The file appears only when it is complete. Raises InputError for an unknown suffix, a batch, a grid that the format
    cannot hold, values that do not fit PNG, or a full disk.
    """
    kind = require_suffix(path, WRITABLE, "an image")
    if image.data.shape[0] != 1:
        raise InputError(f"{image.data.shape[0]} images in one batch were given for {path}; write them one by one")
    array = _storable(image)
    if kind == ".png":
        array = _png_values(array, image, path)
    write_array(array, image.grid, path, compress=compress, time_step=time_step)


def _storable(image: Image) -> np.ndarray:
    """(*S) or (*S, C) in a type that files know."""
    data = image.data[0].detach().cpu()
    if isinstance(image, Labels):
        array = smallest_integers(data.numpy())
    elif data.dtype == torch.bool:
        array = data.numpy().astype(np.uint8)
    elif data.dtype in (torch.float16, torch.bfloat16):
        array = data.float().numpy()
    else:
        array = smallest_integers(data.numpy()) if data.dtype == torch.int64 else data.numpy()
    return array[0] if array.shape[0] == 1 else np.moveaxis(array, 0, -1)


def smallest_integers(values: np.ndarray) -> np.ndarray:
    """Whole numbers in the smallest of uint8, uint16, uint32 or int8 ... int64 that holds them."""
    low, high = int(values.min()), int(values.max())
    kinds = (np.uint8, np.uint16, np.uint32, np.int64) if low >= 0 else (np.int8, np.int16, np.int32, np.int64)
    return values.astype(next(k for k in kinds if np.iinfo(k).min <= low and high <= np.iinfo(k).max))


def _png_values(array, image, path) -> np.ndarray:
    """8 bits, or 16 where there are values above 255, of one gray channel, or of red, green and blue."""
    if image.dim != 2 or image.data.shape[1] not in (1, 3):
        raise InputError(f"{path} can hold a 2D image of one or three channels; {image.name} has shape {tuple(image.data.shape[1:])}; use .nii.gz")
    if not (np.isfinite(array).all() and (array == np.rint(array)).all() and array.min() >= 0 and array.max() <= 65535):
        raise InputError(f"{path} can hold whole numbers from 0 to 65535; {image.name} has others; scale it first or use .nii.gz")
    return array.astype(np.uint8 if array.max() <= 255 else np.uint16)


def write_array(array: np.ndarray, grid: Grid, path, *, compress: bool = True, fields: dict | None = None, time_step: float | None = None) -> None:
    """``array`` (*S) or (*S, C) on ``grid`` into a file, atomically; ``fields`` are text fields of the header."""
    kind = suffix(path)
    if kind.startswith(".nii") and shear(grid) > LARGEST_SHEAR:
        raise InputError(f"{path}: NIfTI files of ITK cannot hold sheared voxel axes; write .nrrd or .mha, or resample onto a regular grid")
    image = _as_itk(array, grid, time_step)
    for key, value in (fields or {}).items():
        image.SetMetaData(key, value)
    with atomic(path, room=array.nbytes if not compress else array.nbytes // 20) as temporary, quiet():
        if kind == ".nii.gz":
            _write_packed_nifti(image, temporary, array.nbytes, compress)
        else:
            _execute(image, temporary, compress)
            if kind == ".nii":
                _require_written(temporary, array.nbytes)


def _as_itk(array: np.ndarray, grid: Grid, time_step: float | None):
    """The SimpleITK image of ``array`` (*S) or (*S, C); its last axis is a fourth one where there is a ``time_step``."""
    import SimpleITK as sitk

    spacing, origin, direction = grid.spacing.tolist(), grid.origin.tolist(), grid.direction
    if time_step is None:
        image = sitk.GetImageFromArray(array, isVector=array.ndim > grid.dim)
    else:
        image = sitk.GetImageFromArray(np.moveaxis(array, -1, 0), isVector=False)
        spacing, origin = [*spacing, time_step], [*origin, 0.0]
        direction = np.block([[direction, np.zeros((grid.dim, 1))], [np.zeros((1, grid.dim)), np.ones((1, 1))]])
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction.ravel().tolist())
    return image


def shear(grid: Grid) -> float:
    """Largest shift in voxels that replacing the directions by the nearest rotation would cause."""
    u, _, v = np.linalg.svd(grid.direction)
    error = (grid.direction - u @ v) * grid.spacing * np.array(grid.size)
    return float(np.abs(error).sum(1).max() / grid.spacing.min())


def _execute(image, path: Path, compress: bool) -> None:
    import SimpleITK as sitk

    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(path))
    writer.SetUseCompression(compress)
    writer.SetCompressionLevel(1)
    with unheard():  # the NIfTI library reports a full disk there, in words of its own
        writer.Execute(image)


def _write_packed_nifti(image, path: Path, content: int, compress: bool) -> None:
    """ITK writes plain NIfTI, which is then packed: ITK's own packing takes several times longer and hides a full disk."""
    plain = path.with_name(path.name[: -len(".gz")])
    try:
        _execute(image, plain, False)
        _require_written(plain, content)
        gzip_file(plain, path, 1 if compress else 0, max(1, min(8, os.cpu_count() or 1)))
    finally:
        plain.unlink(missing_ok=True)


def _require_written(path: Path, content: int) -> None:
    if not path.exists() or path.stat().st_size < content:
        raise OSError(f"only {path.stat().st_size if path.exists() else 0} of {content} bytes were written; the disk may be full")
