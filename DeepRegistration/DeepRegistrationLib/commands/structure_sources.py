"""What 'atlas structure' measures distances of: label maps, maps, tables and finished atlases, as files or in memory.

Voxels go through one file a cohort in a scratch folder (a memory map), so that one subject at a time is in memory. A
subject that cannot be used is set aside with a reason. The lattice is that of the first subject; others are resampled
onto it by their world coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from ..errors import InputError
from .atlas_cohort import read_scans, read_table


@dataclass(frozen=True)
class Item:
    """A subject's ``name``, ``read()``, which gives its Labels or Image, and the files that 'atlas build' needs of it."""

    name: str
    read: Callable
    files: dict | None = None


# ------------------------------------------------------------------------------------------------------------ the items


def label_items(path: Path) -> list[Item]:
    """The label maps of a folder or a list: those of its images by the usual names, else its files themselves."""
    from ..io import read_labels

    path = Path(path)
    try:
        scans = read_scans(path)
    except InputError:
        scans, found = [], sorted(path.rglob("*.seg.nrrd")) if path.is_dir() else []
        if not found:
            raise
        return [Item(file.name.removesuffix(".seg.nrrd"), lambda file=file: read_labels(file)) for file in found]
    if any(scan.labels is not None for _, scan in scans):
        return [Item(name, lambda file=scan.labels: _labels(file), _files(name, scan)) for name, scan in scans]
    return [Item(name, lambda file=scan.image: read_labels(file)) for name, scan in scans]


def _labels(file: Path | None):
    """The label map of an image. InputError where it has none."""
    from ..io import read_labels

    if file is None:
        raise InputError("it has no label map")
    return read_labels(file)


def map_items(path: Path) -> list[Item]:
    """The images of a folder or a list."""
    from ..io import read_image

    return [
        Item(name, lambda file=scan.image: read_image(file, channels="gray"), _files(name, scan)) for name, scan in read_scans(Path(path))
    ]


def atlas_items(path: Path) -> list[Item]:
    """The log-Jacobian, on the atlas, of every subject's transform in the folder of an atlas."""
    from ..image import Image
    from ..io import read_grid, read_transform

    path = Path(path)
    if not (path / "atlas.json").is_file():
        raise InputError(f"{path} holds no finished atlas (atlas.json is missing); give the folder of 'atlas build'")
    grid = read_grid(path / "atlas.nii.gz")

    def log_jacobian(file: Path) -> Image:
        return Image(read_transform(file, grid.dim).log_jacobian(grid).detach().float(), grid, name=file.parent.name)

    return [
        Item(file.parent.name, lambda file=file: log_jacobian(file))
        for file in sorted((path / "subjects").glob("*/transform.h5"))
    ]


def _files(name: str, scan) -> dict:
    """A row of a list for 'atlas build', with whole paths."""
    kept = {key: getattr(scan, key) for key in ("image", "labels", "mask")}
    return {"subject": name, **{key: "" if file is None else str(file.resolve()) for key, file in kept.items()}}


# --------------------------------------------------------------------------------------------------- items to distances


def of_labels(items: list[Item], scratch: Path, monitor, kind: str = "labels"):
    """(Distances, {name: reason} of those set aside) of label maps: 1 - NMI over the voxels that any subject has
    labeled."""
    import numpy as np

    from ..evaluate.cohort import Distances
    from ..ops.distances import label_distances

    def values(labels):
        """0 for the background, 1, 2, ... for the labels that occur."""
        found, which = np.unique(labels.data[0, 0].numpy(), return_inverse=True)
        return np.where(found == 0, 0, np.cumsum(found != 0))[which.ravel()]

    names, rows, aside = _stacked(items, values, np.int32, scratch, monitor.part(0, 0.4))
    if not names:
        return None, aside
    seen = np.zeros(rows.shape[1], bool)
    for row in rows:
        seen |= row > 0
    inner = np.lib.format.open_memmap(scratch / f"{kind}-inner.npy", "w+", np.int32, (len(rows), int(seen.sum())))
    for k, row in enumerate(rows):
        inner[k] = row[seen]
    counts = np.array([float(len(np.unique(row[row > 0]))) for row in inner])
    return Distances(
        kind, tuple(names), label_distances(inner, monitor.part(0.4, 1)), {f"number of {kind}": counts}
    ), aside


def of_maps(items: list[Item], scratch: Path, monitor, kind: str = "maps"):
    """The same for maps of numbers: root mean square differences."""
    import numpy as np

    from ..evaluate.cohort import Distances
    from ..ops.distances import map_distances

    names, rows, aside = _stacked(items, lambda image: image.data[0, 0].numpy().ravel(), np.float32, scratch, monitor)
    return (Distances(kind, tuple(names), map_distances(rows)) if names else None), aside


def _stacked(items, values, kind, scratch: Path, monitor):
    """(names, (N, V) memory map, {name: reason}) of ``values(read())`` on the lattice of the first that can be read."""
    import numpy as np

    names, aside, grid, rows = [], {}, None, None
    for k in monitor.steps(len(items), "reading"):
        try:
            image = items[k].read()
            if grid is None:
                grid = image.grid
                rows = np.lib.format.open_memmap(
                    scratch / f"rows-{len(list(scratch.iterdir()))}.npy", "w+", kind, (len(items), grid.voxels)
                )
            if image.dim != grid.dim:
                raise InputError(
                    f"it is {image.dim}D, the first subject is {grid.dim}D; give subjects of one dimension"
                )
            if image.data.shape[:2] != (1, 1):
                raise InputError(f"it has {image.data.shape[1]} channels; one is needed")
            line = values(image if image.grid.same_as(grid) else image.at(grid))
            if not np.isfinite(line).all() or np.ptp(line) == 0:
                raise InputError(
                    "it has one value only, or values that are not finite, in the field of view of the first subject"
                )
            rows[len(names)] = line
            names.append(items[k].name)
        except InputError as error:
            aside[items[k].name] = str(error)
    return names, None if rows is None else rows[: len(names)], aside


# ------------------------------------------------------------------------------------------------------------- tables


def numbers_of(path: Path) -> tuple[list[str], object, dict[str, str]]:
    """(subjects, (N, K) numbers, {subject: reason} for rows with something else)."""
    import numpy as np

    subjects, columns = read_table(path)
    kept, rows, aside = [], [], {}
    for k, name in enumerate(subjects):
        try:
            row = [float(column[k]) for column in columns.values()]
            if not np.isfinite(row).all():
                raise ValueError
            rows.append(row)
            kept.append(name)
        except ValueError:
            aside[name] = f"its row in {Path(path).name} holds something that is no finite number"
    if not kept or not rows[0]:
        raise InputError(
            f"the table {path} has no row of numbers; give one subject a row with a number in every column"
        )
    return kept, np.array(rows), aside


def of_table(path: Path, kind: str):
    """(Distances, aside) of a table: Hellinger's for kind 'profiles', of scaled columns for 'features', the table
    itself for 'distances'."""
    import numpy as np

    from ..evaluate.cohort import Distances
    from ..ops.distances import feature_distances, hellinger_distances

    names, values, aside = numbers_of(path)
    if kind == "distances":
        if values.shape[1] != len(names) or list(read_table(path)[1]) != names:
            raise InputError(
                f"the table {path} has {len(names)} rows of numbers and {values.shape[1]} columns; distances need a row "
                "and a column for each subject, in the same order"
            )
        matrix = np.where(np.eye(len(names), dtype=bool), 0.0, values)
    else:
        matrix = hellinger_distances(values) if kind == "profiles" else feature_distances(values)
    return Distances(kind, tuple(names), matrix), aside
