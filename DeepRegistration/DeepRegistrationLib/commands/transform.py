"""transform: look at a transform, convert it to another format, invert it, or make one of several.

Without --out it is told what the transform is and what it does. With --out it is written in the format that the ending names: .h5 holds
everything, .tfm, .txt and .mat linear transforms, .nii.gz, .nii, .nrrd and .mha one displacement a voxel. What is linear stays linear, and a
deformation keeps its own lattice, unless --reference names an image: then it becomes one displacement on the voxels of that image.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from .output import note, say, staged
from .warp import CHAIN, read_chain, read_lattice

NUMBERS = {"identity": 0, "translation": {2: 2, 3: 3}, "rigid": {2: 3, 3: 6}, "similarity": {2: 4, 3: 7}, "affine": {2: 6, 3: 12}}


def add(commands) -> None:
    parser = commands.add_parser("transform", help="look at a transform, convert, invert or join transforms", description=__doc__)
    parser.add_argument("--transform", type=Path, nargs="+", required=True, metavar="FILE", help=CHAIN)
    parser.add_argument("--inverse", action="store_true", help="the inverse of all of it: moving -> fixed")
    parser.add_argument("--reference", type=Path, metavar="FILE", help="image of the space in which points begin (the fixed one, with --inverse the moving "
                        "one): its voxels are what is looked at, and the lattice of displacements")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the output; its ending decides the format")
    parser.set_defaults(run=run)


def run(arguments) -> None:
    """Read, invert, write or tell. InputError for a file that cannot be used, ConvergenceError where an inverse does not exist."""
    from ..io import read_transform, write_transform

    grid = None if arguments.reference is None else read_lattice(arguments.reference)
    given = read_chain(arguments.transform, None if grid is None else grid.dim)
    made = given.inverse() if arguments.inverse else given
    if arguments.out is None:
        tell(made, grid, "moving points to fixed points" if arguments.inverse else "fixed points to moving points")
        return
    with staged(arguments.out.resolve().parent) as folder:
        write_transform(made, folder / arguments.out.name, grid=grid)
        made = read_transform(folder / arguments.out.name, given.dim)
        exact = undone(given, made, grid) if arguments.inverse else ""
    note(f"wrote {arguments.out}: {'the inverse, ' if arguments.inverse else ''}{', then '.join(what(item) for item in parts_of(made))}{exact}")
    warn_of_folds(given, lattice_of(given) if arguments.inverse else grid or lattice_of(made))


def tell(transform, grid, direction: str) -> None:
    """What ``transform`` is, part by part in the order in which points go through them, and what it does to the voxels of ``grid``."""
    parts = parts_of(transform)
    several = f" in {len(parts)} parts, in the order in which points go through them" if len(parts) > 1 else ""
    say(f"{transform.dim}D map of {direction} (LPS, mm){several}")
    for k, item in enumerate(parts, 1):
        say(f"{k}. {what(item)}: {does(item)}")
    lattice = grid or (lattice_of(transform) if len(parts) > 1 else None)
    if lattice is not None:
        say(f"{'in all, ' if len(parts) > 1 else ''}over {'the voxels of the reference' if grid else 'the lattice'}: {moves(transform, lattice)}")


def parts_of(transform) -> list:
    """Its parts in the order in which points go through them."""
    from ..transforms import Affine, Identity
    from ..transforms.parts import items_of

    items = [Affine.identity(each.dim) if isinstance(each, Identity) else each for each in reversed(items_of(transform))]
    return [each for each in items if not isinstance(each, Affine) or each.kind != "identity"] or items[:1]


def what(item) -> str:
    """Kind and size of one part."""
    from ..transforms import Affine, BSpline

    if isinstance(item, BSpline):
        return f"cubic B-spline of {' x '.join(map(str, item.control.shape[:1:-1]))} control points ({item.control.numel()} degrees of freedom)"
    if isinstance(item, Affine):
        kind, count = item.kind, NUMBERS[item.kind]
        return kind if kind == "identity" else f"{kind} ({count[item.dim]} degrees of freedom)"
    size, spacing = (" x ".join(f"{v:.4g}" for v in values) for values in (item.grid.size, item.grid.spacing))
    return f"displacements on {size} points {spacing} mm apart"


def does(item) -> str:
    """What one part does to points, in words."""
    from ..transforms import Affine

    if not isinstance(item, Affine):
        return moves(item, lattice_of(item))
    words, matrix = [], item.numpy()
    if item.kind in ("rigid", "similarity", "affine"):
        turn, scales = item.turn, item.scales
        about = "" if item.dim == 2 else " (" + ", ".join(f"{v:.4g} about {axis}" for v, axis in zip(turn, "xyz")) + ")"
        words.append(f"turns by {float((turn ** 2).sum() ** 0.5) if item.dim == 3 else float(turn[0]):.4g} degrees{about}")
        if item.kind != "rigid":
            words.append("scales by " + (f"{scales[0]:.5g}" if item.kind == "similarity" else ", ".join(f"{v:.5g}" for v in scales) + " along its own axes"))
        if item.mirrors:
            words.append("mirrors")
    words.append("moves the origin by (" + ", ".join(f"{v:.5g}" for v in matrix[:-1, -1]) + ") mm")
    return ", ".join(words) if item.kind != "identity" else "moves nothing"


def moves(transform, grid) -> str:
    """How far ``transform`` moves the points of ``grid`` and whether it folds there, in words."""
    from ..evaluate.metrics import displacement_scores, jacobian_scores

    length, volume = displacement_scores(transform, grid), jacobian_scores(transform, grid)
    folds = f"folds at {volume['folds_count']} of {volume['voxels']} points" if folds_in(volume) else "no folds"
    return (f"moves by {length['mean']:.3g} mm on average, 95 % by up to {length['p95']:.3g} mm, at most {length['max']:.3g} mm; {folds}, "
            f"volumes change by factors of {volume['determinant_min']:.3g} to {volume['determinant_max']:.3g}")


def folds_in(scores: dict) -> bool:
    """True where determinants of both signs occur: of one that is negative everywhere the map is a mirror, which has an inverse."""
    return 0 < scores["folds_count"] < scores["voxels"]


def lattice_of(transform):
    """The Grid that the first deformation is given on, carried back to where points begin; None where all is linear.

    A border of zeros, which files have so that every program reads the same outside, is left out: displacements fall to it and may fold.
    """
    from ..transforms import Affine

    before = Affine.identity(transform.dim)
    for item in parts_of(transform):
        if not isinstance(item, Affine):
            return getattr(item, "dense", item).without_zero_ring().grid.moved(before.inverse().numpy())
        before = item.times(before)
    return None


def undone(given, inverse, grid) -> str:
    """How exactly ``inverse``, as it was written, leads the points of the lattice of ``given`` back, in words; '' where both are linear."""
    from ..evaluate.metrics import inverse_consistency_error
    from ..transforms import Affine

    if all(isinstance(item, Affine) for item in (*parts_of(given), *parts_of(inverse))):
        return ""
    lattice = lattice_of(given) or grid.moved(given.inverse().numpy())
    inner = None if grid is None else grid.pad([-1 if n > 2 else 0 for n in grid.size])  # from the outermost voxels outwards displacements fall to 0
    try:
        error = inverse_consistency_error(given, inverse, lattice, moving_grid=inner)
    except InputError:
        raise InputError("no point of the transform's lattice lands in the image given as --reference; with --inverse that is the moving image") from None
    return f"; there and back again leaves {error['mean']:.3g} mm on average, at most {error['max']:.3g} mm, at {error['voxels']} points"


def warn_of_folds(transform, lattice) -> None:
    """A remark where ``transform`` folds on ``lattice``, if there is one."""
    from ..evaluate.metrics import jacobian_scores

    found = None if lattice is None else jacobian_scores(transform, lattice)
    if found and folds_in(found):
        note(f"remark: the transform folds at {found['folds_count']} of {found['voxels']} points ({100 * found['folds']:.2g} %) and has no inverse there")
