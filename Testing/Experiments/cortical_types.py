"""cortical-types: types of subjects instead of one template, from planted cohorts whose types, dimension and
covariates are known.

Claims: (a) four planted types are recovered with an adjusted Rand index of at least 0.9 in every cohort, from label
maps (co-occurrence NMI) and profiles (Hellinger) together; (b) planted dimensions 1, 2 and 3 are found within 0.5,
for either distance; (c) cohorts of one type are reported as one: all of label maps, and all but the share of the level
of points whose density is a bell, a box, a curve or skewed, for which BIC and silhouette alone often say more (recorded
beside it); (d) a covariate that one planted direction follows is found and explains at least a quarter of the variance
of a dimension, as the number of basins does in the text, and covariates drawn at random are found in at most one of
five cohorts. The real cohorts of the data folder are recorded without a claim: nobody knows how many types they have.
--full takes four times as many cohorts for (a) and (c).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from common import Experiment  # before the others: it says where the tests, the benchmark and the library are
from scipy.spatial.distance import pdist, squareform

from truths_cohort import planted

from DeepRegistrationLib.commands.structure_sources import label_items, map_items, of_labels, of_maps
from DeepRegistrationLib.engines.embedding import correlation_dimension
from DeepRegistrationLib.evaluate.cohort import CohortTypes, Distances
from DeepRegistrationLib.evaluate.cohort_pictures import sheet
from DeepRegistrationLib.ops.distances import feature_distances, hellinger_distances, label_distances
from DeepRegistrationLib.runtime import Silent

SUBJECTS, COHORTS = 100, 5


def names(count: int) -> tuple[str, ...]:
    return tuple(f"s{k:03d}" for k in range(count))


def sources(cohort) -> list[Distances]:
    """Structure and connectivity of a planted cohort."""
    which = names(len(cohort.maps))
    return [
        Distances("labels", which, label_distances(cohort.maps, Silent())),
        Distances("profiles", which, hellinger_distances(cohort.profiles)),
    ]


def four_types(experiment: Experiment, cohorts: int):
    """(a); returns the structure of the last cohort."""
    from sklearn.metrics import adjusted_rand_score

    scores, counts = [], []
    for seed in range(cohorts):
        cohort = planted(seed, SUBJECTS, 4, 2)
        found = CohortTypes().analyze(sources(cohort), experiment.runtime)
        scores.append(float(adjusted_rand_score(cohort.types, found.types.labels)))
        counts.append((len(np.unique(found.types.components)), found.types.count))
    experiment.figures["four types"] = {"adjusted Rand index": scores, "components and types": counts}
    experiment.at_least("four planted types: adjusted Rand index, worst cohort", min(scores), 0.9)
    return found


def dimensions(experiment: Experiment) -> None:
    """(b)."""
    worst = {"labels": 0.0, "profiles": 0.0}
    for dim in (1, 2, 3):
        values = {"labels": [], "profiles": []}
        for seed in range(COHORTS):
            for source in sources(planted(100 + seed, 150, 1, dim)):
                values[source.kind].append(correlation_dimension(source.matrix, np.random.default_rng(0)).value)
        for kind, found in values.items():
            experiment.figures[f"dimension {dim} of {kind}"] = [round(v, 3) for v in found]
            worst[kind] = max(worst[kind], *(abs(v - dim) for v in found))
    for kind, error in worst.items():
        experiment.at_most(f"planted dimensions 1, 2, 3 of {kind}: largest error in 15 cohorts", error, 0.5)


DENSITIES = {
    "bell": lambda g: g.standard_normal((SUBJECTS, 3)),
    "box": lambda g: g.random((SUBJECTS, 3)),
    "skewed": lambda g: g.exponential(size=(SUBJECTS, 2)),
    "curve": lambda g: (lambda t: np.stack([np.cos(3 * t), np.sin(3 * t), t], 1))(g.random(SUBJECTS)),
}


def one_type(experiment: Experiment, cohorts: int) -> None:
    """(c)."""
    generator, found = np.random.default_rng(7), {}
    for kind, draw in DENSITIES.items():
        tables = [feature_distances(draw(generator)) for _ in range(cohorts)]
        found[kind] = [analyzed(experiment, [Distances("features", names(SUBJECTS), table)]) for table in tables]
    maps = [analyzed(experiment, sources(planted(200 + seed, SUBJECTS, 1, 2))) for seed in range(cohorts)]
    components = {
        kind: [len(np.unique(f.types.components)) for f in each] for kind, each in {**found, "label maps": maps}.items()
    }
    experiment.figures["one type: components by BIC and silhouette alone"] = components
    several = {kind: sum(f.types.count > 1 for f in each) for kind, each in {**found, "label maps": maps}.items()}
    experiment.figures["one type: cohorts reported as several"] = several
    experiment.figures["one type: cohorts of each kind"] = cohorts
    experiment.at_most("cohorts of one type of label maps reported as several", several["label maps"], 0)
    share = sum(several[kind] for kind in DENSITIES) / (cohorts * len(DENSITIES))
    experiment.at_most("share of cohorts of one type of points reported as several (bar: the level)", share, 0.05)


def analyzed(experiment: Experiment, given: list[Distances]):
    return CohortTypes().analyze(given, experiment.runtime)


def power(experiment: Experiment, cohorts: int) -> None:
    """How often two types of bells in 3D are found, by their distance in standard deviations and the size of the cohort; no claim."""
    generator, found = np.random.default_rng(3), {}
    for apart in (4, 6):
        for subjects in (16, 24, 40):
            hits = 0
            for _ in range(cohorts):
                points = generator.standard_normal((subjects, 3))
                points[subjects // 2 :, 0] += apart
                table = squareform(pdist(points))
                hits += analyzed(experiment, [Distances("features", names(subjects), table)]).types.count == 2
            found[f"{apart} deviations apart, {subjects} subjects"] = hits / cohorts
    experiment.figures["two types found, share of cohorts"] = found


def covariates(experiment: Experiment) -> None:
    """(d)."""
    rng, shares, chance = np.random.default_rng(11), [], 0
    for seed in range(COHORTS):
        cohort = planted(300 + seed, SUBJECTS, 1, 2)
        table = {
            "follows": 50 + 10 * cohort.amounts[:, 0] + 2 * rng.standard_normal(SUBJECTS),
            "chance": rng.standard_normal(SUBJECTS),
            "group": rng.choice(["a", "b", "c"], SUBJECTS),
        }
        found = CohortTypes().analyze(
            sources(cohort)[:1],
            experiment.runtime,
            {name: dict(zip(names(SUBJECTS), values)) for name, values in table.items()},
        )
        shares.append(max(e.share for e in found.effects if e.covariate == "follows" and e.corrected < 0.05))
        chance += any(e.corrected < 0.05 for e in found.effects if e.covariate in ("chance", "group"))
    experiment.figures["covariates"] = {
        "share that the planted one explains": shares,
        "cohorts in which one of chance was found": chance,
    }
    experiment.at_least("planted covariate: share of a dimension's variance, worst of 5 cohorts", min(shares), 0.25)
    experiment.at_most("cohorts of 5 in which a covariate of chance was found", chance, 1)


def real(experiment: Experiment) -> None:
    """The real cohorts, without a claim."""
    data = experiment.arguments.data
    cases = {"cohort3d-slab-labelled": (label_items, of_labels), "cohort2d-oasis": (map_items, of_maps)}
    for name, (items, distances) in cases.items():
        if (data / name).is_dir():
            with tempfile.TemporaryDirectory() as scratch:
                source, aside = distances(items(data / name), Path(scratch), Silent())
            record = CohortTypes().analyze([source], experiment.runtime).record()
            kept = {key: record[key] for key in ("answer", "subjects", "types", "components", "sizes")}
            experiment.figures[name] = {**kept, "dimension": record["views"][0]["dimension"], "set aside": aside}


def main() -> int:
    experiment = Experiment("cortical-types", __doc__, pair=False)
    cohorts = 4 * COHORTS if experiment.arguments.full else COHORTS
    found = four_types(experiment, cohorts)
    dimensions(experiment)
    one_type(experiment, cohorts)
    power(experiment, cohorts)
    covariates(experiment)
    real(experiment)
    return experiment.finish(sheet(found, "Four planted types of label maps and profiles"))


if __name__ == "__main__":
    sys.exit(main())
