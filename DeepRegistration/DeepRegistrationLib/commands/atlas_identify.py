"""atlas identify: which plate, or which oblique plane, of an atlas a 2D slice shows.

A slice is taken as it is looked at: superior (axial: anterior) up, within about 20 degrees, not mirrored, its scale known. DIR gets ranks.csv (all
plates, the nearest to the found plane first), top.png, plane.tfm (points of the slice, mm, -> points of the atlas, mm, LPS: the rigid pose of the
slice), slice.nii.gz and plane.nii.gz (the slice and what the atlas shows, on one lattice at its place in the atlas) and, last,
result.json. The network is trained for the atlas at the first query, kept beside it (or, where nothing can be written, in the
cache), and used again.

plane.tfm is rigid, except that it holds the size of pixels that --pixel tells.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..runtime import Runtime
from . import options
from .output import RECORD, note, say, staged

AXES = ("coronal", "axial", "sagittal")
PICTURE = "top.png"
OTHER_SIZE = 1.2
"""Scale of a slice, or its inverse, that is too much for shrinkage."""
LIMITS = ("slices of this atlas only, looked at from the usual side, of known scale, tilted by at most about 10 degrees; another stain or "
          "modality than the atlas has not been seen")


@dataclass(frozen=True)
class Order:
    """What is asked for; ``weights``: '' (those kept for the atlas, or train), 'train', or a file; ``values``: parameters of the training."""

    atlas: Path
    slice: Path
    axis: str
    top: int
    weights: str
    pixel: float | None
    invert: bool
    values: dict


def add(actions) -> None:
    parser = actions.add_parser("identify", help="which plate or oblique plane of an atlas a slice shows", description=__doc__)
    parser.add_argument("--atlas", type=Path, required=True, metavar="VOLUME|FOLDER", help="a volume, or the folder of an atlas that was built")
    parser.add_argument("--slice", type=Path, required=True, metavar="FILE", help="a picture, of colors the luminance counts, or a volume of one slice")
    parser.add_argument("--axis", choices=AXES, default="coronal", help="how the atlas is cut into plates (default: %(default)s)")
    parser.add_argument("--top", type=options.count, default=5, metavar="N", help="plates to show (default: %(default)s)")
    parser.add_argument("--weights", default="", metavar="FILE|train",
                        help="a trained network, or train to train anew (default: the one kept for the atlas; trained where there is none)")
    parser.add_argument("--pixel", type=float, metavar="MM", help="size of a picture's pixels; needed where the file does not say it, or says that of a screen")
    parser.add_argument("--invert", action="store_true", help="tissue is dark on a bright ground")
    options.add_settings(parser, "a parameter of the training: steps, loss, margin, tilt, ...")
    options.add_place(parser)
    options.add_results(parser)
    options.add_voice(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Read, train where needed, identify, write. Raises InputError or Cancelled; then nothing is written into --out."""
    monitor = options.monitor(arguments)
    order = Order(arguments.atlas, arguments.slice, arguments.axis, arguments.top, arguments.weights, arguments.pixel, arguments.invert,
                  options.settings(arguments.set))
    runtime = Runtime(arguments.device, arguments.seed, arguments.threads, monitor=monitor)
    runtime.torch_device()
    with runtime.active(), staged(arguments.out, (PICTURE,)) as folder:
        record = carry_out(order, folder, runtime)
    if not (arguments.quiet or arguments.json_progress):
        tell(record, arguments.out)


def carry_out(order: Order, folder: Path, runtime: Runtime) -> dict:
    """Identify, write all files into ``folder`` and return the record."""
    from ..io import read_image

    path = volume_of(order.atlas)
    atlas, image = read_image(path), read_image(order.slice, channels="gray").completed()
    record, found, plates, query = answered(order, path, atlas, image, runtime)
    return write(record, found, plates, query, atlas, folder)


def answered(order: Order, path: Path | None, atlas, image, runtime: Runtime) -> tuple:
    """(record, found, plates, query) of a slice ``image``; without a ``path`` of the atlas its network is kept in the cache."""
    from dataclasses import replace

    from ..engines import plates as engine
    from ..io.slices import is_unsized
    from ..parameters import from_values
    from ..train.plates import PlateTraining

    settings = from_values(PlateTraining, order.values)
    plates = engine.plates_of(atlas, order.axis)
    if order.pixel is None and is_unsized(order.slice, image.grid):
        raise InputError(f"{order.slice} is a picture that does not say how large its pixels are; give their size in mm (--pixel), by which its tissue is "
                         f"as large as that of the atlas, whose plates are up to {plates.width:.4g} mm wide")
    query = engine.query_of(image, plates, order.pixel, order.invert)  # what cannot be used is refused before minutes of training
    monitor = runtime.monitor
    network, kept, trained = network_of(order, path, atlas, plates, settings, replace(runtime, monitor=monitor.part(0, 0.8)))
    began = time.perf_counter()
    found = identify(network, plates, query, replace(runtime, monitor=monitor.part(0.8, 0.95)))
    seconds = time.perf_counter() - began
    monitor.progress(0.95, "files")
    pixel = order.pixel or min(edge for edge, count in zip(image.grid.spacing, image.grid.size) if count > 1)
    record = {"atlas": str(order.atlas), "slice": str(order.slice), "axis": order.axis, "plates": plates.count, "plate_spacing_mm": plates.spacing,
              "pixel_mm": pixel, "remark": doubt_of_size(found.poses[0].scale, pixel), **found.record(plates, order.top),
              "slice_to_atlas": matrix_of(found, query).tolist(), "query_seconds": round(seconds, 3),
              "weights": {"file": str(kept), "trained_now": trained}, "seed": runtime.seed}
    return record, found, plates, query


# --------------------------------------------------------------------------------------------------------------- network


def volume_of(path: Path) -> Path:
    """The file of the atlas: a file, a DICOM folder, or atlas.nii.gz of a folder that 'atlas build' made. InputError where there is none."""
    if not path.exists():
        raise InputError(f"the atlas {path} is not there; give a volume, or the folder of an atlas that was built")
    built = path / "atlas.nii.gz"
    return built if path.is_dir() and built.is_file() else path


def fingerprint(atlas) -> str:
    """A short hash of the voxels and of where they lie."""
    digest = hashlib.sha256(atlas.data.numpy().tobytes())
    digest.update(atlas.grid.affine.round(4).tobytes())
    return digest.hexdigest()[:16]


def places(path: Path | None, axis: str, mark: str, runtime: Runtime) -> list[Path]:
    """Where the network of an atlas may be kept: beside its file, or in the cache."""
    cached = runtime.cache / "plates" / f"{mark}_{axis}.safetensors"
    return [cached] if path is None else [path.parent / f"{path.name.split('.')[0]}_plates_{axis}.safetensors", cached]


def network_of(order: Order, path: Path | None, atlas, plates, settings, runtime: Runtime):
    """(network, file, trained now?): the given one, the kept one, or a new one. InputError where the given one is for another atlas."""
    from ..networks import weights

    mark = fingerprint(atlas)
    belongs = f"{order.axis} plates of the atlas {mark}"
    candidates = places(path, order.axis, mark, runtime)
    given = order.weights if order.weights not in ("", "train") else ""
    for file in [Path(given)] if given else [] if order.weights == "train" else [p for p in candidates if p.is_file()]:
        _, card = weights.locate(str(file), runtime)
        if card is not None and belongs in card.trained_on and (card.network, card.arguments) == ("PlateEmbedding", shape_of(plates)):
            return weights.load(str(file), runtime)[0].to(runtime.torch_device()), file, False
        if given:
            raise InputError(f"the weights {file} were trained on {card.trained_on if card else 'something else'}, not on the {belongs}; "
                             "leave --weights away, or give --weights train")
    return train(plates, belongs, settings, candidates, runtime)


def shape_of(plates) -> dict:
    """The arguments of the network of ``plates``."""
    return {"size": plates.size, "plates": plates.count}


def train(plates, belongs: str, settings, candidates: list[Path], runtime: Runtime):
    """Train for an atlas and keep the network in the first place that can be written to."""
    from dataclasses import asdict

    from ..networks import weights
    from ..train.plates import judged, train_plates

    began = time.perf_counter()
    network, _ = train_plates(plates, settings, runtime)
    seconds, check = time.perf_counter() - began, judged(network, plates, settings, runtime.seed + 1)
    text = ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in {**asdict(settings), **check}.items())
    file = next((p for p in candidates if writable(p)), None)
    if file is None:
        raise InputError(f"the network can be kept nowhere: {' and '.join(str(p.parent) for p in candidates)} cannot be written; make one of them writable")
    card = weights.WeightsCard(name=file.stem, title=f"Plates of {plates.volume.name}", file=file.name, sha256="", size=0,
                               licence="that of the atlas", trained_on=f"{plates.count} {belongs} ({plates.volume.name})",
                               network="PlateEmbedding", arguments=shape_of(plates), spacing=(plates.pixel, plates.pixel),
                               shape=(plates.size, plates.size), scaling="robust", training=f"{text}; {seconds:.0f} s",
                               limits=LIMITS, reference="Antanavicius et al., WBIR 2022")
    weights.write(file, network, card)
    return network, file, True


def writable(file: Path) -> bool:
    """Can ``file`` be written? Its folder is made where it is missing."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(file.parent, os.W_OK)


# -------------------------------------------------------------------------------------------------------------- identify


@dataclass(frozen=True, eq=False)
class Found:
    """distances (P,) of the plates to the slice in the space of the embedding, costs (P,) after the search of the plane, order: the plates by these;
    poses: planes, best first; usual: the distance that 95 % of the slices keep that are cut from the atlas itself."""

    distances: object
    costs: object
    order: object
    poses: list
    usual: float

    @property
    def doubtful(self) -> bool:
        """Is the slice farther from the plate of its plane than slices of this atlas are?"""
        return bool(self.distances[self.poses[0].plate] > self.usual)

    def record(self, plates, top: int) -> dict:
        best = self.poses[0]
        rows = [{"plate": int(k), "position_mm": float(plates.positions[k]), "distance": float(self.distances[k])} for k in self.order[:top]]
        planes = [{"plate": pose.plate, "position_mm": float(plates.positions[pose.plate]), "tilt_degrees": pose.tilt, "scale": list(pose.scale),
                   "score": pose.score, "started_from": pose.start} for pose in self.poses]
        return {"top": rows, "plane": planes[0], "other_planes": planes[1:], "distance": float(self.distances[best.plate]),
                "usual_distance": self.usual, "doubtful": self.doubtful}


def identify(network, plates, query, runtime: Runtime) -> Found:
    """Place the slice from the plates that the network ranks first, and rank them anew."""
    from ..engines.plate_search import costs_of, refine
    from ..engines.plates import centered, embedded, order
    from ..networks.embedding import distances

    apart = distances(embedded(network, centered(query.picture)), network.places.cpu())[0].numpy()
    poses = refine(query, plates, order(apart), runtime.monitor)
    costs = costs_of(poses, plates.count)
    return Found(apart, costs, order(costs), poses, float(network.usual))


def doubt_of_size(scale, pixel: float) -> str:
    """A remark where the slice fits at ``scale`` (2,) of its size, quite another one; '' where it does not."""
    size = float(scale[0] * scale[1]) ** 0.5
    return "" if 1 / OTHER_SIZE < size < OTHER_SIZE else (
        f"the slice fits the atlas at {size:.2f} times its size, as if its pixels were of {size * pixel:.3g} mm instead of {pixel:.4g} mm: check their size")


def matrix_of(found: Found, query):
    """(4, 4) points of the slice's file (mm; (x, y, 0) of a picture) -> LPS mm of the atlas."""
    import numpy as np

    return found.poses[0].frame @ np.linalg.inv(query.frame)


# --------------------------------------------------------------------------------------------------------------- writing


def write(record: dict, found: Found, plates, query, atlas, folder: Path) -> dict:
    """All files; returns the record."""
    import torch

    from .. import __version__
    from ..io import write_transform
    from ..transforms import Affine

    with open(folder / "ranks.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("rank", "plate", "position_mm", "cost", "distance"))
        columns = (plates.positions, found.costs, found.distances)
        writer.writerows((rank, k, *(f"{column[k]:.6g}" for column in columns)) for rank, k in enumerate(found.order, 1))
    write_transform(Affine(torch.as_tensor(record["slice_to_atlas"], dtype=torch.float64)), folder / "plane.tfm")
    write_places(found, plates, query, atlas, folder)
    draw(record, found, plates, query, folder)
    record |= {"version": __version__, "files": [*sorted(path.name for path in folder.iterdir()), RECORD]}
    (folder / RECORD).write_text(json.dumps(record, indent=1, allow_nan=False), "utf-8")
    return record


def write_places(found: Found, plates, query, atlas, folder: Path) -> None:
    """slice.nii.gz and plane.nii.gz: the slice, and the atlas in its own voxels' size, on the lattice of the found plane."""
    from ..io import write_image

    for name, image in zip(("slice", "plane"), placed(found, plates, query, atlas)):
        write_image(image, folder / f"{name}.nii.gz")


def placed(found: Found, plates, query, atlas) -> tuple:
    """(slice, what the atlas shows there), volumes of one slice on the lattice of the found plane."""
    import numpy as np

    from ..geometry import Grid
    from ..image import Image
    from ..ops.sample import resample

    count = min(1024, int(np.ceil(plates.size * plates.pixel / atlas.grid.spacing.min())))
    step = plates.size * plates.pixel / count
    local = np.diag([step, step, plates.spacing, 1.0])
    local[:2, 3] = -(count - 1) / 2 * step
    grid = Grid((1, count, count), found.poses[0].frame @ local)
    flat = Grid.from_parts((count, count), step, (-(count - 1) / 2 * step,) * 2)
    fine = query.whole.smoothed_to(step)
    return (Image(resample(fine.data, fine.grid, flat, fill=0.0)[:, :, None], grid, name="slice"),
            Image(resample(atlas.data, atlas.grid, grid, fill=0.0), grid, name="plane"))


def draw(record: dict, found: Found, plates, query, folder: Path) -> None:
    """top.png, where pictures can be drawn."""
    import importlib.util

    from ..engines.plates import centered

    if importlib.util.find_spec("matplotlib") is None:
        return
    from ..evaluate.plate_pictures import sheet

    best, shown = found.poses[0], [row["plate"] for row in record["top"]]
    names = [f"{r}. plate {k}, {plates.positions[k]:.1f} mm\ndistance {found.distances[k]:.2f}" for r, k in enumerate(shown, 1)]
    title = f"{Path(record['slice']).name}: plane at plate {best.plate}, tilted by {best.tilt:.1f} degrees"
    title += "\nDOUBTFUL: unlike the slices of this atlas" if found.doubtful else ""
    pictures = centered(plates.pictures(plates.frames[shown]))[:, 0].numpy()
    plane = plates.pictures(best.frame[None])[0, 0].numpy()
    (folder / PICTURE).write_bytes(sheet(query.picture[0, 0].numpy(), plane, list(pictures), names, title, found.doubtful))


def tell(record: dict, out: Path) -> None:
    """A few lines for the reader of a terminal."""
    for rank, row in enumerate(record["top"], 1):
        say(f"{rank}. plate {row['plate']} at {row['position_mm']:.1f} mm, distance {row['distance']:.3f}")
    plane = record["plane"]
    say(f"plane: at plate {plane['plate']} ({plane['position_mm']:.1f} mm), tilted by {plane['tilt_degrees']:.1f} degrees, "
        f"scales {plane['scale'][0]:.3f} and {plane['scale'][1]:.3f} of pixels of {record['pixel_mm']:.4g} mm; "
        f"local correlation {plane['score']:.2f}, at most 1")
    if record["remark"]:
        note(f"remark: {record['remark']}")
    if record["doubtful"]:
        note(f"the slice is unlike what this atlas shows (distance {record['distance']:.2f}, usual are up to {record['usual_distance']:.2f}): "
             "check axis, orientation (superior up, not mirrored), --pixel and --invert")
    say(f"network: {record['weights']['file']}" + (" (trained now)" if record["weights"]["trained_now"] else ""))
    say(f"{out}: ranks.csv, {PICTURE}, plane.tfm, slice.nii.gz, plane.nii.gz, {RECORD}")
