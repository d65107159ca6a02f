"""Picture of a slice beside the plates of an atlas that it may be, as PNG."""

from __future__ import annotations

import numpy as np

from .report import _figure, _png

ACROSS = 7


def sheet(query: np.ndarray, plane: np.ndarray | None, plates: list[np.ndarray], names: list[str], title: str, doubtful: bool = False) -> bytes:
    """The slice (S, S), what the atlas shows on the found plane (None: not searched), then the plates, each with its name."""
    pictures = [("the slice", query), *([("found plane", plane)] if plane is not None else []), *zip(names, plates)]
    columns = min(ACROSS, len(pictures))
    rows = -(-len(pictures) // columns)
    side, label, top = 1.7, 0.42, 0.5
    width, height = max(columns * side, 6.0), rows * (side + label) + top
    figure = _figure(width, height)
    for k, (name, picture) in enumerate(pictures):
        row, column = divmod(k, columns)
        bottom = height - top - (row + 1) * (side + label) + label
        axes = figure.add_axes(((column * side + 0.04) / width, bottom / height, (side - 0.08) / width, (side - 0.08) / height))
        axes.imshow(picture, cmap="gray", vmin=0, vmax=max(float(np.quantile(picture, 0.995)), 1e-6), interpolation="bilinear")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel(name, fontsize=8, labelpad=3)
    figure.text(0.5, 1 - 0.1 / height, title, ha="center", va="top", fontsize=10, color="#b00020" if doubtful else "black")
    return _png(figure)
