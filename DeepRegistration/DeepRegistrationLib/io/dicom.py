"""A DICOM series in a folder as one volume, with the true position of every slice.

The step between slices is the mean difference of their positions (Image Position Patient), so a tilted gantry gives a
grid with sheared axes instead of a distorted volume.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np

from ..errors import InputError
from .files import quiet, reason

POSITION, DESCRIPTION, SERIES, KIND = "0020|0032", "0008|103e", "0020|000e", "0008|0016"
HEADER_BYTES = 1 << 16
"""At the begin of a file, in which series and kind of the object are stated."""
LARGEST_GAP = 0.05
"""Deviation of a slice distance from the mean, relative, above which slices are missing or repeated."""
LARGEST_TILT = 0.1
"""Shift in pixels over the whole stack up to which the slice axis counts as perpendicular to the slices."""


def read_series(folder, series: str = ""):
    """(voxels, SimpleITK image, index -> world affine or None for that of the image) of the one series in ``folder``.

    Raises InputError without a series, with several (naming them), with a damaged file, and for slices that are not evenly spaced.
    """
    with quiet() as sitk:
        names = _files_of_series(sitk, Path(folder), series)
        _require_all(sitk, Path(folder), names)
        if len(names) == 1:
            reader = _header(sitk, names[0])
            image = reader.Execute()
            return sitk.GetArrayFromImage(image), image, None
        reader = sitk.ImageSeriesReader()
        reader.SetImageIO("GDCMImageIO")
        reader.MetaDataDictionaryArrayUpdateOn()
        reader.SetFileNames(names)
        try:
            image = reader.Execute()
        except RuntimeError as error:
            _require_one_size(folder, [_header(sitk, name) for name in names])
            raise InputError(f"the DICOM series in {folder} could not be read ({reason(error)}); "
                             "export the series again into a folder of its own") from None
        array = sitk.GetArrayFromImage(image)
    return array, image, _affine(folder, image, [Path(name).name for name in names], [_position(reader, k) for k in range(len(names))])


def _position(reader, k: int) -> list[float]:
    """Position of the first pixel of slice ``k`` in mm, empty where the file does not say."""
    text = reader.GetMetaData(k, POSITION) if reader.HasMetaDataKey(k, POSITION) else ""
    try:
        position = [float(v) for v in text.split("\\")]
    except ValueError:
        return []
    return position if len(position) == 3 else []


def _files_of_series(sitk, folder: Path, series: str) -> list[str]:
    found = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if not found:
        raise InputError(f"{folder} is a folder without a DICOM series; name an image file or the folder that holds the slices")
    files = {uid: sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid) for uid in found}
    if series:
        matches = [uid for uid in found if uid == series] or [uid for uid in found if uid.startswith(series)]
        if len(matches) != 1:
            raise InputError(f"{folder} holds {len(matches)} series '{series}'; it holds {_listing(sitk, files)}")
        return list(files[matches[0]])
    if len(found) > 1:
        largest = max(files, key=lambda uid: len(files[uid]))
        raise InputError(f"{folder} holds {len(found)} DICOM series: {_listing(sitk, files)}; "
                         f"name one after the folder, for example {folder}#{largest}")
    return list(files[found[0]])


def _require_all(sitk, folder: Path, names) -> None:
    """InputError for a file of the series that cannot be read: GDCM leaves it out without a word."""
    header = _header(sitk, names[0])
    identity = [_stated(header, tag) for tag in (SERIES, KIND)]
    known = {Path(name).name for name in names}
    for path in sorted(p for p in folder.iterdir() if p.is_file() and p.name not in known):
        with open(path, "rb") as stream:
            content = stream.read(HEADER_BYTES)
        damaged = all(pattern is not None and pattern.search(content) for pattern in identity) or not content and path.suffix.lower() in (".dcm", ".ima")
        if damaged:
            raise InputError(f"{path.name} in the DICOM folder {folder} is damaged or incomplete; copy it again, "
                             "or move it away to read the series without it")


def _stated(header, tag: str) -> re.Pattern | None:
    """What finds the element ``tag`` with the value that it has in ``header`` in the bytes of a file; None where it is not stated there."""
    if not header.HasMetaDataKey(tag) or not header.GetMetaData(tag).strip(" \0"):
        return None
    group, element = (struct.pack("<H", int(part, 16)) for part in tag.split("|"))
    value = re.escape(header.GetMetaData(tag).strip(" \0").encode())
    return re.compile(re.escape(group + element) + b"(?:UI..|.{4})" + value + rb"(?![0-9.])", re.DOTALL)


def _listing(sitk, files: dict) -> str:
    ordered = sorted(files.items(), key=lambda item: -len(item[1]))
    parts = []
    for uid, names in ordered[:12]:
        reader = _header(sitk, names[0])
        title = reader.GetMetaData(DESCRIPTION).strip() if reader.HasMetaDataKey(DESCRIPTION) else ""
        parts.append(f"{uid} ({len(names)} files{', ' + title if title else ''})")
    return ", ".join(parts) + (f" and {len(ordered) - 12} more" if len(ordered) > 12 else "")


def _header(sitk, name: str):
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(name)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"{name} could not be read as DICOM ({reason(error)}); it is damaged or incomplete, export it again") from None
    return reader


def _require_one_size(folder, headers) -> None:
    sizes = {h.GetSize() for h in headers}
    if len(sizes) > 1:
        text = ", ".join(" x ".join(map(str, s)) for s in sorted(sizes))
        raise InputError(f"the DICOM series in {folder} mixes slices of {text} pixels; "
                         "move the slices of one size into a folder of their own")


def _affine(folder, image, names, positions):
    """Index -> world of evenly spaced slices; None where a slice has no position."""
    if not all(positions):
        return None
    positions = np.array(positions)
    order = np.lexsort(positions.T)
    for one, other in zip(order, order[1:]):  # GDCM leaves repeated slices unsorted, so they need not be neighbors
        if np.linalg.norm(positions[one] - positions[other]) < 1e-4:
            raise InputError(f"{names[one]} and {names[other]} of the DICOM series in {folder} have the same position; "
                             "split its time points, echoes or repeated slices into series of their own")
    steps = np.diff(positions, axis=0)
    mean = (positions[-1] - positions[0]) / len(steps)
    lengths = np.linalg.norm(steps, axis=1)
    deviation = np.linalg.norm(steps - mean, axis=1)
    if deviation.max() > LARGEST_GAP * np.linalg.norm(mean):
        k = int(deviation.argmax())
        raise InputError(f"the slices of the DICOM series in {folder} are not evenly spaced "
                         f"({lengths[k]:.3g} mm from {names[k]} to {names[k + 1]}, "
                         f"{np.median(lengths):.3g} mm elsewhere); add the missing slices or remove the extra ones")
    return _assemble(image, positions[0], mean, len(steps))


def _assemble(image, origin, step, steps: int) -> np.ndarray:
    in_plane = np.array(image.GetDirection()).reshape(3, 3)[:, :2]
    normal = np.cross(in_plane[:, 0], in_plane[:, 1])
    along = normal * (normal @ step)
    if np.linalg.norm(step - along) * steps <= LARGEST_TILT * min(image.GetSpacing()[:2]):
        step = along
    affine = np.eye(4)
    affine[:3, :2] = in_plane * image.GetSpacing()[:2]
    affine[:3, 2] = step
    affine[:3, 3] = origin
    return affine
