"""Pictures of the panel for the documentation: ``python Testing/screenshots.py`` writes Resources/Screenshots/panel-*.png; nothing is computed."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "Resources" / "Screenshots"
SECTIONS = ("guidesBox", "advancedBox", "outputsBox")


def main() -> None:
    sys.path[:0] = [str(ROOT / "Testing"), str(ROOT / "DeepRegistration")]
    from harness.application import install, load
    from harness.fixtures import MODULES, screenshot

    slicer = install()
    import panels

    holder = load(MODULES["DeepRegistration"]).createNewWidgetRepresentation()
    holder.show_module(True)
    panel = holder.self().panel
    panel.logic._runner, panel.node.live = panels.ScriptedRunner(), False
    panel.node.fixedVolume, panel.node.movingVolume = (panels.volume(slicer, name, (24, 24, 24), k) for k, name in enumerate(("MRI day 1", "MRI day 90")))

    def picture(name: str) -> None:
        panels.settle(slicer)
        screenshot(holder, FOLDER / f"panel-{name}.png")

    register_pictures(panel, picture, panels)
    panels.segmentation(slicer, panel.node.fixedVolume, "Liver")
    panels.landmarks(slicer, "Nodules", [(1, 2, 3)])
    for name in ("transfer", "quality", "compare", "batch"):
        panel.open(name)
        if name == "batch":
            ui = panel.page("batch").ui
            ui.batchFixedSelector.setCurrentNode(panel.node.fixedVolume)
            ui.batchMovingSelector.setCurrentNode(panel.node.movingVolume)
            ui.addPairButton.click()
        picture(name)
    holder.self().cleanup()


def register_pictures(panel, picture, panels) -> None:
    """Before, during and after a run, and with all sections open."""
    page, runner = panel.page("register"), panel.logic._runner
    picture("register")
    page.ui.applyButton.click()
    runner.say("progress", share=0.42, text="deformation, level 2/4", step=37, steps=100, seconds_left=8.0)
    panel.tick()
    picture("running")
    runner.say("done", result=panels.answer(runner.jobs[-1].request))
    while page.running:
        panel.tick()
    picture("done")
    for name in SECTIONS:
        getattr(page.ui, name).collapsed = False
    picture("register-all")


if __name__ == "__main__":
    main()
