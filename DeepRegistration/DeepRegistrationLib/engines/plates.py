"""Plates of an atlas: parallel planes through a volume, slices placed beside them, ranking, and the pose of an oblique plane.

A frame (4, 4) maps (u, v, w) mm, u to the right and v down in the picture, w along the normal, to LPS mm of the atlas (see geometry). The
frame of a plate has its origin in the center of mass of what the plate shows, and so does a slice that is looked for: where a slice
lies in its picture plays no part. The search for the slice among them: ``plate_search``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from ..errors import InputError
from ..geometry import Grid
from ..image import Image
from ..ops import nd
from ..ops.sample import sample

AXES = {
    "axial": np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]),
    "coronal": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "sagittal": np.array([[0.0, 0, -1], [1, 0, 0], [0, -1, 0]]),
}
"""Columns: the LPS directions of u, v and the normal. Superior, or anterior, is up; the subject's left is right, its posterior is right."""
MOST, MARGIN, BINS, SHOWN = 128, 1.15, 9, 0.08
"""Plates at most; width of their pictures over that of what they show; bins of histograms, the first for what shows nothing; brightness, of [0, 1],
above which a pixel shows something."""


@dataclass(frozen=True, eq=False)
class Plates:
    """``whole`` the atlas with values in [0, 1], ``volume`` the same at the size of the pixels; ``frames`` (P, 4, 4) of its plates, ``spacing`` mm between
    them; pictures of ``size`` x ``size`` pixels of ``pixel`` mm."""

    whole: Image
    volume: Image
    axis: str
    frames: np.ndarray
    spacing: float
    size: int
    pixel: float

    @property
    def count(self) -> int:
        return len(self.frames)

    @property
    def positions(self) -> np.ndarray:
        """(P,) mm along the normal."""
        return self.frames[:, :3, 3] @ AXES[self.axis][:, 2]

    @property
    def width(self) -> float:
        """mm that the largest plate shows."""
        return self.size * self.pixel / MARGIN

    def _scaled(self, factor: float) -> "Plates":
        pixel = factor * self.pixel
        return replace(self, volume=self.whole.smoothed_to(pixel), size=round(self.size / factor), pixel=pixel)

    @cached_property
    def coarser(self) -> "Plates":
        """In pixels of twice the size."""
        return self._scaled(2.0)

    @cached_property
    def finer(self) -> "Plates":
        """In pixels of half the size."""
        return self._scaled(0.5)

    def lattice(self) -> torch.Tensor:
        """(size^2, 2) mm of the pixels from the middle of a picture."""
        line = (torch.arange(self.size, dtype=torch.float32) - (self.size - 1) / 2) * self.pixel
        return torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).reshape(-1, 2)

    def values(self, frames, points: torch.Tensor) -> torch.Tensor:
        """What ``frames`` (N, 4, 4) show at ``points`` (M, 2) or (N, M, 2) mm: (N, M), 0 outside the volume."""
        to_index = (torch.as_tensor(self.volume.grid.inverse_affine.copy()) @ torch.as_tensor(frames, dtype=torch.float64)).float()
        index = points @ to_index[:, :3, :2].transpose(1, 2) + to_index[:, None, :3, 3]
        return sample(self.volume.data, index[None, None], fill=0.0)[0, 0, 0]

    def slopes(self, frames, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the volume shows at ``points`` (N, M, 3) mm of ``frames`` (N, 4, 4): (N, M), falling to 0 outside; its slope along u, v and w (N, M, 3)."""
        to_index = (torch.as_tensor(self.volume.grid.inverse_affine.copy()) @ torch.as_tensor(frames, dtype=torch.float64)).float()
        index = points @ to_index[:, :3, :3].transpose(1, 2) + to_index[:, None, :3, 3]
        found = sample(self._with_slopes, index[None, None], padding="zeros")[0, :, 0]
        return found[0], found[1:].movedim(0, -1) @ to_index[:, :3, :3]

    @cached_property
    def _with_slopes(self) -> torch.Tensor:
        """(1, 4, *S): the volume and its derivatives by its indices."""
        return torch.cat([self.volume.data, nd.index_gradient(self.volume.data)[:, 0]], 1)

    @cached_property
    def edges(self) -> torch.Tensor:
        """Limits of the bins of the volume's brightness."""
        return edges_of(self.volume.data.flatten())

    def bins(self, frames, points: torch.Tensor) -> torch.Tensor:
        """The bins of ``values``: (N, M)."""
        return torch.bucketize(self.values(frames, points), self.edges)

    def pictures(self, frames) -> torch.Tensor:
        """(N, 1, size, size) of planes ``frames`` (N, 4, 4)."""
        return self.values(frames, self.lattice()).reshape(-1, 1, self.size, self.size)


@dataclass(frozen=True, eq=False)
class Query:
    """A slice as the network sees it: ``picture`` (1, 1, size, size); ``whole``: the slice's own pixels on a 2D grid of (u, v) mm; ``frame`` (4, 4):
    (u, v, w) mm -> mm of the slice's file. (0, 0, 0) is the center of mass."""

    picture: torch.Tensor
    whole: Image
    frame: np.ndarray

    def at(self, plates: Plates) -> torch.Tensor:
        """(1, 1, size, size): the slice in the pixels of ``plates``."""
        return _picture(self.whole, plates)


def _picture(slice_: Image, plates: Plates) -> torch.Tensor:
    soft = slice_.smoothed_to(plates.pixel)
    lattice = torch.as_tensor(soft.grid.world_to_index(plates.lattice().numpy()), dtype=torch.float32)
    return sample(soft.data, lattice.reshape(1, plates.size, plates.size, 2), fill=0.0)


def plates_of(volume: Image, axis: str, size: int = 64) -> Plates:
    """The plates of a 3D ``volume`` across ``axis``, at most ``MOST``, from the first to the last that shows enough. InputError for a volume
    that shows nothing."""
    if axis not in AXES:
        raise InputError(f"axis '{axis}' was given; expected one of {', '.join(AXES)}")
    if volume.dim != 3 or min(volume.grid.shape) < 8:
        raise InputError(f"{volume.name} has {' x '.join(map(str, volume.grid.size))} voxels; a volume of at least 8 along every axis is needed")
    data = brightness(volume.data, volume.name)
    content = volume.grid.points()[(data[0, 0] > SHOWN).numpy()] @ AXES[axis]
    low, high = content.min(0), content.max(0)
    pixel = float((high - low)[:2].max()) * MARGIN / size
    whole = Image(data, volume.grid, name=volume.name)
    seen = whole.smoothed_to(pixel)
    spacing = max(float(np.abs(volume.grid.direction.T @ AXES[axis][:, 2]) @ volume.grid.spacing), float(high[2] - low[2]) / MOST)
    offsets = np.arange(low[2] + spacing / 2, high[2], spacing)
    middle = (low + high) / 2
    frames = np.stack([_frame(axis, AXES[axis] @ np.array([middle[0], middle[1], offset])) for offset in offsets])
    plates = Plates(whole, seen, axis, frames, spacing, size, pixel)
    pictures = plates.pictures(frames)
    area = (pictures > SHOWN).flatten(1).sum(1).numpy()
    kept = np.flatnonzero(area > 0.08 * area.max())
    kept = np.arange(kept[0], kept[-1] + 1)
    centers = _smooth(np.stack([center_of(picture) for picture in pictures[kept, 0]])) * pixel
    frames = frames[kept].copy()
    frames[:, :3, 3] += centers @ AXES[axis][:, :2].T
    return Plates(whole, seen, axis, frames, spacing, size, pixel)


def brightness(data: torch.Tensor, name: str) -> torch.Tensor:
    """Values from 0, the 1 % quantile, to 1, the 99.8 % quantile of what is above it. InputError where nothing stands out."""
    finite = torch.nan_to_num(data.float(), 0.0, 0.0, 0.0)
    flat = finite.flatten().numpy()
    low = float(np.quantile(flat, 0.01))
    bright = flat[flat > low]
    high = float(np.quantile(bright, 0.998)) if len(bright) else low
    if not high > low:
        raise InputError(f"{name} has one value everywhere and shows nothing; check the file")
    return ((finite - low) / (high - low)).clamp(0, 1)


def edges_of(values: torch.Tensor) -> torch.Tensor:
    """(BINS - 1,) limits between bins: what shows nothing, then equal shares of the ``values`` (M,) that show something."""
    shown = values[values > SHOWN]
    shares = torch.linspace(0, 1, BINS, device=values.device)[:-1]
    edges = torch.as_tensor(np.quantile(shown.numpy(), shares.numpy()), dtype=torch.float32)
    edges[0] = SHOWN
    return edges


def _frame(axis: str, origin) -> np.ndarray:
    frame = np.eye(4)
    frame[:3, :3], frame[:3, 3] = AXES[axis], origin
    return frame


def _smooth(values: np.ndarray, width: int = 5) -> np.ndarray:
    """(P, 2) running mean of at most ``width`` rows: one plate's tear does not move its frame."""
    half = width // 2
    return np.stack([values[max(k - half, 0):k + half + 1].mean(0) for k in range(len(values))])


def center_of(picture: torch.Tensor) -> np.ndarray:
    """(x, y) pixels from the middle to the center of mass of what a picture (y, x) shows; 0 where it shows nothing."""
    shown = (picture > SHOWN).float()
    total = float(shown.sum())
    if total == 0:
        return np.zeros(2)
    line = torch.arange(picture.shape[-1], dtype=torch.float32) - (picture.shape[-1] - 1) / 2
    return np.array([float((shown.sum(0) * line).sum()), float((shown.sum(1) * line).sum())]) / total


def centered(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures (N, 1, S, S) moved by whole pixels so that their centers of mass are in the middle, 0 beyond the border."""
    size = pictures.shape[-1]
    padded = torch.nn.functional.pad(pictures, (size // 2,) * 4)
    shifts = [np.clip(np.round(center_of(picture)), -(size // 2), size // 2).astype(int) + size // 2 for picture in pictures[:, 0]]
    return torch.stack([p[:, y:y + size, x:x + size] for p, (x, y) in zip(padded, shifts)])


# --------------------------------------------------------------------------------------------------------------- query


def query_of(image: Image, plates: Plates, pixel: float | None = None, invert: bool = False) -> Query:
    """A slice, 2D or a volume of one voxel along one axis, as a picture like those of ``plates``.

    pixel: mm, instead of the file's. A 2D slice is taken as it is looked at, u along its rows; a volume of one slice by its
    header's directions. InputError where it shows nothing, lies across the axis, or has another scale than the atlas.
    """
    flat, frame = _flat(image, plates.axis)
    if pixel is not None:
        if image.dim != 2 or not pixel > 0:
            raise InputError(f"a pixel of {pixel} mm was given for {image.name}; a positive number is needed, and only for pictures: "
                             "the header of a volume says how large its voxels are")
        scale = pixel / float(flat.grid.spacing[0])
        flat = Image(flat.data, Grid(flat.grid.shape, np.diag([scale, scale, 1.0]) @ flat.grid.affine), name=flat.name)
        frame = frame @ np.diag([1 / scale, 1 / scale, 1 / scale, 1.0])
    data = brightness(-flat.data if invert else flat.data, image.name)
    shown = (data[0, 0] > SHOWN).numpy()
    points = flat.grid.points()[shown]
    low, high = np.quantile(points, (0.01, 0.99), axis=0)  # dust does not count
    edge, whole = float((high - low).max()), plates.size * plates.pixel
    if not 0.15 * whole < edge < 1.3 * whole:
        raise InputError(f"{image.name} shows {edge:.4g} mm of tissue and the plates of the atlas are {plates.width:.4g} mm wide; "
                         "give the size of its pixels in mm (--pixel)")
    middle = points.mean(0)
    at_middle = np.eye(4)
    at_middle[:2, 3] = middle
    back = np.eye(3)
    back[:2, 2] = -middle
    whole = Image(data, flat.grid.moved(back), name=image.name)
    return Query(_picture(whole, plates), whole, frame @ at_middle)


def _flat(image: Image, axis: str) -> tuple[Image, np.ndarray]:
    """The slice on a 2D grid of (u, v) mm, and the frame (4, 4) of (u, v, w) in its file."""
    if image.data.shape[1] != 1:
        raise InputError(f"{image.name} has {image.data.shape[1]} channels; a slice of one is needed")
    if image.dim == 2:
        return image, np.eye(4)
    name = header_axis(image)
    if name != axis:
        raise InputError(f"{image.name} is {name} by its header and {axis} plates were asked for; use --axis {name}")
    thin = list(image.grid.size).index(1)
    keep = [k for k in range(3) if k != thin]
    normal = np.cross(*image.grid.direction[:, keep].T)
    normal *= np.sign(normal @ AXES[axis][:, 2])
    u = AXES[axis][:, 0] - normal * (normal @ AXES[axis][:, 0])
    u /= np.linalg.norm(u)
    frame = np.eye(4)
    frame[:3, :3], frame[:3, 3] = np.stack([u, np.cross(normal, u), normal], 1), image.grid.origin
    local = np.linalg.inv(frame) @ image.grid.affine
    affine = np.eye(3)
    affine[:2, :2], affine[:2, 2] = local[:2, keep], local[:2, 3]
    return Image(image.data.squeeze(4 - thin), Grid(tuple(image.grid.size[k] for k in reversed(keep)), affine), name=image.name), frame


def header_axis(image: Image) -> str:
    """The axis that a volume of one slice lies across, by its header. InputError for any other volume."""
    if list(image.grid.size).count(1) != 1:
        raise InputError(f"{image.name} has {' x '.join(map(str, image.grid.size))} voxels and is no slice; "
                         "give one slice (exactly one axis of one voxel)")
    thin = list(image.grid.size).index(1)
    return max(AXES, key=lambda name: abs(float(image.grid.direction[:, thin] @ AXES[name][:, 2])))


# ------------------------------------------------------------------------------------------------------------- ranking


def embedded(network, pictures: torch.Tensor) -> torch.Tensor:
    """(N, L) of pictures (N, 1, S, S), on the device of the network, without gradients."""
    device = next(network.parameters()).device
    with torch.no_grad():
        return torch.cat([network(part.to(device)) for part in pictures.split(128)]).cpu()


def order(costs) -> np.ndarray:
    """Plates from the lowest cost (P,) to the highest."""
    return np.argsort(np.asarray(costs), kind="stable")


def rank_of(costs, plate: int) -> int:
    """The place of ``plate`` in the order, from 0: the text's error of a rank."""
    return int(np.flatnonzero(order(costs) == plate)[0])
