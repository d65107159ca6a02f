"""3D Slicer module DeepRegistration: what the application needs to know of it. The panel is in ``DeepRegistrationUI/panel.py``,
the functions for scripts in ``DeepRegistrationUI/logic.py``, the algorithms in ``DeepRegistrationLib``."""

import sys

import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import ScriptedLoadableModule, ScriptedLoadableModuleTest, ScriptedLoadableModuleWidget

from DeepRegistrationUI import sampledata
from DeepRegistrationUI.logic import DeepRegistrationLogic

PACKAGES = ("DeepRegistrationUI", "DeepRegistrationLib")
"""The packages beside this file, which the developer's 'Reload' loads anew as well."""

__all__ = ["DeepRegistration", "DeepRegistrationLogic", "DeepRegistrationTest", "DeepRegistrationWidget"]


class DeepRegistration(ScriptedLoadableModule):
    """Title, category, help, and the sample data that are offered once the application has started."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("Deep Registration")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Registration")]
        self.parent.dependencies = []
        self.parent.contributors = ["DeepRegistration developers"]
        self.parent.helpText = _(
            "Align two volumes, watch it happen, carry segmentations and landmarks across and check the quality. "
            "Choose a fixed and a moving volume and press Apply. Not for clinical use.")
        self.parent.acknowledgementText = _("Every method names the publications that it follows; cite them.")
        slicer.app.connect("startupCompleted()", sampledata.register)


class DeepRegistrationWidget(ScriptedLoadableModuleWidget):
    """The module's place in the application: builds the panel, gives it the parameter node and takes it away again."""

    def __init__(self, parent=None):
        self.panel, self.logic = None, None
        ScriptedLoadableModuleWidget.__init__(self, parent)

    def setup(self):
        """Build the panel. Nothing runs, installs or imports PyTorch here."""
        ScriptedLoadableModuleWidget.setup(self)
        from DeepRegistrationUI.panel import Panel

        self.logic = DeepRegistrationLogic()
        self.panel = Panel(self.layout, self.logic)
        self.panel.scene_is_empty = self.sceneClosed
        self.panel.bind(self.logic.getParameterNode())

    def enter(self):
        """The module is shown: use the scene's parameter node."""
        if self.panel is not None and self.panel.node is None:
            self.panel.bind(self.logic.getParameterNode())

    def exit(self):
        """Another module is shown: a run goes on, clicks into the views place no more landmarks."""
        if self.panel is not None:
            self.panel.leave()

    def sceneClosed(self):
        """The scene is empty: a new parameter node, if the module is shown."""
        if self.parent.isEntered:
            self.panel.bind(self.logic.getParameterNode())

    def onReload(self):
        """The developer's button: the panel and its worker end, and this file and its packages are read again."""
        self.cleanup()
        for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)

    def cleanup(self):
        """The application ends or the module is loaded anew."""
        if self.panel is not None:
            self.panel.cleanup()
            self.panel = None


class DeepRegistrationTest(ScriptedLoadableModuleTest):
    """What 'Reload and Test' runs; the full tests are those of the folder Testing."""

    def setUp(self):
        slicer.mrmlScene.Clear()

    def runTest(self):
        self.setUp()
        self.test_MethodsAreListed()
        self.setUp()
        self.test_MissingVolumesAreNamed()

    def test_MethodsAreListed(self):
        logic = DeepRegistrationLogic()
        self.assertIn("instance-optimisation", logic.methods.entries)

    def test_MissingVolumesAreNamed(self):
        from DeepRegistrationUI.registration import Choices

        self.assertIn("fixed", DeepRegistrationLogic().missing(Choices()))
