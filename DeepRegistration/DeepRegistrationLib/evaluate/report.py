"""Pictures of a registration and one self-contained HTML report.

Slices run along the voxel axes that lie nearest to the patient's and are shown as a radiologist sees them: the patient's
right on the left of axial and coronal pictures, anterior up in axial ones and to the left in sagittal ones, superior up.
Letters at the edges (R L A P S I) come from the grid's directions. matplotlib is imported inside the functions.

* fused overlay: fixed * (0, 1/2, 1) + moving * (1, 1/2, 0): aligned tissue is grey, blue is fixed only, orange moving only.
* deformation grid: the lines where a coordinate of phi(x) is a multiple of the line distance. It is a regular grid drawn on
  the moving image and pulled back with it onto the fixed image; no inverse is needed.
* log-Jacobian: purple is where the fixed side is smaller than the moving side (log det > 0), orange where it is larger; the
  scale is symmetric about 0 and folds (det <= 0) are red.
"""

from __future__ import annotations

import base64
import html
import io
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from ..errors import InputError
from ..geometry import Grid
from ..image import Image

ORIENTATIONS = ("axial", "coronal", "sagittal")
LETTERS = (("R", "L"), ("A", "P"), ("I", "S"))
"""Per LPS axis the letters of its negative and positive end."""
FOLD = math.log(1e-6) + 1e-3
"""Logarithms up to here are on the floor of ``Transform.log_jacobian``: the determinant is (next to) 0 or negative."""
_LAYOUT = {"axial": (2, (0, 1), (1, 1)), "coronal": (1, (0, 1), (2, -1)), "sagittal": (0, (1, 1), (2, -1))}
"""Orientation -> world axis of the normal, (axis to the right, sign), (axis downwards, sign)."""


@dataclass(frozen=True)
class View:
    """How a slice of a grid is shown: numpy axes and flips, pixel size (row, column) mm, edge letters, unit vectors in space.

    ``right`` and ``down`` (dim,) are the world directions of a growing column and row.
    """

    title: str
    normal: int | None
    index: int
    order: tuple[int, int]
    flips: tuple[bool, bool]
    pixel: tuple[float, float]
    letters: tuple[str, str, str, str]
    right: np.ndarray
    down: np.ndarray

    def cut(self, values) -> np.ndarray:
        """(rows, columns) of an array (z, y, x) or (y, x), as shown."""
        values = np.asarray(values)
        flat = values if self.normal is None else np.take(values, self.index, self.normal)
        rows, columns = self.order
        flat = flat if rows < columns else flat.T
        return flat[:: -1 if self.flips[0] else 1, :: -1 if self.flips[1] else 1]

    def only(self, grid: Grid) -> tuple[Grid, "View"]:
        """The part of ``grid`` that is shown, and this view of that part: what is costly is computed there only."""
        if self.normal is None:
            return grid, self
        axis = 2 - self.normal
        lower, upper = np.zeros(3, int), np.array(grid.size)
        lower[axis], upper[axis] = self.index, self.index + 1
        return grid.crop(lower, upper), replace(self, index=0)


def view(grid: Grid, orientation: str = "axial", centre=None) -> View:
    """The slice of ``grid`` through ``centre`` (dim,) mm (default: the grid's centre) in an orientation of the patient.

    A 2D grid has one view, in the order of its voxels. InputError for an unknown orientation.
    """
    centre = grid.centre if centre is None else np.asarray(centre, float)
    if grid.dim == 2:
        return View("", None, 0, (0, 1), (False, False), tuple(grid.spacing[::-1]), ("",) * 4, grid.direction[:, 0], grid.direction[:, 1])
    if orientation not in _LAYOUT:
        raise InputError(f"the orientation '{orientation}' was asked for; expected one of {', '.join(ORIENTATIONS)}")
    world, voxel = linear_sum_assignment(-np.abs(grid.direction))
    axis_of = dict(zip(world.tolist(), voxel.tolist()))
    normal, across, downwards = _LAYOUT[orientation]
    index = int(np.clip(np.rint(grid.world_to_index(centre)[axis_of[normal]]), 0, grid.size[axis_of[normal]] - 1))
    parts = [_side(grid, axis_of[axis], axis, sign) for axis, sign in (downwards, across)]
    (row_axis, row_flip, row_size, top, bottom, down), (column_axis, column_flip, column_size, left, right, to_right) = parts
    return View(orientation, 2 - axis_of[normal], index, (row_axis, column_axis), (row_flip, column_flip), (row_size, column_size),
                (left, right, top, bottom), to_right, down)


def _side(grid, voxel, world, sign):
    """Of one shown axis: numpy axis, flip, pixel size, letters at its start and end, world direction as it grows."""
    flip = bool(grid.direction[world, voxel] * sign < 0)
    start, end = LETTERS[world] if sign > 0 else LETTERS[world][::-1]
    return 2 - voxel, flip, float(grid.spacing[voxel]), start, end, grid.direction[:, voxel] * (-1 if flip else 1)


def foreground_centre(image: Image) -> np.ndarray:
    """(dim,) mm: the centre of mass of the voxels above the mean intensity, a good place to cut."""
    values = image.data[0, 0].detach().cpu()
    inside = values > values.float().mean()
    index = torch.nonzero(inside).double().mean(0).numpy()[::-1] if bool(inside.any()) else (np.array(image.grid.size) - 1) / 2
    return image.grid.index_to_world(index)


def views_of(image: Image, centre=None) -> list[View]:
    """The three views of a volume, or the one of a 2D image, through ``centre`` (default: of its foreground)."""
    centre = foreground_centre(image) if centre is None else centre
    return [view(image.grid, o, centre) for o in (ORIENTATIONS if image.dim == 3 else ORIENTATIONS[:1])]


# ----------------------------------------------------------------------------------------------------------- pictures


def overlay_picture(fixed: Image, before: Image, after: Image, kind: str = "fused", centre=None) -> bytes:
    """PNG: moving over fixed, before (top) and after (bottom). ``before`` and ``after`` lie on the fixed grid; kind 'fused' or
    'checkerboard' (squares of both, the moving one in orange)."""
    mix = {"fused": _fused, "checkerboard": _checkerboard}.get(kind)
    if mix is None:
        raise InputError(f"an overlay of kind '{kind}' was asked for; expected 'fused' or 'checkerboard'")
    _same_grid(fixed, before, after)
    views, (f, b, a) = views_of(fixed, centre), (_grey(image) for image in (fixed, before, after))
    rows = [[(mix(v.cut(f), v.cut(m), v), {}) for v in views] for m in (b, a)]
    note = "aligned tissue is gray, fixed only blue, moving only orange" if kind == "fused" else "squares: fixed gray, moving orange"
    return _sheet(rows, views, ["before", "after"], note)


def difference_picture(fixed: Image, before: Image, after: Image, centre=None) -> bytes:
    """PNG: moving minus fixed, both scaled to their 1st to 99th percentile, before (top) and after (bottom)."""
    _same_grid(fixed, before, after)
    views, (f, b, a) = views_of(fixed, centre), (_grey(image) for image in (fixed, before, after))
    look = {"cmap": "RdBu_r", "vmin": -0.7, "vmax": 0.7}
    rows = [[(v.cut(m) - v.cut(f), look) for v in views] for m in (b, a)]
    return _sheet(rows, views, ["before", "after"], "moving minus fixed, share of the intensity range", bar=True)


def grid_picture(fixed: Image, transform, distance: float | None = None, centre=None) -> bytes:
    """PNG: the deformation of ``transform`` (fixed mm -> mm; usually without its linear part) as pulled-back lines
    ``distance`` mm apart (default: a 24th of the field of view) on the fixed slices."""
    views, grey = views_of(fixed, centre), _grey(fixed)
    distance = distance or max(float(fixed.grid.extent.max()) / 24, 2 * float(fixed.grid.spacing.max()))
    rows = [[(v.cut(grey), {"cmap": "gray", "vmin": 0, "vmax": 1.6}) for v in views]]

    def lines(axes, k):
        part, shown = views[k].only(fixed.grid)
        field = transform.field(part)[0].detach().cpu().numpy()
        for direction, colour in ((shown.right, "#ffb000"), (shown.down, "#35c9ff")):
            moved = shown.cut(_coordinate(part, field, direction))
            low, high = np.ceil(moved.min() / distance), np.floor(moved.max() / distance)
            if high >= low:
                axes.contour(moved, np.arange(low, high + 1) * distance, colors=colour, linewidths=0.8, linestyles="solid")

    note = f"a regular {distance:.3g} mm grid on the moving image, pulled back onto the fixed image"
    return _sheet(rows, views, [""], note, draw=lines)


def jacobian_picture(fixed: Image, log_jacobian: torch.Tensor, centre=None, limit: float | None = None) -> bytes:
    """PNG: the log of the Jacobian determinant (1, 1, *S), as ``Transform.log_jacobian`` gives it, on the fixed slices with a
    colour bar symmetric about 0; folds, which lie on its floor, are red. ``limit`` default: the 99.5th percentile of its
    magnitude where the fixed image shows anything and nothing folds.
    """
    logs = log_jacobian[0, 0].detach().cpu().numpy()
    folds = logs <= FOLD
    views, grey = views_of(fixed, centre), _grey(fixed)
    limit = limit or _magnitude(logs[::_thin(logs)], (grey > 0.1)[::_thin(logs)])
    rows = [[(np.ma.masked_where(v.cut(folds), v.cut(logs)), {"cmap": "PuOr", "vmin": -limit, "vmax": limit}) for v in views]]

    def outline(axes, k):
        flat = views[k].cut(grey)
        if flat.max() > 0.25 > flat.min():
            axes.contour(flat, [0.25], colors="black", linewidths=0.5)

    note = f"log of the Jacobian determinant (0: volume kept); folds are red: {100 * folds.mean():.3g} % of the voxels"
    return _sheet(rows, views, [""], note, bar=True, draw=outline, bad="red")


def _thin(values: np.ndarray) -> int:
    return max(1, values.shape[0] // 64)


def _magnitude(logs: np.ndarray, content: np.ndarray) -> float:
    """The 99.5th percentile of the magnitude of ``logs`` in the content where nothing folds, at least 0.05."""
    shown = logs[content & (logs > FOLD)]
    return max(float(np.percentile(np.abs(shown), 99.5)), 0.05) if shown.size else 0.05


def history_picture(history: list[dict]) -> bytes | None:
    """PNG: the logged figure of merit of a run over its steps, one line a part of the run (its ``stage``, ``level`` or ``spacing``
    in mm), each part's own figure beside the others; None where no loss, cost or similarity was logged."""
    names = ("loss", "cost", "total", "feature_cost", "similarity")
    named = [(next((n for n in names if n in entry), None), entry) for entry in history]
    shown = list(dict.fromkeys(name for name, entry in named if name))
    if not shown:
        return None
    figure = _figure(5.0 * len(shown) + 1.5, 3.2)
    for k, name in enumerate(shown):
        axes = figure.add_axes(((k + 0.14) / len(shown), 0.16, 0.83 / len(shown), 0.8))
        _lines(axes, [entry for n, entry in named if n == name and math.isfinite(float(entry[n]))], name)
    return _png(figure)


def _lines(axes, entries, name):
    parts = list(dict.fromkeys(_part_of(entry) for entry in entries))
    for part in parts:
        points = [(n, float(e[name])) for n, e in enumerate(entries) if _part_of(e) == part]
        axes.plot(*zip(*points), label=part, marker="." if len(points) < 5 else None)
    axes.set_xlabel("logged step")
    axes.set_ylabel(f"{name} (lower is better)")
    axes.grid(alpha=0.3)
    if any(parts):
        axes.legend(fontsize=8, frameon=False)


def _part_of(entry: dict) -> str:
    words = [str(entry[key]) for key in ("stage", "level") if key in entry]
    return ", ".join(words + ([f"{entry['spacing']:.3g} mm"] if "spacing" in entry else []))


def _same_grid(fixed, *others):
    for image in others:
        if not image.grid.same_as(fixed.grid):
            raise InputError(f"{image.name} lies on {image.grid}, {fixed.name} on {fixed.grid}; resample it onto the fixed grid first")


def _grey(image: Image) -> np.ndarray:
    """The first channel, scaled so that its 1st and 99th percentile (of the values that are not the background) are 0 and 1."""
    values = image.data[0, 0].detach().cpu().float().numpy()
    sample = values.ravel()[:: max(1, values.size // 200_000)]
    content = sample[sample != sample.min()]
    if content.size == 0:
        return np.zeros_like(values)
    low, high = min(float(np.percentile(content, 1)), float(np.percentile(sample, 50))), float(np.percentile(content, 99))
    return ((values - low) / max(high - low, 1e-12)).clip(0, 1)


def _fused(fixed, moving, _):
    return (fixed[..., None] * (0.0, 0.5, 1.0) + moving[..., None] * (1.0, 0.5, 0.0)).clip(0, 1)


def _checkerboard(fixed, moving, shown: View, squares: int = 8):
    size = [max(n * p for n, p in zip(fixed.shape, shown.pixel)) / squares / p for p in shown.pixel]
    odd = (np.arange(fixed.shape[0])[:, None] // size[0] + np.arange(fixed.shape[1])[None] // size[1]) % 2 == 1
    return np.where(odd[..., None], moving[..., None] * (1.0, 0.72, 0.35), fixed[..., None] * (1.0, 1.0, 1.0)).clip(0, 1)


def _coordinate(grid: Grid, field, direction) -> np.ndarray:
    """(*S) mm: the coordinate along a world ``direction`` of x + u(x) at every voxel x."""
    moved = np.zeros(grid.shape)
    for component in range(grid.dim):
        line = np.arange(grid.size[component]) * (grid.matrix[:, component] @ direction)
        shape = [1] * grid.dim
        shape[grid.dim - 1 - component] = -1
        moved += line.reshape(shape)
    return moved + grid.origin @ direction + np.tensordot(direction, field, 1)


def _figure(width: float, height: float):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def _sheet(rows, views, names, note, bar=False, draw=None, bad=None) -> bytes:
    """A table of slices: one row a name, one column a view, all at one scale; ``draw(axes, column)`` adds lines, ``note`` is
    the caption. Places are given in inches: matplotlib's own layout would draw everything several times."""
    import matplotlib

    sizes = [(rows[0][k][0].shape[1] * v.pixel[1], rows[0][k][0].shape[0] * v.pixel[0]) for k, v in enumerate(views)]
    scale, gap, foot = 3.2 / max(h for _, h in sizes), 0.06, 0.36
    left, right = 0.32 if any(names) else gap, 0.85 if bar else gap
    width = max(left + right + sum(w * scale + gap for w, _ in sizes), 5.5)
    height = foot + len(rows) * (3.2 + gap) + gap
    figure = _figure(width, height)
    for r, row in enumerate(rows):
        x = left
        for k, (values, look) in enumerate(row):
            if bad:
                look = {**look, "cmap": matplotlib.colormaps[look["cmap"]].with_extremes(bad=bad)}
            w, h = sizes[k][0] * scale, sizes[k][1] * scale
            y = height - (r + 1) * (3.2 + gap) + (3.2 - h) / 2
            axes = figure.add_axes((x / width, y / height, w / width, h / height))
            shown = axes.imshow(values, aspect="auto", interpolation="nearest", **look)
            if draw:
                draw(axes, k)
            _annotate(axes, views[k], names[r] if k == 0 else "", look)
            x += w + gap
    if bar:
        figure.colorbar(shown, cax=figure.add_axes(((x + 0.05) / width, (foot + 0.3) / height, 0.13 / width, 1 - (foot + 0.6) / height)))
    figure.text(0.5, 0.1 / height, note, ha="center", va="bottom", fontsize=9)
    return _png(figure)


def _annotate(axes, shown: View, name: str, look):
    """Edge letters with a halo, so that they are read on any colour, the row's name and no ticks."""
    from matplotlib.patheffects import withStroke

    ink, halo = ("white", "black") if look.get("cmap") in (None, "gray") else ("black", "white")
    style = {"transform": axes.transAxes, "color": ink, "fontsize": 10, "fontweight": "bold",
             "path_effects": [withStroke(linewidth=2.5, foreground=halo)]}
    places = ((0.02, 0.5, "left", "center"), (0.98, 0.5, "right", "center"), (0.5, 0.98, "center", "top"), (0.5, 0.02, "center", "bottom"))
    for letter, (x, y, ha, va) in zip(shown.letters, places):
        axes.text(x, y, letter, ha=ha, va=va, **style)
    if name:
        axes.set_ylabel(name, fontsize=11)
    axes.set_xticks([])
    axes.set_yticks([])


def _png(figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


# -------------------------------------------------------------------------------------------------------------- report


def result_pictures(result, centre=None) -> dict[str, bytes]:
    """Caption -> PNG of a Result of two images: overlays, checkerboard, differences, deformation grid, log-Jacobian, loss."""
    from ..transforms import Composite

    fixed, transform = result.problem.fixed, result.transform
    before = result.problem.moving.at(fixed.grid)
    centre = foreground_centre(fixed) if centre is None else centre
    bent = Composite.of(result.affine.inverse(), transform)
    out = {"Overlay": overlay_picture(fixed, before, result.warped, "fused", centre),
           "Checkerboard": overlay_picture(fixed, before, result.warped, "checkerboard", centre),
           "Difference": difference_picture(fixed, before, result.warped, centre),
           "Deformation grid, without the linear part": grid_picture(fixed, bent, None, centre),
           "Log-Jacobian": jacobian_picture(fixed, result.log_jacobian, centre)}
    curve = history_picture(result.history)
    return out if curve is None else {**out, "Loss": curve}


@dataclass(frozen=True)
class Table:
    """A table of the report: ``header`` names columns with their units, cells are texts or numbers."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple, ...]

    def text(self) -> str:
        """The table for a terminal."""
        cells = [self.header] + [tuple(_cell(c) for c in row) for row in self.rows]
        widths = [max(len(r[k]) for r in cells) for k in range(len(self.header))]
        lines = ["  ".join(c.ljust(w) if k == 0 else c.rjust(w) for k, (c, w) in enumerate(zip(r, widths))).rstrip() for r in cells]
        return "\n".join([self.title, lines[0], "-" * len(lines[0]), *lines[1:]])

    def html(self) -> str:
        """The table as HTML."""
        head = "".join(f"<th>{html.escape(h)}</th>" for h in self.header)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(_cell(c))}</td>" for c in row) + "</tr>" for row in self.rows)
        return f"<h2>{html.escape(self.title)}</h2><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def provenance_table(provenance: dict) -> Table:
    """What was run, nested entries spread out as ``outer.inner``."""
    rows: list[tuple] = []
    for key, value in provenance.items():
        if isinstance(value, dict):
            rows += [(f"{key}.{inner}", _cell(v)) for inner, v in value.items()]
        else:
            rows.append((key, _cell(value)))
    return Table("How it was made", ("entry", "value"), tuple(rows))


def report_html(title: str, summary: str, tables: list[Table], pictures: dict[str, bytes]) -> str:
    """One self-contained HTML page: tables first, then the pictures (PNG bytes by caption) inside the page."""
    shown = "".join(f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
                    f"<figcaption>{html.escape(caption)}</figcaption></figure>" for caption, png in pictures.items())
    return (f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>"
            f"<p>{html.escape(summary)}</p>{tables[0].html() if tables else ''}{shown}{''.join(t.html() for t in tables[1:])}"
            "<p>Not for clinical use.</p></body></html>")


_STYLE = ("body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
          "table{border-collapse:collapse;margin:.5rem 0 1.5rem}th,td{padding:.25rem .8rem;border-bottom:1px solid #ddd;text-align:right}"
          "th:first-child,td:first-child{text-align:left}th{border-bottom:2px solid #888}figure{margin:1.5rem 0}img{max-width:100%}"
          "figcaption{color:#555}h2{margin-top:2rem;font-size:1.2rem}")


def _cell(value) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)):
        return str(value)
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    return "-" if not math.isfinite(value) else f"{value:.4g}"
