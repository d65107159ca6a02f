"""register: two images in, a transform out, with its inverse, its linear part, the warped image, a map and a record."""

from __future__ import annotations

import json
import platform
import time
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError
from ..runtime import Runtime, fewer_threads, peak_memory_mib
from . import options
from .output import RECORD, missing_remark, note, remark_on, say, staged

FILES = {"transform": "transform.h5", "inverse": "inverse.h5", "affine": "affine.tfm", "warped": "warped.nii.gz", "jacobian": "log_jacobian.nii.gz"}
INPUTS = ("fixed", "moving", "fixed_mask", "moving_mask", "fixed_labels", "moving_labels", "fixed_points", "moving_points")
"""Options that name a file each."""
STARTS = {"header": None, "center": ("affine", {"start": "center", "freedom": "none"}), "moments": ("affine", {"start": "moments", "freedom": "none"}),
          "global": ("affine", {"start": "global", "freedom": "rigid"}), "csngf": ("csngf", {}), "affine": ("affine", {})}
"""--init by name: a method and its parameters, None for the identity in world coordinates."""


def add(commands) -> None:
    parser = commands.add_parser("register", help="register MOVING onto FIXED", description=__doc__)
    parser.add_argument("--fixed", type=Path, required=True, metavar="FILE",
                        help="the image that stays: a file, a folder with one DICOM series, or FILE#N, time point N (from 0) of a 4D file")
    parser.add_argument("--moving", type=Path, required=True, metavar="FILE", help="the image that is brought onto it, likewise")
    options.add_results(parser)
    options.add_color(parser)
    options.add_method(parser)
    options.add_masks(parser)
    options.add_guides(parser)
    options.add_fill(parser)
    options.add_voice(parser)
    parser.set_defaults(run=run)


def run(arguments) -> None:
    """Read, register, write, record. Raises InputError, ConvergenceError or Cancelled; then nothing is written."""
    clock = Stages(arguments.began)
    with staged(arguments.out, tuple(FILES.values())) as folder:
        with clock("imports"):
            from ..method import find
        require_apart(arguments)
        values = options.settings(arguments.set)
        method = find(arguments.method, values)
        runtime = Runtime(arguments.device, arguments.seed, arguments.threads, monitor=options.monitor(arguments))
        runtime.torch_device()
        with clock("reading"):
            problem = read_pair(arguments)
        with clock("initialisation"):
            problem = with_start(problem, arguments.init, runtime)
        with clock("registration"):
            result = method.run(problem, runtime)
        with runtime.active(), fewer_threads(problem.fixed.grid.voxels):
            record = write(result, folder, arguments.write, clock, arguments.fill)
        record = {**describe(arguments, method, result), **record, "wall_seconds": clock.seconds(), "peak_memory_mib": peak_memory_mib()}
        (folder / RECORD).write_text(json.dumps(plain(record), indent=1, allow_nan=False), "utf-8")
    if not (arguments.quiet or arguments.json_progress):
        tell(record, arguments.out)


def require_apart(arguments) -> None:
    """InputError where an input is one of the files in the output folder that the results replace."""
    from ..io.files import place_of

    results = {(arguments.out / name).resolve() for name in FILES.values()}
    for name in INPUTS:
        path = getattr(arguments, name)
        if path is not None and Path(place_of(path)[0]).resolve() in results:
            raise InputError(f"--{name.replace('_', '-')} is {path}, which the results would replace; choose another --out")


class Stages:
    """Wall seconds of named stages since ``began`` (``time.perf_counter()`` at the start of the program)."""

    def __init__(self, began: float):
        self.began = began
        self.stages = {"start": time.perf_counter() - began}

    @contextmanager
    def __call__(self, name: str):
        began = time.perf_counter()
        yield
        self.stages[name] = self.stages.get(name, 0.0) + time.perf_counter() - began

    def seconds(self) -> dict[str, float]:
        """Stage -> seconds, with the total so far."""
        return {name: round(s, 4) for name, s in (*self.stages.items(), ("total", time.perf_counter() - self.began))}


def read_pair(arguments):
    """The request that the files describe; a remark where most of the points lie outside of their image. Raises InputError for a file that
    cannot be used."""
    from ..image import matched
    from ..io import read_image, read_labels, read_mask, read_points
    from ..problem import Pair

    images, guides = {}, {}
    for side in ("fixed", "moving"):
        image = read_image(getattr(arguments, side), channels="gray" if arguments.color == "gray" else "scalar")
        note_placement(getattr(arguments, side), image)
        mask = getattr(arguments, f"{side}_mask")
        images[side] = completed(image if mask is None else image.with_mask(read_mask(mask)))
        for kind, read in (("labels", read_labels), ("points", read_points)):
            path = getattr(arguments, f"{side}_{kind}")
            guides[f"{side}_{kind}"] = None if path is None else read(path)
        if guides[f"{side}_labels"] is not None:
            note_placement(getattr(arguments, f"{side}_labels"), guides[f"{side}_labels"])
            note_overlap(getattr(arguments, f"{side}_labels"))
        note_far_points(guides[f"{side}_points"], image, side)
    guides["fixed_labels"], guides["moving_labels"] = matched(guides["fixed_labels"], guides["moving_labels"])
    guides["moving_points"] = paired(guides["fixed_points"], guides["moving_points"])
    return Pair(**images, **guides)


def completed(image):
    """``image`` with voxels that hold no number left out by its mask, see ``Image.completed``; a remark says how many they are."""
    whole, remark = image.completed(), missing_remark(image)
    if remark:
        note(f"remark: {remark}")
    return whole


def note_overlap(path) -> None:
    """Say so where segments of the file ``path`` overlap, since a label map holds one of them a voxel."""
    from ..io.labels import overlap_of

    count = overlap_of(path)
    if count:
        note(f"remark: segments of {path.name} overlap in {count} voxels, which count for the later segment alone; "
             "give overlapping segments one by one where that matters")


def note_placement(path, image) -> None:
    """Say so where the header of the file ``path`` places ``image`` twice and differently."""
    from ..io.images import other_placement

    found = other_placement(path, image.grid)
    if found is not None:
        taken, left, distance = found
        note(f"remark: the header of {image.name} places it twice, up to {distance:.3g} mm apart; its {taken} is taken, as by ITK and 3D Slicer, "
             f"and not its {left}; if that is the wrong one, correct the header")


def paired(fixed, moving):
    """The ``moving`` points in the order of ``fixed``, see ``exchange.pairing``, whose remark is told."""
    from ..exchange import pairing

    if fixed is None or moving is None:
        return moving
    rows, remark = pairing(fixed.names, moving.names)
    if remark:
        note(f"remark: {remark}")
    return moving if rows is None else moving.taken(rows)


def note_far_points(points, image, side: str) -> None:
    """Say so where most of the points lie outside of the image, see ``exchange.far_points``."""
    from ..exchange import far_points

    if points is None or points.dim != image.dim:
        return
    remark = far_points(points.positions[0].cpu().numpy(), image.grid, side, image.name)
    if remark:
        note(f"remark: {remark}")


def with_start(problem, start: str | None, runtime):
    """``problem`` with its initial transform: a name of ``STARTS``, a transform file, or None for the method's own start."""
    if start is None:
        return problem
    from dataclasses import replace

    from ..method import find
    from ..transforms import Affine

    if start not in STARTS:
        initial = start_from_file(start, problem.dim)
    elif STARTS[start] is None:
        initial = Affine.identity(problem.dim)
    else:
        initial = find(*STARTS[start]).run(problem, runtime).transform
    require_overlap(problem, initial, start)
    return replace(problem, initial=initial)


def start_from_file(path: str, dim: int):
    """The transform of a file; InputError where it is neither a file nor one of ``STARTS``."""
    from ..io import read_transform

    if not Path(path).exists():
        raise InputError(f"the start '{path}' is neither a file nor one of {', '.join(STARTS)}; check the path")
    return read_transform(Path(path), dim)


def require_overlap(problem, initial, start: str) -> None:
    """InputError where ``initial`` brings no part of the fixed field of view into the moving one (looked at on a coarse lattice)."""
    import torch

    grid = problem.fixed.grid
    points = torch.as_tensor(grid.resample(grid.extent / 24).points()).reshape(1, -1, grid.dim).float()
    if not problem.moving.grid.contains(initial(points)[0].detach().cpu().numpy()).any():
        raise InputError(f"the fields of view of {problem.fixed.name} and {problem.moving.name} do not overlap with the start '{start}'; "
                         "start from the centers of mass (moments), or give a transform that brings them together")


def write(result, folder: Path, wanted: tuple[str, ...], clock: Stages, fill: float | None = None) -> dict:
    """Write what is ``wanted`` into ``folder``; returns the scores, where they are wanted, and the file names. ``fill`` as in ``summarise``.

    The warped image, the map and the scores come from the transform as it was saved and read back, so they are those of the file.
    """
    from ..io import write_transform

    problem, path = result.problem, folder / FILES["transform"]
    with clock("writing"):
        write_transform(result.transform, path)
        if "inverse" in wanted:
            write_transform(result.inverse, folder / FILES["inverse"])
        if "affine" in wanted:
            write_transform(result.affine, folder / FILES["affine"])
    scores = {}
    if {"warped", "jacobian", "scores"} & set(wanted):  # one pass over the image makes all three
        scores = write_images(path, problem, folder, wanted, clock, fill)
    if "transform" not in wanted:
        path.unlink()
    return {**(scores if "scores" in wanted else {}), "files": [FILES[name] for name in wanted if name in FILES] + [RECORD]}


def write_images(path: Path, problem, folder: Path, wanted: tuple[str, ...], clock: Stages, fill: float | None) -> dict:
    """Write the warped image and the map where they are ``wanted``; returns the scores of the transform in the file ``path``."""
    from ..evaluate.summary import summarise
    from ..io import read_transform, write_image

    with clock("scores"):
        summary = summarise(read_transform(path, problem.dim), problem.fixed, problem.moving, fill)
    with clock("writing"):
        if "warped" in wanted:
            write_image(summary.warped, folder / FILES["warped"])
        if "jacobian" in wanted:
            write_image(summary.log_jacobian, folder / FILES["jacobian"])
    return summary.scores


def describe(arguments, method, result) -> dict:
    """What was asked for, of which files, and how the method says it went."""
    stated = {key: value for key, value in result.provenance.items() if key not in ("wall_seconds", "peak_memory_mib")}
    return {**stated, "method": method.id, "preset": arguments.method.partition(":")[2] or "default", "request": request(vars(arguments)),
            "system": platform.platform(), "scalars": result.scalars, "history": result.history}


REQUEST = (*INPUTS, "color", "method", "init", "set", "device", "seed", "write", "fill")


def request(values: dict) -> dict:
    """The options that decide the result, as JSON has them: two equal requests give equal results."""
    out = {}
    for name in REQUEST:
        value = values.get(name)
        out[name] = str(value.resolve()) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        out[name] = str(value) if value != value else out[name]  # JSON knows no NaN
    return out


def plain(value):
    """JSON types only: numpy and torch numbers become numbers, paths text, what is not finite None."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def tell(record: dict, out: Path) -> None:
    """A few lines on stdout for the reader of a terminal."""
    memory, scored = record["peak_memory_mib"], "folds" in record
    say(f"{record['method']}:{record['preset']}  {told(record) if scored else ''}{record['wall_seconds']['total']:.1f} s"
        + (f", {memory:.0f} MiB" if memory else ""))
    say(f"{out}: " + ", ".join(record["files"]))
    if scored and record["folds"] > 0:
        note(f"remark: {record['folds_count']} voxels fold; a stronger regularization prevents this")
    if remark_on(record):
        note(f"remark: {remark_on(record)}")


def told(record: dict) -> str:
    """The scores of a record in words."""
    figures = (record["similarity"]["before"], record["similarity"]["after"], record["sdlogj"])
    before, after, spread = (f"{v:.3f}" if v is not None else "none" for v in figures)
    return f"correlation {before} -> {after}, folds {100 * record['folds']:.3f} %, SDlogJ {spread}, "
