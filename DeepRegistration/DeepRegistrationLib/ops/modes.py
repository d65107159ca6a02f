"""Is there a valley between two parts of a sample? The critical bandwidth, and a test of it against samples without
one.

The estimate of the density with a Gaussian kernel of bandwidth h loses its valleys as h grows; h1 is the smallest h
without one. A sample whose h1 is large in units of its standard deviation has a valley. Two samples without one say
how large it may be by chance: Silverman's (drawn from the estimate with h1, shrunk to the variance of the data: the
nearest such density), and the uniform density, which is the worst case, as it has no mode to speak of and only just
no valley. The p-value is the larger of the shares of samples that have a valley at their h1. Only valleys between two
given ranks count (Hall and York), so that single values far out do not. Silverman, Using kernel density estimates to
investigate multimodality, JRSS B 1981; Hall and York, Statistica Sinica 2001.
"""

from __future__ import annotations

import numpy as np

PLACES = 129
"""Points between the two ranks at which a density is looked at."""
HALVINGS = 20


def has_valley(samples: np.ndarray, bandwidth: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """(R,) True where the estimate with ``bandwidth`` (R,) of a row of ``samples`` (R, N) has a minimum between
    ``low`` and ``high`` (R,)."""
    places = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, PLACES)
    scale, density = np.sqrt(0.5) / bandwidth[:, None], np.zeros((len(samples), PLACES))
    for k in range(samples.shape[1]):  # one member at a time: R x PLACES numbers are held, not N times as many
        density += np.exp(-((scale * (places - samples[:, k : k + 1])) ** 2))
    slopes = np.sign(np.diff(density, axis=1))
    return ((slopes[:, 1:] > 0) & (slopes[:, :-1] < 0)).any(1)


def critical_bandwidth(values: np.ndarray, low: float, high: float) -> float:
    """The smallest bandwidth at which ``values`` (N,) have no valley between ``low`` and ``high``, within 1e-6 of
    their range."""
    below, above = 0.0, float(np.ptp(values))
    for _ in range(HALVINGS if above else 0):
        middle = (below + above) / 2
        valley = has_valley(values[None], np.array([middle]), np.array([low]), np.array([high]))[0]
        below, above = (middle, above) if valley else (below, middle)
    return above


def valley_p(values: np.ndarray, ranks: tuple[float, float], draws: int, generator: np.random.Generator) -> float:
    """p-value for no valley of ``values`` (N,) between the two ``ranks`` (shares of the sample, 0 to 1), see the
    module; 1 where all are equal."""
    values = np.asarray(values, float)
    deviation = float(values.std())
    if deviation == 0:
        return 1.0
    h = critical_bandwidth(values, *np.quantile(values, ranks))
    drawn = values[generator.integers(0, len(values), (draws, len(values)))]
    noise = h * generator.standard_normal(drawn.shape)
    nearest = values.mean() + (drawn - values.mean() + noise) / np.sqrt(1 + (h / deviation) ** 2)
    shares = []
    for samples, bandwidth in (
        (nearest, np.full(draws, h)),
        (uniform := generator.random(drawn.shape), h / deviation * uniform.std(1)),
    ):
        low, high = np.quantile(samples, ranks, axis=1)
        shares.append((1 + has_valley(samples, bandwidth, low, high).sum()) / (draws + 1))
    return float(max(shares))
