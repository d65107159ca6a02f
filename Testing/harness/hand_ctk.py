"""Behaviour of CTK's widgets, to be mixed into the generated classes.

``get_x`` and ``set_x`` become the accessors of property ``x``; everything else is taken over as it stands. The inner parts of a widget
live in ``inner(self)``, because C++ objects take no new attributes.
"""

from __future__ import annotations

import os
from types import SimpleNamespace

from PySide6 import QtCore, QtGui, QtWidgets

HEADER = 22  # height of the clickable line of a collapsible button, pixels
STEPS = 10000  # positions of a slider


def inner(widget) -> SimpleNamespace:
    """The hidden state of a widget."""
    return widget.__dict__.setdefault("_inner", SimpleNamespace())


def parent_of(arguments):
    """The parent among the arguments of a constructor; None where there is none."""
    return next((each for each in arguments if isinstance(each, QtWidgets.QWidget)), None)


def row(widget, *parts) -> None:
    """Lay parts out side by side, without margins."""
    layout = QtWidgets.QHBoxLayout(widget)
    layout.setContentsMargins(0, 0, 0, 0)
    for k, part in enumerate(parts):
        layout.addWidget(part, 1 if k == 0 else 0)


def own_widgets(widget):
    return widget.findChildren(QtWidgets.QWidget, options=QtCore.Qt.FindChildOption.FindDirectChildrenOnly)


class ctkCollapsibleButton:
    base = QtWidgets.QAbstractButton

    def __init__(self, *arguments):
        QtWidgets.QAbstractButton.__init__(self, parent_of(arguments))
        self.setText(next((each for each in arguments if isinstance(each, str)), ""))
        inner(self).collapsed = False
        self.setCheckable(True)
        self.setChecked(True)
        self.setContentsMargins(0, HEADER, 0, 0)
        self.toggled.connect(self._toggled)

    def get_collapsed(self):
        return inner(self).collapsed

    def set_collapsed(self, value):
        self.setChecked(not value)

    def _toggled(self, checked):
        inner(self).collapsed = not checked
        for child in own_widgets(self):
            child.setVisible(checked)
        self.setMaximumHeight(16777215 if checked else HEADER)
        self.updateGeometry()
        self.contentsCollapsed.emit(not checked)

    def childEvent(self, event):
        """A widget that enters a closed section is hidden, as in CTK."""
        child = event.child()
        if event.added() and inner(self).collapsed and child.isWidgetType():
            child.setVisible(False)

    def _size(self, name, width):
        layout = QtWidgets.QWidget.layout(self)
        return QtCore.QSize(width, HEADER) if layout is None or inner(self).collapsed else getattr(layout, name)()

    def sizeHint(self):
        return self._size("totalSizeHint", 200)

    def minimumSizeHint(self):
        return self._size("totalMinimumSize", 60)

    def hitButton(self, position):
        return position.y() < HEADER

    def paintEvent(self, event):
        painter = QtGui.QPainter(self)
        painter.fillRect(0, 0, self.width, HEADER - 2, self.palette.button())
        painter.drawText(8, 15, ("\u25b8 " if inner(self).collapsed else "\u25be ") + self.text)
        painter.setPen(QtGui.QColor(170, 170, 170))
        painter.drawRect(0, 0, self.width - 1, HEADER - 2)


class ctkCollapsibleGroupBox:
    base = QtWidgets.QGroupBox

    def __init__(self, *arguments):
        QtWidgets.QGroupBox.__init__(self, *[each for each in arguments if each is not None])
        self.setCheckable(True)
        self.toggled.connect(self._toggled)

    def _toggled(self, checked):
        for child in own_widgets(self):
            child.setVisible(checked)

    def childEvent(self, event):
        """A widget that enters a closed box is hidden."""
        if event.added() and event.child().isWidgetType() and not self.isChecked():
            event.child().setVisible(False)

    def get_collapsed(self):
        return not self.isChecked()

    def set_collapsed(self, value):
        self.setChecked(not value)


class ctkSliderWidget:
    def __init__(self, *arguments):
        QtWidgets.QWidget.__init__(self, parent_of(arguments))
        parts = inner(self)
        parts.slider, parts.box = QtWidgets.QSlider(QtCore.Qt.Orientation.Horizontal, self), QtWidgets.QDoubleSpinBox(self)
        row(self, parts.slider, parts.box)
        parts.value, parts.low, parts.high, parts.decimals, parts.step = 0.0, 0.0, 99.0, 2, 1.0
        parts.box.setRange(0, 99)
        parts.box.setKeyboardTracking(False)
        parts.slider.setRange(0, STEPS)
        parts.box.valueChanged.connect(self._take)
        parts.slider.valueChanged.connect(lambda k: self._take(parts.low + k * (parts.high - parts.low) / STEPS))

    def _take(self, value):
        """Clamp, round, show and announce a value."""
        parts = inner(self)
        value = round(float(min(max(float(value), parts.low), parts.high)), parts.decimals)
        changed, parts.value = value != parts.value, value
        blockers = [QtCore.QSignalBlocker(each) for each in (parts.slider, parts.box)]
        parts.box.setValue(value)
        parts.slider.setValue(round((value - parts.low) / ((parts.high - parts.low) or 1) * STEPS))
        for each in blockers:
            each.unblock()
        if changed:
            self.valueChanged.emit(value)

    def _range(self, low, high):
        parts = inner(self)
        parts.low, parts.high = float(low), float(high)
        parts.box.setRange(parts.low, parts.high)
        self._take(parts.value)

    def get_value(self):
        return inner(self).value

    def set_value(self, value):
        self._take(value)

    def get_minimum(self):
        return inner(self).low

    def set_minimum(self, value):
        self._range(value, max(inner(self).high, value))

    def get_maximum(self):
        return inner(self).high

    def set_maximum(self, value):
        self._range(min(inner(self).low, value), value)

    def get_decimals(self):
        return inner(self).decimals

    def set_decimals(self, value):
        inner(self).decimals = int(value)
        inner(self).box.setDecimals(int(value))

    def get_singleStep(self):
        return inner(self).step

    def set_singleStep(self, value):
        inner(self).step = float(value)
        inner(self).box.setSingleStep(float(value))

    def get_suffix(self):
        return inner(self).box.suffix

    def set_suffix(self, value):
        inner(self).box.setSuffix(value)

    def get_prefix(self):
        return inner(self).box.prefix

    def set_prefix(self, value):
        inner(self).box.setPrefix(value)

    def reset(self):
        self._take(0)


class ctkRangeWidget:
    def __init__(self, *arguments):
        QtWidgets.QWidget.__init__(self, parent_of(arguments))
        parts = inner(self)
        parts.low, parts.high = QtWidgets.QDoubleSpinBox(self), QtWidgets.QDoubleSpinBox(self)
        row(self, parts.low, parts.high)
        self.setRange(0, 99)
        parts.high.setValue(99)
        for box in (parts.low, parts.high):
            box.valueChanged.connect(lambda *_: self.valuesChanged.emit(parts.low.value, parts.high.value))

    def setRange(self, low, high):
        for box in (inner(self).low, inner(self).high):
            box.setRange(low, high)

    def setValues(self, low, high):
        inner(self).low.setValue(low)
        inner(self).high.setValue(high)

    def get_minimumValue(self):
        return inner(self).low.value

    def set_minimumValue(self, value):
        inner(self).low.setValue(value)

    def get_maximumValue(self):
        return inner(self).high.value

    def set_maximumValue(self, value):
        inner(self).high.setValue(value)

    def get_minimum(self):
        return inner(self).low.minimum

    def set_minimum(self, value):
        self.setRange(value, inner(self).high.maximum)

    def get_maximum(self):
        return inner(self).high.maximum

    def set_maximum(self, value):
        self.setRange(inner(self).low.minimum, value)


class ctkPathLineEdit:
    def __init__(self, *arguments):
        QtWidgets.QWidget.__init__(self, parent_of(arguments))
        parts = inner(self)
        parts.edit, parts.browse = QtWidgets.QComboBox(self), QtWidgets.QToolButton(self)
        parts.edit.setEditable(True)
        parts.browse.setText("...")
        row(self, parts.edit, parts.browse)
        parts.edit.editTextChanged.connect(lambda text: self.currentPathChanged.emit(text))

    def get_currentPath(self):
        return inner(self).edit.currentText

    def set_currentPath(self, value):
        inner(self).edit.setEditText(str(value or ""))

    def setCurrentPath(self, value):
        inner(self).edit.setEditText(str(value or ""))

    def addCurrentPathToHistory(self):
        if inner(self).edit.findText(inner(self).edit.currentText) < 0:
            inner(self).edit.insertItem(0, inner(self).edit.currentText)


class ctkDirectoryButton:
    def __init__(self, *arguments):
        QtWidgets.QWidget.__init__(self, parent_of(arguments))
        inner(self).button = QtWidgets.QPushButton(next((os.path.abspath(a) for a in arguments if isinstance(a, str)), os.getcwd()), self)
        row(self, inner(self).button)

    def get_directory(self):
        return inner(self).button.text

    def set_directory(self, value):
        value = os.path.abspath(value or ".")
        if value != inner(self).button.text:
            inner(self).button.setText(value)
            self.directoryChanged.emit(value)


class ctkColorPickerButton:
    base = QtWidgets.QPushButton

    def __init__(self, *arguments):
        QtWidgets.QPushButton.__init__(self, parent_of(arguments))
        inner(self).color = QtGui.QColor("black")

    def get_color(self):
        return inner(self).color

    def set_color(self, value):
        if value != inner(self).color:
            inner(self).color = QtGui.QColor(value)
            self.setText(inner(self).color.name())
            self.colorChanged.emit(inner(self).color)


class ctkDoubleSpinBox:
    def __init__(self, *arguments):
        QtWidgets.QWidget.__init__(self, parent_of(arguments))
        inner(self).box = QtWidgets.QDoubleSpinBox(self)
        row(self, inner(self).box)
        inner(self).box.valueChanged.connect(lambda value: self.valueChanged.emit(value))
        inner(self).box.editingFinished.connect(lambda: self.editingFinished.emit())


for _name in ("value", "minimum", "maximum", "decimals", "singleStep", "suffix", "prefix", "readOnly"):
    setattr(ctkDoubleSpinBox, f"get_{_name}", lambda self, _name=_name: inner(self).box.property(_name))
    setattr(ctkDoubleSpinBox, f"set_{_name}", lambda self, value, _name=_name: inner(self).box.setProperty(_name, value))


class ctkMessageBox:
    ASKED: list[str] = []  # texts of boxes that were opened

    def exec_(self):
        """A box that would wait for ever answers at once, as its default."""
        ctkMessageBox.ASKED.append(self.text)
        return QtWidgets.QMessageBox.StandardButton.Ok


CLASSES = {cls.__name__: cls for cls in (ctkCollapsibleButton, ctkCollapsibleGroupBox, ctkSliderWidget, ctkRangeWidget, ctkPathLineEdit,
                                         ctkDirectoryButton, ctkColorPickerButton, ctkDoubleSpinBox, ctkMessageBox)}
CLASSES["ctkDoubleRangeSlider"] = ctkRangeWidget
