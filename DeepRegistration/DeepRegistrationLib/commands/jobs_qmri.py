"""The jobs 'qmri', slices into a volume, and 'bones', a bone on slices from strokes; see jobs.py.

Pictures come back on the lattice that a slice was sent with, and every map leads from there, whatever order and directions were found.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError

BINS = 32
LIVE = 64
"""Pixels along an edge of the pictures that are shown during the search."""


def qmri(request: dict, monitor, folder: Path) -> dict:
    """Register slices. InputError for values that cannot be used, and what the method raises."""
    import numpy as np

    from ..engines.slice_order import Placement, moved, moves_of, placed
    from ..method import find
    from ..runtime import Runtime
    from .register import plain

    monitor.progress(0.0, "preparing")
    sent = _problem(request)
    about = _about(request, sent)
    problem, maps = moved(sent, about), _maps(request, sent.slices)
    monitor.check()
    wanted, values = _wanted(request, len(problem.slices)), dict(request.get("values") or {})
    method = find(request.get("method", "qmri"), values if wanted is None else {**values, "placing": "keep"})
    runtime = Runtime(request.get("device", "auto"), int(request.get("seed", 0)), int(request.get("threads", 0)), monitor=monitor.part(0.0, 0.95))
    moves = about if wanted is None else moves_of(problem, wanted) @ about
    if request.get("live"):
        monitor.interval, monitor.sketch = float(request["live"]["interval_s"]), _sketch(sent, moves, bool(request.get("dicom")))
    result = method.run(problem if wanted is None else placed(problem, wanted), runtime)
    monitor.sketch = None
    plane, flips = (result.plane, result.flips) if wanted is None else (wanted.plane, wanted.flips)
    matrices = [t.numpy() @ move for t, move in zip(result.transforms, moves)]
    told = {"registered": result.registered, "reasons": result.reasons, "start": result.start, "evidence": result.evidence,
            "std": {"shift_mm": result.shift_std, "turn_degrees": result.turn_std, "distance_mm": result.distance_std},
            "curve": {name: result.curve[name] for name in ("degrees", "set")} if result.curve else {}, "provenance": result.provenance}
    bends = tuple(bend.before(move) for bend, move in zip(result.bends, moves))
    to_plane = moves_of(problem, Placement(plane, flips, np.eye(4), 0.0)) @ about
    rows = _rows(sent.slices, result, matrices, to_plane, plane, flips, bends)
    if request.get("dicom"):
        rows = [{**row, "measured": volume_of(image)} for row, image in zip(rows, sent.slices)]
    extra = {**_in_volume(request, sent, maps, matrices, bends, monitor.part(0.95, 1.0)), **_structures(request, maps, matrices, bends, folder)}
    told["remarks"] = [*result.remarks, *extra.pop("region_remarks", ())]
    return {**plain(told), **extra, "matrix": _matrix(result.transform.numpy()), "slices": rows}


def bones(request: dict, monitor, folder: Path) -> dict:
    """Learn the bone on all slices. InputError for strokes that do not say enough."""
    from ..engines.bones import learned_bones
    from ..exchange import LabelMap
    from .jobs_pair import image_of, labels_of

    strokes = {k: labels_of(value) for k, value in enumerate(request.get("strokes") or ()) if value is not None}
    if not strokes:
        raise InputError("no slice has strokes; draw some on one, a first segment in the bone and a second one anywhere else")
    found = learned_bones([image_of(value) for value in request["slices"]], strokes, int(request.get("seed", 0)), monitor)
    return {"segments": [LabelMap(labels.data[0, 0].numpy().astype("uint8"), labels.grid, ((1, "bone"),), labels.name) for labels in found]}


def _problem(request: dict):
    """The request as Slices; the slices are those of the scene, or the files of a folder."""
    from ..exchange import Volume
    from ..io.slices import read_slice, slice_files, without
    from ..problem import Slices
    from .jobs_pair import image_of, labels_of

    if not isinstance(request.get("volume"), Volume):
        raise InputError("the request has no volume; give one for 'volume'")
    empty = request.get("no_value")
    if request.get("dicom"):
        slices = [read_slice(path, empty) for path in slice_files(request["dicom"])]
    else:
        slices = [without(image_of(value), empty) for value in request.get("slices") or ()]
    segments = request.get("segments")
    segments = None if segments is None else tuple(labels_of(value) for value in segments)
    bone = None if request.get("volume_segment") is None else labels_of(request["volume_segment"])
    return Slices(tuple(image.completed() for image in slices), image_of(request["volume"]).completed(), float(request.get("thickness", 0.0)), segments, bone,
                  request.get("axis"))


def _about(request: dict, problem):
    """(S, 4, 4) from where the slices were sent with to where the search begins: places about an axis, where the request has one and an angle, and
    there as large as its pixels say. InputError for an axis without a direction, and for pixels without an angle."""
    import numpy as np

    from ..engines.slice_order import moves_about

    if not request.get("degrees"):
        if request.get("pixel_mm"):
            raise InputError("a pixel size was given for slices that lie where their headers say; place them about an axis, or leave it to the headers")
        return np.tile(np.eye(4), (len(problem.slices), 1, 1))
    if problem.axis is None:
        raise InputError("slices were to be placed about an axis, but there is none; give the center and the normal of the localizer")
    return moves_about(problem.slices, problem.axis, float(request["degrees"]), request.get("pixel_mm"))


def _maps(request: dict, slices) -> list[tuple]:
    """[(name, unit, one image a slice)]: the values of the slices themselves, then those of further maps. InputError where these lie elsewhere."""
    import torch

    from ..image import Image
    from ..io.slices import without
    from .jobs_pair import image_of

    def on(value, like):
        if value is None:
            return Image(torch.full_like(like.data, float("nan"), dtype=torch.float32), like.grid)
        image = without(image_of(value), request.get("no_value"))
        if image.grid != like.grid:
            raise InputError(f"'{value.name}' does not lie on the pixels of '{like.name}'; resample it, or leave it out")
        return image

    own = request.get("quantity") or {"name": "value", "unit": ""}
    others = [(each["name"], each["unit"], [on(*pair) for pair in zip(each["images"], slices, strict=True)]) for each in request.get("maps") or ()]
    return [(own["name"], own["unit"], list(slices)), *others]


def _sketch(problem, moves, with_measured: bool):
    """A function of a ``PoseOfSet``: (its matrix as a list, (S, LIVE, LIVE) float32 what the volume shows on every slice as it was sent, NaN outside;
    ``with_measured`` (2, S, LIVE, LIVE), the slices themselves first)."""
    import numpy as np

    from ..engines.slices import emulate, thickness_of

    volume = problem.volume.smoothed_to(np.maximum(problem.volume.grid.spacing, float(problem.volume.grid.extent.max()) / LIVE))
    grids = [s.grid.resample(np.where(np.array(s.grid.size) == 1, s.grid.spacing, s.grid.extent / LIVE)) for s in problem.slices]
    measured = np.stack([image.at(grid).data.cpu().numpy().reshape(LIVE, LIVE) for image, grid in zip(problem.slices, grids)]).astype(np.float32)

    def pictures(pose):
        made = np.stack([emulate(volume, grid, pose.numpy() @ placed @ move, problem.thickness or thickness_of(grid), fill=float("nan"))
                         .data.cpu().numpy().reshape(LIVE, LIVE) for grid, placed, move in zip(grids, pose.moves, moves)])
        return pose.numpy().tolist(), np.stack([measured, made]) if with_measured else made

    return pictures


def _wanted(request: dict, count: int):
    """Order and directions that the user has set, None where the method finds them. InputError for what is no order."""
    import numpy as np

    from ..engines.slice_order import Placement

    if not request.get("placement"):
        return None
    plane, flips = request["placement"]["plane"], request["placement"]["flips"]
    if sorted(plane) != list(range(count)) or len(flips) != count:
        raise InputError(f"the planes {[p + 1 for p in plane]} were given for {count} slices; give every plane from 1 to {count} once")
    return Placement(tuple(plane), tuple((bool(u), bool(v)) for u, v in flips), np.eye(4), float("inf"))


def _rows(slices, result, matrices, moves, plane, flips, bends) -> list[dict]:
    """One dict a slice as it was sent: its map, where it was found to lie, its own motion against the set, and what the volume shows there. ``moves``
    (S, 4, 4) to where it lies in the set."""
    import numpy as np

    from ..exchange import Volume
    from .register import plain

    rows = []
    for k, (image, matrix) in enumerate(zip(slices, matrices)):
        own = np.linalg.inv(result.transform.numpy()) @ matrix @ np.linalg.inv(moves[k])
        middle = moves[k, :3, :3] @ image.grid.centre + moves[k, :3, 3]
        turn = np.arccos(np.clip((np.trace(own[:3, :3]) - 1) / 2, -1, 1))
        made = result.emulated(k).data.cpu().numpy().reshape(image.grid.shape)
        figures = {"name": image.name, "plane": plane[k], "flips": flips[k], **_likeness(image, made),
                   "own_shift_mm": np.linalg.norm(own[:3, :3] @ middle + own[:3, 3] - middle), "own_turn_degrees": np.rad2deg(turn)}
        if bends:
            figures |= {"bend_mm": result.bends[k].largest, "bend_gain": bends[k].gain, "bend_gain_error": bends[k].error}
        rows.append({**plain(figures), **_deformation(bends[k] if bends else None), "matrix": _matrix(matrix),
                     "emulated": Volume(made.astype(np.float32), image.grid, f"{image.name} emulated")})
    return rows


def _deformation(bend) -> dict:
    """'deformation': Lattice of the points of a slice, where one was kept."""
    from ..exchange import Lattice

    if bend is None or bend.field is None:
        return {}
    return {"deformation": Lattice(bend.field.displacement[0].movedim(0, -1).contiguous().numpy(), bend.field.grid)}


def _likeness(image, made) -> dict:
    """'similarity', normalized mutual information of the measured pixels and their emulation; 'inside', the share of them in the volume."""
    import numpy as np

    from ..engines.slices import normalised_information

    values = image.data[0, 0].cpu().numpy()
    valid = np.ones(values.shape, bool) if image.mask is None else image.mask[0, 0].cpu().numpy()
    both = valid & np.isfinite(made)
    table = np.histogram2d(values[both], made[both], BINS)[0] if both.any() else np.zeros((BINS, BINS))
    return {"similarity": float(normalised_information(table)), "inside": float(both.sum() / valid.sum())}


def _in_volume(request: dict, problem, maps, matrices, bends, monitor) -> dict:
    """'maps': the values on the voxels of the volume, NaN where there is none, a Volume a map, where the request asks for it."""
    from ..engines.slice_maps import into_volume

    if not request.get("map"):
        return {}
    return {"maps": [volume_of(into_volume(images, matrices, problem.volume.grid, problem.thickness, monitor.part(k / len(maps), (k + 1) / len(maps)),
                                           f"{name} ({unit})" if unit else name, bends)) for k, (name, unit, images) in enumerate(maps)]}


def _structures(request: dict, maps, matrices, bends, folder: Path) -> dict:
    """'surface': the path of a .vtp file (LPS mm) with the values on the surface of all of ``structures``, the share of it that has one, 'regions': a row
    a map and structure, and 'region_remarks' on these."""
    import numpy as np

    from ..engines.slice_maps import region_rows, remarks_on
    from ..engines.slice_surface import surface_with_values
    from ..io.surfaces import write_surface
    from .jobs_pair import labels_of
    from .register import plain

    if request.get("structures") is None:
        return {}
    labels, distance = labels_of(request["structures"]), float(request.get("surface_mm", 2.0))
    vertices, triangles, columns = surface_with_values(labels, maps, matrices, bends, distance)
    write_surface(folder / "surface.vtp", vertices, triangles, columns)
    rows = [row for name, unit, images in maps for row in region_rows(images, matrices, labels, name, unit, bends)]
    return {"surface": str(folder / "surface.vtp"), "surface_covered": float(np.isfinite(next(iter(columns.values()))).mean()), "regions": plain(rows),
            "region_remarks": remarks_on(rows, f"'{labels.name}'", "check 'Zero means no value'")}


def volume_of(image):
    """An image of one channel as a Volume; NaN where its mask leaves a pixel out."""
    from ..exchange import Volume

    data = image.data if image.mask is None else image.data.masked_fill(~image.mask, float("nan"))
    return Volume(data[0, 0].cpu().numpy(), image.grid, image.name)


def _matrix(values):
    import numpy as np

    from ..exchange import Matrix

    return Matrix(np.asarray(values, float))
