"""The panel at 400 pixels: nothing is wider, no text is clipped, also with texts of German or French length; the static check of the pages."""

import pytest

pytest.importorskip("PySide6")
pytest.importorskip("slicer")

from panels import (  # noqa: E402, F401
    application, module_panel, no_slot_errors, pair, panel, scene, settle, slicer, volume)

PAGES = ("register", "transfer", "quality", "compare", "batch", "train")
WIDTH = 400


def lengthen(text: str, factor: float = 1.6) -> str:
    """A text of ``factor`` times the length, in words of usual length."""
    more, filler = int(len(text) * factor) - len(text), "verlaengerung der angabe "
    return text + (" " + (filler * (more // len(filler) + 1)))[:more] if text.strip() else text


def texts_of(widget):
    """(widget, text) of labels, buttons and check boxes that show a text."""
    import qt

    for kind in (qt.QLabel, qt.QPushButton, qt.QCheckBox, qt.QToolButton):
        for each in widget.findChildren(kind):
            if type(each).__name__ in ("QLabel", "QPushButton", "QCheckBox", "QToolButton") and isinstance(each.text, str) and each.text.strip():
                yield each, each.text


def show(slicer, panel, name: str):
    """The page ``name``, all its boxes unfolded, drawn at 400 pixels."""
    import qt

    panel.open(name)
    page = panel.page(name)
    for box in [child for child in page.widget.findChildren(qt.QWidget) if type(child).__name__ == "ctkCollapsibleGroupBox"]:
        box.collapsed = False
    top = panel.widget.window()
    top.show()
    draw(slicer, top)
    return page


def draw(slicer, top):
    for _ in range(2):
        top.resize(WIDTH, max(400, top.heightForWidth(WIDTH) if top.hasHeightForWidth() else top.sizeHint().height()))
        settle(slicer)


def hidden(widget) -> bool:
    return not widget.isVisible()


def clipped(page) -> list[str]:
    """Texts that their widget does not show whole."""
    found = []
    for widget, text in texts_of(page.widget):
        if hidden(widget):
            continue
        wraps = type(widget).__name__ == "QLabel" and widget.wordWrap
        needed = widget.heightForWidth(widget.width) if wraps else widget.sizeHint().width()
        if (wraps and needed > widget.height + 1) or (not wraps and needed > widget.width + 1):
            found.append(f"{widget.objectName}: '{text}' needs {needed}, has {widget.height if wraps else widget.width}")
    return found


@pytest.mark.parametrize("factor", [1.0, 1.6])
@pytest.mark.parametrize("name", PAGES)
def test_fits_400_pixels(slicer, pair, name, factor):
    page = show(slicer, pair, name)
    if factor > 1:
        for widget, text in list(texts_of(page.widget)):
            widget.text = lengthen(text, factor)
    draw(slicer, pair.widget.window())
    assert pair.widget.minimumSizeHint().width() <= WIDTH, "the page with the frame of its section"
    assert clipped(page) == []


def test_a_long_name_does_not_widen_the_panel(slicer, pair):
    pair.node.movingVolume.SetName("Thorax abdomen pelvis with contrast portal venous phase follow-up after three months")
    page = show(slicer, pair, "register")
    assert page.widget.isVisible() and pair.widget.minimumSizeHint().width() <= WIDTH


def test_every_control_has_help(slicer, pair):
    """Everything that can be operated says what it is for."""
    import qt

    silent = []
    for name in PAGES:
        page = pair.page(name)
        for kind in (qt.QPushButton, qt.QCheckBox, qt.QToolButton, qt.QComboBox, qt.QSpinBox, qt.QDoubleSpinBox):
            for child in page.widget.findChildren(kind):
                if getattr(page.ui, child.objectName or "-", None) is child and not child.toolTip:
                    silent.append(f"{name}: {child.objectName}")
    assert silent == []
