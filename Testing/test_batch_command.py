"""batch on the command line: lists as spreadsheet programs write them, and starts from files."""

from __future__ import annotations

import csv
import json
import os

import contract
import pytest
import torch

from DeepRegistrationLib.image import Image
from DeepRegistrationLib.io import read_image, read_transform, write_image, write_transform
from DeepRegistrationLib.transforms import Affine


@pytest.fixture
def folder(tmp_path):
    """A folder with the images of the smallest 2D truth, under names that people give."""
    truth = contract.smallest_pair(2)
    (tmp_path / "Köpfe").mkdir()
    write_image(truth.problem.fixed, tmp_path / "Köpfe" / "f, 1.nii.gz")
    write_image(truth.problem.moving, tmp_path / "Köpfe" / "m.nii.gz")
    return tmp_path


def statuses(out) -> list[str]:
    return [row["status"] for row in csv.DictReader((out / "summary.csv").read_text("utf-8").splitlines())]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "cp1252"])
def test_a_list_with_semicolons_and_empty_rows(folder, cli, toy, encoding):
    text = "id;fixed;moving;set\nMüller;Köpfe/f, 1.nii.gz;Köpfe/m.nii.gz;\"steps=2;spacing=3\"\n;;;\n"
    (folder / "list.csv").write_bytes(text.encode(encoding))
    answer = cli("batch", folder / "list.csv", "--method", toy, "--write", "transform", "--out", folder / "out")
    assert answer.status == 0, answer.err
    assert json.loads((folder / "out" / "Müller" / "result.json").read_text("utf-8"))["parameters"] == {"steps": 2, "spacing": 3.0}


def test_a_start_from_a_file_is_found_beside_the_list_and_counts_when_it_changes(folder, cli, toy, monkeypatch):
    pair = {"fixed": "Köpfe/f, 1.nii.gz", "moving": "Köpfe/m.nii.gz", "set": "steps=1", "write": ["transform"]}
    (folder / "list.json").write_text(json.dumps([{**pair, "id": "file", "init": "start.tfm"}, {**pair, "id": "name", "init": "header"}]), "utf-8")
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")

    def run(shift):
        """(statuses, where the first pair's transform takes the origin) with a start by ``shift`` mm."""
        write_transform(Affine.translation([shift, 0.0]), folder / "start.tfm")
        answer = cli("batch", "../list.json", "--method", toy, "--out", folder / "out")
        assert answer.status == 0, answer.err
        return statuses(folder / "out"), float(read_transform(folder / "out" / "file" / "transform.h5")(torch.zeros(1, 1, 2))[0, 0, 0])

    done, first = run(3.0)
    assert done == ["done", "done"]
    os.utime(folder / "out" / "name" / "result.json", (2e9, 2e9))
    again, second = run(-3.0)
    assert again == ["done", "done before"] and first - second > 1.0


def test_remarks_and_values_outside_reach_the_list(folder, cli, toy):
    """Voxels without a number are left out, with a word in the summary; --fill of a row is that of its own, and is no reason to run again."""
    fixed = read_image(folder / "Köpfe" / "f, 1.nii.gz")
    fixed.data[..., :3, :] = torch.nan
    write_image(fixed, folder / "holes.nrrd")
    moving = read_image(folder / "Köpfe" / "m.nii.gz")
    write_image(Image(moving.data[..., 8:], moving.grid.crop([8, 0], moving.grid.size)), folder / "part.nrrd")
    rows = [{"id": "a", "fixed": "holes.nrrd", "moving": "part.nrrd", "fill": "nan"}, {"id": "b", "fixed": "holes.nrrd", "moving": "part.nrrd"}]
    (folder / "list.json").write_text(json.dumps(rows), "utf-8")
    call = ("batch", folder / "list.json", "--method", toy, "--fill", "-5", "--out", folder / "out")
    assert cli(*call).status == 0
    text = (folder / "out" / "summary.csv").read_text("utf-8")
    lines = list(csv.DictReader(text.splitlines()))
    count = 3 * fixed.data.shape[-1]
    assert all(f"{count} of {fixed.grid.voxels} voxels of holes.nrrd" in line["remark"] for line in lines)
    assert [json.loads((folder / "out" / name / "result.json").read_text("utf-8"))["request"]["fill"] for name in "ab"] == ["nan", -5.0]
    warped = [read_image(folder / "out" / name / "warped.nii.gz").data for name in "ab"]
    assert bool(warped[0].isnan().any()) and torch.equal(warped[0].isnan(), warped[1] == -5)
    assert cli(*call).status == 0 and (folder / "out" / "summary.csv").read_text("utf-8") == text.replace(",done,", ",done before,")
