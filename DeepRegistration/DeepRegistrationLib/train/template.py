"""The MNI152 T1 template that ships in nilearn's wheel (1 mm; Fonov et al., NeuroImage 2011), as files and as a source of synthetic pairs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from ..errors import InputError
from ..image import Image, Labels
from ..io import read_image
from .synthesize import Source

TISSUES = ((1, "CSF"), (2, "gray matter"), (3, "white matter"))
SPACING = 2.0


def template_files() -> dict[str, Path]:
    """'t1', 'gm', 'wm' -> file of the template; InputError where nilearn is not installed."""
    found = importlib.util.find_spec("nilearn")
    if found is None:
        raise InputError("nilearn, whose wheel holds the MNI152 template, is not installed; start this with 'python run.py'")
    folder = Path(next(iter(found.submodule_search_locations))) / "datasets" / "data"
    files = {k: folder / f"mni_icbm152_{k}_tal_nlin_sym_09a_converted.nii.gz" for k in ("t1", "gm", "wm")}
    for path in files.values():
        if not path.is_file():
            raise InputError(f"nilearn is installed without {path.name}; install nilearn 0.11 or newer")
    return files


def tissue_labels(image: Image, grey: Image, white: Image) -> Labels:
    """The largest of CSF, grey and white matter (maps of 0 to 255) in every voxel where the template is not 0."""
    g, w = grey.data, white.data
    csf = (255.0 - g - w).clamp_min(0)
    label = 1 + (g > torch.maximum(csf, w)).int() + 2 * (w >= torch.maximum(csf, g)).int()
    return Labels(label * (image.data > 0), image.grid, name="tissues", names=TISSUES)


def template_sources(dim: int, slices: int = 24) -> list[Source]:
    """The template with its tissues at ``SPACING`` mm in 3D; in 2D at 1 mm ``slices`` of each orientation through its middle half."""
    image, grey, white = (read_image(path) for path in template_files().values())
    if dim == 3:
        image, grey, white = (each.smoothed_to(SPACING) for each in (image, grey, white))
    labels = tissue_labels(image, grey, white).data.float()
    values = image.data.float() / float(image.data.max())
    if dim == 3:
        return [Source(labels, values)]
    made = []
    for axis in (2, 3, 4):
        n = values.shape[axis]
        made += [Source(labels.select(axis, k), values.select(axis, k)) for k in range(n // 4, n - n // 4, max(n // 2 // slices, 1))]
    return made
