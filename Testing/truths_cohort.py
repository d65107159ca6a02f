"""Cohorts with a planted structure: label maps and profiles of subjects of known types that vary in a known number of
directions.

A subject is a set of K seeds in the unit square; its label map says which seed is nearest, as basins around sulcal
roots. The seeds of its type are moved along ``dim`` fixed random directions by amounts that are uniform, so a type is
a smooth patch of that dimension. The profile of a subject says how strongly any two seeds are connected:
exp(-distance / ``REACH``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import pdist

SEEDS, SIDE, REACH = 9, 48, 0.25


@dataclass(frozen=True)
class Planted:
    """``maps`` (N, SIDE * SIDE) labels from 0; ``profiles`` (N, pairs of seeds); ``types`` (N,); ``amounts`` (N,
    dim), uniform in -1 to 1."""

    maps: np.ndarray
    profiles: np.ndarray
    types: np.ndarray
    amounts: np.ndarray


def planted(seed: int, subjects: int, types: int, dim: int, within: float = 0.05, between: float = 0.15) -> Planted:
    """A cohort; ``within`` and ``between`` scale the moves of seeds inside and between types (the square has side 1)."""
    rng = np.random.default_rng(seed)
    base, shifts = rng.random((SEEDS, 2)), rng.standard_normal((types, SEEDS, 2))
    directions = rng.standard_normal((dim, SEEDS, 2))
    directions /= np.linalg.norm(directions, axis=(1, 2), keepdims=True)
    which, amounts = np.arange(subjects) % types, rng.uniform(-1, 1, (subjects, dim))
    moved = base + between * shifts[which] * (types > 1) + within * np.tensordot(amounts, directions, 1)
    profiles = np.stack([np.exp(-pdist(seeds) / REACH) for seeds in moved])
    return Planted(np.stack([nearest(seeds) for seeds in moved]), profiles, which, amounts)


def nearest(seeds: np.ndarray) -> np.ndarray:
    """(SIDE * SIDE,) the number of the nearest of ``seeds`` (K, 2)."""
    axis = (np.arange(SIDE) + 0.5) / SIDE
    places = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 1, 2)
    return ((places - seeds) ** 2).sum(-1).argmin(1).astype(np.int32)


def names(count: int) -> tuple[str, ...]:
    """Names of ``count`` subjects."""
    return tuple(f"s{k:02d}" for k in range(count))
