"""The panel of the module AtlasBuilder: building an atlas, the structure of a cohort, and slices in an atlas."""

from __future__ import annotations

from .pages.atlas_build import AtlasBuildPage
from .pages.atlas_identify import AtlasIdentifyPage
from .pages.atlas_structure import AtlasStructurePage
from .panel import Panel


class AtlasPanel(Panel):
    """See ``Panel``."""

    FORM = "AtlasBuilder.ui"
    PAGES = {"build": AtlasBuildPage, "structure": AtlasStructurePage, "identify": AtlasIdentifyPage}
