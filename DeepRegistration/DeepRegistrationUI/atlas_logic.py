"""AtlasBuilderLogic: what DeepRegistrationLogic does for a worker and for what runs in it, with the choices of the module AtlasBuilder."""

from __future__ import annotations

from . import torchgate
from .atlas_state import AtlasBuilderParameterNode
from .logic import DeepRegistrationLogic
from .methods import Methods

SCIKIT_LEARN = "scikit-learn>=1.5"


class AtlasBuilderLogic(DeepRegistrationLogic):
    """One worker of its own, so that an atlas is built while pairs are registered."""

    def __init__(self, parent=None, runner=None):
        super().__init__(parent, runner)
        self.moduleName, self.methods = "AtlasBuilder", Methods(problem="Group")

    def getParameterNode(self) -> AtlasBuilderParameterNode:
        """The choices of the panel, kept in the scene."""
        return AtlasBuilderParameterNode(super(DeepRegistrationLogic, self).getParameterNode())

    def ensure_for_structure(self) -> None:
        """PyTorch, and the package that finds types. InputError says what stands in the way."""
        self.ensure_torch()
        if self.needs_torch:
            torchgate.ensure_package(SCIKIT_LEARN, "AtlasBuilder", "The structure of a cohort")
