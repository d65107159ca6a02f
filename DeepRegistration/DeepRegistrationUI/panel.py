"""The panel: six sections of which one is open, the parameter node that they share, and the timer that drives the runs.

Nothing here waits: a timer of 30 ms lets the logic do a slice of work (upload, events, previews, delivery) while something runs.
"""

from __future__ import annotations

import time

import qt
import slicer
import vtk
from slicer.util import VTKObservationMixin

from .pages.base import RESOURCES
from .pages.batch import BatchPage
from .pages.compare import ComparePage
from .pages.quality import QualityPage
from .pages.register import RegisterPage
from .pages.train import TrainPage
from .pages.transfer import TransferPage

TICK_MS = 30
PAGES = {"register": RegisterPage, "transfer": TransferPage, "quality": QualityPage, "compare": ComparePage, "batch": BatchPage, "train": TrainPage}


class Panel(VTKObservationMixin):
    """All pages inside ``layout``; ``widget`` is the top widget. ``FORM`` has one collapsible button, ``<name>Button``, for each of ``PAGES``; their
    forms are below ``resources``."""

    FORM, PAGES = "DeepRegistration.ui", PAGES

    def __init__(self, layout, logic, resources=RESOURCES):
        VTKObservationMixin.__init__(self)
        self.resources = resources
        self.logic = logic
        self.longest_tick, self.stale = 0.0, False
        self.chosen = VTKObservationMixin()
        self.scene_is_empty = lambda: None
        self.widget = slicer.util.loadUI(str(resources / "UI" / self.FORM))
        layout.addWidget(self.widget)
        self.ui = slicer.util.childWidgetVariables(self.widget)
        self.widget.setMRMLScene(slicer.mrmlScene)
        self.node = None
        self.buttons = {name: getattr(self.ui, f"{name}Button") for name in self.PAGES}
        self.places = {name: qt.QVBoxLayout(button) for name, button in self.buttons.items()}
        for place in self.places.values():
            place.setContentsMargins(4, 4, 4, 4)  # the boxes of a page have margins of their own
        self.pages: dict = {}
        self.page(next(iter(self.PAGES)))
        for name, button in self.buttons.items():
            button.connect("contentsCollapsed(bool)", lambda collapsed, name=name: self.folded(name, collapsed))
        self.timer = qt.QTimer(self.widget)
        self.timer.interval = TICK_MS
        self.timer.connect("timeout()", self.tick)
        self.observe_scene()

    def page(self, name: str):
        """The page ``name``, made when it is first needed: a panel that opens at once shows one page."""
        if name not in self.pages:
            self.pages[name] = self.PAGES[name](self, self.places[name])
            if self.node is not None:
                self.pages[name].bind(self.node)
        return self.pages[name]

    def observe_scene(self) -> None:
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self.scene_closing)
        self.addObserver(scene, scene.EndCloseEvent, self.scene_closed)
        self.addObserver(scene, scene.EndImportEvent, self.scene_added)
        self.addObserver(scene, scene.NodeAddedEvent, self.scene_changed)
        self.addObserver(scene, scene.NodeRemovedEvent, self.scene_changed)
        self.later = qt.QTimer(self.widget)
        self.later.singleShot = True
        self.later.interval = 0
        self.later.connect("timeout()", self.refresh)

    # ------------------------------------------------------------------------------------------------ the parameter node

    def bind(self, node) -> None:
        """Use the parameter node ``node``; None lets go of the present one."""
        self.chosen.removeObservers()
        if self.node is not None:
            self.removeObserver(self.node, vtk.vtkCommand.ModifiedEvent, self.node_changed)
        self.node = node
        for page in self.pages.values():
            page.bind(node)
        if node is not None:
            self.addObserver(node, vtk.vtkCommand.ModifiedEvent, self.node_changed)
            self.watch()

    def watch(self) -> None:
        """Hear of changes of the nodes that the parameter node refers to."""
        parameters, roles = self.node.parameterNode, []
        parameters.GetNodeReferenceRoles(roles)
        nodes = {parameters.GetNthNodeReference(role, k) for role in roles for k in range(parameters.GetNumberOfNodeReferences(role))} - {None}
        if nodes != {entry[0] for entry in self.chosen.Observations}:
            self.chosen.removeObservers()
            for node in nodes:
                for event in events_of(node):
                    self.chosen.addObserver(node, event, self.chosen_changed)

    def chosen_changed(self, caller=None, event=None) -> None:
        """While something runs, which moves the volumes in its live view, the pages are brought up to date at its end."""
        self.stale = True
        if not self.timer.active:
            self.later.start()

    def node_changed(self, caller=None, event=None) -> None:
        self.later.start()

    def scene_changed(self, caller=None, event=None) -> None:
        if self.node is not None and not slicer.mrmlScene.IsBatchProcessing():
            self.later.start()

    def refresh(self) -> None:
        """Bring all pages up to date, once for many changes."""
        self.later.stop()
        self.stale = False
        if self.node is not None and not slicer.mrmlScene.IsClosing():
            self.watch()
            for page in self.pages.values():
                page.show_selectors()
                page.refresh()

    # ---------------------------------------------------------------------------------------------------------- sections

    def folded(self, name: str, collapsed: bool) -> None:
        """One section is open at a time."""
        if collapsed:
            return
        page = self.page(name)
        for other, button in self.buttons.items():
            if other != name and not button.collapsed:
                button.collapsed = True
        if self.node is not None:
            page.opened()
            self.later.start()

    def open(self, name: str) -> None:
        """Unfold the section ``name``."""
        self.buttons[name].collapsed = False

    # -------------------------------------------------------------------------------------------------------------- runs

    def wake(self) -> None:
        """Something runs: start the timer."""
        if not self.timer.active:
            self.timer.start()

    def tick(self) -> None:
        """A slice of work of everything that runs; the timer sleeps when nothing does. ``longest_tick`` is in seconds of this thread's
        own work, which other programs on the machine do not change."""
        began = time.thread_time()
        busy = self.logic.tick()
        for page in self.pages.values():
            busy = page.tick() or busy
        self.longest_tick = max(self.longest_tick, time.thread_time() - began)
        if not busy:
            self.timer.stop()
            if self.stale:
                self.later.start()

    # --------------------------------------------------------------------------------------------------------- life cycle

    def scene_closing(self, caller=None, event=None) -> None:
        """Runs end, nodes are forgotten, before the scene takes them away."""
        self.later.stop()
        for page in self.pages.values():
            page.say("", "")  # what was said of the old scene
        self.logic.cancel_all("the scene was closed")
        for page in self.pages.values():
            page.close()
        self.bind(None)

    def scene_closed(self, caller=None, event=None) -> None:
        for page in self.pages.values():
            page.scene_closed()
        self.scene_is_empty()

    def scene_added(self, caller=None, event=None) -> None:
        for page in self.pages.values():
            page.scene_added()

    def leave(self) -> None:
        """Another module is shown."""
        for page in self.pages.values():
            page.left()

    def cleanup(self) -> None:
        """The module goes away (application exit, reload): stop the worker and every timer, remove the observers."""
        self.timer.stop()
        self.later.stop()
        self.logic.shutdown()
        for page in self.pages.values():
            page.close()
        self.bind(None)
        self.removeObservers()


def events_of(node) -> list[int]:
    """The events of a node after which what the pages say of it may be wrong: its name, its place, its voxels, its segments."""
    found = [getattr(node, name) for name in ("TransformModifiedEvent", "ImageDataModifiedEvent") if hasattr(node, name)]
    if node.IsA("vtkMRMLSegmentationNode"):
        segmentation = slicer.vtkSegmentation
        found += [segmentation.SegmentAdded, segmentation.SegmentRemoved, segmentation.SegmentModified]
    return [vtk.vtkCommand.ModifiedEvent, *found]
