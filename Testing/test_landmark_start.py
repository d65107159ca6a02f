"""The rigid fit of landmark pairs: exact for exact pairs, never a reflection, and no turn where the pairs do not say one."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from DeepRegistrationLib.exchange import PointSet
from DeepRegistrationUI.landmark_start import rigid_fit


def pairs(count=6, seed=0, noise=0.0, flat=False):
    """(fixed, moving, true matrix) of random landmarks; ``flat`` ones lie in a slanted plane."""
    rng = np.random.default_rng(seed)
    fixed = rng.uniform(-60, 60, (count, 3))
    if flat:
        fixed[:, 2] = 0.3 * fixed[:, 0] + 5
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = Rotation.random(random_state=seed).as_matrix(), rng.uniform(-30, 30, 3)
    moving = fixed @ matrix[:3, :3].T + matrix[:3, 3] + rng.normal(0, noise, fixed.shape)
    return PointSet(fixed), PointSet(moving), matrix


@pytest.mark.parametrize("count, flat", [(3, False), (4, True), (20, False)])
def test_exact_pairs_give_the_exact_map(count, flat):
    for seed in range(5):
        fixed, moving, matrix = pairs(count, seed, flat=flat)
        assert np.abs(rigid_fit(fixed, moving).matrix - matrix).max() < 1e-9


def test_noise_is_averaged_and_the_fit_is_no_worse_than_the_truth():
    fixed, moving, matrix = pairs(12, 3, noise=1.0)
    found = rigid_fit(fixed, moving).matrix
    errors = [np.square(fixed.positions @ m[:3, :3].T + m[:3, 3] - moving.positions).sum() for m in (found, matrix)]
    assert errors[0] <= errors[1] and np.abs(found - matrix)[:3, :3].max() < 0.05


def test_mirrored_landmarks_give_a_rotation():
    fixed, _, _ = pairs(8, 4)
    found = rigid_fit(fixed, PointSet(fixed.positions * [-1, 1, 1])).matrix
    assert np.linalg.det(found[:3, :3]) == pytest.approx(1.0) and np.allclose(found[:3, :3] @ found[:3, :3].T, np.eye(3))


@pytest.mark.parametrize("points", [[(1, 2, 3)], [(0, 0, 0), (9, 0, 0)], [(0, 0, 0), (4, 4, 4), (9, 9, 9.01)]])
def test_too_few_landmarks_and_landmarks_on_a_line_give_a_shift(points):
    fixed = np.array(points, float)
    turned = fixed @ Rotation.from_euler("z", 40, degrees=True).as_matrix().T + [5, 6, 7]
    found = rigid_fit(PointSet(fixed), PointSet(turned)).matrix
    assert np.allclose(found[:3, :3], np.eye(3)) and np.allclose(found[:3, 3], turned.mean(0) - fixed.mean(0))
