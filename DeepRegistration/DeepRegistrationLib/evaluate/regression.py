"""What do the dimensions of a cohort depend on? Linear models with p-values from permutations, corrected for the
number of questions.

For a covariate x among others Z: Freedman and Lane's permutations of the residuals of the model without x, the
statistic is the sum of squares that x adds over the residual one. p = (1 + number of permutations with at least the
observed one) / (1 + permutations); Holm's correction covers all questions of one call. No distribution is assumed,
and a p-value is never below 1 / (1 + permutations). Freedman and Lane, J. Business and Economic Statistics 1983;
Holm, Scandinavian J. Statistics 1979.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NOTHING = ("", "na", "nan", "n/a", "none")
CHUNK = 1 << 22


@dataclass(frozen=True)
class Effect:
    """``target`` depends on ``covariate``: ``share`` of its variance that only the covariate explains, standardized
    ``slope`` (None for categories), ``p``, and ``corrected`` p; ``subjects`` that the model could use."""

    target: str
    covariate: str
    share: float
    slope: float | None
    p: float
    corrected: float
    subjects: int


def coded(values) -> tuple[np.ndarray, np.ndarray, bool]:
    """(columns (N, K), known (N,), numbers?) of texts or numbers: numbers as one column, words as one column a word
    but the first."""
    texts = ["" if value is None else str(value).strip() for value in values]
    known = np.array([text.lower() not in NOTHING for text in texts])
    try:
        column = np.array([float(text) if ok else 0.0 for text, ok in zip(texts, known)])
        return column[:, None], known & np.isfinite(column), True
    except ValueError:
        words = sorted({text for text, ok in zip(texts, known) if ok})[1:]
        return (
            np.array([[float(text == word) for word in words] for text in texts]).reshape(len(texts), len(words)),
            known,
            False,
        )


def effects(
    targets: dict[str, np.ndarray], covariates: dict[str, list], draws: int, generator: np.random.Generator
) -> tuple[list[Effect], list[str]]:
    """(Effects of every covariate on every target, remarks). ``targets``: name -> (N,) or (N, K) numbers, the columns
    of one target are taken together; ``covariates``: name -> N texts or numbers. Subjects without a value are left
    away; constant covariates too, with a remark."""
    columns, known, remarks, numbers = {}, None, [], {}
    for name, values in covariates.items():
        columns[name], there, numbers[name] = coded(values)
        known = there if known is None else known & there
    if not columns:
        return [], []
    count, rest = int(known.sum()), sum(part.shape[1] for part in columns.values())
    if count < rest + 3:
        return [], [
            f"{count} subjects have all of {', '.join(columns)}; at least {rest + 3} are needed to tell what depends "
            "on them"
        ]
    if count < len(known):
        remarks.append(
            f"{len(known) - count} of {len(known)} subjects lack a covariate and are left out of the regression"
        )
    found = []
    for name, part in columns.items():
        own, others = (
            part[known],
            np.hstack([np.ones((count, 1)), *(c[known] for n, c in columns.items() if n != name)]),
        )
        added = _basis(own - _fitted(_basis(others), own), np.abs(own).max(initial=0))
        if added.shape[1] < own.shape[1] or not added.shape[1]:
            remarks.append(f"the covariate '{name}' is constant or follows from the others and is left out")
            continue
        for target, values in targets.items():
            y = np.asarray(values, float).reshape(len(known), -1)[known]
            slope = _slope(own, others, y) if numbers[name] and y.shape[1] == 1 else None
            found.append((target, name, *_permuted(y, added, _basis(others), draws, generator), slope))
    corrected = holm([p for *_, p, _ in found])
    return [Effect(t, c, share, slope, p, q, count) for (t, c, share, p, slope), q in zip(found, corrected)], remarks


def _basis(columns: np.ndarray, scale: float | None = None) -> np.ndarray:
    """Orthonormal basis of the span of ``columns`` (N, K), without what is rounding beside ``scale``."""
    u, s, _ = np.linalg.svd(columns, full_matrices=False)
    return u[:, s > 1e-9 * max(s.max(initial=0) if scale is None else scale * np.sqrt(len(columns)), 1e-300)]


def _fitted(basis, y):
    return basis @ (basis.T @ y)


def _slope(own, others, y) -> float:
    """Of the standardized target on the standardized covariate, the others kept."""
    full = np.hstack([own, others])
    return float(np.linalg.lstsq(full, y, rcond=None)[0][0, 0] * own.std() / max(y.std(), 1e-300))


def _permuted(y, added, others, draws, generator) -> tuple[float, float]:
    """(share of the variance of ``y`` (N, K) that the basis ``added`` explains beyond ``others``, p)."""
    rest = y - _fitted(others, y)

    def statistic(r):  # r (..., N, K)
        gained = (np.einsum("na,...nk->...ak", added, r) ** 2).sum((-2, -1))
        lost = (np.einsum("na,...nk->...ak", others, r) ** 2).sum((-2, -1))
        whole = (r**2).sum((-2, -1))
        return gained / np.maximum(whole - lost - gained, 1e-12 * np.maximum(whole, 1e-300))

    observed, above = statistic(rest), 0
    step = max(1, CHUNK // rest.size)
    for first in range(0, draws, step):
        order = generator.permuted(np.tile(np.arange(len(rest)), (min(step, draws - first), 1)), axis=1)
        above += int((statistic(rest[order]) >= observed * (1 - 1e-12)).sum())
    share = float(((added.T @ rest) ** 2).sum() / max(((y - y.mean(0)) ** 2).sum(), 1e-300))
    return share, (1 + above) / (1 + draws)


def holm(values: list[float]) -> list[float]:
    """p-values corrected for their number."""
    order, out, highest = np.argsort(values), [1.0] * len(values), 0.0
    for rank, k in enumerate(order):
        highest = max(highest, min(1.0, values[k] * (len(values) - rank)))
        out[k] = highest
    return out
