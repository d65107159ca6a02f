"""Files as a whole: their type, whether they are there and complete, and writing so that no half file is ever left.

Everything is written under a temporary name in the same folder and renamed when it is complete.
"""

from __future__ import annotations

import os
import struct
import sys
import uuid
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError

DOUBLE_SUFFIXES = (".nii.gz", ".seg.nrrd", ".mrk.json")
CHUNK = 4 << 20


def suffix(path) -> str:
    """The type of a file by its name, in lower case; '.nii.gz', '.seg.nrrd' and '.mrk.json' count as one."""
    name = Path(path).name.lower()
    return next((s for s in DOUBLE_SUFFIXES if name.endswith(s)), Path(name).suffix)


def display_name(path) -> str:
    """The name of a file, of a DICOM folder (without its '#series') or of a frame ('FILE#N')."""
    whole, part = place_of(path)
    return f"{Path(whole).name}#{part}" if part and os.path.isfile(whole) else Path(whole).name


def place_of(path) -> tuple[str, str]:
    """(file or folder, '') or, for 'FOLDER#SERIES' and 'FILE#FRAME', what stands before and after the mark."""
    whole, _, part = (str(path), "", "") if os.path.exists(path) else str(path).partition("#")
    return whole, part


def require_file(path, what: str) -> Path:
    """``path`` if it is a file with content; InputError otherwise. ``what`` names the expected content."""
    path = Path(path)
    if not os.path.exists(path):
        raise InputError(f"{path} does not exist; check the path")
    if path.is_dir():
        raise InputError(f"{path} is a folder where {what} is needed; name the file")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes) where {what} is needed; copy or export the file again")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path} cannot be read (permission denied); change its permissions or copy it")
    return path


def require_suffix(path, allowed, what: str) -> str:
    """The suffix of ``path``; InputError where a writer does not know it."""
    kind = suffix(path)
    if kind not in allowed:
        ending = f"ends in '{kind}', which" if kind else "has no ending that names a format and"
        raise InputError(f"{path} {ending} cannot hold {what}; use one of {', '.join(allowed)}")
    return kind


@contextmanager
def atomic(path, room: int = 0):
    """Yields a temporary path with the same suffix in the same folder; it replaces ``path`` when the block ends well.

    ``room`` bytes are asked for beforehand. Any failure removes the temporary file; a failure of the system (disk full,
    no permission) or of ITK becomes an InputError.
    """
    path = Path(path)
    folder = path.parent
    if not folder.is_dir():
        raise InputError(f"{path} cannot be written because the folder {folder} does not exist; make the folder first")
    if path.is_dir():
        raise InputError(f"{path} is a folder where a file is to be written; give a file name")
    _require_room(folder, path, room)
    temporary = folder / f".{uuid.uuid4().hex[:12]}{suffix(path)}"
    try:
        yield temporary
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path} could not be written ({reason(error)}); check the free space and the permissions of the folder") from None
    finally:
        temporary.unlink(missing_ok=True)


def _require_room(folder: Path, path: Path, room: int) -> None:
    status = getattr(os, "statvfs", None)
    if status is None or not room:
        return
    found = status(folder)
    free = found.f_bavail * found.f_frsize
    if free < room:
        raise InputError(f"{path} needs about {room / 1e6:.0f} MB and {free / 1e6:.0f} MB are free on that disk; "
                         "free some space or use another folder")


@contextmanager
def quiet():
    """SimpleITK without warnings on stderr, as before afterwards: a problem is told once, in the error."""
    import SimpleITK as sitk

    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield sitk
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


@contextmanager
def unheard():
    """Inside, what C libraries write to stderr by themselves is dropped: a problem is told once, in the error."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


UNKNOWN = ("Unable to determine ImageIO reader", "unsupported type", "failed to read file", "Could not create Transform IO object")
"""What ITK says of a file of another type; the rest of such a line is of no help."""


def reason(error: Exception) -> str:
    """The telling line of an error, without the class names and addresses that ITK puts in front."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[-1] if lines else type(error).__name__
    for mark in ("sitk::ERROR:", "ITK ERROR:", "): "):
        line = line.split(mark, 1)[-1].strip()
    unknown = any(words in line for words in UNKNOWN)
    return "its content is of no type that is known" if unknown else line[:160].rstrip(".")


def gzip_file(source: Path, target: Path, level: int, threads: int) -> None:
    """``source`` compressed to ``target`` as one gzip member whose blocks are deflated by ``threads`` threads.

    Every block but the last ends with a full flush, so the blocks are independent and their concatenation is one stream.
    """

    def deflate(block, last):
        packer = zlib.compressobj(level, zlib.DEFLATED, -15)
        return packer.compress(block) + packer.flush(zlib.Z_FINISH if last else zlib.Z_FULL_FLUSH)

    length, checksum, size = 0, 0, source.stat().st_size
    with open(source, "rb") as stream, open(target, "wb") as out, ThreadPoolExecutor(threads) as pool:
        out.write(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x04\xff")
        while True:
            blocks = [block for block in (stream.read(CHUNK) for _ in range(threads)) if block]
            ends = [length + sum(map(len, blocks[: k + 1])) >= size for k in range(len(blocks))]
            packed = pool.map(deflate, blocks, ends)
            for block in blocks:
                checksum = zlib.crc32(block, checksum)
                length += len(block)
            for piece in packed:
                out.write(piece)
            if length >= size:
                break
        out.write(struct.pack("<II", checksum, length & 0xFFFFFFFF))


def require_complete(path: Path) -> None:
    """InputError for a truncated JPEG or BMP file: ITK fills what is missing without a word."""
    kind, size = suffix(path), path.stat().st_size
    expected = 0
    with open(path, "rb") as stream:
        if kind == ".bmp":
            head = stream.read(6)
            expected = struct.unpack("<I", head[2:6])[0] if head[:2] == b"BM" and len(head) == 6 else 0
        elif kind in (".jpg", ".jpeg"):
            stream.seek(max(0, size - 65536))
            expected = 0 if b"\xff\xd9" in stream.read() else size + 1
    if size < expected:
        raise InputError(f"{path} is incomplete ({size} of at least {expected} bytes are there); copy or export the file again")
