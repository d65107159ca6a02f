"""What the pages of one method share: its presets and parameters in the parameter node."""

from __future__ import annotations

import json

from .parameters import ParameterForm, changed_values
from .running import RunningPage


class MethodPage(RunningPage):
    """More widgets and parameters that carry the name ``STATUS``: ``<name>PresetBox``, ``<name>ParametersWidget``, ``<name>ResetButton``;
    ``<name>Preset`` and ``<name>Values`` of the parameter node."""

    METHOD = ""

    def __init__(self, panel, layout):
        super().__init__(panel, layout)
        self.form = ParameterForm(self.widget_of("ParametersWidget"), self.parameter_changed, lambda text: self.say("error", text))
        self.choice(self.widget_of("PresetBox"), self.preset_chosen)
        self.buttons({f"{self.STATUS}ResetButton": lambda: self.put(f"{self.STATUS}Values", "{}")})

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
        self.fill(box, self.methods.presets(self.entry), self.preset)
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
