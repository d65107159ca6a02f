"""warp: carry an image, a label map or points of the moving space onto the fixed space, or back with --inverse.

The transform is the one that 'register' writes: it maps fixed points to moving points (ITK's convention). An image of the
moving space is pulled onto the fixed grid by it; points of the moving space reach the fixed space by its inverse. The rule is
the same for everything: INPUT lives in the moving space, the output in the space of REFERENCE, and --inverse swaps the two.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..errors import InputError
from . import options
from .output import note, staged
from .register import note_overlap, note_placement


MOST_LABELS, LOOKED_AT = 150, 500_000
"""Different whole numbers up to which an image may be a label map, and how many voxels are looked at for that."""

CHAIN = ("fixed -> moving, as written by register; of several, fixed points go through the first one first, as in the list of "
         "antsApplyTransforms (field, then affine)")


def add(commands) -> None:
    parser = commands.add_parser("warp", help="carry an image, labels or points along a transform", description=__doc__)
    parser.add_argument("--transform", type=Path, nargs="+", required=True, metavar="FILE", help=CHAIN)
    parser.add_argument("--reference", type=Path, required=True, metavar="FILE", help="image of the space that the output is made for")
    parser.add_argument("--input", type=Path, required=True, metavar="FILE", help="what is carried")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the output; its ending decides the format")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--labels", action="store_true", help="INPUT is a label map or a segmentation: nearest neighbour")
    kind.add_argument("--points", action="store_true", help="INPUT holds points")
    parser.add_argument("--interpolation", choices=("linear", "cubic", "nearest"), help="of an image between its voxels (default: linear)")
    options.add_fill(parser)
    parser.add_argument("--inverse", action="store_true", help="INPUT is of the fixed space, REFERENCE is the moving image")
    parser.set_defaults(run=run)


def run(arguments) -> None:
    """Read, carry, write; InputError for a file that cannot be used, ConvergenceError where an inverse does not exist."""
    require_kind(arguments)
    grid = read_lattice(arguments.reference)
    transform = read_chain(arguments.transform, grid.dim)
    with staged(arguments.out.resolve().parent) as folder:
        carry = carry_points if arguments.points else carry_image
        carry(arguments, transform, grid, folder / arguments.out.name)
    note(f"wrote {arguments.out}")


def read_lattice(path: Path):
    """The Grid of an image file. InputError as ``read_image``."""
    from ..io import read_image

    image = read_image(path, channels="vector")
    note_placement(path, image)
    return image.grid


def read_chain(paths, dim: int | None = None):
    """The transforms of the files ``paths`` as one, the first of them applied first; ``dim`` is that of the first where none is needed.
    InputError as ``read_transform``."""
    from ..io import read_transform
    from ..transforms import Composite

    items = []
    for path in paths:
        items.append(read_transform(path, items[0].dim if items else dim))
    return Composite.of(*reversed(items))


def require_kind(arguments) -> None:
    """InputError for a segmentation or points that are not announced as such, and for options that what is carried has no use for."""
    from ..io.files import suffix
    from ..io.points import TYPES

    kind, announced = suffix(arguments.input), "--labels" if arguments.labels else "--points" if arguments.points else ""
    if not announced and kind in (".seg.nrrd", ".json", *TYPES):
        option = "--labels" if kind == ".seg.nrrd" else "--points"
        raise InputError(f"{arguments.input} holds {'segments' if option == '--labels' else 'points'}; add {option} to carry them")
    if announced and (arguments.interpolation, arguments.fill) != (None, None):
        raise InputError(f"--interpolation and --fill are for images; leave them out with {announced}")


def carry_image(arguments, transform, grid, path: Path) -> None:
    """Pull INPUT onto the grid of REFERENCE and write it; a series in time stays one."""
    from ..io import read_image, read_labels, time_step, write_image, write_labels
    from ..io.images import is_color
    from ..result import warp

    image = read_labels(arguments.input) if arguments.labels else read_image(arguments.input, channels="vector")
    require_dim(image.dim, grid.dim, arguments)
    note_placement(arguments.input, image)
    if arguments.labels:
        note_overlap(arguments.input)
    fill = image.background if arguments.fill is None else arguments.fill
    warped = warp(image, transform.inverse() if arguments.inverse else transform, grid, arguments.interpolation, fill)
    outside = warped.data.isnan() | (warped.data == fill)
    if bool(outside.all()) and bool((image.data != fill).any()):
        raise InputError(f"nothing of {arguments.input} falls into the field of view of {arguments.reference}; check that the transform belongs "
                         "to these two images, and its direction (--inverse)")
    if arguments.labels:
        write_labels(warped, path)
        return
    if path.suffix.lower() == ".png" or is_color(arguments.input):
        warped = as_picture(warped, image)
    elif arguments.interpolation != "nearest" and may_be_labels(image):
        note(f"remark: {arguments.input} holds few different whole numbers, which were mixed as those of an image; if they are labels, add --labels")
    write_image(warped, path, time_step=time_step(arguments.input))


def as_picture(warped, image):
    """``warped`` in whole numbers of 8 or 16 bits, as many as ``image`` has; as it is where that holds others or a value is missing."""
    import torch

    low, high = (float(value) for value in image.data.aminmax())
    if low < 0 or high > 65535 or not torch.equal(image.data, image.data.round()) or bool(warped.data.isnan().any()):
        return warped
    data = warped.data.round().clamp(0, 255 if high <= 255 else 65535)
    return replace(warped, data=data.to(torch.uint8) if high <= 255 else data)


def may_be_labels(image) -> bool:
    """True for an image (1, 1, *S) of few different numbers, all of them whole."""
    values = image.data.flatten()
    some = values[:: max(1, len(values) // LOOKED_AT)].unique()
    return image.data.shape[1] == 1 and len(some) <= MOST_LABELS and bool((some == some.round()).all())


def carry_points(arguments, transform, grid, path: Path) -> None:
    """Move the points of INPUT into the space of REFERENCE and write them."""
    from ..io import read_points, write_points
    from ..result import warp_points

    points = read_points(arguments.input)
    require_dim(points.dim, grid.dim, arguments)
    write_points(warp_points(points, transform if arguments.inverse else transform.inverse()), path)


def require_dim(found: int, expected: int, arguments) -> None:
    if found != expected:
        raise InputError(f"{arguments.input} is {found}D and {arguments.reference} is {expected}D; both must have the same dimension")
