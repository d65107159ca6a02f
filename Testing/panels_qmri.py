"""What the tests of QMRIRegister share: its panel with a runner that follows a script, a known set of slices in the scene, what a worker would answer."""

import json

import numpy as np
import pytest
from panels import ScriptedRunner, settle, wait_until
from test_jobs_qmri import QUICK

from DeepRegistrationLib import exchange


@pytest.fixture
def panel(slicer, module_panel):
    """The panel of QMRIRegister with a runner that follows a script."""
    made = module_panel("QMRIRegister").panel
    made.logic._runner = ScriptedRunner()
    return made


@pytest.fixture
def page(panel):
    """The page that registers slices."""
    return panel.page("slices")


def load(slicer, truth) -> tuple[list, object]:
    """(nodes of the slices, node of the volume) of a known set."""
    from DeepRegistrationUI import mrml

    def add(image):
        return mrml.volume_node(slicer.mrmlScene, exchange.Volume(image.data[0, 0].numpy(), image.grid, image.name))

    return [add(image) for image in truth.problem.slices], add(truth.problem.volume)


def chosen(slicer, page, truth):
    """The nodes of a known set, chosen in the page."""
    nodes, volume = load(slicer, truth)
    page.node.qmriVolume, page.node.qmriValues = volume, json.dumps(QUICK)
    settle(slicer)
    return nodes, volume


def drawn_on(slicer, node, labels, names):
    """A segmentation on ``node`` with the values of a label map as segments."""
    from DeepRegistrationUI import mrml

    value = exchange.LabelMap(labels.data[0, 0].numpy().astype(np.uint8), labels.grid, tuple(enumerate(names, 1)))
    made = mrml.segmentation_node(slicer.mrmlScene, value, "strokes")
    made.SetReferenceImageGeometryParameterFromVolumeNode(node)
    return made


def beside(slicer, nodes, name: str, factor: float, unit: str = "") -> list:
    """Maps on the pixels of slices: their values times ``factor``."""
    from DeepRegistrationUI import mrml

    made = []
    for node in nodes:
        value = exchange.Volume(factor * mrml.array_of(node), mrml.grid_of(node), node.GetName().replace("T2", name))
        made.append(mrml.volume_node(slicer.mrmlScene, value))
        if unit:
            units = slicer.vtkCodedEntry()
            units.SetValueSchemeMeaning(unit, "UCUM", unit)
            made[-1].SetVoxelValueUnits(units)
    return made


def result_of(truth, registered: bool = True, plane=None, flips=None) -> dict:
    """What the worker would answer for a known set: the true maps, and the slices themselves as their emulation."""
    count = len(truth.problem.slices)
    plane, flips = plane or list(range(count)), flips or [(False, False)] * count
    rows = [{"name": image.name, "plane": plane[k], "flips": list(flips[k]), "similarity": 0.4, "inside": 0.9, "own_shift_mm": 0.0,
             "own_turn_degrees": 0.0, "matrix": exchange.Matrix(truth.each[k]),
             "emulated": exchange.Volume(image.data[0, 0].numpy(), image.grid, f"{image.name} emulated")}
            for k, image in enumerate(truth.problem.slices)]
    reasons = [] if registered else ["another pose far away is nearly as good; give a start closer to the truth"]
    remarks = ["the sides are those of the headers"] if registered else []
    return {"registered": registered, "reasons": reasons, "remarks": remarks, "matrix": exchange.Matrix(truth.truth), "slices": rows,
            "start": "header", "provenance": {},
            "std": {"distance_mm": 0.4, "shift_mm": [0.1, 0.2, 0.3], "turn_degrees": [0.4, 0.5, 0.6]},
            "evidence": {"contrast": 12.0, "lead": 0.5, "halves": 0.6, "measures": 0.4, "agreeing": 1.0, "overlap": 0.9},
            "curve": {"degrees": [-30.0, 0.0, 30.0], "set": [0.1, 0.3, 0.1]}}


def answered(slicer, page, truth, **how):
    """The page after a scripted registration of a known set."""
    nodes, volume = chosen(slicer, page, truth)
    page.ui.qmriButton.click()
    page.logic._runner.say("done", result=result_of(truth, **how))
    wait_until(slicer, lambda: not page.running, 5)
    settle(slicer)
    return nodes, volume


def corner(node) -> np.ndarray:
    """Where the first pixel of a volume node is in the scene, LPS mm."""
    from DeepRegistrationUI import mrml

    return mrml.grid_of(node).origin


def told(page) -> list[str]:
    """What the table of the check says of each slice."""
    return [page.ui.qmriCheckTable.item(k, 1).text() for k in range(page.ui.qmriCheckTable.rowCount)]
