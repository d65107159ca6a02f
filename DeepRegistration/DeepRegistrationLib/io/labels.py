"""Label maps and 3D Slicer's segmentations (.seg.nrrd) from and to files.

A segmentation may keep overlapping segments in several layers. They are merged into one label map: where segments
overlap, the one that comes later in the file is on top. Label values are kept where every segment has a value of its
own; otherwise segments are numbered 1, 2, ... in the order of the file.
Source: the description of the format in the Slicer user guide, "Segmentation (.seg.nrrd) file format".
"""

from __future__ import annotations

import colorsys
import re

import numpy as np
import torch

from ..errors import InputError
from ..image import Labels
from .files import display_name, suffix
from .images import Volume, read_volume, smallest_integers, write_array, write_image

SEGMENT_KEY = re.compile(r"Segment(\d+)_(ID|Name|LabelValue|Layer)$")


def read_labels(path) -> Labels:
    """A label map (1, 1, *S) of whole numbers; names come from a .seg.nrrd.

    Raises InputError as ``read_image`` does, and for values that are not whole numbers.
    """
    volume = read_volume(path)
    segments = _segments(volume)
    _require_one_layer(volume, segments, path)
    array = _whole_numbers(volume.channels_first, path)
    names: tuple[tuple[int, str], ...] = ()
    if segments:
        array, names = _merged(array, segments, path)
    kind = np.int32 if max(abs(int(array.min())), abs(int(array.max()))) < 2**31 else np.int64
    return Labels(torch.from_numpy(array[:1].astype(kind))[None], volume.grid, name=display_name(path), names=names)


def read_mask(path) -> Labels:
    """Where an image of any numbers, or any segment, is above 0: a label map of 0 and 1. InputError as ``read_image``."""
    volume = read_volume(path)
    _require_one_layer(volume, _segments(volume), path)
    if np.iscomplexobj(volume.array):
        raise InputError(f"{path} holds complex numbers, so it is no mask; give an image that is above 0 where voxels count")
    counted = (volume.channels_first > 0).any(0)
    return Labels(torch.from_numpy(counted.astype(np.int32))[None, None], volume.grid, name=display_name(path))


def _require_one_layer(volume: Volume, segments: list[dict], path) -> None:
    if not segments and volume.channels > 1:
        raise InputError(f"{path} holds {volume.channels} values per voxel where one label is needed; "
                         "save it as a label map or as .seg.nrrd")


def overlap_of(path) -> int:
    """The number of voxels that lie in several segments of a .seg.nrrd, of which a label map keeps the later one; 0 for every other file."""
    if suffix(path) != ".seg.nrrd":
        return 0
    layers = read_volume(path).channels_first
    return int(((layers > 0).sum(0) > 1).sum())


def _whole_numbers(array: np.ndarray, path) -> np.ndarray:
    if np.issubdtype(array.dtype, np.integer):
        return array.astype(np.int64) if array.dtype == np.uint64 else array
    if np.iscomplexobj(array) or not np.isfinite(array).all() or (array != np.rint(array)).any():
        raise InputError(f"{path} holds values that are not whole numbers, so it is no label map; give a segmentation or round it first")
    return array.astype(np.int64)


def _segments(volume: Volume) -> list[dict]:
    """The segments in the order of the file: dicts with ID, Name, LabelValue, Layer."""
    found: dict[int, dict] = {}
    for key, value in volume.fields.items():
        if match := SEGMENT_KEY.match(key):
            found.setdefault(int(match[1]), {})[match[2]] = value.strip()
    return [found[k] for k in sorted(found)]


def _merged(layers: np.ndarray, segments: list[dict], path):
    """layers (L, *S) -> ((1, *S) labels, names); a later segment covers an earlier one."""
    try:
        keys = [(int(s.get("Layer", 0)), int(s.get("LabelValue", k + 1))) for k, s in enumerate(segments)]
    except ValueError:
        raise InputError(f"{path} has a segment whose layer or label value is no whole number; save the segmentation again") from None
    if any(not 0 <= layer < len(layers) for layer, _ in keys):
        raise InputError(f"{path} names a layer that it does not hold ({len(layers)} layers are there); save the segmentation again")
    values = [value for _, value in keys]
    if len(set(values)) < len(values):
        values = list(range(1, len(keys) + 1))
    order, top = np.zeros(layers.shape[1:], np.int32), max(value for _, value in keys)
    for number, layer in enumerate(layers):
        rank = np.zeros(top + 2, np.int32)
        for k, (where, value) in enumerate(keys):
            if where == number and value > 0:
                rank[value] = k + 1
        order = np.maximum(order, rank[layer.clip(0, top + 1)])
    names = tuple((v, s.get("Name") or s.get("ID") or f"Segment {v}") for v, s in zip(values, segments))
    return np.array([0, *values], np.int64)[order][None], names


def write_labels(labels: Labels, path, *, compress: bool = True) -> None:
    """Write Labels as a label map (see ``write_image``) or, named .seg.nrrd, as a segmentation with names and colours.

    Raises InputError as ``write_image`` does, and for a .seg.nrrd of 2D or negative labels.
    """
    if suffix(path) != ".seg.nrrd":
        return write_image(labels, path, compress=compress)
    if labels.dim != 3 or labels.data.shape[:2] != (1, 1):
        raise InputError(f"{path} can hold one 3D label map; {labels.name} has shape {tuple(labels.data.shape)}; use .nrrd or .nii.gz")
    values = labels.values()
    if values and min(values) < 0:
        raise InputError(f"{path} can hold labels above 0; {labels.name} holds {min(values)}; renumber the labels or use .nii.gz")
    array = smallest_integers(labels.data[0, 0].detach().cpu().numpy())
    write_array(array, labels.grid, path, compress=compress, fields=_segment_fields(labels, values))


def _segment_fields(labels: Labels, values: list[int]) -> dict:
    names = dict(labels.names)
    extent = " ".join(f"0 {n - 1}" for n in labels.grid.size)
    fields = {
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_SourceRepresentation": "Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    for k, value in enumerate(sorted({*values, *(v for v in names if v > 0)})):
        red, green, blue = colorsys.hsv_to_rgb((0.07 + k * 0.618034) % 1.0, 0.55, 0.9)
        fields |= {
            f"Segment{k}_ID": f"Segment_{value}",
            f"Segment{k}_Name": names.get(value, f"Label {value}"),
            f"Segment{k}_NameAutoGenerated": "0" if value in names else "1",
            f"Segment{k}_Color": f"{red:.6f} {green:.6f} {blue:.6f}",
            f"Segment{k}_ColorAutoGenerated": "1",
            f"Segment{k}_LabelValue": str(value),
            f"Segment{k}_Layer": "0",
            f"Segment{k}_Extent": extent,
        }
    return fields
