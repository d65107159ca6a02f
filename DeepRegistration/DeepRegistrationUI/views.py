"""What the slice views show: layers, opacity, layout, and the way back to what the user had before.

Everything works on the slice composite nodes of a scene, so it works without an application as well; the layout, the
orientation to a volume's plane and immediate drawing need one and are left out where there is none.

A view shows foreground over background. *Blend* is a foreground opacity between 0 and 1, *flicker* switches it between 0 and 1.
"""

from __future__ import annotations

from contextlib import contextmanager

COMPOSITE, SLICE = "vtkMRMLSliceCompositeNode", "vtkMRMLSliceNode"
COMPARE_LAYOUT = 58371
"""Number of this extension's two-row layout among the layouts of the application; any number that nobody else uses."""
FIRST_ROW, SECOND_ROW = ("Red", "Yellow", "Green"), ("DeepRegistration4", "DeepRegistration5", "DeepRegistration6")
ORIENTATIONS = ("Axial", "Sagittal", "Coronal")


def nodes_of(scene, kind: str) -> list:
    """All nodes of a class in a scene."""
    found = scene.GetNodesByClass(kind)
    found.UnRegister(None)
    return [found.GetItemAsObject(n) for n in range(found.GetNumberOfItems())]


def composites(scene) -> list:
    """The slice composite nodes of a scene: one a slice view."""
    return nodes_of(scene, COMPOSITE)


def layout_manager(scene):
    """The application's layout manager where there is one and it shows ``scene``, else None."""
    import slicer

    manager = getattr(getattr(slicer, "app", None), "layoutManager", lambda: None)()
    return manager if manager is not None and getattr(slicer, "mrmlScene", None) is scene else None


def slice_logics(scene) -> list:
    """The slice logics of the application's views of ``scene``; empty where there is no application."""
    import slicer

    logic = getattr(getattr(slicer, "app", None), "applicationLogic", lambda: None)()
    found = logic.GetSliceLogics() if logic is not None and logic.GetMRMLScene() is scene else None
    return [] if found is None else [found.GetItemAsObject(n) for n in range(found.GetNumberOfItems())]


# ------------------------------------------------------------------------------------------------------ remember and restore

LAYERS = ("BackgroundVolumeID", "ForegroundVolumeID", "LabelVolumeID")
FIGURES = ("ForegroundOpacity", "LabelOpacity", "Compositing", "ClipToBackgroundVolume")
LINKS = ("LinkedControl", "HotLinkedControl")


class ViewState:
    """What all slice views of ``scene`` show now: volumes, opacities, blending, linking, the orientation and place of the slices,
    and the layout; ``restore`` brings it back as often as it is called.

    A volume that has been deleted meanwhile leaves its layer empty; a view or a scene that is gone is passed over. Nodes are
    remembered themselves, not by their IDs: a new scene gives the same IDs to other nodes.
    """

    def __init__(self, scene):
        self.scene = scene
        self._layers = [(node, {name: getattr(node, f"Get{name}")() for name in (*FIGURES, *LINKS)},
                         {name: _node(scene, getattr(node, f"Get{name}")()) for name in LAYERS}) for node in composites(scene)]
        self._slices = [(node, _placement(node)) for node in nodes_of(scene, SLICE)]
        node = _layout_node(scene)
        self._layout = None if node is None else node.GetViewArrangement()

    def restore(self, layers: bool = True, slices: bool = False, layout: bool = False) -> None:
        """Bring back what the views showed: their ``layers``, the orientation and offset of their ``slices``, the ``layout``."""
        if self.scene.IsClosing():
            return
        if layout and self._layout is not None and _layout_node(self.scene) is not None:
            _layout_node(self.scene).SetViewArrangement(self._layout)
        here = [entry for entry in self._layers if layers and is_in(entry[0], self.scene)]
        with unlinked([node for node, _, _ in here]):
            for node, figures, volumes in here:
                for name, volume in volumes.items():
                    getattr(node, f"Set{name}")(volume.GetID() if is_in(volume, self.scene) else None)
                for name in FIGURES:
                    getattr(node, f"Set{name}")(figures[name])
        for node, figures, _ in here:
            for name in LINKS:
                getattr(node, f"Set{name}")(figures[name])
        for node, placement in self._slices if slices else ():
            if is_in(node, self.scene):
                _place(node, placement)


def is_in(node, scene) -> bool:
    """True where ``node`` is a node of ``scene`` now: neither None, nor deleted, nor of a scene that was closed."""
    return node is not None and node.GetScene() is scene and scene.GetNodeByID(node.GetID() or "") is node


def remove(node) -> None:
    """Remove a node from its scene, with its display and storage nodes and the colours that a display has made for itself."""
    scene = node.GetScene()
    rest = [node.GetNthDisplayNode(n) for n in range(node.GetNumberOfDisplayNodes())] if node.IsA("vtkMRMLDisplayableNode") else []
    rest += [display.GetColorNode() for display in rest if display is not None and display.IsA("vtkMRMLTransformDisplayNode")]
    rest += [node.GetStorageNode()] if node.IsA("vtkMRMLStorableNode") else []
    scene.RemoveNode(node)
    for each in rest:
        if is_in(each, scene):
            scene.RemoveNode(each)


def introduce(scene, name: str) -> None:
    """Make a node class known to a scene where no module has done so: in scenes of scripts, outside of the application."""
    import slicer

    classes = range(scene.GetNumberOfRegisteredNodeClasses())
    if all(not scene.GetNthRegisteredNodeClass(n).IsA(name) for n in classes):
        scene.RegisterNodeClass(getattr(slicer, name)())


def _node(scene, identifier):
    return scene.GetNodeByID(identifier) if identifier else None


def _placement(node):
    import vtk

    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(node.GetSliceToRAS())
    return matrix, tuple(node.GetFieldOfView()), tuple(node.GetXYZOrigin())


def _place(node, placement):
    matrix, field_of_view, origin = placement
    node.GetSliceToRAS().DeepCopy(matrix)
    node.SetFieldOfView(*field_of_view)
    node.SetXYZOrigin(*origin)
    node.UpdateMatrices()


def _layout_node(scene):
    found = nodes_of(scene, "vtkMRMLLayoutNode")
    return found[0] if found else None


@contextmanager
def unlinked(nodes):
    """Linked views copy every change to each other; while several are set one by one their links are open."""
    links = [(node, node.GetLinkedControl(), node.GetHotLinkedControl()) for node in nodes]
    for node, _, _ in links:
        node.SetLinkedControl(0)
        node.SetHotLinkedControl(0)
    try:
        yield
    finally:
        for node, linked, hot in links:
            node.SetLinkedControl(linked)
            node.SetHotLinkedControl(hot)


# ---------------------------------------------------------------------------------------------------------- show and blend


def show_layers(background, foreground=None, label=None, opacity: float = 0.5, *, fit: bool = False, rotate: bool = False,
                names: tuple[str, ...] = ()) -> bool:
    """Show volume nodes in all slice views (or in those whose layout ``names`` are given): ``foreground`` over ``background``
    at ``opacity``, and a ``label`` map. A layer that is None is emptied.

    ``fit`` zooms to the background; ``rotate`` turns the slices into the background's own axes, for oblique and one-slice volumes. A view that lies
    beside the background is brought to it, because it would be black. True where a slice was moved.
    """
    scene = background.GetScene()
    nodes = [node for node in composites(scene) if not names or node.GetLayoutName() in names]
    with unlinked(nodes):
        for node in nodes:
            node.SetBackgroundVolumeID(background.GetID())
            node.SetForegroundVolumeID(None if foreground is None else foreground.GetID())
            node.SetLabelVolumeID(None if label is None else label.GetID())
            node.SetCompositing(node.Alpha)
            node.SetForegroundOpacity(float(opacity))
    moved = False
    for logic in slice_logics(scene):
        if not names or logic.GetSliceNode().GetLayoutName() in names:
            if rotate:
                logic.GetSliceNode().RotateToVolumePlane(background)
                logic.SnapSliceOffsetToIJK()
            if fit or rotate or not _is_seen(background, logic.GetSliceNode()):
                logic.FitSliceToBackground()
                moved = True
    return moved


def _is_seen(volume, view) -> bool:
    """True where the slice of a view cuts the box around a volume node inside of the view's frame."""
    import itertools

    import numpy as np

    from .mrml import matrix_values

    bounds, (width, height) = [0.0] * 6, view.GetDimensions()[:2]
    if min(width, height) < 1:  # never drawn
        return True
    volume.GetRASBounds(bounds)
    corners = np.array([(*corner, 1.0) for corner in itertools.product(bounds[:2], bounds[2:4], bounds[4:])])
    low, high = (function(corners @ np.linalg.inv(matrix_values(view.GetXYToRAS())).T, axis=0)[:3] for function in (np.min, np.max))
    return bool((low <= (width, height, 0)).all() and (high >= 0).all())


def set_blend(scene, opacity: float) -> None:
    """Foreground opacity of every slice view, 0 (background only) to 1 (foreground only): the blend slider, and each beat of
    flicker (0, 1, 0, 1) and of rocking (a sine)."""
    nodes = composites(scene)
    with unlinked(nodes):
        for node in nodes:
            node.SetForegroundOpacity(min(1.0, max(0.0, float(opacity))))


def is_slanted(grid) -> bool:
    """True where a volume is worth ``rotate``: its grid has one slice, or its axes lie more than one degree off the world's."""
    import numpy as np

    return 1 in grid.size or bool((np.abs(grid.direction).max(0) < np.cos(np.deg2rad(1.0))).any())


def drawings(scene) -> list:
    """A function for each slice view that draws it at once instead of at the next idle moment; none where there is no application.

    Where there are slice logics without a layout manager, only their image pipelines are brought up to date.
    """
    manager = layout_manager(scene)
    if manager is not None:
        widgets = map(manager.sliceWidget, manager.sliceViewNames())
        return [widget.sliceView().forceRender for widget in widgets if widget is not None]  # None: a view of a layout that was never shown
    connections = [logic.GetImageDataConnection() for logic in slice_logics(scene)]
    return [connection.GetProducer().Update for connection in connections if connection is not None]


def center_on(scene, point) -> None:
    """Bring the slices of all views to the world ``point`` (3,) LPS mm."""
    right, anterior = -float(point[0]), -float(point[1])
    for node in nodes_of(scene, SLICE):
        node.JumpSliceByCentering(right, anterior, float(point[2]))


def show_plane(scene, frame, name: str = "Red") -> None:
    """Bring the slice view ``name`` to a plane: ``frame`` (4, 4) maps (u, v, w) mm to LPS mm, u to the right and v down in the view."""
    import numpy as np

    from .mrml import vtk_matrix

    placed = np.diag([-1.0, -1, 1, 1]) @ np.asarray(frame, float) @ np.diag([1.0, -1, -1, 1])
    for node in nodes_of(scene, SLICE):
        if node.GetLayoutName() == name:
            node.GetSliceToRAS().DeepCopy(vtk_matrix(placed))
            node.UpdateMatrices()


# ------------------------------------------------------------------------------------------------------------- two rows


def show_two_rows(first: dict, second: dict, linked: bool = True) -> None:
    """Two results one above the other: ``first`` in the upper and ``second`` in the lower three slice views, each a dictionary of
    ``background``, ``foreground`` and ``opacity`` for ``show_layers``; all views move together where they are ``linked``.

    Without an application the six slice composite nodes that the scene has (in order) are set.
    """
    scene = first["background"].GetScene()
    _two_row_layout(scene)
    names = [node.GetLayoutName() for node in composites(scene)]
    upper, lower = (FIRST_ROW, SECOND_ROW) if set(SECOND_ROW) <= set(names) else (names[:3], names[3:6])
    show_layers(**first, names=tuple(upper))
    if lower:
        show_layers(**second, names=tuple(lower))
    for node in composites(scene):
        node.SetLinkedControl(1 if linked else 0)
        node.SetHotLinkedControl(1 if linked else 0)
    for logic in slice_logics(scene):
        logic.FitSliceToBackground()


def _two_row_layout(scene) -> None:
    """Register the layout once and switch to it."""
    node = _layout_node(scene)
    if node is None:
        return
    if not node.IsLayoutDescription(COMPARE_LAYOUT):
        node.AddLayoutDescription(COMPARE_LAYOUT, layout_description())
    node.SetViewArrangement(COMPARE_LAYOUT)


def layout_description() -> str:
    """The two-row layout in the application's own notation."""
    rows = "".join(f'<item><layout type="horizontal">{"".join(map(_view_item, row, ORIENTATIONS))}</layout></item>'
                   for row in (FIRST_ROW, SECOND_ROW))
    return f'<layout type="vertical">{rows}</layout>'


def _view_item(name: str, orientation: str) -> str:
    return (f'<item><view class="vtkMRMLSliceNode" singletontag="{name}"><property name="orientation" action="default">{orientation}'
            f'</property><property name="viewlabel" action="default">{name[0]}{name[-1] if name[-1].isdigit() else ""}</property></view></item>')


def set_layout(scene, arrangement: int) -> None:
    """Switch to a layout of the application by its number (``vtkMRMLLayoutNode.SlicerLayout...``); nothing without one."""
    node = _layout_node(scene)
    if node is not None:
        node.SetViewArrangement(arrangement)
