"""qmri emulate: the slice that a volume shows where a slice lies, under a transform slice -> volume as 'qmri register' writes it."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from .output import note, staged

PROFILES = ("box", "gaussian")


def add(actions) -> None:
    parser = actions.add_parser("emulate", help="the slice that a volume shows at a pose", description=__doc__)
    parser.add_argument("--volume", type=Path, required=True, metavar="FILE", help="the 3D image")
    parser.add_argument("--slice", type=Path, required=True, metavar="FILE", help="a slice: its place and pixels are taken, not its values")
    parser.add_argument("--transform", type=Path, metavar="FILE", help="linear map slice -> volume (default: none)")
    parser.add_argument("--thickness", type=float, default=0.0, metavar="MM", help="of the slice (default: that of its header)")
    parser.add_argument("--profile", default="box", choices=PROFILES, help="how depths are weighed (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the emulated slice; NaN outside the volume, which SimpleITK and 3D Slicer "
                        "keep from .nrrd and read as 0 from .nii.gz")
    parser.set_defaults(run=run)


def run(arguments) -> None:
    """Read, emulate, write. Raises InputError for a file that cannot be used, or a slice that misses the volume."""
    import numpy as np

    from ..engines.slices import emulate, thickness_of
    from ..io import read_image, read_transform, write_image
    from ..io.slices import read_slice
    from ..transforms.base import Identity, linear_part
    from ..transforms.linear import Affine

    volume, grid = read_image(arguments.volume), read_slice(arguments.slice).grid
    if grid.dim != 3 or grid.size.count(1) != 1 or volume.dim != 3:
        raise InputError(f"{arguments.slice} has {' x '.join(map(str, grid.size))} voxels and {arguments.volume} is {volume.dim}D; "
                         "a slice (one axis of one voxel) and a volume are needed")
    if not 0 <= arguments.thickness < 1000:
        raise InputError(f"a thickness of {arguments.thickness} mm was given; give a length in mm, or leave it to the header")
    transform = Identity(3) if arguments.transform is None else read_transform(arguments.transform, 3)
    if not isinstance(transform, (Identity, Affine)):
        raise InputError(f"{arguments.transform} holds a {type(transform).__name__}; slices are placed by a linear transform, give such a file")
    made = emulate(volume, grid, linear_part(transform).numpy(), arguments.thickness or thickness_of(grid), arguments.profile, fill=float("nan"))
    if not bool(np.isfinite(made.data.numpy()).any()):
        raise InputError(f"the slice {arguments.slice} does not meet {arguments.volume} under this transform; check its direction (slice -> volume)")
    with staged(arguments.out.resolve().parent) as folder:
        write_image(made, folder / arguments.out.name)
    note(f"wrote {arguments.out}")
