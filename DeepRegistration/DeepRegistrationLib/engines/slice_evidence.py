"""How well a pose of slices is known, and whether it may be believed.

Uncertainty. With H the Hessian of the cost at the pose and f_b the slope of the part b of the slices (each slice in 4 x 4 tiles), which add up to
zero at the optimum, the covariance of the pose is H^-1 (sum_b f_b f_b^T) H^-1: the curvature of the cost, scaled by how much its parts
disagree (the sandwich estimate of M-estimators; Huber, Robust Statistics, 1981). It knows nothing of another optimum far away.

Evidence, that is about such other optima and about slices that show something else:
* ``contrast``: similarity at the pose above that of random poses within reach, in standard deviations of these;
* ``lead``: how much better it is than the best other optimum that was refined, as a share of what it is better than random poses;
* ``halves``: both halves of the slices searched on their own from the pose, distance of their answers in mm;
* ``measures``: how far from the pose, in mm, another measure of similarity goes on its own: gradient directions, or mutual information where these are
  what is compared; 0 where that is within what it can tell. What one contrast has and the other has not draws each measure elsewhere, which neither
  curvature nor halves of the slices show.
  With two standard deviations it bounds the error, as a bias that is not corrected for (Guide to the Expression of Uncertainty in Measurement, F.2.4.5);
* ``agreeing``: share of the slices that, turned about the axis alone, are most like their emulation within ``VOTE_TOLERANCE``;
* ``overlap``: share of the pixels that lies in the volume.

Left and right. Slices whose directions are found may be placed as in a mirror: slice s at M T(p) in place of T(p), M a reflection of the
volume. Where the best of these fits as well as the pose (``mirror_lead``), the anatomy is as good as symmetric and the pictures cannot tell.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from ..runtime import Silent
from .search import spread_points
from .slice_search import THIN, Found, SliceSettings, apart, distance, longest_edge, reach_of, spread_poses
from .slices import SliceLevel, about_axis, build_levels, refine
from .starts import worth

TILES = 4
CURVE = np.arange(-30.0, 30.1, 1.5)
VOTE_TOLERANCE = 4.6
"""Degrees."""
LEAST_CONTRAST, LEAST_LEAD, LEAST_AGREEING, LEAST_OVERLAP = 7.0, 0.1, 0.6, 0.5
MIRRORS = 600
"""Reflections that are compared."""
MOST_HALVES, MOST_ERROR = 0.03, 0.02
"""Shares of the longer edge of the slices: 3.9 and 2.6 mm of a field of view of 130 mm."""


@dataclass(frozen=True)
class Uncertainty:
    """Standard deviations: ``shift`` (3,) mm along and ``turn`` (3,) degrees about x, y, z at the center of the slices; ``distance`` mm, root
    mean square over the pixels; ``covariance`` (6, 6) of the shift in mm and the turn in radians. Infinite where the cost has no curvature."""

    shift: tuple[float, ...]
    turn: tuple[float, ...]
    distance: float
    covariance: np.ndarray


@dataclass(frozen=True)
class Evidence:
    """See the module; ``reasons`` why the pose must not be used, empty for a set that counts as registered."""

    contrast: float
    lead: float
    halves: float
    measures: float
    agreeing: float
    overlap: float
    reasons: tuple[str, ...] = ()

    def as_dict(self) -> dict:
        return {k: v for k, v in asdict(self).items() if k != "reasons"}


def uncertainty(level: SliceLevel, matrix: np.ndarray) -> Uncertainty:
    """Of the pose of the set at its optimum on ``level``."""
    step = 0.1 * level.spacing
    columns = []
    for axis in np.eye(6):
        ahead, behind = (level.evaluate(matrix @ level.step(sign * step * axis))[1] for sign in (1, -1))
        if ahead is None or behind is None:
            return _unknown()
        columns.append((ahead.sum(0) - behind.sum(0)) / (2 * step))
    hessian = np.stack(columns)
    hessian = (hessian + hessian.T) / 2
    if np.linalg.eigvalsh(hessian).min() <= 0:
        return _unknown()
    forces = tile_forces(level, matrix)
    inverse = np.linalg.inv(hessian)
    scaled = inverse @ (forces.T @ forces) @ inverse
    points = level.points[0].double().cpu().numpy()
    each = points_variance(scaled, points / level.radius)
    to_user = np.diag(np.r_[np.ones(3), np.full(3, 1 / level.radius)])
    covariance = to_user @ scaled @ to_user
    deviation = np.sqrt(np.diag(covariance))
    return Uncertainty(tuple(deviation[:3]), tuple(np.rad2deg(deviation[3:])), float(np.sqrt(each.mean())), covariance)


def _unknown():
    return Uncertainty((np.inf,) * 3, (np.inf,) * 3, np.inf, np.full((6, 6), np.inf))


def tile_forces(level: SliceLevel, matrix: np.ndarray) -> np.ndarray:
    """(S * tiles, 6) slope of the cost by the motion of every tile of every slice, mean free."""
    _, forces = level.forces(matrix)
    parts = []
    for s, (a, b) in enumerate(level.spans()):
        local = level.points[0, a:b].double().cpu().numpy()
        local = local - local.mean(0)
        plane = np.linalg.svd(local.T @ local)[0][:, :2]
        uv = local @ plane
        low, high = uv.min(0), uv.max(0)
        cell = np.minimum((TILES * (uv - low) / np.maximum(high - low, 1e-9)).astype(int), TILES - 1)
        for t in range(TILES**2):
            parts.append(forces[a:b][cell[:, 0] * TILES + cell[:, 1] == t].sum(0))
    parts = np.stack(parts)
    return parts - parts.mean(0)


def points_variance(covariance: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """(N,) trace of the covariance of the place of points at ``offsets`` (N, 3) from the center, in units of the radius."""
    shift, turn, mixed = covariance[:3, :3], covariance[3:, 3:], covariance[:3, 3:]
    squares = (offsets**2).sum(1)
    turned = np.trace(turn) * squares - np.einsum("ni,ij,nj->n", offsets, turn, offsets)
    skew = np.array([mixed[1, 2] - mixed[2, 1], mixed[2, 0] - mixed[0, 2], mixed[0, 1] - mixed[1, 0]])
    return np.maximum(np.trace(shift) + turned + 2 * offsets @ skew, 0)


def evidence(problem, found: Found, settings: SliceSettings, spread: float) -> Evidence:
    """Of a found pose; ``spread`` mm is the standard deviation of ``uncertainty``."""
    thin = found.levels[0].thinned(THIN)
    at_pose, _, overlap = (v[0] for v in thin.scores([found.matrix]))
    random, _, inside = thin.scores(spread_poses(thin, [found.matrix], 300, *reach_of(problem, settings))[1:])
    random = random[inside >= LEAST_OVERLAP / 2]
    mean, deviation = (random.mean(), random.std()) if len(random) > 20 else (0.0, np.inf)
    level = found.levels[max(len(found.levels) - 2, 0)]
    costs = [cost for matrix, cost in found.others if distance(level, matrix, found.matrix) > 3 * level.spacing]
    here, far = level.cost(found.matrix), _level_of_random(level, problem, found, settings)
    lead = (min(costs) - here) / max(far - here, 1e-12) if costs else 1.0
    curve = axis_curve(found)
    made = Evidence(float((at_pose - mean) / max(deviation, 1e-9)), float(lead), halves_apart(level, found.matrix),
                    measures_apart(problem, found, settings), agreeing_share(curve), float(overlap))
    return Evidence(*made.as_dict().values(), reasons_against(made, spread, longest_edge(problem)))


def mirror_lead(problem, found: Found, settings: SliceSettings) -> float:
    """How much better a found pose is than the best mirrored placement within reach, as a share of what it is better than random poses; inf where
    no mirrored one lies in the volume."""
    coarse, level = found.levels[0], found.levels[max(len(found.levels) - 2, 0)]
    thin, tried = coarse.thinned(THIN), mirrored_poses(found.matrix, coarse.centre, reach_of(problem, settings)[0])
    together, _, overlap = thin.scores(tried)
    poses = [(m, -worth(1 - t, o)) for m, t, o in zip(tried, together, overlap) if o >= LEAST_OVERLAP]
    poses = [refine(thin, m, 15, Silent(), tolerance=0.05 * coarse.spacing) for m, _ in apart(thin, poses, 6, 2 * coarse.spacing)]
    costs = [refine(level, m, 20, Silent(), tolerance=0.02 * level.spacing)[1] for m, _ in apart(level, poses, 2, level.spacing)]
    here = level.cost(found.matrix)
    return float((min(costs, default=np.inf) - here) / max(_level_of_random(level, problem, found, settings) - here, 1e-12))


def mirrored_poses(matrix, centre, reach: float, count: int = MIRRORS) -> np.ndarray:
    """(count, 4, 4) ``matrix`` and then a reflection in a plane of any direction, up to half of ``reach`` mm from where it takes ``centre``: the image
    lies up to ``reach`` away."""
    across, around, away = spread_points(count, 3, np.full(3, 0.5)).T
    radius = np.sqrt(1 - across**2)
    normals = np.stack([radius * np.cos(2 * np.pi * around), radius * np.sin(2 * np.pi * around), across], 1)
    middle = np.asarray(matrix)[:3] @ np.r_[centre, 1.0]
    mirrors = np.tile(np.eye(4), (count, 1, 1))
    mirrors[:, :3, :3] -= 2 * normals[:, :, None] * normals[:, None]
    mirrors[:, :3, 3] = 2 * normals * (normals @ middle + reach * (away - 0.5))[:, None]
    return mirrors @ matrix


def _level_of_random(level, problem, found, settings):
    costs = [level.cost(m) for m in spread_poses(level, [found.matrix], 12, *reach_of(problem, settings))[1:]]
    costs = [c for c in costs if np.isfinite(c)]
    return float(np.median(costs)) if costs else 1.0


def halves_apart(level: SliceLevel, matrix: np.ndarray) -> float:
    """mm between where the slices 1, 3, 5, ... and the slices 2, 4, 6, ... on their own go from ``matrix``; inf where a half leaves the volume."""
    ends = []
    for first in (0, 1):
        chosen = list(range(first, level.count, 2))
        half = level.of_slices(chosen)
        end, cost = refine(half, matrix, 20, Silent(), tolerance=0.05 * level.spacing)
        if not np.isfinite(cost):
            return float("inf")
        ends.append(end)
    return distance(level, *ends)


def measures_apart(problem, found: Found, settings: SliceSettings) -> float:
    """mm between a found pose and where gradient directions (mutual information, where the search compared these) go from there; 0 where that is
    within two standard deviations of their own answer, inf where it leaves the volume."""
    finest = found.levels[-1]
    other = "mi" if settings.similarity == "ngf" else "ngf"
    (level,) = build_levels(problem, [finest.spacing], other, settings.profile, finest.points.device)
    end, cost = refine(level, found.matrix, 20, Silent(), tolerance=0.05 * level.spacing)
    if not np.isfinite(cost):
        return float("inf")
    apart_by, own = distance(finest, end, found.matrix), uncertainty(level, end).distance
    return 0.0 if apart_by <= 2 * own < np.inf else apart_by


def axis_curve(found: Found) -> dict:
    """{'degrees' (A,), 'set' (A,), 'slices' (A, S)}: normalized mutual information of the set and of every slice turned about the axis; empty
    without an axis."""
    if found.axis is None:
        return {}
    thin = found.levels[-1].thinned(4 * THIN)
    together, single, _ = thin.scores([found.matrix @ about_axis(found.axis, a) for a in CURVE])
    return {"degrees": CURVE, "set": together, "slices": single}


def agreeing_share(curve: dict) -> float:
    """Share of the slices whose own curve is highest within ``VOTE_TOLERANCE`` of the pose; 1 without an axis."""
    return float((np.abs(own_turns(curve)) <= VOTE_TOLERANCE).mean()) if curve else 1.0


def own_turns(curve: dict) -> np.ndarray:
    """(S,) degrees about the axis at which every slice alone is most like its emulation."""
    return curve["degrees"][curve["slices"].argmax(0)]


def doubts_of_slices(curve: dict) -> tuple[str, ...]:
    """A remark on the slices that do not agree with the others, () where there are none or there is no axis."""
    apart = [str(k + 1) for k, turn in enumerate(own_turns(curve)) if abs(turn) > VOTE_TOLERANCE] if curve else []
    if not apart:
        return ()
    named = f"slice {apart[0]} is" if len(apart) == 1 else f"the slices {', '.join(apart)} are"
    return (f"{named} more like the volume elsewhere than where the others are: compare with what the volume shows there, and leave out what is disturbed",)


def reasons_against(found: Evidence, spread: float, edge: float) -> tuple[str, ...]:
    """Sentences for everything that is too weak."""
    out = []
    if found.contrast < LEAST_CONTRAST:
        out.append(f"the similarity at the pose is {found.contrast:.1f} standard deviations above that of random poses, at least "
                   f"{LEAST_CONTRAST:g} are needed; the slices may show another subject or another part")
    if found.lead < LEAST_LEAD:
        out.append(f"another pose far away is nearly as good (lead {found.lead:.2f}, at least {LEAST_LEAD:g} is needed); give a start closer to the truth")
    if not found.halves <= MOST_HALVES * edge:
        out.append(f"the two halves of the slices disagree by {found.halves:.1f} mm, at most {MOST_HALVES * edge:.1f} mm is accepted; "
                   "a slice may be out of order, mirrored or disturbed")
    if found.agreeing < LEAST_AGREEING:
        out.append(f"only {100 * found.agreeing:.0f} % of the slices agree with the turn about the axis; check their order and their directions")
    if found.overlap < LEAST_OVERLAP:
        out.append(f"only {100 * found.overlap:.0f} % of the slices lies in the volume; use a volume that covers them")
    if not found.measures + 2 * spread <= MOST_ERROR * edge:
        out.append(f"the pose is known to {found.measures + 2 * spread:.2f} mm only (two standard deviations, {2 * spread:.2f} mm, and what gradient "
                   f"directions and mutual information disagree by, {found.measures:.2f} mm), at most {MOST_ERROR * edge:.2f} mm is accepted; use slices "
                   "that cross more edges, or a volume of a contrast that is more alike")
    return tuple(out)


def doubts_of_sides(mirror: float | None, believed: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(reasons against the pose, remarks) of a ``mirror_lead``, None where directions were kept; ``believed``: most directions are those of the headers."""
    if mirror is None or mirror >= LEAST_LEAD:
        return (), ()
    text = f"the mirror image of the anatomy fits as well (lead {mirror:.2f}, at least {LEAST_LEAD:g} is needed), so the pictures cannot tell left from right"
    if believed:
        return (), (f"{text}; the sides are those of the headers, check that these can be believed",)
    return (f"{text}; set order and directions by hand, or correct the headers, and let them be kept (placing=keep)",), ()
