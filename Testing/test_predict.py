"""A network's answer on any grid: geometry of the lattice, oblique and flipped headers, memory, cancelling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import truths

from DeepRegistrationLib.engines import predict as engine
from DeepRegistrationLib.engines.predict import PredictionSettings, lattice, predict
from DeepRegistrationLib.errors import Cancelled, InputError
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image
from DeepRegistrationLib.networks.pyramid import SymmetricPyramid
from DeepRegistrationLib.runtime import Silent
from DeepRegistrationLib.transforms import Affine

CPU = torch.device("cpu")


def network(dim):
    """Without training it is demons on self-similarities, which is enough to ask about geometry."""
    torch.manual_seed(0)
    return SymmetricPyramid(dim).eval()


def pair(dim, seed=3):
    grid = Grid.from_parts((40, 44) if dim == 2 else (28, 32, 24), 2.0, [3.0, -5.0, 7.0][:dim])
    truth = Affine.translation([3.0, -2.0, 1.0][:dim]) @ truths.random_swirl(seed, grid, angle=0.12)
    phantom = truths.Phantom(seed, grid)
    return phantom.image(grid, truth), phantom.image(grid.pad(2)), truth


def error(transform, truth, grid):
    inner = tuple(slice(n // 4, n - n // 4) for n in grid.shape)
    points = torch.as_tensor(grid.points()[inner].reshape(1, -1, grid.dim)).float()
    return float(torch.linalg.vector_norm(transform(points) - truth(points), dim=-1).mean())


@pytest.mark.parametrize("dim", [2, 3])
def test_the_answer_goes_towards_the_truth_in_mm(dim):
    fixed, moving, truth = pair(dim)
    u, how = predict(network(dim), fixed, moving, Affine.identity(dim), PredictionSettings(), CPU, Silent())
    before = error(lambda x: x, truth, fixed.grid)
    assert error(u, truth, fixed.grid) < 0.8 * before
    assert how["network_device"] == "cpu" and len(how["lattice_spacing"]) == dim


@pytest.mark.parametrize("dim", [2, 3])
def test_moving_both_headers_together_conjugates_the_answer(dim):
    """A rotated, mirrored and shifted scanner frame must not matter."""
    fixed, moving, _ = pair(dim)
    turn = np.eye(dim + 1)
    turn[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
    turn[0, :dim] *= -1
    turn[:dim, dim] = [40.0, -13.0, 5.0][:dim]
    plain, _ = predict(network(dim), fixed, moving, Affine.identity(dim), PredictionSettings(), CPU, Silent())
    turned = [Image(i.data, i.grid.moved(turn), i.mask, i.name) for i in (fixed, moving)]
    other, _ = predict(network(dim), *turned, Affine.identity(dim), PredictionSettings(), CPU, Silent())
    points = torch.as_tensor(fixed.grid.points().reshape(1, -1, dim)).float()
    world = Affine(torch.as_tensor(turn)[None])
    assert (plain(points) - points).norm(dim=-1).max() > 1
    torch.testing.assert_close(other(world(points)), world(plain(points)), atol=0.02, rtol=0)


@pytest.mark.parametrize("start", [[6.0, -4.0, 2.0], [-3.0, 9.0, 1.0]])
def test_a_start_is_taken_into_account(start):
    fixed, moving, truth = pair(3)
    away = Affine.translation(start)
    shifted = Image(moving.data, moving.grid.moved(away.numpy()), None, "moving")
    plain, _ = predict(network(3), fixed, moving, Affine.identity(3), PredictionSettings(), CPU, Silent())
    begun, _ = predict(network(3), fixed, shifted, away, PredictionSettings(), CPU, Silent())
    points = torch.as_tensor(fixed.grid.points().reshape(1, -1, 3)).float()
    torch.testing.assert_close(begun(points), plain(points), atol=0.02, rtol=0)


@pytest.mark.parametrize("shape, spacing", [((60, 200, 180), (0.5, 0.5, 4.0)), ((5, 90, 90), (1.0, 1.0, 6.0)), ((30, 31, 33), (1.0, 1.0, 1.0)),
                                            ((200, 150), (0.1, 0.3))])
def test_the_lattice_covers_the_box_and_can_be_halved(shape, spacing):
    box = Grid.from_parts(shape, spacing)
    made, levels = lattice(box, 64)
    assert all(n % 2**levels == 0 for n in made.shape) and made.contains(box.corners()).all()
    assert made.spacing.min() >= box.spacing.min() - 1e-6 and made.voxels < 4 * 64**box.dim


def test_little_memory_halves_the_resolution_and_less_is_refused(monkeypatch):
    fixed, moving, _ = pair(3)
    whole, _ = lattice(fixed.grid, 32)
    needed = whole.voxels * engine.MIB_PER_VOXEL[3]
    monkeypatch.setattr(engine, "free_memory_mib", lambda device: 0.7 * needed)
    _, how = predict(network(3), fixed, moving, Affine.identity(3), PredictionSettings(edge=32), CPU, Silent())
    assert min(how["lattice_spacing"]) > 1.5 * whole.spacing.min() and how["expected_mib"] < 0.7 * needed + 1
    monkeypatch.setattr(engine, "free_memory_mib", lambda device: 0.0)
    with pytest.raises(MemoryError, match="MiB"):
        predict(network(3), fixed, moving, Affine.identity(3), PredictionSettings(edge=32), CPU, Silent())


def test_it_stops_between_steps():
    class AfterTwo(Silent):
        def progress(self, share, text, step=0, steps=0):
            if step == 2:
                self.cancel()

    fixed, moving, _ = pair(2)
    with pytest.raises(Cancelled):
        predict(network(2), fixed, moving, Affine.identity(2), PredictionSettings(), CPU, AfterTwo())


def test_colour_is_refused_in_a_sentence():
    fixed, moving, _ = pair(2)
    colour = [Image(i.data.expand(1, 3, *i.grid.shape), i.grid, None, i.name) for i in (fixed, moving)]
    with pytest.raises(InputError, match="one grey image"):
        predict(network(2), *colour, Affine.identity(2), PredictionSettings(), CPU, Silent())
