"""A cohort as points: the dimension of a matrix of distances, and coordinates that keep the distances along the data.

Grassberger and Procaccia: C(r), the share of pairs nearer than r, grows as r^nu for small r; nu is the correlation
dimension, here the slope of log C over log r between the ``SHARES`` of the pairs, with the spread over subsets of the
subjects (a delete-d jackknife). Isomap: distances become lengths of shortest paths in the graph of nearest neighbors,
and classical scaling gives coordinates. A graph of several parts is joined by the shortest link between every two of
them, so that types far apart stay one picture. Grassberger and Procaccia, Physica D 1983; Tenenbaum, de Silva and
Langford, Science 2000.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components, shortest_path

SHARES = (0.005, 0.05)
"""Of the pairs, nearest first: where the slope is taken. Beyond, the edge of the cohort bends the line; nearer there
are few pairs.
"""
FEWEST_PAIRS = 10
"""Pairs that the nearer end must have."""
SUBSETS, KEPT = 20, 0.8


@dataclass(frozen=True)
class Dimension:
    """``value`` and its standard ``error``, None where there are too few different distances; ``radius`` and
    ``share`` (K,): the points of the log-log line, ``used``: the ends of the fit."""

    value: float | None
    error: float | None
    radius: np.ndarray
    share: np.ndarray
    used: tuple[float, float]


@dataclass(frozen=True)
class Embedding:
    """``points`` (N, D); ``explained`` (D,): share of the variance of all positive directions; ``parts``: of the
    graph of neighbors before it was joined; ``residual``: 1 - R^2 of path lengths and distances of the points;
    ``neighbors``: what was used."""

    points: np.ndarray
    explained: np.ndarray
    parts: int
    residual: float
    neighbors: int


def correlation_dimension(distances: np.ndarray, generator: np.random.Generator) -> Dimension:
    """Of a matrix (N, N) of distances. Pairs at distance 0 are copies and are left away."""
    value, line, used = _slope(distances)
    count, values = len(distances), []
    for _ in range(SUBSETS):
        chosen = generator.permutation(count)[: max(3, round(KEPT * count))]
        values.append(_slope(distances[np.ix_(chosen, chosen)])[0])
    if value is None or None in values:
        return Dimension(value, None, *line, used)
    error = float(np.std(values) * np.sqrt(KEPT / (1 - KEPT)))
    return Dimension(value, error, *line, used)


def _slope(distances: np.ndarray):
    """(slope, (radii, shares), ends of the fit)."""
    upper = distances[np.triu_indices(len(distances), 1)]
    ordered = np.sort(upper[upper > 0])
    if len(ordered) < 3 * FEWEST_PAIRS:
        return None, (ordered, np.arange(1, len(ordered) + 1) / max(len(ordered), 1)), (0.0, 0.0)
    near = max(SHARES[0], FEWEST_PAIRS / len(ordered))
    low, high = np.quantile(ordered, [near, max(SHARES[1], 3 * near)])
    radii = np.geomspace(low, high, 20) if high > low else np.array([low, low])
    if high <= low:
        return None, (radii, np.ones(2)), (low, high)
    shares = np.searchsorted(ordered, radii, side="right") / len(ordered)
    slope = float(np.polyfit(np.log(radii), np.log(shares), 1)[0])
    whole = np.geomspace(ordered[0], ordered[-1], 60)
    return (
        slope,
        (whole, np.searchsorted(ordered, whole * (1 + 1e-12), side="right") / len(ordered)),
        (float(low), float(high)),
    )


@dataclass(frozen=True)
class Paths:
    """``lengths`` (N, N) of shortest paths along ``neighbors`` neighbors; ``parts`` of the graph before it was
    joined."""

    lengths: np.ndarray
    parts: int
    neighbors: int


def paths(distances: np.ndarray, neighbors: int = 0) -> Paths:
    """Along the graph of nearest neighbors of a matrix (N, N) of distances; ``neighbors`` 0: the root of N, at least
    5."""
    count = len(distances)
    neighbors = min(neighbors or max(5, round(np.sqrt(count))), count - 1)
    positive = np.maximum(distances, 1e-12 * max(distances.max(), 1e-300))  # an edge of length 0 is no edge for scipy
    order = np.argsort(distances + np.diag(np.full(count, np.inf)), axis=1)[:, :neighbors]
    rows, columns = np.repeat(np.arange(count), neighbors), order.ravel()
    near = csr_matrix((positive[rows, columns], (rows, columns)), (count, count))
    parts, owner = connected_components(near, directed=False)
    links = [_shortest(positive, owner == a, owner == b) for a in range(parts) for b in range(a + 1, parts)]
    rows, columns = (np.array([link[k] for link in links], int) for k in (0, 1))
    bridges = csr_matrix((positive[rows, columns], (rows, columns)), (count, count))
    return Paths(shortest_path(near.maximum(bridges), directed=False), int(parts), neighbors)


def _shortest(distances: np.ndarray, one: np.ndarray, other: np.ndarray) -> tuple[int, int]:
    """The members of two parts that are nearest to each other."""
    rows, columns = np.flatnonzero(one), np.flatnonzero(other)
    k = int(distances[np.ix_(rows, columns)].argmin())
    return int(rows[k // len(columns)]), int(columns[k % len(columns)])


def isomap(along: Paths, dimensions: int) -> Embedding:
    """Coordinates whose distances are the lengths of paths, as well as ``dimensions`` allow; the largest coordinate
    of each is positive."""
    squares = along.lengths**2
    centered = -0.5 * (squares - squares.mean(0) - squares.mean(1)[:, None] + squares.mean())
    values, vectors = np.linalg.eigh(centered)
    values, vectors = values[::-1], vectors[:, ::-1]
    kept = slice(0, max(1, min(dimensions, int((values > 1e-10 * max(values[0], 1e-300)).sum()))))
    points = vectors[:, kept] * np.sqrt(np.maximum(values[kept], 0))
    points = points * np.where(points[np.abs(points).argmax(0), np.arange(points.shape[1])] < 0, -1.0, 1.0)
    upper = np.triu_indices(len(points), 1)
    shown, meant = np.linalg.norm(points[:, None] - points[None], axis=-1)[upper], along.lengths[upper]
    constant = np.ptp(shown) == 0 or np.ptp(meant) == 0
    residual = 0.0 if constant else 1 - float(np.corrcoef(meant, shown)[0, 1]) ** 2
    return Embedding(
        points,
        np.maximum(values[kept], 0) / max(values[values > 0].sum(), 1e-300),
        along.parts,
        residual,
        along.neighbors,
    )
