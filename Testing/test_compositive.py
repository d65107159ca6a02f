"""The compositive engine: known warps come back, headers do not matter, both directions agree, masked voxels do not count."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import truths
from pretended import gpu
from truths import distance, inner_points

from DeepRegistrationLib.engines import compositive
from DeepRegistrationLib.engines.compositive import CompositiveSettings, content_box, finest_spacing, register
from DeepRegistrationLib.errors import Cancelled, InputError
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image
from DeepRegistrationLib.ops import demons, fields
from DeepRegistrationLib.runtime import Silent
from DeepRegistrationLib.transforms import Affine, Displacement

DIMS = pytest.mark.parametrize("dim", [2, 3])
SHORT = CompositiveSettings("mse", (2.0, 1.0), (30, 15))


def pair_of(dim, seed=3, angle=0.4, rate=0.4):
    return truths.known_pair(seed, dim, (20, 24, 28) if dim == 3 else None, angle=angle, rate=rate)


def solved(fixed, moving, settings=SHORT, linear=None, start=None, monitor=None):
    displacement, history, inverse = register(fixed, moving, linear or Affine.identity(fixed.dim), settings, monitor or Silent(), start)
    return displacement if linear is None else linear @ displacement, history, inverse


@DIMS
@pytest.mark.parametrize("similarity, change, share", [
    ("mse", "none", 0.3), ("lncc", "none", 0.3), ("lncc", "bias", 0.4), ("mind", "none", 0.35), ("mind", "inverted", 0.35),
    ("mi", "inverted", 0.35), ("ncc", "scaled", 0.35), ("ngf", "inverted", 0.35)])
def test_a_known_warp_comes_back_without_folds(dim, similarity, change, share):
    known = pair_of(dim)
    data = known.moving.data
    shading = 1 + 0.5 * torch.linspace(0, 1, data.shape[-1])
    changed = {"none": data, "bias": 300 * shading * data, "inverted": 5 - data, "scaled": 40 * data + 7}[change]
    settings = CompositiveSettings(similarity, (2.0, 1.0), (60, 40))
    transform, history, _ = solved(known.fixed, replace(known.moving, data=changed), settings)
    points = inner_points(known.fixed.grid)
    before, after = distance(lambda x: x, known.truth, points), distance(transform, known.truth, points)
    assert before > 4 and after < share * before, f"{before:.2f} mm before, {after:.2f} mm after"
    assert float(transform.jacobian_determinant(known.fixed.grid).min()) > 0
    assert {"spacing", "cost"} == set(history[0]) and history[0]["spacing"] > history[-1]["spacing"]


@DIMS
@pytest.mark.parametrize("sizes", ["even", "odd", "thick"])
def test_a_halved_field_serves_up_to_the_end_of_the_image(dim, sizes):
    """The warp comes back nearly as well as with a whole field, at the outermost voxels too, from an eighth of the numbers in 3D; thick slices
    keep theirs."""
    known = pair_of(dim)
    part = known.fixed.grid.crop([0] * dim, np.array(known.fixed.grid.size) - (np.array(known.fixed.grid.size) % 2) - (sizes == "odd"))
    if sizes == "thick":
        part = part.resample(part.spacing * ([1] * (dim - 1) + [2]))
    fixed = known.fixed.at(part)
    whole, half = (solved(fixed, known.moving, replace(SHORT, halved=halved))[0] for halved in (False, True))
    points = inner_points(part)
    expected = np.array(whole.grid.size) / ([2] * (dim - 1) + [1 if sizes == "thick" else 2])
    assert (np.abs(np.array(half.grid.size) - expected) <= 3).all(), "half of the lattice, with what lies beyond the end"
    assert distance(half, known.truth, points) < 1.15 * distance(whole, known.truth, points) + 0.1
    rim = torch.as_tensor(part.points()[..., -1, :].reshape(1, -1, dim)).float()
    assert distance(half, known.truth, rim) < 1.25 * distance(whole, known.truth, rim) + 0.2
    assert float(half.jacobian_determinant(part).min()) > 0


@DIMS
def test_the_local_map_is_what_tolerates_a_bias_field(dim):
    known = pair_of(dim)
    shading = 1 + 0.8 * torch.linspace(0, 1, known.moving.data.shape[-1])
    moving = replace(known.moving, data=known.moving.data * shading)
    points = inner_points(known.fixed.grid)
    settings = [CompositiveSettings(s, (2.0, 1.0), (60, 40)) for s in ("lncc", "mse")]
    errors = [distance(solved(known.fixed, moving, s)[0], known.truth, points) for s in settings]
    assert errors[0] < errors[1]


@DIMS
@pytest.mark.parametrize("similarity", ["mse", "lncc", "mind", "ngf", "ncc"])
def test_moving_both_headers_conjugates_the_map(dim, similarity):
    """With h on both images the map is h o T o h^-1: nothing depends on where the voxels are said to be."""
    known = pair_of(dim, angle=0.2, rate=0.2)
    settings = CompositiveSettings(similarity, (2.0, 1.0), (12, 6))
    transform, _, _ = solved(known.fixed, known.moving, settings)
    points = inner_points(known.fixed.grid)
    for flipped in (False, True):
        h = Affine(torch.as_tensor(truths.random_motion(11, dim, flipped=flipped)))
        fixed, moving = (replace(image, grid=image.grid.moved(h.numpy())) for image in (known.fixed, known.moving))
        moved, _, _ = solved(fixed, moving, settings)
        expected = h(transform(points))
        assert float((moved(h(points)) - expected).norm(dim=-1).max()) < 0.02


@DIMS
def test_a_moving_image_under_a_linear_map(dim):
    """Header surgery on the moving image and its inverse in ``linear`` give the same deformation."""
    known = pair_of(dim, angle=0.2, rate=0.2)
    h = Affine(torch.as_tensor(truths.random_motion(4, dim)))
    plain, _, _ = solved(known.fixed, known.moving)
    other, _, _ = solved(known.fixed, replace(known.moving, grid=known.moving.grid.moved(h.numpy())), linear=h)
    points = inner_points(known.fixed.grid)
    assert float((other(points) - h(plain(points))).norm(dim=-1).max()) < 0.02


@DIMS
@pytest.mark.parametrize("kind", ["anisotropic", "oblique", "flipped"])
def test_grids_of_their_own(dim, kind):
    """Coarse slices are recovered by half; oblique and flipped moving axes cost at most a tenth against plain ones."""
    base = pair_of(dim).fixed.grid
    truth = truths.random_diffeomorphism(3, base, 0.3, 0.3)
    spacing = {"anisotropic": np.array([1.5, 2.0, 4.0])[:dim] if dim == 3 else np.array([1.0, 4.0])}.get(kind, np.full(dim, 2.0))
    fixed_grid = base.resample(spacing)
    moving_grid = base.pad(5)
    if kind != "anisotropic":
        turn = truths.random_motion(2, dim, shift=0.0, flipped=kind == "flipped")
        if kind == "flipped":
            turn[:dim, :dim] = np.diag([-1.0] + [1.0] * (dim - 1))
        centre = moving_grid.centre
        turn[:dim, dim] = centre - turn[:dim, :dim] @ centre
        moving_grid = moving_grid.pad(4).moved(turn)
    phantom = truths.Phantom(3, base.pad(4))
    transform, _, _ = solved(phantom.image(fixed_grid, truth), phantom.image(moving_grid), replace(SHORT, iterations=(60, 40)))
    points = inner_points(base)
    if kind == "anisotropic":
        bound = 0.5 * distance(lambda x: x, truth, points)
    else:
        plain, _, _ = solved(phantom.image(fixed_grid, truth), phantom.image(base.pad(9)), replace(SHORT, iterations=(60, 40)))
        bound = 1.1 * distance(plain, truth, points)
    assert distance(transform, truth, points) < bound
    assert float(transform.jacobian_determinant(fixed_grid).min()) > 0


@DIMS
def test_the_symmetric_form_is_swapped_by_swapping(dim):
    known = pair_of(dim, angle=0.3, rate=0.3)
    settings = replace(SHORT, symmetric=True, iterations=(60, 40))
    moving = truths.Phantom(3, known.moving.grid).image(known.fixed.grid)
    forward, _, back = solved(known.fixed, moving, settings)
    backward, _, _ = solved(moving, known.fixed, settings)
    points = inner_points(known.fixed.grid, 4)
    assert distance(forward, known.truth, points) < 0.35 * distance(lambda x: x, known.truth, points)
    assert float((back(forward(points)) - points).norm(dim=-1).mean()) < 0.1, "the inverse that is given back belongs to the map"
    assert distance(backward, back, points) < 0.1, "the map of the swapped pair is that inverse"


@DIMS
def test_a_start_is_continued(dim):
    known = pair_of(dim)
    first, history, _ = solved(known.fixed, known.moving, replace(SHORT, iterations=(60, 40)))
    again, continued, _ = solved(known.fixed, known.moving, replace(SHORT, factors=(1.0,), iterations=(5,)), start=first)
    assert continued[0]["cost"] < 1.5 * history[-1]["cost"] + 1e-5
    assert continued[-1]["cost"] <= 1.02 * continued[0]["cost"]
    points = inner_points(known.fixed.grid)
    assert distance(again, known.truth, points) < 1.1 * distance(first, known.truth, points)


@DIMS
@pytest.mark.parametrize("similarity", ["mse", "lncc"])
def test_of_two_starts_the_better_one_is_gone_on_with(dim, similarity):
    known, none = pair_of(dim), Affine.identity(dim)
    settings = replace(SHORT, similarity=similarity, iterations=(15, 5))
    near, far = known.truth, Affine.translation([12.0] * dim)
    for start, rival, better in ((near, none, 0), (none, near, 1), (none, far, 0), (far, none, 1)):
        alone = register(known.fixed, known.moving, none, settings, Silent(), (start, rival)[better])
        found = register(known.fixed, known.moving, none, settings, Silent(), start, rival=rival)
        assert found[1][0].get("rival", 0) == better
        points = inner_points(known.fixed.grid)
        assert distance(found[0], alone[0], points) == 0, "what was not gone on with leaves no trace"


@DIMS
def test_a_start_with_a_linear_part_is_split(dim):
    known = pair_of(dim, angle=0.2, rate=0.2)
    linear = truths.random_affine(4, dim, known.fixed.grid.centre, 0.05)
    field = (linear.inverse() @ known.truth).field(known.fixed.grid)
    start = linear @ Displacement(field, known.fixed.grid)
    transform, history, _ = solved(known.fixed, known.moving, replace(SHORT, factors=(1.0,), iterations=(1,)), linear=linear, start=start)
    points = inner_points(known.fixed.grid)
    assert distance(transform, known.truth, points) < 0.35
    assert history[0]["cost"] < 0.6 * solved(known.fixed, known.moving, replace(SHORT, factors=(1.0,), iterations=(1,)))[1][0]["cost"]


@DIMS
def test_a_strong_start_is_split_exactly_in_the_symmetric_form(dim):
    """The two halves make the start again, and neither is longer than needed; halving the displacement leaves ten times the error."""
    known = pair_of(dim, angle=0.5, rate=0.6)
    grid = known.fixed.grid
    u = demons.from_world(known.truth.field(grid), grid)
    points = inner_points(Grid(grid.shape, np.eye(dim + 1)), 4)
    error = {}
    for name, halves in (("logarithm", compositive._halves(u)), ("displacement", [u / 2, -u / 2])):
        index = Grid(grid.shape, np.eye(dim + 1))
        error[name] = distance(Displacement(compositive._joined(halves), index), Displacement(u, index), points)
    assert error["logarithm"] < 0.05 and error["logarithm"] < 0.1 * error["displacement"], error
    to_moving, to_fixed = (float(h.norm(dim=1).mean()) for h in compositive._halves(u))
    assert 0.8 < to_moving / to_fixed < 1.25, "both images are moved by about the same amount"


def with_junk(image, seed=0):
    """The image with a block of nonsense and a mask that leaves it out."""
    data = image.data.clone()
    block = (..., *[slice(n // 3, n // 2) for n in image.grid.shape])
    data[block] = 50 * torch.rand(data[block].shape, generator=torch.Generator().manual_seed(seed)) + 3
    mask = torch.ones(1, 1, *image.grid.shape, dtype=torch.bool)
    mask[block] = False
    return replace(image, data=data, mask=mask)


@DIMS
@pytest.mark.parametrize("similarity", ["mse", "lncc", "ncc"])
@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_masked_junk_has_no_influence(dim, similarity, side):
    """On the finest level alone nothing is smoothed across the border of the mask: other junk, the same bits."""
    known = pair_of(dim, angle=0.2, rate=0.2)
    settings = CompositiveSettings(similarity, (1.0,), (6,))
    fields = []
    for seed in (0, 1):
        images = {"fixed": known.fixed, "moving": known.moving}
        images[side] = with_junk(images[side], seed)
        fields.append(solved(**images, settings=settings)[0].displacement)
    assert float(fields[0].abs().max()) > 0.1
    near = (fields[0] - fields[1]).abs().max() / fields[0].abs().max()
    assert float(near) < (1e-5 if side == "fixed" else 0.2), "linear interpolation reads one voxel across the border of the moving mask"


@DIMS
@pytest.mark.parametrize("similarity", ["mi", "ncc"])
def test_what_the_moving_image_does_not_show_is_no_agreement(dim, similarity):
    """The moving image ends in the middle of the fixed one: what the fixed image shows beyond its end changes nothing."""
    known = pair_of(dim, angle=0.2, rate=0.2)
    size = np.array(known.moving.grid.size)
    end = np.where(np.arange(dim) == 0, size // 2, size)
    half = Image(known.moving.data[..., : end[0]].contiguous(), known.moving.grid.crop(np.zeros(dim, int), end))
    beyond = torch.as_tensor(half.grid.world_to_index(known.fixed.grid.points())[..., 0] > end[0] + 3)
    other = torch.where(beyond, known.fixed.data.flip(-2), known.fixed.data)
    settings = CompositiveSettings(similarity, (1.0,), (6,), elastic=0.0)
    one, two = (solved(replace(known.fixed, data=data), half, settings)[0].displacement for data in (known.fixed.data, other))
    assert beyond.float().mean() > 0.2 and not torch.equal(other, known.fixed.data)
    assert float((one - two).abs().max()) < 1e-4 < 0.1 < float(one.abs().max())


@DIMS
@pytest.mark.parametrize("similarity", ["mi", "ncc"])
def test_the_best_step_is_kept(dim, similarity):
    """From the truth every long step leads away; what comes back costs no more than the start."""
    known = pair_of(dim, angle=0.2, rate=0.2)
    settings = CompositiveSettings(similarity, (1.0,), (12,), limit=4.0, elastic=0.0)
    start = Displacement(known.truth.field(known.fixed.grid), known.fixed.grid)
    transform, history, _ = solved(known.fixed, known.moving, settings, start=start)
    costs = [h["cost"] for h in history]
    again = solved(known.fixed, known.moving, replace(settings, iterations=(1,)), start=transform)[1][0]["cost"]
    assert again <= min(costs) + 2e-4 and max(costs) > min(costs)


def test_masked_junk_has_no_influence_in_the_symmetric_form():
    known = pair_of(2, angle=0.2, rate=0.2)
    settings = CompositiveSettings("mse", (1.0,), (6,), symmetric=True)
    junk, other = with_junk(known.fixed), with_junk(known.fixed, 1)
    plain = replace(known.fixed, mask=junk.mask)
    a, b, c = (solved(image, known.moving, settings)[0].displacement for image in (junk, other, plain))
    assert float((a - b).abs().max()) < 0.2 * float(c.abs().max())
    assert float((a - c).abs().max()) < 0.2 * float(c.abs().max())


@DIMS
def test_the_content_box_holds_both_contents(dim):
    grid = Grid.from_parts((60, 64, 70)[-dim:], 1.5)
    fixed, moving = torch.zeros(1, 1, *grid.shape), torch.zeros(1, 1, *grid.shape)
    fixed[(..., *[slice(20, 26)] * dim)] = 1.0
    moving[(..., *[slice(36, 40)] * dim)] = -2.0
    shift = Affine.translation([3.0] * dim)
    box = content_box(Image(fixed, grid), Image(moving, grid), shift)
    index = np.array([grid.world_to_index(box.index_to_world(i)) for i in (np.zeros(dim), np.array(box.size) - 1.0)])
    assert np.allclose(index[0], 20 - compositive.MARGIN)
    assert np.allclose(index[1], 40 - 2 + compositive.MARGIN, atol=1.01), "the moving content is 3 mm nearer to the origin in fixed space"
    assert content_box(Image(fixed + 5, grid), Image(moving + 5, grid), shift).shape == box.shape, "the background need not be 0"


@DIMS
def test_the_content_box_ends_with_the_image(dim):
    grid = Grid.from_parts((20, 22, 24)[-dim:])
    full = torch.rand(1, 1, *grid.shape, generator=torch.Generator().manual_seed(0))
    far = Affine.translation([500.0] * dim)
    for linear in (Affine.identity(dim), far):
        box = content_box(Image(full, grid), Image(full, grid), linear)
        assert box.same_as(grid)


def test_the_content_box_holds_every_channel():
    grid = Grid.from_parts((40, 60))
    data = torch.zeros(1, 2, 40, 60)
    data[:, 0, 10:30, 5:15], data[:, 1, 10:30, 45:55] = 1.0, 1.0
    box = content_box(Image(data, grid), Image(data, grid), Affine.identity(2))
    assert box.extent[0] > 50


@DIMS
def test_the_field_fades_inside_the_image_and_not_at_its_end(dim):
    """The lattice ends inside the image at the lower x and with the image at the upper x."""
    whole = Grid.from_parts((40, 60, 80)[-dim:])
    lower = np.zeros(dim, int)
    lower[0] = 30
    grid = whole.crop(lower, whole.size)
    result, _, _ = compositive._finished([torch.ones(1, dim, *grid.shape)], grid, whole, [])
    assert result.grid.same_as(whole.crop(lower - np.eye(dim, dtype=int)[0] * compositive.RUNOUT, whole.size))
    line = result.displacement[(0, 0, *[n // 2 for n in result.grid.shape[:-1]])]
    assert 0 < float(line[0]) < 0.02, "nearly 0 where the lattice ends inside"
    assert float((line[1:] - line[:-1]).min()) >= 0 and float((line[1:] - line[:-1]).max()) < 0.12, "no jump on the way"
    assert torch.equal(line[compositive.RUNOUT + compositive.MARGIN // 2:], torch.ones(50 - compositive.MARGIN // 2)), "as found inside"
    for axis in range(2, dim + 2):
        ends = result.displacement.select(axis, -1)
        assert float(ends.max()) == 1, "the end of the image is not touched"


@DIMS
@pytest.mark.parametrize("beyond", [8, 60])
def test_a_large_motion_out_of_the_lattice_does_not_fold(dim, beyond):
    """Content that moves 15 voxels outwards at the upper x, with and without room to fade before the image ends."""
    whole = Grid.from_parts((40, 60, 160)[-dim:])
    upper = np.array(whole.size)
    upper[0] -= beyond
    grid = whole.crop(np.zeros(dim, int), upper)
    u = torch.zeros(1, dim, *grid.shape)
    u[:, 0] = 15.0
    result, _, _ = compositive._finished([u], grid, whole, [])
    assert float(fields.jacobian_determinant(result.displacement, result.grid).min()) > 0.4
    end = result.displacement[0, 0, ..., -1]
    assert result.grid.size[0] == upper[0] + min(beyond, 48), "as far as the ramp needs or the image reaches"
    assert (float(end.min()) == 15.0) if beyond == 8 else (float(end.max()) < 0.1)


def test_the_limit_of_voxels_coarsens():
    grid = Grid.from_parts((40, 50, 60), (1.0, 1.0, 2.0))
    assert finest_spacing(grid, CompositiveSettings()) == 1.0
    assert finest_spacing(grid, CompositiveSettings(finest=3.0)) == 3.0
    coarse = finest_spacing(grid, CompositiveSettings(largest=15_000))
    here, finer = (np.prod(grid.extent / np.maximum(grid.spacing, s)) for s in (coarse, coarse / 1.06))
    assert here <= 15_000 < finer
    thin = Grid.from_parts((1, 50, 60), (0.7, 0.7, 0.1))
    assert finest_spacing(thin, CompositiveSettings()) == pytest.approx(0.7), "one slice has no spacing"
    known = pair_of(2)
    _, history, _ = solved(known.fixed, known.moving, replace(SHORT, iterations=(2, 2), largest=500))
    assert history[-1]["spacing"] > 3.0


@pytest.mark.parametrize("thickness", [2.0, 5.0])
@pytest.mark.parametrize("similarity", ["mse", "lncc"])
def test_one_slice_volumes_give_the_flat_answer(similarity, thickness):
    flat = pair_of(2, angle=0.2, rate=0.2)
    settings = CompositiveSettings(similarity, (2.0, 1.0), (15, 8))
    plane, _, _ = solved(flat.fixed, flat.moving, settings)
    lifted = []
    for image in (flat.fixed, flat.moving):
        affine = np.eye(4)
        affine[:2, :2], affine[:2, 3] = image.grid.matrix, image.grid.origin
        affine[2, 2] = thickness
        lifted.append(Image(image.data[:, :, None], Grid((1, *image.grid.shape), affine)))
    volume, _, _ = solved(*lifted, settings)
    points = inner_points(flat.fixed.grid)
    found = volume(torch.cat([points, torch.zeros_like(points[..., :1])], -1))
    assert float(found[..., 2].abs().max()) < 1e-4
    assert float((found[..., :2] - plane(points)).norm(dim=-1).mean()) < 0.02


def test_a_level_ends_early_and_levels_without_steps_are_left_out():
    known = pair_of(2)
    _, history, _ = solved(known.fixed, known.moving, CompositiveSettings("mse", (4.0, 2.0, 1.0), (400, 0, 0), tolerance=1e-3))
    assert 15 < len(history) < 400 and {h["spacing"] for h in history} == {history[0]["spacing"]}
    _, whole, _ = solved(known.fixed, known.moving, CompositiveSettings("mse", (4.0,), (60,), tolerance=0.0))
    assert len(whole) >= min(60, len(history))


class Stops(Silent):
    """Cancels at the given log entry and asks for previews."""

    def __init__(self, at, wants=True):
        super().__init__()
        self.left, self.wants = at, wants

    wants_preview = property(lambda self: self.wants)

    def log(self, **figures):
        self.left -= 1
        if self.left <= 0:
            self.cancel()


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("at", [1, 5, 9, 12])
def test_cancelled_at_any_step_with_the_best_so_far(at, symmetric):
    known = pair_of(2)
    linear = Affine.translation([0.5, 0.0])
    settings = CompositiveSettings("lncc", (2.0, 1.0), (6, 6), symmetric=symmetric)
    with pytest.raises(Cancelled) as stopped:
        register(known.fixed, known.moving, linear, settings, Stops(at))
    best = stopped.value.best_so_far
    assert torch.isfinite(best(inner_points(known.fixed.grid))).all()
    with pytest.raises(Cancelled) as stopped:
        register(known.fixed, known.moving, linear, settings, Stops(at, wants=False))
    assert stopped.value.best_so_far is None


class Shows(Silent):
    """Wants to see every step."""

    wants_preview = True

    def __init__(self):
        super().__init__()
        self.shown = 0

    def preview(self, transform):
        self.shown += 1


@pytest.mark.parametrize("similarity", ["lncc", "ngf", "mi"])
def test_every_step_can_be_watched(similarity):
    known, watcher = pair_of(2), Shows()
    _, history, _ = solved(known.fixed, known.moving, CompositiveSettings(similarity, (2.0, 1.0), (7, 6)), monitor=watcher)
    assert watcher.shown == len(history) == 13


@pytest.mark.parametrize("settings", [CompositiveSettings("lncc"), CompositiveSettings("mind", symmetric=True), CompositiveSettings("ncc"),
                                      CompositiveSettings("lncc", halved=True)], ids=["lncc", "mind symmetric", "ncc", "halved"])
def test_the_same_bits_for_any_number_of_threads(settings):
    known = pair_of(3)
    settings = replace(settings, factors=(2.0, 1.0), iterations=(8, 4))
    before, fields = torch.get_num_threads(), []
    try:
        for threads in (1, 1, 2, 2):
            torch.set_num_threads(threads)
            fields.append(solved(known.fixed, known.moving, settings)[0].displacement)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(fields[0], fields[1]) and torch.equal(fields[2], fields[3])
    torch.testing.assert_close(fields[0], fields[2], rtol=1e-3, atol=1e-3)


@DIMS
def test_inputs_are_left_alone(dim):
    known = pair_of(dim)
    start = Displacement(torch.ones(1, dim, *known.fixed.grid.shape), known.fixed.grid)
    kept = [x.clone() for x in (known.fixed.data, known.moving.data, start.displacement)]
    solved(known.fixed, known.moving, replace(SHORT, iterations=(3, 3)), start=start)
    assert all(torch.equal(a, b) for a, b in zip(kept, (known.fixed.data, known.moving.data, start.displacement)))


@pytest.mark.parametrize("settings, word", [
    (CompositiveSettings("nmi"), "similarity"), (CompositiveSettings("mi", symmetric=True), "symmetric"),
    (CompositiveSettings(symmetric=True, halved=True), "half the resolution"), (CompositiveSettings("mi", halved=True), "half the resolution"),
    (CompositiveSettings(factors=(2.0,)), "one count per level")])
def test_what_is_not_supported_is_said(settings, word):
    known = pair_of(2)
    with pytest.raises(InputError, match=word):
        solved(known.fixed, known.moving, settings)


def test_a_batch_is_refused():
    known = pair_of(2)
    twice = [replace(image, data=image.data.repeat(2, 1, 1, 1)) for image in (known.fixed, known.moving)]
    with pytest.raises(InputError, match="batch"):
        solved(*twice)


@pytest.mark.parametrize("similarity", ["mse", "lncc", "mind"])
def test_on_a_gpu(similarity):
    known = pair_of(3)
    settings = CompositiveSettings(similarity, (2.0, 1.0), (20, 10))
    here, _, _ = solved(known.fixed, known.moving, settings)
    points = inner_points(known.fixed.grid)
    with gpu():
        there, _, _ = solved(known.fixed.to("cuda"), known.moving.to("cuda"), settings)
        assert there.device.type == "cuda" and distance(here, there.to("cpu"), points) < 0.1


def test_voxel_positions_are_those_of_the_image():
    """The identity problem has the identity as its answer, wherever the lattice begins."""
    known = pair_of(3)
    transform, history, _ = solved(known.fixed, known.fixed, replace(SHORT, iterations=(5, 5)))
    assert float((transform.field(known.fixed.grid)).abs().max()) < 1e-3 and history[0]["cost"] < 1e-9
