"""Rician noise and motion: the likelihood is scipy's, signal and noise are fitted, poses come back, and run.py motion writes what it says."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
import truths
from truths_linear import known_map

from DeepRegistrationLib.engines.motion import combined, finer, first_noise_and_scale, templates_of
from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image
from DeepRegistrationLib.io import read_image, read_transform, write_image
from DeepRegistrationLib.method import find
from DeepRegistrationLib.methods.rician_motion import motion_table, rotation_vector
from DeepRegistrationLib.ops.rice import add_rice_noise, fit_rice, gauss_log_likelihood, rice_log_likelihood
from DeepRegistrationLib.ops.sample import resample, world_points
from DeepRegistrationLib.ops.spline import tensor_product
from DeepRegistrationLib.problem import Series
from DeepRegistrationLib.runtime import Runtime, Silent
from DeepRegistrationLib.transforms import Affine

RUNTIME = Runtime("cpu", threads=1)


def draws(count=20000, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(1e-3, 60, count), rng.uniform(0, 60, count), rng.uniform(0.3, 30, count)


def log_bessel_by_terms(z: torch.Tensor, terms: int = 50) -> torch.Tensor:
    """log I_0 as published: log-sum-exp of the first terms of the series."""
    k = torch.arange(terms, dtype=z.dtype)
    return torch.logsumexp(k * (np.log(0.25) + 2 * z[:, None].log()) - 2 * torch.lgamma(k + 1), 1)


# ------------------------------------------------------------------------------------------------------------- likelihood


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32))
def test_log_likelihood_is_that_of_scipy(dtype):
    y, a, s = draws()
    wanted = scipy.stats.rice.logpdf(y, a / s, scale=s)
    usable = wanted > np.log(np.finfo(float).tiny)  # scipy takes the logarithm of the density, which has to be a normal number
    found = rice_log_likelihood(*(torch.as_tensor(v).to(dtype) for v in (y, a, s))).double().numpy()
    assert np.isfinite(found).all() and usable.mean() > 0.95
    found, wanted = found[usable], wanted[usable]
    assert (np.abs(found - wanted) / np.abs(wanted).clip(0.01)).max() < 1e-4


def test_log_likelihood_is_that_of_the_published_series_where_its_50_terms_are_enough():
    y, a, s = (torch.as_tensor(v) for v in draws())
    z = y * a / s.square()
    enough = (z > 1e-6) & (z < 40)
    series = y.log() - 2 * s.log() - (y.square() + a.square()) / (2 * s.square()) + log_bessel_by_terms(z)
    found = rice_log_likelihood(y, a, s)
    assert torch.allclose(found[enough], series[enough], rtol=1e-6, atol=1e-9) and int(enough.sum()) > 10000
    large = torch.tensor([400.0], dtype=torch.float64)
    exact = float(np.log(scipy.special.i0e(400.0)) + 400)
    one = torch.ones(1, dtype=torch.float64)
    ours = rice_log_likelihood(large, one, one) - large.log() + (large.square() + 1) / 2
    assert float(ours) == pytest.approx(exact, rel=1e-9) and float(log_bessel_by_terms(large)) < exact - 20


def test_log_likelihood_can_be_differentiated_and_tends_to_the_normal_one():
    y, a, s = (torch.as_tensor(v[:40]) for v in draws(40))
    a, s = a.requires_grad_(True), s.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda signal, sigma: rice_log_likelihood(y, signal, sigma), (a, s))
    y = torch.linspace(990, 1010, 21, dtype=torch.float64)
    a, s = torch.tensor(1000.0, dtype=torch.float64), torch.tensor(5.0, dtype=torch.float64)
    assert torch.allclose(rice_log_likelihood(y, a, s), gauss_log_likelihood(y, a, s), atol=0.02)
    dark = rice_log_likelihood(torch.zeros(3), torch.zeros(3), torch.ones(3))
    assert torch.isfinite(dark).all()


def test_noise_has_the_moments_of_the_distribution():
    noisy = add_rice_noise(torch.full((200000,), 3.0, dtype=torch.float64), 2.0, torch.Generator().manual_seed(0))
    assert float(noisy.square().mean()) == pytest.approx(9 + 8, rel=0.01) and float(noisy.min()) >= 0
    assert float(noisy.mean()) == pytest.approx(scipy.stats.rice.mean(1.5, scale=2.0), rel=0.01)


def test_signal_and_sigma_of_a_voxel_are_those_of_highest_likelihood():
    noisy = add_rice_noise(torch.full((64, 4), 6.0, dtype=torch.float64), 2.0, torch.Generator().manual_seed(1))
    noisy[40:, 3] = torch.nan
    signal, sigma = fit_rice(noisy, 2000)
    for k in range(4):
        values = noisy[:, k][torch.isfinite(noisy[:, k])].numpy()
        b, _, scale = scipy.stats.rice.fit(values, floc=0)
        assert float(signal[k]) == pytest.approx(b * scale, rel=0.02) and float(sigma[k]) == pytest.approx(scale, rel=0.02)
    few = torch.full((3, 2), torch.nan, dtype=torch.float64)
    few[0] = 1.0
    assert torch.isnan(torch.stack(fit_rice(few))).all()


def test_first_noise_comes_from_the_background():
    signal = torch.zeros(1, 1, 40, 40)
    signal[..., 10:30, 10:30] = 20.0
    noisy = add_rice_noise((3 * signal).expand(6, 1, 40, 40), 8.0, torch.Generator().manual_seed(2))
    sigma, scale = first_noise_and_scale(noisy, signal)
    assert sigma == pytest.approx(8.0, rel=0.03) and scale == pytest.approx(3.0, rel=0.05)


# ------------------------------------------------------------------------------------------------------------------ motion


def tissue_series(sigma: float, dim: int = 2, scans: int = 6, shift: float = 3.0, angle: float = 0.1):
    """(Series with maps of two tissues, the maps scan mm -> tissue mm): scans of a phantom's labels on another lattice than the maps."""
    grid = Grid.from_parts((56, 60) if dim == 2 else (22, 24, 26), 1.0 if dim == 2 else 3.0, [4.0, -6.0, 2.0][:dim])
    fine = grid.pad(4).resample(grid.spacing * 0.7)
    phantom, generator = truths.Phantom(5, grid), torch.Generator().manual_seed(4)
    labels = phantom.label_map(fine).data
    maps = Image(torch.cat([(labels == 1).float(), (labels > 1).float()], 1), fine, name="tissues")
    volume = Image(40.0 * maps.data[:, :1] + 90.0 * maps.data[:, 1:], fine)
    poses = [known_map(k, "rigid", grid.centre, shift, angle) for k in range(scans)]
    frames = []
    for k, pose in enumerate(poses):
        moved = replace(volume, grid=fine.moved(np.linalg.inv(pose.numpy()))).at(grid)
        frames.append(replace(moved, data=add_rice_noise(moved.data, sigma, generator), name=f"scan {k}"))
    return Series(tuple(frames), maps), poses


def shift_errors(result, poses) -> float:
    """Mean distance (mm) of the center of the lattice from where the truth takes it."""
    centre = result.average.grid.centre
    return float(np.mean([np.linalg.norm((t.numpy() - np.linalg.inv(p.numpy())) @ np.r_[centre, 1]) for t, p in zip(result.transforms, poses)]))


VALUES = {"means": (40.0, 80.0), "spreads": (4.0, 10.0), "translation": 3.0, "rotation": 0.1, "rounds": 30}


@pytest.mark.parametrize("dim", (2, 3))
def test_poses_come_back_from_noisy_scans(dim):
    series, poses = tissue_series(15.0, dim, scans=6 if dim == 2 else 3)
    result = find("rician-motion", VALUES).run(series, RUNTIME)
    assert shift_errors(result, poses) < 0.35 * (1 if dim == 2 else 3)
    assert result.scalars["sigma"] == pytest.approx(15.0, rel=0.1)
    assert [row["loss"] for row in result.history][-1] < result.history[0]["loss"]


def test_the_right_noise_matters_where_there_is_much_of_it():
    series, poses = tissue_series(70.0)
    errors = {noise: shift_errors(find("rician-motion", {**VALUES, "noise": noise}).run(series, RUNTIME), poses) for noise in ("rician", "gaussian")}
    assert errors["rician"] < 0.75 * errors["gaussian"], errors


def test_a_map_of_all_others_takes_the_place_of_tissues():
    series, _ = tissue_series(0.0, shift=0.0, angle=0.0, scans=4)
    frames = torch.cat([f.data for f in series.frames])
    frames[2] = 1000.0
    maps = templates_of(frames, series.frames[0].grid, [Affine.identity(2)] * 4, 0.0, "gaussian").data
    assert float(maps[2].max() / maps[2].mean()) > 2 and maps.shape == (4, 1, *series.frames[0].grid.shape)
    assert torch.allclose(maps[0], maps[1], atol=1e-4) and not torch.allclose(maps[0], maps[2], atol=0.1)


def test_turns_between_volumes_come_back_without_tissue_maps():
    """Each scan is the phantom itself, read where its pose says, with noise of 6 % of the largest signal; what counts is motion between scans."""
    grid, generator = Grid.from_parts((26, 32, 30), 5.0), torch.Generator().manual_seed(3)
    phantom, poses = truths.Phantom(1, grid), [known_map(k, "rigid", grid.centre, 2.5, 0.04) for k in range(5)]
    signals = [phantom(pose(world_points(grid, torch.float64).reshape(1, -1, 3))).clamp_min(0).float().reshape(1, 1, *grid.shape) for pose in poses]
    sigma = 0.06 * float(signals[0].max())
    frames = tuple(Image(add_rice_noise(signal, sigma, generator), grid, name=f"scan {k}") for k, signal in enumerate(signals))
    result = find("rician-motion", {"translation": 3.0, "rotation": 0.06}).run(Series(frames), RUNTIME)
    found, true = ([m @ np.linalg.inv(each[0]) for m in each[1:]] for each in ([t.numpy() for t in result.transforms],
                                                                              [np.linalg.inv(p.numpy()) for p in poses]))
    off = [np.linalg.inv(b) @ a for a, b in zip(found, true)]
    turns = [np.rad2deg(np.linalg.norm(rotation_vector(m[:3, :3]))) for m in off]
    before = [np.rad2deg(np.linalg.norm(rotation_vector(m[:3, :3]))) for m in true]
    assert np.mean(turns) < 0.2 * np.mean(before), (turns, before)


def test_a_series_at_rest_stays_where_it_is():
    """Few thick slices, as in functional imaging: nothing says where all scans together lie, so they lie where they lay."""
    grid, generator = Grid.from_parts((6, 30, 30), (2.0, 2.0, 12.0)), torch.Generator().manual_seed(1)
    signal = truths.Phantom(4, Grid.from_parts((36, 30, 30), 2.0, [0.0, 0.0, -5.0]))(world_points(grid, torch.float64)).clamp_min(0).float()
    frames = tuple(Image(add_rice_noise(signal.reshape(1, 1, *grid.shape), 0.03, generator), grid, name=f"scan {k}") for k in range(4))
    result = find("rician-motion").run(Series(frames), RUNTIME)
    assert max(row["displacement_mm"] for row in result.motion) < 0.4, result.motion


def test_maps_as_coarse_as_the_scans_are_read_from_a_finer_lattice():
    grid = Grid.from_parts((8, 1, 11), (2.0, 3.0, 2.5), [1.0, 2.0, 3.0])
    fine, lines = finer(grid)
    assert fine.size == (22, 1, 16) and np.allclose(fine.corners(), grid.corners())
    data = torch.rand((1, 1, *grid.shape), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(tensor_product(data, lines), resample(data, grid, fine, "cubic"), rtol=0, atol=1e-5)


def test_scans_are_put_together_where_they_overlap(monkeypatch):
    grid = Grid.from_parts((9, 8, 7), 2.0)
    frames = torch.rand((3, 1, *grid.shape), generator=torch.Generator().manual_seed(0))
    transforms = [Affine.identity(3), Affine.identity(3), Affine.translation([4.0, 0.0, 0.0])]
    whole = combined(frames, grid, transforms, grid, "nearest", "gaussian", Silent())
    monkeypatch.setattr("DeepRegistrationLib.engines.motion.SLAB_VALUES", 400)
    parts = combined(frames, grid, transforms, grid, "nearest", "gaussian", Silent())
    assert all(torch.allclose(a, b, equal_nan=True) for a, b in zip(whole, parts))
    assert torch.allclose(whole[0][0, 0, ..., -1], frames[:2, 0, ..., -1].mean(0))
    assert torch.allclose(whole[0][0, 0, ..., 0], (frames[0, 0, ..., 0] + frames[1, 0, ..., 0] + frames[2, 0, ..., 2]) / 3)
    far = combined(frames, grid, [Affine.translation([100.0 * (k > 0), 0, 0]) for k in range(3)], grid, "linear", "rician", Silent())
    assert all(torch.isnan(part).all() for part in far)


@pytest.mark.parametrize("dim", (2, 3))
def test_the_table_of_motion_is_in_mm_and_degrees(dim):
    grid = truths.random_grid(3, dim)
    turn = np.array([0.1, -0.2, 0.05]) if dim == 3 else np.array([0.3])
    shift = np.array([1.0, -2.0, 3.0])[:dim]
    pose = Affine.from_parameters("rigid", torch.as_tensor(np.r_[shift, turn])[None], torch.as_tensor(grid.centre.copy()))
    rows = motion_table([Affine.identity(dim), pose], Image(torch.rand(1, 1, *grid.shape), grid))
    assert rows[0]["displacement_mm"] == pytest.approx(0, abs=1e-9) and rows[1]["displacement_mm"] > 1
    assert [rows[1][f"shift_{a}_mm"] for a in "xyz"[:dim]] == pytest.approx(list(shift))
    assert [rows[1][f"rotation_{a}_deg"] for a in ("xyz" if dim == 3 else "z")] == pytest.approx(list(np.rad2deg(turn)))
    assert rotation_vector(np.eye(dim)) == pytest.approx(np.zeros(len(turn)))
    back = motion_table([pose, Affine.identity(dim), Affine.identity(dim)], Image(torch.rand(1, 1, *grid.shape), grid))
    assert [row["step_mm"] for row in back] == pytest.approx([0, back[0]["displacement_mm"], 0], abs=1e-9), "from the scan before"


def test_sentences():
    series, _ = tissue_series(5.0)
    with pytest.raises(InputError, match="2 tissue maps were given with 5 means"):
        find("rician-motion").run(series, RUNTIME)
    negative = Series(tuple(replace(f, data=f.data - 500) for f in series.frames))
    with pytest.raises(InputError, match="hold negative values"):
        find("rician-motion").run(negative, RUNTIME)
    with pytest.raises(InputError, match="series of 1 scan"):
        Series(series.frames[:1])
    with pytest.raises(InputError, match="lies on another lattice"):
        Series((series.frames[0], replace(series.frames[1], grid=series.frames[1].grid.moved(np.diag([2.0, 2.0, 1.0])))))


# ------------------------------------------------------------------------------------------------------------ command line


def test_motion_on_the_command_line(cli, tmp_path):
    series, poses = tissue_series(15.0, 3, scans=3)
    stack = Image(torch.cat([f.data for f in series.frames], 1), series.frames[0].grid)
    for k, frame in enumerate(series.frames):
        write_image(frame, tmp_path / f"scan{k}.nii.gz")
    for k in range(2):
        write_image(Image(series.tissues.data[:, k:k + 1], series.tissues.grid), tmp_path / f"tissue{k}.nii.gz")
    write_four_axes(stack, tmp_path / "all.nii.gz")
    values = ("--set", "means=40,80", "--set", "spreads=4,10", "--set", "rounds=30", "--threads", "1")
    found = {}
    for name, scans in (("many", [f"scan{k}.nii.gz" for k in range(3)]), ("one", ["all.nii.gz"])):
        answer = cli("motion", "--scans", *(tmp_path / s for s in scans), "--tissues", tmp_path / "tissue0.nii.gz", tmp_path / "tissue1.nii.gz",
                     *values, "--out", tmp_path / name)
        assert answer.status == 0 and "3 scans" in answer.out, answer.err
        found[name] = list(csv.DictReader(open(tmp_path / name / "motion.csv", encoding="utf-8")))
    names = {key: [row.pop("name") for row in rows] for key, rows in found.items()}
    assert names == {"many": [f"scan{k}.nii.gz" for k in range(3)], "one": [f"all.nii.gz {k}" for k in range(3)]}
    assert found["many"] == found["one"] and list(found["one"][0])[0] == "scan" and "shift_x_mm" in found["one"][0]
    out = tmp_path / "one"
    assert {p.name for p in out.iterdir()} == {"average.nii.gz", "signal.nii.gz", "sigma.nii.gz", "motion.csv", "motion.png", "result.json",
                                               *(f"scan_{k:03d}.tfm" for k in range(3))}
    center = np.r_[series.frames[0].grid.centre, 1.0]
    for row in found["one"]:
        moved = (read_transform(out / f"scan_{int(row['scan']):03d}.tfm", 3).numpy() @ center)[:3] - center[:3]
        assert moved == pytest.approx([float(row[f"shift_{a}_mm"]) for a in "xyz"], abs=1e-3)
    assert read_image(out / "average.nii.gz").grid.same_as(series.frames[0].grid)
    assert (out / "motion.png").read_bytes()[:4] == b"\x89PNG"


def test_a_folder_of_scans_is_taken_by_the_numbers_in_its_names(cli, tmp_path):
    series, _ = tissue_series(15.0, 3, scans=3)
    (tmp_path / "scans").mkdir()
    for number, frame in zip((2, 10, 9), series.frames):
        write_image(frame, tmp_path / "scans" / f"Echo {number}.nrrd")
    (tmp_path / "scans" / "notes.txt").write_text("not a scan")
    answer = cli("motion", "--scans", tmp_path / "scans", "--set", "rounds=1", "--set", "templates=1", "--threads", "1", "--out", tmp_path / "out")
    assert answer.status == 0, answer.err
    assert json.loads((tmp_path / "out" / "result.json").read_text("utf-8"))["names"] == ["Echo 2.nrrd", "Echo 9.nrrd", "Echo 10.nrrd"]


def test_volumes_of_one_slice_have_no_third_direction(cli, tmp_path):
    for k in range(2):
        write_image(Image(torch.rand(1, 1, 1, 20, 20), Grid.from_parts((1, 20, 20))), tmp_path / f"{k}.nrrd")
    sentence = cli("motion", "--scans", tmp_path / "0.nrrd", tmp_path / "1.nrrd", "--out", tmp_path / "out").sentence()
    assert "'0.nrrd' has 20 x 20 x 1 voxels; motion is found in volumes of several slices" in sentence


def write_four_axes(stack: Image, path) -> None:
    import SimpleITK as sitk

    images = []
    for k in range(stack.data.shape[1]):
        image = sitk.GetImageFromArray(stack.data[0, k].numpy())
        image.SetSpacing(stack.grid.spacing.tolist())
        image.SetOrigin(stack.grid.origin.tolist())
        images.append(image)
    sitk.WriteImage(sitk.JoinSeries(images), str(path))


def test_motion_refuses_one_scan_in_a_sentence(cli, tmp_path):
    series, _ = tissue_series(15.0, 3, scans=2)
    write_image(series.frames[0], tmp_path / "a.nii.gz")
    sentence = cli("motion", "--scans", tmp_path / "a.nii.gz", "--out", tmp_path / "out").sentence()
    assert "series of 1 scan (a.nii.gz, " in sentence and not (tmp_path / "out").exists()
