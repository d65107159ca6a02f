"""The voxels of a NIfTI file (.nii, .nii.gz), read as they are.

ITK 5.4 is right about the geometry but not about the voxels: it turns NaN into 0, fills what a truncated file lacks
without a word, and reads ``a.nii`` where ``a.nii.gz`` was asked for and both are there. So the header's geometry is left
to ITK and the voxels are read here. Format: NIfTI-1 of the NIfTI Data Format Working Group;
ITK does not know NIfTI-2.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError

TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8", 32: "c8", 1792: "c16"}
COLOURS = {128: 3, 2304: 4}
DISPLACEMENT_INTENT = 1006
"""Vectors of this intent are RAS in the file; every other vector is taken as it is, LPS by the custom of ITK and ANTs."""


@dataclass(frozen=True)
class Header:
    order: str
    dims: tuple[int, ...]
    code: int
    offset: int
    slope: float
    shift: float
    intent: int


def read_voxels(path: Path, size: tuple[int, ...], components: int) -> np.ndarray:
    """Voxels (*S) or (*S, C) of a file that ITK describes as ``size`` (x, y, ...) with ``components`` per voxel.

    Vectors come in LPS. Raises InputError for a damaged or incomplete file and for types of voxels that are not known.
    """
    content = _content(path)
    header = _header(content)
    if header is None or (header.code not in TYPES and header.code not in COLOURS):
        raise InputError(f"{path} could not be read as NIfTI (its header is damaged or its voxel type unknown); export it again")
    colours = COLOURS.get(header.code, 0)
    kind = np.dtype(header.order + TYPES.get(header.code, "u1"))
    count = int(np.prod(size)) * components
    expected = header.offset + count * kind.itemsize
    if len(content) < expected:
        raise InputError(f"{path} is incomplete ({len(content)} of at least {expected} bytes are there); copy or export the file again")
    array = np.frombuffer(content, kind, count, header.offset)
    shape = tuple(size)[::-1]
    if components > 1:
        array = array.reshape(*shape, components) if colours else np.moveaxis(array.reshape(components, *shape), 0, -1)
    else:
        array = array.reshape(shape)
    array = _scaled(array, header)
    if header.intent == DISPLACEMENT_INTENT and components in (2, 3):
        array = array * np.array([-1, -1, 1][:components], array.dtype)
    return array


def _content(path: Path) -> bytes:
    """The bytes of the file, unpacked."""
    with open(path, "rb") as stream:
        content = stream.read()
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error):
        raise InputError(f"{path} is incomplete or damaged (its packed content ends too early or fails its checksum); "
                         "copy or export the file again") from None


def is_version_two(path: Path) -> bool:
    """True for a NIfTI-2 file, by the length of its header."""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb") as stream:
            return stream.read(4) in (struct.pack("<i", 540), struct.pack(">i", 540))
    except (OSError, EOFError, zlib.error):
        return False


def _header(head: bytes) -> Header | None:
    for order in "<>":
        if len(head) >= 348 and struct.unpack_from(order + "i", head)[0] == 348:
            count, *dims = struct.unpack_from(order + "8h", head, 40)
            (intent, code), (offset, slope, shift) = struct.unpack_from(order + "hh", head, 68), struct.unpack_from(order + "3f", head, 108)
        else:
            continue
        if 1 <= count <= 7 and 0 <= offset < len(head) + 1:
            return Header(order, tuple(dims[:count]), code, int(offset), float(slope), float(shift), intent)
    return None


def _scaled(array: np.ndarray, header: Header) -> np.ndarray:
    """In native byte order, with the header's scale where it has one (a slope of 0 means none)."""
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    slope, shift = header.slope, header.shift
    if not np.isfinite([slope, shift]).all() or slope == 0 or (slope, shift) == (1.0, 0.0) or header.code in COLOURS:
        return array
    return (array * slope + shift).astype(np.float64 if array.dtype.itemsize > 4 else np.float32)
