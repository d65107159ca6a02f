"""Transform files: SimpleITK, 3D Slicer (MRML) and the library move the same points; warping equals ITK's resampling."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given
from hypothesis import strategies as st
from truths import random_grid

from DeepRegistrationLib.errors import ConvergenceError, InputError
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image, Labels
from DeepRegistrationLib.io import read_transform, write_transform
from DeepRegistrationLib.result import warp
from DeepRegistrationLib.transforms import Affine, BSpline, Composite, Displacement, Identity, Velocity

FIELD_TYPES = (".nii.gz", ".nii", ".nrrd", ".mha")
LINEAR_TYPES = (".h5", ".tfm", ".txt", ".mat")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("transforms")


def some_affine(seed: int, dim: int) -> Affine:
    rng = np.random.default_rng(seed)
    matrix = np.eye(dim + 1)
    matrix[:dim, :dim] += rng.normal(size=(dim, dim)) * 0.15
    matrix[:dim, dim] = rng.uniform(-60, 60, dim)
    return Affine(torch.as_tensor(matrix))


def some_field(seed: int, grid: Grid, size=4.0) -> Displacement:
    """Noise of ``size`` mm at every voxel, not 0 at the border: the hardest case for what lies outside."""
    noise = np.random.default_rng(seed).normal(size=(1, grid.dim, *grid.shape)) * size
    return Displacement(torch.as_tensor(noise, dtype=torch.float32), grid)


def probe_points(grid: Grid, seed: int = 0, count: int = 60) -> torch.Tensor:
    """(1, N, dim) mm: inside, on and around the faces, just outside, and far outside of ``grid``."""
    rng = np.random.default_rng(seed)
    size = np.array(grid.size)
    index = rng.uniform(-0.3, 1.3, (count, grid.dim)) * size - 0.5
    for column in range(grid.dim):
        edge = index[column:: grid.dim + 2]
        edge[:, column] = rng.choice([-1.0, -0.75, -0.5, -0.25, 0.0, size[column] - 1.0, size[column] - 0.5, size[column] + 0.4], len(edge))
    return torch.as_tensor(grid.index_to_world(np.concatenate([index, [size * 40.0, -size * 3.0]])))[None]


def by_itk(path, points: torch.Tensor) -> np.ndarray:
    transform = sitk.ReadTransform(str(path))
    return np.array([transform.TransformPoint(p) for p in points[0].tolist()])


def by_slicer(path, points: torch.Tensor) -> np.ndarray:
    """Points moved by the node that Slicer's storage reads: from parent, in RAS."""
    slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
    scene, node, storage = slicer.vtkMRMLScene(), slicer.vtkMRMLTransformNode(), slicer.vtkMRMLTransformStorageNode()
    scene.AddNode(node), scene.AddNode(storage)
    storage.SetFileName(str(path))
    assert storage.ReadData(node)
    moved = [node.GetTransformFromParent().TransformPoint(p) for p in (points[0].numpy() * [-1, -1, 1]).tolist()]
    return np.array(moved) * [-1, -1, 1]


seeds = st.integers(0, 10**6)
lattices = st.builds(lambda seed, dim, thin, flipped: random_grid(seed, dim, (1 if thin and dim == 3 else 6, 5, 7)[-dim:], flipped=flipped),
                     seeds, st.sampled_from([2, 3]), st.booleans(), st.booleans())


# what is saved is what was computed

@given(seed=seeds, dim=st.sampled_from([2, 3]), kind=st.sampled_from(LINEAR_TYPES))
def test_linear_transforms(folder, seed, dim, kind):
    affine = some_affine(seed, dim)
    write_transform(affine, folder / f"a{kind}")
    points = torch.as_tensor(np.random.default_rng(seed).uniform(-300, 300, (1, 20, dim)))
    expected = affine(points)[0].numpy()
    assert np.abs(by_itk(folder / f"a{kind}", points) - expected).max() < 1e-6
    back = read_transform(folder / f"a{kind}")
    assert isinstance(back, Affine) and np.abs(back(points)[0].numpy() - expected).max() < 1e-6


@given(seed=seeds, grid=lattices, kind=st.sampled_from((".h5", *FIELD_TYPES)))
def test_fields_are_the_same_function_everywhere(folder, seed, grid, kind):
    field = some_field(seed, grid)
    write_transform(field, folder / f"d{kind}")
    points = probe_points(grid, seed)
    expected = field(points)[0].numpy()
    if kind == ".h5":
        itk = by_itk(folder / "d.h5", points)
    else:
        itk_field = sitk.DisplacementFieldTransform(sitk.Cast(_itk_image(folder / f"d{kind}"), sitk.sitkVectorFloat64))
        itk = np.array([itk_field.TransformPoint(p) for p in points[0].tolist()])
    assert np.abs(itk - expected).max() < 1e-3
    back = read_transform(folder / f"d{kind}", dim=grid.dim)
    assert isinstance(back, Displacement) and np.abs(back(points)[0].numpy() - expected).max() < 1e-3


def _itk_image(path):
    """ITK reads the voxels of d.nii for d.nii.gz where both are there, so the file is read under a name of its own."""
    alone = path.parent / "alone"
    alone.mkdir(exist_ok=True)
    for old in alone.iterdir():
        old.unlink()
    os.link(path, alone / path.name)
    return sitk.ReadImage(str(alone / path.name))


def compositions(seed: int, grid: Grid) -> dict:
    a, b, d = some_affine(seed, grid.dim), some_affine(seed + 1, grid.dim), some_field(seed, grid)
    inner = Displacement(d.displacement * 0.5, grid.pad(2).crop([2] * grid.dim, np.array(grid.size) + 2))
    return {"A@D": a @ d, "D@A": d @ a, "A@D@B": a @ d @ b, "D@D": Composite((d, inner)), "A@A": a @ b,
            "A@V": a @ Velocity(d.displacement * 0.3, grid), "I": Identity(grid.dim)}


@given(seed=seeds, grid=lattices, name=st.sampled_from(["A@D", "D@A", "A@D@B", "D@D", "A@A", "A@V", "I"]))
def test_composites_keep_their_order(folder, seed, grid, name):
    transform = compositions(seed, grid)[name]
    write_transform(transform, folder / "c.h5")
    points = probe_points(grid, seed)
    expected = transform(points)[0].numpy()
    assert np.abs(by_itk(folder / "c.h5", points) - expected).max() < 2e-3
    assert np.abs(read_transform(folder / "c.h5")(points)[0].numpy() - expected).max() < 2e-3


def lattice_and_outside(grid: Grid) -> torch.Tensor:
    """(1, N, dim) mm: every voxel centre and points more than one voxel outside; 3D Slicer's cubic interpolation agrees there."""
    size = np.array(grid.size)
    outside = np.concatenate([np.diag(-1.01 - np.arange(3)), size - 1 + np.diag([0.01, 1.5, 40.0]) + np.eye(3), [size * 40.0, -size * 3.0]])
    return torch.as_tensor(np.concatenate([grid.points().reshape(-1, 3), grid.index_to_world(outside)]))[None]


def ramp_field(grid: Grid) -> Displacement:
    """A displacement that grows linearly, so that cubic and linear interpolation agree far from its border."""
    points = torch.as_tensor(grid.points()[None])
    slope = torch.as_tensor(np.random.default_rng(0).normal(size=(3, 3)) * 0.05)
    return Displacement((points - torch.as_tensor(grid.centre)).matmul(slope).movedim(-1, 1).float(), grid)


@pytest.mark.parametrize("shape", [(6, 5, 7), (6, 5, 1)])
@pytest.mark.parametrize("name", ["D", "A@D", "D@A", "A@D@B", "D@D", "A@A", "A@V", "I"])
def test_slicer_moves_the_same_points(tmp_path, name, shape):
    grid = random_grid(1, 3, shape, flipped=True)
    made = compositions(1, grid) | {"D": some_field(1, grid), "D@D": Composite((ramp_field(grid.pad(30)), some_field(1, grid)))}
    points = lattice_and_outside(grid)
    if name in ("D@A", "A@D@B"):
        points = made[name].items[-1].inverse()(points)
    expected = made[name](points)[0].numpy()
    for kind in {"D": (".h5", *FIELD_TYPES), "A@A": LINEAR_TYPES}.get(name, (".h5",)):
        (tmp_path / kind).mkdir()
        write_transform(made[name], tmp_path / kind / f"t{kind}")
        assert np.abs(by_slicer(tmp_path / kind / f"t{kind}", points) - expected).max() < (1e-6 if name == "A@A" else 2e-3), kind


@pytest.mark.parametrize("kind", [".h5", ".nii.gz", ".nrrd", ".mha", ".tfm"])
def test_fields_of_slicer_are_read(tmp_path, kind):
    slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
    grid = random_grid(7, 3, (4, 5, 6), flipped=True)
    field = some_field(7, grid)
    write_transform(field, tmp_path / "in.h5")
    scene, node, storage = slicer.vtkMRMLScene(), slicer.vtkMRMLTransformNode(), slicer.vtkMRMLTransformStorageNode()
    scene.AddNode(node), scene.AddNode(storage)
    storage.SetFileName(str(tmp_path / "in.h5"))
    assert storage.ReadData(node)
    storage.SetFileName(str(tmp_path / f"out{kind}"))
    assert storage.WriteData(node)
    points = probe_points(grid)
    assert np.abs((read_transform(tmp_path / f"out{kind}")(points) - field(points)).numpy()).max() < 1e-3


@pytest.mark.parametrize("kind", [".h5", ".nrrd", ".tfm"])
def test_to_parent_fields_of_slicer_are_named(tmp_path, kind):
    slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
    scene, node, storage = slicer.vtkMRMLScene(), slicer.vtkMRMLTransformNode(), slicer.vtkMRMLTransformStorageNode()
    scene.AddNode(node), scene.AddNode(storage)
    write_transform(some_field(7, random_grid(7, 3, (4, 5, 6))), tmp_path / "in.h5")
    storage.SetFileName(str(tmp_path / "in.h5"))
    assert storage.ReadData(node)
    node.Inverse()
    storage.SetFileName(str(tmp_path / f"out{kind}"))
    assert storage.WriteData(node)
    with pytest.raises(InputError, match="to-parent .* save the from-parent direction"):
        read_transform(tmp_path / f"out{kind}")


def test_total_displacement_of_a_composite(tmp_path):
    grid = random_grid(3, 3, (6, 5, 7))
    transform = some_affine(3, 3) @ some_field(3, grid)
    write_transform(transform, tmp_path / "t.nii.gz")
    back = read_transform(tmp_path / "t.nii.gz")
    assert back.grid == grid and torch.allclose(back.displacement, transform.field(grid), atol=1e-3)


def test_double_precision_on_request(tmp_path):
    field = some_field(3, random_grid(3, 3, (6, 5, 7))).to(dtype=torch.float64)
    field = Displacement(field.displacement + 1e-9, field.grid)
    for kind in (".h5", ".nrrd"):
        write_transform(field, tmp_path / f"d{kind}", dtype=torch.float64)
        write_transform(field, tmp_path / f"s{kind}")
        assert (tmp_path / f"d{kind}").stat().st_size > 1.5 * (tmp_path / f"s{kind}").stat().st_size
    stored = sitk.GetArrayFromImage(sitk.DisplacementFieldTransform(sitk.ReadTransform(str(tmp_path / "d.h5"))).GetDisplacementField())
    assert np.array_equal(np.moveaxis(stored, -1, 0), field.with_zero_ring().displacement[0].numpy())


def test_sheared_grids_keep_their_field_in_h5(tmp_path):
    grid = random_grid(3, 3, (6, 5, 7)).moved(some_affine(5, 3).numpy())
    field, points = some_field(3, grid), probe_points(grid)
    write_transform(field, tmp_path / "d.h5")
    assert np.abs(by_itk(tmp_path / "d.h5", points) - field(points)[0].numpy()).max() < 1e-3
    with pytest.raises(InputError, match="cannot hold sheared"):
        write_transform(field, tmp_path / "d.nii.gz")


@pytest.mark.parametrize("dim", [2, 3])
def test_spline_is_saved_as_its_field(tmp_path, dim):
    grid = random_grid(4, dim, (12, 13, 14)[-dim:])
    spline = BSpline.zeros(grid, 4.0)
    spline = BSpline(torch.randn(spline.control.shape, generator=torch.Generator().manual_seed(0)) * 3, grid, spline.step)
    write_transform(spline, tmp_path / "s.h5")
    centres = torch.as_tensor(grid.points().reshape(1, -1, dim))
    assert np.abs(by_itk(tmp_path / "s.h5", centres) - spline(centres)[0].numpy()).max() < 1e-3


# files of others

@pytest.mark.parametrize("dim, name, parameters", [
    (3, "TranslationTransform", 3), (3, "Euler3DTransform", 6), (3, "VersorRigid3DTransform", 6), (3, "Similarity3DTransform", 7),
    (3, "ScaleVersor3DTransform", 9),
    (3, "AffineTransform", 12), (2, "Euler2DTransform", 3), (2, "Similarity2DTransform", 4), (2, "AffineTransform", 6),
    (3, "ScaleTransform", 3), (3, "VersorTransform", 3)])
@pytest.mark.parametrize("kind", [".tfm", ".h5"])
def test_linear_kinds_of_itk(tmp_path, dim, name, parameters, kind):
    transform = getattr(sitk, name)(dim) if name in ("AffineTransform", "TranslationTransform", "ScaleTransform") else getattr(sitk, name)()
    rng = np.random.default_rng(parameters)
    transform.SetParameters((np.array(transform.GetParameters()) + rng.uniform(-0.2, 0.2, parameters)).tolist())
    if hasattr(transform, "SetCenter"):
        transform.SetCenter(rng.uniform(-50, 50, dim).tolist())
    sitk.WriteTransform(transform, str(tmp_path / f"t{kind}"))
    points = torch.as_tensor(rng.uniform(-200, 200, (1, 10, dim)))
    assert np.abs(read_transform(tmp_path / f"t{kind}", dim)(points)[0].numpy() - by_itk(tmp_path / f"t{kind}", points)).max() < 1e-6


def test_composite_of_itk_is_flattened(tmp_path):
    grid = random_grid(4, 3, (6, 5, 7))
    field = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(6, 5, 7, 3)), isVector=True)
    field.SetSpacing(grid.spacing.tolist()), field.SetOrigin(grid.origin.tolist()), field.SetDirection(grid.direction.ravel().tolist())
    composite = sitk.CompositeTransform([sitk.Euler3DTransform((1, 2, 3), 0.1, 0.2, 0.3), sitk.TranslationTransform(3, (4, 5, 6)),
                                         sitk.DisplacementFieldTransform(field), sitk.AffineTransform(3)])
    sitk.WriteTransform(composite, str(tmp_path / "c.h5"))
    back = read_transform(tmp_path / "c.h5")
    assert [type(item) for item in back.items] == [Affine, Displacement, Affine]
    inside = torch.as_tensor(grid.index_to_world(np.random.default_rng(1).uniform(0, np.array(grid.size) - 1, (20, 3))))[None]
    assert np.abs(back(inside)[0].numpy() - by_itk(tmp_path / "c.h5", inside)).max() < 1e-3


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("kind", [".tfm", ".h5"])
def test_spline_of_itk(tmp_path, dim, kind):
    spline = sitk.BSplineTransform(dim, 3)
    spline.SetTransformDomainMeshSize((3, 4, 5)[:dim])
    spline.SetTransformDomainOrigin((10.0, -20.0, 30.0)[:dim])
    spline.SetTransformDomainPhysicalDimensions((33.0, 44.0, 51.0)[:dim])
    spline.SetParameters(np.random.default_rng(0).normal(size=len(spline.GetParameters())).tolist())
    sitk.WriteTransform(spline, str(tmp_path / f"b{kind}"))
    share = np.random.default_rng(1).uniform(0.01, 0.99, (1, 50, dim))
    points = torch.as_tensor(np.array((10.0, -20.0, 30.0)[:dim]) + share * np.array((33.0, 44.0, 51.0)[:dim]))
    back = read_transform(tmp_path / f"b{kind}")
    assert isinstance(back, BSpline) and np.abs(back(points)[0].numpy() - by_itk(tmp_path / f"b{kind}", points)).max() < 1e-4


def test_text_with_matrix_offset_base(tmp_path):
    (tmp_path / "a.txt").write_text("#Insight Transform File V1.0\n#Transform 0\nTransform: MatrixOffsetTransformBase_double_3_3\n"
                                    "Parameters: 1 0.1 0 0 1 0 0 0 1 1 2 3\nFixedParameters: 4 5 6\n")
    assert np.allclose(read_transform(tmp_path / "a.txt").numpy()[:3], [[1, 0.1, 0, 0.5], [0, 1, 0, 2], [0, 0, 1, 3]])


def test_sentences(tmp_path):
    translation = "Transform: TranslationTransform_double_3_3\nParameters: 1 2 3\nFixedParameters:\n"
    files = {
        "none.h5": (None, "does not exist"), "empty.h5": (b"", "is empty"), "bad.h5": (b"hello", "could not be read as an ITK transform"),
        "bad.tfm": (b"hello", "could not be read as an ITK transform"),
        "fsl.mat": (b"1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", "bare matrix of numbers"),
        "bad.nii.gz": (b"hello", "could not be read"), "x.pt": (b"hello", "type '.pt'"),
        "two.tfm": (f"#Insight Transform File V1.0\n#Transform 0\n{translation}#Transform 1\n{translation}".encode(),
                    "lists 2 separate transforms"),
    }
    for name, (content, sentence) in files.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=sentence) as error:
            read_transform(tmp_path / name)
        assert "\n" not in str(error.value) and "0x" not in str(error.value), str(error.value)
    write_transform(some_affine(1, 2), tmp_path / "two_d.tfm")
    with pytest.raises(InputError, match="2D transform where a 3D one is needed"):
        read_transform(tmp_path / "two_d.tfm", dim=3)
    sitk.WriteImage(sitk.Image(4, 5, 6, sitk.sitkFloat32), str(tmp_path / "scalar.nrrd"))
    with pytest.raises(InputError, match="displacement of 3 components is needed"):
        read_transform(tmp_path / "scalar.nrrd")


@pytest.mark.parametrize("share", [0.98, 0.5, 0.1])
@pytest.mark.parametrize("kind", [".h5", ".nii.gz", ".nrrd"])
def test_truncated_transforms_are_refused(tmp_path, kind, share):
    write_transform(some_field(1, random_grid(1, 3, (20, 21, 22))), tmp_path / f"a{kind}")
    content = (tmp_path / f"a{kind}").read_bytes()
    (tmp_path / f"t{kind}").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match="damaged|incomplete"):
        read_transform(tmp_path / f"t{kind}")


def test_writing_refuses_with_a_sentence_and_leaves_nothing(tmp_path):
    grid = random_grid(1, 3, (4, 5, 6))
    field, affine = some_field(1, grid), some_affine(1, 3)
    with pytest.raises(InputError, match="linear transform only"):
        write_transform(affine @ field, tmp_path / "a.tfm")
    with pytest.raises(InputError, match="write it as .tfm or .h5"):
        write_transform(affine, tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match="2 transforms in one batch"):
        write_transform(Displacement(field.displacement.expand(2, -1, -1, -1, -1), grid), tmp_path / "a.h5")
    with pytest.raises(InputError, match="ends in '.zip'"):
        write_transform(affine, tmp_path / "a.zip")
    with pytest.raises(InputError, match="use torch.float32 or torch.float64"):
        write_transform(field, tmp_path / "a.h5", dtype=torch.float16)
    with pytest.raises(ConvergenceError, match="not finite"):
        write_transform(Displacement(field.displacement / 0, grid), tmp_path / "a.h5")
    assert list(tmp_path.iterdir()) == []


def test_a_large_field_is_written_quickly(tmp_path):
    field = some_field(0, Grid.from_parts((96, 96, 96)))
    began = time.perf_counter()
    write_transform(field, tmp_path / "f.h5")
    assert time.perf_counter() - began < 2.0
    assert (tmp_path / "f.h5").stat().st_size < 1.02 * 98**3 * 12


# warping equals ITK's resampling

def _as_itk(image: Image):
    itk = sitk.GetImageFromArray(image.data[0, 0].numpy())
    itk.SetSpacing(image.grid.spacing.tolist()), itk.SetOrigin(image.grid.origin.tolist())
    itk.SetDirection(image.grid.direction.ravel().tolist())
    return itk


def _frame(grid: Grid):
    return _as_itk(Image(torch.zeros(1, 1, *grid.shape), grid))


def overlapping_grids(seed: int, dim: int) -> tuple[Grid, Grid]:
    """Two oblique anisotropic lattices with the same centre."""
    fixed, moving = random_grid(seed, dim), random_grid(seed + 100, dim, flipped=True)
    shift = np.eye(dim + 1)
    shift[:dim, dim] = fixed.centre - moving.centre
    return fixed, moving.moved(shift)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("mode, kind", [("linear", sitk.sitkLinear), ("nearest", sitk.sitkNearestNeighbor), ("cubic", sitk.sitkBSpline)])
def test_warp_equals_resampling_by_itk(tmp_path, seed, dim, mode, kind):
    fixed, moving = overlapping_grids(seed, dim)
    image = Image(torch.as_tensor(np.random.default_rng(seed).uniform(0, 100, (1, 1, *moving.shape)), dtype=torch.float32), moving)
    small = some_affine(seed, dim).numpy()
    small[:dim, dim] = fixed.centre - small[:dim, :dim] @ fixed.centre + 0.7
    transform = Affine(torch.as_tensor(small)) @ some_field(seed, fixed, size=0.6)
    write_transform(transform, tmp_path / "t.h5")
    ours = warp(image, transform, fixed, mode).data[0, 0].numpy()
    itk = sitk.GetArrayFromImage(sitk.Resample(_as_itk(image), _frame(fixed), sitk.ReadTransform(str(tmp_path / "t.h5")), kind, 0.0))
    index = moving.world_to_index(transform(torch.as_tensor(fixed.points().reshape(1, -1, dim)))[0].numpy()).reshape(*fixed.shape, dim)
    size = np.array(moving.size)
    depth = np.minimum(index + 0.5, size - 0.5 - index).min(-1)
    assert (depth > 0.5).mean() > 0.03
    compared = (np.abs(depth) > 1e-3) if mode != "cubic" else (depth > 0.51) | (depth < -1e-3)
    if mode == "nearest":
        compared &= (np.abs(index - np.floor(index) - 0.5) > 1e-3).all(-1)
    assert np.abs(ours - itk)[compared].max() < 0.02


@pytest.mark.parametrize("dim", [2, 3])
def test_labels_are_warped_as_by_itk(dim):
    fixed, moving = overlapping_grids(9, dim)
    labels = Labels(torch.randint(0, 40, (1, 1, *moving.shape), generator=torch.Generator().manual_seed(0), dtype=torch.int32), moving)
    ours = warp(labels, Identity(dim), fixed).data[0, 0].numpy()
    identity = sitk.Transform(dim, sitk.sitkIdentity)
    itk = sitk.GetArrayFromImage(sitk.Resample(_as_itk(labels), _frame(fixed), identity, sitk.sitkNearestNeighbor, 0.0))
    assert ours.dtype == np.int32 and (ours != itk).mean() < 0.002
