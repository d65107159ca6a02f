"""The advanced page: one widget for every parameter of a method, made from the catalogue.

type -> widget: bool a check box, choices a combo box, whole numbers and numbers spin boxes with range and unit, lists and
texts a line that is checked when it is left. The help of the parameter is the tooltip of its label and widget.
"""

from __future__ import annotations

import json
import math

import qt

from DeepRegistrationLib.errors import InputError

LARGE = 10**9


class ParameterForm:
    """Widgets for the parameters of one method inside ``host``; ``changed(name, value)`` is called when the user changes one."""

    def __init__(self, host, changed, complain):
        self.host, self.changed, self.complain = host, changed, complain
        self.layout = qt.QFormLayout(host)
        self.layout.setContentsMargins(0, 0, 0, 0)
        self.layout.setRowWrapPolicy(qt.QFormLayout.WrapLongRows)
        self.layout.setFieldGrowthPolicy(qt.QFormLayout.AllNonFixedFieldsGrow)
        self.entries, self.labels, self.parameters, self.setting = {}, {}, (), False
        self.shown = {}, {}

    def build(self, parameters) -> None:
        """Make the widgets of ``parameters`` (dicts of the catalogue), those for everybody first."""
        if tuple(parameters) == self.parameters:
            return
        while self.layout.rowCount():
            self.layout.removeRow(0)
        self.parameters, self.entries, self.labels = tuple(parameters), {}, {}
        for info in sorted(parameters, key=lambda p: p["advanced"]):
            entry = MAKERS[kind_of(info)](self, info)
            label = qt.QLabel(f"{info['label']}:")
            label.toolTip = entry.toolTip = tooltip(info)
            label.wordWrap = False
            self.layout.addRow(label, entry)
            self.entries[info["name"]], self.labels[info["name"]] = entry, label

    def show(self, values: dict, preset: dict) -> None:
        """Show ``values`` (parameter -> value); a label in bold says that the value is not the one of ``preset``."""
        self.setting, self.shown = True, (values, preset)
        try:
            for info in self.parameters:
                name = info["name"]
                value = values.get(name, info["default"])
                SETTERS[kind_of(info)](self.entries[name], value)
                font = self.labels[name].font
                font.setBold(plain(value) != plain(preset.get(name, info["default"])))
                self.labels[name].font = font
        finally:
            self.setting = False

    def tell(self, name: str, value) -> None:
        if not self.setting:
            self.changed(name, value)

    def check_box(self, info):
        box = qt.QCheckBox()
        box.connect("toggled(bool)", lambda value: self.tell(info["name"], bool(value)))
        return box

    def combo_box(self, info):
        box = qt.QComboBox()
        box.sizeAdjustPolicy = qt.QComboBox.AdjustToMinimumContentsLengthWithIcon
        box.minimumContentsLength = 8
        for choice in info["choices"]:
            box.addItem(str(choice), choice)
        box.connect("currentIndexChanged(int)", lambda index: self.tell(info["name"], info["choices"][index]))
        return box

    def spin_box(self, info):
        box = qt.QSpinBox()
        low, high = info["minimum"], info["maximum"]
        box.setRange(int(-LARGE if low is None else low), int(LARGE if high is None else high))
        return self.finish_spin(box, info, int)

    def double_spin_box(self, info):
        box = qt.QDoubleSpinBox()
        low, high = info["minimum"], info["maximum"]
        box.decimals = decimals_of(info)
        box.setRange(-float(LARGE) if low is None else low, float(LARGE) if high is None else high)
        box.singleStep = 10.0 ** -min(decimals_of(info), max(1, decimals_of({**info, "minimum": None})))
        return self.finish_spin(box, info, float)

    def finish_spin(self, box, info, kind):
        """Unit, no change at every key, no growth with the largest value."""
        box.suffix = f" {info['unit']}" if info["unit"] else ""
        box.keyboardTracking = False
        box.minimumWidth = 80
        box.connect("valueChanged(int)" if kind is int else "valueChanged(double)", lambda value: self.tell(info["name"], kind(value)))
        return box

    def line(self, info):
        edit = qt.QLineEdit()
        edit.connect("editingFinished()", lambda: self.take_line(edit, info))
        return edit

    def take_line(self, edit, info) -> None:
        """Read a list or a text; what cannot be read is answered with a sentence and the old value comes back."""
        try:
            value = parse(info, edit.text)
        except InputError as error:
            self.complain(str(error))
            self.show(*self.shown)
            return
        SETTERS["line"](edit, value)
        self.tell(info["name"], value)


def kind_of(info: dict) -> str:
    """Which widget a parameter has."""
    if info["choices"]:
        return "choices"
    return info["type"] if info["type"] in ("bool", "int", "float") else "line"


def tooltip(info: dict) -> str:
    """Help, unit and range in one text."""
    low, high, unit = info["minimum"], info["maximum"], f" {info['unit']}" if info["unit"] else ""
    if low is None and high is None:
        return info["help"]
    limits = f"at most {high:g}" if low is None else f"at least {low:g}" if high is None else f"{low:g} to {high:g}"
    return f"{info['help']} ({limits}{unit})"


def decimals_of(info: dict) -> int:
    """Digits after the point that show the default and the smallest value, at least 2 and at most 6."""
    needed = [2]
    for value in (info["default"], info["minimum"]):
        if value:
            needed.append(math.ceil(-math.log10(abs(value))) + (0 if math.log10(abs(value)).is_integer() else 1))
    return min(6, max(needed))


def parse(info: dict, text: str):
    """A text or a list of numbers from a line. InputError names what was expected."""
    if info["type"] == "str":
        return text
    item = int if "int" in info["type"] else float
    try:
        values = [item(part) for part in text.replace(";", ",").replace("x", ",").split(",") if part.strip()]
    except ValueError:
        values = []
    if not values:
        raise InputError(f"{info['label']} is '{text}'; write {'whole ' if item is int else ''}numbers separated by commas")
    low, high = info["minimum"], info["maximum"]
    if any((low is not None and v < low) or (high is not None and v > high) for v in values):
        raise InputError(f"{info['label']} is '{text}'; every number must lie in: {tooltip(info).rpartition('(')[2].rstrip(')')}")
    return values


def changed_values(text: str, usual: dict, name: str, value) -> str:
    """The JSON ``text`` of values that differ from the ``usual`` ones, after the parameter ``name`` was given ``value``."""
    values = json.loads(text or "{}")
    values.pop(name, None)
    if plain(value) != plain(usual[name]):
        values[name] = value
    return json.dumps(values)


def plain(value):
    """Lists and tuples alike, for comparing."""
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def written(value) -> str:
    """A list as it is typed."""
    return ", ".join(f"{v:g}" for v in value) if isinstance(value, (list, tuple)) else str(value)


def _set_line(edit, value) -> None:
    edit.text = written(value)


def _set_choice(box, value) -> None:
    box.currentIndex = max(0, box.findText(str(value)))


def _set_checked(box, value) -> None:
    box.checked = bool(value)


def _set_value(box, value) -> None:
    box.value = value


MAKERS = {"bool": ParameterForm.check_box, "choices": ParameterForm.combo_box, "int": ParameterForm.spin_box,
          "float": ParameterForm.double_spin_box, "line": ParameterForm.line}
SETTERS = {"bool": _set_checked, "choices": _set_choice, "int": _set_value, "float": _set_value, "line": _set_line}
