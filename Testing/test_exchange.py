"""Values that two processes exchange: files, entries, nested requests, previews of half-written files, no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import LIBRARY
from jobs_scene import ball, halves, marks, oblique

from DeepRegistrationLib import exchange
from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.exchange import Lattice, LabelMap, Matrix, PointSet, Volume


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_a_volume_keeps_type_values_and_geometry(tmp_path, kind):
    value = ball(oblique(flipped=True), kind=kind)
    entry = exchange.write(tmp_path, "fixed", value)
    back = exchange.read(tmp_path, json.loads(json.dumps(entry)))
    assert back.array.dtype == kind and np.array_equal(back.array, value.array) and back.name == "ball"
    assert np.array_equal(back.grid.affine, value.grid.affine) and isinstance(back.array, np.memmap)


def test_all_kinds_survive_a_nested_request(tmp_path):
    grid = oblique()
    colours = Volume(np.random.default_rng(0).random((3, *grid.shape)), grid)
    lattice = Lattice(np.random.default_rng(1).random((*grid.shape, 3)).astype(np.float32), grid, True)
    request = {"command": "x", "a": [colours, {"deep": halves()}], "points": marks(), "parts": (Matrix(np.diag([1.0, 2, 3, 1])), lattice),
               "reference": grid, "seed": 3, "none": None, "values": {"factors": (4.0, 2.0), "n": np.float32(2.5)}}
    packed = exchange.pack(tmp_path, request)
    back = exchange.unpack(tmp_path, json.loads(json.dumps(packed)))
    assert np.array_equal(back["a"][0].array, colours.array) and back["a"][1]["deep"].names == ((1, "left"), (2, "right"))
    assert np.array_equal(back["points"].positions, marks().positions) and back["points"].names == tuple("abcde")
    assert np.array_equal(back["parts"][0].matrix, np.diag([1.0, 2, 3, 1])) and back["parts"][1].inverted
    assert np.array_equal(back["parts"][1].vectors, lattice.vectors) and back["reference"].same_as(grid)
    assert back["seed"] == 3 and back["none"] is None and back["values"] == {"factors": [4.0, 2.0], "n": 2.5}


def test_large_arrays_of_any_strides_are_written_in_small_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(exchange, "CHUNK", 1000)
    grid = oblique((20, 10, 12))
    strided = np.moveaxis(np.random.default_rng(0).random((20, 10, 12, 2)), -1, 0)
    for array in (strided, np.ascontiguousarray(strided[0]), strided[1, ::1]):
        steps, sizes = exchange.write_steps(tmp_path, "x", Volume(array, grid)), []
        with pytest.raises(StopIteration) as end:
            while True:
                sizes.append(next(steps))
        assert sum(sizes) == array.nbytes and len(sizes) >= 20 and max(sizes) <= 1000
        assert np.array_equal(exchange.read(tmp_path, end.value.value).array, array)


def test_an_upload_that_is_given_up_or_fails_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(exchange, "CHUNK", 500)
    steps = exchange.write_steps(tmp_path, "x", ball())
    next(steps)
    steps.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError):
        monkeypatch.setattr(exchange.os, "replace", _full)
        exchange.write(tmp_path, "x", ball())
    assert list(tmp_path.iterdir()) == []


def _full(*_):
    raise OSError(28, "No space left on device")


def test_no_points_and_one_slice_are_fine(tmp_path):
    for value in (PointSet(np.zeros((0, 3)), ()), Volume(np.zeros((1, 4, 5), np.int16), oblique((1, 4, 5)))):
        back = exchange.read(tmp_path, exchange.write(tmp_path, "x", value))
        array = getattr(back, exchange.ARRAYS[type(value)])
        assert array.shape == getattr(value, exchange.ARRAYS[type(value)]).shape


@pytest.mark.parametrize("make,sentence", [
    (lambda: Volume(np.zeros((3, 4, 5)), oblique()), "do not fit a grid"),
    (lambda: LabelMap(np.zeros((12, 14, 10)), oblique()), "a label map holds whole numbers"),
    (lambda: PointSet(np.zeros((4, 2))), r"\(N, 3\) in mm is needed"),
    (lambda: Matrix(np.eye(3)), r"\(4, 4\) is needed"),
    (lambda: Lattice(np.zeros((12, 14, 10)), oblique()), r"\(z, y, x, 3\) in mm is needed")])
def test_values_that_do_not_fit_are_refused(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()


def test_missing_cut_and_unknown_files_are_refused(tmp_path):
    entry = exchange.write(tmp_path, "x", ball())
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:300])
    with pytest.raises(InputError, match="x.npy of the job cannot be read"):
        exchange.read(tmp_path, entry)
    (tmp_path / "x.npy").unlink()
    with pytest.raises(InputError, match="x.npy of the job is gone"):
        exchange.read(tmp_path, entry)
    with pytest.raises(InputError, match="expected one of volume"):
        exchange.read(tmp_path, {"exchange": "mesh"})
    with pytest.raises(InputError, match="'a.b' is a object, which cannot be sent"):
        exchange.pack(tmp_path, {"a": {"b": object()}})


def test_the_graphical_side_needs_no_torch():
    code = ("import sys; sys.modules['torch'] = None; import DeepRegistrationUI.job, DeepRegistrationUI.outputs, DeepRegistrationUI.mrml; "
            "import DeepRegistrationLib.exchange, DeepRegistrationLib.planes, DeepRegistrationLib.__main__")
    environment = {**os.environ, "PYTHONPATH": str(LIBRARY.parent)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
