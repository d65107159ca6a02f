"""The job 'warp': volumes, label maps and points of one image carried into the space of another; see jobs.py.

Volumes and label maps are pulled onto the voxels of the reference by the map reference -> inputs; points of the inputs' space go there by
its inverse. Outside the field of view of an input its values are those of "outside"; 'nan' keeps statistics of maps with units honest.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from .jobs_pair import finished, image_of, labels_of

MODES = ("linear", "cubic", "nearest")
DIRECTIONS = ("moving_to_fixed", "fixed_to_moving")


def warp(request: dict, monitor, folder: Path) -> dict:
    """Carry every input. InputError where the request is not understood or nothing lands in the reference."""
    import torch

    from ..exchange import PointSet
    from ..runtime import Runtime

    inputs = [each if isinstance(each, dict) else {"value": each} for each in request.get("inputs", ())]
    if not inputs:
        raise InputError("nothing was given to be carried; choose at least one volume, label map or point set")
    with Runtime("cpu", threads=int(request.get("threads", 0))).active(), torch.no_grad():
        transform, inverse, grid = maps_of(request)
        field = None
        outputs, validity = [], []
        for k, each in enumerate(inputs):
            monitor.progress(k / len(inputs), each["value"].name, k, len(inputs))
            monitor.check()
            if isinstance(each["value"], PointSet):
                inverse = inverse or transform.inverse()
                outputs.append(carried_points(each["value"], inverse))
                validity.append(None)
                continue
            field = transform.field(grid) if field is None else field
            value, valid = carried(each, field, grid)
            outputs.append(value)
            validity.append(valid)
    return {"outputs": outputs, "validity": validity}


def maps_of(request: dict):
    """(reference -> inputs, its inverse or None, reference grid) of a request."""
    from ..geometry import Grid
    from ..transforms.parts import from_parts

    grid = request.get("reference")
    if request.get("result") is None:
        if not isinstance(grid, Grid) or not request.get("parts"):
            raise InputError("the request has no transform or no reference; give 'parts' and a grid, or the folder of a registration as 'result'")
        return from_parts(request["parts"]), None, grid
    source, made = finished(request["result"])
    direction = request.get("direction", DIRECTIONS[0])
    if direction not in DIRECTIONS:
        raise InputError(f"the direction '{direction}' was given; expected {' or '.join(DIRECTIONS)}")
    forward = from_parts(made["transform"])
    backward = from_parts(made["inverse"]) if "inverse" in made else None
    if direction == DIRECTIONS[0]:
        return forward, backward, grid or source["fixed"].grid
    return backward or forward.inverse(), forward, grid or source["moving"].grid


def carried(each: dict, field, grid):
    """(value, validity LabelMap) of one Volume or LabelMap on ``grid``; ``field`` (1, 3, *S) mm leads from there to the input.

    InputError for a volume of which nothing lands there; a label map may be empty there, as a segment of another region is.
    """
    import numpy as np

    from ..exchange import LabelMap, Volume
    from ..ops import fields
    from ..ops.sample import index_points, inside, sample, sample_known
    from .jobs_register import of_kind

    value, labels = each["value"], isinstance(each["value"], LabelMap)
    if not labels and not isinstance(value, Volume):
        raise InputError(f"a {type(value).__name__} was given to be carried; give volumes, label maps and point sets")
    mode, outside = mode_of(each, labels), outside_of(each, labels)
    image = labels_of(value) if labels else image_of(value)
    index = index_points(grid, image.grid) + fields.to_index_units(field, image.grid)
    valid = inside(index, image.grid.shape)[0].numpy()
    if not labels and not valid.any():
        raise InputError(f"nothing of '{value.name}' falls into the field of view of the reference; check that the transform belongs to these "
                         "two images, and the direction")
    data = (sample if labels else sample_known)(image.data, index, mode, fill=outside)[0].numpy()
    validity = LabelMap(valid.astype(np.uint8), grid, ((1, "in the field of view"),), f"{value.name} validity")
    if labels:
        return LabelMap(data[0].astype(value.array.dtype), grid, value.names, value.name), validity
    made = Volume(data[0] if value.array.ndim == 3 else data, grid, value.name)
    return made if np.isnan(outside) else of_kind(made, value.array.dtype), validity


def mode_of(each: dict, labels: bool) -> str:
    mode = "nearest" if labels else each.get("interpolation", "linear")
    if mode not in MODES or each.get("interpolation", mode) != mode:
        raise InputError(f"'{each['value'].name}' was to be read with '{each.get('interpolation')}'; "
                         f"{'label maps are read with nearest' if labels else 'expected ' + ', '.join(MODES)}")
    return mode


def outside_of(each: dict, labels: bool) -> float:
    """The value outside of the input's field of view."""
    outside = {"zero": 0.0, "nan": float("nan")}.get(each.get("outside", "zero"), each.get("outside"))
    if isinstance(outside, bool) or not isinstance(outside, (int, float)) or (labels and outside != 0):
        raise InputError(f"'{each['value'].name}' was to be {each.get('outside')!r} outside; expected "
                         + ("zero, as for every label map" if labels else "'zero', 'nan' or a number"))
    return float(outside)


def carried_points(points, transform):
    """A PointSet after ``transform``."""
    import torch

    from ..exchange import PointSet

    moved = transform(torch.tensor(points.positions.tolist(), dtype=torch.float64).reshape(1, -1, 3))
    return PointSet(moved[0].double().numpy(), points.names, points.name)
