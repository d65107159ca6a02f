"""The job 'train'; see jobs.py."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import InputError

LIST = "images.json"


def train(request: dict, monitor, folder: Path) -> dict:
    """Carry out a training order. Raises InputError, ConvergenceError or Cancelled; then a run that has begun can be gone on with."""
    from ..runtime import Runtime
    from ..train.running import Order, carry_out

    out = Path(request["out"])
    resume = bool(request.get("resume", False))
    data = request.get("data")
    if request.get("images") and not resume:
        data = write_images(request["images"], request.get("labels") or [None] * len(request["images"]), out / "images")
    order = Order(request["recipe"], out, dict(request.get("values") or {}), None if data is None else Path(data), None, request.get("dim"),
                  request.get("steps"), int(request.get("seed", 0)), resume=resume)
    runtime = Runtime(request.get("device", "auto"), order.seed, int(request.get("threads", 0)), monitor=monitor)
    return {"summary": carry_out(order, runtime)}


def write_images(images, labels, folder: Path) -> Path:
    """Write Volumes and LabelMaps as files with a list of them; returns the list. Structures of one name get one value everywhere.

    InputError where the folder cannot be made.
    """
    from ..io import write_image, write_labels
    from .jobs_pair import image_of, labels_of

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be made ({error.strerror}); choose another run folder") from None
    values, rows = common_values(labels), []
    for k, (image, map_) in enumerate(zip(images, labels)):
        row = {"image": f"image{k:03d}.nii.gz", "subject": f"{image.name} ({k})"}
        write_image(image_of(image), folder / row["image"])
        if map_ is not None:
            row["labels"] = f"labels{k:03d}.nii.gz"
            write_labels(labels_of(renumbered(map_, values)), folder / row["labels"])
        rows.append(row)
    (folder / LIST).write_text(json.dumps(rows, indent=1), "utf-8")
    return folder / LIST


def common_values(labels) -> dict[str, int]:
    """Name of a structure -> its value in all label maps; empty where one of them has no names."""
    given = [map_ for map_ in labels if map_ is not None]
    if not all(map_.names for map_ in given):
        return {}
    names = sorted({name for map_ in given for _, name in map_.names})
    return {name: k + 1 for k, name in enumerate(names)}


def renumbered(map_, values: dict[str, int]):
    """The LabelMap with the common ``values`` of its structures; as it is where there are none."""
    import numpy as np

    from ..exchange import LabelMap

    if not values:
        return map_
    source, array = np.asarray(map_.array), np.zeros(np.shape(map_.array), np.int32)
    for value, name in map_.names:
        array[source == value] = values[name]
    return LabelMap(array, map_.grid, tuple((values[name], name) for _, name in map_.names), map_.name)
