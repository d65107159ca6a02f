"""Pictures of the module AtlasBuilder for the tutorial, of real runs on slices of phantom heads of two types, wide and narrow ventricles, and on heads that
grow for an atlas over age; and of a torn section of a phantom head.

    python Testing/screenshots_atlas.py [--folder DIR]

writes ``panel-atlas*.png``, ``panel-structure.png``, ``panel-identify.png``, ``view-atlas*.png`` and ``view-identify.png`` into DIR (default:
Resources/Screenshots); it takes about three minutes, most of them for the network that learns the plates of the head.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from studio import ROOT, Studio, options

SUBJECTS, SPACING, SIDE = 24, 2.0, (104, 84)
WEEKS, EACH = (20, 24, 28, 32, 36), 6
"""Ages of the growing heads, and how many there are of each."""
VENTRICLES = ((11, -2, 12), (-11, -4, 12))


def head(number: int):
    """(Volume, LabelMap) of a slice through the ventricles of a phantom head; even numbers have wide ventricles."""
    from DeepRegistrationLib.exchange import LabelMap, Volume
    from DeepRegistrationLib.geometry import Grid
    from DeepRegistrationUI import phantoms

    draw = np.random.default_rng(number)
    height = phantoms.SLICE_HEIGHT
    origin = (-(SIDE[1] - 1) * SPACING / 2, -(SIDE[0] - 1) * SPACING / 2, height)
    grid = Grid.from_parts((1, *SIDE), (SPACING, SPACING, SPACING), origin)
    points = grid.points()
    moved = points.copy()
    for _ in range(5):
        middle = draw.uniform((-45, -60, height), (45, 60, height + 1e-6))
        moved += bump(points, middle, 50) * draw.normal(0, 1.2, 3) * (1, 1, 0)
    for middle in VENTRICLES if number % 2 == 0 else ():
        moved += bump(points, middle, 40) * -0.6 * (points - middle) * (1, 1, 0)
    labels, t1, _ = phantoms.anatomy(moved)
    noisy = np.hypot(t1 + draw.normal(0, 3, t1.shape), draw.normal(0, 3, t1.shape)).astype(np.float32)
    name = f"head {number + 1:02d}"
    return Volume(noisy, grid, name), LabelMap(labels, grid, phantoms.STRUCTURES, name)


def growing(folder: Path) -> Path:
    """Slices of phantom heads of 2/3 to all of their size, coarser than those above, as files with a list of their ages."""
    from DeepRegistrationLib.geometry import Grid
    from DeepRegistrationLib.image import Image
    from DeepRegistrationLib.io import write_image

    import torch

    folder.mkdir()
    lines = ["image,subject,weeks"]
    for k, (weeks, number) in enumerate((weeks, number) for weeks in WEEKS for number in range(EACH)):
        made, _ = head(2 * number)
        grid = Grid.from_parts(made.grid.shape[1:], SPACING, made.grid.origin[:2])
        size = 1 / 3 * (weeks - WEEKS[0]) / (WEEKS[-1] - WEEKS[0]) + 2 / 3
        smaller = Grid(grid.shape, np.diag([size, size, 1.0]) @ grid.affine)
        image = Image(torch.as_tensor(made.array[0]).float()[None, None], smaller).at(grid).smoothed_to(2 * SPACING)
        write_image(image, folder / f"head{k:02d}.nii.gz")
        lines.append(f"head{k:02d}.nii.gz,head {k + 1:02d},{weeks}")
    (folder / "list.csv").write_text("\n".join(lines), "utf-8")
    return folder / "list.csv"


def over_age(studio: Studio) -> None:
    """Panel and slice view of an atlas over age, at its last age."""
    studio.slicer.mrmlScene.Clear(0)
    studio.settle()
    build, node = studio.page, studio.node
    studio.panel.open("build")
    node.atlasSource, node.atlasData, node.atlasFolder = "folder", str(growing(Path("growing"))), "growth"
    node.atlasMethod, node.atlasCovariate = "spatiotemporal-atlas", "weeks"
    node.atlasPreset, node.atlasValues = "aligned", '{"steps": 150, "width": 8, "iterations": 2, "rate": 0.005}'
    studio.press(build.ui.atlasButton, build)
    finished(build)
    build.ui.atlasAgeSlider.setValue(len(WEEKS) - 2)
    studio.picture("atlas-age")
    studio.view("atlas-age")


def solid():
    """(Volume of a phantom head at 4 mm, (rows, columns) of a torn coronal section of it tilted by 6 degrees, its pixel in mm)."""
    from DeepRegistrationLib.exchange import Volume
    from DeepRegistrationLib.geometry import Grid
    from DeepRegistrationUI import phantoms

    def seen(points):
        return phantoms.anatomy(points)[1].astype(np.float32)

    grid = Grid.from_parts((44, 54, 44), 4.0, (-86.0, -106.0, -86.0))
    pixel, angle = 2.0, np.deg2rad(6)
    line = (np.arange(100) - 49.5) * pixel
    u, v = np.meshgrid(line, line)
    points = np.stack([u, 12 + v * np.sin(angle), -v * np.cos(angle)], -1)
    section = seen(points[None])[0] + np.random.default_rng(0).normal(0, 3, u.shape)
    return Volume(seen(grid.points()), grid, "Head atlas"), np.where(u + 0.4 * v < 25, section, 0).clip(0), pixel


def identify_slice(studio: Studio) -> None:
    """Panel and slice view of a torn section that was found in a head."""
    from DeepRegistrationUI import mrml
    from DeepRegistrationUI.thumbnails import png

    volume, section, pixel = solid()
    Path("section.png").write_bytes(png(np.repeat(section.clip(0, 255).astype(np.uint8)[..., None], 3, -1)))
    node, page = studio.node, studio.panel.page("identify")
    node.identifyAtlas, node.identifyFile, node.identifyPixel = mrml.volume_node(studio.slicer.mrmlScene, volume), "section.png", pixel
    studio.panel.open("identify")
    studio.press(page.ui.identifyButton, page)
    if page.found is None:
        raise SystemExit(page.ui.identifyStatusLabel.text)
    studio.picture("identify")
    studio.view("identify")
    sys.stderr.write(f"{page.ui.identifyAnswerLabel.text}\n")


def bump(points, middle, radius: float) -> np.ndarray:
    """(..., 1): 1 at ``middle``, 0 from ``radius`` mm on."""
    return (np.maximum(1 - ((points - middle) ** 2).sum(-1, keepdims=True) / radius**2, 0)) ** 2


def main(arguments: list[str]) -> None:
    studio = Studio("AtlasBuilder", options(__doc__).parse_args(arguments).folder, "build")
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)  # so that the panel shows a short folder
        for make in (atlas, structure, identify_slice, over_age):
            make(studio)
        studio.holder.self().cleanup()
        os.chdir(ROOT)


def atlas(studio: Studio) -> None:
    """While it is built, and when it is done."""
    from DeepRegistrationUI import mrml

    build, node = studio.page, studio.node
    for number in range(SUBJECTS):
        image, labels = head(number)
        mrml.volume_node(studio.slicer.mrmlScene, image)
        mrml.volume_node(studio.slicer.mrmlScene, labels, f"{labels.name} structures")
    node.atlasSource, node.atlasPreset, node.atlasFolder = "scene", "2d", "heads"
    studio.settle()
    build.ui.atlasButton.click()
    studio.until(lambda: not build.running or len(build.work.curves["similarity"].points) >= 4)
    studio.until(lambda: not build.running or sum(row["status"] == "running" for row in build.work.rows) >= SUBJECTS // 2)
    studio.picture("atlas")
    studio.until(lambda: not build.running)
    finished(build)
    studio.picture("atlas-done")
    studio.view("atlas")
    sys.stderr.write(f"{build.work.message}\n")


def finished(build) -> None:
    if build.work.state != "done":
        raise SystemExit(build.work.message)


def structure(studio: Studio) -> None:
    """Is one atlas enough for the heads in the scene?"""
    import qt

    studio.panel.open("structure")
    page = studio.panel.page("structure")
    studio.node.structureSource = "scene"
    studio.settle()
    for item in [page.ui.structureNodesList.item(k) for k in range(page.ui.structureNodesList.count)]:
        item.setCheckState(qt.Qt.Checked if item.text().endswith("structures") else qt.Qt.Unchecked)
    studio.press(page.ui.structureRunButton, page)
    studio.picture("structure")
    sys.stderr.write(f"{page.ui.structureAnswerLabel.text or page.ui.structureStatusLabel.text}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
