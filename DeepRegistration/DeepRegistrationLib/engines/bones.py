"""Bone on slices, learned from a few strokes: a random forest on what the surroundings of a pixel look like at several scales.

Features of a pixel at the scales s = s_0 (1, 2, 4), s_0 the pixel size in mm, of every channel I (one for each map), I_s its Gaussian mean:

    I_s,   s |grad I_s|,   s^2 laplacian I_s,   s sqrt of the eigenvalues of the structure tensor G_s * (grad I_s grad I_s^T):

nothing that a mirrored or turned picture would change. Values are used as they are, since the slices of a set share their units. Wider scales
and the place in the picture hold for the drawn slices and mislead on the others of a radial set. A forest of 100 trees (Breiman, Random
Forests, Machine Learning 2001) learns the marked pixels of all drawn slices and gives every pixel a probability, which is smoothed by one
pixel; the bone is where it exceeds a half, without what hangs on it by a bridge (in a picture of 130 mm less than 16 mm wide), small islands and holes.
Random forests for the bones of quantitative slices: 2D/3D Quasi-Intramodal Registration of Quantitative Magnetic Resonance Images, WBIR 2022.

Strokes are label maps: 1 is bone, 2 is anything else, 0 is not said. A map without any 2 is a whole drawing: what it leaves out is no bone.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy.ndimage import binary_fill_holes, distance_transform_edt, label

from ..errors import InputError
from ..geometry import Grid
from ..image import Image, Labels
from ..ops.filters import gaussian
from .packages import scikit_learn

BONE, OTHER = 1, 2
SCALES = (1, 2, 4)
TREES = 100
MOST_MARKED = 20_000
"""Pixels of each kind that the forest learns from."""
SMALLEST_ISLAND, BRIDGE = 0.25, 0.06
"""Parts of less than this share of the largest are left out, after a cut of bridges up to twice this share of the longest edge wide."""
VOLUME_VOXELS = 96
"""Along the longest edge of a volume whose bone is cut out by its values."""


def learned_bones(images, strokes: dict[int, Labels], seed: int, monitor) -> list[Labels]:
    """The bone on each of the one-slice ``images`` (1, C, *S) from the strokes on some of them; a whole drawing is kept as it is.

    ``strokes``: number of an image -> label map (see the module) on its grid. InputError for strokes of one kind only and for other labels.
    """
    unit, found = float(np.median([image.grid.flat().spacing.min() for image in images])), []
    for k in monitor.part(0.0, 0.5).steps(len(images), "features"):
        found.append(features(images[k], unit))
    forest = _forest([found[k] for k in strokes], list(strokes.values()), seed)
    made = []
    for k in monitor.part(0.5, 1.0).steps(len(images), "bone"):
        if k in strokes and not bool((strokes[k].data == OTHER).any()):
            made.append(replace(strokes[k], data=(strokes[k].data == BONE).to(torch.int64)))
            continue
        share = forest.predict_proba(found[k])[:, list(forest.classes_).index(BONE)].reshape(images[k].grid.shape)
        made.append(_bone(share, images[k]))
    return made


def bone_between(volume: Image, low: float, high: float) -> Labels:
    """The largest part (and others nearly as large) of the volume with values from ``low`` to ``high``, without holes. InputError where there is none."""
    coarse = volume.smoothed_to(np.maximum(volume.grid.spacing, float(volume.grid.extent.max()) / VOLUME_VOXELS))
    values = coarse.data[0, 0].cpu().numpy()
    if not ((values >= low) & (values <= high)).any():
        raise InputError(f"no voxel of {volume.name} has a value from {low:g} to {high:g}; its values lie between {values.min():g} and {values.max():g}")
    return _bone(((values >= low) & (values <= high)).astype(float), coarse)


def features(image: Image, unit: float) -> np.ndarray:
    """(N, F) of the N voxels of ``image`` (1, C, *S) at the scales ``unit`` mm times ``SCALES``; see the module. Axes of one voxel are left out."""
    grid, data = image.grid.flat(), image.data.float()
    valid = torch.isfinite(data) if image.mask is None else torch.isfinite(data) & image.mask
    middle = float(data[valid].median()) if bool(valid.any()) else 0.0
    data = torch.where(valid, data, middle).reshape(-1, 1, *grid.shape)
    columns = []
    for scale in SCALES:
        width = scale * unit
        mean = gaussian(data, width / grid.spacing)
        slopes = torch.cat([width * g for g in _slopes(mean, grid)], 1)
        curve = sum(width * _slopes(slopes[:, a:a + 1], grid)[a] for a in range(grid.dim))
        products = torch.stack([gaussian(slopes[:, a:a + 1] * slopes[:, b:b + 1], width / grid.spacing)[:, 0]
                                for a in range(grid.dim) for b in range(grid.dim)], -1)
        tensors = products.reshape(*products.shape[:-1], grid.dim, grid.dim)
        bends = torch.linalg.eigvalsh(tensors).clamp_min(0).sqrt().movedim(-1, 1)
        columns += [mean, slopes.square().sum(1, keepdim=True).sqrt(), curve, bends]
    return torch.cat(columns, 1).reshape(-1, image.grid.voxels).T.cpu().numpy()


def _slopes(data, grid) -> list:
    """Derivatives per mm along every axis (x, y, z) of (C, 1, *S)."""
    return [torch.gradient(data, spacing=float(step), dim=-1 - axis)[0] for axis, step in enumerate(grid.spacing)]


def _forest(rows, maps, seed):
    """A trained forest of feature ``rows`` [(N, F)] and the label ``maps`` that they belong to."""
    kinds = [_kinds(marks) for marks in maps]
    rows, kinds = np.concatenate([r[k > 0] for r, k in zip(rows, kinds)]), np.concatenate([k[k > 0] for k in kinds])
    for kind, name in ((BONE, "bone (label 1)"), (OTHER, "anything else (label 2)")):
        if not (kinds == kind).any():
            raise InputError(f"the strokes mark no {name}; mark some pixels of both, or draw the whole bone on one slice")
    rng = np.random.default_rng(seed)
    chosen = np.concatenate([rng.permutation(np.nonzero(kinds == kind)[0])[:MOST_MARKED] for kind in (BONE, OTHER)])
    learn = scikit_learn("bones from strokes").ensemble
    return learn.RandomForestClassifier(TREES, min_samples_leaf=2, class_weight="balanced", random_state=seed).fit(rows[chosen], kinds[chosen])


def _kinds(marks: Labels) -> np.ndarray:
    """(N,) ``BONE``, ``OTHER`` or 0 of every row. InputError for other labels."""
    values = marks.data[0, 0].cpu().numpy().reshape(-1)
    wrong = set(np.unique(values).tolist()) - {0, BONE, OTHER}
    if wrong:
        raise InputError(f"{marks.name} has the label {int(max(wrong))}; strokes have 1 for bone, 2 for anything else and 0 where nothing is said")
    return np.where(values == 0, OTHER, values) if not (values == OTHER).any() else values


def _bone(share: np.ndarray, image: Image) -> Labels:
    """Label map of ``share`` (*S), the probability of bone on the voxels of ``image``."""
    sigma = [0.0 if n == 1 else 1.0 for n in image.grid.size]
    smooth = gaussian(torch.as_tensor(share, dtype=torch.float32)[None, None], sigma)[0, 0].numpy()
    wide = image.grid.flat()
    filled = binary_fill_holes(_without_islands(smooth.reshape(wide.shape) > 0.5, wide)).reshape(share.shape)
    return Labels(torch.as_tensor(filled.astype(np.int64))[None, None], image.grid, name=f"bone on {image.name}")


def _without_islands(inside: np.ndarray, grid: Grid) -> np.ndarray:
    """The large parts of ``inside`` (*S), and what is near their cores; all of it where no part is that thick."""
    reach, spacing = BRIDGE * float(grid.extent.max()), grid.spacing[::-1]
    core = distance_transform_edt(np.pad(inside, 1, mode="edge"), spacing)[(slice(1, -1),) * inside.ndim] > reach
    parts, count = label(core)
    if not count:
        return inside
    sizes = np.bincount(parts.ravel())[1:]
    large = np.isin(parts, 1 + np.nonzero(sizes >= SMALLEST_ISLAND * sizes.max())[0])
    return inside & (distance_transform_edt(~large, spacing) <= reach + spacing.max())
