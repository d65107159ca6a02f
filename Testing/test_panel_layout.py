"""The panel at 400 pixels: nothing is wider, no text is clipped, also with texts of German or French length."""

import pytest

pytest.importorskip("PySide6")
pytest.importorskip("slicer")

from panels import (  # noqa: E402, F401
    WIDTH, application, check_fits, module_panel, no_slot_errors, pair, panel, scene, show, slicer, without_help)

PAGES = ("register", "transfer", "quality", "compare", "batch", "train")


@pytest.mark.parametrize("factor", [1.0, 1.6])
@pytest.mark.parametrize("name", PAGES)
def test_fits_400_pixels(slicer, pair, name, factor):
    check_fits(slicer, pair, show(slicer, pair, name), factor)


def test_a_long_name_does_not_widen_the_panel(slicer, pair):
    pair.node.movingVolume.SetName("Thorax abdomen pelvis with contrast portal venous phase follow-up after three months")
    page = show(slicer, pair, "register")
    assert page.widget.isVisible() and pair.widget.minimumSizeHint().width() <= WIDTH


def test_every_control_has_help(slicer, pair):
    """Everything that can be operated says what it is for."""
    assert {name: without_help(pair.page(name)) for name in PAGES} == {name: [] for name in PAGES}
