"""What a first-time user gives to 'atlas build' and 'atlas apply': folders as they come, files that were replaced, subjects unlike the cohort."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import cohorts
import numpy as np
import pytest
import torch
from test_atlas_command import QUICK

from DeepRegistrationLib.commands import jobs_atlas
from DeepRegistrationLib.commands.atlas_cohort import read_group, unique
from DeepRegistrationLib.engines.cohort_outcome import note_other_labels
from DeepRegistrationLib.errors import Cancelled, InputError
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image, Labels
from DeepRegistrationLib.io import read_image, read_labels, write_image
from DeepRegistrationLib.runtime import Monitor

APPLY = ("--device", "cpu", "--threads", 1)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Four images s00, ... with label maps."""
    return cohorts.write(tmp_path_factory.mktemp("files"), 4)


@pytest.fixture(scope="module")
def atlas(files, tmp_path_factory):
    """The folder of their atlas."""
    from DeepRegistrationLib.__main__ import main

    out = tmp_path_factory.mktemp("built") / "atlas"
    assert main([str(part) for part in ("atlas", "build", "--cohort", files, "--out", out, *QUICK, "--quiet")]) == 0
    return out


def placed(folder, files, **names):
    """Copies of ``files`` in ``folder``: place below it -> name of the file."""
    for place, name in names.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(files / f"{name}.nii.gz", folder / f"{place}.nii.gz")
    return folder


def seen(group) -> dict:
    """Name -> name of its label map, or why it is set aside."""
    return {s.name: s.unusable[:40] or (s.labels and s.labels.name) for s in group.subjects}


def test_a_label_map_in_the_folder_of_a_subject_belongs_to_its_image(files, tmp_path):
    folder = placed(tmp_path, files, **{"Müller A/T1": "s00", "Müller A/seg": "s00_seg", "Patient 2/T1": "s01", "Patient 2/seg": "s01_seg"})
    assert seen(read_group(folder)) == {"Müller A": "seg.nii.gz", "Patient 2": "seg.nii.gz"}


def test_label_maps_as_nnunet_and_bids_name_them(files, tmp_path):
    folder = placed(tmp_path / "nnunet", files, **{"imagesTr/a_001_0000": "s00", "imagesTr/a_002_0000": "s01", "labelsTr/a_001": "s00_seg"})
    assert list(seen(read_group(folder)).values()) == ["a_001.nii.gz", None]
    folder = placed(tmp_path / "bids", files, **{"sub-01/anat/sub-01_T1w": "s00", "sub-01/anat/sub-01_dseg": "s00_seg", "sub-02/anat/sub-02_T1w": "s01"})
    assert seen(read_group(folder)) == {"sub-01": "sub-01_dseg.nii.gz", "sub-02": None}


def test_masks_and_label_maps_of_no_image_are_no_subjects(files, tmp_path):
    """They are told, and set aside by a build; where all files are label maps, these are what is asked for."""
    folder = placed(tmp_path / "all", files, **{"a": "s00", "b": "s01", "masks/a_brainmask": "s00_seg", "parts/b ROI 2": "s01_seg"})
    assert {name: bool(s) for name, s in seen(read_group(folder)).items()} == {"a": False, "b": False, "masks-a_brainmask": True, "parts-b ROI 2": True}
    with pytest.raises(InputError, match="belongs to no image; name a label map like its image"):
        read_group(folder).subjects[2].grid()
    only = placed(tmp_path / "only", files, **{"label_a": "s00_seg", "label_b": "s01_seg"})
    assert set(seen(read_group(only)).values()) == {None}


def test_results_below_the_folder_of_a_cohort_are_no_subjects(files, tmp_path, cli):
    folder = placed(tmp_path, files, **{"a/scan": "s00", "b/scan": "s01", "old/atlas": "s02", "old/carried/c/warped": "s03", "pair/warped": "s03"})
    for name in ("old/atlas.json", "pair/result.json", "pair/transform.h5", "b/result.json"):  # the last is of another program
        (folder / name).write_text("{}", "utf-8")
    assert list(seen(read_group(folder))) == ["a", "b"]
    answer = cli("atlas", "build", "--cohort", folder, "--out", folder, *QUICK)
    assert "would be written among the images" in answer.sentence() and not (folder / "work").exists()


def test_folders_of_dicom_files_without_an_ending_are_images(files, tmp_path):
    for name in ("Anna/1.2.840.1", "Anna/1.2.840.2", "Ben/IM0001", "DICOMDIR"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(128) + b"DICM" + bytes(8))
    (tmp_path / "notes").write_text("no image", "utf-8")
    assert {s.name: s.image for s in read_group(tmp_path).subjects} == {"Anna": tmp_path / "Anna", "Ben": tmp_path / "Ben"}


def test_voxels_without_a_number_are_left_out_and_their_subjects_take_part(files, cli, tmp_path):
    placed(tmp_path / "images", files, a="s00", b="s01", c="s02")
    image = read_image(tmp_path / "images" / "a.nii.gz")
    write_image(replace(image, data=image.data.where(image.data > image.data.mean(), torch.nan)), tmp_path / "images" / "a.nii.gz")
    answer = cli("atlas", "build", "--cohort", tmp_path / "images", "--out", tmp_path / "out", *QUICK)
    record = json.loads((tmp_path / "out" / "atlas.json").read_text("utf-8"))
    assert answer.status == 0 and record["subjects"] == ["a", "b", "c"] and record["set_aside"] == {}, answer.err
    assert bool(read_image(tmp_path / "out" / "atlas.nii.gz").data.isfinite().all())


def test_a_subject_whose_labels_have_other_numbers_is_remarked_on():
    remarks = {"b": "a copy"}
    note_other_labels({"a": {1, 2}, "b": {10, 20}, "c": {2}, "d": set()}, remarks)
    assert set(remarks) == {"b"} and remarks["b"].startswith("a copy; its labels (10, 20) are none of those of the others")


def test_names_that_occur_twice_or_cannot_be_those_of_folders(files, tmp_path):
    assert unique(["a", "a", "a", "b:c"], ["x", "x", "y", "z"]) == ["a-x (1)", "a-x (2)", "a-y", "b-c"]
    folder = placed(tmp_path, files, **{"A/scan": "s00", "A/later/scan": "s01", "B/scan": "s02"})
    assert sorted(seen(read_group(folder))) == ["A-scan (1)", "A-scan (2)", "B"]


@pytest.mark.parametrize("change, word", [(("--seed", 3), "seed"), (None, "subjects")], ids=["seed", "image"])
def test_an_atlas_of_other_images_or_another_seed_is_another_one(files, cli, tmp_path, change, word):
    images, out = placed(tmp_path / "images", files, a="s00", b="s01", c="s02"), tmp_path / "out"
    command = ("atlas", "build", "--cohort", images, "--out", out, *QUICK, "--quiet", "--resume")
    assert cli(*command).status == 0 and "nothing is left to do" in cli(*command).err
    if change is None:
        write_image(Image(2 * read_image(files / "s03.nii.gz").data, read_image(files / "s03.nii.gz").grid), images / "a.nii.gz")
    assert f"holds another atlas (different: {word})" in cli(*command, *(change or ())).sentence()


def test_the_writing_of_the_maps_is_seen_and_can_be_stopped_and_gone_on_with(files, tmp_path):
    class Stopping(Monitor):
        events, seen, stops = SimpleNamespace(write=lambda name, **what: None), (), True

        def progress(self, share, text, step=0, steps=0):
            self.seen += (share,)
            if self.stops and text.startswith("transforms"):
                self.cancel()

    values = {"linear": "none", "factors": [1.0], "settings": "iterations=0,10,10,5"}
    order = {"out": str(tmp_path / "out"), "data": str(files), "method": "icon-atlas", "values": values, "threads": 1, "device": "cpu"}
    with pytest.raises(Cancelled):
        jobs_atlas.atlas(order, Stopping(), tmp_path)
    assert (tmp_path / "out" / "work").is_dir() and not (tmp_path / "out" / "atlas.json").exists()
    monitor = Stopping()
    monitor.stops = False
    made = jobs_atlas.atlas({"out": str(tmp_path / "out"), "resume": True, "device": "cpu"}, monitor, tmp_path)
    assert len(made["quality"]) == 4 and list(monitor.seen) == sorted(monitor.seen) and monitor.seen[-1] == 1.0
    assert (tmp_path / "out" / "atlas.json").exists() and not (tmp_path / "out" / "work").exists()


def test_a_subject_unlike_the_atlas_is_remarked_on(atlas, files, cli, tmp_path):
    noise = Image(torch.rand((1, 1, 24, 24), generator=torch.Generator().manual_seed(0)), read_image(files / "s00.nii.gz").grid)
    write_image(noise, tmp_path / "noise.nii.gz")
    answer = cli("atlas", "apply", "--atlas", atlas, "--input", tmp_path / "noise.nii.gz", "--out", tmp_path / "out", *APPLY, "--quiet")
    assert answer.status == 0 and "the subject is unlike the atlas: its correlation is" in answer.err
    assert "unlike the atlas" in json.loads((tmp_path / "out" / "result.json").read_text("utf-8"))["remark"]
    answer = cli("atlas", "apply", "--atlas", atlas, "--input", files / "s01.nii.gz", "--out", tmp_path / "good", *APPLY)
    assert "unlike" not in answer.err and json.loads((tmp_path / "good" / "result.json").read_text("utf-8"))["remark"] == ""


def test_a_subject_that_its_header_places_elsewhere_is_brought_to_an_aligned_atlas(atlas, files, cli, tmp_path):
    image = read_image(files / "s02.nii.gz")
    far = Grid(image.grid.shape, np.array([[1, 0, 300.0], [0, 1, -200.0], [0, 0, 1]]) @ image.grid.affine)
    write_image(Image(image.data, far), tmp_path / "far.nii.gz")
    answer = cli("atlas", "apply", "--atlas", atlas, "--input", tmp_path / "far.nii.gz", "--out", tmp_path / "out", *APPLY)
    assert answer.status == 0 and "correlation with the atlas none -> " in answer.out, answer.err
    found = json.loads((tmp_path / "out" / "result.json").read_text("utf-8"))["similarity"]
    assert found["before"] is None and found["after"] > 0.97


def test_labels_lie_on_the_voxels_of_a_volume_of_one_slice(atlas, files, cli, tmp_path):
    image, truth = read_image(files / "s02.nii.gz"), read_labels(files / "s02_seg.nii.gz")
    write_image(Image(image.data[:, :, None], Grid.from_parts((1, 24, 24), [1.0, 1.0, 4.0], [0, 0, 50.0])), tmp_path / "slice.nii.gz")
    assert cli("atlas", "apply", "--atlas", atlas, "--input", tmp_path / "slice.nii.gz", "--out", tmp_path / "out", *APPLY, "--quiet").status == 0
    made = read_labels(tmp_path / "out" / "labels.nii.gz")
    assert made.grid.same_as(read_image(tmp_path / "slice.nii.gz").grid) and isinstance(made, Labels)
    found, wanted = made.data[:, :, 0] > 0, truth.data > 0
    assert 2 * float((found & wanted).sum()) / float(found.sum() + wanted.sum()) > 0.9


def test_the_mask_of_a_subject_may_hold_fractions(tmp_path):
    """As a mask does that was resampled; it counts where it is above 0, as for a pair of images."""
    grid, generator = Grid.from_parts((12, 10)), torch.Generator().manual_seed(0)
    share = torch.rand((1, 1, 12, 10), generator=generator) - 0.5
    for name, data in (("one", share + 1), ("two", share + 2), ("inside", share)):
        write_image(Image(data, grid), tmp_path / f"{name}.nrrd")
    (tmp_path / "list.csv").write_text("image,mask\none.nrrd,inside.nrrd\ntwo.nrrd,inside.nrrd\n", "utf-8")
    subject = read_group(tmp_path / "list.csv").subjects[0]
    assert torch.equal(subject.read().mask, share > 0)
