"""An atlas over age: means and medians at knots, the groupwise term, what grows, going on, who is set aside, and the command line."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from truths_growth import Growth

from DeepRegistrationLib.engines import growth
from DeepRegistrationLib.engines.ages import Ages, medians, second_differences
from DeepRegistrationLib.engines.channels import limits_of, normalised
from DeepRegistrationLib.engines.consensus import UNSEEN
from DeepRegistrationLib.errors import Cancelled, InputError
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image
from DeepRegistrationLib.io import read_image, read_labels, read_transform, write_image, write_labels, write_sequence
from DeepRegistrationLib.method import find
from DeepRegistrationLib.networks.generator import AtlasGenerator
from DeepRegistrationLib.problem import Group, Subject
from DeepRegistrationLib.runtime import Runtime, Silent
from DeepRegistrationLib.train.temporal import drawn
from DeepRegistrationLib.train.temporal_loss import AgedAlignment, AgeNetwork, TemporalCost, TemporalSettings
from DeepRegistrationLib.transforms import Velocity

AGES = (8.0, 9.0, 10.0)
NETWORK_ALONE = (0, 0, 0)
QUICK = {"linear": "none", "width": 8, "rate": 5e-3, "steps": 60, "iterations": 1, "window": 5.0}


def growing(dim: int = 2, each: int = 4, side: int = 32, **values) -> tuple[Growth, Group]:
    shape = Growth(Grid.from_parts((side,) * dim, 64 / side), span=(8.0, 10.0))
    return shape, shape.cohort(AGES, each, strength=0.5, **values)[0]


def built(cohort: Group, monitor=None, work=None, preset: str = "aligned", **values):
    return find(f"spatiotemporal-atlas:{preset}", {**QUICK, **values}).run(cohort, Runtime("cpu", threads=1, monitor=monitor or Silent(), work=work))


# ------------------------------------------------------------------------------------------------------------- over age


def test_on_the_knots_the_atlas_is_the_mean_of_each_age():
    known = [2, 1, 1, 3, 2, 2, 3]
    ages = Ages.of(known)
    assert ages.knots.tolist() == [1, 2, 3]
    for row, knot in zip(ages.weights(0.0), ages.knots):
        assert row == pytest.approx((np.array(known) == knot) / known.count(knot))


@pytest.mark.parametrize("smoothness", [0.0, 0.5])
def test_steady_growth_is_followed_between_uneven_ages(smoothness):
    known = np.sort(np.random.default_rng(0).uniform(56, 90, 60))
    ages = Ages.of(known)
    assert 2 < len(ages.knots) <= 12 and ages.knots[0] == known[0] and ages.knots[-1] == known[-1]
    weights = ages.weights(smoothness)
    assert weights.sum(1) == pytest.approx(1.0)
    assert weights @ (3 * known - 7) == pytest.approx(3 * ages.knots - 7), "no shrinking towards the middle at the ends"
    assert ages.basis([61.3]) @ ages.knots == pytest.approx(61.3)


def test_a_knot_without_subjects_lies_between_its_neighbors():
    ages = Ages(np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.0, 0.0, 1.0, 3.0]))
    assert ages.weights(0.0) @ ages.known == pytest.approx(ages.knots, abs=0.02)
    found = medians([torch.full((1, 1, 2), v) for v in (0.1, 0.1, 0.2, 0.6)], ages.basis(ages.known), Silent())
    assert found[:, 0, 0].numpy() == pytest.approx([0.1, 0.2, 0.4, 0.6], abs=0.005)


def test_smoothness_bends_the_atlas_less():
    known, noise = np.repeat(np.arange(6.0), 2), np.random.default_rng(0).normal(size=12)
    ages = Ages.of(known, 6)
    bent = [float(np.abs(second_differences(ages.knots) @ (ages.weights(s) @ noise)).max()) for s in (0.0, 0.1, 100.0)]
    assert bent[2] < 0.01 * bent[0] and bent[1] < bent[0]


def test_medians_are_those_of_every_age():
    values = torch.rand(7, 1, 1, 5, generator=torch.Generator().manual_seed(0))
    ages = Ages(np.array([1.0, 2.0]), np.array([1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0]))
    found = medians(values, ages.basis(ages.known), Silent())
    assert torch.allclose(found[0, 0], values[:3, 0, 0].median(0).values, atol=1 / 256)
    assert torch.allclose(found[1, 0], values[3:, 0, 0].median(0).values, atol=1 / 256)


@pytest.mark.parametrize("known, words", [([5, 5, 5], "all 3 subjects have the age 5"), ([5, float("nan")], "not a finite number")])
def test_ages_that_make_no_atlas(known, words):
    with pytest.raises(InputError, match=words):
        Ages.of(known)
    with pytest.raises(InputError, match="the age 11 was asked for"):
        Ages.of([5, 10]).basis([7, 11])


# ------------------------------------------------------------------------------------------------------------- the loss


def test_the_running_mean_is_that_of_the_last_fields():
    grid = Grid.from_parts((4, 4))
    model = AgeNetwork(TemporalSettings(width=2, levels=1).network(2), None, 3, grid)
    found = [torch.full((1, 2, 2, 2), float(k), requires_grad=True) for k in range(1, 6)]
    means = [model.mean_of_recent(each) for each in found]
    assert [float(mean.detach().mean()) for mean in means] == pytest.approx([1, 1.5, 2, 3, 4])
    means[4].square().mean().backward()
    assert float(found[4].grad.sum()) == pytest.approx(2 * 4 / 3) and found[3].grad is None, "earlier fields are held"
    model.eval()
    assert float(model.mean_of_recent(torch.full((1, 2, 2, 2), 6.0)).mean()) == 5 and float(model.recent.mean()) == 4


@pytest.mark.parametrize("spacing", [1.0, 0.5])
def test_the_terms_of_the_loss(spacing):
    """A shift by three voxels: magnitude 9 / dim and nothing else of the regularity; the pull by its weight."""
    grid = Grid.from_parts((16, 16), spacing)
    image = Image(torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)), grid)
    there = torch.zeros(1, 2, 16, 16)
    there[:, 0] = 3.0 * spacing
    costs = []
    for settings in (TemporalSettings(0.0, 0.0, 0.0), TemporalSettings(0.0, 1.0, 0.0), TemporalSettings(10.0, 0.0, 0.0)):
        flow = Velocity(there, grid)
        alignment = AgedAlignment(image, image, flow)
        alignment.reverse = AgedAlignment(image, image, flow.inverse(), reverse=alignment)
        alignment.pull, alignment.drawing = torch.tensor([0.3]), torch.zeros(1)
        costs.append(float(TemporalCost(settings)(alignment)))
    assert costs[2] - costs[0] == pytest.approx(3.0)
    moved = float(Velocity(there, grid).field(grid).square().mean()) / spacing**2
    assert moved > 3 and costs[1] - costs[0] == pytest.approx(moved, rel=1e-4)


@pytest.mark.parametrize("features", [2, 6])
def test_the_generator_draws_what_it_is_set_to(features):
    """Exactly where it has a Gaussian for every age, and between two ages nearer to the true shape than the images of both."""
    shape, _ = growing()
    true, shares = torch.cat([shape.mean(age).data for age in AGES]), torch.tensor([0.0, 0.5, 1.0])
    torch.manual_seed(0)
    generator = AtlasGenerator((32, 32), features)
    torch.nn.init.normal_(generator.last.weight, std=0.1)  # as if it had been trained
    generator.begin_with(shares, true)
    worst = float((drawn(generator, shares) - true).abs().max())
    between, half = (x[0] for x in (drawn(generator, [0.25]), shape.mean(8.5).data))
    near = min(float((true[k] - half).square().mean()) for k in (0, 1))
    assert (worst < 1e-3) == (features == 6) and (features == 2 or float((between - half).square().mean()) < near)


# ------------------------------------------------------------------------------------------------------------ what grows


def test_volume_and_length_of_what_is_known():
    grid = Grid.from_parts((20, 30, 40), (1.0, 2.0, 0.5))
    points = torch.as_tensor(grid.points())
    inside = ((points - torch.as_tensor(grid.centre)) / torch.tensor([8.0, 20.0, 6.0])).square().sum(-1) < 1
    image = torch.where(inside, 0.8, 0.1)[None, None] + 0.02 * torch.randn(1, 1, *grid.shape, generator=torch.Generator().manual_seed(0))
    (row,) = growth.of_atlases(image, grid)
    assert row["volume"] == pytest.approx(4 / 3 * np.pi * 8 * 20 * 6, rel=0.05) and row["length"] == pytest.approx(40, abs=2.1)
    assert 0.3 < growth.otsu(image) < 0.6


def test_consensus_labels_follow_the_weights():
    grid = Grid.from_parts((1, 4))
    maps = [torch.tensor(v, dtype=torch.int32) for v in ([0, 1, 1, 2], [0, 1, 2, 2], [1, 1, 1, 0])]
    labels, rows = growth.of_labels(lambda: iter(maps), np.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]), grid)
    assert labels[0].data.flatten().tolist() == [0, 1, 1, 2] and labels[1].data.flatten().tolist() == [1, 1, 1, 0]
    assert rows[0] == {"volume_1": 1.5, "length_1": 2.0, "volume_2": 1.5, "length_2": 2.0} and rows[1]["volume_2"] == 0


def test_who_does_not_see_a_place_has_no_say_in_its_label():
    grid = Grid.from_parts((1, 4))
    maps = [torch.tensor(v, dtype=torch.int32) for v in ([0, 1, 1, UNSEEN], [0, 1, UNSEEN, UNSEEN], [0, 1, UNSEEN, UNSEEN])]
    (labels,), (row,) = growth.of_labels(lambda: iter(maps), np.full((1, 3), 1 / 3), grid)
    assert labels.data.flatten().tolist() == [0, 1, 1, 0] and row["volume_1"] == pytest.approx(2)


# ------------------------------------------------------------------------------------------------------------ the method


def test_subjects_that_are_cut_off_do_not_darken_the_atlas():
    """Bodies on a bright ground; one subject in four does not show the last third."""
    _, group = growing(side=24)
    bright = [replace(s, image=replace(s.image, data=s.image.data.amax() - s.image.data)) for s in group.subjects]
    cut = [replace(s, image=Image(s.image.data[..., :16, :], s.image.grid.crop((0, 0), (24, 16)))) if k % 4 == 0 else s for k, s in enumerate(bright)]
    whole, part = (built(Group(tuple(subjects)), steps=2, refinement=NETWORK_ALONE).atlases for subjects in (bright, cut))
    for one, other in zip(whole, part):
        assert float((other.data / one.data)[..., 18:, :].mean()) == pytest.approx(1, abs=0.05)


@pytest.fixture(scope="module")
def grown():
    shape, group = growing(each=8, labels=True)
    return shape, group, built(group, steps=40, iterations=2, group=0.3, ages=(8, 9, 9.5, 10))


def test_the_atlas_is_nearer_to_the_true_mean_shapes_than_the_medians(grown):
    shape, group, result = grown
    ages = Ages.of([s.covariate for s in group.subjects])
    median = medians([normalised(s.image).data for s in group.subjects], ages.basis(ages.known), Silent())
    for k, age in enumerate(AGES):
        limits = np.mean([limits_of(s.image) for s in group.subjects if s.covariate == age], 0)
        truth = normalised(shape.mean(age), tuple(limits)).data[0]
        found = result.atlases[result.ages.index(age)].data[0]
        assert float((found - truth).square().mean()) < 0.95 * float((median[k] - truth).square().mean()), age
    assert result.history[-1]["folds"] < 0.01


def test_what_a_build_over_age_gives(grown):
    shape, group, result = grown
    assert result.ages == (8, 9, 9.5, 10) and [row["age"] for row in result.growth] == [8, 9, 9.5, 10]
    assert torch.allclose(result.atlases[2].data, (result.atlases[1].data + result.atlases[3].data) / 2, atol=1e-5)
    for row in result.growth:
        body = shape.inside(row["age"]).data > 0
        assert row["volume_1"] == pytest.approx(float(body.sum()) * 4, rel=0.06) and row["length_1"] == pytest.approx(growth.length(body, shape.grid), rel=0.1)
    assert all(row["dice"] > 0.85 and row["age"] in AGES for row in result.quality)
    assert result.bridge("a0s00", "a0s01").field(shape.grid).shape == (1, 2, 32, 32)
    with pytest.raises(InputError, match="only subjects of one age share a template"):
        result.bridge("a0s00", "a1s00")


def test_a_greater_groupwise_weight_makes_a_smaller_groupwise_loss():
    _, group = growing(each=6)
    losses = [built(group, group=weight, refinement=NETWORK_ALONE).history[-1]["group_loss"] for weight in (0.0, 100.0)]
    assert losses[1] < 0.2 * losses[0]


def test_it_stops_where_the_atlas_is_stable():
    _, group = growing()
    assert len(built(group, steps=5, iterations=5, change=1.0, refinement=NETWORK_ALONE).history) == 1
    assert len(built(group, steps=5, iterations=3, change=0.0, refinement=NETWORK_ALONE).history) == 3


def test_refined_maps_are_nearer_to_the_true_ones_than_the_networks():
    shape = Growth(Grid.from_parts((32, 32), 2.0), span=(8.0, 10.0))
    group, true = shape.cohort((8.0, 10.0), 6, strength=0.5)

    def apart(**values) -> float:
        result = built(group, steps=20, **values)
        off = []
        for subject, wanted in zip(group.subjects, true):
            body = shape.inside(subject.covariate).data[0, 0] > 0
            off.append((result.transform_of(subject.name).field(shape.grid) - wanted.field(shape.grid))[0][:, body].square().sum(0).mean())
        return float(torch.stack(off).mean().sqrt())

    assert apart() < 0.6 * apart(refinement=NETWORK_ALONE)
    with pytest.raises(InputError, match="3 numbers of steps are needed"):
        built(group, refinement=(5,))


@pytest.mark.parametrize("model", ["table", "generator"])
def test_a_build_that_was_stopped_goes_on_to_the_same_numbers(tmp_path, model):
    _, group = growing(each=2, side=16)
    values = {"width": 4, "steps": 6, "iterations": 2, "change": 0.0, "knots": 3, "preset": "default", "linear": "rigid", "model": model}
    whole = built(group, **values, work=tmp_path / "whole")
    for text in ("rigid", "iteration 1", "subject"):
        monitor = Silent()
        monitor.progress = lambda share, told, step=0, steps=0: monitor.cancel() if text in told and step >= 2 else None
        with pytest.raises(Cancelled):
            built(group, monitor, tmp_path / "parts", **values)
    parts = built(group, **values, work=tmp_path / "parts")
    assert all(torch.equal(one.data, other.data) for one, other in zip(whole.atlases, parts.atlases))
    assert len(parts.history) == len(whole.history)
    with pytest.raises(InputError, match="the state of another atlas"):
        built(group, work=tmp_path / "parts", **{**values, "group": 5.0})


def test_subjects_that_cannot_be_used_are_set_aside(tmp_path):
    _, group = growing(each=2, side=16)
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    ageless = Subject("ageless", group.subjects[0].image)
    broken = Subject("broken", tmp_path / "broken.nii.gz", covariate=9.0)
    result = built(Group((*group.subjects, ageless, broken)), steps=3, width=4)
    assert set(result.set_aside) == {"ageless", "broken"} and "no age is known" in result.set_aside["ageless"]
    with pytest.raises(InputError, match="an age is known of 0 of 2 subjects"):
        built(Group((ageless, Subject("other", ageless.image))))


# ------------------------------------------------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of twelve subjects with a list, and their atlas over age by the network alone."""
    return built_by_command(tmp_path_factory.mktemp("growing"), "--set", "refinement=0,0,0")


@pytest.fixture(scope="module")
def refined(tmp_path_factory):
    """The same with the maps refined, as by default."""
    return built_by_command(tmp_path_factory.mktemp("refined"))


def built_by_command(place, *options):
    """``place`` with the images, their list and the atlas that the command makes of them with some more ``options``."""
    from DeepRegistrationLib.__main__ import main

    _, group = growing(labels=True)
    rows = ["image,subject,labels,weeks,sex"]
    for s in group.subjects:
        write_image(s.image, place / f"{s.name}.nii.gz")
        write_labels(s.labels, place / f"{s.name}_seg.nii.gz")
        rows.append(f"{s.name}.nii.gz,{s.name},{s.name}_seg.nii.gz,{s.covariate:g},f")
    rows.append("a0s00_seg.nii.gz,unknown,,,m")
    (place / "list.csv").write_text("\n".join(rows), "utf-8")
    order = ("atlas", "build", "--cohort", place / "list.csv", "--covariate", "weeks", "--method", "spatiotemporal-atlas:aligned", "--ages", "8,9.5",
             "--iterations", 1, "--set", "steps=20", "--set", "width=4", "--out", place / "atlas", "--device", "cpu", "--threads", 1, "--quiet", *options)
    assert main([str(part) for part in order]) == 0
    return place


def test_what_the_command_leaves(folder):
    out = folder / "atlas"
    record = json.loads((out / "atlas.json").read_text("utf-8"))
    names = {path.name for path in out.iterdir()}
    assert {"atlas_age_8.nii.gz", "atlas_age_9_5.nii.gz", "labels_age_8.nii.gz", "atlas.seq.nrrd", "growth.csv", "network.safetensors"} <= names
    assert record["ages"] == [8, 9.5] and record["age_of"]["a2s01"] == 10 and "no age is known" in record["set_aside"]["unknown"]
    with open(out / "growth.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["age"]) for row in rows] == [8, 9.5] and float(rows[0]["volume_1"]) < float(rows[1]["volume_1"])
    there, back = (read_transform(out / "subjects" / "a0s00" / f"{name}.h5") for name in ("transform", "inverse"))
    points = torch.as_tensor(read_image(out / "atlas.nii.gz").grid.points()[10:20, 10:20].reshape(1, -1, 2)).float()
    assert float((back(there(points)) - points).norm(dim=-1).max()) < 0.1


def test_a_new_subject_is_brought_to_the_atlas_of_its_age(folder, cli, tmp_path):
    order = ("atlas", "apply", "--atlas", folder / "atlas", "--input", folder / "a1s02.nii.gz", "--quiet")
    answer = cli(*order, "--age", 9, "--out", tmp_path / "out")
    assert answer.status == 0, answer.err
    made, kept = (read_transform(path) for path in (tmp_path / "out" / "transform.h5", folder / "atlas" / "subjects" / "a1s02" / "transform.h5"))
    grid = read_image(folder / "atlas" / "atlas.nii.gz").grid
    assert float((made.field(grid) - kept.field(grid)).abs().max()) < 1.0
    assert read_labels(tmp_path / "out" / "labels.nii.gz").values() == [1]
    assert "depends on age" in cli(*order, "--out", tmp_path / "none").sentence()
    assert "the subjects of the atlas are 8 to 10 old" in cli(*order, "--age", 12, "--out", tmp_path / "none").sentence()
    assert "was written for 8 to 9.5" in cli(*order, "--age", 9.9, "--out", tmp_path / "none").sentence()


def test_refined_maps_have_an_inverse_and_bring_labels_to_a_new_subject(refined, cli, tmp_path):
    there, back = (read_transform(refined / "atlas" / "subjects" / "a0s00" / f"{name}.h5") for name in ("transform", "inverse"))
    points = torch.as_tensor(read_image(refined / "atlas" / "atlas.nii.gz").grid.points()[10:20, 10:20].reshape(1, -1, 2)).float()
    apart = (back(there(points)) - points).norm(dim=-1)
    assert float(apart.mean()) < 0.1 and float(apart.max()) < 0.5, "voxels of 2 mm"
    order = ("atlas", "apply", "--atlas", refined / "atlas", "--input", refined / "a1s02.nii.gz", "--quiet")
    answer = cli(*order, "--age", 9, "--out", tmp_path / "out")
    assert answer.status == 0, answer.err
    said, known = (read_labels(path).data > 0 for path in (tmp_path / "out" / "labels.nii.gz", refined / "a1s02_seg.nii.gz"))
    assert 2 * float((said & known).sum()) / float(said.sum() + known.sum()) > 0.95


@pytest.mark.parametrize("options, words", [
    (("--method", "spatiotemporal-atlas"), "needs the age of every subject"),
    (("--covariate", "weeks"), "the method 'icon-atlas' knows no ages"),
    (("--method", "spatiotemporal-atlas", "--covariate", "age"), "has no column 'age'; it has weeks, sex"),
    (("--method", "spatiotemporal-atlas", "--covariate", "sex"), "'sex' of the subject 'a0s00' is 'f'; a number is needed"),
    (("--method", "spatiotemporal-atlas", "--covariate", "weeks", "--init", "mean"), "begins with the medians"),
    (("--method", "spatiotemporal-atlas", "--covariate", "weeks", "--covariates", "none.csv"), "none.csv does not exist"),
    (("--method", "spatiotemporal-atlas", "--covariate", "weeks", "--ages", "8,77"), "the age 77 was asked for"),
])
def test_orders_that_cannot_be_carried_out(folder, cli, tmp_path, options, words):
    answer = cli("atlas", "build", "--cohort", folder / "list.csv", "--set", "linear=none", "--out", tmp_path / "out", "--quiet", *options)
    assert words in answer.sentence()


def test_a_sequence_is_read_by_others(tmp_path):
    import SimpleITK

    grid = Grid.from_parts((3, 4, 5), (1.0, 2.0, 3.0), (7.0, -8.0, 9.0), np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]]))
    images = tuple(Image(torch.rand(1, 1, 3, 4, 5), grid) for _ in range(2))
    write_sequence(images, (8, 9.5), tmp_path / "a.seq.nrrd", "age")
    read = SimpleITK.ReadImage(str(tmp_path / "a.seq.nrrd"))
    assert read.GetMetaData("axis 0 index values") == "8 9.5" and read.GetMetaData("NRRD_kinds[pixel]") == "list"
    assert np.allclose(read.GetOrigin(), grid.origin) and np.allclose(read.GetSpacing(), grid.spacing)
    assert np.allclose(np.reshape(read.GetDirection(), (3, 3)), grid.direction)
    assert np.array_equal(SimpleITK.GetArrayFromImage(read)[..., 1], images[1].data[0, 0].numpy())
