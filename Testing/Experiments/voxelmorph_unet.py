"""voxelmorph-unet: U-Nets that learn to register without a truth, from digits to volumes, and what makes such a training fail.

Claims: (a) digits (scikit-learn's 8 x 8, read at 32 x 32): on pairs of fives that were not trained on the squared difference falls by at least
40 %; brain slices (cohort2d-oasis, 15 people to train, 5 to test; phantoms without the data): correlation rises in the mean; the published
weights of VoxelMorph-2 reach 0.7146 +- 0.005 mean Dice of the 30 structures of brain3d-pair-labelled with 1.47 +- 0.1 % folds. (b) Volumes of
64^3 mm around the hippocampus: there is no hippocampus data set, so they are cut from the two people of brain3d-pair-labelled, both sides,
and varied by random diffeomorphisms; one person trains, the other one tests. The network sees them at 2 mm, every pair moved anew at random, and
learns from the training person's label maps too. The moving mean of the training cost falls throughout, and Dice of hippocampus and amygdala
rises by more than 0.10 over no registration. Then the laboratory's failure: the same network and volumes (32^3)
in set-ups with one mistake or two. Its signature, a cost that rises to tens and more and a black image, is that of too long steps of Adam: one
throws the map out of the image, where the image has no slope and nothing brings it back; what then rises is the smoothness term alone, so
without it the cost stays flat. Wrong units or intensities to 255 alone do not show it. (c) cohort3d-slab-labelled, moved
by known rigid motions: no, rigid and affine alignment before the network, at 1 and 2 mm (the study: 1.5 and 2 mm of images of 0.45 mm in plane). Pairs
of six children train; pairs of two others test, and those of three visits of a ninth one, which are what the study is about. Rigid alignment
beats none. The short run trains each network for 80 steps on six pairs: enough to see what the alignment does. With ``--full`` (600 steps on all
30 pairs) a network also has to add to what rigid alignment reaches.

A run that was stopped goes on where it stopped when it is called again with the same ``--out``.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
import torch
from common import Experiment  # before the others: it says where the tests, the benchmark and the library are

import truths
from DeepRegistrationLib.engines.linear import LinearSettings, align_linear
from DeepRegistrationLib.engines.network_pair import through
from DeepRegistrationLib.evaluate import metrics
from DeepRegistrationLib.evaluate.report import overlay_picture
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image, Labels
from DeepRegistrationLib.io import read_image, read_labels
from DeepRegistrationLib.method import find
from DeepRegistrationLib.networks import heads
from DeepRegistrationLib.networks.unet import UNet
from DeepRegistrationLib.ops import fields
from DeepRegistrationLib.ops.sample import index_points, sample
from DeepRegistrationLib.problem import Pair
from DeepRegistrationLib.result import warp
from DeepRegistrationLib.terms import MSE, Diffusion
from DeepRegistrationLib.train import record
from DeepRegistrationLib.train.augment import NONE, augmented
from DeepRegistrationLib.train.loop import TrainingSettings, train
from DeepRegistrationLib.train.synthesize import Synthesis, random_velocity
from DeepRegistrationLib.train.unet import UNetRecipe, all_pairs, objective, view
from DeepRegistrationLib.transforms import Affine, Displacement, Identity

STRUCTURES = {17: 1, 53: 1, 18: 2, 54: 2}
"""FreeSurfer's hippocampus and amygdala, left and right -> one label each."""
SPACINGS, OTHERS, SAME = (1.0, 2.0), "two other children", "one child, three visits"
FALL, GAIN, DICE, FOLDS = 0.40, 0.10, (0.7146, 0.005), (1.47, 0.1)
WINDOW = 5
"""The moving mean of the training cost is looked at in so many equal parts of the training."""


def learn(experiment: Experiment, name: str, network, draw, recipe: UNetRecipe, steps: int, rate: float = 1e-3):
    """Train ``network`` by the loop of the library, from where an earlier call with the same ``--out`` was stopped; returns it with the costs of its
    steps and the seconds of one step."""
    folder = experiment.arguments.out / "training" / f"{name.replace(' ', '-')}-{steps}"
    train(network, view, objective(recipe, network.output), draw, TrainingSettings(steps, rate), folder, experiment.runtime)
    log = record.rows(folder, "training")
    return network.eval(), [row["cost"] for row in log], float(np.median([row["seconds"] for row in log]))


def moving_means(costs) -> list[float]:
    """Means over ``WINDOW`` equal parts of a training."""
    return [float(np.mean(part)) for part in np.array_split(costs, WINDOW)]


@torch.no_grad()
def answer(network, pair: Pair):
    """The transform that a trained network says."""
    return heads.transform(network(pair.fixed.data, pair.moving.at(pair.fixed.grid).data), pair.fixed.grid, network.output)


# ------------------------------------------------------------------------------------------------------------------ (a)


def digits(number: int) -> Image:
    """All images of one digit as a batch on 32 x 32 pixels, in [0, 1]."""
    from sklearn.datasets import load_digits

    data = load_digits()
    small = torch.as_tensor(data.images[data.target == number] / 16.0).float()[:, None]
    read = Image(small, Grid.from_parts((8, 8), 4.0, [1.5, 1.5])).at(Grid.from_parts((32, 32)), "cubic")
    return replace(read, data=read.data.clamp(0, 1))


def batch_of(images: Image, generator, count: int = 16) -> Pair:
    """``count`` random pairs of a batch as one pair of batches."""
    one, other = (torch.randint(images.data.shape[0], (count,), generator=generator) for _ in range(2))
    return Pair(replace(images, data=images.data[one]), replace(images, data=images.data[other]))


def squares(network, pair: Pair) -> tuple[float, float]:
    """Mean squared difference of the images of a pair before and after."""
    moved = through(pair.moving, answer(network, pair), pair.fixed.grid).data
    return tuple(float((x - pair.fixed.data).square().mean()) for x in (pair.moving.data, moved))


def on_digits(experiment: Experiment) -> None:
    """(a), digits: the fives train, other fives and the sevens test."""
    fives = digits(5)
    seen, unseen = (replace(fives, data=part) for part in (fives.data[:140], fives.data[140:]))
    torch.manual_seed(experiment.seed)
    network = UNet(2, (16, 32), (32, 32), (16,))
    network, costs, seconds = learn(experiment, "digits", network, lambda generator: batch_of(seen, generator), UNetRecipe("mse", 0.5),
                                    600 if experiment.arguments.full else 200, 2e-3)
    figures = {"moving mean of the cost": moving_means(costs), "seconds a step": seconds}
    for name, images in (("fives", unseen), ("sevens", digits(7))):
        pair = batch_of(images, torch.Generator().manual_seed(1), 64)
        before, after = squares(network, pair)
        folds = 100 * float((answer(network, pair).jacobian_determinant(pair.fixed.grid) <= 0).float().mean())
        figures[name] = {"before": before, "after": after, "fall": 1 - after / before, "folds_percent": folds}
    experiment.figures["digits"] = figures
    experiment.at_least("digits: fall of the squared difference of unseen fives", figures["fives"]["fall"], FALL)


def slices(experiment: Experiment) -> tuple[list[Image], str]:
    """Twenty slices of 128 x 128 in [0, 1], and what they are."""
    folder = experiment.arguments.data / "cohort2d-oasis"
    if folder.is_dir():
        images = [read_image(path, channels="gray") for path in sorted(folder.glob("slice_*.png"))]
        return [Image(i.data.float() / 255, Grid.from_parts(i.grid.shape)) for i in images], "cohort2d-oasis"
    grid = Grid.from_parts((128, 128))
    phantom = truths.Phantom(3, grid)
    return [phantom.image(grid, truths.random_diffeomorphism(k, grid, 0.3, 0.3)) for k in range(20)], "phantoms"


def on_slices(experiment: Experiment):
    """(a), slices; returns (fixed, before, after) of a test pair for the picture."""
    images, source = slices(experiment)
    torch.manual_seed(experiment.seed)
    network = UNet(2, (16, 32, 32), (32, 32, 32), (16,), "velocity")
    network, costs, seconds = learn(experiment, "slices", network, all_pairs(images[:15]), UNetRecipe("mse", 0.5),
                                    1000 if experiment.arguments.full else 200)
    rows = []
    for fixed, moving in permutations(images[15:], 2):
        transform = answer(network, Pair(fixed, moving))
        moved = through(moving, transform, fixed.grid)
        folds = 100 * float((transform.jacobian_determinant(fixed.grid) <= 0).float().mean())
        rows.append((metrics.correlation(fixed.data, moving.data), metrics.correlation(fixed.data, moved.data), folds))
    before, after, folds = np.mean(rows, 0)
    experiment.figures["slices"] = {"source": source, "moving mean of the cost": moving_means(costs), "seconds a step": seconds, "test pairs": len(rows),
                                    "correlation before": before, "correlation after": after, "folds_percent": folds}
    experiment.at_least("slices: gain of correlation on unseen people", after - before, 0.02)
    experiment.at_most("slices: folds of the velocity network in percent", folds, 0.05)
    return fixed, moving, moved


def published(experiment: Experiment) -> None:
    """(a), 3D: the published weights on the pair that they were measured on."""
    data = experiment.arguments.data
    name, case = data / "weights" / "voxelmorph2018-brain3d-cc.h5", data / "brain3d-pair-labelled"
    if not (name.is_file() and case.is_dir()):
        experiment.figures["published weights"] = "not measured: no data"
        return
    fixed, moving = (read_image(case / f"{side}.nii.gz") for side in ("fixed", "moving"))
    labels = [read_labels(case / f"{side}_seg.nii.gz") for side in ("fixed", "moving")]
    cpu = time.process_time()
    result = find("voxelmorph-unet:aligned", {"weights": str(name)}).run(Pair(fixed, moving), experiment.runtime)
    cpu = time.process_time() - cpu
    dice = mean_dice(*labels, result.transform, structures30(case))
    folds = 100 * metrics.jacobian_scores(result.transform, fixed.grid, fixed.data > 0)["folds"]
    experiment.figures["published weights"] = {"dice": dice, "folds_percent": folds, "wall_seconds": result.provenance["wall_seconds"], "cpu_seconds": cpu}
    experiment.at_most("published weights: distance of mean Dice from 0.7146", abs(dice - DICE[0]), DICE[1])
    experiment.at_most("published weights: distance of folds in percent from 1.47", abs(folds - FOLDS[0]), FOLDS[1])


def structures30(case) -> list[int]:
    """The labels that the case names."""
    return [int(v) for v in json.loads((case / "structures30.json").read_text("utf-8"))]


def mean_dice(fixed_labels: Labels, moving_labels: Labels, transform, values) -> float:
    return float(np.nanmean(list(metrics.dice_per_label(fixed_labels, warp(moving_labels, transform, fixed_labels.grid), values).values())))


# ------------------------------------------------------------------------------------------------------------------ (b)


@dataclass(frozen=True, eq=False)
class Population:
    """Volumes of one person or of one phantom, varied."""

    images: list[Image]
    labels: list[Labels]


def around_hippocampus(experiment: Experiment, side: str, edge: int = 64) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """[(image in [0, 1], labels)] (1, 1, 64, 64, 64) of both sides of one person, the right one mirrored; phantoms without the data."""
    case = experiment.arguments.data / "brain3d-pair-labelled"
    if not case.is_dir():
        grid = Grid.from_parts((edge,) * 3)
        phantoms = [truths.Phantom(seed, grid) for seed in ((1, 2) if side == "fixed" else (3, 4))]
        return [(p.image(grid).data, p.label_map(grid).data.float()) for p in phantoms]
    image, labels = read_image(case / f"{side}.nii.gz"), read_labels(case / f"{side}_seg.nii.gz")
    found = []
    for values, mirrored in (((17, 18), False), ((53, 54), True)):
        inside = torch.isin(labels.data, torch.tensor(values))
        middle = inside.nonzero().float().mean(0)[2:].round().int().tolist()
        cut = (..., *(slice(m - edge // 2, m + edge // 2) for m in middle))
        map_ = sum(new * (labels.data[cut] == old).float() for old, new in STRUCTURES.items() if old in values)
        parts = image.data[cut].float() / 255, map_
        found.append(tuple(x.flip(-1) if mirrored else x for x in parts))
    return found


def population(bases, count: int, seed: int) -> Population:
    """``count`` volumes: the bases in turn, each seen through a random diffeomorphism of up to 5 mm root mean square an axis."""
    grid = Grid.from_parts(bases[0][0].shape[2:])
    motion, images, labels = Synthesis(shape=grid.shape, widths=(12.0, 6.0), motions=(7.0, 2.5)), [], []
    for k in range(count):
        generator = torch.Generator().manual_seed(seed * 1000 + k)
        moved = Displacement(fields.exp(random_velocity(grid, motion, generator), grid, 6, "border"), grid)
        image, map_ = bases[k % len(bases)]
        images.append(through(Image(image, grid), moved, grid))
        labels.append(warp(Labels(map_, grid), moved, grid))
    return Population(images, labels)


def coarser(people: Population, spacing: float = 2.0) -> Population:
    """The volumes as the network sees them."""
    return Population([i.smoothed_to(spacing) for i in people.images], [m.smoothed_to(spacing) for m in people.labels])


def varied(people: Population):
    """generator -> a pair of the volumes, moved anew every time; as it was where that loses a label."""
    draw, moved = all_pairs(people.images, people.labels), replace(NONE, affine=0.8, elastic=0.8, motions=(0.04, 0.016))

    def drawn(generator):
        pair = draw(generator)
        changed = augmented(pair, moved, generator)
        whole = all(getattr(changed, side).values() == getattr(pair, side).values() for side in ("fixed_labels", "moving_labels"))
        return changed if whole else pair

    return drawn


def on_hippocampus(experiment: Experiment) -> Population:
    """(b), the run that works; returns the training volumes."""
    training, test = (population(around_hippocampus(experiment, side), count, seed) for side, count, seed in (("fixed", 12, 1), ("moving", 6, 2)))
    torch.manual_seed(experiment.seed)
    network = UNet(3, (16, 32, 32, 32), (32, 32, 32, 16), ())
    recipe = UNetRecipe("mse", weight=0.5, label_weight=1.0, noise=0.05)
    network, costs, seconds = learn(experiment, "hippocampus", network, varied(coarser(training)), recipe, 2000, 3e-3)
    scores, seen = [], coarser(test)
    for i, j in permutations(range(6), 2):
        transform = answer(network, Pair(seen.images[i], seen.images[j]))
        folds = 100 * float((transform.jacobian_determinant(test.images[i].grid) <= 0).float().mean())
        scores.append((*(mean_dice(test.labels[i], test.labels[j], t, (1, 2)) for t in (Identity(3), transform)), folds))
    before, after, folds = np.mean(scores, 0)
    means = moving_means(costs)
    experiment.figures["hippocampus"] = {"moving mean of the cost": means, "seconds a step": seconds, "test pairs": len(scores), "dice before": before,
                                         "dice after": after, "folds_percent": folds}
    experiment.at_most("hippocampus: largest rise between parts of the training cost's moving mean", max(np.diff(means)), 0.0)
    experiment.at_least("hippocampus: gain of Dice on the other person", after - before, GAIN)
    return training


@dataclass(frozen=True)
class SetUp:
    """How the laboratory's training may have been put together. unit: what the network's numbers are taken for ('voxels'; 'shares' of half the
    image, as grid_sample counts; 'places': positions in such shares instead of displacements); scale: largest intensity; rate of Adam; silent:
    the last layer begins near 0; weight: of the squared gradient, in the unit of the numbers."""

    unit: str = "voxels"
    scale: float = 1.0
    rate: float = 1e-3
    silent: bool = True
    weight: float = 1.0


SET_UPS = {"right": SetUp(), "voxels taken for shares": SetUp("shares"), "places instead of displacements": SetUp("places"),
           "intensities to 255": SetUp(scale=255.0), "shares, last layer not near 0": SetUp("shares", silent=False), "rate 0.03": SetUp(rate=0.03),
           "shares, rate 0.03": SetUp("shares", rate=0.03, silent=False), "rate 0.03, no smoothness": SetUp(rate=0.03, weight=0.0)}


def laboratory(images: list[Image], set_up: SetUp, steps: int) -> dict:
    """Costs and what is left of the warped image when a network of the laboratory's kind is trained in a set-up."""
    torch.manual_seed(0)
    grid = images[0].grid
    network = UNet(3, (8, 16), (16, 8), (8,))
    if not set_up.silent:
        torch.nn.init.kaiming_normal_(network.flow.weight)
    adam, draw, costs, black = torch.optim.Adam(network.parameters(), lr=set_up.rate), all_pairs(images), [], []
    half = torch.tensor([n / 2 for n in grid.size]).reshape(1, -1, 1, 1, 1)
    base = (index_points(grid).movedim(-1, 1) + 0.5) / half - 1
    for step in range(steps):
        pair = draw(torch.Generator().manual_seed(step))
        fixed, moving = (set_up.scale * image.data for image in (pair.fixed, pair.moving))
        said = network(fixed, moving)
        places = said if set_up.unit == "places" else base + said / (half if set_up.unit == "voxels" else 1)
        index = ((places + 1) * half - 0.5).movedim(1, -1)
        warped = sample(moving, index, padding="zeros")
        cost = (MSE().compare(fixed, warped) + set_up.weight * Diffusion().penalty(said, grid)).mean()
        adam.zero_grad()
        cost.backward()
        adam.step()
        costs.append(float(cost.detach()))
        black.append(float(fixed.square().mean()))
    means = moving_means(costs)
    seen = float(warped.detach().abs().mean() / moving.abs().mean())
    return {"moving mean of the cost": means, "last over a black image's": means[-1] / moving_means(black)[-1], "brightness left": seen}


def failures(experiment: Experiment, training: Population) -> None:
    """(b), the laboratory's failure in small."""
    images = coarser(training).images
    figures = {name: laboratory(images, set_up, 150 if experiment.arguments.full else 40) for name, set_up in SET_UPS.items()}
    experiment.figures["laboratory"] = figures
    cost, seen = "last over a black image's", "brightness left"
    experiment.figures["laboratory, rising and black"] = [name for name, found in figures.items() if found[cost] > 2 and found[seen] < 0.1]
    for name in ("right", "voxels taken for shares", "intensities to 255"):
        experiment.at_least(f"laboratory, '{name}': brightness of the warped image", figures[name][seen], 0.9)
        experiment.at_most(f"laboratory, '{name}': last moving mean of the cost over that of a black image", figures[name][cost], 0.8)
    for name in ("rate 0.03", "shares, rate 0.03"):
        experiment.at_most(f"laboratory, '{name}': brightness of the warped image", figures[name][seen], 0.1)
        experiment.at_least(f"laboratory, '{name}': last moving mean of the cost over that of a black image", figures[name][cost], 2.0)
    flat = figures["rate 0.03, no smoothness"][cost]
    experiment.at_most("laboratory, 'rate 0.03, no smoothness': last moving mean of the cost over that of a black image", flat, 1.1)


# ------------------------------------------------------------------------------------------------------------------ (c)


def slabs(experiment: Experiment) -> tuple[Population, Population]:
    """Slabs in [0, 1] with four tissues: of eight children, and of three visits of a ninth one; phantoms without the data."""
    data = experiment.arguments.data
    if not (data / "cohort3d-slab-labelled").is_dir():
        grid, phantom = Grid.from_parts((40, 18, 48), 2.0), truths.Phantom(5, Grid.from_parts((40, 18, 48), 2.0))
        maps = [truths.random_diffeomorphism(k, grid, 0.3, 0.3 if k < 8 else 0.1) for k in range(11)]
        images, labels = [phantom.image(grid, m) for m in maps], [phantom.label_map(grid, m) for m in maps]
        return Population(images[:8], labels[:8]), Population(images[8:], labels[8:])
    return tuple(of_files(sorted((data / name).glob(names)))
                 for name, names in (("cohort3d-slab-labelled", "subj??.nii.gz"), ("longitudinal-slab", "visit?.nii.gz")))


def of_files(names) -> Population:
    """Images of bytes with their label maps."""
    images = [read_image(path) for path in names]
    labels = [read_labels(path.with_name(path.name.replace(".nii.gz", "_seg.nii.gz"))) for path in names]
    return Population([replace(i, data=i.data.float() / 255) for i in images], labels)


def motion(image, seed: int):
    """A rigid map about the image's centre: up to 6 degrees and 6 mm, as a child lies differently in the scanner."""
    drawn = 2 * torch.rand(1, 6, generator=torch.Generator().manual_seed(seed)).double() - 1
    values = drawn * torch.tensor([6.0, 6.0, 6.0, *[np.deg2rad(6.0)] * 3]).double()
    return Affine.from_parameters("rigid", values, torch.as_tensor(image.grid.centre))


def displaced(cohort: Population, numbers, seed: int = 0) -> list[tuple[Image, Labels, Image, Labels]]:
    """Pairs of a cohort; the header of the moving image has been moved."""
    found = []
    for i, j in numbers:
        matrix = motion(cohort.images[j], seed + 100 * i + j).numpy()
        image, map_ = cohort.images[j], cohort.labels[j]
        found.append((cohort.images[i], cohort.labels[i], replace(image, grid=image.grid.moved(matrix)), replace(map_, grid=map_.grid.moved(matrix))))
    return found


def aligned(pairs, freedom: str, runtime):
    """The linear map of every pair and the seconds that one took."""
    if freedom == "none":
        return [Identity(3)] * len(pairs), 0.0
    began, settings = time.perf_counter(), LinearSettings(freedom=freedom, samples=5000)
    maps = [align_linear(Pair(fixed, moving), settings, runtime) for fixed, _, moving, _ in pairs]
    return maps, (time.perf_counter() - began) / len(pairs)


def on_lattice(fixed: Image, moving: Image, linear, spacing: float, multiple: int = 8) -> Pair:
    """A pair at a spacing: the fixed image where it is not 0, on a lattice that a network can halve; the moving one through its linear map, on
    small voxels: between large ones an image is smoother, and a network learns to shift by a quarter of a voxel for that alone."""
    inside = (fixed.data[0, 0] > 0).nonzero().flip(-1).numpy()
    grid = fixed.grid.crop(inside.min(0), inside.max(0) + 1).resample(spacing)
    missing = -np.array(grid.size) % multiple
    grid = grid.crop(-(missing // 2), np.array(grid.size) + missing - missing // 2)
    return Pair(fixed.smoothed_to(spacing).at(grid), through(moving.smoothed_to(spacing), linear, grid.resample(fixed.grid.spacing)))


def part(pair: Pair, generator, edge: int = 96) -> Pair:
    """A pair with at most ``edge`` voxels an axis of its fixed image."""
    size = np.array(pair.fixed.grid.size)
    lower = np.array([int(torch.randint(max(n - edge, 0) + 1, (), generator=generator)) for n in size])
    return Pair(pair.fixed.at(pair.fixed.grid.crop(lower, lower + np.minimum(size, edge))), pair.moving)


def cell(experiment: Experiment, name: str, training, tests: dict, spacing: float, steps: int) -> dict:
    """One cell of the grid: a network trained on aligned pairs at a spacing, scored on sets of test pairs at their own spacing. training and the
    sets: (pairs, their linear maps)."""
    pairs = [on_lattice(fixed, moving, linear, spacing) for (fixed, _, moving, _), linear in zip(*training)]
    torch.manual_seed(experiment.seed)
    network = UNet(3, (8, 16, 32), (32, 16, 8), (), half=True)
    network, costs, seconds = learn(experiment, name, network, lambda g: part(pairs[int(torch.randint(len(pairs), (), generator=g))], g),
                                    UNetRecipe("lncc", 0.1, window=4.0), steps, 3e-3)
    return {"seconds a training step": seconds, "moving mean of the cost": moving_means(costs),
            **{each: scored(network, *ready, spacing) for each, ready in tests.items()}}


def scored(network, pairs, maps, spacing: float) -> dict[str, float]:
    """Means over pairs, before and after the network: Dice of the tissues and, inside of them, correlation; folds and the time of a pair."""
    rows, began = [], time.perf_counter()
    for (fixed, fixed_labels, moving, moving_labels), linear in zip(pairs, maps):
        whole, inside = linear @ answer(network, on_lattice(fixed, moving, linear, spacing)), fixed_labels.data > 0
        rows.append((*(mean_dice(fixed_labels, moving_labels, t, (1, 2, 3, 4)) for t in (linear, whole)),
                     *(metrics.correlation(fixed.data[inside], warp(moving, t, fixed.grid).data[inside]) for t in (linear, whole)),
                     100 * metrics.jacobian_scores(whole, fixed.grid, inside)["folds"]))
    names = ("dice before the network", "dice", "correlation before the network", "correlation", "folds_percent")
    return {**dict(zip(names, np.mean(rows, 0).tolist())), "seconds a pair, with scores": (time.perf_counter() - began) / len(rows)}


def pre_alignment(experiment: Experiment) -> None:
    """(c)."""
    full, (children, visits) = experiment.arguments.full, slabs(experiment)
    sets = {"training": displaced(children, list(permutations(range(6), 2))[:: 1 if full else 5]), SAME: displaced(visits, permutations(range(3), 2)),
            OTHERS: displaced(children, [(6, 7), (7, 6)]) + displaced(children, [(6, 7), (7, 6)], 5000)}
    table = {}
    for freedom in ("none", "rigid", "affine"):
        ready, seconds = {}, {}
        for each, pairs in sets.items():
            maps, seconds[each] = aligned(pairs, freedom, experiment.runtime)
            ready[each] = pairs, maps
        training = ready.pop("training")
        for spacing in SPACINGS:
            name = f"{freedom}, {spacing:g} mm"
            table[name] = cell(experiment, name, training, ready, spacing, 600 if full else 80)
            table[name]["seconds of the linear start"] = seconds[OTHERS]
    experiment.figures["pre-alignment"] = table
    for spacing in SPACINGS:
        rows = {freedom: table[f"{freedom}, {spacing:g} mm"][OTHERS] for freedom in ("none", "rigid", "affine")}
        experiment.at_least(f"pre-alignment at {spacing:g} mm: Dice with rigid over none", rows["rigid"]["dice"] - rows["none"]["dice"], 0.02)
        if full:
            gain = rows["rigid"]["correlation"] - rows["rigid"]["correlation before the network"]
            experiment.at_least(f"pre-alignment at {spacing:g} mm: correlation that the network adds to rigid", gain, 0.02)


def main() -> int:
    experiment = Experiment("voxelmorph-unet", __doc__)
    with experiment.runtime.active():
        on_digits(experiment)
        fixed, before, after = on_slices(experiment)
        published(experiment)
        failures(experiment, on_hippocampus(experiment))
        pre_alignment(experiment)
    return experiment.finish(overlay_picture(fixed, before, after))


if __name__ == "__main__":
    sys.exit(main())
