"""run.py: which build of torch it asks for, when an installation counts as finished, which commands it offers."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.fixture
def run(monkeypatch, tmp_path):
    """run.py as a module whose environment folder is a temporary one."""
    spec = importlib.util.spec_from_file_location("run_under_test", ROOT / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(module, "MARKER", tmp_path / ".venv" / "installed.json")
    monkeypatch.delenv("DEEPREGISTRATION_TORCH", raising=False)
    return module


@pytest.mark.parametrize("system, gpu, build", [("Linux", False, "+cpu"), ("Linux", True, ""), ("Darwin", False, ""), ("Windows", True, "")])
def test_only_linux_without_a_gpu_asks_for_the_cpu_build(run, monkeypatch, system, gpu, build):
    monkeypatch.setattr(run.platform, "system", lambda: system)
    monkeypatch.setattr(run, "has_nvidia_gpu", lambda: gpu)
    assert run.torch_requirement() == f"torch==2.13.0{build}"
    monkeypatch.setenv("DEEPREGISTRATION_TORCH", "torch==9.9")
    assert run.torch_requirement() == "torch==9.9"


def finish(run, torch: str) -> None:
    run.venv_python().parent.mkdir(parents=True, exist_ok=True)
    run.venv_python().touch()
    run.MARKER.write_text(json.dumps({"fingerprint": run.fingerprint(), "torch": torch}))


def test_a_finished_installation_is_left_alone_and_a_change_of_pins_is_not(run, monkeypatch):
    assert not run.is_complete("torch==1")
    finish(run, "torch==1")
    assert run.is_complete("torch==1") and run.is_complete("torch==1+cpu"), "a build for GPUs serves a machine without one"
    assert not run.is_complete("torch==2")
    monkeypatch.setattr(run, "fingerprint", lambda: "other pins")
    assert not run.is_complete("torch==1")


def test_a_cpu_build_is_not_enough_once_there_is_a_gpu(run):
    finish(run, "torch==1+cpu")
    assert run.is_complete("torch==1+cpu") and not run.is_complete("torch==1")


def test_a_broken_marker_means_unfinished(run):
    finish(run, "torch==1")
    run.MARKER.write_text("{")
    assert not run.is_complete("torch==1")


def test_the_cpu_build_comes_from_the_configured_source_first_and_then_from_pytorch(run, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(run, "pip", lambda *arguments: calls.append(arguments) or ("no matching distribution" if len(calls) < 3 else ""))
    with pytest.raises(run.Failure, match="DEEPREGISTRATION_TORCH=torch==1 to take the large build"):
        run.install_torch("torch==1+cpu")
    assert [run.CPU_INDEX in call for call in calls] == [False, True]
    run.install_torch("torch==1+cpu")
    assert len(calls) == 3


def test_torch_is_taken_away_before_another_build_comes(run, monkeypatch):
    finish(run, "torch==1+cpu")
    calls = []
    monkeypatch.setattr(run, "pip", lambda *arguments: calls.append(arguments[0]) or "stop here")
    with pytest.raises(run.Failure):
        run.install("torch==1")
    assert calls == ["uninstall", "install"] and not run.MARKER.exists()


@pytest.mark.parametrize("status, remark", [(0, ""), (1, "the library works without them")])
def test_kernels_that_cannot_be_compiled_are_only_a_remark(run, monkeypatch, capsys, status, remark):
    calls = []
    answer = subprocess.CompletedProcess([], status, "", "ImportError: no numba\n")
    monkeypatch.setattr(run.subprocess, "run", lambda command, **options: calls.append(command) or answer)
    run.compile_kernels()
    said = capsys.readouterr().err
    assert calls[0][-1] == run.COMPILE and "compiling" in said and remark in said and ("no numba" in said) == bool(status)


def test_commands_and_their_targets(run):
    assert run.command_line("register", ["--x"]) == ["-m", "DeepRegistrationLib", "register", "--x"]
    assert run.command_line("demo", []) == ["-m", "DeepRegistrationUI.demo"]
    assert run.command_line("test", ["-k", "cli"])[-3:] == [str(ROOT / "Testing"), "-k", "cli"]
    assert run.command_line("test", [str(ROOT / "Testing" / "test_run.py")])[-1].endswith("test_run.py")
    assert [("-n" in run.command_line("test", rest)) for rest in ([], ["-x"], [str(ROOT / "Testing")])] == [True, True, False]
    assert run.command_line("train", ["list"]) == ["-m", "DeepRegistrationLib", "train", "list"]
    with pytest.raises(run.Failure, match="unknown command 'nonsense'"):
        run.command_line("nonsense", [])


def test_experiments_are_the_files_of_their_folder(run, monkeypatch, tmp_path):
    monkeypatch.setattr(run, "EXPERIMENTS", tmp_path)
    with pytest.raises(run.Failure, match="unknown command"):
        run.command_line("experiment", ["a"])
    assert "experiment" not in run.usage()
    (tmp_path / "convex_discrete.py").touch()
    (tmp_path / "common.py").touch()
    assert run.experiments() == ["convex-discrete"], "what experiments share is none"
    assert "experiment ID" in run.usage() and "convex-discrete" in run.usage()
    assert run.command_line("experiment", ["convex-discrete", "--full"]) == [str(tmp_path / "convex_discrete.py"), "--full"]
    with pytest.raises(run.Failure, match="give one of convex-discrete"):
        run.command_line("experiment", ["convex"])


def test_experiments_explain_themselves_before_anything_is_installed(run, capsys):
    assert run.main(["experiment", "--help"]) == 0 and ", ".join(run.experiments()) in capsys.readouterr().out


@pytest.mark.skipif(os.name != "posix", reason="elsewhere the library is a child process")
def test_the_library_is_told_what_it_was_called_by(run, monkeypatch):
    def replaced(python, arguments, environment):
        raise SystemExit(f"{environment['DEEPREGISTRATION_PROGRAM']}: {arguments[1:]}")

    monkeypatch.setattr(run.os, "execve", replaced)
    with pytest.raises(SystemExit, match=r"python run\.py: \['-m', 'DeepRegistrationLib', 'list'\]"):
        run.run(["-m", "DeepRegistrationLib", "list"])


def test_a_wrong_command_is_one_sentence_before_anything_is_installed():
    done = subprocess.run([sys.executable, str(ROOT / "run.py"), "dance"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "unknown command 'dance'" in done.stderr


def test_a_folder_that_is_no_environment_is_not_cleared(run):
    run.VENV.mkdir()
    (run.VENV / "precious.txt").write_text("keep")
    with pytest.raises(run.Failure, match="is no Python environment"):
        run.make_venv()
    assert (run.VENV / "precious.txt").exists()
