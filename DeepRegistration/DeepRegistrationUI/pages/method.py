"""What the pages of one method share: its presets and parameters in the parameter node, and a run that is shown while it lasts."""

from __future__ import annotations

import json

from slicer.i18n import tr as _

from ..jobrun import JobRun
from .base import Page
from .parameters import ParameterForm, changed_values


class MethodPage(Page):
    """Widgets and parameters carry the name ``STATUS``: ``<name>PresetBox``, ``<name>ParametersWidget``, ``<name>ResetButton``,
    ``<name>ProgressBar``, ``<name>StageLabel``; ``<name>Preset`` and ``<name>Values`` of the parameter node. ``work`` runs or ran last."""

    METHOD = ""
    STOPPED = "The run was stopped; the scene is as it was."

    def __init__(self, panel, layout):
        super().__init__(panel, layout)
        self.work = None
        self.form = ParameterForm(self.widget_of("ParametersWidget"), self.parameter_changed, lambda text: self.say("error", text))
        self.choice(self.widget_of("PresetBox"), self.preset_chosen)
        self.buttons({f"{self.STATUS}ResetButton": lambda: self.put(f"{self.STATUS}Values", "{}")})

    def widget_of(self, ending: str):
        return getattr(self.ui, self.STATUS + ending)

    def choice(self, box, chosen) -> None:
        """Call ``chosen`` when the user changes the item of a combo box."""
        box.connect("currentIndexChanged(int)", lambda index: None if self.filling else chosen())

    def buttons(self, actions: dict) -> None:
        """Name of a button -> what it does."""
        for name, pressed in actions.items():
            getattr(self.ui, name).connect("clicked()", lambda pressed=pressed: self.guarded(pressed))

    def guarded(self, act) -> None:
        super().guarded(act)
        self.refresh()

    # --------------------------------------------------------------------------------------------- preset and parameters

    @property
    def methods(self):
        """The catalogue that has the method."""
        return self.logic.methods

    @property
    def method(self) -> str:
        """Its ID."""
        return self.METHOD

    @property
    def entry(self) -> dict:
        return self.methods.entries[self.method]

    @property
    def preset(self) -> str:
        name = getattr(self.node, f"{self.STATUS}Preset")
        return name if name in self.entry["presets"] else "default"

    @property
    def values(self) -> dict:
        """What differs from the preset."""
        return json.loads(getattr(self.node, f"{self.STATUS}Values") or "{}")

    def usual(self) -> dict:
        return self.methods.preset_values(f"{self.method}:{self.preset}")

    def request_of_method(self) -> dict:
        """What every request says of the method and of where it runs."""
        node = self.node
        return {"method": f"{self.method}:{self.preset}", "values": self.values, "device": node.device, "seed": node.seed, "threads": node.threads}

    def show_method(self) -> None:
        """Bring presets and parameters up to date."""
        box = self.widget_of("PresetBox")
        self.fill(box, [(name, name) for name in self.entry["presets"]], self.preset)
        box.toolTip = self.entry["presets"][self.preset]["help"]
        self.form.build(self.entry["parameters"])
        self.form.show(self.usual() | self.values, self.usual())
        self.widget_of("ResetButton").enabled = bool(self.values)

    def preset_chosen(self) -> None:
        setattr(self.node, f"{self.STATUS}Values", "{}")
        setattr(self.node, f"{self.STATUS}Preset", self.chosen(self.widget_of("PresetBox")))
        self.refresh()

    def parameter_changed(self, name: str, value) -> None:
        kept = f"{self.STATUS}Values"
        setattr(self.node, kept, changed_values(getattr(self.node, kept), self.usual(), name, value))

    # --------------------------------------------------------------------------------------------------------------- run

    @property
    def running(self) -> bool:
        return self.work is not None and self.work.running

    def tick(self) -> bool:
        return self.running

    def show_readiness(self) -> None:
        """Say what is missing, and what the button does now."""
        raise NotImplementedError

    def show_running(self, running: bool) -> None:
        self.widget_of("ProgressBar").visible = self.widget_of("StageLabel").visible = running
        self.widget_of("ProgressBar").value = 0
        if running:
            self.widget_of("StageLabel").text = _("Preparing")
        self.show_readiness()

    def begin(self, request: dict) -> None:
        """Submit a job of the page; its events come to ``on_event``."""
        self.work = JobRun(self.logic.runner, request, self.on_event)
        self.logic.work.append(self.work)
        self.show_running(True)
        self.panel.wake()

    def take_result(self) -> None:
        """Show what the job gave."""
        raise NotImplementedError

    def on_event(self, work, event: dict) -> None:
        """Called from the panel's timer, on the main thread."""
        if work is not self.work or self.node is None:
            return
        if event["event"] == "progress":
            self.show_progress(event)
        elif event["event"] in ("done", "failed", "cancelled"):
            self.show_running(False)
            if event["event"] == "done":
                self.guarded(self.take_result)
            else:
                self.say("error" if event["event"] == "failed" else "warning", work.message or _(self.STOPPED))
            self.refresh()
