"""Augmentation: the same generator gives the same pair, labels and points follow, every change happens as often and as strongly as said."""

from __future__ import annotations

from dataclasses import replace

import cohorts
import numpy as np
import pytest
import torch

from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image, Labels
from DeepRegistrationLib.ops.sample import apply_matrix, sample
from DeepRegistrationLib.points import Points
from DeepRegistrationLib.problem import Pair
from DeepRegistrationLib.train.augment import NONE, Augmentation, augmented


def generator(seed: int):
    return torch.Generator().manual_seed(seed)


def pair_on(dim: int, side: int = 32) -> Pair:
    """Two balls with their label maps and a point in the middle and at the edge of each; an oblique, anisotropic grid in 2D."""
    grid = Grid.from_parts((side,) * dim, 1.5, (3.0,) * dim) if dim == 3 else Grid.from_parts((side, side), (1.5, 1.2), (3, 4), [[0.8, -0.6], [0.6, 0.8]])
    parts = {}
    for name, shift in (("fixed", 0.0), ("moving", 2.0)):
        middle = grid.centre + shift
        data = cohorts.blob(grid, middle, 11.0)
        data = 0.1 + 0.9 * data.clamp(0, 1)
        parts[name] = Image(data, grid, name=name)
        parts[f"{name}_labels"] = Labels((data > 0.5).to(torch.int32), grid)
        edge = middle.copy()
        edge[0] += 11.0
        parts[f"{name}_points"] = Points(torch.as_tensor(np.array([[middle, edge]])).float())
    return Pair(**parts)


def tensors(pair):
    return (pair.fixed.data, pair.moving.data, pair.fixed_labels.data, pair.moving_labels.data, pair.fixed_points.positions, pair.moving_points.positions)


ALL = Augmentation(affine=1, elastic=1, intensity=1, shading=1, blurring=1, resolution=1, cropping=1, mirror=0.5)


@pytest.mark.parametrize("dim", [2, 3])
def test_same_generator_same_pair(dim):
    pair = pair_on(dim)
    one, again, other = (augmented(pair, ALL, generator(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(again)))
    assert not any(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other)))
    assert 0 <= float(one.fixed.data.min()) and float(one.fixed.data.max()) <= 1 and one.fixed.grid is pair.fixed.grid


def test_nothing_is_changed_where_nothing_is_asked_for():
    pair = pair_on(2)
    same = augmented(pair, NONE, generator(0))
    assert all(torch.allclose(a.float(), b.float(), atol=1e-4) for a, b in zip(tensors(pair), tensors(same)))


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("changes", [{"affine": 1.0}, {"elastic": 1.0, "motions": (0.04, 0.01)}, {"affine": 1.0, "elastic": 1.0, "mirror": 0.5}])
def test_labels_and_points_follow(dim, changes):
    """After the motion the label map is still where the image is bright, the first point in the middle of the ball, the second on its edge."""
    for seed in range(6 if dim == 2 else 3):
        before = pair_on(dim)
        after = augmented(before, replace(NONE, **changes), generator(seed))
        for side in ("fixed", "moving"):
            image, labels, points = (getattr(after, side + part) for part in ("", "_labels", "_points"))
            assert float(((image.data > 0.5) == (labels.data > 0)).float().mean()) > (0.97 if dim == 2 else 0.985)
            values = sample(image.data, apply_matrix(image.grid.inverse_affine, points.positions))[0, 0]
            assert float(values[0]) > 0.9 and 0.3 < float(values[1]) < 0.7
            moved = (points.positions - getattr(before, f"{side}_points").positions).abs().max()
            assert float(moved) > 0.05


def test_both_images_share_the_pose_and_differ_a_little():
    settings = replace(NONE, affine=1.0, shift=0.2, apart=0.1)
    shifts = []
    for seed in range(20):
        before, after = pair_on(2), None
        after = augmented(before, settings, generator(seed))
        shifts.append([getattr(after, f"{side}_points").positions[0, 0] - getattr(before, f"{side}_points").positions[0, 0] for side in ("fixed", "moving")])
    fixed, moving = (torch.stack([pair[k] for pair in shifts]) for k in range(2))
    assert 0.01 < float((fixed - moving).square().mean()) < 0.15 * float(fixed.square().mean())


def look(seed: int, **changes) -> torch.Tensor:
    return augmented(pair_on(2), replace(NONE, **changes), generator(seed)).fixed.data


def test_looks_change_the_image_and_nothing_else():
    plain = look(0)
    for changes in ({"intensity": 1.0}, {"shading": 1.0}, {"blurring": 1.0}, {"resolution": 1.0}):
        pair = augmented(pair_on(2), replace(NONE, **changes), generator(3))
        assert float((pair.fixed.data - plain).abs().max()) > 0.01, changes
        assert torch.equal(pair.fixed_labels.data, pair_on(2).fixed_labels.data)
    power = look(5, intensity=1.0, contrast=0.0)
    inner = plain > 0.02
    exponents = power[inner].log() / plain.clamp_max(0.999)[inner].log()
    assert float(exponents.median()) == pytest.approx(float(exponents[exponents.numel() // 3]), rel=0.05) and 1 / 1.5 < float(exponents.median()) < 1.5
    ratio = (look(1, shading=1.0, bias=0.5) / plain.clamp_min(1e-3))[plain > 0.1]
    assert 0.02 < float(ratio.std()) < 0.8
    sharp, blurred = (float(look(2, blurring=1.0, blur=blur).diff(dim=-1).abs().max()) for blur in (0.0, 3.0))
    assert blurred < 0.99 * sharp
    thick = look(1, resolution=1.0)
    assert any(float((thick.diff(dim=axis) == 0).float().mean()) > 0.4 for axis in (-1, -2)), "neighbours within a thick slice are equal"


def test_what_is_cropped_is_neither_seen_nor_labelled_and_its_points_count_nothing():
    lost = 0
    for seed in range(8):
        before = pair_on(2)
        positions = torch.as_tensor(before.fixed.grid.points()).float().reshape(1, -1, 2)
        before = replace(before, fixed_points=Points(positions), moving_points=Points(positions),
                         fixed_labels=Labels(torch.ones_like(before.fixed_labels.data), before.fixed.grid))
        after = augmented(before, replace(NONE, cropping=1.0, crop=0.4), generator(seed))
        gone = after.fixed.data[0, 0] == 0
        share = float(gone.float().mean())
        assert 0.02 < share < 0.42 and bool((gone.all(0).any() | gone.all(1).any()))
        assert torch.equal(after.fixed_labels.data[0, 0] == 0, gone)
        assert torch.equal(after.fixed_points.weights[0].reshape(gone.shape) == 0, gone)
        lost += share > 0.15
    assert 0 < lost < 8


def test_changes_happen_as_often_as_said():
    plain = look(0)
    changed = sum(not torch.equal(look(seed, intensity=0.3), plain) for seed in range(60))
    assert 9 <= changed <= 28


def test_masks_move_with_their_image():
    before = pair_on(2)
    before = replace(before, fixed=before.fixed.with_mask(before.fixed.data > 0.5))
    after = augmented(before, replace(NONE, affine=1.0, shift=0.2), generator(1))
    assert float((after.fixed.mask == (after.fixed.data > 0.5)).float().mean()) > 0.98 and not torch.equal(after.fixed.mask, before.fixed.mask)


@pytest.mark.parametrize("wrong", [{"affine": 1.5}, {"gamma": 0.5}, {"widths": (0.1,)}, {"turn": -1.0}])
def test_values_that_cannot_be_are_refused(wrong):
    with pytest.raises(InputError, match="augmentation: "):
        Augmentation(**wrong)
