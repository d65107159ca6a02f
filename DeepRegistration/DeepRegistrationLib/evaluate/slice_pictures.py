"""Pictures of slices in a volume as PNG: real and emulated slices side by side, and the similarity over the turn about the axis."""

from __future__ import annotations

import numpy as np

from .cohort_pictures import COLORS
from .report import _figure, _png


def side_by_side(result) -> bytes:
    """One column a slice: as measured, as the volume shows it there, and both as a checkerboard; pixels in the order of the files, each
    row of pictures in gray levels of its own."""
    real = [_flat(image) for image in result.problem.slices]
    made = [_flat(result.emulated(k)) for k in range(len(real))]
    limits = [_limits(real), _limits(made)]
    real, made = ([_scaled(p, limit) for p in pictures] for pictures, limit in zip((real, made), limits))
    rows = (("measured", real), ("emulated", made), ("checkerboard", [_checkered(a, b) for a, b in zip(real, made)]))
    width, side = max(1.9 * len(real) + 0.35, 6.5), 1.9
    figure = _figure(width, 3 * side + 0.75)
    height = 3 * side + 0.75
    for r, (name, pictures) in enumerate(rows):
        for k, picture in enumerate(pictures):
            axes = figure.add_axes(((0.33 + side * k) / width, (0.05 + side * (2 - r)) / height, (side - 0.06) / width, (side - 0.06) / height))
            axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect=_aspect(result.problem.slices[k].grid))
            axes.set_facecolor("#404a66")
            axes.set_xticks([])
            axes.set_yticks([])
            if k == 0:
                axes.set_ylabel(name, fontsize=10)
            if r == 0:
                axes.set_title(_title(result, k), fontsize=8.5)
    figure.text(0.5, 1 - 0.08 / height, _verdict(result), ha="center", va="top", fontsize=10, color="black" if result.registered else "#b00020")
    return _png(figure)


def curves(result) -> bytes:
    """Similarity of the set and of every slice over the turn about the common axis from the found pose; 0 is the pose."""
    figure = _figure(6.4, 4.2)
    axes = figure.add_axes((0.11, 0.14, 0.62, 0.74))
    if result.curve:
        degrees, together, single = result.curve["degrees"], result.curve["set"], result.curve["slices"]
        for k in range(single.shape[1]):
            axes.plot(degrees, single[:, k], color=COLORS[k % len(COLORS)], lw=1, ls="-" if k < len(COLORS) else "--", label=f"slice {k + 1}")
        axes.plot(degrees, together, color="black", lw=2.2, label="set")
        axes.axvline(0, color="0.6", lw=0.8)
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=8)
    else:
        axes.text(0.5, 0.5, "the slices have no common axis", ha="center", va="center", transform=axes.transAxes)
    axes.set_xlabel("turn about the axis, degrees")
    axes.set_ylabel("normalized mutual information")
    figure.text(0.5, 0.97, _verdict(result), ha="center", va="top", fontsize=10, color="black" if result.registered else "#b00020")
    return _png(figure)


def _verdict(result) -> str:
    if not result.registered:
        return f"NOT REGISTERED ({len(result.reasons)} reason{'s' if len(result.reasons) > 1 else ''}, see result.json)"
    return f"registered, position known to {result.distance_std:.2g} mm (one standard deviation)"


def _title(result, k) -> str:
    moved = result.plane and result.plane[k] != k
    flips = [name for name, on in zip("uv", result.flips[k]) if on] if result.flips else []
    return f"slice {k + 1}" + (f", on plane {result.plane[k] + 1}" if moved else "") + (f", mirrored {' '.join(flips)}" if flips else "")


def _flat(image) -> np.ndarray:
    values = image.data if image.mask is None else image.data.masked_fill(~image.mask, float("nan"))
    return values[0, 0].cpu().numpy().squeeze(2 - image.grid.size.index(1)).astype(float)


def _limits(pictures) -> tuple[float, float]:
    values = np.concatenate([p[np.isfinite(p)].ravel() for p in pictures])
    return tuple(np.percentile(values, [0.5, 99.5])) if len(values) else (0.0, 1.0)


def _scaled(picture, limits) -> np.ndarray:
    return (picture - limits[0]) / max(limits[1] - limits[0], 1e-12)


def _checkered(one, other, squares: int = 6) -> np.ndarray:
    rows, columns = (np.arange(n) * squares // n for n in one.shape)
    return np.where((rows[:, None] + columns) % 2 == 0, one, other)


def _aspect(grid) -> float:
    columns, rows = np.delete(grid.spacing, grid.size.index(1))
    return float(rows / columns)
