"""Cohort structure: is one atlas enough? Distances, a map of the subjects, types, and what these depend on, from files or from the scene."""

from __future__ import annotations

import json
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from DeepRegistrationLib.errors import InputError

from .. import mrml
from ..atlas_run import new_row
from ..curves import drawn, scattered
from ..quality_tables import table_from_rows
from .base import Page
from .checklist import CheckList
from .parameters import ParameterForm, changed_values
from .tables import fill_table

SOURCES = (
    ("labels", "Label maps: a folder or a list"),
    ("scene", "Label maps of the scene"),
    ("maps", "Images on a common lattice: a folder or a list"),
    ("atlas", "Deformations of a finished atlas"),
    ("profiles", "Profiles: a table"),
    ("features", "Features: a table"),
    ("distances", "Distances: a table"),
)
TABLES = ("profiles", "features", "distances")
LABEL_CLASSES = ("vtkMRMLSegmentationNode", "vtkMRMLLabelMapVolumeNode")
PICTURE_WIDTH, PICTURE_HEIGHT = 340, 280


class AtlasStructurePage(Page):
    """See the file's first line. ``job`` runs; ``found`` is what the last one gave: record, subjects' rows and folder."""

    UI = "AtlasBuilderStructure.ui"
    STATUS = "structure"

    def __init__(self, panel, layout):
        super().__init__(panel, layout)
        self.job, self.found, self.source = None, None, ""
        self.form = ParameterForm(
            self.ui.structureParametersWidget, self.parameter_changed, lambda text: self.say("error", text)
        )
        self.ui.structureSourceBox.connect(
            "currentIndexChanged(int)",
            lambda index: (
                None if self.filling else self.put("structureSource", self.chosen(self.ui.structureSourceBox))
            ),
        )
        self.ui.structurePictureBox.connect(
            "currentIndexChanged(int)", lambda index: None if self.filling else self.show_picture()
        )
        for edit, name in self.edits():
            edit.connect("currentPathChanged(QString)", lambda path, name=name: self.put(name, path or ""))
        self.list = CheckList(self.ui.structureNodesList, self.show_readiness, usual=list)
        self.ui.structureTypesTable.connect("itemSelectionChanged()", self.show_readiness)
        self.buttons(
            {
                "structureRunButton": self.run_or_stop,
                "structureResetButton": self.reset,
                "structureBuildButton": self.build,
                "structureTableButton": self.add_table,
            }
        )
        self.show_found()
        self.show_running(False)

    def edits(self):
        return (
            (self.ui.structureDataEdit, "structureData"),
            (self.ui.structureCovariatesEdit, "structureCovariates"),
            (self.ui.structureFolderEdit, "structureFolder"),
        )

    def guarded(self, act) -> None:
        super().guarded(act)
        self.refresh()

    # -------------------------------------------------------------------------------------------------------- up to date

    @property
    def running(self) -> bool:
        return self.job is not None

    @property
    def parameters(self) -> list[dict]:
        return self.logic.methods.analyses["cortical-types"]["parameters"]

    def refresh(self) -> None:
        if self.node is None:
            return
        self.fill(self.ui.structureSourceBox, [(name, _(text)) for name, text in SOURCES], self.node.structureSource)
        self.show_paths(self.edits())
        scene = self.node.structureSource == "scene"
        self.ui.structureDataEdit.visible = self.ui.structureDataEditLabel.visible = not scene
        self.ui.structureNodesList.visible = scene
        self.form.build(self.parameters)
        usual = {p["name"]: p["default"] for p in self.parameters}
        self.form.show(usual | json.loads(self.node.structureValues or "{}"), usual)
        self.ui.structureResetButton.enabled = self.node.structureValues not in ("", "{}")
        self.show_nodes()
        self.show_readiness()

    def show_nodes(self) -> None:
        """The list of segmentations and label maps; new ones are checked."""
        nodes = [
            node
            for kind in LABEL_CLASSES
            for node in slicer.util.getNodesByClass(kind)
            if not node.GetHideFromEditors()
        ]
        self.list.show(nodes)

    def missing(self) -> str:
        """What has to be chosen before an analysis; '' where nothing is missing."""
        if self.node.structureSource == "scene":
            return "" if len(self.list.checked()) >= 8 else _("Check at least eight label maps or segmentations.")
        if self.node.structureData:
            return ""
        return {"atlas": _("Choose the folder of a finished atlas.")}.get(
            self.node.structureSource,
            _("Choose a table.") if self.node.structureSource in TABLES else _("Choose a folder or a list."),
        )

    def show_readiness(self) -> None:
        if self.node is None:
            return
        missing = self.missing()
        self.ui.structureRunButton.text = _("Stop") if self.running else _("Analyze")
        self.ui.structureRunButton.enabled = self.running or not missing
        self.ui.structureRunButton.toolTip = missing or (
            _("Stop the analysis") if self.running else _("Find types of subjects and what they depend on")
        )
        self.ui.structureMissingLabel.text = missing
        self.ui.structureMissingLabel.visible = bool(missing) and not self.running
        for name in ("structureForm", "structureNodesList", "structureAdvancedBox"):
            getattr(self.ui, name).enabled = not self.running
        several = self.found is not None and self.found["record"]["types"] > 1 and self.source in ("labels", "maps")
        self.ui.structureBuildButton.enabled = several and self.type_selected() is not None
        self.ui.structureTableButton.enabled = self.found is not None

    def show_running(self, running: bool) -> None:
        self.ui.structureProgressBar.visible = self.ui.structureStageLabel.visible = running
        self.ui.structureProgressBar.value = 0
        if running:
            self.ui.structureStageLabel.text = _("Preparing")
        self.show_readiness()

    # ---------------------------------------------------------------------------------------------------------- choices

    def parameter_changed(self, name: str, value) -> None:
        """Keep what differs from the usual values."""
        usual = {p["name"]: p["default"] for p in self.parameters}
        self.node.structureValues = changed_values(self.node.structureValues, usual, name, value)

    def reset(self) -> None:
        self.node.structureValues = "{}"

    def type_selected(self) -> int | None:
        """The number of the selected type, from 1."""
        model = self.ui.structureTypesTable.selectionModel()
        chosen = [index.row() for index in model.selectedRows()] if model is not None else []
        return chosen[0] + 1 if len(chosen) == 1 else None

    # -------------------------------------------------------------------------------------------------------------- run

    def run_or_stop(self) -> None:
        if self.running:
            self.job.cancel()
            return
        self.logic.ensure_for_structure()
        request = self.request()
        self.source = self.node.structureSource
        self.job = self.logic.runner.submit(request, self.on_event)
        self.show_running(True)
        self.panel.wake()

    def request(self) -> dict:
        """The parameter node as a request. InputError for nodes that are no label maps."""
        node, kind = self.node, self.node.structureSource
        request = {
            "command": "structure",
            "kind": "labels" if kind == "scene" else kind,
            "covariates": node.structureCovariates,
            "seed": node.seed,
            "values": json.loads(node.structureValues or "{}"),
            "out": node.structureFolder,
        }
        return (
            {**request, "label_maps": [label_map(each) for each in self.list.checked()]}
            if kind == "scene"
            else {**request, "data": node.structureData}
        )

    def on_event(self, job, event: dict) -> None:
        """Called from the panel's timer, on the main thread."""
        if job is not self.job or self.node is None:
            return
        kind = event["event"]
        if kind == "progress":
            self.show_progress(event)
        elif kind in ("done", "failed", "cancelled"):
            self.job = None
            self.show_running(False)
            if kind == "done":
                self.found = event["result"]
                self.show_found()
                self.say("warning" if self.found["record"]["set_aside"] else "done", told(self.found))
            else:
                self.say(
                    "error" if kind == "failed" else "warning", event.get("message") or _("The analysis was stopped.")
                )
            self.show_readiness()

    # ----------------------------------------------------------------------------------------------------------- results

    def show_found(self) -> None:
        """Answer, pictures and tables of the last analysis; nothing before there is one."""
        there = self.found is not None
        for name in (
            "structureAnswerLabel",
            "structurePictureBox",
            "structurePictureLabel",
            "structureTypesTable",
            "structureRow",
        ):
            getattr(self.ui, name).visible = there
        self.ui.structureEffectsTable.visible = there and bool(self.found["record"]["effects"])
        if not there:
            return
        record = self.found["record"]
        self.ui.structureAnswerLabel.text = record["answer"]
        drawn_by_worker = [
            (name, text)
            for name, text in (
                ("distances.png", _("Distances, by type")),
                ("dimension.png", _("Correlation dimension")),
            )
            if name in record["pictures"]
        ]
        self.fill(
            self.ui.structurePictureBox,
            [("map", _("Map of the subjects")), ("fits", _("Numbers of components")), *drawn_by_worker],
            "map",
        )
        self.show_picture()
        fill_table(
            self.ui.structureTypesTable,
            [
                {"type": f"{k + 1}", "subjects": str(size), "center": center}
                for k, (size, center) in enumerate(zip(record["sizes"], record["centers"]))
            ],
        )
        fill_table(
            self.ui.structureEffectsTable,
            [
                {
                    "dimension": effect["target"],
                    "covariate": effect["covariate"],
                    "share": f"{100 * effect['share']:.0f} %",
                    "corrected p": f"{effect['corrected']:.2g}",
                }
                for effect in sorted(record["effects"], key=lambda effect: effect["corrected"])
            ],
        )

    def show_picture(self) -> None:
        chosen = self.chosen(self.ui.structurePictureBox)
        if chosen.endswith(".png"):
            picture = qt.QPixmap(str(Path(self.found["out"]) / chosen)).scaledToWidth(
                PICTURE_WIDTH, qt.Qt.SmoothTransformation
            )
        else:
            picture = drawn_map(self.found) if chosen == "map" else drawn_fits(self.found["record"])
        self.ui.structurePictureLabel.pixmap = picture

    def build(self) -> None:
        """Choose the subjects of the selected type under 'Build an atlas'."""
        wanted, rows = self.type_selected(), self.found["subjects"]
        left_out = [row["subject"] for row in rows if int(row["type"]) != wanted]
        self.panel.page("build").take(
            self.node.structureData, left_out, [new_row({"name": row["subject"]}) for row in rows]
        )

    def add_table(self) -> None:
        """Put the subjects' rows into the scene. InputError where the analysis has gone."""
        if self.found is None:
            raise InputError("there is no analysis; press Analyze first")
        table_from_rows(self.found["subjects"], f"{Path(self.found['out']).name} subjects")
        self.say("done", _("The table is in the scene; see the module Tables."))

    # -------------------------------------------------------------------------------------------------------- life cycle

    def tick(self) -> bool:
        return self.running

    def close(self) -> None:
        if self.job is not None:
            self.job.cancel()
        self.job, self.found = None, None
        self.list.clear()
        self.show_found()
        self.show_running(False)


def told(found: dict) -> str:
    """Dimension and who was set aside, in one sentence."""
    record = found["record"]
    parts = [
        f"{view['kind']}: dimension " + ("not known" if view["dimension"] is None else f"{view['dimension']:.1f}")
        for view in record["views"]
    ]
    text = f"{record['subjects']} subjects; " + ", ".join(parts)
    aside = list(record["set_aside"].items())
    remarks = (
        [f"set aside: {aside[0][0]} ({aside[0][1]})" + (f" and {len(aside) - 1} more" if len(aside) > 1 else "")]
        if aside
        else []
    ) + record["remarks"]
    return "; ".join([text, *remarks])


def drawn_map(found: dict):
    """The first two coordinates of all subjects, by type."""
    rows, sizes = found["subjects"], found["record"]["sizes"]
    known = ("subject", "type", "certainty", "center")
    columns = [name for name in rows[0] if name not in known][:2]
    points = [
        tuple(float(row[name]) for name in columns) if len(columns) == 2 else (float(row[columns[0]]), 0.0)
        for row in rows
    ]
    names = [_("type {number}: {count} subjects").format(number=k + 1, count=size) for k, size in enumerate(sizes)]
    return scattered(PICTURE_WIDTH, PICTURE_HEIGHT, points, [int(row["type"]) - 1 for row in rows], names)


def drawn_fits(record: dict):
    """BIC and silhouette over the number of components."""
    fits = record["mixtures"]
    bic = [(fit["components"], fit["bic"]) for fit in fits]
    silhouette = [(fit["components"], fit["silhouette"]) for fit in fits if fit["silhouette"] is not None]
    texts = [
        _("BIC, lower is better; 1 to {most} components").format(most=fits[-1]["components"]),
        _("silhouette, higher is better; {chosen} components chosen").format(chosen=record["components"]),
    ]
    return drawn(PICTURE_WIDTH, PICTURE_HEIGHT, (bic, silhouette), texts)


def label_map(node):
    """A segmentation or label map node as a LabelMap under its own name."""
    reference = (
        None
        if node.IsA("vtkMRMLLabelMapVolumeNode")
        else node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole())
    )
    if node.IsA("vtkMRMLSegmentationNode") and reference is None:
        raise InputError(
            f"the segmentation '{node.GetName()}' has no source volume; choose one in the Segment Editor, or export it as a label map"
        )
    return mrml.labelmap_of(node, reference if reference is not None else node)
