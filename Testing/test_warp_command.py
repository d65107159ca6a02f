"""warp and evaluate on the command line with the files that people have: series in time, segmentations with names, large labels, named points."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from truths import random_grid

from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image, Labels
from DeepRegistrationLib.io import read_image, read_labels, read_points, write_image, write_labels, write_points, write_transform
from DeepRegistrationLib.points import Points
from DeepRegistrationLib.transforms import Affine

GRID = random_grid(6, 3, (8, 9, 10), np.array([1.5, 2.0, 2.5]))
SHIFT = Affine.translation([2.0, -1.0, 1.5])


@pytest.fixture
def warp(cli, tmp_path):
    """``warp(input, out, *options)`` by ``SHIFT`` onto an image on ``GRID``; both names are of files in the test's folder."""
    write_transform(SHIFT, tmp_path / "shift.tfm")
    write_image(Image(torch.rand(1, 1, *GRID.shape, generator=torch.Generator().manual_seed(0)), GRID), tmp_path / "reference.nrrd")

    def call(name, out, *options):
        return cli("warp", "--transform", tmp_path / "shift.tfm", "--reference", tmp_path / "reference.nrrd", "--input", tmp_path / name,
                   "--out", tmp_path / out, *options)

    return call


@pytest.mark.parametrize("kind", [".nii.gz", ".nrrd", ".mha"])
def test_a_series_in_time_stays_one(warp, tmp_path, kind):
    frames = torch.rand(1, 4, *GRID.shape, generator=torch.Generator().manual_seed(1))
    write_image(Image(frames, GRID), tmp_path / f"series{kind}", time_step=2.5)
    assert warp(f"series{kind}", f"moved{kind}").status == 0
    header = sitk.ReadImage(str(tmp_path / f"moved{kind}"))
    assert header.GetSize() == (10, 9, 8, 4) and header.GetNumberOfComponentsPerPixel() == 1 and header.GetSpacing()[3] == pytest.approx(2.5)
    write_image(Image(frames[:, 2:3], GRID), tmp_path / f"third{kind}")
    warp(f"third{kind}", f"third moved{kind}")
    point, alone = read_image(f"{tmp_path / f'moved{kind}'}#2"), read_image(tmp_path / f"third moved{kind}")
    assert point.grid.same_as(GRID, 1e-2) and torch.equal(point.data, alone.data)


def test_segments_keep_their_names_and_large_numbers(warp, tmp_path):
    """614454277 is a label of the Allen mouse atlas; single precision does not hold it."""
    data = torch.zeros(1, 1, *GRID.shape, dtype=torch.int32)
    data[..., 2:5, 2:6, 2:6], data[..., 5:7, 3:6, 3:7] = 614454277, 3
    names = ((3, "Milz größe"), (614454277, "SSp-ul4"))
    write_labels(Labels(data, GRID, names=names), tmp_path / "a.seg.nrrd")
    assert warp("a.seg.nrrd", "b.seg.nrrd", "--labels").status == 0
    back = read_labels(tmp_path / "b.seg.nrrd")
    assert back.names == names and back.values() == [3, 614454277]


def test_overlapping_segments_are_remarked_on(warp, tmp_path):
    layers = np.zeros((*GRID.shape, 2), np.uint8)
    layers[2:6, 2:6, 2:8, 0] = 1
    for name, low in (("overlap", 5), ("apart", 6)):
        layers[..., 1] = 0
        layers[low:8, 2:6, 2:8, 1] = 1
        image = sitk.GetImageFromArray(layers, isVector=True)
        image.CopyInformation(sitk.ReadImage(str(tmp_path / "reference.nrrd")))
        for k, segment in enumerate(("organ", "tumor")):
            for key, value in (("ID", f"S{k}"), ("Name", segment), ("LabelValue", "1"), ("Layer", str(k))):
                image.SetMetaData(f"Segment{k}_{key}", value)
        sitk.WriteImage(image, str(tmp_path / f"{name}.seg.nrrd"))
        answer = warp(f"{name}.seg.nrrd", "out.seg.nrrd", "--labels")
        assert answer.status == 0 and ("overlap in 24 voxels" in answer.err) == (name == "overlap")
        assert read_labels(tmp_path / "out.seg.nrrd").names == ((1, "organ"), (2, "tumor"))


@pytest.mark.parametrize("name, options, words", [
    ("a.seg.nrrd", (), "add --labels"),
    ("p.csv", (), "add --points"),
    ("a.seg.nrrd", ("--labels", "--fill", "1"), "--interpolation and --fill are for images"),
    ("p.csv", ("--points", "--interpolation", "cubic"), "--interpolation and --fill are for images"),
])
def test_what_is_carried_is_said(warp, tmp_path, name, options, words):
    write_labels(Labels(torch.ones(1, 1, *GRID.shape, dtype=torch.int32), GRID), tmp_path / "a.seg.nrrd")
    write_points(Points(torch.zeros(1, 1, 3)), tmp_path / "p.csv")
    assert words in warp(name, "out.nrrd", *options).sentence() and not (tmp_path / "out.nrrd").exists()


@pytest.mark.parametrize("fill", ["-1000", "nan", "0"])
def test_the_value_outside_and_the_interpolation(warp, tmp_path, fill):
    image = Image(100 + torch.rand(1, 1, *GRID.shape, generator=torch.Generator().manual_seed(1)), GRID)
    write_image(image, tmp_path / "ct.nrrd")
    made = {}
    for mode, itk in (("linear", sitk.sitkLinear), ("nearest", sitk.sitkNearestNeighbor)):
        assert warp("ct.nrrd", f"{mode}.nrrd", "--fill", fill, "--interpolation", mode).status == 0
        made[mode] = read_image(tmp_path / f"{mode}.nrrd").data[0, 0].numpy()
        expected = sitk.Resample(*(sitk.ReadImage(str(tmp_path / n)) for n in ("ct.nrrd", "reference.nrrd")),
                                 sitk.ReadTransform(str(tmp_path / "shift.tfm")), itk, float(fill))
        np.testing.assert_allclose(made[mode], sitk.GetArrayFromImage(expected), atol=1e-3)
    outside = np.isnan(made["linear"]) if fill == "nan" else made["linear"] == float(fill)
    assert 0.05 < outside.mean() < 0.95 and not np.array_equal(made["linear"], made["nearest"], equal_nan=True)


def test_nothing_in_the_field_of_view_is_said_with_a_fill_too(warp, cli, tmp_path):
    far = Image(torch.rand(1, 1, *GRID.shape), GRID.moved(Affine.translation([500.0, 0.0, 0.0]).numpy()))
    write_image(far, tmp_path / "far.nrrd")
    for options in ((), ("--fill", "-1000"), ("--fill", "nan")):
        assert "nothing of" in warp("far.nrrd", "out.nrrd", *options).sentence() and not (tmp_path / "out.nrrd").exists()


def test_segments_are_compared_by_name(cli, tmp_path):
    """Two people draw the same organs in another order, so their numbers differ."""
    grid, data = Grid.from_parts((8, 9, 10)), torch.zeros(1, 1, 8, 9, 10, dtype=torch.int32)
    data[..., 1:4, 2:7, 2:8], data[..., 5:7, 2:7, 2:8] = 1, 2
    other = torch.where(data == 0, 0, 3 - data)
    write_image(Image(data.float(), grid), tmp_path / "i.nrrd")
    write_transform(Affine.identity(3), tmp_path / "t.tfm")
    write_labels(Labels(data, grid, names=((1, "liver"), (2, "spleen"))), tmp_path / "f.seg.nrrd")
    call = ("evaluate", "--transform", tmp_path / "t.tfm", "--fixed", tmp_path / "i.nrrd", "--moving", tmp_path / "i.nrrd",
            "--fixed-labels", tmp_path / "f.seg.nrrd", "--moving-labels", tmp_path / "m.seg.nrrd")
    for names, expected in ((((1, "spleen"), (2, "liver")), {"1": 1.0, "2": 1.0}), (((2, "liver"), (1, "colon")), {"1": 1.0})):
        write_labels(Labels(other, grid, names=names), tmp_path / "m.seg.nrrd")
        assert {value: each["after"] for value, each in cli(*call).json()["dice"]["labels"].items()} == expected
    write_labels(Labels(other, grid, names=((1, "Milz"), (2, "Leber"))), tmp_path / "m.seg.nrrd")
    assert "no structure of the same name (liver, spleen and Leber, Milz)" in cli(*call).sentence()


def test_points_are_paired_by_name_where_their_order_differs(cli, tmp_path):
    grid = Grid.from_parts((8, 9, 10))
    write_image(Image(torch.rand(1, 1, 8, 9, 10), grid), tmp_path / "i.nrrd")
    write_transform(Affine.identity(3), tmp_path / "t.tfm")
    positions = torch.tensor([[[1.0, 2.0, 3.0], [5.0, 1.0, 2.0], [4.0, 6.0, 5.0]]])
    write_points(Points(positions, names=("nasion", "left", "right")), tmp_path / "f.csv")
    call = ("evaluate", "--transform", tmp_path / "t.tfm", "--fixed", tmp_path / "i.nrrd", "--moving", tmp_path / "i.nrrd",
            "--fixed-points", tmp_path / "f.csv", "--moving-points", tmp_path / "m.mrk.json")
    for names, told in ((("right", "nasion", "left"), True), (("a", "b", "c"), False), (("right", "right", "left"), False)):
        write_points(Points(positions[:, [2, 0, 1]], names=names), tmp_path / "m.mrk.json")
        answer = cli(*call)
        assert (answer.json()["tre"]["max"]["before"] == 0) == told and ("paired by name" in answer.err) == told
    assert json.loads(answer.out)["tre"]["points"] == {"before": 3, "after": 3}
    assert read_points(tmp_path / "m.mrk.json").names == ("right", "right", "left")


def test_a_header_with_two_placements_is_remarked_on(cli, tmp_path):
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(np.random.default_rng(0).random((8, 9, 10), np.float32), np.eye(4))
    image.set_qform(np.eye(4), 1)
    for name, shift in (("same", 0.0), ("other", 20.0)):
        image.set_sform(np.array([[1, 0, 0, shift], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), 4)
        nibabel.save(image, tmp_path / f"{name}.nii.gz")
    write_transform(Affine.identity(3), tmp_path / "t.tfm")
    pairs = {"evaluate": ("--fixed", "--moving"), "warp": ("--reference", "--input")}
    for command, (fixed, moving) in pairs.items():
        for name in ("same", "other"):
            answer = cli(command, "--transform", tmp_path / "t.tfm", fixed, tmp_path / "same.nii.gz", moving, tmp_path / f"{name}.nii.gz",
                         "--out", tmp_path / "out.nrrd")
            assert answer.status == 0 and ("other.nii.gz places it twice, up to 20 mm apart; its qform is taken" in answer.err) == (name == "other")


def test_several_transforms_are_one_map(cli, tmp_path):
    """Their order is that of antsApplyTransforms: fixed points go through the field first, then through the affine."""
    from DeepRegistrationLib.transforms import Displacement

    generator = torch.Generator().manual_seed(3)
    field = Displacement(2 * torch.rand(1, 3, *GRID.shape, generator=generator), GRID)
    matrix = np.array([[1.1, 0.1, 0.0, 0.0], [0.0, 0.9, 0.0, 0.0], [0.1, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    matrix[:3, 3] = GRID.centre - matrix[:3, :3] @ GRID.centre + [1.0, -1.0, 0.5]
    affine = Affine(torch.as_tensor(matrix))
    image = Image(torch.rand(1, 1, *GRID.shape, generator=generator), GRID)
    write_image(image, tmp_path / "i.nrrd")
    write_transform(field, tmp_path / "1Warp.nii.gz")
    write_transform(affine, tmp_path / "0GenericAffine.mat")
    write_transform(affine @ field, tmp_path / "whole.h5")
    made = {}
    for name, files in (("chain", ("1Warp.nii.gz", "0GenericAffine.mat")), ("whole", ("whole.h5",)), ("turned", ("0GenericAffine.mat", "1Warp.nii.gz"))):
        chain = ("--transform", *(tmp_path / file for file in files))
        assert cli("warp", *chain, "--reference", tmp_path / "i.nrrd", "--input", tmp_path / "i.nrrd", "--out", tmp_path / f"{name}.nrrd").status == 0
        scores = cli("evaluate", *chain, "--fixed", tmp_path / "i.nrrd", "--moving", tmp_path / "i.nrrd").json()
        made[name] = read_image(tmp_path / f"{name}.nrrd").data, scores["similarity"]["ncc"]["after"]
    assert torch.allclose(made["chain"][0], made["whole"][0], atol=1e-3) and made["chain"][1] == pytest.approx(made["whole"][1], abs=1e-3)
    assert not torch.allclose(made["chain"][0], made["turned"][0], atol=1e-1)


def test_a_warp_of_fsl_is_named(warp, cli, tmp_path):
    write_image(Image(torch.zeros(1, 3, *GRID.shape), GRID), tmp_path / "warp.nii.gz", time_step=1.0)
    answer = cli("warp", "--transform", tmp_path / "warp.nii.gz", "--reference", tmp_path / "reference.nrrd", "--input", tmp_path / "reference.nrrd",
                 "--out", tmp_path / "out.nrrd")
    assert "is 4D, as the warps of FSL are" in answer.sentence()


@pytest.mark.parametrize("shift, told", [(3.0, False), (15.0, True)])
def test_images_that_a_search_moved_apart_are_remarked_on(cli, tmp_path, shift, told):
    """The correlation over what is left of the common field of view does not show it."""
    from DeepRegistrationLib.commands.batch import line

    grid = Grid.from_parts((20, 16, 16))
    write_image(Image(torch.rand(1, 1, *grid.shape, generator=torch.Generator().manual_seed(0)), grid), tmp_path / "i.nrrd")
    write_transform(Affine.translation([0.0, 0.0, shift]), tmp_path / "start.tfm")
    answer = cli("register", "--fixed", tmp_path / "i.nrrd", "--moving", tmp_path / "i.nrrd", "--method", "affine", "--set", "freedom=none",
                 "--init", tmp_path / "start.tfm", "--out", tmp_path / "out")
    record = json.loads((tmp_path / "out" / "result.json").read_text("utf-8"))
    assert answer.status == 0 and record["overlap"] == {"before": 1.0, "after": pytest.approx(1 - shift / 20, abs=0.03)}
    words = "25% of the fixed image lie in the moving one, 100% did before"
    assert (words in answer.err) == told and (words in line("pair", "done", "", tmp_path / "out")["remark"]) == told


@pytest.mark.parametrize("mode, itk", [("linear", sitk.sitkLinear), ("nearest", sitk.sitkNearestNeighbor)])
def test_voxels_without_a_number_stay_so_and_do_not_spread(warp, tmp_path, mode, itk):
    """Where every neighbor has a number the values are SimpleITK's; ITK would lose a whole voxel around every hole."""
    data = 100 + torch.rand(1, 1, *GRID.shape, generator=torch.Generator().manual_seed(1))
    data[..., 3:5, 3:6, 4:8] = torch.nan
    data[..., 6, 2, 2] = torch.inf
    write_image(Image(data, GRID), tmp_path / "map.nrrd")
    assert warp("map.nrrd", "out.nrrd", "--interpolation", mode, "--fill", "-7").status == 0
    made = read_image(tmp_path / "out.nrrd").data[0, 0].numpy()
    image = sitk.ReadImage(str(tmp_path / "map.nrrd"))
    there = sitk.Cast(image == image, sitk.sitkFloat32) * sitk.Cast(sitk.Abs(image) < 1e6, sitk.sitkFloat32)
    onto = sitk.ReadImage(str(tmp_path / "reference.nrrd")), sitk.ReadTransform(str(tmp_path / "shift.tfm"))
    values = sitk.GetArrayFromImage(sitk.Resample(image, *onto, itk, -7.0))
    weight = sitk.GetArrayFromImage(sitk.Resample(there, *onto, itk, 1.0))
    near = sitk.GetArrayFromImage(sitk.Resample(there, *onto, sitk.sitkNearestNeighbor, 1.0))
    whole = weight > 0.9999
    np.testing.assert_allclose(made[whole], values[whole], atol=1e-3)
    assert np.array_equal(np.isnan(made), near < 0.5) and 10 < np.isnan(made).sum() < 60
    assert mode == "nearest" or (made[~whole & ~np.isnan(made)] > 99.9).sum() > 20, "next to a hole the others are read, not less than them"


def test_cubic_interpolation_needs_numbers_everywhere(warp, tmp_path):
    data = torch.rand(1, 1, *GRID.shape)
    data[..., 3, 3, 3] = torch.nan
    write_image(Image(data, GRID), tmp_path / "map.nrrd")
    assert "1 voxels hold no number" in warp("map.nrrd", "out.nrrd", "--interpolation", "cubic").sentence()


@pytest.mark.parametrize("low, expected", [(-1000.0, -1000.0), (0.0, 0.0), (-3.0, 0.0)])
def test_outside_of_a_ct_is_air_as_register_has_it(cli, warp, tmp_path, low, expected):
    """A map with values below 0 inside, but not at its border, has 0 outside, as an MR image has."""
    data = torch.full((1, 1, *GRID.shape), low if low != -3.0 else 0.0)
    data[..., 2:6, 2:7, 2:8] = 40 + torch.rand(1, 1, 4, 5, 6, generator=torch.Generator().manual_seed(1))
    data[..., 3, 3, 3] = min(low, -3.0)
    write_image(Image(data, GRID), tmp_path / "ct.nrrd")
    assert warp("ct.nrrd", "out.nrrd").status == 0
    call = ("register", "--fixed", tmp_path / "reference.nrrd", "--moving", tmp_path / "ct.nrrd", "--method", "affine", "--set", "freedom=none",
            "--init", tmp_path / "shift.tfm", "--quiet", "--out")
    assert cli(*call, tmp_path / "r").status == 0 and cli(*call, tmp_path / "filled", "--fill", "-7").status == 0
    by_warp, by_register, filled = (read_image(tmp_path / name).data for name in ("out.nrrd", "r/warped.nii.gz", "filled/warped.nii.gz"))
    assert torch.allclose(by_warp, by_register, atol=1e-3) and float(by_register[..., -1, 0, 0]) == expected
    outside = filled == -7
    assert 0.05 < float(outside.float().mean()) < 0.6 and bool((by_register[outside] == expected).all())
    assert torch.equal(filled[~outside], by_register[~outside])


def test_colors_stay_colors_and_label_maps_are_asked_about(warp, tmp_path):
    shape, generator = GRID.shape, torch.Generator().manual_seed(1)
    write_image(Image((255 * torch.rand(1, 3, *shape, generator=generator)).to(torch.uint8), GRID), tmp_path / "colors.nrrd")
    answer = warp("colors.nrrd", "out.nrrd")
    assert answer.status == 0 and "remark" not in answer.err
    made, shift = sitk.ReadImage(str(tmp_path / "out.nrrd")), sitk.ReadTransform(str(tmp_path / "shift.tfm"))
    assert made.GetPixelIDTypeAsString() == "vector of 8-bit unsigned integer"
    expected = sitk.Resample(*(sitk.ReadImage(str(tmp_path / name)) for name in ("colors.nrrd", "reference.nrrd")), shift)
    assert np.abs(sitk.GetArrayFromImage(made).astype(int) - sitk.GetArrayFromImage(expected)).max() <= 1
    write_image(Image(torch.randint(0, 9, (1, 1, *shape), generator=generator).float(), GRID), tmp_path / "labels.nrrd")
    write_image(Image(torch.rand(1, 1, *shape, generator=generator), GRID), tmp_path / "gray.nrrd")
    for name, options, told in (("labels.nrrd", (), True), ("labels.nrrd", ("--labels",), False), ("labels.nrrd", ("--interpolation", "nearest"), False),
                                ("gray.nrrd", ("--fill", "-1e3"), False)):
        assert ("add --labels" in warp(name, "out.nrrd", *options).err) == told
    assert float(read_image(tmp_path / "out.nrrd").data.min()) == -1000
