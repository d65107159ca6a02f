"""3D Slicer module AtlasBuilder: what the application needs to know of it. The panel is in ``DeepRegistrationUI/atlas_panel.py``, the algorithms
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

from DeepRegistrationUI.atlas_logic import AtlasBuilderLogic  # noqa: E402
from DeepRegistrationUI.module import PanelWidget  # noqa: E402

__all__ = ["AtlasBuilder", "AtlasBuilderLogic", "AtlasBuilderTest", "AtlasBuilderWidget"]


class AtlasBuilder(ScriptedLoadableModule):
    """Title, category and help."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("Atlas Builder")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Registration")]
        self.parent.dependencies = []
        self.parent.contributors = ["DeepRegistration developers"]
        self.parent.helpText = _(
            "Build an atlas of a cohort and the maps from it to every subject, and look whether one atlas is enough. "
            "Choose the images and a folder and press Build. Not for clinical use."
        )
        self.parent.acknowledgementText = _("Every method names the publications that it follows; cite them.")


class AtlasBuilderWidget(PanelWidget):
    """The module's place in the application."""

    def make(self):
        from DeepRegistrationUI.atlas_panel import AtlasPanel

        logic = AtlasBuilderLogic()
        return logic, AtlasPanel(self.layout, logic, Path(__file__).resolve().parent / "Resources")


class AtlasBuilderTest(ScriptedLoadableModuleTest):
    """What 'Reload and Test' runs; the full tests are those of the folder Testing."""

    def setUp(self):
        slicer.mrmlScene.Clear()

    def runTest(self):
        self.setUp()
        self.test_MethodAndAnalysisAreListed()

    def test_MethodAndAnalysisAreListed(self):
        logic = AtlasBuilderLogic()
        self.assertIn("icon-atlas", logic.methods.entries)
        self.assertIn("cortical-types", logic.methods.analyses)
