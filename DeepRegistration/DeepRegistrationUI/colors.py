"""Colour nodes of this extension, made once a scene, the range over which a map is coloured, and the looks of another volume."""

from __future__ import annotations

import numpy as np

DIVERGING = "DeepRegistration diverging"


def diverging_colors(scene):
    """The procedural colour node blue - white - red for a range of -1 to 1; the window of a volume stretches it."""
    return _ramp(scene, DIVERGING, ((-1.0, (0.02, 0.19, 0.70)), (0.0, (1.0, 1.0, 1.0)), (1.0, (0.70, 0.02, 0.05))))


def single_hue(scene, name: str, color):
    """A procedural colour node from black to ``color``."""
    return _ramp(scene, name, ((0.0, (0.0, 0.0, 0.0)), (1.0, color)))


def _ramp(scene, name: str, points):
    found = scene.GetFirstNodeByName(name)
    if found is not None and found.IsA("vtkMRMLProceduralColorNode"):
        return found
    node = scene.AddNewNodeByClass("vtkMRMLProceduralColorNode", name)
    for position, color in points:
        node.GetColorTransferFunction().AddRGBPoint(position, *color)
    return node


def magnitude_limit(values: np.ndarray, least: float = 0.1) -> float:
    """The 99th percentile of the magnitude of finite ``values``, never below ``least``."""
    flat = values.reshape(-1)
    flat = np.abs(flat[:: max(1, len(flat) // 100_000)])
    flat = flat[np.isfinite(flat)]
    place = (99 * (len(flat) - 1)) // 100  # numpy's percentile loads a package of masked arrays first, which takes long
    return max(float(np.partition(flat, place)[place]), least) if len(flat) else least


def display_of(node):
    """The display node of a scalar volume node with a window that is set by hand; a new one is made without a histogram of the voxels, which would
    take long for a large volume."""
    display = node.GetDisplayNode()
    if display is None:
        display = node.GetScene().AddNewNodeByClass("vtkMRMLScalarVolumeDisplayNode")
        display.SetAutoWindowLevel(0)
        node.SetAndObserveDisplayNodeID(display.GetID())
    display.SetAutoWindowLevel(0)
    return display


def look_like(node, other) -> None:
    """Give a volume node the display of another one; without its histogram, which would take long for a large volume."""
    kind = "Vector" if node.IsA("vtkMRMLVectorVolumeNode") else "Scalar"
    display = node.GetScene().AddNewNodeByClass(f"vtkMRML{kind}VolumeDisplayNode")
    if other.GetDisplayNode() is not None and other.GetDisplayNode().IsA(display.GetClassName()):
        display.CopyContent(other.GetDisplayNode())
        display.SetAutoWindowLevel(0)
        if other.GetDisplayNode().GetColorNodeID():
            display.SetAndObserveColorNodeID(other.GetDisplayNode().GetColorNodeID())
    node.SetAndObserveDisplayNodeID(display.GetID())
