"""The jobs 'cohort', 'atlas', 'carry' and 'structure'; see jobs.py. The folder of an atlas is that of the command 'atlas build', with the order beside it,
so that a build that was stopped goes on with what it was asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ..errors import InputError

ORDER, IMAGES, CARRIED = "build.json", "images", "carried"


def cohort(request: dict, monitor, folder: Path) -> dict:
    """The subjects of a folder or a list."""
    return {"subjects": [_described(subject) for subject in _group(Path(request["data"])).subjects]}


def atlas(request: dict, monitor, folder: Path) -> dict:
    """Build an atlas, or go on with one. Its event 'cohort' names the subjects before any is read."""
    from ..method import find
    from ..runtime import Runtime
    from ..tables import read_figures
    from .atlas_build import BUILT, WORK, write

    out, resume = Path(request["out"]), bool(request.get("resume", False))
    _require_room(out, resume)
    order = _read_order(out) if resume else _new_order(request, out)
    group = _group(Path(order["data"]), order["left_out"], order.get("covariate", ""), order.get("covariates", ""))
    monitor.events.write("cohort", subjects=[_described(subject) for subject in group.subjects])
    method = find(order["method"], order["values"])
    runtime = Runtime(
        request.get("device", "auto"),
        order["seed"],
        int(request.get("threads", 0)),
        monitor=monitor.part(0.0, BUILT),
        workers=order["workers"],
        work=out / WORK,
    )
    record = write(method.run(group, runtime), out, monitor.part(BUILT, 1.0))
    shutil.rmtree(out / WORK, ignore_errors=True)
    return {"record": record, "quality": read_figures(out / "quality.csv")}


def carry(request: dict, monitor, folder: Path) -> dict:
    """Bring subjects to a finished atlas, one after the other; one that cannot be brought does not stop the rest. Its event 'carried' gives a row.
    InputError where the atlas depends on age and nothing says where the ages are."""
    from ..errors import RegistrationError
    from .atlas_apply import read_record

    atlas, rows, subjects = Path(request["atlas"]), [], request["subjects"]
    record, method = read_record(atlas)
    ages = _ages(atlas, request) if "ages" in record else None
    for k, subject in enumerate(subjects):
        part = monitor.part(k / len(subjects), (k + 1) / len(subjects), f"subject {k + 1}/{len(subjects)}")
        part.check()
        try:
            age = None if ages is None else _age_of(subject["name"], ages)
            row = _carried(atlas, {**subject, "age": age}, record, method, request, part)
        except RegistrationError as error:
            row = {"subject": subject["name"], "lost": " ".join(str(error).split())}
        rows.append(row)
        monitor.events.write("carried", **row)
    return {"rows": rows}


def _ages(atlas: Path, request: dict) -> dict:
    """Name -> age of the subjects (None where it is not known): of the column that is named, else of the one that the atlas was built with here.
    InputError where there is neither."""
    from .atlas_cohort import Covariate, columns_of, read_scans

    built_here = (atlas / ORDER).is_file()
    if not request.get("covariate") and not built_here:
        raise InputError(f"the atlas in {atlas} depends on age; choose the column, and the table that has it, with the ages of the subjects")
    order = request if request.get("covariate") else _read_order(atlas)
    table = Path(order["covariates"]) if order.get("covariates") else None
    columns = {} if table is not None or not order.get("data") else columns_of(read_scans(Path(order["data"])))
    names = [subject["name"] for subject in request["subjects"]]
    return dict(zip(names, Covariate(order["covariate"], table).of(names, columns)))


def _age_of(name: str, ages: dict) -> float:
    """InputError where it is not known."""
    if ages[name] is None:
        raise InputError("no age is known of it; fill in its row of the table of ages")
    return ages[name]


def _carried(atlas: Path, subject: dict, record: dict, method, request: dict, monitor) -> dict:
    """Files of one subject below ``atlas``/carried; its row."""
    from argparse import Namespace

    from ..io import write_image
    from ..runtime import Runtime
    from .atlas_apply import FILES, write
    from .jobs_pair import image_of
    from .output import RECORD, staged
    from .register import plain

    with staged(atlas / CARRIED / subject["name"], FILES) as stage:
        image = subject["image"]
        if not isinstance(image, str):
            write_image(image_of(image), stage / "input.nii.gz")
            image = stage / "input.nii.gz"
        runtime = Runtime(
            request.get("device", "auto"), int(request.get("seed", 0)), int(request.get("threads", 0)), monitor=monitor
        )
        told = write(Namespace(atlas=atlas, input=Path(image), mask=None, to=None, age=subject["age"]), record, method, runtime, stage)
        (stage / RECORD).write_text(json.dumps(plain(told), indent=1, allow_nan=False), "utf-8")
    return {"subject": subject["name"], "similarity": told["similarity"]["after"], "folds": told["folds"], "remark": told["remark"]}


def structure(request: dict, monitor, folder: Path) -> dict:
    """Analyze a cohort; files go to ``out``, or to the job's folder where none is given."""
    from ..runtime import Runtime
    from ..tables import read_figures
    from .atlas_structure import REPLACED, Order, carry_out
    from .jobs_pair import labels_of
    from .output import staged
    from .structure_sources import Item

    kind, out = request["kind"], Path(request.get("out") or folder / "structure")
    if request.get("label_maps"):
        maps = request["label_maps"]
        names = [
            map_.name if [m.name for m in maps].count(map_.name) == 1 else f"{map_.name} ({k})"
            for k, map_ in enumerate(maps)
        ]
        source = [Item(name, lambda map_=map_: labels_of(map_)) for name, map_ in zip(names, maps)]
    else:
        source = Path(request["data"])
    covariates = request.get("covariates") or None
    order = Order({kind: source}, None if covariates is None else Path(covariates), dict(request.get("values") or {}))
    with staged(out, REPLACED) as stage:
        record = carry_out(order, stage, Runtime("cpu", int(request.get("seed", 0)), monitor=monitor))
    return {"record": record, "subjects": read_figures(out / "subjects.csv"), "out": str(out)}


def _require_room(out: Path, resume: bool) -> None:
    """InputError where ``out`` is no folder, or holds an atlas or the beginning of one that this build would mix with."""
    from .atlas_build import RECORD, WORK

    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file, a folder is needed for the atlas; choose another one")
    if (out / RECORD).exists():
        raise InputError(f"{out} holds an atlas already; choose another folder")
    if (out / WORK).exists() and not resume:
        raise InputError(f"{out} holds an atlas that was not finished; go on with it, or choose another folder")


def _new_order(request: dict, out: Path) -> dict:
    """Write what is asked for into ``out``, with the images of a scene as files."""
    from .atlas_cohort import require_apart
    from .jobs_train import write_images

    data = request.get("data")
    if request.get("images"):
        data = write_images(request["images"], request.get("labels") or [None] * len(request["images"]), out / IMAGES)
        listed = json.loads(data.read_text("utf-8"))
        listed = [row | {"subject": name} for row, name in zip(listed, request["names"])]
        data.write_text(json.dumps(listed, indent=1), "utf-8")
    if not data:
        raise InputError("the request names no cohort; give 'data' (a folder or a list) or 'images'")
    require_apart(Path(data), out)
    order = {
        "data": str(data),
        "left_out": list(request.get("left_out") or []),
        "covariate": request.get("covariate") or "",
        "covariates": str(request.get("covariates") or ""),
        "method": request["method"],
        "values": dict(request.get("values") or {}),
        "workers": int(request.get("workers", 1)),
        "seed": int(request.get("seed", 0)),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / ORDER).write_text(json.dumps(order, indent=1), "utf-8")
    except OSError as error:
        raise InputError(f"nothing can be written to {out} ({error.strerror}); choose another folder") from None
    return order


def _read_order(out: Path) -> dict:
    try:
        return json.loads((out / ORDER).read_text("utf-8"))
    except (OSError, ValueError):
        raise InputError(
            f"{out} holds no build that was begun here ({ORDER} is missing); go on with it by 'atlas build --resume', "
            "or choose another folder"
        ) from None


def _group(data: Path, left_out=(), covariate: str = "", covariates: str = ""):
    """The cohort without some subjects, with their ``covariate`` from the list or from the table ``covariates``. InputError where fewer than two
    remain."""
    from ..problem import Group
    from .atlas_cohort import Covariate, read_group

    group = read_group(data, None, Covariate(covariate, Path(covariates) if covariates else None))
    return (
        Group(tuple(subject for subject in group.subjects if subject.name not in set(left_out))) if left_out else group
    )


def _described(subject) -> dict:
    return {"name": subject.name, "image": str(subject.image), "labels": subject.labels is not None, "unusable": subject.unusable}
