"""The live view: one event a refresh, its rate and cost, and everything back as it was, whatever happened meanwhile."""

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("slicer")

import slicer
from conftest import LIBRARY
from scenes import bump, image, inner_points, library_map, linear_node, random_grid, scene, scene_map, slice_grid, slice_node, tilt

from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.transforms import Affine
from DeepRegistrationUI import live_records, mrml, quality_maps, views
from DeepRegistrationUI.live import LiveView, lattice_of_previews, preview_request

assert scene  # a fixture

EVENT = slicer.vtkMRMLTransformableNode.TransformModifiedEvent


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def pair(scene):
    """Fixed and moving volume on different oblique grids, three slice views that show the moving one."""
    fixed = mrml.volume_from_image(scene, image(random_grid(1)), "fixed")
    moving = mrml.volume_from_image(scene, image(random_grid(2, flipped=True), 1), "moving")
    for name in ("Red", "Yellow", "Green"):
        node = scene.AddNewNodeByClass(views.COMPOSITE)
        node.SetLayoutName(name)
        node.SetBackgroundVolumeID(moving.GetID())
        node.SetForegroundOpacity(0.2)
        place = scene.AddNewNodeByClass(views.SLICE)
        place.SetLayoutName(name)
    return fixed, moving


def counted(node, event=EVENT):
    """A list that grows by one with every event of ``node``."""
    seen = []
    node.AddObserver(event, lambda *_: seen.append(1))
    return seen


def preview(live, scale=1.0, linear=None):
    lattice = live.lattice
    vectors = np.moveaxis(bump(lattice, 2.0 * scale).displacement[0].numpy(), 0, -1)
    return {"vectors": vectors, "linear": tilt() if linear is None else linear}


def snapshot(scene):
    """What a user sees of a scene: nodes, parents, layers."""
    nodes = [scene.GetNthNode(n) for n in range(scene.GetNumberOfNodes())]
    parents = {n.GetID(): n.GetTransformNodeID() for n in nodes if n.IsA("vtkMRMLTransformableNode")}
    layers = [(c.GetBackgroundVolumeID(), c.GetForegroundVolumeID(), c.GetLabelVolumeID(), c.GetForegroundOpacity(), c.GetLinkedControl())
              for c in views.composites(scene)]
    places = [mrml.matrix_values(views._placement(n)[0]).tolist() for n in views.nodes_of(scene, views.SLICE)]
    kept = ("vtkMRMLTableNode", "vtkMRMLPlotChartNode", "vtkMRMLPlotSeriesNode", "vtkMRMLProceduralColorNode", "vtkMRMLSubjectHierarchyNode")
    return {n.GetID() for n in nodes if n.GetClassName() not in kept}, parents, layers, places


def test_a_refresh_is_one_event_and_the_map_of_the_preview(scene, pair):
    live = LiveView(*pair)
    moving, deformation = pair[1], live.nodes["deformation"]
    inside, memory = counted(moving), mrml.vectors_of(deformation.GetTransformFromParentAs("vtkOrientedGridTransform")).ctypes.data
    one = preview(live)
    assert live.show(one) and inside == [1]
    assert mrml.vectors_of(deformation.GetTransformFromParentAs("vtkOrientedGridTransform")).ctypes.data == memory
    points = inner_points(live.lattice)
    expected = library_map(Affine(tilt()) @ bump(live.lattice), points)
    assert np.abs(scene_map(live.nodes["linear"], points) - expected).max() < 1e-4
    far = live.lattice.corners() + 40 * np.sign(live.lattice.corners() - live.lattice.centre)
    assert np.abs(scene_map(live.nodes["linear"], far) - library_map(Affine(tilt()), far)).max() < 1e-6


def test_the_moving_volume_hears_once_also_when_matrix_and_lattice_change(scene, pair):
    clock = Clock()
    live = LiveView(*pair, clock=clock)
    heard = counted(pair[1])
    for k in range(3):
        clock.now += 1
        assert live.show(preview(live, 1 + k, tilt(0.1 * k)))
        assert len(heard) == k + 1


def test_refreshes_are_seldom_enough_and_cheap_enough(pair, monkeypatch):
    clock = Clock()

    def draw(scene, cost=0.05):
        clock.now += cost

    live = LiveView(*pair, clock=clock)
    monkeypatch.setattr(views, "drawings", lambda scene: [lambda: draw(scene)])
    began, shown, waiting = clock.now, 0, 0
    while clock.now < began + 20:
        clock.now += 0.01
        done = live.show(preview(live))
        shown, waiting = shown + done, waiting + (not done)
    assert 15 < shown < 22 and waiting > 500  # 50 ms of drawing every second
    monkeypatch.setattr(views, "drawings", lambda scene: [])
    live.cost = 0.0
    began, shown = clock.now + 1, 0
    clock.now = began
    while clock.now < began + 10:
        clock.now += 0.01
        shown += live.show(preview(live))
    assert 85 < shown <= 101  # never more than ten times a second


def test_views_are_drawn_one_a_tick_and_all_of_them_count(pair, monkeypatch):
    """Three views of 40 ms: each tick draws one, and the next refresh waits as for 120 ms of drawing."""
    clock, drawn = Clock(), []

    def draw():
        clock.now += 0.04
        drawn.append(clock.now)

    monkeypatch.setattr(views, "drawings", lambda scene: [draw] * 3)
    live = LiveView(*pair, clock=clock)
    for count in (1, 2, 3):
        assert not live.tick() and len(drawn) == count, "the first picture"
    assert live.show(preview(live)) and len(drawn) == 4 and live.cost == pytest.approx(0.12)
    began = clock.now
    assert not live.show(preview(live)) and not live.tick() and not live.tick() and len(drawn) == 6
    while not live.tick():
        clock.now += 0.01
    assert 2.1 < clock.now - began < 2.7 and len(drawn) == 7


def test_what_came_too_early_is_shown_by_the_timer(pair):
    clock = Clock()
    live = LiveView(*pair, clock=clock)
    live.show(preview(live))
    assert not live.show(preview(live, 3.0)) and not live.tick()
    clock.now += 10
    assert live.tick() and not live.tick()
    points = inner_points(live.lattice)
    assert np.abs(scene_map(live.nodes["linear"], points) - library_map(Affine(tilt()) @ bump(live.lattice, 6.0), points)).max() < 1e-4


def test_close_gives_everything_back(scene, pair):
    parent = linear_node(scene, tilt(0.3), "placed by the user")
    pair[1].SetAndObserveTransformNodeID(parent.GetID())
    pair[1].GetDisplayNode().SetAutoWindowLevel(0)
    pair[1].GetDisplayNode().SetWindowLevelMinMax(3, 77)
    before = snapshot(scene)
    live = LiveView(*pair)
    live.show(preview(live))
    live.log({"cost": 1.0})
    assert snapshot(scene) != before and live.alive
    live.close()
    live.close()
    assert snapshot(scene) == before and not live.alive and not live.show(preview(live))
    assert (pair[1].GetDisplayNode().GetWindowLevelMin(), pair[1].GetDisplayNode().GetWindowLevelMax()) == (3, 77)
    assert set(live.nodes) == {"table", "chart"}


def test_an_error_in_the_run_gives_everything_back(scene, pair):
    before = snapshot(scene)
    with pytest.raises(ZeroDivisionError):
        with LiveView(*pair) as live:
            live.show(preview(live))
            1 / 0
    assert snapshot(scene) == before


@pytest.mark.parametrize("lost", ["fixed", "moving", "linear", "deformation", "log_jacobian", "table", "chart"])
def test_a_node_deleted_during_the_run(scene, pair, lost):
    live = LiveView(*pair, record=True)
    live.show(preview(live))
    node = {"fixed": pair[0], "moving": pair[1]}.get(lost) or live.nodes[lost]
    scene.RemoveNode(node)
    assert live.alive == (lost in ("log_jacobian", "table", "chart"))
    live.show(preview(live))
    live.log({"cost": 1.0})
    live.close()
    if lost != "moving":
        assert pair[1].GetTransformNodeID() is None
        assert views.composites(scene)[0].GetBackgroundVolumeID() == pair[1].GetID()
    assert not [n for n in views.nodes_of(scene, "vtkMRMLScalarVolumeNode") if n.GetName().startswith("Live")]


def test_a_scene_closed_during_the_run(scene, pair):
    live = LiveView(*pair)
    live.show(preview(live))
    seen = []
    scene.AddObserver(slicer.vtkMRMLScene.StartCloseEvent, lambda *_: seen.append((live.alive, live.show(preview(live)), live.close())))
    scene.Clear(0)
    assert seen == [(False, False, None)]
    other = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "of the next scene")
    live.close()
    assert other.GetTransformNodeID() is None and not live.alive


def test_a_scene_cleared_without_notice(scene, pair):
    live = LiveView(*pair)
    scene.Clear(0)
    assert not live.alive and not live.show(preview(live)) and not live.log({"cost": 1})
    live.close()
    assert not views.nodes_of(scene, "vtkMRMLTransformNode")


def test_a_parent_that_the_user_chose_during_the_run_is_kept(scene, pair):
    live = LiveView(*pair)
    mine = linear_node(scene, tilt(), "mine")
    pair[1].SetAndObserveTransformNodeID(mine.GetID())
    live.close()
    assert pair[1].GetTransformNodeID() == mine.GetID()


def test_a_placed_moving_volume_is_shown_where_it_belongs(scene, pair):
    outer, inner = linear_node(scene, tilt(0.4), "outer"), linear_node(scene, tilt(-0.1, (9, 0, 1)), "inner")
    inner.SetAndObserveTransformNodeID(outer.GetID())
    pair[1].SetAndObserveTransformNodeID(inner.GetID())
    live = LiveView(*pair)
    live.show(preview(live))
    points = inner_points(live.lattice)
    to_own = Affine(np.linalg.inv(tilt(0.4) @ tilt(-0.1, (9, 0, 1))))
    expected = library_map(to_own @ Affine(tilt()) @ bump(live.lattice), points)
    assert np.abs(scene_map(pair[1].GetParentTransformNode(), points) - expected).max() < 1e-4
    live.close()
    assert pair[1].GetTransformNodeID() == inner.GetID()


@pytest.mark.parametrize("normal", [0, 1, 2])
def test_one_slice_volumes(scene, normal):
    fixed, moving = (slice_node(scene, slice_grid(normal, angle), name) for angle, name in ((0.2, "fixed"), (0.25, "moving")))
    live = LiveView(fixed, moving)
    request = preview_request(live.lattice)
    assert sorted(request["lattice"]["shape"])[0] == 1 and min(sorted(request["lattice"]["shape"])[1:]) > 10
    assert live.show(preview(live))
    points = inner_points(live.lattice)
    expected = library_map(Affine(tilt()) @ bump(live.lattice), points)
    assert np.abs(scene_map(live.nodes["linear"], points) - expected).max() < 1e-4
    off = points + 20.0 * np.cross(*np.delete(live.lattice.direction, list(live.lattice.size).index(1), 1).T)  # the field goes on along the normal
    moved = scene_map(live.nodes["linear"], off) - scene_map(live.nodes["linear"], points)
    assert np.abs(moved - (off - points) @ tilt()[:3, :3].T).max() < 1e-4
    live.close()
    assert moving.GetTransformNodeID() is None


def test_a_preview_on_another_lattice_is_taken_over(scene, pair):
    clock = Clock()
    live = LiveView(*pair, clock=clock)
    grid = mrml.grid_of(pair[0]).resample(4.0).crop((0, 0, 0), (4, 4, 3))
    vectors = np.moveaxis(bump(grid).displacement[0].numpy(), 0, -1)
    assert live.show({"vectors": vectors, "grid": grid, "linear": None, "log_jacobian": np.full(grid.shape, 0.25, np.float32)})
    points = inner_points(grid)
    assert np.abs(scene_map(live.nodes["linear"], points) - library_map(bump(grid), points)).max() < 1e-4
    assert mrml.grid_of(live.nodes["log_jacobian"]).same_as(grid) and np.all(mrml.array_of(live.nodes["log_jacobian"]) == 0.25)


def test_the_map_follows_and_is_log_jacobian(scene, pair):
    live = LiveView(*pair)
    grid, growth = live.lattice, np.array([[0.1, 0.02, 0], [0, -0.05, 0], [0.03, 0, 0.2]])
    linear = np.diag([1.2, 1.0, 1.0, 1.0])
    assert live.show({"vectors": (grid.points() @ growth.T).astype(np.float32), "linear": linear})
    truth = np.log(1.2 * np.linalg.det(np.eye(3) + growth))
    assert np.abs(mrml.array_of(live.nodes["log_jacobian"]) - truth).max() < 1e-4


def test_log_jacobian_marks_folds():
    grid = Grid.from_parts((5, 6, 7), (1, 2, 3))
    folded = np.zeros((*grid.shape, 3), np.float32)
    folded[..., 0] = -1.5 * grid.points()[..., 0]
    assert quality_maps.fold_mask(quality_maps.log_jacobian(folded, grid)).all()
    assert not quality_maps.fold_mask(quality_maps.log_jacobian(0.2 * folded, grid)).any()


def test_the_requested_lattice_covers_the_image(pair):
    request, grid = preview_request(LiveView(*pair, lattice_spacing=3.0).lattice), mrml.grid_of(pair[0])
    lattice = Grid(tuple(request["lattice"]["shape"]), request["lattice"]["affine"])
    assert np.abs(lattice.corners() - grid.corners()).max() < 1e-9
    assert lattice_of_previews(pair[0], 0.001).shape == grid.shape  # never finer than the voxels
    big = Grid.from_parts((300, 200, 100), 1.0)
    assert big.resample(big.extent.max() / 48).shape[0] == 48


def test_the_chart_grows_but_is_not_drawn_too_often(scene, pair):
    clock = Clock()
    live = LiveView(*pair, clock=clock)
    redrawn = 0
    for k in range(500):
        clock.now += 0.01
        redrawn += live.log({"cost": 1 / (1 + k), **({"LNCC": 0.5} if k >= 100 else {})})
    assert 18 <= redrawn <= 21
    live.close()
    table, chart = live.nodes["table"].GetTable(), live.nodes["chart"]
    assert table.GetNumberOfRows() == 500 and [table.GetColumnName(c) for c in range(3)] == ["iteration", "cost", "LNCC"]
    assert np.isnan(table.GetValue(0, 2).ToDouble()) and table.GetValue(499, 2).ToDouble() == 0.5
    assert chart.GetNumberOfPlotSeriesNodes() == 2 and chart.GetNthPlotSeriesNode(1).GetYColumnName() == "LNCC"


def test_a_long_run_has_a_thinned_table(scene, monkeypatch):
    monkeypatch.setattr(live_records, "LONGEST_TABLE", 100)
    chart = live_records.LossChart(scene, "run", Clock())
    for k in range(1000):
        chart.add({"cost": float(k)})
    chart.draw()
    rows = chart.nodes["table"].GetTable()
    steps = np.array([rows.GetValue(r, 0).ToDouble() for r in range(rows.GetNumberOfRows())])
    assert 50 <= len(steps) <= 100 and len(set(np.diff(steps))) == 1 and steps[0] == 1 and steps[-1] > 980


def test_where_a_run_was_gets_no_curve(scene):
    """The cost beside voxel sizes and numbers of steps would be a flat line."""
    from DeepRegistrationUI.live_records import LossChart

    chart = LossChart(scene, "run", lambda: 0.0)
    chart.add({"stage": "rigid", "step": 120, "spacing": 8.0, "cost": 0.002})
    chart.draw()
    assert list(chart.series) == ["cost"] and chart.nodes["table"].GetTable().GetNumberOfColumns() == 4


def test_recorded_iterations_can_be_scrubbed(scene, pair, monkeypatch):
    monkeypatch.setattr(live_records, "MOST_ITERATIONS", 8)
    sequences = slicer.vtkSlicerSequencesLogic()
    sequences.SetMRMLScene(scene)
    clock = Clock()
    live = LiveView(*pair, record=True, clock=clock)
    for k in range(30):
        clock.now += 1
        live.show({**preview(live, k / 10), "step": 5 * k})
    live.close()
    browser, points = live.nodes["browser"], inner_points(live.lattice)
    count = browser.GetNumberOfItems()
    assert 4 <= count <= 8 and pair[1].GetTransformNodeID() is None
    twin = live.scrub()
    assert twin.GetTransformNodeID() == live.nodes["linear"].GetID() and twin.GetImageData() is pair[1].GetImageData()
    assert pair[1].GetTransformNodeID() is None
    for item in (0, count - 1):
        browser.SetSelectedItemNumber(item)
        sequences.UpdateProxyNodesFromSequences(browser)
        step = float(live.nodes["deformation sequence"].GetNthIndexValue(item))
        expected = library_map(Affine(tilt()) @ bump(live.lattice, 2.0 * step / 50), points)
        assert np.abs(scene_map(live.nodes["linear"], points) - expected).max() < 1e-4
    assert live.nodes["deformation"].GetSaveWithScene()


def test_kept_lattices_are_thinned():
    grid = random_grid(3, (50, 7, 1))
    coarse = live_records.thinned(grid, 4)
    assert coarse.shape == (13, 2, 1)
    assert np.abs(coarse.points() - grid.points()[::4, ::4, ::4]).max() < 1e-9


def test_volumes_that_cannot_be_shown(scene, pair):
    warped = mrml.node_from_transform(scene, bump(random_grid(4)), "bent")
    pair[1].SetAndObserveTransformNodeID(warped.GetID())
    before = snapshot(scene)
    with pytest.raises(InputError, match="'moving' is under the non-linear transform 'bent'"):
        LiveView(*pair)
    with pytest.raises(InputError, match="single slice"):
        LiveView(slice_node(scene, slice_grid(), "slice"), pair[0])
    empty = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
    with pytest.raises(InputError, match="holds no voxels"):
        LiveView(pair[0], empty)
    assert not views.nodes_of(scene, "vtkMRMLTableNode") and snapshot(scene)[2:] == before[2:]


def test_these_files_do_not_import_torch():
    code = "import sys, DeepRegistrationUI.live, DeepRegistrationUI.quality, DeepRegistrationUI.transfer, DeepRegistrationUI.views; " \
           "sys.exit(any(name in sys.modules for name in ('torch', 'qt', 'slicer', 'vtk')))"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(LIBRARY.parent)}, check=False).returncode == 0


def test_refresh_at_a_usual_size_is_quick(scene):
    grid = Grid.from_parts((96, 96, 96), 2.0)
    volumes = [mrml.volume_from_image(scene, image(grid, n), name) for n, name in enumerate(("fixed", "moving"))]
    live = LiveView(*volumes)
    assert max(live.lattice.shape) == 48
    live.show(preview(live))
    assert live.cost < 0.5  # about 20 ms on an idle machine, without drawing
