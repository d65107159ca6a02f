"""The main job once, on a real head with a known answer: ``python -m DeepRegistrationUI.demo --out DIR``.

Fixed is the MNI152 T1 template that ships in nilearn's wheel (1 mm; Fonov et al., NeuroImage 2011). Moving is made from it by
T = A o exp(v): v a smooth random velocity, A a rotation, stretch and shift; then oblique axes, another spacing, a bias field
and noise. So T (fixed mm -> moving mm) and its inverse are known everywhere, and the error of what is found is measured, not
guessed. Everything goes through a scene of 3D Slicer: nodes in, nodes out, written by Slicer's own storage nodes.

Tissues: 1 CSF, 2 gray, 3 white matter, the largest of the template's tissue maps at a voxel; they are scored, never used.
"""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from DeepRegistrationLib.commands.options import Parser
from DeepRegistrationLib.errors import InputError, RegistrationError, sentence
from DeepRegistrationLib.evaluate import metrics, report
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image, Labels
from DeepRegistrationLib.method import find
from DeepRegistrationLib.ops.filters import gaussian
from DeepRegistrationLib.points import Points
from DeepRegistrationLib.result import warp
from DeepRegistrationLib.runtime import Console, Runtime
from DeepRegistrationLib.train.template import TISSUES, template_files, tissue_labels
from DeepRegistrationLib.transforms import Affine, Displacement, Identity, Transform, Velocity

from . import mrml, outputs

METHOD = "instance-optimisation"
SPACING = {"full": 1.0, "quick": 2.0}
"""Voxel size of the fixed image per --size, mm."""
LARGEST, WIDTH = 14.0, 16.0
"""Longest random velocity vector and the sigma of its smoothness, mm."""
TURN, SHIFT, STRETCH = np.deg2rad(8.0), (6.0, -8.0, 5.0), (0.05, -0.03, 0.04, 0.02, 0.0, -0.02)
"""The linear part: rotation angle, shift in mm and log-stretch (xx, yy, zz, xy, xz, yz)."""
SLANT, MOVING_SPACING, BIAS, NOISE = np.deg2rad(12.0), (1.2, 1.0, 1.4), 0.25, 0.025
"""Moving image: tilt of its axes, its spacing for a fixed image of 1 mm, bias field (log) and noise (share of the range)."""


@dataclass(frozen=True, eq=False)
class Head:
    """An image with its tissues and landmarks."""

    image: Image
    tissues: Labels
    landmarks: Points


class Stages:
    """Wall seconds by name, in the order in which they happened."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, name: str):
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


class TimedConsole(Console):
    """A progress bar that also notes the wall seconds of each part of a run, a part being the text up to the first comma."""

    def __init__(self, stream=None):
        super().__init__(stream)
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def progress(self, share, text, step=0, steps=0):
        now, part = time.perf_counter(), text.split(",")[0]
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._since
        self._since = now
        super().progress(share, text, step, steps)


# -------------------------------------------------------------------------------------------------------- the known truth


def choose_landmarks(tissues: Labels, generator, count: int = 40, apart: float = 14.0) -> Points:
    """``count`` random voxel centres of the brain, at least ``apart`` mm from each other."""
    inside = torch.nonzero(tissues.data[0, 0] > 0)
    order = torch.randperm(len(inside), generator=generator)[:4000]
    candidates = tissues.grid.index_to_world(inside[order].numpy()[:, ::-1])
    chosen = [candidates[0]]
    for point in candidates[1:]:
        if len(chosen) < count and np.linalg.norm(np.array(chosen) - point, axis=1).min() >= apart:
            chosen.append(point)
    return Points(torch.from_numpy(np.array(chosen))[None], names=tuple(f"L-{n + 1}" for n in range(len(chosen))))


def random_truth(grid: Grid, generator, lattice: float = 3.0) -> tuple[Transform, Transform]:
    """T = A o exp(v) (fixed mm -> moving mm) and its inverse, for an image on ``grid``; v lives on a ``lattice`` of mm."""
    coarse = grid.pad([int(np.ceil(25 / s)) for s in grid.spacing]).resample(lattice)
    sigma = WIDTH / coarse.spacing
    velocity = gaussian(torch.randn((1, 3, *coarse.shape), generator=generator), sigma, "zero")
    for axis, n in enumerate(coarse.shape, 2):
        taper = torch.sin(np.pi * (torch.arange(n) + 0.5) / n).clamp_max(0.6) / 0.6
        velocity = velocity * taper.reshape([n if k == axis else 1 for k in range(5)])
    velocity = velocity * (LARGEST / velocity.norm(dim=1).max())
    axis = torch.randn(3, generator=generator, dtype=torch.float64)
    values = torch.cat([torch.tensor(SHIFT, dtype=torch.float64), TURN * axis / axis.norm(), torch.tensor(STRETCH, dtype=torch.float64)])
    affine = Affine.from_parameters("affine", values[None], torch.from_numpy(grid.centre))
    flow = Velocity(velocity, coarse)
    return affine @ flow, flow.dense.inverse(tolerance=0.01) @ affine.inverse()


def moving_grid(head: Head, truth: Transform, spacing) -> Grid:
    """An oblique grid of ``spacing`` mm (x, y, z) that covers the moved brain with 8 mm to spare."""
    axis = np.array([0.4, 0.8, -0.45]) / np.linalg.norm([0.4, 0.8, -0.45])
    skew = np.cross(np.eye(3), -axis)
    turn = np.eye(3) + np.sin(SLANT) * skew + (1 - np.cos(SLANT)) * skew @ skew
    inside = torch.nonzero(head.tissues.data[0, 0] > 0)[::97].numpy()[:, ::-1]
    moved = truth(torch.from_numpy(head.image.grid.index_to_world(inside))[None])[0].numpy() @ turn
    low, high = moved.min(0) - 8.0, moved.max(0) + 8.0
    size = np.ceil((high - low) / spacing).astype(int)
    return Grid.from_parts(tuple(int(n) for n in size[::-1]), spacing, turn @ low, turn)


def make_moving(head: Head, truth: Transform, inverse: Transform, spacing, generator) -> Head:
    """The head as another scanner would see it: moved by ``truth``, on an oblique grid, with a bias field and Rician noise."""
    grid = moving_grid(head, truth, spacing)
    clean = warp(head.image, inverse, grid).data
    bias = gaussian(torch.randn((1, 1, *grid.shape), generator=generator), 40.0 / grid.spacing)
    bias = (BIAS * bias / bias.abs().max()).exp()
    noise = NOISE * float(clean.max()) * torch.randn((2, *clean.shape), generator=generator)
    image = Image(((clean * bias + noise[0]) ** 2 + noise[1] ** 2).sqrt(), grid, name="moving")
    return Head(image, replace(warp(head.tissues, inverse, grid), names=TISSUES), head.landmarks.moved(truth))


# ------------------------------------------------------------------------------------------------------------- the scene


def new_scene():
    """A scene as the application starts it: singleton nodes, colours, node classes; keep the logics that are returned, they
    hold each other alive."""
    import slicer

    scene, application = slicer.vtkMRMLScene(), slicer.vtkSlicerApplicationLogic()
    application.SetMRMLScene(scene)
    application.GetColorLogic().SetMRMLScene(scene)
    logics = [slicer.vtkSlicerVolumesLogic(), slicer.vtkSlicerSegmentationsModuleLogic(), slicer.vtkSlicerMarkupsLogic(),
              slicer.vtkSlicerTransformLogic(), slicer.vtkSlicerSubjectHierarchyModuleLogic()]
    for logic in logics:
        logic.SetMRMLScene(scene)
    return scene, [application, *logics]


def load_volume(scene, path: Path, name: str):
    """A volume node read by Slicer's storage node."""
    import slicer

    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(str(path))
    if not storage.ReadData(node):
        raise InputError(f"{path.name} could not be read as a volume; install nilearn anew")
    return node


def load_head(scene, spacing: float, generator) -> Head:
    """The template at ``spacing`` mm with tissues and landmarks, read through the scene."""
    images = {}
    for key, path in template_files().items():
        node = load_volume(scene, path, key)
        images[key] = mrml.image_from_volume(node)
        scene.RemoveNode(node)
    tissues = tissue_labels(images["t1"], images["gm"], images["wm"]).smoothed_to(spacing)
    image = replace(images["t1"].smoothed_to(spacing), name="fixed")
    return Head(image, tissues, choose_landmarks(tissues, generator))


def head_nodes(scene, head: Head, name: str) -> dict:
    """'volume', 'segmentation' and 'landmarks' nodes of a head."""
    return {"volume": mrml.volume_from_image(scene, head.image, name),
            "segmentation": mrml.segmentation_from_labels(scene, head.tissues, f"{name} tissues"),
            "landmarks": mrml.markups_from_points(scene, head.landmarks, f"{name} landmarks")}


def head_from_nodes(nodes: dict) -> Head:
    """What the scene holds of a head."""
    return Head(mrml.image_from_volume(nodes["volume"]), mrml.labels_from_segmentation(nodes["segmentation"], nodes["volume"]),
                mrml.points_from_markups(nodes["landmarks"]))


def save_nodes(scene, folder: Path, files: dict) -> None:
    """Write nodes (file name -> node) by their storage nodes, and the scene that refers to them. InputError on failure."""
    folder = folder.resolve()  # the scene puts its folder before every relative name
    for name, node in files.items():
        if node.GetStorageNode() is None:
            node.AddDefaultStorageNode()
        storage = node.GetStorageNode()
        (folder / name).unlink(missing_ok=True)
        storage.SetFileName(str(folder / name))
        if not storage.WriteData(node):
            raise InputError(f"{folder / name} could not be written; check that the disk has room and the folder may be written to")
    scene.SetURL(str(folder / "scene.mrml"))
    scene.SetRootDirectory(str(folder))
    scene.Commit()


# ------------------------------------------------------------------------------------------------------------ the scores


def brain_points(tissues: Labels, count: int = 20_000) -> Points:
    """About ``count`` voxel centres spread evenly through the brain."""
    inside = torch.nonzero(tissues.data[0, 0] > 0)
    inside = inside[:: max(1, len(inside) // count)]
    return Points(torch.from_numpy(tissues.grid.index_to_world(inside.numpy()[:, ::-1]))[None])


def scores(result, truth: Transform, fixed: Head, moving: Head) -> dict:
    """All figures of the summary: name -> (before, after, unit)."""
    grid, identity, found = fixed.image.grid, Identity(3), result.transform
    brain = fixed.tissues.data > 0
    points, dense = brain_points(fixed.tissues), Displacement(found.field(grid), grid)
    out = {}
    for name, one, other in (("TRE landmarks", fixed.landmarks, moving.landmarks), ("TRE brain", points, points.moved(truth))):
        errors = [metrics.tre(one, other, t) for t in (identity, found)]
        out[f"{name}, mean"] = (*(float(e.mean()) for e in errors), "mm")
        out[f"{name}, 95 %"] = (*(float(np.percentile(e, 95)) for e in errors), "mm")
        out[f"{name}, largest"] = (*(float(e.max()) for e in errors), "mm")
    dice = [metrics.dice_per_label(fixed.tissues, warp(moving.tissues, t, grid)) for t in (identity, dense)]
    for value, name in TISSUES:
        out[f"Dice {name}"] = (dice[0][value], dice[1][value], "0 to 1")
    jacobian = metrics.jacobian_scores(dense, grid, brain)
    out["folds in the brain"] = (None, 100 * jacobian["folds"], "%")
    out["SDlogJ in the brain"] = (None, jacobian["sdlogj"], "")
    inverse = metrics.inverse_consistency_error(found, result.inverse, grid, brain, moving.image.grid)
    out["inverse error, mean"] = (None, inverse["mean"], "mm")
    out["inverse error, largest"] = (None, inverse["max"], "mm")
    return out


def scene_error(nodes: dict, fixed: dict, moving: dict) -> float:
    """Mean distance in mm of the moving landmarks, shown through the output nodes by Slicer, from the fixed ones."""
    shown, aim = mrml.points_from_markups(moving["landmarks"]), mrml.points_from_markups(fixed["landmarks"])
    return float((shown.positions - aim.positions).norm(dim=-1).mean())


def tables_of(figures: dict, seconds: dict, inner: dict, provenance: dict) -> list[report.Table]:
    """Accuracy, seconds per stage (``inner``: of the parts of the registration), and how the result was made."""
    accuracy = report.Table("Against the known truth", ("measure", "before", "after", "unit"),
                            tuple((name, *values) for name, values in figures.items()))
    rows = []
    for name, value in seconds.items():
        rows.append((name, f"{value:.1f}"))
        rows += [(f"  {part}", f"{s:.1f}") for part, s in inner.items() if s >= 0.05] if name == "registration" else []
    timing = report.Table("Wall time", ("stage", "seconds"), (*rows, ("all", f"{sum(seconds.values()):.1f}")))
    return [accuracy, timing, report.provenance_table(provenance)]


# --------------------------------------------------------------------------------------------------------------- the job


def run(folder: Path, seed: int = 0, size: str = "full", device: str = "auto", say=lambda text: None) -> dict:
    """Do the whole job and leave nodes, pictures and report in ``folder``; returns the figures of ``scores``."""
    stages, generator = Stages(), torch.Generator().manual_seed(seed)
    spacing = SPACING[size]
    folder.mkdir(parents=True, exist_ok=True)
    with stages.time("template into the scene"):
        scene, keep = new_scene()
        original = load_head(scene, spacing, generator)
    with stages.time("moving image from a random truth"):
        truth, inverse = random_truth(original.image.grid, generator)
        made = make_moving(original, truth, inverse, np.array(MOVING_SPACING) * spacing, generator)
    with stages.time("scene to library"):
        fixed, moving = head_nodes(scene, original, "fixed"), head_nodes(scene, made, "moving")
        pair = outputs.pair_from_nodes(fixed["volume"], moving["volume"])
        fixed_head, moving_head = head_from_nodes(fixed), head_from_nodes(moving)
    say(f"fixed {pair.fixed.grid}, moving {pair.moving.grid}, oblique")
    monitor = TimedConsole()
    with stages.time("registration"):
        result = find(METHOD).run(pair, Runtime(device=device, seed=seed, monitor=monitor))
    with stages.time("library to scene"):
        nodes = outputs.add_result(result, fixed["volume"], moving["volume"], "Registration", inverse=True)
        for node in moving.values():
            outputs.apply_to(node, nodes)
    with stages.time("scores"):
        figures = scores(result, truth, fixed_head, moving_head)
        figures["TRE landmarks in the scene, mean"] = (figures["TRE landmarks, mean"][0], scene_error(nodes, fixed, moving), "mm")
    with stages.time("pictures"):
        beside_the_midline = report.foreground_centre(pair.fixed) + (12.0, 0.0, 0.0)
        pictures = report.result_pictures(result, beside_the_midline)
    with stages.time("files"):
        save_nodes(scene, folder, files_of(fixed, moving, nodes))
        write_pictures(folder, pictures)
    finish(folder, tables_of(figures, stages.seconds, monitor.seconds, result.provenance), pictures, say)
    del keep
    return figures


def files_of(fixed: dict, moving: dict, nodes: dict) -> dict:
    """File name -> node of everything that the demo leaves in the scene."""
    endings = {"volume": ".nrrd", "segmentation": ".seg.nrrd", "landmarks": ".mrk.json"}
    files = {f"{who}{endings[part]}": head[part] for who, head in (("fixed", fixed), ("moving", moving)) for part in head}
    names = {"linear": "linear.tfm", "deformation": "deformation.h5", "inverse": "inverse.h5", "warped": "warped.nrrd",
             "log_jacobian": "log_jacobian.nrrd"}
    return {**files, **{names[role]: node for role, node in nodes.items()}}


def write_pictures(folder: Path, pictures: dict[str, bytes]) -> None:
    """One PNG a picture, named after its caption."""
    for caption, png in pictures.items():
        (folder / f"{caption.split(',')[0].lower().replace(' ', '_').replace('-', '_')}.png").write_bytes(png)


def finish(folder: Path, tables, pictures, say) -> None:
    """Print the tables and write the report."""
    summary = (f"The MNI152 T1 template (fixed) and an image made from it by a known random deformation (moving), registered by "
               f"{METHOD} through a 3D Slicer scene. Before is the position given by the headers.")
    (folder / "report.html").write_text(report.report_html("Registration demo", summary, tables, pictures), encoding="utf-8")
    for table in tables[:2]:
        say("\n" + table.text())
    say(f"\nscene, pictures and report: {folder / 'report.html'}")


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status: 0, 1 where the error did not fall, 2 for a request that cannot be met."""
    parser = Parser(prog="python run.py demo", description="register a real volume with a known answer, through a 3D Slicer scene")
    parser.add_argument("--out", type=Path, default=Path("demo-out"), metavar="DIR", help="where nodes, pictures and report go (demo-out)")
    parser.add_argument("--seed", type=int, default=0, help="of the random deformation and noise (0)")
    parser.add_argument("--size", choices=tuple(SPACING), default="full", help="full: 1 mm voxels, quick: 2 mm voxels (full)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (auto)")
    try:
        options = parser.parse_args(arguments)
        figures = run(options.out, options.seed, options.size, options.device, lambda text: sys.stdout.write(text + "\n"))
    except (RegistrationError, OSError) as error:
        text, status = sentence(error)
        sys.stderr.write(f"error: {text}\n")
        return status
    before, after, _ = figures["TRE brain, mean"]
    if not after < before:
        sys.stderr.write(f"error: the mean error in the brain went from {before:.2f} mm to {after:.2f} mm; "
                         "the registration did not improve it\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
