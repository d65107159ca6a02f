"""The Rice distribution of magnitude images: log-likelihood, its samples, and its fit voxel by voxel.

    p(y | a, sigma) = y / sigma^2 exp(-(y^2 + a^2) / (2 sigma^2)) I_0(y a / sigma^2)

With the exponentially scaled Bessel function i0e(z) = exp(-z) I_0(z) no term overflows:

    log p = log y - 2 log sigma - (y - a)^2 / (2 sigma^2) + log i0e(y a / sigma^2),

which needs one value per voxel at any noise (a sum of the first 50 terms of I_0 needs 50, and is wrong for z above about 70).
Gudbjartsson and Patz, Magnetic Resonance in Medicine 1995; the publication of ``methods/rician_motion.py``.
"""

from __future__ import annotations

import torch


def rice_log_likelihood(observed: torch.Tensor, signal: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """log p(observed | signal, sigma), voxel by voxel; differentiable in ``signal`` and ``sigma``.

    observed >= 0, signal >= 0, sigma > 0, broadcastable. An observed 0 (a voxel that was not measured) counts as the smallest
    positive number, so that the result is finite.
    """
    observed = observed.clamp_min(torch.finfo(observed.dtype).tiny)
    argument = observed * signal / sigma.square()
    distance = ((observed - signal) / sigma).square()
    return observed.log() - 2 * sigma.log() - 0.5 * distance + torch.special.i0e(argument).log()


def gauss_log_likelihood(observed: torch.Tensor, signal: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The log-likelihood of normal noise, what the Rice distribution tends to at high signal; as above."""
    return -sigma.log() - 0.918938533204672742 - 0.5 * ((observed - signal) / sigma).square()


def add_rice_noise(signal: torch.Tensor, sigma: float, generator: torch.Generator) -> torch.Tensor:
    """The magnitude of ``signal`` plus complex normal noise of standard deviation ``sigma`` in each part."""
    real, imaginary = (torch.randn(signal.shape, dtype=signal.dtype, generator=generator).to(signal.device) for _ in range(2))
    return torch.hypot(signal + sigma * real, sigma * imaginary)


def fit_rice(observed: torch.Tensor, steps: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """Signal and sigma (*S) of highest likelihood from repeated ``observed`` (N, *S), N >= 2, at every voxel.

    Expectation maximization over the unknown phase, from the second and fourth moments:
    a <- mean(y I_1(y a / sigma^2) / I_0(y a / sigma^2)), 2 sigma^2 <- mean(y^2) - a^2. NaN observations are left out (at least two have
    to remain, otherwise both results are NaN).
    """
    known = torch.isfinite(observed)
    count = known.sum(0)
    values = torch.where(known, observed, torch.zeros_like(observed))
    square = values.square().sum(0) / count
    fourth = values.pow(4).sum(0) / count
    power = (2 * square.square() - fourth).clamp_min(0).sqrt()
    signal = torch.minimum(power, 0.999 * square).clamp_min(0.01 * square).sqrt()
    smallest = (1e-8 * square).clamp_min(torch.finfo(observed.dtype).tiny)
    variance = torch.maximum((square - signal.square()) / 2, smallest)
    for _ in range(steps):
        argument = values * signal / variance
        ratio = torch.special.i1e(argument) / torch.special.i0e(argument)
        signal = (values * ratio).sum(0) / count
        variance = torch.maximum((square - signal.square()) / 2, smallest)
    few = count < 2
    return signal.masked_fill(few, torch.nan), variance.sqrt().masked_fill(few, torch.nan)
