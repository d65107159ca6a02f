"""The state of an atlas that is being built, as files: templates, one map a subject and iteration, what was noted.

    FOLDER/state.json                      iterations done, their figures, who was set aside and why
    FOLDER/template-KK.npz                 the template that iteration KK registers to
    FOLDER/iteration-KK/NAME.npz, .json    the map of a subject found by it, and its figures
    FOLDER/atlases-KK.npz                  of an atlas over age: the templates at all its knots
    FOLDER/statistics-KK.npz               means over the maps that led to template KK
    FOLDER/correction-KK.npz               what all maps of it are preceded by so that their mean is the identity

Every file appears when it is complete, so that a run that was killed goes on with all that was finished. A map is T = A o (id + u), atlas mm ->
subject mm, u on the atlas lattice.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from ..geometry import Grid
from ..image import Image
from ..ops import fields
from ..transforms import Affine, Displacement, Transform
from ..transforms.parts import split

STATE = "state.json"


@dataclass(frozen=True, eq=False)
class SubjectMap:
    """T(x) = matrix (x + u(x)): ``matrix`` (dim + 1, dim + 1) float64, ``displacement`` (1, dim, *S) mm on ``grid`` or None for u = 0."""

    matrix: np.ndarray
    displacement: torch.Tensor | None
    grid: Grid

    @classmethod
    def of(cls, transform: Transform, grid: Grid) -> "SubjectMap":
        """Any transform, its deformation read on ``grid``."""
        linear, dense = split(transform, grid)
        return cls(linear.numpy(), None if dense is None else dense.field(grid).detach().float().cpu(), grid)

    @property
    def transform(self) -> Transform:
        linear = Affine(torch.as_tensor(self.matrix.copy()))
        return linear if self.displacement is None else linear @ Displacement(self.displacement, self.grid)

    def after(self, inner: "SubjectMap") -> "SubjectMap":
        """T o inner. Both may be linear; otherwise ``inner`` must be a displacement alone; it is continued by its border values outside."""
        if inner.displacement is None and self.displacement is None:
            return SubjectMap(self.matrix @ inner.matrix, None, self.grid)
        if inner.displacement is None:
            w = Affine(torch.as_tensor(inner.matrix.copy())).field(self.grid)
        else:
            w = inner.displacement
        u = w if self.displacement is None else fields.compose(self.displacement, w, self.grid, "border")
        return SubjectMap(self.matrix, u, self.grid)

    def field(self) -> torch.Tensor:
        """(dim, *S) T(x) - x in mm on the lattice."""
        return self.transform.field(self.grid)[0]


class Store:
    """The files of one atlas in ``folder``. The lattice is that of the templates."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    # ------------------------------------------------------------------------------------------------------- state

    def state(self) -> dict:
        """{"order", "iterations" (done), "rows", "set_aside" {name: reason}, ...}; {} where nothing is there. InputError for a damaged file."""
        path = self.folder / STATE
        if not path.exists():
            return {}
        try:
            return json.loads(path.read_text("utf-8"))
        except ValueError:
            raise InputError(f"{path} cannot be read; remove the folder {self.folder}, or choose another one") from None

    def note(self, state: dict) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        _replace(self.folder / STATE, lambda path: path.write_text(json.dumps(state, indent=1), "utf-8"))

    # -------------------------------------------------------------------------------------------------------- maps

    def place(self, iteration: int) -> Path:
        folder = self.folder / f"iteration-{iteration:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def figures(self, iteration: int, name: str) -> dict | None:
        """What was noted for a subject when its map was complete, None before."""
        path = self.place(iteration) / f"{name}.json"
        return json.loads(path.read_text("utf-8")) if path.exists() else None

    def keep(self, iteration: int, name: str, made: SubjectMap, figures: dict) -> None:
        """Write a map, then its figures: where these are, the map is complete."""
        self.write_map(iteration, name, made)
        _replace(self.place(iteration) / f"{name}.json", lambda path: path.write_text(json.dumps(figures), "utf-8"))

    def write_map(self, iteration: int, name: str, made: SubjectMap) -> None:
        _save_map(self.place(iteration) / f"{name}.npz", made)

    def has_map(self, iteration: int, name: str) -> bool:
        return (self.place(iteration) / f"{name}.npz").is_file()

    def map(self, iteration: int, name: str) -> SubjectMap:
        return _load_map(self.place(iteration) / f"{name}.npz")

    def write_correction(self, iteration: int, made: SubjectMap) -> None:
        _save_map(self._correction(iteration), made)

    def corrected(self, iteration: int, name: str) -> SubjectMap:
        """The map of a subject, preceded by the correction of its iteration."""
        return self.map(iteration, name).after(self.correction(iteration))

    def correction(self, iteration: int) -> SubjectMap:
        return _load_map(self._correction(iteration))

    def _correction(self, iteration: int) -> Path:
        return self.folder / f"correction-{iteration:02d}.npz"

    # --------------------------------------------------------------------------------------------------- templates

    def write_template(self, iteration: int, image: Image) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        mask = {} if image.mask is None else {"mask": image.mask.numpy()}
        _save(self.folder / f"template-{iteration:02d}.npz", data=image.data.numpy(), shape=np.array(image.grid.shape), affine=image.grid.affine, **mask)

    def template(self, iteration: int) -> Image:
        with np.load(self.folder / f"template-{iteration:02d}.npz") as held:
            mask = torch.from_numpy(held["mask"]) if "mask" in held else None
            return Image(torch.from_numpy(held["data"]), Grid(tuple(int(n) for n in held["shape"]), held["affine"]), mask, name="template")

    def write_atlases(self, iteration: int, atlases: torch.Tensor) -> None:
        """The templates (K, 1, *S) at all knots of an atlas over age."""
        self.folder.mkdir(parents=True, exist_ok=True)
        _save(self._atlases(iteration), data=atlases.float().numpy())

    def has_atlases(self, iteration: int) -> bool:
        return self._atlases(iteration).is_file()

    def atlases(self, iteration: int) -> torch.Tensor:
        with np.load(self._atlases(iteration)) as held:
            return torch.from_numpy(held["data"])

    def _atlases(self, iteration: int) -> Path:
        return self.folder / f"atlases-{iteration:02d}.npz"

    def write_statistics(self, iteration: int, **arrays) -> None:
        _save(self.folder / f"statistics-{iteration:02d}.npz", **arrays)

    def statistics(self, iteration: int) -> dict[str, np.ndarray]:
        """What was summed over the maps that led to template ``iteration``."""
        with np.load(self.folder / f"statistics-{iteration:02d}.npz") as held:
            return {name: held[name] for name in held}

    def forget(self, iteration: int) -> None:
        """Remove what only iterations before this one needed."""
        for k in range(iteration):
            shutil.rmtree(self.folder / f"iteration-{k:02d}", ignore_errors=True)
            (self.folder / f"template-{k:02d}.npz").unlink(missing_ok=True)
            self._correction(k).unlink(missing_ok=True)
            self._atlases(k).unlink(missing_ok=True)
            (self.folder / f"statistics-{k:02d}.npz").unlink(missing_ok=True)


def _save_map(path: Path, made: SubjectMap) -> None:
    u = {} if made.displacement is None else {"displacement": made.displacement.numpy()}
    _save(path, matrix=made.matrix, shape=np.array(made.grid.shape), affine=made.grid.affine, **u)


def _load_map(path: Path) -> SubjectMap:
    with np.load(path) as held:
        u = torch.from_numpy(held["displacement"]) if "displacement" in held else None
        return SubjectMap(held["matrix"], u, Grid(tuple(int(n) for n in held["shape"]), held["affine"]))


def _save(path: Path, **arrays) -> None:
    def write(temporary: Path) -> None:
        with open(temporary, "wb") as stream:
            np.savez(stream, **arrays)

    _replace(path, write)


def _replace(path: Path, write) -> None:
    """``write(temporary)``, then the new name, so that no half of it is ever read."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    write(temporary)
    os.replace(temporary, path)
