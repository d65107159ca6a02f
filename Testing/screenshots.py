"""Pictures for the tutorial, of real registrations of the phantom pair of the sample data: the panel at 400 pixels and the slice views.

    python Testing/screenshots.py [--folder DIR] [--long]

writes ``panel-*.png`` and ``views-*.png`` into DIR (default: Resources/Screenshots); it takes some minutes. With ``--long`` every text of the panel
is as long as in German or French, to look at; such pictures go to a folder that is named.
"""

from __future__ import annotations

import sys
from pathlib import Path

from studio import FOLDER, Studio, options

SECTIONS = ("guidesBox", "advancedBox", "outputsBox")
PRESET = "instance-optimisation:fast"
RUNNING = "instance-optimisation:accurate"
TRAINED = 100
"""Steps of the network of the picture of Train: enough for curves, not for a good network."""
VIEW = 260
"""Pixels of each of the three slice views of a picture."""


class Pair(Studio):
    """One panel with the phantom pair."""

    def __init__(self, folder: Path, long: bool):
        super().__init__("DeepRegistration", folder, "register")
        self.long = long
        from DeepRegistrationUI import sampledata

        made = sampledata.load_head_pair()
        self.fixed, self.moving, self.moving_t2 = made[:3]
        self.structures, self.landmarks = made[3:5], made[5:7]
        for node in (self.structures[0], self.landmarks[0]):
            node.GetDisplayNode().SetVisibility(False)
        self.panel.node.fixedVolume, self.panel.node.movingVolume, self.panel.node.method = self.fixed, self.moving, PRESET

    def picture(self, name: str) -> None:
        """The panel as it is."""
        self.settle()
        if self.long:
            from panels import lengthen, texts_of

            for widget, text in list(texts_of(self.holder)):
                if not widget.__dict__.get("lengthened"):
                    widget.text, widget.__dict__["lengthened"] = lengthen(text), True
        super().picture(name)

    def views(self, name: str) -> None:
        """The three slice views side by side."""
        import numpy as np
        from harness.fixtures import view_image
        from harness.rendering import save_png

        self.slicer.app.processEvents()
        save_png(np.concatenate([view_image(view, (VIEW, VIEW)) for view in ("Red", "Yellow", "Green")], 1), self.folder / f"views-{name}.png")

    def run(self) -> None:
        """Press Apply and wait for the result."""
        self.press(self.page.ui.applyButton, self.page)
        if self.page.run.state != "done":
            raise SystemExit(self.page.run.message)

    # ------------------------------------------------------------------------------------------------------------ the pages

    def register(self) -> None:
        """Before, during and after a run, and with all sections open."""
        self.panel.logic.warm_up()
        self.panel.wake()
        self.until(lambda: self.panel.logic.hello is not None and not self.panel.timer.active)
        self.picture("register")
        self.running()
        self.run()
        self.picture("done")
        for name in SECTIONS:
            getattr(self.page.ui, name).collapsed = False
        self.picture("register-all")
        for name in SECTIONS:
            getattr(self.page.ui, name).collapsed = True

    def running(self) -> None:
        """During a run of the preset that takes longest, which is stopped then."""
        self.panel.node.method = RUNNING
        self.settle()
        self.page.ui.applyButton.click()
        self.until(lambda: not self.page.running or ("level 3" in self.page.ui.stageLabel.text.lower() and self.page.run.live.refreshes > 1))
        if not self.page.running:
            raise SystemExit(f"the run ended before its picture was taken: {self.page.run.message}")
        self.picture("running")
        self.views("running")
        self.page.ui.applyButton.click()
        self.until(lambda: not self.page.running)
        self.panel.node.method = PRESET

    def transfer(self) -> None:
        import qt

        self.panel.open("transfer")
        page = self.panel.page("transfer")
        self.settle()
        wanted = {self.structures[1].GetID(), self.landmarks[1].GetID()}
        for item in [page.ui.nodesList.item(k) for k in range(page.ui.nodesList.count)]:
            if item.data(qt.Qt.UserRole) in wanted:
                item.setCheckState(qt.Qt.Checked)
        page.ui.transferButton.click()
        self.until(lambda: page.work is None)
        self.picture("transfer")

    def quality(self) -> None:
        from panels import choose

        node = self.panel.node
        self.panel.open("quality")
        page = self.panel.page("quality")
        node.qualityFixedStructures, node.qualityMovingStructures = self.structures
        node.qualityFixedLandmarks, node.qualityMovingLandmarks = self.landmarks
        self.settle()
        page.ui.evaluateButton.click()
        self.until(lambda: page.evaluation is None)
        if "figures" not in page.ui.qualityStatusLabel.text:
            raise SystemExit(page.ui.qualityStatusLabel.text)
        for made in (node for kind in ("Segmentation", "MarkupsFiducial") for node in self.slicer.util.getNodesByClass(f"vtkMRML{kind}Node")):
            made.GetDisplayNode().SetVisibility(False)
        choose(page.ui.modeBox, "checkerboard")
        choose(page.ui.deformationBox, "grid")
        self.picture("quality")
        self.views("checkerboard")
        for box in (page.ui.modeBox, page.ui.deformationBox):
            choose(box, "")
        page.ui.logJacobianMapBox.click()
        self.views("log-jacobian")
        page.ui.clearButton.click()

    def compare(self) -> None:
        """A second result, with more smoothing, beside the first one."""
        node = self.panel.node
        self.panel.open("register")
        node.compareFirst, node.prefix, node.values, node.live = node.result, "More smoothing", '{"elastic": 1.5}', False
        self.run()
        node.compareSecond, node.prefix, node.values = node.result, "", "{}"
        self.panel.open("compare")
        self.picture("compare")

    def batch(self) -> None:
        """Two pairs; the second one has another contrast."""
        self.panel.open("batch")
        page, self.panel.node.batchToScene = self.panel.page("batch"), True
        page.ui.batchFixedSelector.setCurrentNode(self.fixed)
        for moving in (self.moving, self.moving_t2):
            page.ui.batchMovingSelector.setCurrentNode(moving)
            page.ui.addPairButton.click()
        self.settle()
        page.ui.batchButton.click()
        self.until(lambda: not page.work.running)
        self.picture("batch")

    def train(self) -> None:
        """A few steps of the network for slices of any kind."""
        import tempfile

        node = self.panel.node
        self.panel.open("train")
        page = self.panel.page("train")
        with tempfile.TemporaryDirectory() as folder:
            node.trainRecipe, node.trainDim, node.trainSteps, node.trainFolder = "general", "2", TRAINED, str(Path(folder) / "slices")
            self.settle()
            page.ui.trainButton.click()
            self.until(lambda: not page.running)
            if page.work.state != "done":
                raise SystemExit(page.work.message)
            node.trainFolder = "slices"
            self.picture("train")


def main(arguments: list[str]) -> None:
    parser = options(__doc__)
    parser.add_argument("--long", action="store_true", help="texts of German or French length")
    chosen = parser.parse_args(arguments)
    if chosen.long and chosen.folder == FOLDER:
        parser.error("pictures with long texts are no pictures of the tutorial; name another --folder")
    studio = Pair(chosen.folder, chosen.long)
    for make in (studio.register, studio.transfer, studio.quality, studio.compare, studio.batch, studio.train):
        make()
    studio.holder.self().cleanup()


if __name__ == "__main__":
    main(sys.argv[1:])
