"""The shape of the code: import ranks, one sampler, no prints, sizes, style, packaging, and the freshness of the README's table."""

from __future__ import annotations

import ast
import fnmatch
import re
import sys
from functools import lru_cache
from pathlib import Path

import pytest
from conftest import LIBRARY, ROOT

PACKAGES = ROOT / "DeepRegistration"
RANKS = [{"errors", "parameters", "runtime"}, {"geometry"}, {"exchange", "planes", "tables"}, {"ops"}, {"image", "points"}, {"transforms"},
         {"io", "terms", "networks"}, {"engines"}, {"problem", "result", "method"}, {"evaluate"}, {"train"}, {"methods"}, {"commands", "__main__"}]
RANK = {name: k for k, names in enumerate(RANKS) for name in names}
MAY_KNOW_EACH_OTHER = ({"errors", "parameters", "runtime"}, {"problem", "result", "method"}, {"commands", "__main__"})
AT_THE_POINT_OF_USE = {"safetensors": "networks/weights.py", "h5py": "networks/foreign.py", "unigradicon": "networks/foreign.py",
                       "sklearn": "engines/packages.py", "distributed": "engines/packages.py"}
SOURCES = sorted(LIBRARY.rglob("*.py"))
ALL = sorted(p for folder in ("DeepRegistration", "AtlasBuilder", "QMRIRegister", "Testing") for p in (ROOT / folder).rglob("*.py")) + [ROOT / "run.py"]
LONGEST_FILE, LONGEST_TEST_FILE, LONGEST_FUNCTION, LONGEST_LINE = 450, 500, 60, 160


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@lru_cache(maxsize=None)
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def unit_of(path: Path) -> str:
    """The module or package right below the library that a file belongs to."""
    return path.relative_to(LIBRARY).parts[0].removesuffix(".py")


def imports_of(path: Path):
    """(line, absolute dotted name, at file scope?) of every import in a file, relative ones resolved."""
    package = [LIBRARY.name, *path.relative_to(LIBRARY).parts[:-1]]
    at_top = {id(node) for node in tree_of(path).body}
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            names = [".".join(base)] if node.module else [".".join([*base, alias.name]) for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name, id(node) in at_top) for name in names)


@pytest.mark.parametrize("path", SOURCES, ids=short)
def test_import_ranks(path):
    here = unit_of(path)
    for line, name, _ in imports_of(path):
        parts = name.split(".")
        if parts[0] != LIBRARY.name or len(parts) < 2 or parts[1] in ("__version__", here) or here == "__init__":
            continue
        assert parts[1] in RANK, f"{short(path)}:{line} imports {name}, which has no rank"
        if here == "method" and parts[1] == "methods":
            continue  # the registry looks into the folder when it is asked
        friends = any({here, parts[1]} <= group for group in MAY_KNOW_EACH_OTHER)
        assert RANK[parts[1]] < RANK[here] or friends, f"{short(path)}:{line} imports {name}, which stands above or beside it"


def test_every_part_of_the_library_has_a_rank():
    assert {unit_of(path) for path in SOURCES} - {"__init__"} <= set(RANK)


def test_methods_do_not_import_each_other():
    for path in SOURCES:
        if unit_of(path) == "methods":
            for line, name, _ in imports_of(path):
                assert not name.startswith(f"{LIBRARY.name}.methods"), f"{short(path)}:{line}: make an engine of what two methods share"


@pytest.mark.parametrize("path", SOURCES, ids=short)
def test_packages_the_library_may_use(path):
    for line, name, at_top in imports_of(path):
        first = name.split(".")[0]
        if first in sys.stdlib_module_names or first in (LIBRARY.name, "torch", "numpy", "scipy"):
            continue
        if first == "SimpleITK":
            assert unit_of(path) == "io", f"{short(path)}:{line}: SimpleITK belongs into io"
        elif first == "matplotlib":
            at_home = short(path).endswith("evaluate/report.py") and not at_top
            assert at_home, f"{short(path)}:{line}: matplotlib belongs into a function of evaluate/report"
        elif first in AT_THE_POINT_OF_USE:
            at_home = short(path).endswith(AT_THE_POINT_OF_USE[first]) and not at_top
            assert at_home, f"{short(path)}:{line}: {first} belongs into a function of {AT_THE_POINT_OF_USE[first]}"
        elif first == "numba":
            assert short(path).endswith("ops/kernels.py"), f"{short(path)}:{line}: compiled loops belong into ops/kernels"
        else:
            raise AssertionError(f"{short(path)}:{line} imports {name}; the library uses torch, numpy and scipy only")


@pytest.mark.parametrize("path", [p for p in SOURCES if unit_of(p) in ("commands", "__main__")], ids=short)
def test_the_command_line_imports_nothing_heavy_at_file_scope(path):
    for line, name, at_top in imports_of(path):
        light = name.split(".")[0] in sys.stdlib_module_names or any(name.startswith(f"{LIBRARY.name}.{p}") for p in ("errors", "runtime", "commands"))
        assert light or not at_top, f"{short(path)}:{line}: import {name} where it is needed, so that help answers at once"


def test_one_grid_sample():
    """Names in the code, not words in texts: only ops/sample.py calls torch's sampler or chooses its convention for corners."""
    for path in SOURCES:
        for node in ast.walk(tree_of(path)):
            called = isinstance(node, ast.Attribute) and node.attr in ("grid_sample", "affine_grid")
            chosen = isinstance(node, ast.keyword) and node.arg == "align_corners"
            assert not (called or chosen) or short(path).endswith("ops/sample.py"), f"{short(path)}:{getattr(node, 'lineno', '?')} samples by itself"
    assert len(re.findall(r"def _grid_sample\(", (LIBRARY / "ops" / "sample.py").read_text())) == 1


def test_convolution_by_dimension_only_in_nd():
    for path in SOURCES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Attribute) and re.fullmatch(r"(Conv|conv|AvgPool|MaxPool|avg_pool|max_pool|conv_transpose)[23]d", node.attr):
                assert short(path).endswith("ops/nd.py"), f"{short(path)}:{node.lineno}: {node.attr} belongs into ops/nd.py"


@pytest.mark.parametrize("path", SOURCES, ids=short)
def test_style_of_the_library(path):
    assert ast.get_docstring(tree_of(path)), f"{short(path)} says nothing about what it computes"
    for node in ast.walk(tree_of(path)):
        where = f"{short(path)}:{getattr(node, 'lineno', '?')}"
        if isinstance(node, ast.Call):
            assert getattr(node.func, "id", "") != "print", f"{where} prints"
            assert getattr(node.func, "attr", "") != "cuda", f"{where} chooses a device by itself"
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            defaults = [*node.args.defaults, *node.args.kw_defaults]
            assert not any(isinstance(d, (ast.List, ast.Dict, ast.Set)) for d in defaults), f"{where} has a default that can change"


@pytest.mark.parametrize("path", ALL, ids=short)
def test_sizes_and_words(path):
    text = path.read_text("utf-8")
    lines = text.splitlines()
    assert len(lines) <= (LONGEST_TEST_FILE if "Testing" in path.parts else LONGEST_FILE), f"{short(path)} has {len(lines)} lines"
    for number, line in enumerate(lines, 1):
        assert len(line) <= LONGEST_LINE, f"{short(path)}:{number} has {len(line)} characters"
    assert not re.search(r"\b(TO" r"DO|FIX" r"ME|X" r"XX)\b", text), f"{short(path)} holds a note to oneself"
    assert not re.search(r"(?<![\w.])/(work|tmp|root|home)/", text), f"{short(path)} holds a path of one machine"
    for node in ast.walk(tree_of(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < LONGEST_FUNCTION, f"{short(path)}:{node.lineno} {node.name} is long"
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"{short(path)}:{node.lineno} catches everything"


@pytest.mark.parametrize("folder", ["DeepRegistration", "AtlasBuilder", "QMRIRegister", "Testing"])
def test_every_import_is_used(folder):
    """By name, or as the argument of a test that asks for a fixture. Packages pass on what they import; fixtures without a name say noqa."""
    for path in (p for p in ALL if folder in p.parts and p.name != "__init__.py"):
        lines, nodes = path.read_text("utf-8").splitlines(), list(ast.walk(tree_of(path)))
        used = {n.id for n in nodes if isinstance(n, ast.Name)} | {n.arg for n in nodes if isinstance(n, ast.arg)}
        used |= {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}  # __all__, annotations in quotes, fixtures by name
        for node in nodes:
            if isinstance(node, (ast.Import, ast.ImportFrom)) and "F401" not in lines[node.lineno - 1] and getattr(node, "module", "") != "__future__":
                unused = {(a.asname or a.name).split(".")[0] for a in node.names} - used
                assert not unused, f"{short(path)}:{node.lineno} imports {', '.join(sorted(unused))} for nothing"


def globs_of(cmake: Path) -> list[str]:
    """Patterns of the file(GLOB_RECURSE ...) calls that follow changes of the tree."""
    calls = re.findall(r"file\(GLOB_RECURSE\s+\w+\s+(.*?)\)", cmake.read_text("utf-8"), re.DOTALL)
    assert calls and all("CONFIGURE_DEPENDS" in call and "RELATIVE" in call for call in calls)
    return [pattern for call in calls for pattern in re.findall(r'"([^"$]*\*[^"]*)"', call)]


def covered(relative: str, patterns: list[str]) -> bool:
    """CMake's GLOB_RECURSE: the folder part is literal, the file part matches in it and in every folder below."""
    for pattern in patterns:
        folder, _, name = pattern.rpartition("/")
        inside = not folder or relative.startswith(folder + "/")
        if inside and fnmatch.fnmatch(relative.rsplit("/", 1)[-1], name):
            return True
    return False


@pytest.mark.parametrize("module, fewest", [(PACKAGES, 40), (ROOT / "AtlasBuilder", 4), (ROOT / "QMRIRegister", 4)],
                         ids=["DeepRegistration", "AtlasBuilder", "QMRIRegister"])
def test_every_file_of_the_packages_is_packaged(module, fewest):
    patterns = globs_of(module / "CMakeLists.txt")
    files = [p.relative_to(module).as_posix() for p in module.rglob("*") if p.is_file() and "__pycache__" not in p.parts and p.name != "CMakeLists.txt"]
    assert len(files) > fewest
    assert [name for name in files if not covered(name, patterns)] == []
    assert not covered("DeepRegistrationLib/notes.txt", patterns) and covered("DeepRegistrationLib/methods/new_one.py", patterns)
    assert f"add_subdirectory({module.name})" in (ROOT / "CMakeLists.txt").read_text("utf-8")


def test_every_folder_with_python_is_a_package():
    for path in PACKAGES.rglob("*.py"):
        if path.parent != PACKAGES:
            assert (path.parent / "__init__.py").exists(), f"{short(path.parent)} has no __init__.py and would be missing in the wheel"


def test_extension_root_names_what_the_catalogue_checks():
    text = (ROOT / "CMakeLists.txt").read_text("utf-8")
    assert re.search(r"^project\(DeepRegistration\)", text, re.MULTILINE)
    for key in ("HOMEPAGE", "CONTRIBUTORS", "DESCRIPTION", "ICONURL", "SCREENSHOTURLS", "DEPENDS", "LICENSE_FILE", "README_FILE"):
        assert re.search(rf'set\(EXTENSION_{key} "?[^")]+', text), f"EXTENSION_{key} is missing"
    assert "Apache License" in (ROOT / "LICENSE").read_text("utf-8")[:200]


def test_readme_table_is_fresh(monkeypatch):
    monkeypatch.delenv("DEEPREGISTRATION_METHODS", raising=False)
    from DeepRegistrationLib.commands.catalogue import BEGIN, END, markdown
    from DeepRegistrationLib.method import registry

    text = (ROOT / "README.md").read_text("utf-8")
    found = text.partition(BEGIN)[2].partition(END)[0].strip()
    assert found == markdown(registry()), "the table is old; python run.py list --markdown --into README.md writes it anew"


def test_links_of_the_readme_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text("utf-8")):
        assert target.startswith("http") or (ROOT / target).exists(), f"README.md points to {target}, which is not there"


def test_versions_agree():
    from DeepRegistrationLib import __version__

    assert f"version: {__version__}" in (ROOT / "CITATION.cff").read_text("utf-8")
    pins = dict(re.findall(r"^([\w.-]+)==([\w.]+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE))
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    for name in re.findall(r'"([\w-]+)>=', project):
        assert name in pins or name == "setuptools", f"{name} has no pin in constraints.txt"
