"""Every compiled loop gives what its plain torch counterpart gives, and steps aside where it must."""

from __future__ import annotations

import importlib.abc
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import truths
from pretended import gpu

from DeepRegistrationLib.ops import demons, native
from DeepRegistrationLib.ops.sample import index_points, sample
from DeepRegistrationLib.transforms import Affine

SHAPES = {"2D": (13, 17), "3D": (9, 11, 14), "one slice": (1, 12, 15),
          "one row": (7, 1, 9), "two slices": (2, 9, 8), "one voxel": (1, 1, 1)}
CLOSE = {"rtol": 0, "atol": 2e-5}


@pytest.fixture(scope="module", autouse=True)
def needs_numba():
    if native._load() is None:
        pytest.skip("numba is not installed or switched off: there is no compiled path to compare")


@pytest.fixture
def both(monkeypatch):
    """``both(function) -> (compiled, plain)``: the same call with the kernels and without; asserts that they were used."""
    used = []
    real = native._load()

    class Counted:
        def __getattr__(self, name):
            used.append(name)
            return getattr(real, name)

    def call(function, expected=True):
        monkeypatch.setattr(native, "_load", lambda: Counted())
        compiled = function()
        assert bool([name for name in used if name != "numba"]) == expected, "the compiled path was taken or left where it should not be"
        monkeypatch.setattr(native, "_load", lambda: None)
        return compiled, function()

    return call


def noise(shape, channels=1, seed=0, scale=1.0):
    return torch.randn(1, channels, *shape, generator=torch.Generator().manual_seed(seed)) * scale


def positions(shape, count=400, seed=1):
    """(1, count, dim) voxels, from four voxels outside to four voxels outside, the faces and the centres among them."""
    size = np.array(shape[::-1], float)
    rng = np.random.default_rng(seed)
    free = rng.uniform(-4, size + 3, (count, len(size)))
    exact = np.round(free[: count // 4] * 2) / 2
    return torch.as_tensor(np.concatenate([free, exact]), dtype=torch.float32)[None]


@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", SHAPES)
def test_linear_sampling(both, kind, channels, padding):
    data, index = noise(SHAPES[kind], channels), positions(SHAPES[kind])
    compiled, plain = both(lambda: sample(data, index, padding=padding))
    assert compiled.shape == plain.shape
    torch.testing.assert_close(compiled, plain, **CLOSE)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", SHAPES)
def test_cubic_sampling(both, kind, channels):
    data, index = noise(SHAPES[kind], channels), positions(SHAPES[kind])
    torch.testing.assert_close(*both(lambda: sample(data, index, "cubic")), **CLOSE)


@pytest.mark.parametrize("kind", ["2D", "3D"])
def test_linear_sampling_on_a_lattice_and_with_fill(both, kind):
    data = noise(SHAPES[kind], 2)
    index = positions(SHAPES[kind]).reshape(1, 5, 4, -1, len(SHAPES[kind]))
    torch.testing.assert_close(*both(lambda: sample(data, index)), **CLOSE)
    compiled, plain = both(lambda: sample(data, index, fill=-7.0))
    torch.testing.assert_close(compiled, plain, **CLOSE)
    assert (compiled == -7).any() and (compiled != -7).any()


def test_a_volume_that_is_not_contiguous(both):
    data = noise((8, 7, 6), 2).permute(0, 1, 4, 2, 3)
    torch.testing.assert_close(*both(lambda: sample(data, positions((6, 8, 7)))), **CLOSE)


def test_positions_that_are_not_finite_end_no_process():
    data, bad = noise((5, 6, 7)), torch.full((1, 4, 3), float("nan"))
    for value in (float("nan"), float("inf"), -3e38, 3e38):
        bad[...] = value
        assert sample(data, bad).shape == (1, 1, 4)
        assert sample(data, bad, padding="zeros").shape == (1, 1, 4)
        assert sample(data, bad, "cubic").shape == (1, 1, 4)
    u = torch.full((1, 3, 5, 6, 7), float("nan"))
    assert demons.compose(u, u).isnan().all()
    assert torch.equal(demons.pull(data, None, np.eye(4), u, data, None), data), "what is nowhere cannot be compared"


@pytest.mark.parametrize("reason", ["gradient of the values", "gradient of the positions", "float64", "nearest"])
def test_torch_keeps_what_the_kernels_cannot_do(both, reason):
    data, index = noise((6, 7, 8)), positions((6, 7, 8), 40)
    mode = "nearest" if reason == "nearest" else "linear"
    if reason == "float64":
        data, index = data.double(), index.double()
    if reason.startswith("gradient"):
        (data if reason.endswith("values") else index).requires_grad_(True)
    out, _ = both(lambda: sample(data, index, mode), expected=False)
    assert out.dtype == data.dtype and out.shape[0] == data.shape[0]
    if reason.startswith("gradient"):
        out.sum().backward()
        slope = data.grad if data.requires_grad else index.grad
        assert slope is not None and float(slope.abs().sum()) > 0


@pytest.mark.parametrize("images, places", [(2, 1), (1, 3), (3, 3)])
def test_batches_are_read_entry_by_entry(both, images, places):
    data = torch.cat([noise((6, 7, 8)) * (k + 1) for k in range(images)])
    index = torch.cat([positions((6, 7, 8), 40) + 0.3 * k for k in range(places)])
    torch.testing.assert_close(*both(lambda: sample(data, index)), **CLOSE)


def test_values_with_a_gradient_are_compiled_where_none_is_recorded(both):
    data = noise((6, 7, 8)).requires_grad_(True)
    with torch.no_grad():
        torch.testing.assert_close(*both(lambda: sample(data, positions((6, 7, 8), 40))), **CLOSE)


@pytest.mark.parametrize("masks", ["none", "fixed", "moving", "both"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["2D", "3D", "one slice"])
def test_pull_with_an_oblique_matrix(both, kind, channels, masks):
    shape = SHAPES[kind]
    dim = len(shape)
    moving_shape = tuple(n if n == 1 else n + 3 for n in shape)
    grid = truths.random_grid(3, dim, shape)
    moving_grid = truths.random_grid(3, dim, moving_shape, spacing=grid.spacing * 0.9)
    turn = Affine(torch.as_tensor(truths.random_motion(5, dim, shift=1.0))).numpy() if kind != "one slice" else np.eye(dim + 1)
    shift = Affine.translation(moving_grid.centre - turn[:dim, :dim] @ grid.centre - turn[:dim, dim]).numpy()
    matrix = moving_grid.inverse_affine @ shift @ turn @ grid.affine
    fixed, moving = noise(shape, channels), noise(moving_shape, channels, 2)
    u = noise(shape, dim, 3, 0.8)
    if kind == "one slice":
        u[:, 2] = 0
    fixed_mask = noise(shape, 1, 4) > -0.7 if masks in ("fixed", "both") else None
    moving_mask = noise(moving_shape, 1, 5) > -0.7 if masks in ("moving", "both") else None
    compiled, plain = both(lambda: demons.pull(moving, moving_mask, matrix, u, fixed, fixed_mask))
    # a position on the very face between two voxels of a mask may fall to either side by rounding
    differs = ((compiled - plain).abs() > 5e-5).any(1).float().mean()
    assert float(differs) < 0.005
    assert 0.05 < float((plain == fixed).float().mean()) < 0.98 or masks == "none"


def test_pull_writes_into_the_tensor_that_it_is_given(both):
    fixed, moving, u = noise((6, 7, 8)), noise((6, 7, 8), seed=1), noise((6, 7, 8), 3, 2, 0.5)
    out = torch.empty_like(fixed)
    compiled, plain = both(lambda: demons.pull(moving, None, np.eye(4), u, fixed, None, out))
    assert compiled is out
    torch.testing.assert_close(out, plain, **CLOSE)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("kind", ["2D", "3D", "one slice", "two slices", "one row"])
def test_update(both, kind, channels):
    shape = SHAPES[kind]
    fixed, warped = noise(shape, channels), noise(shape, channels, 1)
    spacing = np.array([0.7, 1.3, 2.9])[: len(shape)]
    (v, cost), (plain, plain_cost) = both(lambda: demons.update(fixed, warped, spacing, 1.4, 0.02))
    torch.testing.assert_close(v, plain, rtol=1e-4, atol=1e-5)
    assert cost == pytest.approx(float(plain_cost), rel=1e-5)


@pytest.mark.parametrize("kind", SHAPES)
def test_compose(both, kind):
    dim = len(SHAPES[kind])
    u, v = noise(SHAPES[kind], dim, 1, 2.0), noise(SHAPES[kind], dim, 2, 3.0)
    torch.testing.assert_close(*both(lambda: demons.compose(u, v)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("sigma", [0.4, 0.7, 2.5, (1.5, 0.0, 0.6), (0.0, 2.9, 1.1)])
@pytest.mark.parametrize("kind", ["2D", "3D", "one slice", "one row"])
def test_smooth(both, kind, sigma):
    shape = SHAPES[kind]
    sigma = sigma[: len(shape)] if isinstance(sigma, tuple) else sigma
    u = noise(shape, len(shape))
    kept = u.clone()
    torch.testing.assert_close(*both(lambda: demons.smooth(u, sigma)[0]), rtol=0, atol=1e-5)
    assert torch.equal(u, kept), "without a spare tensor the input is left alone"


def test_smooth_with_a_kernel_wider_than_the_image(both):
    u = noise((2, 3, 3), 3)
    torch.testing.assert_close(*both(lambda: demons.smooth(u, 2.9)[0]), rtol=0, atol=1e-5)


def test_smooth_in_place_returns_the_tensor_that_is_free():
    for sigma in (0.0, (0.8, 0.0, 0.0), (0.8, 0.8, 0.0), 0.8, 5.0):
        u, spare = noise((6, 7, 8), 3), torch.empty(1, 3, 6, 7, 8)
        expected = demons.smooth(u.clone(), sigma)[0]
        smoothed, free = demons.smooth(u, sigma, spare)
        assert smoothed.data_ptr() != free.data_ptr()
        torch.testing.assert_close(smoothed, expected)


def test_results_that_are_made_anew_are_whole_for_any_memory_order(both):
    """An empty tensor made like a permuted one is permuted too, and a compiled loop would write into a copy of it."""
    fixed = noise((8, 7, 6)).permute(0, 1, 4, 3, 2)
    u, v = noise((6, 7, 8), 3, 1), noise((8, 7, 6), 3, 2).permute(0, 1, 4, 3, 2)
    torch.testing.assert_close(*both(lambda: demons.pull(fixed, None, np.eye(4), u, fixed, None)), **CLOSE)
    torch.testing.assert_close(*both(lambda: demons.compose(u, v)), **CLOSE)


def test_threads_give_the_same_bits():
    fixed, warped = noise((20, 21, 22)), noise((20, 21, 22), seed=1)
    index = index_points(truths.random_grid(0, 3, (20, 21, 22))) + 0.3
    before = torch.get_num_threads()
    answers = []
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            v, _ = demons.update(fixed, warped, np.ones(3), 1.0, 0.01)
            answers.append((v, demons.compose(v, v), demons.smooth(v, 0.7)[0], sample(fixed, index)))
    finally:
        torch.set_num_threads(before)
    for other in answers[1:]:
        assert all(torch.equal(a, b) for a, b in zip(answers[0], other))


class Refuses(importlib.abc.MetaPathFinder):
    """An import of the kernels fails as numba fails."""

    def __init__(self, error):
        self.error = error

    def find_spec(self, name, path=None, target=None):
        if name.endswith("ops.kernels"):
            raise self.error
        return None


@pytest.mark.parametrize("error", [ImportError("numba needs another numpy"), RuntimeError("cannot cache: no locator")],
                         ids=["no numba", "no cache folder"])
def test_without_usable_kernels_torch_does_the_work(monkeypatch, error):
    import DeepRegistrationLib.ops as ops

    monkeypatch.delitem(sys.modules, "DeepRegistrationLib.ops.kernels")
    monkeypatch.delattr(ops, "kernels")
    monkeypatch.setattr(sys, "meta_path", [Refuses(error), *sys.meta_path])
    assert native._load.__wrapped__() is None


@pytest.mark.parametrize("word, expected", [("off", None), ("OFF", None), ("on", True)])
def test_switched_off_by_the_environment(monkeypatch, word, expected):
    monkeypatch.setenv("DEEPREGISTRATION_KERNELS", word)
    assert (native._load.__wrapped__() is None) == (expected is None)


def test_on_a_gpu_torch_gives_the_same():
    fixed, moving, u = noise((9, 10, 11)), noise((9, 10, 11), seed=1), noise((9, 10, 11), 3, 2, 0.7)
    here = demons.pull(moving, None, np.eye(4), u, fixed, None)
    v, _ = demons.update(fixed, here, np.ones(3), 1.0, 0.01)
    with gpu():
        there = demons.pull(moving.cuda(), None, np.eye(4), u.cuda(), fixed.cuda(), None)
        assert there.is_cuda
        torch.testing.assert_close(here, there.cpu(), rtol=0, atol=1e-4)
        torch.testing.assert_close(v, demons.update(fixed.cuda(), there, np.ones(3), 1.0, 0.01)[0].cpu(), rtol=1e-3, atol=1e-4)


def test_kept_kernels_start_without_the_tables_of_the_compiler():
    """What was compiled before is read from disk alone; whatever else is compiled afterwards works."""
    native._load().compile_all()  # they are on disk now
    code = ("import sys, numba, numpy; from DeepRegistrationLib.ops import native; native._load().compile_all(); "
            "assert 'numba.np.linalg' not in sys.modules, 'the tables were filled'; "
            "assert numba.njit(lambda x: numpy.sqrt(x).sum())(numpy.full(3, 4.0)) == 6")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
