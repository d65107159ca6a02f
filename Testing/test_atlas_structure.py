"""The command 'atlas structure': what it reads, writes and says of label maps, images, tables and a finished atlas; its errors."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from truths_cohort import SIDE, names, planted

from DeepRegistrationLib.__main__ import main
from DeepRegistrationLib.commands import structure_sources
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image, Labels
from DeepRegistrationLib.io import write_image, write_labels
from DeepRegistrationLib.runtime import Silent

pytest.importorskip("sklearn")


@pytest.fixture
def cohort(tmp_path):
    """A folder with 30 label maps of two types on different lattices, one file that is none, and a table of covariates."""
    folder, made = tmp_path / "maps", planted(3, 30, 2, 2)
    folder.mkdir()
    for k, row in enumerate(made.maps):
        data = torch.as_tensor(row.reshape(1, 1, SIDE, SIDE) + 1)
        labels = Labels(data, Grid.from_parts((SIDE, SIDE), 2.0))
        write_labels(
            labels if k % 2 else labels.at(Grid.from_parts((SIDE + 8, SIDE + 8), 2.0, (-8.0, -8.0))),
            folder / f"s{k:02d}.nii.gz",
        )
    (folder / "broken.nii.gz").write_text("no image")
    with open(tmp_path / "people.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "age", "site"])
        writer.writerows([f"s{k:02d}", round(50 + 10 * made.amounts[k, 0], 2), "AB"[made.types[k]]] for k in range(30))
    return tmp_path


def test_structure_of_label_maps(cohort, capsys):
    out = cohort / "out"
    status = main(
        [
            "atlas",
            "structure",
            "--labels",
            str(cohort / "maps"),
            "--covariates",
            str(cohort / "people.csv"),
            "--set",
            "permutations=499",
            "--set",
            "draws=299",
            "--out",
            str(out),
        ]
    )
    told = capsys.readouterr()
    assert status == 0, told.err
    record = json.loads((out / "result.json").read_text("utf-8"))
    assert record["types"] == 2 and record["sizes"] == [15, 15] and list(record["set_aside"]) == ["labels: broken"]
    assert "One atlas is not enough" in told.out and "set aside: labels: broken" in told.err
    rows = list(csv.DictReader((out / "subjects.csv").read_text("utf-8").splitlines()))
    assert {row["type"] for row in rows if int(row["subject"][1:]) % 2} == {rows[1]["type"]} != {rows[0]["type"]}
    effects_ = {
        (row["target"], row["covariate"]): row
        for row in csv.DictReader((out / "effects.csv").read_text("utf-8").splitlines())
    }
    assert float(effects_["types", "site"]["corrected"]) < 0.05 < float(effects_["types", "age"]["corrected"])
    assert (
        all((out / name).read_bytes().startswith(b"\x89PNG") for name in record["pictures"])
        and len(record["pictures"]) == 4
    )
    page = (out / "report.html").read_text("utf-8")
    assert page.count("data:image/png") == 4 and "set aside: labels: broken" in page
    again = main(
        [
            "atlas",
            "structure",
            "--distances",
            str(out / "distances_labels.csv"),
            "--quiet",
            "--out",
            str(cohort / "again"),
        ]
    )
    assert again == 0 and json.loads((cohort / "again" / "result.json").read_text())["sizes"] == [15, 15]
    assert not (cohort / "again" / "effects.csv").exists()


def test_a_table_with_semicolons_and_names_of_files_and_an_image_without_labels(tmp_path, capsys):
    """Covariates as a European spreadsheet writes them, subjects by their files; who has no label map is told."""
    made, grid = planted(3, 12, 2, 2), Grid.from_parts((SIDE, SIDE), 2.0)
    folder, lines = tmp_path / "data", ["Datei;Alter;Ort"]
    folder.mkdir()
    for k, row in enumerate(made.maps):
        data = torch.as_tensor(row.reshape(1, 1, SIDE, SIDE) + 1)
        write_image(Image(data.float(), grid), folder / f"s{k:02d}.nii.gz")
        if k:
            write_labels(Labels(data, grid), folder / f"s{k:02d}_seg.nii.gz")
        lines.append(f"s{k:02d}.nii.gz;{50 + k},5;{'AAB'[k % 3]}")
    (tmp_path / "people.csv").write_text("\n".join(lines), "utf-8")
    command = ["atlas", "structure", "--labels", str(folder), "--covariates", str(tmp_path / "people.csv"), "--set", "permutations=99", "--set", "draws=99"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out" / "result.json").read_text("utf-8"))
    numbers = {effect["covariate"] for effect in record["effects"] if effect["slope"] is not None}
    assert "Alter" in numbers and "Ort" not in numbers and "Ort" in {effect["covariate"] for effect in record["effects"]}
    assert record["set_aside"] == {"labels: s00": "it has no label map"} and record["subjects"] == 11
    (tmp_path / "people.csv").write_text("id,age\nanna,3\n", "utf-8")
    capsys.readouterr()
    assert main([*command, "--out", str(tmp_path / "none")]) == 2
    assert "no subject of" in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_types_of_images_become_lists_for_atlas_build(tmp_path):
    """Images with label maps beside them: a list a type, which the reader of cohorts takes; one type leaves none behind."""
    from DeepRegistrationLib.commands.atlas_cohort import read_group

    made, grid = planted(3, 16, 2, 2), Grid.from_parts((SIDE, SIDE), 2.0)
    folder = tmp_path / "data"
    folder.mkdir()
    for k, row in enumerate(made.maps):
        data = torch.as_tensor(row.reshape(1, 1, SIDE, SIDE) + 1)
        write_labels(Labels(data, grid), folder / f"s{k:02d}_seg.nii.gz")
        write_image(Image(data.float(), grid), folder / f"s{k:02d}.nii.gz")
    command = [
        "atlas",
        "structure",
        "--labels",
        str(folder),
        "--quiet",
        "--set",
        "draws=299",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(command) == 0
    groups = [read_group(tmp_path / "out" / f"type-{k}.csv", None) for k in (1, 2)]
    assert sorted(s.name for group in groups for s in group.subjects) == list(names(16))
    assert all(s.labels is not None and s.image.is_file() for group in groups for s in group.subjects)
    kinds = [{made.types[int(s.name[1:])] for s in group.subjects} for group in groups]
    assert sorted(map(len, kinds)) == [1, 1]
    assert main([*command, "--set", "most_types=1"]) == 0 and not list((tmp_path / "out").glob("type-*.csv"))


def test_background_is_left_out_and_labels_are_counted(tmp_path):
    grid = Grid.from_parts((6, 6))
    maps = [torch.zeros(1, 1, 6, 6, dtype=torch.int32) for _ in range(2)]
    maps[0][..., :2, :3], maps[0][..., :2, 3:] = 7, 9
    maps[1][..., :2, :] = -3
    items = [structure_sources.Item(f"s{k}", lambda data=data: Labels(data, grid)) for k, data in enumerate(maps)]
    source, aside = structure_sources.of_labels(items, tmp_path, Silent())
    assert source.described["number of labels"].tolist() == [2, 1] and not aside
    assert source.matrix[0, 1] == 1, "beside the background, which both leave out, one map says nothing about the other"


def test_profiles_and_features_of_a_table(tmp_path):
    made = planted(4, 40, 2, 2)
    lines = ["subject," + ",".join(f"c{k}" for k in range(36))]
    lines += [f"s{k:02d}," + ",".join(f"{v:.8f}" for v in row) for k, row in enumerate(made.profiles)]
    (tmp_path / "table.csv").write_text("\n".join([*lines, "lost," + ",".join(["nan"] * 36)]))
    for kind in ("profiles", "features"):
        assert (
            main(
                [
                    "atlas",
                    "structure",
                    f"--{kind}",
                    str(tmp_path / "table.csv"),
                    "--quiet",
                    "--set",
                    "draws=299",
                    "--out",
                    str(tmp_path / kind),
                ]
            )
            == 0
        )
        record = json.loads((tmp_path / kind / "result.json").read_text())
        assert record["types"] == 2 and list(record["set_aside"]) == [f"{kind}: lost"]


def test_structure_of_a_finished_atlas(tmp_path):
    """Twelve subjects whose deformations shrink one of two halves: distances are those of their log-Jacobians."""
    from DeepRegistrationLib.io import write_transform
    from DeepRegistrationLib.transforms import Displacement

    grid = Grid.from_parts((16, 18), 2.0)
    write_image(Image(torch.rand(1, 1, 16, 18), grid), tmp_path / "atlas.nii.gz")
    (tmp_path / "atlas.json").write_text("{}")
    x = torch.as_tensor(grid.points()).float()
    for k in range(12):
        field = torch.zeros(1, 2, 16, 18)
        field[0, 0] = (
            (0.1 + 0.01 * k) * (x[..., 0] - 10).clamp(max=0)
            if k % 2
            else (-0.1 - 0.01 * k) * (x[..., 0] - 20).clamp(min=0)
        )
        (tmp_path / "subjects" / f"s{k:02d}").mkdir(parents=True)
        write_transform(Displacement(field, grid), tmp_path / "subjects" / f"s{k:02d}" / "transform.h5")
    items = structure_sources.atlas_items(tmp_path)
    source, _ = structure_sources.of_maps(items, tmp_path, Silent(), "deformation")
    same, other = source.matrix[0, 2::2], source.matrix[0, 1::2]
    assert same.max() < other.min() and [item.name for item in items] == list(names(12))
    assert (
        main(
            [
                "atlas",
                "structure",
                "--atlas",
                str(tmp_path),
                "--quiet",
                "--set",
                "draws=99",
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 0
    )


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "no cohort was given; give one or more of --labels"),
        (["--features", "nothing.csv"], "nothing.csv does not exist"),
        (["--atlas", "."], "holds no finished atlas"),
        (["--features", "few.csv"], "3 subjects were given; the structure of a cohort needs at least 8"),
        (["--distances", "few.csv"], "a row and a column for each subject"),
        (["--features", "twice.csv"], "'a' occurs 2 times"),
        (["--features", "few.csv", "--set", "most=3"], "did you mean 'most_types'"),
        (["--profiles", "words.csv"], "has no row of numbers"),
    ],
)
def test_errors_are_one_sentence_and_leave_nothing(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "few.csv").write_text("subject,x,y\na,1,2\nb,2,3\nc,4,5\n")
    (tmp_path / "twice.csv").write_text("subject,x\na,1\na,2\n")
    (tmp_path / "words.csv").write_text("subject,x\na,one\nb,two\n")
    assert main(["atlas", "structure", *arguments, "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_show_cite_and_list_know_it(capsys):
    assert main(["show", "cortical-types"]) == 0 and "problem    Distances" in capsys.readouterr().out
    assert main(["cite", "cortical-types"]) == 0 and "Kruggel" in capsys.readouterr().out
    assert main(["list"]) == 0 and "cortical-types" in capsys.readouterr().out
