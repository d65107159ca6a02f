"""The job 'identify'; see jobs.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path


def identify(request: dict, monitor, folder: Path) -> dict:
    """Find the plate and the plane of an atlas that a slice shows; the network of the atlas is kept in the cache."""
    from ..engines.plates import centered
    from ..exchange import Matrix, Volume
    from ..io import read_image
    from ..runtime import Runtime
    from .atlas_identify import Order, answered, placed
    from .jobs_pair import image_of

    given, axis = request["slice"], request["axis"]
    image, by_header = (read_image(given, channels="gray"), None) if isinstance(given, str) else looked_at(image_of(given), axis)
    name = given if isinstance(given, str) else given.name
    order = Order(Path(request["atlas"].name), Path(name), axis, int(request["top"]), "", request.get("pixel") or None, bool(request.get("invert")),
                  dict(request.get("values") or {}))
    runtime = Runtime(request.get("device", "auto"), int(request.get("seed", 0)), int(request.get("threads", 0)), monitor=monitor)
    atlas = image_of(request["atlas"])
    with runtime.active():
        record, found, plates, query = answered(order, None, atlas, image.completed(), runtime)
        shown = found.order[: order.top]
        pictures = [query.picture[0], plates.pictures(found.poses[0].frame[None])[0], *centered(plates.pictures(plates.frames[shown]))]
        slice_there, plane = placed(found, plates, query, atlas)
    return {"record": record, "by_header": by_header, "pictures": [picture[0].numpy().tolist() for picture in pictures],
            "frames": [found.poses[0].frame.tolist(), *plates.frames[shown].tolist()], "matrix": Matrix(record["slice_to_atlas"]),
            "slice": Volume(slice_there.data[0, 0].numpy(), slice_there.grid, f"{Path(name).stem} in the atlas"),
            "plane": Volume(plane.data[0, 0].numpy(), plane.grid, f"Plane of {Path(name).stem}")}


def looked_at(image, axis: str) -> tuple:
    """(slice, True) where its header says that it lies across ``axis``; otherwise (the slice as a picture that is looked at, False). Of colors the mean
    counts."""
    from ..engines.plates import header_axis
    from ..geometry import Grid
    from ..image import Image

    image = replace(image, data=image.data.float().mean(1, keepdim=True))
    if 1 not in image.grid.size or header_axis(image) == axis:
        return image, True
    thin = list(image.grid.size).index(1)
    spacing = [s for k, s in enumerate(image.grid.spacing) if k != thin]
    data = image.data.squeeze(4 - thin)
    return Image(data, Grid.from_parts(tuple(data.shape[2:]), spacing), name=image.name), False
