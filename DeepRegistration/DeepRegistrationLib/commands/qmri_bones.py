"""qmri bones: a bone on every slice, learned from strokes on some of them; for 'qmri register --segments' once it has been looked at.

Strokes are label maps on their slice: 1 is bone, 2 is anything else, 0 is not said; one without any 2 is a whole drawing. Strokes on two or three slices
are better than on one. DIR gets segment01.nii.gz, ... in the order of the slices. 'qmri register' takes --strokes as well and does both at
once. Needs scikit-learn.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..errors import InputError
from ..runtime import Console, Silent
from .output import say, staged

FILES = "segment[0-9][0-9].nii.gz"


def add(actions) -> None:
    parser = actions.add_parser("bones", help="learn a bone on slices from strokes", description=__doc__)
    add_sources(parser)
    add_strokes(parser)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the forest (default: %(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no progress and no summary")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the label maps; those of an earlier run are replaced")
    parser.set_defaults(run=run)


def add_sources(parser) -> None:
    """Where slices, their maps and their places come from."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--slices", type=Path, nargs="+", metavar="FILE", help="one file a slice; NaN marks pixels without a value")
    source.add_argument("--dicom", type=Path, metavar="DIR", help="a folder of DICOM files, one a slice")
    parser.add_argument("--maps", nargs="+", action="append", default=[], metavar="NAME[:UNIT] FILE",
                        help="a name and one map a slice, in their units; may be repeated (default: the slices themselves)")
    parser.add_argument("--no-value", type=float, nargs="+", metavar="NUMBER", help="slices and maps have no value where they are exactly this, often 0, or "
                        "the limit of a fit (default: NaN alone says so)")


def add_strokes(parser) -> None:
    """The strokes, to a parser or to a group of options that exclude each other."""
    parser.add_argument("--strokes", type=_stroke, nargs="+", metavar="N=FILE",
                        help="label map of slice N (from 1): 1 bone, 2 anything else; the bone is learned on all slices")


def _stroke(text: str) -> tuple[int, Path]:
    number, _, path = text.partition("=")
    if not number.isdigit() or int(number) < 1 or not path:
        raise argparse.ArgumentTypeError(f"'{text}' names no slice; give N=FILE, N the number of the slice from 1")
    return int(number) - 1, Path(path)


def run(arguments) -> None:
    """Read, learn, write. Raises InputError or Cancelled, and then writes nothing."""
    from ..io.slices import read_slice, slice_files

    if arguments.strokes is None:
        raise InputError("no strokes were given; give --strokes N=FILE with a label map of slice N")
    monitor = Silent() if arguments.quiet else Console(sys.stderr)
    slices = [read_slice(path, arguments.no_value) for path in arguments.slices or slice_files(arguments.dicom)]
    found = learned(arguments, slices, monitor)
    earlier = tuple(path.name for path in arguments.out.glob(FILES)) if arguments.out.is_dir() else ()
    with staged(arguments.out, earlier) as folder:
        write(found, folder)
    if not arguments.quiet:
        say(f"{arguments.out}: the bone of {len(found)} slices; look at them before they are used")


def write(segments, folder: Path) -> None:
    from ..io import write_labels

    for k, segment in enumerate(segments, 1):
        write_labels(segment, folder / f"segment{k:02d}.nii.gz")


def learned(arguments, slices, monitor) -> tuple:
    """The bone on every one of ``slices`` (as they are placed), from --strokes and the maps."""
    from dataclasses import replace

    import torch

    from ..engines.bones import learned_bones
    from ..io import read_labels

    strokes = {}
    for k, path in arguments.strokes:
        if k >= len(slices):
            raise InputError(f"--strokes names slice {k + 1}, but {len(slices)} slices were given; number them from 1")
        strokes[k] = on_pixels(arguments, read_labels(path), path, slices[k], f"draw the strokes on slice {k + 1} itself")
    maps = [images for _, _, images in read_maps(arguments, slices)] if arguments.maps else []
    images = [replace(image, data=torch.cat([image.data, *(each[k].data for each in maps)], 1), mask=None) for k, image in enumerate(slices)]
    return tuple(learned_bones(images, strokes, arguments.seed, monitor))


def read_maps(arguments, slices) -> list[tuple[str, str, list]]:
    """[(name, unit, one image a slice)] of --maps, or the slices themselves. InputError where they do not lie on the slices' pixels."""
    from ..io.slices import read_slice

    if not arguments.maps:
        return [("slices", "", slices)]
    found = []
    for title, *paths in arguments.maps:
        name, _, unit = title.partition(":")
        if not name or any(c in name for c in '/\\*?"<>|'):
            raise InputError(f"--maps begins with the name '{title}'; begin with NAME:UNIT, for example T1:ms, then one file a slice")
        if len(paths) != len(slices):
            raise InputError(f"--maps {name} has {len(paths)} files for {len(slices)} slices; give one a slice, in the same order")
        found.append((name, unit, [on_pixels(arguments, read_slice(Path(path), arguments.no_value), path, like) for path, like in zip(paths, slices)]))
    if len({name for name, _, _ in found}) < len(found):
        raise InputError("two --maps have the same name; give each a name of its own")
    return found


def on_pixels(arguments, image, path, like, remedy: str = "resample it, or give the files in the order of the slices"):
    """``image``, a map or a label map of one slice, on the lattice of the slice ``like``: by its place, whatever its thickness, or, with --radial, where
    places are not believed, by its rows and columns. InputError with the ``remedy`` where it has other pixels."""
    from dataclasses import replace

    lines, wanted = ([n for n in each.grid.shape if n != 1] for each in (image, like))
    if lines != wanted or getattr(arguments, "radial", None) is None and not _same_pixels(image.grid, like.grid):
        raise InputError(f"{path} does not lie on the pixels of {like.name}; {remedy}")
    return replace(image, data=image.data.reshape(*image.data.shape[:2], *like.grid.shape), grid=like.grid)


def _same_pixels(grid, wanted) -> bool:
    from ..geometry import Grid

    if grid.shape != wanted.shape:
        return False
    affine, flat = grid.affine.copy(), [n for n in range(grid.dim) if grid.size[n] == 1]
    affine[:, flat] = wanted.affine[:, flat]
    return Grid(grid.shape, affine) == wanted
