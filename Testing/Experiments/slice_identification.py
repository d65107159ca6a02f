"""slice-identification: which plate of an atlas a torn, oblique section shows, by an embedding, and by mutual information.

The network is trained on plates of a real volume alone; the plates that it ranks first start the search of the oblique plane, by which the
plates are ranked. The sections are cut from the volume by other code: tilted by 4 to 8 degrees, turned, bent, scaled, without 25 to 40 % of
their tissue, in another brightness, with pepper and noise. The truth is the plate nearest to the middle of the whole tissue. The
baseline is mutual information after an affine search in the plane with every plate.

Claims for the mouse brain (coronal) and the human head (axial): (a) the plate is among the first 5 in at least 0.9 of the sections; (b) the mean rank
error is below the baseline's; (c) one query (embedding, pose of the oblique plane, ranking) takes less than a second. Recorded without a
claim: the embedding alone, the search from even starts without a network, position and tilt of the plane, and the raw sections of the
mouse brain, which are pictures of their own. --full compares the losses and takes more sections. Called again with the same --out it
takes up its trainings.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import numpy as np
import torch
from common import Experiment  # before the others: it says where the tests, the benchmark and the library are

from truths_plates import section

from DeepRegistrationLib.commands.atlas_identify import identify
from DeepRegistrationLib.engines.plate_information import information_after_affine
from DeepRegistrationLib.engines.plate_search import costs_of, refine
from DeepRegistrationLib.engines.plates import AXES, plates_of, query_of, rank_of
from DeepRegistrationLib.evaluate.plate_pictures import sheet
from DeepRegistrationLib.io import read_image
from DeepRegistrationLib.io.slices import read_slice
from DeepRegistrationLib.train.plates import LOSSES, PlateTraining, train_plates

VOLUMES = {"mouse-brain": ("sample.nii.gz", "coronal"), "brain3d-mni-tissues": ("t1.nii.gz", "axial")}
RAW_PIXEL, RAW_DISTANCE = 0.04, 0.05
"""mm: pixels of the mouse brain's raw sections, and from one to the next."""


def sections(volume, plates, count: int, seed: int) -> list:
    """(section, query, number of the true plate) spread over the plates, without the first and last twentieth."""
    generator, positions, out = np.random.default_rng(seed), plates.positions, []
    for k, place in enumerate(np.linspace(positions[0], positions[-1], count + 2)[1:-1]):
        made = section(volume, AXES[plates.axis], place, generator, f"section {k}")
        out.append((made, query_of(made.image, plates), int(np.argmin(np.abs(positions - made.position)))))
    return out


def scores(ranks) -> dict:
    ranks = np.asarray(ranks)
    return {**{f"top{n}": float((ranks < n).mean()) for n in (1, 3, 5, 10)}, "mean_rank_error": float(ranks.mean())}


def measured(experiment: Experiment, name: str, count: int):
    """Claims on one volume; (plates, found of a middling section, its query)."""
    file, axis = VOLUMES[name]
    volume = read_image(experiment.arguments.data / name / file)
    plates, settings, runtime = plates_of(volume, axis), PlateTraining(), experiment.runtime
    began = time.process_time()
    network, _ = train_plates(plates, settings, runtime, experiment.arguments.out / name)
    trained = time.process_time() - began
    made, found, seconds, work = sections(volume, plates, count, 11), [], [], []
    for _, query, _ in made:
        began, busy = time.perf_counter(), time.process_time()
        found.append(identify(network, plates, query, runtime))
        seconds.append(time.perf_counter() - began)
        work.append(time.process_time() - busy)
    ranks, alone = ([rank_of(getattr(f, kind), truth) for f, (_, _, truth) in zip(found, made)] for kind in ("costs", "distances"))
    places = np.linspace(0, plates.count - 1, 10).astype(int)
    planes = [refine(query, plates, places, runtime.monitor) for _, query, _ in made]
    even = [rank_of(costs_of(poses, plates.count), truth) for poses, (_, _, truth) in zip(planes, made)]
    generator, began = torch.Generator().manual_seed(3), time.process_time()
    baseline = [rank_of(-information_after_affine(query, plates, generator), truth) for _, query, truth in made]
    experiment.figures[name] = {
        "plates": plates.count, "plate spacing mm": plates.spacing, "sections": count, "training CPU seconds": round(trained, 1),
        "embedding and plane": scores(ranks), "embedding alone": scores(alone),
        "plane from ten even starts, no network": scores(even), "mutual information": scores(baseline),
        "mutual information CPU seconds a query": round((time.process_time() - began) / count, 2), "query seconds, median and longest":
        [round(float(np.median(seconds)), 3), round(max(seconds), 3)], "query CPU seconds, median": round(float(np.median(work)), 3),
        "first plate: plates from the truth": scattered([abs(int(f.order[0]) - truth) for f, (_, _, truth) in zip(found, made)]),
        "pose: plates from the truth": scattered([abs(f.poses[0].plate - truth) for f, (_, _, truth) in zip(found, made)]),
        "pose: degrees between normals": scattered([between(f.poses[0].frame, one.frame) for f, (one, _, _) in zip(found, made)]),
        "no search: degrees between normals": scattered([one.tilt for one, _, _ in made]), "called doubtful": sum(f.doubtful for f in found)}
    experiment.at_least(f"{name}: share of sections whose plate is among the first 5", scores(ranks)["top5"], 0.9)
    experiment.at_most(f"{name}: mean rank error over the baseline's (bar: less than 1)", np.mean(ranks) / max(np.mean(baseline), 1e-9), 0.999)
    experiment.at_most(f"{name}: seconds of a query, median", float(np.median(seconds)), 1.0)
    return network, plates, volume, found, made


def scattered(values) -> dict:
    return {"median": float(np.median(values)), "mean": float(np.mean(values)), "largest": float(np.max(values))}


def between(one, other) -> float:
    """Degrees between the normals of two frames."""
    return float(np.rad2deg(np.arccos(np.clip(one[:3, 2] @ other[:3, 2], -1, 1))))


def raw(experiment: Experiment, network, plates, volume) -> None:
    """The raw sections of the mouse brain: number -> plates between the truth, from the section's number, and the first plate and the pose."""
    folder, rows = experiment.arguments.data / "mouse-brain" / "slices", {}
    back = (volume.grid.corners() @ AXES["coronal"][:, 2]).max()
    for path in sorted(folder.glob("coronal_*.png")):
        position = back - int(path.stem.split("_")[1]) * RAW_DISTANCE
        found = identify(network, plates, query_of(read_slice(path), plates, RAW_PIXEL), experiment.runtime)
        truth = (position - plates.positions[0]) / plates.spacing
        rows[path.stem] = {"truth": round(truth, 1), "first": int(found.order[0]), "pose": found.poses[0].plate,
                           "tilt": round(found.poses[0].tilt, 1), "doubtful": found.doubtful}
    experiment.figures["raw sections of the mouse brain, plates"] = rows


def losses(experiment: Experiment, plates, made) -> None:
    """The same sections after training with each loss."""
    from DeepRegistrationLib.engines.plates import centered, embedded
    from DeepRegistrationLib.networks.embedding import distances

    table = {}
    for loss in LOSSES:
        network, _ = train_plates(plates, replace(PlateTraining(), loss=loss), experiment.runtime)
        seen = embedded(network, centered(torch.cat([query.picture for _, query, _ in made])))
        table[loss] = scores([rank_of(row, truth) for row, (_, _, truth) in zip(distances(seen, network.places).numpy(), made)])
    experiment.figures["losses"] = table


def drawn(plates, found, made) -> bytes:
    """A section and what was found for it, the one of median rank error."""
    ranks = [rank_of(f.costs, truth) for f, (_, _, truth) in zip(found, made)]
    k = int(np.argsort(ranks)[len(ranks) // 2])
    answer, (one, query, truth) = found[k], made[k]
    shown = answer.order[:5]
    pictures = plates.pictures(np.concatenate([plates.frames[shown], answer.poses[0].frame[None]]))[:, 0].numpy()
    title = f"true plate {truth}, tilted by {one.tilt:.1f} degrees; found plane at plate {answer.poses[0].plate}, {answer.poses[0].tilt:.1f} degrees"
    return sheet(query.picture[0, 0].numpy(), pictures[5], list(pictures[:5]), [f"{r}. plate {n}" for r, n in enumerate(shown, 1)], title)


def main() -> int:
    experiment = Experiment("slice-identification", __doc__, pair=False)
    count, picture = 72 if experiment.arguments.full else 36, b""
    torch.set_num_threads(1)  # pictures of 64 pixels: a second thread waits more than it works
    for name in VOLUMES:
        if not (experiment.arguments.data / name).is_dir():
            raise SystemExit(f"the folder {experiment.arguments.data} has no {name}; give it by --data")
        network, plates, volume, found, made = measured(experiment, name, count)
        if name == "mouse-brain":
            raw(experiment, network, plates, volume)
            picture = drawn(plates, found, made)
            if experiment.arguments.full:
                losses(experiment, plates, made)
    return experiment.finish(picture)


if __name__ == "__main__":
    sys.exit(main())
