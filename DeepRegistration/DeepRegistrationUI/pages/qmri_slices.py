"""Slices into a volume: the choices, the run in the worker, the check of order and directions, and what comes of it in the scene."""

from __future__ import annotations

import numpy as np
import qt
import slicer
from slicer.i18n import tr as _

from ..curves import drawn
from ..qmri_check import SliceCheck, flat, spacing_of
from ..qmri_maps import axis_request, maps_beside, maps_request, on_same_pixels, picture_among, usual_slices
from ..qmri_scene import (bones_request, deliver_bones, deliver_slices, is_slice, mirrored, pose_rows, region_rows, segmentation_of, show_slice,
                          slices_request, strokes_on, structures_request)
from ..qmri_state import METHOD
from ..thumbnails import side_by_side
from .checklist import CheckList
from .method import MethodPage
from .tables import fill_table
from .train import volumes

CURVE_WIDTH, CURVE_HEIGHT, SIDE = 340, 120, 76
LIVE_INTERVAL, LIVE_PIXELS = 0.2, 96
"""Seconds between two pictures of a running search, and the most pixels along an edge of a measured slice in them."""
LEARN = _("Learn the bone from what you have drawn on one slice or, better, two or three: in the Segment Editor a first segment with strokes in the "
          "bone and a second one with strokes anywhere else, or one segment with the whole bone.")
RESULTS = ("qmriAnswerLabel", "qmriCheckTable", "qmriCorrectRow", "qmriAgainRow", "qmriFiguresTable")
REGION_COLUMNS = ("region", "map", "mean", "SD", "pixels", "unit")


class SlicesPage(MethodPage):
    """See the file's first line. ``found`` is the result that is shown, ``check`` its order and directions, ``sent`` the selection that it belongs to
    and ``nodes`` the slices of the scene, None while they are files; ``pending``: both of these, the volume and the maps that go along, for ``work``."""

    UI = "QMRIRegisterSlices.ui"
    STATUS = "qmri"
    METHOD = METHOD
    SELECTORS = {"qmriAxisSelector": "qmriAxis"}
    STOPPED = "The registration was stopped; the scene is as it was."

    def __init__(self, panel, layout):
        super().__init__(panel, layout)
        self.pending, self.found, self.check, self.sent, self.nodes = None, None, None, None, None
        self.list = CheckList(self.ui.qmriSlicesList, self.show_readiness, usual=usual_slices)
        self.choice(self.ui.qmriSourceBox, lambda: self.put("qmriSource", self.chosen(self.ui.qmriSourceBox)))
        self.ui.qmriDataEdit.connect("currentPathChanged(QString)", lambda path: self.put("qmriData", path or ""))
        self.ui.qmriSegmentsBox.connect("toggled(bool)", lambda on: self.show_readiness())
        self.buttons({"qmriButton": self.register_or_cancel, "qmriBonesButton": self.learn_bones, "qmriMirrorRowsButton": lambda: self.correct(0),
                      "qmriMirrorColumnsButton": lambda: self.correct(1), "qmriExchangeButton": self.exchange, "qmriAgainButton": self.register_again})
        self.prepare_table()
        self.show_found()
        self.show_running(False)

    def prepare_table(self) -> None:
        table = self.ui.qmriCheckTable
        table.setColumnCount(2)
        table.setHorizontalHeaderLabels([_("Measured, volume"), _("Slice")])
        table.verticalHeader().visible = False
        table.horizontalHeader().stretchLastSection = True
        table.setColumnWidth(0, 2 * SIDE + 12)
        table.connect("itemSelectionChanged()", self.row_selected)

    # -------------------------------------------------------------------------------------------------------- up to date

    def refresh(self) -> None:
        if self.node is None:
            return
        self.fill(self.ui.qmriSourceBox, [("scene", _("Slices of the scene")), ("folder", _("A folder of DICOM files"))], self.node.qmriSource)
        self.show_paths([(self.ui.qmriDataEdit, "qmriData")])
        files = self.node.qmriSource == "folder"
        self.ui.qmriDataEdit.visible = self.ui.qmriDataEditLabel.visible = files
        self.ui.qmriSlicesList.visible = self.ui.qmriSegmentsBox.visible = not files
        self.list.show(self.candidates())
        self.show_method()
        self.show_readiness()

    def candidates(self) -> list:
        """All volumes of one slice of the scene."""
        return [node for node in volumes(slicer.mrmlScene) if is_slice(node)]

    def maps(self) -> dict[str, list]:
        """Volumes that are not checked and lie on the pixels of a checked slice, by quantity; none where the slices are files."""
        return {} if self.node.qmriSource == "folder" else maps_beside(self.list.checked(), self.candidates())

    def selection(self):
        """What is to be registered: the path of a folder, or the IDs of nodes."""
        return self.node.qmriData if self.node.qmriSource == "folder" else [node.GetID() for node in self.list.checked()]

    def missing(self) -> str:
        """What has to be chosen before a registration; '' where nothing is missing."""
        if self.node.qmriSource == "folder":
            if not self.node.qmriData:
                return _("Choose the folder with the DICOM files of the slices.")
        elif len(self.list.checked()) < 2:
            return _("Check at least two slices.")
        if self.node.qmriVolume is None:
            return _("Choose the volume.")
        if self.node.qmriAngle > 0 and self.node.qmriAxis is None:
            return _("Choose the axis about which the slices are placed.")
        return self.missing_on_slices()

    def missing_on_slices(self) -> str:
        """What stands in the way on the checked slices; '' where nothing does."""
        if self.node.qmriSource == "folder":
            return ""
        checked = self.list.checked()
        first = on_same_pixels(checked)
        twice = next((k for k, n in enumerate(first) if n != k), None)
        if twice is not None and not self.node.qmriAngle:
            return _("'{one}' and '{other}' lie on the same pixels; uncheck one, it can go along as a map, or place the slices about an axis.").format(
                one=checked[first[twice]].GetName(), other=checked[twice].GetName())
        picture = picture_among(checked)
        if picture is not None and self.node.qmriAngle and not self.node.qmriPixel:
            return _("'{name}' is a picture, which does not say how large its pixels are; give the size of the pixels.").format(name=picture.GetName())
        if self.node.qmriSegments:
            bare = next((node for node in (*checked, self.node.qmriVolume) if segmentation_of(node) is None), None)
            if bare is not None:
                return _("'{name}' has no segmentation of the bone; draw one on it in the Segment Editor, or learn it.").format(name=bare.GetName())
        return ""

    def show_readiness(self) -> None:
        if self.node is None:
            return
        missing, chosen, files = self.missing(), self.selected_rows(), self.node.qmriSource == "folder"
        drawn = [] if files else [node for node in self.list.checked() if strokes_on(node) is not None]
        self.ui.qmriBesideBox.visible = bool(self.maps())
        self.ui.qmriPixelBox.visible = self.ui.qmriPixelBoxLabel.visible = self.node.qmriAngle > 0
        self.ui.qmriBonesButton.visible = self.node.qmriSegments and not files
        self.ui.qmriBonesButton.enabled = bool(drawn) and not self.running
        self.ui.qmriBonesButton.toolTip = LEARN if drawn else _("Draw strokes on a slice first. ") + LEARN
        self.ui.qmriButton.text = _("Cancel") if self.running else _("Register")
        self.ui.qmriButton.enabled = self.running or not missing
        self.ui.qmriButton.toolTip = missing or (_("Stop; the scene stays as it is") if self.running else _("Find where the slices lie in the volume"))
        self.ui.qmriMissingLabel.text = missing
        self.ui.qmriMissingLabel.visible = bool(missing) and not self.running
        for name in ("qmriForm", "qmriSlicesList", "qmriChoiceForm", "qmriSegmentsBox", "qmriAdvancedBox", "qmriEmulatedBox", "qmriMapBox", "qmriZeroBox",
                     "qmriBesideBox", "qmriSurfaceForm"):
            getattr(self.ui, name).enabled = not self.running
        same = self.check is not None and not self.running and not missing and self.sent == self.selection()
        self.ui.qmriMirrorRowsButton.enabled = self.ui.qmriMirrorColumnsButton.enabled = same and bool(chosen)
        self.ui.qmriExchangeButton.enabled = same and len(chosen) == 2
        self.ui.qmriAgainButton.enabled = same and self.check.changed

    # -------------------------------------------------------------------------------------------------------------- run

    def register_or_cancel(self) -> None:
        if self.running:
            self.work.cancel()
        else:
            self.start(None)

    def register_again(self) -> None:
        self.start(self.check.placement)

    def learn_bones(self) -> None:
        """Submit the job that learns the bone on the checked slices."""
        self.logic.ensure_for_bones()
        nodes = self.list.checked()
        self.pending = [node.GetID() for node in nodes], nodes, None, {}
        self.begin({**bones_request(nodes), "seed": self.node.seed})

    def start(self, placement) -> None:
        """Submit the job; ``placement`` as the user has set it, None to find it. InputError where nodes cannot be read."""
        self.logic.ensure_torch()
        node, files = self.node, self.node.qmriSource == "folder"
        nodes = None if files else self.list.checked()
        request = slices_request(node.qmriData if files else nodes, node.qmriVolume, node.qmriSegments and not files)
        request |= {**self.request_of_method(), "thickness": node.qmriThickness, "map": node.qmriMap, "placement": placement,
                    "no_value": 0.0 if node.qmriZero else None}
        request |= {"live": {"interval_s": LIVE_INTERVAL}, **axis_request(node.qmriAxis, node.qmriAngle, node.qmriPixel if node.qmriAngle else 0.0)}
        maps = self.maps() if node.qmriBeside else {}
        request |= maps_request(nodes, maps) | structures_request(node.qmriSurface, node.qmriVolume, node.qmriSurfaceDistance)
        known = self.nodes if files and self.sent == self.selection() else None
        self.pending = self.selection(), known if files else nodes, node.qmriVolume, maps
        self.begin(request)

    def on_event(self, work, event: dict) -> None:
        super().on_event(work, event)
        if work is self.work and self.node is not None:
            if event["event"] == "preview":
                self.show_live(event["pictures"])
            elif event["event"] in ("failed", "cancelled"):
                self.show_found()

    def show_live(self, pictures) -> None:
        """Every measured slice beside what the volume shows there at the pose that is tried now; ``pictures`` has both of slices that are files."""
        table, sent = self.ui.qmriCheckTable, self.work.request.get("slices")
        measured, emulated = (None, pictures) if sent is not None else pictures
        table.visible = True
        table.setRowCount(len(emulated))
        for k, picture in enumerate(emulated):
            name, spacings = "", [(1.0, 1.0)] * 2
            if sent is None:
                shown = measured[k]
            else:
                whole, spacing, name = flat(sent[k].array), spacing_of(sent[k].grid), sent[k].name
                step, extent = -(-max(whole.shape) // LIVE_PIXELS), np.multiply(whole.shape[::-1], spacing)
                shown, spacings = whole[::step, ::step], [tuple(step * s for s in spacing), tuple(extent / picture.shape[::-1])]
            label = table.cellWidget(k, 0) or qt.QLabel()
            label.pixmap = side_by_side((shown, picture), spacings, SIDE)
            label.alignment = qt.Qt.AlignCenter
            table.setCellWidget(k, 0, label)
            table.setItem(k, 1, qt.QTableWidgetItem("\n".join([name] * bool(name) + [_("searching")])))
            table.setRowHeight(k, SIDE + 4)

    def take_result(self) -> None:
        """Show the result; where the slices are registered, or bones are learned, put it into the scene."""
        if self.work.request["command"] == "bones":
            made = deliver_bones(self.work.result, self.pending[1])
            self.say("done", _("The bone was learned on {count} slices; look at the segmentations and correct them before they are used.").format(
                count=len(made)))
            return
        self.found, (self.sent, self.nodes, volume, maps) = self.work.result, self.pending
        rows, sent = self.found["slices"], self.work.request.get("slices")
        measured = [row["measured"] for row in rows] if sent is None else sent
        self.check = SliceCheck(rows, [value.array for value in measured])
        self.show_found()
        if not self.found["registered"]:
            self.say("warning", _("The slices are not registered; the scene is as it was."))
            return
        nodes = deliver_slices(self.found, self.nodes, volume, emulated=self.node.qmriEmulated, maps=maps.values())
        self.nodes = [nodes[f"measured {k + 1}"] for k in range(len(rows))]
        show_slice(self.nodes[0], volume)
        self.say("done", _("The slices lie in the volume; transforms and tables are in a folder of the module Data."))

    # ----------------------------------------------------------------------------------------------------------- results

    def show_found(self) -> None:
        """Answer, pictures and figures of the last result; nothing before there is one."""
        there = self.found is not None
        for name in RESULTS:
            getattr(self.ui, name).visible = there
        self.ui.qmriCurveLabel.visible = there and bool(self.found["curve"])
        self.ui.qmriRegionsTable.visible = there and self.found["registered"] and bool(self.found.get("regions"))
        if not there:
            return
        self.ui.qmriAnswerLabel.text = answer(self.found)
        fill_table(self.ui.qmriFiguresTable, [{**row, "value": None if row["value"] is None else f"{row['value']:.3g}"} for row in pose_rows(self.found)])
        fill_table(self.ui.qmriRegionsTable, region_rows(self.found), REGION_COLUMNS)
        if self.found["curve"]:
            degrees, values = self.found["curve"]["degrees"], self.found["curve"]["set"]
            points = [(angle - degrees[0], value) for angle, value in zip(degrees, values)]
            text = _("similarity over a turn about the axis, {low:.0f} to {high:.0f} degrees").format(low=degrees[0], high=degrees[-1])
            self.ui.qmriCurveLabel.pixmap = drawn(CURVE_WIDTH, CURVE_HEIGHT, [points], [text])
        self.ui.qmriCheckTable.clearSelection()
        self.ui.qmriCheckTable.setRowCount(len(self.check.rows))
        self.show_check()

    def show_check(self) -> None:
        """The rows of the check: pictures and texts, as chosen now."""
        table = self.ui.qmriCheckTable
        for k, row in enumerate(self.check.rows):
            label = qt.QLabel()
            spacing = spacing_of(row["emulated"].grid)
            label.pixmap = side_by_side((self.check.measured[k], self.check.expected(k)), (spacing, spacing), SIDE)
            label.alignment = qt.Qt.AlignCenter
            table.setCellWidget(k, 0, label)
            item = qt.QTableWidgetItem(self.told(k))
            item.setToolTip(self.told(k))
            table.setItem(k, 1, item)
            table.setRowHeight(k, SIDE + 4)

    def told(self, k: int) -> str:
        """A slice in a few short lines; what is chosen now is what counts, figures are of what was found."""
        row, flips = self.check.rows[k], mirrored(self.check.flips[k])
        lines = [row["name"]] + ([_("on plane {number}").format(number=self.check.plane[k] + 1)] if self.check.plane[k] != k else [])
        lines += [_("mirrored {how}").format(how=flips)] if flips else []
        if self.check.plane[k] != row["plane"] or self.check.flips[k] != tuple(row["flips"]):
            return "\n".join([*lines, _("changed, not registered yet")])
        lines.append(_("similarity {value:.2f}, {share:.0f} % inside").format(value=row["similarity"], share=100 * row["inside"]))
        if row.get("bend_mm", 0) > 0:
            lines.append(_("deformed by up to {value:.1f} mm").format(value=row["bend_mm"]))
        if max(row["own_shift_mm"], row["own_turn_degrees"]) > 1e-3:
            lines.append(_("own motion {shift:.1f} mm, {turn:.1f}°").format(shift=row["own_shift_mm"], turn=row["own_turn_degrees"]))
        return "\n".join(lines)

    def selected_rows(self) -> list[int]:
        model = self.ui.qmriCheckTable.selectionModel()
        return sorted({index.row() for index in model.selectedRows()}) if model is not None and self.check is not None else []

    def row_selected(self) -> None:
        """The views show the selected slice, where it is registered."""
        chosen = self.selected_rows()
        if len(chosen) == 1 and self.found["registered"] and self.nodes is not None and self.node is not None:
            show_slice(self.nodes[chosen[0]], self.node.qmriVolume)
        self.show_readiness()

    def correct(self, axis: int) -> None:
        self.check.mirror(self.selected_rows(), axis)
        self.show_check()

    def exchange(self) -> None:
        self.check.exchange(*self.selected_rows())
        self.show_check()

    # -------------------------------------------------------------------------------------------------------- life cycle

    def close(self) -> None:
        self.work, self.pending, self.found, self.check, self.sent, self.nodes = None, None, None, None, None, None
        self.list.clear()
        self.ui.qmriCheckTable.setRowCount(0)
        self.show_found()
        self.show_running(False)


def answer(found: dict) -> str:
    """Registered or not, and why, in a sentence or two."""
    if not found["registered"]:
        reasons = [text[:1].upper() + text[1:] + "." for text in found["reasons"]]
        return " ".join([_("NOT REGISTERED."), *reasons])
    moved = [row["name"] for k, row in enumerate(found["slices"]) if row["plane"] != k or any(row["flips"])]
    text = _("Registered; the position is known to {value:.2g} mm (one standard deviation).").format(value=found["std"]["distance_mm"])
    text += _(" Order or direction differ from the headers: {names}.").format(names=", ".join(moved)) if moved else ""
    return " ".join([text, *(remark[:1].upper() + remark[1:] + "." for remark in found["remarks"])])
