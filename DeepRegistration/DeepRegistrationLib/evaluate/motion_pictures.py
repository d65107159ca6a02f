"""One picture of the motion between repeated scans: curves of shifts, rotations and distance, and slices of what came of them."""

from __future__ import annotations

import numpy as np

from .report import _annotate, _figure, _png, view

COLORS = ("#0072b2", "#e69f00", "#009e73")
AXES = {"x": "x (left)", "y": "y (back)", "z": "z (up)"}
"""Where the axes of the patient (LPS) lead, of volumes."""


def sheet(result) -> bytes:
    """PNG of a ``SeriesResult``: curves on the left, the middle slices of average, signal and sigma on the right."""
    figure = _figure(11.0, 6.2)
    scans = [row["scan"] for row in result.motion]
    groups = (("shift_", "_mm", "shift in mm"), ("rotation_", "_deg", "rotation in degrees"), ("displacement", "_mm", "mean distance in mm"))
    for k, (start, end, title) in enumerate(groups):
        axes = figure.add_axes((0.07, 0.71 - 0.31 * k, 0.52, 0.24))
        keys = [key for key in result.motion[0] if key.startswith(start) and key.endswith(end)]
        for key, color in zip(keys, COLORS):
            name = key.removeprefix(start).removesuffix(end)
            label = AXES.get(name, name) if result.average.dim == 3 else name
            axes.plot(scans, [row[key] for row in result.motion], marker="o", markersize=3, color=color, label=label)
        axes.axhline(0.0, color="0.7", linewidth=0.8)
        axes.set_ylabel(title, fontsize=9)
        axes.tick_params(labelsize=8)
        if len(keys) > 1:
            axes.legend(fontsize=8, ncols=3, loc="best")
    axes.set_xlabel("scan", fontsize=9)
    _slices(figure, result)
    return _png(figure)


def _slices(figure, result):
    cut = view(result.average.grid)
    for k, (name, image) in enumerate((("average", result.average), ("signal", result.signal), ("sigma", result.sigma))):
        axes = figure.add_axes((0.64, 0.69 - 0.31 * k, 0.26, 0.26))
        values = cut.cut(image.data[0, 0].numpy())
        known = values[np.isfinite(values)]
        shown = axes.imshow(values, cmap="gray", aspect=cut.pixel[0] / cut.pixel[1], interpolation="nearest", vmin=0,
                            vmax=float(np.quantile(known, 0.995)) if known.size else 1.0)
        axes.set_title(f"{name}, {cut.title}" if cut.title else name, fontsize=9)
        _annotate(axes, cut, "", {"cmap": "gray"})
        bar = figure.colorbar(shown, cax=figure.add_axes((0.915, 0.70 - 0.31 * k, 0.012, 0.24)))
        bar.ax.tick_params(labelsize=7)
