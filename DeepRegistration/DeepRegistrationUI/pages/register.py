"""Register: inputs, method, outputs, Apply that turns into Cancel, progress, what was made, and what to do next."""

from __future__ import annotations

import json

import qt
import slicer
from slicer.i18n import tr as _

from DeepRegistrationLib.errors import InputError

from ..logic import Choices
from ..placement import SHOWN, give_back
from ..records import is_record, places_under, roles_of
from ..state import DEFAULT_METHOD, Start
from ..sentences import duration
from ..views import nodes_of
from .base import Page, segments_of, with_ending
from .parameters import ParameterForm, plain
from .placing import Placing

WARM_MS = 700
"""Milliseconds between the choice of both volumes and the start of the worker."""
OFFERS = {"half_resolution": "halfResolutionButton", "cpu": "cpuButton"}
OUTPUTS = ("inverse", "linearPart", "warped", "logJacobian", "folds", "metrics", "lossChart", "iterations")


class RegisterPage(Page):
    """See the file's first line. ``run`` is the registration that runs or ran last."""

    UI = "DeepRegistrationRegister.ui"
    STATUS = "register"
    SELECTORS = {"fixedMaskSelector": "fixedMask", "movingMaskSelector": "movingMask", "fixedStructuresSelector": "fixedStructures",
                 "movingStructuresSelector": "movingStructures"}

    def __init__(self, panel, layout):
        super().__init__(panel, layout)
        self.run, self.stages, self.hello, self.pair = None, "", None, (None, None)
        self.soon = qt.QTimer(self.widget)
        self.soon.singleShot = True
        self.soon.interval = WARM_MS
        self.soon.connect("timeout()", self.warm_up)
        self.form = ParameterForm(self.ui.parametersWidget, self.parameter_changed, lambda text: self.say("error", text))
        self.placing = Placing(self.ui, lambda: self.panel.node_changed())
        self.connect()
        self.show_running(False)
        self.ui.offersWidget.visible = self.ui.nextWidget.visible = self.ui.grayButton.visible = False
        self.show_devices()

    def connect(self) -> None:
        for name, chosen in (("taskBox", self.task_chosen), ("methodNameBox", self.method_chosen), ("presetBox", self.preset_chosen),
                             ("deviceBox", self.device_chosen), ("fixedMaskSegmentBox", self.segments_chosen),
                             ("movingMaskSegmentBox", self.segments_chosen)):
            getattr(self.ui, name).connect("currentIndexChanged(int)", lambda index, chosen=chosen: None if self.filling else chosen())
        for name, pressed in (("applyButton", self.apply_or_cancel), ("resetButton", self.reset), ("continueButton", self.continue_run),
                              ("toQualityButton", self.to_quality), ("saveTransformButton", lambda: self.guarded(self.save_transform)),
                              ("halfResolutionButton", lambda: self.again("half_resolution")),
                              ("cpuButton", lambda: self.again("cpu")), ("grayButton", self.convert_to_gray)):
            self.clicked(name, pressed)
        self.ui.citationLabel.connect("linkActivated(QString)", self.copy_citation)

    # -------------------------------------------------------------------------------------------------------- up to date

    def bind(self, node):
        self.placing.stop()
        self.soon.stop()
        self.pair = (None, None) if node is None else (node.fixedVolume, node.movingVolume)
        super().bind(node)
        if node is not None:
            self.scene_added()

    def scene_added(self) -> None:
        """Volumes that Quality control showed under a result when their scene was saved go back to where they were."""
        shown = getattr(self.panel.pages.get("quality"), "quality", None)
        lent = [node for node in nodes_of(slicer.mrmlScene, "vtkMRMLVolumeNode") if shown is None or not shown.lent or node is not shown.moving]
        back = [node.GetName() for node in lent if give_back(node, SHOWN)]
        if back:
            names = ", ".join(f"'{name}'" for name in back)
            self.say("warning", _("The scene was saved while Quality control showed {names} on the other image; they are back where they were.").format(
                names=names))

    def refresh(self) -> None:
        if self.node is None:
            return
        self.show_method()
        for name in ("fixedMask", "movingMask"):
            found = segments_of(getattr(self.node, name))
            if found and getattr(self.node, f"{name}Segment") not in dict(found):  # a segment of the mask of before
                self.put(f"{name}Segment", "")
            box = getattr(self.ui, f"{name}SegmentBox")
            self.fill(box, [("", _("All segments")), *found] if found else [("", _("Everything above 0"))], getattr(self.node, f"{name}Segment"))
            box.enabled = bool(found)
        self.ui.startTransformSelector.enabled = self.node.start == Start.NODE
        self.placing.show(self.node)
        self.show_device_choice()
        self.show_readiness()
        self.expect_a_run()

    def expect_a_run(self) -> None:
        """Both volumes were just chosen, which is the user's act and no scene that was opened: the worker starts in a moment, unless the choice
        is taken back, so that Apply need not wait for it."""
        pair = self.node.fixedVolume, self.node.movingVolume
        if pair != self.pair:
            self.pair = pair
            self.ui.offersWidget.visible = False  # what was offered are the volumes of before
            if None in pair or pair[0] is pair[1]:
                self.soon.stop()
            else:
                self.soon.start()

    def warm_up(self) -> None:
        if not slicer.app.testingEnabled() and self.logic.warm_up():
            self.panel.wake()

    def show_method(self) -> None:
        """Task, method, preset, their texts and the advanced page for the parameter node's method."""
        methods = self.logic.methods
        try:
            entry, preset = methods.split(self.node.method)
        except InputError as error:  # a scene of another version
            self.say("warning", str(error))
            self.node.method, self.node.values = DEFAULT_METHOD, "{}"
            entry, preset = methods.split(DEFAULT_METHOD)
        spec = f"{entry['id']}:{preset}"
        self.fill(self.ui.taskBox, [(task, task[:1].upper() + task[1:]) for task in methods.tasks()], entry["task"])
        self.fill(self.ui.methodNameBox, [(e["id"], e["title"]) for e in methods.of_task(entry["task"])], entry["id"])
        self.fill(self.ui.presetBox, methods.presets(entry), preset)
        self.ui.presetLabel.text = f"{entry['title']}: {entry['presets'][preset]['help']}."
        self.ui.presetLabel.toolTip = about(entry)
        self.ui.citationLabel.text = f"{'; '.join(methods.citations(spec))} (<a href=\"bibtex\">{_('copy BibTeX')}</a>)"
        self.form.build(entry["parameters"])
        values, own = methods.preset_values(spec), json.loads(self.node.values or "{}")
        if not own.keys() <= values.keys():  # a scene of another version
            unknown = ", ".join(f"'{name}'" for name in own.keys() - values.keys())
            self.say("warning", _("This version has no parameter {names}; the value that the scene holds is left out.").format(names=unknown))
            own = {name: value for name, value in own.items() if name in values}
            self.node.values = json.dumps(own)
        self.form.show(values | own, values)
        self.ui.resetButton.enabled = self.node.values not in ("", "{}")

    def show_readiness(self) -> None:
        """Apply is enabled when nothing is missing; the line below says what is."""
        missing = "" if self.running else self.logic.missing(self.choices())
        self.ui.applyButton.enabled = not missing
        self.ui.applyButton.toolTip = missing or (_("Stop the registration") if self.running else _("Register the moving to the fixed volume"))
        self.ui.missingLabel.text = missing
        self.ui.missingLabel.visible = bool(missing)
        self.ui.grayButton.visible = bool(missing and self.logic.colored(self.choices()))
        self.ui.nextWidget.visible = not self.running and is_record(self.node.result)  # also of a scene that was opened
        self.ui.continueButton.enabled = not missing and not self.not_continued()
        self.ui.continueButton.toolTip = missing or self.not_continued() or _("The last result becomes the start of a run with the settings chosen now")

    @property
    def running(self) -> bool:
        return self.run is not None and self.run.running

    def choices(self) -> Choices:
        """The parameter node as a request in nodes."""
        node = self.node
        start = node.startTransform if node.start == Start.NODE else node.start.value
        return Choices(
            fixed=node.fixedVolume, moving=node.movingVolume, fixed_mask=node.fixedMask, moving_mask=node.movingMask,
            fixed_mask_segment=node.fixedMaskSegment, moving_mask_segment=node.movingMaskSegment, start=start,
            start_by_node=node.start == Start.NODE, fixed_points=node.fixedLandmarks, moving_points=node.movingLandmarks,
            fixed_labels=node.fixedStructures, moving_labels=node.movingStructures, method=node.method, values=json.loads(node.values or "{}"),
            device=node.device, seed=node.seed, threads=node.threads, live=node.live,
            outputs=frozenset(name for name in OUTPUTS if getattr(node, name)), prefix=node.prefix)

    # ------------------------------------------------------------------------------------------------ choices of the user

    def task_chosen(self) -> None:
        self.put_method(f"{self.logic.methods.of_task(self.chosen(self.ui.taskBox))[0]['id']}:default")

    def method_chosen(self) -> None:
        self.put_method(f"{self.chosen(self.ui.methodNameBox)}:default")

    def preset_chosen(self) -> None:
        self.put_method(f"{self.chosen(self.ui.methodNameBox)}:{self.chosen(self.ui.presetBox)}")

    def put_method(self, spec: str) -> None:
        """Another method or preset: its own values, none of the old ones."""
        if self.node is not None and spec != self.node.method:
            self.node.values, self.node.method = "{}", spec
            self.refresh()

    def parameter_changed(self, name: str, value) -> None:
        """Keep what differs from the preset."""
        values, preset = json.loads(self.node.values or "{}"), self.logic.methods.preset_values(self.node.method)
        values.pop(name, None)
        if plain(value) != plain(preset[name]):
            values[name] = value
        self.node.values = json.dumps(values)
        self.say("", "")
        self.show_method()

    def reset(self) -> None:
        self.node.values = "{}"
        self.show_method()

    def device_chosen(self) -> None:
        self.put("device", self.chosen(self.ui.deviceBox))

    def segments_chosen(self) -> None:
        for name in ("fixedMaskSegment", "movingMaskSegment"):
            self.put(name, self.chosen(getattr(self.ui, f"{name}Box")))

    def convert_to_gray(self) -> None:
        """The luminance of every color picture that is chosen, in its place."""
        try:
            for name in ("fixedVolume", "movingVolume"):
                if getattr(self.node, name) in self.logic.colored(self.choices()):
                    setattr(self.node, name, self.logic.gray(getattr(self.node, name)))
        except InputError as error:
            self.say("error", str(error))

    def copy_citation(self, link=None) -> None:
        slicer.app.clipboard().setText(self.logic.methods.bibtex(self.node.method))
        self.say("done", _("The references were copied as BibTeX."))

    # --------------------------------------------------------------------------------------------------------------- run

    def apply_or_cancel(self) -> None:
        if self.running:
            self.cancel()
        else:
            self.start(self.choices())

    def start(self, choices: Choices) -> None:
        """Start a run; everything that stands in the way is one sentence in the status line."""
        self.placing.stop()
        self.ui.offersWidget.visible = False
        self.ui.logEdit.plainText = ""
        self.say("", "")
        try:
            self.logic.ensure_torch()
            self.show_devices()
            self.run = self.logic.start(choices, self.on_event)
        except InputError as error:
            self.say("error", str(error))
            return
        self.show_running(True)
        self.ui.stageLabel.text = _("Preparing")
        self.panel.wake()

    def cancel(self) -> None:
        self.ui.stageLabel.text = _("Stopping")
        self.run.cancel()
        self.panel.wake()

    def again(self, offer: str) -> None:
        """Run once more as offered after a failure."""
        choices = self.run.choices
        if offer == "cpu":
            self.put("device", "cpu")
            self.start(choices.with_(device="cpu"))
        else:
            self.start(choices.with_(half_resolution=True))

    def not_continued(self) -> str:
        """Why the result that is chosen cannot be the start of a run of the volumes that are chosen, in one sentence; '' where it can."""
        roles = roles_of(self.node.result) if is_record(self.node.result) else {}
        if "linear" not in roles:
            return _("The last result is not in the scene any more; press Apply to register anew.")
        if (roles.get("fixed"), roles.get("moving")) != (self.node.fixedVolume, self.node.movingVolume):
            return _("The last result is one of other volumes; choose these again, or press Apply to register anew.")
        return ""

    def continue_run(self) -> None:
        """The last result becomes the start of a run with the settings that are chosen now."""
        if self.not_continued():
            self.say("error", self.not_continued())
        else:
            self.start(self.choices().with_(start=self.node.result, start_by_node=True))

    def save_transform(self) -> None:
        """Write the whole transform of the chosen result into a file. InputError where that cannot be."""
        from ..batch import save_whole

        roles = roles_of(self.node.result)
        if "linear" not in roles:
            raise InputError(self.not_continued())
        path = qt.QFileDialog.getSaveFileName(self.widget, _("Save the transform"), "transform.h5", "ITK (*.h5 *.tfm)")
        path = with_ending(path, ".h5")
        if not path:
            return
        try:
            save_whole(roles, path)
        except (OSError, RuntimeError):
            raise InputError(f"{path} could not be written; choose a name that ends with .h5 or .tfm in a folder that exists and may be written to") from None
        said, above = _("Saved {path}: it takes points of the fixed to the moving volume.").format(path=path), ", ".join(places_under(self.node.result))
        self.say("done", said + (f" Note: the volumes were under transforms of the scene ({above}), which the file does not hold." if above else ""))

    def to_quality(self) -> None:
        self.panel.open("quality")

    # ------------------------------------------------------------------------------------------------------------ events

    def on_event(self, run, event: dict) -> None:
        """Called by the logic from the panel's timer, on the main thread."""
        kind = event["event"]
        if kind == "progress":
            self.show_progress(event)
        elif kind == "log":
            self.log(", ".join(f"{name} {value:.5g}" for name, value in event["figures"].items()))
        elif kind in ("done", "failed", "cancelled"):
            self.ended(run, event)

    def show_progress(self, event: dict) -> None:
        self.ui.progressBar.value = round(1000 * event["share"])
        parts = [event["text"][:1].upper() + event["text"][1:]]
        if event.get("steps"):
            parts.append(_("iteration {step} of {steps}").format(step=event["step"], steps=event["steps"]))
        if event.get("seconds_left") is not None:
            parts.append(_("{time} left").format(time=duration(event["seconds_left"])))
        self.ui.stageLabel.text = ", ".join(part for part in parts if part)
        if event["text"] != self.stages:
            self.stages = event["text"]
            self.log(event["text"])

    def ended(self, run, event: dict) -> None:
        """Show the sentence of the end, with what can be done next."""
        if run is not self.run:
            return
        self.show_running(False)
        kind = {"done": "done", "failed": "error", "cancelled": "warning"}[event["event"]]
        self.say(kind, event["message"])
        self.log(event["message"])
        for offer, name in OFFERS.items():
            getattr(self.ui, name).visible = offer in event.get("offers", ())
        self.ui.offersWidget.visible = bool(event.get("offers"))
        if event["event"] == "done" and self.node is not None:
            self.node.result = run.main
        self.show_devices()
        self.panel.later.start()

    def log(self, line: str) -> None:
        if line:
            self.ui.logEdit.appendPlainText(line)

    def show_running(self, running: bool) -> None:
        """Apply or Cancel, with or without the progress."""
        self.ui.applyButton.text = _("Cancel") if running else _("Apply")
        self.ui.progressWidget.visible = running
        self.ui.progressBar.value = 0
        for name in ("inputsBox", "guidesBox", "methodBox", "advancedBox", "outputsBox"):
            getattr(self.ui, name).enabled = not running
        if self.node is not None:
            self.show_readiness()

    def show_devices(self) -> None:
        """The device line, from the running worker where there is one and from the package's metadata otherwise."""
        self.ui.deviceLabel.text = self.logic.device_line()
        if self.node is not None:
            self.show_device_choice()

    def show_device_choice(self) -> None:
        """The devices, and the one that the scene asks for where this computer does not have it, so that another one can be chosen instead."""
        known, chosen = self.logic.devices(), self.node.device
        if chosen not in dict(known):
            known.append((chosen, _("{device} (not on this computer)").format(device=chosen) if self.logic.hello else chosen))
        self.fill(self.ui.deviceBox, known, chosen)

    def left(self) -> None:
        self.placing.stop()
        self.soon.stop()

    def tick(self) -> bool:
        if self.logic.hello is not self.hello:
            self.hello = self.logic.hello
            self.show_devices()
        return self.running

    def close(self) -> None:
        self.placing.stop()
        self.soon.stop()
        self.placing.removeObservers()
        self.show_running(False)

    def scene_closed(self) -> None:
        self.ui.offersWidget.visible = self.ui.nextWidget.visible = False


def about(entry: dict) -> str:
    """Summary, assumptions and failure modes of a method for a tooltip."""
    parts = [f"<p>{entry['summary']}</p>"]
    for title, key in ((_("Assumes"), "assumptions"), (_("Fails with"), "failure_modes")):
        if entry.get(key):
            parts.append(f"<p>{title}:</p><ul>" + "".join(f"<li>{text}</li>" for text in entry[key]) + "</ul>")
    return "".join(parts)
