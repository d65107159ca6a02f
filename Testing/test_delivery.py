"""From the nodes of a scene through a job to nodes again: one map in the scene, the library and SimpleITK; all of it or nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

slicer = pytest.importorskip("slicer", reason="needs slicer-core, the scene of 3D Slicer")
from jobs_scene import ODD_METHOD, ball, halves, marks, oblique  # noqa: E402
from scenes import bump, library_map, linear_node, random_grid, scene_map, tilt, scene  # noqa: E402, F401

from DeepRegistrationLib import exchange  # noqa: E402
from DeepRegistrationLib.errors import InputError  # noqa: E402
from DeepRegistrationLib.exchange import Lattice, Matrix, Volume  # noqa: E402
from DeepRegistrationLib.transforms import Affine  # noqa: E402
from DeepRegistrationLib.transforms.parts import from_parts, to_parts  # noqa: E402
from DeepRegistrationUI import job as jobs  # noqa: E402
from DeepRegistrationUI import mrml, outputs  # noqa: E402


@pytest.fixture
def runner(tmp_path, monkeypatch):
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "odd.py").write_text(ODD_METHOD, "utf-8")
    monkeypatch.setenv("DEEPREGISTRATION_METHODS", str(tmp_path / "methods"))
    with jobs.InProcessRunner(tmp_path) as made:
        yield made


def pair(scene, case):
    """Two volume nodes: 'plain' oblique ones, 'flipped', 'parent' under linear transforms, or one 'slice' each."""
    shape = (1, 18, 20) if case == "slice" else (12, 14, 10)
    grids = oblique(shape, case == "flipped"), oblique(shape, case == "flipped", (2.2, 1.4, 2.8))
    values = [ball(oblique((max(3, shape[0]), *shape[1:])), shift).array[: shape[0]] for shift in ((0, 0, 0), (1, -1, 0))]
    nodes = [mrml.volume_node(scene, Volume(v, g, name)) for v, g, name in zip(values, grids, ("fixed", "moving"))]
    if case == "parent":
        inner, outer = linear_node(scene, tilt()), linear_node(scene, tilt(-0.3, (2, 1, 0)))
        inner.SetAndObserveTransformNodeID(outer.GetID())
        nodes[0].SetAndObserveTransformNodeID(inner.GetID())
        nodes[1].SetAndObserveTransformNodeID(outer.GetID())
    return nodes


def registered(runner, fixed, moving, **more):
    request = outputs.request_from_nodes(fixed, moving, **more)
    return jobs.wait(runner.submit({**request, "method": "odd", "device": "cpu"}), runner, 60)


@pytest.mark.parametrize("case", ["plain", "flipped", "parent", "slice"])
def test_a_landmark_is_moved_alike_by_scene_library_and_simpleitk(scene, runner, tmp_path, case):
    sitk = pytest.importorskip("SimpleITK")
    from DeepRegistrationLib.io import write_transform

    fixed, moving = pair(scene, case)
    result = registered(runner, fixed, moving)
    nodes = exchange.finish(outputs.deliver(result, fixed, moving, "Case"))
    transform = from_parts(result["transform"])
    points = mrml.grid_of(fixed).points()[..., 2:-2, 2:-2, :].reshape(-1, 3)[::7]
    write_transform(transform, tmp_path / "transform.h5")
    read = sitk.ReadTransform(str(tmp_path / "transform.h5"))
    library = library_map(transform, points)
    assert np.abs(library - points).max() > 1.0
    assert np.abs(scene_map(nodes["linear"], points) - library).max() < 0.01
    assert np.abs(np.array([read.TransformPoint(p.tolist()) for p in points]) - library).max() < 0.01
    landmarks = mrml.points_node(scene, exchange.PointSet(library))
    outputs.apply_to(landmarks, nodes)
    assert np.abs(mrml.points_of(landmarks).positions - points).max() < 0.01
    assert np.abs(library_map(from_parts(mrml.parts_of(nodes["linear"])), points) - library).max() < 0.01


def test_a_delivery_has_all_roles_references_and_one_folder(scene, runner):
    fixed, moving = pair(scene, "plain")
    nodes = exchange.finish(outputs.deliver(registered(runner, fixed, moving), fixed, moving, "Case"))
    assert set(nodes) == {"linear", "deformation", "inverse", "warped", "log_jacobian", "folds", "metrics", "chart", "loss"}
    assert nodes["linear"].GetParentTransformNode() is nodes["deformation"]
    for role, sides in (("linear", (fixed, moving)), ("deformation", (fixed, moving)), ("inverse", (moving, fixed))):
        found = [nodes[role].GetNodeReference(f"spatialRegistration{side}") for side in ("Fixed", "Moving")]
        assert found[0] is sides[0] and found[1] is sides[1]
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    folders = {hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) for node in nodes.values()}
    assert len(folders) == 1 and hierarchy.GetItemName(folders.pop()) == "Case"
    assert nodes["folds"].IsA("vtkMRMLLabelMapVolumeNode") and nodes["folds"].GetDisplayNode().GetColorNode().GetName() == "DeepRegistration folds"
    for role in ("warped", "log_jacobian", "folds"):
        assert mrml.grid_of(nodes[role]).same_as(mrml.grid_of(fixed)) and nodes[role].GetDisplayNode() is not None
    table = nodes["metrics"].GetTable()
    assert [table.GetColumnName(c) for c in range(table.GetNumberOfColumns())] == ["name", "structure", "unit", "before", "value"]
    assert nodes["loss"].GetTable().GetNumberOfRows() == 2 and nodes["chart"].GetNumberOfPlotSeriesNodes() == 1


def test_only_what_is_wanted(scene, runner):
    fixed, moving = pair(scene, "plain")
    result = registered(runner, fixed, moving)
    nodes = exchange.finish(outputs.deliver(result, fixed, moving, "Case", ("warped",)))
    assert set(nodes) == {"linear", "deformation", "warped"}


def identifiers(scene):
    nodes = scene.GetNodes()
    return {nodes.GetItemAsObject(n).GetID() for n in range(nodes.GetNumberOfItems()) if not nodes.GetItemAsObject(n).IsA("vtkMRMLColorNode")}


@pytest.mark.parametrize("moment", ["before", "while copying", "while adding", "given up"])
def test_nothing_is_half_delivered(scene, runner, moment):
    fixed, moving = pair(scene, "plain")
    result = registered(runner, fixed, moving)
    slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    before = identifiers(scene)
    steps = outputs.deliver(result, fixed, moving, "Case")
    if moment == "before":
        scene.RemoveNode(moving)
    elif moment == "while copying":
        next(steps)
        scene.RemoveNode(moving)
    else:
        while not scene.GetFirstNodeByName("Case inverse"):
            next(steps)
        scene.RemoveNode(moving) if moment == "while adding" else steps.close()
    if moment != "given up":
        with pytest.raises(InputError, match="'moving' was deleted during the registration"):
            exchange.finish(steps)
    assert {i for i in identifiers(scene) - before if "Storage" not in i and "SubjectHierarchy" not in i} == set()


def test_a_scene_that_was_closed_is_refused(scene, runner):
    fixed, moving = pair(scene, "plain")
    result = registered(runner, fixed, moving)
    scene.Clear(0)
    with pytest.raises(InputError, match="was deleted during the registration"):
        exchange.finish(outputs.deliver(result, fixed, moving))


def test_steps_are_short_for_a_large_result(scene):
    import time

    grid = exchange.Grid.from_parts((96, 128, 128), 1.0)
    vectors = np.ones((*grid.shape, 3), np.float32)
    fixed, moving = (mrml.volume_node(scene, Volume(np.zeros(grid.shape, np.int16), grid, name)) for name in ("fixed", "moving"))
    result = {"transform": [Matrix(np.eye(4)), Lattice(vectors, grid)], "warped": Volume(vectors[..., 0], grid),
              "log_jacobian": Volume(vectors[..., 1], grid)}
    steps, longest, count = outputs.deliver(result, fixed, moving), 0.0, 0
    nodes = None
    while nodes is None:
        began = time.thread_time()
        try:
            next(steps)
        except StopIteration as end:
            nodes = end.value
        longest, count = max(longest, time.thread_time() - began), count + 1
    assert longest < 0.1 and count > 10
    assert mrml.lattice_of(nodes["deformation"].GetTransformFromParentAs("vtkOrientedGridTransform")).shape == (98, 130, 130)


# ------------------------------------------------------------------------------------------------------------ requests


def test_a_request_holds_what_the_nodes_hold(scene):
    fixed, moving = pair(scene, "parent")
    grid = mrml.grid_of(fixed)
    segments = mrml.segmentation_node(scene, exchange.LabelMap(halves().array, grid, halves().names, "halves"))
    only = segments.GetSegmentation().GetSegmentIdBySegmentName("right")
    points = mrml.points_node(scene, marks())
    start = linear_node(scene, np.linalg.inv(tilt()))
    request = outputs.request_from_nodes(fixed, moving, fixed_mask=segments, fixed_mask_segment=only, fixed_points=points, moving_points=points,
                                         initial=start, fixed_labels=segments, moving_labels=segments)
    assert np.array_equal(request["fixed_mask"].array > 0, halves().array == 2) and request["fixed_labels"].names == halves().names
    assert np.array_equal(request["fixed"].array, mrml.array_of(fixed)) and request["fixed"].grid.same_as(grid)
    assert np.allclose(request["fixed_points"].positions, marks().positions) and np.allclose(request["initial"][0].matrix, tilt())
    assert outputs.request_from_nodes(fixed, moving, initial="moments")["initial"] == "moments"
    assert np.array_equal(mrml.array_of(fixed), request["fixed"].array)


@pytest.mark.parametrize("voxels", [8.5e6, 2e6], ids=["a segment a step", "a slab of a segment a step"])
def test_a_large_request_is_read_in_short_steps(scene, monkeypatch, voxels):
    """Masks, structures, a label map and a deformation as start at 192^3: no step takes a tenth of a second of this thread."""
    import time

    from DeepRegistrationUI.mrml import read

    monkeypatch.setattr(read, "SEGMENT_VOXELS", voxels)
    grid = exchange.Grid.from_parts((192, 192, 192), 1.0)
    parts = np.zeros(grid.shape, np.int16)
    for n in range(1, 7):
        parts[10 * n : 60 + 10 * n, 20:90, 20 * n : 20 * n + 60] = n
    fixed, moving = (mrml.volume_node(scene, Volume(parts, grid, name)) for name in ("fixed", "moving"))
    value = exchange.LabelMap(parts, grid, tuple((n, f"part {n}") for n in range(1, 7)), "parts")
    segments, labels = mrml.segmentation_node(scene, value), mrml.volume_node(scene, value)
    start = mrml.transform_node(scene, [Lattice(np.ones((*grid.shape, 3), np.float32), grid)], "start")
    steps, longest, count, request = outputs.request_steps(fixed, moving, fixed_mask=segments, fixed_labels=segments, moving_labels=labels,
                                                           initial=start), 0.0, 0, None
    while request is None:
        began = time.thread_time()
        try:
            next(steps)
        except StopIteration as end:
            request = end.value
        longest, count = max(longest, time.thread_time() - began), count + 1
    assert longest < 0.1 and count > 10
    assert np.array_equal(request["fixed_labels"].array, parts) and np.array_equal(request["fixed_mask"].array, parts)
    assert request["fixed_labels"].names == value.names and np.abs(request["initial"][0].vectors[1:-1, 1:-1, 1:-1]).min() == 1


def test_nodes_that_cannot_be_registered_are_refused_in_one_sentence(scene):
    fixed, moving = pair(scene, "plain")
    colour = mrml.volume_node(scene, Volume(np.zeros((3, 4, 5, 6), np.uint8), oblique((4, 5, 6)), "photo"))
    flat = mrml.volume_node(scene, Volume(ball().array[:1], exchange.Grid((1, 14, 10), oblique().affine), "flat"))
    empty = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
    bent = mrml.volume_node(scene, ball(name="bent"))
    bent.SetAndObserveTransformNodeID(mrml.node_from_transform(scene, bump(oblique()), "warp").GetID())
    markups = mrml.points_node(scene, exchange.PointSet(np.zeros((0, 3)), (), "none"))
    gone = mrml.volume_node(scene, ball(name="gone"))
    scene.RemoveNode(gone)
    for nodes, more, sentence in (
            ((fixed, fixed), {}, "'fixed' is both the fixed and the moving volume"), ((fixed, colour), {}, "'photo' is a color picture"),
            ((flat, moving), {}, "'flat' is a single slice and 'moving' is a volume"), ((empty, moving), {}, "'empty' holds no voxels"),
            ((fixed, bent), {}, "'bent' is under the non-linear transform 'warp'"), ((fixed, None), {}, "no moving volume was given"),
            ((fixed, gone), {}, "'gone' is not in the scene any more"), ((fixed, moving), {"fixed_points": markups}, "no placed point"),
            ((fixed, moving), {"fixed_labels": moving}, "'moving' is no label map")):
        with pytest.raises(InputError, match=sentence):
            outputs.request_from_nodes(*nodes, **more)


def test_a_bspline_start_is_read_on_a_coarse_lattice_and_inverted_grids_stay_inverted(scene):
    grid = random_grid(1)
    node = mrml.node_from_transform(scene, bump(grid, 2.0), "grid")
    node.Inverse()
    part, = mrml.parts_of(node)
    assert isinstance(part, Lattice) and part.inverted
    again = mrml.transform_node(scene, [part], "again")
    points = grid.points().reshape(-1, 3)[::37]
    assert np.abs(scene_map(again, points) - scene_map(node, points)).max() < 1e-3
    assert np.abs(library_map(from_parts([part]), points) - scene_map(node, points)).max() < 0.1


def test_evaluation_of_nodes_after_the_user_changed_them(scene, runner):
    fixed, moving = pair(scene, "plain")
    nodes = exchange.finish(outputs.deliver(registered(runner, fixed, moving), fixed, moving, "Case"))
    request = outputs.evaluate_request({"fixed": fixed, "moving": moving, **nodes})
    first = jobs.wait(runner.submit(request), runner, 60)["rows"]
    table = {row["name"]: row["value"] for row in mrml_rows(nodes["metrics"])}
    assert all(table[row["name"]] == pytest.approx(row["value"], abs=0.02) for row in first if row["name"] in ("Correlation", "SDlogJ"))
    mrml.update_matrix(nodes["linear"], np.eye(4))
    second = jobs.wait(runner.submit(outputs.evaluate_request({"fixed": fixed, "moving": moving, **nodes})), runner, 60)["rows"]
    assert second[0]["value"] != pytest.approx(first[0]["value"], abs=1e-4)


def mrml_rows(table):
    from DeepRegistrationUI.quality_tables import rows_of

    return rows_of(table)


def test_previews_go_into_live_nodes_in_place(scene):
    node = mrml.transform_node(scene, to_parts(bump(oblique(), 0.0)), "live")
    vectors = np.random.default_rng(0).normal(size=(10, 12, 8, 3)).astype(np.float32)
    mrml.update_vectors(node, vectors)
    inner = oblique().pad([-1, -1, -1])
    points = inner.points().reshape(-1, 3)
    assert np.abs(scene_map(node, points) - points - vectors.reshape(-1, 3)).max() < 1e-3
    with pytest.raises(InputError, match="do not fit the lattice of 'live'"):
        mrml.update_vectors(node, vectors[1:])


def test_a_lifted_result_in_memory_and_a_delivered_one_are_the_same(scene):
    from DeepRegistrationLib.problem import Pair
    from DeepRegistrationLib.result import Result

    fixed, moving = pair(scene, "flipped")
    images = [mrml.image_from_volume(node) for node in (fixed, moving)]
    result = Result(Pair(*images), Affine(torch.as_tensor(tilt(0.1))) @ bump(images[0].grid))
    nodes = outputs.add_result(result, fixed, moving)
    points = images[0].grid.points().reshape(-1, 3)[::31]
    assert np.abs(scene_map(nodes["linear"], points) - library_map(result.transform, points)).max() < 1e-3
    assert np.array_equal(mrml.array_of(nodes["warped"]), result.warped.data[0, 0].numpy())
