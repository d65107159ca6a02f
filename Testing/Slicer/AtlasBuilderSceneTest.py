"""Tests of the module AtlasBuilder inside the application, run by CTest: module, panel, and where PyTorch is there a small atlas and its structure.

No test needs a network, a main window or a GPU. ``Testing/test_packaging.py`` runs the same file on the stand-in of the application.
"""

import tempfile
import unittest
from pathlib import Path

import numpy as np
import slicer

from DeepRegistrationUI import torchgate


def blob(name: str, shift: float):
    """A volume node with a blob that lies ``shift`` voxels to the side."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in (10, 12, 14)), indexing="ij")
    values = 100 * np.exp(-4 * ((x - 0.1 * shift) ** 2 + y**2 + z**2)) + 10 * np.cos(5 * x) * np.cos(4 * y + z)
    return slicer.util.addVolumeFromArray(values.astype(np.float32), name=name)


class AtlasBuilderTest(unittest.TestCase):
    """Every test starts and ends with an empty scene."""

    def setUp(self):
        slicer.mrmlScene.Clear(0)

    def tearDown(self):
        slicer.mrmlScene.Clear(0)

    def test_module_describes_itself(self):
        module = slicer.modules.atlasbuilder
        self.assertEqual(list(module.categories), ["Registration"])
        self.assertIn("Not for clinical use", module.helpText)

    def test_panel_is_built_and_bound(self):
        widget = slicer.modules.atlasbuilder.widgetRepresentation().self()
        widget.enter()
        self.addCleanup(widget.exit)
        self.assertEqual(widget.panel.node.parameterNode.GetAttribute("ModuleName"), "AtlasBuilder")
        widget.panel.open("structure")
        self.assertIn("structure", widget.panel.pages)

    def test_choices_are_kept_in_the_scene(self):
        from AtlasBuilder import AtlasBuilderLogic

        AtlasBuilderLogic().getParameterNode().atlasWorkers = 3
        self.assertEqual(AtlasBuilderLogic().getParameterNode().atlasWorkers, 3)

    def test_too_few_volumes_are_one_sentence(self):
        from AtlasBuilder import AtlasBuilderLogic
        from DeepRegistrationLib.errors import InputError

        with self.assertRaisesRegex(InputError, "1 volumes were given; an atlas needs at least two"):
            AtlasBuilderLogic().build([blob("one", 0)], "nowhere")

    @unittest.skipUnless(torchgate.state().enough, "PyTorch is not installed")
    def test_an_atlas_and_its_structure(self):
        from AtlasBuilder import AtlasBuilderLogic

        logic = AtlasBuilderLogic()
        self.addCleanup(logic.shutdown)
        values = {"linear": "none", "factors": [4.0]}
        with tempfile.TemporaryDirectory() as folder:
            nodes = logic.build([blob(f"head {k}", k - 4) for k in range(9)], Path(folder) / "heads", values=values)
            self.assertEqual(slicer.util.arrayFromVolume(nodes["atlas"]).shape, (10, 12, 14))
            self.assertEqual(nodes["quality"].GetNumberOfRows(), 9)
            try:
                record = logic.structure("atlas", Path(folder) / "heads", values={"draws": 99})
            except Exception as error:
                self.assertIn("scikit-learn", str(error))
            else:
                self.assertEqual(record["subjects"], 9)
                self.assertIn("as far as 9 subjects can tell", record["answer"])
