"""What the panel keeps in the scene: one parameter node with all choices, saved and restored with it.

Values that have no widget connector (method, parameter values, segments, pairs of the batch) are texts here and are brought to
the widgets by the pages. ``LISTS`` names the user interface files whose widgets carry a ``SlicerParameterName``.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated

from slicer import (vtkMRMLDisplayableNode, vtkMRMLMarkupsFiducialNode, vtkMRMLScalarVolumeNode, vtkMRMLTransformNode)
from slicer.i18n import tr as _
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper

LISTS = ("DeepRegistrationRegister.ui", "DeepRegistrationTransfer.ui", "DeepRegistrationQuality.ui",
         "DeepRegistrationCompare.ui", "DeepRegistrationBatch.ui", "DeepRegistrationTrain.ui")
DEFAULT_METHOD = "instance-optimisation:default"


class Start(Enum):
    """Where a registration begins; all but LANDMARKS and NODE are names of the library's starts."""

    METHOD = ""
    HEADER = "header"
    CENTER = "center"
    MOMENTS = "moments"
    GLOBAL = "global"
    CSNGF = "csngf"
    AFFINE = "affine"
    LANDMARKS = "landmarks"
    NODE = "node"

    def label(self) -> str:
        """Text of the combo box."""
        return {Start.METHOD: _("Chosen by the method"), Start.HEADER: _("As the headers place them"), Start.CENTER: _("Image centers"),
                Start.MOMENTS: _("Centers of mass and axes"), Start.GLOBAL: _("Search over all rotations"),
                Start.CSNGF: _("Search by gradient directions (any contrast)"), Start.AFFINE: _("Affine alignment"),
                Start.LANDMARKS: _("Landmark pairs"), Start.NODE: _("Transform node")}[self]


class Direction(Enum):
    """Which way data are carried."""

    MOVING_TO_FIXED = "moving_to_fixed"
    FIXED_TO_MOVING = "fixed_to_moving"

    def label(self) -> str:
        """Text of the combo box."""
        return {Direction.MOVING_TO_FIXED: _("Moving to fixed"), Direction.FIXED_TO_MOVING: _("Fixed to moving")}[self]


class Carry(Enum):
    """What a transfer leaves behind."""

    COPIES = "copies"
    LIVE = "live"

    def label(self) -> str:
        """Text of the combo box."""
        return {Carry.COPIES: _("Hardened copies"), Carry.LIVE: _("The nodes, under the transform")}[self]


@parameterNodeWrapper
class DeepRegistrationParameterNode:
    """All choices of the panel; texts that hold JSON say so."""

    fixedVolume: vtkMRMLScalarVolumeNode
    movingVolume: vtkMRMLScalarVolumeNode
    fixedMask: vtkMRMLDisplayableNode
    fixedMaskSegment: str
    movingMask: vtkMRMLDisplayableNode
    movingMaskSegment: str
    start: Start = Start.METHOD
    startTransform: vtkMRMLTransformNode
    fixedLandmarks: vtkMRMLMarkupsFiducialNode
    movingLandmarks: vtkMRMLMarkupsFiducialNode
    fixedStructures: vtkMRMLDisplayableNode
    movingStructures: vtkMRMLDisplayableNode

    method: str = DEFAULT_METHOD
    values: str = "{}"  # JSON: parameter name -> value that differs from the preset
    device: str = "auto"
    seed: Annotated[int, WithinRange(0, 2**31 - 1)] = 0
    threads: Annotated[int, WithinRange(0, 256)] = 0
    live: bool = True

    inverse: bool = True
    linearPart: bool = True
    warped: bool = True
    logJacobian: bool = True
    folds: bool = False
    metrics: bool = True
    lossChart: bool = True
    iterations: bool = False
    prefix: str

    result: vtkMRMLTransformNode
    transferDirection: Direction = Direction.MOVING_TO_FIXED
    transferCarry: Carry = Carry.COPIES
    transferReference: vtkMRMLScalarVolumeNode

    qualityFixedStructures: vtkMRMLDisplayableNode
    qualityMovingStructures: vtkMRMLDisplayableNode
    qualityFixedLandmarks: vtkMRMLMarkupsFiducialNode
    qualityMovingLandmarks: vtkMRMLMarkupsFiducialNode

    compareFirst: vtkMRMLTransformNode
    compareSecond: vtkMRMLTransformNode

    batchPairs: str = "[]"  # JSON: list of rows
    batchFolder: str
    batchToScene: bool = False

    trainRecipe: str = "unet"
    trainValues: str = "{}"  # JSON: parameter name -> value that differs from the recipe's
    trainSource: str = "folder"
    trainData: str
    trainDim: str = "3"
    trainSteps: Annotated[int, WithinRange(1, 10_000_000)] = 2000
    trainFolder: str
