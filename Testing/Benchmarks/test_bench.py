"""The benchmark's own machinery: what is measured of a process, the order of runs, the one scoring path, the tables."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk

import bench
import cases
import peers
import score
import table
from DeepRegistrationLib.method import find
from DeepRegistrationLib.problem import Pair


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="the system does not report a child's resources")
def test_time_and_memory_are_those_of_the_child(tmp_path):
    """In a process that imports the driver alone: a parent's memory counts as its child's until the child has started."""
    work = "import time; x = bytearray(150 << 20); t = time.process_time()\nwhile time.process_time() - t < 0.3: pass"
    driver = ("import json, os, sys; sys.path.insert(0, sys.argv[1]); import bench, pathlib\n"
              "status, usage, wall = bench.timed([sys.executable, '-c', sys.argv[2]], dict(os.environ), pathlib.Path(sys.argv[3]), 60)\n"
              "heavy = [m for m in ('numpy', 'torch', 'SimpleITK') if m in sys.modules]\n"
              "print(json.dumps([status, usage.ru_utime + usage.ru_stime, usage.ru_maxrss, wall, heavy]))")
    done = subprocess.run([sys.executable, "-c", driver, str(bench.HERE), work, str(tmp_path / "log")], capture_output=True, text=True, check=True)
    status, cpu, peak, wall, heavy = json.loads(done.stdout)
    assert status == 0 and heavy == [] and wall >= 0.3 and 0.3 <= cpu < wall + 1
    assert 150 < peak / (1 << 20 if sys.platform == "darwin" else 1024) < 220


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="the system does not report a child's resources")
def test_a_run_over_the_limit_is_ended(tmp_path):
    status, _, wall = bench.timed([sys.executable, "-c", "import time; time.sleep(60)"], dict(os.environ), tmp_path / "log", 0.5)
    assert status < 0 and wall < 20


def test_runs_alternate():
    assert bench.schedule(["a", "b"], ["p", "q", "r"]) == ["a", "p", "b", "q", "r"]


def test_only_our_process_sees_the_library():
    assert bench.environment(2, True)["PYTHONPATH"] == str(bench.LIBRARY)
    assert "PYTHONPATH" not in bench.environment(2, False) and bench.environment(2, False)["OMP_NUM_THREADS"] == "2"


def test_every_peer_has_its_adapter_and_its_pins():
    for peer in peers.PEERS.values():
        assert (bench.HERE / "adapters" / f"run_{peer.adapter}.py").is_file()
        assert (bench.HERE / f"requirements-{peer.group}.txt").is_file()


def test_every_case_states_what_it_needs():
    """... and is registered with a preset that exists."""
    for case in cases.CASES.values():
        assert find(case.method).card.problem is Pair and case.dim in find(case.method).card.dims
        assert case.dim in (2, 3) and case.stage in ("none", "rigid", "affine") and case.contrast in ("same", "different")
        assert case.deformable or case.stage != "none"
        assert any(p.takes(case) for p in peers.PEERS.values())


@pytest.mark.parametrize("arguments, text", [(["--case", "nope"], "unknown case 'nope'"), (["--peer", "nope"], "unknown peer 'nope'"),
                                             (["--case", "brain2d", "--data", "nowhere"], "no case could run"),
                                             (["--table", "nowhere"], "--table takes files")])
def test_mistakes_are_one_sentence(capsys, arguments, text):
    assert bench.main(arguments) == 2
    assert text in capsys.readouterr().err


def test_a_table_gives_medians_and_names_failures():
    rows = [{"case": "brain2d", "name": "(before)", "ncc": 0.1, "date": "2026-01-01"}]
    rows += [{"case": "brain2d", "name": "us", "ncc": n, "wall_seconds": w, "peak_mib": 100, "versions": {"tool": "1"}}
             for n, w in ((0.8, 3), (0.9, 1), (0.7, 2))]
    rows += [{"case": "brain2d", "name": "them", "error": "exit status 1: no memory"}]
    text = table.markdown(rows, cases.CASES)
    assert "| us | 0.8000 | 2.0 | 100 | 3 |" in text and "| (before) | 0.1000 |" in text
    assert "them: failed, exit status 1: no memory" in text and "tool 1" in text


@pytest.fixture
def shifted(tmp_path):
    """A case whose truth is p -> R (p + s): a field that shifts, then a rotation about the origin, as files of a peer."""
    rng = np.random.default_rng(0)
    fixed = sitk.GetImageFromArray(rng.uniform(size=(12, 14, 16)).astype(np.float32))
    fixed.SetSpacing((1.0, 1.5, 2.0))
    fixed.SetOrigin((-20, 30, 5))
    shift = np.array([3.0, -2.0, 1.0])
    rotation = sitk.Euler3DTransform((0, 0, 0), 0.1, -0.2, 0.3)
    matrix = np.array(rotation.GetMatrix()).reshape(3, 3)
    moving = sitk.Image(fixed)
    moving.SetOrigin((matrix @ (np.array(fixed.GetOrigin()) + shift)).tolist())
    moving.SetDirection(matrix.ravel().tolist())
    labels = [sitk.Cast(x > 0.5, sitk.sitkInt16) for x in (fixed, moving)]
    case = tmp_path / "case"
    cases.store(case, fixed, moving, fixed >= 0, labels, [1], truth=lambda p: (p + shift) @ matrix.T)
    out = tmp_path / "out"
    out.mkdir()
    field = sitk.GetImageFromArray(np.broadcast_to(shift.astype(np.float32), (12, 14, 16, 3)).copy(), isVector=True)
    field.CopyInformation(fixed)
    sitk.WriteImage(field, str(out / "warp.mha"))
    sitk.WriteTransform(rotation, str(out / "linear.tfm"))
    (out / "transforms.json").write_text(json.dumps({"transforms": ["warp.mha", "linear.tfm"]}))
    return case, out


def test_a_peer_s_chain_is_scored_in_its_order(shifted):
    case, out = shifted
    scores = score.score(case, out)
    assert scores["tre_mean"] < 1e-4 and scores["dice"] > 0.999 and scores["hd95"] < 0.1 and scores["ncc"] > 0.999
    assert scores["folds_count"] == 0 and scores["sdlogj"] < 0.01


def test_the_identity_is_scored_where_there_is_no_result(shifted, tmp_path):
    before = score.score(shifted[0], tmp_path / "nothing")
    assert before["tre_mean"] > 5 and before["displacement_mean"] == 0 and before["dice"] < 0.7


def test_a_broken_result_is_reported(shifted):
    case, out = shifted
    (out / "linear.tfm").unlink()
    assert "could not be scored" in bench.scored(case, out)["error"]
