"""Data for training: what is found in folders and lists, the common lattice, the index of pairs, the split, the cache."""

from __future__ import annotations

import json
import shutil
import tracemalloc

import cohorts
import numpy as np
import pytest
import torch

from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image
from DeepRegistrationLib.io import read_grid, read_image, write_image
from DeepRegistrationLib.train.cohort import Cohort, Scan, read_cohort, split
from DeepRegistrationLib.train.data import Index, Scans, common_lattice, open_data


def generator(seed: int):
    return torch.Generator().manual_seed(seed)


# -------------------------------------------------------------------------------------------------------------- cohort


@pytest.mark.parametrize("rule", ["{name}_seg", "{name}_label", "labels/{name}"])
def test_a_folder_with_label_maps(tmp_path, rule):
    cohorts.write(tmp_path, 3, labels=rule, points=True)
    scans = read_cohort(tmp_path).scans
    assert [scan.image.name for scan in scans] == ["s00.nii.gz", "s01.nii.gz", "s02.nii.gz"]
    assert [scan.labels for scan in scans] == [tmp_path / (rule.format(name=f"s{k:02d}") + ".nii.gz") for k in range(3)]
    assert all(scan.points.name == f"{scan.subject}_points.csv" for scan in scans)


def test_a_rule_of_the_users_own(tmp_path):
    cohorts.write(tmp_path, 2, labels="{name}.aparc")
    assert {scan.labels is None for scan in read_cohort(tmp_path).scans} == {True} and len(read_cohort(tmp_path).scans) == 4
    assert all(scan.labels is not None for scan in read_cohort(tmp_path, "{name}.aparc").scans)
    with pytest.raises(InputError, match="no image in .* has a label map named '{name}_x'"):
        read_cohort(tmp_path, "{name}_x")
    with pytest.raises(InputError, match="must hold {name}"):
        read_cohort(tmp_path, "_seg")


def test_subjects_are_entities_folders_or_names(tmp_path):
    for k, name in enumerate(("sub-01/ses-1/sub-01_ses-1_T1w", "sub-01/ses-2/sub-01_ses-2_T1w", "sub-02/sub-02_T1w")):
        (tmp_path / "bids" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(cohorts.write(tmp_path / "source", 1, labels="") / "s00.nii.gz", tmp_path / "bids" / f"{name}.nii.gz")
    assert [scan.subject for scan in read_cohort(tmp_path / "bids").scans] == ["sub-01", "sub-01", "sub-02"]
    for name in ("anna/t1", "anna/t2", "bert/t1"):
        (tmp_path / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "source" / "s00.nii.gz", tmp_path / "own" / f"{name}.nii.gz")
    assert [scan.subject for scan in read_cohort(tmp_path / "own").scans] == ["anna", "anna", "bert"]
    for name in ("imagesTr/a", "imagesTs/b"):
        (tmp_path / "challenge" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "source" / "s00.nii.gz", tmp_path / "challenge" / f"{name}.nii.gz")
    assert [scan.subject for scan in read_cohort(tmp_path / "challenge").scans] == ["imagesTr/a", "imagesTs/b"]


def test_a_list_of_images_and_a_list_of_pairs(tmp_path):
    cohorts.write(tmp_path, 3)
    (tmp_path / "images.csv").write_text("image, labels, subject, split\ns00.nii.gz, s00_seg.nii.gz, a, validation\ns01.nii.gz,,b\n")
    cohort = read_cohort(tmp_path / "images.csv")
    assert cohort.pairs is None and [scan.subject for scan in cohort.scans] == ["a", "b"] and cohort.scans[0].split == "validation"
    assert cohort.scans[0].labels == tmp_path / "s00_seg.nii.gz" and cohort.scans[1].labels is None
    rows = [{"id": "x", "fixed": "s00.nii.gz", "moving": "s01.nii.gz", "method": "affine"}, {"fixed": "s02.nii.gz", "moving": "s00.nii.gz"}]
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    cohort = read_cohort(tmp_path / "pairs.json")
    assert cohort.pairs == ((0, 1), (2, 0)) and [scan.image.name for scan in cohort.scans] == ["s00.nii.gz", "s01.nii.gz", "s02.nii.gz"]


@pytest.mark.parametrize("text, sentence", [
    ("image,lables\na,b\n", "unknown column 'lables'; did you mean 'labels'"),
    ("fixed,moving\na,\n", "row 1: no file is named"),
    ("image,split\na,training\n", "the split 'training' was given"),
    ("image,labels\na,b\na,c\n", "twice with different labels"),
    ("image,fixed,moving\na,,\n,b,c\n", "mixes rows of one image with rows of a pair"),
    ("image\n", "names no images"),
])
def test_lists_that_cannot_be_used(tmp_path, text, sentence):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(InputError, match=sentence):
        read_cohort(tmp_path / "list.csv")


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_cohort(tmp_path / "nothing")
    with pytest.raises(InputError, match="holds no image"):
        read_cohort(tmp_path)


def test_the_split_is_by_subject_and_by_seed():
    scans = [Scan(path, subject=f"p{k // 2}") for k, path in enumerate([None] * 60)]
    one, again, other = split(scans, 1), split(scans, 1), split(scans, 2)
    assert one == again != other
    assert sorted(sum(one.values(), [])) == list(range(60))
    subjects = {name: {scans[k].subject for k in numbers} for name, numbers in one.items()}
    assert not subjects["train"] & subjects["validation"] and not subjects["train"] & subjects["test"]
    assert (len(subjects["validation"]), len(subjects["test"])) == (4, 3)
    few = split(scans[:6], 1)
    assert len(few["train"]) == 6, "with three subjects none can be spared"
    named = [Scan(None, subject=name, split=part) for name, part in (("a", "test"), ("b", ""), ("c", "train"), ("d", ""))]
    assert split(named, 0) == {"train": [1, 2, 3], "validation": [], "test": [0]}
    with pytest.raises(InputError, match="the subject 'a' is in the splits"):
        split([Scan(None, subject="a", split="test"), Scan(None, subject="a", split="train")], 0)


# --------------------------------------------------------------------------------------------------------------- index


def test_all_ordered_pairs_are_numbered_and_none_is_held():
    index = Index([3, 5, 8, 9])
    pairs = [index[k] for k in range(len(index))]
    assert len(pairs) == 12 and len(set(pairs)) == 12 and all(i != j for i, j in pairs) and set(sum(pairs, ())) == {3, 5, 8, 9}
    tracemalloc.start()
    large = Index(range(190))
    assert len(large) == 35910 and large[35909] == (189, 188) and large[0] == (0, 1)
    assert tracemalloc.get_traced_memory()[1] < 100_000, "the pairs of 190 scans are a rule, not a list"
    tracemalloc.stop()
    with pytest.raises(IndexError):
        large[35910]
    assert Index([0, 1, 2], [(0, 1), (2, 4), (1, 0)]).spread(9) == [(0, 1), (1, 0)]
    assert index.spread(3) == [index[0], index[4], index[8]]


# ------------------------------------------------------------------------------------------------------------- lattice


def test_the_lattice_is_the_median_of_the_cohort():
    turned = np.array([[0, 0, 1.0], [1, 0, 0], [0, 1, 0]])
    grids = [Grid.from_parts((10, 20, 30), (1, 2, 3)), Grid.from_parts((10, 20, 30), (1, 2, 3)), Grid.from_parts((20, 30, 10), (2, 3, 1), None, turned)]
    lattice = common_lattice(grids[:2] + [grids[0]], multiple=8)
    assert lattice.grid.spacing.tolist() == [1, 2, 3] and lattice.grid.size == (32, 24, 16) and not lattice.centred
    assert np.allclose(lattice.grid.centre, grids[0].centre) and np.allclose(lattice.grid.direction, np.eye(3))
    assert common_lattice([grids[2]] * 3, multiple=1).grid.spacing.tolist() == [1, 2, 3], "spacings follow the patient's axes, not those of the file"


def test_a_lattice_that_was_asked_for():
    grids = [Grid.from_parts((30, 30), 2.0)] * 3
    assert common_lattice(grids, spacing=3.0, multiple=16).grid.size == (32, 32)
    assert common_lattice(grids, shape=(32, 16)).grid.spacing.tolist() == [60 / 16, 60 / 32]
    for wrong in ({"spacing": -1.0}, {"spacing": (1, 2, 3)}, {"shape": (16, 16, 16)}):
        with pytest.raises(InputError, match="was asked for"):
            common_lattice(grids, **wrong)
    coarse = common_lattice([Grid.from_parts((400, 400, 400), 0.5)] * 2)
    assert coarse.grid.voxels < 1.4 * (1 << 21) and float(coarse.grid.spacing[0]) > 1.5


def test_unrelated_headers_are_centred_and_labels_and_points_follow(tmp_path):
    data = open_data(read_cohort(cohorts.write(tmp_path, 4, dim=3, points=True, shift=40.0)), 0, multiple=8)
    assert data.lattice.centred
    for k in range(4):
        seen = data.scans[k]
        there = seen.image.data[0, 0] > 0.5
        assert float((there == (seen.labels.data[0, 0] > 0)).float().mean()) > 0.97
        middle = torch.nonzero(there).float().mean(0).flip(0).numpy()
        found = data.lattice.grid.world_to_index(seen.points.positions[0, 0].numpy())
        assert np.abs(middle - found).max() < 0.4, "the middle of the ball is where its point is"


def test_related_headers_keep_their_places(tmp_path):
    data = open_data(read_cohort(cohorts.write(tmp_path, 4, shift=1.0)), 0)
    assert not data.lattice.centred
    points = data.lattice.grid.points()
    middles = [points[data.scans[k].image.data[0, 0].numpy() > 0.5].mean(0) for k in range(4)]
    assert all(np.abs(middle - (cohorts.subject(k, 2) + k)).max() < 0.4 for k, middle in enumerate(middles))


def test_intensities_are_scaled_and_a_coarser_lattice_smooths(tmp_path):
    folder = cohorts.write(tmp_path, 2, side=32)
    noisy = read_image(folder / "s00.nii.gz")
    write_image(Image(noisy.data + 200 * torch.randn(noisy.data.shape, generator=generator(0)), noisy.grid), folder / "s00.nii.gz")
    fine, coarse = (open_data(read_cohort(folder), 0, spacing=s, multiple=1).scans[0].image.data for s in (1.0, 4.0))
    assert float(fine.min()) == 0 and float(fine.max()) == 1
    assert float(coarse[..., 0, :].std()) < 0.5 * float(fine[..., 0, :].std())


def test_slices_of_one_voxel_are_2d(tmp_path):
    for k in range(3):
        grid = Grid.from_parts((1, 20, 24), (1, 1, 5), (0, 0, 7.0 * k))
        write_image(Image(cohorts.blob(grid, (10 + k, 10, 7.0 * k)), grid), tmp_path / f"s{k}.nii.gz")
    data = open_data(read_cohort(tmp_path), 0, multiple=4)
    pair = data.draw(generator(0))
    assert data.dim == 2 and pair.fixed.data.shape == (1, 1, 20, 24) and float(pair.fixed.data.max()) == 1


def test_the_header_alone_gives_the_grid(tmp_path):
    cohorts.write(tmp_path, 1, dim=3, labels="", spacing=1.5, shift=3.0)
    assert read_grid(tmp_path / "s00.nii.gz").same_as(read_image(tmp_path / "s00.nii.gz").grid)
    with pytest.raises(InputError, match="does not exist"):
        read_grid(tmp_path / "none.nii.gz")


# --------------------------------------------------------------------------------------------------------------- pairs


def test_a_draw_depends_on_its_generator_only(tmp_path):
    data = open_data(read_cohort(cohorts.write(tmp_path, 5, points=True)), 0)
    first = [data.draw(generator(seed)) for seed in range(12)]
    again = [data.draw(generator(seed)) for seed in reversed(range(12))][::-1]
    assert all(torch.equal(a.fixed.data, b.fixed.data) and torch.equal(a.moving.data, b.moving.data) for a, b in zip(first, again))
    assert len({(p.fixed.name, p.moving.name) for p in first}) > 3 and all(p.fixed.name != p.moving.name for p in first)
    assert all(p.fixed_labels is not None and len(p.fixed_points) == 1 for p in first)
    trained = {data.scans.scans[k].image.name for k in data.indices["train"].members}
    assert {p.fixed.name for p in first} <= trained
    validation = data.some("validation", 5)
    assert len(validation) == 2 and not {p.fixed.name for p in validation} & trained


def test_the_cache_keeps_to_its_limit(tmp_path):
    """Two images fit; a third takes the place of the one that was not used for longest."""
    scans = read_cohort(cohorts.write(tmp_path, 3, labels="")).scans
    lattice = common_lattice([read_grid(scan.image) for scan in scans])
    one = Scans(scans, lattice)[0].bytes
    held = Scans(scans, lattice, 2.5 * one / (1 << 20))
    for k in (0, 1, 0, 2, 0):
        held[k]
    assert held.read == 3 and list(held.held) == [2, 0] and held.bytes == 2 * one
    held[1]
    assert held.read == 4 and list(held.held) == [0, 1]
    none = Scans(scans, lattice, 0.0)
    assert torch.equal(none[1].image.data, held[1].image.data) and not none.held


def test_files_that_cannot_be_read_are_set_aside_in_one_sentence(tmp_path):
    cohorts.write(tmp_path, 4, labels="")
    whole = (tmp_path / "s01.nii.gz").read_bytes()
    (tmp_path / "s01.nii.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "s03.nii.gz").write_bytes(b"no image")
    data = open_data(read_cohort(tmp_path), 0)
    assert sorted(data.indices["train"].members) == [0, 2] and len(data.remarks) == 2
    assert all("\n" not in text and name in text for text, name in zip(sorted(data.remarks), ("s01", "s03")))


def test_cohorts_that_cannot_train(tmp_path):
    flat, solid = cohorts.write(tmp_path / "mixed", 2), cohorts.write(tmp_path / "solid", 1, dim=3, labels="")
    shutil.copy(solid / "s00.nii.gz", flat / "t.nii.gz")
    with pytest.raises(InputError, match="2D and 3D images are mixed"):
        open_data(read_cohort(flat), 0)
    with pytest.raises(InputError, match="1 usable images of 1 subjects .* at least two subjects"):
        open_data(read_cohort(solid), 0)
    with pytest.raises(InputError, match="of 1 subjects"):
        open_data(Cohort(tuple(Scan(solid / "s00.nii.gz", subject="one") for _ in range(2))), 0)
    constant = cohorts.write(tmp_path / "constant", 3, labels="")
    write_image(Image(torch.ones(1, 1, 24, 24), Grid.from_parts((24, 24))), constant / "s01.nii.gz")
    assert "s01.nii.gz is constant" in open_data(read_cohort(constant), 0).remarks[0]
