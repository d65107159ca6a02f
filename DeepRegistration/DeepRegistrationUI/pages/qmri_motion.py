"""Motion of repeated scans: which volumes, the run in the worker, and average, noise and motion in the scene."""

from __future__ import annotations

import slicer
from slicer.i18n import tr as _

from ..curves import drawn
from ..qmri_scene import MARK, deliver_motion, motion_rows, scans_request
from ..qmri_state import MOTION
from .checklist import CheckList
from .method import MethodPage
from .tables import fill_table
from .train import volumes

WIDTH, HEIGHT = 340, 120
SHIFTS, TURNS = [f"shift {to} (mm)" for to in "RAS"], [f"rotation {to} (degrees)" for to in "RAS"]


class MotionPage(MethodPage):
    """See the file's first line. ``found`` is the result that is shown."""

    UI = "QMRIRegisterMotion.ui"
    STATUS = "motion"
    METHOD = MOTION
    SELECTORS = {"motionSeriesSelector": "motionSeries"}

    def __init__(self, panel, layout):
        super().__init__(panel, layout)
        self.found = None
        self.list = CheckList(self.ui.motionScansList, self.show_readiness)
        self.tissues = CheckList(self.ui.motionTissuesList, self.show_readiness)
        self.choice(self.ui.motionSourceBox, lambda: self.put("motionSource", self.chosen(self.ui.motionSourceBox)))
        self.buttons({"motionRunButton": self.run_or_cancel})
        self.show_found()
        self.show_running(False)

    @property
    def methods(self):
        return self.logic.motion_methods

    # -------------------------------------------------------------------------------------------------------- up to date

    def refresh(self) -> None:
        if self.node is None:
            return
        self.fill(self.ui.motionSourceBox, [("scene", _("Volumes of the scene")), ("series", _("A series"))], self.node.motionSource)
        series = self.node.motionSource == "series"
        self.ui.motionSeriesSelector.visible = self.ui.motionSeriesSelectorLabel.visible = series
        self.ui.motionScansList.visible = not series
        found = [node for node in volumes(slicer.mrmlScene) if is_scan(node)]
        self.list.show(found)
        self.tissues.show(found)
        self.show_method()
        self.show_readiness()

    def missing(self) -> str:
        """What has to be chosen before a run; '' where nothing is missing."""
        if self.node.motionSource == "series":
            return "" if self.node.motionSeries is not None else _("Choose a series.")
        both = next((node for node in self.list.checked() if node in self.tissues.checked()), None)
        if both is not None:
            return _("'{name}' is checked as a scan and as a tissue map; uncheck one.").format(name=both.GetName())
        return "" if len(self.list.checked()) > 1 else _("Check at least two scans.")

    def show_readiness(self) -> None:
        if self.node is None:
            return
        missing = self.missing()
        self.ui.motionRunButton.text = _("Cancel") if self.running else _("Correct the motion")
        self.ui.motionRunButton.enabled = self.running or not missing
        self.ui.motionRunButton.toolTip = missing or (_("Stop; the scene stays as it is") if self.running else
                                                      _("Find how the scans moved, and make their average and a map of the noise"))
        self.ui.motionMissingLabel.text = missing
        self.ui.motionMissingLabel.visible = bool(missing) and not self.running
        for name in ("motionForm", "motionScansList", "motionTissuesBox", "motionChoiceForm", "motionAdvancedBox", "motionTransformsBox"):
            getattr(self.ui, name).enabled = not self.running

    # -------------------------------------------------------------------------------------------------------------- run

    def run_or_cancel(self) -> None:
        if self.running:
            self.work.cancel()
            return
        self.logic.ensure_torch()
        node = self.node
        request = scans_request(node.motionSeries if node.motionSource == "series" else self.list.checked(), self.tissues.checked())
        self.begin(request | self.request_of_method())

    def take_result(self) -> None:
        self.found = self.work.result
        self.show_found()
        deliver_motion(self.found, transforms=self.node.motionTransforms)
        moved = [row["displacement_mm"] for row in self.found["motion"]]
        self.say("done", _("{count} scans moved by {mean:.2f} mm on average, at most {most:.2f} mm (scan {worst}); noise sigma {sigma:.4g}.").format(
            count=len(moved), mean=sum(moved) / len(moved), most=max(moved), worst=moved.index(max(moved)) + 1, sigma=self.found["scalars"]["sigma"]))

    # ----------------------------------------------------------------------------------------------------------- results

    def show_found(self) -> None:
        """Curves and table of the last result; nothing before there is one."""
        for name in ("motionShiftsLabel", "motionTurnsLabel", "motionTable"):
            getattr(self.ui, name).visible = self.found is not None
        if self.found is None:
            return
        rows = motion_rows(self.found)
        for label, heads, unit in ((self.ui.motionShiftsLabel, SHIFTS, "mm"), (self.ui.motionTurnsLabel, TURNS, _("degrees"))):
            curves = [[(row["scan"] - 1, row[head]) for row in rows] for head in heads]
            texts = [f"{head.partition(' (')[0]}, {min(row[head] for row in rows):.2f} {_('to')} {max(row[head] for row in rows):.2f} {unit}"
                     for head in heads]
            label.pixmap = drawn(WIDTH, HEIGHT + 15 * len(heads), curves, texts, together=True)
        fill_table(self.ui.motionTable, [
            {"scan": row["scan"], "R, A, S (mm)": ", ".join(f"{row[head]:.2f}" for head in SHIFTS),
             "R, A, S (°)": ", ".join(f"{row[head]:.2f}" for head in TURNS), "distance": f"{row['distance (mm)']:.2f} mm"} for row in rows])

    # -------------------------------------------------------------------------------------------------------- life cycle

    def close(self) -> None:
        self.work, self.found = None, None
        self.list.clear()
        self.tissues.clear()
        self.show_found()
        self.show_running(False)


def is_scan(node) -> bool:
    """True for a volume of one component and several slices that is no result of this module."""
    data = node.GetImageData()
    return not node.GetAttribute(MARK) and data is not None and 1 not in data.GetDimensions() and data.GetNumberOfScalarComponents() == 1
