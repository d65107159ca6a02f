"""``slicer.app`` and ``slicer.modules`` on slicer-core, and the loading of scripted modules.

``install()`` makes the application once per process; ``load(path)`` loads a module file as the application does.
"""

from __future__ import annotations

import importlib
import logging
import os
import subprocess
import sys
import tempfile
import types
from pathlib import Path

from PySide6 import QtCore, QtWidgets

from . import qt_shim, rendering, services, widgets
from .facts import slicer_classes
from .files import FileManager

LOGICS = {"Volumes": "vtkSlicerVolumesLogic", "Segmentations": "vtkSlicerSegmentationsModuleLogic", "Markups": "vtkSlicerMarkupsLogic",
          "Transforms": "vtkSlicerTransformLogic", "Models": "vtkSlicerModelsLogic", "SubjectHierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
          "Tables": "vtkSlicerTablesLogic", "Texts": "vtkSlicerTextsLogic", "Sequences": "vtkSlicerSequencesLogic", "Colors": "vtkSlicerColorLogic",
          "VolumeRendering": "vtkSlicerVolumeRenderingLogic", "Plots": "vtkSlicerPlotsLogic", "Units": "vtkSlicerUnitsLogic",
          "CropVolume": "vtkSlicerCropVolumeLogic", "Cameras": "vtkSlicerCamerasModuleLogic"}
REAL_FILES = "SLICER_GIT_DIR"  # environment variable: a bare clone of Slicer whose Python files replace the stand-ins


class Recorded:
    """Members that the application has and the harness does nothing for: properties are empty, calls are recorded and answer None."""

    facts_name = ""

    def __getattr__(self, name):
        cls = self.facts_name if not name.startswith("_") else ""
        while cls in slicer_classes():
            facts = slicer_classes()[cls]
            if name in facts.get("properties", {}):
                return widgets.DEFAULTS.get(facts["properties"][name][0])
            if any(name in facts.get(kind, ()) for kind in ("slots", "invokables", "decorator_methods")):
                return lambda *arguments: widgets.CALLS.append((self.facts_name, "", name, arguments))
            cls = next(iter(facts.get("bases", ())), "")
        raise AttributeError(f"{self.facts_name} has no attribute named '{name}'")


class SliceController:
    """The bar above a slice view."""

    def __init__(self, widget):
        self.widget = widget

    def fitSliceToBackground(self):
        self.widget.sliceLogic().FitSliceToBackground()

    def mrmlSliceNode(self):
        return self.widget.mrmlSliceNode()

    def setSliceVisible(self, visible):
        self.widget.mrmlSliceNode().SetSliceVisible(visible)


class ViewPart:
    """What ``sliceView()`` and ``threeDView()`` answer."""

    def __init__(self, view):
        self.view = view

    def forceRender(self):
        """Draw when a picture is taken; nothing is on a screen."""

    scheduleRender = resetFocalPoint = resetCamera = forceRender

    def mrmlSliceNode(self):
        return self.view.node

    mrmlViewNode = mrmlSliceNode

    def renderWindow(self):
        self.view.open((300, 300))
        return self.view.window


class SliceWidget:
    """``layoutManager().sliceWidget(name)``; ``view.image()`` is its picture."""

    def __init__(self, view):
        self.view = view

    def sliceLogic(self):
        return self.view.logic

    def mrmlSliceNode(self):
        return self.view.node

    def mrmlSliceCompositeNode(self):
        return self.view.logic.GetSliceCompositeNode()

    def sliceView(self):
        return ViewPart(self.view)

    def sliceController(self):
        return SliceController(self)

    def fitSliceToBackground(self):
        self.view.logic.FitSliceToBackground()


class ThreeDWidget:
    """``layoutManager().threeDWidget(0)``."""

    def __init__(self, view):
        self.view = view

    def threeDView(self):
        return ViewPart(self.view)

    def mrmlViewNode(self):
        return self.view.node


class LayoutManager(Recorded, QtCore.QObject):
    stands_for_cpp = False
    facts_name = "qSlicerLayoutManager"
    layoutChanged = QtCore.Signal(int)

    def __init__(self, scene, application_logic):
        QtCore.QObject.__init__(self)
        self.slices = {name: SliceWidget(rendering.SliceView(scene, application_logic, name)) for name in rendering.ORIENTATIONS}
        self.volume = ThreeDWidget(rendering.ThreeDView(scene, application_logic, "View1"))
        self.scene, self.layout, self.application_logic = scene, 3, application_logic

    def mrmlSliceLogics(self):
        return self.application_logic.GetSliceLogics()

    def sliceViewNames(self):
        return tuple(self.slices)

    def sliceWidget(self, name):
        return self.slices.get(name)

    def threeDWidget(self, index):
        return self.volume if index in (0, "View1") else None

    threeDViewCount = 1
    tableViewCount = plotViewCount = 0

    def layoutLogic(self):
        return None

    def setLayout(self, number):
        changed, self.layout = number != self.layout, number
        if changed:
            self.layoutChanged.emit(number)

    def layoutID(self):
        return self.layout

    def resetSliceViews(self):
        for each in self.slices.values():
            each.fitSliceToBackground()

    def resetThreeDViews(self):
        """The camera is reset for every picture."""

    def mrmlScene(self):
        return self.scene


class ModuleManager(Recorded, QtCore.QObject):
    stands_for_cpp = False
    facts_name = "qSlicerModuleManager"
    moduleAboutToBeUnloaded, moduleLoaded = QtCore.Signal(str), QtCore.Signal(str)

    def __init__(self):
        QtCore.QObject.__init__(self)
        self.loaded = {}

    def module(self, name):
        return self.loaded.get(name)

    def modulesNames(self):
        return tuple(self.loaded)

    loadedModuleNames = modulesNames

    def isModuleLoaded(self, name):
        return name in self.loaded

    def factoryManager(self):
        return self


class Application(Recorded, QtCore.QObject):
    """``slicer.app``"""

    stands_for_cpp = False
    facts_name = "qSlicerApplication"
    startupCompleted, lastWindowClosed, aboutToQuit = QtCore.Signal(), QtCore.Signal(), QtCore.Signal()
    mrmlSceneChanged = QtCore.Signal(object)
    applicationName, applicationVersion, majorVersion, minorVersion, revision = "Slicer", "5.13.0", 5, 13, "0"
    documentationBaseUrl = "https://slicer.readthedocs.io/en/latest/"

    def __init__(self, folder: Path):
        QtCore.QObject.__init__(self)
        import slicer
        import vtk

        for name in ("share", "temporary", "cache"):
            (folder / name).mkdir()
        self.slicerHome, self.temporaryPath, self.cachePath = str(folder), str(folder / "temporary"), str(folder / "cache")
        self.slicerUserSettingsFilePath = str(folder / "Slicer.ini")
        self.scene, self.logic, self.testing, self.window = slicer.vtkMRMLScene(), slicer.vtkSlicerApplicationLogic(), True, None
        self.logic.SetHomeDirectory(str(folder))
        self.logic.SetShareDirectory(str(folder / "share"))
        crosshair = slicer.vtkMRMLCrosshairNode()
        crosshair.SetCrosshairName("default")
        self.scene.AddNode(crosshair)
        self.logic.SetMRMLScene(self.scene)
        self.logic.GetColorLogic().SetMRMLScene(self.scene)
        self.logic.GetColorLogic().AddDefaultColorNodes()
        self.view_logics = vtk.vtkCollection(), vtk.vtkCollection()
        self.logic.SetSliceLogics(self.view_logics[0])
        self.logic.SetViewLogics(self.view_logics[1])
        self.settings_file = QtCore.QSettings(self.slicerUserSettingsFilePath, QtCore.QSettings.Format.IniFormat)
        self.modules, self.files, self.layouts = ModuleManager(), FileManager(), None

    def mrmlScene(self):
        return self.scene

    def applicationLogic(self):
        return self.logic

    def layoutManager(self):
        return self.layouts

    def moduleManager(self):
        return self.modules

    def ioManager(self):
        return self.files

    coreIOManager = ioManager

    def processEvents(self, *arguments):
        QtWidgets.QApplication.processEvents()

    def testingEnabled(self):
        return self.testing

    def userSettings(self):
        return self.settings_file

    settings = revisionUserSettings = userSettings

    def translate(self, context, text):
        return text

    def moduleDocumentationUrl(self, name):
        return self.documentationBaseUrl + name

    def mainWindow(self):
        return self.window

    def commandOptions(self):
        return types.SimpleNamespace(noMainWindow=self.window is None, testingEnabled=self.testing)

    def startupEnvironment(self):
        return dict(os.environ)

    def topLevelWidgets(self):
        return QtWidgets.QApplication.topLevelWidgets()

    def keyboardModifiers(self):
        return QtWidgets.QApplication.keyboardModifiers()

    def clipboard(self):
        return QtWidgets.QApplication.clipboard()

    def setOverrideCursor(self, cursor):
        QtWidgets.QApplication.setOverrideCursor(cursor)

    def restoreOverrideCursor(self):
        QtWidgets.QApplication.restoreOverrideCursor()

    def pauseRender(self):
        """Nothing is drawn by itself."""

    resumeRender = pauseRender


class CoreModule(QtCore.QObject):
    """A module as the application sees it."""

    stands_for_cpp = False

    def __init__(self, name, path="", logic=None):
        QtCore.QObject.__init__(self)
        self.path, self.title, self.core_logic, self.shown, self.icon = path, name, logic, None, None
        self.categories, self.dependencies, self.contributors, self.associatedNodeTypes = [], [], [], []
        self.helpText = self.acknowledgementText = ""
        self.hidden, self.widgetRepresentationCreationEnabled = False, True
        self.setObjectName(name)

    def logic(self):
        return self.core_logic

    def widgetRepresentation(self):
        return self.shown


def _scripted_classes(slicer) -> None:
    """The two classes that hold a Python module and its panel."""

    class qSlicerScriptedLoadableModuleWidget(widgets.build("qSlicerWidget")):
        stands_for_cpp = False
        isEntered = False

        def self(self):
            return self.__dict__["_python"]

        def start(self, module):
            self.__dict__["_module"] = module
            made = getattr(sys.modules[module.name], f"{module.name}Widget")(self)
            self.__dict__["_python"] = made
            setattr(slicer.modules, f"{module.name}Widget", made)
            made.setup()
            return made

        def reload(self):
            made = self.start(self.__dict__["_module"])
            if self.isEntered and hasattr(made, "enter"):
                made.enter()

        def show_module(self, entered: bool):
            """Enter or leave the module."""
            self.__dict__["isEntered"] = entered
            call = getattr(self.self(), "enter" if entered else "exit", None)
            if call:
                call()

    class qSlicerScriptedLoadableModule(CoreModule):
        def createNewWidgetRepresentation(self):
            holder = qSlicerScriptedLoadableModuleWidget()
            holder.setLayout(QtWidgets.QVBoxLayout())
            holder.setMRMLScene(slicer.mrmlScene)
            holder.start(self)
            return holder

        def widgetRepresentation(self):
            if self.shown is None:
                self.shown = self.createNewWidgetRepresentation()
            return self.shown

    slicer.qSlicerScriptedLoadableModuleWidget = qSlicerScriptedLoadableModuleWidget
    slicer.qSlicerScriptedLoadableModule = qSlicerScriptedLoadableModule


def _python_files(slicer, folder: Path) -> None:
    """Slicer's own Python files where a clone is named, the stand-ins otherwise."""
    clone = os.environ.get(REAL_FILES)
    if clone:
        with subprocess.Popen(["git", "--git-dir", clone, "archive", "HEAD", "Base/Python"], stdout=subprocess.PIPE) as archive:
            subprocess.run(["tar", "-x", "-C", str(folder)], stdin=archive.stdout, check=True)
        sys.path.append(str(folder / "Base" / "Python"))
        slicer.__path__.append(str(folder / "Base" / "Python" / "slicer"))
        import slicer_core

        for name in dir(slicer_core):  # the names of the wrapped kits in the application
            if f"slicer_core.{name}" in sys.modules:
                sys.modules.setdefault(f"{name}Python", sys.modules[f"slicer_core.{name}"])
    else:
        sys.modules["slicer.i18n"], sys.modules["slicer.packaging"] = services.translation(), services.packaging()
        from . import parameter_nodes, scripted

        sys.modules["slicer.ScriptedLoadableModule"], sys.modules["slicer.parameterNodeWrapper"] = scripted, parameter_nodes
    for name in ("ScriptedLoadableModule", "parameterNodeWrapper", "i18n", "packaging"):
        setattr(slicer, name, importlib.import_module(f"slicer.{name}"))


def add_module(module: CoreModule) -> CoreModule:
    """Make a module known under ``slicer.modules`` and to the module manager."""
    import slicer

    slicer.app.moduleManager().loaded[module.name] = module
    setattr(slicer.modules, module.name.lower(), module)
    setattr(slicer.moduleNames, module.name, module.name)
    return module


def _add_core_modules(slicer) -> None:
    for name, class_name in LOGICS.items():
        logic = getattr(slicer, class_name)()
        if hasattr(logic, "SetMRMLApplicationLogic"):
            logic.SetMRMLApplicationLogic(slicer.app.logic)
        logic.SetMRMLScene(slicer.mrmlScene)
        slicer.app.logic.SetModuleLogic(name, logic)
        add_module(CoreModule(name, logic=logic))


def install():
    """The application of this process, made on first call; returns the module ``slicer``."""
    import slicer

    if hasattr(slicer, "app"):
        return slicer
    qt_shim.install()
    sys.modules["ctk"], classes = widgets.install()
    for name, cls in classes.items():
        if not hasattr(slicer, name):
            setattr(slicer, name, cls)
    folder = Path(tempfile.mkdtemp(prefix="slicer_harness_"))
    slicer.app = Application(folder)
    slicer.mrmlScene = slicer.app.scene
    for name in ("modules", "moduleNames"):
        sys.modules[f"slicer.{name}"] = types.ModuleType(f"slicer.{name}")
        setattr(slicer, name, sys.modules[f"slicer.{name}"])
    importlib.import_module("slicer.util")
    _python_files(slicer, folder)
    _scripted_classes(slicer)
    _add_core_modules(slicer)
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(slicer.mrmlScene, True)
    rendering.register_managers(slicer.app.logic)
    slicer.app.layouts = LayoutManager(slicer.mrmlScene, slicer.app.logic)
    sys.modules["SampleData"] = services.sample_data()
    logging.getLogger().setLevel(logging.WARNING)
    return slicer


def load(path) -> CoreModule:
    """Load a scripted module from its file; twice gives the same module."""
    slicer, path = install(), Path(path).resolve()
    known = slicer.app.moduleManager().module(path.stem)
    if known is not None:
        return known
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    python = importlib.import_module(path.stem)
    module = slicer.qSlicerScriptedLoadableModule(path.stem, path=str(path))
    setattr(slicer.modules, f"{path.stem}Instance", getattr(python, path.stem)(module))
    return add_module(module)
