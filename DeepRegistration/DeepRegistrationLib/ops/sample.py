"""Reading an image between its voxels: the only place with ``grid_sample`` and ``align_corners``.

``align_corners=False``: the border of the image is the outer face of the border voxels, so a one-slice axis is legal.
Outside the field of view an image has ``fill``; a field (padding 'zeros') falls linearly to 0 over one voxel.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import InputError
from ..geometry import Grid
from .native import kernels_for, volumes
from .spline import cubic_coefficients, cubic_sample


def matrix_between(source: Grid, target: Grid) -> np.ndarray:
    """(dim + 1, dim + 1) float64: index of ``source`` -> index of ``target``."""
    if source.dim != target.dim:
        raise InputError(f"a {source.dim}D and a {target.dim}D image were put together; both must have the same dimension")
    return target.inverse_affine @ source.affine


def apply_matrix(matrix, points: torch.Tensor) -> torch.Tensor:
    """Affine map ``matrix`` (dim + 1, dim + 1) of points (..., dim)."""
    m = torch.as_tensor(np.array(matrix), dtype=points.dtype, device=points.device) if not torch.is_tensor(matrix) else matrix
    return points @ m[:-1, :-1].T + m[:-1, -1]


def index_points(grid: Grid, target: Grid | None = None, dtype=torch.float32, device="cpu") -> torch.Tensor:
    """(1, *S, dim) index (x, y, z) in ``target`` of every voxel of ``grid``; computed in float64 per axis, cast once."""
    target = target or grid
    return _affine_lattice(grid, matrix_between(grid, target), dtype, device)


def world_points(grid: Grid, dtype=torch.float32, device="cpu") -> torch.Tensor:
    """(1, *S, dim) world position of every voxel, mm."""
    return _affine_lattice(grid, grid.affine, dtype, device)


def _affine_lattice(grid, matrix, dtype, device):
    total = torch.zeros((1,) * grid.dim + (grid.dim,), dtype=dtype, device=device)
    for component in range(grid.dim):
        n = grid.size[component]
        line = np.arange(n)[:, None] * matrix[:-1, component][None]
        if component == 0:
            line = line + matrix[:-1, -1][None]
        shape = [1] * grid.dim + [grid.dim]
        shape[grid.dim - 1 - component] = n
        total = total + torch.as_tensor(line, dtype=dtype, device=device).reshape(shape)
    return total.expand(*grid.shape, grid.dim)[None]


def sample(data: torch.Tensor, index: torch.Tensor, mode: str = "linear", padding: str = "border", fill: float | None = None):
    """Values of ``data`` (B, C, *S) at continuous ``index`` (B or 1, *T, dim) in (x, y, z) voxels -> (B, C, *T).

    mode 'linear', 'nearest' or 'cubic' (interpolating cubic B-spline); padding 'border' (clamped) or 'zeros'; with
    ``fill`` every position more than half a voxel outside the lattice gets that value. Whole numbers are read with
    'nearest' alone and keep their type.
    """
    if not data.is_floating_point() and mode == "nearest":
        return _sample_whole(data, index, padding, fill)
    dim = data.ndim - 2
    if index.shape[-1] != dim:
        raise ValueError(f"positions of {index.shape[-1]} components for an image of {dim} axes")
    if mode not in ("linear", "nearest", "cubic") or padding not in ("border", "zeros") or (mode == "cubic" and padding == "zeros"):
        raise ValueError(f"mode '{mode}' with padding '{padding}'; linear, nearest with border, zeros or cubic with border are known")
    if data.shape[0] == 1 and index.shape[0] > 1:
        data = data.expand(index.shape[0], *data.shape[1:])
    targets = index.shape[1:-1]
    if mode == "cubic":
        out = _spline(cubic_coefficients(data), index)
    else:
        flat = index if index.ndim == dim + 2 else index.reshape(index.shape[0], *([1] * (dim - 1)), -1, dim)
        out = _grid_sample(data, flat, mode, padding).reshape(data.shape[0], data.shape[1], *targets)
    if fill is not None:
        out = torch.where(inside(index, data.shape[2:])[:, None], out, torch.as_tensor(fill, dtype=out.dtype, device=out.device))
    return out


def sample_known(data: torch.Tensor, index: torch.Tensor, mode: str = "linear", fill: float | None = None):
    """As ``sample``, of an image in which some voxels hold no number: NaN where the nearest voxel is one of them, elsewhere read from the others alone.

    InputError for cubic interpolation, in which every voxel has a share in every value.
    """
    known = data.isfinite()
    if bool(known.all()):
        return sample(data, index, mode, fill=fill)
    if mode == "cubic":
        raise InputError(f"{int((~known).sum())} voxels hold no number (NaN or infinite), which cubic interpolation cannot leave out; "
                         "choose linear or nearest, or fill them first")
    here = sample(known.float(), index, "nearest") > 0.5
    values = sample(data.where(known, 0.0), index, mode) / sample(known.to(data.dtype), index, mode).clamp_min(1e-6)
    values = values.where(here, torch.nan)
    return values if fill is None else values.where(inside(index, data.shape[2:])[:, None], fill)


def _sample_whole(numbers: torch.Tensor, index, padding, fill):
    """The nearest of whole ``numbers``: single precision holds none beyond 2 ** 24, as labels of the Allen atlas are, so these go in two parts."""
    if int(numbers.abs().max()) < 2**24:
        return sample(numbers.float(), index, "nearest", padding, fill).to(numbers.dtype)
    high, low = (_sample_whole(part, index, padding, None) for part in (numbers // 2**16, numbers % 2**16))
    out = high * 2**16 + low
    return out if fill is None else out.where(inside(index, numbers.shape[2:])[:, None], int(fill))


def sample_rows(table: torch.Tensor, shape, index: torch.Tensor) -> torch.Tensor:
    """Linear interpolation of many channels at once: ``table`` (voxels, C) of a lattice ``shape`` -> (N, C).

    index (N, dim) in (x, y, z) voxels, clamped at the border. Equal to ``sample`` with padding 'border', but each voxel's
    channels lie side by side and one fused weighted gather reads them: three times as fast for a dozen channels.
    Differentiable in ``table`` only.
    """
    low, fraction, stride = [], [], []
    for component, n in enumerate(tuple(shape)[::-1]):
        position = index[:, component].clamp(0, n - 1)
        floor = position.floor().clamp_max_(max(n - 2, 0))
        low.append(floor.to(torch.int32))
        fraction.append(position.sub_(floor))
        stride.append(0 if n == 1 else int(np.prod(tuple(shape)[len(shape) - component:], dtype=int)))
    corners = sum(part * step for part, step in zip(low, stride))[:, None]
    weights = torch.ones_like(fraction[0])[:, None]
    for part, step in zip(fraction, stride):
        corners = torch.cat([corners, corners + step], 1)
        weights = torch.cat([weights * (1 - part[:, None]), weights * part[:, None]], 1)
    return F.embedding_bag(corners, table, mode="sum", per_sample_weights=weights.to(table.dtype))


def inside(index: torch.Tensor, shape) -> torch.Tensor:
    """(B, *T) True where ``index`` (B, *T, dim) lies within the outer faces of a lattice of ``shape`` (z, y, x)."""
    size = torch.tensor(tuple(shape)[::-1], dtype=index.dtype, device=index.device)
    return ((index >= -0.5) & (index <= size - 0.5)).all(-1)


def _grid_sample(data, index, mode, padding):
    """torch's sampler; on the CPU it runs one batch entry a thread, so a single volume is cut into slabs of one batch."""
    native = kernels_for(data, index) if mode == "linear" else None
    if native is not None:
        return _compiled(native.linear, data, index, padding == "zeros")
    size = torch.tensor(data.shape[:1:-1], dtype=index.dtype, device=index.device)
    normalised = (2 * index + 1) / size - 1
    batch = data.shape[0]
    normalised = normalised.expand(batch, *normalised.shape[1:])
    kind = {"linear": "bilinear", "nearest": "nearest"}[mode]
    if mode == "nearest" and padding == "border":
        normalised = normalised.clamp(-1, 1)
    parts = torch.get_num_threads()
    first = next((k for k in range(1, normalised.ndim - 1) if normalised.shape[k] >= 2 * parts), None)
    if data.is_cuda or batch > 1 or parts == 1 or first is None:
        return F.grid_sample(data, normalised.to(data.dtype), kind, padding, align_corners=False)
    return _in_slabs(data, normalised.to(data.dtype), kind, padding, first, parts)


def _spline(coefficients, index):
    """``cubic_sample``, by a compiled loop where that is possible."""
    native = kernels_for(coefficients, index)
    return cubic_sample(coefficients, index) if native is None else _compiled(native.cubic, coefficients, index)


def _compiled(kernel, data, index, *how):
    """The same values by a compiled loop over the positions of every image in turn; 2D positions get a third coordinate 0."""
    found = []
    for image, positions in zip(data, index.expand(data.shape[0], *index.shape[1:])):
        flat = positions.reshape(-1, index.shape[-1])
        flat = flat if flat.shape[1] == 3 else F.pad(flat, (0, 1))
        out = torch.empty(data.shape[1], flat.shape[0])
        kernel(volumes(image[None]), flat.detach().contiguous().numpy(), *how, out.numpy())
        found.append(out.reshape(1, data.shape[1], *index.shape[1:-1]))
    return torch.cat(found)


def _in_slabs(data, normalised, kind, padding, axis, parts):
    n = normalised.shape[axis] // parts * parts
    body, rest = normalised.narrow(axis, 0, n), normalised.narrow(axis, n, normalised.shape[axis] - n)
    slabs = torch.cat(body.chunk(parts, axis), 0)
    out = F.grid_sample(data.expand(parts, *data.shape[1:]), slabs, kind, padding, align_corners=False)
    pieces = list(out.split(1, 0))
    if rest.shape[axis]:
        pieces.append(F.grid_sample(data, rest, kind, padding, align_corners=False))
    return torch.cat(pieces, axis + 1)


def resample(data: torch.Tensor, source: Grid, target: Grid, mode: str = "linear", fill: float | None = None, padding: str = "border"):
    """``data`` (B, C, *S) on ``source`` -> its values on ``target``; resizing is this too (no smoothing, see filters)."""
    if source.same_as(target):
        return data
    index = index_points(target, source, torch.float64 if data.dtype == torch.float64 else torch.float32, data.device)
    return sample(data, index, mode, padding, fill)
