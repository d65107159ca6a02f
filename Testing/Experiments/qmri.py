"""qmri: six radial slices into a volume, from wrong headers, wrong order and wrong directions; on generated hips and on slices of real volumes.

A case is a volume and a source of slices in the space of the volume: a generated hip in an unlike contrast (``truths_hip``; ten hips, other bias,
noise and 1 to 5 mm of thickness for every start), a real image of another contrast of the same subject (head T1 and PD, brain T1 and gray
matter, neck T1 and T2), or the same real image after a curve of its intensities that is not monotonic, with noise (mouse brain, lung CT, and the neck
again, whose truth is exact then). Six slices 30 degrees apart are cut from the source; their headers are turned by up to 40 degrees about a random axis
and shifted by up to 20 mm, at most 0.15 of the slices' edge (which small bodies need).
For head and neck, whose scans have different origins or a motion of 1.7 mm between them, the true relation is our own rigid alignment of
the whole images (``affine``, rigid), so what is measured there is how well six slices agree with all of the image.

Right is a root mean square distance of the pixels from their true place of at most 2 % of the slices' edge. A wrong pose that counts as
registered is a silent failure, a pose that does not count as registered a reported one. Further: random orders and directions of the slices (right:
every single one at its place, which may be reached by a turn of the set and a cyclic shift of the order, or of the symmetric brain template at its mirror
image), sets of which only the center and the normal of the localizer are known, requests that cannot succeed
(starts far out of reach, slices of another body, noise), bones that are learned from strokes on one slice (Dice on the other five, and where the
visual hull of them starts), slices that are deformed by up to 3 mm in their plane and 1 mm across it, and the same search of a deformation where
there is none (errors over the tissue), the calibration of the standard deviation, and one set of 256 x 256 pixels in a
volume of 256^3. ``--full``: 50 starts a case instead of 6. An interrupted call goes on where it stopped (``rows.jsonl``).
"""

from __future__ import annotations

import io
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from common import Experiment
import truths_hip as hips

from DeepRegistrationLib.engines.bones import learned_bones
from DeepRegistrationLib.engines.slice_order import moved, moves_about
from DeepRegistrationLib.engines.slice_starts import hull_start
from DeepRegistrationLib.engines.slices import about_axis, common_axis, emulate
from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.image import Image
from DeepRegistrationLib.io import read_image
from DeepRegistrationLib.method import find
from DeepRegistrationLib.problem import Pair, Slices
from DeepRegistrationLib.result import SlicesResult, warp
from DeepRegistrationLib.runtime import Runtime, Silent

RIGHT, DEGREES, SHIFT, SHARE = 0.02, 40.0, 20.0, 0.15
HIP = "hip, generated"
REAL = {"head T1, slices of PD": ("multimodal-same-subject/t1", "multimodal-same-subject/pd"),
        "brain T1, slices of gray matter": ("brain3d-mni-tissues/t1", "brain3d-mni-tissues/gm"),
        "neck T1, slices of T2": ("spinal-cord-multicontrast/t1", "spinal-cord-multicontrast/t2"),
        "mouse brain, other contrast": ("mouse-brain/sample", None), "lung CT, other contrast": ("lung-ct-left/baseline_small", None),
        "neck T1, other contrast": ("spinal-cord-multicontrast/t1", None)}
SYMMETRIC = ("brain T1, slices of gray matter",)
"""The template and its maps are their own mirror images, so that a mirrored answer to slices of unknown directions is as right."""
MOVED = ("head T1, slices of PD", "neck T1, slices of T2")


@lru_cache(maxsize=4)
def body(data: str, name: str) -> tuple[Image, Image]:
    """(volume, source of slices in its space), of moderate size."""
    fixed, other = REAL[name]
    volume = read_image(Path(data) / f"{fixed}.nii.gz")
    if other is None:
        return volume, _curved(volume)
    source = read_image(Path(data) / f"{other}.nii.gz")
    if name in MOVED:
        to_source = find("affine", {"freedom": "rigid"}).run(Pair(volume, source), Runtime("cpu", threads=1)).transform
        source = warp(source, to_source, volume.grid)
    return volume.smoothed_to(1.2) if volume.grid.voxels > 4e6 else volume, source


def _curved(image: Image) -> Image:
    low, high = np.percentile(image.data.numpy(), [1, 99])
    v = ((image.data - low) / (high - low)).clamp(0, 1)
    return replace(image, data=torch.sin(np.pi * (0.1 + 0.8 * v)) + 0.3 * v)


def real_set(data: str, name: str, seed: int, degrees: float, shift: float, order=None, flips=None) -> hips.KnownSet:
    """Six slices of the source of a real case, as ``truths_hip.known_set``."""
    rng = np.random.default_rng(seed)
    volume, source = body(data, name)
    edge = 0.75 * float(np.minimum(volume.grid.extent, source.grid.extent).min())
    weight = (source.data[0, 0] > source.data.mean()).numpy()
    middle = source.grid.points()[weight].mean(0) + rng.uniform(-0.05, 0.05, 3) * edge
    grids = hips.radial_grids(64, edge, 0.025 * edge, centre=middle)
    wrong = hips.random_pose(rng, degrees, min(shift, SHARE * edge), middle)
    order, flips = order or range(6), flips or [(False, False)] * 6
    pictures, each = [], []
    scale = float(source.data.std())
    for k, (plane, flip) in enumerate(zip(order, flips)):
        shown, header = hips.mirrored(grids[plane], *flip), grids[k].moved(wrong)
        values = emulate(source, shown, np.eye(4), 0.025 * edge).data
        values = values + 0.05 * scale * torch.as_tensor(rng.standard_normal(tuple(values.shape)), dtype=torch.float32)
        pictures.append(Image(values, header, name=f"slice {k + 1}"))
        each.append(shown.affine @ header.inverse_affine)
    return hips.KnownSet(Slices(tuple(pictures), volume), np.linalg.inv(wrong), np.stack(each))


def known(data: str, name: str, seed: int, degrees: float, shift: float, **placing) -> hips.KnownSet:
    """A request of a case; for hips of ten bodies with a thickness of 1 to 5 mm and noise of 1 to 4 %."""
    if name != HIP:
        return real_set(data, name, seed, degrees, shift, **placing)
    rng, hip = np.random.default_rng(seed + 77), hips.Hip(seed % 10)
    volume = hips.hip_volume(hip, hips.volume_grid(), noise=rng.uniform(3, 9), bias=rng.uniform(0, 0.2))
    return hips.known_set(seed, degrees, shift, hip=hip, volume=volume, thickness=rng.uniform(1, 5), noise=rng.uniform(0.8, 3.4),
                          bias=rng.uniform(0, 0.15), **placing)


def placed_wrongly(seed: int) -> dict:
    """A random order of the pictures and random directions."""
    rng = np.random.default_rng(seed + 500)
    return {"order": [int(k) for k in rng.permutation(6)], "flips": [tuple(bool(b) for b in rng.integers(0, 2, 2)) for _ in range(6)]}


def by_localizer(asked: hips.KnownSet, seed: int) -> hips.KnownSet:
    """The same pictures, of whose places only the center and the normal of the localizer are known: where the first plane begins and which way the normal
    points is lost."""
    slices, rng = asked.problem.slices, np.random.default_rng(seed + 900)
    point, along = common_axis([image.grid for image in slices])
    moves = about_axis((point, along), rng.uniform(0, 360)) @ moves_about(slices, (point, along * rng.choice((-1, 1))), 30.0)
    return hips.KnownSet(moved(asked.problem, moves), asked.truth, asked.each @ np.linalg.inv(moves))


def worst_distance(result, asked: hips.KnownSet, middle: float | None) -> float:
    """Root mean square mm of the worst slice from its true place, or from the mirror image of that on the plane x = ``middle``."""
    out = []
    for found, true, image in zip(result.transforms, asked.each, asked.problem.slices):
        points = image.grid.points().reshape(-1, 3)
        there, here = (points @ m[:3, :3].T + m[:3, 3] for m in (true, found.numpy()))
        if middle is not None:
            there[:, 0] = 2 * middle - there[:, 0]
        out.append(np.sqrt(((here - there) ** 2).sum(1).mean()))
    return float(max(out))


def bones_trial(seed: int) -> dict:
    """Strokes on one slice of a hip: mean and least Dice on the others, mm of the start by the hull of the true and of the learned bone."""
    hip, rng = hips.Hip(seed % 10), np.random.default_rng(seed + 77)
    volume = hips.hip_volume(hip, hips.volume_grid())
    asked = hips.known_set(seed, DEGREES * rng.uniform(), SHIFT * rng.uniform(), hip=hip, volume=volume, thickness=rng.uniform(1, 5),
                           noise=rng.uniform(0.8, 3.4), bias=rng.uniform(0, 0.15), segments=True)
    problem = asked.problem
    found = tuple(learned_bones(problem.slices, {0: hips.strokes_on(problem.segments[0])}, 0, Silent()))
    pairs = [(a.data > 0, b.data > 0) for a, b in zip(found[1:], problem.segments[1:])]
    dice = [float(2 * (a & b).sum() / (a.sum() + b.sum())) for a, b in pairs]
    starts = [hips.errors(hull_start(p, Silent())[0], asked.truth, hips.pixels(problem))[2] for p in (problem, replace(problem, segments=found))]
    return {"case": HIP, "kind": "bones", "seed": seed, "dice": float(np.mean(dice)), "dice_least": min(dice), "hull_true": starts[0],
            "hull_learned": starts[1]}


def bend_trial(seed: int, plane: float, through: float) -> dict:
    """Deformed slices: root mean square mm over their tissue with the rigid poses and with the deformations that were kept."""
    hip, rng = hips.Hip(seed % 10), np.random.default_rng(seed + 77)
    asked = hips.known_set(seed, 0.5 * DEGREES * rng.uniform(), 0.5 * SHIFT * rng.uniform(), hip=hip, volume=hips.hip_volume(hip, hips.volume_grid()),
                           noise=rng.uniform(0.8, 3.4), bend=(plane, through))
    result = find("qmri:deformed").run(asked.problem, Runtime("cpu", threads=1))
    out = []
    for stage in (replace(result, bends=()), result):
        squares = []
        for k, image in enumerate(asked.problem.slices):
            points = image.grid.points().reshape(-1, 3)
            shown = points @ asked.each[k][:3, :3].T + asked.each[k][:3, 3]
            true = shown + hips.bent(image.grid.moved(asked.each[k]), seed + k, plane, through)(shown)
            found = stage.placed(k)(torch.as_tensor(points)[None])[0].numpy()
            squares.append(((found - true) ** 2).sum(1)[hip.fractions(true)[:, hips.AIR] < 0.5])
        out.append(float(np.sqrt(np.concatenate(squares).mean())))
    return {"case": HIP, "kind": "bent" if plane else "still", "seed": seed, "rigid": out[0], "deformed": out[1], "registered": result.registered,
            "kept": sum(b.field is not None for b in result.bends)}


def trial(job) -> dict:
    """One run of the method, in a process of its own: errors of the set and of its worst slice, status, seconds of the processor."""
    data, name, kind, seed = job
    torch.set_num_threads(1)
    if kind == "bones":
        return bones_trial(seed)
    if kind in ("bent", "still"):
        return bend_trial(seed, *((3.0, 1.0) if kind == "bent" else (0.0, 0.0)))
    rng = np.random.default_rng(seed)
    degrees, shift = (DEGREES, SHIFT) if kind == "start" else (0.5 * DEGREES, 0.5 * SHIFT) if kind in ("order", "axis") else (120.0, 60.0)
    degrees, shift = (degrees * rng.uniform(), shift * rng.uniform()) if kind != "far" else (degrees, shift)
    asked = known(data, name, seed, degrees, shift, **(placed_wrongly(seed) if kind == "order" else {}))
    asked = by_localizer(asked, seed) if kind == "axis" else asked
    request = asked.problem
    if kind == "stranger":
        request = replace(request, volume=hips.hip_volume(hips.Hip(0), hips.volume_grid()) if name != HIP else _noise(request.volume))
    began = time.process_time()
    try:
        result = find("qmri").run(request, Runtime("cpu", threads=1))
    except InputError:  # no pose within reach has the slices in the volume: a failure that is reported; its errors are those of the start
        still = tuple(hips.affine(np.eye(4)) for _ in request.slices)
        result = SlicesResult(request, still[0], still, False)
    seconds = time.process_time() - began
    turn, middle, tre = hips.errors(result.transform.numpy(), asked.truth, hips.pixels(asked.problem))
    worst = worst_distance(result, asked, None)
    if name in SYMMETRIC:
        worst = min(worst, worst_distance(result, asked, request.volume.grid.centre[0]))
    edge = float(asked.problem.slices[0].grid.extent.max())
    right = (tre if kind == "start" else worst) <= RIGHT * edge
    return {"case": name, "kind": kind, "seed": seed, "turn": turn, "shift": middle, "tre": tre, "worst": worst, "edge": edge, "right": bool(right),
            "registered": result.registered, "std": result.distance_std, "seconds": seconds, **result.evidence}


def _noise(volume: Image) -> Image:
    rng = torch.Generator().manual_seed(5)
    return replace(volume, data=torch.randn(volume.data.shape, generator=rng)).smoothed_to(6.0)


def summary(rows: list[dict]) -> dict:
    """Median and 95th percentile of the errors, and the rates."""
    out = {"runs": len(rows)}
    for key in ("turn", "shift", "tre"):
        out |= {f"{key}_median": float(np.median([r[key] for r in rows])), f"{key}_p95": float(np.percentile([r[key] for r in rows], 95))}
    out["wrong"] = sum(not r["right"] for r in rows) / len(rows)
    out["reported"] = sum(not r["registered"] for r in rows) / len(rows)
    out["silent"] = sum(r["registered"] and not r["right"] for r in rows)
    out["needless"] = sum(r["right"] and not r["registered"] for r in rows) / len(rows)
    out["seconds_median"] = float(np.median([r["seconds"] for r in rows]))
    good = [r["worst"] / r["std"] for r in rows if r["right"] and np.isfinite(r["std"])]
    out["worst_over_std_median"] = float(np.median(good)) if good else None
    return out


def jobs_of(data: Path, full: bool) -> list[tuple]:
    cases = [HIP] + [name for name, (fixed, _) in REAL.items() if (data / f"{fixed}.nii.gz").exists()]
    counts = {"start": 50, "order": 10, "axis": 5, "far": 3, "stranger": 3} if full else {"start": 6, "order": 2, "axis": 3, "far": 1, "stranger": 1}
    parts = [(str(data), HIP, kind, s) for kind in ("bones", "bent", "still") for s in range(10)]
    return parts + [(str(data), name, kind, s) for s in range(max(counts.values())) for kind, count in counts.items() if s < count for name in cases]


def done_before(path: Path) -> dict[tuple, dict]:
    """(case, kind, seed) -> row of the runs that an interrupted call left in ``path``."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return {(r["case"], r["kind"], r["seed"]): r for r in rows}


def large_set(threads: int) -> float:
    """Seconds of six slices of 256 x 256 pixels in a volume of 256^3."""
    hip = hips.Hip(2)
    small = hips.hip_volume(hip, hips.volume_grid())
    volume = small.at(hips.volume_grid(256), fill=None)
    asked = hips.known_set(3, 20.0, 10.0, hip=hip, volume=volume, size=256)
    began = time.perf_counter()
    result = find("qmri").run(asked.problem, Runtime("cpu", threads=threads))
    seconds = time.perf_counter() - began
    error = hips.errors(result.transform.numpy(), asked.truth, hips.pixels(asked.problem))[2]
    if not (result.registered and error < 1.0):
        raise SystemExit(f"the large set was not registered (error {error:.2f} mm)")
    return seconds


def picture(rows: list[dict]) -> bytes:
    """Distance from the true place of every start, by case, and what the method said of it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 4.6))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.29, 0.13, 0.68, 0.78))
    names = list(dict.fromkeys(r["case"] for r in rows))
    rng = np.random.default_rng(0)
    for registered, color, label in ((True, "#0072b2", "registered"), (False, "#d55e00", "not registered (reported)")):
        some = [r for r in rows if r["registered"] == registered and r["kind"] == "start"]
        y = [names.index(r["case"]) + rng.uniform(-0.25, 0.25) for r in some]
        axes.scatter([100 * r["tre"] / r["edge"] for r in some], y, s=12, color=color, label=f"{label}: {len(some)}")
    axes.axvline(100 * RIGHT, color="0.5", lw=0.8, ls="--")
    axes.set_xscale("log")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("root mean square distance from the true place, % of the slices' edge (dashed: right)")
    axes.set_title(f"six slices into a volume, starts up to {DEGREES:g} degrees and {SHIFT:g} mm away", fontsize=10)
    axes.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def claims_of_parts(experiment: Experiment, rows: list[dict]) -> None:
    """What is stated of bones and deformations."""
    def mean(kind, key):
        return float(np.mean([r[key] for r in rows if r["kind"] == kind]))

    experiment.figures["bones and deformations"] = rows
    experiment.at_least("bones from strokes on one slice: mean Dice on the others", mean("bones", "dice"), 0.85)
    experiment.at_most("deformed slices: error with the deformation over that of the rigid poses", mean("bent", "deformed") / mean("bent", "rigid"), 0.9)
    experiment.at_most("slices that do not deform: error added by the search of a deformation, mm", mean("still", "deformed") - mean("still", "rigid"), 0.05)


def main() -> int:
    experiment = Experiment("qmri", __doc__, pair=False)
    full, threads = experiment.arguments.full, experiment.arguments.threads
    jobs = jobs_of(experiment.arguments.data, full)
    path = experiment.arguments.out / "rows.jsonl"
    done = done_before(path)
    left = [job for job in jobs if job[1:] not in done]
    with ProcessPoolExecutor(max(1, threads)) as pool, path.open("a", encoding="utf-8") as stream:
        for k, row in enumerate(pool.map(trial, left)):
            done[row["case"], row["kind"], row["seed"]] = row
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            told = f"{row['turn']:.2f} degrees, {row['tre']:.2f} mm, {'' if row['registered'] else 'not '}registered" if "tre" in row else str(row)
            sys.stderr.write(f"{k + 1}/{len(left)} {row['case']}, {row['kind']}: {told}\n")
    parts = [done[job[1:]] for job in jobs if job[2] in ("bones", "bent", "still")]
    rows = [done[job[1:]] for job in jobs if job[2] not in ("bones", "bent", "still")]
    claims_of_parts(experiment, parts)
    for kind in ("start", "order", "axis", "far", "stranger"):
        for name in dict.fromkeys(r["case"] for r in rows):
            experiment.figures[f"{name}; {kind}"] = summary([r for r in rows if r["case"] == name and r["kind"] == kind])
    for name in dict.fromkeys(r["case"] for r in rows):
        found = experiment.figures[f"{name}; start"]
        experiment.at_most(f"{name}: median rotation error, degrees", found["turn_median"], 1.0)
        experiment.at_most(f"{name}: median translation error, mm", found["shift_median"], 1.0)
    for kind, text in (("order", "order and directions"), ("axis", "places about the localizer's normal")):
        some = [r for r in rows if r["kind"] == kind]
        experiment.at_least(f"share of sets whose {text} are found", sum(r["right"] for r in some) / len(some), 0.95)
    experiment.at_most("silent failures among all runs", sum(r["registered"] and not r["right"] for r in rows), 0)
    experiment.at_most("seconds of six slices of 256 x 256 pixels in 256^3 voxels", large_set(threads), 30.0)
    experiment.figures["rows"] = rows
    return experiment.finish(picture(rows))


if __name__ == "__main__":
    sys.exit(main())
