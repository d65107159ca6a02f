"""Transforms from and to files: ITK's .h5, .tfm, .txt, .mat, and displacement fields as images.

Files hold what the library holds: maps of fixed points to moving points in LPS mm (ITK's and ANTs' convention, "from
parent" in 3D Slicer). A composite applies its last entry first: [A, D] is x -> A(D(x)), the order of ``Composite``.

Outside its lattice a displacement is 0 in the library, in ITK after half a voxel, and clamped in 3D Slicer. A field is
therefore written with a border of zeros: ITK then reads the same function everywhere. 3D Slicer reads the same vectors at
the lattice points and outside; between them it interpolates grid transforms from files by cubic polynomials, not linearly.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import InputError
from ..geometry import Grid
from ..transforms import Affine, BSpline, Composite, Displacement, Identity, Transform, Velocity
from ..transforms.base import require_finite
from .files import atomic, quiet, reason, require_file, require_suffix, suffix
from .hdf5 import write_hdf5
from .images import grid_of, read_volume, time_step, write_array

LINEAR_TYPES = (".tfm", ".txt", ".mat")
HDF5_TYPES = (".h5", ".hdf5")
FIELD_TYPES = (".nii.gz", ".nii", ".nrrd", ".mha")
FIELD_READABLE = FIELD_TYPES + (".nhdr", ".mhd")
BSPLINE_SPACING = 1.0
"""Spacing in mm of the lattice that stands for the domain of a B-spline that is read."""


def read_transform(path, dim: int | None = None) -> Transform:
    """A transform file as a Transform, fixed mm -> moving mm.

    path: .h5, .hdf5, .tfm, .txt, .mat (linear, displacement field, cubic B-spline, composite), or an image of
    displacement vectors (.nii.gz, .nii, .nrrd, .mha, ...). dim: 2 or 3 where that dimension is needed.
    Raises InputError for a missing or damaged file, the wrong dimension, or a kind that cannot be represented, such as
    the to-parent fields of 3D Slicer.
    """
    path = require_file(path, "a transform")
    kind = suffix(path)
    if kind in FIELD_READABLE:
        transform = _read_field(path)
    elif kind in LINEAR_TYPES + HDF5_TYPES:
        transform = _read_itk(path)
    else:
        known = ", ".join(HDF5_TYPES + LINEAR_TYPES + FIELD_READABLE)
        raise InputError(f"{path} has the type '{kind}', which is no transform that can be read; use one of {known}")
    if dim is not None and transform.dim != dim:
        raise InputError(f"{path} holds a {transform.dim}D transform where a {dim}D one is needed; "
                         "give a transform of the same dimension as the images")
    return transform


def _read_field(path: Path) -> Transform:
    if time_step(path) is not None:
        raise InputError(f"{path} is 4D, as the warps of FSL are, whose convention is another one; "
                         "give a displacement field with one vector in mm a voxel, as ITK and ANTs write it")
    volume = read_volume(path)
    if volume.channels != volume.grid.dim:
        raise InputError(f"{path} holds {volume.channels} value(s) per voxel of a {volume.grid.dim}D image "
                         f"where a displacement of {volume.grid.dim} components is needed; give a displacement field")
    if volume.fields.get("displacement field type", "").strip().lower() == "modeling":
        raise InputError(_to_parent(path))
    return _displacement(volume.channels_first, volume.grid)


def _displacement(components: np.ndarray, grid: Grid) -> Displacement:
    return Displacement(torch.from_numpy(np.array(components, np.float32, order="C"))[None], grid)


def _to_parent(path) -> str:
    return (f"{path} is stored in the to-parent (modeling) direction, which ITK cannot apply; "
            "invert the transform node in 3D Slicer's Transforms module and save the from-parent direction")


def _read_itk(path: Path) -> Transform:
    with open(path, "rb") as stream:
        content = stream.read(1 << 20)
    with quiet() as sitk:
        try:
            transform = sitk.ReadTransform(str(path))
        except RuntimeError as error:
            raise InputError(_why_unreadable(path, content, error)) from None
    listed = content.count(b"\nTransform:") if content.startswith(b"#Insight") else 1
    if listed > 1 and transform.GetName() != "CompositeTransform":
        raise InputError(f"{path} lists {listed} separate transforms; "
                         "save them as one composite transform or one by one")
    return _from_itk(transform, path)


def _why_unreadable(path, content: bytes, error) -> str:
    if b"InverseDisplacementFieldTransform" in content or b"InverseBSplineTransform" in content:
        return _to_parent(path)
    if b"Kernel" in content:
        return (f"{path} holds a thin-plate or kernel spline, which cannot be read; "
                "convert it to a grid transform in 3D Slicer and save that")
    if not content.startswith((b"#Insight", b"\x89HDF")) and _is_table_of_numbers(content):
        return (f"{path} is a bare matrix of numbers without a convention (FSL, greedy, ...); "
                "convert it to an ITK transform (.tfm), fixed to moving in LPS mm")
    return (f"{path} could not be read as an ITK transform ({reason(error)}); "
            "it is damaged or of another type, export it again as .h5 or .tfm")


def _is_table_of_numbers(content: bytes) -> bool:
    try:
        return len([float(word) for word in content.split()]) in (6, 9, 12, 16)
    except ValueError:
        return False


def _from_itk(transform, path) -> Transform:
    """A SimpleITK transform as one of the library; composites of any depth are flattened."""
    import SimpleITK as sitk

    transform = transform.Downcast()
    name, dim = transform.GetName(), transform.GetDimension()
    if name == "IdentityTransform":
        return Identity(dim)
    if transform.IsLinear():
        return Affine(torch.from_numpy(_matrix_of(transform, dim)))
    if name == "CompositeTransform":
        parts = [transform.GetNthTransform(k) for k in range(transform.GetNumberOfTransforms())]
        return Composite.of(Identity(dim), *[_from_itk(part, path) for part in parts])
    if name == "DisplacementFieldTransform":
        field = transform.GetDisplacementField()
        return _displacement(np.moveaxis(sitk.GetArrayViewFromImage(field), -1, 0), grid_of(field, path))
    if name == "BSplineTransform":
        return _from_bspline(transform, path)
    raise InputError(f"{path} holds a {name}, which cannot be read; convert it to a displacement field (.h5 or .nii.gz)")


def _matrix_of(transform, dim: int) -> np.ndarray:
    """(dim + 1, dim + 1) of a linear transform from its images of the origin and of the unit points."""
    matrix = np.eye(dim + 1)
    if hasattr(transform, "GetMatrix") and hasattr(transform, "GetTranslation"):
        linear, centre = np.array(transform.GetMatrix()).reshape(dim, dim), np.array(transform.GetCenter())
        offset = np.array(transform.GetTranslation()) + centre - linear @ centre
    else:
        offset = np.array(transform.TransformPoint([0.0] * dim))
        linear = np.stack([np.array(transform.TransformPoint(unit.tolist())) - offset for unit in np.eye(dim)], 1)
    matrix[:dim, :dim], matrix[:dim, dim] = linear, offset
    return matrix


def _from_bspline(transform, path) -> Transform:
    """ITK's cubic free-form deformation: control points begin one step before its domain, as those of ``BSpline`` do."""
    import SimpleITK as sitk

    if transform.GetOrder() != 3:
        raise InputError(f"{path} holds a B-spline of order {transform.GetOrder()} where 3 is needed; convert it to a displacement field")
    images = transform.GetCoefficientImages()
    controls = grid_of(images[0], path)
    per_step = np.maximum(1, np.round(controls.spacing / BSPLINE_SPACING)).astype(int)
    mesh = np.array(controls.size) - 3
    affine = controls.affine.copy()
    affine[:-1, :-1] = controls.matrix / per_step
    affine[:-1, -1] = controls.index_to_world(np.ones(controls.dim))
    grid = Grid(tuple(int(n) for n in (mesh * per_step + 1)[::-1]), affine)
    control = np.stack([sitk.GetArrayFromImage(image) for image in images])
    return BSpline(torch.from_numpy(control.astype(np.float32))[None], grid, per_step)


def write_transform(transform: Transform, path, *, grid: Grid | None = None, dtype=torch.float32) -> None:
    """Write a Transform (batch of one), fixed mm -> moving mm, for SimpleITK, ANTs and 3D Slicer.

    .h5, .hdf5: any transform, as ITK's AffineTransform, DisplacementFieldTransform or their composite; velocities and
    B-splines as their displacement on their own grid. .tfm, .txt, .mat: linear transforms. .nii.gz, .nii, .nrrd, .mha:
    the one total displacement on the grid of the field that is applied first. ``grid``: a deformation, and whatever
    becomes an image, is written as its one total displacement there. ``dtype`` float32 or float64 of the
    displacements in the file; the other numbers are float64.
    Raises InputError for an unknown suffix, a batch, a transform that the format cannot hold, or a full disk.
    """
    kind = require_suffix(path, HDF5_TYPES + LINEAR_TYPES + FIELD_TYPES, "a transform")
    if dtype not in (torch.float32, torch.float64):
        raise InputError(f"displacements of {dtype} were asked for in {path}; use torch.float32 or torch.float64")
    if not isinstance(transform, Transform):
        raise InputError(f"a {type(transform).__name__} was given to be written to {path}; give a Transform of the library")
    transform = transform.to("cpu")
    require_finite(transform)
    items = [_storable(item, path) for item in (transform.items if isinstance(transform, Composite) else (transform,))]
    if kind in HDF5_TYPES:
        linear = all(isinstance(item, Affine) for item in items)
        items = items if grid is None or linear else [Displacement(_total(items, grid, dtype), grid)]
        _write_h5(items, path, np.dtype("<f4" if dtype == torch.float32 else "<f8"))
    elif kind in LINEAR_TYPES:
        _write_linear(items, path)
    else:
        _write_field(items, path, grid, dtype)


def _storable(item: Transform, path) -> Affine | Displacement:
    if isinstance(item, Identity):
        return Affine.identity(item.dim)
    if isinstance(item, (Velocity, BSpline)):
        item = item.dense
    if not isinstance(item, (Affine, Displacement)):
        raise InputError(f"a {type(item).__name__} cannot be written to {path}; evaluate it on a grid and write that displacement")
    if item.parameters()[0].shape[0] != 1:
        raise InputError(f"{item.parameters()[0].shape[0]} transforms in one batch were given for {path}; write them one by one")
    return item


def _bordered(item: Displacement) -> Displacement:
    """The same map with zeros on its border, also around an axis of one voxel."""
    item = item.with_zero_ring()
    if min(item.grid.size) > 1:
        return item
    margin = [1 if n == 1 else 0 for n in item.grid.size]
    return Displacement(F.pad(item.displacement, [v for m in margin for v in (m, m)]), item.grid.pad(margin))


def _write_h5(items, path, dtype) -> None:
    dim = items[0].dim
    parts = [_itk_part(item, dim, dtype) for item in items]
    if len(parts) > 1:
        parts.insert(0, {"TransformType": f"CompositeTransform_double_{dim}_{dim}"})
    room = sum(part["TransformParameters"].nbytes for part in parts if "TransformParameters" in part)
    with atomic(path, room) as temporary:
        write_hdf5(temporary, {"TransformGroup": {str(k): part for k, part in enumerate(parts)}})


def _itk_part(item, dim: int, dtype) -> dict:
    if isinstance(item, Affine):
        name, fixed, values = "AffineTransform", np.zeros(dim), _affine_parameters(item)
    else:
        item = _bordered(item)
        grid = item.grid
        name, fixed = "DisplacementFieldTransform", np.concatenate([grid.size, grid.origin, grid.spacing, grid.direction.ravel()])
        values = _interleaved(item.displacement, dtype).reshape(-1)
    return {"TransformType": f"{name}_double_{dim}_{dim}", "TransformFixedParameters": fixed.astype("<f8"), "TransformParameters": values}


def _interleaved(displacement: torch.Tensor, dtype) -> np.ndarray:
    """(1, C, *S) -> (*S, C), the order of files; filled plane by plane, which is faster than a transposing copy."""
    components = displacement[0].detach().numpy()
    array = np.empty((*components.shape[1:], len(components)), dtype)
    for k, plane in enumerate(components):
        array[..., k] = plane
    return array


def _affine_parameters(item: Affine) -> np.ndarray:
    matrix = item.numpy()
    return np.concatenate([matrix[:-1, :-1].ravel(), matrix[:-1, -1]]).astype("<f8")


def _write_linear(items, path) -> None:
    if any(not isinstance(item, Affine) for item in items):
        raise InputError(f"{path} can hold a linear transform only and a deformation was given; write it as .h5 or .nii.gz")
    dim = items[0].dim
    with atomic(path) as temporary, quiet() as sitk:
        itk = sitk.AffineTransform(dim)
        itk.SetParameters(_affine_parameters(items[0]).tolist())
        sitk.WriteTransform(itk, str(temporary))


def _write_field(items, path, grid, dtype) -> None:
    if grid is None and len(items) == 1 and isinstance(items[0], Displacement):
        item = _bordered(items[0])
        total, grid = item.displacement, item.grid
    else:
        grid = _lattice(items, path) if grid is None else grid
        grid = grid.pad([1 if n == 1 else 0 for n in grid.size])  # ITK reads a NIfTI file of one slice of vectors as 2D
        total = _total(items, grid, dtype)
    write_array(_interleaved(total, np.float32 if dtype == torch.float32 else np.float64), grid, path, compress=suffix(path) == ".nii.gz")


def _lattice(items, path) -> Grid:
    """The grid of the field that is applied first, without a border of zeros: towards that the total would fall from what it was.

    InputError where points meet a linear transform first, which has none.
    """
    if isinstance(items[-1], Displacement):
        return items[-1].without_zero_ring().grid
    what, other = ("a linear transform", ".tfm or .h5") if len(items) == 1 else ("a transform that begins with a linear part", ".h5")
    raise InputError(f"{path} holds displacements on a grid and {what} was given, which has none; "
                     f"write it as {other}, or name an image on whose voxels they are to be (--reference, in Python grid=)")


def _total(items, grid: Grid, dtype) -> torch.Tensor:
    """(1, dim, *S) mm of all ``items`` on ``grid``."""
    return Composite(tuple(items)).field(grid, dtype)
