"""What the module QMRIRegister keeps in the scene: one parameter node with all choices, saved and restored with it.

``LISTS`` names the user interface files whose widgets carry a ``SlicerParameterName``; texts that hold JSON say so.
"""

from __future__ import annotations

from typing import Annotated

from slicer import vtkMRMLMarkupsNode, vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode, vtkMRMLStorableNode
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper

LISTS = ("QMRIRegisterSlices.ui", "QMRIRegisterMotion.ui")
METHOD, MOTION = "qmri", "rician-motion"


@parameterNodeWrapper
class QMRIRegisterParameterNode:
    """All choices of the panel."""

    qmriSource: str = "scene"
    qmriData: str
    qmriVolume: vtkMRMLScalarVolumeNode
    qmriThickness: Annotated[float, WithinRange(0.0, 100.0)] = 0.0  # mm, 0: that of the headers
    qmriAxis: vtkMRMLMarkupsNode  # a plane or a line
    qmriAngle: Annotated[float, WithinRange(0.0, 180.0)] = 0.0  # degrees between slices about the axis, 0: they lie where their headers say
    qmriPixel: Annotated[float, WithinRange(0.0, 100.0)] = 0.0  # mm, of slices about the axis; 0: that of their headers
    qmriZero: bool = False
    qmriSegments: bool = False
    qmriPreset: str = "default"
    qmriValues: str = "{}"  # JSON: parameter name -> value that differs from the preset
    qmriEmulated: bool = True
    qmriMap: bool = False
    qmriBeside: bool = True
    qmriSurface: vtkMRMLSegmentationNode
    qmriSurfaceDistance: Annotated[float, WithinRange(0.1, 50.0)] = 2.0  # mm

    motionSource: str = "scene"
    motionSeries: vtkMRMLStorableNode
    motionPreset: str = "default"
    motionValues: str = "{}"  # JSON: parameter name -> value that differs from the preset
    motionTransforms: bool = False

    device: str = "auto"
    seed: Annotated[int, WithinRange(0, 2**31 - 1)] = 0
    threads: Annotated[int, WithinRange(0, 256)] = 0
