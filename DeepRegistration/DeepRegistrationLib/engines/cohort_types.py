"""Does a cohort fall into types? A Gaussian mixture, its number by BIC and silhouette, and only those parts that a
valley separates.

The mixture is fitted with 1 to ``most`` components and four forms of covariance. Of the numbers whose BIC is within
``EVIDENCE`` of the best, that with the best silhouette coefficient is taken, and 1 where 1 is among them: more than
one type needs very strong evidence (Kass and Raftery, JASA 1995). A mixture also cuts a continuum into pieces, with
good BIC and silhouette (a test shows it), so components are types only where the density between every two of them
has a valley (``ops.modes``) on the line through their means, at a level divided by the number of pairs. As long as a
pair has none, the one with the largest p-value becomes one: small pieces join their own type before types are
compared. The mixture and the silhouette are scikit-learn's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..ops.modes import valley_p
from .packages import scikit_learn

EVIDENCE = 10.0
"""Difference of BIC that is called very strong."""
FORMS = ("spherical", "diag", "tied", "full")
STARTS = 5


@dataclass(frozen=True)
class Fit:
    """One number of components: ``bic`` (the lowest of the forms of covariance; lower is better), ``silhouette`` (-1
    to 1, None for one)."""

    components: int
    bic: float
    form: str
    silhouette: float | None


@dataclass(frozen=True)
class Types:
    """``labels`` (N,) from 0, by size; ``certainty`` (N,) probability of the own type; ``fits`` of every number;
    ``components`` (N,) those of the chosen mixture; ``valleys`` ((a, b, p), ...) of pairs of types; ``silhouette`` of
    the types, None for one."""

    labels: np.ndarray
    certainty: np.ndarray
    fits: tuple[Fit, ...]
    components: np.ndarray
    valleys: tuple[tuple[int, int, float], ...]
    silhouette: float | None

    @property
    def count(self) -> int:
        return int(self.labels.max()) + 1


def find_types(points: np.ndarray, most: int, level: float, draws: int, seed: int, monitor) -> Types:
    """Types among ``points`` (N, D); ``level``: chance of a valley that is none, ``draws``: samples of that test."""
    if np.ptp(points, axis=0).max(initial=0) == 0:
        zeros = np.zeros(len(points), int)
        return Types(zeros, np.ones(len(points)), (Fit(1, 0.0, FORMS[0], None),), zeros, (), None)
    fits, mixtures = [], []
    for k in monitor.steps(max(1, min(most, len(points) // (points.shape[1] + 2))), "mixtures"):
        fit, mixture = _fitted(points, k + 1, seed)
        if fit is not None:
            fits.append(fit)
            mixtures.append(mixture)
    mixture = mixtures[fits.index(chosen(fits))]
    components = mixture.predict(points)
    owner, valleys = _merged(points, components, level, draws, seed)
    sizes = np.bincount(owner[components], minlength=owner.max() + 1)
    owner = np.argsort(np.argsort(-sizes, kind="stable"), kind="stable")[owner]
    labels, shares = owner[components], mixture.predict_proba(points)
    certainty = np.array([row[owner == label].sum() for row, label in zip(shares, labels)])
    a_b = [(int(min(owner[a], owner[b])), int(max(owner[a], owner[b])), p) for a, b, p in valleys]
    return Types(labels, certainty, tuple(fits), components, tuple(sorted(a_b)), _silhouette(points, labels))


def chosen(fits) -> Fit:
    """The fit that BIC and silhouette agree on, see the module."""
    best = min(fit.bic for fit in fits)
    near = [fit for fit in fits if fit.bic <= best + EVIDENCE]
    return near[0] if near[0].components == 1 else max(near, key=lambda fit: fit.silhouette)


def _fitted(points: np.ndarray, components: int, seed: int):
    """(Fit, mixture) of the form with the lowest BIC among those whose components all have members enough, or (None,
    None)."""
    learn, best = scikit_learn("the types of a cohort"), None
    floor = 1e-3 * float(points.var(0).max())
    for form in FORMS if components > 1 else FORMS[1:]:
        mixture = learn.mixture.GaussianMixture(
            components, covariance_type=form, reg_covar=floor, n_init=STARTS, random_state=seed, max_iter=300
        )
        members = np.bincount(mixture.fit(points).predict(points), minlength=components)
        if members.min() >= points.shape[1] + 1 and (best is None or mixture.bic(points) < best.bic(points)):
            best = mixture
    if best is None:
        return None, None
    silhouette = _silhouette(points, best.predict(points))
    return Fit(components, float(best.bic(points)), best.covariance_type, silhouette), best


def _silhouette(points: np.ndarray, labels: np.ndarray) -> float | None:
    return float(scikit_learn("the types of a cohort").metrics.silhouette_score(points, labels)) if len(np.unique(labels)) > 1 else None


def _merged(points, components, level, draws, seed):
    """(type (K,) of each component, [(component of one type, of another, p)]): components without a valley between
    them are merged."""
    owner, generator = np.arange(components.max() + 1), np.random.default_rng(seed)
    known: dict = {}
    while len(present := np.unique(owner)) > 1:
        pairs = [(int(a), int(b)) for k, a in enumerate(present) for b in present[k + 1 :]]
        for a, b in pairs:
            if (a, b) not in known:
                known[a, b] = _valley(points[owner[components] == a], points[owner[components] == b], draws, generator)
        a, b = max(pairs, key=lambda pair: known[pair])
        if known[a, b][0] <= level / len(pairs):
            return np.unique(owner, return_inverse=True)[1], [(i, j, known[i, j][0]) for i, j in pairs]
        owner[owner == b] = a
        known = {pair: p for pair, p in known.items() if a not in pair and b not in pair}
    return np.zeros_like(owner), []


def _valley(one: np.ndarray, other: np.ndarray, draws: int, generator) -> tuple[float, float]:
    """(p-value for no valley between two parts on the line through their means, minus the distance of these)."""
    line = other.mean(0) - one.mean(0)
    members = np.concatenate([one, other]) @ line
    ranks = tuple(float((members <= part.mean(0) @ line).mean()) for part in (one, other))
    return valley_p(members, ranks, draws, generator), -float(line @ line)
