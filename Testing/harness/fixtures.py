"""Fixtures of tests that need the application: ``from harness.fixtures import application, no_slot_errors, panel, scene  # noqa: F401``.

``application`` is the module ``slicer`` with everything in place; ``scene`` is empty for every test; ``panel("DeepRegistration")`` is the
Python widget of a module, entered, and cleaned up afterwards; ``no_slot_errors`` is used by itself and fails a test in whose slots or
observers something was raised (``no_slot_errors.clear()`` where that was meant). ``screenshot(widget, path)`` saves a picture.
Tests are skipped where PySide6, slicer-core or EGL is missing.
"""

from __future__ import annotations

import gc
import importlib.util
import sys
from pathlib import Path

import pytest

from . import services

ROOT = Path(__file__).resolve().parents[2]
MODULES = {name: ROOT / name / f"{name}.py" for name in ("DeepRegistration", "AtlasBuilder", "QMRIRegister")}
__all__ = ["application", "no_slot_errors", "packages", "panel", "scene", "screenshot", "view_image", "wait_until"]


def missing() -> str:
    """'' where the harness can work; otherwise what has to be installed."""
    absent = [name for name in ("PySide6", "slicer", "vtk") if importlib.util.find_spec(name) is None]
    if absent:
        return f"{', '.join(absent)} not installed; pip install slicer-core PySide6-Essentials"
    from .rendering import can_render

    return can_render()


@pytest.fixture(scope="session")
def application():
    """The module ``slicer``, with ``slicer.app``, ``qt`` and ``ctk``."""
    if missing():
        pytest.skip(missing())
    from .application import install

    slicer = install()
    slicer.app.first_nodes = {slicer.mrmlScene.GetNthNode(i).GetID() for i in range(slicer.mrmlScene.GetNumberOfNodes())}
    return slicer


def _empty(slicer) -> None:
    """Close the scene and remove every node that the application did not start with."""
    slicer.mrmlScene.Clear(0)
    nodes = [slicer.mrmlScene.GetNthNode(i) for i in range(slicer.mrmlScene.GetNumberOfNodes())]
    for node in nodes:
        if node.GetID() not in slicer.app.first_nodes and not node.IsA("vtkMRMLSubjectHierarchyNode"):
            slicer.mrmlScene.RemoveNode(node)


@pytest.fixture
def scene(application):
    """``slicer.mrmlScene``, empty before and after."""
    from .widgets import CALLS

    _empty(application)
    CALLS.clear()
    yield application.mrmlScene
    _empty(application)
    gc.collect()


@pytest.fixture(autouse=True)
def no_slot_errors(monkeypatch):
    """Errors that were raised in slots and observers, which neither Qt nor VTK passes on; a test with any fails."""
    errors = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: errors.append(error))
    yield errors
    if errors:
        raise errors[0]


@pytest.fixture
def panel(application, scene, monkeypatch):
    """``panel(name)``: the Python widget of a module of this extension, newly made and entered. Clicks may follow each other faster than a person's."""
    import shiboken6

    monkeypatch.setattr("DeepRegistrationUI.pages.base.DOUBLE_CLICK_SECONDS", 0.0)

    from .application import load

    holders = []

    def make(name: str):
        holders.append(load(MODULES[name]).createNewWidgetRepresentation())
        holders[-1].show_module(True)
        return holders[-1].self()

    yield make
    for holder in holders:
        holder.show_module(False)
        holder.self().cleanup()
        application.app.processEvents()
        shiboken6.delete(holder)


@pytest.fixture
def packages(application, monkeypatch):
    """Record of what was asked of ``slicer.packaging``, see ``services.PackageRecord``."""
    record = services.PackageRecord()
    monkeypatch.setattr(application.packaging, "pip_check", record.pip_check)
    monkeypatch.setattr(application.packaging, "pip_ensure", record.pip_ensure)
    return record


def screenshot(widget, path, width: int = 400):
    """Save a picture of a widget that is ``width`` pixels wide and as high as it wants to be; returns the widget's size."""
    from PySide6 import QtWidgets

    for _ in range(3):  # labels that wrap lines and sections that open settle in a few rounds
        wanted = widget.layout().heightForWidth(width) if widget.layout() is not None and widget.layout().hasHeightForWidth() else -1
        widget.resize(width, max(wanted, widget.sizeHint().height(), 40))
        widget.show()
        QtWidgets.QApplication.processEvents()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    widget.grab().save(str(path))
    return widget.size


def view_image(name: str = "Red", size: tuple[int, int] = (300, 300), path=None):
    """Picture (height, width, 3) of a slice view, or of the 3D view for '3D'; saved as PNG where a path is given."""
    import slicer

    from .rendering import save_png

    layout = slicer.app.layoutManager()
    image = (layout.threeDWidget(0) if name == "3D" else layout.sliceWidget(name)).view.image(size)
    if path is not None:
        save_png(image, path)
    return image


def wait_until(condition, timeout: float = 10.0) -> bool:
    """Run the event loop until ``condition()`` is true; False after ``timeout`` seconds."""
    import time

    from PySide6 import QtWidgets

    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            return False
        QtWidgets.QApplication.processEvents()
        time.sleep(0.005)
    return True
