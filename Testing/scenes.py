"""Scenes, grids, images and maps that the tests of the bridge share; needs slicer-core."""

import numpy as np
import pytest
import slicer
import torch
import vtk

from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image, Labels
from DeepRegistrationLib.transforms import Displacement
from DeepRegistrationUI import mrml

RAS = np.array([-1.0, -1.0, 1.0])


@pytest.fixture
def scene():
    made = slicer.vtkMRMLScene()
    slicer.vtkSlicerSegmentationsModuleLogic().SetMRMLScene(made)
    yield made
    made.Clear(1)


def random_grid(seed, shape=(12, 14, 10), flipped=False):
    """An oblique, anisotropic grid near the origin."""
    rng = np.random.default_rng(seed)
    direction = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    if flipped == (np.linalg.det(direction) > 0):
        direction[:, 0] *= -1
    spacing = rng.uniform(1.0, 3.0, 3)
    grid = Grid.from_parts(shape, spacing, direction=direction)
    affine = grid.affine.copy()
    affine[:3, 3] = rng.uniform(-5, 5, 3) - grid.centre
    return Grid(shape, affine)


def bump(grid, height=2.0, dtype=torch.float32):
    """A smooth displacement that is 0 on the border of the lattice."""
    axes = [torch.sin(torch.linspace(0, np.pi, n, dtype=dtype)) ** 2 if n > 1 else torch.ones(1, dtype=dtype) for n in grid.shape]
    weight = axes[0][:, None, None] * axes[1][:, None] * axes[2]
    for axis in range(3):
        if grid.shape[axis] > 1:
            weight.select(axis, 0).zero_(), weight.select(axis, -1).zero_()
    return Displacement(height * torch.tensor([1.0, -0.6, 0.4], dtype=dtype)[None, :, None, None, None] * weight, grid)


def image(grid, seed=0, name="image"):
    """Smooth random intensities."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.nn.functional.interpolate(torch.rand((1, 1, 4, 4, 4), generator=generator), grid.shape, mode="trilinear")
    return Image(100 * data, grid, name=name)


def tilt(angle=0.2, shift=(3.0, -2.0, 4.0)):
    m = np.eye(4)
    m[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    m[:3, :3] = m[:3, :3] @ np.diag([1.1, 0.95, 1.0])
    m[:3, 3] = shift
    return m


def scene_map(node, points):
    """LPS points (N, 3) through the from-world transform of a node, by VTK."""
    general = vtk.vtkGeneralTransform()
    node.GetTransformFromWorld(general)
    return np.array([general.TransformPoint(p) for p in points * RAS]) * RAS


def library_map(transform, points):
    return transform(torch.as_tensor(points)[None])[0].numpy()


def inner_points(grid, n=60, seed=1, margin=0.1):
    size = np.array(grid.size)
    return grid.index_to_world(np.random.default_rng(seed).uniform(margin, 1 - margin, (n, 3)) * (size - 1))


def linear_node(scene, matrix_lps, name="linear"):
    """A node that moves data by ``matrix_lps`` (to parent)."""
    node = scene.AddNewNodeByClass("vtkMRMLTransformNode", name)
    node.SetMatrixTransformToParent(mrml.vtk_matrix(mrml.FLIP @ matrix_lps @ mrml.FLIP))
    return node


def blocks(grid):
    data = torch.zeros((1, 1, *grid.shape), dtype=torch.int32)
    data[..., 2:6, 3:8, 2:5] = 1
    data[..., 6:10, 5:12, 4:9] = 2
    return Labels(data, grid, names=((1, "left block"), (2, "right block")))


def slice_grid(normal_axis=2, angle=0.0, size=(20, 16), offset=30.0):
    """A one-slice 3D grid, turned out of its world plane by ``angle``."""
    axes = np.roll(np.eye(3), -normal_axis - 1, axis=1)
    c, s = np.cos(angle), np.sin(angle)
    direction = axes @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    origin = direction @ np.array([-size[0] * 0.75, -size[1] * 0.75, offset])
    return Grid.from_parts((1, size[1], size[0]), (1.5, 1.5, 5.0), origin, direction)


def slice_node(scene, grid, name):
    data = torch.rand((1, 1, *grid.shape), generator=torch.Generator().manual_seed(len(name)))
    return mrml.volume_from_image(scene, Image(data, grid), name)
