"""Compare: two registrations side by side in the views, and their figures in one table."""

from __future__ import annotations

import slicer
from slicer.i18n import tr as _

from DeepRegistrationLib.errors import InputError

from ..quality_tables import compare_rows
from ..records import ATTRIBUTE, MAIN, all_records, figures_of, is_record, roles_of
from .base import Page
from .tables import fill_table


class ComparePage(Page):
    """See the file's first line."""

    UI = "DeepRegistrationCompare.ui"
    STATUS = "compare"

    def __init__(self, panel, layout):
        super().__init__(panel, layout)
        self.before = None
        for selector in (self.ui.firstSelector, self.ui.secondSelector):
            selector.addAttribute(MAIN, ATTRIBUTE)
        self.ui.compareButton.connect("clicked()", lambda: self.guarded(self.compare))
        self.ui.backButton.connect("clicked()", self.back)

    def refresh(self) -> None:
        if self.node is None:
            return
        first, second = self.node.compareFirst, self.node.compareSecond
        missing = ""
        if not (is_record(first) and is_record(second)):
            missing = _("Choose two registrations.")
        elif first is second:
            missing = _("The same registration was chosen twice; choose two different ones.")
        self.ui.compareButton.enabled = not missing
        self.ui.compareButton.toolTip = missing or _("The first result in the upper, the second in the lower row of views")
        self.ui.compareMissingLabel.text = missing
        self.ui.compareMissingLabel.visible = bool(missing)
        rows = [] if missing else compare_rows(figures_of(first).get("rows", []), figures_of(second).get("rows", []))
        fill_table(self.ui.compareTable, rows, ("name", "structure", "unit", "first", "second", "difference"))

    def opened(self) -> None:
        """The two latest registrations, where none was chosen."""
        latest = all_records(slicer.mrmlScene)[-2:]
        if self.node.compareFirst is None and self.node.compareSecond is None and len(latest) == 2:
            self.node.compareFirst, self.node.compareSecond = latest

    def compare(self) -> None:
        """Show both results in two rows of views. InputError where that cannot be."""
        from ..quality import compare_views
        from ..views import ViewState

        first, second = roles_of(self.node.compareFirst), roles_of(self.node.compareSecond)
        if first.get("fixed") is None or first.get("fixed") is not second.get("fixed"):
            raise InputError("the two registrations have different fixed volumes; choose two with the same one")
        before = self.before or ViewState(slicer.mrmlScene)
        compare_views(first["fixed"], first, second)
        self.before = before
        self.ui.backButton.enabled = True

    def back(self) -> None:
        if self.before is not None:
            self.before.restore(layers=True, slices=True, layout=True)
        self.before = None
        self.ui.backButton.enabled = False

    def close(self) -> None:
        self.before = None
        self.ui.backButton.enabled = False
