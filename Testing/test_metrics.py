"""Scores against values worked out by hand, brute force and closed forms."""

import json
import math
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import LIBRARY

from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.evaluate import metrics
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image, Labels
from DeepRegistrationLib.points import Points
from DeepRegistrationLib.transforms import Affine, Displacement, Identity


def label_map(array, grid=None):
    array = np.asarray(array)
    return Labels(torch.as_tensor(array.astype(np.int16))[None, None], grid or Grid.from_parts(array.shape))


def blobs(dim, seed, shape=(14, 11, 12)):
    """Two ragged labels, so that every kind of 2 x 2 x 2 neighbourhood occurs."""
    rng = np.random.default_rng(seed)
    x = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape[:dim]], indexing="ij"))
    radius = np.sqrt((x**2).sum(0)) + 0.25 * rng.standard_normal(shape[:dim])
    return np.where(radius < 0.4, 1, np.where(radius < 0.8, 2, 0))


def oblique(dim, spacing=(0.7, 1.9, 3.1), shape=(14, 11, 12)):
    rotation = np.linalg.qr(np.random.default_rng(5).standard_normal((dim, dim)))[0]
    return Grid.from_parts(shape[:dim], spacing[:dim], np.arange(dim) * 10.0 - 700, rotation)


def marching_triangles(mask, matrix):
    """Surface cells of a mask by a slow second route: (index positions, areas) with the polygon of each cell cut by hand.

    The interface of a cell with one flat part is the polygon through the middles of the cut edges; its area comes from the
    projection along its own normal. Only used on masks whose cells are all flat and connected.
    """
    dim, positions, areas = mask.ndim, [], []
    padded = np.pad(mask, 1)
    for start in product(*[range(n - 1) for n in padded.shape]):
        cell = padded[tuple(slice(s, s + 2) for s in start)]
        if cell.all() or not cell.any():
            continue
        middles = [(np.array(a) + b) / 2 for a in product((0, 1), repeat=dim) for b in product((0, 1), repeat=dim)
                   if a < b and sum(p != q for p, q in zip(a, b)) == 1 and cell[a] != cell[b]]
        positions.append((np.array(start) - 0.5)[::-1])
        areas.append(polygon_size(np.array(middles)[:, ::-1] @ matrix.T))
    return np.array(positions), np.array(areas)


def polygon_size(points):
    """Length of a segment (2D) or area of a convex planar polygon (3D) from its unordered corners."""
    if points.shape[1] == 2:
        return np.linalg.norm(points[0] - points[1])
    centred = points - points.mean(0)
    u, v, normal = np.linalg.svd(centred)[2]
    assert np.abs(centred @ normal).max() < 1e-9
    order = np.argsort(np.arctan2(centred @ v, centred @ u))
    a, b = centred[order], np.roll(centred[order], -1, 0)
    return 0.5 * abs(np.cross(a, b) @ normal).sum()


def brute_hd95(one, other):
    """Both directed area-weighted 95th percentiles over all pairs; the larger."""
    out = []
    for (p, w), (q, _) in ((one, other), (other, one)):
        d = np.sqrt(((p[:, None] - q[None]) ** 2).sum(-1)).min(1)
        order = np.argsort(d)
        out.append(d[order][np.searchsorted(np.cumsum(w[order]) / w.sum(), 0.95)])
    return max(out)


def test_dice_by_hand():
    fixed = label_map([[1, 1, 2, 2], [1, 1, 2, 0], [0, 0, 3, 0]])
    warped = label_map([[1, 1, 1, 2], [1, 0, 2, 2], [0, 0, 0, 4]])
    expected = {1: 2 * 3 / (4 + 4), 2: 2 * 2 / (3 + 3), 3: 0.0}
    dice = metrics.dice_per_label(fixed, warped)
    assert {k: dice[k] for k in expected} == pytest.approx(expected)
    assert set(dice) == {1, 2, 3, 4} and math.isnan(dice[4])
    assert metrics.dice_per_label(fixed, warped, values=[2, 9])[2] == pytest.approx(expected[2])
    assert math.isnan(metrics.dice_per_label(fixed, warped, values=[2, 9])[9])
    assert metrics.dice_per_label(fixed, fixed) == {1: 1.0, 2: 1.0, 3: 1.0}


def test_negative_and_large_labels_count():
    fixed, warped = label_map([[-5, 3000, 0]]), label_map([[-5, 0, 3000]])
    assert metrics.dice_per_label(fixed, warped) == {-5: 1.0, 3000: 0.0}


def test_label_maps_on_different_grids_are_refused():
    a = label_map(np.ones((4, 5)))
    b = label_map(np.ones((4, 5)), Grid.from_parts((4, 5), (2, 2)))
    for score in (metrics.dice_per_label, metrics.hd95_per_label):
        with pytest.raises(InputError, match="different grids"):
            score(a, b)


@pytest.mark.parametrize("dim", [2, 3])
def test_hd95_of_a_shifted_box_is_the_shift(dim):
    shape = (20, 16, 18)[:dim]
    grid = oblique(dim, shape=shape)
    a, b = np.zeros(shape, int), np.zeros(shape, int)
    a[(slice(4, 10),) * dim] = 7
    b[(slice(4, 10),) * (dim - 1) + (slice(8, 14),)] = 7
    assert metrics.hd95_per_label(label_map(a, grid), label_map(b, grid))[7] == pytest.approx(4 * grid.spacing[0])
    assert metrics.hd95_per_label(label_map(a, grid), label_map(a, grid))[7] == 0


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("sheared", [False, True])
def test_hd95_equals_brute_force_on_boxes(dim, sheared):
    shape = (13, 12, 14)[:dim]
    grid = oblique(dim, shape=shape)
    if sheared:
        affine = grid.affine.copy()
        affine[:dim, 1] += 0.6 * affine[:dim, 0]
        grid = Grid(shape, affine)
    a, b = np.zeros(shape, bool), np.zeros(shape, bool)
    a[(slice(0, 6), slice(2, 9), slice(3, 8))[:dim]] = True
    b[(slice(3, 11), slice(1, 7), slice(5, 13))[:dim]] = True
    surfaces = []
    for mask in (a, b):
        index, areas = marching_triangles(mask, grid.matrix)
        surfaces.append((grid.index_to_world(index), areas))
    measured = metrics.hd95_per_label(label_map(a, grid), label_map(b, grid))[1]
    assert measured == pytest.approx(brute_hd95(*surfaces), abs=1e-9)


@pytest.mark.parametrize("dim", [2, 3])
def test_hd95_does_not_depend_on_world_position_or_flips(dim):
    a, b = blobs(dim, 0), blobs(dim, 1)
    plain = Grid.from_parts(a.shape, (0.7, 1.9, 3.1)[:dim])
    flipped = Grid.from_parts(a.shape, (0.7, 1.9, 3.1)[:dim], direction=-np.eye(dim))
    reference = metrics.hd95_per_label(label_map(a, plain), label_map(b, plain))
    for grid in (oblique(dim), flipped):
        assert metrics.hd95_per_label(label_map(a, grid), label_map(b, grid)) == pytest.approx(reference)
    swapped = metrics.hd95_per_label(label_map(b, plain), label_map(a, plain))
    assert swapped == pytest.approx(reference)


def test_surface_areas_of_the_cell_are_those_of_marching_cubes():
    """Areas of Lorensen's cases for a unit cell: a corner, an edge, an L, a hexagon, a chain, a face."""
    one, edge, hexagon = math.sqrt(3) / 8, math.sqrt(0.5), 0.75 * math.sqrt(3)
    bits = {corner: 1 << k for k, corner in enumerate(product((0, 1), repeat=3))}
    code = lambda *corners: sum(bits[c] for c in corners)
    areas = np.linalg.norm(metrics._area_vectors(3), axis=-1).sum(-1)
    assert areas[code((0, 0, 0))] == pytest.approx(one)
    assert areas[code((0, 0, 0), (1, 0, 0))] == pytest.approx(edge)
    assert areas[code((0, 0, 0), (1, 1, 1))] == pytest.approx(2 * one)
    assert areas[code((0, 0, 0), (1, 0, 0), (0, 1, 0))] == pytest.approx(0.5 + 3 * one)
    assert areas[code((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))] == pytest.approx(hexagon)
    assert areas[code((0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0))] == pytest.approx(1)
    assert areas[code((1, 0, 0), (0, 0, 0), (0, 0, 1), (0, 1, 1))] == pytest.approx(4 * one + edge)
    assert np.allclose(areas, areas[::-1])


@pytest.mark.parametrize("dim, size", [(2, 2 * math.pi * 20), (3, 4 * math.pi * 20**2)])
def test_surface_area_of_a_ball(dim, size):
    grid = Grid.from_parts((50,) * dim, 1.0)
    ball = ((grid.points() - grid.centre) ** 2).sum(-1) < 20**2
    box = tuple(slice(0, n) for n in grid.shape)
    assert metrics._surface(ball, box, grid)[1].sum() == pytest.approx(size, rel=0.1)


def test_absent_labels():
    fixed, warped = label_map([[1, 1, 0, 0], [2, 2, 0, 0]]), label_map([[1, 1, 0, 0], [0, 0, 3, 0]])
    hd95 = metrics.hd95_per_label(fixed, warped)
    assert hd95[1] == 0 and math.isinf(hd95[2]) and math.isnan(hd95[3])
    empty = label_map(np.zeros((3, 3)))
    assert metrics.dice_per_label(empty, empty) == {} and metrics.hd95_per_label(empty, empty) == {}


@pytest.mark.parametrize("dim", [2, 3])
def test_tre(dim):
    rng = np.random.default_rng(1)
    fixed = Points(torch.as_tensor(rng.uniform(-50, 50, (1, 9, dim))))
    shift = np.arange(1, dim + 1) * 2.0
    moved = Points(fixed.positions + torch.as_tensor(shift))
    assert metrics.tre(fixed, moved, Affine.translation(shift)) == pytest.approx(np.zeros(9), abs=1e-12)
    assert metrics.tre(fixed, moved, Identity(dim)) == pytest.approx(np.full(9, np.linalg.norm(shift)))
    with pytest.raises(InputError, match="one to one"):
        metrics.tre(fixed, Points(fixed.positions[:, :5]), Identity(dim))


@pytest.mark.parametrize("dim", [2, 3])
def test_jacobian_of_an_affine_map(dim):
    grid = oblique(dim)
    linear = np.eye(dim) + 0.1 * np.random.default_rng(2).standard_normal((dim, dim))
    matrix = np.eye(dim + 1)
    matrix[:dim, :dim] = linear
    scores = metrics.jacobian_scores(Affine(torch.as_tensor(matrix)), grid)
    assert scores["folds"] == 0 and scores["voxels"] == grid.voxels
    assert scores["sdlogj"] == pytest.approx(0, abs=2e-3) and scores["sdlogj_learn2reg"] == pytest.approx(0, abs=1e-3)
    assert scores["determinant_min"] == pytest.approx(np.linalg.det(linear), abs=5e-3)


@pytest.mark.parametrize("dim", [2, 3])
def test_jacobian_of_a_sine_and_of_a_mirror(dim):
    """x + a sin(k x): determinant 1 + a k cos(k x), whose log has a known spread; past |a k| = 1 it folds."""
    grid = Grid.from_parts((5,) * (dim - 1) + (400,), (0.25,) + (1.0,) * (dim - 1))
    x = torch.as_tensor(grid.points()[..., 0], dtype=torch.float32)
    k = 2 * math.pi / 25

    def sine(strength):
        u = torch.zeros(1, dim, *grid.shape)
        u[0, 0] = strength / k * torch.sin(k * x)
        return Displacement(u, grid)

    truth = np.log(1 + 0.5 * np.cos(k * grid.points()[..., 0])).std()
    assert metrics.jacobian_scores(sine(0.5), grid)["sdlogj"] == pytest.approx(truth, rel=0.01)
    shifted = np.log(4 + 0.5 * np.cos(k * grid.points()[..., 0])).std()
    assert metrics.jacobian_scores(sine(0.5), grid)["sdlogj_learn2reg"] == pytest.approx(shifted, rel=0.02)
    share = math.acos(0.5) / math.pi
    assert metrics.jacobian_scores(sine(2.0), grid)["folds"] == pytest.approx(share, abs=0.01)
    mask = torch.zeros(1, 1, *grid.shape, dtype=torch.bool)
    mask[..., (x[(0,) * (dim - 1)] < 3)] = True
    inside = metrics.jacobian_scores(sine(2.0), grid, mask)
    assert inside["folds_count"] == 0 and inside["voxels"] == int(mask.sum())
    mirror = np.diag([-1.0] + [1.0] * dim)
    assert metrics.jacobian_scores(Affine(torch.as_tensor(mirror)), grid)["folds"] == 1
    with pytest.raises(InputError, match="mask"):
        metrics.jacobian_scores(sine(0.5), grid, torch.zeros_like(mask))


@pytest.mark.parametrize("dim", [2, 3])
def test_inverse_consistency(dim):
    grid = oblique(dim)
    there, back = Affine.translation([2.0] * dim), Affine.translation([-2.0] * (dim - 1) + [-2.5])
    error = metrics.inverse_consistency_error(there, back, grid)
    assert error["mean"] == pytest.approx(0.5, abs=1e-3) and error["max"] == pytest.approx(0.5, abs=1e-3)
    assert metrics.inverse_consistency_error(there, there.inverse(), grid)["max"] < 1e-3
    far = Grid.from_parts(grid.shape, 1.0, [1e4] * dim)
    with pytest.raises(InputError, match="overlap"):
        metrics.inverse_consistency_error(there, back, grid, moving_grid=far)


def test_similarity_figures():
    rng = np.random.default_rng(3)
    a = rng.standard_normal((30, 40))
    assert metrics.correlation(a, 3 - 2 * a) == pytest.approx(-1)
    assert metrics.correlation(a, rng.standard_normal(a.shape)) == pytest.approx(0, abs=0.1)
    assert math.isnan(metrics.correlation(a, np.ones_like(a)))
    assert metrics.normalised_mutual_information(a, a**3 + a) > 1.3
    assert metrics.normalised_mutual_information(np.round(a), -np.round(a)) == pytest.approx(2)
    flat = rng.uniform(size=(300, 300))
    assert metrics.normalised_mutual_information(flat, rng.uniform(size=flat.shape)) == pytest.approx(1, abs=0.005)


def shifted_pair(dim):
    """A pair whose exact registration is a translation of three voxels along x, with labels, points and transforms."""
    shape = (12, 16, 24)[3 - dim:]
    grid = Grid.from_parts(shape, (2.0, 1.0, 1.5)[:dim])
    rng = np.random.default_rng(4)
    volume = rng.uniform(size=shape)
    labels = blobs(dim, 6, shape)
    shift = np.array([6.0, 0, 0][:dim])
    image = lambda x, g: Image(torch.as_tensor(x, dtype=torch.float32)[None, None], g)
    moving_grid = grid.moved(np.block([[np.eye(dim), shift[:, None]], [np.zeros((1, dim)), np.ones((1, 1))]]))
    fixed_points = Points(torch.as_tensor(rng.uniform(2, 10, (1, 6, dim))))
    return dict(fixed=image(volume, grid), moving=image(volume, moving_grid), fixed_labels=label_map(labels, grid),
                moving_labels=label_map(labels, moving_grid), fixed_points=fixed_points,
                moving_points=Points(fixed_points.positions + torch.as_tensor(shift))), Affine.translation(shift)


@pytest.mark.parametrize("dim", [2, 3])
def test_evaluate_pair(dim):
    pair, truth = shifted_pair(dim)
    scores = metrics.evaluate_pair(truth, **pair, inverse=truth.inverse())
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores
    assert scores["dice"]["mean"]["after"] == 1 and scores["dice"]["mean"]["before"] < 0.9
    assert scores["hd95"]["mean"]["after"] == 0 and scores["hd95"]["labels"]["1"]["before"] > 1
    assert scores["tre"]["mean"]["before"] == pytest.approx(6) and scores["tre"]["max"]["after"] == pytest.approx(0, abs=1e-6)
    assert scores["similarity"]["ncc"]["after"] == pytest.approx(1, abs=1e-6) and scores["similarity"]["ncc"]["before"] < 0.5
    assert scores["jacobian"]["folds"] == 0 and scores["inverse_consistency"]["max"] < 1e-3 and scores["labels_lost"] == []
    assert set(scores) - {"units", "similarity", "jacobian", "labels_lost"} <= set(scores["units"])


def test_evaluate_pair_without_overlap_is_still_json():
    pair, _ = shifted_pair(3)
    scores = metrics.evaluate_pair(Affine.translation([1e4, 0, 0]), **pair)
    assert scores["similarity"]["ncc"]["after"] is None and scores["hd95"]["mean"]["after"] is None
    assert scores["labels_lost"] == [1, 2] and scores["dice"]["mean"]["after"] == 0
    json.dumps(scores, allow_nan=False)


def test_evaluate_pair_needs_both_labels():
    pair, truth = shifted_pair(2)
    with pytest.raises(InputError, match="labels were given for one image only"):
        metrics.evaluate_pair(truth, pair["fixed"], pair["moving"], fixed_labels=pair["fixed_labels"])


def test_a_plain_callable_is_enough():
    pair, _ = shifted_pair(2)
    scores = metrics.evaluate_pair(lambda p: p + torch.tensor([6.0, 0.0], dtype=p.dtype), **pair)
    assert scores["dice"]["mean"]["after"] == 1 and scores["tre"]["max"]["after"] == pytest.approx(0, abs=1e-6)


def test_a_real_pair_has_the_overlap_that_its_source_states():
    """brain3d-pair-2mm at the identity: mean Dice of the 30 structures as stated in its case.json."""
    sitk = pytest.importorskip("SimpleITK")
    data = Path(__file__).parents[2] / "shared" / "data"
    if not (data / "brain3d-pair-2mm").is_dir():
        pytest.skip(f"{data / 'brain3d-pair-2mm'} is not there")
    stated = json.loads((data / "brain3d-pair-2mm" / "case.json").read_text())["checks"]["identity_mean_dice30"]
    values = [int(v) for v in json.loads((data / "brain3d-pair-labelled" / "structures30.json").read_text())]
    arrays = [sitk.GetArrayFromImage(sitk.ReadImage(str(data / "brain3d-pair-2mm" / f"{s}_seg.nii.gz"))) for s in ("fixed", "moving")]
    dice = metrics.dice_per_label(*[label_map(a) for a in arrays], values)
    assert np.mean(list(dice.values())) == pytest.approx(stated, abs=5e-5)


FLUSHED = """
import numpy as np, sys, torch
torch.set_flush_denormal(True)
from DeepRegistrationLib.evaluate.metrics import _robust_hausdorff
x, y = np.meshgrid(np.arange(20.0), np.arange(20.0))
plate, pole = np.stack([x.ravel(), y.ravel(), np.zeros(400)], 1), np.stack([np.zeros(100), np.zeros(100), np.arange(1.0, 101.0)], 1)
points = np.concatenate([plate, pole])
sys.stdout.write(str(_robust_hausdorff((points, np.ones(500)), (points + [0, 0, 2.0], np.ones(500)), 0.95)))
"""


def test_surfaces_at_the_origin_while_denormals_are_flushed():
    """Most points at 0 along the longest axis: the tree of the nearest points used to split for ever there and ended the process."""
    answer = subprocess.run([sys.executable, "-c", FLUSHED], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(LIBRARY.parent)}, timeout=120)
    assert answer.returncode == 0 and float(answer.stdout) == 2.0, answer.stderr
