"""transform on the command line: files of other programs are looked at, converted, inverted and joined; SimpleITK reads the same maps."""

from __future__ import annotations

import re

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from truths import random_affine, random_grid

from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image
from DeepRegistrationLib.io import read_transform, write_image, write_transform
from DeepRegistrationLib.ops.filters import gaussian
from DeepRegistrationLib.transforms import Affine, Displacement

DIMS = pytest.mark.parametrize("dim", (2, 3))


def smooth(seed: int, grid: Grid, height: float = 1.5) -> Displacement:
    """A deformation without folds, of about ``height`` voxels, that is not 0 at the border."""
    u = gaussian(torch.randn(1, grid.dim, *grid.shape, generator=torch.Generator().manual_seed(seed)), 2.0)
    return Displacement(u / u.abs().max() * height * float(grid.spacing.min()), grid)


@pytest.fixture(params=(2, 3))
def files(request, tmp_path):
    """Folder with field.nii.gz and affine.mat of an oblique, flipped, anisotropic lattice, and reference.nrrd on it; the lattice."""
    dim = request.param
    grid = random_grid(11, dim, (18, 20, 22)[-dim:], np.array([1.0, 1.7, 2.5])[:dim], flipped=True)
    write_transform(smooth(1, grid), tmp_path / "field.nii.gz")
    write_transform(random_affine(2, dim, grid.centre), tmp_path / "affine.mat")
    write_image(Image(torch.rand(1, 1, *grid.shape), grid), tmp_path / "reference.nrrd")
    return tmp_path, grid


def in_itk(*paths):
    """The transforms of files as SimpleITK reads them, the first one applied first."""
    whole = sitk.CompositeTransform(len(read_points_of(paths[0])))
    for path in reversed(paths):
        whole.AddTransform(itk_of(path))
    return whole


def itk_of(path):
    if path.name.endswith((".nii.gz", ".nrrd")):
        return sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))
    return sitk.ReadTransform(str(path))


def read_points_of(path):
    return [0.0] * itk_of(path).GetDimension()


def images_of(transform, points) -> np.ndarray:
    return np.array([transform.TransformPoint(p.tolist()) for p in points])


def points_in(grid, seed: int = 5, margin: float = 2.0) -> np.ndarray:
    index = np.random.default_rng(seed).uniform(margin, np.array(grid.size) - 1 - margin, (60, grid.dim))
    return grid.index_to_world(index)


@pytest.mark.parametrize("out", ["whole.h5", "whole.nii.gz", "whole.nrrd"])
@pytest.mark.parametrize("order", [("field.nii.gz", "affine.mat"), ("affine.mat", "field.nii.gz")])
@pytest.mark.parametrize("reference", [True, False])
def test_a_chain_becomes_one_file_that_simpleitk_reads_as_the_chain(files, cli, order, out, reference):
    folder, grid = files
    paths, options = [folder / name for name in order], ("--reference", folder / "reference.nrrd") if reference else ()
    answer = cli("transform", "--transform", *paths, *options, "--out", folder / out)
    if not reference and order[0] == "affine.mat" and out != "whole.h5":
        assert "begins with a linear part" in answer.sentence() and "--reference" in answer.err and not (folder / out).exists()
        return
    assert answer.status == 0 and f"wrote {folder / out}: " in answer.err
    points = points_in(grid) if not reference else grid.points()[(slice(3, -3),) * grid.dim].reshape(-1, grid.dim)[::7]
    exact = reference or out == "whole.h5"  # between the points of a lattice a total is interpolated
    expected, found = (images_of(t, points) for t in (in_itk(*paths), itk_of(folder / out)))
    assert np.abs(found - expected).max() < (2e-3 if exact else 0.2)
    if reference and out != "whole.h5":
        assert read_transform(folder / out).grid.same_as(grid), "displacements lie on the voxels that were asked for"


@pytest.mark.parametrize("out", ["a.tfm", "a.txt", "a.mat", "a.h5"])
def test_linear_chains_stay_linear(files, cli, out):
    folder, grid = files
    write_transform(random_affine(7, grid.dim, grid.centre), folder / "second.tfm")
    paths = [folder / "affine.mat", folder / "second.tfm"]
    for options in ((), ("--reference", folder / "reference.nrrd")):
        assert "affine (" in cli("transform", "--transform", *paths, *options, "--out", folder / out).err
        made = sitk.ReadTransform(str(folder / out))
        made = made if made.GetName() != "CompositeTransform" else sitk.CompositeTransform(made)
        assert made.IsLinear() and np.abs(images_of(made, points_in(grid)) - images_of(in_itk(*paths), points_in(grid))).max() < 1e-4
        cli("transform", "--transform", folder / out, "--inverse", "--out", folder / "back.tfm")
        back = images_of(sitk.ReadTransform(str(folder / "back.tfm")), images_of(made, points_in(grid)))
        assert np.abs(back - points_in(grid)).max() < 1e-4
    assert "write it as .tfm or .h5, or name an image" in cli("transform", "--transform", *paths, "--out", folder / "a.nii.gz").sentence()
    assert "can hold a linear transform only" in cli("transform", "--transform", folder / "field.nii.gz", "--out", folder / out).err or out == "a.h5"


@pytest.mark.parametrize("out, reference", [("back.h5", False), ("back.h5", True), ("back.nii.gz", True)])
def test_an_inverse_says_how_exact_it_is(files, cli, out, reference):
    folder, grid = files
    paths = [folder / "field.nii.gz", folder / "affine.mat"]
    moving = grid.pad(5)
    write_image(Image(torch.rand(1, 1, *moving.shape), moving), folder / "moving.nrrd")
    options = ("--reference", folder / "moving.nrrd") if reference else ()
    answer = cli("transform", "--transform", *paths, "--inverse", *options, "--out", folder / out)
    assert answer.status == 0, answer.err
    mean, largest = (float(v) for v in re.search(r"leaves (\S+) mm on average, at most (\S+) mm", answer.err).groups())
    points = points_in(grid, margin=4.0)
    moved = images_of(in_itk(*paths), points)
    kept = moving.pad(-1).contains(moved) if reference else np.ones(len(points), bool)
    error = np.linalg.norm(images_of(itk_of(folder / out), moved[kept]) - points[kept], axis=1)
    assert kept.sum() > 10 and mean < 0.1 * float(grid.spacing.min()) and error.mean() < 3 * mean and error.max() < 1.3 * largest
    assert "remark" not in answer.err


def test_the_inverse_from_a_file_is_as_good_as_before_it_was_written(tmp_path, cli):
    """Files have a border of zeros; the inverse must undo the map of the voxels at the end of the image, not of that border."""
    grid = Grid.from_parts((20, 22, 24), (1.0, 1.5, 2.0))
    field = smooth(4, grid)
    write_transform(field, tmp_path / "t.h5")
    answer = cli("transform", "--transform", tmp_path / "t.h5", "--inverse", "--out", tmp_path / "i.h5")
    points = torch.as_tensor(grid.points()).reshape(1, -1, 3).float()
    before, after = (float((inverse(field(points)) - points).norm(dim=-1).max()) for inverse in (field.inverse(), read_transform(tmp_path / "i.h5")))
    assert after < 1.1 * before + 1e-3 and float(re.search(r"at most (\S+) mm", answer.err)[1]) == pytest.approx(after, rel=0.01)


def test_what_a_transform_is_can_be_looked_at(tmp_path, cli):
    rigid = sitk.VersorRigid3DTransform()
    rigid.SetRotation([1.0, 2.0, -2.0], np.deg2rad(30.0))
    rigid.SetTranslation([4.0, -5.0, 6.0])
    sitk.WriteTransform(rigid, str(tmp_path / "r.tfm"))
    text = cli("transform", "--transform", tmp_path / "r.tfm").out
    assert "1. rigid (6 degrees of freedom): turns by 30 degrees (10 about x, 20 about y, -20 about z), moves the origin by (4, -5, 6) mm" in text
    grid = Grid.from_parts((8, 9, 10))
    write_transform(Affine.translation([3.0, 0.0, 4.0]) @ Displacement(torch.zeros(1, 3, 8, 9, 10), grid), tmp_path / "t.h5")
    lines = cli("transform", "--transform", tmp_path / "t.h5").out.splitlines()
    assert lines[0].startswith("3D map of fixed points to moving points (LPS, mm) in 2 parts")
    assert lines[1].startswith("1. displacements on 10 x 9 x 8 points 1 x 1 x 1 mm apart: moves by 0 mm on average") and "no folds" in lines[1]
    assert lines[2] == "2. translation (3 degrees of freedom): moves the origin by (3, 0, 4) mm" and "at most 5 mm; no folds" in lines[3]
    assert cli("transform", "--transform", tmp_path / "t.h5", "--inverse").out.startswith("3D map of moving points to fixed points")


@DIMS
def test_a_spline_of_itk_is_told_as_one_and_written_as_its_field(tmp_path, cli, dim):
    image = sitk.Image([20, 24, 16][:dim], sitk.sitkFloat32)
    image.SetSpacing([2.0, 1.5, 3.0][:dim])
    spline = sitk.BSplineTransformInitializer(image, [4] * dim, 3)
    count = len(spline.GetParameters())
    spline.SetParameters(np.random.default_rng(0).normal(0, 0.7, count).tolist())
    sitk.WriteTransform(spline, str(tmp_path / "b.tfm"))
    text = cli("transform", "--transform", tmp_path / "b.tfm").out
    assert f"1. cubic B-spline of {' x '.join(['7'] * dim)} control points ({count} degrees of freedom): moves by" in text and "no folds" in text
    assert cli("transform", "--transform", tmp_path / "b.tfm", "--out", tmp_path / "b.nii.gz").status == 0
    points = points_in(Grid.from_parts(image.GetSize()[::-1], image.GetSpacing()))
    assert np.abs(images_of(itk_of(tmp_path / "b.nii.gz"), points) - images_of(spline, points)).max() < 0.05


@DIMS
def test_kinds_of_linear_transforms(tmp_path, cli, dim):
    turn = sitk.Euler2DTransform() if dim == 2 else sitk.Euler3DTransform()
    turn.SetParameters([0.2, 5.0, 6.0] if dim == 2 else [0.1, 0.2, np.pi, 5.0, 6.0, 7.0])
    rotation = np.array(turn.GetMatrix()).reshape(dim, dim)
    flip, stretch = np.diag([-1.0] + [1.0] * (dim - 1)), np.diag([1.2] + [1.0] * (dim - 1))
    kinds = {"identity: moves nothing": np.eye(dim), f"rigid ({3 * dim - 3} degrees of freedom)": rotation, f"similarity ({3 * dim - 2} d": 1.1 * rotation,
             f"affine ({dim * dim + dim} degrees of freedom)": rotation @ stretch, "mirrors": flip}
    for words, linear in kinds.items():
        matrix = np.eye(dim + 1)
        matrix[:dim, :dim] = linear
        write_transform(Affine(torch.as_tensor(matrix)), tmp_path / "t.tfm")
        text = cli("transform", "--transform", tmp_path / "t.tfm").out
        assert words in text and ("mirrors" in text) == (linear is flip)
    write_image(Image(torch.rand(1, 1, *(8,) * dim), Grid.from_parts((8,) * dim)), tmp_path / "i.nrrd")
    call = ("transform", "--transform", tmp_path / "t.tfm", "--reference", tmp_path / "i.nrrd")
    assert "no folds" in cli(*call).out and "folds" not in cli(*call, "--out", tmp_path / "mirror.nii.gz").err


@DIMS
def test_folds_are_remarked_on_and_borders_of_zeros_are_none(tmp_path, cli, dim):
    grid = Grid.from_parts((16,) * dim)
    shift = torch.zeros(1, dim, *grid.shape)
    shift[:, 0] = 4.0  # over the border of zeros it falls by more than a voxel a voxel
    write_transform(Displacement(shift, grid), tmp_path / "shift.nii.gz")
    shift[..., 8:] = -4.0
    write_transform(Displacement(shift, grid), tmp_path / "folded.nii.gz")
    for name, told in (("shift", False), ("folded", True)):
        answer = cli("transform", "--transform", tmp_path / f"{name}.nii.gz", "--out", tmp_path / "out.h5")
        assert answer.status == 0 and ("remark: the transform folds at" in answer.err) == told
        assert ("no folds" in cli("transform", "--transform", tmp_path / f"{name}.nii.gz").out) == (not told)
    answer = cli("transform", "--transform", tmp_path / "folded.nii.gz", "--inverse", "--out", tmp_path / "inverse.h5")
    assert answer.status == 0 and float(re.search(r"at most (\S+) mm", answer.err)[1]) > 5 and "has no inverse there" in answer.err


def test_sentences(files, cli):
    folder, grid = files
    write_transform(Affine.identity(5 - grid.dim), folder / "other.tfm")
    call = ("transform", "--transform", folder / "affine.mat", folder / "other.tfm")
    assert f"{5 - grid.dim}D transform where a {grid.dim}D one is needed" in cli(*call).sentence()
    assert "ends in '.vtk', which cannot hold a transform" in cli(*call[:3], "--out", folder / "a.vtk").sentence()
    far = Image(torch.rand(1, 1, *grid.shape), grid.moved(Affine.translation([900.0] * grid.dim).numpy()))
    write_image(far, folder / "far.nrrd")
    answer = cli("transform", "--transform", folder / "field.nii.gz", "--inverse", "--reference", folder / "far.nrrd", "--out", folder / "a.nii.gz")
    assert "with --inverse that is the moving image" in answer.sentence() and not (folder / "a.nii.gz").exists()


@pytest.mark.parametrize("axis", (0, 1, 2))
def test_a_slice_of_a_volume_has_a_field_and_large_shifts_an_inverse(tmp_path, cli, axis):
    """ITK takes a NIfTI file of one slice of vectors for a 2D image; half a voxel inside the lattice the inverse is exact, however far points go."""
    grid = Grid.from_parts(tuple(1 if k == axis else 12 for k in range(3)), (2.0, 3.0, 4.0), direction=random_grid(3, 3).direction)
    far = Affine.translation([300.0, -200.0, 100.0]) @ random_affine(2, 3, grid.centre, shift=0.0, strength=0.0)
    write_transform(far @ smooth(3, grid, 0.5), tmp_path / "t.h5")
    moving = grid.moved(far.numpy())
    write_image(Image(torch.rand(1, 1, *grid.shape), moving), tmp_path / "moving.nrrd")
    answer = cli("transform", "--transform", tmp_path / "t.h5", "--inverse", "--reference", tmp_path / "moving.nrrd", "--out", tmp_path / "i.nii.gz")
    assert answer.status == 0 and float(re.search(r"at most (\S+) mm", answer.err)[1]) < 1.0
    points = moving.points().reshape(-1, 3)
    there = read_transform(tmp_path / "i.nii.gz", 3)(torch.as_tensor(points)[None])[0].numpy()
    assert np.abs(images_of(itk_of(tmp_path / "i.nii.gz"), points) - there).max() < 1e-2, "374 mm in single precision, at the end of the lattice"
    back = images_of(sitk.ReadTransform(str(tmp_path / "t.h5")), there)
    assert np.median(np.linalg.norm(back - points, axis=1)) < 0.1
    assert cli("transform", "--transform", tmp_path / "t.h5", "--out", tmp_path / "total.nii.gz").status == 0
    assert np.abs(images_of(itk_of(tmp_path / "total.nii.gz"), grid.points().reshape(-1, 3))
                  - images_of(sitk.ReadTransform(str(tmp_path / "t.h5")), grid.points().reshape(-1, 3))).max() < 1e-3
