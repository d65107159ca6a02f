"""Plain values that two processes hand to each other, and their files: images, label maps, points and transforms without torch.

The 3D Slicer side and the worker share a folder: a value of the kinds below becomes one ``.npy`` file and a JSON entry that names it
(``write``), and is read back as a memory map (``read``). All is 3D and in LPS mm (see geometry); a slice is a volume of one slice.

A transform is a sequence of parts, applied last to first: T = parts[0] o parts[1] o ..., fixed points -> moving points.

``write_steps`` is a generator that writes a few MiB a step, so that a graphical interface stays alive while it sends large images.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import InputError
from .geometry import Grid

EVENTS, REQUEST, RESULT = "events.jsonl", "request.json", "result.json"
"""Files in the folder of a job."""
CHUNK = 4 << 20
"""Bytes that one step of ``write_steps`` writes at most."""
LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the gray value of a color, ITU-R BT.601."""
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
"""Files that do not say how large their pixels are, or say it of the paper."""
KIND = "exchange"
"""Key of an entry that says which kind of value it stands for."""


@dataclass(frozen=True, eq=False)
class Volume:
    """Intensities ``array`` (z, y, x) or (C, z, y, x) in their own type on the 3D ``grid``."""

    array: np.ndarray
    grid: Grid
    name: str = "image"

    def __post_init__(self):
        _require_shape(self.array.shape[-3:] if self.array.ndim in (3, 4) else self.array.shape, self.grid, self.name)

    def luminance(self) -> "Volume":
        """The gray values (z, y, x), float32, of a color picture."""
        return Volume(np.tensordot(np.asarray(LUMINANCE, np.float32), self.array[:3], (0, 0)), self.grid, self.name)


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Whole numbers ``array`` (z, y, x) on the 3D ``grid``, 0 is background; ``names`` ((value, name), ...)."""

    array: np.ndarray
    grid: Grid
    names: tuple[tuple[int, str], ...] = ()
    name: str = "labels"

    def __post_init__(self):
        _require_shape(self.array.shape, self.grid, self.name)
        if self.array.dtype.kind not in "iub":
            raise InputError(f"{self.name} holds values of type {self.array.dtype}; a label map holds whole numbers")


@dataclass(frozen=True, eq=False)
class PointSet:
    """``positions`` (N, 3) float64 LPS mm; one name a point, or none at all."""

    positions: np.ndarray
    names: tuple[str, ...] = ()
    name: str = "points"

    def __post_init__(self):
        if self.positions.ndim != 2 or self.positions.shape[1] != 3:
            raise InputError(f"{self.name}: points of shape {self.positions.shape} were given; (N, 3) in mm is needed")

    def taken(self, rows: list[int]) -> "PointSet":
        """The points of ``rows``, in that order."""
        return PointSet(self.positions[rows], tuple(self.names[row] for row in rows if self.names), self.name)


def pairing(names, others) -> tuple[list[int] | None, str]:
    """Which points belong together: (rows, remark) of two lists of points with these names.

    ``rows`` are those of the second list in the order of the first one, where both hold the same names, each once, in another order; None means
    row by row. The remark says how they are paired where names and rows do not agree; else it is empty.
    """
    names, others = list(names), list(others)
    once = len(set(names)) == len(names) and len(set(others)) == len(others)
    if names == others or not once:
        return None, ""
    if sorted(names) == sorted(others):
        return [others.index(name) for name in names], "the fixed and the moving points have the same names in another order; they are paired by name"
    crossed = next((name for name in names if name in others and names.index(name) != others.index(name)), None)
    if crossed is None:
        return None, ""
    return None, (f"point '{crossed}' stands in different rows of the fixed and the moving points, but not all of their names agree, so they are paired "
                  "by their order; give points that belong together the same name")


def far_points(positions: np.ndarray, grid: Grid, side: str, name: str) -> str:
    """A remark where more than half of the points (N, dim) LPS mm of one ``side`` lie outside of their image ``name`` on ``grid``: their units or their
    axes are others, most likely; '' elsewhere."""
    outside = int((~grid.contains(positions)).sum())
    if 2 * outside <= len(positions):
        return ""
    size = " x ".join(f"{edge:.4g}" for edge in grid.extent)
    return (f"{outside} of {len(positions)} {side} points lie outside of {name} ({size} mm); points are read in mm, check their units, their axes and "
            "the image's voxel size")


@dataclass(frozen=True, eq=False)
class Matrix:
    """Part of a transform: the linear map ``matrix`` (4, 4), LPS mm -> LPS mm."""

    matrix: np.ndarray

    def __post_init__(self):
        if np.shape(self.matrix) != (4, 4):
            raise InputError(f"a linear transform of shape {np.shape(self.matrix)} was given; (4, 4) is needed")


@dataclass(frozen=True, eq=False)
class Lattice:
    """Part of a transform: x -> x + u(x), ``vectors`` u (z, y, x, 3) LPS mm on ``grid``, linear between the nodes and 0 outside.

    ``inverted``: the part is the inverse of that map (found by the worker).
    """

    vectors: np.ndarray
    grid: Grid
    inverted: bool = False

    def __post_init__(self):
        if self.vectors.ndim != 4 or self.vectors.shape[3] != 3:
            raise InputError(f"a displacement of shape {self.vectors.shape} was given; (z, y, x, 3) in mm is needed")
        _require_shape(self.vectors.shape[:3], self.grid, "a displacement")


Value = Volume | LabelMap | PointSet | Matrix | Lattice | Grid
ARRAYS = {Volume: "array", LabelMap: "array", PointSet: "positions", Lattice: "vectors"}
KINDS = {"volume": Volume, "labels": LabelMap, "points": PointSet, "matrix": Matrix, "lattice": Lattice, "grid": Grid}
NAMES = {kind: name for name, kind in KINDS.items()}


def write(folder: Path, key: str, value: Value) -> dict:
    """Write ``value`` into ``folder`` and return its JSON entry; ``key`` names the file. OSError where the disk refuses."""
    return finish(write_steps(folder, key, value))


def write_steps(folder: Path, key: str, value: Value):
    """``write`` as a generator: yields the bytes written by each step, returns the entry. A file appears only when it is complete."""
    entry = {KIND: NAMES[type(value)]}
    if isinstance(value, Matrix):
        return {**entry, "matrix": np.asarray(value.matrix, float).tolist()}
    if isinstance(value, Grid):
        return {**entry, **_grid_entry(value)}
    entry["file"] = f"{key}.npy"
    yield from _write_array(Path(folder) / entry["file"], getattr(value, ARRAYS[type(value)]))
    if not isinstance(value, PointSet):
        entry.update(_grid_entry(value.grid))
    if isinstance(value, Lattice):
        entry["inverted"] = value.inverted
    else:
        entry["name"] = value.name
    if isinstance(value, (LabelMap, PointSet)):
        entry["names"] = [[int(n[0]), str(n[1])] if isinstance(value, LabelMap) else str(n) for n in value.names]
    return entry


def read(folder: Path, entry: dict) -> Value:
    """The value of an entry; arrays are memory maps of their files. InputError where the file is missing or does not fit the entry."""
    kind = KINDS.get(entry.get(KIND))
    if kind is None:
        raise InputError(f"an entry of kind {entry.get(KIND)!r} was given; expected one of {', '.join(KINDS)}")
    if kind is Matrix:
        return Matrix(np.array(entry["matrix"], float))
    grid = Grid(tuple(entry["shape"]), entry["affine"]) if "shape" in entry else None
    if kind is Grid:
        return grid
    array = _read_array(Path(folder) / entry["file"])
    if kind is PointSet:
        return PointSet(array, tuple(entry["names"]), entry["name"])
    if kind is Lattice:
        return Lattice(array, grid, bool(entry["inverted"]))
    if kind is LabelMap:
        return LabelMap(array, grid, tuple((int(v), name) for v, name in entry["names"]), entry["name"])
    return Volume(array, grid, entry["name"])


def pack_steps(folder: Path, request, key: str = ""):
    """A request or a result (nested dicts and lists of plain values and of ``Value``) as JSON, written step by step like ``write_steps``."""
    if isinstance(request, tuple(NAMES)):
        return (yield from write_steps(folder, key, request))
    if isinstance(request, dict):
        packed = {}
        for name, value in request.items():
            packed[str(name)] = yield from pack_steps(folder, value, f"{key}.{name}" if key else str(name))
        return packed
    if isinstance(request, (list, tuple)):
        listed = []
        for n, value in enumerate(request):
            listed.append((yield from pack_steps(folder, value, f"{key}.{n}")))
        return listed
    if request is None or isinstance(request, (bool, int, float, str)):
        return request
    if isinstance(request, os.PathLike):
        return os.fspath(request)
    if isinstance(request, (np.ndarray, np.generic)):
        return request.tolist()
    raise InputError(f"'{key}' is a {type(request).__name__}, which cannot be sent to the worker; give numbers, texts or exchange values")


def pack(folder: Path, request) -> dict:
    """``pack_steps`` at once."""
    return finish(pack_steps(folder, request))


def unpack(folder: Path, packed):
    """The nested dicts and lists of ``pack`` with their values (arrays as memory maps)."""
    if isinstance(packed, dict):
        return read(folder, packed) if KIND in packed else {name: unpack(folder, value) for name, value in packed.items()}
    return [unpack(folder, value) for value in packed] if isinstance(packed, list) else packed


def write_json(path: Path, value) -> None:
    """Write JSON under a temporary name and rename it, so that a reader never sees half of it."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(json.dumps(value, allow_nan=False), "utf-8")
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def finish(steps):
    """Run a generator to its end and return its value."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def _grid_entry(grid: Grid) -> dict:
    return {"shape": list(grid.shape), "affine": grid.affine.tolist()}


def _write_array(path: Path, array: np.ndarray):
    """Write the rows of ``array`` as an .npy file; a generator of the bytes of each step."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as stream:
            np.lib.format.write_array_header_1_0(stream, {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False,
                                                          "shape": array.shape})
            for part in blocks(array):
                stream.write(np.ascontiguousarray(part).data)
                yield part.nbytes
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def blocks(array: np.ndarray):
    """Consecutive parts of ``array`` of at most about ``CHUNK`` bytes, whatever its strides: views."""
    if array.nbytes <= CHUNK or array.ndim == 1:
        if array.size:
            yield array
    elif array[0].nbytes > CHUNK:
        for part in array:
            yield from blocks(part)
    else:
        count = CHUNK // max(1, array[0].nbytes)
        yield from (array[first : first + count] for first in range(0, len(array), count))


def _read_array(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"the file {path.name} of the job is gone; run the job again") from None
    except (ValueError, EOFError) as error:
        raise InputError(f"the file {path.name} of the job cannot be read ({error}); run the job again") from None


def _require_shape(shape, grid: Grid, what: str) -> None:
    if grid.dim != 3 or tuple(shape) != grid.shape:
        raise InputError(f"{what}: values of shape {tuple(shape)} do not fit a grid of {grid.shape}; a 3D grid of the same shape is needed")
