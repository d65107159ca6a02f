"""Terms of regularity, labels, points and consistency, and the objective: closed values, derivatives, declared invariances."""

import numpy as np
import pytest
import torch
from truths import grid_kinds, random_affine, random_grid, random_motion, random_swirl
from truths_terms import SMALL, phantom, values

from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image, Labels
from DeepRegistrationLib.ops.sample import world_points
from DeepRegistrationLib.points import Points
from DeepRegistrationLib.terms import (LNCC, REGULARITIES, SIMILARITIES, Alignment, Bending, Curvature, Diffusion, Folding,
                                       GradientInverseConsistency, InverseConsistency, LabelMSE, LandmarkDistance, LogJacobian, SoftDice)
from DeepRegistrationLib.transforms import Affine, Composite, Displacement, Identity, Transform


class Conjugated(Transform):
    """M o inner o M^-1."""

    def __init__(self, inner, matrix):
        self.inner, self.dim = inner, inner.dim
        self.to_new, self.to_old = Affine(torch.as_tensor(matrix)), Affine(torch.as_tensor(np.linalg.inv(matrix)))

    def __call__(self, points):
        return self.to_new(self.inner(self.to_old(points)))


# All terms

@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dim", [2, 3])
def test_moving_both_headers_keeps_every_cost(dim, turned):
    made, grid = phantom(dim)
    swirl = Composite((random_swirl(7, grid), random_affine(8, dim, grid.centre, 0.03, 1.0)))
    back = Composite((random_affine(9, dim, grid.centre, 0.02, 1.0), random_swirl(10, grid)))
    matrix = random_motion(11, dim, flipped=turned)

    def costs(motion):
        image = made.image(grid, dtype=torch.float64)
        where = Affine(torch.as_tensor(motion))
        corners = torch.as_tensor(grid.points()[::7].reshape(1, -1, dim)[:, ::50])
        fixed, moving = (Image(x.data, grid.moved(motion), name="phantom") for x in (image, made.image(grid, swirl, torch.float64)))
        there, here = Conjugated(swirl, motion), Conjugated(back, motion)
        points = [Points(where(p)) for p in (corners, corners + 1)]
        one = Alignment(fixed, moving, there, reverse=Alignment(moving, fixed, here), fixed_points=points[0], moving_points=points[1])
        terms = [cls() for cls in (*SIMILARITIES.values(), *REGULARITIES.values())]
        terms += [Folding(1.0), InverseConsistency(), GradientInverseConsistency(2000), LandmarkDistance()]
        return torch.cat([term(one) for term in terms])

    assert torch.allclose(costs(np.eye(dim + 1)), costs(matrix), rtol=1e-6, atol=1e-9)


# Regularity

@pytest.mark.parametrize("name", [*REGULARITIES, "folding-1"])
@pytest.mark.parametrize("dim", [2, 3])
def test_derivative_of_regularisers(dim, name):
    grid = random_grid(12, dim, SMALL[dim])
    term = Folding(1.0) if name == "folding-1" else REGULARITIES[name]()
    field = ((values(13, 2, dim, *SMALL[dim]) - 0.5) * float(grid.spacing.min())).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda u: term.penalty(u, grid), field, fast_mode=True)
    alone = term.penalty(field[1:], grid)
    assert torch.allclose(alone, term.penalty(field, grid)[1:], atol=1e-14)


def sheared(dim):
    grid = random_grid(14, dim, SMALL[dim])
    skew = np.eye(dim)
    skew[0, 1] = 0.5
    affine = grid.affine.copy()
    affine[:dim, :dim] = affine[:dim, :dim] @ skew
    return Grid(grid.shape, affine)


@pytest.mark.parametrize("kind", [*grid_kinds(3), "sheared"])
@pytest.mark.parametrize("dim", [2, 3])
def test_closed_values_on_every_lattice(dim, kind):
    """u = M p + quadratic in p: derivatives, Hessian and Laplacian are known numbers."""
    grid = sheared(dim) if kind == "sheared" else grid_kinds(dim)[kind]
    rng = np.random.default_rng(15)
    matrix, quadratic = 0.2 * rng.normal(size=(dim, dim)), 0.05 * rng.normal(size=(dim, dim, dim))
    quadratic = quadratic + quadratic.transpose(0, 2, 1)
    p = world_points(grid, torch.float64) - torch.as_tensor(grid.centre)
    linear = (p @ torch.as_tensor(matrix).T).movedim(-1, 1)
    curved = linear + 0.5 * torch.einsum("ijk,b...j,b...k->bi...", torch.as_tensor(quadratic), p, p)
    assert float(Diffusion().penalty(linear, grid)) == pytest.approx((matrix**2).sum(), rel=1e-9)
    assert float(Diffusion().penalty(torch.ones_like(linear), grid)) == 0
    assert float(LogJacobian().penalty(linear, grid)) == pytest.approx(np.log(np.linalg.det(np.eye(dim) + matrix)) ** 2, rel=1e-6)
    for term in (Bending(), Curvature()):
        assert float(term.penalty(linear, grid)) < 1e-18
    assert float(Bending().penalty(curved, grid)) == pytest.approx((quadratic**2).sum(), rel=1e-9)
    assert float(Curvature().penalty(curved, grid)) == pytest.approx((np.einsum("ijj->i", quadratic) ** 2).sum(), rel=1e-9)


@pytest.mark.parametrize("dim", [2, 3])
def test_folds_and_volume(dim):
    grid = random_grid(16, dim, SMALL[dim])
    p = world_points(grid, torch.float64).movedim(-1, 1)
    mirrored = torch.zeros_like(p)
    mirrored[:, 0] = -2 * p[:, 0]
    assert float(Folding().penalty(mirrored, grid)) == pytest.approx(1, rel=1e-6)
    assert float(Folding().penalty(0.5 * p, grid)) == 0
    assert float(LogJacobian().penalty(0.5 * p, grid)) == pytest.approx((dim * np.log(1.5)) ** 2, rel=1e-6)
    assert float(LogJacobian().penalty(p / 1.5 - p, grid)) == pytest.approx((dim * np.log(1.5)) ** 2, rel=1e-6)
    mirrored.requires_grad_(True)
    (slope,) = torch.autograd.grad(LogJacobian().penalty(mirrored, grid).sum(), mirrored)
    assert float(slope.abs().max()) > 0 and bool(torch.isfinite(slope).all())


@pytest.mark.parametrize("name", REGULARITIES)
def test_regularity_of_a_field_constant_in_z(name):
    grid = random_grid(17, 2, (9, 8), spacing=(1.1, 0.9), oblique=False)
    flat = 0.3 * (values(18, 1, 2, 9, 8) - 0.5)
    for depth in (1, 4):
        tall = torch.cat([flat, torch.zeros_like(flat[:, :1])], 1)[:, :, None].expand(-1, -1, depth, -1, -1)
        lattice = Grid.from_parts((depth, 9, 8), (1.1, 0.9, 2.5))
        found = REGULARITIES[name]().penalty(tall, lattice)
        assert torch.allclose(found, REGULARITIES[name]().penalty(flat, grid), rtol=1e-9)


def test_regularity_sees_a_chessboard():
    grid = Grid.from_parts((8, 8))
    board = ((-1.0) ** (torch.arange(8)[:, None] + torch.arange(8)))[None, None].expand(1, 2, 8, 8)
    for name in ("diffusion", "bending", "curvature"):
        assert float(REGULARITIES[name]().penalty(board, grid)) > 1


# Labels, points, consistency

@pytest.mark.parametrize("term", [SoftDice(), LabelMSE(), SoftDice(labels=(1, 2))])
@pytest.mark.parametrize("dim", [2, 3])
def test_label_costs(dim, term):
    made, grid = phantom(dim)
    fixed, labels = made.image(grid, dtype=torch.float64), made.label_map(grid)
    alignments = [Alignment(fixed, made.image(grid), Affine.translation(np.full(dim, s)), fixed_labels=labels, moving_labels=labels)
                  for s in (0.0, 1.5, 4.0)]
    costs = [float(term(a)) for a in alignments]
    assert costs[0] == pytest.approx(0, abs=1e-6) and costs[0] < costs[1] < costs[2] <= 1
    other = made.label_map(grid.pad(2))
    moved = Alignment(fixed, made.image(grid), Identity(dim), fixed_labels=other, moving_labels=other)
    assert float(term(moved)) == pytest.approx(0, abs=1e-4)
    with pytest.raises(InputError, match="without labels"):
        term(Alignment(fixed, fixed, Identity(dim)))


def test_soft_dice_is_dice_for_crisp_maps():
    fixed, warped = (values(19, 2, 3, 8, 9) > 0.5).double(), (values(20, 2, 3, 8, 9) > 0.6).double()
    dice = 2 * (fixed * warped).sum((2, 3)) / (fixed + warped).sum((2, 3))
    assert torch.allclose(SoftDice().compare(fixed, warped), 1 - dice.mean(1))
    mask = values(21, 2, 1, 8, 9) > 0.3
    for term in (SoftDice(), LabelMSE()):
        soft = values(22, 2, 3, 8, 9).requires_grad_(True)
        assert torch.autograd.gradcheck(lambda x: term.compare(fixed, x, mask), soft, fast_mode=True)
        assert float((term.gradient(fixed, soft, mask)[1] * ~mask).abs().max()) == 0


@pytest.mark.parametrize("dim", [2, 3])
def test_label_costs_differentiate_to_the_transform(dim):
    made, grid = phantom(dim)
    labels = made.label_map(grid)
    shift = torch.full((1, dim), 1.0, dtype=torch.float64, requires_grad=True)
    fixed = made.image(grid, dtype=torch.float64)
    alignment = Alignment(fixed, made.image(grid), lambda p: p + shift, fixed_labels=labels, moving_labels=labels)
    (slope,) = torch.autograd.grad(SoftDice()(alignment).sum(), shift)
    assert float(slope.min()) > 0


@pytest.mark.parametrize("dim", [2, 3])
def test_landmark_distance(dim):
    grid = random_grid(23, dim)
    image = Image(torch.rand(1, 1, *grid.shape), grid)
    fixed = Points(values(24, 1, 6, dim) * 50, weights=torch.tensor([[1.0, 1, 1, 0, 0, 2]]))
    offset = torch.tensor([3.0, 4.0, 12.0], dtype=torch.float64)[:dim]
    moving = Points(fixed.positions - offset)
    at = Alignment(image, image, Identity(dim), fixed_points=fixed, moving_points=moving)
    length = float(offset.norm())
    assert float(LandmarkDistance()(at)) == pytest.approx(length**2) and float(LandmarkDistance(squared=False)(at)) == pytest.approx(length)
    moved = fixed.positions.clone()
    moved[:, 3:5] += 100
    at = Alignment(image, image, Identity(dim), fixed_points=fixed, moving_points=Points(moved))
    assert float(LandmarkDistance()(at)) == 0
    with pytest.raises(InputError, match="without points"):
        LandmarkDistance()(Alignment(image, image, Identity(dim)))
    with pytest.raises(InputError, match="one to one"):
        LandmarkDistance()(Alignment(image, image, Identity(dim), fixed_points=fixed, moving_points=Points(moved[:, :3])))


def both_ways(grid, forward, reverse):
    image = Image(values(25, 1, 1, *grid.shape), grid)
    return Alignment(image, image, forward, reverse=Alignment(image, image, reverse))


@pytest.mark.parametrize("dim", [2, 3])
def test_inverse_consistency(dim):
    grid = random_grid(26, dim, (14, 15, 16)[-dim:], spacing=2.0)
    swirl = random_swirl(27, grid)
    exact = both_ways(grid, swirl, swirl.inverse())
    for term in (InverseConsistency(), GradientInverseConsistency(500)):
        assert float(term(exact)) < 1e-12
    shift = np.array([1.0, 2.0, 2.0])[:dim]
    shifted = both_ways(grid, swirl, Composite((Affine.translation(shift), swirl.inverse())))
    assert float(InverseConsistency()(shifted)) == pytest.approx((shift**2).sum(), rel=1e-6)
    assert float(GradientInverseConsistency(500)(shifted)) < 1e-12
    linear = random_affine(28, dim, grid.centre, 0.1, 0.0)
    grown = both_ways(grid, Identity(dim), linear)
    residual = linear.numpy()[:dim, :dim] - np.eye(dim)
    assert float(GradientInverseConsistency(500)(grown)) == pytest.approx((residual**2).sum(), rel=1e-6)
    for term in (InverseConsistency(), GradientInverseConsistency()):
        with pytest.raises(InputError, match="reverse map is missing"):
            term(Alignment(exact.fixed, exact.moving, swirl))


@pytest.mark.parametrize("term", [InverseConsistency(), GradientInverseConsistency(200)])
@pytest.mark.parametrize("dim", [2, 3])
def test_consistency_differentiates_to_both_maps(dim, term):
    grid = random_grid(29, dim, (5, 6, 4)[-dim:])
    fields = [((values(k, 1, dim, *grid.shape) - 0.5) * 0.4).requires_grad_(True) for k in (30, 31)]

    def cost(u, v):
        return term(both_ways(grid, Displacement(u, grid), Displacement(v, grid)))

    assert torch.autograd.gradcheck(cost, fields, fast_mode=True)


def test_points_of_the_gradient_are_drawn_as_asked():
    grid = random_grid(32, 3)
    at = both_ways(grid, random_swirl(33, grid), Identity(3))
    fixed_points = [float(GradientInverseConsistency(50, seed=s)(at)) for s in (0, 0, 1)]
    assert fixed_points[0] == fixed_points[1] != fixed_points[2]
    stream = GradientInverseConsistency(50, generator=torch.Generator().manual_seed(0))
    assert float(stream(at)) != float(stream(at))


def tied(dim):
    """A smooth map with a formula, its reverse up to another smooth map, and their alignment: the derivative of R(T(p)) - p is not 0."""
    grid = random_grid(36, dim, (14, 15, 16)[-dim:], spacing=2.0, reach=20.0)
    forward = random_swirl(37, grid, 0.4)
    reverse = Composite((random_affine(38, dim, grid.centre, 0.05, 0.3), random_swirl(39, grid, 0.2), forward.inverse()))
    return grid, forward, reverse


@pytest.mark.parametrize("dim", [2, 3])
def test_the_exact_derivative_is_the_difference_of_smooth_maps(dim):
    grid, forward, reverse = tied(dim)
    at = both_ways(grid, forward, reverse)
    exact, short, long = (GradientInverseConsistency(400, step, exact=exact)(at).detach() for step, exact in ((0.1, True), (1e-5, False), (0.3, False)))
    assert float(exact) > 1e-3 and float(exact) == pytest.approx(float(short), rel=1e-4)
    assert abs(float(long) / float(exact) - 1) > 1e-4
    with torch.no_grad():
        assert float(GradientInverseConsistency(400, exact=True)(at)) == pytest.approx(float(exact))
    probes = [float(GradientInverseConsistency(4000, seed=s, exact=True, probes=4)(at).detach()) for s in range(4)]
    whole = [float(GradientInverseConsistency(4000, seed=s, exact=True)(at).detach()) for s in range(4)]
    assert probes[0] != whole[0] and np.mean(probes) == pytest.approx(np.mean(whole), rel=0.03)


class Waves:
    """Batch of maps x -> x + a sin(x + b), a and b (B, 1, dim) to be learned."""

    def __init__(self, amplitude, phase):
        self.amplitude, self.phase = amplitude, phase

    def __call__(self, points):
        return points + self.amplitude * (points + self.phase).sin()


@pytest.mark.parametrize("exact, probes", [(False, 0), (True, 0), (True, 2)])
def test_gradients_of_a_batch_are_those_of_its_members(exact, probes):
    """A batch of maps costs what each costs alone (at the same points), and the cost can be differentiated for all of them."""
    grid, term = random_grid(40, 2, (12, 13), spacing=1.0), GradientInverseConsistency(60, exact=exact, probes=probes)
    leaves = [(0.4 * (values(k, 2, 1, 2) - 0.5)).requires_grad_(True) for k in range(4)]
    together = term(both_ways(grid, Waves(*leaves[:2]), Waves(*leaves[2:])))
    slopes = torch.autograd.grad(together.sum(), leaves)
    assert together.shape == (2,)
    for k in range(1 if probes else 2):
        own = [leaf.detach()[k : k + 1].requires_grad_(True) for leaf in leaves]
        alone = term(both_ways(grid, Waves(*own[:2]), Waves(*own[2:])))
        if not probes:
            assert float(alone) == pytest.approx(float(together[k]), rel=1e-9)
            for slope, whole in zip(torch.autograd.grad(alone.sum(), own), slopes):
                assert torch.allclose(slope, whole[k : k + 1], rtol=1e-7, atol=1e-12) and float(slope.abs().max()) > 0
    assert torch.autograd.gradcheck(lambda *a: term(both_ways(grid, Waves(*a[:2]), Waves(*a[2:]))), leaves, fast_mode=True)


@pytest.mark.parametrize("term", [InverseConsistency(), GradientInverseConsistency(200)])
@pytest.mark.parametrize("dim", [2, 3])
def test_consistency_of_a_batch_of_fields(dim, term):
    """Fields as networks make them: each pair of a batch costs what it costs alone."""
    grid = random_grid(41, dim, SMALL[dim])
    fields = [(values(k, 3, dim, *grid.shape) - 0.5) * 0.4 for k in (42, 43)]
    image = Image(values(44, 3, 1, *grid.shape), grid)

    def cost(u, v, image):
        return term(Alignment(image, image, Displacement(u, grid), reverse=Alignment(image, image, Displacement(v, grid))))

    together = cost(*fields, image)
    alone = [cost(*(f[k : k + 1] for f in fields), Image(image.data[k : k + 1], grid)) for k in range(3)]
    assert torch.allclose(together, torch.cat(alone), rtol=1e-9) and len(set(together.tolist())) == 3


def test_the_exact_derivative_of_a_lattice_is_refused():
    grid = random_grid(45, 2)
    lattice = Displacement(torch.zeros(1, 2, *grid.shape, dtype=torch.float64), grid)
    for maps in ((lattice, Identity(2)), (Identity(2), Composite((Affine.translation([1.0, 0.0]), lattice)))):
        with pytest.raises(InputError, match="Displacement is read from a lattice"):
            GradientInverseConsistency(10, exact=True)(both_ways(grid, *maps))


# The objective and the lists

def test_objective_and_short_names():
    made, grid = phantom(2)
    image = made.image(grid, dtype=torch.float64)
    at = Alignment(image, image, random_swirl(34, grid))
    objective = LNCC() + 0.1 * Bending() + 2.0 * Diffusion()
    parts = objective.breakdown(at)
    assert float(objective(at)) == pytest.approx(float(parts["LNCC"] + 0.1 * parts["Bending"] + 2 * parts["Diffusion"]), rel=1e-12)
    others = (SoftDice, LabelMSE, LandmarkDistance, InverseConsistency, GradientInverseConsistency)
    for cls in (*SIMILARITIES.values(), *REGULARITIES.values(), *others):
        assert cls.reference.startswith("@") and cls.reference.count("{") == cls.reference.count("}")
        assert cls() == cls()


def test_labels_without_structures_are_refused():
    grid = Grid.from_parts((4, 4))
    empty = Labels(torch.zeros(1, 1, 4, 4, dtype=torch.long), grid)
    image = Image(torch.rand(1, 1, 4, 4), grid)
    with pytest.raises(InputError, match="background only"):
        SoftDice()(Alignment(image, image, Identity(2), fixed_labels=empty, moving_labels=empty))
