"""Live view of a running registration: the moving image deforms over the fixed one, the grid and the log-Jacobian follow.

A preview is the current map T(x) = A (x + u(x)): u (mm) on a coarse lattice, written in place into a transform node, A a matrix
in a second one inside it. The moving volume is under the second. Only ``Modified`` on the displacement grid tells the views
(setting its array or the grid does not), and every refresh makes them draw, so refreshes come at most ten times a second and so
seldom that they take less than a tenth of the time. The views are drawn one a tick, so that none of the ticks is long.

Nothing that the user had is lost: the parent of the moving volume, the layers and the places of the slices are remembered
and given back, and the nodes of the view are not saved with the scene.
"""

from __future__ import annotations

import time

import numpy as np

from DeepRegistrationLib.exchange import Lattice, Volume, finish
from DeepRegistrationLib.geometry import Grid

from . import mrml, outputs, quality_maps, views
from .live_records import Iterations, LossChart, twin_of
from .placement import put_under, take_out
from .records import LIVE

NODES_PER_EDGE = 48
"""Nodes of the lattice along the longest edge of the fixed volume."""
GRID_CELLS = 16
"""Cells of the drawn grid along that edge (see ``quality_maps.drawn_edge``)."""
SHORTEST_INTERVAL, LARGEST_SHARE = 0.1, 0.05
"""Seconds between two refreshes, and the share of the time that refreshes may take."""


def lattice_of_previews(fixed, spacing: float | None = None) -> Grid:
    """The lattice on which previews are asked for: the field of view of the volume node ``fixed`` at about ``spacing`` mm
    (default: the longest edge divided by ``NODES_PER_EDGE``), never finer than its voxels; one slice stays one slice."""
    grid = mrml.grid_of(fixed)
    spacing = float(grid.extent.max()) / NODES_PER_EDGE if spacing is None else float(spacing)
    return grid.resample(np.maximum(grid.spacing, spacing))


def preview_request(lattice: Grid) -> dict:
    """What the worker is asked for: {"interval_s", "lattice": {"shape": [z, y, x], "affine": 4 x 4 LPS}}."""
    return {"interval_s": SHORTEST_INTERVAL, "lattice": {"shape": list(lattice.shape), "affine": lattice.affine.tolist()}}


class LiveView:
    """Shows a running registration in the scene: ``with LiveView(fixed, moving) as live: live.show(preview); live.log(figures)``.

    The moving volume is put under new nodes 'linear' and 'deformation' (attribute ``nodes``; also 'log_jacobian', 'table' and
    'chart', and with ``record`` 'browser' after ``close``); the slice views show it over the fixed volume. ``close`` undoes it.

    fixed, moving: volume nodes; lattice_spacing mm, see ``lattice_of_previews``; record: keep thinned iterations to scrub;
    arrange False leaves the slice views as they are; clock: a function of seconds.
    InputError where a volume cannot be used (no voxels, a non-linear parent transform, a slice against a volume).
    """

    def __init__(self, fixed, moving, name: str = "Live", lattice_spacing: float | None = None, record: bool = False, *,
                 arrange: bool = True, clock=time.monotonic):
        outputs.planes_of(fixed, moving)
        mrml.grid_of(moving)
        self.fixed, self.moving, self.scene, self.name = fixed, moving, fixed.GetScene(), name
        self.lattice, self._clock = lattice_of_previews(fixed, lattice_spacing), clock
        self._state, self._parent, self._arranged = views.ViewState(self.scene), moving.GetParentTransformNode(), arrange
        self._waiting, self._next, self._closed, self._longest = None, 0.0, False, 0.0
        self._drawings: list = []
        self._slices_moved = False
        self.cost, self.refreshes = 0.0, 0
        self.nodes: dict = {}
        self._add_transforms()
        self._add_log_jacobian()
        self._chart = LossChart(self.scene, name, clock)
        self.nodes.update(self._chart.nodes)
        self._iterations = Iterations(self.scene, name) if record else None
        self._under = put_under(moving, self.nodes)
        if arrange:
            self._arrange()

    def __enter__(self) -> "LiveView":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------------------- making nodes

    def _add_transforms(self) -> None:
        """The nodes 'linear' and 'deformation' of the identity, the first under the second (affine inner, deformation outer)."""
        for role in ("linear", "deformation"):
            node = self.scene.AddNewNodeByClass("vtkMRMLTransformNode", f"{self.name} {role}")
            node.SetSaveWithScene(False)
            node.SetAttribute(LIVE, role)
            for reference, volume in ((node.GetFixedNodeReferenceRole(), self.fixed), (node.GetMovingNodeReferenceRole(), self.moving)):
                node.SetNodeReferenceID(reference, volume.GetID())
            self.nodes[role] = node
        self._set_lattice(self.lattice)
        self.nodes["linear"].SetAndObserveTransformNodeID(self.nodes["deformation"].GetID())

    def _set_lattice(self, grid: Grid) -> None:
        """A new displacement grid of zeros on ``grid`` and a ring of zeros around it: the scene repeats the border vector outside of
        a lattice, the library and files have the identity there, and zeros make both the same."""
        self.lattice = grid
        outer = grid.pad([1 if n > 1 else 0 for n in grid.size])
        zeros = Lattice(np.zeros((*outer.shape, 3), np.float32), outer)
        self.nodes["deformation"].SetAndObserveTransformFromParent(finish(mrml.grid_steps(zeros)))

    def _add_log_jacobian(self) -> None:
        node = self.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", f"{self.name} log-Jacobian")
        node.SetSaveWithScene(False)
        self.nodes["log_jacobian"] = node
        self._set_map(np.zeros(self.lattice.shape, np.float32))
        node.CreateDefaultDisplayNodes()
        quality_maps.show_log_jacobian(node, legend=False, limit=0.5)

    def _set_map(self, values: np.ndarray) -> None:
        """Write the log-Jacobian (z, y, x): in place where the lattice is the one that the volume has."""
        node = self.nodes["log_jacobian"]
        if node.GetImageData() is None or mrml.array_of(node).shape != values.shape:
            data = mrml.image_data(np.asarray(values, np.float32)[..., None])
            mrml.node_of_vtk_image(self.scene, data, Volume(values, self.lattice), display=False, node=node)
            return
        mrml.array_of(node)[...] = values
        node.GetImageData().GetPointData().GetScalars().Modified()
        node.GetImageData().Modified()

    def _arrange(self) -> None:
        """Moving over fixed with the grid; ``tick`` draws it for the first time, which costs several times the later ones."""
        self._slices_moved = views.show_layers(self.fixed, self.moving, opacity=0.5, rotate=views.is_slanted(mrml.grid_of(self.fixed)))
        self._stretch(float(mrml.grid_of(self.fixed).extent.max()) / 40)
        self._drawings = views.drawings(self.scene)

    def _stretch(self, longest: float) -> None:
        """Show the grid with colours up to ``longest`` mm. Its lines have few points: the scene moves them anew, one by one in every
        view, at each refresh, which takes longer than the image itself."""
        self._longest = longest
        quality_maps.show_deformation(self.nodes["deformation"], self.fixed, "grid", longest=longest, cells=GRID_CELLS, fineness=2)

    # ----------------------------------------------------------------------------------------------------------- the run

    @property
    def alive(self) -> bool:
        """False after ``close``, when a node was deleted or when the scene is closing: ``show`` and ``log`` then do nothing."""
        if self._closed or self.scene.IsClosing():
            return False
        return all(views.is_in(node, self.scene) for node in (self.fixed, self.moving, self.nodes["linear"], self.nodes["deformation"]))

    def show(self, preview: dict) -> bool:
        """Take a preview and show it if its time has come; otherwise it waits for ``tick``, and the next one replaces it.

        preview: "vectors" (z, y, x, 3) LPS mm on "grid" (default: the requested lattice) or None for none, "linear" (4, 4) LPS or
        None, "log_jacobian" (z, y, x) on that grid (made here where it is absent), "step" a number for the recorded iterations.
        """
        if not self.alive:
            return False
        self.record(preview)
        self._waiting = preview
        return self.tick()

    def record(self, preview: dict) -> None:
        """Keep a preview for ``scrub`` without showing it; nothing where ``record`` was not asked for."""
        if self._iterations is not None and self.alive:
            self._iterations.add(preview, preview.get("grid") or self.lattice)

    def tick(self) -> bool:
        """For the panel's timer: draws the next view, or shows the latest preview that came too early as soon as its time has come; True where
        it did."""
        if not self.alive:
            return False
        if self._drawings:
            self._drawings.pop(0)()
            return False
        began = self._clock()
        if self._waiting is None or began < self._next:
            return False
        preview, self._waiting = self._waiting, None
        self._write(preview)
        self._drawings = views.drawings(self.scene)
        written, count = self._clock(), len(self._drawings)
        if count:
            self._drawings.pop(0)()  # the only one that the application cannot have drawn by itself in between, so this one is timed
        cost = written - began + count * (self._clock() - written)
        self.cost = cost if self.refreshes == 0 else 0.5 * (self.cost + cost)
        self.refreshes += 1
        self._next = began + max(SHORTEST_INTERVAL, self.cost / LARGEST_SHARE, cost / LARGEST_SHARE)
        return True

    def _write(self, preview: dict) -> None:
        """Matrix, lattice and map of a preview into the nodes; everything under them hears of it once."""
        import slicer

        vectors, linear = preview.get("vectors"), preview.get("linear")
        grid = preview.get("grid") or self.lattice
        if not grid.same_as(self.lattice):
            self._set_lattice(grid)
        if vectors is None:
            vectors = np.zeros((*self.lattice.shape, 3), np.float32)
        with slicer.util.NodeModify(self.nodes["linear"]):
            mrml.update_matrix(self.nodes["linear"], np.eye(4) if linear is None else linear)
            mrml.update_vectors(self.nodes["deformation"], vectors)
        if views.is_in(self.nodes["log_jacobian"], self.scene):
            known = preview.get("log_jacobian")
            self._set_map(quality_maps.log_jacobian(vectors, self.lattice, linear) if known is None else known)
        longest = float(np.sqrt((np.asarray(vectors, np.float32) ** 2).sum(-1).max()))
        if longest > 1.3 * self._longest > 0:
            self._stretch(1.5 * longest)

    def log(self, figures: dict) -> bool:
        """Add the named figures of one iteration to the loss chart; True where the chart was redrawn (at most 4 times a second)."""
        return not self._closed and not self.scene.IsClosing() and self._chart.add(figures)

    # ----------------------------------------------------------------------------------------------------------- the end

    def scrub(self):
        """After ``close`` of a view that recorded: a volume node under the recorded iterations, which the Sequence browser moves; it shares
        the voxels of the moving volume, which stays where it is. None where nothing was recorded or a node is gone."""
        if "browser" not in self.nodes or not all(views.is_in(node, self.scene) for node in (self.moving, self.nodes["linear"])):
            return None
        twin = twin_of(self.moving, f"{self.name} iterations volume")
        put_under(twin, self.nodes)
        return twin

    def close(self, restore: bool = True) -> None:
        """End the view: parent of the moving volume, layers and slices as before (unless ``restore`` is False: then the moving volume
        stays under the last preview), helper nodes removed. The chart with its table stays, and the transforms where iterations
        were recorded. May be called more than once, after errors, with deleted nodes and in a scene that is closing."""
        if self._closed:
            return
        self._closed, self._waiting = True, None
        if self.scene.IsClosing() or not any(views.is_in(node, self.scene) for node in self.nodes.values()):
            return
        self._chart.draw()
        if self._iterations is not None and self._iterations.count and views.is_in(self.nodes["deformation"], self.scene):
            self.nodes.update(self._iterations.browser(self.nodes["linear"], self.nodes["deformation"]))
        if restore:
            self._restore()
        self._remove("log_jacobian")

    def forget(self) -> None:
        """After ``close``: take the recorded iterations out of the scene again, because the run gave no result that they belong to."""
        for role in ("browser", "linear sequence", "deformation sequence", "linear", "deformation"):
            if role in self.nodes and not self.scene.IsClosing():
                self._remove(role)

    def _restore(self) -> None:
        """Give back what the user had; a parent that the user has chosen during the run is respected."""
        if views.is_in(self.moving, self.scene) and self.moving.GetParentTransformNode() in (None, self._under):
            take_out(self.moving, self._parent if views.is_in(self._parent, self.scene) else None)
        if self._arranged:
            self._state.restore(slices=self._slices_moved)
        if self._under is not self.nodes["linear"] and views.is_in(self._under, self.scene):
            self.scene.RemoveNode(self._under)
        if "browser" in self.nodes:
            quality_maps.hide_deformation(self.nodes["deformation"])
        else:
            self._remove("linear")
            self._remove("deformation")

    def _remove(self, role: str) -> None:
        node = self.nodes.pop(role)
        if views.is_in(node, self.scene):
            views.remove(node)
