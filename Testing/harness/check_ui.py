"""Check .ui and .py files of an extension against the classes that the application has.

``python -m harness.check_ui [-v] FOLDER_OR_FILE ...`` prints what is wrong and ends with status 1 where something is. Codes:
U1 unknown widget class, U2 class that a .ui file cannot create, U3 unknown property, U4 read-only property, U5 value of a wrong type or unknown
enumerator, U6 connection with unknown object, signal or slot, U7 name used twice, U8 dynamic property (note), U9 SlicerParameterName that is no
field or cannot be connected; P1 no such widget, P2 no such member, P3 member that C++ alone sees, P4 property that is called, P5 assignment to
something that is no writable property, P6 no such signal, P7 no such class, P9 member of Qt 6 only (note).
"""

from __future__ import annotations

import argparse
import re
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

from .class_facts import closest, designable, enumeration_error, known, members_of

LAYOUT_ONLY = {"leftMargin", "topMargin", "rightMargin", "bottomMargin", "horizontalSpacing", "verticalSpacing", "margin", "spacing", "sizeConstraint",
               "fieldGrowthPolicy", "rowWrapPolicy", "labelAlignment", "formAlignment"}
SPACER = {"orientation", "sizeHint", "sizeType"}
VALUE_TYPES = {"bool": {"bool"}, "number": {"int", "double", "uint", "float", "qlonglong", "unsigned int", "unsignedint", "size_t", "qreal"},
               "double": {"double", "float", "int", "qreal"}, "string": {"QString", "QKeySequence", "QUrl", "QByteArray", "QVariant", "QDir", "QIcon"},
               "stringlist": {"QStringList"}, "cstring": {"QByteArray", "QString", "QCursor", "QWidget*"}}
PARAMETER_NAMES = {"SlicerParameterName", "SlicerPackParameterName"}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or one note."""

    path: Path
    code: str
    text: str
    note: bool = False

    def __str__(self):
        return f"{self.path.name}: {self.code}{' (note)' if self.note else ''} {self.text}"


@dataclass
class Form:
    """One .ui file: widgets {name: class}, dynamic properties {widget: {property: text}}."""

    path: Path
    widgets: dict[str, str] = field(default_factory=dict)
    dynamic: dict[str, dict[str, str]] = field(default_factory=dict)


class FormCheck:
    """Reads one .ui file; ``form`` and ``findings`` are the answer."""

    def __init__(self, path: Path):
        self.form, self.findings = Form(path), []
        root = ElementTree.parse(path).getroot()
        for element in [*root.iter("widget"), *root.iter("layout"), *root.iter("action")]:
            self.element(element)
        for element in root.iter("spacer"):
            self.spacer(element)
        for element in root.iter("connection"):
            self.connection(*(element.findtext(key) for key in ("sender", "signal", "receiver", "slot")))

    def report(self, code: str, text: str, note: bool = False) -> None:
        self.findings.append(Finding(self.form.path, code, text, note))

    def element(self, element) -> None:
        kind, name = element.get("class") if element.tag != "action" else "QAction", element.get("name")
        if name in self.form.widgets and element.tag == "widget":
            self.report("U7", f"the name '{name}' is used twice")
        self.form.widgets[name] = kind
        if not known(kind):
            self.report("U1", f"{name}: the application has no class {kind}")
            return
        if element.tag == "widget" and not designable(kind):
            self.report("U2", f"{name}: a .ui file cannot create a {kind}")
        for each in element.findall("property"):
            if not (element.tag == "layout" and each.get("name") in LAYOUT_ONLY) and not (each.get("name") == "buddy" and kind == "QLabel"):
                self.property(name, kind, each)

    def property(self, name: str, kind: str, element) -> None:
        key, properties = element.get("name"), members_of(kind).properties
        if key not in properties:
            if element.get("stdset") == "0":
                self.form.dynamic.setdefault(name, {})[key] = "".join(element.itertext()).strip()
                if key not in PARAMETER_NAMES:
                    self.report("U8", f"{name} ({kind}): '{key}' is a dynamic property", note=True)
            else:
                self.report("U3", f"{name}: {kind} has no property '{key}'{closest(key, properties)}")
            return
        value_type, writable = properties[key]
        if not writable:
            self.report("U4", f"{name} ({kind}): the property '{key}' is read-only")
        value = next(iter(element), None)
        if value is not None and value.tag in ("enum", "set"):
            error = enumeration_error(value.text or "")
            if error:
                self.report("U5", f"{name} ({kind}).{key}: {error}")
        elif value is not None and value.tag in VALUE_TYPES and value_type not in VALUE_TYPES[value.tag]:
            if "::" not in value_type and not value_type.endswith(("Flags", "Policy")):
                self.report("U5", f"{name} ({kind}).{key}: <{value.tag}> is given, the property is a {value_type}")

    def spacer(self, element) -> None:
        self.form.widgets.setdefault(element.get("name"), "QSpacerItem")
        for each in element.findall("property"):
            if each.get("name") not in SPACER:
                self.report("U3", f"spacer {element.get('name')} has no property '{each.get('name')}'")
            elif len(each) and each[0].tag == "enum" and enumeration_error(each[0].text or ""):
                self.report("U5", f"spacer {element.get('name')}: {enumeration_error(each[0].text)}")

    def connection(self, sender: str, signal: str, receiver: str, slot: str) -> None:
        where = f"connection {sender}.{signal} -> {receiver}.{slot}"
        for owner, member, kind in ((sender, signal, "signal"), (receiver, slot, "slot")):
            if owner not in self.form.widgets:
                self.report("U6", f"{where}: there is no '{owner}'")
                continue
            error = _signature_error(self.form.widgets[owner], member, kind)
            if error:
                self.report("U6", f"{where}: {error}")


def _signature_error(class_name: str, text: str, kind: str) -> str:
    """'' where the class has that signal (or slot) with those argument types."""
    match = re.match(r"^\s*(\w+)\s*\((.*)\)\s*$", text)
    if match is None:
        return f"'{text}' is no signature"
    found = members_of(class_name)
    name, arguments = match[1], [each for each in match[2].replace("const ", "").replace("&", "").replace(" ", "").split(",") if each]
    forms = found.signals.get(name) if kind == "signal" or name not in found.methods else found.methods[name]
    if forms is None and not (kind == "slot" and name in found.methods):
        return f"{class_name} has no {kind} '{name}'{closest(name, found.signals if kind == 'signal' else found.methods)}"
    if forms and arguments not in forms:
        return f"{class_name} has " + " | ".join(f"{name}({','.join(form)})" for form in forms)
    return ""


def files_of(paths) -> list[Path]:
    """All .ui and .py files below the paths."""
    found = []
    for path in map(Path, paths):
        found += [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.suffix in (".ui", ".py") and "__pycache__" not in each.parts)
    return found


def check(paths) -> tuple[list[Finding], int]:
    """(findings and notes, number of member uses that were resolved) of files and folders."""
    from .check_python import PythonCheck

    files = files_of(paths)
    forms = [FormCheck(path) for path in files if path.suffix == ".ui"]
    findings, resolved = [finding for form in forms for finding in form.findings], 0
    for path in files:
        if path.suffix == ".py":
            source = PythonCheck(path, [each.form for each in forms])
            findings += source.findings
            resolved += source.resolved
    return findings, resolved


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description="Check .ui and .py files of an extension against the application's classes.")
    parser.add_argument("-v", "--notes", action="store_true", help="notes as well")
    parser.add_argument("paths", nargs="+")
    options = parser.parse_args(arguments)
    findings, resolved = check(options.paths)
    serious = [finding for finding in findings if not finding.note]
    for finding in findings if options.notes else serious:
        sys.stdout.write(f"{finding}\n")
    sys.stdout.write(f"{resolved} member uses resolved: {len(serious)} findings, {len(findings) - len(serious)} notes\n")
    return 1 if serious else 0


if __name__ == "__main__":
    sys.exit(main())
