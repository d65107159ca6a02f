"""From an order to weights: the command 'train', the recipes, validation, going on, and the sentences for what cannot be trained."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import cohorts
import numpy as np
import pytest
import torch
from conftest import LIBRARY

from DeepRegistrationLib.errors import Cancelled, InputError
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image, Labels
from DeepRegistrationLib.io import read_image
from DeepRegistrationLib.method import find as find_method
from DeepRegistrationLib.networks import weights
from DeepRegistrationLib.networks.heads import displacement
from DeepRegistrationLib.points import Points
from DeepRegistrationLib.problem import Pair
from DeepRegistrationLib.runtime import Monitor, Runtime
from DeepRegistrationLib.terms import Alignment
from DeepRegistrationLib.train import general, loop, record
from DeepRegistrationLib.train.cohort import read_cohort
from DeepRegistrationLib.train.data import open_data
from DeepRegistrationLib.train.from_images import few_labels
from DeepRegistrationLib.train.recipe import Request, find, registry
from DeepRegistrationLib.train.recipes import general as general_recipe
from DeepRegistrationLib.train.running import Order, carry_out
from DeepRegistrationLib.train.synthesize import random_shapes
from DeepRegistrationLib.train.validate import Validation
from DeepRegistrationLib.transforms import Affine

SMALL = {"width": 2, "levels": 2, "validate": 4}
FLAGS = ("--set", "width=2", "--set", "levels=2", "--set", "validate=4", "--device", "cpu", "--threads", "1")


def ordered(out, **changes) -> Order:
    return Order(**{"recipe": "unet", "out": out, "values": SMALL, "steps": 8, **changes})


def runtime(monitor=None) -> Runtime:
    return Runtime("cpu", threads=1, monitor=monitor or Monitor())


# ---------------------------------------------------------------------------------------------------------- the command


def test_a_network_from_a_folder_registers_a_pair(tmp_path, cli):
    """Weights with a card, the log, pictures, the summary; the method takes the file as it is."""
    folder, out = cohorts.write(tmp_path / "images", 6), tmp_path / "mine"
    (folder / "s05.nii.gz").write_bytes(b"damaged")
    answer = cli("train", "unet", "--data", folder, "--out", out, "--steps", 8, *FLAGS)
    assert answer.status == 0 and "8 steps of recipe unet on cpu" in answer.out and "validation: step" in answer.out
    assert "set aside" in answer.err and "s05.nii.gz" in answer.err
    summary = json.loads((out / "summary.json").read_text())
    assert summary["ended"] == "done" and summary["steps"] == 8 and len(summary["remarks"]) == 1 and summary["images_per_second"] > 0
    assert [row["step"] for row in record.rows(out, "validation")] == [4, 8] and record.rows(out, "validation")[0]["dice"] > 0
    parts = json.loads((out / "split.json").read_text())
    assert {name: len(images) for name, images in parts.items()} == {"train": 3, "validation": 2, "test": 0}
    assert (out / "pictures" / "step-000008.png").read_bytes()[:4] == b"\x89PNG" == (out / "curves.png").read_bytes()[:4]
    network, card = weights.load(str(out / "mine.safetensors"), runtime())
    assert card.sha256 == summary["sha256"] and card.spacing == (1.0, 1.0) and "8 steps were done" in card.training
    best = torch.load(out / "best.pt", weights_only=True)["network"]
    assert all(torch.equal(best[key], value) for key, value in network.state_dict().items())
    pair = Pair(*(read_image(folder / f"s0{k}.nii.gz") for k in range(2)))
    result = find_method("voxelmorph-unet", {"weights": str(out / "mine.safetensors"), "pre_alignment": "none"}).run(pair, runtime())
    assert bool(torch.isfinite(result.warped.data).all())
    assert "holds a training run already; go on with it by --resume" in cli("train", "unet", "--data", folder, "--out", out, *FLAGS).sentence()


def test_a_stopped_run_leaves_weights_and_goes_on(tmp_path, process):
    folder, out = cohorts.write(tmp_path / "images", 4), tmp_path / "order"
    running = process("train", "unet", "--data", folder, "--out", out, "--steps", 100000, *FLAGS)
    began = time.monotonic()
    while len(record.rows(out, "training")) < 6 and time.monotonic() - began < 240:
        assert running.poll() is None, running.communicate()
        time.sleep(0.2)
    running.send_signal(signal.SIGINT)
    errors = running.communicate(timeout=120)[1]
    assert running.returncode == 130 and "a checkpoint is written" in errors and "Traceback" not in errors
    assert f"'train unet --out {out} --resume' goes on from there" in errors
    done = torch.load(out / "checkpoint.pt", weights_only=True)["state"]["step"]
    assert done == len(record.rows(out, "training")) >= 6 and (out / "order-weights.safetensors").exists()
    assert json.loads((out / "order.json").read_text())["recipe"] == "unet", "the card of the weights has another name"
    assert json.loads((out / "summary.json").read_text())["ended"] == "cancelled"


def test_going_on_needs_the_folder_only(tmp_path):
    """A run that is cancelled after five of eight steps and resumed by its folder alone ends with the weights of one that was not."""
    class AfterFive(Monitor):
        seen = 0

        def log(self, **figures):
            self.seen += "cost" in figures
            if self.seen == 5:
                self.cancel()

    folder = cohorts.write(tmp_path / "images", 5)
    whole = carry_out(ordered(tmp_path / "whole", data=folder, seed=2), runtime())
    with pytest.raises(Cancelled):
        carry_out(ordered(tmp_path / "parts", data=folder, seed=2), runtime(AfterFive()))
    parts = carry_out(Order("unet", tmp_path / "parts", resume=True), runtime())
    assert parts["sha256"] == whole["sha256"] and parts["validation"]["score"] == whole["validation"]["score"]
    with pytest.raises(InputError, match=r"has another seed \(2, not 7\); leave it away"):
        carry_out(Order("unet", tmp_path / "parts", seed=7, resume=True), runtime())
    with pytest.raises(InputError, match=r"has another width \(2, not 4\)"):
        carry_out(Order("unet", tmp_path / "parts", {"width": 4}, resume=True), runtime())
    assert carry_out(Order("unet", tmp_path / "parts", {"width": 2}, resume=True), runtime())["sha256"] == whole["sha256"], "a part of the order may be told"
    with pytest.raises(InputError, match="has another recipe"):
        carry_out(Order("general", tmp_path / "parts", resume=True), runtime())


def test_an_early_end_is_told(tmp_path, cli):
    folder = cohorts.write(tmp_path / "images", 4)
    values = ("rate=1e-7", "validate=1", "patience=1", "width=2", "levels=2")
    answer = cli("train", "unet", "--data", folder, "--out", tmp_path / "run", "--steps", 8, *(word for value in values for word in ("--set", value)),
                 "--device", "cpu", "--threads", "1")
    assert answer.status == 0 and "2 steps (of 8: no validation was better for a while) of recipe unet" in answer.out


def test_training_begins_with_given_weights(tmp_path):
    folder = cohorts.write(tmp_path / "images", 4)
    first = carry_out(ordered(tmp_path / "first", data=folder, values={**SMALL, "rate": 1e-2}), runtime())
    still = carry_out(ordered(tmp_path / "second", data=folder, init=first["weights"], steps=1, values={**SMALL, "rate": 1e-7}), runtime())
    a, b = (weights.load(each["weights"], runtime())[0].state_dict() for each in (first, still))
    assert all(torch.allclose(a[key], b[key], atol=1e-6) for key in a)
    with pytest.raises(InputError, match="belong to another network"):
        carry_out(ordered(tmp_path / "third", data=folder, init=first["weights"], values={**SMALL, "width": 4}), runtime())


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed engine")
def test_torchrun_starts_two_processes(tmp_path):
    """One log, one set of weights, and the costs of one process that draws two pairs a step."""
    folder, out = cohorts.write(tmp_path / "images", 4), tmp_path / "two"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "DeepRegistrationLib", "train", "unet",
               "--data", folder, "--out", out, "--steps", "4", *FLAGS]
    done = subprocess.run([str(word) for word in command], env={**os.environ, "PYTHONPATH": str(LIBRARY.parent), "OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("4 steps of recipe unet") == 1 and (out / "two.safetensors").exists()
    alone = carry_out(ordered(tmp_path / "one", data=folder, steps=4, values={**SMALL, "pairs": 2}), runtime())
    rows = [[row["cost"] for row in record.rows(each, "training")] for each in (out, tmp_path / "one")]
    assert rows[0] == pytest.approx(rows[1], rel=1e-4) and alone["steps"] == 4


@pytest.mark.parametrize("arguments, sentence", [
    (("unet",), "learns from images and none were given"),
    (("unet", "--data", "nowhere"), "nowhere does not exist"),
    (("unet", "--data", "{alone}"), "1 usable images of 1 subjects were found, and images of at least two subjects are needed"),
    (("unet", "--data", "{mixed}"), "2D and 3D images are mixed"),
    (("unet", "--data", "{flat}", "--dim", "3"), "the images in {flat} are 2D"),
    (("unet", "--data", "{flat}", "--set", "widht=3"), "did you mean 'width'"),
    (("unet", "--data", "{flat}", "--steps", "0"), "0 steps were asked for"),
    (("unet", "--data", "{flat}", "--init", "none.safetensors"), "neither a file nor known by that name"),
    (("general", "--data", "{flat}"), "makes its own pairs"),
    (("unett", "--data", "{flat}"), "did you mean 'unet'"),
    (("unet", "--data", "{flat}", "--out", "{file}/run"), "cannot be written to"),
    (("unet", "--data", "{flat}", "--spacing", "fine"), "argument --spacing: 'fine' was given; expected a number"),
    (("unet", "--data", "{flat}", "--shape", "8,0"), "the images are 2D, give 2 numbers of at least 1"),
    (("unet", "--data", "{flat}", "--cache", "-5"), "-5 MiB of memory for images were asked for; give 0 or more"),
    (("unet", "--data", "{lost}"), "none of the 1 images can be read: "),
])
def test_sentences(tmp_path, cli, arguments, sentence):
    places = {"alone": cohorts.write(tmp_path / "alone", 1, labels=""), "flat": cohorts.write(tmp_path / "flat", 4, labels=""),
              "mixed": cohorts.write(tmp_path / "mixed", 2, labels=""), "file": tmp_path / "file", "lost": tmp_path / "lost.csv"}
    solid = cohorts.write(tmp_path / "solid", 1, dim=3, labels="")
    shutil.copy(solid / "s00.nii.gz", places["mixed"] / "t.nii.gz")
    places["file"].write_text("")
    places["lost"].write_text("image\nnowhere.nii\n")
    given = [str(word).format(**places) for word in arguments]
    out = () if "--out" in given else ("--out", tmp_path / "out")
    assert sentence.format(**places) in cli("train", *given, *out, "--device", "cpu").sentence()
    assert not (tmp_path / "out").exists(), "nothing is left of a run that could not begin"


def test_the_recipes_are_listed(cli):
    text = cli("train", "list").out
    assert "general: General network" in text and "label_weight = 1.0" in text
    assert "no folder for the run was given" in cli("train", "general").sentence()


# -------------------------------------------------------------------------------------------------------------- recipes


def test_every_recipe_says_what_it_is():
    known = registry()
    assert set(known) >= {"general", "gradicon", "unet"}
    for name, cls in known.items():
        assert cls.card.title and cls.card.summary and cls.card.method and find(name).values() == {p: getattr(find(name), p) for p in find(name).values()}


def test_general_is_what_trained_the_shipped_network(tmp_path, monkeypatch):
    """The same first updates as by hand: the seed before the network, its own generator for the shapes, the settings of ``train.general``."""
    shapes = random_shapes(2, (48, 48), torch.Generator().manual_seed(1))
    monkeypatch.setattr(general, "template_sources", lambda dim: shapes)
    monkeypatch.setattr(general, "SHAPES", 3)
    monkeypatch.setattr(general, "PAIRS", {2: type(general.PAIRS[2])(shape=(32, 32))})
    monkeypatch.setattr(general_recipe, "HELD_OUT", {2: 1})
    done = carry_out(Order("general", tmp_path / "recipe", dim=2, steps=2, seed=5), runtime())
    torch.manual_seed(5)
    network = general_recipe.SymmetricPyramid(2)
    pool = general.sources(2, torch.Generator().manual_seed(5))
    settings = loop.replace(general.SETTINGS[2], steps=2)
    with (active := Runtime("cpu", seed=5, threads=1)).active():
        rows = loop.train(network, general.view, general.OBJECTIVE, general.draw_from(2, pool), settings, tmp_path / "hand", active)
    assert [row["cost"] for row in record.rows(tmp_path / "recipe", "training")] == pytest.approx([row["cost"] for row in rows], rel=1e-6)
    saved, card = weights.load(done["weights"], runtime())
    assert all(torch.equal(value, saved.state_dict()[key]) for key, value in network.state_dict().items()), "the last parameters, to the bit"
    assert card.network == "SymmetricPyramid" and done["validation"]["dice"] > 0


def test_gradicon_is_trained_from_coarse_to_fine_goes_on_and_is_used(tmp_path):
    """Cancelled in its coarse stage and later, it ends with the weights of a run that was not; its last network is the method's."""
    class After(Monitor):
        def __init__(self, count):
            super().__init__()
            self.left = count

        def log(self, **figures):
            self.left -= "cost" in figures
            if self.left == 0:
                self.cancel()

    folder = cohorts.write(tmp_path / "images", 5)
    values = {"width": 2, "levels": 2, "resolutions": 2, "coarse": 4, "validate": 3}
    order = Order("gradicon", tmp_path / "whole", values, folder, steps=6, seed=1)
    whole = carry_out(order, runtime())
    assert [row["step"] for row in record.rows(order.out, "training")] == [1, 2, 3, 4, 5, 6] and len(record.rows(order.out / "stage-1", "training")) == 4
    for count in (2, 5):
        with pytest.raises(Cancelled):
            carry_out(Order("gradicon", tmp_path / "parts", values, folder, steps=6, seed=1, resume=True), runtime(After(count)))
    assert carry_out(Order("gradicon", tmp_path / "parts", resume=True), runtime())["sha256"] == whole["sha256"]
    network, card = weights.load(whole["weights"], runtime())
    assert card.network == "MultiResolution" and network.resolutions == 2 and "4 + 6 steps" in card.training and whole["validation"]["dice"] > 0
    pair = Pair(*(read_image(folder / f"s0{k}.nii.gz") for k in range(2)))
    assert bool(torch.isfinite(find_method("gradicon", {"weights": whole["weights"], "start": "none"}).run(pair, runtime()).warped.data).all())


def test_labels_are_learned_from_where_every_image_has_some(tmp_path):
    """With a label map missing the overlap is no part of the objective and the pairs carry no labels; with all of them both do."""
    folder = cohorts.write(tmp_path, 4)

    def planned():
        return find("unet", SMALL).plan(Request(2, 0, open_data(read_cohort(folder), 0, multiple=4), 5))

    plan = planned()
    assert [type(term).__name__ for _, term in plan.objective.parts] == ["LNCC", "Diffusion", "SoftDice"]
    assert plan.draw(torch.Generator().manual_seed(0)).fixed_labels is not None
    for path in folder.glob("*_seg.nii.gz"):
        path.unlink()
    plan = planned()
    assert [type(term).__name__ for _, term in plan.objective.parts] == ["LNCC", "Diffusion"]
    assert plan.draw(torch.Generator().manual_seed(0)).fixed_labels is None


def test_few_labels_are_drawn_from_many():
    grid = Grid.from_parts((10, 10))
    maps = Labels(torch.arange(100, dtype=torch.int32).reshape(1, 1, 10, 10), grid)
    image = Image(torch.rand(1, 1, 10, 10), grid)
    few, again = (few_labels(Pair(image, image, None, maps, maps), 4, torch.Generator().manual_seed(1)) for _ in range(2))
    assert len(few.fixed_labels.values()) == 4 and few.fixed_labels.values() == few.moving_labels.values() == again.fixed_labels.values()
    assert few_labels(few, 4, torch.Generator()) is few


# ----------------------------------------------------------------------------------------------------------- validation


class Shift(torch.nn.Module):
    """A network that says one shift everywhere."""

    def __init__(self, voxels):
        super().__init__()
        self.voxels = torch.nn.Parameter(torch.tensor(voxels))

    def forward(self, fixed, moving):
        return self.voxels.reshape(1, 2, 1, 1).expand(1, 2, *fixed.shape[2:])


def shifted_pair(labels=True, points=True) -> Pair:
    """The moving image is the fixed one 3 voxels to the right; voxels of 2 mm."""
    grid = Grid.from_parts((32, 32), 2.0)
    images = [Image(cohorts.blob(grid, (28.0 + shift, 30.0), 12.0), grid) for shift in (0.0, 6.0)]
    maps = [Labels((image.data > 0.5).to(torch.int32), grid) for image in images]
    places = [Points(torch.tensor([[[28.0 + shift, 30.0]]])) for shift in (0.0, 6.0)]
    return Pair(*images, None, *(maps if labels else (None, None)), *(places if points else (None, None)))


def view(network, pair):
    return [(1.0, Alignment(pair.fixed, pair.moving, displacement(network(pair.fixed.data, pair.moving.data), pair.fixed.grid)))]


@pytest.mark.parametrize("guides, key, sign", [((True, True), "dice", 1), ((False, True), "tre", -1), ((False, False), "nmi", 1)])
def test_the_score_is_overlap_or_distance_or_similarity(guides, key, sign):
    validation = Validation(lambda: [shifted_pair(*guides)], view, torch.device("cpu"))
    network = Shift([3.0, 0.0]).train()
    right, wrong = validation(network), validation(Shift([0.0, 0.0]))
    assert network.training and right["score"] == sign * right[key] > wrong["score"]
    assert right["folds"] == 0 and right["ncc"] > 0.99 > wrong["ncc"] and ("hd95" in right) == guides[0]
    if guides == (True, True):
        assert right["dice"] > 0.97 > 0.8 > wrong["dice"] and right["tre"] == pytest.approx(0.0, abs=1e-4) and wrong["tre"] == pytest.approx(6.0)
    assert validation.picture(network)[:4] == b"\x89PNG"


def test_validation_can_be_cancelled():
    monitor = Monitor()
    monitor.cancel()
    with pytest.raises(Cancelled):
        Validation(lambda: [shifted_pair()], view, torch.device("cpu"), monitor)(Shift([0.0, 0.0]))


def test_the_picture_of_an_affine_answer(tmp_path):
    """Views may answer with any transform."""
    affine = Affine(torch.as_tensor(np.array([[[1.0, 0, 6], [0, 1, 0], [0, 0, 1]]])).float())
    validation = Validation(lambda: [shifted_pair()], lambda network, pair: [(1.0, Alignment(pair.fixed, pair.moving, affine))], torch.device("cpu"))
    assert validation(torch.nn.Identity())["dice"] > 0.97
