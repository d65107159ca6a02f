"""Image, label and DICOM files: what is written is read back with its geometry, and bad input gets one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given
from hypothesis import strategies as st
from truths import random_grid

from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image, Labels
from DeepRegistrationLib.io import read_grid, read_image, read_labels, read_mask, write_image, write_labels, write_sequence

VOLUME_TYPES = (".nii.gz", ".nii", ".nrrd", ".mha")


@st.composite
def grids(draw, dims=(2, 3)):
    """Oblique, flipped, anisotropic lattices, some with an axis of one voxel, origins up to a metre away."""
    dim = draw(st.sampled_from(dims))
    shape = tuple(draw(st.integers(1, 7)) for _ in range(dim))
    if max(shape[1:]) == 1:
        shape = (*shape[:-1], 4)
    spacing = np.array([draw(st.floats(0.05, 12)) for _ in range(dim)])
    return random_grid(draw(st.integers(0, 10**6)), dim, shape, spacing, draw(st.booleans()), draw(st.booleans()), reach=1000.0)


def image_on(grid: Grid, seed=0, dtype=torch.float32) -> Image:
    return Image(torch.as_tensor(np.random.default_rng(seed).normal(size=(1, 1, *grid.shape)) * 100).to(dtype), grid)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("images")


# written and read back

@given(grid=grids(), kind=st.sampled_from(VOLUME_TYPES))
def test_image_comes_back(folder, grid, kind):
    image = image_on(grid)
    write_image(image, folder / f"a{kind}")
    back = read_image(folder / f"a{kind}")
    assert back.grid.same_as(grid, 2e-3)
    assert np.sign(np.linalg.det(back.grid.matrix)) == np.sign(np.linalg.det(grid.matrix))
    assert torch.equal(back.data, image.data) and back.name == f"a{kind}"


@given(grid=grids(), kind=st.sampled_from(VOLUME_TYPES), low=st.sampled_from([0, -3]),
       high=st.sampled_from([1, 255, 256, 70000, 2**31 + 5]))
def test_labels_come_back_in_the_smallest_type(folder, grid, kind, low, high):
    data = torch.zeros(1, 1, *grid.shape, dtype=torch.int64)
    data.view(-1)[0], data.view(-1)[-1] = low, high
    write_labels(Labels(data, grid), folder / f"l{kind}")
    back = read_labels(folder / f"l{kind}")
    assert torch.equal(back.data.long(), data) and back.grid.same_as(grid, 2e-3)
    stored = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"l{kind}")))
    limits = np.iinfo(stored.dtype)
    assert (stored.dtype.itemsize == 1) == (high <= (255 if low == 0 else 127)) and limits.min <= low and high <= limits.max


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.float16,
                                   torch.float32, torch.float64, torch.bool])
@pytest.mark.parametrize("kind", VOLUME_TYPES)
def test_every_dtype_is_stored_without_loss(tmp_path, dtype, kind):
    grid = random_grid(5, 3, (4, 5, 6))
    image = Image((torch.arange(120).reshape(1, 1, 4, 5, 6) % (2 if dtype == torch.bool else 120)).to(dtype), grid)
    write_image(image, tmp_path / f"a{kind}")
    assert torch.equal(read_image(tmp_path / f"a{kind}", dtype=torch.float64).data, image.data.double())


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("kind", VOLUME_TYPES)
def test_one_slice_stays_3d(tmp_path, axis, kind):
    shape = [5, 6, 7]
    shape[axis] = 1
    grid = random_grid(3, 3, shape)
    write_image(image_on(grid), tmp_path / f"a{kind}")
    back = read_image(tmp_path / f"a{kind}")
    assert back.grid.shape == tuple(shape) and back.grid.same_as(grid, 1e-3)


@pytest.mark.parametrize("kind", VOLUME_TYPES)
def test_voxels_lie_where_simpleitk_has_them(tmp_path, kind):
    grid = random_grid(8, 3, (4, 5, 6), flipped=True)
    write_image(image_on(grid), tmp_path / f"a{kind}")
    itk = sitk.ReadImage(str(tmp_path / f"a{kind}"))
    image = read_image(tmp_path / f"a{kind}")
    for x, y, z in [(0, 0, 0), (5, 0, 0), (1, 2, 3), (5, 4, 3)]:
        assert np.allclose(itk.TransformIndexToPhysicalPoint((x, y, z)), image.grid.index_to_world([x, y, z]), atol=1e-9)
        assert itk.GetPixel(x, y, z) == image.data[0, 0, z, y, x]


def test_vector_images_and_time_become_channels(tmp_path):
    grid = random_grid(1, 3, (3, 4, 5))
    image = Image(torch.randn(1, 2, 3, 4, 5), grid)
    for kind in VOLUME_TYPES:
        write_image(image, tmp_path / f"v{kind}")
        assert torch.equal(read_image(tmp_path / f"v{kind}", channels="vector").data, image.data)
        with pytest.raises(InputError, match="holds 2 values per voxel where one is needed"):
            read_image(tmp_path / f"v{kind}")
    series = sitk.JoinSeries([sitk.GetImageFromArray(np.full((3, 4, 5), float(k))) for k in range(6)])
    sitk.WriteImage(series, str(tmp_path / "t.nii.gz"))
    back = read_image(tmp_path / "t.nii.gz", channels="vector")
    assert back.data.shape == (1, 6, 3, 4, 5) and back.data[0, :, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(InputError, match=r"is 4D \(5 x 4 x 3 x 6\).*name one time point, as in t.nii.gz#0"):
        read_image(tmp_path / "t.nii.gz")


@pytest.mark.parametrize("kind", [".nii.gz", ".nrrd", ".mha"])
def test_one_time_point_of_a_series(tmp_path, kind):
    frames = [sitk.GetImageFromArray(np.full((3, 4, 5), float(k))) for k in range(6)]
    for frame in frames:
        frame.SetSpacing((2.0, 1.0, 3.0))
    path = tmp_path / f"t{kind}"
    sitk.WriteImage(sitk.JoinSeries(frames), str(path))
    image = read_image(f"{path}#4")
    assert image.data.shape == (1, 1, 3, 4, 5) and (image.data == 4).all() and image.name == f"t{kind}#4"
    assert np.allclose(image.grid.spacing, (2, 1, 3)) and read_grid(f"{path}#4").same_as(image.grid)
    for part, expected in (("6", "has the points 0 to 5"), ("last", "'last' of .* has the points 0 to 5")):
        with pytest.raises(InputError, match=expected):
            read_image(f"{path}#{part}")
    sitk.WriteImage(frames[0], str(tmp_path / f"one{kind}"))
    with pytest.raises(InputError, match="is no series in time; name the file without '#0'"):
        read_image(tmp_path / f"one{kind}#0")
    with pytest.raises(InputError, match="does not exist"):
        read_image(tmp_path / f"none{kind}#0")


def test_one_time_point_of_a_sequence_of_slicer(tmp_path):
    grid = random_grid(4, 3, (3, 4, 5), flipped=True)
    images = tuple(image_on(grid, seed) for seed in range(3))
    write_sequence(images, (1.0, 2.0, 4.0), tmp_path / "a.seq.nrrd", "time")
    back = read_image(f"{tmp_path}/a.seq.nrrd#2")
    assert torch.equal(back.data, images[2].data) and back.grid == grid
    with pytest.raises(InputError, match="has the points 0 to 2"):
        read_image(f"{tmp_path}/a.seq.nrrd#3")


@pytest.mark.parametrize("kind", VOLUME_TYPES[2:])
def test_a_fourth_axis_of_one_is_removed(tmp_path, kind):
    sitk.WriteImage(sitk.Image([5, 4, 3, 1], sitk.sitkInt16), str(tmp_path / f"a{kind}"))
    assert read_image(tmp_path / f"a{kind}").grid.shape == (3, 4, 5)


def test_packed_nifti_is_one_ordinary_gzip_member(tmp_path):
    import gzip
    import nibabel

    image = image_on(random_grid(2, 3, (100, 130, 140)))
    write_image(image, tmp_path / "a.nii.gz")
    assert len(gzip.decompress((tmp_path / "a.nii.gz").read_bytes())) == 352 + image.data.numel() * 4
    loaded = nibabel.load(tmp_path / "a.nii.gz")
    assert np.array_equal(loaded.get_fdata(dtype=np.float32).T, image.data[0, 0].numpy())
    assert np.allclose(np.diag([-1, -1, 1, 1]) @ loaded.affine, image.grid.affine, atol=1e-3)
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"]


# segmentations

def test_segmentation_keeps_names_and_geometry(tmp_path):
    grid = random_grid(4, 3, (5, 6, 7), flipped=True)
    data = torch.randint(0, 4, (1, 1, 5, 6, 7), generator=torch.Generator().manual_seed(0))
    write_labels(Labels(data * 10, grid, names=((10, "left thalamus"), (20, "right"))), tmp_path / "a.seg.nrrd")
    back = read_labels(tmp_path / "a.seg.nrrd")
    assert torch.equal(back.data.long(), data * 10) and back.grid == grid
    assert back.names == ((10, "left thalamus"), (20, "right"), (30, "Label 30"))


def test_slicer_reads_and_writes_the_same_segmentation(tmp_path):
    slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
    grid = random_grid(4, 3, (5, 6, 7))
    data = torch.zeros(1, 1, 5, 6, 7, dtype=torch.int32)
    data[..., 1:3, 2:4, 1:5], data[..., 4, 4, 2:6] = 3, 7
    write_labels(Labels(data, grid, names=((3, "liver"), (7, "vein"))), tmp_path / "a.seg.nrrd")
    scene = slicer.vtkMRMLScene()
    node, storage = slicer.vtkMRMLSegmentationNode(), slicer.vtkMRMLSegmentationStorageNode()
    scene.AddNode(node), scene.AddNode(storage)
    storage.SetFileName(str(tmp_path / "a.seg.nrrd"))
    assert storage.ReadData(node)
    segmentation = node.GetSegmentation()
    segments = [segmentation.GetNthSegment(k) for k in range(segmentation.GetNumberOfSegments())]
    assert [(s.GetName(), s.GetLabelValue()) for s in segments] == [("liver", 3), ("vein", 7)]
    assert segments[0].GetColor() != segments[1].GetColor()
    storage.SetFileName(str(tmp_path / "b.seg.nrrd"))
    assert storage.WriteData(node)
    back = read_labels(tmp_path / "b.seg.nrrd")
    assert [name for _, name in back.names] == ["liver", "vein"]
    assert torch.equal(back.at(grid).data.int(), data)


def test_overlapping_segments_are_merged_with_the_later_on_top(tmp_path):
    layers = np.zeros((3, 4, 5, 2), np.uint8)
    layers[0, :, :, 0], layers[0:2, 0, :, 1] = 1, 1
    image = sitk.GetImageFromArray(layers, isVector=True)
    for k, name in enumerate(("organ", "tumour")):
        for key, value in (("ID", f"S{k}"), ("Name", name), ("LabelValue", "1"), ("Layer", str(k))):
            image.SetMetaData(f"Segment{k}_{key}", value)
    sitk.WriteImage(image, str(tmp_path / "o.seg.nrrd"))
    back = read_labels(tmp_path / "o.seg.nrrd")
    assert back.names == ((1, "organ"), (2, "tumour"))
    assert (back.data[0, 0, 0, 1:] == 1).all() and (back.data[0, 0, 0:2, 0] == 2).all() and int((back.data == 0).sum()) == 60 - 20 - 5


@pytest.mark.parametrize("kind", [torch.float32, torch.uint8])
def test_a_mask_is_where_any_numbers_are_above_0(tmp_path, kind):
    grid = random_grid(4, 3, (3, 4, 5))
    values = torch.tensor([-1.0, 0.0, 0.3, 255.0, float("nan")] if kind.is_floating_point else [0.0, 1.0, 0.0, 7.0, 255.0]).repeat(12).reshape(1, 1, 3, 4, 5)
    write_image(Image(values.to(kind), grid), tmp_path / "m.nrrd")
    mask = read_mask(tmp_path / "m.nrrd")
    assert torch.equal(mask.data > 0, values > 0) and mask.values() == [1] and mask.grid == grid
    write_image(Image(torch.ones(1, 2, 3, 4, 5), grid), tmp_path / "v.nrrd")
    with pytest.raises(InputError, match="2 values per voxel"):
        read_mask(tmp_path / "v.nrrd")


def test_label_values_must_be_whole(tmp_path):
    grid = Grid.from_parts((3, 4, 5))
    write_image(Image(torch.full((1, 1, 3, 4, 5), 0.5), grid), tmp_path / "a.nrrd")
    with pytest.raises(InputError, match="not whole numbers"):
        read_labels(tmp_path / "a.nrrd")
    write_image(Image(torch.full((1, 1, 3, 4, 5), 4.0), grid), tmp_path / "b.nrrd")
    assert read_labels(tmp_path / "b.nrrd").values() == [4]
    with pytest.raises(InputError, match="one 3D label map"):
        write_labels(Labels(torch.zeros(1, 1, 4, 5, dtype=torch.int32), Grid.from_parts((4, 5))), tmp_path / "c.seg.nrrd")


# pictures

@pytest.mark.parametrize("kind", [".png", ".tif"])
def test_pictures_are_2d(tmp_path, kind):
    array = np.random.default_rng(0).integers(0, 255, (20, 30)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / f"p{kind}"))
    image = read_image(tmp_path / f"p{kind}")
    assert image.dim == 2 and np.array_equal(image.data[0, 0].numpy(), array)


def test_color_needs_gray(tmp_path):
    array = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), str(tmp_path / "c.png"))
    with pytest.raises(InputError, match=r"RGB, 3 channels\) where one value per voxel is needed; convert it to gray"):
        read_image(tmp_path / "c.png")
    gray = read_image(tmp_path / "c.png", channels="gray").data[0, 0].numpy()
    assert np.allclose(gray, array @ np.array([0.299, 0.587, 0.114]), atol=1e-3)
    assert read_image(tmp_path / "c.png", channels="vector").data.shape == (1, 3, 20, 30)


def test_png_takes_whole_values_of_one_or_three_channels_only(tmp_path):
    grid = Grid.from_parts((4, 5))
    values = torch.arange(20.0).reshape(1, 1, 4, 5)
    for kept in (values, torch.cat((values, values + 1, values + 2), 1), 3000 * values):
        write_image(Image(kept, grid), tmp_path / "a.png")
        assert torch.equal(read_image(tmp_path / "a.png", channels="vector").data, kept)
    for bad in (values + 0.5, values - 1, values * 4000, values * float("nan")):
        with pytest.raises(InputError, match="whole numbers from 0 to 65535"):
            write_image(Image(bad, grid), tmp_path / "b.png")
    with pytest.raises(InputError, match="2D image of one or three channels"):
        write_image(image_on(Grid.from_parts((2, 3, 4))), tmp_path / "b.png")
    assert not (tmp_path / "b.png").exists()


# bad files

def test_sentences_for_what_is_not_an_image(tmp_path):
    (tmp_path / "empty.nii.gz").touch()
    (tmp_path / "text.nrrd").write_text("hello")
    (tmp_path / "table.xlsx").write_text("hello")
    for name, sentence in {"none.nii": "does not exist", "empty.nii.gz": "is empty", "text.nrrd": "could not be read as .nrrd",
                           "table.xlsx": "type '.xlsx', which is not an image", "": "folder without a DICOM series"}.items():
        with pytest.raises(InputError, match=sentence) as error:
            read_image(tmp_path / name)
        assert str(tmp_path) in str(error.value) and "\n" not in str(error.value) and "sitk" not in str(error.value)


@pytest.mark.parametrize("kind", [".nii.gz", ".nii", ".nrrd", ".mha", ".png", ".tif", ".bmp", ".jpg"])
@pytest.mark.parametrize("share", [0.95, 0.5, 0.05])
def test_truncated_files_are_refused(tmp_path, kind, share):
    shape = (40, 50) if kind in (".png", ".tif", ".bmp", ".jpg") else (10, 40, 50)
    pixels = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(pixels), str(tmp_path / f"a{kind}"), kind != ".nii")
    content = (tmp_path / f"a{kind}").read_bytes()
    (tmp_path / f"t{kind}").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match="incomplete"):
        read_image(tmp_path / f"t{kind}")
    read_image(tmp_path / f"a{kind}", channels="vector")


def test_gzip_of_several_members_is_complete(tmp_path):
    import gzip

    write_image(image_on(random_grid(2, 3, (5, 6, 7))), tmp_path / "a.nii")
    content = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content[:500]) + gzip.compress(content[500:]))
    assert torch.equal(read_image(tmp_path / "a.nii.gz").data, read_image(tmp_path / "a.nii").data)


def test_nifti_two_is_named(tmp_path):
    import nibabel

    nibabel.save(nibabel.Nifti2Image(np.zeros((4, 5, 6), np.float32), np.eye(4)), tmp_path / "n.nii.gz")
    with pytest.raises(InputError, match="NIfTI-2 file"):
        read_image(tmp_path / "n.nii.gz")


def test_sheared_axes(tmp_path):
    import nibabel

    affine = np.array([[1, 0.3, 0, 5], [0, 1, 0, 6], [0, 0, 2, 7], [0, 0, 0, 1.0]])
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.float32), affine), tmp_path / "s.nii")
    with pytest.raises(InputError, match="sheared voxel axes"):
        read_image(tmp_path / "s.nii")
    image = image_on(Grid((6, 5, 4), affine))
    with pytest.raises(InputError, match="cannot hold sheared"):
        write_image(image, tmp_path / "t.nii.gz")
    for kind in (".nrrd", ".mha"):
        write_image(image, tmp_path / f"t{kind}")
        assert read_image(tmp_path / f"t{kind}").grid == image.grid


def test_zero_spacing_is_named_or_read_as_itk_does(tmp_path):
    head = b"ObjectType = Image\nNDims = 3\nBinaryData = True\nElementSpacing = 0 1 1\n"
    head += b"DimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
    (tmp_path / "z.mha").write_bytes(head + bytes(8))
    with pytest.raises(InputError, match="z.mha"):
        read_image(tmp_path / "z.mha")


def test_nan_voxels_are_left_to_the_request(tmp_path):
    image = Image(torch.full((1, 1, 3, 4, 5), float("nan")), Grid.from_parts((3, 4, 5)))
    for kind in VOLUME_TYPES:
        write_image(image, tmp_path / f"n{kind}")
        assert bool(read_image(tmp_path / f"n{kind}").data.isnan().all())


def test_nifti_voxels_come_from_the_named_file(tmp_path):
    """ITK reads the voxels of a.nii where a.nii.gz was asked for."""
    grid = Grid.from_parts((3, 4, 5))
    write_image(Image(torch.full((1, 1, 3, 4, 5), 7.0), grid), tmp_path / "a.nii.gz")
    write_image(Image(torch.full((1, 1, 3, 4, 5), 9.0), grid), tmp_path / "a.nii")
    assert float(read_image(tmp_path / "a.nii.gz").data.mean()) == 7 and float(read_image(tmp_path / "a.nii").data.mean()) == 9


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["u1", "i2", "u2", "i4", "f4", "f8"])
def test_nifti_of_every_kind_equals_nibabel(tmp_path, order, kind):
    import nibabel

    values = np.random.default_rng(0).integers(0, 100, (4, 5, 6)).astype(order + kind)
    header = nibabel.Nifti1Image(values, np.diag([-2.0, -2.0, 3.0, 1.0])).header.as_byteswapped(order)
    image = nibabel.Nifti1Image(values, np.diag([-2.0, -2.0, 3.0, 1.0]), header)
    image.header.set_data_dtype(order + kind)
    image.header.set_slope_inter(0.5, -10)
    nibabel.save(image, tmp_path / "n.nii.gz")
    back = read_image(tmp_path / "n.nii.gz")
    assert np.allclose(back.data[0, 0].numpy(), nibabel.load(tmp_path / "n.nii.gz").get_fdata().T, atol=1e-3)
    assert back.grid.spacing.tolist() == [2, 2, 3]


def test_writing_refuses_with_a_sentence_and_leaves_nothing(tmp_path):
    image = image_on(random_grid(1, 3, (3, 4, 5)))
    with pytest.raises(InputError, match="does not exist; make the folder first"):
        write_image(image, tmp_path / "no" / "a.nii.gz")
    with pytest.raises(InputError, match="ends in '.gif'"):
        write_image(image, tmp_path / "a.gif")
    with pytest.raises(InputError, match="2 images in one batch"):
        write_image(Image(image.data.expand(2, -1, -1, -1, -1), image.grid), tmp_path / "a.nii")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="a limit of the file size stands for a full disk")
def test_full_disk_gives_a_sentence_and_keeps_the_old_file(tmp_path):
    script = """
import resource, signal, sys, torch
from pathlib import Path
from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib import io
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image
from DeepRegistrationLib.points import Points
from DeepRegistrationLib.transforms import Displacement
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
grid, noise = Grid.from_parts((50, 60, 70)), torch.randn(1, 3, 50, 60, 70)
for name in ('a.nii.gz', 'a.nii', 'a.nrrd', 'a.mha', 'd.h5', 'd.nii.gz', 'p.csv'):
    path = Path(sys.argv[1]) / name
    path.write_text('old')
    try:
        if name[0] == 'p':
            io.write_points(Points(torch.randn(1, 20000, 3)), path)
        elif name[0] == 'd':
            io.write_transform(Displacement(noise, grid), path)
        else:
            io.write_image(Image(noise[:, :1], grid), path)
    except InputError as error:
        assert 'could not be written' in str(error), error
        assert path.read_text() == 'old'
        path.unlink()
        print(name, len(list(path.parent.iterdir())))
"""
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, env=environment)
    names = ("a.nii.gz", "a.nii", "a.nrrd", "a.mha", "d.h5", "d.nii.gz", "p.csv")
    assert done.stdout.split("\n")[:-1] == [f"{name} 0" for name in names], done.stderr[-800:]


# real data

def test_brain_is_read_quickly(data):
    path = data / "brain3d-mni-tissues" / "t1.nii.gz"
    read_image(path)
    began = time.perf_counter()
    image = read_image(path)
    assert time.perf_counter() - began < 1.0 and image.grid.voxels > 8e6 and image.data.dtype == torch.float32


def test_header_oddities_of_real_files(data):
    assert np.allclose(read_image(data / "brain-tumour-followup" / "t1longi_2d_bl.nii.gz").grid.direction, [[0, -1], [1, 0]], atol=1e-6)
    assert read_image(data / "brain3d-pair-labelled" / "fixed.nii.gz").grid.size == (160, 192, 224)
    with pytest.raises(InputError, match="4D .68 x 68 x 6 x 30."):
        read_image(data / "timeseries-fmri" / "fmri.nii.gz")
