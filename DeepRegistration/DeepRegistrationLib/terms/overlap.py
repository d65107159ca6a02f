"""Costs of warped segmentations: soft Dice and mean squared difference of one-hot maps.

Dice of label l: 2 sum a b / (sum a^2 + sum b^2), a the fixed and b the warped map (linear interpolation of the moving
one-hot map), so an exact match of soft maps costs 0. Milletari et al., 3DV 2016.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import InputError
from ..ops.sample import apply_matrix, matrix_between, resample, sample
from .base import Alignment, Similarity
from .voxels import counted


class _LabelCost(Similarity):
    """A cost per channel, of soft maps given to ``compare`` or of the alignment's label maps, one label at a time."""

    labels: tuple[int, ...]

    def per_channel(self, fixed, warped, weight):
        """fixed, warped (B, C, *S), weight (B, 1, *S) or None -> (cost (B, C), which of them count (B, C))."""
        raise NotImplementedError

    def compare(self, fixed, warped, mask=None, grid=None):
        return _mean_of(*self.per_channel(fixed.expand_as(warped), warped, counted(mask, warped)))

    def __call__(self, alignment):
        pairs = [self.per_channel(f, w, None) for f, w in one_hot_pairs(alignment, self.labels)]
        return _mean_of(*(torch.cat(values, 1) for values in zip(*pairs)))


@dataclass(frozen=True)
class SoftDice(_LabelCost):
    """1 - mean soft Dice over ``labels`` (all that occur where empty), from 0 to 1; needs the labels of both images."""

    labels: tuple[int, ...] = ()

    reference = """@inproceedings{Milletari2016VNet,
  author = {Milletari, Fausto and Navab, Nassir and Ahmadi, Seyed-Ahmad},
  title = {{V-Net}: Fully Convolutional Neural Networks for Volumetric Medical Image Segmentation},
  booktitle = {International Conference on 3D Vision}, pages = {565--571}, year = {2016}, doi = {10.1109/3DV.2016.79}}"""

    def per_channel(self, fixed, warped, weight):
        if weight is not None:
            fixed, warped = fixed * weight, warped * weight
        shared = 2 * (fixed * warped).flatten(2).sum(2)
        total = (fixed.square() + warped.square()).flatten(2).sum(2)
        return 1 - shared / total.clamp_min(torch.finfo(total.dtype).tiny), total.detach() > 0


@dataclass(frozen=True)
class LabelMSE(_LabelCost):
    """Mean squared difference of the one-hot maps of ``labels`` (all that occur where empty), from 0 to 1."""

    labels: tuple[int, ...] = ()

    reference = """@article{Balakrishnan2019VoxelMorph,
  author = {Balakrishnan, Guha and Zhao, Amy and Sabuncu, Mert R. and Guttag, John and Dalca, Adrian V.},
  title = {{VoxelMorph}: A Learning Framework for Deformable Medical Image Registration},
  journal = {IEEE Transactions on Medical Imaging}, volume = {38}, number = {8}, pages = {1788--1800}, year = {2019},
  doi = {10.1109/TMI.2019.2897538}}"""

    def per_channel(self, fixed, warped, weight):
        square = (fixed - warped).square()
        count = square[0, 0].numel() if weight is None else weight.flatten(2).sum(2).clamp_min(1)
        cost = (square if weight is None else square * weight).flatten(2).sum(2) / count
        return cost, torch.ones_like(cost, dtype=torch.bool)


def _mean_of(cost, counts):
    """(B, C), (B, C) bool -> (B,) mean of those that count; 0 without any."""
    counts = counts.to(cost.dtype)
    return (cost * counts).sum(1) / counts.sum(1).clamp_min(1)


def one_hot_pairs(alignment: Alignment, labels: tuple[int, ...] = ()):
    """For every label the fixed map and the warped moving map, both (B, 1, *S) on the grid of the alignment.

    Label maps may be on grids of their own. Voxels outside the moving label map are background. The images' masks are
    not used: labels are knowledge of their own. InputError where a label map is missing.
    """
    fixed, moving = alignment.fixed_labels, alignment.moving_labels
    if fixed is None or moving is None:
        raise InputError("a label cost was asked for without labels; give label maps of both images or remove the cost")
    values = labels or tuple(sorted({*fixed.values(), *moving.values()}))
    if not values:
        raise InputError("the label maps hold background only; give label maps with at least one structure")
    kind = alignment.fixed.data.dtype
    on_grid = resample(fixed.data.to(kind), fixed.grid, alignment.grid, "nearest", fill=0.0)
    index = alignment.moving_index
    if not moving.grid.same_as(alignment.moving.grid):
        index = apply_matrix(matrix_between(alignment.moving.grid, moving.grid), index)
    for value in values:
        yield (on_grid == value).to(kind), sample((moving.data == value).to(kind), index, fill=0.0)
