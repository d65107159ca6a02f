"""run.py atlas build and apply: what they write, going on after a kill, and the sentences for what cannot be done."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time

import cohorts
import numpy as np
import pytest
import torch
from conftest import LIBRARY

from DeepRegistrationLib.commands.atlas_build import rounds
from DeepRegistrationLib.commands.atlas_cohort import read_group, unique
from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.io import read_image, read_labels, read_transform, write_image
from DeepRegistrationLib.result import warp

QUICK = ("--set", "linear=none", "--set", "factors=1,1", "--set", "settings=iterations=0,10,10,5", "--device", "cpu", "--threads", 1)
FILES = {"atlas.nii.gz", "atlas.json", "convergence.csv", "quality.csv", "mean_log_jacobian.nii.gz", "sd_log_jacobian.nii.gz",
         "labels_majority.nii.gz", "labels_staple.nii.gz", "probability_1.nii.gz"}


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    """A folder with six images, one of them damaged, and their atlas."""
    from DeepRegistrationLib.__main__ import main

    folder = tmp_path_factory.mktemp("atlas")
    cohorts.write(folder / "images", 6)
    (folder / "images" / "s05.nii.gz").write_bytes(b"damaged")
    status = main([str(part) for part in ("atlas", "build", "--cohort", folder / "images", "--out", folder / "atlas", *QUICK, "--quiet")])
    assert status == 0
    return folder


def table(path):
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_what_a_build_leaves(atlas):
    out = atlas / "atlas"
    assert {path.name for path in out.iterdir() if path.is_file()} == FILES and not (out / "work").exists()
    record = json.loads((out / "atlas.json").read_text("utf-8"))
    assert record["method"] == "icon-atlas" and record["subjects"] == [f"s{k:02d}" for k in range(5)] and record["labels"] == [1]
    assert list(record["set_aside"]) == ["s05"] and "s05.nii.gz" in record["set_aside"]["s05"]
    assert set(record["files"]) == FILES - {"atlas.json"}
    rows = table(out / "quality.csv")
    assert [row["subject"] for row in rows] == record["subjects"]
    assert all(float(row["similarity"]) > 0.98 and float(row["dice"]) > 0.9 and float(row["folds"]) == 0 for row in rows)
    assert [int(row["iteration"]) for row in table(out / "convergence.csv")] == [1, 2]


def test_the_transforms_lead_to_the_subjects_and_back(atlas):
    out = atlas / "atlas"
    template, labels = read_image(out / "atlas.nii.gz"), read_labels(out / "labels_staple.nii.gz")
    total = torch.zeros_like(template.data)
    points = torch.as_tensor(template.grid.points()[8:16, 8:16].reshape(1, -1, 2)).float()
    for k in range(5):
        there, back = (read_transform(out / "subjects" / f"s{k:02d}" / f"{name}.h5") for name in ("transform", "inverse"))
        assert float((back(there(points)) - points).norm(dim=-1).max()) < 0.1
        seen = warp(read_labels(atlas / "images" / f"s{k:02d}_seg.nii.gz"), there, template.grid)
        total += seen.data
        assert float(((seen.data > 0) != (labels.data > 0)).float().mean()) < 0.03
    assert torch.allclose(read_image(out / "probability_1.nii.gz").data, total / 5, atol=1e-5)
    assert float(read_image(out / "sd_log_jacobian.nii.gz").data.max()) > 0


def test_apply_brings_a_new_subject_and_a_bridge(atlas, cli, tmp_path):
    cohorts.write(tmp_path / "new", 9)
    one, other = tmp_path / "new" / "s07.nii.gz", tmp_path / "new" / "s08.nii.gz"
    answer = cli("atlas", "apply", "--atlas", atlas / "atlas", "--input", one, "--to", other, "--out", tmp_path / "out", "--device", "cpu", "--threads", 1)
    assert answer.status == 0, answer.err
    record = json.loads((tmp_path / "out" / "result.json").read_text("utf-8"))
    assert record["similarity"]["after"] > 0.97 and record["folds"] == 0
    assert set(record["files"]) == {path.name for path in (tmp_path / "out").iterdir()} - {"result.json"}
    bridge = read_transform(tmp_path / "out" / "bridge.h5")
    middle = torch.as_tensor(cohorts.subject(7, 2))[None, None]
    assert np.abs(bridge(middle).numpy()[0, 0] - cohorts.subject(8, 2)).max() < 0.7
    found, truth = (read_labels(path).data > 0 for path in (tmp_path / "out" / "labels.nii.gz", tmp_path / "new" / "s07_seg.nii.gz"))
    assert 2 * float((found & truth).sum()) / float(found.sum() + truth.sum()) > 0.9


def test_an_atlas_with_a_network_is_applied_by_it(cli, tmp_path):
    cohorts.write(tmp_path / "images", 4)
    values = ("width=4", "steps=30", "resolutions=1", "linear=none", "rate=0.005")
    options = [part for value in values for part in ("--set", value)]
    answer = cli("atlas", "build", "--cohort", tmp_path / "images", "--method", "icon-atlas:network", "--out", tmp_path / "atlas", *options, "--device", "cpu",
                 "--threads", 1, "--quiet")
    assert answer.status == 0 and (tmp_path / "atlas" / "network.safetensors").is_file(), answer.err
    answer = cli("atlas", "apply", "--atlas", tmp_path / "atlas", "--input", tmp_path / "images" / "s01.nii.gz", "--out", tmp_path / "out", "--quiet")
    assert answer.status == 0, answer.err
    applied, kept = (read_transform(path) for path in (tmp_path / "out" / "transform.h5", tmp_path / "atlas" / "subjects" / "s01" / "transform.h5"))
    grid = read_image(tmp_path / "atlas" / "atlas.nii.gz").grid
    assert float((applied.field(grid) - kept.field(grid)).abs().max()) < 1.0, "the network that was trained is the one that is used"


def test_a_build_that_was_killed_goes_on(tmp_path, process, cli):
    cohorts.write(tmp_path / "images", 5)
    command = ("atlas", "build", "--cohort", tmp_path / "images", "--out", tmp_path / "atlas", *QUICK, "--quiet")
    running = process(*command)
    done, until = tmp_path / "atlas" / "work" / "iteration-00" / "s01.json", time.perf_counter() + 60
    while not done.exists() and time.perf_counter() < until and running.poll() is None:
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    running.communicate()
    assert done.exists() and not (tmp_path / "atlas" / "atlas.json").exists()
    assert "go on with it by --resume" in cli(*command).sentence()
    assert cli(*command, "--resume").status == 0
    assert cli(*command[:4], "--out", tmp_path / "whole", *command[6:]).status == 0
    one, other = (read_image(tmp_path / name / "atlas.nii.gz").data for name in ("atlas", "whole"))
    assert torch.equal(one, other)


def together(*words) -> subprocess.CompletedProcess:
    """The command line in two processes that train together."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "DeepRegistrationLib", *map(str, words)]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": str(LIBRARY.parent), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
                          timeout=500)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed engine")
@pytest.mark.parametrize("values", [("displacement=40",), ("displacement=0", "objective=similarity")], ids=["penalty", "none"])
def test_two_processes_train_an_atlas_as_one_with_twice_the_subjects_a_step(tmp_path, cli, values):
    cohorts.write(tmp_path / "images", 6, labels="")
    common = ("atlas", "build", "--cohort", tmp_path / "images", "--method", "icon-atlas:network", "--quiet", "--device", "cpu", "--threads", 1)
    options = [part for value in ("width=4", "steps=6", "resolutions=1", "linear=rigid", "linear_iterations=1", *values) for part in ("--set", value)]
    done = together(*common, *options, "--set", "batch=1", "--out", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert cli(*common, *options, "--set", "batch=2", "--out", tmp_path / "one").status == 0
    one, two = (read_image(tmp_path / name / "atlas.nii.gz").data for name in ("one", "two"))
    record = json.loads((tmp_path / "two" / "atlas.json").read_text("utf-8"))
    assert len(record["subjects"]) == 6 and len(record["history"]) == 2 and not (tmp_path / "two" / "work").exists()
    assert torch.allclose(one, two, atol=1e-4) and not torch.equal(one, torch.zeros_like(one))


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed engine")
def test_two_processes_make_an_atlas_over_age(tmp_path):
    cohorts.write(tmp_path / "images", 6, labels="")
    lines = ["image,age", *(f"images/s{k:02d}.nii.gz,{k % 2}" for k in range(6))]
    (tmp_path / "list.csv").write_text("\n".join(lines), "utf-8")
    done = together("atlas", "build", "--cohort", tmp_path / "list.csv", "--covariate", "age", "--method", "spatiotemporal-atlas", "--set", "width=4", "--set",
                    "steps=4", "--set", "change=0", "--iterations", 2, "--out", tmp_path / "two", "--quiet", "--device", "cpu", "--threads", 1)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "two" / "atlas.json").read_text("utf-8"))
    assert record["ages"] == [0, 1] and len(record["history"]) == 3 and len(record["subjects"]) == 6
    answer = together("atlas", "build", "--cohort", tmp_path / "images", "--out", tmp_path / "none", "--quiet")
    assert answer.returncode != 0 and "2 processes were started together and nothing is trained" in answer.stderr


@pytest.mark.parametrize("options, words", [
    (("--method", "icon-atlas:none"), "has no preset 'none'"),
    (("--method", "instant-optimisation"), "did you mean 'instance-optimisation'"),
    (("--iterations", 0), "0 iterations were asked for"),
    (("--init", "s77"), "'s77' to start from is not among"),
    (("--cohort", "nothing"), "nothing does not exist"),
    (("--set", "centring=1"), "did you mean 'centering'"),
])
def test_orders_that_cannot_be_carried_out(atlas, cli, tmp_path, options, words):
    answer = cli("atlas", "build", "--cohort", atlas / "images", "--out", tmp_path / "out", *QUICK, "--quiet", *options)
    assert words in answer.sentence()


def test_an_atlas_is_not_written_over(atlas, cli):
    command = ("atlas", "build", "--cohort", atlas / "images", "--out", atlas / "atlas", *QUICK)
    before = (atlas / "atlas" / "atlas.nii.gz").stat().st_mtime_ns
    assert "holds an atlas already" in cli(*command).sentence()
    done = cli(*command, "--resume")
    assert done.status == 0 and "nothing is left to do" in done.err
    assert "holds another atlas" in cli(*command, "--resume", "--set", "centering=0.5").sentence()
    assert (atlas / "atlas" / "atlas.nii.gz").stat().st_mtime_ns == before


def test_apply_says_what_it_needs(atlas, cli, tmp_path):
    image = atlas / "images" / "s00.nii.gz"
    assert "holds no atlas.json" in cli("atlas", "apply", "--atlas", tmp_path, "--input", image, "--out", tmp_path / "out").sentence()
    volume = cohorts.write(tmp_path / "volumes", 1, dim=3) / "s00.nii.gz"
    answer = cli("atlas", "apply", "--atlas", atlas / "atlas", "--input", volume, "--out", tmp_path / "out", "--quiet")
    assert "is 3D and the atlas 2D" in answer.sentence() and not (tmp_path / "out").exists()


def test_a_pairwise_method_may_be_named_itself(atlas, cli, tmp_path):
    answer = cli("atlas", "build", "--cohort", atlas / "images", "--method", "general:network-only", "--iterations", 1, "--set", "linear=none",
                 "--out", tmp_path / "out", "--device", "cpu", "--threads", 1, "--quiet")
    assert answer.status == 0, answer.err
    record = json.loads((tmp_path / "out" / "atlas.json").read_text("utf-8"))
    assert record["parameters"]["method"] == "general:network-only" and len(record["history"]) == 1


def test_a_list_gives_names_labels_and_masks(tmp_path):
    cohorts.write(tmp_path, 3)
    (tmp_path / "list.csv").write_text("image,subject,labels\ns00.nii.gz,anna,s00_seg.nii.gz\ns01.nii.gz,ben,\ns02.nii.gz,ben,\n", "utf-8")
    group = read_group(tmp_path / "list.csv")
    assert [subject.name for subject in group.subjects] == ["anna", "ben-s01", "ben-s02"]
    assert group.subjects[0].labels == tmp_path / "s00_seg.nii.gz" and group.subjects[1].labels is None
    (tmp_path / "pairs.csv").write_text("fixed,moving\ns00.nii.gz,s01.nii.gz\n", "utf-8")
    with pytest.raises(InputError, match="lists pairs"):
        read_group(tmp_path / "pairs.csv")


def test_names_and_numbers_of_iterations():
    assert unique(["a", "b", "b"], ["x", "y", "z"]) == ["a", "b-y", "b-z"]
    assert rounds((4.0, 2.0, 1.0), 2) == (2.0, 1.0) and rounds((4.0, 1.0), 4) == (4.0, 1.0, 1.0, 1.0)


def test_one_slice_volumes_are_slices(tmp_path, cli):
    from DeepRegistrationLib.geometry import Grid
    from DeepRegistrationLib.image import Image

    cohorts.write(tmp_path / "flat", 3)
    (tmp_path / "solid").mkdir()
    for k in range(3):
        image = read_image(tmp_path / "flat" / f"s{k:02d}.nii.gz")
        grid = Grid.from_parts((1, 24, 24), [1.0, 1.0, 4.0])
        write_image(Image(image.data[:, :, None], grid), tmp_path / "solid" / f"s{k:02d}.nii.gz")
    answer = cli("atlas", "build", "--cohort", tmp_path / "solid", "--out", tmp_path / "out", *QUICK, "--iterations", 1, "--quiet")
    assert answer.status == 0, answer.err
    assert read_image(tmp_path / "out" / "atlas.nii.gz").dim == 2
