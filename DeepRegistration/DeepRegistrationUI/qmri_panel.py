"""The panel of the module QMRIRegister: slices into a volume, and the motion of repeated scans."""

from __future__ import annotations

from .pages.qmri_motion import MotionPage
from .pages.qmri_slices import SlicesPage
from .panel import Panel


class QMRIPanel(Panel):
    """See ``Panel``."""

    FORM = "QMRIRegister.ui"
    PAGES = {"slices": SlicesPage, "motion": MotionPage}
