"""Cohort structure: distances and their invariances, dimension, Isomap, gaps, types, regression, the card."""

from __future__ import annotations

import sys

import contract
import numpy as np
import pytest
from truths_cohort import names, planted

from DeepRegistrationLib.engines.cohort_types import Fit, chosen, find_types
from DeepRegistrationLib.engines.embedding import correlation_dimension, isomap, paths
from DeepRegistrationLib.errors import Cancelled, InputError
from DeepRegistrationLib.evaluate.cohort import CohortTypes, Distances, alone, common
from DeepRegistrationLib.evaluate.regression import coded, effects, holm
from DeepRegistrationLib.ops.distances import (
    feature_distances,
    hellinger_distances,
    label_distances,
    map_distances,
    nmi_distance,
)
from DeepRegistrationLib.ops.modes import valley_p
from DeepRegistrationLib.runtime import Runtime, Silent

pytest.importorskip("sklearn")


def drawn(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def euclidean(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points[:, None] - points[None], axis=-1)


def analyzed(points: np.ndarray, **values):
    return CohortTypes(**values).analyze([Distances("features", names(len(points)), euclidean(points))], Runtime("cpu"))


# ----------------------------------------------------------------------------------------------------------- distances


def test_label_distance_is_one_minus_the_nmi_of_a_known_library():
    from sklearn.metrics import normalized_mutual_info_score

    maps = drawn(0).integers(0, 5, (4, 500)) * (drawn(1).random((4, 500)) > 0.3)
    found = label_distances(maps, Silent())
    for a in range(4):
        for b in range(4):
            assert found[a, b] == pytest.approx(1 - normalized_mutual_info_score(maps[a], maps[b]), abs=1e-12)


def test_names_of_labels_do_not_matter():
    cohort = planted(0, 6, 1, 2)
    renamed = np.stack([drawn(k).permutation(9)[row] for k, row in enumerate(cohort.maps)])
    assert np.allclose(label_distances(cohort.maps, Silent()), label_distances(renamed, Silent()), atol=1e-12)
    same = np.stack([cohort.maps[0], (8 - cohort.maps)[0]])
    assert np.allclose(label_distances(same, Silent()), 0, atol=1e-12)


def test_independent_partitions_are_at_distance_one_and_one_label_is_no_fault():
    assert nmi_distance(np.full((3, 4), 10)) == pytest.approx(1)
    assert nmi_distance(np.array([[7]])) == 0


def test_hellinger_in_closed_form():
    d = hellinger_distances(np.array([[1, 1, 0], [5, 5, 0], [0, 0, 2], [1, 0, 0]]))
    assert (
        d[0, 1] == 0
        and d[0, 2] == pytest.approx(np.sqrt(2))
        and d[0, 3] == pytest.approx(np.sqrt(2 * (1 - np.sqrt(0.5))))
    )


@pytest.mark.parametrize("dim", [2, 5])
def test_a_subject_far_from_all_others_is_named(dim):
    points = drawn(dim).normal(size=(30, dim))
    assert not [text for text in analyzed(points).remarks if "alone" in text]
    points[7] = 12
    (text,) = [text for text in analyzed(points).remarks if "alone" in text]
    assert text.startswith(f"{names(30)[7]} lies alone: by features")
    copies = np.repeat(points[:1], 29, 0)
    assert not alone(Distances("features", names(30), euclidean(np.r_[copies, points[7:8]]))), "copies are no usual distance"


@pytest.mark.parametrize("bad", [[[1, -1], [1, 1]], [[0, 0], [1, 1]]])
def test_profiles_must_be_distributions(bad):
    with pytest.raises(InputError, match="at least 0"):
        hellinger_distances(np.array(bad, float))


def test_map_distances_in_blocks_are_root_mean_squares(monkeypatch):
    maps = drawn(2).normal(100, 1, (5, 1000)).astype(np.float32)
    monkeypatch.setattr("DeepRegistrationLib.ops.distances.BLOCK", 500)
    assert np.allclose(map_distances(maps), euclidean(maps.astype(float)) / np.sqrt(1000), atol=1e-6)


def test_units_of_features_do_not_matter():
    table = drawn(3).random((9, 4))
    assert np.allclose(
        feature_distances(table), feature_distances(np.hstack([table * (1, 1000, 0.1, 7) + 5, np.ones((9, 2))]))
    )


# --------------------------------------------------------------------------------------------------- dimension, Isomap


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_dimension_of_a_box_in_five_dimensions(dim):
    points = np.linalg.qr(drawn(4).normal(size=(5, 5)))[0][:, :dim]
    found = correlation_dimension(euclidean(drawn(5).random((200, dim)) @ points.T), drawn(0))
    assert found.value == pytest.approx(dim, abs=0.35) and 0 < found.error < 0.5
    scaled = correlation_dimension(1000 * euclidean(drawn(5).random((200, dim)) @ points.T), drawn(0))
    assert scaled.value == pytest.approx(found.value, abs=1e-9)


def test_dimension_is_not_known_of_copies_or_of_few():
    assert correlation_dimension(np.zeros((20, 20)), drawn(0)).value is None
    assert correlation_dimension(euclidean(drawn(0).random((6, 2))), drawn(0)).value is None


def test_isomap_unrolls_a_roll_as_a_known_library_does():
    from sklearn.manifold import Isomap

    angle, height = drawn(6).uniform(3, 12, 300), drawn(7).uniform(0, 8, 300)
    roll = np.stack([angle * np.cos(angle), height, angle * np.sin(angle)], 1)
    found = isomap(paths(euclidean(roll), 8), 2)
    length = 0.5 * (angle * np.sqrt(1 + angle**2) + np.arcsinh(angle))
    assert abs(np.corrcoef(found.points[:, 0], length)[0, 1]) > 0.99 and found.residual < 0.02 and found.parts == 1
    other = Isomap(n_neighbors=8, n_components=2).fit_transform(roll)
    assert all(abs(np.corrcoef(found.points[:, k], other[:, k])[0, 1]) > 0.98 for k in range(2))


def test_isomap_of_a_straight_line_explains_all_and_ignores_the_order_of_subjects():
    x = np.sort(drawn(8).random(30))[:, None]
    found = isomap(paths(euclidean(x)), 3)
    assert found.explained[0] == pytest.approx(1, abs=1e-6) and np.allclose(
        euclidean(found.points[:, :1]), euclidean(x), atol=1e-6
    )
    order = drawn(9).permutation(30)
    assert np.allclose(isomap(paths(euclidean(x[order])), 1).points, found.points[order, :1], atol=1e-6)


def test_parts_far_apart_stay_at_their_distances():
    corners = 50 * np.eye(4)[np.arange(40) % 4]
    found = isomap(paths(euclidean(corners + drawn(10).normal(size=(40, 4))), 5), 3)
    centers = np.stack([found.points[np.arange(40) % 4 == k].mean(0) for k in range(4)])
    apart = euclidean(centers)[np.triu_indices(4, 1)]
    assert found.parts == 4 and apart.min() > 0.8 * apart.max()


# ---------------------------------------------------------------------------------------------------------- gaps, types


def test_a_gap_is_found_and_none_is_invented():
    """At the level 0.05: two bells 6 deviations apart always, one bell or box of 60 values seldom."""
    wrong = 0
    for seed in range(20):
        g = drawn(seed)
        wrong += (valley_p(g.random(60), (0.25, 0.75), 199, g) <= 0.05) + (
            valley_p(g.normal(size=60), (0.25, 0.75), 199, g) <= 0.05
        )
        assert valley_p(np.r_[g.normal(size=30), 6 + g.normal(size=30)], (0.25, 0.75), 199, g) <= 0.05
    assert wrong <= 5
    assert valley_p(np.ones(30), (0.25, 0.75), 99, drawn(0)) == 1


def test_very_strong_evidence_is_needed_for_more_than_one():
    assert chosen([Fit(1, 5.0, "full", None), Fit(2, -4.0, "full", 0.9)]).components == 1
    assert (
        chosen(
            [
                Fit(1, 50.0, "full", None),
                Fit(2, -4.0, "full", 0.5),
                Fit(3, -9.0, "full", 0.7),
                Fit(4, 30.0, "full", 0.9),
            ]
        ).components
        == 3
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_four_planted_types_of_label_maps_and_profiles(seed):
    from sklearn.metrics import adjusted_rand_score

    cohort = planted(seed, 80, 4, 2)
    sources = [
        Distances("labels", names(80), label_distances(cohort.maps, Silent())),
        Distances("profiles", names(80), hellinger_distances(cohort.profiles)),
    ]
    found = CohortTypes(draws=499).analyze(sources, Runtime("cpu"))
    assert found.types.count == 4 and adjusted_rand_score(cohort.types, found.types.labels) >= 0.9
    assert [cohort.types[found.names.index(name)] for name in found.centers] == [
        cohort.types[found.types.labels == k][0] for k in range(4)
    ]
    assert found.answer.startswith("One atlas is not enough: 80 subjects fall into 4 types of 20, 20, 20, 20")
    assert all(0.9 < row["certainty"] <= 1 for row in found.rows()) and sum(row["center"] for row in found.rows()) == 4


def test_a_box_is_cut_by_the_mixture_and_is_one_type():
    found = analyzed(drawn(12).random((150, 2)) * (6, 1), draws=499)
    assert len(np.unique(found.types.components)) > 1, "BIC and silhouette alone would call it several"
    assert (
        found.types.count == 1
        and found.types.silhouette is None
        and "One atlas is enough as far as 150 subjects" in found.answer
    )


def test_small_pieces_join_their_own_type():
    """A long type that the mixture cuts in pieces, one of them small, and a round one far away: two types."""
    g = drawn(13)
    long = np.stack([g.random(60) ** 3 * 12, g.normal(0, 0.2, 60)], 1)
    found = find_types(np.concatenate([long, g.normal((5, 14), 0.7, (40, 2))]), 8, 0.05, 499, 0, Silent())
    assert found.count == 2 and (found.labels == np.repeat([0, 1], [60, 40])).all()
    assert all(p <= 0.05 for _, _, p in found.valleys)


def test_small_cohorts_say_how_little_they_can_tell_and_copies_are_one():
    assert "only types that are far apart" in analyzed(drawn(14).normal(size=(12, 2))).answer
    assert analyzed(np.zeros((10, 2))).types.count == 1


def test_a_type_of_few_subjects_may_be_outliers():
    points = np.concatenate([drawn(3).normal(size=(60, 2)), drawn(4).normal((14, 0), 0.5, (4, 2))])
    found = analyzed(points)
    assert sorted(np.bincount(found.types.labels)) == [4, 60]
    assert found.answer.endswith("Types of few subjects (4 in all) may be outliers; look at them first.")


def test_order_of_subjects_and_seed_do_not_decide():
    points = np.concatenate([drawn(15).normal(size=(30, 2)), drawn(16).normal((9, 0), 1, (30, 2))])
    order = drawn(17).permutation(60)
    first, second = analyzed(points), analyzed(points[order])
    assert (second.types.labels == first.types.labels[order]).all() or (
        second.types.labels == 1 - first.types.labels[order]
    ).all()
    assert np.array_equal(analyzed(points).points, first.points), "the same seed gave two results"


@pytest.mark.parametrize("change, words", [
    (lambda m: m[:, :2], "are 3 x 2 numbers for 3 subjects"), (lambda m: np.where(m == 0, np.nan, m), "no finite number"), (lambda m: -m, "hold -2"),
    (lambda m: m + 1, "are 1 from a subject to itself"), (lambda m: np.triu(m), "from .* to .* back")])
def test_tables_that_are_no_distances_say_why(change, words):
    with pytest.raises(InputError, match=words):
        Distances("d.csv", names(3), change(np.abs(np.subtract.outer(np.arange(3.0), np.arange(3.0)))))


def test_subjects_of_several_sources_are_matched_by_name():
    one = Distances("a", ("x", *names(9)), euclidean(drawn(0).random((10, 2))))
    other = Distances("b", names(9)[::-1], euclidean(drawn(1).random((9, 2))))
    assert common([one, other]) == names(9)
    assert np.array_equal(other.of(names(9)).matrix, other.matrix[::-1, ::-1])
    with pytest.raises(InputError, match="7 subjects have all"):
        common([one, other.of(names(7))])
    with pytest.raises(InputError, match="symmetric"):
        Distances("c", names(3), np.array([[0, 1, 2], [3, 0, 1], [2, 1, 0]], float))


def test_it_stops_at_the_first_step():
    monitor = Silent()
    monitor.cancel()
    with pytest.raises(Cancelled):
        CohortTypes().analyze(
            [Distances("a", names(9), euclidean(drawn(0).random((9, 2))))], Runtime("cpu", monitor=monitor)
        )


# ---------------------------------------------------------------------------------------------------------- regression


def test_p_values_by_permutation_agree_with_the_f_test_where_that_is_exact():
    from scipy.stats import f as f_distribution

    g = drawn(18)
    x, z, y = g.normal(size=(3, 60))
    y = y + 0.35 * x + z
    (effect, _), _ = effects({"y": y}, {"x": list(x), "z": list(z)}, 4999, g)
    full, less = np.stack([np.ones(60), z, x], 1), np.stack([np.ones(60), z], 1)
    rss = [float(((y - m @ np.linalg.lstsq(m, y, rcond=None)[0]) ** 2).sum()) for m in (full, less)]
    assert effect.p == pytest.approx(f_distribution.sf((rss[1] - rss[0]) / (rss[0] / 57), 1, 57), abs=0.02)
    assert effect.share == pytest.approx((rss[1] - rss[0]) / float(((y - y.mean()) ** 2).sum()), rel=1e-6)
    assert effect.slope == pytest.approx(np.linalg.lstsq(full, y, rcond=None)[0][2] * x.std() / y.std())


def test_chance_is_found_as_seldom_as_the_level_says():
    g = drawn(19)
    found = [
        effects(
            {"y": g.exponential(size=30)},
            {"x": list(g.exponential(size=30)), "w": list(g.choice(["a", "b"], 30))},
            199,
            g,
        )[0]
        for _ in range(60)
    ]
    assert 0 <= np.mean([e.p <= 0.05 for row in found for e in row]) <= 0.12
    assert min(e.p for row in found for e in row) >= 1 / 200


def test_holm():
    assert (
        holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
        and holm([0.9, 0.8]) == [1.0, 1.0]
        and holm([]) == []
    )


def test_what_cannot_be_used_is_said():
    g = drawn(20)
    table = {
        "age": [*range(19), "NA"],
        "one": [1] * 20,
        "site": ["x", "y"] * 10,
        "twice": [2 * k for k in range(20)],
        "word": ["b", "a"] * 10,
    }
    found, remarks = effects({"y": g.random(20)}, table, 99, g)
    assert {e.covariate for e in found} == set() and "1 of 20 subjects lack" in remarks[0]
    assert sum("follows from the others" in text for text in remarks) == 5, "age and twice, site and word say the same"
    assert effects({"y": g.random(4)}, {"a": [1, 2, 3, 4], "b": [1, 0, 1, 0]}, 99, g) == (
        [],
        ["4 subjects have all of a, b; at least 5 are needed to tell what depends on them"],
    )
    assert coded(["f", "m", "", "d"])[0].shape == (4, 2) and coded(["f", "m", "", "d"])[1].tolist() == [
        True,
        True,
        False,
        True,
    ]


def test_a_site_that_makes_the_types_is_found():
    points = np.concatenate([drawn(21).normal(size=(25, 2)), drawn(22).normal((9, 0), 1, (25, 2))])
    source = Distances("features", names(50), euclidean(points))
    table = {
        "site": dict(zip(names(50), np.repeat(["A", "B"], 25))),
        "age": dict(zip(names(50), drawn(23).normal(size=50))),
    }
    found = {
        (e.target, e.covariate): e
        for e in CohortTypes(permutations=499).analyze([source], Runtime("cpu"), table).effects
    }
    assert (
        found["types", "site"].corrected < 0.05
        and found["types", "site"].share > 0.9
        and found["types", "age"].corrected > 0.05
    )


# ---------------------------------------------------------------------------------------------------------- the method


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.mixture", None)
    with pytest.raises(InputError, match="pip install scikit-learn"):
        analyzed(drawn(0).random((12, 2)))


def test_the_card_is_complete_and_american():
    contract.card_is_complete(CohortTypes)
    contract.texts_are_american(CohortTypes)
