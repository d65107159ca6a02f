"""Atlases: what they cost as the cohort grows, and ours beside ANTs' on the same cohorts.

    python Testing/Benchmarks/atlas.py scale [--subjects 8 16 32 64] [--workers 1]
    python Testing/Benchmarks/atlas.py peer CASE            a cohort of the data folder: cohort2d-oasis or cohort3d-slab-labelled

'scale' builds atlases of generated phantoms (32^3 files) by the command line and reads wall time, CPU time and peak memory of its process.
'peer' runs ANTsPy's build_template with its defaults and ours, one after the other. Both atlases are looked at alike: gradient energy
over that of the cohort, mean displacement of the maps template -> subject (ANTs: of one more registration of its template to every
subject, which is not in its time), correlation with the subjects, leave-one-out Dice of each subject's labels and the majority of the others'.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1] / "DeepRegistration")]
import truths  # noqa: E402
from bench import environment, timed  # noqa: E402
from cases import DATA  # noqa: E402
from peers import ENVIRONMENTS, python_of  # noqa: E402

from DeepRegistrationLib.engines.channels import normalised  # noqa: E402
from DeepRegistrationLib.engines.cohort_outcome import mean_dice, on_lattice  # noqa: E402
from DeepRegistrationLib.engines.cohort_store import SubjectMap  # noqa: E402
from DeepRegistrationLib.engines.cohort_work import correlation, gradient_energy, on_atlas  # noqa: E402
from DeepRegistrationLib.engines.consensus import majority, shares  # noqa: E402
from DeepRegistrationLib.engines.groupwise import length  # noqa: E402
from DeepRegistrationLib.geometry import Grid  # noqa: E402
from DeepRegistrationLib.image import Image  # noqa: E402
from DeepRegistrationLib.io import read_image, read_labels, read_transform, write_image  # noqa: E402
from DeepRegistrationLib.transforms import Composite, Identity  # noqa: E402

CASES = {"cohort2d-oasis": ("*.png", ("icon-atlas:2d", "linear=none")), "cohort3d-slab-labelled": ("subj??.nii.gz", ("icon-atlas:fast", "linear=none"))}
SIDE = 32


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="atlas.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("scale", "peer"))
    parser.add_argument("case", nargs="?", choices=tuple(CASES))
    parser.add_argument("--subjects", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--spacing", type=float, default=0.0, metavar="MM", help="of the cohort for both tools (default: its own)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="more parameters of ours")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, help="keep all files there")
    a = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        out = a.out or Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        rows = scale(a, out) if a.what == "scale" else peer(a, out)
    for row in rows:
        sys.stdout.write(json.dumps(row) + "\n")
    return 0


def ours(images: Path, out: Path, method: str, values, workers: int, threads: int) -> dict:
    """Our command line on a cohort: seconds, CPU seconds and peak memory (MiB) of its process."""
    settings = [part for value in values for part in ("--set", value)]
    command = [sys.executable, "-m", "DeepRegistrationLib", "atlas", "build", "--cohort", str(images), "--out", str(out), "--method", method, *settings,
               "--workers", str(workers), "--threads", str(threads), "--device", "cpu", "--quiet"]
    status, usage, wall = timed(command, environment(threads, True), out.with_suffix(".log"), 3600)
    if status:
        raise SystemExit(out.with_suffix(".log").read_text("utf-8"))
    return {"wall_seconds": round(wall, 1), "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1), "peak_mib": round(usage.ru_maxrss / 1024)}


def scale(a, out: Path) -> list[dict]:
    """One row a size of the cohort: phantoms that are warped at random."""
    rows, grid = [], Grid.from_parts((SIDE,) * 3, 4.0)
    phantom = truths.Phantom(3, grid)
    for n in a.subjects:
        folder = out / f"cohort-{n}"
        folder.mkdir(exist_ok=True)
        for k in range(n):
            write_image(phantom.image(grid, truths.random_diffeomorphism(k, grid, 0.3, 0.2)), folder / f"s{k:03d}.nii.gz")
        values = ("linear=none", "factors=2,1", "settings=iterations=0,10,10,5", *a.set)
        rows.append({"subjects": n, **ours(folder, out / f"atlas-{n}", "icon-atlas", values, a.workers, a.threads)})
    return rows


def peer(a, out: Path) -> list[dict]:
    """ANTs' template and ours, judged alike."""
    pattern, (method, *values) = CASES[a.case]
    paths = cohort_at(a.spacing, sorted((a.data / a.case).glob(pattern)), out / "cohort")
    command = [str(python_of("itk", ENVIRONMENTS)), str(HERE / "adapters" / "build_ants_template.py"), "--out", str(out / "ants"),
               "--threads", str(a.threads), *map(str, paths)]
    if not (out / "ants" / "record.json").exists():
        status, _, _ = timed(command, environment(a.threads, False), out / "ants.log", 3600)
        if status:
            raise SystemExit((out / "ants.log").read_text("utf-8"))
    record = json.loads((out / "ants" / "record.json").read_text("utf-8"))
    cost = ours(paths[0].parent, out / "ours", method, [*values, *a.set], 1, a.threads)
    theirs = {name: read_all([out / "ants" / file for file in files]) for name, files in record["transforms"].items()}
    mine = {name: read_transform(out / "ours" / "subjects" / name / "transform.h5") for name in theirs}
    subjects = {path.name.split(".")[0]: path for path in paths}
    return [{"tool": "ANTs build_template", "wall_seconds": round(record["seconds"], 1), "cpu_seconds": round(record["cpu_seconds"], 1),
             **judged(read_image(out / "ants" / "template.nii.gz"), theirs, subjects)},
            {"tool": "ours", **cost, **judged(read_image(out / "ours" / "atlas.nii.gz"), mine, subjects)}]


def cohort_at(spacing: float, paths: list[Path], folder: Path) -> list[Path]:
    """The images, and label maps beside them, at about ``spacing`` mm as files of ``folder``; the files themselves for 0."""
    if not spacing:
        return paths
    folder.mkdir(exist_ok=True)
    for path in paths:
        write_image(read_image(path, channels="gray").smoothed_to(spacing), folder / path.name)
        segmentation = path.with_name(path.name.replace(".nii.gz", "_seg.nii.gz"))
        if segmentation != path and segmentation.is_file():
            write_image(read_labels(segmentation).smoothed_to(spacing), folder / segmentation.name)
    return [folder / path.name for path in paths]


def read_all(files):
    """Transform files in the order in which a point is carried, as one map."""
    transforms = [read_transform(file) for file in files]
    return Composite.of(Identity(transforms[0].dim), *reversed(transforms))


def judged(atlas: Image, maps: dict, subjects: dict[str, Path]) -> dict:
    """The figures of an atlas with its maps to the subjects."""
    grid, template = atlas.grid, normalised(atlas)
    moved, likeness, energies, labels = torch.zeros(1, grid.dim, *grid.shape), [], [], []
    for name, transform in maps.items():
        made = SubjectMap(np.eye(grid.dim + 1), transform.field(grid).float(), grid)
        image = normalised(read_image(subjects[name], channels="gray"))
        values, weight = on_atlas(image, made)
        likeness.append(correlation(template.data, values, weight))
        energies.append(gradient_energy(image.data, image.grid))
        moved += made.field()[None] / len(maps)
        segmentation = subjects[name].with_name(f"{name}_seg.nii.gz")
        if segmentation.is_file():
            labels.append(on_lattice(read_labels(segmentation), made))
    row = {"similarity": round(float(np.mean(likeness)), 4), "gradient_energy_over_cohort": round(gradient_energy(template.data, grid) / np.mean(energies), 3),
           "mean_displacement_mm": round(length(moved), 4)}
    return {**row, "leave_one_out_dice": round(leave_one_out(labels), 4)} if labels else row


def leave_one_out(labels: list[torch.Tensor]) -> float:
    """Mean over the subjects of the overlap of one's labels and the majority of the others'."""
    every = sorted(set(torch.unique(torch.stack(labels)).tolist()) | {0})
    found = []
    for k, said in enumerate(labels):
        others = [other for j, other in enumerate(labels) if j != k]
        label, _ = majority(shares(lambda others=others: iter(others), every))
        found.append(mean_dice(said, label, [value for value in every if value]))
    return float(np.mean(found))


if __name__ == "__main__":
    sys.exit(main())
