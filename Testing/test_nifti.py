"""Headers of NIfTI files that state more than one thing, or what images cannot hold."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import torch
from truths import random_grid

from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.image import Image
from DeepRegistrationLib.io import read_image, write_image
from DeepRegistrationLib.io.images import other_placement


@pytest.mark.parametrize("codes, taken", [((1, 4), "qform"), ((1, 1), "sform"), ((0, 2), None), ((2, 0), None)])
@pytest.mark.parametrize("unit", ["mm", "micron"])
def test_two_placements_in_one_header_are_found(tmp_path, codes, taken, unit):
    """ITK chooses by the codes; who works with FSL or SPM may have meant the other one."""
    spacing = np.array([1.5, 2.0, 2.5])
    place = {"qform": random_grid(1, 3, (5, 6, 7), spacing, flipped=True), "sform": random_grid(2, 3, (5, 6, 7), spacing)}
    image = nibabel.Nifti1Image(np.zeros((7, 6, 5), np.float32), None)
    image.set_qform(np.diag([-1, -1, 1, 1]) @ place["qform"].affine, codes[0])
    image.set_sform(np.diag([-1, -1, 1, 1]) @ place["sform"].affine, codes[1])
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "two.nii.gz")
    grid, scale = read_image(tmp_path / "two.nii.gz").grid, {"mm": 1.0, "micron": 1e-3}[unit]
    found = other_placement(tmp_path / "two.nii.gz", grid)
    assert (found is None) == (taken is None)
    if taken:
        left = {"qform": "sform", "sform": "qform"}[taken]
        distance = np.linalg.norm(place[left].corners() - place[taken].corners(), axis=1).max() * scale
        assert found[:2] == (taken, left) and found[2] == pytest.approx(distance, rel=1e-3)
        assert np.allclose(grid.corners(), scale * place[taken].corners(), atol=1e-3 * scale)


def test_a_usual_header_has_one_placement(tmp_path):
    flipped, thin, other = random_grid(3, 3, (5, 6, 7), flipped=True), random_grid(4, 3, (5, 1, 7)), random_grid(5, 3, (3, 4, 5))
    for name, grid in (("a.nii", flipped), ("b.nii.gz", thin), ("c.nrrd", other)):
        write_image(Image(torch.zeros(1, 1, *grid.shape), grid), tmp_path / name)
        assert other_placement(tmp_path / name, grid) is None


def test_complex_numbers_are_named(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 5, 6), np.complex64), np.eye(4)), tmp_path / "k.nii.gz")
    with pytest.raises(InputError, match="holds complex numbers"):
        read_image(tmp_path / "k.nii.gz")
