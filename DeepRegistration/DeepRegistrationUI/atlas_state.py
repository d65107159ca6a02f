"""What the module AtlasBuilder keeps in the scene: one parameter node with all choices, saved and restored with it.

``LISTS`` names the user interface files whose widgets carry a ``SlicerParameterName``; texts that hold JSON say so.
"""

from __future__ import annotations

from typing import Annotated

from slicer import vtkMRMLNode, vtkMRMLScalarVolumeNode
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper

LISTS = ("AtlasBuilderBuild.ui", "AtlasBuilderStructure.ui", "AtlasBuilderIdentify.ui")
METHOD = "icon-atlas"


@parameterNodeWrapper
class AtlasBuilderParameterNode:
    """All choices of the panel."""

    atlasSource: str = "folder"
    atlasData: str
    atlasLeftOut: str = "[]"  # JSON: names of subjects
    atlasRows: str = "[]"  # JSON: the subjects, as the table shows them
    atlasMethod: str = METHOD
    atlasPreset: str = "default"
    atlasValues: str = "{}"  # JSON: parameter name -> value that differs from the preset
    atlasCovariate: str  # column with the ages
    atlasCovariates: str  # table that has it
    atlasBrowser: vtkMRMLNode  # the browser of the atlas over age that was delivered last
    atlasWorkers: Annotated[int, WithinRange(1, 64)] = 1
    atlasFolder: str
    atlasLive: bool = True
    atlasTransforms: bool = False

    structureSource: str = "labels"
    structureData: str
    structureCovariates: str
    structureFolder: str
    structureValues: str = "{}"  # JSON: parameter name -> value that differs from the usual one

    identifyAtlas: vtkMRMLScalarVolumeNode
    identifySource: str = "file"
    identifyFile: str
    identifySlice: vtkMRMLScalarVolumeNode
    identifyAxis: str = "coronal"
    identifyPixel: Annotated[float, WithinRange(0.0, 10.0)] = 0.0
    identifyInvert: bool = False
    identifyTop: Annotated[int, WithinRange(1, 20)] = 5

    device: str = "auto"
    seed: Annotated[int, WithinRange(0, 2**31 - 1)] = 0
    threads: Annotated[int, WithinRange(0, 256)] = 0
