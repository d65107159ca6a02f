"""Reading images between voxels: exactness, parity with SimpleITK, gradients, and every fast path equal to the plain one."""

from contextlib import contextmanager

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pretended import gpu
from truths import grid_kinds, random_grid, random_motion

from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.ops.sample import apply_matrix, index_points, inside, matrix_between, resample, sample, sample_rows, world_points

few = settings(deadline=None, max_examples=20)
dims = pytest.mark.parametrize("dim", [2, 3])


@contextmanager
def threads(n):
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def random_index(shape, count=50, outside=0.0, seed=0, dtype=torch.float64):
    rng = np.random.default_rng(seed)
    size = np.array(shape[::-1])
    return torch.as_tensor(rng.uniform(-outside, size - 1 + outside, (1, count, len(shape))), dtype=dtype)


def values_of(grid, seed=0, channels=1, dtype=torch.float64):
    rng = np.random.default_rng(seed)
    return torch.as_tensor(rng.normal(size=(1, channels, *grid.shape)), dtype=dtype)


@few
@given(st.integers(0, 10**6), st.sampled_from([2, 3]), st.booleans(), st.booleans())
def test_a_ramp_in_world_space_is_interpolated_exactly(seed, dim, flipped, double):
    dtype = torch.float64 if double else torch.float32
    source = random_grid(seed, dim, flipped=flipped)
    target = Grid(source.shape, source.affine).resample(source.spacing * 1.3).moved(np.eye(dim + 1))
    slope = np.random.default_rng(seed).normal(size=dim)
    ramp = (source.points() - source.centre) @ slope
    data = torch.as_tensor(ramp, dtype=dtype)[None, None]
    out = resample(data, source, target)
    index = source.world_to_index(target.points())
    hull = ((index >= 0) & (index <= np.array(source.size) - 1)).all(-1)
    expected = (target.points() - source.centre) @ slope
    assert hull.sum() > 0
    assert np.allclose(out[0, 0].numpy()[hull], expected[hull], atol=1e-9 if double else 3e-4)


@dims
@pytest.mark.parametrize("kind", grid_kinds(3))
def test_lattice_points_in_float32_and_float64(dim, kind):
    grid = grid_kinds(dim)[kind]
    assert np.allclose(world_points(grid, torch.float64)[0].numpy(), grid.points(), atol=1e-10)
    assert np.allclose(world_points(grid)[0].numpy(), grid.points(), atol=1e-4)
    other = grid.resample(grid.spacing * 2).moved(random_motion(1, dim, shift=3))
    expected = other.world_to_index(grid.points())
    assert np.allclose(index_points(grid, other, torch.float64)[0].numpy(), expected, atol=1e-9)
    assert np.allclose(index_points(grid, other)[0].numpy(), expected, atol=1e-5 * max(10, np.abs(expected).max()))


@dims
def test_indices_stay_exact_at_far_off_origins(dim):
    near = random_grid(2, dim, reach=1)
    shift = np.eye(dim + 1)
    shift[:-1, -1] = 1e5
    other = near.resample(near.spacing * 0.7)
    assert torch.allclose(index_points(near.moved(shift), other.moved(shift)), index_points(near, other), atol=2e-5)


@dims
@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
def test_identity_returns_the_image(dim, mode):
    grid = random_grid(5, dim)
    data = values_of(grid, channels=3)
    assert torch.allclose(sample(data, index_points(grid, dtype=torch.float64), mode), data, atol=1e-9)
    assert resample(data, grid, Grid(grid.shape, grid.affine), mode) is data


def as_itk(data, grid):
    image = sitk.GetImageFromArray(data[0, 0].numpy())
    image.SetOrigin(grid.origin.tolist())
    image.SetSpacing(grid.spacing.tolist())
    image.SetDirection(grid.direction.ravel().tolist())
    return image


@dims
@pytest.mark.parametrize("mode, itk", [("linear", sitk.sitkLinear), ("nearest", sitk.sitkNearestNeighbor), ("cubic", sitk.sitkBSpline)])
@pytest.mark.parametrize("kind", grid_kinds(3))
def test_resampling_equals_simpleitk_inside_and_outside(dim, mode, itk, kind):
    source = grid_kinds(dim)[kind]
    motion = random_motion(11, dim, shift=0)
    motion[:-1, -1] += source.centre - motion[:-1, :-1] @ source.centre + 0.37
    target = Grid((13, 15, 12)[-dim:], source.affine).resample(source.spacing * 0.83).moved(motion)
    data = values_of(source, 3)
    reference, identity = as_itk(values_of(target), target), sitk.Transform(dim, sitk.sitkIdentity)
    expected = sitk.GetArrayFromImage(sitk.Resample(as_itk(data, source), reference, identity, itk, -7.0))
    ours = resample(data, source, target, mode, fill=-7.0)[0, 0].numpy()
    assert 0.05 < (expected == -7).mean() < 0.95
    assert np.array_equal(ours == -7, expected == -7)
    assert np.allclose(ours, expected, atol=1e-6)
    single = resample(data.float(), source, target, mode, fill=-7.0)[0, 0].numpy()
    assert np.quantile(np.abs(single - expected), 0.99) < 2e-4


@dims
def test_half_a_voxel_outside_is_still_the_border_value(dim):
    grid = Grid.from_parts((4, 5, 6)[-dim:])
    data = values_of(grid)
    index = torch.zeros(1, 1, dim, dtype=torch.float64)
    for offset, expected in ((-0.49, float(data.flatten()[0])), (-0.51, 9.0)):
        index[..., 0] = offset
        assert float(sample(data, index, fill=9.0)) == pytest.approx(expected)
    index[..., 0] = -0.25
    assert float(sample(data, index, padding="zeros")) == pytest.approx(0.75 * float(data.flatten()[0]))
    index[..., 0] = -1.0
    assert float(sample(data, index, padding="zeros")) == pytest.approx(0.0)
    index[..., 0] = -40.0
    assert float(sample(data, index)) == pytest.approx(float(data.flatten()[0]))
    assert inside(torch.tensor([[[-0.5] * dim]]), grid.shape).all() and not inside(torch.tensor([[[-0.6] * dim]]), grid.shape).any()


@dims
@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_tiny_axes(dim, mode, n):
    for axis in range(dim):
        shape = [5] * dim
        shape[axis] = n
        data = torch.rand(2, 2, *shape, dtype=torch.float64)
        grid = Grid.from_parts(shape)
        assert torch.allclose(sample(data, index_points(grid, dtype=torch.float64), mode), data, atol=1e-9)
        assert torch.isfinite(sample(data, random_index(shape, outside=3.0), mode)).all()
    one = torch.full((1, 1, *[1] * dim), 4.0)
    assert torch.allclose(sample(one, random_index([1] * dim, outside=5.0, dtype=torch.float32), mode), torch.tensor(4.0))


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
def test_a_volume_constant_in_z_gives_the_2d_answer(mode):
    plane = torch.rand(1, 2, 9, 11, dtype=torch.float64)
    index = random_index((9, 11), 40, outside=1.0)
    flat = sample(plane, index, mode, fill=-1.0)
    for slices in (1, 2, 4):
        volume = plane[:, :, None].expand(-1, -1, slices, -1, -1).contiguous()
        z = torch.full_like(index[..., :1], (slices - 1) / 2 if mode != "nearest" else 0)
        assert torch.allclose(sample(volume, torch.cat([index, z], -1), mode, fill=-1.0), flat, atol=1e-9)


@dims
@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("padding", ["border", "zeros"])
def test_every_number_of_threads_gives_the_same(dim, mode, padding):
    for shape in ((5, 7, 9), (13, 6, 3), (1, 17, 2), (31, 1, 1)):
        shape = shape[-dim:]
        results = []
        for n in (1, 2, 3, 4):
            with threads(n):
                data = torch.rand(1, 2, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_(True)
                for target in ((11, 5, 3)[-dim:], (2, 23, 4)[-dim:], (29,)):
                    index = torch.rand(1, *target, dim, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
                    index = (index * (torch.tensor(shape[::-1]) + 2) - 1.5).requires_grad_(True)
                    out = sample(data, index, mode, padding)
                    slopes = torch.autograd.grad(out.square().sum(), (data, index))
                    results.append((n, target, out.detach(), *slopes))
        for n, target, *tensors in results:
            plain = next(r[2:] for r in results if r[0] == 1 and r[1] == target)
            for got, expected in zip(tensors, plain):
                assert got.shape == expected.shape and torch.allclose(got, expected, atol=1e-12), (shape, n, target)


@dims
@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
def test_batches_of_images_and_of_positions(dim, mode):
    shape = (6, 7, 8)[-dim:]
    data = torch.rand(3, 2, *shape, dtype=torch.float64)
    index = torch.cat([random_index(shape, seed=k) for k in range(3)])
    together = sample(data, index, mode)
    for b in range(3):
        assert torch.allclose(sample(data[b : b + 1], index[b : b + 1], mode), together[b : b + 1], atol=1e-12)
        assert torch.allclose(sample(data, index[:1], mode)[b], sample(data[b : b + 1], index[:1], mode)[0], atol=1e-12)
    many = sample(data[:1], index, mode)
    assert many.shape[0] == 3 and torch.allclose(many[2], sample(data[:1], index[2:], mode)[0], atol=1e-12)


@dims
@pytest.mark.parametrize("padding", ["border", "zeros"])
def test_gradients_through_linear_sampling(dim, padding):
    shape = (4, 3, 5)[-dim:]
    data = torch.rand(1, 2, *shape, dtype=torch.float64, requires_grad=True)
    index = (random_index(shape, 6, seed=4) * 0.8 + 0.13).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda d, i: sample(d, i, "linear", padding), (data, index), eps=1e-6)


@dims
def test_sample_rows_equals_sample(dim):
    for shape in ((6, 7, 8), (1, 5, 2), (3, 1, 4)):
        shape = shape[-dim:]
        data = torch.rand(1, 12, *shape)
        index = random_index(shape, 200, outside=2.0, dtype=torch.float32)
        rows = sample_rows(data.flatten(2)[0].T.contiguous(), shape, index[0].clone())
        assert torch.allclose(rows.T, sample(data, index)[0], atol=2e-5)


@dims
@pytest.mark.parametrize("highest", [9, 2**24 - 1, 2**24 + 1, 614454277, 2**31 - 1])
def test_whole_numbers_are_read_as_they_are(dim, highest):
    shape = (5, 6, 7)[:dim]
    numbers = highest - torch.arange(int(np.prod(shape))).reshape(1, 1, *shape).to(torch.int32) % 9
    numbers[0, 0, 0] = -highest
    index = random_index(shape, outside=2.0)
    found = sample(numbers, index, "nearest", fill=-7)
    assert found.dtype == torch.int32 and torch.equal(found.double(), sample(numbers.double(), index, "nearest", fill=-7.0))


def test_unknown_options_raise():
    data, index = torch.rand(1, 1, 4, 4), torch.zeros(1, 3, 2)
    with pytest.raises(ValueError, match="lanczos"):
        sample(data, index, "lanczos")
    with pytest.raises(ValueError, match="reflect"):
        sample(data, index, "linear", "reflect")
    with pytest.raises(ValueError, match="cubic"):
        sample(data, index, "cubic", "zeros")
    with pytest.raises(ValueError, match="3 components"):
        sample(data, torch.zeros(1, 3, 3))
    with pytest.raises(InputError, match="same dimension"):
        resample(data, random_grid(1, 2, (4, 4)), random_grid(1, 3))


@dims
def test_header_moves_of_both_images_change_nothing(dim):
    source, target = random_grid(1, dim), random_grid(1, dim).resample(1.1)
    data = values_of(source)
    plain = resample(data, source, target, fill=0.0)
    for flipped in (False, True):
        motion = random_motion(5, dim, flipped=flipped)
        assert torch.allclose(resample(data, source.moved(motion), target.moved(motion), fill=0.0), plain, atol=1e-8)


@few
@given(st.integers(0, 10**6), st.sampled_from([2, 3]))
def test_matrix_between_chains(seed, dim):
    a, b, c = (random_grid(seed + k, dim, flipped=k == 1) for k in range(3))
    assert np.allclose(matrix_between(b, c) @ matrix_between(a, b), matrix_between(a, c), atol=1e-7)
    points = torch.as_tensor(np.random.default_rng(seed).normal(size=(1, 4, dim)))
    expected = b.world_to_index(a.index_to_world(points.numpy()))
    assert np.allclose(apply_matrix(matrix_between(a, b), points).numpy(), expected, atol=1e-9)


@dims
def test_cuda_equals_cpu(dim):
    data = torch.rand(1, 2, *(9, 10, 11)[-dim:])
    index = random_index(data.shape[2:], outside=2.0, dtype=torch.float32)
    for mode in ("linear", "nearest", "cubic"):
        with gpu():
            there = sample(data.cuda(), index.cuda(), mode).cpu()
        assert torch.allclose(there, sample(data, index, mode), atol=1e-5)
