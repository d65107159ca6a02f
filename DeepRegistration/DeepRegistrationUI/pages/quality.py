"""Quality control: how the two images are shown together, the deformation, structures, landmarks, and figures with units."""

from __future__ import annotations

import math

import qt
from slicer.i18n import tr as _

from DeepRegistrationLib.errors import InputError

from .. import mrml
from ..records import ATTRIBUTE, MAIN, figures_of, is_record, remark_on_places, require_whole, roles_of
from .base import Page, with_ending
from .tables import fill_table

FLICKER_MS, FADE_MS, FADE_SECONDS = 600, 100, 2.5
"""Milliseconds between two beats of flicker and two steps of fading; seconds from one image to the other and back."""
MODES = (("", "Unchanged"), ("blend", "Blend"), ("flicker", "Flicker"), ("fade", "Fade to and fro"), ("checkerboard", "Checkerboard"),
         ("difference", "Difference"), ("absolute", "Absolute difference"), ("inverse", "Inverse colors"))
DEFORMATIONS = (("", "Nothing"), ("grid", "Grid"), ("arrows", "Arrows"), ("contours", "Contours"))
CONTOURS = (("", "None"), ("before", "Before registration"), ("after", "After registration"))


class QualityPage(Page):
    """See the file's first line. ``quality`` shows the registration that is chosen, None before anything was asked for."""

    UI = "DeepRegistrationQuality.ui"
    STATUS = "quality"
    SELECTORS = {"qualityFixedStructuresSelector": "qualityFixedStructures", "qualityMovingStructuresSelector": "qualityMovingStructures"}

    def __init__(self, panel, layout):
        super().__init__(panel, layout)
        self.quality, self.shown, self.evaluation, self.beat = None, None, None, 0
        self.ui.qualityResultSelector.addAttribute(MAIN, ATTRIBUTE)
        for name, items in (("modeBox", MODES), ("deformationBox", DEFORMATIONS), ("contoursBox", CONTOURS)):
            self.fill(getattr(self.ui, name), [(data, _(text)) for data, text in items], "")
        self.flicker = qt.QTimer(self.widget)
        self.flicker.connect("timeout()", self.next_beat)
        self.connect()

    def connect(self) -> None:
        for name, act in (("modeBox", self.show_images), ("deformationBox", self.show_deformation), ("contoursBox", self.show_contours)):
            getattr(self.ui, name).connect("currentIndexChanged(int)", lambda index, name=name, act=act: self.shown_by(name, act))
        for name, act in (("logJacobianMapBox", self.show_log_jacobian), ("foldsMapBox", self.show_folds), ("threeDBox", self.show_deformation),
                          ("distancesBox", self.show_distances)):
            getattr(self.ui, name).connect("toggled(bool)", lambda on, name=name, act=act: self.shown_by(name, act))
        self.ui.blendSlider.connect("valueChanged(int)", lambda value: self.guarded(self.show_images))
        self.ui.squareSpinBox.connect("valueChanged(double)", lambda value: self.guarded(self.show_images))
        self.buttons({"evaluateButton": self.evaluate, "csvButton": self.save_csv, "reportButton": self.save_report, "clearButton": self.clear})

    def shown_by(self, name: str, act) -> None:
        """Do what the control ``name`` says; where that cannot be it goes back to showing nothing, so that it can be chosen again."""
        def acted():
            try:
                act()
            except InputError:
                self.put_back(name)
                raise

        self.guarded(acted)

    def put_back(self, *names: str) -> None:
        """Let controls show nothing, without a change in the views."""
        self.filling = True
        for box in (getattr(self.ui, name) for name in names):
            if hasattr(box, "currentIndex"):
                box.currentIndex = 0
            else:
                box.checked = False
        self.filling = False

    # -------------------------------------------------------------------------------------------------------- up to date

    def refresh(self) -> None:
        if self.node is None:
            return
        if self.node.result is not self.shown:
            self.take_away()
            self.shown = self.node.result
            fill_table(self.ui.metricsTable, figures_of(self.shown).get("rows", []) if is_record(self.shown) else [])
        ready = is_record(self.shown)
        for name in ("viewsBox", "mapsBox", "structuresBox", "evaluateButton", "csvButton", "clearButton"):
            getattr(self.ui, name).enabled = ready
        self.ui.reportButton.enabled = ready and self.evaluation is None
        self.ui.evaluateButton.text = _("Evaluate") if self.evaluation is None else _("Cancel")
        mode = self.chosen(self.ui.modeBox)
        self.ui.blendSlider.enabled, self.ui.squareSpinBox.enabled = mode == "blend", mode == "checkerboard"

    def opened(self) -> None:
        """Structures and landmarks of the registration are taken over where none were chosen here."""
        for name in ("Structures", "Landmarks"):
            for side in ("fixed", "moving"):
                mine = f"quality{side.capitalize()}{name}"
                if getattr(self.node, mine) is None and getattr(self.node, f"{side}{name}") is not None:
                    setattr(self.node, mine, getattr(self.node, f"{side}{name}"))

    def display(self):
        """The displays of the chosen registration. InputError where its volumes are gone."""
        if not is_record(self.node.result):
            raise InputError("no registration is chosen; press Apply under Register first")
        roles = roles_of(self.node.result)
        require_whole(roles)
        if self.quality is None:
            from ..quality import Quality

            self.quality = Quality(roles["fixed"], roles["moving"], roles, f"{self.node.result.GetName()} quality")
        return self.quality

    # ---------------------------------------------------------------------------------------------------------- displays

    def show_images(self) -> None:
        mode = self.chosen(self.ui.modeBox)
        self.flicker.stop()
        self.ui.blendSlider.enabled, self.ui.squareSpinBox.enabled = mode == "blend", mode == "checkerboard"
        if mode == "blend":
            self.display().blend(self.ui.blendSlider.value / 100)
        elif mode in ("flicker", "fade"):
            self.beat, self.flicker.interval = 0, FLICKER_MS if mode == "flicker" else FADE_MS
            self.flick()
            self.flicker.start()
        elif mode == "checkerboard":
            self.display().checkerboard(self.ui.squareSpinBox.value or None)
        elif mode in ("difference", "absolute"):
            self.display().difference(absolute=mode == "absolute")
        elif mode == "inverse":
            self.display().inverse_colors()
        elif self.quality is not None:
            self.quality.unchanged()
        remark = remark_on_places(self.node.result) if mode else ""
        if remark:
            self.say("warning", f"Note: {remark}.")

    def next_beat(self) -> None:
        """``flick`` from the timer, which a volume that was deleted ends."""
        try:
            self.flick()
        except InputError as error:
            self.flicker.stop()
            self.put_back("modeBox")
            self.say("error", str(error))

    def flick(self) -> None:
        """One beat: the other image (flicker), or a little more of it (fade)."""
        self.beat += 1
        if self.chosen(self.ui.modeBox) == "flicker":
            self.display().flicker(self.beat % 2 == 1)
        else:
            self.display().blend(0.5 - 0.5 * math.cos(2 * math.pi * self.beat * FADE_MS / (1000 * FADE_SECONDS)))

    def show_deformation(self) -> None:
        self.display().deformation(self.chosen(self.ui.deformationBox), visible_3d=self.ui.threeDBox.checked)

    def show_log_jacobian(self) -> None:
        if self.ui.logJacobianMapBox.checked:
            self.display().log_jacobian()
        else:
            self.display().hide("log_jacobian")

    def show_folds(self) -> None:
        if not self.ui.foldsMapBox.checked:
            self.display().hide("folds")
            return
        _node, count, percent = self.display().folds()
        text = _("No voxel folds.") if not count else _("{count} voxels fold ({percent:.3g} %).").format(count=count, percent=percent)
        self.say("warning" if count else "done", text)

    def show_contours(self) -> None:
        when = self.chosen(self.ui.contoursBox)
        if not when:
            self.display().hide("contours")
            return
        fixed, moving = self.node.qualityFixedStructures, self.node.qualityMovingStructures
        if fixed is None or moving is None:
            raise InputError("contours need a segmentation of both volumes; choose the fixed and the moving structures")
        self.display().contours(fixed, moving, after=when == "after")

    def show_distances(self) -> None:
        if not self.ui.distancesBox.checked:
            self.display().hide("landmarks")
            return
        fixed, moving = self.node.qualityFixedLandmarks, self.node.qualityMovingLandmarks
        if fixed is None or moving is None:
            raise InputError("distances need landmarks of both volumes; choose the fixed and the moving landmarks")
        table, rows = self.display().landmarks(fixed, moving)
        fill_table(self.ui.metricsTable, rows)
        most = max(len(mrml.names_of(node)) for node in (fixed, moving))
        if len(rows) < most:
            self.say("warning", _("{count} of {most} landmarks have the same name in both lists; the others are left out.").format(count=len(rows), most=most))
        elif mrml.pairing_remark(fixed, moving):
            self.say("warning", f"Note: {mrml.pairing_remark(fixed, moving)}.")

    # ----------------------------------------------------------------------------------------------------------- figures

    def evaluate(self) -> None:
        """Start the evaluation in the worker, or cancel the one that runs."""
        if self.evaluation is not None:
            self.evaluation.cancel()
            return
        node = self.node
        self.evaluation = self.logic.start_evaluation(
            node.result, node.qualityFixedStructures, node.qualityMovingStructures, node.qualityFixedLandmarks, node.qualityMovingLandmarks,
            on_end=self.evaluated)
        self.say("busy", _("Evaluating ..."))
        self.panel.wake()
        self.refresh()

    def evaluated(self, run, event: dict) -> None:
        self.evaluation = None
        if event["event"] == "done":
            fill_table(self.ui.metricsTable, event["rows"])
            self.say("done", event["message"])
        else:
            self.say("error" if event["event"] == "failed" else "warning", event["message"])
        self.refresh()

    def save_csv(self) -> None:
        from ..quality import export_csv

        path = qt.QFileDialog.getSaveFileName(self.widget, _("Save the figures"), "registration.csv", "CSV (*.csv)")
        path = with_ending(path, ".csv")
        if path:
            export_csv(self.table_node(), path)
            self.say("done", _("Saved {path}.").format(path=path))

    def table_node(self):
        """The table node of the registration's figures, which the run or Evaluate has made. InputError where there is none."""
        found = roles_of(self.node.result).get("metrics")
        if found is None:
            raise InputError("there are no figures yet; press Evaluate first")
        return found

    def save_report(self) -> None:
        path = qt.QFileDialog.getSaveFileName(self.widget, _("Save the report"), "registration.html", "HTML (*.html)")
        path = with_ending(path, ".html")
        if path:
            self.evaluation = self.logic.start_report(self.node.result, path, on_end=self.evaluated)
            self.say("busy", _("Writing the report ..."))
            self.panel.wake()
            self.refresh()

    # --------------------------------------------------------------------------------------------------------------- end

    def clear(self) -> None:
        self.take_away()
        self.say("", "")

    def take_away(self) -> None:
        """Remove the displays and put the controls back."""
        self.flicker.stop()
        self.put_back("modeBox", "deformationBox", "contoursBox", "logJacobianMapBox", "foldsMapBox", "distancesBox", "threeDBox")
        if self.quality is not None:
            self.quality.clear()
        self.quality = None

    def left(self) -> None:
        """Nothing flickers while another module is shown, and the control does not say so."""
        if self.flicker.active:
            self.ui.modeBox.currentIndex = 0

    def tick(self) -> bool:
        return self.evaluation is not None

    def close(self) -> None:
        self.take_away()
        self.evaluation, self.shown = None, None
        fill_table(self.ui.metricsTable, [])
