"""What a run leaves behind while it is watched: the chart of its figures, and its iterations as a sequence to scrub."""

from __future__ import annotations

import math

import numpy as np

from DeepRegistrationLib.exchange import Lattice, finish
from DeepRegistrationLib.geometry import Grid

from . import mrml, views
from .colors import look_like

REDRAW = 0.25
"""Seconds between two drawings of the chart."""
LONGEST_TABLE, MOST_ITERATIONS, NODES_KEPT = 2000, 64, 32
"""Rows of the table and recorded iterations, thinned by half when they become more; nodes of a kept lattice along its longest edge."""
FIRST_COLUMN = "iteration"
PLACES = ("step", "spacing")
"""Figures that say where a run was, not how good: columns of the table without a curve, beside which the cost would be a flat line."""
COLORS = ((0.13, 0.40, 0.67), (0.84, 0.37, 0.0), (0.0, 0.62, 0.45), (0.80, 0.47, 0.65), (0.34, 0.71, 0.91), (0.90, 0.62, 0.0), (0.5, 0.5, 0.5))
"""Colours of the curves that people with colour blindness can tell apart (Okabe and Ito)."""


class LossChart:
    """A table, a chart and one plot series a figure (``nodes``: 'table', 'chart'), grown by ``add`` and redrawn now and then.

    clock: a function of seconds; where it stands still nothing is redrawn until ``draw``. Rows are thinned by half when there are more than
    ``LONGEST_TABLE``; a figure that a row lacks is not a number there.
    """

    def __init__(self, scene, name: str, clock):
        self.scene, self.name, self._clock = scene, name, clock
        self._rows: list[dict] = []
        self._names: list[str] = []
        self._count, self._stride, self._next = 0, 1, -math.inf
        table = scene.AddNewNodeByClass("vtkMRMLTableNode", f"{name} figures")
        chart = scene.AddNewNodeByClass("vtkMRMLPlotChartNode", f"{name} chart")
        chart.SetTitle(name)
        chart.SetXAxisTitle(FIRST_COLUMN)
        chart.SetYAxisTitle("cost")
        self.nodes, self.series = {"table": table, "chart": chart}, {}

    def add(self, figures: dict) -> bool:
        """One iteration; True where the chart was redrawn."""
        numbers = {str(k): float(v) for k, v in figures.items() if isinstance(v, (int, float)) and k != FIRST_COLUMN}
        self._count += 1
        if numbers and (self._count - 1) % self._stride == 0:
            self._rows.append({FIRST_COLUMN: float(self._count), **numbers})
            self._names += [k for k in numbers if k not in self._names]
        if len(self._rows) > LONGEST_TABLE:
            self._rows, self._stride = self._rows[::2], 2 * self._stride
        if not self._clock() > self._next:
            return False
        self._next = self._clock() + REDRAW
        return self.draw()

    def draw(self) -> bool:
        """Write all rows into the table and let the chart follow; False where the nodes are gone."""
        table, chart = self.nodes["table"], self.nodes["chart"]
        if table.GetScene() is not self.scene or chart.GetScene() is not self.scene:
            return False
        import vtk
        from vtk.util.numpy_support import numpy_to_vtk

        data = vtk.vtkTable()
        for name in (FIRST_COLUMN, *self._names):
            column = numpy_to_vtk(np.array([row.get(name, math.nan) for row in self._rows], float), deep=True)
            column.SetName(name)
            data.AddColumn(column)
        table.SetAndObserveTable(data)
        for name in self._names:
            if name not in self.series and name not in PLACES:
                self._add_series(name)
        return True

    def _add_series(self, name: str) -> None:
        series = self.scene.AddNewNodeByClass("vtkMRMLPlotSeriesNode", name)
        series.SetAndObserveTableNodeID(self.nodes["table"].GetID())
        series.SetXColumnName(FIRST_COLUMN)
        series.SetYColumnName(name)
        series.SetPlotType(series.PlotTypeScatter)
        series.SetMarkerStyle(series.MarkerStyleNone)
        series.SetLineWidth(2)
        series.SetColor(*COLORS[len(self.series) % len(COLORS)])
        self.series[name] = series
        self.nodes["chart"].AddAndObservePlotSeriesNodeID(series.GetID())


class Iterations:
    """Thinned previews in two sequence nodes: every one at first, every second of them when there are ``MOST_ITERATIONS``."""

    def __init__(self, scene, name: str):
        self.scene, self.name = scene, name
        self._kept: list[tuple[int, np.ndarray, object, np.ndarray]] = []
        self._seen, self._stride = 0, 1

    @property
    def count(self) -> int:
        """How many iterations are kept."""
        return len(self._kept)

    def add(self, preview: dict, grid) -> None:
        """Keep a preview, on a lattice with every n-th of its nodes."""
        self._seen += 1
        if (self._seen - 1) % self._stride:
            return
        step = int(preview.get("step", self._seen))
        linear, vectors = preview.get("linear"), preview.get("vectors")
        if vectors is None:
            vectors = np.zeros((*grid.shape, 3), np.float32)
        every = max(1, math.ceil(max(grid.size) / NODES_KEPT))
        kept = np.array(vectors[::every, ::every, ::every], np.float32)
        self._kept.append((step, np.eye(4) if linear is None else np.array(linear, float), thinned(grid, every), kept))
        if len(self._kept) > MOST_ITERATIONS:
            self._kept, self._stride = self._kept[::2], 2 * self._stride

    def browser(self, linear, deformation) -> dict:
        """Make the sequences and a browser whose proxies are the nodes ``linear`` and ``deformation``, which are saved with the scene
        from now on; returns roles -> nodes. The last iteration is shown first. The application's Sequences logic moves them."""
        import slicer

        for name in ("vtkMRMLSequenceNode", "vtkMRMLSequenceBrowserNode"):
            views.introduce(self.scene, name)
        made = {role: self._sequence(role, node) for role, node in (("deformation", deformation), ("linear", linear))}
        browser = self.scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", f"{self.name} iterations")
        with slicer.util.NodeModify(browser):  # at the end of it the application looks for proxies, and finds ours
            browser.SetAndObserveMasterSequenceNodeID(made["deformation"].GetID())
            browser.AddSynchronizedSequenceNode(made["linear"])
            for role, node in (("deformation", deformation), ("linear", linear)):
                browser.AddProxyNode(node, made[role], False)
                browser.SetOverwriteProxyName(made[role], False)
                node.SetSaveWithScene(True)
            browser.SetSelectedItemNumber(self.count - 1)
        return {"browser": browser, "linear sequence": made["linear"], "deformation sequence": made["deformation"]}

    def _sequence(self, role: str, node):
        import slicer

        sequence = self.scene.AddNewNodeByClass("vtkMRMLSequenceNode", f"{self.name} {role} iterations")
        sequence.SetIndexName(FIRST_COLUMN)
        sequence.SetIndexUnit("")
        sequence.SetIndexType(sequence.NumericIndex)
        for step, matrix, grid, vectors in self._distinct():
            entry = slicer.vtkMRMLTransformNode()
            entry.SetName(node.GetName())
            if role == "linear":
                mrml.update_matrix(entry, matrix)
            else:
                entry.SetAndObserveTransformFromParent(finish(mrml.grid_steps(Lattice(vectors, grid))))
            sequence.SetDataNodeAtValue(entry, str(step))
        return sequence

    def _distinct(self):
        """The kept iterations with rising numbers: a number that does not rise (steps counted anew) is continued."""
        last = -1
        for step, *rest in self._kept:
            last = step if step > last else last + 1
            yield last, *rest


def thinned(grid, every: int):
    """The grid of ``array[::every, ::every, ::every]``."""
    shape = tuple(-(-n // every) for n in grid.shape)
    affine = grid.affine.copy()
    affine[:3, :3] = affine[:3, :3] * np.where(np.array(grid.size) > 1, every, 1)
    return Grid(shape, affine)


def twin_of(volume, name: str):
    """A second volume node with the voxels of ``volume`` (shared, not copied), its place and its looks."""
    twin = volume.GetScene().AddNewNodeByClass(volume.GetClassName(), name)
    twin.SetAndObserveImageData(volume.GetImageData())
    twin.CopyOrientation(volume)
    twin.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    look_like(twin, volume)
    return twin
