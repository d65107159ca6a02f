"""The extension as it is installed: files, panel and command line of the installed tree, the catalogue entry, and the tests for the application.

CMake runs on stand-ins for Slicer's macros, written here from what they are documented to do: all modules of an extension go flat into one
folder, scripts and resources with their paths relative to the module. Without CMake (or with one that is too old) the tests of the
installed tree are skipped; ``test_architecture`` compares CMake's patterns with the tree in any case.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import unittest
from pathlib import Path

import pytest
from conftest import ROOT
from harness.fixtures import application, missing, no_slot_errors, scene  # noqa: F401

MODULE = ROOT / "DeepRegistration"
MODULES = (MODULE, ROOT / "AtlasBuilder", ROOT / "QMRIRegister")
SCENE_TESTS = [ROOT / "Testing" / "Slicer" / f"{module.name}SceneTest.py" for module in MODULES]
SCRIPTED = "lib/Slicer-5.13/qt-scripted-modules"
CONFIG = """
set(Slicer_USE_FILE "${CMAKE_CURRENT_LIST_DIR}/UseSlicer.cmake")
set(Slicer_EXTENSION_GENERATE_CONFIG "${CMAKE_CURRENT_LIST_DIR}/Generate.cmake")
set(Slicer_EXTENSION_CPACK "${CMAKE_CURRENT_LIST_DIR}/Pack.cmake")
"""
MACROS = """
option(BUILD_TESTING "" ON)
enable_testing()
function(slicer_add_python_unittest)
  cmake_parse_arguments(PARSE_ARGV 0 MY "" "TESTNAME_PREFIX;SCRIPT" "SLICER_ARGS")
  if(MY_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "unknown: ${MY_UNPARSED_ARGUMENTS}")
  endif()
  get_filename_component(folder "${MY_SCRIPT}" PATH)
  get_filename_component(name "${MY_SCRIPT}" NAME_WE)
  if(NOT folder)
    set(folder "${CMAKE_CURRENT_SOURCE_DIR}")
  endif()
  get_filename_component(folder "${folder}" ABSOLUTE)
  add_test(NAME "py_${MY_TESTNAME_PREFIX}${name}" COMMAND "${CMAKE_COMMAND}" "${folder}" "${name}")
endfunction()
function(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(PARSE_ARGV 0 MY "WITH_GENERIC_TESTS;WITH_SUBDIR;VERBOSE" "NAME" "SCRIPTS;RESOURCES")
  if(MY_UNPARSED_ARGUMENTS OR NOT MY_NAME)
    message(FATAL_ERROR "unknown: ${MY_UNPARSED_ARGUMENTS}")
  endif()
  foreach(entry IN LISTS MY_SCRIPTS MY_RESOURCES)
    if(NOT EXISTS "${CMAKE_CURRENT_SOURCE_DIR}/${entry}" OR IS_ABSOLUTE "${entry}")
      message(FATAL_ERROR "no such file beside the module: ${entry}")
    endif()
    get_filename_component(folder "${entry}" DIRECTORY)
    install(FILES "${entry}" DESTINATION "@SCRIPTED@/${folder}")
  endforeach()
  if(BUILD_TESTING AND MY_WITH_GENERIC_TESTS)
    slicer_add_python_unittest(SCRIPT "qSlicer${MY_NAME}ModuleGenericTest.py" TESTNAME_PREFIX nomainwindow_)
  endif()
endfunction()
""".replace("@SCRIPTED@", SCRIPTED)
GENERATE = """
get_cmake_property(names VARIABLES)
file(WRITE "${CMAKE_BINARY_DIR}/description.txt" "project=${PROJECT_NAME}\\n")
foreach(name IN LISTS names)
  if(name MATCHES "^EXTENSION_")
    file(APPEND "${CMAKE_BINARY_DIR}/description.txt" "${name}=${${name}}\\n")
  endif()
endforeach()
"""
PANEL = """
import sys
import harness
from harness.application import install, load
slicer = install()
folder = sys.argv[1]
module = load(folder + "/DeepRegistration.py")
widget = module.createNewWidgetRepresentation()
widget.show_module(True)
assert widget.self().panel.node is not None and not widget.self().panel.page("register").ui.applyButton.enabled
slicer.app.startupCompleted.emit()
import SampleData
assert len(SampleData.SampleDataLogic.registered) == 3
widget.show_module(False)
widget.self().cleanup()
widget = load(folder + "/AtlasBuilder.py").createNewWidgetRepresentation()
widget.show_module(True)
panel = widget.self().panel
panel.open("structure")
assert panel.page("build").ui.atlasButton.text == "Build" and panel.page("structure").parameters
widget.self().cleanup()
widget = load(folder + "/QMRIRegister.py").createNewWidgetRepresentation()
widget.show_module(True)
panel = widget.self().panel
panel.open("motion")
assert panel.page("slices").ui.qmriButton.text == "Register" and panel.page("motion").ui.motionRunButton.text == "Correct the motion"
widget.self().cleanup()
ours = [m for name, m in sys.modules.items() if name.startswith(("DeepRegistration", "AtlasBuilder", "QMRIRegister")) and getattr(m, "__file__", None)]
outside = [m.__file__ for m in ours if not m.__file__.startswith(folder)]
assert len(ours) > 20 and not outside, outside
assert "torch" not in sys.modules
print("panel built")
"""


# ------------------------------------------------------------------------------------------------- the installed extension


def run(*command, **options) -> subprocess.CompletedProcess:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300, check=False, **options)


def cmake() -> Path:
    """A CMake that is new enough: that beside Python, or the first on the path; skips the test where there is none."""
    needed = tuple(map(int, re.search(r"cmake_minimum_required\(VERSION (\d+)\.(\d+)", (ROOT / "CMakeLists.txt").read_text("utf-8")).groups()))
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    found = shutil.which("cmake", path=path)
    if found is None:
        pytest.skip("cmake is not installed; pip install cmake")
    version = tuple(map(int, re.search(r"version (\d+)\.(\d+)", run(found, "--version").stdout).groups()))
    if version < needed:
        pytest.skip(f"cmake {version[0]}.{version[1]} is older than {needed[0]}.{needed[1]}; pip install cmake")
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++", "cl")):
        pytest.skip("no C++ compiler, without which CMake configures no extension")
    return Path(found)


@pytest.fixture(scope="module")
def build(tmp_path_factory) -> Path:
    """The build folder of the extension, configured with the stand-ins."""
    program, folder = cmake(), tmp_path_factory.mktemp("extension")
    (folder / "slicer").mkdir()
    for name, text in (("SlicerConfig.cmake", CONFIG), ("UseSlicer.cmake", MACROS), ("Generate.cmake", GENERATE), ("Pack.cmake", "")):
        (folder / "slicer" / name).write_text(text, "utf-8")
    answer = run(program, "-S", ROOT, "-B", folder / "build", f"-DSlicer_DIR={folder / 'slicer'}", f"-DCMAKE_INSTALL_PREFIX={folder / 'installed'}")
    if re.search(r"CMAKE_MAKE_PROGRAM is not set|No CMAKE_CXX?_COMPILER", answer.stderr):
        pytest.skip("CMake found no compiler or no build program")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return folder / "build"


@pytest.fixture(scope="module")
def installed(build) -> Path:
    """The folder of scripted modules of the installed extension."""
    answer = run(cmake(), "--install", build)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return build.parent / "installed" / SCRIPTED


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}


def test_installed_files_are_those_of_the_tree(build, installed):
    files = [files_below(module) - {"CMakeLists.txt"} for module in MODULES]
    together = set().union(*files)
    assert files_below(installed) == together and sum(map(len, files)) == len(together), "modules share a folder: no file may be in two of them"
    assert {path.name for path in (build.parent / "installed").iterdir()} == {"lib"}, "something is installed outside the folder of modules"
    assert sorted(path.name for path in installed.iterdir() if path.name != "Resources") == [
        "AtlasBuilder.py", "DeepRegistration.py", "DeepRegistrationLib", "DeepRegistrationUI", "QMRIRegister.py"], "a name that another extension may use, too"


def test_names_of_resources_are_unique():
    """Resources of all modules of the extension share a folder: names tell whose they are, but for the list of packages that serves all.
    The folder of models serves all modules too; there every file is a card or the file of a card."""
    models = MODULE / "Resources" / "models"
    names = {path.name for path in (MODULE / "Resources").rglob("*") if path.is_file() and models not in path.parents}
    shared = {name for name in names if not name.startswith("DeepRegistration")}
    assert shared == {"requirements.txt"}, f"another module may have a file of the same name: {sorted(shared)}"
    for module in MODULES[1:]:
        for path in (module / "Resources").rglob("*"):
            assert path.is_dir() or path.name.startswith(module.name), f"another module may have a file of the same name: {path.name}"
    files = {path.relative_to(models).as_posix() for path in models.rglob("*") if path.is_file()}
    assert {Path(name).with_suffix(".json").as_posix() for name in files} <= files, "a file of weights has no card"


def test_panel_of_the_installed_extension(installed):
    if missing():
        pytest.skip(missing())
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "Testing"), "PYTHONDONTWRITEBYTECODE": "1"}
    answer = run(sys.executable, "-c", PANEL, installed, env=environment, cwd=installed)
    assert answer.returncode == 0 and "panel built" in answer.stdout, answer.stderr


def test_command_line_of_the_installed_extension(installed):
    environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("DEEPREGISTRATION_METHODS", None)
    answer = run(sys.executable, "-m", "DeepRegistrationLib", "list", env=environment, cwd=installed.parent)
    assert answer.returncode == 0 and "instance-optimisation" in answer.stdout, answer.stderr
    methods = {path.stem.replace("_", "-") for path in (installed / "DeepRegistrationLib" / "methods").glob("[a-z]*.py")}
    assert len(methods) > 1 and all(name in answer.stdout for name in methods)


def test_tests_are_registered(build):
    answer = run(cmake().with_name("ctest"), "--show-only=json-v1", cwd=build)
    tests = {test["name"]: test["command"] for test in json.loads(answer.stdout)["tests"]}
    assert set(tests) == {*(f"py_nomainwindow_qSlicer{module.name}ModuleGenericTest" for module in MODULES), *(f"py_{path.stem}" for path in SCENE_TESTS)}
    for path in SCENE_TESTS:
        _, folder, name = tests[f"py_{path.stem}"]
        assert Path(folder, f"{name}.py").samefile(path)


def test_description_is_what_the_files_say(build):
    lines = dict(line.split("=", 1) for line in (build / "description.txt").read_text("utf-8").splitlines())
    assert lines["project"] == "DeepRegistration"
    for key in ("EXTENSION_LICENSE_FILE", "EXTENSION_README_FILE"):
        assert Path(lines[key]).is_file()


# ---------------------------------------------------------------------------------------------------- the catalogue entry


ENTRY = ROOT / "Resources" / "catalogue" / "DeepRegistration.json"
REQUIRED = {"$schema": str, "category": str, "scm_url": str}
OPTIONAL = {"scm_revision": str, "scm_type": str, "build_dependencies": list, "dicom_support_rule": str, "build_subdirectory": str,
            "enabled": bool, "tier": int}
SCHEMA = "https://raw.githubusercontent.com/Slicer/Slicer/main/Schemas/slicer-extension-catalog-entry-schema-v1.0.2.json#"


def extension_variables() -> dict[str, str]:
    """The EXTENSION_* variables of the root CMakeLists.txt."""
    return dict(re.findall(r'^set\(EXTENSION_(\w+) "([^"]*)"\)', (ROOT / "CMakeLists.txt").read_text("utf-8"), re.MULTILINE))


def test_catalogue_entry_follows_the_schema():
    data = ENTRY.read_bytes()
    entry = json.loads(data)
    assert b"\r" not in data and data.endswith(b"}\n") and not data.startswith(b"\xef\xbb\xbf")
    assert set(REQUIRED) <= set(entry) <= set(REQUIRED | OPTIONAL)
    for key, value in entry.items():
        assert type(value) is (REQUIRED | OPTIONAL)[key], key
    assert entry["$schema"] == SCHEMA and entry["category"] == "Registration" and 1 <= entry["tier"] <= 5
    assert all(isinstance(name, str) for name in entry["build_dependencies"])


def test_catalogue_entry_agrees_with_cmake():
    entry, variables, text = json.loads(ENTRY.read_text("utf-8")), extension_variables(), (ROOT / "CMakeLists.txt").read_text("utf-8")
    assert re.search(r"^project\((\w+)\)", text, re.MULTILINE)[1] == ENTRY.stem and not ENTRY.stem.startswith("Slicer")
    assert variables["DEPENDS"].split() == entry["build_dependencies"] == ["PyTorch"]
    assert variables["CATEGORY"] == entry["category"]
    repository = entry["scm_url"].removesuffix(".git")
    assert repository == variables["HOMEPAGE"] and repository.rsplit("/", 1)[-1].startswith("Slicer")
    raw = repository.replace("//github.com/", "//raw.githubusercontent.com/") + f"/{entry['scm_revision']}/"
    for address in (variables["ICONURL"], *variables["SCREENSHOTURLS"].split()):
        assert address.startswith(raw), address
        assert (ROOT / address.removeprefix(raw)).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n", f"{address} is no PNG of this repository"


def test_no_address_claims_a_repository_that_is_not_there():
    """One place is named everywhere; as long as the README says that there is none yet, it is the reserved example.org."""
    entry, variables = json.loads(ENTRY.read_text("utf-8")), extension_variables()
    addresses = [entry["scm_url"], variables["HOMEPAGE"], variables["ICONURL"], *variables["SCREENSHOTURLS"].split()]
    hosts = {address.split("/")[2] for address in addresses}
    assert ("no public repository yet" in (ROOT / "README.md").read_text("utf-8")) == (hosts == {"example.org"})
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert "repository-code" not in citation or f"repository-code: {variables['HOMEPAGE']}" in citation


def test_license_has_an_accepted_name():
    assert [path.name for path in ROOT.iterdir() if path.stem.upper() in ("LICENSE", "COPYING", "LICENCE")] == ["LICENSE"]
    assert extension_variables()["LICENSE_FILE"] == "${CMAKE_CURRENT_SOURCE_DIR}/LICENSE"


@pytest.mark.parametrize("path", [ROOT / "Resources" / "Icons" / "DeepRegistration.png", *(m / "Resources" / "Icons" / f"{m.name}.png" for m in MODULES)],
                         ids=["extension", *(module.name for module in MODULES)])
def test_icon(path):
    head = path.read_bytes()[:24]
    assert struct.unpack(">II", head[16:24]) == (128, 128)


# ------------------------------------------------------------------------------------------ the tests for the application


@pytest.mark.parametrize("path, fewest", list(zip(SCENE_TESTS, (7, 5, 5))), ids=lambda value: getattr(value, "stem", ""))
def test_the_tests_for_the_application_pass_here(application, scene, monkeypatch, path, fewest):
    """The file that CTest runs inside the application, on the stand-in."""
    from harness.application import load

    modules = [load(module / f"{module.name}.py") for module in MODULES]
    monkeypatch.syspath_prepend(str(path.parent))
    suite = unittest.TestLoader().loadTestsFromName(path.stem)
    count, result = suite.countTestCases(), unittest.TestResult()
    suite.run(result)
    for module in modules:  # the application keeps the panels that it has shown; here they would watch the scenes of later tests
        if module.shown is not None:
            module.shown.self().cleanup()
            module.shown = None
    assert result.wasSuccessful(), "\n".join(text for _, text in result.errors + result.failures)
    assert count >= fewest and len(result.skipped) < count and result.testsRun == count
