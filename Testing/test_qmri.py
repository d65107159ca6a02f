"""Slices into a volume: emulation and slopes, known poses, order and directions, the hull, weak evidence, maps, and the command line."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import truths_hip as hips
from scipy.ndimage import binary_erosion

from DeepRegistrationLib.__main__ import main
from DeepRegistrationLib.engines import slice_evidence
from DeepRegistrationLib.engines.slice_evidence import (
    agreeing_share,
    doubts_of_sides,
    doubts_of_slices,
    evidence,
    mirror_lead,
    mirrored_poses,
    uncertainty,
)
from DeepRegistrationLib.engines.slice_maps import into_volume, region_rows
from DeepRegistrationLib.engines.slice_order import find_placement, mirrored, moves_of
from DeepRegistrationLib.engines.slice_search import SliceSettings, binary_search, search
from DeepRegistrationLib.engines.slice_starts import hull_start, stack_of
from DeepRegistrationLib.engines.slice_surface import surface_of, values_on
from DeepRegistrationLib.engines.slices import (
    about_axis,
    build_levels,
    common_axis,
    emulate,
    is_stretched,
    normal_of,
    placed_about,
    prepared,
    profile_nodes,
    range_of,
    rigid,
)
from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image, Labels
from DeepRegistrationLib.io import read_image, read_transform, write_image, write_labels
from DeepRegistrationLib.io.slices import read_slice, slice_files
from DeepRegistrationLib.io.surfaces import write_surface
from DeepRegistrationLib.method import find
from DeepRegistrationLib.ops.stats import robust_range
from DeepRegistrationLib.problem import Slices
from DeepRegistrationLib.runtime import Runtime, Silent

RUNTIME = Runtime("cpu", threads=1)
QUICK = {"tried": 1000}
WRONG = {"order": [3, 1, 0, 5, 2, 4], "flips": [(False, False), (True, False), (False, True), (False, False), (True, True), (False, False)]}


@lru_cache(maxsize=1)
def hip_and_volume():
    return hips.Hip(0), hips.hip_volume(hips.Hip(0), hips.volume_grid(48))


@lru_cache(maxsize=8)
def request_of(seed=1, degrees=25.0, shift=12.0, **more):
    hip, volume = hip_and_volume()
    return hips.known_set(seed, degrees, shift, hip=hip, volume=volume, size=44, **more)


def worst(result, known) -> float:
    """mm, of the slice that is farthest from its true place."""
    return max(hips.errors(t.numpy(), e, s.grid.points().reshape(-1, 3))[2] for t, e, s in zip(result.transforms, known.each, known.problem.slices))


# --------------------------------------------------------------------------------------------------------------- emulation


@pytest.mark.parametrize("profile", ["box", "gaussian"])
def test_a_linear_volume_is_emulated_exactly_whatever_the_thickness(profile):
    grid = Grid.from_parts((20, 22, 24), [1.0, 1.5, 2.0], [-10, -15, -20])
    slope = np.array([0.3, -0.2, 0.5])
    volume = Image(torch.as_tensor(grid.points() @ slope, dtype=torch.float32)[None, None], grid)
    plane = hips.radial_grids(12, 12.0, 4.0, centre=(0, 0, 0))[2]
    pose = rigid([1, -1, 0.5], [0.2, 0.1, -0.3], np.zeros(3))
    made = emulate(volume, plane, pose, 4.0, profile)
    wanted = (plane.points() @ pose[:3, :3].T + pose[:3, 3]) @ slope
    assert np.abs(made.data[0, 0].numpy() - wanted).max() < 1e-4


def test_a_thick_slice_is_the_mean_over_its_depth():
    grid = Grid.from_parts((65, 8, 8), [1.0, 1.0, 0.125], [-4, -4, -4])
    volume = Image(torch.as_tensor(grid.points()[..., 2] ** 2, dtype=torch.float32)[None, None], grid)
    plane = Grid.from_parts((1, 4, 4), [1.0, 1.0, 3.0], [-2, -2, 0.5])
    made = emulate(volume, plane, np.eye(4), 3.0)
    assert made.data.mean() == pytest.approx(0.25 + 9 / 12, abs=0.01)
    assert emulate(volume, plane, np.eye(4), 0.01).data.mean() == pytest.approx(0.25, abs=0.01)
    assert profile_nodes(3.0, 0.5, "gaussian")[1].sum() == pytest.approx(1.0)


def test_pixels_outside_the_volume_get_the_fill():
    hip, volume = hip_and_volume()
    plane = hips.radial_grids(10, 400.0)[0]
    made = emulate(volume, plane, np.eye(4), 3.0, fill=float("nan")).data
    assert 0 < int(torch.isnan(made).sum()) < made.numel()


def test_the_common_axis_of_radial_planes_is_found_and_parallel_ones_have_none():
    grids = hips.radial_grids(20, 100.0, centre=(5.0, -3.0, 2.0))
    point, direction = common_axis(grids)
    assert abs(abs(direction @ grids[0].direction[:, 1]) - 1) < 1e-9
    away = np.array([5.0, -3.0, 2.0]) - point
    assert np.linalg.norm(away - direction * (direction @ away)) < 1e-9
    assert common_axis([grids[0].moved(rigid(5 * k * normal_of(grids[0]), np.zeros(3), np.zeros(3))) for k in range(4)]) is None


@pytest.mark.parametrize("similarity", ["mi", "lncc", "ngf"])
def test_the_slope_of_the_cost_is_that_of_finite_differences(similarity):
    level = build_levels(request_of().problem, [6.0], similarity, "box", torch.device("cpu"))[0]
    pose = request_of().truth @ level.step([2.0, -1.5, 1.0, 2.0, 1.0, -2.0])
    cost, slope = level.evaluate(pose)
    slope, size = slope.sum(0), 0.05
    numeric = [(level.cost(pose @ level.step(size * axis)) - level.cost(pose @ level.step(-size * axis))) / (2 * size) for axis in np.eye(6)]
    assert cost > level.cost(request_of().truth)
    assert np.linalg.norm(slope - numeric) < 0.12 * np.linalg.norm(slope)


# -------------------------------------------------------------------------------------------------------------------- pose


def test_a_pose_40_degrees_and_20_mm_away_is_recovered_and_its_deviation_is_honest():
    known = request_of(3, 40.0, 20.0)
    result = find("qmri", QUICK).run(known.problem, RUNTIME)
    turn, shift, distance = hips.errors(result.transform.numpy(), known.truth, hips.pixels(known.problem))
    assert turn < 0.5 and shift < 0.5 and result.registered and result.start == "header"
    assert result.distance_std / 4 < distance < 4 * result.distance_std
    assert result.plane == (0, 1, 2, 3, 4, 5) and worst(result, known) < 0.6


def test_binary_search_finds_a_turn_about_the_axis_by_votes():
    known = request_of(1, 0.0, 0.0)
    level = build_levels(known.problem, [3.0], "mi", "box", torch.device("cpu"))[0]
    axis = common_axis([s.grid for s in known.problem.slices])
    matrix, trace = binary_search(level, known.truth @ about_axis(axis, 11.0), axis, 15.0)
    assert hips.errors(matrix, known.truth, hips.pixels(known.problem))[0] < 1.0
    assert [t["step"] for t in trace] == [15.0, 7.5, 3.75, 1.875, 0.9375]
    assert trace[0]["back"] + trace[0]["stay"] + trace[0]["forth"] == 6


def test_slices_that_moved_on_their_own_are_followed_within_their_bound():
    known = request_of(2, 10.0, 5.0)
    rng = np.random.default_rng(0)
    moves = [rigid(rng.uniform(-1.5, 1.5, 3), np.zeros(3), np.zeros(3)) for _ in range(6)]
    moved = replace(known.problem, slices=tuple(replace(s, grid=s.grid.moved(m)) for s, m in zip(known.problem.slices, moves)))
    known = replace(known, problem=moved, each=np.stack([e @ np.linalg.inv(m) for e, m in zip(known.each, moves)]))
    together, apart = (find(name, {**QUICK, "placing": "keep"}).run(moved, RUNTIME) for name in ("qmri", "qmri:motion"))
    assert worst(apart, known) < 0.6 * worst(together, known) and worst(apart, known) < 1.0


def test_order_and_directions_are_found():
    known = request_of(4, 20.0, 8.0, **{k: tuple(v) for k, v in WRONG.items()})
    result = find("qmri:unordered", QUICK).run(known.problem, RUNTIME)
    assert result.registered and worst(result, known) < 0.8
    assert all(abs(np.linalg.det(t.numpy()[:3, :3]) - 1) < 1e-6 for t in result.transforms)


def test_flips_alone_are_found_where_slices_have_different_sizes():
    known = request_of(5, 10.0, 5.0, flips=((True, False), (False, False), (False, True), (False, False), (False, False), (True, True)))
    first = known.problem.slices[0]
    cut = replace(first, data=first.data[..., 4:-4], grid=first.grid.crop([4, 0, 0], [40, 44, 1]))
    problem = replace(known.problem, slices=(cut, *known.problem.slices[1:]))
    found = find_placement(problem, [known.truth], SliceSettings(tried=100, angle=10.0), False, True, RUNTIME, Silent())
    assert found.flips == ((True, False), (False, False), (False, True), (False, False), (False, False), (True, True)) and not found.is_as_given
    different = replace(known.problem, slices=(cut, known.problem.slices[1]))
    with pytest.raises(InputError, match="slices of different sizes"):
        find_placement(different, [known.truth], SliceSettings(tried=10), True, True, RUNTIME, Silent())
    assert np.allclose(moves_of(problem, found)[2] @ problem.slices[2].grid.affine, mirrored(problem.slices[2].grid, (False, True)).affine)


def test_segments_that_are_all_too_small_start_as_close():
    known = request_of(6, 60.0, 40.0, segments=True)
    eroded = [binary_erosion(s.data[0, 0].numpy() > 0, np.ones((1, 3, 3)), border_value=1) for s in known.problem.segments]
    segments = tuple(replace(s, data=torch.as_tensor(e.astype(np.int64))[None, None]) for s, e in zip(known.problem.segments, eroded))
    matrix, away = hull_start(replace(known.problem, segments=segments), Silent())
    assert hips.errors(matrix, known.truth, hips.pixels(known.problem))[2] < 3.0 and away < 2.0, "8 mm where contours are pushed to the surface itself"


def test_the_hull_of_the_segments_starts_close_to_the_truth_and_the_stack_looks_like_the_slices():
    known = request_of(6, 60.0, 40.0, segments=True)
    matrix, away = hull_start(known.problem, Silent())
    assert hips.errors(matrix, known.truth, hips.pixels(known.problem))[2] < 3.0 and away < 2.0
    stack = stack_of(known.problem)
    first = known.problem.slices[0]
    again = stack.at(first.grid)
    inside = again.mask & (again.data != 0)
    assert torch.corrcoef(torch.stack([again.data[inside], first.data[inside]]))[0, 1] > 0.8
    result = find("qmri:published").run(known.problem, RUNTIME)
    assert result.start == "hull" and len(result.votes) == 5 and worst(result, known) < 3.0


# ----------------------------------------------------------------------------------------------------------------- evidence


def test_maps_of_fits_that_fail_in_places_keep_their_contrast():
    """Two in a hundred pixels hold the limits of the fit, 0 and 4000 ms, and the anatomy values up to 90 ms."""
    known, draw = request_of(3, 25.0, 12.0), np.random.default_rng(0)
    spoiled = []
    for image in known.problem.slices:
        chance = torch.as_tensor(draw.random(image.data.shape))
        spoiled.append(replace(image, data=image.data.masked_fill(chance < 0.01, 0.0).masked_fill(chance > 0.99, 4000.0)))
    low, high = np.quantile(np.concatenate([image.data.numpy().ravel() for image in prepared(spoiled, "cpu")]), (0.05, 0.95))
    assert high - low > 0.5, "the anatomy spans the range that is compared"


def test_the_range_of_values_leaves_out_limits_of_fits_alone():
    values = torch.cat([torch.linspace(0, 90, 9800), torch.full((100,), -50.0), torch.full((100,), 4000.0)])
    assert range_of(values) == pytest.approx((-50, 90), abs=0.5), "what is near the others counts"
    assert is_stretched(torch.cat([values[:9800], torch.linspace(500, 4000, 200)])) and not is_stretched(values) and not is_stretched(torch.zeros(100))
    for rest in (torch.linspace(0, 90, 9900), torch.cat([torch.zeros(9700), torch.full((300,), 4000.0)]), torch.rand(10000) ** 40):
        assert range_of(rest) == robust_range(rest, 2e-3)


@pytest.mark.parametrize("kind", ["noise", "far"])
def test_what_cannot_be_registered_is_reported_with_reasons(kind):
    known = request_of(7, *((90.0, 70.0) if kind == "far" else (10.0, 5.0)))
    problem = known.problem
    if kind == "noise":
        generator = torch.Generator().manual_seed(0)
        problem = replace(problem, slices=tuple(replace(s, data=torch.randn(s.data.shape, generator=generator)) for s in problem.slices))
    result = find("qmri", {"tried": 300, "placing": "keep"}).run(problem, RUNTIME)
    assert worst(result, known) > 5 and not result.registered
    assert result.reasons and all(len(reason) > 30 for reason in result.reasons)


class Folded(hips.Hip):
    """A hip whose part at y < 0 is the mirror image of the other."""

    def values(self, p, contrast):
        return super().values(np.stack([p[..., 0], np.abs(p[..., 1]), p[..., 2]], -1), contrast)


@pytest.mark.parametrize("similarity", ("mi", "ngf"))
def test_a_pose_that_another_measure_does_not_confirm_is_reported(similarity):
    known, settings = request_of(6, 0.0, 0.0), SliceSettings(search="none", similarity=similarity)
    found = search(known.problem, [known.truth], settings, RUNTIME, Silent())
    edge, away = float(known.problem.slices[0].grid.extent.max()), rigid(np.array([3.0, 0.0, 2.0]), np.zeros(3), np.zeros(3))
    there, off = (evidence(known.problem, replace(found, matrix=m), settings, 0.1) for m in (found.matrix, away @ found.matrix))
    assert there.measures < 0.005 * edge and not any("gradient directions" in reason for reason in there.reasons)
    assert off.measures == pytest.approx(13**0.5, rel=0.2) and any("gradient directions and mutual information" in reason for reason in off.reasons)


def test_what_another_measure_cannot_tell_is_not_held_against_a_pose(monkeypatch):
    known, settings = request_of(6, 0.0, 0.0), SliceSettings(search="none")
    found = search(known.problem, [known.truth], settings, RUNTIME, Silent())
    off = replace(found, matrix=rigid(np.array([3.0, 0.0, 2.0]), np.zeros(3), np.zeros(3)) @ found.matrix)
    for own, expected in ((1.0, 13**0.5), (2.5, 0.0), (np.inf, 13**0.5)):
        monkeypatch.setattr(slice_evidence, "uncertainty", lambda level, matrix, own=own: SimpleNamespace(distance=own))
        assert slice_evidence.measures_apart(known.problem, off, settings) == pytest.approx(expected, rel=0.2)


def folded_and_plain():
    return {name: hips.known_set(2, 10.0, 5.0, hip=hip, volume=hips.hip_volume(hip, hips.volume_grid(48), bias=0.0), size=44, bias=0.0)
            for name, hip in (("folded", Folded(1)), ("plain", hips.Hip(1)))}


def test_a_body_that_is_its_own_mirror_image_has_no_lead_over_it():
    settings, leads = SliceSettings(search="none"), {}
    for name, known in folded_and_plain().items():
        leads[name] = mirror_lead(known.problem, search(known.problem, [known.truth], settings, RUNTIME, Silent()), settings)
    assert leads["folded"] < 0.1 and leads["plain"] > 0.3, leads
    mirrors = mirrored_poses(known.truth, np.zeros(3), 20.0)
    assert np.allclose(np.linalg.det(mirrors[:, :3, :3]), -1) and np.linalg.norm((mirrors - known.truth)[:, :3, 3], axis=1).max() <= 20 + 1e-6


def test_where_left_and_right_cannot_be_told_the_result_says_so():
    known = folded_and_plain()["folded"]
    by_header, by_pictures = (find(f"qmri:{preset}", {"tried": 600, "angle": 20.0}).run(known.problem, RUNTIME) for preset in ("default", "unordered"))
    assert by_header.registered and "left from right" in by_header.remarks[0] and "headers" in by_header.remarks[0] and worst(by_header, known) < 0.8
    assert not by_pictures.registered and "left from right" in by_pictures.reasons[-1] and "placing=keep" in by_pictures.reasons[-1]
    assert doubts_of_sides(0.5, False) == doubts_of_sides(None, False) == ((), ())


def test_a_slice_that_shows_something_else_is_named():
    curve = {"degrees": np.array([-30.0, 0.0, 30.0]), "slices": np.array([[0.1, 0.1, 0.1], [0.3, 0.2, 0.3], [0.1, 0.3, 0.1]])}
    assert doubts_of_slices(curve)[0].startswith("slice 2 is more like the volume elsewhere") and agreeing_share(curve) == pytest.approx(2 / 3)
    assert doubts_of_slices({}) == doubts_of_slices({**curve, "slices": curve["slices"][:, ::2]}) == () and agreeing_share({}) == 1


def test_uncertainty_is_large_where_the_cost_is_flat():
    level = search(request_of().problem, [request_of().truth], SliceSettings(search="none"), RUNTIME, Silent()).levels[-1]
    sharp = uncertainty(level, request_of().truth)
    flat = uncertainty(replace(level, stack=torch.rand(level.stack.shape, generator=torch.Generator().manual_seed(1))), request_of().truth)
    assert sharp.distance < 0.5 and flat.distance > 3 * sharp.distance


# --------------------------------------------------------------------------------------------------------------------- maps


def test_maps_keep_their_values_and_have_nan_outside():
    grids = hips.radial_grids(20, 60.0, 4.0, centre=(0, 0, 0))
    images = [Image(torch.full((1, 1, *g.shape), 41.5), g) for g in grids]
    images[0].data[..., :10, :] = float("nan")
    volume = Grid.from_parts((40, 40, 40), 2.0, [-39, -39, -39])
    made = into_volume(images, [np.eye(4)] * 6, volume, 0.0, Silent()).data
    finite = made[torch.isfinite(made)]
    assert torch.allclose(finite, torch.tensor(41.5)) and 0.05 < len(finite) / made.numel() < 0.6
    labels = Labels((torch.as_tensor(volume.points()[..., 0]) > 0).long()[None, None] * 3, volume, names=((3, "left"),))
    row, = region_rows(images, [np.eye(4)] * 6, labels, "T2", "ms")
    assert row["label"] == 3 and row["region"] == "left" and row["mean"] == pytest.approx(41.5) and row["sd"] == pytest.approx(0, abs=1e-6)
    assert row["area_mm2"] == pytest.approx(9 * row["pixels"])


def test_a_surface_is_closed_smooth_and_has_the_nearest_values(tmp_path):
    direction = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    grid = Grid.from_parts((30, 32, 34), [2.0, 1.5, 1.8], [-30, -24, -31], direction)
    ball = Labels((torch.as_tensor(np.linalg.norm(grid.points() - grid.centre, axis=-1)) < 20).long()[None, None], grid)
    vertices, triangles = surface_of(ball)
    radius = np.linalg.norm(vertices - grid.centre, axis=1)
    assert abs(radius.mean() - 20) < 0.2 and radius.std() < 0.3
    one, two, three = (vertices[triangles[:, k]] - grid.centre for k in range(3))
    assert np.einsum("ij,ij->i", one, np.cross(two, three)).sum() / 6 == pytest.approx(4 / 3 * np.pi * 20**3, rel=0.03), "closed, seen from outside"
    plane = Grid.from_parts((1, 60, 60), [1.0, 1.0, 2.0], grid.centre - [29.5, 29.5, 0])
    picture = Image(torch.as_tensor(plane.points()[..., 0] - grid.centre[0], dtype=torch.float32)[None, None], plane)
    values, away = values_on(vertices, [picture], [np.eye(4)], (), 2.5)
    near = np.abs(vertices[:, 2] - grid.centre[2]) < 2
    assert np.isfinite(values[near]).all() and np.isnan(values[np.abs(vertices[:, 2] - grid.centre[2]) > 2.6]).all() and np.nanmax(away) <= 2.5
    assert np.abs(values[near] - (vertices - grid.centre)[near, 0]).max() <= 0.51, "of the nearest pixel, as it is"
    write_surface(tmp_path / "s.vtp", vertices, triangles, {"T2 (ms)": values})
    vtk = pytest.importorskip("vtk")
    reader = vtk.vtkXMLPolyDataReader()
    reader.SetFileName(str(tmp_path / "s.vtp"))
    reader.Update()
    read = reader.GetOutput()
    assert read.GetNumberOfPoints() == len(vertices) and read.GetNumberOfPolys() == len(triangles)
    assert np.allclose(read.GetPointData().GetScalars().GetTuple1(int(near.argmax())), values[near.argmax()])


def test_slices_without_geometry_are_placed_about_the_axis():
    flat = Image(torch.zeros(1, 1, 10, 12), Grid.from_parts((10, 12), 2.0))
    placed = [placed_about(flat, ((1, 2, 3), (0, 0, 5)), 30.0 * k, 3.0) for k in range(6)]
    point, direction = common_axis([p.grid for p in placed])
    assert np.allclose(np.abs(direction), [0, 0, 1]) and np.allclose(point[:2], [1, 2]) and np.allclose(placed[4].grid.centre, [1, 2, 3])
    assert normal_of(placed[0].grid) @ normal_of(placed[1].grid) == pytest.approx(np.cos(np.pi / 6))


# ----------------------------------------------------------------------------------------------------------------- requests


def test_requests_that_cannot_be_used_say_why():
    problem = request_of(1, 25.0, 12.0, segments=True).problem
    bad = {"at least two": {"slices": problem.slices[:1], "segments": None, "volume_segment": None},
           "one axis of one voxel": {"slices": (problem.volume, problem.volume), "segments": None, "volume_segment": None},
           "a volume of several slices": {"volume": problem.slices[0]}, "thickness of -1": {"thickness": -1.0},
           "in both or in neither": {"segments": None}, "5 segments were given for 6": {"segments": problem.segments[:5]},
           "does not lie on the voxels": {"segments": problem.segments[::-1]}, "without length": {"axis": ((0, 0, 0), (0, 0, 0))},
           "three numbers each": {"axis": (1, 2)}}
    for text, change in bad.items():
        with pytest.raises(InputError, match=text):
            replace(problem, **change)
    assert isinstance(problem, Slices) and problem.dim == 3
    bare = replace(problem, segments=None, volume_segment=None)
    in_meters, *small = (replace(i, grid=Grid(i.grid.shape, np.diag([1e-3, 1e-3, 1e-3, 1]) @ i.grid.affine)) for i in (bare.volume, *bare.slices))
    meant = {"all 6 slices lie on the same pixels": replace(bare, slices=bare.slices[:1] * 6),
             "slices, 130 mm long, into the volume of 0.17 x 0.17 x 0.17 mm": replace(bare, volume=in_meters),
             "slices, 0.13 mm long, into the volume of 170 x 170 x 170 mm": replace(bare, slices=tuple(small))}
    for text, asked in meant.items():
        with pytest.raises(InputError, match=text):
            find("qmri", {"tried": 50}).run(asked, RUNTIME)


# ------------------------------------------------------------------------------------------------------------- command line


@pytest.fixture
def files(tmp_path):
    known = request_of(8, 15.0, 8.0, segments=True)
    write_image(known.problem.volume, tmp_path / "volume.nii.gz")
    write_labels(Labels(torch.as_tensor(hip_and_volume()[0].labels(known.problem.volume.grid.points()))[None, None], known.problem.volume.grid),
                 tmp_path / "labels.nii.gz")
    for k, image in enumerate(known.problem.slices):
        data = image.data.clone()
        data[..., :3] = float("nan")
        write_image(replace(image, data=data), tmp_path / f"s{k + 1}.nii.gz")
        write_labels(known.problem.segments[k], tmp_path / f"bone{k + 1}.nii.gz")
    write_labels(known.problem.volume_segment, tmp_path / "bone.nii.gz")
    return known, tmp_path


def paths(folder, stem):
    return [str(folder / f"{stem}{k + 1}.nii.gz") for k in range(6)]


def test_register_and_emulate_end_to_end(files, capsys):
    known, folder = files
    out = folder / "out"
    asked = ["qmri", "register", "--slices", *paths(folder, "s"), "--volume", str(folder / "volume.nii.gz"), "--segments", *paths(folder, "bone"),
             "--volume-segment", str(folder / "bone.nii.gz"), "--maps", "T2:ms", *paths(folder, "s"), "--labels", str(folder / "labels.nii.gz"),
             "--surface", str(folder / "bone.nii.gz"), "--surface-distance", "3", "--set", "tried=500", "--threads", "1", "--out", str(out)]
    assert main(asked) == 0
    assert "registered from the start 'hull'" in capsys.readouterr().out
    record = json.loads((out / "result.json").read_text("utf-8"))
    assert record["status"] == "registered" and set(record["files"]) == {p.name for p in out.iterdir()}
    for k in range(6):
        matrix = read_transform(out / f"slice{k + 1:02d}.tfm", 3).numpy()
        assert hips.errors(matrix, known.each[k], known.problem.slices[k].grid.points().reshape(-1, 3))[2] < 0.6
        assert np.allclose(matrix, record["slices"][k]["matrix"], atol=1e-9)
    values = read_image(out / "map_T2.nii.gz").data
    assert torch.isnan(values).any() and 5 < float(values[torch.isfinite(values)].median()) < 90
    rows = {int(r["label"]): r for r in csv.DictReader((out / "regions.csv").open(encoding="utf-8"))}
    assert float(rows[hips.CARTILAGE_LABEL]["median"]) == pytest.approx(45, abs=5) and rows[1]["unit"] == "ms"
    points = list(csv.DictReader((out / "surface.csv").open(encoding="utf-8")))
    away = np.array([float(p["distance of T2 (mm)"]) for p in points])
    assert 0.2 < np.isfinite(away).mean() < 0.95 and np.nanmax(away) <= 3 and (out / "surface.vtp").stat().st_size > 10_000
    lines = (out / "similarity.csv").read_text("utf-8").splitlines()
    assert lines[0].startswith("degrees,set,slice01") and len(lines) > 20
    assert (out / "slices.png").read_bytes()[:4] == (out / "similarity.png").read_bytes()[:4] == b"\x89PNG"
    assert main(["qmri", "emulate", "--volume", str(folder / "volume.nii.gz"), "--slice", str(folder / "s2.nii.gz"), "--transform",
                 str(out / "slice02.tfm"), "--out", str(folder / "made.nii.gz")]) == 0
    made, real = read_image(folder / "made.nii.gz").data, known.problem.slices[1].data
    inside = torch.isfinite(made)
    assert torch.corrcoef(torch.stack([made[inside], real[inside]]))[0, 1] > 0.9


def write_dicom(image: Image, path, instance: int, series: int = 1) -> None:
    """A slice as a DICOM file with its own place, as scanners write radial planes."""
    import SimpleITK as sitk

    grid = image.grid
    made = sitk.GetImageFromArray(np.rint(10 * image.data[0, 0].numpy()).clip(0, None).astype(np.int16))
    made.SetSpacing(grid.spacing.tolist())
    made.SetOrigin(grid.origin.tolist())
    made.SetDirection(grid.direction.ravel().tolist())
    tags = {"0020|0032": grid.origin, "0020|0037": grid.direction[:, :2].T.ravel()}
    for key, numbers in tags.items():
        made.SetMetaData(key, "\\".join(f"{v:.10g}" for v in numbers))
    made.SetMetaData("0020|0011", str(series))
    made.SetMetaData("0020|0013", str(instance))
    made.SetMetaData("0018|0050", f"{grid.spacing[2]:g}")
    made.SetMetaData("0008|0060", "MR")
    made.SetMetaData("0008|0016", "1.2.840.10008.5.1.4.1.1.4")  # MR image storage
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(path))
    writer.Execute(made)


def test_a_folder_of_radial_dicom_slices_is_read_in_the_order_of_its_instances(tmp_path):
    images = request_of().problem.slices
    for k, image in enumerate(images):
        write_dicom(image, tmp_path / f"{5 - k}.dcm", k + 1)
    files = slice_files(tmp_path)
    assert [f.name for f in files] == [f"{5 - k}.dcm" for k in range(6)]
    for path, image in zip(files, images):
        read = read_slice(path)
        assert read.grid.same_as(image.grid, 1e-2), (read.grid, image.grid)
        assert float((read.data / 10 - image.data.clamp_min(0)).abs().max()) < 0.06


def test_not_registered_ends_with_status_1_and_leaves_no_transform_to_be_used(files, capsys):
    known, folder = files
    generator = torch.Generator().manual_seed(1)
    for k, image in enumerate(known.problem.slices):
        write_image(replace(image, data=torch.randn(image.data.shape, generator=generator)), folder / f"n{k + 1}.nii.gz")
    out = folder / "out"
    (out).mkdir()
    (out / "set.tfm").write_text("of an earlier run")
    assert main(["qmri", "register", "--slices", *paths(folder, "n"), "--volume", str(folder / "volume.nii.gz"), "--set", "tried=300",
                 "--set", "placing=keep", "--threads", "1", "--quiet", "--out", str(out)]) == 1
    assert "not registered: " in capsys.readouterr().err
    assert json.loads((out / "result.json").read_text("utf-8"))["status"] == "not registered"
    assert (out / "rejected.tfm").exists() and not list(out.glob("set.*")) and not list(out.glob("map_*")) and not list(out.glob("slice0*"))


def test_bad_input_is_one_sentence_and_leaves_nothing(files, capsys):
    known, folder = files
    volume, out = str(folder / "volume.nii.gz"), folder / "out"
    slices = ["--slices", *paths(folder, "s")]
    cases = {"holds no DICOM file": ["--dicom", str(folder)], "does not exist": ["--slices", str(folder / "none.nii.gz"), *paths(folder, "s")[1:]],
             "give one a slice": [*slices, "--segments", str(folder / "bone1.nii.gz")], "--radial was given without": [*slices, "--radial", "30"],
             "six numbers": [*slices, "--axis", "1,2,3"], "2 files for 6 slices": [*slices, "--maps", "T2", *paths(folder, "s")[:2]],
             "expected one of": [*slices, "--set", "similarity=nothing"], "in both or in neither": [*slices, "--volume-segment", str(folder / "bone.nii.gz")]}
    for text, words in cases.items():
        assert main(["qmri", "register", *words, "--volume", volume, "--out", str(out)]) == 2, words
        error = capsys.readouterr().err
        assert text in error and len(error.splitlines()) == 1, error
    assert not out.exists()
    assert main(["qmri", "emulate", "--volume", volume, "--slice", volume, "--out", str(folder / "x.nii.gz")]) == 2
    assert "a slice (one axis of one voxel) and a volume are needed" in capsys.readouterr().err
