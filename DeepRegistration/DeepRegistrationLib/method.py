"""Methods, their cards and the registry.

One published method is one file ``methods/<id>.py``: a module docstring with equations and reference, a frozen dataclass
whose fields are the parameters, a Card and ``run(problem, runtime) -> Result``. The registry walks the folder (and the
folders in ``DEEPREGISTRATION_METHODS``, separated by the system's path separator); there is no list to edit.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.util
import os
import pkgutil
import platform
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from . import __version__
from .errors import InputError, RegistrationError
from .parameters import check, describe, from_values
from .problem import Pair
from .runtime import Runtime, peak_memory_mib


@dataclass(frozen=True)
class Preset:
    """Named parameter values for one task; ``help`` says for what and at what cost."""

    help: str
    values: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Card:
    """What a method is; ``presets['default']`` must exist and ``references`` are BibTeX entries; ``covariate``: the subjects of a cohort need
    one."""

    title: str
    summary: str
    task: str
    references: tuple[str, ...]
    problem: type = Pair
    dims: tuple[int, ...] = (2, 3)
    assumptions: tuple[str, ...] = ()
    failure_modes: tuple[str, ...] = ()
    weights: tuple = ()
    licence: str = "Apache-2.0"
    symmetric: bool = False
    covariate: bool = False
    presets: dict[str, Preset] = field(default_factory=lambda: {"default": Preset("the standard settings")})


class Method:
    """Base of all methods; ``run`` wraps ``solve`` with checks, process settings and provenance."""

    id: str
    card: Card

    def solve(self, problem, runtime: Runtime):
        """The algorithm: problem -> Result. Runs inside ``runtime.active()``."""
        raise NotImplementedError

    def run(self, problem, runtime: Runtime | None = None):
        """Check the request, solve it and note how it was done. Raises InputError, ConvergenceError or Cancelled."""
        from .result import Result

        runtime = runtime or Runtime()
        check(self)
        self._check_problem(problem)
        began = time.perf_counter()
        with runtime.active():
            result = self.solve(problem, runtime)
        result.provenance = {**provenance(self, runtime), "wall_seconds": time.perf_counter() - began, **result.provenance}
        if isinstance(result, Result):
            result.provenance["linear_stretch"] = result.affine.stretch
        return result

    def _check_problem(self, problem):
        if not isinstance(problem, self.card.problem):
            raise InputError(f"method '{self.id}' has another task ({self.card.task}): it takes a {self.card.problem.__name__}, "
                             f"a {type(problem).__name__} was given; choose another method")
        if problem.dim not in self.card.dims:
            raise InputError(f"method '{self.id}' works in {' and '.join(f'{d}D' for d in self.card.dims)}; the images are {problem.dim}D")

    def values(self) -> dict:
        """Parameter name -> value, ready for JSON."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}


def method(card: Card):
    """Class decorator: checks that every field is described, attaches the card and names the method after its file."""

    def attach(cls):
        if not (dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen):
            raise TypeError(f"{cls.__name__} must be a frozen dataclass")
        for f in dataclasses.fields(cls):
            if f.default is dataclasses.MISSING or "label" not in f.metadata:
                raise TypeError(f"{cls.__name__}.{f.name} needs a default and a description; use parameters.parameter(...)")
        if "default" not in card.presets:
            raise TypeError(f"the card of {cls.__name__} has no preset 'default'")
        for preset in card.presets.values():
            check(from_values(cls, preset.values))
        cls.card, cls.id = card, cls.__module__.rsplit(".", 1)[-1].replace("_", "-")
        return cls

    return attach


def registry() -> dict[str, type[Method]]:
    """Method id -> class, from this package's ``methods`` folder and the folders of ``DEEPREGISTRATION_METHODS``."""
    from . import methods

    found: dict[str, type[Method]] = {}
    for info in pkgutil.iter_modules(methods.__path__):
        _collect(importlib.import_module(f"{methods.__name__}.{info.name}"), found)
    for folder in _folders():
        for path in sorted(folder.glob("*.py")):
            _collect(_load(path, methods.__name__), found)
    return dict(sorted(found.items()))


def _folders() -> list[Path]:
    return [Path(folder) for folder in os.environ.get("DEEPREGISTRATION_METHODS", "").split(os.pathsep) if folder]


def _class_of(identifier: str) -> type[Method] | None:
    """The class that ``registry`` has under ``identifier``, found by its file's name: the other methods are not imported."""
    from . import methods

    stem, found = identifier.replace("-", "_"), {}
    if not stem.isidentifier():
        return None
    paths = [path for folder in _folders() if (path := folder / f"{stem}.py").is_file()]
    if paths:
        _collect(_load(paths[-1], methods.__name__), found)
    elif stem in {info.name for info in pkgutil.iter_modules(methods.__path__)}:
        _collect(importlib.import_module(f"{methods.__name__}.{stem}"), found)
    return found.get(identifier)


def _load(path: Path, package: str):
    name = f"{package}.{path.stem}"
    if name not in sys.modules or getattr(sys.modules[name], "__file__", None) != str(path):
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def _collect(module, found):
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__ and hasattr(value, "card"):
            found[value.id] = value


def find(name: str, values: dict | None = None) -> Method:
    """A method from ``id`` or ``id:preset`` with ``values`` on top; InputError names the nearest id or preset."""
    identifier, _, preset = name.partition(":")
    cls = _class_of(identifier)
    if cls is None:
        raise InputError(f"unknown method '{identifier}'; {_nearest(identifier, registry())}")
    preset = preset or "default"
    if preset not in cls.card.presets:
        raise InputError(f"method '{identifier}' has no preset '{preset}'; {_nearest(preset, cls.card.presets)}")
    return from_values(cls, {**cls.card.presets[preset].values, **(values or {})})


@dataclass(frozen=True)
class Pairwise:
    """A method of the registry as a function, for the processes of a crew: (fixed, moving, start, runtime) -> transform."""

    name: str
    values: tuple[tuple[str, object], ...] = ()

    def __call__(self, fixed, moving, start, runtime):
        return find(self.name, dict(self.values)).run(Pair(fixed, moving, start), runtime).transform


def _nearest(word, known) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean '{near[0]}'?" if near else "known are " + ", ".join(known)


def provenance(instance: Method, runtime: Runtime) -> dict:
    """Method, parameters, seed, device and versions of a run."""
    import numpy
    import torch

    return {"method": instance.id, "parameters": instance.values(), "seed": runtime.seed, "device": str(runtime.torch_device()),
            "versions": {"DeepRegistrationLib": __version__, "torch": torch.__version__, "numpy": numpy.__version__,
                         "python": platform.python_version()},
            "threads": torch.get_num_threads(), "peak_memory_mib": peak_memory_mib()}


__all__ = ["Card", "Method", "Preset", "RegistrationError", "describe", "find", "method", "registry"]
