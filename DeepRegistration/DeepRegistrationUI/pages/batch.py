"""Batch: a table of pairs of volumes or files, worked through with the settings of Register; resumable."""

from __future__ import annotations

import json

import qt
from slicer.i18n import tr as _

from DeepRegistrationLib.errors import InputError

from ..batch import Batch, row_of_nodes, rows_of, rows_of_sequence
from ..registration import LANDMARKS
from ..sentences import duration
from .base import Page

KEPT = ("id", "kind", "fixed", "moving", "status", "seconds", "quality", "message", "row", "manifest", "frame", "reference", "group", "written")
HEADINGS = ("Pair", "Status", "Time", "Quality")
STATUS = {"waiting": "waiting", "running": "running", "done": "done", "failed": "failed", "cancelled": "stopped"}


class BatchPage(Page):
    """See the file's first line. The rows live in the parameter node as JSON, so they are saved with the scene."""

    UI = "DeepRegistrationBatch.ui"
    STATUS = "batch"

    def __init__(self, panel, layout):
        super().__init__(panel, layout)
        self.work = None
        table = self.ui.pairsTable
        table.setColumnCount(len(HEADINGS))
        table.setHorizontalHeaderLabels([_(text) for text in HEADINGS])
        table.verticalHeader().visible = False
        table.horizontalHeader().stretchLastSection = True
        for column, width in enumerate((130, 70, 50)):
            table.setColumnWidth(column, width)
        self.buttons({"addPairButton": self.add_pair, "addManifestButton": self.add_manifest, "addFramesButton": self.add_frames,
                      "removePairsButton": self.remove, "retryPairsButton": self.retry, "batchButton": self.run_or_stop})
        for selector in (self.ui.batchFixedSelector, self.ui.batchMovingSelector, self.ui.batchSequenceSelector):
            selector.connect("currentNodeChanged(vtkMRMLNode*)", lambda node: self.show_readiness())
        self.ui.batchReferenceSpin.connect("valueChanged(int)", lambda value: self.show_readiness())
        self.ui.batchFolderEdit.connect("currentPathChanged(QString)", self.folder_chosen)
        table.connect("itemSelectionChanged()", self.show_readiness)
        self.ui.batchProgressBar.visible = False

    def guarded(self, act) -> None:
        super().guarded(act)
        self.refresh()

    # ---------------------------------------------------------------------------------------------------------- the rows

    @property
    def rows(self) -> list[dict]:
        if self.work is not None and self.work.running:
            return self.work.rows
        rows = [] if self.node is None else json.loads(self.node.batchPairs or "[]")
        for role, row, side in self.sides(rows):
            row[side] = self.node.parameterNode.GetNodeReferenceID(role) or row[side]
        return rows

    @staticmethod
    def sides(rows: list[dict]) -> list[tuple[str, dict, str]]:
        """(role, row, side) for every node of the ``rows``: the parameter node refers to it, because a scene that is added to another one gives its
        nodes other IDs."""
        return [(f"batchPairs.{k}.{side}", row, side) for k, row in enumerate(rows) for side in ("fixed", "moving")
                if row["kind"] != "files" and row[side]]

    def keep(self, rows: list[dict]) -> None:
        """Write the rows into the parameter node."""
        wanted, roles = {role: row[side] for role, row, side in self.sides(rows)}, []
        self.node.parameterNode.GetNodeReferenceRoles(roles)
        for role in {role for role in roles if role.startswith("batchPairs.")} | set(wanted):
            self.node.parameterNode.SetNodeReferenceID(role, wanted.get(role))
        self.put("batchPairs", json.dumps([{key: row[key] for key in KEPT if key in row} for row in rows]))

    def refresh(self) -> None:
        if self.node is None:
            return
        if self.ui.batchFolderEdit.currentPath != self.node.batchFolder:
            self.filling = True
            self.ui.batchFolderEdit.currentPath = self.node.batchFolder
            self.filling = False
        rows, table = self.rows, self.ui.pairsTable
        if table.rowCount != len(rows):
            table.setRowCount(len(rows))
        for r, row in enumerate(rows):
            self.show_row(r, row)
        table.resizeRowsToContents()
        self.show_readiness()

    def show_row(self, r: int, row: dict) -> None:
        """One line of the table; the tooltip of the status says why a pair failed."""
        table = self.ui.pairsTable
        seconds = "" if row["seconds"] is None else duration(row["seconds"])
        name = _("Frame {number} of {group}").format(number=row["frame"] + 1, group=row["group"]) if row["kind"] == "frame" else row["id"]
        for c, text in enumerate((name, _(STATUS[row["status"]]), seconds, row["message"] if row["status"] == "failed" else row["quality"])):
            item = table.item(r, c)
            if item is None:
                item = qt.QTableWidgetItem()
                table.setItem(r, c, item)
            if item.text() != text:
                item.setText(text)
            item.setToolTip(row["message"] or (f"{row['moving']} -> {row['fixed']}" if row["kind"] == "files" else row["id"]))

    def show_readiness(self) -> None:
        if self.node is None:
            return
        running = self.work is not None and self.work.running
        rows = self.rows
        left = [row for row in rows if row["status"] != "done" and row["status"] != "failed"]
        missing = ""
        if not rows:
            missing = _("Add at least one pair.")
        elif not left:
            missing = _("No pair is waiting; select rows and press Retry to do them again.")
        elif not self.node.batchFolder and any(row["kind"] == "files" for row in rows):
            missing = _("Choose a folder for the results.")
        elif not self.node.batchFolder and not self.node.batchToScene and any(row["kind"] == "nodes" for row in rows):
            missing = _("Choose a folder for the results, or add them to the scene.")
        self.ui.batchButton.text = _("Stop") if running else _("Run")
        self.ui.batchButton.enabled = running or not missing
        self.ui.batchButton.toolTip = missing or _("Register all pairs that are left")
        self.ui.batchMissingLabel.text = missing
        self.ui.batchMissingLabel.visible = bool(missing) and not running
        fixed, moving = self.ui.batchFixedSelector.currentNode(), self.ui.batchMovingSelector.currentNode()
        self.ui.addPairButton.enabled = not running and fixed is not None and moving is not None
        self.ui.addManifestButton.enabled = not running
        self.show_frames(running)
        for button in (self.ui.removePairsButton, self.ui.retryPairsButton):
            button.enabled = not running and bool(self.selected())
        self.ui.batchProgressBar.visible = running
        self.ui.batchProgressBar.value = round(1000 * self.work.share) if running else 0

    def show_frames(self, running: bool) -> None:
        """The frames that can be the reference: those of the chosen sequence, or the fixed volume."""
        sequence, fixed = self.ui.batchSequenceSelector.currentNode(), self.ui.batchFixedSelector.currentNode()
        self.ui.batchReferenceSpin.maximum = max(1, 0 if sequence is None else sequence.GetNumberOfDataNodes())
        by_volume = self.ui.batchReferenceSpin.value == 0
        self.ui.addFramesButton.enabled = not running and sequence is not None and (fixed is not None or not by_volume)
        self.ui.addFramesButton.toolTip = _("Choose the fixed volume above, or a frame as the reference.") if by_volume and fixed is None else \
            _("Add every frame of the sequence as a pair with the reference.")

    def selected(self) -> list[int]:
        return sorted({index.row() for index in self.ui.pairsTable.selectionModel().selectedRows()})

    # ------------------------------------------------------------------------------------------------------- the buttons

    def add_pair(self) -> None:
        rows = self.rows
        self.keep([*rows, row_of_nodes(self.ui.batchFixedSelector.currentNode(), self.ui.batchMovingSelector.currentNode(), rows)])

    def add_frames(self) -> None:
        """Add the frames of the chosen sequence. InputError where it holds no volumes."""
        rows, number = self.rows, self.ui.batchReferenceSpin.value
        reference = number - 1 if number else self.ui.batchFixedSelector.currentNode()
        self.keep([*rows, *rows_of_sequence(self.ui.batchSequenceSelector.currentNode(), reference, rows)])

    def add_manifest(self) -> None:
        path = qt.QFileDialog.getOpenFileName(self.widget, _("Open a list of pairs"), "", "Lists (*.csv *.json)")
        if path:
            self.add_file(path)

    def add_file(self, path) -> None:
        """Add the pairs of a manifest. InputError where it cannot be used or names a pair that is there already."""
        rows, new = self.rows, rows_of(path)
        taken = {row["id"] for row in rows} & {row["id"] for row in new}
        if taken:
            raise InputError(f"the pair '{sorted(taken)[0]}' is in the table already; remove it there or give it another id in {path}")
        self.keep([*rows, *new])
        self.say("done", _("{count} pairs were added.").format(count=len(new)))

    def remove(self) -> None:
        chosen = set(self.selected())
        self.keep([row for k, row in enumerate(self.rows) if k not in chosen])
        self.ui.pairsTable.clearSelection()

    def retry(self) -> None:
        rows = self.rows
        for k in self.selected():
            rows[k].update(status="waiting", seconds=None, quality="", message="")
        self.keep(rows)

    def folder_chosen(self, path) -> None:
        self.put("batchFolder", path or "")

    def run_or_stop(self) -> None:
        if self.work is not None and self.work.running:
            self.work.cancel()
            return
        self.logic.ensure_torch()
        template = self.panel.pages["register"].choices().with_(
            fixed=None, moving=None, fixed_mask=None, moving_mask=None, fixed_points=None, moving_points=None, fixed_labels=None,
            moving_labels=None, live=False)
        if template.start_by_node or template.start == LANDMARKS:
            raise InputError("the start under Register is a transform node or landmarks, which fit one pair only; choose another start there")
        work = Batch(self.logic, self.rows, template, self.node.batchFolder, self.node.batchToScene, self.changed)
        work.start()
        self.work = work
        self.logic.work.append(work)
        self.panel.wake()

    def changed(self, work, row) -> None:
        """Called by the batch after every change."""
        if work is not self.work and self.work is not None:
            return
        self.keep(work.rows)
        if row is None:
            failed = any(each["status"] == "failed" for each in work.rows)
            self.say("warning" if failed or work.state == "cancelled" else "done", work.message)
        self.refresh()

    def tick(self) -> bool:
        return self.work is not None and self.work.running

    def close(self) -> None:
        self.work = None
        self.ui.pairsTable.setRowCount(0)
