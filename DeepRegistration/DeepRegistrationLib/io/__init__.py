"""Files in and out: the only part of the library that knows SimpleITK, file formats and RAS coordinates."""

from .images import read_grid, read_image, time_step, write_image
from .labels import read_labels, read_mask, write_labels
from .points import read_points, write_points
from .sequences import write_sequence
from .transforms import read_transform, write_transform

__all__ = ["read_grid", "read_image", "read_labels", "read_mask", "read_points", "read_transform", "time_step", "write_image", "write_labels",
           "write_points", "write_sequence", "write_transform"]
