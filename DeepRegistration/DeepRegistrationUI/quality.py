"""Quality control of one registration: what is shown of it in the views, and its figures in tables.

``Quality`` shows; what it shows is made in quality_images (two volumes in one picture), quality_maps (the deformation),
quality_shapes (contours, landmarks) and quality_tables (figures, comparison). Everything is undone by ``clear``.
"""

from __future__ import annotations

from DeepRegistrationLib.errors import InputError

from . import quality_images, quality_maps, quality_shapes, views
from .placement import SHOWN, give_back, lend, put_under
from .quality_tables import compare_rows, compare_tables, export_csv, rows_of, table_from_rows
from .records import carriers_of

__all__ = ["Quality", "compare_rows", "compare_tables", "compare_views", "export_csv", "rows_of", "table_from_rows"]


class Quality:
    """The displays of one result: each method shows one and returns the node(s) that it made or changed; ``clear`` undoes all.

    fixed, moving: volume nodes; transforms: role -> node as ``outputs.add_result`` gives them ('linear', and where there are 'deformation',
    'warped', 'log_jacobian', 'folds'); name: begin of the names of new nodes. A node is made once and rewritten by later calls.

    Shown over the fixed volume is 'warped', or, without one, the moving volume under the transforms.
    """

    def __init__(self, fixed, moving, transforms: dict, name: str = "Quality"):
        self.fixed, self.moving, self.transforms, self.name = fixed, moving, dict(transforms), name
        self.scene = fixed.GetScene()
        self._views = views.ViewState(self.scene)
        self._displays: list = []
        self.lent = False
        self.made: dict = {}
        self._read: tuple = ((), None)

    # ------------------------------------------------------------------------------------------------ two images in one

    def mapped(self):
        """The volume node that shows the moving image on the fixed one."""
        warped = self.transforms.get("warped")
        if views.is_in(warped, self.scene):
            return warped
        self._require(self.moving, "moving volume")
        if not self.lent:
            self.lent = True
            lend(self.moving, self.transforms, SHOWN)
        return self.moving

    def blend(self, opacity: float = 0.5):
        """Mapped moving image over the fixed one at ``opacity``; returns the mapped volume node."""
        node = self._plain()
        views.show_layers(self.fixed, node, opacity=opacity)
        return node

    def flicker(self, on: bool):
        """One beat of flicker: only the mapped moving image (``on``) or only the fixed one; the caller has the clock."""
        return self.blend(1.0 if on else 0.0)

    def checkerboard(self, square_mm: float | None = None):
        """Squares of ``square_mm`` (default: an eighth of the shortest edge), alternately of both images, in grey."""
        values, name = self._values(self._plain()), f"{self.name} checkerboard"
        node = quality_images.checkerboard_node(self.fixed, values, square_mm, name, self._old("checkerboard"))
        return self._show_alone("checkerboard", node)

    def difference(self, absolute: bool = False, match: str = "auto"):
        """Mapped minus fixed in blue - white - red, or its magnitude in grey, with a legend."""
        role = "absolute difference" if absolute else "difference"
        node = quality_images.difference_node(self.fixed, self._values(self._plain()), absolute, match, f"{self.name} {role}", self._old(role))
        self._show_alone(role, node)
        quality_maps.show_legend(node, role)
        return node

    def inverse_colors(self):
        """Fixed image in orange and the mapped one in blue, added: where both agree the picture is grey."""
        node = self._plain()
        self._keep_display(self.fixed)
        self._keep_display(node)
        quality_images.show_inverse_colors(self.fixed, node)
        return node

    def unchanged(self) -> None:
        """The slice views, the colours of both images and the place of the moving one as they were before; maps and shapes stay."""
        self._hide_legends()
        self._restore_displays(of=(self.fixed, self.moving, self.transforms.get("warped")))
        self._take_out()
        self._views.restore()

    def _plain(self):
        """The mapped volume with its own colours, and without the legends of other pictures."""
        self._hide_legends()
        self._restore_displays(of=(self.fixed, self.mapped()))
        return self.mapped()

    def _hide_legends(self) -> None:
        for role in ("difference", "absolute difference"):
            hide_legend(self._old(role))

    def _values(self, node):
        """The mapped volume on the voxels of the fixed one; read anew only when it or its transforms have changed."""
        parent = node.GetParentTransformNode()
        state = (node.GetID(), node.GetImageData().GetMTime(), None if parent is None else parent.GetTransformToWorldMTime(), self.fixed.GetMTime())
        if self._read[0] != state:
            self._read = (state, quality_images.resampled(node, self.fixed))
        return self._read[1]

    def _show_alone(self, role: str, node):
        self.made[role] = node
        views.show_layers(node)
        return node

    # ---------------------------------------------------------------------------------------------------- the deformation

    def deformation(self, kind: str = "grid", visible_3d: bool = False):
        """Draw the deformation as 'grid', 'arrows' or 'contours' over the fixed image, or nothing ('')."""
        node = self._require(self.transforms.get("deformation") or self.transforms.get("linear"), "transform")
        if kind:
            quality_maps.show_deformation(node, self.fixed, kind, visible_3d)
        else:
            quality_maps.hide_deformation(node)
        return node

    def log_jacobian(self, legend: bool = True):
        """The log-Jacobian over the fixed image, blue (the moving image is smaller there) - white - red (larger), with a legend."""
        node = self._require(self.transforms.get("log_jacobian"), "log-Jacobian map")
        self._keep_display(node)
        views.show_layers(self.fixed, node, opacity=0.6)
        quality_maps.show_log_jacobian(node, legend)  # after the layers: a legend appears in the views that show its volume then
        return node

    def folds(self):
        """Folds in red: (segmentation node, count of voxels, share in percent), from the map of folds or the log-Jacobian."""
        source = self._require(self.transforms.get("folds") or self.transforms.get("log_jacobian"), "log-Jacobian map")
        self._discard("folds")
        node, count, share = quality_maps.folds_node(source, f"{self.name} folds")
        self.made["folds"] = node
        return node, count, share

    # --------------------------------------------------------------------------------------------------------- structures

    def contours(self, fixed_structures, moving_structures, after: bool = True):
        """Outlines of the fixed structures in green and of the moving ones, before in orange or after in magenta; (fixed, moving) nodes.

        Structures are segmentation or label map nodes. Copies are shown, so the user's own display stays as it is.
        """
        self._discard("contours")
        copies = [quality_shapes.outline_copy(node, f"{self.name} {side} contours", carriers_of(self.transforms, side))
                  for node, side in ((fixed_structures, "fixed"), (moving_structures, "moving"))]
        self.made["contours"] = copies
        if after:
            put_under(copies[1], self.transforms)
        quality_shapes.show_outlines(copies[0], quality_shapes.FIXED_COLOR, thickness=4)
        quality_shapes.show_outlines(copies[1], quality_shapes.AFTER_COLOR if after else quality_shapes.BEFORE_COLOR)
        return tuple(copies)

    def landmarks(self, fixed_points, moving_points, lines: bool = True):
        """(table node, rows): the distance of each landmark before and after, mm; with ``lines`` from fixed to mapped landmarks."""
        rows = quality_shapes.landmark_rows(fixed_points, moving_points, self.transforms)
        self._discard("landmarks")
        table = table_from_rows(rows, f"{self.name} landmarks", self.scene, self._old("landmark table"))
        self.made["landmark table"] = table
        if lines:
            if fixed_points.GetDisplayNode() is not None:  # the lines carry the names as well
                self._keep_display(fixed_points)
                fixed_points.GetDisplayNode().SetPointLabelsVisibility(False)
            self.made["landmarks"] = quality_shapes.landmark_lines(fixed_points, moving_points, self.transforms)
        return table, rows

    # -------------------------------------------------------------------------------------------------------------- undo

    def hide(self, role: str) -> None:
        """Take one display away: 'deformation', 'log_jacobian', 'folds', 'contours', 'landmarks' or the role of an image."""
        if role == "deformation":
            self.deformation("")
        elif role == "log_jacobian":
            node = self.transforms.get("log_jacobian")
            hide_legend(node)
            self._restore_displays(of=(node,))
            self._take_from_views(node)
        else:
            self._discard(role)
            if role == "landmarks":
                self._restore_displays(of=[node for node, _, _ in self._displays if node.IsA("vtkMRMLMarkupsNode")])

    def clear(self) -> None:
        """Remove what was made and bring back views, colours and the moving volume's parent; the table of landmarks stays."""
        if self.scene.IsClosing():
            return
        if views.is_in(self.transforms.get("log_jacobian"), self.scene):
            hide_legend(self.transforms["log_jacobian"])
        for role in [role for role in self.made if role != "landmark table"]:
            self._discard(role)
        self._restore_displays()
        for role in ("deformation", "linear"):
            if views.is_in(self.transforms.get(role), self.scene):
                quality_maps.hide_deformation(self.transforms[role])
        self._take_out()
        self._read = ((), None)
        self._views.restore()
        quality_images.remove_hues(self.scene)

    def _take_out(self) -> None:
        """Put the moving volume back where it was before ``mapped``."""
        if self.lent:
            give_back(self.moving, SHOWN)
        self.lent = False

    def _old(self, role: str):
        """The node made for ``role``, None where there is none any more."""
        node = self.made.get(role)
        return node if views.is_in(node, self.scene) else None

    def _discard(self, role: str) -> None:
        nodes = self.made.pop(role, None)
        for node in nodes if isinstance(nodes, list) else [nodes]:
            if views.is_in(node, self.scene):
                views.remove(node)

    def _take_from_views(self, node) -> None:
        for composite in views.composites(self.scene):
            if node is not None and composite.GetForegroundVolumeID() == node.GetID():
                composite.SetForegroundVolumeID(None)

    def _keep_display(self, node) -> None:
        """Remember how a node is displayed, once."""
        display = node.GetDisplayNode()
        if display is not None and all(display is not known for _, known, _ in self._displays):
            copy = display.NewInstance()
            copy.UnRegister(None)
            copy.CopyContent(display, True)
            self._displays.append((node, display, copy))

    def _restore_displays(self, of=None) -> None:
        for node, display, copy in self._displays:
            if views.is_in(display, self.scene) and (of is None or any(node is each for each in of)):
                display.CopyContent(copy, True)
        self._displays = [entry for entry in self._displays if of is not None and not any(entry[0] is each for each in of)]

    def _require(self, node, what: str):
        if not views.is_in(node, self.scene):
            raise InputError(f"the {what} of this registration is not in the scene; run it again with that output, or choose another result")
        return node


def hide_legend(node) -> None:
    """Take the colour legend of a volume node away, where it has one."""
    import slicer

    legend = None if node is None else slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(node)
    if legend is not None:
        node.GetScene().RemoveNode(legend)


def compare_views(fixed, first: dict, second: dict, opacity: float = 0.5) -> None:
    """Two results in two linked rows of slice views: each 'warped' volume over the fixed one."""
    for transforms in (first, second):
        if not views.is_in(transforms.get("warped"), fixed.GetScene()):
            raise InputError("a result without a warped volume cannot be shown beside another; run it again with the warped volume as an output")
    views.show_two_rows(*({"background": fixed, "foreground": transforms["warped"], "opacity": opacity} for transforms in (first, second)))
