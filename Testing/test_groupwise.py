"""Atlases: where they lie, what they are made of, what happens to a subject that cannot be used, going on, and several processes."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time

import numpy as np
import pytest
import torch
import truths
from cohorts import blob

from DeepRegistrationLib.engines import groupwise
from DeepRegistrationLib.engines.channels import normalised
from DeepRegistrationLib.engines import cluster as dask_cluster
from DeepRegistrationLib.engines.cluster import Cluster
from DeepRegistrationLib.engines.cohort_store import Store, SubjectMap
from DeepRegistrationLib.engines.cohort_work import Registration, better, gradient_energy, gradient_square, judged
from DeepRegistrationLib.engines.consensus import UNSEEN, majority, shares, staple
from DeepRegistrationLib.engines.crew import Crew, Lost
from DeepRegistrationLib.errors import Cancelled, InputError
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image, Labels
from DeepRegistrationLib.io import write_image
from DeepRegistrationLib.method import find
from DeepRegistrationLib.ops import fields
from DeepRegistrationLib.ops.poisson import with_divergence
from DeepRegistrationLib.problem import Group, Subject
from DeepRegistrationLib.runtime import Monitor, Runtime, Silent
from DeepRegistrationLib.transforms import Affine

QUICK = {"linear": "none", "settings": "iterations=0,20,20,5", "factors": (1.0, 1.0)}
SHIFTS = ((-3.0, 1.0, 2.0), (2.0, -2.0, 0.0), (1.0, 3.0, -1.0), (2.0, 2.0, 1.0), (-1.0, -1.0, -1.0))


def shifted(dim: int = 2, side: int = 24, spacing: float = 1.0) -> Group:
    """A ball in five places; their mean is ``middle``."""
    grid = Grid.from_parts((side,) * dim, spacing)
    return Group(tuple(Subject(f"s{k}", Image(blob(grid, grid.centre + shift[:dim], side / 5), grid, name=f"s{k}")) for k, shift in enumerate(SHIFTS)))


def place(image: Image) -> np.ndarray:
    """Center of mass in mm of what is brighter than half."""
    weight = (image.data[0, 0] - 0.5).clamp_min(0).numpy()
    return (image.grid.points() * weight[..., None]).reshape(-1, image.dim).sum(0) / weight.sum()


def built(group: Group, monitor=None, work=None, workers: int = 1, **values):
    return find("icon-atlas", {**QUICK, **values}).run(group, Runtime("cpu", threads=1, monitor=monitor or Silent(), work=work, workers=workers))


# ------------------------------------------------------------------------------------------------------------ where it lies


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("values", [{}, {"start": "subject", "reference": "s0"}, {"linear": "rigid", "linear_iterations": 1}],
                         ids=["mean", "subject", "linear"])
def test_the_atlas_lies_at_the_mean_pose_whatever_it_began_with(dim, values):
    group = shifted(dim)
    result = built(group, **values)
    middle = group.subjects[0].image.grid.centre + np.mean([shift[:dim] for shift in SHIFTS], 0)
    assert np.abs(place(result.atlas) - middle).max() < 0.35
    assert result.history[-1]["mean_displacement_left"] < 0.1 and result.history[-1]["similarity"] > 0.98
    for subject in group.subjects:
        leads_to = result.transform_of(subject.name)(torch.as_tensor(middle)[None, None]).numpy()[0, 0]
        assert np.abs(leads_to - place(subject.image)).max() < 0.7, subject.name


def test_without_centering_the_atlas_stays_with_the_subject_that_it_began_with():
    result = built(shifted(), start="subject", reference="s0", centering=0.0)
    group = shifted()
    middle = group.subjects[0].image.grid.centre + np.mean(SHIFTS, 0)[:2]
    kept = np.linalg.norm(place(result.atlas) - place(group.subjects[0].image))
    assert kept < 0.3 < 2.0 < np.linalg.norm(place(result.atlas) - middle)
    assert result.history[-1]["mean_displacement_left"] == pytest.approx(result.history[-1]["mean_displacement"], rel=0.02)


@pytest.mark.parametrize("dim", [2, 3])
def test_the_correction_makes_the_mean_of_maps_the_identity(dim):
    grid = Grid.from_parts((20, 22, 24)[:dim], 1.5, [4.0, -3.0, 2.0][:dim])
    maps = [SubjectMap(np.eye(dim + 1), truths.random_swirl(k, grid, 0.3).field(grid).float(), grid) for k in range(4)]
    mean = sum(made.field()[None] for made in maps) / 4
    correction, share = groupwise.inverted(mean, grid, 1.0)
    left = sum(made.after(correction).field()[None] for made in maps) / 4
    assert share == 1.0 and groupwise.length(left) < 0.06 * groupwise.length(mean)


@pytest.mark.parametrize("dim", [2, 3])
def test_a_displacement_has_the_divergence_that_was_asked_for(dim):
    """On a turned and flipped lattice, away from its border, where differences are central."""
    direction = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])[:dim, :dim]
    grid = Grid.from_parts((24, 28, 20)[:dim], [1.0, 2.0, 1.5][:dim], [3.0, -5.0, 7.0][:dim], direction)
    wanted = torch.as_tensor(np.exp(-((grid.points() - grid.centre) ** 2).sum(-1) / 50))[None, None]
    wanted = wanted - wanted.mean()
    found = fields.divergence(with_divergence(wanted, grid), grid)
    inner = (slice(None), slice(None), *[slice(3, -3)] * dim)
    assert float((found - wanted)[inner].abs().max()) < 0.08 * float(wanted.abs().max())


def test_the_mean_volume_is_kept_instead_of_the_mean_place():
    group = shifted()
    grid = group.subjects[0].image.grid
    sizes = [Subject(f"r{k}", Image(blob(grid, grid.centre, radius), grid)) for k, radius in enumerate((3.5, 4.0, 5.0, 7.0))]
    rows = {share: built(Group(tuple(sizes)), volume=share).history[-1] for share in (0.0, 1.0)}
    assert rows[1.0]["mean_log_jacobian"] < 0.6 * rows[0.0]["mean_log_jacobian"], rows
    assert rows[1.0]["mean_displacement_left"] > 2 * rows[0.0]["mean_displacement_left"]


def test_headers_that_lie_beside_each_other_are_brought_together():
    subjects = []
    for k, subject in enumerate(shifted().subjects[:3]):
        subjects.append(Subject(f"s{k}", Image(subject.image.data, Grid.from_parts((24, 24), 1.0, [1000.0 * k, 0.0]))))
    result = built(Group(tuple(subjects)))
    assert result.history[-1]["similarity"] > 0.98 and result.history[-1]["mean_displacement_left"] < 0.1
    reached = result.bridge("s0", "s2")(torch.as_tensor(place(subjects[0].image))[None, None])
    assert np.abs(reached.numpy()[0, 0] - place(subjects[2].image)).max() < 0.7


# -------------------------------------------------------------------------------------------------------- the first template


class StopsAt(Monitor):
    """Cancels as soon as a text with ``words`` is reported."""

    def __init__(self, words: str):
        super().__init__()
        self.words = words

    def progress(self, share, text, step=0, steps=0):
        if self.words in text:
            self.cancel()


def test_the_median_is_that_of_every_voxel(tmp_path):
    group = shifted()
    with pytest.raises(Cancelled):
        built(group, StopsAt("subject 1/5"), tmp_path, start="median")
    truth = np.median([normalised(subject.image).data.numpy() for subject in group.subjects], 0)
    assert np.abs(Store(tmp_path).template(0).data.numpy() - truth).max() < 1 / 200


def test_random_starts_differ_by_their_seed_alone(tmp_path):
    found = []
    for k, seed in enumerate((1, 1, 2)):
        runtime = Runtime("cpu", seed, 1, monitor=StopsAt("subject 1/5"), work=tmp_path / str(k))
        with pytest.raises(Cancelled):
            find("icon-atlas", {**QUICK, "start": "random"}).run(shifted(), runtime)
        found.append(Store(tmp_path / str(k)).template(0).data)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_a_subject_to_start_from_must_be_there():
    with pytest.raises(InputError, match="'s9' to start from is not among"):
        built(shifted(), start="subject", reference="s9")


# ---------------------------------------------------------------------------------------------------- what cannot be used


def test_a_broken_file_is_set_aside_with_its_reason(tmp_path):
    subjects = list(shifted().subjects)
    for k, subject in enumerate(subjects):
        write_image(subject.image, tmp_path / f"s{k}.nii.gz")
    (tmp_path / "s1.nii.gz").write_bytes(b"damaged")
    data = (tmp_path / "s3.nii.gz").read_bytes()
    (tmp_path / "s3.nii.gz").write_bytes(data[: len(data) // 2])
    result = built(Group(tuple(Subject(f"s{k}", tmp_path / f"s{k}.nii.gz") for k in range(5))))
    assert result.names == ("s0", "s2", "s4") and set(result.set_aside) == {"s1", "s3"}
    assert all(str(tmp_path) in reason for reason in result.set_aside.values())


def test_fewer_than_two_usable_subjects_are_no_cohort(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(b"damaged")
    group = Group((shifted().subjects[0], Subject("a", tmp_path / "a.nii.gz")))
    with pytest.raises(InputError, match="an atlas needs two"):
        built(group)


def test_where_all_are_lost_the_last_reason_is_told(tmp_path):
    broken = tmp_path / "broken.nii.gz"
    broken.write_text("no image")
    constant = [Subject(name, Image(torch.ones(1, 1, 16, 16), Grid.from_parts((16, 16)))) for name in "ab"]
    with pytest.raises(InputError, match="0 of 2 subjects can be used .* set aside: a, .* has the constant value 1"):
        built(Group((Subject("c", broken), *constant)))


def test_an_image_of_something_else_is_set_aside_as_an_outlier():
    group = shifted()
    grid = group.subjects[0].image.grid
    noise = Image(torch.rand(1, 1, *grid.shape, generator=torch.Generator().manual_seed(0)), grid)
    result = built(Group((*group.subjects, Subject("noise", noise))))
    assert list(result.set_aside) == ["noise"] and "outlier" in result.set_aside["noise"] and len(result.names) == 5
    assert built(Group((*group.subjects, Subject("noise", noise))), outliers=0.0).set_aside == {}


def test_a_map_that_has_lost_the_image_is_not_taken_for_a_good_one():
    """Two voxels always correlate: a map that leads out of the image but for these is no better than the one it began with."""
    grid = Grid.from_parts((20, 24), 1.0)
    noise = torch.rand(1, 1, 20, 24, generator=torch.Generator().manual_seed(0))
    noise[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    ramp, image = Image(torch.arange(24.0).expand(1, 1, 20, 24) / 24, grid), Image(noise, grid)
    begin, out = (SubjectMap(np.array([[1, 0, -x], [0, 1, -y], [0, 0, 1.0]]), None, grid) for x, y in ((0, 0), (22, 19)))
    assert judged(ramp, image, out)["similarity"] > 0.99 and judged(ramp, image, begin)["similarity"] < 0.5
    assert better(ramp, image, begin, out)[0] is begin and better(ramp, image, out, begin)[0] is begin
    moved = SubjectMap(np.array([[1, 0, 5.0], [0, 1, 0], [0, 0, 1]]), None, grid)
    assert better(ramp, ramp, moved, begin)[0] is begin and better(ramp, ramp, begin, moved)[1]["kept"] == 1


@pytest.mark.parametrize("dim", [2, 3])
def test_sharpening_gives_back_the_share_of_energy_that_was_asked_for(dim):
    grid = Grid.from_parts((24, 28, 20)[:dim], [1.0, 1.5, 2.0][:dim])
    image = Image(torch.rand(1, 1, *grid.shape, generator=torch.Generator().manual_seed(0)), grid)
    before = gradient_energy(image.data, grid)
    for share in (0.0, 0.5, 1.0):
        assert gradient_energy(groupwise.sharpened(image, 2 * before, share).data, grid) == pytest.approx((1 + share) * before, rel=1e-3)
    assert torch.equal(groupwise.sharpened(image, before / 2, 1.0).data, image.data)


def test_few_or_equal_subjects_have_no_outliers():
    equal = {f"s{k}": {"similarity": 0.9} for k in range(6)}
    assert groupwise.outliers(equal, 6.0) == {}
    assert groupwise.outliers({"a": {"similarity": 0.9}, "b": {"similarity": 0.1}}, 6.0) == {}
    assert list(groupwise.outliers({**equal, "odd": {"similarity": 0.5}}, 6.0)) == ["odd"]


@pytest.mark.parametrize("subjects, words", [
    ((), "a cohort of no subjects"),
    (("a", "a"), "'a' occurs 2 times"),
    (("a", "b/c"), "'b/c' cannot be that of a folder"),
])
def test_what_is_no_cohort(subjects, words):
    image = shifted().subjects[0].image
    with pytest.raises(InputError, match=words):
        Group(tuple(Subject(name, image) for name in subjects))


@pytest.mark.parametrize("values, words", [
    ({"settings": "speed"}, "expected KEY=VALUE"),
    ({"settings": "iteration=3"}, "did you mean 'iterations'"),
    ({"method": "general", "settings": "", "similarity": "mse"}, "has no similarity 'mse'"),
    ({"method": "icon-atlas", "settings": ""}, "does not register pairs"),
    ({"reference": "s0"}, "'s0' was named to start from and the start is 'mean'"),
])
def test_settings_of_the_pairwise_method_are_looked_at_first(values, words):
    with pytest.raises(InputError, match=words):
        built(shifted(), **values)


def test_a_registration_that_makes_a_subject_less_alike_is_not_taken(tmp_path):
    """A pairwise method that moves everything away: the maps stay what they were."""
    grid = Grid.from_parts((24, 24))
    group, members = shifted(), []
    for subject in group.subjects:
        members.append(groupwise.Member(subject, np.eye(3)))
    with Crew(1) as crew:
        stage = groupwise.Stage(pushed_away)
        found = groupwise.build(tuple(members), grid, (stage,), groupwise.GroupwiseSettings(), groupwise.Place(tmp_path), crew, Silent(), {})
    assert found.rows[0]["not_improved"] == 5 and found.rows[0]["mean_displacement"] == 0.0


def pushed_away(fixed, moving, start, runtime):
    return Affine.translation([9.0, 0.0]) @ start


# ------------------------------------------------------------------------------------------------------ going on, processes


def test_a_stopped_build_goes_on_to_the_same_numbers(tmp_path):
    group, whole = shifted(), built(shifted())
    with pytest.raises(Cancelled):
        built(group, StopsAt("iteration 2/2, subject 3/5"), tmp_path)
    store = Store(tmp_path)
    assert store.state()["iterations"] == 1 and store.figures(1, "s1") is not None and store.figures(1, "s4") is None
    before = (tmp_path / "iteration-01" / "s1.npz").stat().st_mtime_ns
    result = built(group, work=tmp_path)
    assert (tmp_path / "iteration-01" / "s1.npz").stat().st_mtime_ns == before, "a finished subject was done again"
    assert torch.equal(result.atlas.data, whole.atlas.data)
    for name in whole.names:
        assert torch.equal(result.transform_of(name).field(whole.atlas.grid), whole.transform_of(name).field(whole.atlas.grid))
    assert [{**row, "seconds": 0} for row in result.history] == [{**row, "seconds": 0} for row in whole.history]


def test_the_state_of_another_atlas_is_not_gone_on_with(tmp_path):
    with pytest.raises(Cancelled):
        built(shifted(), StopsAt("subject 2/5"), tmp_path)
    with pytest.raises(InputError, match="another atlas \\(different: centering\\)"):
        built(shifted(), work=tmp_path, centering=0.5)


def test_what_a_process_is_told_about_a_subject_holds_no_image(tmp_path, monkeypatch):
    """In the second iteration too, where there are maps to start from: otherwise memory would grow with the cohort."""
    asked, run = [], Crew.run

    def noted(self, function, items, monitor, text):
        asked.extend(item for item in items if isinstance(item, Registration))
        return run(self, function, items, monitor, text)

    monkeypatch.setattr(Crew, "run", noted)
    for k, subject in enumerate(shifted().subjects):
        write_image(subject.image, tmp_path / f"s{k}.nii.gz")
    built(Group(tuple(Subject(f"s{k}", tmp_path / f"s{k}.nii.gz") for k in range(5))))
    assert len(asked) == 10 and max(len(pickle.dumps(order)) for order in asked) < 24 * 24 * 4


def test_several_processes_give_the_same_numbers():
    alone, together = built(shifted()), built(shifted(), workers=2)
    assert torch.equal(alone.atlas.data, together.atlas.data)


def fragile(item, monitor):
    """Squares a number; the first attempt at a path ends the process that makes it."""
    number, path = item
    if path is not None and not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    return number**2, os.getpid()


def hopeless(item, monitor):
    if item == 1:
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
    return item


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_killed_process_costs_its_own_item_alone(tmp_path):
    items = [(k, tmp_path / "killed" if k == 2 else None) for k in range(8)]
    with Crew(2) as crew:
        found = dict(crew.run(fragile, items, Silent(), "item"))
    assert {k: value for k, (value, _) in found.items()} == {k: k**2 for k in range(8)}
    assert len({pid for _, pid in found.values()}) == 3, "the other process was to stay"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_an_item_that_ends_its_process_twice_is_lost():
    with Crew(2) as crew:
        found = dict(crew.run(hopeless, [0, 1, 2], Silent(), "item"))
    assert found[0] == 0 and found[2] == 2 and isinstance(found[1], Lost) and "memory" in found[1].reason


def sleepy(item, monitor):
    time.sleep(60)


def test_a_cancelled_crew_ends_its_processes_at_once():
    began, monitor = time.perf_counter(), Silent()
    with pytest.raises(Cancelled), Crew(2) as crew:
        monitor.cancel()
        list(crew.run(sleepy, [0, 1], monitor, "item"))
    assert time.perf_counter() - began < 20


@pytest.fixture
def scheduler():
    """The address of a Dask scheduler with two workers of one thread on this machine."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1") as cluster:
        yield cluster.scheduler_address


@pytest.mark.slow
def test_the_workers_of_a_scheduler_give_the_same_numbers(scheduler, tmp_path):
    values = {**QUICK, "start": "median"}
    alone = find("icon-atlas", values).run(shifted(), Runtime("cpu", threads=1))
    together = find("icon-atlas", values).run(shifted(), Runtime("cpu", threads=1, work=tmp_path, scheduler=scheduler))
    assert torch.equal(alone.atlas.data, together.atlas.data)


@pytest.mark.slow
def test_a_killed_worker_of_a_scheduler_costs_its_own_item_alone(scheduler, tmp_path):
    """The items that wait behind the hopeless one are blamed for the death of its workers too, and have to be tried once more."""
    items = [(k, tmp_path / "killed" if k == 2 else None) for k in range(8)]
    with Cluster(scheduler) as cluster:
        found = dict(cluster.run(fragile, items, Silent(), "item"))
        lost = dict(cluster.run(hopeless, [1, 0, 2], Silent(), "item"))
        monitor = Silent()
        monitor.cancel()
        with pytest.raises(Cancelled):
            list(cluster.run(sleepy, [0, 1], monitor, "item"))
    assert {k: value for k, (value, _) in found.items()} == {k: k**2 for k in range(8)}
    assert lost[1] == 0 and lost[2] == 2 and isinstance(lost[0], Lost)


@pytest.mark.slow
def test_a_scheduler_without_workers_is_waited_for_and_then_told(monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(dask_cluster, "ABSENCE", 1)
    with distributed.LocalCluster(n_workers=0, dashboard_address=None, host="127.0.0.1") as empty, Cluster(empty.scheduler_address) as cluster:
        with pytest.raises(InputError, match="no workers for 1 s"):
            list(cluster.run(hopeless, [0], Silent(), "item"))


def test_a_scheduler_that_is_not_there_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match="pip install distributed"):
        Cluster("tcp://127.0.0.1:1")


# -------------------------------------------------------------------------------------------------------------- consensus


def raters(errors, n: int = 4000, labels: int = 3):
    """(truth, raters): each gives a wrong label to its share of the voxels."""
    generator = torch.Generator().manual_seed(3)
    truth = torch.randint(0, labels, (n,), generator=generator, dtype=torch.int32)
    said = []
    for error in errors:
        wrong = torch.rand(n, generator=generator) < error
        said.append(torch.where(wrong, (truth + 1 + torch.randint(0, labels - 1, (n,), generator=generator)) % labels, truth).int())
    return truth, lambda: iter(said)


def test_staple_finds_out_whom_to_trust():
    truth, said = raters((0.02, 0.02, 0.55, 0.55, 0.55))
    label, share = majority(shares(said, [0, 1, 2]))
    estimated = staple(said, [0, 1, 2], label, share)
    wrong = [float((each != truth).float().mean()) for each in (label, estimated)]
    assert wrong[1] < 0.03 < 0.1 < wrong[0], wrong


def test_two_labels_by_staple_are_those_of_simpleitk():
    sitk = pytest.importorskip("SimpleITK")
    truth, said = raters((0.05, 0.1, 0.2, 0.3), labels=2)
    label, share = majority(shares(said, [0, 1]))
    ours = staple(said, [0, 1], label, share)
    images = [sitk.GetImageFromArray(each.numpy().astype(np.uint8).reshape(40, 100)) for each in said()]
    theirs = torch.from_numpy(sitk.GetArrayFromImage(sitk.STAPLE(images, 1.0)).reshape(-1) > 0.5)
    assert float((ours == theirs.int()).float().mean()) > 0.99


def test_shares_are_counted_the_same_in_one_pass_or_several(monkeypatch):
    truth, said = raters((0.1, 0.2, 0.3))
    whole = [share for _, share in shares(said, [0, 1, 2])]
    monkeypatch.setattr("DeepRegistrationLib.engines.consensus.BLOCK", 1)
    assert all(torch.equal(one, other) for one, (_, other) in zip(whole, shares(said, [0, 1, 2])))
    assert torch.allclose(sum(whole), torch.ones(len(truth)))


def test_who_does_not_see_a_voxel_has_no_say_in_it():
    """Half of the raters see half of the voxels: shares, majority and STAPLE there are those of the others; where nobody sees, it is background."""
    truth, said = raters((0.02, 0.02, 0.3))
    half = torch.arange(len(truth)) < len(truth) // 2
    blind = [each.masked_fill(half, UNSEEN) for each in said()]
    alone = [share for _, share in shares(said, [0, 1, 2])]
    both = [share for _, share in shares(lambda: iter([*said(), *blind]), [0, 1, 2])]
    assert all(torch.equal(one, other) for one, other in zip(alone, both)) and torch.allclose(sum(both), torch.ones(len(truth)))
    label, share = majority(zip((0, 1, 2), both))
    made = staple(lambda: iter([*said(), *blind]), [0, 1, 2], label, share)
    assert float((made != truth).float().mean()) < 0.03
    nobody = lambda: iter(blind)  # noqa: E731
    label, share = majority(shares(nobody, [0, 1, 2]))
    assert not label[half].any() and not staple(nobody, [0, 1, 2], label, share)[half].any()


def test_a_subject_with_a_smaller_field_of_view_does_not_vote_for_background_outside_of_it():
    """Two of five subjects are cropped through the labeled ball: its share stays 1 where only the others see it. A label map that is smaller than its
    image, as Slicer writes them, does say background."""
    grid = Grid.from_parts((24, 24), 1.0)
    image = Image(torch.as_tensor(np.exp(-((grid.points() - 11.5) ** 2).sum(-1) / 60)).float()[None, None], grid)
    labels = Labels((image.data > 0.5).int(), grid)
    small = grid.crop((0, 0), (24, 14))
    cut = [Subject(f"c{k}", image.at(small), Labels(labels.data[:, :, :14], small)) for k in range(2)]
    whole = [Subject(f"w{k}", image, Labels(labels.data[:, :, 4:20, 4:20], grid.crop((4, 4), (20, 20)))) for k in range(3)]
    result = built(Group((*whole, *cut)))
    share, seen = result.probability_of(1), labels.at(result.atlas.grid)
    assert float((share.data[seen.data > 0] > 0.99).float().mean()) > 0.9
    for name in ("majority", "staple"):
        made = result.labels[name].data > 0
        assert 2 * float((made & (seen.data > 0)).sum()) / float(made.sum() + (seen.data > 0).sum()) > 0.97, name
    assert float(share.data[seen.data == 0].mean()) < 0.05


def test_copies_are_remarked_on():
    group = shifted()
    first = group.subjects[0]
    result = built(Group((*group.subjects, Subject("again", first.image))))
    assert set(result.remarks) == {"again"} and f"copy of {first.name}" in result.remarks["again"]


def test_labels_of_the_subjects_meet_in_the_consensus():
    group = shifted()
    labels = [Labels((subject.image.data > 0.5).int(), subject.image.grid) for subject in group.subjects]
    result = built(Group(tuple(Subject(s.name, s.image, map_) for s, map_ in zip(group.subjects, labels))))
    assert result.values == [1] and all(row["dice"] > 0.93 for row in result.quality)
    assert set(result.labels) == {"majority", "staple"} and result.remarks == {} and float(result.probability_of(1).data.max()) == 1.0
    assert float((result.labels["staple"].data != result.labels["majority"].data).float().mean()) < 0.02


def test_the_gradient_is_that_of_the_world():
    grid = Grid((12, 14), np.array([[0.0, 2.0, 0], [-1.5, 0.0, 0], [0, 0, 1.0]]))
    ramp = torch.as_tensor(grid.points() @ np.array([3.0, -4.0])).float()[None, None]
    assert torch.allclose(gradient_square(ramp, grid), torch.full((1, 1, 12, 14), 25.0), atol=1e-3)
