"""Recipes: named ways to make a network, one file each in ``train/recipes``; the registry walks the folder.

A recipe is a frozen dataclass whose fields are its parameters (``parameters``), with a ``card`` that says what it is, and ``plan(request) -> Plan``:
the network, what it is shown and how it is scored.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import torch

from ..errors import InputError
from ..networks.weights import WeightsCard
from ..parameters import check, describe, from_values
from ..problem import Pair
from ..runtime import Runtime
from ..terms import Term
from .data import Data
from .loop import TrainingSettings

__all__ = ["Plan", "Recipe", "RecipeCard", "Request", "describe", "find", "recipe", "registry"]


@dataclass(frozen=True)
class RecipeCard:
    """What a recipe is: title, one sentence, whether it learns from the user's images, and the method that uses its weights."""

    title: str
    summary: str
    needs_data: bool
    method: str
    dims: tuple[int, ...] = (2, 3)


@dataclass(frozen=True, eq=False)
class Request:
    """What a plan is made for: dimension, seed, the user's images where the recipe needs some, updates (None: the recipe's own number)."""

    dim: int
    seed: int
    data: Data | None = None
    steps: int | None = None


@dataclass(frozen=True, eq=False)
class Plan:
    """All that a training run needs.

    draw, view, objective, settings: as ``loop.train`` takes them. held_out() gives the pairs of validation, None where none can be spared;
    test() those of the test. keep: 'best' by validation or the 'last' parameters become the weights. card: of the weights, without hash.
    prepare(folder, runtime): what has to be done to the network before the run, for example the training of its coarser parts; called again
    it goes on where it stopped.
    """

    network: torch.nn.Module
    view: Callable
    objective: Term
    draw: Callable[[torch.Generator], Pair]
    settings: TrainingSettings
    card: WeightsCard
    held_out: Callable[[], list[Pair]] | None = None
    test: Callable[[], list[Pair]] | None = None
    keep: str = "best"
    prepare: Callable[[Path, Runtime], None] | None = None


class Recipe:
    """Base of all recipes."""

    id: str
    card: RecipeCard

    def plan(self, request: Request) -> Plan:
        """The plan for a request whose data fit the card. InputError where they do not fit the parameters."""
        raise NotImplementedError

    def values(self) -> dict:
        """Parameter name -> value, ready for JSON."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}


def recipe(card: RecipeCard):
    """Class decorator: attaches the card, names the recipe after its file and checks that every field is described."""

    def attach(cls):
        for f in dataclasses.fields(cls):
            if f.default is dataclasses.MISSING or "label" not in f.metadata:
                raise TypeError(f"{cls.__name__}.{f.name} needs a default and a description; use parameters.parameter(...)")
        cls.card, cls.id = card, cls.__module__.rsplit(".", 1)[-1].replace("_", "-")
        return cls

    return attach


def registry() -> dict[str, type[Recipe]]:
    """Recipe id -> class."""
    from . import recipes

    found: dict[str, type[Recipe]] = {}
    for info in pkgutil.iter_modules(recipes.__path__):
        module = importlib.import_module(f"{recipes.__name__}.{info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Recipe) and value.__module__ == module.__name__:
                found[value.id] = value
    return dict(sorted(found.items()))


def find(name: str, values: dict | None = None) -> Recipe:
    """The recipe ``name`` with ``values`` for its parameters; InputError names the nearest recipe or parameter."""
    known = registry()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        raise InputError(f"unknown recipe '{name}'; " + (f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}"))
    found = from_values(known[name], values or {})
    check(found)
    return found
