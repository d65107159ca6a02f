"""Which widgets can show which types of a parameter node, and how: exact widget classes, as in the application.

There is none for qMRMLSegmentSelectorWidget, QPlainTextEdit, QGroupBox and the collapsible ones; panels bind those by hand.
"""

from __future__ import annotations

import pathlib
from dataclasses import dataclass
from enum import Enum

from .parameter_storage import Node, plain_type

SPIN = ("QSpinBox", "QDoubleSpinBox", "ctkSliderWidget", "qMRMLSliderWidget", "ctkDoubleSlider", "ctkDoubleSpinBox", "qMRMLSpinBox")
MUST_BE_BOUNDED = ("QSlider", "ctkSliderWidget", "qMRMLSliderWidget", "ctkDoubleSlider")
COMBO = ("QComboBox", "ctkComboBox")
CHECK = ("QCheckBox", "ctkCheckBox", "QPushButton", "ctkCheckablePushButton")
RANGE = ("ctkRangeWidget", "ctkDoubleRangeSlider", "qMRMLRangeWidget")
TEXT = {"QLineEdit": "textChanged(QString)", "QLabel": "", "QTextEdit": "textChanged()"}
NODE = {"qMRMLNodeComboBox": "currentNodeChanged(vtkMRMLNode*)", "qSlicerSimpleMarkupsWidget": "markupsNodeChanged()",
        "qMRMLSubjectHierarchyComboBox": "currentItemChanged(vtkIdType)", "qMRMLSubjectHierarchyTreeView": "currentItemChanged(vtkIdType)"}


@dataclass(frozen=True)
class Decimals:
    """Digits after the point that a widget shows."""

    value: int


@dataclass(frozen=True)
class SingleStep:
    """How far one click of a widget goes."""

    value: float


@dataclass(frozen=True)
class Label:
    """Text of a field in a generated panel."""

    value: str


class Link:
    """One widget and the field that it shows: ``read()``, ``write(value)``, and ``listen`` to its signal ('' for a display only)."""

    def __init__(self, widget, signal: str, read, write):
        self.widget, self.signal, self.read, self.write, self.callback = widget, signal, read, write, None

    def listen(self, callback) -> None:
        self.callback = callback
        if self.signal:
            self.widget.connect(self.signal, callback)

    def stop(self) -> None:
        if self.signal and self.callback is not None:
            self.widget.disconnect(self.signal, self.callback)
        self.callback = None


def _extra(field, kind: str):
    return next((extra for extra in field.extras if type(extra).__name__ == kind), None)


def _bounds(field) -> tuple:
    """(minimum or None, maximum or None) of a field."""
    within, low, high = (_extra(field, kind) for kind in ("WithinRange", "Minimum", "Maximum"))
    return within.arguments if within else (low.arguments[0] if low else None, high.arguments[0] if high else None)


def _attribute_link(widget, name: str, signal: str, convert=lambda value: value):
    return Link(widget, signal, lambda: convert(getattr(widget, name)), lambda value: setattr(widget, name, value))


def _number(widget, field, kind):
    name, (low, high) = type(widget).__name__, _bounds(field)
    if name in MUST_BE_BOUNDED and None in (low, high):
        raise ValueError(f"'{field.name}' needs a minimum and a maximum to be shown by a {name}")
    whole = name in ("QSpinBox", "QSlider")
    widget.minimum = low if low is not None else -2**31 if whole else -1e300
    widget.maximum = high if high is not None else 2**31 - 1 if whole else 1e300
    decimals, step = _extra(field, "Decimals"), _extra(field, "SingleStep")
    if not whole and hasattr(widget, "decimals") and (kind is int or decimals):
        widget.decimals = 0 if kind is int else decimals.value
    if step:
        widget.singleStep = step.value
    return _attribute_link(widget, "value", f"valueChanged({'int' if whole else 'double'})", kind)


def _entries(widget, choices: list, texts: list[str], read_text):
    """A combo box of choices; the signal comes with a change by user or program."""
    widget.clear()
    for text in texts:
        widget.addItem(text)
    return Link(widget, "currentIndexChanged(int)", lambda: choices[widget.currentIndex] if read_text is None else read_text(widget.currentText),
                lambda value: widget.setCurrentIndex(choices.index(value)))


def _text(widget, field):
    name = type(widget).__name__
    if name == "QTextEdit":
        return Link(widget, TEXT[name], widget.toPlainText, lambda value: value == widget.toPlainText() or widget.setPlainText(value))
    return Link(widget, TEXT[name], lambda: widget.text, lambda value: value == widget.text or widget.setText(value))


def _color_range(widget, field, kind):
    """Ranges, paths and colours."""
    name = type(widget).__name__
    if name in RANGE and kind.__name__ == "FloatRange":
        bounds = _extra(field, "RangeBounds")
        if bounds is None:
            raise ValueError(f"'{field.name}' needs RangeBounds to be shown by a {name}")
        widget.setRange(bounds.minimum, bounds.maximum)
        return Link(widget, "valuesChanged(double,double)", lambda: kind(widget.minimumValue, widget.maximumValue),
                    lambda value: widget.setValues(value.minimum, value.maximum))
    if isinstance(kind, type) and issubclass(kind, pathlib.PurePath) and name in ("ctkPathLineEdit", "ctkDirectoryButton"):
        attribute = "currentPath" if name == "ctkPathLineEdit" else "directory"
        return Link(widget, f"{attribute}Changed(QString)", lambda: kind(getattr(widget, attribute)), lambda value: setattr(widget, attribute, str(value)))
    if kind.__name__ == "QColor" and name == "ctkColorPickerButton":
        return _attribute_link(widget, "color", "colorChanged(QColor)")
    return None


def _simple(widget, field, kind):
    """Numbers, truth values, texts, choices and members of enumerations."""
    name, choice = type(widget).__name__, _extra(field, "Choice")
    if isinstance(kind, type) and issubclass(kind, Enum) and name in COMBO:
        return _entries(widget, list(kind), [each.label() if hasattr(each, "label") else each.name for each in kind], None)
    if kind in (int, float, str, bool) and name in COMBO and choice:
        return _entries(widget, list(choice.arguments[0]), [str(each) for each in choice.arguments[0]], None)
    if kind is bool and name in CHECK and (name in ("QCheckBox", "ctkCheckBox") or widget.checkable or name == "ctkCheckablePushButton"):
        return _attribute_link(widget, "checked", "toggled(bool)", bool)
    if (kind is int and name in (*SPIN, "QSlider")) or (kind is float and name in SPIN and name != "QSpinBox"):
        return _number(widget, field, kind)
    return _text(widget, field) if kind is str and name in TEXT else None


def connector_for(widget, field) -> Link:
    """The link of a field to a widget; raises ValueError where the application has none."""
    name, kind = type(widget).__name__, plain_type(field.annotation)
    if isinstance(field.storage, Node):
        found = Link(widget, NODE[name], widget.currentNode, widget.setCurrentNode) if name in NODE else None
    else:
        found = _simple(widget, field, kind) or _color_range(widget, field, kind)
    if found is None:
        raise ValueError(f"a {name} cannot show '{field.name}' of type {kind}")
    return found
