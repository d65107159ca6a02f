"""The job 'motion': how repeated scans moved, their average and their noise; see jobs.py."""

from __future__ import annotations

from pathlib import Path

from .motion import IMAGES, joined_tissues, require_depth


def motion(request: dict, monitor, folder: Path) -> dict:
    """Correct repeated scans for motion. InputError for values that cannot be used, and what the method raises."""
    from ..exchange import Matrix
    from ..method import find
    from ..problem import Series
    from ..runtime import Runtime
    from .jobs_qmri import volume_of
    from .register import plain

    monitor.progress(0.0, "preparing")
    method = find(request.get("method", "rician-motion"), request.get("values") or {})
    series = Series(tuple(_frames(request, "scans")), joined_tissues(list(_frames(request, "tissues"))))
    monitor.check()
    runtime = Runtime(request.get("device", "auto"), int(request.get("seed", 0)), int(request.get("threads", 0)), monitor=monitor)
    result = method.run(series, runtime)
    rows = [{**row, "name": frame.name} for row, frame in zip(result.motion, series.frames)]
    told = {"motion": rows, "scalars": result.scalars, "provenance": result.provenance}
    return {**plain(told), **{name: volume_of(getattr(result, name)) for name in IMAGES}, "transforms": [Matrix(t.numpy()) for t in result.transforms]}


def _frames(request: dict, key: str):
    """The scans or tissue maps of ``key``: one a Volume, or one a channel of it. InputError for slices, which have no third direction to move in."""
    from ..image import Image
    from .jobs_pair import image_of

    for value in request.get(key) or ():
        require_depth(value.name, value.grid)
        whole = image_of(value)
        count = whole.data.shape[1]
        for k in range(count):
            yield Image(whole.data[:, k : k + 1], whole.grid, name=value.name if count == 1 else f"{value.name} {k + 1}")
