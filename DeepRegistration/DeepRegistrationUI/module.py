"""The place of a panel in the application, the same for every module of the extension: built on setup, bound to the scene's parameter node,
taken away on cleanup. A module file says which logic and which panel."""

from __future__ import annotations

import sys

from slicer.ScriptedLoadableModule import ScriptedLoadableModuleWidget

PACKAGES = ("DeepRegistrationUI", "DeepRegistrationLib")
"""The packages that the developer's 'Reload' loads anew together with the module file."""


class PanelWidget(ScriptedLoadableModuleWidget):
    """``logic`` and ``panel`` are None before ``setup``, the panel again after ``cleanup``."""

    def __init__(self, parent=None):
        self.panel, self.logic = None, None
        ScriptedLoadableModuleWidget.__init__(self, parent)

    def make(self):
        """(logic, panel in ``self.layout``) of the module."""
        raise NotImplementedError

    def setup(self):
        """Build the panel. Nothing runs, installs or imports PyTorch here."""
        ScriptedLoadableModuleWidget.setup(self)
        self.logic, self.panel = self.make()
        self.panel.scene_is_empty = self.sceneClosed
        self.panel.bind(self.logic.getParameterNode())

    def enter(self):
        """The module is shown: use the scene's parameter node, and see what other modules have changed."""
        if self.panel is not None and self.panel.node is None:
            self.panel.bind(self.logic.getParameterNode())
        elif self.panel is not None:
            self.panel.later.start()

    def exit(self):
        """Another module is shown: a run goes on, clicks into the views place no more landmarks."""
        if self.panel is not None:
            self.panel.leave()

    def sceneClosed(self):
        """The scene is empty: a new parameter node, if the module is shown."""
        if self.parent.isEntered:
            self.panel.bind(self.logic.getParameterNode())

    def onReload(self):
        """The developer's button: the panel and its worker end, and the module file and its packages are read again."""
        self.cleanup()
        for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)

    def cleanup(self):
        """The application ends or the module is loaded anew."""
        if self.panel is not None:
            self.panel.cleanup()
            self.panel = None
