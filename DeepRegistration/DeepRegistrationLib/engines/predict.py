"""A network's answer for one pair of any size, spacing and direction: to the network's lattice and back.

The lattice covers what either image shows, with the directions of the fixed image, as many voxels as the network is used to and sides
that its pyramid can halve. The moving image is read through the start, the displacement comes back in mm; it goes on past the ends of the
image that are near, and runs out to 0 on the other sides. Before it starts, the memory that it will need is compared with what is free: too
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
from .extent import content_box

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
    grid, levels = lattice(content_box(fixed, moving, linear_part(start)), settings.edge)
    grid, levels, device, needed = fitting(grid, levels, settings.edge, device)
    images = seen(*normalised_pair(fixed, moving, settings.shared_range), start, grid)
    network = network.to(device).eval()
    steps = (settings.steps[0],) * (levels - len(settings.steps)) + settings.steps[-levels:]
    with torch.no_grad():
        made = network.by_step(*(image.to(device) for image in images), levels, steps)
        for _ in monitor.steps(sum(steps), "network"):
            maps = next(made)
            if monitor.wants_preview:
                monitor.preview(start @ _finished(maps, grid, fixed.grid))
    how = {"lattice_spacing": [round(float(s), 4) for s in grid.spacing], "network_device": str(device), "expected_mib": round(needed)}
    return _finished(maps, grid, fixed.grid), how


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


def _finished(maps, grid: Grid, whole: Grid) -> Displacement:
    """The displacement after a step in mm, on the lattice and around it."""
    level = grid.resample(grid.spacing * maps.factor)
    u, grid = _continued(on_lattice(maps.forward.cpu(), level, grid), grid, whole)
    return displacement(u, grid)


def _continued(u: torch.Tensor, grid: Grid, whole: Grid) -> tuple[torch.Tensor, Grid]:
    """(displacement, lattice) with its border values carried on: past an end of the image ``whole`` that is within ``RUNOUT`` voxels, else
    so many voxels, over which they run out to 0 by a cosine."""
    corner = grid.world_to_index(whole.corners())
    room = np.stack([-0.5 - corner.min(0), corner.max(0) - (np.array(grid.size) - 0.5)])
    ends = room > RUNOUT
    extra = np.where(np.array(grid.size) == 1, 0, np.where(ends, RUNOUT, np.maximum(np.ceil(room) + 1, 0))).astype(int)
    u = F.pad(u, [int(n) for pair in extra.T for n in pair], mode="replicate")
    for c, n in enumerate(u.shape[:1:-1]):
        weight = torch.ones(n)
        ramp = 0.5 - 0.5 * torch.cos(torch.pi * torch.arange(1, RUNOUT + 1) / (RUNOUT + 1))
        if ends[0][c] and extra[0][c]:
            weight[:RUNOUT] *= ramp
        if ends[1][c] and extra[1][c]:
            weight[n - RUNOUT:] *= ramp.flip(0)
        u = u * weight.reshape(-1, *[1] * c)
    return u, grid.crop(-extra[0], np.array(grid.size) + extra[1])
