"""Transforms <-> the plain parts that two processes exchange (``exchange.Matrix`` and ``exchange.Lattice``), and T = A o phi."""

from __future__ import annotations

import numpy as np
import torch

from ..errors import InputError
from ..exchange import Lattice, Matrix
from ..geometry import Grid
from .base import Composite, Identity, Transform, linear_part
from .dense import Displacement
from .linear import Affine


def split(transform: Transform, grid: Grid) -> tuple[Affine, Displacement | None]:
    """(A, phi) with ``transform`` = A o phi: the leading linear factors, and the rest as one Displacement (None where there is
    none), on its own lattice where it has one and read on ``grid`` otherwise."""
    rest = [item for item in items_of(transform) if not isinstance(item, Identity)]
    while rest and isinstance(rest[0], Affine):
        rest.pop(0)
    if not rest:
        return linear_part(transform), None
    dense = getattr(rest[0], "dense", rest[0])
    if len(rest) > 1 or not isinstance(dense, Displacement):
        dense = Displacement(Composite.of(*rest).field(grid), grid)
    return linear_part(transform), dense


def items_of(transform: Transform) -> tuple[Transform, ...]:
    """The factors of a composition, the last applied first; a transform of one part is its only factor."""
    return transform.items if isinstance(transform, Composite) else (transform,)


def to_parts(transform: Transform) -> tuple[Matrix | Lattice, ...]:
    """The parts of a 3D transform, each deformation on its own lattice with a ring of zeros (see ``Displacement.with_zero_ring``).

    InputError for a deformation without a lattice and for a 2D transform.
    """
    if transform.dim != 3:
        raise InputError("a 2D transform was to be sent as it is; lift it with the planes of its slices (transforms.planar)")
    parts: list[Matrix | Lattice] = []
    for item in items_of(transform):
        if isinstance(item, Affine):
            parts.append(Matrix(item.numpy()))
        elif not isinstance(item, Identity):
            dense = getattr(item, "dense", item)
            if not isinstance(dense, Displacement):
                raise InputError(f"a {type(item).__name__} has no lattice; sample it on a grid (Displacement) first")
            dense = dense.with_zero_ring()
            kind = torch.float64 if dense.displacement.dtype == torch.float64 else torch.float32
            vectors = dense.displacement[0].detach().to("cpu", kind).movedim(0, -1).contiguous().numpy()
            parts.append(Lattice(vectors, dense.grid))
    return tuple(parts) or (Matrix(np.eye(4)),)


def from_parts(parts) -> Transform:
    """The transform of a sequence of parts, applied last to first. InputError for something that is no part."""
    items: list[Transform] = []
    for part in parts:
        if isinstance(part, Matrix):
            items.append(Affine(torch.from_numpy(np.array(part.matrix, float))))
        elif isinstance(part, Lattice):
            kind = np.float64 if part.vectors.dtype == np.float64 else np.float32
            vectors = np.ascontiguousarray(np.moveaxis(part.vectors, -1, 0)[None], dtype=kind)
            dense = Displacement(torch.from_numpy(vectors), part.grid)
            items.append(dense.inverse() if part.inverted else dense)
        else:
            raise InputError(f"a {type(part).__name__} was given as a part of a transform; expected matrices and lattices")
    return Composite.of(Identity(3), *items)
