"""3D Slicer module QMRIRegister: what the application needs to know of it. The panel is in ``DeepRegistrationUI/qmri_panel.py``, the algorithms
are in ``DeepRegistrationLib``; both packages come with the module DeepRegistration of this extension."""

import sys
from pathlib import Path

import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import ScriptedLoadableModule, ScriptedLoadableModuleTest

PACKAGES = Path(__file__).resolve().parents[1] / "DeepRegistration"
"""Where the packages are in the source tree; in an installed extension they are beside this file."""
if PACKAGES.is_dir() and str(PACKAGES) not in sys.path:
    sys.path.append(str(PACKAGES))

from DeepRegistrationUI.module import PanelWidget  # noqa: E402
from DeepRegistrationUI.qmri_logic import QMRIRegisterLogic  # noqa: E402

__all__ = ["QMRIRegister", "QMRIRegisterLogic", "QMRIRegisterTest", "QMRIRegisterWidget"]


class QMRIRegister(ScriptedLoadableModule):
    """Title, category and help."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("QMRI Register")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Registration")]
        self.parent.dependencies = []
        self.parent.contributors = ["DeepRegistration developers"]
        self.parent.helpText = _(
            "Find where 2D slices of quantitative MRI lie in a 3D volume, check their order and directions, and correct "
            "repeated scans for motion. Choose the slices and the volume and press Register. Not for clinical use."
        )
        self.parent.acknowledgementText = _("Every method names the publications that it follows; cite them.")


class QMRIRegisterWidget(PanelWidget):
    """The module's place in the application."""

    def make(self):
        from DeepRegistrationUI.qmri_panel import QMRIPanel

        logic = QMRIRegisterLogic()
        return logic, QMRIPanel(self.layout, logic, Path(__file__).resolve().parent / "Resources")


class QMRIRegisterTest(ScriptedLoadableModuleTest):
    """What 'Reload and Test' runs; the full tests are those of the folder Testing."""

    def setUp(self):
        slicer.mrmlScene.Clear()

    def runTest(self):
        self.setUp()
        self.test_MethodsAreListed()

    def test_MethodsAreListed(self):
        logic = QMRIRegisterLogic()
        self.assertIn("qmri", logic.methods.entries)
        self.assertIn("rician-motion", logic.motion_methods.entries)
