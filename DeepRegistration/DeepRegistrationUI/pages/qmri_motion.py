"""Motion of repeated scans: which volumes, the run in the worker, and average, noise and motion in the scene."""

from __future__ import annotations

import json

import slicer
from slicer.i18n import tr as _

from ..curves import drawn
from ..jobrun import JobRun
from ..qmri_scene import MARK, deliver_motion, motion_rows, scans_request
from ..qmri_state import MOTION
from .base import Page
from .checklist import CheckList
from .parameters import ParameterForm, changed_values
from .tables import fill_table
from .train import volumes

WIDTH, HEIGHT = 340, 120
SHIFTS, TURNS = [f"shift {to} (mm)" for to in "RAS"], [f"rotation {to} (degrees)" for to in "RAS"]


class MotionPage(Page):
    """See the file's first line. ``work`` runs or ran last; ``found`` is the result that is shown."""

    UI = "QMRIRegisterMotion.ui"
    STATUS = "motion"
    SELECTORS = {"motionSeriesSelector": "motionSeries"}

    def __init__(self, panel, layout):
        super().__init__(panel, layout)
        self.work, self.found = None, None
        self.list = CheckList(self.ui.motionScansList, self.show_readiness)
        self.form = ParameterForm(self.ui.motionParametersWidget, self.parameter_changed, lambda text: self.say("error", text))
        for box, chosen in ((self.ui.motionSourceBox, lambda: self.put("motionSource", self.chosen(self.ui.motionSourceBox))),
                            (self.ui.motionPresetBox, self.preset_chosen)):
            box.connect("currentIndexChanged(int)", lambda index, chosen=chosen: None if self.filling else chosen())
        for name, pressed in (("motionRunButton", self.run_or_cancel), ("motionResetButton", lambda: self.put("motionValues", "{}"))):
            getattr(self.ui, name).connect("clicked()", lambda pressed=pressed: self.guarded(pressed))
        self.show_found()
        self.show_running(False)

    def guarded(self, act) -> None:
        super().guarded(act)
        self.refresh()

    # -------------------------------------------------------------------------------------------------------- up to date

    @property
    def running(self) -> bool:
        return self.work is not None and self.work.running

    @property
    def entry(self) -> dict:
        return self.logic.motion_methods.entries[MOTION]

    @property
    def preset(self) -> str:
        return self.node.motionPreset if self.node.motionPreset in self.entry["presets"] else "default"

    def usual(self) -> dict:
        return self.logic.motion_methods.preset_values(f"{MOTION}:{self.preset}")

    def refresh(self) -> None:
        if self.node is None:
            return
        self.fill(self.ui.motionSourceBox, [("scene", _("Volumes of the scene")), ("series", _("A series"))], self.node.motionSource)
        self.fill(self.ui.motionPresetBox, [(name, name) for name in self.entry["presets"]], self.preset)
        self.ui.motionPresetBox.toolTip = self.entry["presets"][self.preset]["help"]
        series = self.node.motionSource == "series"
        self.ui.motionSeriesSelector.visible = self.ui.motionSeriesSelectorLabel.visible = series
        self.ui.motionScansList.visible = not series
        self.list.show([node for node in volumes(slicer.mrmlScene) if is_scan(node)])
        self.form.build(self.entry["parameters"])
        self.form.show(self.usual() | json.loads(self.node.motionValues or "{}"), self.usual())
        self.ui.motionResetButton.enabled = self.node.motionValues not in ("", "{}")
        self.show_readiness()

    def missing(self) -> str:
        """What has to be chosen before a run; '' where nothing is missing."""
        if self.node.motionSource == "series":
            return "" if self.node.motionSeries is not None else _("Choose a series.")
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
        for name in ("motionForm", "motionScansList", "motionChoiceForm", "motionAdvancedBox", "motionTransformsBox"):
            getattr(self.ui, name).enabled = not self.running

    def show_running(self, running: bool) -> None:
        self.ui.motionProgressBar.visible = self.ui.motionStageLabel.visible = running
        self.ui.motionProgressBar.value = 0
        if running:
            self.ui.motionStageLabel.text = _("Preparing")
        self.show_readiness()

    # ---------------------------------------------------------------------------------------------------------- choices

    def preset_chosen(self) -> None:
        self.node.motionValues, self.node.motionPreset = "{}", self.chosen(self.ui.motionPresetBox)
        self.refresh()

    def parameter_changed(self, name: str, value) -> None:
        self.node.motionValues = changed_values(self.node.motionValues, self.usual(), name, value)

    # -------------------------------------------------------------------------------------------------------------- run

    def run_or_cancel(self) -> None:
        if self.running:
            self.work.cancel()
            return
        self.logic.ensure_torch()
        node = self.node
        request = scans_request(node.motionSeries if node.motionSource == "series" else self.list.checked())
        request |= {"method": f"{MOTION}:{self.preset}", "values": json.loads(node.motionValues or "{}"), "device": node.device, "seed": node.seed,
                    "threads": node.threads}
        self.work = JobRun(self.logic.runner, request, self.on_event)
        self.logic.work.append(self.work)
        self.show_running(True)
        self.panel.wake()

    def on_event(self, work, event: dict) -> None:
        """Called from the panel's timer, on the main thread."""
        if work is not self.work or self.node is None:
            return
        if event["event"] == "progress":
            self.show_progress(event)
        elif event["event"] in ("done", "failed", "cancelled"):
            self.show_running(False)
            if event["event"] == "done":
                self.guarded(self.take_result)
            else:
                self.say("error" if event["event"] == "failed" else "warning", work.message or _("The run was stopped; the scene is as it was."))
            self.refresh()

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
            label.pixmap = drawn(WIDTH, HEIGHT + 15 * len(heads), curves, texts)
        fill_table(self.ui.motionTable, [
            {"scan": row["scan"], "R, A, S (mm)": ", ".join(f"{row[head]:.2f}" for head in SHIFTS),
             "R, A, S (°)": ", ".join(f"{row[head]:.2f}" for head in TURNS), "distance": f"{row['distance (mm)']:.2f} mm"} for row in rows])

    # -------------------------------------------------------------------------------------------------------- life cycle

    def tick(self) -> bool:
        return self.running

    def close(self) -> None:
        self.work, self.found = None, None
        self.list.clear()
        self.show_found()
        self.show_running(False)


def is_scan(node) -> bool:
    """True for a volume of one component and several slices that is no result of this module."""
    data = node.GetImageData()
    return not node.GetAttribute(MARK) and data is not None and 1 not in data.GetDimensions() and data.GetNumberOfScalarComponents() == 1
