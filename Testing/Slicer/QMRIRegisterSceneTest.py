"""Tests of the module QMRIRegister inside the application, run by CTest: module, panel, and where PyTorch is there slices cut from a volume.

No test needs a network, a main window or a GPU. ``Testing/test_packaging.py`` runs the same file on the stand-in of the application.
"""

import unittest

import numpy as np
import slicer
import vtk

from DeepRegistrationUI import torchgate

SIDE = 40


def anatomy(points):
    """(...) values at RAS points (..., 3): an egg with a few bright and dark places in it."""
    values = 100.0 * ((points / (42, 50, 46)) ** 2).sum(-1) ** 8
    values = 100 / (1 + values)
    for place, size, height in (((18, 5, 10), 10, 90), ((-15, 20, -6), 13, -70), ((4, -24, 14), 8, 120), ((-20, -14, 18), 9, 60), ((10, 14, -22), 12, -60)):
        values = values + height * np.exp(-((points - place) ** 2).sum(-1) / (2 * size**2))
    return values


def node_of(name: str, shape, matrix, invert: bool = False):
    """A volume node with the anatomy at its voxels (k, j, i); ``matrix`` (4, 4) index -> RAS."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)[..., ::-1]
    values = anatomy(index @ matrix[:3, :3].T + matrix[:3, 3])
    node = slicer.util.addVolumeFromArray((250 - 0.8 * values if invert else values).astype(np.float32), name=name)
    placed = vtk.vtkMatrix4x4()
    placed.DeepCopy(matrix.ravel())
    node.SetIJKToRASMatrix(placed)
    return node


def radial(number: int, shift):
    """Index -> RAS of one of six slices around the axis S; ``shift`` mm is what its header is wrong by."""
    angle = np.deg2rad(30 * number)
    matrix = np.eye(4)
    across = np.array([np.cos(angle), np.sin(angle), 0])
    matrix[:3, :3] = np.stack([3 * across, [0, 0, -3], 3 * np.cross(across, [0, 0, -1])], 1)
    matrix[:3, 3] = -matrix[:3, :2] @ np.full(2, (SIDE - 1) / 2) + shift
    return matrix


class QMRIRegisterTest(unittest.TestCase):
    """Every test starts and ends with an empty scene."""

    def setUp(self):
        slicer.mrmlScene.Clear(0)

    def tearDown(self):
        slicer.mrmlScene.Clear(0)

    def test_module_describes_itself(self):
        module = slicer.modules.qmriregister
        self.assertEqual(list(module.categories), ["Registration"])
        self.assertIn("Not for clinical use", module.helpText)

    def test_panel_is_built_and_bound(self):
        widget = slicer.modules.qmriregister.widgetRepresentation().self()
        widget.enter()
        self.addCleanup(widget.exit)
        self.assertEqual(widget.panel.node.parameterNode.GetAttribute("ModuleName"), "QMRIRegister")
        widget.panel.open("motion")
        self.assertIn("motion", widget.panel.pages)

    def test_choices_are_kept_in_the_scene(self):
        from QMRIRegister import QMRIRegisterLogic

        QMRIRegisterLogic().getParameterNode().qmriThickness = 2.5
        self.assertEqual(QMRIRegisterLogic().getParameterNode().qmriThickness, 2.5)

    def test_a_missing_volume_is_one_sentence(self):
        from DeepRegistrationLib.errors import InputError
        from QMRIRegister import QMRIRegisterLogic

        with self.assertRaisesRegex(InputError, "no volume was given"):
            QMRIRegisterLogic().register([], None)

    @unittest.skipUnless(torchgate.state().enough, "PyTorch is not installed")
    def test_slices_find_their_place(self):
        from QMRIRegister import QMRIRegisterLogic

        logic = QMRIRegisterLogic()
        self.addCleanup(logic.shutdown)
        matrix = np.diag([3.0, 3.0, 3.0, 1.0])
        matrix[:3, 3] = -3 * (SIDE - 1) / 2
        volume = node_of("egg", (SIDE,) * 3, matrix)
        shift, slices = np.array([4.0, -3.0, 2.0]), []
        for number in range(6):
            slices.append(node_of(f"slice {number + 1}", (1, SIDE, SIDE), radial(number, 0), invert=True))
            moved = vtk.vtkMatrix4x4()
            moved.DeepCopy(radial(number, shift).ravel())
            slices[-1].SetIJKToRASMatrix(moved)
        found = logic.register(slices, volume, values={"tried": 300, "placing": "keep"}, device="cpu")
        self.assertTrue(found["registered"], found["reasons"])
        back = vtk.vtkMatrix4x4()
        found["nodes"]["set"].GetMatrixTransformToParent(back)
        for axis in range(3):
            self.assertAlmostEqual(back.GetElement(axis, 3), -shift[axis], delta=1.5)
        self.assertEqual(found["nodes"]["slices"].GetNumberOfRows(), 6)
