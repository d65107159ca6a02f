"""Synthetic pairs: the known map is the true one, the seed decides everything, contrast is random, sizes are as asked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.ops.sample import sample
from DeepRegistrationLib.train.synthesize import Source, Synthesis, random_shapes, smooth_noise, synthetic_pair

SMALL = {2: Synthesis(shape=(40, 48), points=400), 3: Synthesis(shape=(24, 20, 28), widths=(6.0, 4.0), motions=(5.0, 2.0), points=400)}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def shapes(dim):
    return random_shapes(3, tuple(n + n // 2 for n in SMALL[dim].shape), seeded(0))


@pytest.mark.parametrize("dim", [2, 3])
def test_the_known_map_carries_labels_onto_labels(dim):
    """With the map at most half as many points meet another label as without it; what is left lies beside a border."""
    sources, wrong, still, count = shapes(dim), 0.0, 0.0, 0.0
    for seed in range(8):
        pair = synthetic_pair(sources, replace(SMALL[dim], kept_labels=50), seeded(seed))
        counts = pair.fixed_points.weights > 0.5
        f = sample(pair.fixed_labels.data.float(), pair.fixed_points.positions, "nearest")[:, 0][counts]
        m, unmoved = (sample(pair.moving_labels.data.float(), where, "nearest")[:, 0][counts]
                      for where in (pair.moving_points.positions, pair.fixed_points.positions))
        wrong, still, count = wrong + float((f != m).sum()), still + float((f != unmoved).sum()), count + len(f)
    assert count > 200 and still > 0.1 * count and wrong < 0.5 * still


@pytest.mark.parametrize("dim", [2, 3])
def test_the_seed_decides_everything(dim):
    one, again, other = (synthetic_pair(shapes(dim), SMALL[dim], seeded(s)) for s in (5, 5, 6))
    assert torch.equal(one.fixed.data, again.fixed.data) and torch.equal(one.moving_points.positions, again.moving_points.positions)
    assert not torch.equal(one.fixed.data, other.fixed.data)


@pytest.mark.parametrize("dim", [2, 3])
def test_images_are_finite_in_range_and_of_the_asked_shape(dim):
    for seed in range(8):
        pair = synthetic_pair(shapes(dim), SMALL[dim], seeded(seed))
        for image in (pair.fixed, pair.moving):
            assert tuple(image.data.shape[2:]) == SMALL[dim].shape and bool(torch.isfinite(image.data).all())
            assert float(image.data.min()) >= 0 and float(image.data.max()) < 1.01
        assert len(pair.fixed_labels.values()) <= SMALL[dim].kept_labels


def test_contrast_is_sometimes_shared_and_sometimes_not():
    agreements = []
    for seed in range(30):
        plain = replace(SMALL[2], motions=(0.0, 0.0, 0.0), noise=0.0, bias=0.0, texture=0.0, lost_piece=0.0, lost_side=0.0, thick_slices=0.0)
        pair = synthetic_pair(shapes(2), plain, seeded(seed))
        agreements.append(float(torch.corrcoef(torch.stack([pair.fixed.data.flatten(), pair.moving.data.flatten()]))[0, 1]))
    assert sum(a > 0.9 for a in agreements) >= 5 and sum(a < 0.5 for a in agreements) >= 5


def test_an_image_of_the_anatomy_is_used_with_its_labels():
    labels = shapes(2)[0].labels
    source = Source(labels, labels / labels.max())
    pair = synthetic_pair([source], SMALL[2], seeded(1))
    assert float(pair.fixed.data.std()) > 0.02


def test_no_source_is_refused_in_a_sentence():
    with pytest.raises(InputError, match="label map"):
        synthetic_pair([], SMALL[2], seeded(0))


def test_smooth_noise_has_the_asked_width():
    for width in (1.0, 4.0):
        x = smooth_noise((200, 200), width, seeded(2))[0, 0]
        lag = int(round(2 * width))
        correlation = float((x[lag:] * x[:-lag]).mean() / x.square().mean())
        assert abs(correlation - 0.3679) < 0.12, "the correlation of a Gaussian of sigma s falls to 1/e at a distance of 2 s"
