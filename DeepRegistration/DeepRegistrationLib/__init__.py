"""DeepRegistrationLib: medical image registration in torch, used by 3D Slicer modules, Python and the command line."""

__version__ = "0.1.0"
