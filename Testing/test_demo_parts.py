"""The demo's parts on a small head: the truth is a truth, the moving image shows it, scores and exit status tell good from bad."""

import numpy as np
import pytest
import torch

pytest.importorskip("slicer", reason="needs slicer-core, the scene of 3D Slicer")
pytest.importorskip("matplotlib", reason="pictures need matplotlib")

from DeepRegistrationLib.errors import InputError  # noqa: E402
from DeepRegistrationLib.geometry import Grid  # noqa: E402
from DeepRegistrationLib.image import Image  # noqa: E402
from DeepRegistrationLib.problem import Pair  # noqa: E402
from DeepRegistrationLib.result import Result, warp  # noqa: E402
from DeepRegistrationLib.runtime import Runtime  # noqa: E402
from DeepRegistrationLib.transforms import Affine, Identity  # noqa: E402
from DeepRegistrationUI import demo, mrml, outputs  # noqa: E402


def ball_head(spacing=4.0):
    """A made-up head: a shaded ball with three shells of tissue, about as large as a brain."""
    shape = (44, 50, 42)
    grid = Grid.from_parts(shape, spacing, -np.array(shape[::-1]) * spacing / 2)
    points = torch.as_tensor(grid.points())
    radius = (points / torch.tensor([60.0, 75.0, 65.0])).norm(dim=-1)
    ripple = 1 + 0.15 * torch.sin(points[..., 0] / 9) * torch.cos(points[..., 1] / 11)
    shade = (radius < 1) * (120 + 60 * (radius < 0.8) + 60 * (radius < 0.55)) * ripple
    image = Image(shade.float()[None, None], grid, name="fixed")
    white, grey = 255.0 * (radius < 0.55), 255.0 * ((radius >= 0.55) & (radius < 0.8))
    tissues = demo.tissue_labels(image, Image(grey.float()[None, None], grid), Image(white.float()[None, None], grid))
    return demo.Head(image, tissues, demo.choose_landmarks(tissues, torch.Generator().manual_seed(0), 12, 20.0))


@pytest.fixture(scope="module")
def case():
    head = ball_head()
    generator = torch.Generator().manual_seed(3)
    truth, inverse = demo.random_truth(head.image.grid, generator)
    return head, demo.make_moving(head, truth, inverse, np.array(demo.MOVING_SPACING) * 4.0, generator), truth, inverse


def test_truth_is_strong_smooth_and_undone_by_its_inverse(case):
    head, _, truth, inverse = case
    points = demo.brain_points(head.tissues).positions
    bend = (truth.items[0].inverse()(truth(points)) - points).norm(dim=-1)
    assert 5.0 < float(bend.max()) < 16.0
    assert float((truth(points) - points).norm(dim=-1).mean()) > 8.0
    error = (inverse(truth(points)) - points).norm(dim=-1)
    assert float(error.mean()) < 0.06 and float(error.max()) < 0.3
    determinant = truth.jacobian_determinant(head.image.grid)[head.tissues.data > 0]
    assert 0.2 < float(determinant.min()) and float(determinant.max()) < 4.0
    turn = np.linalg.svd(truth.items[0].numpy()[:3, :3])
    angle = np.arccos((np.trace(turn[0] @ turn[2]) - 1) / 2)
    assert np.rad2deg(angle) == pytest.approx(8.0, abs=0.1)


def test_same_seed_same_truth_other_seed_another():
    grid = Grid.from_parts((20, 20, 20), 8.0)
    one, again, other = (demo.random_truth(grid, torch.Generator().manual_seed(s), 8.0)[0] for s in (1, 1, 2))
    point = torch.tensor([[[80.0, 70.0, 60.0]]])
    assert torch.equal(one(point), again(point)) and not torch.allclose(one(point), other(point), atol=0.1)


def test_moving_image_is_oblique_and_shows_the_fixed_one_through_the_truth(case):
    head, moving, truth, _ = case
    grid = moving.image.grid
    assert np.abs(grid.direction - np.eye(3)).max() > 0.05 and np.allclose(grid.spacing, np.array(demo.MOVING_SPACING) * 4.0)
    back = warp(moving.image, truth, head.image.grid).data
    brain = head.tissues.data > 0
    correlation = np.corrcoef(back[brain].numpy(), head.image.data[brain].numpy())[0, 1]
    before = np.corrcoef(moving.image.at(head.image.grid).data[brain].numpy(), head.image.data[brain].numpy())[0, 1]
    assert correlation > 0.8 > before + 0.1
    assert bool(grid.contains(truth(demo.brain_points(head.tissues).positions)[0].numpy()).all())
    assert torch.allclose(moving.landmarks.positions, truth(head.landmarks.positions))


def test_landmarks_lie_in_the_brain_and_apart():
    head = ball_head()
    points = head.landmarks.positions[0].numpy()
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1) + 1e9 * np.eye(len(points))
    index = np.round(head.image.grid.world_to_index(points)).astype(int)
    assert len(points) == 12 and distance.min() >= 20.0
    assert bool((head.tissues.data[0, 0].numpy()[tuple(index.T[::-1])] > 0).all())


def test_tissue_labels_take_the_largest_map():
    grid = Grid.from_parts((1, 1, 5))
    made = [Image(torch.tensor(v, dtype=torch.float32).reshape(1, 1, 1, 1, 5), grid)
            for v in ([9, 9, 9, 9, 0], [200, 10, 30, 100, 200], [20, 240, 30, 100, 0])]
    assert demo.tissue_labels(*made).data.flatten().tolist() == [2, 3, 1, 3, 0]


def test_scores_tell_the_truth_from_nothing(case):
    head, moving, truth, inverse = case
    pair = Pair(head.image, moving.image)
    good = demo.scores(Result(pair, truth, inverse), truth, head, moving)
    bad = demo.scores(Result(pair, Identity(3), Identity(3)), truth, head, moving)
    assert good["TRE brain, mean"][1] < 1e-3 < 8.0 < good["TRE brain, mean"][0] == bad["TRE brain, mean"][1]
    for tissue in ("CSF", "gray matter", "white matter"):
        before, after, unit = good[f"Dice {tissue}"]
        assert after > max(before, 0.7) and unit == "0 to 1"
    assert good["folds in the brain"][1] == 0 and good["inverse error, mean"][1] < 0.1


def test_timed_console_adds_up_the_parts(capsys):
    import io

    monitor = demo.TimedConsole(io.StringIO())
    for _ in monitor.part(0, 0.5, "start").steps(3, "fast"):
        pass
    for _ in monitor.part(0.5, 1, "fine").steps(2, "slow"):
        pass
    assert list(monitor.seconds) == ["start", "fine"] and all(s >= 0 for s in monitor.seconds.values())


class Oracle:
    """A method that knows the answer, or one that makes it worse."""

    def __init__(self, transform):
        self.transform = transform

    def run(self, problem, runtime: Runtime):
        for _ in runtime.monitor.steps(2, "oracle"):
            pass
        return Result(problem, self.transform, history=[{"loss": 1.0}, {"loss": 0.5}], provenance={"method": "oracle"})


@pytest.fixture
def small(monkeypatch):
    """The demo with the made-up head instead of the template; gives the truth it draws."""
    drawn = {}

    def head(scene, spacing, generator):
        return ball_head()

    def truth(grid, generator):
        drawn["truth"] = original(grid, generator, 8.0)
        return drawn["truth"]

    original = demo.random_truth
    monkeypatch.setattr(demo, "load_head", head)
    monkeypatch.setattr(demo, "random_truth", truth)
    monkeypatch.setattr(demo, "MOVING_SPACING", tuple(4 * s for s in demo.MOVING_SPACING))
    return drawn


def test_the_whole_demo_leaves_files_that_can_be_read(small, monkeypatch, tmp_path, capsys):
    sitk = pytest.importorskip("SimpleITK")
    monkeypatch.setattr(demo, "find", lambda name: Oracle(small["truth"][0]))
    assert demo.main(["--out", str(tmp_path), "--seed", "5"]) == 0
    text = capsys.readouterr().out
    assert "Against the known truth" in text and "TRE landmarks, mean" in text and "Wall time" in text and "registration" in text
    expected = {f"{who}{ending}" for who in ("fixed", "moving") for ending in (".nrrd", ".seg.nrrd", ".mrk.json")}
    expected |= {"linear.tfm", "deformation.h5", "inverse.h5", "warped.nrrd", "log_jacobian.nrrd", "scene.mrml", "report.html"}
    expected |= {"overlay.png", "deformation_grid.png", "log_jacobian.png"}
    assert expected <= {p.name for p in tmp_path.iterdir()}
    linear, field = (sitk.ReadTransform(str(tmp_path / name)) for name in ("linear.tfm", "deformation.h5"))
    points = ball_head().landmarks.positions
    moved = np.array([linear.TransformPoint(field.TransformPoint(p)) for p in points[0].tolist()])
    assert np.abs(moved - small["truth"][0](points)[0].numpy()).max() < 0.01
    back = sitk.ReadTransform(str(tmp_path / "inverse.h5"))
    assert np.abs(np.array([back.TransformPoint(p) for p in moved.tolist()]) - points[0].numpy()).max() < 0.6
    assert sitk.ReadImage(str(tmp_path / "warped.nrrd")).GetSize() == ball_head().image.grid.size
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count("<img") == 6


def test_a_worse_result_ends_with_status_1_and_a_sentence(small, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(demo, "find", lambda name: Oracle(Affine.translation([90.0, 0.0, 0.0])))
    assert demo.main(["--out", str(tmp_path)]) == 1
    assert "the registration did not improve it" in capsys.readouterr().err


def test_a_refused_request_ends_with_status_2_and_no_traceback(monkeypatch, tmp_path, capsys):
    def refuse():
        raise InputError("nilearn is not installed; install it")

    monkeypatch.setattr(demo, "template_files", refuse)
    assert demo.main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "error: nilearn is not installed; install it\n"
    (tmp_path / "file").touch()
    assert demo.main(["--out", str(tmp_path / "file" / "below")]) == 2
    refused = capsys.readouterr().err
    assert refused.startswith("error: the file system refused") and "below" in refused and refused.count("\n") == 1
    assert demo.main(["--size", "tiny"]) == 2
    assert "choose from 'full', 'quick'" in capsys.readouterr().err


def test_the_template_is_found_and_read_through_the_scene():
    pytest.importorskip("nilearn")
    files = demo.template_files()
    scene, keep = demo.new_scene()
    node = demo.load_volume(scene, files["t1"], "t1")
    assert mrml.grid_of(node).size == (197, 233, 189) and np.allclose(mrml.grid_of(node).spacing, 1.0)
    assert keep


def test_the_saved_scene_opens_again(case, tmp_path, monkeypatch):
    """Also where its folder was named relatively, as by default."""
    from pathlib import Path

    import slicer

    head, moving, truth, _ = case
    scene, keep = demo.new_scene()
    fixed, other = demo.head_nodes(scene, head, "fixed"), demo.head_nodes(scene, moving, "moving")
    result = Result(Pair(head.image, moving.image), truth)
    nodes = outputs.add_result(result, fixed["volume"], other["volume"], warped=False, log_jacobian=False)
    outputs.apply_to(other["landmarks"], nodes)
    monkeypatch.chdir(tmp_path.parent)
    demo.save_nodes(scene, Path(tmp_path.name), demo.files_of(fixed, other, nodes))
    again, keep_again = demo.new_scene()
    again.SetURL(str(tmp_path / "scene.mrml"))
    assert again.Connect()
    shown = mrml.points_from_markups(again.GetFirstNodeByName("moving landmarks")).positions
    # Slicer reads displacement files with cubic interpolation, so between the nodes of the lattice it shows slightly other points.
    assert float((shown - head.landmarks.positions).norm(dim=-1).max()) < 0.3
    assert again.GetFirstNodeByName("fixed").GetImageData().GetDimensions() == head.image.grid.size
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(again)
    assert hierarchy.GetItemByName("Registration") and keep and keep_again
