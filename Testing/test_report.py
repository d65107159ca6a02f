"""Pictures and report: left is left, scales are symmetric, grid lines say what they claim, the page needs nothing else."""

import io

import numpy as np
import pytest
import torch

from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.evaluate import report
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image
from DeepRegistrationLib.problem import Pair
from DeepRegistrationLib.result import Result
from DeepRegistrationLib.transforms import Affine, Displacement, Velocity

pytest.importorskip("matplotlib", reason="pictures need matplotlib")


def turned_grid(seed, shape=(22, 26, 30)):
    """Any order and sign of axes, and a tilt of up to about 15 degrees."""
    rng = np.random.default_rng(seed)
    axes = np.eye(3)[:, rng.permutation(3)] * rng.choice([-1, 1], 3)
    tilt = np.linalg.qr(np.eye(3) + 0.12 * rng.normal(size=(3, 3)))[0]
    tilt = tilt * np.sign(np.diag(tilt))
    grid = Grid.from_parts(shape, rng.uniform(0.8, 1.6, 3), direction=tilt @ axes)
    affine = grid.affine.copy()
    affine[:3, 3] -= grid.centre
    return Grid(shape, affine)


def marked(grid, direction):
    """Bright on the side of ``direction`` (LPS) of the centre."""
    side = torch.as_tensor(grid.points() @ np.asarray(direction, float))
    return Image((10.0 * (side > 0)).float()[None, None] + 1.0, grid)


def pixels(png):
    from matplotlib.image import imread

    return imread(io.BytesIO(png))[..., :3]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("orientation,direction,side", [
    ("axial", (1, 0, 0), "right"), ("axial", (0, -1, 0), "top"), ("coronal", (1, 0, 0), "right"), ("coronal", (0, 0, 1), "top"),
    ("sagittal", (0, -1, 0), "left"), ("sagittal", (0, 0, 1), "top")])
def test_patient_sides_are_where_a_radiologist_expects_them(seed, orientation, direction, side):
    grid = turned_grid(seed)
    shown = report.view(grid, orientation)
    values = shown.cut(marked(grid, direction).data[0, 0].numpy())
    half = {"left": values[:, : values.shape[1] // 2], "right": values[:, -(values.shape[1] // 2):],
            "top": values[: values.shape[0] // 2], "bottom": values[-(values.shape[0] // 2):]}
    other = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}[side]
    assert half[side].mean() > half[other].mean() + 4
    letters = dict(zip(("left", "right", "top", "bottom"), shown.letters))
    assert letters[side] == {(1, 0, 0): "L", (0, -1, 0): "A", (0, 0, 1): "S"}[direction]
    assert letters[other] == {(1, 0, 0): "R", (0, -1, 0): "P", (0, 0, 1): "I"}[direction]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("orientation", report.ORIENTATIONS)
def test_slice_passes_through_the_asked_point_and_keeps_the_aspect(seed, orientation):
    grid = turned_grid(seed)
    point = grid.index_to_world([5, 17, 9])
    shown = report.view(grid, orientation, point)
    index = np.round(grid.world_to_index(point)).astype(int)[::-1]
    assert shown.index == index[shown.normal]
    rows, columns = shown.cut(np.zeros(grid.shape)).shape
    sizes = sorted([rows * shown.pixel[0], columns * shown.pixel[1]])
    assert np.allclose(sizes, sorted(np.delete(grid.extent, 2 - shown.normal)))
    assert shown.cut(np.indices(grid.shape)[shown.normal]).std() == 0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("orientation", report.ORIENTATIONS)
def test_right_and_down_are_the_directions_of_the_shown_pixels(seed, orientation):
    grid = turned_grid(seed)
    shown = report.view(grid, orientation)
    for axis, direction in ((1, shown.right), (0, shown.down)):
        line = shown.cut(report._coordinate(grid, np.zeros((3, *grid.shape)), direction))
        assert np.allclose(np.diff(line, axis=axis), shown.pixel[axis])


@pytest.mark.parametrize("dim", [2, 3])
def test_grid_lines_are_the_pulled_back_coordinates(dim):
    grid = Grid.from_parts((20, 24, 28)[-dim:], (1.0, 1.5, 2.0)[:dim], (-3.0, 5.0, 1.0)[:dim])
    field = torch.randn(1, dim, *grid.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direction = np.array([0.6, 0.8, 0.0])[:dim]
    expected = (grid.points() + field[0].movedim(0, -1).numpy()) @ direction
    assert np.allclose(report._coordinate(grid, field[0].numpy(), direction), expected)


def test_only_the_shown_part_is_computed_and_equals_the_whole():
    grid = turned_grid(3)
    shown = report.view(grid, "coronal")
    part, inner = shown.only(grid)
    values = np.random.default_rng(0).normal(size=grid.shape)
    index = np.round(grid.world_to_index(part.centre)).astype(int)[::-1][shown.normal]
    assert index == shown.index and part.shape[shown.normal] == 1
    assert np.array_equal(inner.cut(np.take(values, [index], shown.normal)), shown.cut(values))


def test_fused_overlay_is_grey_where_both_agree():
    one = np.linspace(0, 1, 12).reshape(3, 4)
    assert np.allclose(report._fused(one, one, None), one[..., None])
    on, off = np.ones((1, 1)), np.zeros((1, 1))
    blue, orange = report._fused(on, off, None)[0, 0], report._fused(off, on, None)[0, 0]
    assert blue.tolist() == [0.0, 0.5, 1.0] and orange.tolist() == [1.0, 0.5, 0.0]


def test_checkerboard_squares_are_square_in_mm():
    grid = Grid.from_parts((1, 40, 80), (1.0, 2.0, 1.0))
    board = report._checkerboard(np.ones((40, 80)), np.zeros((40, 80)), report.view(grid, "axial"))[..., 0]
    changes = [np.flatnonzero(np.diff(board[0])), np.flatnonzero(np.diff(board[:, 0]))]
    assert np.allclose(np.diff(changes[0]) * 1.0, 10) and np.allclose(np.diff(changes[1]) * 2.0, 10)


def test_intensity_scaling_survives_outliers_and_constant_images():
    grid = Grid.from_parts((10, 10, 10))
    data = torch.zeros(1, 1, 10, 10, 10)
    data[..., 2:8, 2:8, 2:8] = torch.linspace(50, 100, 216).reshape(6, 6, 6)
    data[..., 5, 5, 5] = 1e6
    grey = report._grey(Image(data, grid))
    assert grey.min() == 0 and 0.3 < np.median(grey[2:8, 2:8, 2:8]) < 0.9
    assert report._grey(Image(torch.ones(1, 1, 10, 10, 10), grid)).max() == 0


def pair_result(dim):
    shape, gauss = (24, 28, 26)[-dim:], torch.Generator().manual_seed(0)
    grid = Grid.from_parts(shape, 2.0)
    mode = "bilinear" if dim == 2 else "trilinear"
    data = torch.nn.functional.interpolate(torch.rand((1, 1, *[6] * dim), generator=gauss), shape, mode=mode)
    fixed, moving = Image(data, grid, name="fixed"), Image(data.flip(-1), grid, name="moving")
    velocity = torch.nn.functional.interpolate(torch.randn((1, dim, *[4] * dim), generator=gauss), shape, mode=mode)
    history = [{"stage": stage, "loss": first / (k + 1)} for stage, first in (("affine", 1.0), ("deformable", 0.1)) for k in range(5)]
    return Result(Pair(fixed, moving), Affine.translation([1.0] * dim) @ Velocity(velocity, grid), history=history)


@pytest.mark.parametrize("dim", [2, 3])
def test_all_pictures_of_a_result(dim):
    pictures = report.result_pictures(pair_result(dim))
    captions = ["Overlay", "Checkerboard", "Difference", "Deformation grid, without the linear part", "Log-Jacobian", "Loss"]
    assert list(pictures) == captions
    for png in pictures.values():
        assert png.startswith(b"\x89PNG") and pixels(png).std() > 0.05


def test_folds_are_red_and_counted():
    grid = Grid.from_parts((12, 40, 40))
    fixed = Image(torch.rand((1, 1, 12, 40, 40), generator=torch.Generator().manual_seed(0)), grid)
    logs = torch.full((1, 1, 12, 40, 40), 0.2)
    plain = pixels(report.jacobian_picture(fixed, logs, grid.centre))
    logs[..., 10:30, 10:30] = float(np.log(1e-6))
    folded = pixels(report.jacobian_picture(fixed, logs, grid.centre))
    red = lambda p: ((p[..., 0] > 0.95) & (p[..., 1] < 0.05) & (p[..., 2] < 0.05)).sum()  # noqa: E731
    assert red(plain) == 0 and red(folded) > 1000


def test_log_jacobian_of_a_fold_reaches_the_floor():
    grid = Grid.from_parts((8, 8))
    folded = Displacement(torch.stack([-3.0 * torch.arange(8.0).expand(8, 8), torch.zeros(8, 8)])[None], grid)
    assert bool((folded.log_jacobian(grid)[..., 1:-1] <= report.FOLD).all())


def test_history_of_two_kinds_has_two_panels():
    deformable = [{"spacing": 2.0, "cost": 1.0 / (k + 1)} for k in range(6)]
    one = pixels(report.history_picture(deformable))
    two = pixels(report.history_picture([{"stage": "affine", "loss": -0.5}] * 3 + deformable))
    assert two.shape[1] > 1.5 * one.shape[1]
    assert report._part_of(deformable[0]) == "2 mm" and report._part_of({"stage": "rigid", "loss": 1}) == "rigid"


def test_history_without_a_loss_has_no_picture():
    assert report.history_picture([{"step": 1}]) is None and report.history_picture([]) is None


def test_images_on_other_grids_and_unknown_kinds_are_refused():
    image = marked(turned_grid(0), (1, 0, 0))
    with pytest.raises(InputError, match="resample it onto the fixed grid"):
        report.overlay_picture(image, marked(turned_grid(1), (1, 0, 0)), image)
    with pytest.raises(InputError, match="expected 'fused' or 'checkerboard'"):
        report.overlay_picture(image, image, image, "flicker")
    with pytest.raises(InputError, match="expected one of axial"):
        report.view(image.grid, "upside down")


def test_the_page_is_self_contained_and_escaped():
    rows = (("TRE", 5.123456, 0.5, "mm"), ("Dice & co", None, float("nan"), "0 to 1"))
    tables = [report.Table("Scores <1>", ("measure", "before", "after", "unit"), rows),
              report.provenance_table({"method": "m", "versions": {"torch": "2"}})]
    page = report.report_html("A <b> title", "Text & more.", tables, {"Overlay": b"\x89PNG1234"})
    assert page.startswith("<!DOCTYPE html>") and page.endswith("</html>")
    assert "A &lt;b&gt; title" in page and "Scores &lt;1&gt;" in page and "Dice &amp; co" in page
    assert "data:image/png;base64,iVBORzEyMzQ=" in page and "http" not in page and "<script" not in page
    assert "<td>5.123</td>" in page and page.count("<td>-</td>") == 2 and "versions.torch" in page


def test_table_text_is_aligned():
    text = report.Table("T", ("name", "x"), (("a", 1.5), ("long name", 22))).text().splitlines()
    assert text[1:] == ["name         x", "--------------", "a          1.5", "long name   22"]
