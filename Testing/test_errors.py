"""Bad input: one sentence on stderr that says what to do, exit status 2, no traceback, nothing half-written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import contract
import pytest
import torch

from DeepRegistrationLib.errors import ConvergenceError, InputError, sentence
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image, Labels
from DeepRegistrationLib.io import write_image, write_labels, write_transform
from DeepRegistrationLib.transforms import Affine


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with good and bad files, and their paths by name."""
    folder = tmp_path_factory.mktemp("files")
    truth = contract.smallest_pair(2)
    fixed = truth.problem.fixed
    grid, data = fixed.grid, fixed.data

    images = {"fixed": fixed, "moving": truth.problem.moving,
              "nan": Image(torch.full_like(data, torch.nan), grid), "infinite": Image(torch.full_like(data, torch.inf), grid),
              "constant": Image(torch.full_like(data, 4.0), grid), "volume": contract.smallest_pair(3).problem.moving,
              "far": Image(data, Grid.from_parts(grid.shape, 1.0, [5000.0, 5000.0])),
              "rgb": Image((data - data.min()).mul(40).to(torch.uint8).expand(1, 3, -1, -1), grid)}
    paths = {}
    for name, image in images.items():
        paths[name] = folder / f"{name}.nii.gz"
        write_image(image, paths[name])
    empty = torch.zeros((1, 1, *grid.shape), dtype=torch.int32)
    paths["empty mask"] = folder / "empty.nii.gz"
    write_labels(Labels(empty, grid), paths["empty mask"])
    paths["no ending"] = folder / "image"
    paths["no ending"].write_bytes(paths["fixed"].read_bytes())
    paths["text"] = folder / "text.nii.gz"
    paths["text"].write_text("this is not an image")
    paths["unknown"] = folder / "image.docx"
    paths["unknown"].write_text("nor is this")
    paths["nothing"] = folder / "nothing.nii.gz"
    paths["nothing"].write_bytes(b"")
    paths["truncated"] = folder / "truncated.nii.gz"
    paths["truncated"].write_bytes(paths["fixed"].read_bytes()[:900])
    paths["3D transform"] = folder / "3d.tfm"
    write_transform(Affine.translation([1.0, 2.0, 3.0]), paths["3D transform"])
    paths["2D transform"] = folder / "2d.tfm"
    write_transform(Affine.translation([1.0, 2.0]), paths["2D transform"])
    paths["far transform"] = folder / "far.tfm"
    write_transform(Affine.translation([9000.0, 0.0]), paths["far transform"])
    (folder / "2d points.csv").write_text("label,x,y\na,1,2\nb,3,4\n")
    (folder / "3d points.csv").write_text("label,x,y,z\na,1,2,3\n")
    paths |= {"2D points": folder / "2d points.csv", "3D points": folder / "3d points.csv"}
    return {**paths, "folder": folder, "absent": folder / "absent.nii.gz"}


@pytest.mark.parametrize("fixed, moving, words", [
    ("fixed", "absent", "absent.nii.gz does not exist"),
    ("absent", "moving", "absent.nii.gz does not exist"),
    ("fixed", "text", "text.nii.gz"),
    ("fixed", "unknown", "'.docx'"),
    ("fixed", "no ending", "add the ending of its type"),
    ("fixed", "nothing", "empty (0 bytes)"),
    ("fixed", "truncated", "incomplete"),
    ("fixed", "nan", "NaN or infinite"),
    ("infinite", "moving", "NaN or infinite"),
    ("fixed", "constant", "constant value 4"),
    ("fixed", "rgb", "color image"),
    ("fixed", "volume", "2D and"),
    ("fixed", "folder", "folder"),
])
def test_images_that_cannot_be_used(files, cli, toy, tmp_path, fixed, moving, words):
    answer = cli("register", "--fixed", files[fixed], "--moving", files[moving], "--method", toy, "--out", tmp_path / "out")
    assert words in answer.sentence()
    assert not any(tmp_path.iterdir()), "something was left behind"


@pytest.mark.parametrize("options, words", [
    (("--method", "instance-optimization-of-nothing"), "unknown method"),
    (("--method", "toy-shft"), "did you mean 'toy-shift'?"),
    (("--method", "toy-shift:carefull"), "did you mean 'careful'?"),
    (("--method", "toy-shift", "--set", "step=3"), "did you mean 'steps'?"),
    (("--method", "toy-shift", "--set", "steps=many"), "expected a whole number"),
    (("--method", "toy-shift", "--set", "steps=0"), "expected from 1 to 100"),
    (("--method", "toy-shift", "--set", "steps"), "expected KEY=VALUE"),
    (("--method", "toy-shift", "--device", "toaster"), "expected auto, cpu, cuda or mps"),
    (("--method", "toy-shift", "--init", "centre of the world"), "neither a file nor one of header"),
    (("--method", "toy-shift", "--init", "{3D transform}"), "3D transform where a 2D one is needed"),
    (("--method", "toy-shift", "--init", "{far transform}"), "do not overlap"),
    (("--method", "toy-shift", "--init", "{text}"), "text.nii.gz"),
    (("--method", "toy-shift", "--fixed-mask", "{empty mask}"), "mask"),
    (("--method", "toy-shift", "--moving-mask", "{absent}"), "does not exist"),
    (("--method", "toy-shift", "--fixed-labels", "{empty mask}"), "labels were given for one image only"),
    (("--method", "toy-shift", "--fixed-points", "{2D points}", "--moving-points", "{3D points}"), "3D"),
    (("--method", "toy-shift", "--write", "transform,movie"), "'movie' is no output"),
    (("--method", "toy-shift", "--threads", "0"), "at least 1"),
    (("--method", "toy-shift", "--seed", "x"), "'x' was given; expected a whole number"),
    (("--method", "toy-shift", "--speed", "9"), "unknown argument '--speed' (did you mean '--seed'?); "),
    (("--method", "toy-shift", "--fixed-lab", "{empty mask}"), "unknown argument '--fixed-lab' (did you mean '--fixed-labels'?)"),
    (("--method", "icon-atlas:2d"), "'icon-atlas' has another task (atlas of a cohort): it takes a Group, a Pair was given"),
])
def test_options_that_cannot_be_used(files, cli, toy, tmp_path, options, words):
    options = [files[o[1:-1]] if o.startswith("{") else o for o in options]
    answer = cli("register", "--fixed", files["fixed"], "--moving", files["moving"], "--out", tmp_path / "out", *options)
    assert words in answer.sentence()
    assert not any(tmp_path.iterdir()), "something was left behind"


def test_no_overlap_is_said_with_its_remedy(files, cli, toy, tmp_path):
    answer = cli("register", "--fixed", files["fixed"], "--moving", files["far"], "--method", toy, "--init", "header", "--out", tmp_path / "out")
    assert "do not overlap" in answer.sentence() and "(moments)" in answer.sentence()


def test_an_input_among_the_results_is_not_replaced(files, cli, toy, tmp_path):
    """As in a second registration, from the first one's warped image into the same folder."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "warped.nii.gz").write_bytes(before := files["moving"].read_bytes())
    call = ("register", "--fixed", files["fixed"], "--method", toy, "--out", tmp_path / "out", "--quiet", "--moving")
    for moving in (tmp_path / "out" / "warped.nii.gz", tmp_path / "out" / ".." / "out" / "warped.nii.gz"):
        assert f"--moving is {moving}, which the results would replace; choose another --out" in cli(*call, moving).sentence()
        assert (tmp_path / "out" / "warped.nii.gz").read_bytes() == before
    assert cli(*call, files["moving"]).status == 0


@pytest.mark.parametrize("kind, words", [
    ("file", "is a file, a folder is needed"), ("below a file", "cannot be made"), ("full of folders", "is a folder where"),
])
def test_output_that_cannot_be_written(files, cli, toy, tmp_path, kind, words):
    out = tmp_path / "out"
    if kind == "full of folders":
        (out / "warped.nii.gz").mkdir(parents=True)
    else:
        out.write_text("mine")
        out = out if kind == "file" else out / "deeper" / "still"
    before = sorted(tmp_path.rglob("*"))
    answer = cli("register", "--fixed", files["fixed"], "--moving", files["moving"], "--method", toy, "--out", out, "--quiet")
    assert words in answer.sentence()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_folder_without_permission(files, cli, toy, tmp_path):
    tmp_path.chmod(0o500)
    answer = cli("register", "--fixed", files["fixed"], "--moving", files["moving"], "--method", toy, "--out", tmp_path / "out")
    tmp_path.chmod(0o700)
    assert "cannot be made" in answer.sentence()


@pytest.mark.skipif(sys.platform == "win32", reason="the limit on file sizes is POSIX")
@pytest.mark.parametrize("limit", (1500, 6000, 20000))
def test_disk_full_while_writing_leaves_the_earlier_result(files, cli, toy, tmp_path, limit):
    """A limit on the size of files stands for a full disk: the write in the middle of the run fails in the same way."""
    options = ["register", "--fixed", str(files["fixed"]), "--moving", str(files["volume"]), "--method", toy, "--out", str(tmp_path / "out"), "--quiet"]
    truth = contract.smallest_pair(3)
    write_image(truth.problem.fixed, tmp_path / "f.nii.gz")
    options[2] = str(tmp_path / "f.nii.gz")
    assert cli(*options).status == 0
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    code = ("import resource, sys; from DeepRegistrationLib.__main__ import main; from DeepRegistrationLib import method; method.registry();"
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); sys.exit(main(sys.argv[1:]))")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code, *options], env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "space" in done.stderr and ".partial-" not in done.stderr
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == before


@pytest.mark.parametrize("arguments, words", [
    (("warp", "--transform", "{3D transform}", "--reference", "{fixed}", "--input", "{moving}"), "3D transform where a 2D one is needed"),
    (("warp", "--transform", "{absent}", "--reference", "{fixed}", "--input", "{moving}"), "does not exist"),
    (("warp", "--transform", "{2D transform}", "--reference", "{fixed}", "--input", "{volume}"), "both must have the same dimension"),
    (("warp", "--transform", "{2D transform}", "--reference", "{fixed}", "--input", "{3D points}", "--points"), "both must have the same dimension"),
    (("warp", "--transform", "{far transform}", "--reference", "{fixed}", "--input", "{moving}"), "falls into the field of view"),
    (("warp", "--transform", "{2D transform}", "--reference", "{fixed}", "--input", "{moving}", "--labels"), "whole numbers"),
    (("warp", "--transform", "{fixed}", "--reference", "{fixed}", "--input", "{moving}"), "displacement"),
])
def test_warp_refuses(files, cli, tmp_path, arguments, words):
    arguments = [files[a[1:-1]] if a.startswith("{") else a for a in arguments]
    assert words in cli(*arguments, "--out", tmp_path / "out.nii.gz").sentence()
    assert not any(tmp_path.iterdir())


def test_warp_refuses_an_unknown_type_of_output(files, cli, tmp_path):
    answer = cli("warp", "--transform", files["2D transform"], "--reference", files["fixed"], "--input", files["moving"], "--out", tmp_path / "o.docx")
    assert "'.docx'" in answer.sentence() and not any(tmp_path.iterdir())
    answer = cli("warp", "--transform", files["2D transform"], "--reference", files["fixed"], "--input", files["moving"], "--out", tmp_path / "o")
    assert "has no ending that names a format" in answer.sentence() and not any(tmp_path.iterdir())


@pytest.mark.parametrize("text, words", [
    ("", "names no pairs"), ("fixed,moving\n", "names no pairs"), ("fixed,moving\na.nii.gz,\n", "'moving' is empty"),
    ("fixed,moving,colour\na,b,c\n", "unknown column 'colour'"), ("fixed,moving,metod\na,b,c\n", "did you mean 'method'?"),
    ("id,fixed,moving\n../x,a,b\n", "cannot be a folder name"), ("id,fixed,moving\nx,a,b\nx,c,d\n", "occurs 2 times"),
    ("id,fixed,moving\nP1,a,b\np1,c,d\n", "occurs 2 times"),
    ("fixed,moving,seed\na,b,soon\n", "expected a whole number"), ("fixed,moving,threads\na,b,two\n", "pair 'pair001': argument --threads: 'two'"),
    ("id,fixed,moving,method\nx,a,b,\ny,c,d,afine\n", "pair 'y': unknown method 'afine'"),
    ("fixed,moving,set\na,b,spacin=3\n", "pair 'pair001': "), ("fixed,moving\na,left, lung.nii\n", "3 cells and the header 2"),
])
def test_manifests_that_cannot_be_used(cli, tmp_path, text, words):
    (tmp_path / "m.csv").write_text(text)
    assert words in cli("batch", tmp_path / "m.csv", "--out", tmp_path / "out").sentence()
    assert not (tmp_path / "out").exists()
    assert "does not exist" in cli("batch", tmp_path / "absent.csv", "--out", tmp_path / "out").sentence()


def test_commands_that_are_not_there(cli):
    assert "COMMAND" in cli().sentence()
    assert "invalid choice: 'dance'" in cli("dance").sentence()
    assert "required: ID" in cli("show").sentence()
    assert "known are affine" in cli("show", "nothing").sentence(), "no method is called anything like it"


@pytest.mark.parametrize("program", ["python run.py", ""])
def test_the_help_that_is_named_is_there(cli, monkeypatch, program):
    """As the command line was called: from the checkout or as a module."""
    monkeypatch.setenv("DEEPREGISTRATION_PROGRAM", program)
    if not program:
        monkeypatch.delenv("DEEPREGISTRATION_PROGRAM")
    assert f"'{program or 'python -m DeepRegistrationLib'} atlas build --help' explains" in cli("atlas", "build").sentence()


@pytest.mark.parametrize("error, words, status", [
    (InputError("as it is"), "as it is", 2), (ConvergenceError("it folds"), "it folds", 2), (MemoryError(), "the memory ran out", 2),
    (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 80000000000000 bytes."), "the memory ran out", 2),
    (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x.h5"), "x.h5 (No space left on device)", 2),
])
def test_sentences_of_errors_from_below(error, words, status):
    text, code = sentence(error)
    assert words in text and code == status and "\n" not in text


def test_a_fault_of_the_program_is_said_in_one_line(cli, monkeypatch):
    from DeepRegistrationLib.commands import catalogue

    monkeypatch.setattr(catalogue, "markdown", lambda known: {}["absent"])
    answer = cli("list", "--markdown")
    assert answer.status == 1 and answer.err.count("\n") == 1 and "a fault of the program, KeyError in test_errors.py" in answer.err
