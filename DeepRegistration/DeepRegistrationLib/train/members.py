"""The members of a cohort and the lattice of its atlas: what their headers say, before an image is read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ..engines.cohort_work import Member
from ..errors import InputError
from ..geometry import Grid
from ..problem import Group
from ..runtime import Monitor
from .data import FAR, common_lattice


def members_of(problem: Group, spacing: float, multiple: int, monitor: Monitor) -> tuple[tuple[Member, ...], Grid, dict[str, str]]:
    """(members, lattice of the atlas, name -> reason of the subjects whose header cannot be read).

    The lattice is the one that all subjects share, else the median of the cohort (``spacing`` mm, 0 for the median's); its sides are padded to
    multiples of ``multiple``. Where the headers place the subjects beside each other, their centres are brought together. InputError
    where fewer than two headers can be read and where 2D and 3D images are mixed.
    """
    grids, set_aside = {}, {}
    for _, subject in zip(monitor.steps(len(problem.subjects)), problem.subjects):
        try:
            grids[subject.name] = subject.grid()
        except InputError as error:
            set_aside[subject.name] = str(error)
    dims = {grid.dim: name for name, grid in grids.items()}
    if len(dims) > 1:
        raise InputError(f"2D and 3D images are mixed ({dims[2]} is 2D, {dims[3]} is 3D); give a cohort of one dimension")
    if len(grids) < 2:
        raise InputError(f"{len(grids)} images of the cohort can be read and an atlas needs two; {next(iter(set_aside.values()), '')}")
    first = next(iter(grids.values()))
    same = not spacing and all(grid.same_as(first) for grid in grids.values())
    lattice = common_lattice(list(grids.values()), spacing or None, None, multiple)
    members = []
    for subject in (subject for subject in problem.subjects if subject.name in grids):
        start = np.eye(first.dim + 1)
        start[:-1, -1] = 0.0 if same else -lattice.shift(grids[subject.name])
        members.append(Member(subject, start))
    return tuple(members), padded(first, multiple) if same else lattice.grid, set_aside


def header_start(atlas: Grid, grid: Grid) -> np.ndarray:
    """(dim + 1, dim + 1) atlas mm -> mm of a subject on ``grid`` that was not in the cohort: what the headers say, or centre to centre where these place the
    two beside each other."""
    start, shift, corners = np.eye(grid.dim + 1), grid.centre - atlas.centre, atlas.corners()
    if (np.abs(shift) > FAR * (corners.max(0) - corners.min(0))).any():
        start[:-1, -1] = shift
    return start


def order_of(method, problem: Group, seed: int) -> dict:
    """What decides the numbers, ready for JSON: a store made by another order is not gone on with."""
    return json.loads(json.dumps({"method": method.id, "parameters": method.values(), "seed": seed, "subjects": subjects_of(problem)}))


def subjects_of(problem: Group) -> list[list]:
    """[name, image, labels, mask, covariate] of every subject, ready for JSON: a file by its place, size and time of change, so that a file that was
    replaced is another one."""
    def told(value):
        if not isinstance(value, Path):
            return None if value is None else float(value.data.double().sum())
        try:
            held = value.stat()
        except OSError:
            return str(value.resolve())
        return [str(value.resolve()), held.st_size, int(held.st_mtime)]

    return [[s.name, told(s.image), told(s.labels), told(s.mask), s.covariate] for s in problem.subjects]


def padded(grid: Grid, multiple: int) -> Grid:
    """The grid with as many voxels more at both ends as make its sides multiples of ``multiple``; one-voxel axes stay."""
    missing = -np.array(grid.size) % multiple
    return grid.crop(-(missing // 2), np.array(grid.size) + missing - missing // 2)
