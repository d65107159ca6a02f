"""Bones of slices learned from strokes: how much of the true bone they are, mirrored pictures, drawings, volumes, and the command line."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
import truths_hip as hips

from DeepRegistrationLib.__main__ import main
from DeepRegistrationLib.engines.bones import bone_between, features, learned_bones
from DeepRegistrationLib.engines.slice_starts import hull_start
from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image, Labels
from DeepRegistrationLib.io import read_labels, write_image, write_labels
from DeepRegistrationLib.runtime import Silent


@lru_cache(maxsize=2)
def known(seed=0):
    hip = hips.Hip(seed)
    return hips.known_set(seed + 1, 30.0, 15.0, hip=hip, volume=hips.hip_volume(hip, hips.volume_grid(44)), size=56, segments=True)


def dice(one: Labels, other: Labels) -> float:
    a, b = one.data > 0, other.data > 0
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_features_of_a_ramp_and_of_a_mirrored_picture():
    grid = Grid.from_parts((1, 20, 30), [2.0, 1.0, 4.0])
    ramp = Image(torch.as_tensor(3.0 * grid.points()[..., 0], dtype=torch.float32)[None, None], grid)
    middle = features(ramp, 1.0).reshape(20, 30, 3, 5)[8:12, 13:17, 0]
    assert middle[..., 1] == pytest.approx(3.0, rel=1e-3), "slope times the scale of 1 mm"
    assert np.abs(middle[..., 2:4]).max() < 0.1 and middle[..., 4] == pytest.approx(3.0, rel=1e-2)
    noise = replace(ramp, data=torch.randn(ramp.data.shape, generator=torch.Generator().manual_seed(0)))
    turned = features(replace(noise, data=noise.data.flip(-1)), 1.0).reshape(20, 30, 15)[:, ::-1]
    assert np.allclose(turned, features(noise, 1.0).reshape(20, 30, 15), atol=1e-4)


def test_strokes_on_one_slice_find_the_bone_on_the_others_and_their_hull_is_a_start():
    asked = known()
    problem = asked.problem
    found = learned_bones(problem.slices, {0: hips.strokes_on(problem.segments[0])}, 0, Silent())
    scores = [dice(a, b) for a, b in zip(found, problem.segments)]
    assert np.mean(scores[1:]) > 0.88 and min(scores) > 0.8, scores
    matrix, _ = hull_start(replace(problem, segments=tuple(found)), Silent())
    before, after = (hips.errors(m, asked.truth, hips.pixels(problem))[2] for m in (np.eye(4), matrix))
    assert after < 6 < before
    again = learned_bones(problem.slices, {0: hips.strokes_on(problem.segments[0])}, 0, Silent())
    assert all(torch.equal(a.data, b.data) for a, b in zip(found, again))


def test_a_whole_drawing_is_kept_and_teaches_the_others():
    problem = known().problem
    found = learned_bones(problem.slices, {1: problem.segments[1], 4: problem.segments[4]}, 0, Silent())
    assert torch.equal(found[1].data, problem.segments[1].data) and np.mean([dice(found[k], problem.segments[k]) for k in (0, 2, 3, 5)]) > 0.88


def test_pixels_without_a_value_and_a_second_map_are_no_obstacle():
    problem = known().problem
    images = []
    for image in problem.slices:
        data = torch.cat([image.data, 2000 - 10 * image.data], 1)
        data[..., :4, :] = float("nan")
        images.append(replace(image, data=data))
    found = learned_bones(images, {0: hips.strokes_on(problem.segments[0])}, 0, Silent())
    assert np.mean([dice(a, b) for a, b in zip(found[1:], problem.segments[1:])]) > 0.85


def test_the_bone_of_a_volume_by_its_values():
    problem, hip = known().problem, hips.Hip(0)
    values = 1000.0 * (hip.femur(problem.volume.grid.points()) < 0)
    volume = Image(torch.as_tensor(values, dtype=torch.float32)[None, None], problem.volume.grid, name="CT")
    assert dice(bone_between(volume, 300, 3000), problem.volume_segment) > 0.9
    with pytest.raises(InputError, match="no voxel of CT has a value from 2000 to 3000"):
        bone_between(volume, 2000, 3000)


def test_what_cannot_be_learned_is_one_sentence(monkeypatch):
    problem = known().problem
    strokes = hips.strokes_on(problem.segments[0])
    for data, words in ((torch.where(strokes.data == 1, 0, strokes.data), "no bone"), (strokes.data + 1, "has the label 3"),
                        (torch.ones_like(strokes.data), "no anything else")):
        with pytest.raises(InputError, match=words):
            learned_bones(problem.slices, {0: replace(strokes, data=data)}, 0, Silent())
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(InputError, match="bones from strokes need the package scikit-learn"):
        learned_bones(problem.slices, {0: strokes}, 0, Silent())


@pytest.mark.slow
def test_on_the_command_line(tmp_path, capsys):
    problem = known().problem
    files = [str(tmp_path / f"s{k + 1}.nii.gz") for k in range(6)]
    for image, path in zip(problem.slices, files):
        write_image(image, path)
    write_image(problem.volume, tmp_path / "volume.nii.gz")
    write_labels(problem.volume_segment, tmp_path / "bone.nii.gz")
    write_labels(hips.strokes_on(problem.segments[0]), tmp_path / "strokes.nii.gz")
    asked, out = ["--slices", *files, "--strokes", f"1={tmp_path / 'strokes.nii.gz'}"], tmp_path / "bones"
    assert main(["qmri", "bones", *asked, "--out", str(out)]) == 0 and "the bone of 6 slices" in capsys.readouterr().out
    assert np.mean([dice(read_labels(out / f"segment{k + 1:02d}.nii.gz"), problem.segments[k]) for k in range(1, 6)]) > 0.85
    whole = ["--volume", str(tmp_path / "volume.nii.gz"), "--volume-segment", str(tmp_path / "bone.nii.gz"), "--set", "tried=400", "--threads", "1"]
    assert main(["qmri", "register", *asked, *whole, "--out", str(tmp_path / "out")]) == 0
    assert "from the start 'hull'" in capsys.readouterr().out and (tmp_path / "out" / "segment06.nii.gz").exists()
    for words, text in ((["--strokes", "7=x.nii.gz"], "names slice 7, but 6"),
                        (["--strokes", f"2={tmp_path / 'strokes.nii.gz'}"], "draw the strokes on slice 2 itself"),
                        (["--strokes", "x"], "names no slice"),
                        ([], "no strokes were given")):
        assert main(["qmri", "bones", "--slices", *files, *words, "--out", str(tmp_path / "none")]) == 2
        error = capsys.readouterr().err
        assert text in error and not (tmp_path / "none").exists(), error
