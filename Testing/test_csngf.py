"""The global search: every shift by FFT equals the definition, and any rotation is found on any lattice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import truths
from truths_gradients import direct, normals, shifts_with_overlap, smooth_noise
from truths_linear import CONTRASTS, linear_pair

from DeepRegistrationLib.engines.global_rigid import (Found, Hypothesis, Level, SearchSettings, apart, first_rotations, level_spacings, perturbed,
                                                       prepared, search)
from DeepRegistrationLib.engines.search import angle_between, rotations
from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image
from DeepRegistrationLib.io import read_transform, write_image
from DeepRegistrationLib.method import find
from DeepRegistrationLib.methods import csngf
from DeepRegistrationLib.ops.fft import Shifts, best_shift, cross_similarity, gradient_products
from DeepRegistrationLib.problem import Pair
from DeepRegistrationLib.runtime import Runtime, Silent
from DeepRegistrationLib.transforms import Affine

BOTH = pytest.mark.parametrize("dim", (2, 3))
QUICK = {"tried": (300, 100, 12), "kept": (5, 2, 1)}


def tables(fixed, moving, overlap=0.5, dtype=torch.float32):
    """Similarity and overlap (*T) of two (normals, mask), and their shifts."""
    shifts = Shifts(tuple(fixed[1].shape), tuple(moving[1].shape), overlap)
    products = [gradient_products(n.to(dtype)[None], m.to(dtype)[None, None]) for n, m in (fixed, moving)]
    similarity, count = cross_similarity(shifts.spectrum(products[0][0]).conj_physical_(), products[1], shifts)
    return similarity[0], count[0], shifts


def any_turn(seed: int, dim: int, reach: float = 30.0) -> Affine:
    rng = np.random.default_rng(seed)
    m = np.eye(dim + 1)
    m[:dim, :dim], m[:dim, dim] = truths.rotation(rng, dim), rng.uniform(-reach, reach, dim)
    return Affine(torch.as_tensor(m))


@pytest.mark.parametrize("shapes", (((20, 23), (17, 26)), ((9, 14, 11), (12, 10, 13)), ((16, 16, 16), (16, 16, 16))))
def test_every_shift_by_fft_is_the_definition(shapes):
    fixed, moving = (normals(smooth_noise(shape, k)) for k, shape in enumerate(shapes))
    similarity, count, shifts = tables(fixed, moving)
    rng, worst = np.random.default_rng(0), 0.0
    for place in np.stack([rng.integers(0, n, 300) for n in similarity.shape], 1):
        wanted, common = direct(fixed, moving, place + np.array(shifts.lowest))
        assert float(count[tuple(place)]) == common
        if common > 0.2 * min(m.sum() for _, m in (fixed, moving)):
            worst = max(worst, abs(float(similarity[tuple(place)]) - wanted))
    assert worst < 1e-4, worst


@BOTH
def test_all_shifts_with_the_overlap_are_in_the_table(dim):
    edge = 12
    shifts = Shifts((edge,) * dim, (edge,) * dim, 0.5)
    wanted = shifts_with_overlap(edge, dim, 0.5) - np.array(shifts.lowest)
    size = np.array([p - f - low + 1 for p, f, low in zip(shifts.padded, shifts.fixed, shifts.lowest)])
    assert (wanted >= 0).all() and (wanted < size).all()


@BOTH
def test_the_best_shift_is_that_of_a_cut_out_piece(dim):
    whole = smooth_noise((30,) * dim, 3)
    lower = (4, 7, 2)[:dim]
    index = tuple(slice(k, k + 18) for k in lower)
    piece = Image(-3 * whole.data[(..., *index)], Grid.from_parts((18,) * dim), whole.mask[(..., *index)])
    similarity, count, shifts = tables(normals(piece), normals(whole))
    _, shift = best_shift(similarity[None], count[None], torch.tensor([500.0 if dim == 3 else 100.0]), shifts)
    assert tuple(shift[0]) == lower[::-1]


@pytest.mark.parametrize("dim, contrast", [(2, name) for name in CONTRASTS] + [(3, "nonmonotone")])
def test_any_rotation_of_any_contrast_is_found(dim, contrast):
    for seed in (31, 32, 33) if dim == 2 else (31,):
        case = linear_pair(seed, dim, "rigid", contrast, flipped=seed % 2 == 1, truth=any_turn(seed, dim))
        values = {} if dim == 2 else QUICK
        result = find("csngf", values).run(case.pair, Runtime("cpu"))
        rough = find("csngf:search-only", values).run(case.pair, Runtime("cpu"))
        assert case.error(result.transform) < 0.5 and case.error(rough.transform) < 3.0, (seed, case.error(rough.transform))
        turn = result.transform.numpy()[:dim, :dim]
        assert np.allclose(turn @ turn.T, np.eye(dim), atol=1e-9) and np.linalg.det(turn) > 0


@BOTH
def test_both_ways_of_choosing_rotations_reach_the_truth(dim):
    case = linear_pair(34, dim, "rigid", "inverted", truth=any_turn(34, dim))
    tried = (360, 200, 60) if dim == 2 else (600, 200, 20)
    for sampling in ("covering", "random"):
        settings = SearchSettings(sampling, tried=tried)
        found = search(case.pair.fixed, case.pair.moving, settings, Runtime("cpu"), Silent())
        best = found.hypotheses[0]
        assert case.error(Affine(torch.as_tensor(best.matrix))) < 4.0, sampling
        assert found.lead(best.turn) > 0 and found.level.similarity(best.matrix) == pytest.approx(best.similarity, rel=0.25)


def half_turned(case):
    """The true map of ``case`` followed by half a turn about the center of the moving image."""
    turned = np.eye(case.pair.dim + 1)
    turned[:2, :2] *= -1
    centre = case.pair.moving.grid.centre
    turned[:-1, -1] = centre - turned[:-1, :-1] @ centre
    return turned @ case.truth.numpy()


def last_step(case, hypotheses):
    """(Hypothesis, LinearSolution) that the last step makes of ``hypotheses``."""
    level = Level(*(prepared(i, torch.device("cpu")) for i in (case.pair.fixed, case.pair.moving)), 4.0, 1.0, 0.5, 1e-5)
    return find("csngf")._refined(case.pair, Found(hypotheses, level, hypotheses), Runtime("cpu"), Silent())


@BOTH
def test_the_last_step_tells_which_hypothesis_is_right(dim, monkeypatch):
    """A better similarity of gradients at a wrong turn does not win against mutual information at the right one."""
    monkeypatch.setattr(csngf, "likely_starts", lambda *_: [])
    case = linear_pair(38, dim, "rigid", "inverted", truth=any_turn(38, dim))
    near = Affine.translation([2.0] * dim).numpy() @ case.truth.numpy()
    wrong, right = (Hypothesis(m[:dim, :dim], m, s) for m, s in ((half_turned(case), 0.99), (near, 0.5)))
    chosen, solution = last_step(case, [wrong, right])
    assert chosen is right and case.error(solution.transform) < 0.5


@BOTH
def test_a_global_search_by_mutual_information_helps_out(dim):
    """Where gradient directions kept wrong turns only, the starts of the other search find the right one."""
    case = linear_pair(38, dim, "rigid", "inverted", truth=any_turn(38, dim))
    matrix = half_turned(case)
    chosen, solution = last_step(case, [Hypothesis(matrix[:dim, :dim], matrix, 0.99)])
    assert case.error(solution.transform) < 0.5 and case.error(Affine(torch.as_tensor(chosen.matrix))) < 10


def test_a_small_piece_is_found_without_the_other_search():
    """Where the search by mutual information has no start with overlap, the one by gradient directions is alone."""
    case = linear_pair(38, 2, "rigid", "inverted", truth=any_turn(38, 2))

    def nothing(*_):
        raise InputError("no start")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csngf, "likely_starts", nothing)
        matrix = Affine.translation([2.0] * 2).numpy() @ case.truth.numpy()
        assert case.error(last_step(case, [Hypothesis(matrix[:2, :2], matrix, 0.9)])[1].transform) < 0.5


def test_one_peak_does_not_take_the_place_of_others():
    turns = rotations(72, 2)  # 5 degrees from each to the next
    near = [Hypothesis(turns[k], np.eye(3), 1.0 - k / 100) for k in (0, 1, 2, 8)]
    assert apart(near, 2, SearchSettings().apart) == [near[0], near[3]]


def test_the_search_does_not_look_at_headers():
    """Another place and direction of the moving image in the world changes the map by just that."""
    case = linear_pair(35, 2, "rigid", "inverted", truth=any_turn(35, 2))
    move = truths.random_motion(8, 2)
    moving = replace(case.pair.moving, grid=case.pair.moving.grid.moved(move))
    plain, moved = (find("csngf").run(Pair(case.pair.fixed, image), Runtime("cpu")).transform for image in (case.pair.moving, moving))
    expected = Affine(torch.as_tensor(move)) @ plain
    assert float(torch.linalg.vector_norm(moved(case.points) - expected(case.points), dim=-1).max()) < 0.1 * case.voxel


def test_the_rotation_of_an_initial_transform_is_tried():
    case = linear_pair(36, 3, "rigid", "inverted", truth=any_turn(36, 3))
    settings = SearchSettings(tried=(1, 60, 0), kept=(1, 1, 1))
    start = case.truth.numpy() @ Affine.translation([60.0, 0.0, -80.0]).numpy()
    found = search(case.pair.fixed, case.pair.moving, settings, Runtime("cpu"), Silent(), start)
    assert case.error(Affine(torch.as_tensor(found.hypotheses[0].matrix))) < 3.0


def test_what_lies_outside_the_masks_changes_nothing():
    case = linear_pair(37, 2, "rigid", "same", truth=any_turn(37, 2))
    found = []
    for value in (1e4, -1e4):
        images = []
        for image in (case.pair.fixed, case.pair.moving):
            points = torch.as_tensor(image.grid.points() - image.grid.centre)
            block = (points.abs() < 10).all(-1)[None, None]
            images.append(replace(image, data=torch.where(block, torch.full_like(image.data, value), image.data), mask=~block))
        found.append(find("csngf:search-only").run(Pair(*images), Runtime("cpu")).transform.matrix)
    assert torch.equal(*found)


@BOTH
def test_first_rotations_cover_the_group(dim):
    for sampling in ("covering", "random"):
        turns = first_rotations(sampling, 2000, dim, np.random.default_rng(0))
        assert len(turns) == (2000 if dim == 3 else 360)
        assert np.allclose(turns @ turns.transpose(0, 2, 1), np.eye(dim), atol=1e-9) and np.allclose(np.linalg.det(turns), 1)
        rng = np.random.default_rng(1)
        worst = max(np.rad2deg(angle_between(turns, truths.rotation(rng, dim)[None])).min() for _ in range(200))
        assert worst < 35, (sampling, worst)


@BOTH
def test_small_turns_stay_small(dim):
    starts = list(first_rotations("covering", 3, dim, np.random.default_rng(0)))
    turns = perturbed(starts, 90, np.deg2rad(5), np.random.default_rng(2))
    assert np.array_equal(turns[:3], np.stack(starts)) and len(turns) == 93
    away = np.rad2deg([angle_between(t, starts[k % 3]) for k, t in enumerate(turns[3:])])
    assert 2 < away.max() <= 5 * (1 if dim == 2 else 3**0.5) + 1e-6 and away.min() > 0


def test_what_is_kept_lies_apart():
    case = linear_pair(38, 2, "rigid", "same")
    found = search(case.pair.fixed, case.pair.moving, SearchSettings(kept=(10, 2, 1)), Runtime("cpu"), Silent())
    every = found.level.try_rotations(first_rotations("covering", 72, 2, np.random.default_rng(0)))
    kept = apart(every, 5, 20.0)
    angles = [np.rad2deg(angle_between(a.turn, b.turn)) for i, a in enumerate(kept) for b in kept[:i]]
    assert len(kept) == 5 and min(angles) > 20 and kept[0].similarity == max(h.similarity for h in every)


def test_levels_are_in_mm_and_never_finer_than_the_voxels():
    head, thick = Grid.from_parts((180, 220, 190), 1.0), Grid.from_parts((30, 256, 256), [1.0, 1.0, 8.0])
    assert level_spacings(head, head, SearchSettings()) == pytest.approx([220 / 32, 220 / 32, 220 / 64])
    assert level_spacings(head, thick, SearchSettings(finest=0.5))[-1] == pytest.approx(2.0)
    small = Grid.from_parts((20, 24), 2.0)
    assert level_spacings(small, small, SearchSettings()) == pytest.approx([2.0, 2.0, 2.0])


def test_other_methods_begin_there(cli, tmp_path):
    case = linear_pair(40, 2, "rigid", "inverted", truth=any_turn(40, 2))
    for name in ("fixed", "moving"):
        write_image(getattr(case.pair, name), tmp_path / f"{name}.nii")
    answer = cli("register", "--fixed", tmp_path / "fixed.nii", "--moving", tmp_path / "moving.nii", "--init", "csngf", "--method", "affine",
                 "--set", "freedom=none", "--write", "transform", "--quiet", "--out", tmp_path / "out")
    assert answer.status == 0, answer.err
    assert case.error(read_transform(tmp_path / "out" / "transform.h5", 2)) < 0.5


def test_sentences():
    case = linear_pair(39, 2)
    with pytest.raises(InputError, match="levels of the search disagree"):
        find("csngf", {"tried": (10, 10)}).run(case.pair, Runtime("cpu"))
    volume = truths.Phantom(1, Grid.from_parts((1, 30, 30))).image(Grid.from_parts((1, 30, 30)))
    with pytest.raises(InputError, match="single slice"):
        find("csngf").run(Pair(volume, volume), Runtime("cpu"))
    bent = truths.random_swirl(1, case.pair.fixed.grid)
    with pytest.raises(InputError, match="starts from a linear one"):
        find("csngf").run(replace(case.pair, initial=bent), Runtime("cpu"))
