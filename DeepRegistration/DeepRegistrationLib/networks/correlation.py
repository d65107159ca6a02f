"""Local cost volumes: how unlike the features of two images are at every small displacement.

cost(x, d) = mean_c (f_c(x) - m_c(x + d))^2 for all d with components -radius .. radius, on the lattice of the features. PWC-Net (Sun
et al., CVPR 2018) and PDD-Net (Heinrich, MICCAI 2019) feed such volumes to their networks.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F


def offsets(dim: int, radius: int = 1) -> torch.Tensor:
    """(D, dim) the displacements in voxels, components (x, y, z), in the order of ``local_costs``."""
    return torch.tensor([d[::-1] for d in itertools.product(range(-radius, radius + 1), repeat=dim)], dtype=torch.float32)


def local_costs(f: torch.Tensor, m: torch.Tensor, radius: int = 1) -> torch.Tensor:
    """f, m (B, C, *S) -> (B, D, *S), D = (2 radius + 1)^dim; border values of m go on outside."""
    dim = f.ndim - 2
    padded = F.pad(m, [radius] * (2 * dim), mode="replicate")
    costs = []
    for place in itertools.product(range(2 * radius + 1), repeat=dim):
        view = padded
        for axis, start in enumerate(place, 2):
            view = view.narrow(axis, start, f.shape[axis])
        costs.append((f - view).square().mean(1))
    return torch.stack(costs, 1)
