"""What the tests of the panels share: the module in the stand-in of the application, small volumes, layout at 400 pixels, a runner that follows a script."""

import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT
from harness.fixtures import application, no_slot_errors, scene  # noqa: F401
from harness.fixtures import panel as module_panel  # noqa: F401

from DeepRegistrationLib.geometry import Grid

WIDTH = 400
"""Pixels that the panel has in the application's window."""


@pytest.fixture
def slicer(application, scene):
    """The stand-in of the application, with an empty scene."""
    return application


@pytest.fixture
def panel(slicer, module_panel):
    """The panel of a module that is shown in an empty scene."""
    return module_panel("DeepRegistration").panel


@pytest.fixture
def pair(slicer, panel):
    """The panel with a chosen pair of small volumes and a runner that follows a script."""
    panel.logic._runner = ScriptedRunner()
    panel.node.fixedVolume, panel.node.movingVolume = volume(slicer, "fixed"), volume(slicer, "moving", shift=1)
    settle(slicer)
    return panel


def volume(slicer, name: str, shape=(10, 12, 14), shift: int = 0, channels: int = 0):
    """A smooth blob of a few voxels' width as a scalar (or colour) volume."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    values = 100 * np.exp(-4 * ((x - 0.2 * shift) ** 2 + (y + 0.1 * shift) ** 2 + z**2)) + 10 * np.cos(5 * x) * np.cos(4 * y + z)
    values = values.astype(np.float32)
    kind = "vtkMRMLVectorVolumeNode" if channels else None
    if channels:
        values = np.repeat(values[..., None], channels, -1)
    return slicer.util.addVolumeFromArray(values, name=name, nodeClassName=kind)


def segmentation(slicer, reference, name: str, shift: int = 0):
    """One segment 'box' in the middle of a volume."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(reference)
    image = slicer.vtkOrientedImageData()
    shape = slicer.util.arrayFromVolume(reference).shape
    image.SetDimensions(shape[::-1])
    image.AllocateScalars(3, 1)
    from vtk.util.numpy_support import vtk_to_numpy

    array = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(shape)
    array[:] = 0
    array[3:7, 3:8, 4 + shift : 9 + shift] = 1
    node.AddSegmentFromBinaryLabelmapRepresentation(image, "box")
    return node


def landmarks(slicer, name: str, points):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", name)
    for point in points:
        node.AddControlPoint(*point)
    return node


def settle(slicer) -> None:
    """Let single-shot timers of the panel fire."""
    for _ in range(4):
        slicer.app.processEvents()


def wait_until(slicer, condition, seconds: float = 60.0) -> float:
    """Run the event loop until ``condition()``; the seconds that it took."""
    began = time.perf_counter()
    while not condition():
        assert time.perf_counter() - began < seconds, "the panel did not get there in time"
        slicer.app.processEvents()
        time.sleep(0.002)
    return time.perf_counter() - began


def choose(box, data) -> None:
    """Choose the item of a combo box with ``data``, as a user does."""
    index = next(k for k in range(box.count) if box.itemData(k) == data)
    box.setCurrentIndex(index)


def status(page) -> str:
    """The sentence in the page's status line, '' where it is hidden."""
    label = getattr(page.ui, f"{page.STATUS}StatusLabel")
    assert "\n" not in label.text
    return label.text if not getattr(page.ui, f"{page.STATUS}StatusWidget").isHidden() else ""


def lengthen(text: str, factor: float = 1.6) -> str:
    """A text of ``factor`` times the length, in words of usual length."""
    more, filler = int(len(text) * factor) - len(text), "verlaengerung der angabe "
    return text + (" " + (filler * (more // len(filler) + 1)))[:more] if text.strip() else text


def texts_of(widget):
    """(widget, text) of labels, buttons and check boxes that show a text."""
    import qt

    for kind in (qt.QLabel, qt.QPushButton, qt.QCheckBox, qt.QToolButton):
        for each in widget.findChildren(kind):
            if type(each).__name__ in ("QLabel", "QPushButton", "QCheckBox", "QToolButton") and isinstance(each.text, str) and each.text.strip():
                yield each, each.text


def loaded_by_showing(module: str, *pages: str) -> set[str]:
    """What a fresh process has imported once it has shown the panel of ``module`` and its ``pages``: names of packages and modules."""
    program = ("import sys; import harness; from harness.application import install, load; install();"
               f"w = load({str(ROOT / module / f'{module}.py')!r}).createNewWidgetRepresentation(); w.show_module(True);"
               f"[w.self().panel.open(page) for page in {pages}]; print(*sys.modules); w.self().cleanup()")
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT / "Testing", timeout=120)
    assert answer.returncode == 0, answer.stderr
    return set(answer.stdout.split())


def show(slicer, panel, name: str):
    """The page ``name``, all its boxes unfolded, drawn at 400 pixels."""
    import qt

    panel.open(name)
    page = panel.page(name)
    for box in [child for child in page.widget.findChildren(qt.QWidget) if type(child).__name__ == "ctkCollapsibleGroupBox"]:
        box.collapsed = False
    top = panel.widget.window()
    top.show()
    draw(slicer, top)
    return page


def draw(slicer, top) -> None:
    """Lay the window ``top`` out at 400 pixels."""
    for _ in range(2):
        top.resize(WIDTH, max(400, top.heightForWidth(WIDTH) if top.hasHeightForWidth() else top.sizeHint().height()))
        settle(slicer)


def clipped(page) -> list[str]:
    """Texts that their widget does not show whole."""
    found = []
    for widget, text in texts_of(page.widget):
        if not widget.isVisible():
            continue
        wraps = type(widget).__name__ == "QLabel" and widget.wordWrap
        needed = widget.heightForWidth(widget.width) if wraps else widget.sizeHint().width()
        if (wraps and needed > widget.height + 1) or (not wraps and needed > widget.width + 1):
            found.append(f"{widget.objectName}: '{text}' needs {needed}, has {widget.height if wraps else widget.width}")
    return found


def without_help(page) -> list[str]:
    """Names of the controls of a page that do not say what they are for."""
    import qt

    kinds = (qt.QPushButton, qt.QCheckBox, qt.QToolButton, qt.QComboBox, qt.QSpinBox, qt.QDoubleSpinBox, qt.QTableWidget, qt.QListWidget)
    return [child.objectName for kind in kinds for child in page.widget.findChildren(kind)
            if getattr(page.ui, child.objectName or "-", None) is child and not child.toolTip]


def check_fits(slicer, panel, page, factor: float = 1.0) -> None:
    """The page that is shown, with texts of ``factor`` times the length: the panel is not wider than ``WIDTH`` and no text is clipped."""
    if factor > 1:
        for widget, text in list(texts_of(page.widget)):
            widget.text = lengthen(text, factor)
    draw(slicer, panel.widget.window())
    assert panel.widget.minimumSizeHint().width() <= WIDTH, "the page with the frame of its section"
    assert clipped(page) == []


class ScriptedJob:
    """A job whose events are given by the test."""

    def __init__(self, runner, request, on_event):
        self.runner, self.request, self.on_event, self.result = runner, request, on_event, None
        self.cancelled, self.discarded, self.folder = False, False, None

    def cancel(self):
        self.cancelled = True
        self.runner.queue.append((self, {"event": "cancelled"}))

    def discard(self):
        self.result, self.discarded = None, True


class ScriptedRunner:
    """Follows a script instead of computing: ``say(event)`` gives the latest job an event at the next tick. ``refuses``: what submit raises."""

    hello, warming = None, False

    def __init__(self):
        self.jobs, self.queue, self.refuses, self.stopped = [], [], None, False

    @property
    def busy(self):
        return bool(self.queue)

    def submit(self, request, on_event=None):
        if self.refuses is not None:
            raise self.refuses
        self.jobs.append(ScriptedJob(self, request, on_event))
        return self.jobs[-1]

    def say(self, event: str, **values):
        self.queue.append((self.jobs[-1], {"event": event, **values}))

    def tick(self):
        queue, self.queue = self.queue, []
        for job, event in queue:
            job.result = event.get("result", job.result)
            job.on_event(job, event)

    def stop(self):
        self.stopped = True


def answer(request: dict) -> dict:
    """A result of a register job: a small shift and a smooth deformation."""
    from DeepRegistrationLib import exchange

    grid: Grid = request["fixed"].grid
    matrix = np.eye(4)
    matrix[0, 3] = 1.5
    vectors = np.zeros((*grid.shape, 3), np.float32)
    vectors[2:-2, 2:-2, 2:-2, 1] = 0.4
    back = np.eye(4)
    back[0, 3] = -1.5
    zeros = np.zeros(grid.shape, np.float32)
    rows = [{"name": "Correlation", "structure": "", "unit": "-1 to 1", "before": 0.5, "value": 0.9},
            {"name": "Folded voxels", "structure": "", "unit": "%", "before": None, "value": 0.0}]
    made = {"inverse": [exchange.Lattice(-vectors, grid), exchange.Matrix(back)], "warped": exchange.Volume(zeros, grid, "warped"),
            "log_jacobian": exchange.Volume(zeros, grid, "log-Jacobian"), "folds": exchange.LabelMap(zeros.astype(np.uint8), grid, ((1, "folds"),))}
    return {"transform": [exchange.Matrix(matrix), exchange.Lattice(vectors, grid)], "metrics": rows, "scalars": {"cost": 1.0},
            "history": [{"cost": 2.0}, {"cost": 1.0}], "provenance": {"seed": 0}, "previews": {"count": 0, "share_of_time": 0.0},
            **{name: made[name] for name in request["outputs"]}}


def register(slicer, panel, prefix=""):
    """Press Apply and give the run ``answer`` at once; returns the panel."""
    panel.node.live, panel.node.prefix = False, prefix
    settle(slicer)
    page, runner = panel.page("register"), panel.logic._runner
    before = len(runner.jobs)
    page.ui.applyButton.click()
    wait_until(slicer, lambda: len(runner.jobs) > before or not page.running, 5)  # masks are read before anything is sent
    runner.say("done", result=answer(runner.jobs[-1].request))
    wait_until(slicer, lambda: not page.running, 20)
    settle(slicer)
    return panel


def check(page, node, on=True):
    """Check a node in the list of the transfer page."""
    import qt

    items = [page.ui.nodesList.item(k) for k in range(page.ui.nodesList.count)]
    item = next(each for each in items if each.data(qt.Qt.UserRole) == node.GetID())
    item.setCheckState(qt.Qt.Checked if on else qt.Qt.Unchecked)
