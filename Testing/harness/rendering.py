"""Views of the scene with Slicer's displayable managers, off screen: three slice views and a 3D view.

The logics exist from the start; windows are made when a picture is asked for. The blended slice is drawn by no displayable manager,
hence an image mapper of ours shows the output of the slice logic.
"""

from __future__ import annotations

import ctypes.util

import numpy as np
import vtk
from vtk.util.numpy_support import vtk_to_numpy

ORIENTATIONS = {"Red": "Axial", "Yellow": "Sagittal", "Green": "Coronal"}
SLICE_MANAGERS = ("ModelSlice", "VolumeGlyphSlice", "Segmentations2D", "Markups", "Transforms2D", "LinearTransforms", "Crosshair", "OrientationMarker",
                  "Ruler", "ScalarBar", "ColorLegend")
VIEW_MANAGERS = ("VolumeRendering", "Camera", "View", "Model", "Segmentations3D", "Markups", "Transforms3D", "LinearTransforms", "Crosshair3D",
                 "OrientationMarker", "Ruler", "ColorLegend")


def can_render() -> str:
    """'' where pictures can be made; otherwise what is missing."""
    return "" if ctypes.util.find_library("EGL") else "libEGL is not installed, so no view can be drawn"


def _class_of_manager(short: str) -> str:
    """'Segmentations2D' -> 'vtkMRMLSegmentationsDisplayableManager2D'."""
    plain = short.removesuffix("2D").removesuffix("3D")
    return f"vtkMRML{plain}DisplayableManager{short[len(plain):]}"


def register_managers(application_logic) -> None:
    """Make the displayable managers known, as the application does when it starts."""
    import slicer

    slices, volumes = slicer.vtkMRMLSliceViewDisplayableManagerFactory, slicer.vtkMRMLThreeDViewDisplayableManagerFactory
    for factory, names in ((slices, SLICE_MANAGERS), (volumes, VIEW_MANAGERS)):
        instance = factory.GetInstance()
        instance.SetMRMLApplicationLogic(application_logic)
        for name in map(_class_of_manager, names):
            if not instance.IsDisplayableManagerRegistered(name):
                instance.RegisterDisplayableManager(name)


class View:
    """One view: ``image(size)`` is a picture (height, width, 3) uint8."""

    def __init__(self, node, factory):
        self.node, self.factory, self.window, self.group = node, factory, None, None

    def open(self, size: tuple[int, int]) -> None:
        import slicer

        if self.window is None:
            self.renderer, self.window, self.interactor = vtk.vtkRenderer(), vtk.vtkRenderWindow(), vtk.vtkRenderWindowInteractor()
            self.window.SetOffScreenRendering(1)
            self.window.SetMultiSamples(0)
            self.window.SetSize(*size)
            self.window.AddRenderer(self.renderer)
            self.interactor.SetRenderWindow(self.window)
            self.interactor.SetInteractorStyle(vtk.vtkInteractorStyleUser())
            self.group = slicer.vtkMRMLDisplayableManagerGroup()
            self.group.Initialize(self.factory.GetInstance(), self.renderer)
            self.group.SetMRMLDisplayableNode(self.node)
        self.window.SetSize(*size)

    def prepare(self, size) -> None:
        """What a kind of view does before it is drawn."""

    def image(self, size: tuple[int, int] = (300, 300)) -> np.ndarray:
        self.open(size)
        self.prepare(size)
        self.window.Render()
        grabbed = vtk.vtkWindowToImageFilter()
        grabbed.SetInput(self.window)
        grabbed.ReadFrontBufferOff()
        grabbed.ShouldRerenderOff()
        grabbed.Update()
        width, height, _ = grabbed.GetOutput().GetDimensions()
        return vtk_to_numpy(grabbed.GetOutput().GetPointData().GetScalars()).reshape(height, width, -1)[::-1, :, :3].copy()


class SliceView(View):
    """A slice view with its logic."""

    def __init__(self, scene, application_logic, name: str):
        import slicer

        self.logic = slicer.vtkMRMLSliceLogic()
        self.logic.SetMRMLApplicationLogic(application_logic)
        application_logic.GetSliceLogics().AddItem(self.logic)
        self.logic.SetMRMLScene(scene)
        View.__init__(self, self.logic.AddSliceNode(name), slicer.vtkMRMLSliceViewDisplayableManagerFactory)
        self.node.SetOrientation(ORIENTATIONS.get(name, "Axial"))
        self.logic.ResizeSliceNode(300, 300)
        self.mapper, self.actor = vtk.vtkImageMapper(), vtk.vtkActor2D()
        self.mapper.SetColorWindow(255)
        self.mapper.SetColorLevel(127.5)
        self.actor.SetMapper(self.mapper)
        self.actor.GetProperty().SetDisplayLocationToBackground()

    def prepare(self, size) -> None:
        self.renderer.GetActiveCamera().ParallelProjectionOn()
        self.logic.ResizeSliceNode(*size)
        self.renderer.RemoveViewProp(self.actor)
        if self.logic.GetImageDataConnection() is not None:
            self.mapper.SetInputConnection(self.logic.GetImageDataConnection())
            self.renderer.AddViewProp(self.actor)


class ThreeDView(View):
    """The 3D view."""

    def __init__(self, scene, application_logic, name: str):
        import slicer

        self.logic = slicer.vtkMRMLViewLogic()
        self.logic.SetMRMLApplicationLogic(application_logic)
        application_logic.GetViewLogics().AddItem(self.logic)
        self.logic.SetMRMLScene(scene)
        View.__init__(self, self.logic.AddViewNode(name), slicer.vtkMRMLThreeDViewDisplayableManagerFactory)

    def prepare(self, size) -> None:
        self.window.Render()
        self.renderer.ResetCamera()


def save_png(image: np.ndarray, path) -> None:
    """Write a picture (height, width, 3) uint8."""
    from PySide6 import QtGui

    data = np.ascontiguousarray(image)
    QtGui.QImage(data.data, data.shape[1], data.shape[0], 3 * data.shape[1], QtGui.QImage.Format.Format_RGB888).save(str(path))
