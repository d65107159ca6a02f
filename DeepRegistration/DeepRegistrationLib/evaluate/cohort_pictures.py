"""Pictures of the structure of a cohort as PNG: the map of subjects, their distances, the dimension, and the numbers
of types.
"""

from __future__ import annotations

import numpy as np

from .cohort import CohortStructure
from .report import _figure, _png

COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c6d31", "#666666")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
NAMED = 24
"""Subjects up to which each carries its name on the map; beyond, only the centers of types do."""


def pictures(found: CohortStructure) -> dict[str, bytes]:
    """File name -> PNG of every part."""
    out = {}
    for name, draw, place in (
        ("map.png", draw_map, (0.14, 0.13, 0.82, 0.76)),
        ("distances.png", draw_distances, (0.08, 0.12, 0.76, 0.78)),
        ("dimension.png", draw_dimension, (0.14, 0.13, 0.82, 0.76)),
        ("types.png", draw_fits, (0.14, 0.13, 0.72, 0.76)),
    ):
        figure = _figure(5.2, 4.4)
        draw(figure.add_axes(place), found)
        out[name] = _png(figure)
    return out


def sheet(found: CohortStructure, title: str = "") -> bytes:
    """PNG: the four parts side by side."""
    figure = _figure(11.4, 9.2)
    for k, draw in enumerate((draw_map, draw_distances, draw_dimension, draw_fits)):
        draw(figure.add_axes((0.07 + 0.5 * (k % 2), 0.55 - 0.48 * (k // 2), 0.37, 0.35)), found)
    figure.suptitle(title or found.answer.partition(":")[0], fontsize=12, y=0.985)
    return _png(figure)


def draw_map(axes, found: CohortStructure) -> None:
    """The first two coordinates, a mark a type; names where they are few enough to be read."""
    x, y = found.points[:, 0], found.points[:, 1] if found.points.shape[1] > 1 else np.zeros(len(found.points))
    for label in range(found.types.count):
        members = found.types.labels == label
        axes.scatter(
            x[members],
            y[members],
            s=34,
            c=COLORS[label % len(COLORS)],
            marker=MARKS[label % len(MARKS)],
            edgecolors="white",
            linewidths=0.5,
            label=f"type {label + 1}: {members.sum()}",
        )
    for k, name in enumerate(found.names):
        if len(found.names) <= NAMED or name in found.centers:
            right = x[k] > (x.min() + x.max()) / 2
            axes.annotate(
                name[:18],
                (x[k], y[k]),
                xytext=(-8 if right else 8, 6),
                textcoords="offset points",
                fontsize=7,
                ha="right" if right else "left",
                fontweight="bold" if name in found.centers else "normal",
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.6, "pad": 0.2},
            )
    axes.margins(0.08)
    axes.set_xlabel(f"{found.name_of(0)}{_share(found, 0)}", fontsize=9)
    axes.set_ylabel(f"{found.name_of(1)}{_share(found, 1)}" if found.points.shape[1] > 1 else "", fontsize=9)
    axes.legend(
        fontsize=8,
        frameon=False,
        loc="upper left",
        bbox_to_anchor=(0, 1.1),
        ncols=4,
        handletextpad=0.1,
        columnspacing=0.8,
    )
    axes.tick_params(labelsize=8)


def draw_distances(axes, found: CohortStructure) -> None:
    """The first matrix, subjects in the order of types and of the first coordinate; lines between types."""
    order = np.lexsort((found.points[:, 0], found.types.labels))
    view = found.views[0]
    shown = axes.imshow(view.distances.matrix[np.ix_(order, order)], cmap="viridis", interpolation="nearest")
    for edge in np.cumsum(np.bincount(found.types.labels))[:-1]:
        axes.axhline(edge - 0.5, color="white", linewidth=1)
        axes.axvline(edge - 0.5, color="white", linewidth=1)
    axes.set_title(f"Distances of {view.distances.kind}, by type", fontsize=10)
    axes.tick_params(labelsize=8)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("subjects", fontsize=9)
    bar = axes.figure.colorbar(shown, ax=axes, fraction=0.046, pad=0.03)
    bar.ax.tick_params(labelsize=8)


def draw_dimension(axes, found: CohortStructure) -> None:
    """log C over log r of every matrix, the fitted part thick."""
    for k, view in enumerate(found.views):
        d, color = view.dimension, COLORS[k % len(COLORS)]
        if d.value is None:
            continue
        axes.loglog(
            d.radius,
            d.share,
            color=color,
            linewidth=1,
            label=f"{view.distances.kind}: {d.value:.2f}{'' if d.error is None else f' ± {d.error:.2f}'}",
        )
        inner = (d.radius >= d.used[0]) & (d.radius <= d.used[1])
        axes.loglog(d.radius[inner], d.share[inner], color=color, linewidth=4, alpha=0.5)
    axes.set_title("Correlation dimension: slope of the thick part", fontsize=10)
    axes.set_xlabel("distance r", fontsize=9)
    axes.set_ylabel("share of pairs nearer than r", fontsize=9)
    axes.tick_params(labelsize=8, which="both")
    if axes.has_data():
        axes.legend(fontsize=8, frameon=False)
    else:
        axes.text(0.5, 0.5, "too few different distances", ha="center", transform=axes.transAxes, fontsize=9)


def draw_fits(axes, found: CohortStructure) -> None:
    """BIC and silhouette over the number of components, the chosen one marked."""
    fits = found.types.fits
    numbers = [fit.components for fit in fits]
    axes.plot(numbers, [fit.bic for fit in fits], "o-", color=COLORS[0], markersize=4)
    axes.set_xlabel("components of the mixture", fontsize=9)
    axes.set_ylabel("BIC (lower is better)", color=COLORS[0], fontsize=9)
    axes.set_xticks(numbers)
    other = axes.twinx()
    other.plot(
        [fit.components for fit in fits if fit.silhouette is not None],
        [fit.silhouette for fit in fits if fit.silhouette is not None],
        "s--",
        color=COLORS[1],
        markersize=4,
    )
    other.set_ylabel("silhouette (higher is better)", color=COLORS[1], fontsize=9)
    taken = len(np.unique(found.types.components))
    axes.axvline(taken, color="#999999", linewidth=1, linestyle=":")
    axes.set_title(
        f"{taken} component{'s' * (taken > 1)}; types with gaps between: {found.types.count}",
        fontsize=10,
    )
    for each in (axes, other):
        each.tick_params(labelsize=8)


def _share(found: CohortStructure, dimension: int) -> str:
    """' (56 % of the variance)' of a column of the points."""
    for view in found.views:
        width = view.embedding.points.shape[1]
        if dimension < width:
            return f" ({100 * view.embedding.explained[dimension]:.0f} % of the variance)"
        dimension -= width
    return ""
