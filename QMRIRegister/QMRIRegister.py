"""3D Slicer module QMRIRegister: what the application needs to know of it. The panel is in ``DeepRegistrationUI/qmri_panel.py``, the algorithms
are in ``DeepRegistrationLib``; both packages come with the module DeepRegistration of this extension."""

import sys
from pathlib import Path

import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)

PACKAGES = Path(__file__).resolve().parents[1] / "DeepRegistration"
"""Where the packages are in the source tree; in an installed extension they are beside this file."""
if PACKAGES.is_dir() and str(PACKAGES) not in sys.path:
    sys.path.append(str(PACKAGES))

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


class QMRIRegisterWidget(ScriptedLoadableModuleWidget):
    """The module's place in the application: builds the panel, gives it the parameter node and takes it away again."""

    def __init__(self, parent=None):
        self.panel, self.logic = None, None
        ScriptedLoadableModuleWidget.__init__(self, parent)

    def setup(self):
        """Build the panel. Nothing runs, installs or imports PyTorch here."""
        ScriptedLoadableModuleWidget.setup(self)
        from DeepRegistrationUI.qmri_panel import QMRIPanel

        self.logic = QMRIRegisterLogic()
        self.panel = QMRIPanel(self.layout, self.logic, Path(__file__).resolve().parent / "Resources")
        self.panel.scene_is_empty = self.sceneClosed
        self.panel.bind(self.logic.getParameterNode())

    def enter(self):
        """The module is shown: use the scene's parameter node."""
        if self.panel is not None and self.panel.node is None:
            self.panel.bind(self.logic.getParameterNode())

    def exit(self):
        """Another module is shown: a run goes on."""
        if self.panel is not None:
            self.panel.leave()

    def sceneClosed(self):
        """The scene is empty: a new parameter node, if the module is shown."""
        if self.parent.isEntered:
            self.panel.bind(self.logic.getParameterNode())

    def onReload(self):
        """The developer's button: the panel and its worker end, and this file and the packages are read again."""
        self.cleanup()
        for name in [
            name for name in sys.modules if name.partition(".")[0] in ("DeepRegistrationUI", "DeepRegistrationLib")
        ]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)

    def cleanup(self):
        """The application ends or the module is loaded anew."""
        if self.panel is not None:
            self.panel.cleanup()
            self.panel = None


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
