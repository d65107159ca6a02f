"""Networks of a position: their encodings, their derivatives, the transform made of them, and the fit of two of them to one pair."""

from __future__ import annotations

from dataclasses import replace

import contract
import pytest
import torch
import truths

from DeepRegistrationLib.engines.pointwise import PointwiseSettings, fit
from DeepRegistrationLib.errors import Cancelled, ConvergenceError, InputError
from DeepRegistrationLib.networks.coordinates import CoordinateMap, CoordinateNetwork, FourierFeatures, HashGrid
from DeepRegistrationLib.ops.sample import world_points
from DeepRegistrationLib.runtime import Silent
from DeepRegistrationLib.terms import MSE, NCC
from DeepRegistrationLib.transforms import Affine, Displacement

DIMS = pytest.mark.parametrize("dim", [2, 3])
KINDS = pytest.mark.parametrize("kind", ["fourier", "hash"])
QUICK = PointwiseSettings((4.0, 2.0), (15, 15), rate=1e-2, samples=800, tied=200)


def encoding(kind, dim, generator):
    return HashGrid(dim, 3, table=6, generator=generator) if kind == "hash" else FourierFeatures(dim, 12, generator=generator)


def network(kind, dim, seed=0, trained=False):
    generator = torch.Generator().manual_seed(seed)
    made = CoordinateNetwork(dim, encoding(kind, dim, generator), 16, 2, generator)
    if trained:
        with torch.no_grad():
            for p in made.parameters():
                p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return made


@DIMS
@KINDS
def test_starts_as_the_identity_and_is_made_by_its_seed(kind, dim):
    grid = truths.random_grid(1, dim)
    untrained = CoordinateMap(network(kind, dim), grid)
    assert torch.equal(untrained(world_points(grid)), world_points(grid)) and float(untrained.field(grid).detach().abs().max()) == 0
    one, same, other = (network(kind, dim, seed, True).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[k], same[k]) for k in one) and any(not torch.equal(one[k], other[k]) for k in one)


@DIMS
@KINDS
def test_both_derivatives_are_right(kind, dim):
    """Of the displacement by the position, and of a norm of that by the parameters: what the exact consistency term needs."""
    made = network(kind, dim, trained=True).double()
    x = torch.rand(5, dim, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 1.8 - 0.9
    assert torch.autograd.gradcheck(made, x.clone().requires_grad_(True), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda p: made(p), x.clone().requires_grad_(True), fast_mode=True)
    x.requires_grad_(True)
    (slope,) = torch.autograd.grad(made(x).sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert float(slope.detach().abs().max()) > 0
    reached = [p for name, p in made.named_parameters() if not name.startswith("last.bias")]
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in reached)


@DIMS
def test_a_hash_grid_reads_what_its_lattice_holds(dim):
    """On a lattice small enough for its table a vertex has its own row, the middle of an edge the mean of two, outside the border goes on."""
    held = HashGrid(dim, 1, 2, coarsest=4, table=8)
    rows = held.values.detach().reshape(*[5] * dim, 2)
    vertex = [1, 3, 2][:dim]
    x = torch.tensor([[2 * v / 4 - 1 for v in vertex]])
    along = x.clone()
    along[:, 0] += 0.25
    value, other = rows[tuple(vertex[::-1])], rows[tuple([*vertex[:0:-1], vertex[0] + 1])]
    assert torch.allclose(held(x)[0, dim:].detach(), value, atol=1e-7)
    assert torch.allclose(held(along)[0, dim:].detach(), (value + other) / 2, atol=1e-7)
    outside = torch.cat([torch.full((1, dim), 1.0), torch.full((1, dim), 1.7)])
    assert torch.equal(*held(outside)[:, dim:].detach())


def test_fine_lattices_share_rows_and_coarse_ones_do_not():
    held = HashGrid(3, 5, table=9)
    assert held.hashed == [False, False, True, True, True]
    assert held.values.shape[0] == int(held.rows.sum()) and int(held.rows.max()) == 512
    index = held._row(torch.randint(0, 4, (200, 5, 8, 3)))
    begin, end = held.begin.reshape(1, -1, 1), (held.begin + held.rows).reshape(1, -1, 1)
    assert bool(((index >= begin) & (index < end)).all())


@DIMS
@KINDS
def test_moving_the_frame_conjugates_the_map(kind, dim):
    grid = truths.random_grid(2, dim)
    made = network(kind, dim, trained=True)
    h = Affine(torch.as_tensor(truths.random_motion(3, dim)))
    points = world_points(grid).reshape(1, -1, dim)
    one, other = CoordinateMap(made, grid), CoordinateMap(made, grid.moved(h.numpy()))
    assert float((one(points) - points).detach().norm(dim=-1).max()) > 0.1
    assert torch.allclose(other(h(points)), h(one(points)), atol=2e-3)


@DIMS
def test_a_sampled_map_is_the_map_and_keeps_its_state(dim):
    grid = truths.random_grid(4, dim)
    made = CoordinateMap(network("fourier", dim, trained=True), grid)
    held = made.sampled(grid)
    points = world_points(grid).reshape(1, -1, dim)
    assert isinstance(held, Displacement) and torch.allclose(held(points), made(points).detach(), atol=1e-3)
    copied, before = made.to("cpu"), held.displacement.clone()
    with torch.no_grad():
        made.parameters()[-1].add_(1.0)
    assert torch.equal(held.displacement, before)
    assert float((copied(points) - held(points)).norm(dim=-1).max().detach()) < 1e-3 < float((made(points) - held(points)).norm(dim=-1).min().detach())


def test_the_inverse_undoes_the_map():
    grid = truths.Grid.from_parts((30, 34))
    weak = network("fourier", 2, trained=True)
    with torch.no_grad():
        weak.last.weight.mul_(0.1)
    made = CoordinateMap(weak, grid)
    points = world_points(grid)[:, 8:-8, 8:-8].reshape(1, -1, 2)
    moved = made(points).detach()
    assert float((moved - points).norm(dim=-1).max()) > 0.3
    assert float((made.inverse()(moved) - points).norm(dim=-1).max()) < 0.1


def fitted(kind="fourier", dim=2, settings=QUICK, similarity=None, linear=None, monitor=None, seed=0, change=None):
    truth = contract.smallest_pair(dim)
    pair = change(truth.problem) if change else truth.problem
    maps = tuple(CoordinateMap(network(kind, dim, k), image.grid) for k, image in enumerate((pair.fixed, pair.moving)))
    found, history = fit(pair, linear or Affine.identity(dim), maps, similarity or NCC(), settings, monitor or Silent(), seed=seed)
    return truth, found, history


@pytest.mark.parametrize("kind, dim", [("fourier", 2), ("hash", 2), ("fourier", 3)])
def test_a_known_warp_comes_back_with_its_reverse(kind, dim):
    truth, (there, back), history = fitted(kind, dim)
    assert truth.error(there) < 0.4 * truth.error(lambda x: x)
    grid = truth.problem.fixed.grid
    inner = tuple(slice(n // 5, n - n // 5) for n in grid.shape)
    points = torch.as_tensor(grid.points()[inner].reshape(1, -1, dim)).float()
    assert float((back(there(points)) - points).norm(dim=-1).mean()) < 1.0
    assert float(there.jacobian_determinant(grid).min()) > 0
    assert len(history) == 30 and history[-1]["cost"] < 0.3 * history[0]["cost"]


def test_the_tie_is_what_keeps_the_map_regular():
    untied, tied = (fitted(settings=replace(QUICK, weight=w, rate=3e-2))[1][0] for w in (0.0, 0.2))
    grid = contract.smallest_pair(2).problem.fixed.grid
    spread = [float(t.log_jacobian(grid).std()) for t in (untied, tied)]
    assert spread[1] < 0.7 * spread[0]


def test_the_linear_start_is_folded_into_the_header():
    h = Affine(torch.as_tensor(truths.random_motion(4, 2)))
    plain = fitted(similarity=MSE())
    away = fitted(similarity=MSE(), linear=h, change=lambda p: replace(p, moving=replace(p.moving, grid=p.moving.grid.moved(h.numpy()))))
    assert away[2][0]["cost"] == pytest.approx(plain[2][0]["cost"], rel=1e-3)
    assert plain[0].error(h.inverse() @ h @ away[1][0]) < 0.4 * plain[0].error(lambda x: x)


def test_masked_junk_has_no_influence():
    def junk(seed):
        def change(pair):
            data, block = pair.moving.data.clone(), (..., slice(8, 16), slice(9, 18))
            data[block] = 50 * torch.rand(data[block].shape, generator=torch.Generator().manual_seed(seed))
            inner = torch.ones(1, 1, *pair.moving.grid.shape, dtype=torch.bool)
            inner[..., 6:18, 7:20] = False
            return replace(pair, moving=replace(pair.moving, data=data, mask=inner))
        return change

    one, other = (fitted(settings=replace(QUICK, spacings=(1.0,), iterations=(5,)), change=junk(seed)) for seed in (0, 1))
    assert [h["cost"] for h in one[2]] == pytest.approx([h["cost"] for h in other[2]], rel=1e-4)


class Stops(Silent):
    """Wants previews and cancels at the given log entry."""

    wants_preview = True

    def __init__(self, at):
        super().__init__()
        self.left, self.begun_after = at, 0

    def log(self, **figures):
        self.left -= 1
        if self.left == 0:
            self.cancel()

    def progress(self, share, text, step=0, steps=0):
        self.begun_after += self.cancelled


@pytest.mark.parametrize("at", [1, 4, 6])
def test_cancelled_at_any_step_with_a_map_that_stays(at):
    monitor = Stops(at)
    with pytest.raises(Cancelled) as stopped:
        fitted(settings=replace(QUICK, iterations=(3, 3)), monitor=monitor)
    best = stopped.value.best_so_far
    points = world_points(contract.smallest_pair(2).problem.fixed.grid).reshape(1, -1, 2)
    assert monitor.begun_after == 0 and not any(p.requires_grad for p in best.parameters())
    assert torch.isfinite(best(points)).all() and float((best(points) - points).abs().max()) > 0


def test_the_same_bits_twice_and_others_with_another_seed():
    settings = replace(QUICK, iterations=(3, 3))
    one, same, other = (fitted("hash", settings=settings, seed=s)[1][0].displacement for s in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize("settings, word", [(replace(QUICK, iterations=(3,)), "one count per level"), (replace(QUICK, iterations=(0, 0)), "no step at all")])
def test_what_does_not_fit_together_is_said(settings, word):
    with pytest.raises(InputError, match=word):
        fitted(settings=settings)


def test_a_batch_and_a_cost_that_is_not_finite_are_refused():
    def twice(pair):
        return replace(pair, **{k: replace(getattr(pair, k), data=getattr(pair, k).data.repeat(2, 1, 1, 1)) for k in ("fixed", "moving")})

    with pytest.raises(InputError, match="batch of 2"):
        fitted(change=twice)
    with pytest.raises(ConvergenceError, match="smaller rate"):
        fitted(settings=replace(QUICK, weight=float("nan")))
