"""motion: repeated scans of one subject in; how they moved, their average and the noise at every voxel out.

DIR gets average.nii.gz, signal.nii.gz (the average without the floor of the noise), sigma.nii.gz, scan_NNN.tfm for every scan (points of
the average -> points of the scan, mm, LPS), motion.csv, motion.png and, last, result.json.

motion.csv has a row a scan, all from the average to the scan: the shift of the center of the image along x (to the subject's left), y (to the back) and
z (up) in mm, the rotation vector about these axes in degrees, how far the bright voxels move on average in mm, and how far since the scan before.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

from ..errors import InputError
from ..runtime import Runtime, peak_memory_mib
from . import options
from .output import RECORD, say, staged

IMAGES = ("average", "signal", "sigma")
VOLUMES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
"""Endings of the scans in a folder."""


def add(commands) -> None:
    parser = commands.add_parser("motion", help="motion between repeated scans, their average and noise", description=__doc__)
    parser.add_argument("--scans", type=Path, required=True, nargs="+", metavar="FILE", help="one 4D file, two or more files in their order, or a folder of "
                        "NIfTI, NRRD or MetaImage files, taken by the numbers in their names")
    options.add_results(parser)
    parser.add_argument("--tissues", type=Path, nargs="+", default=[], metavar="FILE",
                        help="probability maps of tissues in the space of the scans: one 4D file, or one file a tissue")
    parser.add_argument("--method", default="rician-motion", metavar="ID[:PRESET]", help="see 'show rician-motion' (default: %(default)s)")
    options.add_settings(parser)
    options.add_place(parser)
    options.add_voice(parser)
    parser.set_defaults(run=run)


def run(arguments) -> None:
    """Read, solve, write. Raises InputError or Cancelled; then nothing is written."""
    from ..method import find

    method = find(arguments.method, options.settings(arguments.set))
    monitor = options.monitor(arguments)
    runtime = Runtime(arguments.device, arguments.seed, arguments.threads, monitor=monitor)
    runtime.torch_device()
    earlier = tuple(path.name for path in arguments.out.glob("scan_*.tfm")) if arguments.out.is_dir() else ()
    with staged(arguments.out, earlier) as folder:
        result = method.run(read_series(arguments.scans, arguments.tissues), runtime)
        record = write(result, folder)
        record = {"names": [frame.name for frame in result.problem.frames], **record}
        record = {"request": {key: [str(p.resolve()) for p in getattr(arguments, key)] for key in ("scans", "tissues")}, **record}
        (folder / RECORD).write_text(json.dumps(record, indent=1, allow_nan=False), "utf-8")
    if not (arguments.quiet or arguments.json_progress):
        tell(result, arguments.out)


def read_series(scans: list[Path], tissues: list[Path]):
    """The Series of files and folders, each file with one scan (map) or many. InputError for a file that cannot be used."""
    from ..problem import Series

    frames = [frame for path in scans for file in files_of(path) for frame in read_each(file)]
    for frame in frames:
        require_depth(frame.name, frame.grid)
    return Series(tuple(frames), joined_tissues([frame for path in tissues for frame in read_each(path)]))


def files_of(path: Path) -> list[Path]:
    """The volumes in a folder, by the numbers in their names; any other path as it is."""
    from ..io.files import suffix

    found = [file for file in path.iterdir() if suffix(file) in VOLUMES] if path.is_dir() else []
    return sorted(found, key=lambda file: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", file.name.lower())]) or [path]


def require_depth(name: str, grid) -> None:
    """InputError for volumes of one slice, which have no third direction to move in."""
    if grid.dim == 3 and 1 in grid.shape:
        raise InputError(f"'{name}' has {' x '.join(map(str, grid.size))} voxels; motion is found in volumes of several slices")


def joined_tissues(maps: list):
    """One Image with a tissue a channel, None without ``maps``. InputError for maps on different lattices."""
    import torch

    from ..image import Image

    for one in maps:
        if not one.grid.same_as(maps[0].grid):
            raise InputError(f"the tissue maps {maps[0].name} and {one.name} lie on different lattices; resample them onto one")
    return Image(torch.cat([m.data for m in maps], 1), maps[0].grid, name="tissue maps") if maps else None


def read_each(path: Path) -> list:
    """The scans of one file, named by their number where there are several."""
    from ..image import Image
    from ..io import read_image

    whole = read_image(path, channels="vector")
    count = whole.data.shape[1]
    return [Image(whole.data[:, k:k + 1], whole.grid, name=whole.name if count == 1 else f"{whole.name} {k}") for k in range(count)]


def write(result, folder: Path) -> dict:
    """All files but the record, which is returned."""
    from ..evaluate.motion_pictures import sheet
    from ..io import write_image, write_transform
    from .register import plain

    for name in IMAGES:
        write_image(getattr(result, name), folder / f"{name}.nii.gz")
    for k, transform in enumerate(result.transforms):
        write_transform(transform, folder / f"scan_{k:03d}.tfm")
    with open(folder / "motion.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["scan", "name", *list(result.motion[0])[1:]])
        writer.writeheader()
        for row, frame in zip(result.motion, result.problem.frames):
            writer.writerow({"name": frame.name, **{key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()}})
    (folder / "motion.png").write_bytes(sheet(result))
    files = sorted(path.name for path in folder.iterdir())
    return plain({**result.provenance, "scalars": result.scalars, "motion": result.motion, "history": result.history,
                  "peak_memory_mib": peak_memory_mib(), "files": [*files, RECORD]})


def tell(result, out: Path) -> None:
    """A few lines on stdout for the reader of a terminal."""
    moved = [row["displacement_mm"] for row in result.motion]
    say(f"{len(moved)} scans: they moved by {sum(moved) / len(moved):.2f} mm on average, at most {max(moved):.2f} mm (scan {moved.index(max(moved))}); "
        f"sigma of the noise {result.scalars['sigma']:.4g}, {result.provenance['wall_seconds']:.1f} s")
    say(f"{out}: average, signal and sigma (.nii.gz), motion.csv, motion.png, {len(moved)} transforms, {RECORD}")
