"""Divergence of a predicted distribution of velocities from a smooth prior.

Prior: mu and v are normal with precision Lambda = lambda (D - A), D and A the degrees and the adjacency of the lattice. For a
prediction N(mu, diag sigma^2) the divergence of Kullback and Leibler is, up to what the network cannot change,

    1/2 sum_i [ lambda d_i sigma_i^2 - log(lambda d_i sigma_i^2) - 1 ]  +  lambda / 2 sum_(i,j neighbours) (mu_i - mu_j)^2,

d_i neighbours of voxel i, summed over components and averaged over voxels here. It is 0 for a constant mean with sigma_i^2 =
1 / (lambda d_i). With (1 / 2 s^2) MSE, s the noise of the images, it makes the objective of Dalca et al., Medical Image Analysis 2019.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch

from ..errors import InputError
from ..transforms.sampled import SampledVelocity
from .base import Term


@dataclass(frozen=True)
class VelocityPrior(Term):
    """The divergence above for an alignment whose transform is a ``SampledVelocity``; ``smoothness`` is lambda, in voxels of its lattice."""

    smoothness: float = 20.0

    reference = """@article{Dalca2019Probabilistic,
  author = {Dalca, Adrian V. and Balakrishnan, Guha and Guttag, John and Sabuncu, Mert R.},
  title = {Unsupervised Learning of Probabilistic Diffeomorphic Registration for Images and Surfaces},
  journal = {Medical Image Analysis}, volume = {57}, pages = {226--236}, year = {2019}, doi = {10.1016/j.media.2019.07.006}}"""

    def __call__(self, alignment):
        transform = alignment.transform
        if not isinstance(transform, SampledVelocity):
            raise InputError(f"the prior of velocities was asked for a {type(transform).__name__}, which has no distribution; "
                             "use a network with probabilistic output")
        return self.divergence(transform.mean, transform.log_variance)

    def divergence(self, mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
        """mean, log_variance (B, dim, *S) in voxels -> (B,)."""
        degree, differences = torch.zeros_like(mean[:1, :1]), torch.zeros_like(mean[:, 0].flatten(1)[:, 0])
        for axis in range(2, mean.ndim):
            n = mean.shape[axis]
            if n == 1:
                continue
            degree = degree + 1
            degree.narrow(axis, 1, n - 2).add_(1)
            differences = differences + torch.diff(mean, dim=axis).square().flatten(1).sum(1)
        shares = log_variance + log(self.smoothness) + degree.clamp_min(1).log()
        spread = (shares.exp() - shares - 1).flatten(1).sum(1)
        return (spread + self.smoothness * differences) / (2 * mean[0, 0].numel())
