"""atlas build: a template of a cohort, and maps from it to every subject.

DIR gets atlas.nii.gz, mean_log_jacobian.nii.gz and sd_log_jacobian.nii.gz, subjects/NAME/transform.h5 (atlas -> subject) and inverse.h5,
quality.csv, convergence.csv and, last, atlas.json; where subjects have label maps also labels_majority.nii.gz, labels_staple.nii.gz and
probability_VALUE.nii.gz; network.safetensors where a network was trained. An atlas over age (--method spatiotemporal-atlas --covariate NAME) has
atlas_age_A.nii.gz for every age, atlas.seq.nrrd (all of them as a sequence for 3D Slicer), growth.csv and growth.png (over age the volume,
mm^3, of images of two axes the area, mm^2, and the length, mm, of what is bright and of every label), with label maps labels_age_A.nii.gz; its
atlas.nii.gz is that of the middle age. A stopped build goes on with --resume: every subject that was finished is kept in DIR/work until all is done.
Where a network is trained, several processes or machines that share DIR may train it together: torchrun --nproc-per-node N -m DeepRegistrationLib
atlas build .... A subject that cannot be used is set aside with a reason and does not stop the rest.

quality.csv has a row a subject: its correlation with the atlas, the share of folds, the standard deviation of the log-Jacobian, the displacement (root mean
square, mm) and the mean overlap (Dice) of its labels with the majority's. In convergence.csv lengths are in mm and energies in squared brightness per mm^2.
"""

from __future__ import annotations

import csv
import json
import shutil
from contextlib import contextmanager
from pathlib import Path

from ..errors import Cancelled, InputError
from ..runtime import Monitor, Runtime, Silent, fewer_threads
from . import options
from .output import note, say, staged

RECORD, WORK = "atlas.json", "work"
BUILT = 0.95
"""Share of the progress until the atlas is built; the rest is for its files."""


def add(actions) -> None:
    parser = actions.add_parser("build", help="a template of a cohort and maps to every subject", description=__doc__)
    parser.add_argument("--cohort", type=Path, required=True, metavar="FOLDER|LIST",
                        help="images: a folder, or a .csv or .json list with the columns image, subject, labels, mask")
    parser.add_argument("--covariate", default="", metavar="NAME", help="column of the list that holds the age of every subject, for an atlas over age")
    parser.add_argument("--covariates", type=Path, metavar="FILE", help="table that has this column (.csv, a subject a row; default: the list)")
    parser.add_argument("--ages", metavar="A,B,...", help="ages of which the atlas is written (default: those at which it is held)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the atlas")
    parser.add_argument("--labels", metavar="RULE", help="names of label maps in a folder, for example '{name}_seg' (default: the usual ones)")
    parser.add_argument("--method", default="icon-atlas", metavar="ID[:PRESET]",
                        help="icon-atlas:PRESET or spatiotemporal-atlas:PRESET, or any pairwise method, which is then used by icon-atlas "
                             "(default: %(default)s)")
    parser.add_argument("--init", metavar="START", help="first template: mean, median, random, or the name of a subject (default: the preset's)")
    parser.add_argument("--iterations", type=int, metavar="N", help="deformable iterations, at most (default: the preset's)")
    options.add_settings(parser)
    parser.add_argument("--workers", type=options.count, default=1, metavar="N", help="processes; each has one subject at a time (default: %(default)s)")
    parser.add_argument("--scheduler", default="", metavar="ADDRESS",
                        help="a Dask scheduler, for example tcp://HOST:8786, whose workers register the subjects instead")
    parser.add_argument("--resume", action="store_true", help="go on with the build in DIR")
    options.add_place(parser, "CPU threads of each process (default: all, shared out)")
    options.add_voice(parser)
    parser.set_defaults(run=run)


def run(arguments) -> None:
    """Build and write. Raises InputError, ConvergenceError or Cancelled; the state in DIR/work stays, to go on from."""
    from ..train import processes
    from .atlas_cohort import Covariate, read_group, require_apart

    method = chosen(arguments)
    require_apart(arguments.cohort, arguments.out)
    problem = read_group(arguments.cohort, arguments.labels, Covariate(arguments.covariate, arguments.covariates))
    with processes.joined(arguments.device) as device:
        first = processes.rank() == 0
        monitor = options.monitor(arguments) if first else Silent()
        runtime = Runtime(device, arguments.seed, threads(arguments), monitor=monitor.part(0.0, BUILT), workers=arguments.workers,
                          work=(arguments.out / WORK).resolve(), scheduler=arguments.scheduler)
        if processes.shared(first and prepare(arguments.out, arguments.resume, method, problem, arguments.seed), runtime.torch_device()):
            note(f"{arguments.out} holds this atlas already; nothing is left to do")
            return
        with resumable(arguments.out):
            result = method.run(problem, runtime)
        processes.meet()
    if not first:
        return
    with resumable(arguments.out), runtime.active(), fewer_threads(result.atlas.grid.voxels):
        record = write(result, arguments.out, monitor.part(BUILT, 1.0))
    shutil.rmtree(arguments.out / WORK, ignore_errors=True)
    if not (arguments.quiet or arguments.json_progress):
        tell(record, arguments.out)


@contextmanager
def resumable(out: Path):
    """A part of a build that can be gone on with after it was stopped, which is said then."""
    try:
        yield
    except (KeyboardInterrupt, Cancelled):
        if (out / WORK).is_dir():
            note(f"{out / WORK} keeps the subjects that are finished: the same command with --resume goes on from there")
        raise


def chosen(arguments):
    """The method as asked for; one for pairs is used by 'icon-atlas'. InputError for unknown names, and for options that contradict each other."""
    from ..method import find
    from ..problem import Group

    values, name = options.settings(arguments.set), arguments.method
    if find(name).card.problem is not Group:
        values, name = {"method": name, **values}, "icon-atlas"
    card = find(name).card
    if card.covariate and not arguments.covariate:
        raise InputError(f"the method '{name}' needs the age of every subject; name the column that holds it with --covariate")
    for option in ("covariate", "covariates", "ages"):
        if getattr(arguments, option) and not card.covariate:
            raise InputError(f"--{option} was given and the method '{name}' knows no ages; take it away, or use --method spatiotemporal-atlas")
    if arguments.ages:
        values |= {"ages": arguments.ages}
    if arguments.init is not None:
        if card.covariate:
            raise InputError(f"--init {arguments.init} was given and the method '{name}' begins with the medians of the ages; take it away")
        word = arguments.init in ("mean", "median", "random")
        values |= {"start": arguments.init} if word else {"start": "subject", "reference": arguments.init}
    method = find(name, values)
    if arguments.iterations is None:
        return method
    if arguments.iterations < 1:
        raise InputError(f"{arguments.iterations} iterations were asked for; at least one is needed")
    return find(name, {**values, **({"iterations": arguments.iterations} if card.covariate else {"factors": rounds(method.factors, arguments.iterations)})})


def rounds(factors: tuple[float, ...], count: int) -> tuple[float, ...]:
    """``count`` iterations: the last of ``factors`` where there are fewer, and its finest ones again where there are more."""
    return factors[-count:] if count <= len(factors) else factors + (factors[-1],) * (count - len(factors))


def threads(arguments) -> int:
    """Threads of each process: what was asked for, or an equal share of the cores."""
    import os

    return arguments.threads or (max(1, (os.cpu_count() or 1) // arguments.workers) if arguments.workers > 1 else 0)


def prepare(out: Path, resume: bool, method, problem, seed: int) -> bool:
    """True where ``out`` holds the finished atlas that is asked for. InputError where it holds something that this build would mix with."""
    from ..engines.groupwise import different
    from ..train.members import order_of

    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file, a folder is needed for the atlas; choose another --out")
    if (out / RECORD).exists():
        if not resume:
            raise InputError(f"{out} holds an atlas already; choose another --out, or remove it first")
        record = json.loads((out / RECORD).read_text("utf-8"))
        held = {"method": record["method"], "parameters": record["parameters"], "seed": record["seed"], "subjects": record.get("cohort")}
        changed = different(order_of(method, problem, seed), held)
        if changed:
            raise InputError(f"{out} holds another atlas (different: {', '.join(changed)}); choose another --out, or remove it first")
        return True
    if (out / WORK).exists() and not resume:
        raise InputError(f"{out} holds an atlas that was not finished; go on with it by --resume, or choose another --out")
    return False


# -------------------------------------------------------------------------------------------------------------- writing


def write(result, out: Path, monitor: Monitor) -> dict:
    """All files of an atlas; atlas.json comes last, so where it is, all is complete. Returns what it says. Cancelled between two subjects."""
    from ..io import write_transform
    from ..result import GrowthResult
    from ..train.members import subjects_of
    from .register import plain

    for _, name in zip(monitor.steps(len(result.names), "transforms"), result.names):
        folder = out / "subjects" / name
        folder.mkdir(parents=True, exist_ok=True)
        transform = result.transform_of(name)
        write_transform(transform, folder / "transform.h5")
        write_transform(transform.inverse(), folder / "inverse.h5")
    with staged(out) as stage:
        write_images(result, stage)
        told = write_growth(result, stage) if isinstance(result, GrowthResult) else {}
        table(stage / "convergence.csv", result.history)
        table(stage / "quality.csv", result.quality)
        for name, path in result.files.items():
            shutil.copyfile(path, stage / name)
        files = sorted(path.name for path in stage.iterdir())
    record = plain({**result.provenance, "dim": result.atlas.dim, "cohort": subjects_of(result.problem), "subjects": list(result.names),
                    "labeled": sum("dice" in row for row in result.quality), "set_aside": result.set_aside,
                    "remarks": result.remarks, "labels": result.values, "scalars": result.scalars, "history": result.history, "files": files, **told})
    with staged(out) as stage:
        (stage / RECORD).write_text(json.dumps(record, indent=1, allow_nan=False), "utf-8")
    return record


def write_images(result, folder: Path) -> None:
    """The atlas, the maps, the consensus labels and the probability of each label."""
    from ..io import write_image, write_labels

    write_image(result.atlas, folder / "atlas.nii.gz")
    for name, image in result.maps.items():
        write_image(image, folder / f"{name}.nii.gz")
    for name, labels in result.labels.items():
        write_labels(labels, folder / f"labels_{name}.nii.gz")
    for value in result.values:
        write_image(result.probability_of(value), folder / f"probability_{value}.nii.gz")


def write_growth(result, folder: Path) -> dict:
    """The templates of all ages, one by one and as a sequence, and the growth curves; what the record says of them."""
    import importlib.util

    from ..engines.ages import age_name
    from ..io import write_image, write_sequence

    for age, image in zip(result.ages, result.atlases):
        write_image(image, folder / f"atlas_{age_name(age)}.nii.gz")
    write_sequence(result.atlases, result.ages, folder / "atlas.seq.nrrd", "age")
    table(folder / "growth.csv", result.growth)
    if importlib.util.find_spec("matplotlib"):
        from ..evaluate.growth_pictures import sheet

        (folder / "growth.png").write_bytes(sheet(result))
    return {"ages": result.ages, "atlases": [f"atlas_{age_name(age)}.nii.gz" for age in result.ages], "age_of": result.age_of, "growth": result.growth}


def table(path: Path, rows: list[dict]) -> None:
    """Rows of one kind as a .csv file with a header line."""
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()} for row in rows)


def tell(record: dict, out: Path) -> None:
    """A few lines for the reader of a terminal."""
    for name, reason in record["set_aside"].items():
        note(f"set aside: {name}: {reason}")
    for name, reason in record["remarks"].items():
        note(f"remark: {name}: {reason}")
    last = record["history"][-1]
    say(f"atlas of {len(record['subjects'])} subjects, {record['labeled']} with labels: similarity {last['similarity']:.3f}, mean displacement "
        f"{last['mean_displacement_left']:.3f} mm, gradient energy "
        f"{last['gradient_energy'] / last['cohort_gradient_energy']:.2f} of the cohort's, {record['wall_seconds']:.1f} s")
    say(f"{out}: {', '.join([*record['files'], RECORD])}, subjects/")
