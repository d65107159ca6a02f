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
COMPLEX = (32, 1792)
MILLIMETRES = {1: 1000.0, 3: 0.001}
"""By the code of the unit, where that is no millimetre: metre and micrometre."""
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
    components //= 2 if header.code in COMPLEX else 1  # ITK counts the real and the imaginary part
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
    return _begin(path, 4) in (struct.pack("<i", 540), struct.pack(">i", 540))


def _begin(path: Path, count: int) -> bytes:
    """The first ``count`` bytes of the file, unpacked; fewer where there are none."""
    try:
        with open(path, "rb") as stream:
            packed = stream.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else open(path, "rb") as stream:
            return stream.read(count)
    except (OSError, EOFError, zlib.error):
        return b""


def placements(path: Path) -> dict[str, np.ndarray]:
    """{'qform': (4, 4), 'sform': (4, 4)} index -> LPS mm of a 3D file, those that its header states; nothing for a file that is no NIfTI-1."""
    head = _begin(path, 348)
    order = next((o for o in "<>" if len(head) == 348 and struct.unpack_from(o + "i", head)[0] == 348), None)
    if order is None:
        return {}
    coded, (b, c, d), offset = (struct.unpack_from(order + kind, head, at) for kind, at in (("2h", 252), ("3f", 256), ("3f", 268)))
    handed, *size = struct.unpack_from(order + "4f", head, 76)
    a = np.sqrt(max(0.0, 1.0 - b * b - c * c - d * d))
    turn = np.array([[a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
                     [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
                     [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c]])
    qform, sform = np.eye(4), np.eye(4)
    qform[:3, :3], qform[:3, 3] = turn * size * [1, 1, -1 if handed < 0 else 1], offset
    sform[:3] = np.reshape(struct.unpack_from(order + "12f", head, 280), (3, 4))
    to_lps = np.diag([-1, -1, 1, 1]) * MILLIMETRES.get(head[123] & 7, 1.0)
    to_lps[3, 3] = 1.0
    return {name: to_lps @ affine for name, affine, code in (("qform", qform, coded[0]), ("sform", sform, coded[1])) if code > 0}


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
