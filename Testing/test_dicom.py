"""DICOM: a series in a folder lies where its slices say, and what is missing, repeated or damaged is named."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.io import read_image


def test_dicom_series_equals_its_nifti(data):
    image, expected = read_image(data / "dicom-series" / "dicom"), read_image(data / "dicom-series" / "volume.nii.gz")
    assert image.grid == expected.grid and torch.equal(image.data, expected.data)
    slice_ = read_image(data / "dicom-series" / "dicom" / "CTHead34.dcm")
    assert slice_.grid.shape == (1, 64, 64) and torch.equal(slice_.data[0, 0, 0], image.data[0, 0, round(slice_.grid.origin[2] / 1.5)])


def test_missing_and_repeated_slices_are_named(data, tmp_path):
    names = sorted((data / "dicom-series" / "dicom").glob("*.dcm"), key=lambda p: int(p.stem[6:]))
    for path in [*names[:5], *names[7:12]]:
        shutil.copyfile(path, tmp_path / path.name)
    with pytest.raises(InputError, match=r"not evenly spaced \(4.5 mm from CTHead5.dcm to CTHead8.dcm, 1.5 mm elsewhere\)"):
        read_image(tmp_path)
    for path in names[5:7]:
        shutil.copyfile(path, tmp_path / path.name)
    assert read_image(tmp_path).grid.shape == (12, 64, 64)
    shutil.copyfile(names[3], tmp_path / "again.dcm")
    with pytest.raises(InputError, match="(CTHead4.dcm and again.dcm|again.dcm and CTHead4.dcm) of .* have the same position"):
        read_image(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.7])
def test_a_damaged_file_of_a_series_is_named(tmp_path, share):
    """GDCM leaves it out without a word, and at an end of the series nothing would show it. What is no slice may lie in the folder."""
    write_slices(tmp_path, "1.2.3.4")
    write_slices(tmp_path, "1.2.3.45", count=3)
    for name, content in (("notes.txt", b""), ("DICOMDIR", bytes(300)), ("report.dcm", bytes(128) + b"DICM 1.2.3.4")):
        (tmp_path / name).write_bytes(content)
    assert read_image(f"{tmp_path}#1.2.3.4").grid.shape == (5, 6, 8), "the number of one series is the begin of the other's"
    last = tmp_path / "1.2.3.4_4.dcm"
    last.write_bytes((content := last.read_bytes())[: int(share * len(content))])
    with pytest.raises(InputError, match="1.2.3.4_4.dcm in the DICOM folder .* is damaged or incomplete"):
        read_image(f"{tmp_path}#1.2.3.4")


def write_slices(folder, uid, tilt=0.0, count=5, shape=(6, 8)):
    """A series of secondary captures with positions; ``tilt`` mm of sideways shift a slice stands for a tilted gantry."""
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in range(count):
        image = sitk.GetImageFromArray((np.arange(48).reshape(shape) + 100 * k).astype(np.int16)[None])
        image.SetSpacing((0.5, 0.5, 2.0))
        tags = {"0008|0060": "CT", "0020|000e": uid, "0020|000d": "1.2.3", "0008|0018": f"{uid}.{k + 1}", "0020|0013": str(k + 1),
                "0008|103e": f"series {uid}",
                "0020|0032": f"-10\\{5 + tilt * k}\\{30 + 2 * k}", "0020|0037": "1\\0\\0\\0\\1\\0", "0028|0030": "0.5\\0.5"}
        for key, value in tags.items():
            image.SetMetaData(key, value)
        image.SetOrigin((-10, 5 + tilt * k, 30 + 2 * k))
        writer.SetFileName(str(folder / f"{uid}_{k}.dcm"))
        writer.Execute(image)


def test_tilted_gantry_gives_a_sheared_grid(tmp_path):
    write_slices(tmp_path, "1.2.3.4", tilt=0.7)
    grid = read_image(tmp_path).grid
    assert np.allclose(grid.index_to_world([0, 0, 4]), [-10, 5 + 4 * 0.7, 38]) and np.allclose(grid.index_to_world([2, 0, 0]), [-9, 5, 30])


def test_several_series_are_listed(tmp_path):
    write_slices(tmp_path, "1.2.3.4")
    write_slices(tmp_path, "1.2.3.5", count=3)
    with pytest.raises(InputError, match=r"2 DICOM series: 1\.2\.3\.4 \(5 files, series 1\.2\.3\.4\).*#1\.2\.3\.4"):
        read_image(tmp_path)
    assert read_image(f"{tmp_path}#1.2.3.5").grid.shape == (3, 6, 8)
    with pytest.raises(InputError, match="holds 0 series '9'"):
        read_image(f"{tmp_path}#9")


def test_multi_frame_dicom(data):
    with pytest.raises(InputError, match="color image"):
        read_image(data / "ultrasound-2dt" / "echo.dcm")
    image = read_image(data / "ultrasound-2dt" / "echo.dcm", channels="gray")
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(data / "ultrasound-2dt" / "sequence.nii.gz")))[:, 0]
    assert image.grid.shape == (30, 240, 320) and np.abs(image.data[0, 0].numpy() - expected).max() <= 0.51
