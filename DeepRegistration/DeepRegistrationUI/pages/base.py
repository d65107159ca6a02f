"""What all pages of the panel share: their user interface file, the parameter node, a status line, combo boxes with data."""

from __future__ import annotations

import time
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from DeepRegistrationLib.errors import InputError

from ..sentences import duration

RESOURCES = Path(__file__).resolve().parents[2] / "Resources"
DOUBLE_CLICK_SECONDS = 0.5
"""Time in which a second click on a button is part of a double click."""
ICONS = {"error": "SP_MessageBoxCritical", "warning": "SP_MessageBoxWarning", "done": "SP_DialogApplyButton", "busy": "SP_BrowserReload"}


class Page:
    """One section of the panel. ``UI`` names its file; ``bind`` connects it with the parameter node."""

    UI = ""
    STATUS = ""
    SELECTORS: dict[str, str] = {}
    """Selector -> parameter for nodes of several classes, which the wrapper's connector would narrow to one."""

    def __init__(self, panel, layout):
        self.panel, self.logic = panel, panel.logic
        self.widget = slicer.util.loadUI(str(panel.resources / "UI" / self.UI))
        layout.addWidget(self.widget)
        self.ui = slicer.util.childWidgetVariables(self.widget)
        self.widget.setMRMLScene(slicer.mrmlScene)
        self.node, self.tag, self.filling = None, None, False
        for label in self.widget.findChildren(qt.QLabel):
            if label.objectName.endswith(("StatusLabel", "issingLabel")):  # they hold names of nodes, which may look like tags
                label.textFormat = qt.Qt.PlainText
        for selector, name in self.SELECTORS.items():
            getattr(self.ui, selector).connect("currentNodeChanged(vtkMRMLNode*)", lambda node, name=name: self.put(name, node))
        self.say("", "")

    def bind(self, node) -> None:
        """Connect the widgets with the parameter node ``node``; None disconnects them."""
        if self.node is not None and self.tag is not None:
            self.node.disconnectGui(self.tag)
        self.node = node
        self.tag = None if node is None else node.connectGui(self.ui)
        if node is not None:
            self.show_selectors()
            self.refresh()

    def show_selectors(self) -> None:
        """Bring the selectors without a connector to the nodes of the parameter node."""
        self.filling = True
        try:
            for selector, name in self.SELECTORS.items():
                if getattr(self.ui, selector).currentNode() is not getattr(self.node, name):
                    getattr(self.ui, selector).setCurrentNode(getattr(self.node, name))
        finally:
            self.filling = False

    def refresh(self) -> None:
        """Bring the widgets without a connector up to date; called after every change of the parameter node or of the scene."""

    def opened(self) -> None:
        """The section was unfolded."""

    def left(self) -> None:
        """Another module is shown."""

    def tick(self) -> bool:
        """A slice of the page's own work, every 30 ms while something runs; True where more is to come."""
        return False

    def scene_added(self) -> None:
        """A saved scene was read: it is the scene now, or was added to it."""

    def scene_closed(self) -> None:
        """The scene was closed and is empty now."""

    def close(self) -> None:
        """The scene is closing or the module goes away: forget every node."""

    def say(self, kind: str, sentence: str) -> None:
        """Show one sentence with the icon of its ``kind`` (error, warning, done, busy) in the page's status line."""
        icon, text = getattr(self.ui, f"{self.STATUS}StatusIconLabel"), getattr(self.ui, f"{self.STATUS}StatusLabel")
        text.text = sentence
        if kind in ICONS:
            size = self.widget.style().pixelMetric(qt.QStyle.PM_SmallIconSize)
            icon.pixmap = self.widget.style().standardIcon(getattr(qt.QStyle, ICONS[kind])).pixmap(size, size)
        icon.visible = bool(sentence) and kind in ICONS
        getattr(self.ui, f"{self.STATUS}StatusWidget").visible = bool(sentence)

    def guarded(self, act) -> None:
        """Do what a control says; what stands in the way becomes one sentence."""
        if self.filling or self.node is None:
            return
        try:
            self.say("", "")
            act()
        except InputError as error:
            self.say("error", str(error))

    def buttons(self, actions: dict) -> None:
        """Name of a button -> what it does, guarded."""
        for name, pressed in actions.items():
            self.clicked(name, lambda pressed=pressed: self.guarded(pressed))

    def clicked(self, name: str, act) -> None:
        """Do ``act`` when a button is clicked, but nothing for the second click of a double click: it would stop what the first one has started.
        The button takes the focus first, which it does not by a click on a Mac: so a number that was just typed counts."""
        button, ended = getattr(self.ui, name), float("-inf")

        def pressed():
            nonlocal ended
            if time.monotonic() - ended >= DOUBLE_CLICK_SECONDS:
                button.setFocus()
                act()
                ended = time.monotonic()

        button.connect("clicked()", pressed)

    def fill(self, box, items, current) -> None:
        """Put ``items`` = [(data, text), ...] into a combo box and choose ``current`` (the first where it is missing)."""
        self.filling = True
        try:
            if [(box.itemData(k), box.itemText(k)) for k in range(box.count)] != items:
                box.clear()
                for data, text in items:
                    box.addItem(text, data)
            index = next((k for k, (data, _text) in enumerate(items) if data == current), 0)
            if box.currentIndex != index:
                box.currentIndex = index
        finally:
            self.filling = False

    def chosen(self, box):
        """The data of the chosen item of a combo box, '' where there is none."""
        data = box.itemData(box.currentIndex) if box.currentIndex >= 0 else None
        return "" if data is None else data

    def show_paths(self, edits) -> None:
        """Bring path edits, [(edit, parameter), ...], to the texts of the parameter node."""
        for edit, name in edits:
            if edit.currentPath != getattr(self.node, name):
                self.filling, edit.currentPath = True, getattr(self.node, name)
                self.filling = False

    def show_progress(self, event: dict, *more: str, speak: bool = True) -> None:
        """Bar and stage of a progress event: its text, ``more``, and the time that is left; only the bar where ``speak`` is False."""
        getattr(self.ui, f"{self.STATUS}ProgressBar").value = round(1000 * event["share"])
        left = event.get("seconds_left")
        parts = [event["text"][:1].upper() + event["text"][1:], *more, "" if left is None else _("{time} left").format(time=duration(left))]
        if speak:
            getattr(self.ui, f"{self.STATUS}StageLabel").text = ", ".join(part for part in parts if part)

    def put(self, name: str, value) -> None:
        """Set a text of the parameter node, where it differs."""
        if self.node is not None and not self.filling and getattr(self.node, name) != value:
            setattr(self.node, name, value)


def segments_of(node) -> list[tuple[str, str]]:
    """[(ID, name), ...] of a segmentation node; nothing for other nodes."""
    if node is None or not node.IsA("vtkMRMLSegmentationNode"):
        return []
    segmentation = node.GetSegmentation()
    return [(identifier, segmentation.GetSegment(identifier).GetName()) for identifier in segmentation.GetSegmentIDs()]


def with_ending(path: str, ending: str) -> str:
    """A chosen file name with its ``ending`` where it has none (of letters), unless a file that the user was not asked about would be lost."""
    if not path or path.lower().endswith(ending) or Path(path).suffix[1:].isalpha() or Path(path + ending).exists():
        return path
    return path + ending
