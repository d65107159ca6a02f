"""Requests: every unusable input is refused with one sentence that names it and says what to do."""

import pytest
import torch
from truths import Phantom, known_pair, random_affine, random_grid

from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.image import Image, Labels
from DeepRegistrationLib.points import Points
from DeepRegistrationLib.problem import Pair, PointPair
from DeepRegistrationLib.transforms import Affine, Displacement


def image(dim=3, seed=1, channels=1, batch=1, name="image"):
    grid = random_grid(seed, dim)
    data = Phantom(seed, grid).image(grid).data.expand(batch, channels, *grid.shape)
    return Image(data.clone(), grid, name=name)


def spoiled(value, **options):
    bad = image(name="scan.nii.gz", **options)
    bad.data[..., 1, 2] = value
    return bad


def masked(share):
    plain = image(name="scan.nii.gz")
    mask = torch.zeros(1, 1, *plain.grid.shape, dtype=torch.bool)
    if share:
        mask[..., :2, :2] = True
        plain.data[..., :2, :2] = 4.0
    return Image(plain.data, plain.grid, mask, plain.name)


def points(n=4, dim=3, batch=1):
    return Points(torch.rand(batch, n, dim))


def labels(dim=3):
    grid = random_grid(1, dim)
    return Phantom(1, grid).label_map(grid)


BAD = {
    "dimensions": (lambda: Pair(image(2, name="plane"), image(3, name="volume")), "plane is 2D and volume is 3D"),
    "initial": (lambda: Pair(image(), image(), Affine.identity(2)), "initial transform is 2D, the images are 3D"),
    "colour": (lambda: Pair(image(), image(channels=3)), "convert color to gray"),
    "batch": (lambda: Pair(image(batch=2), image()), "pair up one to one"),
    "nan": (lambda: Pair(spoiled(float("nan")), image()), "scan.nii.gz holds .* NaN or infinite"),
    "infinite": (lambda: Pair(image(), spoiled(float("inf"))), "scan.nii.gz holds .* NaN or infinite"),
    "constant value": (lambda: Pair(image(2), Image(torch.full((1, 1, 3, 4), 2.5), random_grid(1, 2, (3, 4)), name="blank")),
                       "blank has the constant value 2.5"),
    "constant in the mask": (lambda: Pair(masked(True), image()), "scan.nii.gz has the constant value 4"),
    "one voxel": (lambda: Pair(image(2), Image(torch.ones(1, 1, 1, 1), random_grid(1, 2, (1, 1)))), "constant value"),
    "empty mask": (lambda: Pair(image(), masked(False)), "mask of scan.nii.gz is empty"),
    "one label map": (lambda: Pair(image(), image(), fixed_labels=labels()), "labels were given for one image only"),
    "one point set": (lambda: Pair(image(), image(), moving_points=points()), "points were given for one image only"),
    "unequal points": (lambda: Pair(image(), image(), fixed_points=points(4), moving_points=points(5)), "4 fixed and 5 moving"),
    "flat points": (lambda: Pair(image(), image(), fixed_points=points(4, 2), moving_points=points(4, 2)),
                    "points are 2D and 2D, the images are 3D"),
    "flat labels": (lambda: Pair(image(), image(), fixed_labels=labels(2), moving_labels=labels(2)),
                    "labels are 2D and 2D, the images are 3D"),
    "point dimensions": (lambda: PointPair(points(5, 2), points(5, 3)), "fixed points are 2D, the moving points 3D"),
    "point numbers": (lambda: PointPair(points(5), points(6), corresponding=True), "give equal numbers"),
    "few points": (lambda: PointPair(points(5), points(2)), "2 moving points were given; at least 3"),
    "no points": (lambda: PointPair(points(0), points(4)), "0 fixed points were given; at least 3"),
}


@pytest.mark.parametrize("case", BAD)
def test_one_sentence_for_each_mistake(case):
    request, words = BAD[case]
    with pytest.raises(InputError, match=words) as caught:
        request()
    sentence = str(caught.value)
    assert "\n" not in sentence and len(sentence) < 250 and (";" in sentence or "check" in sentence)


@pytest.mark.parametrize("dim", [2, 3])
def test_swapping_swaps_everything(dim):
    truth = known_pair(1, dim)
    fixed_points, moving_points = points(4, dim), points(4, dim)
    initial = random_affine(2, dim)
    pair = Pair(truth.fixed, truth.moving, initial, truth.fixed_labels, truth.moving_labels, fixed_points, moving_points)
    back = pair.swapped()
    assert back.fixed is truth.moving and back.moving is truth.fixed and back.dim == dim
    assert back.fixed_labels is truth.moving_labels and back.fixed_points is moving_points and back.moving_points is fixed_points
    x = torch.rand(1, 5, dim, dtype=torch.float64)
    assert torch.allclose(back.initial(initial(x)), x, atol=1e-9)
    assert back.swapped().fixed is truth.fixed and Pair(truth.fixed, truth.moving).swapped().initial is None


def test_usable_requests_are_accepted_unchanged():
    plain = image()
    before = plain.data.clone()
    grid = plain.grid
    Pair(plain, plain, Displacement(torch.zeros(1, 3, *grid.shape), grid), labels(), labels(), points(), points())
    Pair(image(channels=2, batch=2), image(channels=2, batch=2))
    Pair(image(2), image(2, 7))
    one_slice = random_grid(2, 3, (1, 9, 9))
    Pair(Phantom(1, one_slice).image(one_slice), plain)
    PointPair(points(9), points(7))
    assert torch.equal(plain.data, before)
    assert isinstance(labels(), Labels)
