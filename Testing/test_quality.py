"""Quality control: compositors against truths, displays that are undone, tables and their files."""

import csv
import time

import numpy as np
import pytest
import torch

pytest.importorskip("slicer")

import slicer
from scenes import blocks, bump, image, inner_points, library_map, linear_node, random_grid, scene, tilt

from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image
from DeepRegistrationLib.points import Points
from DeepRegistrationLib.result import warp
from DeepRegistrationLib.transforms import Affine
from DeepRegistrationUI import mrml, quality_images, quality_maps, quality_shapes, quality_tables, views
from DeepRegistrationUI.colors import DIVERGING
from DeepRegistrationUI.quality import Quality, compare_rows, compare_tables, compare_views, export_csv, rows_of, table_from_rows

assert scene  # a fixture


class Case:
    """A known result of two volumes, three slice views."""

    def __init__(self, scene, warped=True):
        self.scene, self.grids = scene, (random_grid(1, (20, 22, 18)), random_grid(2, (18, 20, 24), flipped=True))
        self.map = Affine(tilt(0.1, (1.0, -2.0, 1.5))) @ bump(self.grids[0])
        images = [image(grid, n) for n, grid in enumerate(self.grids)]
        self.fixed, self.moving = (mrml.volume_from_image(scene, one, name) for one, name in zip(images, ("fixed", "moving")))
        deformation = mrml.node_from_transform(scene, bump(self.grids[0]), "deformation", self.fixed, self.moving)
        linear = mrml.node_from_transform(scene, Affine(tilt(0.1, (1.0, -2.0, 1.5))), "linear", self.fixed, self.moving)
        linear.SetAndObserveTransformNodeID(deformation.GetID())
        jacobian = Image(self.map.log_jacobian(self.grids[0]), self.grids[0])
        self.transforms = {"linear": linear, "deformation": deformation, "log_jacobian": mrml.volume_from_image(scene, jacobian, "log-Jacobian")}
        self.pulled = warp(images[1], self.map, self.grids[0])
        if warped:
            self.transforms["warped"] = mrml.volume_from_image(scene, self.pulled, "warped")
        for name in ("Red", "Yellow", "Green"):
            node = scene.AddNewNodeByClass(views.COMPOSITE)
            node.SetLayoutName(name)
            node.SetBackgroundVolumeID(self.moving.GetID())

    def seen(self):
        """What a user sees, without the colour nodes and the table that stay."""
        nodes = [self.scene.GetNthNode(n) for n in range(self.scene.GetNumberOfNodes())]
        stay = ("vtkMRMLProceduralColorNode", "vtkMRMLTransformDisplayNode", "vtkMRMLTableNode", "vtkMRMLSubjectHierarchyNode")
        volumes = [self.fixed, self.moving, *(n for n in self.transforms.values() if n.IsA("vtkMRMLVolumeNode"))]
        displays = [v.GetDisplayNode() for v in volumes]
        looks = [(d.GetColorNodeID(), d.GetWindow(), d.GetLevel(), v.GetTransformNodeID()) for d, v in zip(displays, volumes)]
        layers = [(c.GetBackgroundVolumeID(), c.GetForegroundVolumeID(), c.GetForegroundOpacity(), c.GetCompositing())
                  for c in views.composites(self.scene)]
        visible = [n.GetDisplayNode().GetVisibility() for n in nodes if n.IsA("vtkMRMLTransformNode") and n.GetDisplayNode()]
        return sorted(n.GetID() for n in nodes if n.GetClassName() not in stay), looks, layers, any(visible)


@pytest.fixture
def case(scene):
    return Case(scene)


# ---------------------------------------------------------------------------------------------------------- compositors


def test_resampling_shows_what_the_library_computes(case):
    plain = quality_images.resampled(case.moving, case.fixed)
    expected = warp(image(case.grids[1], 1), Affine.identity(3), case.grids[0], fill=float("nan")).data[0, 0].numpy()
    both = np.isfinite(plain) & np.isfinite(expected)
    assert both.mean() > 0.3 and np.abs(plain - expected)[both].max() < 0.02
    case.moving.SetAndObserveTransformNodeID(case.transforms["linear"].GetID())
    carried = quality_images.resampled(case.moving, case.fixed)
    expected = warp(image(case.grids[1], 1), case.map, case.grids[0], fill=float("nan")).data[0, 0].numpy()
    both = np.isfinite(carried) & np.isfinite(expected)
    assert both.mean() > 0.3 and np.abs(carried - expected)[both].max() < 0.05
    assert np.array_equal(quality_images.resampled(case.fixed, case.fixed), mrml.array_of(case.fixed))


def test_squares_of_a_checkerboard_have_their_size_in_mm():
    grid = Grid.from_parts((40, 30, 20), (1.0, 2.0, 0.5), direction=random_grid(3).direction)
    board = quality_images.checkerboard(np.zeros(grid.shape), np.ones(grid.shape), grid, 5.0)
    for axis, (n, spacing) in enumerate(zip(grid.size, grid.spacing)):
        line = np.moveaxis(board, 2 - axis, 0)[:, 0, 0]
        edges = np.flatnonzero(np.diff(line)) + 1
        runs = np.diff(edges) * spacing
        assert len(edges) >= 2 and np.abs(runs - 5.0).max() <= spacing + 1e-9
    assert 0.4 < board.mean() < 0.6
    holes = np.full(grid.shape, np.nan)
    assert (quality_images.checkerboard(np.zeros(grid.shape), holes, grid, 5.0) == 0).all()
    with pytest.raises(InputError, match="must be positive"):
        quality_images.checkerboard(holes, holes, grid, -1.0)


def test_differences_ignore_the_scale_of_intensities_but_not_hounsfield_units():
    rng = np.random.default_rng(0)
    fixed = rng.uniform(0, 100, (20, 20, 20)).astype(np.float32)
    assert np.abs(quality_images.difference(fixed, 3.5 * fixed + 20)).max() < 1e-2
    assert quality_images.difference(fixed, fixed + 7, match="none") == pytest.approx(7.0, abs=1e-4)
    air = np.where(rng.random(fixed.shape) < 0.4, -1000, 40).astype(np.float32)
    assert quality_images.looks_like_ct(air) and not quality_images.looks_like_ct(fixed)
    assert np.all(quality_images.difference(air, air + 10) == 10) and np.all(quality_images.difference(air, air - 10, absolute=True) == 10)
    assert np.abs(quality_images.difference(air, air + 10, match="robust")).max() < 1e-3
    gap = fixed.copy()
    gap[:5] = np.nan
    assert np.all(quality_images.difference(fixed, gap)[:5] == 0)
    with pytest.raises(InputError, match="choose one of auto, robust, none"):
        quality_images.matching(fixed, fixed, "magic")


def test_pictures_of_a_large_pair_take_little_time():
    """192^3: composed slice by slice, without arrays of double precision in between (which took four times as long)."""
    grid = Grid.from_parts((192, 192, 192), 1.0)
    fixed = np.random.default_rng(0).integers(0, 1000, grid.shape).astype(np.int16)
    moving = 2 * fixed.astype(np.float32)
    for make in (lambda: quality_images.checkerboard(fixed, moving, grid, match="auto"), lambda: quality_images.difference(fixed, moving)):
        took = []
        for _ in range(3):
            began = time.thread_time()
            picture = make()
            took.append(time.thread_time() - began)
        assert min(took) < 0.1 and picture.dtype == np.float32
    assert np.abs(picture).max() < 1e-2


def test_warm_and_cold_add_up_to_white():
    assert np.allclose(np.add(quality_images.WARM, quality_images.COLD), 1.0)


# -------------------------------------------------------------------------------------------------------------- displays


def every_display(quality, case):
    marks = [mrml.markups_from_points(case.scene, Points(torch.as_tensor(p)[None], names=("a", "b", "c")), n)
             for p, n in ((inner_points(case.grids[0], 3, margin=0.3), "fixed marks"), (inner_points(case.grids[1], 3, margin=0.3), "moving marks"))]
    parts = [mrml.segmentation_from_labels(case.scene, blocks(grid), "blocks") for grid in case.grids]
    yield marks, parts
    quality.blend(0.3)
    quality.checkerboard(4.0)
    quality.checkerboard()
    quality.difference()
    quality.difference(absolute=True)
    quality.inverse_colors()
    quality.flicker(True)
    for kind in quality_maps.KINDS:
        quality.deformation(kind)
    quality.log_jacobian()
    quality.folds()
    quality.contours(*parts, after=False)
    quality.contours(*parts, after=True)
    quality.landmarks(*marks)


@pytest.mark.parametrize("warped", [True, False], ids=["warped", "moving under the transforms"])
def test_everything_is_undone(scene, warped):
    case = Case(scene, warped)
    parent = linear_node(scene, tilt(0.02), "parent")
    case.moving.SetAndObserveTransformNodeID(parent.GetID())
    quality = Quality(case.fixed, case.moving, case.transforms)
    steps = every_display(quality, case)
    marks, _parts = next(steps)
    before = case.seen()
    next(steps, None)
    assert case.seen() != before and not marks[0].GetDisplayNode().GetPointLabelsVisibility()
    quality.unchanged()
    assert case.moving.GetParentTransformNode() is parent
    quality.blend()
    quality.clear()
    assert case.seen() == before and marks[0].GetDisplayNode().GetPointLabelsVisibility()
    assert not any(scene.GetFirstNodeByName(name) for name in quality_images.HUES)
    quality.clear()


def test_layers_of_each_mode(case):
    quality, composite = Quality(case.fixed, case.moving, case.transforms), views.composites(case.scene)[1]
    assert quality.blend(0.3) is case.transforms["warped"]
    assert (composite.GetBackgroundVolumeID(), composite.GetForegroundVolumeID()) == (case.fixed.GetID(), case.transforms["warped"].GetID())
    assert composite.GetForegroundOpacity() == pytest.approx(0.3)
    quality.flicker(True)
    assert composite.GetForegroundOpacity() == 1.0
    quality.flicker(False)
    assert composite.GetForegroundOpacity() == 0.0
    board = quality.checkerboard(3.0)
    assert composite.GetBackgroundVolumeID() == board.GetID() and composite.GetForegroundVolumeID() is None
    assert quality.checkerboard(6.0) is board
    look = case.fixed.GetDisplayNode().GetColorNodeID()
    quality.inverse_colors()
    assert composite.GetCompositing() == composite.Add and case.fixed.GetDisplayNode().GetColorNodeID() != look
    quality.blend()
    assert composite.GetCompositing() == composite.Alpha and case.fixed.GetDisplayNode().GetColorNodeID() == look
    quality.unchanged()
    assert composite.GetBackgroundVolumeID() == case.moving.GetID()


def test_difference_is_symmetric_with_a_legend(case):
    quality = Quality(case.fixed, case.moving, case.transforms)
    node = quality.difference(match="none")
    expected = case.pulled.data[0, 0].numpy() - mrml.array_of(case.fixed)
    assert np.abs(mrml.array_of(node) - expected).max() < 1e-3
    display = node.GetDisplayNode()
    assert display.GetWindowLevelMin() == pytest.approx(-display.GetWindowLevelMax()) and display.GetWindowLevelMax() > 0
    legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(node)
    assert legend is not None and legend.GetTitleText() == "difference"
    quality.blend()
    assert slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(node) is None


def test_the_grid_fits_the_volume_and_the_colors_fit_the_data(case):
    edge = case.grids[0].extent.max()
    view = slicer.vtkMRMLSliceNode()
    view.SetLayoutName("Red")
    case.scene.AddNode(view)
    for factor in (12.0, 1.2):  # a view that shows the volume small, and large
        view.SetFieldOfView(factor * edge, factor * edge, 1.0)
        node = Quality(case.fixed, case.moving, case.transforms).deformation("grid")
        display = node.GetDisplayNode()
        assert display.GetGridSpacingMm() == pytest.approx(max(1.0, factor / 3) * edge / 20)
    assert display.GetRegionNode() is case.fixed
    assert display.GetVisibility() and display.GetVisibility2D() and not display.GetVisibility3D()
    field = bump(case.grids[0]).displacement[0].norm(dim=0)
    longest = quality_maps.reach(node, case.fixed)
    assert float(field.quantile(0.95)) < longest <= float(field.max()) + 1e-3
    colors = display.GetColorMap()
    assert colors.GetRange() == pytest.approx((0.0, longest)) and colors.GetColor(longest)[0] > 0.9 > colors.GetColor(0.0)[0]
    with pytest.raises(InputError, match="choose one of grid, arrows, contours"):
        quality_maps.show_deformation(node, case.fixed, "spiral")
    assert [quality_maps.nice_step(v) for v in (0.013, 0.3, 4.4, 90)] == pytest.approx([0.01, 0.2, 5, 100])


def test_displacements_are_those_of_the_library(case):
    points = inner_points(case.grids[0])
    u = quality_maps.displacements(case.transforms["deformation"], points)
    assert np.abs(u - (library_map(bump(case.grids[0]), points) - points)).max() < 1e-4


def test_log_jacobian_equals_the_library_on_oblique_flipped_grids():
    for seed, flipped in ((3, False), (4, True)):
        grid = random_grid(seed, (14, 12, 16), flipped)
        vectors = np.moveaxis(bump(grid).displacement[0].numpy(), 0, -1)
        whole = (Affine(tilt()) @ bump(grid)).log_jacobian(grid)[0, 0].numpy()
        inner = (slice(1, -1),) * 3
        assert np.abs(quality_maps.log_jacobian(vectors, grid, tilt()) - whole)[inner].max() < 1e-3


def test_log_jacobian_is_shown_in_diverging_colors_with_a_legend(case):
    quality = Quality(case.fixed, case.moving, case.transforms)
    node = quality.log_jacobian()
    display, legend = node.GetDisplayNode(), slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(node)
    assert legend.GetTitleText() == "log Jacobian" and legend.GetVisibility()
    assert display.GetWindowLevelMin() == pytest.approx(-display.GetWindowLevelMax()) and display.GetColorNode().GetName() == DIVERGING
    quality.hide("log_jacobian")
    assert slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(node) is None


def test_arrows_fit_the_volume(case):
    display = Quality(case.fixed, case.moving, case.transforms).deformation("arrows").GetDisplayNode()
    assert display.GetVisualizationMode() == display.VIS_MODE_GLYPH and display.GetGlyphType() == display.GLYPH_TYPE_ARROW
    assert display.GetGlyphSpacingMm() == pytest.approx(case.grids[0].extent.max() / 24) and display.GetGlyphScalePercent() == 100


def test_folds_are_counted_and_red(case):
    quality = Quality(case.fixed, case.moving, case.transforms)
    assert quality.folds()[1:] == (0, 0.0)
    mrml.array_of(case.transforms["log_jacobian"])[2:4, 3:6, 1:3] = quality_maps.FOLDED - 0.5
    node, count, share = quality.folds()
    assert count == 12 and share == pytest.approx(100 * 12 / case.grids[0].voxels)
    segment = node.GetSegmentation().GetNthSegment(0)
    assert segment.GetName() == "folds" and segment.GetColor()[0] > 0.9 and max(segment.GetColor()[1:]) < 0.1
    found = mrml.labels_from_segmentation(node, case.fixed).data[0, 0].numpy() > 0
    assert found[2:4, 3:6, 1:3].all() and found.sum() == 12


def test_contours_are_copies_in_the_right_place_and_color(case):
    parts = [mrml.segmentation_from_labels(case.scene, blocks(grid), "blocks") for grid in case.grids]
    quality = Quality(case.fixed, case.moving, case.transforms)
    one, two = quality.contours(*parts, after=True)
    assert two.GetTransformNodeID() == case.transforms["linear"].GetID() and one.GetTransformNodeID() is None
    assert parts[1].GetTransformNodeID() is None and parts[0].GetDisplayNode().GetVisibility2DFill()
    for node, color in ((one, quality_shapes.FIXED_COLOR), (two, quality_shapes.AFTER_COLOR)):
        display, identifier = node.GetDisplayNode(), node.GetSegmentation().GetNthSegmentID(0)
        assert np.allclose(display.GetSegmentOverrideColor(identifier), color)
        assert display.GetVisibility2DOutline() and not display.GetVisibility2DFill()
    _, before = quality.contours(*parts, after=False)
    assert before.GetTransformNodeID() is None and not views.is_in(two, case.scene)
    labels = mrml.volume_from_image(case.scene, blocks(case.grids[1]), "label map")
    assert quality.contours(parts[0], labels)[1].GetSegmentation().GetNumberOfSegments() == 2
    with pytest.raises(InputError, match="'fixed' holds no structures"):
        quality.contours(case.fixed, parts[1])


def test_landmark_distances(case):
    start = inner_points(case.grids[0], 5, margin=0.3)
    end = library_map(case.map, start) + np.array([[0, 0, 0.5], [0, 1, 0], [2, 0, 0], [0, 0, 0], [0, 3, 4]])

    def marks(points, names, name):
        return mrml.markups_from_points(case.scene, Points(torch.as_tensor(np.array(points))[None], names=names), name)

    names = ("a", "b", "c", "d", "e")
    fixed, moving = marks(start, names, "F"), marks(end[::-1], names[::-1], "M")  # another order: names decide
    quality = Quality(case.fixed, case.moving, case.transforms)
    table, rows = quality.landmarks(fixed, moving)
    assert [row["after (mm)"] for row in rows] == pytest.approx([0.5, 1, 2, 0, 5], abs=0.01)
    assert [row["before (mm)"] for row in rows] == pytest.approx(np.linalg.norm(start - end, axis=1), abs=1e-4)
    lines = quality.made["landmarks"]
    assert [line.GetName() for line in lines] == ["a 0.5 mm", "b 1.0 mm", "c 2.0 mm", "d 0.0 mm", "e 5.0 mm"] and table.GetNumberOfRows() == 5
    ends = np.array([[line.GetNthControlPointPositionWorld(n) for n in range(2)] for line in lines]) @ mrml.FLIP[:3, :3]
    assert np.abs(ends[:, 0] - start).max() < 1e-4 and np.abs(library_map(case.map, ends[:, 1]) - end).max() < 0.01
    unnamed = marks(end, tuple("vwxyz"), "others")
    assert quality_shapes.landmark_rows(fixed, unnamed, case.transforms)[4]["after (mm)"] == pytest.approx(5, abs=0.01)
    with pytest.raises(InputError, match="5 and 'few' 2 landmarks"):
        quality.landmarks(fixed, marks(end[:2], ("p", "q"), "few"))


def test_what_is_missing_is_said(case):
    quality = Quality(case.fixed, case.moving, {k: v for k, v in case.transforms.items() if k != "log_jacobian"})
    with pytest.raises(InputError, match="log-Jacobian map of this registration is not in the scene"):
        quality.log_jacobian()
    color = case.scene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "photo")
    color.SetAndObserveImageData(mrml.image_data(np.zeros((4, 4, 4, 3), np.uint8)))
    with pytest.raises(InputError, match="'photo' has 3 channels"):
        quality_images.resampled(color, case.fixed)
    case.scene.Clear(0)
    quality.clear()
    with pytest.raises(InputError, match="transform of this registration is not in the scene"):
        quality.deformation("grid")


# ---------------------------------------------------------------------------------------------------------------- tables

ROWS = [{"name": "Dice", "structure": "liver, left", "unit": "0 to 1", "before": 0.5, "value": 0.875},
        {"name": "TRE", "structure": "", "unit": "mm", "before": None, "value": 1.25}]


def test_tables_keep_numbers_and_units(scene, tmp_path):
    table = table_from_rows(ROWS, "metrics", scene)
    assert table.GetTable().GetColumnByName("value").GetDataTypeAsString() == "double"
    assert rows_of(table) == ROWS
    again = table_from_rows(ROWS[:1], "metrics", node=table)
    assert again is table and table.GetNumberOfRows() == 1
    table_from_rows(ROWS, "metrics", node=table)
    path = export_csv(table, tmp_path / "new folder" / "figures.csv")
    with path.open(encoding="utf-8-sig", newline="") as stream:
        read = list(csv.DictReader(stream))
    assert read[0]["structure"] == "liver, left" and float(read[0]["value"]) == 0.875 and read[1]["before"] == "" and read[1]["unit"] == "mm"
    assert [p.name for p in path.parent.iterdir()] == ["figures.csv"]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="could not be written"):
        export_csv(table, tmp_path / "file" / "figures.csv")
    with pytest.raises(InputError, match="has no rows"):
        table_from_rows([], "nothing", scene)


def test_two_results_side_by_side(scene):
    other = [{**ROWS[0], "value": 0.9}, {"name": "folds", "structure": "", "unit": "%", "value": 0.0}]
    rows = compare_rows(ROWS, other)
    assert [row["name"] for row in rows] == ["Dice", "TRE", "folds"]
    assert rows[0]["difference"] == pytest.approx(0.025) and rows[1]["second"] is None and rows[1]["difference"] is None
    tables = [table_from_rows(r, "metrics", scene) for r in (ROWS, other)]
    joint = rows_of(compare_tables(*tables))
    assert list(joint[0]) == ["name", "structure", "unit", "metrics (1)", "metrics (2)", "difference"]
    with pytest.raises(InputError, match="no columns 'name' and 'value'"):
        compare_tables(tables[0], table_from_rows([{"x": 1.0}], "other", scene))


def test_two_rows_of_views(case):
    for name in views.SECOND_ROW:
        node = case.scene.AddNewNodeByClass(views.COMPOSITE)
        node.SetLayoutName(name)
    other = mrml.volume_from_image(case.scene, case.pulled, "other")
    compare_views(case.fixed, case.transforms, {"warped": other})
    shown = {c.GetLayoutName(): c.GetForegroundVolumeID() for c in views.composites(case.scene)}
    assert all(shown[n] == case.transforms["warped"].GetID() for n in views.FIRST_ROW)
    assert all(shown[n] == other.GetID() for n in views.SECOND_ROW)
    assert all(c.GetLinkedControl() and c.GetBackgroundVolumeID() == case.fixed.GetID() for c in views.composites(case.scene))
    with pytest.raises(InputError, match="without a warped volume"):
        compare_views(case.fixed, case.transforms, {})


def test_numbers():
    assert quality_tables.is_number(np.float32(1)) and quality_tables.is_number(3) and not quality_tables.is_number(True)
