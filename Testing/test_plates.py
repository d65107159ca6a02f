"""Plates of an atlas: their frames, slices beside them, ranking, the embedding and its losses, the pose, run.py atlas identify."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.ndimage import gaussian_filter
from truths_plates import section

from DeepRegistrationLib.commands.atlas_identify import doubt_of_size, identify
from DeepRegistrationLib.engines.plate_agreement import Agreement, frames_of, improved
from DeepRegistrationLib.engines.plate_information import information, information_after_affine
from DeepRegistrationLib.engines.plate_search import Pose, costs_of, refine, spread_starts
from DeepRegistrationLib.engines.plates import AXES, centered, embedded, order, plates_of, query_of, rank_of
from DeepRegistrationLib.errors import Cancelled, InputError
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image
from DeepRegistrationLib.io import read_image, read_transform, write_image
from DeepRegistrationLib.io.slices import is_unsized, read_slice
from DeepRegistrationLib.networks import weights
from DeepRegistrationLib.networks.embedding import PlateEmbedding, distances
from DeepRegistrationLib.runtime import Monitor, Runtime, Silent
from DeepRegistrationLib.train.plates import LOSSES, MetricLoss, PlateTraining, judged, slices_of, train_plates

QUICK = PlateTraining(steps=50, batch=16)


def head(shape=(40, 44, 36), spacing=(1.0, 1.2, 0.9), direction=None) -> Image:
    """A bent ellipsoid with parts and a texture: no plane looks like the next."""
    grid = Grid.from_parts(shape, spacing, (-20, 10, 5), direction)
    grid = grid.moved(np.block([[np.eye(3), -(grid.centre - np.array([3.0, -4.0, 7.0]))[:, None]], [np.zeros((1, 3)), np.ones((1, 1))]]))
    x, y, z = np.moveaxis((grid.points() - grid.centre) / np.array([16.0, 22.0, 18.0]), -1, 0)
    data = 0.5 + 0.2 * (x**2 + y**2 + z**2)
    for k, (a, b, c, r, value) in enumerate([(0.4, -0.4, 0.3, 0.25, 1.0), (-0.3, 0.1, -0.2, 0.3, 0.9), (0.1, 0.6, 0.4, 0.25, 0.2),
                                             (0.3, 0.3, -0.5, 0.25, 0.15), (-0.4, -0.5, 0.1, 0.2, 1.0), (0, -0.8, -0.1, 0.2, 0.9)]):
        data = np.where((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2 < r**2, value, data)
    data = data + 0.15 * gaussian_filter(np.random.default_rng(0).standard_normal(data.shape), 2.0) / 0.04
    data = np.where(x**2 + (y + 0.15 * z) ** 2 + z**2 < 1, np.clip(data, 0.15, 1.2), 0)
    return Image(torch.as_tensor(data, dtype=torch.float32)[None, None], grid, name="head")


@pytest.fixture(scope="module")
def plates():
    return plates_of(head(), "coronal")


@pytest.fixture(scope="module")
def network(plates):
    return train_plates(plates, QUICK, Runtime("cpu"))[0]


@pytest.mark.parametrize("axis", AXES)
def test_frames_are_rigid_and_do_not_depend_on_the_order_of_voxels(axis):
    """A volume whose voxel axes run otherwise through the same space has the same plates."""
    volume = head()
    data, grid = volume.data[0, 0].numpy(), volume.grid
    affine = grid.affine @ np.array([[0, 0, -1, grid.size[0] - 1], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
    other = Image(torch.from_numpy(data[:, :, ::-1].transpose(2, 1, 0).copy())[None, None], Grid(data.shape[::-1], affine), name="other")
    one, two = plates_of(volume, axis), plates_of(other, axis)
    assert one.count == two.count and np.abs(one.frames - two.frames).max() < 0.05
    assert float((one.pictures(one.frames) - two.pictures(two.frames)).abs().mean()) < 0.01
    for frame in one.frames:
        assert np.allclose(frame[:3, :3].T @ frame[:3, :3], np.eye(3)) and np.linalg.det(frame[:3, :3]) == pytest.approx(1)
    assert np.allclose(np.diff(one.positions), one.spacing)


def test_up_is_up():
    """A bright corner that is superior, and on the subject's left, is in the upper right of a coronal picture."""
    volume = head()
    points = volume.grid.points() - volume.grid.centre
    spot = (np.abs(points - np.array([8.0, 0.0, 9.0])) < 3).all(-1)
    bright = Image(torch.where(torch.from_numpy(spot), 5.0, volume.data), volume.grid)
    made = plates_of(bright, "coronal")
    middle = int(np.argmin(np.abs(made.positions - volume.grid.centre[1])))
    row, column = np.unravel_index(int(made.pictures(made.frames[[middle]])[0, 0].argmax()), (64, 64))
    assert row < 28 and column > 36


def test_exact_plates_come_first_by_mutual_information(plates):
    for k in (6, plates.count // 2, plates.count - 7):
        lattice = Grid.from_parts((64, 64), plates.pixel)
        query = query_of(Image(plates.pictures(plates.frames[[k]]), lattice), plates)
        costs = -information_after_affine(query, plates, torch.Generator().manual_seed(0), 4, 2)
        assert rank_of(costs, k) == 0 and sorted(order(costs)) == list(range(plates.count))


def test_a_slice_of_a_volume_is_the_picture_of_it(plates):
    """A one-slice volume cut obliquely, with its rows upside down, and the same as a picture."""
    volume = head()
    frame = frames_of(plates.frames[[15]], np.array([[0, 0, 0, 5.0, -4.0, 0]]))[0]
    local = np.diag([0.8, -0.8, 1.0, 1.0])
    local[:2, 3] = -24, 24
    solid = volume.at(Grid((1, 61, 61), frame @ local))
    flat = Image(solid.data[:, :, 0].flip(2), Grid.from_parts((61, 61), 0.8))
    one, two = query_of(solid, plates), query_of(flat, plates)
    assert float((one.picture - two.picture).abs().mean()) < 0.002
    place = one.frame[:3, 3] - frame[:3, 3]
    assert abs(place @ frame[:3, 2]) < 1e-6 and np.linalg.norm(place) < 4
    assert np.allclose(one.frame[:3, 2], frame[:3, 2], atol=1e-6)


def test_the_size_of_pixels_may_be_told_and_dark_tissue_be_inverted(plates):
    """A picture that calls its pixels 1 mm: told their size, it gives the same query, and its pixels go to the same places."""
    picture = plates.pictures(plates.frames[[15]])
    right = query_of(Image(picture, Grid.from_parts((64, 64), plates.pixel)), plates)
    told = query_of(Image(picture, Grid.from_parts((64, 64))), plates, plates.pixel)
    assert torch.allclose(right.picture, told.picture, atol=1e-4)
    pixel = np.array([40.0, 20.0, 0, 1])
    scaled = pixel * np.array([plates.pixel, plates.pixel, 1, 1])
    assert np.allclose(np.linalg.inv(told.frame) @ pixel, np.linalg.inv(right.frame) @ scaled)
    dark = query_of(Image(picture.max() - picture, Grid.from_parts((64, 64), plates.pixel)), plates, invert=True)
    assert float((dark.picture - right.picture).abs().max()) < 0.05


def test_centering_and_its_border():
    pictures = torch.zeros(2, 1, 32, 32)
    pictures[0, 0, 2:6, 20:30] = 1
    moved = centered(pictures)
    assert moved[0].sum() == 40 and moved[0, 0, 14:18, 11:21].sum() == 40 and moved[1].abs().sum() == 0


def test_information_is_that_of_equal_and_of_unrelated_values():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 9, (4000,), generator=generator)
    found = information(rows, torch.stack([rows, 8 - rows, torch.randint(0, 9, (4000,), generator=generator)]))
    assert found[:2] == pytest.approx([1, 1], abs=1e-4) and found[2] < 0.03


def test_the_embedding_lies_on_the_sphere_and_sees_no_gain():
    torch.manual_seed(0)
    network, pictures = PlateEmbedding(64), torch.rand(3, 1, 64, 64)
    place = network(pictures)
    assert place.shape == (3, 64) and torch.allclose(place.norm(dim=1), torch.ones(3), atol=1e-5)
    assert torch.allclose(network(7 * pictures + 2), place, atol=1e-4) and torch.allclose(network(pictures[1:2]), place[1:2], atol=1e-4)
    with pytest.raises(ValueError, match="multiple of 32"):
        PlateEmbedding(50)


@pytest.mark.parametrize("kind", LOSSES)
def test_losses_fall_towards_an_ordered_space(kind):
    numbers = torch.arange(6.0)
    loss = MetricLoss(kind, 0.5, 2.0)
    good = 2 * torch.ones(6, 6) - 2 * torch.eye(6)
    bad = torch.full((6, 6), 0.6).fill_diagonal_(0.5 if kind == "semi-hard" else 0.9)
    if kind == "softmax":  # its least value is the entropy of the wanted shares, where the distances grow with the plates
        good = 0.2**0.5 * (numbers[:, None] - numbers).abs()
        assert float(loss((good, numbers)).mean()) < min(float(loss((d, numbers)).mean()) for d in (0.9 * good, 1.1 * good, bad))
    else:
        assert float(loss((good, numbers)).sum()) == pytest.approx(0) and (loss((bad, numbers)) > 0).all()
    apart = bad.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda d: loss((d, numbers)), (apart,))


def test_slices_come_again_from_the_same_seed_and_differ(plates):
    numbers = np.arange(0, plates.count, 4)
    one, two, other = (slices_of(plates, numbers, PlateTraining(), torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert one.shape == (len(numbers), 1, 64, 64) and 0 <= float(one.min()) and float(one.max()) <= 1


def test_training_ranks_slices_that_it_has_not_seen(plates, network):
    untrained = PlateEmbedding(64).eval()
    before, after = (judged(each, plates, QUICK, 5) for each in (untrained, network))
    assert after["mean_rank_error"] < 0.6 * before["mean_rank_error"]
    assert torch.equal(network.places, embedded(network, centered(plates.pictures(plates.frames)))) and 0 < float(network.usual) < 2
    assert [rank_of(row, k) for k, row in enumerate(distances(network.places, network.places).numpy())] == [0] * plates.count


def test_the_pose_of_an_oblique_plane_is_found(plates):
    """From a plate two beside it: the tilt within 2 degrees, without a search it is 7.8 off, and the place within a plate."""
    truth = frames_of(plates.frames[[16]], np.array([[0, 0, 0, 6.0, -5.0, 4.0]]))[0]
    flat = Image(plates.pictures(truth[None]), Grid.from_parts((64, 64), plates.pixel))
    pose = refine(query_of(flat, plates), plates, [14], Silent())[0]
    angle = np.rad2deg(np.arccos(np.clip(pose.frame[:3, 2] @ truth[:3, 2], -1, 1)))
    assert angle < 2 and abs((pose.frame[:3, 3] - truth[:3, 3]) @ truth[:3, 2]) < plates.spacing and pose.start == 14
    assert np.allclose(pose.frame[:3, :3].T @ pose.frame[:3, :3], np.eye(3), atol=1e-6) and pose.scale == pytest.approx((1, 1), abs=0.08)


def test_a_torn_slice_is_laid_over_its_plate(plates):
    """Two fifths are gone, so the center of what is left is elsewhere, and it is turned by 10 degrees: the shift that brings it back, to two pixels."""
    frame = plates.frames[[16]]
    lattice = Grid.from_parts((64, 64), plates.pixel, (-31.5 * plates.pixel,) * 2)
    whole = plates.pictures(frames_of(frame, np.array([[0, 0, 0, 0, 0, 10.0]])))
    torn = whole * (torch.arange(64) < 31.5)
    query = query_of(Image(torn, lattice), plates)
    away = query.frame[:2, 3]
    assert np.linalg.norm(away) > 4 * plates.pixel
    fit, numbers = Agreement.of(query, plates.coarser, 2.2).laid_over(plates.frames, (-10.0, 0.0, 10.0))
    angle = np.deg2rad(10)
    there = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ away
    assert abs(int(fit.argmax()) - 16) <= 1 and float(numbers[16, 5]) == 10
    assert np.abs(numbers[16, :2].numpy() - there).max() < 2 * plates.pixel


def test_the_slope_of_the_agreement_is_its_own(plates):
    """Central differences: in what a plane shows, and along a direction in the numbers of a tilted plane, where slopes between voxels are means."""
    truth = frames_of(plates.frames[[16]], np.array([[0, 0, 0, 4.0, -3.0, 2.0]]))
    query = query_of(Image(plates.pictures(truth), Grid.from_parts((64, 64), plates.pixel)), plates)
    agreement, generator = Agreement.of(query, plates, 2.2), torch.Generator().manual_seed(0)
    numbers = torch.tensor([[0.3, -0.2, 0.1, 0.5, -0.4, 0.3, 0.02, -0.03]])
    seen, _ = agreement.seen(plates.frames[[16]], numbers)
    by_value, noise = agreement.correlation(seen)[1], 0.01 * torch.randn(seen.shape, generator=generator)
    ahead, behind = (float(agreement.correlation(seen + step * noise)[0]) for step in (0.1, -0.1))
    assert float((by_value * noise).sum()) == pytest.approx((ahead - behind) / 0.2, rel=0.05)
    slope, steps = agreement.rise(plates.frames[[16]], numbers)[1][0], torch.diag(torch.tensor([1, 1, 1, 3, 3, 3, 0.05, 0.05]))
    rises = [float(agreement.rise(plates.frames[[16]], numbers + step)[0] - agreement.rise(plates.frames[[16]], numbers - step)[0]) / 2 for step in 0.2 * steps]
    wanted = torch.tensor(rises) / 0.2
    assert float(torch.nn.functional.cosine_similarity(steps @ slope, wanted, dim=0)) > 0.95


def test_no_step_makes_a_plane_worse(plates):
    truth = frames_of(plates.frames[[16]], np.array([[0, 0, 0, 4.0, -3.0, 2.0]]))
    agreement = Agreement.of(query_of(Image(plates.pictures(truth), Grid.from_parts((64, 64), plates.pixel)), plates), plates, 1.5)
    frames, numbers, scores = plates.frames[[12, 16, 20]], torch.zeros(3, 8), torch.full((3,), -1.0)
    for _ in range(4):
        before = scores
        numbers, scores = improved(agreement, frames, numbers, 2, Silent())
        assert bool((scores >= before - 1e-6).all())
    assert float(scores[1]) > 0.95


def test_plates_are_ranked_by_the_planes():
    poses = [Pose(np.eye(4), (1.0, 1.0), 0.0, plate, plate, score) for plate, score in ((20, 0.50), (7, 0.47), (30, 0.2))]
    costs = costs_of(poses, 40)
    assert list(order(costs)[:5]) == [20, 19, 21, 18, 22] and 5 <= rank_of(costs, 7) <= 7 < rank_of(costs, 30)
    assert list(spread_starts([9, 10, 2, 12, 6, 15, 20], 4, 4)) == [9, 2, 15, 20]


def test_a_cancelled_search_ends_at_once(plates, network):
    monitor = Monitor()
    monitor.cancel()
    made = section(head(), AXES["coronal"], float(plates.positions[18]), np.random.default_rng(0), "s")
    with pytest.raises(Cancelled):
        identify(network, plates, query_of(made.image, plates), Runtime("cpu", monitor=monitor))
    with pytest.raises(Cancelled):
        train_plates(plates, QUICK, Runtime("cpu", monitor=monitor))


def test_what_cannot_be_used_is_said(plates):
    volume = head()
    flat = Image(torch.rand(1, 1, 40, 40), Grid.from_parts((40, 40)))
    for call, words in [
        (lambda: plates_of(volume, "oblique"), "axis 'oblique' was given"),
        (lambda: plates_of(flat, "coronal"), "a volume of at least 8"),
        (lambda: plates_of(Image(torch.ones_like(volume.data), volume.grid), "coronal"), "one value everywhere"),
        (lambda: query_of(Image(torch.zeros(1, 1, 40, 40), flat.grid), plates), "one value everywhere"),
        (lambda: query_of(volume, plates), "is no slice"),
        (lambda: query_of(flat, plates, 0.02), r"pixels in mm \(--pixel\)"),
        (lambda: query_of(flat, plates, -1.0), "a positive number is needed"),
        (lambda: query_of(volume.at(Grid((1, 44, 36), volume.grid.affine)), plates), "is axial by its header"),
        (lambda: PlateTraining(loss="quartets"), "'quartets'"),
    ]:
        with pytest.raises(InputError, match=words):
            call()


# ------------------------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """(folder of the atlas, section, status of the command) after the first query."""
    from DeepRegistrationLib.__main__ import main

    folder = tmp_path_factory.mktemp("identify")
    volume = head()
    write_image(volume, folder / "atlas.nii.gz")
    made = section(volume, AXES["coronal"], float(volume.grid.centre[1]) + 4, np.random.default_rng(4), "s", partial=False, spoil=False)
    write_image(made.image, folder / "slice.mha")
    status = main(["atlas", "identify", "--atlas", str(folder), "--slice", str(folder / "slice.mha"), "--out", str(folder / "out"), "--quiet",
                   "--device", "cpu", "--threads", "1", "--set", "steps=40", "--set", "batch=16"])
    return folder, made, status


def test_what_a_query_leaves(asked):
    folder, made, status = asked
    assert status == 0
    record = json.loads((folder / "out" / "result.json").read_text("utf-8"))
    assert set(record["files"]) == {path.name for path in (folder / "out").iterdir()} == {
        "ranks.csv", "top.png", "plane.tfm", "slice.nii.gz", "plane.nii.gz", "result.json"}
    with open(folder / "out" / "ranks.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    costs = [float(row["cost"]) for row in rows]
    assert len(rows) == record["plates"] and costs == sorted(costs)
    assert [row["plate"] for row in rows[:5]] == [str(row["plate"]) for row in record["top"]]
    assert abs(record["plane"]["position_mm"] - made.position) < 3
    card = weights.read_card(folder / "atlas_plates_coronal.json")
    assert card.network == "PlateEmbedding" and "steps 40" in card.training and record["weights"]["trained_now"]


def test_the_transform_leads_from_the_slice_into_the_atlas(asked):
    """What the atlas has where plane.tfm puts the slice's pixels is what the slice shows; and so are the two volumes."""
    folder, made, _ = asked
    atlas, there = read_image(folder / "atlas.nii.gz"), read_transform(folder / "out" / "plane.tfm")
    matrix = there.numpy()
    assert np.allclose(matrix[:3, :3].T @ matrix[:3, :3], np.eye(3), atol=1e-6) and np.linalg.det(matrix[:3, :3]) == pytest.approx(1)
    lattice = np.eye(4)
    lattice[:2, :2], lattice[:2, 3] = made.image.grid.matrix, made.image.grid.origin
    seen = atlas.at(Grid((1, *made.image.grid.shape), matrix @ lattice)).data.flatten()
    assert float(torch.corrcoef(torch.stack([seen, made.image.data.flatten()]))[0, 1]) > 0.9
    one, two = (read_image(folder / "out" / f"{name}.nii.gz") for name in ("slice", "plane"))
    assert one.grid.same_as(two.grid) and float(torch.corrcoef(torch.stack([one.data.flatten(), two.data.flatten()]))[0, 1]) > 0.9


def test_the_network_is_used_again_and_for_no_other_atlas(asked, cli, tmp_path):
    folder, _, _ = asked
    command = ("atlas", "identify", "--slice", folder / "slice.mha", "--out", tmp_path / "out", "--device", "cpu", "--threads", 1, "--top", 2)
    answer = cli(*command, "--atlas", folder / "atlas.nii.gz")
    record = json.loads((tmp_path / "out" / "result.json").read_text("utf-8"))
    assert answer.status == 0 and not record["weights"]["trained_now"] and len(record["top"]) == 2 and "plane: at plate" in answer.out
    other = head()
    write_image(Image(other.data * 2 + 1, other.grid), tmp_path / "other.nii.gz")
    kept = folder / "atlas_plates_coronal.safetensors"
    assert "not on the coronal plates" in cli(*command, "--atlas", tmp_path / "other.nii.gz", "--weights", kept).sentence()
    assert "not on the axial plates" in cli(*command, "--atlas", folder, "--axis", "axial", "--weights", kept).sentence()


@pytest.mark.parametrize("change, words", [({"--atlas": "nowhere"}, "is not there"), ({"--slice": "none.png"}, "none.png"),
                                           ({"--pixel": "0.001"}, "--pixel"), ({"--set": "stepz=3"}, "did you mean 'steps'")])
def test_refused_input_leaves_nothing(asked, cli, tmp_path, change, words):
    folder, _, _ = asked
    given = {"--atlas": folder, "--slice": folder / "slice.mha", "--out": tmp_path / "out", **change}
    assert words in cli("atlas", "identify", "--quiet", *(part for pair in given.items() for part in pair)).sentence()
    assert not (tmp_path / "out").exists()


def test_a_picture_that_does_not_say_its_size_is_not_taken_for_one_of_1_mm(asked, cli, tmp_path):
    folder, made, _ = asked
    pixel = made.image.grid.spacing[0]
    shown = sitk.GetImageFromArray((made.image.data[0, 0] / made.image.data.max() * 255).numpy().astype(np.uint8))
    for name, spacing in (("unsaid.png", 1.0), ("screen.jpg", 25.4 / 72)):
        shown.SetSpacing((spacing, spacing))
        sitk.WriteImage(shown, str(tmp_path / name))
        command = ("atlas", "identify", "--atlas", folder, "--slice", tmp_path / name, "--out", tmp_path / "out", "--device", "cpu", "--threads", 1)
        assert "does not say how large its pixels are" in cli(*command).sentence() and not (tmp_path / "out").exists()
    answer = cli(*command, "--pixel", pixel)
    assert answer.status == 0 and f"of pixels of {pixel:.4g} mm" in answer.out
    gray = json.loads((tmp_path / "out" / "result.json").read_text("utf-8"))["plane"]["position_mm"]
    stain = sitk.Compose(shown, sitk.Cast(shown * 0.4, sitk.sitkUInt8), sitk.Cast(shown * 0.7, sitk.sitkUInt8))
    sitk.WriteImage(stain, str(tmp_path / "stain.png"))
    assert cli(*command[:5], tmp_path / "stain.png", *command[6:], "--pixel", pixel, "--quiet").status == 0, "of colors the luminance"
    assert json.loads((tmp_path / "out" / "result.json").read_text("utf-8"))["plane"]["position_mm"] == pytest.approx(gray, abs=1.5)
    shown.SetSpacing((pixel, pixel))
    sitk.WriteImage(shown, str(tmp_path / "microscope.tif"))
    assert not is_unsized(tmp_path / "microscope.tif", read_slice(tmp_path / "microscope.tif").grid)


def test_a_slice_of_quite_another_size_is_remarked_on():
    assert doubt_of_size((0.95, 1.12), 0.02) == "" and "0.75 times its size, as if its pixels were of 0.015 mm" in doubt_of_size((0.7, 0.8), 0.02)


def test_show_cite_and_list_know_it(cli):
    shown = cli("show", "slice-identification").out
    assert "command    atlas identify" in shown and "missing = 0.45" in shown
    assert "Antanavicius" in cli("cite", "slice-identification").out and "'atlas identify' runs it" in cli("list").out
