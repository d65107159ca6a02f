"""Build an atlas: the table of the cohort, the choices, the run in the worker with its template and curves, and what comes of it in the scene."""

from __future__ import annotations

import json
import os
from pathlib import Path
from textwrap import shorten

import qt
import slicer
from slicer.i18n import tr as _

from DeepRegistrationLib.errors import InputError

from .. import mrml
from ..atlas_ages import columns_of, is_over_age, show_item
from ..atlas_run import PATIENCE, AtlasRun, finished, is_begun, is_done, new_row, quality_text, require_atlas
from ..atlas_scene import MARK, deliver_atlas, deliver_carried, named, show_template
from ..atlas_state import METHOD
from ..curves import drawn
from ..sentences import duration
from ..training import images_of
from .method import MethodPage
from .train import volumes

HEADINGS = ("Subject", "Status", "Time", "Quality")
STATUS = {
    "waiting": "waiting",
    "running": "building",
    "done": "done",
    "aside": "set aside",
    "left": "left out",
    "carried": "brought",
}
MESSAGE = 100
"""Characters of a message that the table shows."""
CURVES_WIDTH, CURVES_HEIGHT = 340, 170


class AtlasBuildPage(MethodPage):
    """See the file's first line. ``work`` is the build that runs or ran last, ``job`` a smaller one: a listing, or subjects that are brought to the atlas
    in the folder ``carrying``."""

    UI = "AtlasBuilderBuild.ui"
    STATUS = "atlas"
    METHOD = METHOD

    def __init__(self, panel, layout):
        super().__init__(panel, layout)
        self.job, self.template, self.carrying = None, None, None
        table = self.ui.atlasTable
        table.setColumnCount(len(HEADINGS))
        table.setHorizontalHeaderLabels([_(text) for text in HEADINGS])
        table.verticalHeader().visible = False
        table.horizontalHeader().stretchLastSection = True
        for column, width in enumerate((110, 65, 55)):
            table.setColumnWidth(column, width)
        table.connect("itemChanged(QTableWidgetItem*)", lambda item: None if self.filling else self.checks_changed())
        table.connect("itemSelectionChanged()", self.show_readiness)
        self.choice(self.ui.atlasSourceBox, self.source_chosen)
        self.choice(self.ui.atlasMethodBox, self.method_chosen)
        self.choice(self.ui.atlasCovariateBox, lambda: self.put("atlasCovariate", self.chosen(self.ui.atlasCovariateBox)))
        self.ui.atlasCovariatesEdit.connect("currentPathChanged(QString)", lambda path: self.put("atlasCovariates", path or ""))
        self.ui.atlasAgeSlider.connect("valueChanged(int)", self.age_moved)
        self.ui.atlasDataEdit.connect("currentPathChanged(QString)", self.data_chosen)
        self.ui.atlasFolderEdit.connect("currentPathChanged(QString)", lambda path: self.put("atlasFolder", path or ""))
        self.buttons(
            {
                "atlasListButton": self.list_subjects,
                "atlasRetryButton": self.carry,
                "atlasButton": self.build_or_stop,
                "atlasShowButton": self.show_atlas,
            }
        )
        self.ui.atlasCurvesLabel.visible = False
        self.show_running(False)

    # -------------------------------------------------------------------------------------------------------- up to date

    @property
    def rows(self) -> list[dict]:
        """The subjects: of the build that runs, else those that are kept, else the volumes of the scene."""
        if self.running and self.work.rows:
            return self.work.rows
        kept = json.loads(self.node.atlasRows or "[]")
        if self.node.atlasSource != "scene":
            return kept
        known = {row["name"]: row for row in kept}
        return [known.get(name) or new_row({"name": name}) for name in named(cohort_volumes())]

    def keep(self, rows: list[dict]) -> None:
        self.put("atlasRows", json.dumps(rows))

    def refresh(self) -> None:
        if self.node is None:
            return
        self.fill(
            self.ui.atlasSourceBox,
            [("folder", _("A folder or a list")), ("scene", _("Volumes of the scene"))],
            self.node.atlasSource,
        )
        edits = {"atlasDataEdit": "atlasData", "atlasFolderEdit": "atlasFolder", "atlasCovariatesEdit": "atlasCovariates"}
        self.show_paths([(getattr(self.ui, edit), name) for edit, name in edits.items()])
        scene = self.node.atlasSource == "scene"
        for name in ("atlasDataEdit", "atlasDataEditLabel", "atlasListButton"):
            getattr(self.ui, name).visible = not scene
        self.fill(self.ui.atlasMethodBox, [(name, _(entry["title"])) for name, entry in self.methods.entries.items()], self.method)
        self.show_method()
        self.show_ages()
        self.show_rows()
        self.show_readiness()

    @property
    def method(self) -> str:
        return self.node.atlasMethod if self.node.atlasMethod in self.methods.entries else METHOD

    @property
    def columns(self) -> list[str]:
        """The columns that may hold the ages: of the table, else of the list of images."""
        return columns_of(self.node.atlasCovariates or ("" if self.node.atlasSource == "scene" else self.node.atlasData))

    def show_ages(self) -> None:
        """The choice of the ages where the method or the atlas in the folder needs them, and the slider where an atlas over age is in the scene."""
        wanted = self.entry["covariate"] or is_over_age(self.node.atlasFolder)
        for name in ("atlasCovariatesEdit", "atlasCovariateBox"):
            getattr(self.ui, name).visible = getattr(self.ui, f"{name}Label").visible = wanted
        columns = [name for name in (self.node.atlasCovariate,) if name and name not in self.columns] + self.columns
        self.fill(self.ui.atlasCovariateBox, [("", _("Choose a column"))] + [(name, name) for name in columns], self.node.atlasCovariate)
        browser, slider = self.node.atlasBrowser, self.ui.atlasAgeSlider
        self.ui.atlasAgeForm.visible = browser is not None
        if browser is not None:
            self.filling = True
            slider.maximum, slider.value = browser.GetNumberOfItems() - 1, browser.GetSelectedItemNumber()
            self.filling = False
            age = browser.GetMasterSequenceNode().GetNthIndexValue(browser.GetSelectedItemNumber())
            self.ui.atlasAgeLabel.text = _("Age shown: {age}").format(age=age)

    def show_rows(self) -> None:
        """The table; the check in the first column says whether a subject takes part."""
        rows, table, left_out = self.rows, self.ui.atlasTable, set(json.loads(self.node.atlasLeftOut or "[]"))
        self.filling = True
        if table.rowCount != len(rows):
            table.setRowCount(len(rows))
        for r, row in enumerate(rows):
            seconds = "" if row.get("seconds") is None else duration(row["seconds"])
            quality = "; ".join(filter(None, (row["quality"], remark(row)))) if row["status"] in ("aside", "done", "carried") else row["quality"]
            for c, text in enumerate((row["name"], _(STATUS[row["status"]]), seconds, quality)):
                item = table.item(r, c)
                if item is None:
                    item = qt.QTableWidgetItem()
                    table.setItem(r, c, item)
                if item.text() != text:
                    item.setText(text)
                item.setToolTip(row["message"] or row["image"] or row["name"])
            table.item(r, 0).setFlags(table.item(r, 0).flags() | qt.Qt.ItemIsUserCheckable)
            table.item(r, 0).setCheckState(qt.Qt.Unchecked if row["name"] in left_out else qt.Qt.Checked)
        table.resizeRowsToContents()
        self.filling = False

    def missing(self) -> str:
        """What has to be chosen before a build; '' where nothing is missing."""
        node = self.node
        if is_begun(node.atlasFolder):
            return ""
        if is_done(node.atlasFolder):
            return _("The atlas in this folder is done; choose another folder for a new one.")
        if node.atlasSource != "scene" and not node.atlasData:
            return _("Choose a folder with images or a list.")
        left_out = set(json.loads(node.atlasLeftOut or "[]"))
        if (node.atlasSource == "scene" or self.rows) and sum(row["name"] not in left_out for row in self.rows) < 2:
            return _("Check at least two subjects.")
        if self.entry["covariate"] and node.atlasCovariate not in self.columns:
            return _("Choose the column that holds the ages.") if self.columns else _("Choose a table of ages (.csv, a subject a row).")
        return "" if node.atlasFolder else _("Choose a folder for the atlas.")

    def show_readiness(self) -> None:
        if self.node is None:
            return
        missing, goes_on, busy = self.missing(), is_begun(self.node.atlasFolder), self.job is not None
        done, stopping = is_done(self.node.atlasFolder), self.running and self.work.state == "stopping"
        stops = self.running or self.carrying is not None
        self.ui.atlasButton.text = _("Stop") if stops else _("Go on") if goes_on else _("Build")
        self.ui.atlasButton.enabled = (stops and not stopping) or (not self.running and not busy and not missing)
        self.ui.atlasButton.toolTip = _("Stop after this step; what is finished is kept") if stops else missing or (
            _("Go on with the build in the folder") if goes_on else _("Build the atlas")
        )
        if goes_on:
            missing = _("A build was begun in this folder; Go on takes up its own cohort and settings. Choose another folder for a new one.")
        self.ui.atlasMissingLabel.text = missing
        self.ui.atlasMissingLabel.visible = bool(missing) and not self.running
        self.ui.atlasShowButton.visible, self.ui.atlasShowButton.enabled = done and not self.running, not busy
        self.ui.atlasListButton.enabled = bool(self.node.atlasData) and not self.running and not busy
        self.ui.atlasRetryButton.enabled = bool(self.chosen_rows()) and done and not self.running and not busy
        for name in ("atlasForm", "atlasChoiceForm", "atlasAdvancedBox"):
            getattr(self.ui, name).enabled = not self.running

    def show_curves(self) -> None:
        curves = self.work.curves
        points = [curves[name].points for name in ("similarity", "mean_displacement_left", "sharpness")]
        self.ui.atlasCurvesLabel.visible = bool(points[0])
        if points[0]:
            texts = [
                _("similarity {value:.4g}"),
                _("mean displacement {value:.3g} mm"),
                _("gradient energy {value:.3g} of the cohort's"),
            ]
            self.ui.atlasCurvesLabel.pixmap = drawn(
                CURVES_WIDTH,
                CURVES_HEIGHT,
                points,
                [text.format(value=line[-1][1]) for text, line in zip(texts, points)],
            )

    # --------------------------------------------------------------------------------------------------------- choices

    def source_chosen(self) -> None:
        self.node.atlasSource = self.chosen(self.ui.atlasSourceBox)
        self.node.atlasRows = self.node.atlasLeftOut = "[]"
        self.refresh()

    def method_chosen(self) -> None:
        """Another method: its presets and parameters are its own."""
        self.node.atlasMethod, self.node.atlasPreset, self.node.atlasValues = self.chosen(self.ui.atlasMethodBox), "default", "{}"
        self.refresh()

    def age_moved(self, number: int) -> None:
        if not self.filling and self.node is not None and self.node.atlasBrowser is not None:
            show_item(self.node.atlasBrowser, number)
            self.show_ages()

    def data_chosen(self, path) -> None:
        """Another cohort: its subjects are not known yet."""
        if not self.filling and self.node is not None and (path or "") != self.node.atlasData:
            self.node.atlasData, self.node.atlasRows, self.node.atlasLeftOut = path or "", "[]", "[]"

    def checks_changed(self) -> None:
        table = self.ui.atlasTable
        left_out = [
            table.item(r, 0).text() for r in range(table.rowCount) if table.item(r, 0).checkState() != qt.Qt.Checked
        ]
        self.put("atlasLeftOut", json.dumps(left_out))

    def chosen_rows(self) -> list[dict]:
        """The selected rows that are not part of the atlas."""
        model = self.ui.atlasTable.selectionModel()
        numbers = sorted({index.row() for index in model.selectedRows()}) if model is not None else []
        rows = self.rows
        return [rows[n] for n in numbers if n < len(rows) and rows[n]["status"] != "done"]

    def take(self, data: str, left_out: list[str], rows: list[dict]) -> None:
        """The subjects of one type, from the page of the structure."""
        self.node.atlasSource, self.node.atlasData = "folder", data
        self.node.atlasRows, self.node.atlasLeftOut = json.dumps(rows), json.dumps(left_out)
        self.panel.open("build")
        self.refresh()

    # ------------------------------------------------------------------------------------------------------------- runs

    def list_subjects(self) -> None:
        """Ask the worker who is in the folder or the list."""
        self.logic.ensure_torch()
        self.start_job({"command": "cohort", "data": self.node.atlasData}, self.on_list, _("Looking at the cohort"))

    def start_job(self, request: dict, on_event, text: str) -> None:
        self.job = self.logic.runner.submit(request, on_event)
        self.show_running(True)
        self.ui.atlasStageLabel.text = text
        self.panel.wake()

    def end_job(self, kind: str, sentence: str) -> None:
        self.job, self.carrying = None, None
        self.show_running(False)
        self.say(kind, sentence)
        self.refresh()

    def on_list(self, job, event: dict) -> None:
        if self.node is None or job is not self.job:
            return
        if event["event"] == "done":
            rows = [new_row(subject) for subject in event["result"]["subjects"]]
            labels = sum(subject["labels"] for subject in event["result"]["subjects"])
            self.keep(rows)
            strays = sum(row["status"] == "aside" for row in rows)
            text = _("{count} subjects, {labels} with labels.").format(count=len(rows) - strays, labels=labels)
            self.end_job("done", text + (_(" {count} files are no images, the table says why.").format(count=strays) if strays else ""))
        elif event["event"] in ("failed", "cancelled"):
            self.end_job("error", event.get("message", ""))

    def build_or_stop(self) -> None:
        if self.running or self.carrying is not None:
            (self.work if self.running else self.job).cancel()
            self.ui.atlasStageLabel.text = _("Stopping after this step")
            return
        self.logic.ensure_torch()
        self.work = AtlasRun(self.logic.runner, self.request(), self.on_event, self.rows)
        self.work.start()
        self.logic.work.append(self.work)
        self.template = None
        self.show_running(True)
        self.show_curves()
        self.panel.wake()

    def request(self) -> dict:
        """The parameter node as a request. InputError where volumes cannot be read."""
        node = self.node
        if is_begun(node.atlasFolder):
            return {"out": node.atlasFolder, "device": node.device, "threads": node.threads, "resume": True}
        left_out = json.loads(node.atlasLeftOut or "[]")
        request = {**self.request_of_method(), "out": node.atlasFolder, "workers": node.atlasWorkers}
        if self.entry["covariate"]:
            request |= {"covariate": node.atlasCovariate, "covariates": node.atlasCovariates}
        if node.atlasSource != "scene":
            return {**request, "data": node.atlasData, "left_out": left_out}
        nodes = {name: volume for name, volume in named(cohort_volumes()).items() if name not in left_out}
        sent = images_of(list(nodes.values()), slicer.util.getNodesByClass("vtkMRMLSegmentationNode"))
        return {**request, **sent, "names": list(nodes)}

    def on_event(self, work, event: dict) -> None:
        """Called from the panel's timer, on the main thread."""
        if work is not self.work or self.node is None:
            return
        kind = event["event"]
        if kind == "progress":
            self.show_progress(event, speak=work.state == "running")
        elif kind == "log":
            self.show_curves()
            self.show_live()
        elif kind in ("done", "failed", "cancelled"):
            self.ended(kind, work)

    def ended(self, kind: str, work) -> None:
        self.keep(work.rows)
        self.show_running(False)
        self.show_curves()
        self.say({"done": "done", "failed": "error", "cancelled": "warning"}[kind], work.message)
        if kind == "done":
            live, self.template = self.template, None
            nodes = deliver_atlas(work.folder, work.record, work.rows, self.node.atlasTransforms, live)
            self.node.atlasBrowser = nodes.get("browser")
        self.refresh()

    def show_live(self) -> None:
        """The newest template, where it is wanted."""
        made = self.work.template() if self.node.atlasLive else None
        if made is not None:
            self.template = show_template(made, self.template)

    def carry(self) -> None:
        """Bring the selected subjects to the finished atlas."""
        folder, rows = require_atlas(self.node.atlasFolder), self.chosen_rows()
        self.logic.ensure_torch()
        if self.node.atlasSource == "scene":
            nodes = named(cohort_volumes())
            gone = [row["name"] for row in rows if row["name"] not in nodes]
            if gone:
                raise InputError(f"'{gone[0]}' is not in the scene any more; load it again")
            subjects = [{"name": row["name"], "image": mrml.volume_of(nodes[row["name"]])} for row in rows]
        else:
            unknown = next((row["name"] for row in rows if not row["image"]), None)
            if unknown is not None:
                raise InputError(f"the image of '{unknown}' is not known; press List the subjects")
            subjects = [{"name": row["name"], "image": row["image"]} for row in rows]
        request = {
            "command": "carry",
            "atlas": str(folder),
            "subjects": subjects,
            "device": self.node.device,
            "threads": self.node.threads,
            "seed": self.node.seed,
            "patience_s": PATIENCE,
        }
        if is_over_age(str(folder)) and self.node.atlasCovariate:
            request |= {"covariate": self.node.atlasCovariate, "covariates": self.node.atlasCovariates, "data": self.node.atlasData}
        self.carrying = folder
        self.start_job(request, self.on_carried, _("Bringing subjects to the atlas"))

    def on_carried(self, job, event: dict) -> None:
        """Rows and nodes of every subject as it comes, so that Stop keeps those before it."""
        if self.node is None or job is not self.job:
            return
        kind = event["event"]
        if kind == "progress":
            self.show_progress(event)
        elif kind == "carried":
            self.keep([{**row, **brought(event)} if row["name"] == event["subject"] else row for row in self.rows])
            if "lost" not in event:
                deliver_carried(self.carrying, [event["subject"]], self.node.atlasTransforms)
        elif kind == "done":
            rows = event["result"]["rows"]
            lost, unlike = sum("lost" in row for row in rows), sum(bool(row.get("remark")) for row in rows)
            self.end_job(
                "warning" if lost or unlike else "done",
                _("{count} subjects were brought to the atlas.").format(count=len(rows) - lost)
                + (_(" {count} could not be, the table says why.").format(count=lost) if lost else "")
                + (_(" {count} are unlike the atlas, see the table.").format(count=unlike) if unlike else ""),
            )
        elif kind in ("failed", "cancelled"):
            self.end_job("error" if kind == "failed" else "warning", event.get("message") or _("Stopped; subjects that were brought before are kept."))

    def show_atlas(self) -> None:
        """Put the finished atlas of the folder into the scene."""
        folder = require_atlas(self.node.atlasFolder)
        record, rows = finished(folder)
        if not self.rows:
            self.keep(rows)
        self.node.atlasBrowser = deliver_atlas(folder, record, rows, self.node.atlasTransforms).get("browser")
        self.say("done", _("The atlas is in the scene; its folder is in the module Data."))

    # ------------------------------------------------------------------------------------------------------- life cycle

    def tick(self) -> bool:
        if self.running and self.node is not None and self.work.rows:
            self.show_rows()
        return self.running or self.job is not None

    def close(self) -> None:
        if self.job is not None:
            self.job.cancel()
        self.work, self.job, self.template, self.carrying = None, None, None, None
        self.ui.atlasTable.setRowCount(0)
        self.ui.atlasCurvesLabel.visible = False
        self.show_running(False)


def brought(row: dict) -> dict:
    """What a row of the table says of a subject after it was brought to the atlas, or could not be."""
    if "lost" in row:
        return {"status": "aside", "quality": "", "message": row["lost"]}
    return {"status": "carried", "quality": quality_text(row), "message": row.get("remark", "")}


def remark(row: dict) -> str:
    """The message of a row, short enough for the table: without the folder of its image; the whole is its tooltip."""
    return shorten(row["message"].replace(f"{Path(row['image']).parent}{os.sep}", "") if row["image"] else row["message"], MESSAGE, placeholder=" ...")


def cohort_volumes() -> list:
    """The volumes of the scene that are not made by this module."""
    return [node for node in volumes(slicer.mrmlScene) if not node.GetAttribute(MARK)]
