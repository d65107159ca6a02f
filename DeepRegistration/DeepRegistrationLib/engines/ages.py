"""An atlas that depends on a number of every subject, its age: the knots that it is held at, and means and medians of subjects at them.

    A(a) = sum_k h_k(a) A_k,    A_k = sum_i W_ki J_i,    W = (H^T H + s n D^T D)^-1 H^T,    H_ik = h_k(a_i)

h_k is the hat function of knot k, D the second divided difference over the knots, n the mean number of subjects a knot: A is the linear spline
that has the least squared distance from the subjects' images J_i and, with s, bends least over age (Reinsch, Numer Math 1967). Where every
subject lies on a knot and s is 0, A_k is the mean of the subjects of that age. A subject has no say outside its field of view (``seen_mean``).

Sums go through the cohort one subject at a time: memory follows the number of knots, not of subjects.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..errors import InputError
from ..runtime import Monitor

FEW, MOST = 6, 12
"""Subjects a knot that are wished for, and knots at most, where their number is left open."""
RIDGE = 1e-3
"""Least weight of the second difference where a knot has no subjects: it then lies between its neighbors."""
LEAST_SEEN = 0.25
"""Share of the weight that has to see a place; where less does, the sum is divided by this, so that it falls to 0."""
HALVINGS = 8
"""Passes over the cohort for its medians: each halves the interval of every voxel."""


@dataclass(frozen=True, eq=False)
class Ages:
    """``knots`` (K,), K >= 2, rising; ``known`` (N,): the ages of the subjects, in their order."""

    knots: np.ndarray
    known: np.ndarray

    @classmethod
    def of(cls, known, count: int = 0) -> "Ages":
        """``count`` knots at equal distances over the ages ``known``; 0: the ages that occur where these are few, else one for every ``FEW`` subjects.

        InputError where all ages are the same, or one is not finite.
        """
        known = np.asarray(known, float)
        if not np.isfinite(known).all():
            raise InputError("an age is not a finite number; give every subject one")
        different = np.unique(known)
        if len(different) < 2:
            raise InputError(f"all {len(known)} subjects have the age {different[0]:g}; an atlas over age needs at least two ages, "
                             "build one without it by the method 'icon-atlas'")
        most = max(2, min(MOST, len(known) // FEW))
        if not count and len(different) <= max(most, 3):
            return cls(different, known)
        return cls(np.linspace(different[0], different[-1], count or most), known)

    def basis(self, ages) -> np.ndarray:
        """(M, K) hat functions at ``ages`` (M,). InputError for an age that no subject's range holds."""
        ages, knots = np.atleast_1d(np.asarray(ages, float)), self.knots
        slack = 1e-6 * (knots[-1] - knots[0])
        outside = ages[(ages < knots[0] - slack) | (ages > knots[-1] + slack)]
        if len(outside):
            raise InputError(f"the age {outside[0]:g} was asked for; the subjects are {knots[0]:g} to {knots[-1]:g} old, choose an age between")
        place = np.interp(ages, knots, np.arange(len(knots)))
        return np.maximum(1 - np.abs(place[:, None] - np.arange(len(knots))), 0)

    def weights(self, smoothness: float) -> np.ndarray:
        """(K, N) W of the equations above; rows sum to 1."""
        h, difference = self.basis(self.known), second_differences(self.knots)
        least = RIDGE if np.linalg.cond(h.T @ h) > 1e6 else 0.0
        penalty = max(smoothness, least) * len(self.known) / len(self.knots) * difference.T @ difference
        return np.linalg.solve(h.T @ h + penalty, h.T)

    def share(self, ages) -> np.ndarray:
        """Where ``ages`` lie between the first knot (0) and the last (1)."""
        return (np.asarray(ages, float) - self.knots[0]) / (self.knots[-1] - self.knots[0])


def age_name(age: float) -> str:
    """'age_9_5' of 9.5, for names of files."""
    return f"age_{age:g}".replace(".", "_")


def second_differences(knots: np.ndarray) -> np.ndarray:
    """(K - 2, K) second divided differences, in units of the mean distance of ``knots``; of two knots there are none."""
    rows = np.zeros((max(len(knots) - 2, 0), len(knots)))
    step = np.diff(knots) / np.mean(np.diff(knots))
    for k in range(len(rows)):
        before, after = step[k], step[k + 1]
        rows[k, k : k + 3] = 2 / (before * (before + after)), -2 / (before * after), 2 / (after * (before + after))
    return rows


def blended(weights, images: torch.Tensor) -> torch.Tensor:
    """(M, C, *S): sum_k weights (M, K) images (K, C, *S)."""
    weights = torch.as_tensor(np.asarray(weights), dtype=images.dtype, device=images.device)
    return torch.einsum("mk,k...->m...", weights, images)


def add_to(total: torch.Tensor, weights, image: torch.Tensor) -> None:
    """total (K, C, *S) += weights (K,) image (1, C, *S), in place."""
    for k in np.flatnonzero(np.abs(weights) > 1e-9):
        total[k].add_(image[0], alpha=float(weights[k]))


def seen_mean(total: torch.Tensor, unseen: torch.Tensor) -> torch.Tensor:
    """The weighted mean over those who see a place: ``total`` (K, C, *S) of weighted values, 0 where a subject sees nothing, and ``unseen`` (K, 1, *S)
    the sum of the weights of those who do not see it, of 1 for all."""
    return total / (1 - unseen).clamp_min(LEAST_SEEN)


def medians(images, basis: np.ndarray, monitor: Monitor) -> torch.Tensor:
    """(K, 1, *S) medians of every voxel, at every knot of the subjects around it, by ``basis`` (N, K): half of a knot's weight lies below.

    images: len and [k] -> (1, 1, *S) in [0, 1]. By halving the interval of every voxel, so that no list of values is held. A knot without subjects
    gets the line between its neighbors.
    """
    first = images[0]
    low = torch.zeros(basis.shape[1], *first.shape[1:])
    high, half = torch.ones_like(low), torch.as_tensor(basis.sum(0) / 2, dtype=low.dtype).reshape(-1, *[1] * (low.ndim - 1))
    for _ in monitor.steps(HALVINGS, "median"):
        middle, under = (low + high) / 2, torch.zeros_like(low)
        for n in range(len(images)):
            monitor.check()
            image = images[n]
            for k in np.flatnonzero(basis[n] > 0):
                under[k].add_((image[0] <= middle[k]).to(low.dtype), alpha=float(basis[n, k]))
        reached = under >= half
        high, low = torch.where(reached, middle, high), torch.where(reached, low, middle)
    found, seen = (low + high) / 2, np.flatnonzero(basis.sum(0) > 0)
    between = np.stack([np.interp(np.arange(basis.shape[1]), seen, unit[seen]) for unit in np.eye(basis.shape[1])], 1)
    return blended(between, found)
