"""The gate to PyTorch: what it sees without importing, how it installs, and the sentences when that fails. All with fakes."""

import importlib.machinery
import importlib.metadata
import sys
import types

import pytest

from DeepRegistrationLib.errors import InputError
from DeepRegistrationUI import torchgate
from DeepRegistrationUI.torchgate import TorchState


@pytest.fixture
def world(monkeypatch, tmp_path):
    """A Python with the packages of ``installed`` (name -> version); torch has a folder with a version file."""

    class World:
        installed = {"torch": "2.6.0+cu126", "numpy": "2.4.6", "scipy": "1.17.1", "SimpleITK": "2.5.5", "numba": "0.61.0",
                     "safetensors": "0.5.0"}
        version_file = "__version__ = '2.6.0+cu126'\ncuda: Optional[str] = '12.6'\nhip: Optional[str] = None\n"
        found = True
        calls: list = []

    world = World()
    world.calls = []

    def version(name):
        if name not in world.installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return world.installed[name]

    def find_spec(name):
        if not world.found:
            return None
        (tmp_path / "version.py").write_text(world.version_file, "utf-8")
        spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(tmp_path)]
        return spec

    monkeypatch.setattr(torchgate.importlib.metadata, "version", version)
    monkeypatch.setattr(torchgate.importlib.util, "find_spec", find_spec)
    return world


def fake_extension(monkeypatch, world, error=None, brings="2.7.0+cpu"):
    """The PyTorch extension: installs ``brings``, or raises ``error``."""

    class Logic:
        def installTorch(self, **arguments):
            world.calls.append(("installTorch", arguments))
            if error is not None:
                raise error
            if brings:
                world.installed = {**world.installed, "torch": brings}

    module = types.ModuleType("PyTorchUtils")
    module.PyTorchUtilsLogic = Logic
    monkeypatch.setitem(sys.modules, "PyTorchUtils", module)


def fake_application(monkeypatch, world, *, packaging=True, error=None, agrees=True):
    """slicer.packaging, or only what older versions have."""
    import slicer

    def pip_ensure(requirements, constraints=None, requester=None):
        world.calls.append(("pip_ensure", list(requirements), constraints.read_text().split(), requester))
        if error is not None:
            raise error

    module = types.ModuleType("slicer.packaging")
    module.pip_ensure = pip_ensure
    monkeypatch.setitem(sys.modules, "slicer.packaging", module if packaging else None)
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda *a, **k: world.calls.append(("asked", a[0])) or agrees, raising=False)
    monkeypatch.setattr(slicer.util, "pip_install", lambda what: world.calls.append(("pip_install", what)), raising=False)


@pytest.mark.parametrize("version, file, build", [
    ("2.6.0+cu126", "cuda: Optional[str] = '12.6'\n", "CUDA 12.6"), ("2.6.0+cu118", "", "CUDA 11.8"), ("2.6.0+cpu", "cuda = None\n", "CPU"),
    ("2.6.0", "cuda: Optional[str] = None\nhip: Optional[str] = None\n", "CPU"), ("2.6.0+rocm6.2", "", "ROCm"), ("2.6.0", "", "")])
def test_build_line(world, version, file, build):
    world.installed, world.version_file = {"torch": version}, file
    state = torchgate.state()
    assert (state.version, state.build, state.enough) == ("2.6.0", build, True)
    assert state.line() == (f"PyTorch 2.6.0 ({build})" if build else "PyTorch 2.6.0")


def test_absent_old_and_half_removed(world):
    world.installed = {}
    assert not torchgate.state().present and "not installed" in torchgate.state().line()
    world.installed = {"torch": "2.1.2+cpu"}
    assert torchgate.state().present and not torchgate.state().enough and "2.1.2 is too old" in torchgate.state().line()
    world.installed, world.found = {"torch": "2.6.0"}, False  # metadata without the package
    assert torchgate.state() == TorchState("", "")


def test_state_imports_nothing(world):
    before = set(sys.modules)
    torchgate.state()
    assert not {name for name in set(sys.modules) - before if name.split(".")[0] == "torch"}


def test_nothing_is_asked_where_all_is_there(world, monkeypatch):
    fake_extension(monkeypatch, world)
    fake_application(monkeypatch, world)
    assert torchgate.ensure().version == "2.6.0" and world.calls == []


def test_installs_through_the_extension(world, monkeypatch):
    fake_extension(monkeypatch, world)
    fake_application(monkeypatch, world)
    del world.installed["torch"]
    state = torchgate.ensure()
    assert (state.version, state.build) == ("2.7.0", "CUDA 12.6")  # the version file decides
    assert world.calls == [("installTorch", {"askConfirmation": True, "torchVersionRequirement": ">=2.4"})]


def test_others_never_change_the_application(world, monkeypatch):
    fake_application(monkeypatch, world)
    del world.installed["numba"]
    torchgate.ensure("Panel")
    (name, requirements, constraints, requester), = world.calls
    assert name == "pip_ensure" and requirements == ["numba>=0.60"] and requester == "Panel"
    assert constraints == ["numpy==2.4.6", "scipy==1.17.1", "SimpleITK==2.5.5"]


def test_older_application(world, monkeypatch):
    fake_application(monkeypatch, world, packaging=False)
    del world.installed["numba"]
    torchgate.ensure()
    asked, installed = world.calls
    assert asked[0] == "asked" and "numba" in asked[1]
    assert installed[1][0] == "numba>=0.60" and installed[1][1] == "-c"


def test_a_package_that_is_needed_is_asked_for_where_it_is_used(world, monkeypatch):
    fake_application(monkeypatch, world)
    with pytest.raises(InputError, match=r"Structure needs the package scikit-learn>=1.5.*pip_install"):
        torchgate.ensure_package("scikit-learn>=1.5", "AtlasBuilder", "Structure")
    (name, requirements, constraints, requester), = world.calls
    assert name == "pip_ensure" and requirements == ["scikit-learn>=1.5"] and requester == "AtlasBuilder" and constraints[0].startswith("numpy==")
    world.installed["scikit-learn"], world.calls = "1.6.1", []
    torchgate.ensure_package("scikit-learn>=1.5", "AtlasBuilder", "Structure")
    assert world.calls == []


def test_refused_optional_packages_do_not_stop_a_run(world, monkeypatch):
    fake_application(monkeypatch, world, error=RuntimeError("User declined package installation"))
    del world.installed["numba"]
    assert torchgate.ensure().present
    fake_application(monkeypatch, world, packaging=False, agrees=False)
    world.calls.clear()
    assert torchgate.ensure().present and [call[0] for call in world.calls] == ["asked"]


def test_missing_extension_is_named(world, monkeypatch):
    monkeypatch.setitem(sys.modules, "PyTorchUtils", None)
    world.installed = {}
    with pytest.raises(InputError, match="extension 'PyTorch'.*Extensions Manager"):
        torchgate.ensure()


def test_windows_path_too_long(world, monkeypatch):
    error = OSError("could not install")
    error.winerror = 206
    fake_extension(monkeypatch, world, error=error)
    world.installed = {}
    with pytest.raises(InputError, match="WinError 206.*short folder"):
        torchgate.ensure()
    assert torchgate.explain(RuntimeError("[WinError 206] The filename is too long")) == torchgate.LONG_PATH


@pytest.mark.parametrize("error, word", [(OSError(28, "No space left on device"), "disk is full"), (RuntimeError("User declined"), "Cancel"),
                                         (ConnectionError("no route to host"), "no route to host"), (ValueError(), "ValueError")])
def test_other_failures_are_one_sentence(world, monkeypatch, error, word):
    fake_extension(monkeypatch, world, error=error)
    world.installed = {}
    with pytest.raises(InputError, match=word) as caught:
        torchgate.ensure()
    assert "\n" not in str(caught.value) and "press Apply again" in str(caught.value)


def test_an_answer_of_cancel_leaves_a_sentence(world, monkeypatch):
    fake_extension(monkeypatch, world, brings="")
    world.installed = {}
    with pytest.raises(InputError, match="PyTorch is not installed; press Apply again"):
        torchgate.ensure()
