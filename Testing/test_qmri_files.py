"""Slices as researchers have them: DICOM without endings, pictures, maps with zeros, several sizes; and the numbers that come out, by SimpleITK."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import truths_hip as hips
from test_qmri import write_dicom

from DeepRegistrationLib.__main__ import main
from DeepRegistrationLib.commands.qmri_bones import on_pixels
from DeepRegistrationLib.engines.slice_maps import region_rows, remarks_on
from DeepRegistrationLib.engines.slice_order import Placement, groups_of_one_size, mirrors_the_set, moves_of
from DeepRegistrationLib.engines.slices import thickness_of
from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image, Labels
from DeepRegistrationLib.io import write_image, write_labels
from DeepRegistrationLib.io.slices import read_slice, slice_files
from DeepRegistrationLib.method import find
from DeepRegistrationLib.methods.qmri import OTHER_SIDE
from DeepRegistrationLib.runtime import Runtime

RUNTIME = Runtime("cpu", threads=1)
AXIS = "8,0,-8,0.76,0.1,-0.64"
"""That of the generated slices, whose first one does not lie where ``placed_about`` begins."""


@lru_cache(maxsize=1)
def known() -> hips.KnownSet:
    hip = hips.Hip(0)
    return hips.known_set(2, 6.0, 3.0, hip=hip, volume=hips.hip_volume(hip, hips.volume_grid(48)), size=44)


@pytest.fixture
def folder(tmp_path):
    """A volume, its labels, and six slices as they are."""
    truth = known()
    write_image(truth.problem.volume, tmp_path / "volume.nii.gz")
    labels = hips.Hip(0).labels(truth.problem.volume.grid.points()).astype(np.int64)
    write_labels(Labels(torch.as_tensor(labels)[None, None], truth.problem.volume.grid), tmp_path / "labels.nii.gz")
    for k, image in enumerate(truth.problem.slices, 1):
        write_image(image, tmp_path / f"T2 Schicht {k} (ü).nii.gz")
    return tmp_path


def paths(folder, pattern: str) -> list[str]:
    return [str(p) for p in sorted(folder.glob(pattern))]


def register(folder, *words, name: str = "out") -> int:
    return main(["qmri", "register", "--volume", str(folder / "volume.nii.gz"), "--set", "tried=400", "--threads", "1", "--out", str(folder / name), *words])


def refused(folder, capsys, *words) -> str:
    """The one sentence with which a request is refused."""
    assert register(folder, *words) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and not (folder / "out").exists(), error
    return error


# -------------------------------------------------------------------------------------------------------------------- DICOM


def without_element(path, tag: bytes) -> None:
    """A DICOM file (implicit little endian) without one element: its tag, four bytes of length, and its value."""
    content = path.read_bytes()
    start = content.index(tag)
    path.write_bytes(content[:start] + content[start + 8 + int.from_bytes(content[start + 4:start + 8], "little"):])


def test_dicom_slices_without_endings_are_as_thick_as_their_headers_say_and_ordered_by_series(tmp_path):
    """Scanners write one series a plane, no endings, and no distance between slices, for which ITK says 1 mm."""
    images = known().problem.slices
    for k, image in enumerate(images):
        path = tmp_path / f"plane {k}.dcm"
        write_dicom(image, path, 1, series=20 - k)
        without_element(path, b"\x18\x00\x88\x00")
        assert sitk.ReadImage(str(path)).GetSpacing()[2] == 1.0, "what this test is about"
        path.rename(tmp_path / f"1.2.840.{k}")
    (tmp_path / "notes.txt").write_text("not DICOM, and longer than the place of the mark " * 4)
    files = slice_files(tmp_path)
    assert [f.name for f in files] == [f"1.2.840.{k}" for k in reversed(range(6))]
    for path, image in zip(files, reversed(images)):
        read = read_slice(path).grid
        assert thickness_of(read) == pytest.approx(3.0) and np.allclose(read.centre, image.grid.centre, atol=1e-3)


# ----------------------------------------------------------------------------------------------------------------- pictures


def pictures(folder) -> None:
    """The slices, their bones and colored copies as PNG, which say neither where they lie nor how large their pixels are."""
    for k, image in enumerate(known().problem.slices, 1):
        gray = np.clip(2.5 * image.data[0, 0, 0].numpy(), 0, 255).astype(np.uint8)
        sitk.WriteImage(sitk.GetImageFromArray(gray), str(folder / f"picture {k}.png"))
        sitk.WriteImage(sitk.GetImageFromArray((gray > 20).astype(np.uint8)), str(folder / f"body {k}.png"))
        sitk.WriteImage(sitk.GetImageFromArray(np.stack([gray, 255 - gray, gray // 2], -1), isVector=True), str(folder / f"color {k}.png"))
        write_image(Image(image.data.movedim(-1, -2)[..., :-2].clone(), Grid.from_parts((1, 44, 42))), folder / f"turned {k}.nii.gz")


def test_pictures_are_asked_for_what_they_do_not_say(folder, capsys):
    pictures(folder)
    png, radial = ["--slices", *paths(folder, "picture*")], ["--radial", "30", "--axis", AXIS]
    assert "picture 1.png is a 2D image, which does not say where it lies in space; place the slices with --radial" in refused(folder, capsys, *png)
    assert "picture 1.png is a picture, which does not say how large its pixels are; give --pixel-size MM" in refused(folder, capsys, *png, *radial)
    assert "'0' is no length" in refused(folder, capsys, *png, *radial, "--pixel-size", "0")
    assert "--pixel-size has 3 lengths" in refused(folder, capsys, *png, *radial, "--pixel-size", "1", "2", "3")
    assert "without --radial" in refused(folder, capsys, "--slices", *paths(folder, "T2*"), "--pixel-size", "2")
    colors = ["--slices", *paths(folder, "color*"), *radial, "--pixel-size", "2"]
    assert "color 1.png is a picture in colors, which are no values of a map" in refused(folder, capsys, *colors)
    maps = [*png, *radial, "--pixel-size", "2", "--maps", "T1:ms", *paths(folder, "turned*")]
    assert "turned 1.nii.gz does not lie on the pixels of picture 1.png" in refused(folder, capsys, *maps)
    flat = ["--slices", *paths(folder, "T2*"), "--labels", str(folder / "body 1.png"), "--set", "tried=100000", "--set", "steps=1000"]
    assert "body 1.png is 2D; give a label map of the volume" in refused(folder, capsys, *flat), "before the search, not after it"


def test_pictures_of_a_stated_pixel_size_are_placed_with_their_masks_and_maps(folder, capsys):
    """Every slice of a set of pictures ends where the truth has it; the slices are there to be put under their transforms."""
    pictures(folder)
    truth, pixel = known(), known().problem.slices[0].grid.spacing[0]
    words = ["--slices", *paths(folder, "picture*"), "--radial", "30", "--axis", AXIS, "--pixel-size", f"{pixel}", "--thickness", "3",
             "--masks", *paths(folder, "body*"), "--maps", "T2:ms", *paths(folder, "T2*"), "--labels", str(folder / "labels.nii.gz"),
             "--set", "angle=60", "--set", "tried=2500"]
    assert register(folder, *words) == 0, capsys.readouterr().err
    record = json.loads((folder / "out" / "result.json").read_text("utf-8"))
    assert record["pixel_size"] == [pixel] and record["radial"] == 30.0 and len(record["axis"]) == 2
    for k, image in enumerate(truth.problem.slices):
        placed = sitk.ReadImage(str(folder / "out" / f"slice{k + 1:02d}.nrrd"))
        transform = sitk.ReadTransform(str(folder / "out" / f"slice{k + 1:02d}.tfm"))
        for pixel_of in ((0, 0, 0), (43, 0, 0), (10, 43, 0)):
            found = transform.TransformPoint(placed.TransformIndexToPhysicalPoint(pixel_of))
            true = truth.each[k] @ image.grid.affine @ np.r_[pixel_of, 1.0]
            assert np.linalg.norm(found - true[:3]) < 1.5, "mm"
    rows = list(csv.DictReader((folder / "out" / "regions.csv").open(encoding="utf-8")))
    assert all(float(r["area_mm2"]) == pytest.approx(int(r["pixels"]) * pixel ** 2, rel=1e-4) for r in rows)


def test_maps_lie_on_the_pixels_of_their_slice_whatever_thickness_their_headers_have():
    image, asked = known().problem.slices[0], SimpleNamespace(radial=None)
    thick = replace(image, grid=Grid.from_parts(image.grid.shape, image.grid.spacing * [1, 1, 4], image.grid.origin, image.grid.direction))
    assert on_pixels(asked, thick, "map.nii.gz", image).grid is image.grid
    with pytest.raises(InputError, match="map.nii.gz does not lie on the pixels of slice 1"):
        on_pixels(asked, replace(image, grid=image.grid.moved(hips.rigid([0.5, 0, 0], np.zeros(3), np.zeros(3)))), "map.nii.gz", image)
    picture = Image(torch.zeros(1, 1, 20, 24), Grid.from_parts((20, 24)), name="picture")
    assert on_pixels(SimpleNamespace(), picture, "strokes.png", picture).grid is picture.grid


# ------------------------------------------------------------------------------------------------------------------ numbers


def test_maps_and_tables_are_what_simpleitk_makes_of_the_transforms(folder):
    """Values in s: every mean from pixel centers through the written transforms, and NaN outside in a file that Slicer reads."""
    for k, image in enumerate(known().problem.slices, 1):
        write_image(replace(image, data=image.data / 1000), folder / f"s{k}.nrrd")
    assert register(folder, "--slices", *paths(folder, "T2*"), "--maps", "T2:s", *paths(folder, "s?.nrrd"), "--labels", str(folder / "labels.nii.gz")) == 0
    labels, marks, values = sitk.ReadImage(str(folder / "labels.nii.gz")), [], []
    for k, path in enumerate(paths(folder, "s?.nrrd"), 1):
        image, transform = sitk.ReadImage(path), sitk.ReadTransform(str(folder / "out" / f"slice{k:02d}.tfm"))
        for index in np.ndindex(*image.GetSize()):
            at = labels.TransformPhysicalPointToIndex(transform.TransformPoint(image.TransformIndexToPhysicalPoint(index)))
            inside = all(0 <= a < n for a, n in zip(at, labels.GetSize()))
            marks.append(labels.GetPixel(*at) if inside else 0)
            values.append(image.GetPixel(*index))
    marks, values = np.array(marks), np.array(values)
    for row in csv.DictReader((folder / "out" / "regions.csv").open(encoding="utf-8")):
        mine = values[marks == int(row["label"])]
        assert abs(len(mine) - int(row["pixels"])) <= 2 and float(row["mean"]) == pytest.approx(mine.mean(), rel=2e-3) and row["unit"] == "s"
    made = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "out" / "map_T2.nrrd")))
    assert 0.02 < np.isfinite(made).mean() < 0.5, "ITK reads NaN of NIfTI files as 0, so the map is there as NRRD as well"
    assert values.min() - 1e-6 <= np.nanmin(made) and np.nanmax(made) <= values.max() + 1e-6 and (folder / "out" / "map_T2.nii.gz").exists()


def test_zeros_that_mean_no_value_are_remarked_on_and_left_out(folder):
    truth = known()
    image = truth.problem.slices[0]
    data = image.data.clone().clamp_min(1.0)
    data[..., :20] = 0
    data[..., 0, -3:] = 65535  # where a fit ended at its limit
    write_image(replace(image, data=data), folder / "zero.nrrd")
    labels = Labels(torch.ones(1, 1, *truth.problem.volume.grid.shape, dtype=torch.int64), truth.problem.volume.grid)
    counted, left_out = (region_rows([read_slice(folder / "zero.nrrd", empty)], [truth.each[0]], labels, "T2", "ms")[0] for empty in (None, [0.0, 65535.0]))
    assert counted["zeros"] > 100 and left_out["zeros"] == 0 and left_out["pixels"] == counted["pixels"] - counted["zeros"] - 3
    assert left_out["mean"] == pytest.approx((counted["mean"] * counted["pixels"] - 3 * 65535) / left_out["pixels"], rel=1e-5)
    (remark,) = remarks_on([counted], "labels", "give --no-value 0")
    assert f"{counted['zeros']} of the {counted['pixels']} pixels of 'T2'" in remark and remark.endswith("give --no-value 0")
    assert not remarks_on([left_out], "labels", "")
    assert "no pixel of the slices lies in a region of labels.nii.gz" in remarks_on([], "labels.nii.gz", "")[0]


def test_a_volume_with_nan_outside_and_slices_of_one_contrast_twice(folder, capsys):
    truth = known()
    data = truth.problem.volume.data.clone()
    data[..., :4] = float("nan")
    write_image(replace(truth.problem.volume, data=data), folder / "volume.nii.gz")
    twice = [*paths(folder, "T2*"), str(folder / "again.nrrd")]
    write_image(truth.problem.slices[3], twice[-1])
    assert "T2 Schicht 4 (ü).nii.gz and again.nrrd lie on the same pixels; give one of them" in refused(folder, capsys, "--slices", *twice)
    assert register(folder, "--slices", *twice[:-1], "--quiet") == 0
    matrix = np.array(json.loads((folder / "out" / "result.json").read_text("utf-8"))["matrix"])
    assert hips.errors(matrix, truth.truth, hips.pixels(truth.problem))[2] < 1.0


def test_only_slices_of_one_size_are_exchanged():
    """A picture put on the plane of another one stays as large and as thick as it is; two of one size that are exchanged are found beside two larger ones."""
    truth = known()
    slices = list(truth.problem.slices)
    for k in (1, 4):
        wide = Grid.from_parts(slices[k].grid.shape, slices[k].grid.spacing * [1.2, 1.2, 2.0], direction=slices[k].grid.direction)
        wide = wide.moved(hips.rigid(slices[k].grid.centre - wide.centre, np.zeros(3), np.zeros(3)))
        slices[k] = replace(slices[k].at(wide), name=f"wide {k}")
    mixed = replace(truth.problem, slices=tuple(slices))
    for move in moves_of(mixed, Placement((1, 0, 2, 3, 4, 5), ((True, False),) * 6, np.eye(4), 0.0)):
        assert np.allclose(move[:3, :3] @ move[:3, :3].T, np.eye(3), atol=1e-9)
    assert groups_of_one_size(slices) == [[0, 2, 3, 5], [1, 4]]
    first, third = (replace(slices[b], grid=slices[a].grid) for a, b in ((0, 2), (2, 0)))
    exchanged = replace(mixed, slices=(first, slices[1], third, *slices[3:]))
    found = find("qmri", {"tried": 1000}).run(exchanged, RUNTIME)
    assert found.plane == (2, 1, 0, 3, 4, 5) and found.registered and not any(any(flip) for flip in found.flips)


def test_the_other_side_of_a_body_is_remarked_on():
    """Each slice mirrored along the axis of the set: the mirror image of the anatomy; across it: half a turn."""
    problem = known().problem
    for flips, other_side in (((False, True), True), ((True, False), False), ((False, False), False)):
        moves = moves_of(problem, Placement(tuple(range(6)), (flips,) * 6, np.eye(4), 0.0))
        assert mirrors_the_set(problem.slices, moves) is other_side, flips
    one = moves_of(problem, Placement(tuple(range(6)), ((False, True), *((False, False),) * 5), np.eye(4), 0.0))
    assert not mirrors_the_set(problem.slices, one)
    volume = problem.volume
    mirrored = replace(volume, data=volume.data.flip(-1))
    found = find("qmri:unordered", {"tried": 1000}).run(replace(problem, volume=mirrored), RUNTIME)
    assert found.registered and found.remarks == (OTHER_SIDE,)
