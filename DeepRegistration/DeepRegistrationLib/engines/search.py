"""Searching few parameters: a quasi-Newton minimiser, coverings of the rotations, and low-discrepancy points.

BFGS with backtracking: Nocedal and Wright, Numerical Optimization, chapter 6. Rotations: Alexa, Super-Fibonacci Spirals,
CVPR 2022. Points: the additive recurrence of the generalised golden ratio (Roberts 2018, after Kronecker).
"""

from __future__ import annotations

import numpy as np

from ..runtime import Monitor


def minimise(evaluate, start, move, metric, *, longest: float, tolerance: float, iterations: int, monitor: Monitor, text: str,
             observe=None):
    """The best point that BFGS finds from ``start``, a point of a vector space or of a group.

    evaluate(point) -> (cost, gradient (P,)), the gradient with respect to the step of ``move(point, step (P,)) -> point`` at
    step 0, cost inf where the point is not allowed; metric (P, P) not negative, the shape of the first Hessian; ``longest``
    norm of a step, ``tolerance`` norm of the step that ends the search; ``observe(point, cost)`` is called after each accepted
    step. Returns (point, cost); an infinite cost at the start is returned as it is.
    """
    point = start
    cost, gradient = evaluate(point)
    if not np.isfinite(cost):
        return point, cost
    scale = np.trace(metric) / len(metric)
    stiffness = metric / scale + 1e-2 * np.eye(len(metric)) if scale > 0 else np.eye(len(metric))
    inverse, stride = None, 0.5 * longest
    for _ in monitor.steps(iterations, text):
        direction = -(np.linalg.solve(stiffness, gradient) if inverse is None else inverse @ gradient)
        norm = np.linalg.norm(direction)
        if norm < 1e-14 or not gradient @ direction < 0:
            break
        direction *= (stride if inverse is None else min(norm, longest)) / norm

        def along(step, point=point, direction=direction):
            there = move(point, step * direction)
            return there, *evaluate(there)

        step, found = _line_search(along, cost, gradient @ direction, direction, longest, tolerance)
        if found is not None:
            inverse = _updated(inverse, stiffness, step * direction, found[2] - gradient)
            point, cost, gradient = found
            if observe is not None:
                observe(point, cost)
        if step * np.linalg.norm(direction) < tolerance:
            # The model of the curvature may be at fault: a short step from a fresh model has to fail too.
            if inverse is None or stride < longest / 8:
                break
            inverse, stride = None, longest / 16
    return point, cost


def _line_search(along, cost, slope, direction, longest, tolerance):
    """(step, (point, cost, gradient)) that lowers the cost enough (Armijo), lengthened while the cost falls nearly as steeply
    as at the start; (0, None) once the step is under the tolerance. ``along(step)`` evaluates."""
    norm, step = np.linalg.norm(direction), 1.0
    for _ in range(12):
        found = along(step)
        if found[1] <= cost + 1e-4 * step * slope:
            break
        if step * norm < 0.5 * tolerance:
            return 0.0, None
        bend = (found[1] - cost - step * slope) / step**2 if np.isfinite(found[1]) else np.inf
        step = float(np.clip(-slope / (2 * bend), 0.1 * step, 0.5 * step))
    else:
        return 0.0, None
    while step >= 1 and found[2] @ direction < 0.6 * slope and step * norm <= longest:
        farther = along(2 * step)
        if not farther[1] < found[1]:
            break
        step, found = 2 * step, farther
    return step, found


def _updated(inverse, stiffness, move, change):
    """The BFGS update of an inverse Hessian; left alone where the curvature along ``move`` is not positive.

    A first inverse is that of the stiffness, scaled to the curvature along the first move.
    """
    product = move @ change
    if product <= 1e-3 * np.linalg.norm(move) * np.linalg.norm(change):
        return inverse
    if inverse is None:
        inverse = np.linalg.inv(stiffness) * (move @ stiffness @ move) / product
    left = np.eye(len(move)) - np.outer(move, change) / product
    return left @ inverse @ left.T + np.outer(move, move) / product


def rotations(count: int, dim: int) -> np.ndarray:
    """(count, dim, dim) rotations that cover all of them evenly; the identity is not among them in 3D."""
    if dim == 2:
        angle = 2 * np.pi * np.arange(count) / count
        return np.stack([np.stack([np.cos(angle), -np.sin(angle)], -1), np.stack([np.sin(angle), np.cos(angle)], -1)], 1)
    s = np.arange(count) + 0.5
    inner, outer = np.sqrt(s / count), np.sqrt(1 - s / count)
    alpha, beta = 2 * np.pi * s / np.sqrt(2), 2 * np.pi * s / 1.533751168755204288118041
    x, y, z, w = inner * np.sin(alpha), inner * np.cos(alpha), outer * np.sin(beta), outer * np.cos(beta)
    rows = [[1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]]
    return np.stack([np.stack(row, -1) for row in rows], 1)


def angle_between(a, b) -> np.ndarray:
    """Angle (rad) of the rotation from ``a`` (..., dim, dim) to ``b`` (..., dim, dim)."""
    trace = np.einsum("...ij,...ij->...", a, b)
    dim = np.shape(a)[-1]
    cosine = trace / 2 if dim == 2 else (trace - 1) / 2
    return np.arccos(np.clip(cosine, -1, 1))


def spread_points(count: int, dim: int, shift) -> np.ndarray:
    """(count, dim) points that fill [0, 1)^dim evenly, moved by ``shift`` (dim,) round the unit cube."""
    ratio = 2.0
    for _ in range(40):
        ratio = (1 + ratio) ** (1 / (dim + 1))
    steps = ratio ** -np.arange(1.0, dim + 1)
    return (np.asarray(shift, float) + np.arange(1, count + 1)[:, None] * steps) % 1.0
