"""The stand-in for the application: parameter nodes both ways, widgets, strict attributes, errors in slots, pictures, the static checker."""

from __future__ import annotations

import os
import subprocess
import sys
from enum import Enum
from pathlib import Path

import pytest
from conftest import ROOT
from harness.fixtures import application, no_slot_errors, packages, scene, view_image  # noqa: F401


class Kind(Enum):
    FIRST = 1
    SECOND = 2

    def label(self):
        return self.name.title()


@pytest.fixture
def wrapper(application):
    """The decorated class and the pack of these tests; made here because the harness has to be installed before."""
    from pathlib import Path as FilePath
    from typing import Annotated

    import slicer
    from slicer.parameterNodeWrapper import Choice, Default, Minimum, WithinRange, parameterNodeWrapper, parameterPack

    class Pack:
        low: float = 1.5
        name: str

    Pack.__annotations__ = {"low": float, "name": str}
    Pack = parameterPack(Pack)

    class Node:
        truth = True
        kind = Kind.SECOND

    Node.__annotations__ = {
        "whole": Annotated[int, WithinRange(0, 10), Default(3)], "number": Annotated[float, Minimum(0)], "truth": bool, "text": str, "kind": Kind,
        "choice": Annotated[str, Choice(["a", "b"]), Default("b")], "path": FilePath, "volume": slicer.vtkMRMLScalarVolumeNode, "items": list[int],
        "table": dict[str, float], "pair": tuple[int, str], "maybe": int | None, "pack": Pack}
    return parameterNodeWrapper(Node)


@pytest.fixture
def node(wrapper, scene):
    return wrapper(scene.AddNewNodeByClass("vtkMRMLScriptedModuleNode"))


def stored(node) -> dict:
    inner = node.parameterNode
    return {name: inner.GetParameter(name) for name in inner.GetParameterNames()}


def test_storage_format(node, application):
    import numpy as np

    volume = application.util.addVolumeFromArray(np.zeros((2, 3, 4)))
    node.number, node.path, node.volume, node.items, node.table = 2.5, Path("/a/b"), volume, [4, 5], {"x": 1.0}
    node.pair, node.maybe = (7, "seven"), 5
    node.pack.low = 2.0
    found = stored(node)
    expected = {"whole": "3", "number": "2.5", "truth": "True", "text": "", "kind": "SECOND", "choice": "b", "path": "/a/b", "volume": "",
                "items.len": "2", "items.0": "4", "items.1": "5", "table.len": "1", "table.0.0": "x", "table.0.1": "1.0", "pair.0": "7",
                "pair.1": "seven", "maybe.0": "5", "pack.low": "2.0", "pack.name": ""}
    assert {name: found[name] for name in expected} == expected
    assert node.parameterNode.GetNodeReferenceID("volume") == volume.GetID()
    node.maybe = None
    assert stored(node)["maybe.1"] == "True" and node.maybe is None


def test_values_come_back_from_the_node(node, wrapper):
    node.items, node.table, node.kind, node.pair = [1, 2], {"a": 0.5}, Kind.FIRST, (1, "x")
    node.items.append(9)
    node.table["b"] = 1.5
    again = wrapper(node.parameterNode)
    assert (again.items, again.table, again.kind, again.pair) == ([1, 2, 9], {"a": 0.5, "b": 1.5}, Kind.FIRST, (1, "x"))
    node.items = [6]
    assert again.items == [6] and again.getValue("pack.low") == 1.5


@pytest.mark.parametrize("name, value", [("whole", "3"), ("whole", 2.5), ("text", 3), ("kind", "FIRST"), ("volume", 3), ("items", ["a"]), ("truth", 1)])
def test_wrong_types_raise(node, name, value):
    with pytest.raises((TypeError, AttributeError)):
        setattr(node, name, value)


@pytest.mark.parametrize("name, value", [("whole", 11), ("number", -1.0), ("choice", "c"), ("whole", None), ("text", None), ("truth", None)])
def test_validators(node, name, value):
    before = getattr(node, name)
    with pytest.raises(ValueError):
        setattr(node, name, value)
    assert getattr(node, name) == before


def test_types_that_the_stand_in_lacks_are_refused(application):
    """Nothing that is asked for is passed over; with the application's own files (SLICER_GIT_DIR) all of this is possible."""
    from typing import Annotated, Any

    from slicer.parameterNodeWrapper import Minimum, parameterNodeWrapper

    if os.environ.get("SLICER_GIT_DIR"):
        pytest.skip("the application's own wrapper is in use")

    for kind in (Any, complex, list[Annotated[int, Minimum(0)]], Annotated[int, Minimum(0)] | None, dict[str, Annotated[float, Minimum(0)]]):
        with pytest.raises(TypeError, match="stand-in|cannot keep"):
            parameterNodeWrapper(type("Node", (), {"__annotations__": {"value": kind}}))


def form(application):
    """One widget for every connector that the panels of this extension use."""
    import ctk
    import qt
    import slicer

    top = slicer.qMRMLWidget()
    kinds = {"whole": qt.QSpinBox, "number": ctk.ctkDoubleSpinBox, "truth": qt.QCheckBox, "text": qt.QLineEdit, "kind": qt.QComboBox,
             "choice": qt.QComboBox, "path": ctk.ctkPathLineEdit, "volume": slicer.qMRMLNodeComboBox}
    made = {}
    for name, kind in kinds.items():
        made[name] = kind(top)
        made[name].setProperty("SlicerParameterName", name)
    made["volume"].nodeTypes = ["vtkMRMLScalarVolumeNode"]
    made["volume"].noneEnabled = True
    made["volume"].setMRMLScene(slicer.mrmlScene)
    return top, made


def test_connectors_both_ways(node, application):
    import numpy as np

    top, widgets = form(application)
    tag = node.connectGui(top)
    assert (widgets["whole"].value, widgets["whole"].minimum, widgets["whole"].maximum) == (3, 0, 10)
    assert widgets["truth"].checked and widgets["kind"].currentText == "Second" and widgets["choice"].currentText == "b"
    volume = application.util.addVolumeFromArray(np.zeros((2, 3, 4)))
    node.whole, node.text, node.kind, node.volume = 7, "seven", Kind.FIRST, volume
    assert (widgets["whole"].value, widgets["text"].text, widgets["kind"].currentIndex) == (7, "seven", 0)
    assert widgets["volume"].currentNode() is volume
    widgets["whole"].value, widgets["truth"].checked, widgets["choice"].currentIndex = 9, False, 0
    widgets["path"].currentPath = "/some/where"
    widgets["volume"].setCurrentNode(None)
    assert (node.whole, node.truth, node.choice, node.path, node.volume) == (9, False, "a", Path("/some/where"), None)
    node.disconnectGui(tag)
    widgets["whole"].value = 1
    assert node.whole == 9


def test_connectors_that_do_not_exist(node, application):
    import qt

    with pytest.raises(Exception, match="."):
        node.connectParametersToGui({"volume": qt.QLineEdit()})
    with pytest.raises(ValueError):
        node.connectParametersToGui({"absent": qt.QLineEdit()})


def test_parameter_node_is_one_per_module(application, scene):
    from slicer.ScriptedLoadableModule import ScriptedLoadableModuleLogic

    class SomethingLogic(ScriptedLoadableModuleLogic):
        pass

    first = SomethingLogic().getParameterNode()
    assert SomethingLogic().getParameterNode() is first and first.GetAttribute("ModuleName") == "Something"


def test_node_combo_box(application, scene):
    import slicer

    early, box, heard = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "early"), slicer.qMRMLNodeComboBox(), []
    assert not box.enabled
    box.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    box.connect("currentNodeChanged(vtkMRMLNode*)", heard.append)
    box.setMRMLScene(scene)
    assert box.enabled and box.currentNode() is early and box.nodeTypes == ("vtkMRMLScalarVolumeNode",)
    late = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "late")
    assert box.currentNode() is early and box.nodeCount() == 2
    box.setCurrentNode(late)
    scene.RemoveNode(late)
    assert heard[:2] == [early, late] and box.currentNode() is not late
    made = box.addNode()
    assert made.GetClassName() == "vtkMRMLScalarVolumeNode" and box.currentNodeID == made.GetID()


def test_a_dead_widget_is_not_asked(application, scene, no_slot_errors):
    import shiboken6
    import slicer

    box = slicer.qMRMLNodeComboBox()
    box.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    box.setMRMLScene(scene)
    shiboken6.delete(box)
    scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    assert no_slot_errors == []


def test_segment_selector(application, scene):
    import slicer

    segmentation, selector, heard = scene.AddNewNodeByClass("vtkMRMLSegmentationNode"), slicer.qMRMLSegmentSelectorWidget(), []
    selector.connect("currentSegmentChanged(QString)", heard.append)
    selector.setMRMLScene(scene)
    selector.setCurrentNode(segmentation)
    added = segmentation.GetSegmentation().AddEmptySegment("a", "Liver")
    assert selector.segmentIDs() == (added,) and selector.currentSegmentID() == added and heard == [added]


def test_attributes_are_strict(application):
    import qt
    import slicer

    button, box = qt.QPushButton("text"), slicer.qMRMLNodeComboBox()
    assert button.text == "text" and button.enabled is True
    for name in ("tooltip", "Enabled"):
        with pytest.raises(AttributeError):
            setattr(button, name, 1)
    for call in (lambda: box.setNoneEnabled(True), lambda: button.text(), lambda: button.connect("pushed()", print)):
        with pytest.raises((AttributeError, TypeError, ValueError)):
            call()


def test_connect_and_disconnect(application):
    import qt

    box, heard = qt.QSpinBox(), []
    box.connect("valueChanged(int)", heard.append)
    box.connect("valueChanged(int)", lambda: heard.append("none"))
    box.value = 4
    assert heard == [4, "none"] and box.disconnect("valueChanged(int)", heard.append)
    box.value = 5
    assert heard == [4, "none", "none"]


def test_timers_and_their_static_function(application):
    import qt
    from harness.fixtures import wait_until

    heard, timer = [], qt.QTimer()
    qt.QTimer.singleShot(0, lambda: heard.append("static"))
    timer.singleShot = True
    timer.connect("timeout()", lambda: heard.append("timer"))
    timer.start(1)
    assert wait_until(lambda: len(heard) == 2) and not timer.active


def test_errors_in_slots_are_seen(application, no_slot_errors):
    import qt

    button = qt.QPushButton()
    button.connect("clicked()", lambda: 1 / 0)
    button.click()
    assert [type(error) for error in no_slot_errors] == [ZeroDivisionError]
    no_slot_errors.clear()


def test_errors_are_not_shown_while_testing(application):
    """Both return at once; the confirmation is refused, because slicer.util compares its answer True with the number of the button."""
    application.util.errorDisplay("nothing waits here")
    assert application.util.confirmOkCancelDisplay("really?") is False


def test_slice_view_shows_the_volume(application, scene):
    import numpy as np

    volume = application.util.addVolumeFromArray(np.random.default_rng(0).uniform(0, 100, (20, 20, 20)))
    application.util.setSliceViewerLayers(background=volume, fit=True)
    assert view_image("Red", (120, 100)).shape == (100, 120, 3) and view_image("Red", (120, 100)).std() > 10
    application.util.setSliceViewerLayers(background=None)
    assert view_image("Red", (120, 100)).std() < 5


def test_packages_are_recorded(application, packages):
    packages.missing.add("itk>=5")
    assert not application.packaging.pip_check(["itk>=5"])
    application.packaging.pip_ensure(["itk>=5"], requester="test")
    assert application.packaging.pip_check(["itk>=5"]) and packages.ensured[0][0] == ["itk>=5"]


GOOD = """<ui version="4.0"><class>T</class><widget class="qMRMLWidget" name="T"><layout class="QVBoxLayout" name="l">
<item><widget class="qMRMLNodeComboBox" name="volume"><property name="noneEnabled"><bool>true</bool></property>
<property name="SlicerParameterName" stdset="0"><string>volume</string></property></widget></item>
<item><widget class="QPushButton" name="apply"/></item></layout></widget><connections><connection><sender>T</sender>
<signal>mrmlSceneChanged(vtkMRMLScene*)</signal><receiver>volume</receiver><slot>setMRMLScene(vtkMRMLScene*)</slot></connection></connections></ui>"""
SOURCE = """import qt
from slicer import vtkMRMLScalarVolumeNode
@parameterNodeWrapper
class Node:
    volume: vtkMRMLScalarVolumeNode
class TWidget:
    def setup(self):
        self.ui.apply.enabled = True
        self.ui.volume.noneEnabled = False
        self.ui.apply.connect("clicked()", self.go)
        self.timer = qt.QTimer()
        self.timer.connect("timeout()", self.go)
"""
SEEDED = [("U1", "qMRMLNodeComboBox", "qMRMLNodeKomboBox"), ("U3", "noneEnabled", "noneEnable"), ("U5", "<bool>true</bool>", "<string>yes</string>"),
          ("U6", "mrmlSceneChanged", "mrmlSceneChange"), ("U7", 'name="apply"', 'name="volume"'), ("U9", "<string>volume</string>", "<string>volumes</string>"),
          ("P1", "self.ui.apply.enabled", "self.ui.aply.enabled"), ("P2", "self.ui.volume.noneEnabled = False", "self.ui.volume.currentNod()"),
          ("P3", "self.ui.volume.noneEnabled = False", "self.ui.volume.setNoneEnabled(False)"), ("P4", "apply.enabled = True", "apply.text()"),
          ("P5", "apply.enabled = True", "apply.enable = True"), ("P6", "clicked()", "click()"), ("P7", "qt.QTimer()", "qt.QTymer()")]


def checked(folder: Path, *arguments) -> subprocess.CompletedProcess:
    """The checker in a process of its own, because it needs PySide6 as it is."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "Testing"), "QT_QPA_PLATFORM": "offscreen"}
    command = [sys.executable, "-m", "harness.check_ui", *map(str, (*arguments, folder))]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_checker_finds_what_was_seeded(tmp_path):
    pytest.importorskip("PySide6")
    for number, (_, before, after) in enumerate(SEEDED):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / f"T{number}.ui").write_text(GOOD.replace(before, after), "utf-8")
        (tmp_path / str(number) / f"T{number}.py").write_text(SOURCE.replace(before, after), "utf-8")
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "T.ui").write_text(GOOD, "utf-8")
    (tmp_path / "good" / "T.py").write_text(SOURCE, "utf-8")
    answer = checked(tmp_path)
    assert answer.returncode == 1 and not answer.stderr, answer.stderr
    for number, (code, *_) in enumerate(SEEDED):
        said = [line for line in answer.stdout.splitlines() if line.startswith((f"T{number}.ui", f"T{number}.py"))]
        assert any(f": {code} " in line for line in said), (code, said)
    assert not [line for line in answer.stdout.splitlines() if line.startswith("T.")]
    good = checked(tmp_path / "good")
    assert good.returncode == 0, good.stdout


def test_checker_reports_nothing_on_this_extension():
    pytest.importorskip("PySide6")
    answer = checked(ROOT / "DeepRegistration", ROOT / "AtlasBuilder", ROOT / "QMRIRegister")
    assert answer.returncode == 0 and not answer.stderr, answer.stdout + answer.stderr
    assert int(answer.stdout.splitlines()[-1].split()[0]) > 50, "too few uses were resolved to mean anything"
