"""A network's answer for one pair of any size, spacing and direction: to the network's lattice and back.

The lattice covers what either image shows, with the directions of the fixed image, as many voxels as the network is used to and sides
that its pyramid can halve. The moving image is read through the start, the displacement comes back in mm and runs out to 0 between the
content and the end of the image. Before it starts, the memory that it will need is compared with what is free: too
little on an accelerator means the CPU, too little there means half the resolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import InputError
from ..geometry import Grid
from ..image import Image
from ..networks.heads import displacement, on_lattice
from ..runtime import Monitor, free_memory_mib
from ..terms import Alignment
from ..transforms import Displacement, Transform
from ..transforms.base import linear_part
from .channels import normalised_pair
from .extent import MARGIN, content_box, ramp_lengths

MIB_PER_VOXEL = {2: 1.9e-3, 3: 1.8e-3}
"""Memory of a run of the shipped networks beside the images, measured on lattices of a million voxels."""
COARSEST = 6
RUNOUT = 12


@dataclass(frozen=True)
class PredictionSettings:
    """edge: voxels along the edge of a cube (square) as large as the lattice; steps: repeats on each level, finest last (the first
    counts for all coarser levels too); shared_range: both images are in the same units."""

    edge: int = 96
    steps: tuple[int, ...] = (3, 2, 2)
    shared_range: bool = False


def predict(network, fixed: Image, moving: Image, start: Transform, settings: PredictionSettings, device: torch.device,
            monitor: Monitor) -> tuple[Displacement, dict]:
    """The displacement u (mm) with moving = start(x + u(x)), and how it was made: lattice spacing in mm, device, MiB expected.

    ``network`` is a ``SymmetricPyramid`` of the images' dimension; it is not changed. Raises InputError for more than one channel or one
    pair, MemoryError where half the resolution does not fit either, Cancelled between steps.
    """
    for image in (fixed, moving):
        if image.data.shape[0] != 1 or image.data.shape[1] != 1:
            raise InputError(f"{image.name} has {image.data.shape[0]} images of {image.data.shape[1]} channels; the network takes one grey image")
    box = content_box(fixed, moving, linear_part(start))
    grid, levels = lattice(box, settings.edge)
    grid, levels, device, needed = fitting(grid, levels, settings.edge, device)
    images = seen(*normalised_pair(fixed, moving, settings.shared_range), start, grid)
    network = network.to(device).eval()
    steps = (settings.steps[0],) * (levels - len(settings.steps)) + settings.steps[-levels:]
    with torch.no_grad():
        made = network.by_step(*(image.to(device) for image in images), levels, steps)
        for _ in monitor.steps(sum(steps), "network"):
            maps = next(made)
            if monitor.wants_preview:
                monitor.preview(start @ _finished(maps, grid, box, fixed.grid))
    how = {"lattice_spacing": [round(float(s), 4) for s in grid.spacing], "network_device": str(device), "expected_mib": round(needed)}
    return _finished(maps, grid, box, fixed.grid), how


def lattice(box: Grid, edge: int) -> tuple[Grid, int]:
    """(lattice, levels): about ``edge``^dim cubic voxels that cover ``box``, never finer than its own voxels, sides divisible by 2^levels."""
    wide = [k for k, n in enumerate(box.size) if n > 1]
    spacing = max(float(np.prod(box.extent[wide])) ** (1 / len(wide)) / edge, float(box.spacing[wide].min()))
    coarse = box.resample(spacing)
    levels = 1
    while min(coarse.size[k] for k in wide) / 2**levels >= COARSEST and levels < 5:
        levels += 1
    size = np.array(coarse.size)
    whole = np.ceil((size + 2) / 2**levels).astype(int) * 2**levels
    lower = -((whole - size) // 2)
    return coarse.crop(lower, lower + whole), levels


def fitting(grid: Grid, levels: int, edge: int, device: torch.device):
    """(lattice, levels, device, MiB needed) that the free memory allows."""
    for each in ((device, torch.device("cpu")) if device.type != "cpu" else (device,)):
        free = free_memory_mib(each)
        needed = grid.voxels * MIB_PER_VOXEL[grid.dim]
        if free is None or needed < 0.9 * free:
            return grid, levels, each, needed
    half, fewer = lattice(grid, max(edge // 2, 16))
    needed = half.voxels * MIB_PER_VOXEL[grid.dim]
    if half.voxels >= grid.voxels or needed > 0.9 * free:
        raise MemoryError(f"the network needs {needed:.0f} MiB of memory at half the resolution and {free:.0f} MiB are free")
    return half, fewer, torch.device("cpu"), needed


def seen(fixed: Image, moving: Image, start: Transform, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """Both images (1, 1, *S) on the lattice, smoothed to its spacing, the moving one through ``start``; border values go on outside."""
    spacing = grid.spacing.min()
    frame = fixed.smoothed_to(spacing).at(grid, fill=None)
    return frame.data, Alignment(Image(frame.data, grid), moving.smoothed_to(spacing), start).warped


def _finished(maps, grid: Grid, box: Grid, whole: Grid) -> Displacement:
    """The displacement after a step in mm, on the lattice and around it."""
    level = grid.resample(grid.spacing * maps.factor)
    u, grid = _run_out(on_lattice(maps.forward.cpu(), level, grid), grid, box, whole)
    return displacement(u, grid)


def _run_out(u: torch.Tensor, grid: Grid, box: Grid, whole: Grid) -> tuple[torch.Tensor, Grid]:
    """(displacement, lattice) that falls to 0 by a cosine between the content and the end of the image ``whole``, at most ``RUNOUT`` voxels
    beyond the lattice or as many as it needs not to fold. ``box`` holds the content with ``MARGIN`` voxels of its own; on a side
    where it ends with the image, or the image too early for the cosine, the border values go on past the end."""
    ends, image, content = (_ends(grid, other) for other in (grid, whole, box))
    margin = MARGIN * box.spacing / grid.spacing
    touched = np.abs(content - image) < 0.6 * box.spacing / grid.spacing
    lengths = ramp_lengths(u)
    most = np.maximum(RUNOUT, lengths)
    zero = np.stack([np.maximum(image[0], ends[0] - most[0]), np.minimum(image[1], ends[1] + most[1])])
    touched |= np.abs(content - zero) + margin < lengths
    reach = np.where(touched, image + np.array([[-1], [1]]), zero)
    extra = np.ceil(np.maximum(np.stack([ends[0] - reach[0], reach[1] - ends[1]]), 0)).astype(int) * (np.array(grid.size) > 1)
    u = F.pad(u, [int(n) for pair in extra.T for n in pair], mode="replicate")
    for c, n in enumerate(u.shape[:1:-1]):
        place = torch.arange(n) - float(extra[0][c])
        for side, sign in ((0, 1.0), (1, -1.0)):
            if not touched[side][c] and grid.size[c] > 1:
                length = max(sign * (content[side][c] - zero[side][c]) + margin[c], 1.0)
                share = (sign * (place - zero[side][c]) / length).clamp(0, 1)
                u = u * (0.5 - 0.5 * torch.cos(torch.pi * share)).reshape(-1, *[1] * c)
    return u, grid.crop(-extra[0], np.array(grid.size) + extra[1])


def _ends(grid: Grid, other: Grid) -> np.ndarray:
    """(2, dim) first and last outer face of ``other`` in voxels of ``grid``."""
    corner = grid.world_to_index(other.corners())
    return np.stack([corner.min(0), corner.max(0)])
