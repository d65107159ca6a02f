"""A start from landmark pairs: the rigid map x -> R x + t that brings the fixed landmarks x_k nearest to the moving ones y_k,

    min over R, t of sum_k |R x_k + t - y_k|^2:   R = V diag(1, 1, det(V U')) U',   t = mean(y) - R mean(x),

with U S V' the singular values of sum_k (x_k - mean(x)) (y_k - mean(y))' (Arun, Huang and Blostein 1987; the sign that keeps R a rotation is
Umeyama's, 1991). One or two pairs, and pairs on a line, do not say how to turn: they give a shift alone.
"""

from __future__ import annotations

import numpy as np

from DeepRegistrationLib.exchange import Matrix, PointSet

SPREAD = 0.02
"""Landmarks whose second-largest extent is less than this share of the largest one lie on a line."""


def rigid_fit(fixed: PointSet, moving: PointSet) -> Matrix:
    """The map fixed -> moving (LPS mm) of landmarks that correspond row by row."""
    x, y = fixed.positions, moving.positions
    matrix, middle = np.eye(4), (x.mean(0), y.mean(0))
    spread = np.linalg.svd(x - middle[0], compute_uv=False)
    if len(x) > 2 and spread[1] > SPREAD * spread[0]:
        u, _, v = np.linalg.svd((x - middle[0]).T @ (y - middle[1]))
        matrix[:3, :3] = v.T @ np.diag((1.0, 1.0, np.linalg.det(v.T @ u.T))) @ u.T
    matrix[:3, 3] = middle[1] - matrix[:3, :3] @ middle[0]
    return Matrix(matrix)
