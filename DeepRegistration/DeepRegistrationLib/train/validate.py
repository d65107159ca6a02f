"""How good a network is on pairs that training does not see: overlap, surface and landmark distances, folds, similarity (``evaluate.metrics``).

``score``, higher is better, is the mean Dice overlap where the pairs have labels, else the negative landmark error in mm, else the normalised
mutual information of the fixed and the warped image.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from typing import Callable

import numpy as np
import torch

from ..evaluate import metrics, report
from ..image import Image
from ..problem import Pair
from ..result import warp
from ..runtime import Monitor
from .loop import on_device

FIGURES = ("dice", "hd95", "tre", "folds", "sdlogj", "ncc", "nmi")
"""Means over the pairs: Dice and HD95 (mm) over the labels of a pair that both maps hold, landmark error (mm), share of folded voxels,
deviation of the log-determinant, correlation and normalised mutual information."""


@dataclass(frozen=True, eq=False)
class Validation:
    """``Validation(...)(network)`` -> {'score', and those of FIGURES that the pairs have}.

    pairs() gives the pairs, always the same ones; view as for ``loop.train``: the transform of its last alignment is the answer.
    ``monitor`` may cancel between pairs.
    """

    pairs: Callable[[], list[Pair]]
    view: Callable
    device: torch.device
    monitor: Monitor | None = None

    def __call__(self, network) -> dict:
        with evaluating(network):
            found = [self._scores(network, pair) for pair in self.pairs()]
        names = [name for name in FIGURES if any(name in each for each in found)]
        means = {name: _mean([each[name] for each in found if name in each]) for name in names}
        best_known = means.get("dice", -means["tre"] if "tre" in means else means["nmi"])
        return {"score": best_known if math.isfinite(best_known) else -math.inf, **means}

    def _scores(self, network, pair: Pair) -> dict:
        if self.monitor is not None:
            self.monitor.check()
        return scores(pair, answer(network, self.view, pair, self.device))

    def picture(self, network) -> bytes | None:
        """PNG: the first pair before and after, the moving image over the fixed one. None where matplotlib is not installed."""
        if importlib.util.find_spec("matplotlib") is None:
            return None
        with evaluating(network):
            pair = next(iter(self.pairs()))
            transform = answer(network, self.view, pair, self.device)
        fixed = Image(pair.fixed.data, pair.fixed.grid, name="fixed")
        return report.overlay_picture(fixed, pair.moving.at(fixed.grid), warp(pair.moving, transform, fixed.grid))


class evaluating:
    """Inside, ``network`` answers as it does when it is used: evaluation mode, no gradients; then it is as before."""

    def __init__(self, network):
        self.network, self.without = network, torch.no_grad()

    def __enter__(self):
        self.training = self.network.training
        self.network.eval()
        self.without.__enter__()

    def __exit__(self, *error):
        self.without.__exit__(*error)
        self.network.train(self.training)


def answer(network, view, pair: Pair, device: torch.device):
    """The transform that the network gives for a pair, on the CPU."""
    return view(network, on_device(pair, device))[-1][1].transform.to("cpu")


def scores(pair: Pair, transform) -> dict[str, float]:
    """The FIGURES of one pair that can be had."""
    found = {}
    if pair.fixed_labels is not None:
        values = sorted(set(pair.fixed_labels.values()) & set(pair.moving_labels.values()))
        warped = warp(pair.moving_labels, transform, pair.fixed_labels.grid)
        found["dice"] = _mean(metrics.dice_per_label(pair.fixed_labels, warped, values).values())
        found["hd95"] = _mean(metrics.hd95_per_label(pair.fixed_labels, warped, values).values())
    if pair.fixed_points is not None:
        weights = pair.fixed_points.weights
        errors = metrics.tre(pair.fixed_points, pair.moving_points, transform)
        found["tre"] = _mean(errors if weights is None else errors[weights[0].numpy() > 0.5])
    shape = metrics.jacobian_scores(transform, pair.fixed.grid, pair.fixed.mask)
    found |= {"folds": shape["folds"], "sdlogj": shape["sdlogj"]}
    warped = warp(pair.moving, transform, pair.fixed.grid)
    found["ncc"] = metrics.correlation(pair.fixed.data, warped.data, pair.fixed.mask)
    found["nmi"] = metrics.normalised_mutual_information(pair.fixed.data, warped.data, pair.fixed.mask)
    return found


def _mean(values) -> float:
    """The mean of the finite values: a label that is lost counts in its overlap, which is 0, and has no surface."""
    finite = [float(v) for v in values if math.isfinite(v)]
    return float(np.mean(finite)) if finite else math.nan
