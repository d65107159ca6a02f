"""qmri register: find where a set of 2D slices lies in a volume, in which order and direction, and carry its maps into the volume.

DIR gets set.tfm and set.h5 (slice mm -> volume mm, the whole set), slice01.tfm, ... (each slice, from where its own header has it), slice01.h5, ...
(with the deformation of the slice, where one was asked for and kept), slices.png (measured and emulated slices), similarity.csv and
similarity.png (over the turn about the common axis), map_NAME.nrrd and map_NAME.nii.gz (the maps on the volume's voxels, NaN where there is none;
SimpleITK and 3D Slicer read NaN of NIfTI files as 0, so use .nrrd there), regions.csv (values per label, with --labels; pixels that are exactly 0
count as values unless --no-value 0 is given), surface.vtp and surface.csv (values on a surface, with --surface; LPS mm, NaN where no pixel is near)
and result.json (status, reasons, standard deviations, order and directions found, evidence). Where the evidence is too weak the status
is 'not registered', the exit status is 1, and DIR gets rejected.tfm in place of the transforms and no maps. With --strokes the bone is
learned (see 'qmri bones'), and segment01.nii.gz, ... are what was found.

Slices whose headers say where they are need nothing more. With --radial DEGREES the headers are not used: slice k is placed k * DEGREES about
--axis X,Y,Z,DX,DY,DZ (the center and the normal of the localizer, LPS mm), its columns of pixels along the axis, and DIR gets slice01.nrrd, ..., the slices
there, from where slice01.tfm leads. Masks, segments and maps then lie on the slices by their rows and columns. Pictures (PNG, TIFF, ...) do not say how
large their pixels are: give --pixel-size.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

from ..errors import InputError
from ..runtime import Runtime, Silent
from . import options, qmri_bones
from .batch import Failed
from .output import RECORD, note, say, staged


def add(actions) -> None:
    parser = actions.add_parser("register", help="find where slices lie in a volume", description=__doc__)
    qmri_bones.add_sources(parser)
    parser.add_argument("--volume", type=Path, required=True, metavar="FILE", help="the 3D image")
    parser.add_argument("--volume-mask", type=Path, metavar="FILE", help="only voxels above 0 of this image count in the volume")
    parser.add_argument("--masks", type=Path, nargs="+", metavar="FILE", help="one a slice: only pixels above 0 are compared")
    bones, bone = parser.add_mutually_exclusive_group(), parser.add_mutually_exclusive_group()
    bones.add_argument("--segments", type=Path, nargs="+", metavar="FILE", help="a bone on every slice (> 0): the search starts from its visual hull")
    bone.add_argument("--volume-segment", type=Path, metavar="FILE", help="the same bone in the volume")
    bone.add_argument("--volume-between", type=float, nargs=2, metavar=("LOW", "HIGH"), help="values of the bone in the volume, as in CT")
    qmri_bones.add_strokes(bones)
    parser.add_argument("--labels", type=Path, metavar="FILE", help="label map of the volume: values per region")
    parser.add_argument("--surface", type=Path, metavar="FILE", help="label map of the volume (> 0): values on the surface of that bone or cartilage")
    parser.add_argument("--surface-distance", type=float, default=2.0, metavar="MM",
                        help="how far from the surface a pixel may lie whose value it gets (default: %(default)s)")
    parser.add_argument("--axis", type=_six, metavar="X,Y,Z,DX,DY,DZ", help="a point and the direction of the common axis (default: from the planes)")
    parser.add_argument("--radial", type=float, metavar="DEGREES", help="place the slices this far apart about --axis, whatever their headers say")
    parser.add_argument("--pixel-size", type=_length, nargs="+", metavar="MM", help="with --radial: between columns of pixels and, where it differs, between "
                        "rows (default: that of the headers)")
    parser.add_argument("--thickness", type=float, default=0.0, metavar="MM", help="of the slices (default: that of their headers)")
    parser.add_argument("--method", default="qmri", metavar="ID[:PRESET]", help="see 'show qmri' (default: %(default)s)")
    parser.add_argument("--init", metavar="FILE", help="a linear transform slice -> volume to start from")
    options.add_settings(parser)
    options.add_results(parser)
    options.add_place(parser)
    options.add_voice(parser)
    parser.set_defaults(run=run)


def _length(text: str) -> float:
    import argparse

    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1000:
        raise argparse.ArgumentTypeError(f"'{text}' is no length; give mm, for example 0.8")
    return value


def _six(text: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    import argparse

    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 6:
        raise argparse.ArgumentTypeError(f"'{text}' is no axis; give six numbers X,Y,Z,DX,DY,DZ in LPS mm")
    return values[:3], values[3:]


def run(arguments) -> None:
    """Read, register, write. Raises InputError, ConvergenceError or Cancelled, and then writes nothing; Failed where the slices are not registered."""
    from ..method import find
    from .register import plain

    method = find(arguments.method, options.settings(arguments.set))
    files = arguments.slices or _dicom_files(arguments.dicom)
    monitor = options.monitor(arguments)
    problem, slices = read_problem(arguments, files, monitor.part(0.0, 0.1))
    maps, labels, structure = qmri_bones.read_maps(arguments, slices), _of_the_volume(arguments.labels), _of_the_volume(arguments.surface)
    with staged(arguments.out, _earlier(arguments.out)) as folder:
        if arguments.strokes is not None:
            qmri_bones.write(problem.segments, folder)
        runtime = Runtime(arguments.device, arguments.seed, arguments.threads, monitor=monitor.part(0.1, 1.0))
        result = method.run(problem, runtime)
        remarks = [*result.remarks, *write(result, slices if arguments.radial is not None else (), maps, labels, folder)]
        if result.registered and structure is not None:
            write_surfaces(structure, arguments.surface_distance, result, maps, folder)
        names = sorted(p.name for p in folder.iterdir())
        record = {**describe(arguments, files, result), "remarks": remarks, "files": [*names, RECORD]}
        (folder / RECORD).write_text(json.dumps(plain(record), indent=1, allow_nan=False), "utf-8")
    if not (arguments.quiet or arguments.json_progress):
        tell(result, arguments.out, record)
    if not result.registered:
        raise Failed(f"the slices are not registered: {'; '.join(result.reasons)} ({arguments.out / RECORD} has the figures)")


def _earlier(folder: Path) -> tuple[str, ...]:
    """Names of the files of an earlier run, however many slices and maps it had."""
    patterns = ("set.*", qmri_bones.FILES, "slice[0-9][0-9].*", "rejected.tfm", "slices.png", "similarity.*", "map_*.nii.gz", "map_*.nrrd", "regions.csv",
                "surface.*")
    return tuple(sorted({p.name for pattern in patterns for p in folder.glob(pattern)})) if folder.is_dir() else ()


def _dicom_files(folder: Path) -> list[Path]:
    from ..io.slices import slice_files

    return slice_files(folder)


def read_problem(arguments, files, monitor):
    """(the request, the slices as read). InputError for files that cannot be used."""
    from ..engines.bones import bone_between
    from ..io import read_image, read_labels, read_mask
    from ..io.slices import read_slice
    from ..problem import Slices
    from .register import start_from_file

    count = len(files)
    for name, given in (("masks", arguments.masks), ("segments", arguments.segments)):
        if given is not None and len(given) != count:
            raise InputError(f"{len(given)} --{name} were given for {count} slices; give one a slice, in the same order")
    placing = _radial(arguments, files)
    slices = [placing(read_slice(path, arguments.no_value), k) for k, path in enumerate(files)]
    images = slices
    if arguments.masks is not None:
        images = [image.with_mask(read_mask(path) if arguments.radial is None else qmri_bones.on_pixels(arguments, read_mask(path), path, image))
                  for image, path in zip(slices, arguments.masks)]
    volume = read_image(arguments.volume).completed()
    if arguments.volume_mask is not None:
        volume = volume.with_mask(read_mask(arguments.volume_mask)).completed()
    segments = arguments.segments and tuple(qmri_bones.on_pixels(arguments, read_labels(path), path, image) for image, path in zip(slices, arguments.segments))
    if arguments.strokes is not None:
        segments = qmri_bones.learned(arguments, slices, monitor)
    bone = None if arguments.volume_segment is None else read_labels(arguments.volume_segment)
    if arguments.volume_between is not None:
        bone = bone_between(volume, *arguments.volume_between)
    initial = None if arguments.init is None else start_from_file(arguments.init, 3)
    return Slices(tuple(i.completed() for i in images), volume, arguments.thickness, segments, bone, arguments.axis, initial), slices


def _radial(arguments, files):
    """(image, k) -> the image at its place: as its header says, or k * DEGREES about the axis. InputError where a file does not say what is needed."""
    from ..io.slices import is_picture

    count, pixel = len(files), arguments.pixel_size
    if arguments.radial is None:
        if pixel is not None:
            raise InputError("--pixel-size was given without --radial; slices that lie where their headers say have the pixels of their headers")
        return _with_a_place
    if arguments.axis is None:
        raise InputError("--radial was given without --axis; give the point and the direction that the slices share")
    if not 0 < abs(arguments.radial) * count <= 360:
        raise InputError(f"--radial {arguments.radial} was given for {count} slices; give the angle between neighbors, for six slices 30")
    picture = next((path for path in files if is_picture(path)), None)
    if pixel is None and picture is not None:
        raise InputError(f"{picture} is a picture, which does not say how large its pixels are; give --pixel-size MM")
    if pixel is not None and len(pixel) > 2:
        raise InputError(f"--pixel-size has {len(pixel)} lengths; give one, or two: between columns and between rows of pixels")
    from ..engines.slices import placed_about

    pixel = pixel and (pixel * 2)[:2]
    return lambda image, k: placed_about(image, arguments.axis, k * arguments.radial, arguments.thickness, pixel)


def _with_a_place(image, k):
    if image.dim == 2:
        raise InputError(f"{image.name} is a 2D image, which does not say where it lies in space; place the slices with --radial and --axis, or give them as "
                         "DICOM, or as NIfTI or NRRD of three axes, one of them of one voxel")
    return image


def _of_the_volume(path):
    """A label map of the volume, None without a ``path``. InputError for one that is none."""
    from ..io import read_labels

    labels = None if path is None else read_labels(path)
    if labels is not None and labels.dim != 3:
        raise InputError(f"{path} is {labels.dim}D; give a label map of the volume")
    if labels is not None and not bool((labels.data > 0).any()):
        raise InputError(f"{path} marks nothing; give a label map of the volume that shows its structures")
    return labels


def write(result, placed, maps, labels, folder: Path) -> list[str]:
    """All files but the record and those of the surface; ``placed``: slices that were placed about an axis. Returns remarks on the tables."""
    from ..evaluate.slice_pictures import curves, side_by_side
    from ..io import write_image, write_transform

    (folder / "slices.png").write_bytes(side_by_side(result))
    (folder / "similarity.png").write_bytes(curves(result))
    write_curve(result.curve, folder / "similarity.csv")
    if not result.registered:
        write_transform(result.transform, folder / "rejected.tfm")
        return []
    write_transform(result.transform, folder / "set.tfm")
    write_transform(result.transform, folder / "set.h5")
    for k, image in enumerate(placed, 1):
        write_image(image, folder / f"slice{k:02d}.nrrd")
    for k, transform in enumerate(result.transforms):
        write_transform(transform, folder / f"slice{k + 1:02d}.tfm")
        if result.placed(k) is not transform:
            write_transform(result.placed(k), folder / f"slice{k + 1:02d}.h5")
    return write_maps(result, maps, labels, folder)


def write_surfaces(labels, distance: float, result, maps, folder: Path) -> None:
    """The surface of a structure with the values of pixels at most ``distance`` mm away, as a mesh and as a table."""
    from ..engines.slice_surface import surface_with_values
    from ..io.surfaces import write_surface

    vertices, triangles, columns = surface_with_values(labels, maps, [t.numpy() for t in result.transforms], result.bends, distance)
    write_surface(folder / "surface.vtp", vertices, triangles, columns)
    with (folder / "surface.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["x (mm)", "y (mm)", "z (mm)", *columns])
        table.writerows([f"{v:.6g}" for v in row] for row in zip(*vertices.T, *columns.values()))


def write_curve(curve: dict, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        count = curve["slices"].shape[1] if curve else 0
        table.writerow(["degrees", "set", *(f"slice{k + 1:02d}" for k in range(count))])
        for row in range(len(curve["degrees"]) if curve else 0):
            table.writerow([f"{v:.6g}" for v in (curve["degrees"][row], curve["set"][row], *curve["slices"][row])])


def write_maps(result, maps, labels, folder: Path) -> list[str]:
    """Maps on the voxels of the volume, and the table of regions where there are ``labels``; returns what a reader of the table has to know."""
    from ..engines.slice_maps import into_volume, region_rows, remarks_on
    from ..io import write_image

    matrices, thickness, rows = [t.numpy() for t in result.transforms], result.problem.thickness, []
    for name, unit, images in maps:
        made = into_volume(images, matrices, result.problem.volume.grid, thickness, Silent(), name, result.bends)
        for ending in (".nrrd", ".nii.gz"):
            write_image(made, folder / f"map_{name}{ending}")
        rows += region_rows(images, matrices, labels, name, unit, result.bends) if labels is not None else []
    if labels is not None:
        with (folder / "regions.csv").open("w", newline="", encoding="utf-8") as stream:
            heads = ("map", "unit", "label", "region", "pixels", "mean", "sd", "median", "p05", "p95", "area_mm2", "zeros")
            table = csv.DictWriter(stream, heads)
            table.writeheader()
            table.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    return [] if labels is None else remarks_on(rows, labels.name, "give --no-value 0")


def describe(arguments, files, result) -> dict:
    """What result.json says."""
    given = {name: str(value.resolve()) for name in ("volume", "volume_mask", "volume_segment", "labels", "surface", "dicom")
             if (value := getattr(arguments, name)) is not None}
    given |= {name: value for name in ("thickness", "axis", "radial", "pixel_size", "no_value") if (value := getattr(arguments, name)) is not None}
    stated = {k: v for k, v in result.provenance.items() if k != "wall_seconds"}
    return {"status": "registered" if result.registered else "not registered", "reasons": result.reasons, **given,
            "slices": [{"file": str(Path(path).resolve()), "plane": plane + 1, "mirrored": dict(zip("uv", flip)), "matrix": t.numpy()}
                       for path, plane, flip, t in zip(files, result.plane, result.flips, result.transforms)],
            "bends": [{"kept": b.field is not None, "largest_mm": b.largest, "gain": b.gain, "gain_error": b.error} for b in result.bends],
            "matrix": result.transform.numpy(), "std": {"shift_mm": result.shift_std, "turn_degrees": result.turn_std, "distance_mm": result.distance_std},
            "evidence": result.evidence, "start": result.start, "votes": result.votes, "scalars": result.scalars, **stated,
            "wall_seconds": result.provenance.get("wall_seconds"), "history": result.history}


def tell(result, out: Path, record: dict) -> None:
    """A few lines on stdout for the reader of a terminal."""
    turned = [k + 1 for k, flip in enumerate(result.flips) if any(flip)]
    order = [p + 1 for p in result.plane]
    if order != sorted(order) or turned:
        note(f"remark: the slices lie on the planes {order}" + (f", mirrored are {turned}" if turned else "") + "; the headers say otherwise")
    for remark in record["remarks"]:
        note(f"remark: {remark}")
    if result.registered:
        say(f"registered from the start '{result.start}', position known to {result.distance_std:.2g} mm (one standard deviation), "
            f"{record['wall_seconds']:.1f} s")
    say(f"{out}: {', '.join(record['files'])}")
