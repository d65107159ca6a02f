"""Tests inside the application, run by CTest: module, panel, sample data, scripting interface and, where PyTorch is there, a registration.

No test needs a network, a main window or a GPU. ``Testing/test_packaging.py`` runs the same file on the stand-in of the application.
"""

import unittest

import numpy as np
import slicer

from DeepRegistrationUI import torchgate


def distances(first, second) -> np.ndarray:
    """Distances in mm between the points of two markups nodes, at their world positions."""
    first, second = (slicer.util.arrayFromMarkupsControlPoints(node, world=True) for node in (first, second))
    return np.linalg.norm(first - second, axis=1)


class DeepRegistrationCase(unittest.TestCase):
    """Every test starts and ends with an empty scene."""

    def setUp(self):
        slicer.mrmlScene.Clear(0)

    def tearDown(self):
        slicer.mrmlScene.Clear(0)

    def named(self, name):
        """The only node of a name."""
        found = [node for node in slicer.util.getNodesByClass("vtkMRMLNode") if node.GetName() == name]
        self.assertEqual(len(found), 1, name)
        return found[0]


class ModuleTest(DeepRegistrationCase):
    def test_module_describes_itself(self):
        module = slicer.modules.deepregistration
        self.assertEqual(list(module.categories), ["Registration"])
        self.assertIn("Not for clinical use", module.helpText)
        self.assertTrue(module.acknowledgementText and module.contributors)

    def test_panel_is_built_and_bound(self):
        widget = slicer.modules.deepregistration.widgetRepresentation().self()
        widget.enter()
        self.addCleanup(widget.exit)
        self.assertIsNotNone(widget.panel.node)
        self.assertEqual(widget.panel.node.parameterNode.GetAttribute("ModuleName"), "DeepRegistration")

    def test_choices_are_kept_in_the_scene(self):
        from DeepRegistration import DeepRegistrationLogic

        DeepRegistrationLogic().getParameterNode().seed = 11
        self.assertEqual(DeepRegistrationLogic().getParameterNode().seed, 11)
        slicer.mrmlScene.Clear(0)
        self.assertEqual(DeepRegistrationLogic().getParameterNode().seed, 0)

    def test_a_missing_volume_is_named(self):
        from DeepRegistration import DeepRegistrationLogic
        from DeepRegistrationLib.errors import InputError
        from DeepRegistrationUI.registration import Choices

        logic = DeepRegistrationLogic()
        self.assertIn("moving volume", logic.missing(Choices()))
        volume = slicer.util.addVolumeFromArray(np.zeros((4, 5, 6), np.float32))
        self.assertIn("both the fixed and the moving", logic.missing(Choices(fixed=volume, moving=volume)))
        with self.assertRaises(InputError):
            logic.start(Choices(fixed=volume, moving=volume))


class SampleDataTest(DeepRegistrationCase):
    def test_truth_carries_the_moving_landmarks(self):
        from DeepRegistrationUI import sampledata

        sampledata.load_head_pair()
        fixed, moving = self.named("PhantomHeadFixedLandmarks"), self.named("PhantomHeadMovingLandmarks")
        self.assertGreater(distances(fixed, moving).mean(), 5.0)
        moving.SetAndObserveTransformNodeID(self.named("PhantomHeadTrueTransform").GetID())
        self.assertLess(distances(fixed, moving).max(), 0.1)

    def test_slices_are_one_voxel_thick(self):
        from DeepRegistrationUI import sampledata

        sampledata.load_slice_pair()
        for name in ("PhantomSliceFixed", "PhantomSliceMoving"):
            self.assertEqual(self.named(name).GetImageData().GetDimensions()[2], 1)


@unittest.skipUnless(torchgate.state().enough, "PyTorch is not installed or too old; the PyTorch extension installs it")
class RegistrationTest(DeepRegistrationCase):
    def test_slices_are_registered_by_a_script(self):
        from DeepRegistration import DeepRegistrationLogic
        from DeepRegistrationUI import sampledata

        fixed, moving = sampledata.load_slice_pair()[:2]
        marks = self.named("PhantomSliceFixedLandmarks"), self.named("PhantomSliceMovingLandmarks")
        before, logic = distances(*marks).mean(), DeepRegistrationLogic()
        logic.ensure_torch = lambda: None  # it is there, and a test installs no optional packages
        try:
            nodes = logic.register(fixed, moving, device="cpu", threads=1, outputs=("warped",))
        finally:
            logic.shutdown()
        marks[1].SetAndObserveTransformNodeID(nodes["linear"].GetID())
        self.assertLess(distances(*marks).mean(), 0.3 * before)
        self.assertEqual(nodes["warped"].GetImageData().GetDimensions(), fixed.GetImageData().GetDimensions())


if __name__ == "__main__":
    unittest.main()
