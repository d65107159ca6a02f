"""The values of a request as the library's images, points and transforms: slices become 2D in their planes, and are lifted back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError


@dataclass(frozen=True, eq=False)
class Frames:
    """How two images of a request lie in space: their 3D grids, and their planes where they are slices (both None otherwise)."""

    fixed_grid: object
    moving_grid: object
    fixed_plane: object = None
    moving_plane: object = None

    @classmethod
    def of(cls, fixed, moving) -> "Frames":
        """Of two Volumes. InputError for a slice against a volume."""
        from ..planes import planes_of

        return cls(fixed.grid, moving.grid, *planes_of(fixed.grid, moving.grid, (f"'{fixed.name}'", f"'{moving.name}'")))

    @property
    def dim(self) -> int:
        return 3 if self.fixed_plane is None else 2

    def plane(self, side: str):
        return self.fixed_plane if side == "fixed" else self.moving_plane

    def lifted(self, transform, backward: bool = False):
        """A transform of the problem (fixed -> moving, or ``backward``) as a 3D one."""
        from ..transforms.planar import lift

        planes = (self.moving_plane, self.fixed_plane) if backward else (self.fixed_plane, self.moving_plane)
        return transform if self.dim == 3 else lift(transform, *planes)

    def flattened(self, transform, backward: bool = False):
        """A 3D transform as one of the problem's dimension."""
        from ..transforms.planar import flatten

        if self.dim == 3:
            return transform
        planes = (self.moving_plane, self.fixed_plane) if backward else (self.fixed_plane, self.moving_plane)
        return flatten(transform, *planes, planes[0].flat(self.moving_grid if backward else self.fixed_grid))

    def volume(self, data, name: str):
        """(1, C, *S) tensor on the fixed grid -> Volume; one channel has no axis of channels."""
        from ..exchange import Volume

        array = data[0].detach().cpu().numpy().reshape(-1, *self.fixed_grid.shape)
        return Volume(array[0] if len(array) == 1 else array, self.fixed_grid, name)


def pair_of(request: dict):
    """(Pair without initial transform, Frames) of the values of a request. InputError for what cannot be registered."""
    from ..exchange import Volume
    from ..image import matched
    from ..problem import Pair

    for side in ("fixed", "moving"):
        if not isinstance(request.get(side), Volume):
            raise InputError(f"the request has no {side} image; give a volume for '{side}'")
    frames, parts = Frames.of(request["fixed"], request["moving"]), {}
    for side in ("fixed", "moving"):
        plane, mask, labels, points = frames.plane(side), *(request.get(f"{side}_{kind}") for kind in ("mask", "labels", "points"))
        image = image_of(request[side], plane)
        parts[side] = (image if mask is None else image.with_mask(labels_of(mask, plane))).completed()
        parts[f"{side}_labels"] = None if labels is None else labels_of(labels, plane)
        parts[f"{side}_points"] = None if points is None else points_of(points, plane)
    parts["fixed_labels"], parts["moving_labels"] = matched(parts["fixed_labels"], parts["moving_labels"])
    return Pair(**parts), frames


def image_of(volume, plane=None):
    """Image (1, C, *S) float32 of a Volume, 2D where ``plane`` is given."""
    import numpy as np
    import torch

    from ..image import Image

    grid = volume.grid if plane is None else plane.flat(volume.grid)
    data = torch.from_numpy(np.array(volume.array, np.float32, order="C"))
    return Image(data.reshape(1, -1, *grid.shape), grid, name=volume.name)


def labels_of(labels, plane=None):
    """Labels (1, 1, *S) int32 of a LabelMap, 2D where ``plane`` is given."""
    import numpy as np
    import torch

    from ..image import Labels

    grid = labels.grid if plane is None else plane.flat(labels.grid)
    data = torch.from_numpy(np.array(labels.array, np.int32, order="C"))
    return Labels(data.reshape(1, 1, *grid.shape), grid, name=labels.name, names=labels.names)


def points_of(points, plane=None):
    """Points (1, N, 3) float64 of a PointSet, their feet (1, N, 2) where ``plane`` is given."""
    import numpy as np
    import torch

    from ..points import Points

    positions = np.array(points.positions, np.float64)
    return Points(torch.from_numpy(positions if plane is None else plane.to_plane(positions))[None], names=points.names)


def finished(folder) -> tuple[dict, dict]:
    """(request, result) of the finished register job in ``folder``. InputError where it is gone or is another job."""
    from .. import exchange

    try:
        request, result = (exchange.unpack(Path(folder), json.loads((Path(folder) / name).read_text("utf-8")))
                           for name in (exchange.REQUEST, exchange.RESULT))
    except OSError:
        raise InputError(f"the result in {folder} is not there any more; run the registration again") from None
    if request.get("command") != "register":
        raise InputError(f"the job in {folder} is no registration but '{request.get('command')}'; choose the folder of a registration")
    return request, result
