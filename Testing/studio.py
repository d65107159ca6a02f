"""What the three scripts of pictures for the tutorial share: one panel in the stand-in of the application, and the folder that its pictures go to.

``options`` also puts the folders of the tests and of the library on the path.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "Resources" / "Screenshots"
VIEW = 300
"""Pixels of the edge of a slice view."""


def options(text: str) -> argparse.ArgumentParser:
    """Parser with --folder, and the path on which the imports of a script are found; ``text`` is its description."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the pictures go")
    sys.path[:0] = [str(ROOT / "Testing"), str(ROOT / "DeepRegistration")]
    return parser


class Studio:
    """The shown panel of ``module`` in an empty scene: ``slicer``, ``holder``, ``panel``, its parameter ``node``, ``page`` (where a status is read)."""

    def __init__(self, module: str, folder: Path, page: str):
        from harness.application import install, load
        from harness.fixtures import MODULES

        self.folder, self.slicer = folder.resolve(), install()
        self.holder = load(MODULES[module]).createNewWidgetRepresentation()
        self.holder.show_module(True)
        self.panel = self.holder.self().panel
        sys.modules["DeepRegistrationUI.pages.base"].DOUBLE_CLICK_SECONDS = 0.0  # a script clicks faster than a person
        self.page = self.panel.page(page)

    @property
    def node(self):
        """The parameter node; another one after the scene was cleared."""
        return self.panel.node

    def until(self, condition, seconds: float = 300.0) -> None:
        """Run the event loop until ``condition``."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise SystemExit(f"waited in vain on the page {type(self.page).__name__}")
            self.slicer.app.processEvents()
            time.sleep(0.005)

    def settle(self) -> None:
        """Until the panel has done what it put off."""
        self.until(lambda: not self.panel.later.active)

    def press(self, button, page) -> None:
        """Click and wait until the page's run has ended."""
        self.settle()
        button.click()
        self.until(lambda: not page.running)
        self.settle()

    def picture(self, name: str) -> None:
        """The panel as it is, as panel-NAME.png."""
        from harness.fixtures import screenshot

        self.settle()
        screenshot(self.holder, self.folder / f"panel-{name}.png")

    def view(self, name: str) -> None:
        """The red slice view, as view-NAME.png."""
        from harness.fixtures import view_image

        view_image("Red", (VIEW, VIEW), self.folder / f"view-{name}.png")
