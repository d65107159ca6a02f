"""Distances between members of a cohort: of label maps, of profiles, and of maps or features on common places.

- Label maps a, b: D = 1 - NMI of the co-occurrence matrix of their labels, NMI = 2 I(a; b) / (H(a) + H(b)). Names of
  labels do not matter, only which voxels belong together, so labels need not correspond between subjects. 0: the same
  partition; 1: independent ones.
- Profiles p, q (not negative, e.g. connection strengths; scaled to sum 1): Hellinger's distance
  D = sqrt(2 (1 - sum_i sqrt(p_i q_i))), 0 to sqrt(2).
- Maps: root mean square of the difference. Features: the same, after each was scaled to standard deviation 1.

Kruggel and Solodkin, Distinct structural patterns of the human brain, WBIR 2022, take the first two; in their equation
(1) a second sqrt(2) stands inside the bracket, with which equal profiles would have no distance, so the standard form
is used.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import pdist, squareform

from ..errors import InputError

BLOCK = 1 << 22
"""Numbers of a block of rows that are worked on at a time."""


def nmi_distance(counts: np.ndarray) -> float:
    """1 - NMI of a co-occurrence matrix (A, B) of counts; 0 where both maps have one label."""
    joint = counts / max(counts.sum(), 1)
    rows, columns = joint.sum(1), joint.sum(0)
    one, other, both = (-float((p[p > 0] * np.log(p[p > 0])).sum()) for p in (rows, columns, joint.ravel()))
    return float(np.clip(1 - 2 * (one + other - both) / (one + other), 0.0, 1.0)) if one + other > 1e-12 else 0.0


def label_distances(maps: np.ndarray, monitor) -> np.ndarray:
    """(N, N) of label maps ``maps`` (N, V), whole numbers from 0 that need not be in memory (a memory map); a row at
    a time is."""
    count = len(maps)
    out, sizes = np.zeros((count, count)), [int(row.max(initial=0)) + 1 for row in maps]
    for a in monitor.steps(count, "distances"):
        first = np.asarray(maps[a], np.int64)
        for b in range(a + 1, count):
            joint = np.bincount(first * sizes[b] + maps[b], minlength=sizes[a] * sizes[b]).reshape(sizes[a], sizes[b])
            out[a, b] = out[b, a] = nmi_distance(joint)
    return out


def hellinger_distances(profiles: np.ndarray) -> np.ndarray:
    """(N, N) of ``profiles`` (N, K). InputError for negative values or a profile without any."""
    profiles = np.asarray(profiles, float)
    sums = profiles.sum(1, keepdims=True)
    if (profiles < 0).any() or (sums <= 0).any():
        raise InputError(
            f"profiles from {profiles.min():g} to {profiles.max():g} were given; Hellinger's distance needs values of at "
            "least 0, and one above 0 a subject; give other values as features"
        )
    return squareform(pdist(np.sqrt(profiles / sums)))  # the same number, with all digits near 0


def feature_distances(features: np.ndarray) -> np.ndarray:
    """(N, N) of a table (N, K): root mean square over the features that vary, each scaled to standard deviation 1."""
    deviation = np.asarray(features, float).std(0)
    varying = deviation > 0
    if not varying.any():
        return np.zeros((len(features), len(features)))
    return map_distances((features[:, varying] - features[:, varying].mean(0)) / deviation[varying])


def map_distances(maps: np.ndarray) -> np.ndarray:
    """(N, N) root mean square differences of ``maps`` (N, V), which need not be in memory; blocks of columns are."""
    count, width = maps.shape
    total, step = np.zeros((count, count)), max(1, BLOCK // max(count, 1))
    for first in range(0, width, step):
        part = np.asarray(maps[:, first : first + step], np.float64)
        part = part - part.mean(0)
        products = part @ part.T
        squares = np.diag(products)
        total += squares[:, None] + squares[None] - 2 * products
    out = np.sqrt(np.maximum(total, 0) / max(width, 1))
    np.fill_diagonal(out, 0)
    return (out + out.T) / 2
