"""atlas apply: bring a subject that was not in the cohort to a finished atlas, as its own subjects were.

DIR gets transform.h5 (atlas -> subject), inverse.h5, warped.nii.gz (the subject on the atlas), log_jacobian.nii.gz, log_jacobian_z.nii.gz (how many
standard deviations it lies from the cohort's mean), labels.nii.gz (the atlas's labels on the subject, where it has some) and
result.json. With --to, bridge.h5 is the map from INPUT through the atlas to the second image and bridged.nii.gz that image on INPUT.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from ..errors import InputError
from ..runtime import Runtime
from . import options
from .atlas_build import RECORD as ATLAS
from .output import RECORD, note, say, staged

FILES = ("transform.h5", "inverse.h5", "warped.nii.gz", "log_jacobian.nii.gz", "log_jacobian_z.nii.gz", "labels.nii.gz", "bridge.h5", "bridged.nii.gz")
LEAST_SPREAD = 0.02
"""Smallest standard deviation of a log-Jacobian that a subject is measured by: the atlas has none where all subjects are alike."""


def add(actions) -> None:
    parser = actions.add_parser("apply", help="bring another subject to a finished atlas", description=__doc__)
    parser.add_argument("--atlas", type=Path, required=True, metavar="DIR", help="folder of 'atlas build'")
    parser.add_argument("--input", type=Path, required=True, metavar="FILE", help="image of the subject")
    parser.add_argument("--mask", type=Path, metavar="FILE", help="only voxels above 0 of this image count in the subject")
    parser.add_argument("--age", type=float, metavar="A", help="age of the subject, for an atlas over age: the atlas is that of this age")
    parser.add_argument("--to", type=Path, metavar="FILE", help="a second subject: the map from the first to it, through the atlas")
    options.add_results(parser)
    options.add_place(parser)
    options.add_voice(parser)
    parser.set_defaults(run=run)


def run(arguments) -> None:
    """Register to the atlas and write. Raises InputError, ConvergenceError or Cancelled; then nothing is written."""
    from .register import plain

    record, method = read_record(arguments.atlas)
    with staged(arguments.out, FILES) as folder:
        monitor = options.monitor(arguments)
        runtime = Runtime(arguments.device, arguments.seed, arguments.threads, monitor=monitor)
        told = write(arguments, record, method, runtime, folder)
        (folder / RECORD).write_text(json.dumps(plain(told), indent=1, allow_nan=False), "utf-8")
    if told["remark"]:
        note(f"remark: {told['remark']}")
    if not (arguments.quiet or arguments.json_progress):
        before, after = ("none" if value is None else f"{value:.3f}" for value in (told["similarity"]["before"], told["similarity"]["after"]))
        say(f"correlation with the atlas {before} -> {after}, folds {100 * told['folds']:.3f} %")
        say(f"{arguments.out}: {', '.join([*told['files'], RECORD])}")


def read_record(folder: Path):
    """(what atlas.json says, the method that built the atlas). InputError where the folder holds no finished atlas."""
    from ..method import find

    path = folder / ATLAS
    if not path.is_file():
        raise InputError(f"{folder} holds no {ATLAS}; give the folder of a finished 'atlas build'")
    try:
        record = json.loads(path.read_text("utf-8"))
        return record, find(record["method"], record["parameters"])
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is not the record of an atlas; build the atlas again") from None


def write(arguments, record: dict, method, runtime: Runtime, folder: Path) -> dict:
    """All files into ``folder``; what result.json says."""
    from ..engines.cohort_work import loses
    from ..evaluate.summary import summarise
    from ..io import write_image, write_transform
    from ..problem import Subject

    atlas = template(arguments.atlas, record, arguments.age)
    subject = Subject("input", arguments.input, None, arguments.mask).read()
    transform = carried(arguments, method, atlas, subject, runtime)
    inverse = transform.inverse()
    write_transform(transform, folder / "transform.h5")
    write_transform(inverse, folder / "inverse.h5")
    summary = summarise(transform, atlas, subject)
    write_image(summary.warped, folder / "warped.nii.gz")
    write_image(summary.log_jacobian, folder / "log_jacobian.nii.gz")
    write_deviation(arguments.atlas, summary.log_jacobian, folder)
    write_atlas_labels(arguments.atlas / labels_of(record, arguments.age), inverse, subject, arguments.input, folder)
    if arguments.to is not None:
        write_bridge(arguments, method, atlas, subject, transform, runtime, folder)
    files = [name for name in FILES if (folder / name).exists()]
    return {"atlas": str(arguments.atlas.resolve()), "input": str(arguments.input.resolve()), "to": arguments.to and str(arguments.to.resolve()),
            "method": record["method"], "parameters": record["parameters"], "seed": runtime.seed, **summary.scores,
            "remark": doubt(arguments.atlas, summary.scores["similarity"]["after"], loses(transform, atlas.grid, subject.grid)), "files": files}


def doubt(atlas: Path, similarity: float | None, lost: bool) -> str:
    """A remark where a subject is as little like the atlas as an outlier of its cohort would be, or ``lost`` out of sight; '' where it is not."""
    from ..engines.groupwise import OUTLIER, spread_of
    from ..tables import read_rows

    check = "check that the image shows the same part of the body, the same way up, in the same contrast"
    if lost:
        return f"the subject is unlike the atlas: the map leads out of it almost everywhere, so that its correlation means nothing; {check}"
    middle, spread = spread_of([float(row["similarity"]) for row in read_rows(atlas / "quality.csv")[1] if row.get("similarity")])
    if similarity is not None and similarity >= middle - OUTLIER * spread:
        return ""
    return (f"the subject is unlike the atlas: its correlation is {'none' if similarity is None else f'{similarity:.3f}'}, those of the cohort are about "
            f"{middle:.3f}; look at warped.nii.gz, and {check}")


def template(folder: Path, record: dict, age: float | None):
    """The atlas that a subject is registered to: of its ``age`` where it is one over age, drawn by its generator or between those of the two
    ages next to it. InputError for an age that is missing, not wanted or outside."""
    import numpy as np

    from ..io import read_image

    atlas, ages = read_image(folder / "atlas.nii.gz"), record.get("ages")
    if ages is None and age is not None:
        raise InputError(f"--age {age:g} was given and the atlas in {folder} is none over age; take it away")
    if ages is None:
        return atlas
    if age is None:
        raise InputError(f"the atlas in {folder} depends on age; give that of the subject with --age")
    first, last = min(record["age_of"].values()), max(record["age_of"].values())
    if not first <= age <= last:
        raise InputError(f"the age {age:g} was given; the subjects of the atlas are {first:g} to {last:g} old")
    if (folder / "generator.safetensors").is_file():
        return replace(atlas, data=drawn(folder / "generator.safetensors", (age - first) / (last - first)))
    if not min(ages) <= age <= max(ages):
        raise InputError(f"the age {age:g} was given; the atlas in {folder} was written for {min(ages):g} to {max(ages):g}")
    place = float(np.interp(age, ages, range(len(ages))))
    low, high = (read_image(folder / record["atlases"][int(n)]) for n in (np.floor(place), np.ceil(place)))
    return replace(low, data=low.data + (place % 1) * (high.data - low.data))


def drawn(path: Path, share: float):
    """(1, 1, *S): the atlas that the generator in a file draws."""
    import torch

    from ..networks import weights

    network, _ = weights.load(str(path), Runtime("cpu"))
    with torch.no_grad():
        return network(torch.tensor([share]))


def labels_of(record: dict, age: float | None) -> str:
    """The file of the consensus labels that belong to an atlas: of an atlas over age that of the age next to ``age``."""
    if age is None:
        return "labels_staple.nii.gz"
    nearest = min(range(len(record["ages"])), key=lambda n: abs(record["ages"][n] - age))
    return record["atlases"][nearest].replace("atlas_", "labels_", 1)


def carried(arguments, method, atlas, image, runtime):
    """Atlas mm -> subject mm, by the network where the atlas has one. InputError for an image of another dimension."""
    if image.dim != atlas.dim:
        raise InputError(f"{image.name} is {image.dim}D and the atlas {atlas.dim}D; give an image of the same dimension")
    network = arguments.atlas / "network.safetensors"
    with runtime.active():
        return method.carry(atlas, image, runtime, network if network.is_file() else None)


def write_deviation(atlas: Path, log_jacobian, folder: Path) -> None:
    """The log-Jacobian in standard deviations of the cohort about its mean."""
    from ..io import read_image, write_image

    mean, spread = (read_image(atlas / f"{name}_log_jacobian.nii.gz").data for name in ("mean", "sd"))
    z = (log_jacobian.data - mean) / spread.clamp_min(LEAST_SPREAD)
    write_image(replace(log_jacobian, data=z), folder / "log_jacobian_z.nii.gz")


def write_atlas_labels(path: Path, inverse, subject, source: Path, folder: Path) -> None:
    """The consensus labels of the atlas on the voxels of the subject's file ``source``, where the atlas has some."""
    from ..image import Labels
    from ..io import read_grid, read_labels, write_labels
    from ..result import warp

    if path.is_file():
        labels, grid = warp(read_labels(path), inverse, subject.grid), read_grid(source)
        if grid.dim > labels.dim:  # a one-slice volume, which was a 2D image until here
            labels = Labels(labels.data.reshape(1, 1, *grid.shape), grid)
        write_labels(labels, folder / "labels.nii.gz")


def write_bridge(arguments, method, atlas, subject, transform, runtime: Runtime, folder: Path) -> None:
    """The map from the subject through the atlas to the second image, and that image on the subject."""
    from ..io import write_image, write_transform
    from ..problem import Subject
    from ..result import bridge, warp

    second = Subject("second", arguments.to).read()
    joined = bridge(transform, carried(arguments, method, atlas, second, runtime))
    write_transform(joined, folder / "bridge.h5")
    write_image(warp(second, joined, subject.grid), folder / "bridged.nii.gz")
