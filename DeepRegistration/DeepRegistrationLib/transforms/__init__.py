"""Transforms: callables that map fixed points (mm) to moving points (mm)."""

from .base import Composite, Identity, Transform
from .dense import Displacement, Velocity
from .linear import Affine
from .spline import BSpline

__all__ = ["Affine", "BSpline", "Composite", "Displacement", "Identity", "Transform", "Velocity"]
