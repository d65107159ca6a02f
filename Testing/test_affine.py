"""Linear registration: known maps are recovered, headers mean what they say, the parts of the engine do what they say, real pairs."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import truths
from truths import distance
from truths_linear import known_map, linear_pair, moved_grid, register

from DeepRegistrationLib.engines import linear, sampled
from DeepRegistrationLib.engines.linear import LinearSettings, align_linear
from DeepRegistrationLib.engines.linear_levels import build_levels, level_spacings
from DeepRegistrationLib.engines.search import angle_between, minimise, rotations, spread_points
from DeepRegistrationLib.errors import Cancelled
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image
from DeepRegistrationLib.problem import Pair
from DeepRegistrationLib.runtime import Runtime, Silent
from DeepRegistrationLib.terms import LNCC, NCC, MutualInformation
from DeepRegistrationLib.transforms import Affine, Identity

BOTH = pytest.mark.parametrize("dim", (2, 3))


# ------------------------------------------------------------------------------------------------------------- known maps


@BOTH
@pytest.mark.parametrize("kind, flipped", (("rigid", False), ("similarity", True), ("affine", False), ("affine", True)))
def test_recovers_a_known_map_of_one_contrast(dim, kind, flipped):
    case = linear_pair(3, dim, kind, "scaled", flipped)
    result = register(case.pair, freedom=kind)
    assert case.error(lambda x: x) > 3
    assert case.error(result.transform) < 0.1, case.error(result.transform)
    assert result.scalars["similarity_after"] > result.scalars["similarity_before"]


@BOTH
@pytest.mark.parametrize("contrast", ("inverted", "nonmonotone"))
def test_recovers_a_known_map_of_two_contrasts(dim, contrast):
    case = linear_pair(4, dim, "affine", contrast)
    assert case.error(register(case.pair).transform) < 0.5


@BOTH
@pytest.mark.parametrize("similarity, bar", (("ncc", 0.1), ("mse", 0.1), ("lncc", 0.3)))
def test_other_similarities(dim, similarity, bar):
    case = linear_pair(5, dim, "rigid", "scaled")
    assert case.error(register(case.pair, similarity=similarity, freedom="rigid").transform) < bar


@BOTH
def test_local_correlation_stands_strong_shading(dim):
    case = linear_pair(6, dim, "rigid", "same")
    moving = case.pair.moving
    along = torch.as_tensor(moving.grid.points()[..., 0] - moving.grid.centre[0], dtype=torch.float32)
    pair = replace(case.pair, moving=replace(moving, data=moving.data * torch.exp(along / 80)))
    local, plain = (case.error(register(pair, similarity=s, freedom="rigid").transform) for s in ("lncc", "mi"))
    assert local < 0.35 and local < 0.5 * plain, (local, plain)


@BOTH
def test_translation_only_shifts(dim):
    case = linear_pair(7, dim, "translation")
    result = register(case.pair, freedom="translation")
    assert case.error(result.transform) < 0.1
    assert np.allclose(result.transform.numpy()[:dim, :dim], np.eye(dim), atol=1e-12)


@BOTH
def test_freedom_is_kept(dim):
    case = linear_pair(8, dim, "affine")
    rigid = register(case.pair, freedom="rigid").transform.numpy()[:dim, :dim]
    assert np.allclose(rigid @ rigid.T, np.eye(dim), atol=1e-9)
    similar = register(case.pair, freedom="similarity").transform.numpy()[:dim, :dim]
    square = similar @ similar.T
    assert np.allclose(square, square[0, 0] * np.eye(dim), atol=1e-9) and abs(square[0, 0] - 1) > 1e-3


@BOTH
def test_a_cropped_moving_image(dim):
    """Half of the object is outside the moving field of view; the overlap decides, not what is missing."""
    case = linear_pair(9, dim, "rigid", "inverted")
    grid = case.pair.moving.grid
    lower = np.r_[grid.size[0] // 3, np.zeros(dim - 1, int)]
    part = case.pair.moving.at(grid.crop(lower, grid.size))
    assert case.error(register(replace(case.pair, moving=part), freedom="rigid").transform) < 0.5


# --------------------------------------------------------------------------------------------------------- by construction


@BOTH
@pytest.mark.parametrize("mirrored", (False, True))
def test_moving_both_headers_conjugates_the_result(dim, mirrored):
    case = linear_pair(10, dim, "affine")
    matrix = truths.random_motion(3, dim, shift=150.0, flipped=mirrored)
    motion = Affine(torch.as_tensor(matrix))
    here = register(case.pair).transform
    there = register(Pair(moved_grid(case.pair.fixed, matrix), moved_grid(case.pair.moving, matrix))).transform
    assert distance(motion.inverse() @ there @ motion, here, case.points) < 0.03 * case.voxel


@BOTH
def test_moving_one_header_is_undone(dim):
    case = linear_pair(11, dim, "rigid")
    matrix = known_map(5, "rigid", case.pair.moving.grid.centre, 4.0, 0.15).numpy()
    result = register(replace(case.pair, moving=moved_grid(case.pair.moving, matrix)), freedom="rigid")
    expected = Affine(torch.as_tensor(matrix)) @ case.truth
    assert distance(result.transform, expected, case.points) < 0.1 * case.voxel


@BOTH
def test_swapped_images_give_about_the_inverse(dim):
    case = linear_pair(12, dim, "affine", "inverted")
    there, back = register(case.pair).transform, register(case.pair.swapped()).transform
    assert distance(back @ there, Identity(dim), case.points) < 0.3 * case.voxel


def test_flipped_voxel_order_changes_nothing():
    """The same image stored back to front, with a header that says so."""
    case = linear_pair(13, 3, "rigid")
    grid = case.pair.moving.grid
    affine = grid.affine.copy()
    affine[:3, 3] = grid.index_to_world([grid.size[0] - 1, 0, 0])
    affine[:3, 0] *= -1
    back = Image(case.pair.moving.data.flip(-1), Grid(grid.shape, affine))
    one, other = (register(Pair(case.pair.fixed, m), freedom="rigid").transform for m in (case.pair.moving, back))
    assert distance(one, other, case.points) < 0.01 * case.voxel


@BOTH
def test_aligned_images_stay(dim):
    """Two contrasts of one aligned object and one image twice: there is nothing to gain, so nothing moves."""
    case = linear_pair(14, dim, "rigid", "nonmonotone", truth=Affine.identity(dim))
    assert case.error(register(case.pair, samples=20000).transform) < 0.2
    assert case.error(register(case.pair, freedom="rigid").transform) < 0.1
    same = register(Pair(case.pair.fixed, case.pair.fixed), samples=20000)
    assert case.error(same.transform) < 0.1


@BOTH
def test_a_tenth_of_a_voxel_is_seen(dim):
    shift = Affine.translation(np.full(dim, 0.2 / np.sqrt(dim)))
    case = linear_pair(27, dim, "rigid", "inverted", truth=shift)
    assert case.error(register(case.pair, freedom="rigid", samples=20000).transform) < 0.03


def test_the_start_is_kept_where_the_search_ends_worse(monkeypatch):
    case = linear_pair(28, 2, "rigid", truth=Affine.identity(2))
    away = np.eye(3)
    away[0, 2] = 9.0
    monkeypatch.setattr(linear, "refine", lambda level, base, *rest, **more: (away, level.cost(away).cost))
    result = register(case.pair)
    assert np.array_equal(result.transform.numpy(), np.eye(3)) and result.provenance["start"] == "unchanged"
    assert result.scalars["similarity_after"] == result.scalars["similarity_before"]


def test_unrelated_noise_does_not_run_away():
    rng = np.random.default_rng(0)
    grid = Grid.from_parts((40, 40))
    noise = [Image(torch.as_tensor(rng.normal(size=(1, 1, 40, 40))).float(), grid) for _ in range(2)]
    result = register(Pair(*noise))
    scales = np.linalg.svd(result.transform.numpy()[:2, :2])[1]
    assert result.scalars["overlap"] > 0.2 and scales.min() > 0.3 and scales.max() < 3


# ------------------------------------------------------------------------------------------------------- runtime contract


@BOTH
def test_same_seed_same_matrix_and_other_seed_close(dim):
    case = linear_pair(23, dim, "rigid")
    first, again, other = (register(case.pair, seed=s, freedom="rigid").transform for s in (1, 1, 2))
    assert torch.equal(first.matrix, again.matrix)
    assert not torch.equal(first.matrix, other.matrix) and distance(first, other, case.points) < 0.1 * case.voxel


class Stops(Silent):
    """Cancels at step ``at`` and records what it was told."""

    wants_preview = True

    def __init__(self, at=None):
        super().__init__()
        self.at, self.shares, self.losses, self.previews = at, [], [], []

    def progress(self, share, text, step=0, steps=0):
        self.shares.append(share)
        if len(self.shares) == self.at:
            self.cancel()

    def log(self, **figures):
        self.losses.append(figures["loss"])

    def preview(self, transform):
        super().preview(transform)
        self.previews.append(transform)


def test_progress_and_cancel_at_every_step():
    case = linear_pair(24, 2, "rigid")
    whole = Stops()
    result = register(case.pair, monitor=whole, freedom="rigid")
    assert all(b >= a - 1e-12 for a, b in zip(whole.shares, whole.shares[1:])) and 0 <= whole.shares[0] and whole.shares[-1] <= 1
    assert [h["loss"] for h in result.history] == whole.losses and len(whole.previews) >= len(whole.losses)
    for at in (1, len(whole.shares) // 2, len(whole.shares) - 2):
        stops = Stops(at)
        with pytest.raises(Cancelled) as caught:
            register(case.pair, monitor=stops, freedom="rigid")
        assert len(stops.shares) == at and (at < 3 or isinstance(caught.value.best_so_far, Affine))


def test_align_linear_for_other_methods():
    case = linear_pair(25, 3, "rigid")
    monitor, threads = Silent(), torch.get_num_threads()
    transform = align_linear(case.pair, LinearSettings(freedom="rigid"), Runtime("cpu"), monitor.part(0.0, 0.2, "affine"))
    assert torch.get_num_threads() == threads
    assert isinstance(transform, Affine) and transform.matrix.dtype == torch.float64 and case.error(transform) < 0.1


# ---------------------------------------------------------------------------------------------------------------- pieces


@pytest.mark.parametrize("similarity", ("mi", "ncc", "mse"))
def test_the_gradient_of_a_level_is_exact(similarity):
    case = linear_pair(26, 3, "affine", "inverted")
    moving = case.pair.moving
    ball = torch.as_tensor(np.linalg.norm(moving.grid.points() - moving.grid.centre, axis=-1) < 30)[None, None]
    level = build_levels(case.pair.fixed, replace(moving, mask=ball), LinearSettings(similarity=similarity), Runtime("cpu"))[0]
    here = level.index_matrix(case.truth.numpy())
    slope = level.evaluate(here).slope
    steps = np.random.default_rng(0).normal(size=(6, *here.shape)) * np.array([1, 1, 1, 30]) * 3e-4
    numeric = np.array([(level.evaluate(here + s).cost - level.evaluate(here - s).cost) / 2 for s in steps])
    exact = np.array([(slope * s).sum() for s in steps])
    assert np.linalg.norm(numeric - exact) < 0.05 * np.linalg.norm(exact)


def test_sampled_costs_agree_with_the_terms():
    """With weights of one the sampled costs are the dense ones; halving all weights changes no cost."""
    rng = np.random.default_rng(1)
    fixed = torch.as_tensor(rng.uniform(size=(1, 5000)))
    moving = (0.7 * fixed**2 + 0.3 * torch.as_tensor(rng.uniform(size=fixed.shape))).clamp(0, 1)
    ones = torch.ones(fixed.shape[1], dtype=fixed.dtype)
    dense = MutualInformation(32, True, (0.0, 1.0), (0.0, 1.0)).compare(fixed[:, None], moving[:, None])
    assert float(sampled.Information(fixed, 32)(moving, ones)) == pytest.approx(float(dense), abs=1e-6)
    r = 1 - float(NCC().compare(fixed[:, None], moving[:, None]))
    assert float(sampled.Correlation(fixed)(moving, ones)) == pytest.approx(1 - r**2, abs=1e-6)
    for measure in (sampled.Information(fixed), sampled.Correlation(fixed), sampled.Squares(fixed)):
        assert float(measure(moving, ones)) == pytest.approx(float(measure(moving, ones / 2)), rel=1e-9)


def test_the_lattice_measure_is_its_term():
    grid = Grid.from_parts((12, 14))
    rng = np.random.default_rng(2)
    fixed, moving = (torch.as_tensor(rng.uniform(size=(1, 168))).float() for _ in range(2))
    moving.requires_grad_(True)
    cost = sampled.Lattice(fixed, grid, LNCC(2.0))(moving, torch.ones(168))
    (slope,) = torch.autograd.grad(cost, moving)
    moving = moving.detach()
    images, mask = (v.reshape(1, 1, 12, 14) for v in (fixed, moving)), torch.ones(1, 1, 12, 14, dtype=torch.bool)
    wanted, gradient = LNCC(2.0).gradient(*images, mask, grid)
    assert float(cost.detach()) == pytest.approx(float(wanted)) and torch.allclose(slope.flatten(), gradient.flatten())


def test_rotations_cover_the_group():
    turns = rotations(1000, 3)
    assert np.allclose(turns @ turns.transpose(0, 2, 1), np.eye(3), atol=1e-12) and np.allclose(np.linalg.det(turns), 1)
    rng = np.random.default_rng(0)
    worst = max(np.rad2deg(angle_between(turns, truths.rotation(rng, 3)[None])).min() for _ in range(300))
    assert worst < 25, worst
    assert np.rad2deg(angle_between(rotations(72, 2), rotations(72, 2)[[3]])).min() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("dim", (1, 2, 3))
def test_spread_points_are_even(dim):
    points = spread_points(4000, dim, np.full(dim, 0.3))
    assert points.min() >= 0 and points.max() < 1
    counts = np.histogramdd(points, bins=4, range=[(0, 1)] * dim)[0]
    assert np.abs(counts / counts.mean() - 1).max() < 0.12


def test_minimise_meets_a_curved_valley():
    def rosenbrock(x):
        cost = (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2
        return cost, np.array([-2 * (1 - x[0]) - 400 * x[0] * (x[1] - x[0] ** 2), 200 * (x[1] - x[0] ** 2)])

    best, cost = minimise(rosenbrock, np.array([-1.2, 1.0]), lambda x, step: x + step, np.eye(2), longest=1.0, tolerance=1e-7,
                          iterations=200, monitor=Silent(), text="valley")
    assert np.allclose(best, 1.0, atol=1e-4) and cost < 1e-8


def test_levels_are_in_mm():
    settings = LinearSettings()
    head = Grid.from_parts((180, 220, 190), 1.0)
    assert level_spacings(head, head, settings) == pytest.approx([6.875, 3.62, 1.9, 1.0], rel=0.01)
    thick = Grid.from_parts((30, 256, 256), [1.0, 1.0, 8.0])
    assert level_spacings(head, thick, settings)[-1] == pytest.approx(2.0)
    assert level_spacings(head, head, LinearSettings(coarsest=4.0, finest=2.0)) == pytest.approx([4.0, 2.0])
    small = Grid.from_parts((20, 20), 1.0)
    assert level_spacings(small, small, settings) == [1.0]


# ------------------------------------------------------------------------------------------------------------- real data


def load(path):
    import SimpleITK as sitk

    image = sitk.ReadImage(str(path), sitk.sitkFloat32)
    grid = Grid.from_parts(image.GetSize()[::-1], image.GetSpacing(), image.GetOrigin(), np.array(image.GetDirection()))
    return Image(torch.as_tensor(sitk.GetArrayFromImage(image))[None, None], grid, name=path.name)


def inner_points(image, share=0.3, every=499):
    where = (image.data[0, 0] > share * image.data.max()).numpy().ravel()
    return torch.as_tensor(image.grid.points().reshape(-1, image.dim)[where][::every])[None]


def test_white_matter_map_to_t1_with_a_rigid_truth(data):
    folder = data / "brain3d-mni-tissues"
    fixed, moving, brain = (load(folder / n) for n in ("t1.nii.gz", "wm_perturbed.nii.gz", "brain_mask.nii.gz"))
    truth = Affine(torch.as_tensor(json.loads((folder / "wm_perturbed_groundtruth.json").read_text())["G_LPS"], dtype=torch.float64))
    points = inner_points(brain)
    result = register(Pair(fixed, moving), preset="rigid", samples=20000)
    assert distance(Identity(3), truth, points) > 20
    assert distance(result.transform, truth, points) < 0.15


def test_proton_density_to_t1_moves_the_head_as_the_reference_does(data):
    folder = data / "multimodal-same-subject"
    fixed, moving = load(folder / "t1.nii.gz"), load(folder / "pd.nii.gz")
    result = register(Pair(fixed, moving), preset="rigid", samples=20000)
    assert distance(result.transform, Identity(3), inner_points(fixed, 0.15)) == pytest.approx(12.8, abs=1.0)


def test_aligned_cord_is_not_made_worse(data):
    folder = data / "spinal-cord-multicontrast"
    fixed, moving, fixed_cord, moving_cord = (load(folder / n) for n in ("t2.nii.gz", "t1.nii.gz", "t2_seg.nii.gz", "t1_seg.nii.gz"))

    def dice(transform):
        points = torch.as_tensor(fixed.grid.points().reshape(1, -1, 3))
        index = np.round(moving_cord.grid.world_to_index(transform(points)[0].numpy())).astype(int)
        inside = ((index >= 0) & (index < np.array(moving_cord.grid.size))).all(1)
        index = index.clip(0, np.array(moving_cord.grid.size) - 1)
        moved = (moving_cord.data[0, 0].numpy() > 0)[tuple(index.T[::-1])] & inside
        still = fixed_cord.data.numpy().ravel() > 0
        return 2 * (moved & still).sum() / (moved.sum() + still.sum())

    before = dice(Identity(3))
    assert dice(register(Pair(fixed, moving), preset="rigid", samples=20000).transform) > before - 0.01


def test_mouse_brain_to_standard_space(data):
    folder = data / "mouse-brain"
    fixed, moving = load(folder / "standard_space.nii.gz"), load(folder / "sample.nii.gz")
    result = register(Pair(fixed, moving))
    correlation = np.corrcoef(result.warped.data.flatten(), fixed.data.flatten())[0, 1]
    assert correlation > 0.85
    turn = np.linalg.svd(result.transform.numpy()[:3, :3])
    assert np.rad2deg(angle_between(turn[0] @ turn[2], np.eye(3))) < 15


def test_histology_sections_by_landmarks(data):
    from PIL import Image as Picture

    folder = data / "histology-pair"

    def grey(name):
        pixels = np.asarray(Picture.open(folder / name).convert("L"), dtype=np.float32)
        return Image(torch.as_tensor(pixels)[None, None], Grid.from_parts(pixels.shape), name=name)

    fixed, moving = (torch.as_tensor(np.loadtxt(folder / f"landmarks_{n}.csv", delimiter=",", skiprows=1, usecols=(1, 2)))[None]
                     for n in ("fixed", "moving"))
    result = register(Pair(grey("fixed.jpg"), grey("moving.jpg")), samples=20000)
    error = torch.linalg.vector_norm(result.transform(fixed) - moving, dim=-1)
    assert float(error.mean()) < 9.0, "76 px before, 6.65 px is the least-squares affine map of the landmarks"
