"""Nodes of a 3D Slicer scene (MRML) <-> plain values of ``exchange`` (read, write) and Image, Labels, Points, Transform (tensors).

The scene is RAS millimetres and stores an image as (k, j, i); the library is LPS millimetres (see geometry). Besides the
library's ``io`` this package is the only place with the two sign flips.

* A linear parent transform of an input volume or segmentation is folded into the grid's affine; a non-linear one is
  refused, because the voxels then form no regular grid. Markups are read at their world positions, whatever their parents.
* A transform node's *from-parent* transform is the library's map of fixed -> moving points: moving data are put under the
  node of the linear part, and that node under the node of the deformation, so that a world point x goes to A(x + u(x)).
* VTK repeats the border vector of a displacement grid outside its lattice, ITK and the library return identity there. A
  written grid gets a ring of zeros, so that all three read the same map.
* A written grid is interpolated linearly, as the library does; a grid that Slicer reads from a file is interpolated by cubics,
  which differs between the nodes of the lattice only.
* A one-slice volume becomes a 2D image in a coordinate frame of its plane (``Plane``); a 2D transform is lifted back with
  the motion out of the plane left as it is.

``slicer``, ``vtk`` and ``torch`` are imported inside the functions: importing this package costs nothing, and only ``tensors`` needs torch.
"""

from .common import (FLIP, array_of, grid_of, image_data, is_carried, lattice_of, matrix_values, oriented_image, parents_of, placement_of,
                     vectors_of, vtk_matrix)
from .read import (is_color, labelmap_of, labelmap_steps, mask_steps, names_of, no_labels, overlap_steps, paired_points, pairing_remark, parts_of, parts_steps,
                   points_of, volume_of)
from .tensors import (image_from_volume, labels_from_segmentation, labels_from_volume, markups_from_points, node_from_transform, plane_of,
                      points_from_markups, segmentation_from_labels, transform_from_node, volume_from_image)
from .write import (grid_steps, node_of_vtk_image, node_of_vtk_transform, placement_node, points_node, segmentation_node,
                    set_reference_geometry, transform_node, update_matrix, update_vectors, volume_node, volume_steps, vtk_steps)

__all__ = ["FLIP", "array_of", "grid_of", "grid_steps", "image_data", "image_from_volume", "is_carried", "is_color", "labelmap_of",
           "labelmap_steps", "labels_from_segmentation", "labels_from_volume", "lattice_of", "markups_from_points", "mask_steps", "matrix_values",
           "names_of", "no_labels", "node_from_transform", "node_of_vtk_image", "node_of_vtk_transform", "oriented_image", "overlap_steps", "paired_points",
           "pairing_remark", "parents_of", "parts_of", "parts_steps", "placement_node", "placement_of", "plane_of", "points_from_markups",
           "points_node", "points_of", "segmentation_from_labels", "segmentation_node", "set_reference_geometry", "transform_from_node",
           "transform_node", "update_matrix", "update_vectors", "vectors_of", "volume_from_image", "volume_node", "volume_of", "volume_steps",
           "vtk_matrix", "vtk_steps"]
