"""Find a slice in an atlas: which plate, or which oblique plane, it shows; a list with pictures whose rows move the red view."""

from __future__ import annotations

import numpy as np
import qt
import slicer
from slicer.i18n import tr as _

from DeepRegistrationLib.errors import InputError

from .. import mrml
from ..atlas_scene import deliver_plane
from ..qmri_maps import picture_among
from ..thumbnails import side_by_side
from ..views import show_plane
from .running import RunningPage

SIDE = 76
SOURCES = (("file", "A file"), ("scene", "A slice of the scene"))
PLATES = (("coronal", "Coronal"), ("axial", "Axial"), ("sagittal", "Sagittal"))


class AtlasIdentifyPage(RunningPage):
    """See the file's first line. ``found`` is the result that is shown."""

    UI = "AtlasBuilderIdentify.ui"
    STATUS = "identify"
    STOPPED = "The search was stopped; the scene is as it was."

    def __init__(self, panel, layout):
        super().__init__(panel, layout)
        self.found = None
        for box, name in ((self.ui.identifySourceBox, "identifySource"), (self.ui.identifyAxisBox, "identifyAxis")):
            self.choice(box, lambda box=box, name=name: self.put(name, self.chosen(box)))
        self.ui.identifyFileEdit.connect("currentPathChanged(QString)", lambda path: self.put("identifyFile", path or ""))
        self.buttons({"identifyButton": self.identify_or_cancel})
        table = self.ui.identifyTable
        table.setColumnCount(2)
        table.setHorizontalHeaderLabels([_("Slice, atlas"), _("Where")])
        table.verticalHeader().visible = False
        table.horizontalHeader().stretchLastSection = True
        table.setColumnWidth(0, 2 * SIDE + 12)
        table.connect("itemSelectionChanged()", self.row_selected)
        self.show_found()
        self.show_running(False)

    # -------------------------------------------------------------------------------------------------------- up to date

    def refresh(self) -> None:
        if self.node is None:
            return
        self.fill(self.ui.identifySourceBox, [(name, _(text)) for name, text in SOURCES], self.node.identifySource)
        self.fill(self.ui.identifyAxisBox, [(name, _(text)) for name, text in PLATES], self.node.identifyAxis)
        self.show_paths([(self.ui.identifyFileEdit, "identifyFile")])
        scene = self.node.identifySource == "scene"
        for widgets, shown in ((("identifySliceSelector",), scene), (("identifyFileEdit", "identifyPixelBox"), not scene)):
            for name in widgets:
                getattr(self.ui, name).visible = getattr(self.ui, f"{name}Label").visible = shown
        self.show_readiness()

    def missing(self) -> str:
        """What has to be chosen first; '' where nothing is missing."""
        if self.node.identifyAtlas is None:
            return _("Choose the volume of the atlas.")
        if self.node.identifySource == "scene":
            return "" if self.node.identifySlice is not None else _("Choose the slice.")
        return "" if self.node.identifyFile else _("Choose the file of the slice.")

    def show_readiness(self) -> None:
        if self.node is None:
            return
        missing = self.missing()
        self.ui.identifyButton.text = _("Cancel") if self.running else _("Identify")
        self.ui.identifyButton.enabled = self.running or not missing
        self.ui.identifyButton.toolTip = missing or (
            _("Stop; the scene stays as it is") if self.running
            else _("Find the plate and the plane. The first slice of an atlas takes a minute or two longer: a network learns its plates."))
        self.ui.identifyMissingLabel.text = missing
        self.ui.identifyMissingLabel.visible = bool(missing) and not self.running
        for name in ("identifyForm", "identifyInvertBox"):
            getattr(self.ui, name).enabled = not self.running

    # -------------------------------------------------------------------------------------------------------------- run

    def identify_or_cancel(self) -> None:
        if self.running:
            self.work.cancel()
            return
        self.logic.ensure_torch()
        self.begin(self.request())

    def request(self) -> dict:
        """The parameter node as a request. InputError where a node cannot be read."""
        node = self.node
        scene = node.identifySource == "scene"
        if scene and picture_among([node.identifySlice]) is not None and set(node.identifySlice.GetSpacing()) == {1.0}:
            raise InputError(f"'{node.identifySlice.GetName()}' was read from a picture that does not say how large its pixels are; give its spacing in the "
                             "module Volumes, or choose the file here and give the size of its pixels")
        return {"command": "identify", "atlas": mrml.volume_of(node.identifyAtlas),
                "slice": mrml.volume_of(node.identifySlice) if scene else node.identifyFile, "axis": node.identifyAxis, "top": node.identifyTop,
                "pixel": 0.0 if scene else node.identifyPixel, "invert": node.identifyInvert, "device": node.device, "seed": node.seed,
                "threads": node.threads}

    def take_result(self) -> None:
        """Show the answer, put the slice and its transform into the scene and move the red view to the plane."""
        self.found = result = self.work.result
        deliver_plane(result, self.node.identifyAtlas)
        self.show_found()
        self.ui.identifyTable.selectRow(0)
        doubtful = result["record"]["doubtful"]
        self.say("warning" if doubtful else "done", _(
            "The slice is unlike what this atlas shows: check plates, orientation (superior up, not mirrored), pixel size and brightness.") if doubtful
            else _("The slice lies in the atlas; its transform is in a folder of the module Data."))

    # ----------------------------------------------------------------------------------------------------------- results

    def show_found(self) -> None:
        """Answer and list of the last result; nothing before there is one."""
        for name in ("identifyAnswerLabel", "identifyTable"):
            getattr(self.ui, name).visible = self.found is not None
        table = self.ui.identifyTable
        table.clearSelection()
        table.setRowCount(0)
        if self.found is None:
            return
        self.ui.identifyAnswerLabel.text = answer(self.found)
        pictures = [np.array(picture) for picture in self.found["pictures"]]
        texts = told(self.found["record"])
        table.setRowCount(len(texts))
        for k, text in enumerate(texts):
            label = qt.QLabel()
            label.pixmap = side_by_side((pictures[0], pictures[k + 1]), ((1, 1), (1, 1)), SIDE)
            label.alignment = qt.Qt.AlignCenter
            table.setCellWidget(k, 0, label)
            item = qt.QTableWidgetItem(text)
            item.setToolTip(text)
            table.setItem(k, 1, item)
            table.setRowHeight(k, SIDE + 4)

    def row_selected(self) -> None:
        """The red view goes to the plane or the plate of the selected row."""
        model = self.ui.identifyTable.selectionModel()
        chosen = [index.row() for index in model.selectedRows()] if model is not None else []
        if len(chosen) == 1 and self.found is not None:
            show_plane(slicer.mrmlScene, np.array(self.found["frames"][chosen[0]]))

    # -------------------------------------------------------------------------------------------------------- life cycle

    def close(self) -> None:
        self.work, self.found = None, None
        self.show_found()
        self.show_running(False)


def answer(found: dict) -> str:
    """Plane, plate and tilt in one sentence, and what was taken for granted."""
    record, plane = found["record"], found["record"]["plane"]
    text = _("At plate {plate} (of 0 to {last}, {position:.1f} mm), tilted by {tilt:.1f}°; pixels of {pixel:.4g} mm.").format(
        plate=plane["plate"], last=record["plates"] - 1, position=plane["position_mm"], tilt=plane["tilt_degrees"], pixel=record["pixel_mm"])
    said = [record["remark"][:1].upper() + record["remark"][1:] + "."] if record["remark"] else []
    said += [_("The slice was taken as a picture: its header says another axis.")] if found["by_header"] is False else []
    return " ".join([text, *said])


def told(record: dict) -> list[str]:
    """A few short lines for the plane and for every plate of the list."""
    plane = record["plane"]
    rows = [_("found plane\nat {position:.1f} mm, tilt {tilt:.1f}°\nscore {score:.2f}").format(
        position=plane["position_mm"], tilt=plane["tilt_degrees"], score=plane["score"])]
    return rows + [_("{rank}. plate {plate}\nat {position:.1f} mm\ndistance {distance:.2f}").format(
        rank=rank, plate=row["plate"], position=row["position_mm"], distance=row["distance"]) for rank, row in enumerate(record["top"], 1)]
