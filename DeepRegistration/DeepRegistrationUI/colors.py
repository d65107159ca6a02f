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


def color_by_values(display, values: np.ndarray, scalars: str = "value") -> None:
    """Color a model by its ``scalars`` at points, from dark to bright over the range of ``values`` without the outermost hundredths; gray without a value."""
    import slicer

    shades = ((0.0, (0.27, 0.0, 0.33)), (0.25, (0.23, 0.32, 0.55)), (0.5, (0.13, 0.57, 0.55)), (0.75, (0.37, 0.79, 0.38)), (1.0, (0.99, 0.91, 0.14)))
    colors = _ramp(display.GetScene(), "DeepRegistration values", shades)
    colors.GetColorTransferFunction().SetNanColor(0.75, 0.75, 0.75)
    display.SetActiveScalarName(scalars)
    display.SetAndObserveColorNodeID(colors.GetID())
    display.SetScalarRangeFlag(slicer.vtkMRMLDisplayNode.UseManualScalarRange)
    low, high = np.percentile(values, (1, 99)) if values.size else (0.0, 1.0)
    display.SetScalarRange(float(low), float(max(high, low + 1e-6)))
    display.SetScalarVisibility(True)


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
