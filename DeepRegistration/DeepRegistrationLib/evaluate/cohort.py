"""cortical-types: is one atlas enough for a cohort? Its types, from distances between subjects instead of
registration to one template.

Every matrix of distances (``ops.distances``: co-occurrence NMI of label maps, Hellinger's of profiles, root mean
squares of features or of maps) gets its correlation dimension and so many Isomap coordinates (``engines.embedding``),
at least 2, and as many as parts of the graph of neighbors less one, so that types at equal distances do not fall onto
each other. The coordinates of several matrices, each scaled to variance 1 in all, stand side by side: structure and
connectivity of a subject are one point. A Gaussian mixture with BIC and silhouette finds parts, and a valley between
them makes types (``engines.cohort_types``). Dimensions and types are regressed on covariates (``regression``, by
permutations).

The text takes the clusters of the mixture as they are. A mixture cuts every continuum that is not Gaussian into
clusters, so here components without a valley between them are one type; ``components`` says how many the text's own
rule gives. Kruggel and Solodkin, Distinct structural patterns of the human brain: a caveat for registration, WBIR
2022.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from ..engines.cohort_types import Types, find_types
from ..engines.embedding import Dimension, Embedding, correlation_dimension, isomap, paths
from ..errors import InputError
from ..method import Card
from ..parameters import check, parameter
from .regression import Effect, effects

FEWEST = 8
SMALL = 40
"""Subjects below which two types four standard deviations apart are missed more often than found (experiment cortical-types)."""
FEW = 0.1
"""Share of the subjects below which a type may be a few outliers: what was reported falsely of skewed cohorts was of that size."""
MOST_DIMENSIONS = 10
ALONE = 2.0
"""Distance to the nearest other subject, over the median distance of two, from which a subject is named: at most 2 % of normal cohorts of 24 or more
have such a one by chance, 6 % of 8.
"""


@dataclass(frozen=True, eq=False)
class Distances:
    """A matrix (N, N) of distances between the subjects ``names``; ``kind`` says of what, for people; ``described``:
    name -> (N,) numbers that were found on the way, such as the number of labels."""

    kind: str
    names: tuple[str, ...]
    matrix: np.ndarray
    described: dict = field(default_factory=dict)

    def __post_init__(self):
        fault = _fault(self.matrix, self.names)
        if fault:
            raise InputError(f"the distances of {self.kind} {fault}; a row and a column for each of {len(self.names)} subjects are expected, symmetric, "
                             "not negative, 0 on the diagonal")

    def of(self, names) -> "Distances":
        """The same for some subjects in another order."""
        order = [self.names.index(name) for name in names]
        return Distances(
            self.kind,
            tuple(names),
            self.matrix[np.ix_(order, order)],
            {k: np.asarray(v)[order] for k, v in self.described.items()},
        )


def _fault(m: np.ndarray, names) -> str:
    """What makes a table no distances between the subjects ``names``; '' where nothing does."""
    if m.shape != (len(names),) * 2:
        return f"are {' x '.join(map(str, m.shape))} numbers for {len(names)} subjects"
    if not np.isfinite(m).all():
        return "hold something that is no finite number"
    if (m < 0).any():
        return f"hold {m.min():g}"
    if np.diag(m).any():
        return f"are {np.diag(m).max():g} from a subject to itself"
    if not np.allclose(m, m.T):
        i, j = np.unravel_index(np.abs(m - m.T).argmax(), m.shape)
        return f"are {m[i, j]:g} from {names[i]} to {names[j]} and {m[j, i]:g} back"
    return ""


CARD = Card(
    title="Cohort structure: is one atlas enough?",
    summary="Distances between subjects, their dimension and a map of them, types, and what these depend on",
    task="Cohort structure",
    problem=Distances,
    references=(
        """@inproceedings{Kruggel2022,
  author = {Kruggel, Frithjof and Solodkin, Ana},
  title = {Distinct Structural Patterns of the Human Brain: A Caveat for Registration},
  booktitle = {Biomedical Image Registration (WBIR)}, series = {LNCS}, volume = {13386}, year = {2022}}""",
        """@article{Tenenbaum2000,
  author = {Tenenbaum, Joshua B. and de Silva, Vin and Langford, John C.},
  title = {A Global Geometric Framework for Nonlinear Dimensionality Reduction},
  journal = {Science}, volume = {290}, pages = {2319--2323}, year = {2000}}""",
        """@article{Grassberger1983,
  author = {Grassberger, Peter and Procaccia, Itamar},
  title = {Measuring the Strangeness of Strange Attractors},
  journal = {Physica D}, volume = {9}, pages = {189--208}, year = {1983}}""",
        """@article{Silverman1981,
  author = {Silverman, Bernard W.},
  title = {Using Kernel Density Estimates to Investigate Multimodality},
  journal = {Journal of the Royal Statistical Society B}, volume = {43}, pages = {97--99}, year = {1981}}""",
    ),
    assumptions=(
        "label maps lie in a common space; their labels need not correspond",
        "profiles and features have the same columns for all subjects",
        "subjects are independent: repeated scans of one person would count as a type",
    ),
    failure_modes=(
        "with fewer than about 40 subjects only types that are far apart are found; one type means no evidence for more",
        "differences between scanners or sites are types, too; give them as covariates",
        "a type with fewer subjects than dimensions plus one cannot be found",
        "profiles with many empty entries seem to have up to twice their dimension, as Hellinger's distance grows with "
        "the root of what leaves 0",
    ),
)


def alone(distances: Distances) -> list[str]:
    """A remark on every subject that has none near it."""
    usual = float(np.median(distances.matrix[np.triu_indices(len(distances.names), 1)]))
    nearest = np.where(np.eye(len(distances.names), dtype=bool), np.inf, distances.matrix).min(1)
    return [
        f"{name} lies alone: by {distances.kind} its nearest subject is {near / usual:.1f} times as far as two subjects usually are; look at it first"
        for name, near in zip(distances.names, nearest)
        if near > ALONE * usual > 0
    ]


@dataclass(frozen=True, eq=False)
class View:
    """One matrix with its dimension and its coordinates."""

    distances: Distances
    dimension: Dimension
    embedding: Embedding


@dataclass(frozen=True, eq=False)
class CohortStructure:
    """What was found. ``points`` (N, D) of all views; ``centers``: the most central subject of each type; ``effects``
    and ``remarks`` of the regression."""

    names: tuple[str, ...]
    views: tuple[View, ...]
    points: np.ndarray
    types: Types
    centers: tuple[str, ...]
    effects: tuple[Effect, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def answer(self) -> str:
        """Is one atlas enough? In one or two sentences."""
        count, subjects = self.types.count, len(self.names)
        if count > 1:
            sizes = np.bincount(self.types.labels)
            few = int(sizes[sizes < FEW * subjects].sum())
            doubt = f" Types of few subjects ({few} in all) may be outliers; look at them first." if few else ""
            return (
                f"One atlas is not enough: {subjects} subjects fall into {count} types of {', '.join(map(str, sizes))}, "
                f"separated by sparsely populated gaps; build one atlas for each type.{doubt}"
            )
        text = (
            f"One atlas is enough as far as {subjects} subjects can tell: there is no gap between parts of the cohort."
        )
        if subjects < SMALL:
            text += f" With fewer than {SMALL} subjects only types that are far apart would have been found."
        return text

    def name_of(self, dimension: int) -> str:
        """'labels 1' for column ``dimension`` of the points."""
        for view in self.views:
            width = view.embedding.points.shape[1]
            if dimension < width:
                return f"{view.distances.kind} {dimension + 1}"
            dimension -= width
        raise IndexError(dimension)

    def record(self) -> dict:
        """All figures, ready for JSON."""
        types = self.types
        return {
            "answer": self.answer,
            "subjects": len(self.names),
            "types": types.count,
            "sizes": np.bincount(types.labels).tolist(),
            "centers": list(self.centers),
            "silhouette": types.silhouette,
            "components": len(np.unique(types.components)),
            "mixtures": [
                {"components": f.components, "bic": f.bic, "form": f.form, "silhouette": f.silhouette}
                for f in types.fits
            ],
            "valleys": [{"types": [a + 1, b + 1], "p": p} for a, b, p in types.valleys],
            "views": [
                {
                    "kind": v.distances.kind,
                    "dimension": v.dimension.value,
                    "dimension_error": v.dimension.error,
                    "coordinates": v.embedding.points.shape[1],
                    "explained": v.embedding.explained.tolist(),
                    "residual": v.embedding.residual,
                    "neighbors": v.embedding.neighbors,
                    "parts": v.embedding.parts,
                }
                for v in self.views
            ],
            "effects": [vars(effect) for effect in self.effects],
            "remarks": list(self.remarks),
        }

    def rows(self) -> list[dict]:
        """One dict a subject: subject, type (from 1), certainty, center, coordinates, what was described."""
        columns = {self.name_of(d): self.points[:, d] for d in range(self.points.shape[1])}
        for view in self.views:
            columns |= {name: np.asarray(values) for name, values in view.distances.described.items()}
        return [
            {
                "subject": name,
                "type": int(self.types.labels[k]) + 1,
                "certainty": round(float(self.types.certainty[k]), 4),
                "center": name in self.centers,
                **{c: float(f"{values[k]:.6g}") for c, values in columns.items()},
            }
            for k, name in enumerate(self.names)
        ]


@dataclass(frozen=True)
class CohortTypes:
    """The analysis; its fields are its parameters."""

    dimensions: int = parameter(
        0,
        "Dimensions",
        "Coordinates of every matrix of distances; 0 takes its correlation dimension, and enough for parts far apart.",
        minimum=0,
        maximum=50,
    )
    neighbors: int = parameter(
        0,
        "Neighbors",
        "Nearest subjects that Isomap links; 0 takes the root of their number, at least 5.",
        minimum=0,
        maximum=500,
    )
    most_types: int = parameter(
        8, "Most types", "Components of the largest mixture that is tried.", minimum=1, maximum=50, advanced=False
    )
    level: float = parameter(
        0.05, "Level", "Chance of finding a gap in a cohort that has none.", minimum=0.0001, maximum=0.5, advanced=False
    )
    permutations: int = parameter(
        2000,
        "Permutations",
        "For the p-values of covariates; the smallest p-value is one over this.",
        minimum=99,
        maximum=100000,
    )
    draws: int = parameter(
        1000, "Bootstrap samples", "For the test of a gap between two components.", minimum=99, maximum=100000
    )

    id: ClassVar[str] = "cortical-types"
    card: ClassVar[Card] = CARD
    command: ClassVar[str] = "atlas structure"

    def analyze(self, sources, runtime, covariates: dict[str, dict] | None = None) -> CohortStructure:
        """The structure of the subjects that all of ``sources`` (Distances) have; ``covariates``: name -> {subject:
        value}. InputError where they are fewer than ``FEWEST``."""
        check(self)
        names = common(sources)
        monitor, generator = runtime.monitor, np.random.default_rng(runtime.seed)
        views = []
        for k in monitor.steps(len(sources), "dimensions"):
            distances = sources[k].of(names)
            dimension = correlation_dimension(distances.matrix, generator)
            along = paths(distances.matrix, self.neighbors)
            wanted = self.dimensions or self.rule(dimension, along.parts, len(names))
            views.append(View(distances, dimension, isomap(along, wanted)))
        points = np.hstack(
            [scaled(view.embedding.points) if len(views) > 1 else view.embedding.points for view in views]
        )
        types = find_types(points, self.most_types, self.level, self.draws, runtime.seed, monitor)
        found = CohortStructure(names, tuple(views), points, types, centers(names, points, types))
        monitor.progress(0.95, "regression")
        rows, remarks = self._regression(found, covariates or {}, generator)
        remarks = [remark for view in views for remark in alone(view.distances)] + list(remarks)
        return CohortStructure(names, found.views, points, types, found.centers, tuple(rows), tuple(remarks))

    @staticmethod
    def rule(dimension: Dimension, parts: int, subjects: int) -> int:
        """Coordinates for a dimension: enough for the parts of the graph, at most ``MOST_DIMENSIONS`` and a fifth of
        the subjects, at least 2."""
        wanted = max(round(dimension.value or 0), parts - 1)
        return int(np.clip(wanted, 2, max(2, min(MOST_DIMENSIONS, subjects // 5))))

    def _regression(self, found: CohortStructure, covariates: dict, generator):
        """Effects of the given covariates and of what was described while the distances were made."""
        table = {name: [values.get(subject) for subject in found.names] for name, values in covariates.items()}
        for view in found.views:
            table |= {name: list(values) for name, values in view.distances.described.items() if np.ptp(values) > 0}
        targets = {found.name_of(d): found.points[:, d] for d in range(found.points.shape[1])}
        if found.types.count > 1:
            targets["types"] = np.eye(found.types.count)[found.types.labels]
        return effects(targets, table, self.permutations, generator)


def common(sources) -> tuple[str, ...]:
    """The subjects that all sources have, in the order of the first. InputError where there are too few."""
    if not sources:
        raise InputError("no cohort was given; give label maps, profiles, features, maps or distances")
    names = tuple(name for name in sources[0].names if all(name in source.names for source in sources[1:]))
    if len(names) < FEWEST:
        where = " have all that was given" if len(sources) > 1 else " were given"
        raise InputError(
            f"{len(names)} subjects{where}; the structure of a cohort needs at least {FEWEST}, better {SMALL}"
        )
    return names


def scaled(points: np.ndarray) -> np.ndarray:
    """With variance 1 over all columns together."""
    return points / max(np.sqrt(points.var(0).sum()), 1e-300)


def centers(names, points: np.ndarray, types: Types) -> tuple[str, ...]:
    """The medoid of every type: the subject with the smallest sum of distances to its type."""
    out = []
    for label in range(types.count):
        members = np.flatnonzero(types.labels == label)
        apart = np.linalg.norm(points[members][:, None] - points[members][None], axis=-1).sum(1)
        out.append(names[members[int(apart.argmin())]])
    return tuple(out)
