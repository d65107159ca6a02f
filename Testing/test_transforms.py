"""The algebra of transforms: identity, composition, inverse, Jacobian, fields, caching, conjugation by headers."""

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from truths import Logistic, grid_kinds, random_affine, random_diffeomorphism, random_grid, random_motion, random_swirl

from DeepRegistrationLib.errors import ConvergenceError, InputError
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.ops.sample import world_points
from DeepRegistrationLib.transforms import Affine, BSpline, Composite, Displacement, Identity, Velocity
from DeepRegistrationLib.transforms.base import linear_part, require_finite
from DeepRegistrationLib.transforms.linear import KINDS, parameter_count

dims = pytest.mark.parametrize("dim", [2, 3])
NAMES = ("identity", "affine", "displacement", "velocity", "bspline", "composite")


def points_in(grid, count=40, margin=2.0, seed=0, dtype=torch.float64):
    index = np.random.default_rng(seed).uniform(margin, np.array(grid.size) - 1 - margin, (1, count, grid.dim))
    return torch.as_tensor(grid.index_to_world(index), dtype=dtype)


def make(name, grid, seed=0, dtype=torch.float64):
    """A smooth transform of every class, 0 near the border of ``grid`` where it is dense."""
    if name == "identity":
        return Identity(grid.dim)
    if name == "affine":
        return random_affine(seed, grid.dim, grid.centre, 0.05, 1.0)
    if name == "displacement":
        return Displacement(random_diffeomorphism(seed, grid, 0.3, 0.3).field(grid, dtype), grid)
    if name == "velocity":
        return Velocity(random_swirl(seed, grid, 0.4, 0.15).velocity(grid).to(dtype), grid)
    if name == "bspline":
        start = BSpline.zeros(grid, 4 * grid.spacing.min(), dtype=dtype)
        control = torch.zeros_like(start.control)
        inner = tuple(slice(3, n - 3) for n in control.shape[2:])
        noise = torch.rand(control.shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) - 0.5
        control[(..., *inner)] = noise[(..., *inner)] * float(grid.spacing.min())
        return BSpline(control, grid, start.step)
    return make("affine", grid, seed) @ make("displacement", grid, seed, dtype)


def lattice(dim, seed=3):
    return random_grid(seed, dim, (28, 30, 32)[-dim:], spacing=(1.0, 1.3, 1.6)[:dim])


@dims
@pytest.mark.parametrize("name", NAMES)
def test_the_inverse_undoes_the_map_within_a_fraction_of_a_voxel(dim, name):
    grid = lattice(dim)
    transform = make(name, grid)
    inverse, points = transform.inverse(), points_in(grid)
    for error in (inverse(transform(points)) - points, transform(inverse(points)) - points):
        assert float(error.norm(dim=-1).max()) < 0.12
    assert 0 <= inverse.residual < 0.05
    assert float((inverse.inverse()(points) - transform(points)).norm(dim=-1).max()) < 0.15


@dims
@pytest.mark.parametrize("name", NAMES)
def test_the_identity_is_neutral_and_composition_is_application(dim, name):
    grid = lattice(dim)
    t, i, points = make(name, grid), Identity(dim), points_in(grid)
    assert torch.equal((t @ i)(points), t(points)) and torch.equal((i @ t)(points), t(points))
    other = make("affine", grid, 5)
    assert torch.allclose((t @ other)(points), t(other(points)), atol=1e-9)
    assert torch.allclose((other @ t)(points), other(t(points)), atol=1e-9)


@dims
def test_composition_is_associative_and_flattened(dim):
    grid = lattice(dim)
    a, b, c = (make(name, grid, k) for k, name in enumerate(("displacement", "affine", "velocity")))
    left, right, points = (a @ b) @ c, a @ (b @ c), points_in(grid)
    assert torch.allclose(left(points), right(points), atol=1e-12)
    assert [type(t) for t in left.items] == [type(t) for t in right.items] == [Displacement, Affine, Velocity]
    merged = (b @ b) @ (b @ (Identity(dim) @ (b @ a)))
    assert [type(t) for t in merged.items] == [Affine, Displacement]
    assert np.allclose(merged.items[0].numpy(), np.linalg.matrix_power(b.numpy(), 4))
    assert isinstance(Identity(dim) @ Identity(dim), Identity) and isinstance(b @ Identity(dim), Affine)
    backwards = (a @ b @ c).inverse()
    assert [type(t) for t in backwards.items] == [Velocity, Affine, Displacement]
    with pytest.raises(ValueError, match="dimensions"):
        Identity(2) @ Identity(3) @ Affine.identity(2)
    with pytest.raises(ValueError, match="dimensions"):
        Affine.identity(3) @ Affine.identity(2)


@dims
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", grid_kinds(3))
def test_a_field_is_the_map_at_every_voxel(dim, name, kind):
    grid = grid_kinds(dim)[kind]
    transform = make(name, grid)
    for lattice_of_field in (grid, grid.resample(grid.spacing * 1.7), grid.pad(3).crop((1,) * dim, grid.size)):
        field = transform.field(lattice_of_field, torch.float64)
        points = world_points(lattice_of_field, torch.float64).reshape(1, -1, dim)
        moved = (transform(points) - points).reshape(1, *lattice_of_field.shape, dim).movedim(-1, 1)
        tolerance = 0.05 * float(grid.spacing.max()) if name == "bspline" and lattice_of_field is not grid else 1e-8
        assert torch.allclose(field, moved, atol=tolerance)
        assert torch.allclose(transform.field(lattice_of_field), field.float(), atol=5e-4)
        assert transform.field(lattice_of_field).dtype == torch.float32


@dims
@pytest.mark.parametrize("name", NAMES)
def test_single_and_double_precision_agree(dim, name):
    grid = lattice(dim)
    transform, points = make(name, grid), points_in(grid)
    single = transform.to(dtype=torch.float32)
    moved = single(points.float())
    assert moved.dtype == torch.float32 and torch.allclose(moved.double(), transform(points), atol=2e-3)
    assert all(p.dtype == torch.float32 for p in single.parameters())
    assert len(transform.parameters()) == {"identity": 0, "composite": 2}.get(name, 1)
    assert transform.device == torch.device("cpu")
    require_finite(transform)


@dims
@pytest.mark.parametrize("name", NAMES)
def test_jacobians_in_either_precision(dim, name):
    grid = lattice(dim)
    truth = {"affine": make("affine", grid), "identity": Identity(dim)}.get(name)
    transform = make(name, grid)
    points = points_in(grid, 30, margin=4.0)
    j = transform.jacobian(points)
    assert j.shape == (1, 30, dim, dim)
    columns = [(transform(points + h) - transform(points - h)) / 2e-3 for h in 1e-3 * torch.eye(dim, dtype=torch.float64)]
    assert float((j - torch.stack(columns, -1)).abs().median()) < 1e-6
    single = transform.jacobian(points.float())
    assert single.dtype == torch.float32 and float((single - j).abs().quantile(0.9)) < 3e-4
    if truth is not None:
        expected = torch.eye(dim, dtype=torch.float64) if name == "identity" else truth.matrix[0, :-1, :-1]
        assert torch.allclose(j, expected.expand_as(j), atol=1e-8)


@dims
def test_log_jacobians_of_known_maps(dim):
    grid = lattice(dim).resample(0.8)
    affine = random_affine(2, dim, grid.centre)
    expected = np.log(np.linalg.det(affine.numpy()[:-1, :-1]))
    assert torch.allclose(affine.log_jacobian(grid), torch.tensor(expected, dtype=torch.float32), atol=2e-3)
    flow = Logistic(grid, 0.6)
    exact = torch.linalg.det(flow.jacobian_on(grid).movedim((1, 2), (-2, -1))).log()
    inner = (0, 0) + (slice(2, -2),) * dim
    assert float((Velocity(flow.velocity(grid), grid).log_jacobian(grid)[inner] - exact[inner[1:]]).abs().max()) < 0.05
    assert torch.equal(Identity(dim).log_jacobian(grid), torch.zeros(1, 1, *grid.shape))


@dims
@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("name", ["displacement", "velocity", "bspline", "composite"])
def test_moving_the_headers_conjugates(dim, flipped, name):
    grid = lattice(dim)
    motion = random_motion(4, dim, flipped=flipped)
    g = Affine(torch.as_tensor(motion))
    r = g.matrix[0, :-1, :-1]
    turn = lambda field: torch.einsum("ij,bj...->bi...", r, field)  # noqa: E731
    plain, moved_grid = make(name, grid), grid.moved(motion)
    if name == "composite":
        moved = g @ plain.items[0] @ g.inverse() @ Displacement(turn(plain.items[1].displacement), moved_grid)
    elif name == "bspline":
        moved = BSpline(turn(plain.control), moved_grid, plain.step)
    else:
        moved = type(plain)(turn(plain.parameters()[0]), moved_grid)
    points = points_in(grid)
    assert torch.allclose(moved(g(points)), g(plain(points)), atol=1e-8)
    assert torch.allclose(moved.inverse()(g(points)), g(plain.inverse()(points)), atol=0.03)


@dims
def test_linear_part(dim):
    grid = lattice(dim)
    a, b, u = random_affine(1, dim), random_affine(2, dim), make("displacement", grid)
    assert np.allclose(linear_part(a @ b @ u).numpy(), a.numpy() @ b.numpy())
    assert np.allclose(linear_part(Composite((a, Identity(dim), b, u, a))).numpy(), a.numpy() @ b.numpy())
    for nothing in (u, u @ a, Identity(dim)):
        assert np.allclose(linear_part(nothing).numpy(), np.eye(dim + 1))
    rest = linear_part(a @ u @ b).inverse() @ (a @ u @ b)
    points = points_in(grid)
    assert torch.allclose(rest(points), (u @ b)(points), atol=1e-9)


@dims
@pytest.mark.parametrize("kind", KINDS)
def test_linear_maps_from_parameters(dim, kind):
    count = parameter_count(kind, dim)
    centre = torch.as_tensor(np.array([10.0, -20.0, 30.0])[:dim])
    values = 0.3 * torch.randn(2, count, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    affine = Affine.from_parameters(kind, values, centre)
    linear = affine.matrix[:, :-1, :-1]
    assert torch.allclose(affine(centre.expand(1, 1, dim)), (centre + values[:, None, :dim]))
    gram = linear @ linear.transpose(1, 2)
    if kind in ("translation", "rigid"):
        assert torch.allclose(gram, torch.eye(dim, dtype=torch.float64).expand_as(gram), atol=1e-12)
    if kind == "similarity":
        assert torch.allclose(gram, torch.diag_embed((2 * values[:, -1:]).exp().expand(-1, dim)), atol=1e-12)
    assert (torch.linalg.det(linear) > 0).all()
    zero = Affine.from_parameters(kind, torch.zeros(1, count, dtype=torch.float64), centre)
    assert np.allclose(zero.numpy(), np.eye(dim + 1))
    points = torch.randn(2, 5, dim, dtype=torch.float64)
    assert torch.allclose(affine.inverse()(affine(points)), points, atol=1e-9)
    leaf = values.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda v: Affine.from_parameters(kind, v, centre)(points), (leaf,))
    for bad in (values[:, :-1], torch.cat([values, values], 1)):
        with pytest.raises(ValueError, match="parameter_count"):
            Affine.from_parameters(kind, bad, centre)
    with pytest.raises(ValueError, match="shear"):
        Affine.from_parameters("shear", values, centre)


def test_rotations_turn_counter_clockwise():
    quarter = torch.tensor([[0.0, 0, 0, 0, 0, np.pi / 2]], dtype=torch.float64)
    for dim, values in ((3, quarter), (2, quarter[:, 3:])):
        x, y = torch.eye(dim, dtype=torch.float64)[:2]
        turned = Affine.from_parameters("rigid", values, torch.zeros(dim, dtype=torch.float64))(x[None, None])
        assert torch.allclose(turned, y[None, None], atol=1e-12)


@dims
def test_batches_of_transforms_on_one_set_of_points(dim):
    grid = lattice(dim)
    affines = Affine(torch.cat([random_affine(k, dim, grid.centre, 0.05, 1.0).matrix for k in range(3)]))
    points = points_in(grid, 7)
    u = make("displacement", grid)
    for transform in (affines, u @ affines, affines @ u):
        moved, field = transform(points), transform.field(grid, torch.float64)
        assert moved.shape == (3, 7, dim) and field.shape == (3, dim, *grid.shape)
        for b in range(3):
            alone = (u @ Affine(affines.matrix[b])) if transform.dim and transform is not affines and transform.items[0] is u else None
            if alone is not None:
                assert torch.allclose(moved[b : b + 1], alone(points), atol=1e-9)
    assert affines.jacobian(points).shape == (3, 7, dim, dim)
    assert torch.equal(u.to(dtype=torch.float64).displacement, u.displacement)


def test_linear_maps_that_cannot_be():
    for shape in ((2, 2), (5, 5), (3, 4), (4,)):
        with pytest.raises((InputError, IndexError)):
            Affine(torch.zeros(shape))
    for matrix in (np.diag([1.0, 0, 1]), np.full((3, 3), np.nan), np.diag([np.inf, 1, 1])):
        with pytest.raises(ConvergenceError, match="no inverse"):
            Affine(torch.as_tensor(matrix)).inverse()
    assert Affine(np.diag([2, 2, 1])).inverse().numpy()[0, 0] == 0.5
    with pytest.raises(ConvergenceError, match="diverged"):
        require_finite(Affine.identity(2) @ Displacement(torch.full((1, 2, 3, 3), np.nan), Grid.from_parts((3, 3))))


@dims
@pytest.mark.parametrize("wide", [False, True])
def test_a_ring_of_zeros_keeps_the_function(dim, wide):
    grid = random_grid(3, dim, (8, 9, 10)[-dim:])
    u = torch.rand(1, dim, *grid.shape, dtype=torch.float64)
    if not wide:
        for axis in range(2, dim + 2):
            u.narrow(axis, 0, 1).zero_()
            u.narrow(axis, u.shape[axis] - 1, 1).zero_()
    plain = Displacement(u, grid)
    ringed = plain.with_zero_ring()
    assert (ringed is plain) == (not wide) and ringed.with_zero_ring() is ringed
    index = np.random.default_rng(0).uniform(-3, np.array(grid.size) + 2, (1, 500, dim))
    points = torch.as_tensor(grid.index_to_world(index))
    assert torch.allclose(ringed(points), plain(points), atol=1e-9)


@dims
def test_a_ringed_field_is_the_same_map_in_itk_inside_and_outside(dim):
    grid = random_grid(5, dim, (8, 9, 10)[-dim:], flipped=True)
    u = torch.rand(1, dim, *grid.shape, dtype=torch.float64)
    ringed = Displacement(u, grid).with_zero_ring()
    image = sitk.GetImageFromArray(ringed.displacement[0].movedim(0, -1).contiguous().numpy(), isVector=True)
    image.SetOrigin(ringed.grid.origin.tolist())
    image.SetSpacing(ringed.grid.spacing.tolist())
    image.SetDirection(ringed.grid.direction.ravel().tolist())
    itk = sitk.DisplacementFieldTransform(image)
    index = np.random.default_rng(1).uniform(-3, np.array(grid.size) + 2, (100, dim))
    points = grid.index_to_world(index)
    ours = ringed(torch.as_tensor(points)[None])[0].numpy()
    assert np.allclose(ours, [itk.TransformPoint(p.tolist()) for p in points], atol=1e-6)


@dims
@pytest.mark.parametrize("name", ["velocity", "bspline"])
def test_the_cached_field_follows_its_parameters_and_keeps_its_gradients(dim, name):
    grid = random_grid(3, dim, (10, 11, 12)[-dim:], spacing=(1.0,) * dim)
    source = make(name, grid)
    leaf = source.parameters()[0].clone().add_(0.1).requires_grad_(True)
    transform = Velocity(leaf, grid) if name == "velocity" else BSpline(leaf, grid, source.step)
    with torch.no_grad():
        before = transform.field(grid, torch.float64)
        assert transform.dense is transform.dense
    assert not before.requires_grad
    field = transform.field(grid, torch.float64)
    assert field.requires_grad, "a field that was cached for a preview has no gradients"
    optimiser = torch.optim.SGD([leaf], lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        transform.field(grid, torch.float64).square().sum().backward()
        assert float(leaf.grad.abs().sum()) > 0
        optimiser.step()
    after = transform.field(grid, torch.float64)
    fresh = (Velocity(leaf, grid) if name == "velocity" else BSpline(leaf, grid, source.step)).field(grid, torch.float64)
    assert torch.equal(after, fresh) and not torch.allclose(after, before)
    with torch.inference_mode():
        frozen = leaf.detach().clone()
        assert (Velocity(frozen, grid) if name == "velocity" else BSpline(frozen, grid, source.step)).field(grid).isfinite().all()


@dims
def test_gradients_reach_every_parameter_of_a_composition(dim):
    grid = random_grid(3, dim, (6, 7, 8)[-dim:], spacing=(1.0,) * dim)
    leaves = [make(name, grid).parameters()[0].clone().requires_grad_(True) for name in ("affine", "displacement", "velocity")]
    transform = Affine(leaves[0]) @ Displacement(leaves[1], grid) @ Velocity(leaves[2], grid)
    loss = transform.field(grid, torch.float64).square().sum() + transform(points_in(grid)).sum()
    slopes = torch.autograd.grad(loss, leaves)
    assert all(torch.isfinite(s).all() and float(s.abs().sum()) > 0 for s in slopes)


def test_a_stack_of_equal_slices_maps_like_its_plane():
    flat = random_grid(3, 2, (20, 22), spacing=(1.0, 1.2), oblique=False)
    plane = make("velocity", flat)
    affine = np.eye(4)
    affine[np.ix_([0, 1, 3], [0, 1, 3])] = flat.affine
    for slices in (1, 3):
        grid = Grid((slices, *flat.shape), affine)
        v = torch.cat([plane.velocity, torch.zeros_like(plane.velocity[:, :1])], 1)[:, :, None].expand(-1, -1, slices, -1, -1)
        points = points_in(flat)
        volume_points = torch.cat([points, torch.full_like(points[..., :1], slices // 2)], -1)
        volume = Velocity(v.contiguous(), grid)
        assert torch.allclose(volume(volume_points)[..., :2], plane(points), atol=1e-9)
        assert torch.allclose(volume.dense.inverse()(volume_points)[..., :2], plane.dense.inverse()(points), atol=0.03)


def test_far_off_origins_in_single_precision():
    grid = lattice(3)
    shift = np.eye(4)
    shift[:3, 3] = (-1500.0, 2000.0, 800.0)
    near = make("displacement", grid, dtype=torch.float32)
    far = Displacement(near.displacement, grid.moved(shift))
    points = points_in(grid, dtype=torch.float32)
    offset = torch.as_tensor(shift[:3, 3], dtype=torch.float32)
    assert torch.allclose(far(points + offset) - offset, near(points), atol=2e-3)
    assert torch.equal(far.field(grid.moved(shift)), near.field(grid))


@dims
def test_what_does_not_fit_is_refused(dim):
    grid = random_grid(2, dim)
    for cls in (Displacement, Velocity):
        with pytest.raises(InputError, match="does not fit"):
            cls(torch.zeros(1, dim, *[3] * dim), grid)
        with pytest.raises(InputError, match="does not fit"):
            cls(torch.zeros(1, dim + 1, *grid.shape), grid)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from([2, 3]), st.booleans())
def test_random_lattices_obey_the_algebra(seed, dim, flipped):
    rng = np.random.default_rng(seed)
    grid = random_grid(seed, dim, rng.integers(1, 9, dim), flipped=flipped)
    u = Displacement(0.1 * float(grid.spacing.min()) * torch.as_tensor(rng.uniform(-1, 1, (1, dim, *grid.shape))), grid)
    a = random_affine(seed, dim, grid.centre)
    points = torch.as_tensor(grid.index_to_world(rng.uniform(-1, np.array(grid.size), (1, 9, dim))))
    chain = a @ u @ a.inverse()
    assert torch.isfinite(chain(points)).all() and torch.isfinite(chain.field(grid)).all()
    assert torch.allclose((a.inverse() @ a)(points), points, atol=1e-6)
    assert float((u.inverse(1e-5)(u(points)) - points).abs().max()) < 0.3 * float(grid.spacing.min())


def test_a_border_of_zeros_does_not_make_a_field_uninvertible():
    """A field that is not 0 at the end of the image is saved with a border of zeros, over which it may fold; that is no fault inside."""
    grid = Grid.from_parts((20, 22, 24), 1.0)
    shift = torch.zeros(1, 3, *grid.shape)
    shift[:, 0] = 4.0
    ringed = Displacement(shift, grid).with_zero_ring()
    inverse = ringed.inverse()
    points = torch.as_tensor(grid.points()[4:-4, 4:-4, 6:-6].reshape(1, -1, 3)).float()
    assert inverse.residual < 0.05 and (ringed(inverse(points)) - points).abs().max() < 0.05
