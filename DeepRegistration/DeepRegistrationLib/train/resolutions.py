"""The recipe of three resolutions: networks that are trained from coarse to fine, each begun from the one before.

    stage 1  one U-Net on images averaged over blocks of 4 voxels          objective: S(A, B o T) + weight |d (R o T - id)|^2,
    stage 2  the same at half of the resolution of a second U-Net          T = network(A, B), R = network(B, A), both directions
    stage 3  both at half of the resolution of a third one, full images

Distances are in mm and the gradient of inverse consistency has no unit, so one weight serves all stages. The stages are runs of the one
training loop with a folder each: a stopped recipe goes on where it stopped. Tian, Greer et al., GradICON, CVPR 2023.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Callable

from ..errors import InputError
from ..image import Image
from ..networks.composition import MultiResolution, halved
from ..networks.heads import displacement
from ..ops import nd
from ..problem import Pair
from ..runtime import Runtime
from ..terms import Alignment, Term
from .loop import TrainingSettings, scored, train


def both_ways(network, pair) -> list[tuple[float, Alignment]]:
    """The network's map of the swapped pair and of the pair, each the reverse of the other, for ``loop.train``."""
    there = network(pair.fixed.data, pair.moving.data)
    back = network(pair.moving.data, pair.fixed.data)
    alignment = scored(pair, displacement(there, pair.fixed.grid), displacement(back, pair.moving.grid))
    return [(0.5, alignment.reverse), (0.5, alignment)]


def train_by_resolution(network: MultiResolution, objective: Term, draw: Callable, stages: tuple[TrainingSettings, ...], folder: Path,
                        runtime: Runtime | None = None) -> list[list[dict]]:
    """The rows of each stage's log. ``network`` is trained in place, its coarsest ``len(stages)`` resolutions, each with those below it.

    draw(generator) -> Pair of full resolution, without labels. InputError for no stage, for more stages than resolutions and for label maps.
    """
    if not 1 <= len(stages) <= network.resolutions:
        raise InputError(f"{len(stages)} stages and a network of {network.resolutions} resolutions were given; give the settings of one stage for each "
                         "resolution, coarse to fine")
    runtime, rows = runtime or Runtime(), []
    for k, (part, settings) in enumerate(zip(network.by_resolution(), stages)):
        factor, share = 2 ** (network.resolutions - 1 - k), replace(runtime, monitor=runtime.monitor.part(k / len(stages), (k + 1) / len(stages)))
        rows.append(train(part, both_ways, objective, coarser(draw, factor), settings, folder / f"stage-{k + 1}", share))
    return rows


def coarser(draw: Callable, factor: int) -> Callable:
    """``draw`` with images averaged over blocks of ``factor`` (a power of two) voxels."""

    def drawn(generator):
        pair = draw(generator)
        return pair if factor == 1 else pooled(pair, factor)

    return drawn


def pooled(pair: Pair, factor: int) -> Pair:
    """The pair with images averaged over blocks of ``factor`` (a power of two) voxels, of which masks keep those that are mostly inside;
    landmarks stay. InputError for label maps."""
    if pair.fixed_labels is not None:
        raise InputError("a pair with label maps was drawn; training by resolution averages images, leave these out")
    return replace(pair, fixed=_pooled(pair.fixed, factor), moving=_pooled(pair.moving, factor))


def _pooled(image: Image, factor: int) -> Image:
    while factor > 1:
        mask = None if image.mask is None else nd.average_pool(image.mask.to(image.data.dtype), 2) > 0.5
        image, factor = replace(image, data=nd.average_pool(image.data, 2), grid=halved(image.grid), mask=mask), factor // 2
    return image
