"""Slices that deform: a known deformation is followed, none is not invented, and what is made of the slices follows it."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
import truths_hip as hips

from DeepRegistrationLib.__main__ import main
from DeepRegistrationLib.engines.slice_bends import Bend, bent_points, unbent_points
from DeepRegistrationLib.engines.slice_maps import into_volume
from DeepRegistrationLib.engines.slices import rigid
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image
from DeepRegistrationLib.io import read_transform, write_image
from DeepRegistrationLib.method import find
from DeepRegistrationLib.runtime import Runtime, Silent
from DeepRegistrationLib.transforms import Displacement

RUNTIME = Runtime("cpu", threads=1)
QUICK = {"tried": 300, "angle": 12.0, "shift": 6.0}
SEED, FLIPS = 11, ((False, False), (True, False), (False, False), (False, True), (False, False), (False, False))


@lru_cache(maxsize=4)
def known(bend: float, flips=None):
    hip = hips.Hip(SEED)
    return hips.known_set(SEED, 4.0, 2.0, hip=hip, volume=hips.hip_volume(hip, hips.volume_grid(56)), flips=flips, bend=(bend, bend / 3))


@lru_cache(maxsize=4)
def registered(bend: float, preset: str, flips=None):
    values = {**QUICK, "placing": "flips"} if flips else QUICK
    return find(f"qmri:{preset}", values).run(known(bend, flips).problem, RUNTIME)


def distances(asked, result, bend: float) -> np.ndarray:
    """mm, root mean square over the tissue of every slice."""
    out = []
    for k, image in enumerate(asked.problem.slices):
        points = image.grid.points().reshape(-1, 3)
        shown = points @ asked.each[k][:3, :3].T + asked.each[k][:3, 3]
        plane = image.grid.moved(asked.each[k])
        true = shown + hips.bent(plane, SEED + k, bend, bend / 3)(shown)
        found = result.placed(k)(torch.as_tensor(points)[None])[0].numpy()
        tissue = hips.Hip(SEED).fractions(true)[:, hips.AIR] < 0.5
        out.append(np.sqrt(((found - true)[tissue] ** 2).sum(1).mean()))
    return np.array(out)


def test_a_known_deformation_is_followed_and_told():
    asked = known(4.0)
    rigid_only, bent = registered(4.0, "default"), registered(4.0, "deformed")
    before, after = (distances(asked, r, 4.0) for r in (rigid_only, bent))
    assert after.mean() < 0.85 * before.mean() and after.max() < before.max() + 0.05, (before, after)
    kept = [b for b in bent.bends if b.field is not None]
    assert len(kept) >= 3 and all(0.5 < b.largest < 8 and b.gain > 2 * b.error for b in kept)
    assert rigid_only.bends == () and rigid_only.placed(0) is rigid_only.transforms[0]


@pytest.mark.slow
def test_slices_that_do_not_deform_stay_as_they_are():
    asked = known(0.0)
    before, after = (distances(asked, registered(0.0, preset), 0.0) for preset in ("default", "deformed"))
    assert after.mean() < before.mean() + 0.1 and sum(b.field is not None for b in registered(0.0, "deformed").bends) <= 1


@pytest.mark.slow
def test_mirrored_slices_deform_where_they_were_found():
    asked = known(4.0, FLIPS)
    bent = registered(4.0, "deformed", FLIPS)
    assert bent.flips == FLIPS
    before, after = (distances(asked, r, 4.0) for r in (replace(bent, bends=()), bent))
    assert after.mean() < 0.9 * before.mean(), (before, after)


def test_points_and_maps_follow_the_deformation():
    plane = Grid.from_parts((1, 30, 30), [2.0, 2.0, 3.0], [-29, -29, 0])
    field = torch.zeros(1, 3, 3, 30, 30)
    field[:, 0] = 4.0
    bend = Bend(Displacement(field, plane.pad([0, 0, 1])), 0.1, 0.01)
    points = np.array([[0.0, 0.0, 0.4], [5.0, -3.0, 0.0]])
    assert np.allclose(bent_points(bend, points), points + [4, 0, 0]) and np.allclose(unbent_points(bend, points), points - [4, 0, 0], atol=1e-4)
    turned = bend.before(rigid([1, 2, 0], [0, 0, np.pi / 2], np.zeros(3)))
    assert np.allclose(bent_points(turned, points), points + [0, -4, 0], atol=1e-5), "4 mm along x after a quarter turn is -4 mm along y before it"
    picture = Image(torch.as_tensor(plane.points()[..., 0], dtype=torch.float32)[None, None], plane)
    volume = Grid.from_parts((3, 10, 10), 2.0, [-9, -9, -2])
    values = into_volume([picture], [np.eye(4)], volume, 0.0, Silent(), bends=[bend]).data[0, 0, 1].numpy()
    assert np.allclose(values, volume.points()[1, ..., 0] - 4, atol=1e-3), "a voxel at x shows what the slice has at x - 4"


@pytest.mark.slow
def test_on_the_command_line(tmp_path):
    asked = known(4.0)
    files = [str(tmp_path / f"s{k + 1}.nii.gz") for k in range(6)]
    for image, path in zip(asked.problem.slices, files):
        write_image(image, path)
    write_image(asked.problem.volume, tmp_path / "volume.nii.gz")
    assert main(["qmri", "register", "--slices", *files, "--volume", str(tmp_path / "volume.nii.gz"), "--method", "qmri:deformed", "--threads", "1", "--quiet",
                 "--set", "tried=800", "--out", str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out" / "result.json").read_text("utf-8"))
    kept = [k for k, bend in enumerate(record["bends"]) if bend["kept"]]
    assert kept and [k for k in range(6) if (tmp_path / "out" / f"slice{k + 1:02d}.h5").exists()] == kept
    points = torch.as_tensor(asked.problem.slices[kept[0]].grid.points().reshape(1, -1, 3)[:, 500:3000:37])
    maps = [read_transform(tmp_path / "out" / f"slice{kept[0] + 1:02d}.{kind}", 3)(points) for kind in ("tfm", "h5")]
    apart = (maps[0] - maps[1]).norm(dim=-1).max()
    assert 0.3 < float(apart) <= record["bends"][kept[0]]["largest_mm"] + 0.01
