"""The sample data: phantoms whose truth holds, made fast and without torch; the entries in the module Sample Data; the nodes in the scene."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT
from harness.fixtures import application, no_slot_errors, scene  # noqa: F401

from DeepRegistrationUI import phantoms

MAKERS = {"head": phantoms.head_pair, "slice": phantoms.slice_pair}


@pytest.fixture(scope="module", params=MAKERS)
def pair(request):
    return MAKERS[request.param]()


def at(value, points, fill=0):
    """Values of a Volume or LabelMap at the nearest voxels of points (N, 3) mm, ``fill`` outside."""
    index = np.round(value.grid.world_to_index(points)).astype(int)
    inside = ((index >= 0) & (index < np.array(value.grid.size))).all(-1)
    x, y, z = np.where(inside[:, None], index, 0).T
    return np.where(inside, value.array[z, y, x], fill)


def dice(first, second) -> float:
    return 2 * float((first & second).sum()) / float(first.sum() + second.sum())


def test_truth_maps_the_fixed_landmarks_onto_the_moving_ones(pair):
    fixed, moving = pair.fixed_points, pair.moving_points
    assert fixed.names == moving.names and len(fixed.names) >= 6 and len(set(fixed.names)) == len(fixed.names)
    assert np.abs(pair.truth(fixed.positions) - moving.positions).max() < 1e-9
    assert np.linalg.norm(fixed.positions - moving.positions, axis=1).mean() > 5, "the pair starts too close"
    assert pair.fixed.grid.contains(fixed.positions).all() and pair.moving.grid.contains(moving.positions).all()


def test_structures_warped_by_the_truth_are_the_fixed_ones(pair):
    """Exactly where the formulas are asked; up to half a voxel where the moving voxels are."""
    points = pair.fixed.grid.points().reshape(-1, 3)
    inverse = np.linalg.inv(pair.truth.matrix)
    exact = phantoms.anatomy(pair.truth(points) @ inverse[:3, :3].T + inverse[:3, 3])[0]
    fixed, warped, unmoved = pair.fixed_labels.array.ravel(), at(pair.moving_labels, pair.truth(points)), at(pair.moving_labels, points)
    present = [value for value, _ in phantoms.STRUCTURES if (fixed == value).any()]
    assert len(present) >= 5
    for value in present:
        assert dice(fixed == value, exact == value) > 0.9995  # float32: a voxel centre on a surface may fall on either side
        assert dice(fixed == value, warped == value) > 0.85
        assert dice(fixed == value, unmoved == value) < dice(fixed == value, warped == value) - 0.05


def test_moving_image_at_the_truth_is_the_fixed_image(pair):
    """Voxels well within one tissue, where the nearest voxel will do; the images differ by noise and bias only."""
    points = pair.fixed.grid.points().reshape(-1, 3)
    inner = phantoms.ANATOMY[4].depth((points + pair.truth.displacement(points)).T.astype(np.float32)) > 8
    inner &= pair.fixed_labels.array.ravel() == 2
    there = at(pair.moving, pair.truth(points[inner])).astype(float)
    here = pair.fixed.array.ravel()[inner].astype(float)
    assert inner.sum() > 2000 and np.median(np.abs(there / here - 1)) < 1.5 * phantoms.BIAS
    second = at(pair.moving_t2, pair.truth(points[inner])).astype(float)
    assert abs(np.median(second) / np.median(there) - 1) > 0.2, "the second contrast looks like the first"


def test_truth_is_smooth_one_to_one_and_still_on_the_border(pair):
    grid, axes = pair.fixed.grid, [a for a, n in enumerate(pair.fixed.grid.shape) if n > 1]
    u = pair.truth.displacement(grid.points())
    assert all(np.abs(u.take([0, -1], axis)).max() == 0 for axis in axes)
    slopes = np.gradient(u, *(grid.spacing[2 - a] for a in axes), axis=tuple(axes))
    matrix = np.stack(slopes, -1)
    assert np.linalg.norm(matrix, ord=2, axis=(-2, -1)).max() < 0.6, "the fixed-point iteration needs slopes well below 1"
    assert 6 < np.linalg.norm(u, axis=-1).max() < 15
    points = np.random.default_rng(0).uniform(-60, 60, (200, 3))
    found = pair.truth.undisplaced(points)
    assert np.abs(found + pair.truth.displacement(found) - points).max() < 1e-9


def test_parts_are_the_truth(pair):
    matrix, lattice = pair.truth.parts(pair.fixed.grid)
    points = pair.fixed.grid.points()
    composed = (points + lattice.vectors) @ matrix.matrix[:3, :3].T + matrix.matrix[:3, 3]
    assert np.abs(composed - pair.truth(points)).max() < 1e-4
    assert (matrix.matrix[:3, :3] != np.eye(3)).any() and pair.moving.grid.direction[0, 1] != 0


def test_sizes():
    head, flat = phantoms.head_pair(), phantoms.slice_pair()
    assert head.fixed.grid.shape == (96, 96, 96) and flat.fixed.grid.shape[0] == flat.moving.grid.shape[0] == 1
    assert np.array_equal(head.fixed.array, phantoms.head_pair().fixed.array), "made anew, the phantom differs"
    for image in (head.fixed, head.moving, head.moving_t2, flat.fixed, flat.moving):
        assert image.array.dtype == np.int16 and 0 <= image.array.min() and 150 < image.array.max() < 1000
    for image in (head.moving, flat.moving):  # the moving field of view cuts nothing off
        faces = [image.array.take([0, -1], axis).max() for axis, n in enumerate(image.grid.shape) if n > 1]
        assert max(faces) < 8 * phantoms.NOISE


def test_phantoms_are_made_within_five_seconds_and_without_torch():
    code = ("import sys, time; sys.path.insert(0, sys.argv[1]); from DeepRegistrationUI import phantoms; began = time.process_time(); "
            "phantoms.head_pair(); phantoms.slice_pair(); print(time.process_time() - began, 'torch' in sys.modules)")
    answer = subprocess.run([sys.executable, "-c", code, str(ROOT / "DeepRegistration")], capture_output=True, text=True, timeout=120, check=True)
    seconds, torch = answer.stdout.split()
    assert torch == "False" and float(seconds) < 5


# -------------------------------------------------------------------------------------------------- in the application


@pytest.fixture
def registered(application, monkeypatch):
    """What ``register`` told the module Sample Data."""
    import SampleData

    from DeepRegistrationUI import sampledata

    monkeypatch.setattr(SampleData.SampleDataLogic, "registered", [])
    monkeypatch.setattr(SampleData.SampleDataLogic, "categories", [])
    sampledata.register()
    assert SampleData.SampleDataLogic.categories == [("DeepRegistration", "Deep Registration")]
    return {entry["sampleName"]: entry for entry in SampleData.SampleDataLogic.registered}


def png_size(path) -> tuple[int, int]:
    head = open(path, "rb").read(24)
    assert head[:8] == b"\x89PNG\r\n\x1a\n", path
    return struct.unpack(">II", head[16:24])


def test_entries_have_all_fields(registered):
    assert list(registered) == ["Phantom head pair", "Phantom slice pair", "Brain tumor pair"]
    lists = ("uris", "fileNames", "nodeNames")
    for entry in registered.values():
        assert entry["category"] == "DeepRegistration" and png_size(entry["thumbnailFileName"]) == (260, 280)
        assert all(isinstance(entry[key], list) and len(entry[key]) == len(entry["uris"]) for key in lists)
        assert bool(entry["uris"]) != callable(entry["customDownloader"]), "either made here or downloaded"
    public = registered["Brain tumor pair"]
    assert public["nodeNames"] == ["MRBrainTumor1", "MRBrainTumor2"] and len(public["loadFileTypes"]) == len(public["checksums"]) == 2
    for uri, checksum in zip(public["uris"], public["checksums"]):
        assert re.fullmatch(r"SHA256:[0-9a-f]{64}", checksum) and uri.startswith("https://") and uri.endswith(checksum.removeprefix("SHA256:"))


def test_offered_once_the_application_has_started(application, monkeypatch):
    import SampleData
    from harness.application import load

    load(ROOT / "DeepRegistration" / "DeepRegistration.py")
    monkeypatch.setattr(SampleData.SampleDataLogic, "registered", [])
    application.app.startupCompleted.emit()
    assert len(SampleData.SampleDataLogic.registered) == 3


def test_other_applications(application, monkeypatch):
    """Without the module nothing happens; an older one has no titles of categories."""
    import SampleData

    from DeepRegistrationUI import sampledata

    monkeypatch.setattr(SampleData.SampleDataLogic, "registered", [])
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "SampleData", None)
        sampledata.register()
    assert SampleData.SampleDataLogic.registered == []
    monkeypatch.delattr(SampleData.SampleDataLogic, "registerCustomSampleDataCategory")
    sampledata.register()
    assert len(SampleData.SampleDataLogic.registered) == 3


@pytest.mark.parametrize("name, prefix, count", [("Phantom head pair", "PhantomHead", 8), ("Phantom slice pair", "PhantomSlice", 7)])
def test_nodes_in_the_scene(registered, scene, name, prefix, count):
    from DeepRegistrationUI import mrml

    nodes = {node.GetName(): node for node in registered[name]["customDownloader"](None)}
    assert len(nodes) == count and all(key.startswith(prefix) for key in nodes)
    fixed, moving = (mrml.points_of(nodes[f"{prefix}{who}Landmarks"]) for who in ("Fixed", "Moving"))
    pair = MAKERS["head" if prefix == "PhantomHead" else "slice"]()
    assert np.abs(fixed.positions - pair.fixed_points.positions).max() < 1e-4 and fixed.names == pair.fixed_points.names
    assert mrml.volume_of(nodes[f"{prefix}Moving"]).grid == pair.moving.grid
    assert np.array_equal(mrml.volume_of(nodes[f"{prefix}Fixed"]).array, pair.fixed.array)
    marks = nodes[f"{prefix}MovingLandmarks"]
    marks.SetAndObserveTransformNodeID(nodes[f"{prefix}TrueTransform"].GetID())
    assert np.abs(mrml.points_of(marks).positions - fixed.positions).max() < 0.1
    structures = nodes[f"{prefix}FixedStructures"].GetSegmentation()
    names = {structures.GetNthSegment(k).GetName() for k in range(structures.GetNumberOfSegments())}
    assert {"white matter", "left ventricle", "lesion"} <= names <= {text for _, text in phantoms.STRUCTURES}


def test_loading_takes_few_seconds(registered, scene):
    began = time.process_time()
    registered["Phantom head pair"]["customDownloader"](None)
    assert time.process_time() - began < 15
