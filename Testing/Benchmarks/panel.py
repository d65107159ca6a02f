"""The panel at work on a large generated pair, with the real worker process: start, Apply, the longest work of the GUI thread in one piece, Cancel,
a worker that dies, a scene that is closed, and what it costs to watch.

    python Testing/Benchmarks/panel.py [--edge 256] [--preset instance-optimisation:fast] [--values JSON] [--size 400]
                                          [--parts runs guided cancels deaths] [--out FILE]

prints a table (and writes it into FILE). The interface's own work does not depend on how many iterations the worker does: ``--values`` with few of
them saves time where only that is of interest. Work of the GUI thread is its processor time between two looks at the event loop, so other programs on the
machine do not change it; drawing is included (three slice views of ``--size`` pixels, off screen, in software). Waiting times are wall times.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "Testing"), str(ROOT / "DeepRegistration"), str(Path(__file__).resolve().parent)]

ENDLESS = {"iterations": [5000, 5000, 5000, 5000], "tolerance": 0.0}
PARTS = ("runs", "guided", "cancels", "deaths")
FINER = 4
MOMENTS = ("uploading", "linear", "level 1", "level 2", "level 3", "output")
"""When Cancel is pressed, as words of the stage that is shown."""


@dataclass
class Watch:
    """Runs the event loop; ``longest``: phase -> seconds of the GUI thread in one piece; ``spent``: phase -> all of its seconds."""

    slicer: object
    page: object
    longest: dict = field(default_factory=dict)
    spent: dict = field(default_factory=dict)

    def phase(self) -> str:
        run = self.page.run
        state = "before" if run is None else run.state
        return "uploading" if state == "running" and run.job.state == "uploading" else state

    def note(self, phase: str, seconds: float) -> None:
        self.longest[phase] = max(self.longest.get(phase, 0.0), seconds)
        self.spent[phase] = self.spent.get(phase, 0.0) + seconds

    def until(self, condition, seconds: float = 3600.0) -> float:
        """Wait for ``condition``; the seconds that it took. RuntimeError where it does not come."""
        began = time.perf_counter()
        while not condition():
            if time.perf_counter() - began > seconds:
                raise RuntimeError(f"waited {seconds:g} s in vain; the panel says '{self.page.ui.registerStatusLabel.text}'")
            phase, start = self.phase(), time.thread_time()
            self.slicer.app.processEvents()
            self.note(phase, time.thread_time() - start)
            time.sleep(0.002)
        return time.perf_counter() - began

    def click(self, button) -> float:
        """Seconds of the GUI thread that a click takes."""
        start = time.thread_time()
        button.click()
        return time.thread_time() - start


def processor_seconds(process: int | None = None) -> float:
    """Of all threads of a process (this one where None is given), so far."""
    if process is None:
        times = os.times()
        return times.user + times.system
    words = Path(f"/proc/{process}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


class Bench:
    """One panel and the rows that were measured with it."""

    def __init__(self, arguments):
        self.arguments, self.rows = arguments, []
        self.slicer, self.holder, self.panel = self.start()
        self.page = self.panel.page("register")
        self.watch = Watch(self.slicer, self.page)

    def row(self, what: str, value, unit: str, bar: str = "") -> None:
        text = value if isinstance(value, str) else f"{value:.3g}"
        self.rows.append(f"| {what} | {text} | {unit} | {bar} |")
        sys.stderr.write(f"{what}: {text} {unit}\n")

    def start(self):
        """Build the panel three times and keep the last one."""
        from harness.application import install, load
        from harness.fixtures import MODULES

        slicer, took = install(), []
        for n in range(3):
            began = time.process_time()
            holder = load(MODULES["DeepRegistration"]).createNewWidgetRepresentation()
            holder.show_module(True)
            took.append(time.process_time() - began)
            if n < 2:
                holder.show_module(False)
                holder.self().cleanup()
        sys.modules["DeepRegistrationUI.pages.base"].DOUBLE_CLICK_SECONDS = 0.0  # the benchmark clicks faster than a person
        self.row("Panel is built and shown", max(took), "s", "0.3")
        self.row("PyTorch imported by it", "yes" if "torch" in sys.modules else "no", "", "no")
        return slicer, holder, holder.self().panel

    def load(self) -> None:
        """The generated pair, with structures and landmarks, as the choices of the panel."""
        from DeepRegistrationUI import mrml, phantoms, views

        made, scene, node = phantoms.head_pair(self.arguments.edge // FINER), self.slicer.mrmlScene, self.panel.node
        node.fixedVolume, node.movingVolume = (mrml.volume_node(scene, finer(value)) for value in (made.fixed, made.moving))
        self.structures = [mrml.segmentation_node(scene, finer(value)) for value in (made.fixed_labels, made.moving_labels)]
        self.landmarks = [mrml.points_node(scene, value) for value in (made.fixed_points, made.moving_points)]
        node.method = self.arguments.preset
        self.slicer.util.setSliceViewerLayers(background=node.fixedVolume, fit=True)
        self.slicer.app.processEvents()
        for draw in views.drawings(scene):
            draw()  # the application's windows are open long before a run; here the first drawing opens them

    # ------------------------------------------------------------------------------------------------------ measurements

    def start_worker(self) -> None:
        """The worker as the panel starts it once both volumes are chosen."""
        began = time.perf_counter()
        self.panel.logic.warm_up()
        self.panel.wake()
        self.watch.until(lambda: self.panel.logic.hello is not None)
        self.row("Worker is ready after both volumes were chosen", time.perf_counter() - began, "s")

    def run(self, title: str, live: bool, clicked=None) -> float:
        """One whole run; CPU seconds of worker and GUI together."""
        self.panel.node.live, self.panel.node.values = live, self.arguments.values
        self.watch.longest, self.watch.spent = {}, {}
        self.watch.until(lambda: not self.panel.later.active)
        gui, worker = processor_seconds(), self.worker_seconds()
        self.row(f"{title}: click", 1000 * self.watch.click(clicked or self.page.ui.applyButton), "ms of the GUI thread", "100")
        waited = self.watch.until(lambda: "," in self.page.ui.stageLabel.text or not self.page.running)
        self.row(f"{title}: from the click to the first iteration", waited, "s")
        took = self.watch.until(lambda: not self.page.running)
        self.watch.until(lambda: not self.panel.timer.active)
        if self.page.run.state != "done":
            raise RuntimeError(self.page.run.message)
        for phase, text in (("reading", "reading masks and start"), ("uploading", "sending"), ("running", "the run"), ("delivering", "delivery")):
            self.row(f"{title}: longest piece of work, {text}", 1000 * self.watch.longest.get(phase, 0.0), "ms of the GUI thread", "100")
        self.row(f"{title}: wall time after that", took, "s")
        gui, worker = processor_seconds() - gui, self.worker_seconds() - worker
        self.row(f"{title}: processor time of the worker and of the GUI", f"{worker:.1f} and {gui:.1f}", "s")
        if live:
            self.row(f"{title}: refreshes of the views", self.page.run.live.refreshes, "")
        return worker + gui

    def worker_seconds(self) -> float:
        process = self.panel.logic.runner.process_id
        return 0.0 if process is None else processor_seconds(process)

    def begin(self, moment: str) -> None:
        """Start an endless run and wait until the stage has come."""
        self.panel.node.values = self.arguments.values if moment == "output" else json.dumps(ENDLESS)
        self.watch.until(lambda: not self.panel.later.active)
        self.page.ui.applyButton.click()
        if moment == "uploading":
            self.watch.until(lambda: self.page.run.job.request and self.page.running)
            return
        words = ("inverse", "scores", "results") if moment == "output" else (moment,)
        self.watch.until(lambda: not self.page.running or any(word in self.page.ui.stageLabel.text.lower() for word in words))

    def cancels(self) -> None:
        """Cancel in every stage."""
        for moment in MOMENTS:
            self.begin(moment)
            stage = self.page.ui.stageLabel.text
            click = self.watch.click(self.page.ui.applyButton)
            took = click + self.watch.until(lambda: not self.page.running)
            self.row(f"Cancel in '{stage}'", took, "s", "0.5")
        self.watch.until(lambda: not self.panel.logic.runner.busy)

    def deaths(self) -> None:
        """A worker that is killed, and a scene that is closed during the run."""
        self.begin("level 2")
        os.kill(self.panel.logic.runner.process_id, signal.SIGKILL)
        took = self.watch.until(lambda: not self.page.running)
        self.row(f"Worker killed: until the panel says '{self.page.run.message[:28]} ...'", took, "s", "")
        self.begin("level 2")
        runner, start = self.panel.logic.runner, time.thread_time()
        self.panel.scene_closing()  # what the scene's event calls, apart from the scene's own work
        self.row("Scene closed during the run: work of the panel", 1000 * (time.thread_time() - start), "ms of the GUI thread", "100")
        start = time.thread_time()
        self.slicer.mrmlScene.Clear(0)
        self.row("Scene closed during the run: the scene and the panel's new start", 1000 * (time.thread_time() - start), "ms of the GUI thread", "")
        self.row("Scene closed: until the worker is idle", self.watch.until(lambda: not runner.busy), "s", "0.5")

    def guided(self) -> None:
        """Masks, structures, landmarks and the last result as a start: all that a click has to read. The runs come first."""
        node = self.panel.node
        node.fixedMask, node.movingMask = self.structures
        node.fixedStructures, node.movingStructures = self.structures
        node.fixedLandmarks, node.movingLandmarks = self.landmarks
        self.watch.until(lambda: not self.panel.later.active)
        self.run("Continued with masks, structures and landmarks", False, self.page.ui.continueButton)
        for name in ("fixedMask", "movingMask", "fixedStructures", "movingStructures", "fixedLandmarks", "movingLandmarks"):
            setattr(node, name, None)

    def measure(self) -> None:
        draw_views(self.slicer, self.arguments.size)
        self.load()
        self.start_worker()
        for part in self.arguments.parts:
            getattr(self, part)()
        self.holder.self().cleanup()

    def runs(self) -> None:
        """With and without the live view, and what that costs."""
        self.run("First run, live", True)
        plain = self.run("Second run, not live", False)
        watched = self.run("Third run, live", True)
        self.row("Watching costs, processor time of worker and GUI", 100 * (watched - plain) / plain, "%", "10")


def finer(value):
    """A Volume or LabelMap with each voxel cut into ``FINER`` along every axis, which takes a second where to paint the phantom takes minutes."""
    import numpy as np

    array, grid = value.array, value.grid
    for axis in range(3):
        array = np.repeat(array, FINER, axis)
    affine = grid.affine.copy()
    affine[:3, :3] /= FINER
    affine[:3, 3] -= grid.affine[:3, :3].sum(1) * 0.5 * (1 - 1 / FINER)
    return replace(value, array=array, grid=type(grid)(array.shape, affine))


def draw_views(slicer, size: int) -> None:
    """Let the stand-ins of the slice views draw when the live view asks for it, as the application does."""
    from harness.application import ViewPart

    def draw(part):
        part.view.open((size, size))
        part.view.prepare((size, size))
        part.view.window.Render()

    ViewPart.forceRender = draw


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edge", type=int, default=256, help="voxels of the fixed volume along each axis")
    parser.add_argument("--preset", default="instance-optimisation:fast")
    parser.add_argument("--values", default="{}", help="parameters that differ from the preset, as JSON")
    parser.add_argument("--size", type=int, default=400, help="pixels of a slice view")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what is measured, in this order")
    parser.add_argument("--out", type=Path, help="also write the table into this file")
    bench = Bench(parser.parse_args(arguments))
    bench.measure()
    table = "\n".join(["| what | measured | unit | bar |", "| --- | ---: | --- | ---: |", *bench.rows]) + "\n"
    sys.stdout.write(table)
    if bench.arguments.out:
        bench.arguments.out.write_text(table, "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
