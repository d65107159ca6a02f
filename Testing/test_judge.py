"""The judge of deformations: prefers the truth in any contrast, is not taken in by interpolation or by noise; and what the
methods make of it: an aligned pair is left alone, a deformed one is not."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
import truths

from DeepRegistrationLib.engines.judge import Judge
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image
from DeepRegistrationLib.io import read_image
from DeepRegistrationLib.method import find
from DeepRegistrationLib.ops import fields
from DeepRegistrationLib.problem import Pair
from DeepRegistrationLib.result import warp
from DeepRegistrationLib.runtime import Runtime
from DeepRegistrationLib.terms import Alignment, MutualInformation
from DeepRegistrationLib.train.degrade import smooth_velocity
from DeepRegistrationLib.train.template import template_files
from DeepRegistrationLib.transforms import Affine, Displacement, Identity

CONTRASTS = ("same", "other", "tissue map", "mask")
DIMS = pytest.mark.parametrize("dim", [2, 3])
CASES = pytest.mark.parametrize("contrast", CONTRASTS)
METHODS = pytest.mark.parametrize("method", ["general", "instance-optimisation"])


@lru_cache(maxsize=None)
def tissues(dim):
    """T1, gray and white matter of the MNI template in [0, 1]: a slice of 1 mm or the volume at 4 mm."""
    images = [read_image(path) for path in template_files().values()]
    if dim == 2:
        images = [Image(image.data[:, :, 92].float(), Grid.from_parts(image.data.shape[3:], 1.0)) for image in images]
    else:
        images = [Image(image.data.float(), image.grid).smoothed_to(4.0) for image in images]
    return tuple(Image(image.data / 255, image.grid) for image in images)


def pair_of(dim, contrast, motion=0.0, seed=3):
    """(pair with the identity to begin from, truth): the T1 template bent by ``motion`` voxels, and the template in a contrast of its own; noise in both."""
    t1, gray, white = tissues(dim)
    generator = torch.Generator().manual_seed(seed)
    step = float(t1.grid.spacing[0])
    velocity = smooth_velocity(t1.grid, (25.0 * step, 12.0 * step), (motion * step, 0.5 * motion * step), generator)
    truth = Displacement(fields.exp(velocity, t1.grid, padding="border"), t1.grid)
    fluid = (1 - gray.data - white.data).clamp_min(0) * (t1.data > 0.02)
    looks = {"same": t1.data, "other": 0.3 * fluid + gray.data + 0.5 * white.data, "tissue map": gray.data, "mask": (white.data > 0.5).float()}
    seen = (warp(t1, truth, t1.grid).data, looks[contrast])
    images = [Image(data + 0.03 * torch.randn(data.shape, generator=generator), t1.grid, name=name) for data, name in zip(seen, ("fixed", "moving"))]
    return Pair(*images, initial=Identity(dim)), truth


def error(pair, transform, truth):
    """Mean distance in the fixed head, mm."""
    points = torch.as_tensor(pair.fixed.grid.points()[(pair.fixed.data[0, 0] > 0.15).numpy()][None]).float()
    return float((transform(points) - truth(points)).norm(dim=-1).mean())


@DIMS
@CASES
def test_the_truth_is_preferred(dim, contrast):
    pair, truth = pair_of(dim, contrast, motion=4.0)
    judge = Judge.of(pair.fixed, pair.moving)
    assert judge.clearly_better(Identity(dim), truth)
    assert judge.gain(truth, Identity(dim)) < 0 == judge.gain(truth, truth)


@DIMS
def test_interpolation_is_no_gain(dim):
    """Half a voxel of shift smooths strong noise away and raises the information at the voxels, but not in the judge's view."""
    image = tissues(dim)[0]
    generator = torch.Generator().manual_seed(5)
    noisy = [Image(image.data + 0.5 * torch.randn(image.data.shape, generator=generator), image.grid) for _ in range(2)]
    shift = Affine.translation([0.5 * float(s) for s in image.grid.spacing])
    cost = [float(MutualInformation()(Alignment(*noisy, each))) for each in (Identity(dim), shift)]
    assert cost[1] < cost[0]
    assert Judge.of(*noisy).gain(Identity(dim), shift) < 0


def test_noise_is_never_clearly_better():
    grid = Grid.from_parts((80, 80), 1.0)
    for seed in range(6):
        images = [Image(torch.randn(1, 1, 80, 80, generator=torch.Generator().manual_seed(2 * seed + k)), grid) for k in range(2)]
        assert not Judge.of(*images).clearly_better(Identity(2), truths.random_swirl(seed, grid, angle=0.3))


@DIMS
@pytest.mark.parametrize("contrast", CONTRASTS[1:])
@METHODS
def test_an_aligned_pair_of_two_contrasts_is_left_alone(dim, contrast, method):
    pair, truth = pair_of(dim, contrast)
    result = find(method).run(pair, Runtime("cpu"))
    assert error(pair, result.transform, truth) < 1e-4
    assert result.provenance["deformation_kept"] is False


@DIMS
@METHODS
def test_small_deformations_of_one_contrast_are_kept(dim, method):
    """A third of a voxel in 3D, half a voxel in 2D, as in follow-ups."""
    pair, truth = pair_of(dim, "same", motion=1.0)
    result = find(method).run(pair, Runtime("cpu"))
    assert result.provenance["deformation_kept"] is True
    assert error(pair, result.transform, truth) < (0.9 if dim == 2 else 0.4) * error(pair, Identity(dim), truth)


@DIMS
@pytest.mark.parametrize("contrast", CONTRASTS[:3])
@METHODS
def test_a_deformed_pair_is_not(dim, contrast, method):
    pair, truth = pair_of(dim, contrast, motion=4.0)
    result = find(method).run(pair, Runtime("cpu"))
    assert result.provenance["deformation_kept"] is True
    assert error(pair, result.transform, truth) < 0.7 * error(pair, Identity(dim), truth)
