"""Linear maps: rigid, similarity and affine, about a centre, from parameters that can be optimised.

T(x) = M (x - c) + c + t. Rotations by the exponential map of a rotation vector (Rodrigues); an affine matrix is
``exp(rotation) @ exp(symmetric log-stretch)``, so every parameter vector gives an invertible map.
"""

from __future__ import annotations

import numpy as np
import torch

from ..errors import ConvergenceError, InputError
from .base import Transform

KINDS = ("translation", "rigid", "similarity", "affine")
EQUAL = 1e-5
"""Difference of numbers of a matrix below which they count as equal."""


class Affine(Transform):
    """``matrix`` (B, dim + 1, dim + 1) homogeneous, world mm -> world mm."""

    def __init__(self, matrix: torch.Tensor):
        matrix = torch.as_tensor(matrix)
        matrix = matrix if matrix.ndim == 3 else matrix[None]
        if matrix.shape[1] != matrix.shape[2] or matrix.shape[1] not in (3, 4):
            raise InputError(f"a linear transform of shape {tuple(matrix.shape)} was given; (3, 3) or (4, 4) is needed")
        self.matrix = matrix if matrix.is_floating_point() else matrix.double()
        self.dim = matrix.shape[1] - 1

    @property
    def stretch(self) -> tuple[float, float]:
        """The least and the largest scale along any direction, of all maps of the batch."""
        values = torch.linalg.svdvals(self.matrix[:, :-1, :-1].detach().double().cpu())
        return float(values.min()), float(values.max())

    @property
    def scales(self) -> np.ndarray:
        """(dim,) scales along the axes of its own stretch, the largest first."""
        return np.linalg.svd(self.numpy()[:-1, :-1], compute_uv=False)

    @property
    def mirrors(self) -> bool:
        """True where left and right change sides."""
        return bool(np.linalg.det(self.numpy()[:-1, :-1]) < 0)

    @property
    def turn(self) -> np.ndarray:
        """(1,) or (3,) degrees: the nearest rotation as a vector along its axis."""
        from scipy.spatial.transform import Rotation

        u, _, v = np.linalg.svd(self.numpy()[:-1, :-1])
        nearest = u @ np.diag([1.0] * (self.dim - 1) + [np.linalg.det(u @ v)]) @ v
        if self.dim == 2:
            return np.rad2deg(np.arctan2(nearest[1:, 0], nearest[:1, 0]))
        return np.rad2deg(Rotation.from_matrix(nearest).as_rotvec())

    @property
    def kind(self) -> str:
        """The narrowest of 'identity' and ``KINDS`` that it is, to the precision of single numbers in files."""
        matrix, scales = self.numpy(), self.scales
        if np.allclose(matrix[:-1, :-1], np.eye(self.dim), atol=EQUAL):
            return "identity" if np.allclose(matrix[:-1, -1], 0, atol=EQUAL) else "translation"
        if self.mirrors or np.ptp(scales) > EQUAL * scales[0]:
            return "affine"
        return "rigid" if abs(scales[0] - 1) < EQUAL else "similarity"

    @classmethod
    def identity(cls, dim: int, dtype=torch.float64) -> "Affine":
        return cls(torch.eye(dim + 1, dtype=dtype))

    @classmethod
    def translation(cls, shift) -> "Affine":
        """shift (dim,) mm."""
        shift = np.asarray(shift, float)
        m = np.eye(len(shift) + 1)
        m[:-1, -1] = shift
        return cls(torch.as_tensor(m))

    @classmethod
    def from_parameters(cls, kind: str, values: torch.Tensor, centre: torch.Tensor) -> "Affine":
        """``values`` (B, P) -> map about ``centre`` (dim,) mm; see ``parameter_count`` for P.

        Order: shift (dim, mm), rotation (1 or 3, rad), then log scale (1) or symmetric log-stretch (dim (dim + 1) / 2).
        Raises ValueError for an unknown kind and for another number of values.
        """
        dim = centre.shape[-1]
        if kind not in KINDS or values.shape[1] != parameter_count(kind, dim):
            raise ValueError(f"{values.shape[1]} values for a '{kind}' map in {dim}D; kinds are {', '.join(KINDS)}, see parameter_count")
        shift, rest = values[:, :dim], values[:, dim:]
        eye = torch.eye(dim, dtype=values.dtype, device=values.device)
        linear = eye.expand(values.shape[0], dim, dim)
        if kind != "translation":
            n = 1 if dim == 2 else 3
            linear = torch.matrix_exp(_skew(rest[:, :n], dim))
            rest = rest[:, n:]
        if kind == "similarity":
            linear = linear * rest[:, :1, None].exp()
        elif kind == "affine":
            linear = linear @ torch.matrix_exp(_symmetric(rest, dim))
        offset = shift + centre - (linear @ centre.to(linear)[:, None])[..., 0]
        top = torch.cat([linear, offset[..., None]], -1)
        last = torch.zeros_like(top[:, :1])
        last[..., -1] = 1
        return cls(torch.cat([top, last], 1))

    def __call__(self, points):
        m = self.matrix.to(points)
        return points @ m[:, :-1, :-1].transpose(1, 2) + m[:, None, :-1, -1]

    def times(self, inner: "Affine") -> "Affine":
        """The one matrix of ``self`` after ``inner``."""
        kind = torch.promote_types(self.matrix.dtype, inner.matrix.dtype)
        return Affine(self.matrix.to(kind) @ inner.matrix.to(kind))

    def inverse(self):
        inverse, failed = torch.linalg.inv_ex(self.matrix)
        if bool(failed.any()) or not bool(torch.isfinite(inverse).all() & torch.isfinite(self.matrix).all()):
            raise ConvergenceError("the linear transform is singular or not finite and has no inverse; check the file or the initial transform")
        return Affine(inverse)

    def jacobian(self, points, step=0.0):
        m = self.matrix[:, None, :-1, :-1].to(points)
        return m.expand(max(m.shape[0], points.shape[0]), points.shape[1], -1, -1)

    def parameters(self):
        return (self.matrix,)

    def to(self, device=None, dtype=None):
        return Affine(self.matrix.to(device=device, dtype=dtype))

    def numpy(self) -> np.ndarray:
        """(dim + 1, dim + 1) float64 of the first batch entry."""
        return self.matrix[0].detach().cpu().double().numpy()


def parameter_count(kind: str, dim: int) -> int:
    """Length of the parameter vector of ``Affine.from_parameters``."""
    rotation = 1 if dim == 2 else 3
    return dim + {"translation": 0, "rigid": rotation, "similarity": rotation + 1, "affine": rotation + dim * (dim + 1) // 2}[kind]


def _skew(w, dim):
    if dim == 2:
        zero = torch.zeros_like(w[:, 0])
        return torch.stack([torch.stack([zero, -w[:, 0]], -1), torch.stack([w[:, 0], zero], -1)], 1)
    zero = torch.zeros_like(w[:, 0])
    rows = [[zero, -w[:, 2], w[:, 1]], [w[:, 2], zero, -w[:, 0]], [-w[:, 1], w[:, 0], zero]]
    return torch.stack([torch.stack(r, -1) for r in rows], 1)


def _symmetric(v, dim):
    order = [[0, 2], [2, 1]] if dim == 2 else [[0, 3, 4], [3, 1, 5], [4, 5, 2]]
    return torch.stack([torch.stack([v[:, k] for k in row], -1) for row in order], 1)
