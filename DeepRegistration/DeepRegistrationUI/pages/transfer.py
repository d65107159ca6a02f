"""Transfer: carry segmentations, landmarks, curves, models and volumes through a registration, both ways, as copies or live."""

from __future__ import annotations

import slicer
from slicer.i18n import tr as _

from DeepRegistrationLib.errors import InputError

from ..records import ATTRIBUTE, MAIN, is_record, remark_on_places, roles_of
from ..state import Carry
from .base import Page
from .checklist import CheckList

KINDS = (("vtkMRMLSegmentationNode", "segmentation"), ("vtkMRMLLabelMapVolumeNode", "label map"), ("vtkMRMLMarkupsFiducialNode", "landmarks"),
         ("vtkMRMLMarkupsCurveNode", "curve"), ("vtkMRMLMarkupsNode", "markups"), ("vtkMRMLModelNode", "model"), ("vtkMRMLVolumeNode", "volume"))


class TransferPage(Page):
    """See the file's first line."""

    UI = "DeepRegistrationTransfer.ui"
    STATUS = "transfer"

    def __init__(self, panel, layout):
        super().__init__(panel, layout)
        self.work = None
        self.ui.transferResultSelector.addAttribute(MAIN, ATTRIBUTE)
        self.list = CheckList(self.ui.nodesList, self.show_readiness)
        self.clicked("transferButton", self.transfer)
        self.clicked("releaseButton", self.release)

    def refresh(self) -> None:
        if self.node is None:
            return
        self.list.show(carriable(slicer.mrmlScene), lambda node: f"{node.GetName()} ({kind_of(node)})")
        self.ui.referenceSelector.enabled = self.node.transferCarry == Carry.COPIES
        self.show_readiness()

    def show_readiness(self) -> None:
        missing = ""
        if not is_record(self.node.result):
            missing = _("Choose a registration; there is one after the first Apply.")
        elif not self.list.checked():
            missing = _("Check at least one node in the list.")
        busy = self.work is not None
        self.ui.transferButton.text = _("Cancel") if busy else _("Transfer")
        self.ui.transferButton.enabled = busy or not missing
        self.ui.transferButton.toolTip = missing or _("Carry the checked nodes to the other image")
        self.ui.releaseButton.enabled = not busy and bool(self.list.checked())
        self.ui.transferMissingLabel.text = missing
        self.ui.transferMissingLabel.visible = bool(missing) and not busy

    def transfer(self) -> None:
        """Start the transfer, or cancel the one that runs."""
        if self.work is not None:
            self.work.cancel()
            return
        from ..transfer import Transfer

        mode = "copy" if self.node.transferCarry == Carry.COPIES else "live"
        try:
            self.work = Transfer(self.list.checked(), roles_of(self.node.result), self.node.transferDirection.value, self.node.transferReference,
                                 mode, self.logic.runner if mode == "copy" else None, on_end=self.ended)
            self.say("busy", _("Carrying the data ..."))
            self.work.start()
        except InputError as error:
            self.work = None
            self.say("error", str(error))
        if self.work is not None:
            self.panel.wake()
        self.show_readiness()

    def ended(self, work) -> None:
        """The transfer is over; says what was made."""
        self.work = None
        if work.state == "done":
            names = ", ".join(f"'{node.GetName()}'" for node in work.made[:3]) + (" ..." if len(work.made) > 3 else "")
            remark = remark_on_places(self.node.result) if is_record(self.node.result) else ""
            self.say("done", _("Carried {count}: {names}.").format(count=len(work.made), names=names) + (f" Note: {remark}." if remark else ""))
        else:
            self.say("error" if work.state == "failed" else "warning", work.message or _("The transfer was cancelled; nothing was changed."))
        self.panel.later.start()

    def release(self) -> None:
        from ..transfer import release

        if release(self.list.checked()):
            self.say("done", _("The checked nodes are where they were before."))
        else:
            self.say("warning", _("None of the checked nodes is under a registration; copies can be deleted in the module Data."))

    def tick(self) -> bool:
        return self.work is not None and self.work.tick()

    def close(self) -> None:
        if self.work is not None:
            self.work.cancel()
        self.work = None
        self.list.clear()


def carriable(scene) -> list:
    """The visible nodes of a scene that a transform can carry, in the order of ``KINDS``."""
    nodes = []
    for name, _kind in KINDS:
        found = scene.GetNodesByClass(name)
        found.UnRegister(None)
        nodes += [found.GetItemAsObject(k) for k in range(found.GetNumberOfItems())]
    seen = {node.GetID(): node for node in nodes if not node.GetHideFromEditors()}
    return list(seen.values())


def kind_of(node) -> str:
    return next(kind for name, kind in KINDS if node.IsA(name))
