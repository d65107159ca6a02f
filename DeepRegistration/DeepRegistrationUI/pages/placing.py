"""Landmark pairs placed in the views: two buttons that start and stop the application's place mode, and a line that counts."""

from __future__ import annotations

import slicer
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from .. import mrml

SIDES = {"fixedLandmarks": "placeFixedButton", "movingLandmarks": "placeMovingButton"}


class Placing(VTKObservationMixin):
    """The two 'Place' buttons beside the selectors of landmarks in ``ui``; ``counted`` is called when points come or go."""

    def __init__(self, ui, counted):
        VTKObservationMixin.__init__(self)
        self.ui, self.node, self.counted, self.names = ui, None, counted, []
        for name, button in SIDES.items():
            getattr(ui, button).connect("toggled(bool)", lambda on, name=name: self.toggled(name, on))

    def show(self, node) -> None:
        """Count the points of the lists of the parameter node ``node``."""
        self.node = node
        lists = [getattr(node, name) for name in SIDES]
        self.watch(lists)
        self.names = self.names_now()
        fixed, moving = map(len, self.names)
        if fixed == moving == 0:
            text = _("Landmark pairs are optional: place each point in both lists, in the same order or with the same names.")
        elif fixed == moving:
            remark = mrml.pairing_remark(*lists)
            text = _("{count} landmark pairs guide the registration.").format(count=fixed) + (f" Note: {remark}." if remark else "")
        else:
            side = _("moving") if moving < fixed else _("fixed")
            text = _("{fixed} fixed and {moving} moving landmarks: place {more} more {side}.").format(
                fixed=fixed, moving=moving, more=abs(fixed - moving), side=side)
        self.ui.landmarksLabel.text = text

    def watch(self, lists) -> None:
        """Hear of points that are placed or removed in ``lists`` (nodes or None)."""
        wanted = [markups for markups in lists if markups is not None]
        if {id(markups) for markups in wanted} == {id(entry[0]) for entry in self.Observations}:
            return
        self.removeObservers()
        for markups in wanted:
            for event in (markups.PointPositionDefinedEvent, markups.PointPositionUndefinedEvent, markups.PointRemovedEvent):
                self.addObserver(markups, event, lambda caller, event: self.counted())
            self.addObserver(markups, markups.PointModifiedEvent, self.point_changed)

    def names_now(self) -> list[tuple[str, ...]]:
        """The names of the placed points of both lists."""
        return [() if getattr(self.node, name) is None else mrml.names_of(getattr(self.node, name)) for name in SIDES]

    def point_changed(self, caller, event) -> None:
        """A point was moved, which says nothing new, or named, which may pair it with another one."""
        if self.names != self.names_now():
            self.counted()

    def toggled(self, name: str, on: bool) -> None:
        """Start placing into the list of this side (made where there is none); the other side's button comes up."""
        if not on:
            self.mode(False)
            return
        for other, button in SIDES.items():
            if other != name:
                getattr(self.ui, button).checked = False
        if self.node is None:
            getattr(self.ui, SIDES[name]).checked = False
            return
        markups = getattr(self.node, name)
        if markups is None:
            title = _("Fixed landmarks") if name == "fixedLandmarks" else _("Moving landmarks")
            markups = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", title)
            markups.CreateDefaultDisplayNodes()
            color = (0.2, 0.8, 0.2) if name == "fixedLandmarks" else (1.0, 0.6, 0.0)
            markups.GetDisplayNode().SetSelectedColor(*color)
            setattr(self.node, name, markups)
        slicer.modules.markups.logic().SetActiveList(markups)
        self.mode(True)

    def mode(self, on: bool) -> None:
        """The application's mouse mode: place points one after the other, or back to moving the views."""
        interaction = slicer.app.applicationLogic().GetInteractionNode()
        if interaction is not None:
            interaction.SetPlaceModePersistence(1 if on else 0)
            interaction.SetCurrentInteractionMode(interaction.Place if on else interaction.ViewTransform)

    def stop(self) -> None:
        """Both buttons up, the mouse mode back."""
        for button in SIDES.values():
            getattr(self.ui, button).checked = False
