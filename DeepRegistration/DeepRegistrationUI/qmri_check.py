"""Order and directions of slices as the user corrects them: what a registration found, and what the volume would show for another choice."""

from __future__ import annotations

import numpy as np

from DeepRegistrationLib.errors import InputError


class SliceCheck:
    """``rows`` are the slices of a result of the job 'qmri', ``measured`` their pictures (rows, columns). ``plane`` and ``flips`` are as chosen now: slice k
    lies on plane ``plane[k]``, mirrored along its rows and its columns where ``flips[k]`` says so."""

    def __init__(self, rows: list[dict], measured):
        self.rows, self.measured = rows, [flat(array) for array in measured]
        self.seen = {row["plane"]: mirror(flat(row["emulated"].array), row["flips"]) for row in rows}
        self.plane, self.flips = [row["plane"] for row in rows], [tuple(row["flips"]) for row in rows]

    @property
    def changed(self) -> bool:
        """True where something else is chosen than what was found."""
        return self.plane != [row["plane"] for row in self.rows] or self.flips != [tuple(row["flips"]) for row in self.rows]

    @property
    def placement(self) -> dict:
        """As a request says it."""
        return {"plane": list(self.plane), "flips": [list(flip) for flip in self.flips]}

    def expected(self, k: int) -> np.ndarray:
        """What the volume shows where slice ``k`` is chosen to lie."""
        return mirror(self.seen[self.plane[k]], self.flips[k])

    def mirror(self, chosen, axis: int) -> None:
        """Mirror the slices ``chosen`` along their rows (0) or their columns (1)."""
        for k in chosen:
            self.flips[k] = tuple(on != (n == axis) for n, on in enumerate(self.flips[k]))

    def exchange(self, one: int, other: int) -> None:
        """Exchange the places of two slices. InputError where their pictures have different sizes."""
        if self.measured[one].shape != self.measured[other].shape:
            raise InputError(f"'{self.rows[one]['name']}' and '{self.rows[other]['name']}' have different numbers of pixels and cannot lie on each other's "
                             "plane; choose two slices of one size")
        self.plane[one], self.plane[other] = self.plane[other], self.plane[one]


def flat(array: np.ndarray) -> np.ndarray:
    """The picture (rows, columns) of a volume (z, y, x) of one slice."""
    return np.asarray(array).squeeze(next(axis for axis, n in enumerate(array.shape) if n == 1))


def mirror(picture: np.ndarray, flips) -> np.ndarray:
    """A picture mirrored along its rows and along its columns where ``flips`` says so."""
    return picture[:: -1 if flips[1] else 1, :: -1 if flips[0] else 1]


def spacing_of(grid) -> tuple[float, float]:
    """mm between columns and between rows of a grid of one slice."""
    return tuple(float(step) for step, n in zip(grid.spacing, grid.size) if n != 1)
