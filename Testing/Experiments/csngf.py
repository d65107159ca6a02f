"""csngf: rigid alignment of unlike contrasts from any rotation and any shift up to 30 voxels, next to four other ways.

As in the publication, the first image of a pair of one subject is turned (any rotation, drawn uniformly) and shifted (up to 30 voxels along each
axis) and a cube is cut out around its center: 128 voxels along its longest edge (``EDGE``), on a lattice that has nothing in common with the second
image, which stays as it is. A shift that leaves less than 60 % of the image in the cube, or less than 53 % of the smaller image in the other one,
is drawn again: the methods state that they need half. The mask of the cube says where the turned image has values; every method gets it. Success: the
corners of the cube are less than 5 voxels (mean) from where the true map takes them.

The pairs are all of unlike contrast of one subject in the data whose relation is known, of any two of: T1, PD and angiography of a head; T1, T2 and
magnetization transfer (``mt1``; ``mt0`` and ``mt_t1w`` are the same sequence) of a neck; two maps of a prostate; a template and a map of its tissue.
T2* of the neck is left out: by the headers its cord (``t2s_seg``) lies 5.3 mm from that of the T1 and 4.4 mm from that of the T2, twice what counts as
success there, and our own rigid alignments of it from the headers disagree: T2*, T1, T2 and back moves its corners by 3.5 mm, by way of the MT by 34 mm.
The true map is that of the headers, but for the T1 of the head, which has another origin than the PD and the angiogram: there it is our own rigid
alignment of T1 and PD by mutual information from the headers (``affine``), which moves the head by 12.8 mm as SimpleITK's does (case.json). The headers of the
necks agree to about a voxel only (Dice of the cord in T1 and T2 0.85), and both maps of the prostate come from the same raw images, so that even
the edges of their noise agree. The angiogram shows vessels alone, which the card of the method lists among its failures: its pairs are stated and
counted with all others, and the claim is stated once more without them.

Compared in the same run, with the same number of threads: SimpleITK's local mutual information from the image centers; the same from the
best 3 of 100 rotations that cover all; greedy's random search (1000 rotations, 20 mm) with mutual information; our
``affine:rigid-global``; and csngf with and without its last step (local searches of mutual information, which the publication has not).

Settings of csngf were chosen on the T1 template against its gray matter map with added noise, so the pair of this template and its
white matter map is not independent of them. That the hypotheses kept lie 15 degrees apart, that mutual information tells which of the last is right, and
that starts of a global search by mutual information join them was chosen on other displacements (seeds from 50000), mainly of the two pairs of the neck
with MT. Further claims: FFT and definition agree; FFT against a loop over all shifts with half overlap at 64^3 (the loop is timed on 200 of them); 5000
rotations on the first level of two volumes of 128^3.

A run that was stopped goes on where it stopped when it is called again with the same ``--out``; what a way found on a case is in its ``row.json``.
"""

from __future__ import annotations

import io
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from common import Experiment, truths  # before the others: it says where the tests and the library are
import truths_gradients
from bench import environment, timed
from peers import python_of

from DeepRegistrationLib.engines.global_rigid import Level, first_rotations, prepared
from DeepRegistrationLib.engines.search import rotations
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image, Labels
from DeepRegistrationLib.io import read_grid, read_image, read_labels, write_image, write_labels
from DeepRegistrationLib.method import find
from DeepRegistrationLib.ops.fft import Shifts, cross_similarity, gradient_products
from DeepRegistrationLib.problem import Pair
from DeepRegistrationLib.result import warp
from DeepRegistrationLib.runtime import fewer_threads
from DeepRegistrationLib.transforms import Affine

EDGE, REACH, SUCCESS, KEPT_INSIDE, COMMON = 128, 30.0, 5.0, 0.6, 0.53
PAIRS = {
    "head T1, PD": ("multimodal-same-subject/t1", "multimodal-same-subject/pd"),
    "head PD, T1": ("multimodal-same-subject/pd", "multimodal-same-subject/t1"),
    "head T1, vessels": ("multimodal-same-subject/t1", "multimodal-same-subject/mra"),
    "head PD, vessels": ("multimodal-same-subject/pd", "multimodal-same-subject/mra"),
    "prostate ADC, b-value": ("prostate-adc-hbv/adc", "prostate-adc-hbv/hbv"),
    "brain T1, white matter": ("brain3d-mni-tissues/t1", "brain3d-mni-tissues/wm"),
    "neck T1, T2": ("spinal-cord-multicontrast/t1", "spinal-cord-multicontrast/t2"),
    "neck T1, MT": ("spinal-cord-multicontrast/t1", "spinal-cord-multicontrast/mt1"),
    "neck T2, MT": ("spinal-cord-multicontrast/t2", "spinal-cord-multicontrast/mt1"),
}
VESSELS = ("head T1, vessels", "head PD, vessels")
REGISTERED = {"head T1, PD": PAIRS["head T1, PD"], "head PD, T1": PAIRS["head PD, T1"], "head T1, vessels": PAIRS["head T1, PD"]}
"""The two images whose rigid alignment is the true map of a pair; of all others the headers are."""
OURS, BARE, LOCAL, MULTI, GREEDY, AFFINE = ("csngf", "csngf, search only", "SimpleITK, local", "SimpleITK, 100 rotations", "greedy, random search",
                                            "affine, global")
GREEDY_SCRIPT = """
import json, sys, time
import numpy as np, picsl_greedy
for folder in json.load(open(sys.argv[1])):
    began = time.perf_counter()
    tool = picsl_greedy.GreedyFloat3D()
    tool.execute(f"-a -dof 6 -i {folder}/fixed.nii {folder}/moving.nii -gm {folder}/mask.nii -m NMI -n 100x50x10 -ia-image-centers "
                 f"-search 1000 any 20 -threads {sys.argv[2]} -o {folder}/greedy.mat")
    json.dump(time.perf_counter() - began, open(f"{folder}/greedy.json", "w"))
"""


@dataclass(frozen=True, eq=False)
class Displaced:
    """One displacement of a pair: the true map (4, 4) fixed mm -> moving mm, and the folder with the files of both images."""

    name: str
    truth: np.ndarray
    folder: Path

    @property
    def pair(self) -> Pair:
        fixed, moving = (read_image(self.folder / f"{n}.nii") for n in ("fixed", "moving"))
        return Pair(fixed.with_mask(read_labels(self.folder / "mask.nii")), moving)

    def error(self, matrix) -> float:
        """Mean distance of the cube's corners from the truth, in voxels of the cube."""
        grid = read_grid(self.folder / "fixed.nii")
        change = (np.asarray(matrix) - self.truth)[:3]
        return float(np.linalg.norm(grid.corners() @ change[:, :3].T + change[:, 3], axis=1).mean() / grid.spacing[0])


def cube_of(image: Image) -> Grid:
    """The lattice of the displaced image: ``EDGE`` voxels along its longest edge, but none finer than its own."""
    spacing = max(float(image.grid.extent.max() / EDGE), float(image.grid.spacing.min()))
    cube = Grid.from_parts((int(round(image.grid.extent.max() / spacing)),) * 3, spacing)
    return Grid.from_parts(cube.shape, spacing, -cube.centre)


def placement(one: Grid, other: Grid, between: np.ndarray, cube: Grid, seed: int) -> np.ndarray:
    """(4, 4) cube mm -> mm of ``one``: any rotation, and a shift that keeps enough of it in the cube and of the smaller image in the other."""
    rng, back = np.random.default_rng(seed), np.linalg.inv(between)
    whole, rest = (grid.resample(np.maximum(grid.spacing, grid.extent / 24)).points().reshape(-1, 3) for grid in (one, other))
    if np.prod(other.extent) < np.prod(one.extent):
        common = moved(back, rest)
        shared = one.contains(common)
    else:
        common, shared = whole, other.contains(moved(between, whole))
    while True:
        placed = np.eye(4)
        placed[:3, :3] = truths.rotation(rng, 3)
        placed[:3, 3] = one.centre + placed[:3, :3] @ rng.uniform(-REACH, REACH, 3) * cube.spacing[0]
        to_cube = np.linalg.inv(placed)
        kept, met = cube.contains(moved(to_cube, whole)).mean(), (shared & cube.contains(moved(to_cube, common))).mean()
        if kept >= KEPT_INSIDE and met >= COMMON:
            return placed


def moved(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (N, 3) under an affine map (4, 4)."""
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def make(one: Image, other: Image, between: np.ndarray, seed: int, folder: Path) -> None:
    """Leave ``one``, turned and shifted in its cube, its mask, ``other`` and the truth in ``folder``; ``between`` (4, 4) is one mm -> other mm."""
    cube = cube_of(one)
    placed = placement(one.grid, other.grid, between, cube, seed)
    reduced, there = one.smoothed_to(cube.spacing[0]), Affine(torch.as_tensor(placed))
    inside = warp(Image(torch.ones_like(reduced.data), reduced.grid), there, cube).data > 0.99
    write_image(warp(reduced, there, cube), folder / "fixed.nii")
    write_image(other.smoothed_to(cube.spacing[0]), folder / "moving.nii")
    write_labels(Labels(inside.to(torch.int32), cube), folder / "mask.nii")
    (folder / "truth.json").write_text(json.dumps((between @ placed).tolist()), "utf-8")


def true_relation(experiment: Experiment, name: str) -> np.ndarray:
    """(4, 4) mm of the first image of a pair -> mm of the second."""
    if name not in REGISTERED:
        return np.eye(4)
    images = (read_image(experiment.arguments.data / f"{f}.nii.gz") for f in REGISTERED[name])
    return find("affine:rigid").run(Pair(*images), experiment.runtime).transform.numpy()


def cases(experiment: Experiment, each: int) -> list[Displaced]:
    """``each`` displacements of every pair."""
    found = []
    for k, (name, files) in enumerate(PAIRS.items()):
        folders = [experiment.arguments.out / "cases" / f"{k}-{j}" for j in range(each)]
        if not all((folder / "truth.json").exists() for folder in folders):
            one, other = (read_image(experiment.arguments.data / f"{f}.nii.gz") for f in files)
            between = true_relation(experiment, name)
            for j, folder in enumerate(folders):
                folder.mkdir(parents=True, exist_ok=True)
                make(one, other, between, 1000 * k + j, folder)
        found += [Displaced(name, np.array(json.loads((folder / "truth.json").read_text("utf-8"))), folder) for folder in folders]
    return sorted(found, key=lambda case: case.folder.name.split("-")[::-1])


# ------------------------------------------------------------------------------------------------------------ the six ways


def by_method(name: str):
    """A method of the library: case -> (matrix, scalars)."""
    def run(case, experiment):
        result = find(name).run(case.pair, experiment.runtime)
        return result.transform.numpy(), {**result.scalars, "search": result.provenance.get("search")}
    return run


def itk_images(case):
    return [sitk.ReadImage(str(case.folder / f"{n}.nii"), sitk.sitkFloat32) for n in ("fixed", "moving")] + [
        sitk.ReadImage(str(case.folder / "mask.nii"), sitk.sitkUInt8)]


def itk_method(fixed, moving, mask, shrink):
    """Mattes mutual information with 10 % random samples, gradient descent with line search, as the benchmark's linear start."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(50)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.1, 42)
    method.SetMetricFixedMask(mask)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsGradientDescentLineSearch(1.0, 100, 1e-6, 10)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(shrink)
    method.SetSmoothingSigmasPerLevel([s / 2 if s > 1 else 0 for s in shrink])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    return method


def itk_start(fixed, moving, turn=None):
    start = sitk.CenteredTransformInitializer(fixed, moving, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.GEOMETRY)
    start = sitk.Euler3DTransform(start)
    if turn is not None:
        start.SetMatrix(turn.ravel().tolist())
    return start


def itk_matrix(transform):
    m = np.eye(4)
    linear = np.array(transform.GetMatrix()).reshape(3, 3)
    centre = np.array(transform.GetCenter())
    m[:3, :3], m[:3, 3] = linear, np.array(transform.GetTranslation()) + centre - linear @ centre
    return m


def itk_optimised(images, start, shrink):
    """(transform, metric); a start without overlap stays as it is."""
    method = itk_method(*images, shrink)
    method.SetInitialTransform(start, inPlace=True)
    try:
        method.Execute(*images[:2])
    except RuntimeError:
        return start, np.inf
    return start, method.GetMetricValue()


def itk_local(case, experiment):
    images = itk_images(case)
    return itk_matrix(itk_optimised(images, itk_start(*images[:2]), [4, 2, 1])[0]), {}


def itk_multi(case, experiment):
    images = itk_images(case)
    small = [sitk.Shrink(sitk.SmoothingRecursiveGaussian(i, 2 * i.GetSpacing()[0]), [min(4, n) for n in i.GetSize()]) for i in images[:2]]
    small.append(sitk.Shrink(images[2], [4, 4, 4]))
    ranked = []
    for turn in rotations(100, 3):
        start = itk_start(*images[:2], turn)
        ranked.append((itk_value(small, start), turn))
    ranked.sort(key=lambda pair: pair[0])
    tried = [itk_optimised(images, itk_start(*images[:2], turn), [4]) for _, turn in ranked[:3]]
    best = min(tried, key=lambda pair: pair[1])[0]
    return itk_matrix(itk_optimised(images, best, [2, 1])[0]), {}


def itk_value(images, start):
    method = itk_method(*images, [1])
    method.SetMetricSamplingPercentage(1.0, 42)
    method.SetInitialTransform(start, inPlace=False)
    try:
        return method.MetricEvaluate(*images[:2])
    except RuntimeError:
        return np.inf


def greedy_all(every, experiment):
    """(matrix, wall seconds) of greedy for every case, in one process; nothing where it is not installed."""
    python = python_of("itk", experiment.arguments.environments)
    if not python.exists():
        sys.stderr.write(f"greedy is not compared: {python} is not there (python run.py bench installs the peers)\n")
        return []
    out, threads = experiment.arguments.out, experiment.arguments.threads
    (out / "folders.json").write_text(json.dumps([str(c.folder.resolve()) for c in every]), "utf-8")
    (out / "greedy.py").write_text(GREEDY_SCRIPT, "utf-8")
    status, _, _ = timed([str(python), str(out / "greedy.py"), str(out / "folders.json"), str(threads)], environment(threads, True), out / "greedy.log", 3600)
    if status:
        raise SystemExit(f"greedy ended with status {status}; {out / 'greedy.log'} says why")
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    return [(flip @ np.loadtxt(c.folder / "greedy.mat") @ flip, json.loads((c.folder / "greedy.json").read_text())) for c in every]


WAYS = {OURS: by_method("csngf"), AFFINE: by_method("affine:rigid-global"), LOCAL: itk_local, MULTI: itk_multi}


def compared(experiment: Experiment, every: list[Displaced]) -> list[dict]:
    """One row per case: errors in voxels, wall and processor seconds, and the found map, of every way; kept in the case's folder."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(experiment.arguments.threads)
    rows = []
    for case in every:
        rows.append(one_row(case, experiment))
        sys.stdout.write(f"{case.name}: " + ", ".join(f"{n} {e:.1f}" for n, e in rows[-1]["error"].items()) + f", lead {rows[-1]['lead']:.1f}\n")
        sys.stdout.flush()
    for row, (matrix, wall), case in zip(rows, greedy_all(every, experiment), every):
        row["error"][GREEDY], row["seconds"][GREEDY], row["matrix"][GREEDY] = case.error(matrix), wall, matrix
    return rows


def one_row(case: Displaced, experiment: Experiment) -> dict:
    kept = case.folder / "row.json"
    row = json.loads(kept.read_text("utf-8")) if kept.exists() else {"pair": case.name, "error": {}, "seconds": {}, "processor_seconds": {}, "matrix": {}}
    for name, way in WAYS.items():
        if name in row["matrix"]:
            continue
        began, processor = time.perf_counter(), time.process_time()
        matrix, scalars = way(case, experiment)  # reads the files, as every way does
        row["seconds"][name], row["processor_seconds"][name] = time.perf_counter() - began, time.process_time() - processor
        row["error"][name], row["matrix"][name] = case.error(matrix), np.asarray(matrix).tolist()
        if name == OURS:
            row["lead"], row["error"][BARE] = scalars["lead"], case.error(scalars["search"])
        kept.write_text(json.dumps(row), "utf-8")
    return row


# ----------------------------------------------------------------------------------------------------------- the transforms


def agreement(experiment: Experiment) -> float:
    """Largest difference of FFT and definition over 400 shifts with at least half overlap, 2D and 3D."""
    worst = 0.0
    for shape in ((48, 40), (24, 28, 20)):
        fixed, moving = (truths_gradients.normals(truths_gradients.smooth_noise(shape, k)) for k in range(2))
        shifts = Shifts(shape, shape, 0.5)
        products = [gradient_products(n[None], m[None, None]) for n, m in (fixed, moving)]
        similarity, count = cross_similarity(shifts.spectrum(products[0][0]).conj_physical_(), products[1], shifts)
        allowed = np.argwhere(count[0].numpy() >= 0.5 * min(float(m.sum()) for _, m in (fixed, moving)))
        for place in allowed[np.random.default_rng(0).permutation(len(allowed))[:200]]:
            worst = max(worst, abs(float(similarity[0][tuple(place)]) - truths_gradients.direct(fixed, moving, place + np.array(shifts.lowest))[0]))
    return worst


def speed(experiment: Experiment, edge: int = 64) -> dict[str, float]:
    """Seconds of all shifts with half overlap of two cubes: by FFT (products and both spectra included), and by the loop (from a part)."""
    fixed, moving = (truths_gradients.normals(truths_gradients.smooth_noise((edge,) * 3, k)) for k in range(2))
    shifts = Shifts((edge,) * 3, (edge,) * 3, 0.5)

    def by_fft():
        products = [gradient_products(n[None], m[None, None]) for n, m in (fixed, moving)]
        cross_similarity(shifts.spectrum(products[0][0]).conj_physical_(), products[1], shifts)

    by_fft()
    every = truths_gradients.shifts_with_overlap(edge, 3, 0.5)
    some = every[np.random.default_rng(0).permutation(len(every))[:200]]
    fast, slow = [], []
    for _ in range(5):
        for _ in range(3):  # as the search does, one after the other
            began = time.perf_counter()
            by_fft()
            fast.append(time.perf_counter() - began)
        began = time.perf_counter()
        for shift in some[:40]:
            truths_gradients.direct(fixed, moving, shift)
        slow.append((time.perf_counter() - began) / 40 * len(every))
        some = some[40:]
    return {"shifts": len(every), "fft_seconds": float(np.median(fast)), "loop_seconds": float(np.median(slow)),
            "times_faster": float(np.median(slow) / np.median(fast))}


def first_level(experiment: Experiment) -> dict[str, float]:
    """Wall and processor seconds of 5000 rotations on the first published level (a quarter of the resolution) of volumes of 128^3."""
    phantom = truths.Phantom(3, Grid.from_parts((128,) * 3))
    images = [prepared(phantom.image(Grid.from_parts((128,) * 3)), torch.device("cpu")) for _ in range(2)]
    level = Level(*images, 4.0, 1.25, 0.5, 1e-5)
    turns = first_rotations("random", 5000, 3, np.random.default_rng(0))
    began, processor = time.perf_counter(), time.process_time()
    with fewer_threads(level.moving_grid.voxels):  # as the search does
        for k in range(0, len(turns), level.batch):
            level.try_rotations(turns[k:k + level.batch])
    return {"wall": time.perf_counter() - began, "processor": time.process_time() - processor, "lattice": list(level.fixed_grid.shape)}


# ------------------------------------------------------------------------------------------------------------------ the picture


def picture(every, rows, names) -> bytes:
    """PNG: success over the allowed error; middle slices of the first case of each pair: fixed, moving at the centers, moving as found."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 1.45 * len(PAIRS)))
    FigureCanvasAgg(figure)
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.1))
    axis = left.subplots()
    limits = np.linspace(0, 20, 201)
    for name in names:
        errors = np.array([row["error"][name] for row in rows])
        axis.plot(limits, [(errors < limit).mean() for limit in limits], label=f"{name}: {(errors < SUCCESS).mean():.2f}")
    axis.axvline(SUCCESS, color="0.5", linestyle="--", linewidth=1)
    axis.set(xlabel="allowed mean error of the corners in voxels", ylabel="share of displacements", ylim=(-0.02, 1.02), xlim=(0, 20),
             title=f"{len(rows)} displacements; in the legend: share below {SUCCESS:g} voxels")
    axis.legend(loc="lower right", bbox_to_anchor=(1.0, 0.05), fontsize=8)
    shown = [next(k for k, c in enumerate(every) if c.name == name) for name in PAIRS]
    grid = right.subplots(len(shown), 3)
    for line, k in zip(grid, shown):
        pair, centers = every[k].pair, np.eye(4)
        centers[:3, 3] = pair.moving.grid.centre - pair.fixed.grid.centre
        images = [pair.fixed, *(warp(pair.moving, Affine(torch.as_tensor(m)), pair.fixed.grid) for m in (centers, rows[k]["matrix"][OURS]))]
        middle = pair.fixed.grid.shape[0] // 2
        for place, image, title in zip(line, images, (every[k].name, "moving, centers", f"csngf, error {rows[k]['error'][OURS]:.1f}")):
            place.imshow(image.data[0, 0, middle], cmap="gray")
            place.set_title(title, fontsize=8)
            place.axis("off")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=80)
    return stream.getvalue()


def success(rows, name, pair=None) -> float:
    return float(np.mean([row["error"][name] < SUCCESS for row in rows if pair in (None, row["pair"])]))


def main() -> int:
    experiment = Experiment("csngf", __doc__, pair=False)
    if not experiment.arguments.data.is_dir():
        raise SystemExit(f"this experiment needs the real data; {experiment.arguments.data} is not there")
    every = cases(experiment, 10 if experiment.arguments.full else 4)
    rows = compared(experiment, every)
    with experiment.runtime.active():
        experiment.at_most("largest difference of FFT and definition", agreement(experiment), 1e-4)
        fast = experiment.figures["speed at 64^3"] = speed(experiment)
        experiment.at_least("times faster than the loop at 64^3", fast["times_faster"], 500)
        level = experiment.figures["5000 rotations of the first level, 128^3"] = first_level(experiment)
        experiment.at_most("seconds of 5000 rotations of the first level, volumes of 128^3", level["wall"], 60)
    names = [name for name in (OURS, BARE, AFFINE, GREEDY, MULTI, LOCAL) if name in rows[0]["error"]]
    experiment.figures["success"] = {n: {"all": success(rows, n), **{p: success(rows, n, p) for p in PAIRS}} for n in names}
    experiment.figures["median seconds"] = {n: float(np.median([r["seconds"][n] for r in rows])) for n in names if n != BARE}
    experiment.figures["median processor seconds"] = {n: float(np.median([r["processor_seconds"][n] for r in rows])) for n in WAYS}
    experiment.figures["median processor seconds by pair"] = {
        p: {n: float(np.median([r["processor_seconds"][n] for r in rows if r["pair"] == p])) for n in WAYS} for p in PAIRS}
    experiment.figures["median error in voxels of successes"] = {
        n: float(np.median([r["error"][n] for r in rows if r["error"][n] < SUCCESS] or [np.nan])) for n in names}
    experiment.figures["cases"] = [{k: v for k, v in row.items() if k != "matrix"} for row in rows]
    whole = [row for row in rows if row["pair"] not in VESSELS]
    experiment.at_least(f"success of csngf over {len(rows)} displacements of all pairs", success(rows, OURS), 0.9)
    experiment.at_least(f"success of csngf over the {len(whole)} displacements without those of vessels alone", success(whole, OURS), 0.9)
    experiment.at_most("success of SimpleITK's local mutual information", success(rows, LOCAL), 0.3)
    if GREEDY in names:
        experiment.at_least("success of csngf less that of greedy's random search", success(rows, OURS) - success(rows, GREEDY), 1e-6)
    return experiment.finish(picture(every, rows, names))


if __name__ == "__main__":
    sys.exit(main())
