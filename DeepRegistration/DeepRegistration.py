"""3D Slicer module DeepRegistration: what the application needs to know of it. The panel is in ``DeepRegistrationUI/panel.py``,
the functions for scripts in ``DeepRegistrationUI/logic.py``, the algorithms in ``DeepRegistrationLib``."""

import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import ScriptedLoadableModule, ScriptedLoadableModuleTest

from DeepRegistrationUI import sampledata
from DeepRegistrationUI.logic import DeepRegistrationLogic
from DeepRegistrationUI.module import PanelWidget

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


class DeepRegistrationWidget(PanelWidget):
    """The module's place in the application."""

    def make(self):
        from DeepRegistrationUI.panel import Panel

        logic = DeepRegistrationLogic()
        return logic, Panel(self.layout, logic)


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
