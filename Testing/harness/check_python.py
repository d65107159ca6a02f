"""The Python half of ``check_ui``: uses of widgets of .ui files (``self.ui.x``, ``ui.x``) and of classes of qt, ctk and slicer."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from .check_ui import Finding, Form, _signature_error
from .class_facts import MODULES, NOT_IN_PYSIDE, closest, known, members_of, only_in_qt6, qt_class
from .facts import slicer_classes

NUMBERS = {"QSpinBox", "QDoubleSpinBox", "ctkSliderWidget", "qMRMLSliderWidget", "ctkDoubleSlider", "ctkDoubleSpinBox", "qMRMLSpinBox"}
COMBO = {"QComboBox", "ctkComboBox"}
SHOWN_BY = {"bool": {"QCheckBox", "ctkCheckBox", "QPushButton", "ctkCheckablePushButton"} | COMBO, "int": NUMBERS | COMBO | {"QSlider"},
            "float": (NUMBERS | COMBO) - {"QSpinBox"}, "str": COMBO | {"QLineEdit", "QLabel", "QTextEdit"}, "Enum": COMBO,
            "FloatRange": {"ctkRangeWidget", "ctkDoubleRangeSlider", "qMRMLRangeWidget"}, "Path": {"ctkPathLineEdit", "ctkDirectoryButton"},
            "QColor": {"ctkColorPickerButton"}, "node": {"qMRMLNodeComboBox", "qSlicerSimpleMarkupsWidget", "qMRMLSubjectHierarchyTreeView",
                                                        "qMRMLSubjectHierarchyComboBox"}}


def makes_parameters(decorator) -> bool:
    """True for the decorators of parameter nodes and packs, called or not."""
    name = ast.unparse(decorator.func if isinstance(decorator, ast.Call) else decorator)
    return name.rpartition(".")[2] in ("parameterNodeWrapper", "parameterPack")


def annotation_kind(annotation) -> str:
    """'int', 'node', 'Start', ... of an annotation; '' where it is none of the plain ones."""
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value).rpartition(".")[2] in ("Annotated", "Optional"):
        inside = annotation.slice
        return annotation_kind(inside.elts[0] if isinstance(inside, ast.Tuple) else inside)
    if isinstance(annotation, ast.BinOp):
        return annotation_kind(annotation.left)
    name = getattr(annotation, "id", getattr(annotation, "attr", ""))
    return "node" if name.startswith("vtkMRML") else {"PurePath": "Path", "PosixPath": "Path"}.get(name, name)


class PythonCheck:
    """Reads one Python file; ``findings`` is the answer, ``resolved`` the number of member uses whose class was known."""

    def __init__(self, path: Path, forms: list[Form]):
        self.path, self.findings, self.resolved, self.parents = path, [], 0, {}
        self.tree = ast.parse(path.read_text("utf-8"))
        for node in ast.walk(self.tree):
            self.parents.update({child: node for child in ast.iter_child_nodes(node)})
        self.forms = self.forms_used(forms)
        self.widgets = {}
        for form in self.forms:
            for name, kind in form.widgets.items():
                self.widgets.setdefault(name, set()).add(kind)
        self.dynamic = {name: set(keys) for form in self.forms for name, keys in form.dynamic.items()}
        self.added, self.variables = set(), {}
        self.assignments()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Attribute):
                self.attribute(node)
        self.parameters(forms)

    def report(self, code: str, node, text: str, note: bool = False) -> None:
        self.findings.append(Finding(self.path, code, f"line {node.lineno}: {text}", note))

    def forms_used(self, forms: list[Form]) -> list[Form]:
        """The .ui files that the source names, or the one of its own name."""
        texts = [n.value for n in ast.walk(self.tree) if isinstance(n, ast.Constant) and isinstance(n.value, str) and n.value.endswith(".ui")]
        named = {text.rpartition("/")[2] for text in texts} or {f"{self.path.stem}.ui"}
        return [form for form in forms if form.path.name in named]

    def assignments(self) -> None:
        """Names that are given an object of a known class, and widgets that the source adds to ``ui``."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Assign) and len(node.targets) == 1:
                target = node.targets[0]
                if self.in_ui(target):
                    self.added.add(target.attr)
                if self.key(target):
                    self.variables.setdefault((self.scope(target), self.key(target)), set()).add(self.class_made(node.value))

    @staticmethod
    def in_ui(node) -> bool:
        """``self.ui.x`` or ``ui.x``"""
        return isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self.ui", "ui")

    @staticmethod
    def key(node) -> str:
        own = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
        return f"self.{node.attr}" if own else node.id if isinstance(node, ast.Name) else ""

    def scope(self, node):
        """The class of ``self.x``, the function of ``x``."""
        wanted = (ast.ClassDef,) if isinstance(node, ast.Attribute) else (ast.FunctionDef, ast.Lambda)
        while node is not None and not isinstance(node, wanted):
            node = self.parents.get(node)
        return node

    @staticmethod
    def class_made(value) -> str:
        """The class of ``qt.QTimer(...)``; '' for anything else."""
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and getattr(value.func.value, "id", "") in ("qt", "ctk", "slicer"):
            name = value.func.attr
            is_widget = name in slicer_classes() or (qt_class(name) is not None and "QObject" in members_of(name).bases)
            return name if is_widget else ""
        return ""

    def attribute(self, node) -> None:
        if self.in_ui(node) and self.forms:
            absent = node.attr not in self.widgets and node.attr not in self.added and not node.attr.startswith("__")
            if absent and not isinstance(node.ctx, ast.Store):
                files = ", ".join(form.path.name for form in self.forms)
                self.report("P1", node, f"there is no widget '{node.attr}' in {files}{closest(node.attr, self.widgets)}")
        elif self.in_ui(node.value) and node.value.attr in self.widgets and node.value.attr not in self.added:
            for kind in self.widgets[node.value.attr]:
                self.member(node, kind, node.value.attr)
        elif isinstance(node.value, ast.Name) and node.value.id in ("qt", "ctk", "slicer"):
            self.class_exists(node)
        else:
            kinds = self.variables.get((self.scope(node.value), self.key(node.value)), set())
            if len(kinds) == 1 and "" not in kinds:
                self.member(node, next(iter(kinds)), self.key(node.value))

    def class_exists(self, node) -> None:
        source, name = node.value.id, node.attr
        of_qt = source == "qt" and name.startswith("Q") and name not in NOT_IN_PYSIDE and not any(hasattr(module, name) for module in MODULES)
        of_ctk = source == "ctk" and name.startswith("ctk") and name not in slicer_classes()
        of_slicer = source == "slicer" and re.match(r"^q(MRML|Slicer)", name) and name not in slicer_classes()
        if of_qt or of_ctk or of_slicer:
            self.report("P7", node, f"{source}.{name} is not known")

    def member(self, node, kind: str, owner: str) -> None:
        """One use of ``owner.name``."""
        if not known(kind) or kind in NOT_IN_PYSIDE or kind == "QSpacerItem":
            return
        self.resolved += 1
        found, name = members_of(kind), node.attr
        if only_in_qt6(kind, name) and found.knows(name):
            self.report("P9", node, f"{owner}.{name}: {kind} has it in Qt 6 only", note=True)
        if isinstance(node.ctx, ast.Store):
            self.stored(node, kind, owner)
            return
        call = self.parents.get(node)
        called = isinstance(call, ast.Call) and call.func is node
        if name in found.properties and (kind, name) != ("QTimer", "singleShot"):
            if called:
                self.report("P4", node, f"{owner}.{name}(): '{name}' is a property of {kind}, its value cannot be called")
        elif called and name in ("connect", "disconnect") and call.args and isinstance(getattr(call.args[0], "value", None), str):
            error = _signature_error(kind, call.args[0].value, "signal")
            if error:
                self.report("P6", node, f"{owner}.{name}: {error}")
        elif not (found.knows(name) or name in self.dynamic.get(owner, ()) or found.knows(name.removesuffix("_"))):
            self.unknown(node, kind, owner)

    def stored(self, node, kind: str, owner: str) -> None:
        properties = members_of(kind).properties
        if node.attr in self.dynamic.get(owner, ()) or node.attr == "name" or properties.get(node.attr, ("", False))[1]:
            return
        problem = "is read-only" if node.attr in properties else f"does not exist{closest(node.attr, properties)}"
        self.report("P5", node, f"{owner}.{node.attr} = ...: the property of {kind} {problem}")

    def unknown(self, node, kind: str, owner: str) -> None:
        found = members_of(kind)
        if node.attr in found.cpp_only:
            instead = found.cpp_only[node.attr]
            hint = f" (use the property '{instead}')" if instead else ""
            self.report("P3", node, f"{owner}.{node.attr}: {kind} has it in C++, Python does not see it{hint}")
        else:
            self.report("P2", node, f"{owner}.{node.attr}: {kind} has no such member{closest(node.attr, found.all_names())}")

    def parameters(self, forms: list[Form]) -> None:
        """SlicerParameterName of the forms against the parameter nodes of this file; only where the file has some and forms use them."""
        decorated = [c for c in ast.walk(self.tree) if isinstance(c, ast.ClassDef) and any(map(makes_parameters, c.decorator_list))]
        if not decorated:
            return
        enums = {c.name for c in ast.walk(self.tree) if isinstance(c, ast.ClassDef) and any("Enum" in ast.unparse(b) for b in c.bases)}
        fields = {s.target.id: s.annotation for c in decorated for s in c.body if isinstance(s, ast.AnnAssign)}
        for form in self.forms or forms:
            for widget, keys in form.dynamic.items():
                name = keys.get("SlicerParameterName", "")
                if name and name.partition(".")[0] not in fields:
                    self.findings.append(Finding(form.path, "U9", f"{widget}: '{name}' is no field of {', '.join(c.name for c in decorated)}"))
                elif name in fields:
                    kind = annotation_kind(fields[name])
                    fitting = SHOWN_BY.get("Enum" if kind in enums else kind)
                    if fitting is not None and form.widgets[widget] not in fitting:
                        text = f"{widget}: a {form.widgets[widget]} cannot show '{name}' of type {kind}; {', '.join(sorted(fitting))} can"
                        self.findings.append(Finding(form.path, "U9", text))
