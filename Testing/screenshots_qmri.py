"""Pictures of the module QMRIRegister for the tutorial, of real runs: radial slices of a generated hip, and repeated noisy scans of the phantom head.

    python Testing/screenshots_qmri.py [--folder DIR]

writes ``panel-qmri*.png``, ``view-qmri.png`` and ``panel-motion.png`` into DIR (default: Resources/Screenshots); it takes about a minute. The headers of
the slices are wrong by 15 degrees and 8 mm, two slices are exchanged, and one is mirrored.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
ORDER, MIRRORED = [0, 2, 1, 3, 4, 5], 4
SCANS, SPACING = 6, 4.0


def hip():
    """(Volumes of the slices, Volume) of a generated hip."""
    import truths_hip

    from DeepRegistrationLib.exchange import Volume

    flips = [(k == MIRRORED, False) for k in range(6)]
    whole = truths_hip.hip_volume(truths_hip.Hip(3), truths_hip.volume_grid(72))
    known = truths_hip.known_set(3, 15.0, 8.0, hip=truths_hip.Hip(3), volume=whole, size=72, order=ORDER, flips=flips).problem
    return [Volume(image.data[0, 0].numpy(), image.grid, f"T2 {image.name}") for image in known.slices], Volume(whole.data[0, 0].numpy(), whole.grid, "Hip")


def head(number: int):
    """Volume of a scan of the phantom head that has moved, with Rician noise."""
    from DeepRegistrationLib.exchange import Volume
    from DeepRegistrationLib.geometry import Grid
    from DeepRegistrationUI import phantoms

    draw = np.random.default_rng(number)
    shape = (30, 48, 40)
    grid = Grid.from_parts(shape, SPACING, -(np.array(shape[::-1]) - 1) * SPACING / 2)
    angle, shift = np.deg2rad(draw.normal(0, 1.5)), draw.normal(0, 1.5, 3)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    values = phantoms.anatomy(grid.points() @ turn.T + shift)[1]
    sigma = 0.12 * values.max()
    return Volume(np.hypot(values + draw.normal(0, sigma, shape), draw.normal(0, sigma, shape)).astype(np.float32), grid, f"scan {number + 1}")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "Resources" / "Screenshots", help="where the pictures go")
    folder = parser.parse_args(arguments).folder.resolve()
    sys.path[:0] = [str(ROOT / "Testing"), str(ROOT / "DeepRegistration")]
    from harness.application import install, load
    from harness.fixtures import MODULES, screenshot, view_image

    slicer = install()
    from DeepRegistrationUI import mrml

    holder = load(MODULES["QMRIRegister"]).createNewWidgetRepresentation()
    holder.show_module(True)
    panel = holder.self().panel
    page, node = panel.page("slices"), panel.node

    def until(condition, seconds: float = 300.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise SystemExit("waited in vain")
            slicer.app.processEvents()
            time.sleep(0.005)

    slices, volume = hip()
    node.qmriVolume = mrml.volume_node(slicer.mrmlScene, volume)
    for value in slices:
        mrml.volume_node(slicer.mrmlScene, value)
    until(lambda: not panel.later.active)
    page.ui.qmriButton.click()
    until(lambda: not page.running or page.ui.qmriProgressBar.value > 300)
    screenshot(holder, folder / "panel-qmri.png")
    until(lambda: not page.running)
    until(lambda: not panel.later.active)
    page.ui.qmriCheckTable.selectRow(1)
    until(lambda: not panel.later.active)
    screenshot(holder, folder / "panel-qmri-done.png")
    view_image("Red", (300, 300), folder / "view-qmri.png")
    sys.stderr.write(f"{page.ui.qmriAnswerLabel.text}\n{page.ui.qmriStatusLabel.text}\n")
    panel.open("motion")
    motion = panel.page("motion")
    series = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "Repeated scans")
    for number in range(SCANS):
        scan = mrml.volume_node(slicer.mrmlScene, head(number))
        series.SetDataNodeAtValue(scan, str(number))
        slicer.mrmlScene.RemoveNode(scan)
    node.motionSource, node.motionSeries, node.motionValues = "series", series, json.dumps({"translation": 2.0, "rotation": 0.04})
    until(lambda: not panel.later.active)
    motion.ui.motionRunButton.click()
    until(lambda: not motion.running)
    until(lambda: not panel.later.active)
    screenshot(holder, folder / "panel-motion.png")
    sys.stderr.write(f"{motion.ui.motionStatusLabel.text}\n")
    holder.self().cleanup()


if __name__ == "__main__":
    main(sys.argv[1:])
