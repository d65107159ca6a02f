"""The picture of an atlas over age as PNG: a slice through the middle at every age, and what grows."""

from __future__ import annotations

import numpy as np

from ..result import GrowthResult
from .report import _figure, _png

SHOWN = 8
"""Ages that are shown at most, evenly chosen."""
LABELS = 6
"""Labels whose curves are drawn at most: the largest."""


def sheet(result: GrowthResult) -> bytes:
    """PNG: slices on one gray scale, then curves of volume, length and mean displacement."""
    chosen = np.unique(np.linspace(0, len(result.ages) - 1, min(SHOWN, len(result.ages))).round().astype(int))
    slices = [middle(result.atlases[k].data[0, 0].numpy()) for k in chosen]
    top = float(np.quantile(np.stack(slices), 0.995)) or 1.0
    figure = _figure(1.7 * SHOWN * 0.8, 5.2)
    for place, (k, values) in enumerate(zip(chosen, slices)):
        axes = figure.add_axes((0.02 + 0.97 * place / len(chosen), 0.52, 0.95 / len(chosen), 0.4))
        axes.imshow(values, cmap="gray", vmin=0, vmax=top)
        axes.set_title(f"{result.ages[k]:g}", fontsize=9)
        axes.axis("off")
    unit = f"mm{'^3' if result.atlas.dim == 3 else '^2'}"
    for place, (what, text) in enumerate((("volume", f"volume, {unit}"), ("length", "length, mm"), ("mean_displacement", "mean displacement, mm"))):
        axes = figure.add_axes((0.08 + 0.325 * place, 0.12, 0.23, 0.3))
        for name in named(result.growth, what):
            axes.plot(result.ages, [row.get(name, np.nan) for row in result.growth], "o-", markersize=3, label=name.removeprefix(what).strip("_") or "bright")
        axes.set_xlabel("age")
        axes.set_ylabel(text)
        axes.set_ylim(0, 1.08 * max(axes.get_ylim()[1], 1e-6))
        if what == "volume":
            axes.legend(fontsize=7)
    return _png(figure)


def middle(volume: np.ndarray) -> np.ndarray:
    """The slice through the middle of a volume, a slice as it is."""
    return volume if volume.ndim == 2 else volume[volume.shape[0] // 2]


def named(rows: list[dict], what: str) -> list[str]:
    """The columns of one quantity: of the whole, and of the largest labels."""
    found = sorted({key for row in rows for key in row if key.startswith(f"{what}_")}, key=lambda key: -sum(row.get(key, 0.0) for row in rows))
    return [what, *found[:LABELS]]
