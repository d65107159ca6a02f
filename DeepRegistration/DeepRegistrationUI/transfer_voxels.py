"""What of the scene is made of voxels, as values for the worker, and the worker's answers as nodes again.

A task has ``name``, ``inputs`` and ``add(scene, answers, name)``, a generator that returns the new node.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from DeepRegistrationLib import exchange
from DeepRegistrationLib.errors import InputError

from . import mrml
from .mrml.read import BINARY

SURFACE = "Closed surface"
COLORS = "DeepRegistration.colors"
"""Attribute of a kept display: the ID of its colour node."""


def kind_of(node) -> str:
    """'volume', 'labels', 'segmentation' (of voxels) or 'shape' (points); InputError for what no registration can carry."""
    if node is None or node.GetScene() is None:
        raise InputError("a node that is to be carried is not in the scene any more; choose again")
    if node.IsA("vtkMRMLLabelMapVolumeNode"):
        return "labels"
    if node.IsA("vtkMRMLScalarVolumeNode"):
        return "volume"
    if node.IsA("vtkMRMLSegmentationNode"):
        source = node.GetSegmentation().GetSourceRepresentationName()
        if node.GetSegmentation().GetNumberOfSegments() == 0:
            raise InputError(f"segmentation '{node.GetName()}' has no segment; draw or import at least one")
        if source not in (BINARY, SURFACE):
            raise InputError(f"segmentation '{node.GetName()}' is stored as '{source}'; convert its source to a binary labelmap or a closed surface")
        return "segmentation" if source == BINARY else "shape"
    if not node.IsA("vtkMRMLTransformableNode") or node.IsA("vtkMRMLTransformNode") or node.IsA("vtkMRMLVolumeNode"):
        raise InputError(f"'{node.GetName()}' is a {node.GetNodeTagName()}, which cannot be carried; choose a segmentation, label map, volume, "
                         "markups or model")
    return "shape"


def task_of(node, outside_nan: bool = False, carriers=()):
    """What the worker has to do for ``node``, read without ``carriers`` (see ``mrml.placement_of``): a task; None for points."""
    kind = kind_of(node)
    if kind == "shape":
        return None
    return {"volume": ImageTask.of_volume, "labels": ImageTask.of_labels, "segmentation": SegmentationTask.of}[kind](node, outside_nan, carriers)


def inverted(parts) -> tuple:
    """The parts of the inverse of a transform; dense ones are inverted by the worker."""
    flipped = []
    for part in reversed(parts):
        if isinstance(part, exchange.Matrix):
            flipped.append(exchange.Matrix(np.linalg.inv(part.matrix)))
        else:
            flipped.append(exchange.Lattice(part.vectors, part.grid, not part.inverted))
    return tuple(flipped)


@dataclass(frozen=True, eq=False)
class ImageTask:
    """A volume, read linearly (whole numbers stay whole numbers unless there must be NaN outside), or a label map, by nearest neighbour."""

    name: str
    display: object
    kind: np.dtype
    inputs: list

    @classmethod
    def of_volume(cls, node, outside_nan: bool, carriers=()) -> "ImageTask":
        volume = mrml.volume_of(node, carriers)
        kind = np.dtype(np.float32) if outside_nan and volume.array.dtype.kind != "f" else volume.array.dtype
        outside = "nan" if outside_nan else "zero"
        return cls(node.GetName(), _kept_display(node), kind, [{"value": volume, "interpolation": "linear", "outside": outside}])

    @classmethod
    def of_labels(cls, node, outside_nan: bool, carriers=()) -> "ImageTask":
        values = mrml.array_of(node)
        if values.ndim != 3 or (values.dtype.kind == "f" and not np.array_equal(values, np.round(values))):
            raise mrml.no_labels(node)
        whole = values if values.dtype.kind in "iu" else values.astype(np.int32)
        value = exchange.LabelMap(whole, mrml.grid_of(node, carriers), name=node.GetName())
        return cls(node.GetName(), _kept_display(node), values.dtype, [{"value": value}])

    def add(self, scene, answers, name: str):
        """A volume or label map node with the display of the original. No histogram is made, which takes long."""
        values = np.asarray(answers[0].array)
        if self.kind.kind in "iu" and values.dtype.kind == "f":
            values = np.rint(values)
        value = replace(answers[0], array=values.astype(self.kind, copy=False))
        data = yield from mrml.volume_steps(value)
        node = mrml.node_of_vtk_image(scene, data, value, scene.GenerateUniqueName(name), display=self.display is None)
        if self.display is not None:
            _show_like(node, self.display)
        return node


@dataclass(frozen=True, eq=False)
class SegmentationTask:
    """A segmentation of voxels: one label map for each layer, so that segments that overlap stay whole. ``segmentation`` is a copy, which
    becomes the one of the new node."""

    name: str
    display: object
    segmentation: object
    layers: list
    inputs: list

    @classmethod
    def of(cls, node, outside_nan: bool, carriers=()) -> "SegmentationTask":
        import slicer

        segmentation = slicer.vtkSegmentation()
        segmentation.DeepCopy(node.GetSegmentation())
        layers, inputs = [], []
        for n in range(segmentation.GetNumberOfLayers(BINARY)):
            values, grid = layer_of(segmentation.GetLayerDataObject(n, BINARY), mrml.placement_of(node, carriers))
            if values.size:
                layers.append(tuple(segmentation.GetSegmentIDsForLayer(n, BINARY)))
                inputs.append({"value": exchange.LabelMap(values, grid, name=f"{node.GetName()} {n}")})
        if not layers:
            raise InputError(f"segmentation '{node.GetName()}' has no voxels; draw or import at least one segment")
        return cls(node.GetName(), _kept_display(node), segmentation, layers, inputs)

    def add(self, scene, answers, name: str):
        """A segmentation node: the same segments with their names, colours and layers on the voxels of the answers."""
        grid, layers = answers[0].grid, []
        for answer in answers:
            layers.append(mrml.oriented_image((yield from mrml.volume_steps(answer)), grid))
        node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", scene.GenerateUniqueName(name))
        segmentation = self.segmentation
        segmentation.SetSourceRepresentationName(BINARY)
        for identifiers, image in zip(self.layers, layers):
            for identifier in identifiers:
                segmentation.GetSegment(identifier).RemoveRepresentation(SURFACE)
                segmentation.GetSegment(identifier).AddRepresentation(BINARY, image)
        mrml.set_reference_geometry(segmentation, grid)
        node.SetAndObserveSegmentation(segmentation)
        node.CreateDefaultDisplayNodes()
        if self.display is not None:
            node.GetDisplayNode().CopyContent(self.display, True)
        return node


def layer_of(image, to_world: np.ndarray):
    """(values (z, y, x) of whole numbers, Grid LPS) of a layer, a vtkOrientedImageData whose extent may start anywhere; ``to_world`` (4, 4)
    RAS is the placement of the segmentation. An empty layer has no values and no grid."""
    import vtk
    from vtk.util.numpy_support import vtk_to_numpy

    from DeepRegistrationLib.geometry import Grid

    scalars = None if image is None else image.GetPointData().GetScalars()
    if scalars is None or scalars.GetNumberOfTuples() == 0:
        return np.zeros(0, np.uint8), None
    matrix, start = vtk.vtkMatrix4x4(), np.array(image.GetExtent()[::2], float)
    image.GetImageToWorldMatrix(matrix)
    affine = mrml.FLIP @ to_world @ mrml.matrix_values(matrix)
    affine[:3, 3] = affine[:3, :3] @ start + affine[:3, 3]
    shape = image.GetDimensions()[::-1]
    return vtk_to_numpy(scalars).reshape(shape), Grid(shape, affine)


def _kept_display(node):
    """A detached copy of a node's display node, None where it has none."""
    display = node.GetDisplayNode()
    if display is None:
        return None
    copy = display.NewInstance()
    copy.UnRegister(None)
    copy.CopyContent(display, True)
    copy.SetAttribute(COLORS, display.GetColorNodeID() or "")
    return copy


def _show_like(node, display) -> None:
    """Give a volume node the kept ``display`` of another one, with its window."""
    scene, colors = node.GetScene(), display.GetAttribute(COLORS)
    made = scene.AddNewNodeByClass(display.GetClassName())
    made.CopyContent(display, True)
    made.RemoveAttribute(COLORS)
    if hasattr(made, "SetAutoWindowLevel"):
        made.SetAutoWindowLevel(0)
    if colors and scene.GetNodeByID(colors) is not None:
        made.SetAndObserveColorNodeID(colors)
    node.SetAndObserveDisplayNodeID(made.GetID())
