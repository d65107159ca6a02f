"""Train: a network from the user's images or from synthetic pairs, with live curves and pictures; stopped and gone on with at will."""

from __future__ import annotations

import json

import qt
import slicer
from slicer.i18n import tr as _

from DeepRegistrationLib.errors import InputError

from ..curves import drawn
from ..training import Recipes, Training, images_of, is_done, is_run, recipe_of
from .base import Page
from .checklist import CheckList
from .parameters import ParameterForm, changed_values

PICTURE_WIDTH, CURVES_HEIGHT = 340, 150


class TrainPage(Page):
    """See the file's first line. ``work`` is the run that runs or ran last."""

    UI = "DeepRegistrationTrain.ui"
    STATUS = "train"

    def __init__(self, panel, layout):
        super().__init__(panel, layout)
        self.work, self.recipes, self.shown = None, Recipes(), None
        self.form = ParameterForm(self.ui.trainParametersWidget, self.parameter_changed, lambda text: self.say("error", text))
        for name, chosen in (("recipeBox", self.recipe_chosen), ("sourceBox", lambda: self.put("trainSource", self.chosen(self.ui.sourceBox))),
                             ("trainDimBox", lambda: self.put("trainDim", self.chosen(self.ui.trainDimBox)))):
            getattr(self.ui, name).connect("currentIndexChanged(int)", lambda index, chosen=chosen: None if self.filling else chosen())
        self.ui.trainDataEdit.connect("currentPathChanged(QString)", lambda path: self.put("trainData", path or ""))
        self.ui.trainFolderEdit.connect("currentPathChanged(QString)", lambda path: self.put("trainFolder", path or ""))
        self.list = CheckList(self.ui.trainNodesList, self.show_readiness)
        self.buttons({"trainButton": self.train_or_stop, "trainResetButton": self.reset, "trainUseButton": self.use})
        self.show_running(False)
        for label in (self.ui.trainCurvesLabel, self.ui.trainPictureLabel, self.ui.trainUseButton):
            label.visible = False

    def guarded(self, act) -> None:
        """Do what a button says; what stands in the way becomes one sentence."""
        try:
            self.say("", "")
            act()
        except InputError as error:
            self.say("error", str(error))
        self.refresh()

    # -------------------------------------------------------------------------------------------------------- up to date

    @property
    def running(self) -> bool:
        return self.work is not None and self.work.running

    @property
    def recipe(self) -> dict:
        return self.recipes.entries.get(self.node.trainRecipe) or next(iter(self.recipes.entries.values()))

    def refresh(self) -> None:
        if self.node is None:
            return
        recipe = self.recipe
        self.fill(self.ui.recipeBox, [(name, entry["title"]) for name, entry in self.recipes.entries.items()], recipe["id"])
        self.ui.recipeBox.toolTip = recipe["summary"]
        sources = [("folder", _("A folder or a list")), ("scene", _("Volumes of the scene"))]
        self.fill(self.ui.sourceBox, sources, self.node.trainSource)
        self.fill(self.ui.trainDimBox, [(str(dim), _("{dim}D").format(dim=dim)) for dim in recipe["dims"]], self.node.trainDim)
        self.show_form(recipe)
        self.show_paths(((self.ui.trainDataEdit, "trainData"), (self.ui.trainFolderEdit, "trainFolder")))
        self.list.show(volumes(slicer.mrmlScene))
        self.show_readiness()

    def show_form(self, recipe: dict) -> None:
        """What the recipe asks for, and its parameters."""
        scene = self.node.trainSource == "scene"
        for name, shown in (("sourceBox", recipe["needs_data"]), ("trainDataEdit", recipe["needs_data"] and not scene),
                            ("trainDimBox", not recipe["needs_data"])):
            getattr(self.ui, name).visible = getattr(self.ui, f"{name}Label").visible = shown
        self.ui.trainNodesList.visible = recipe["needs_data"] and scene
        self.ui.trainAdvancedBox.visible = bool(recipe["parameters"])
        self.form.build(recipe["parameters"])
        usual = {p["name"]: p["default"] for p in recipe["parameters"]}
        self.form.show(usual | json.loads(self.node.trainValues or "{}"), usual)
        self.ui.trainResetButton.enabled = self.node.trainValues not in ("", "{}")

    def missing(self) -> str:
        """What has to be chosen before a run; '' where nothing is missing."""
        if is_run(self.node.trainFolder):
            return _("The run in this folder is done; choose another folder for a new one.") if is_done(self.node.trainFolder) else ""
        if self.recipe["needs_data"] and self.node.trainSource == "scene" and len(self.list.checked()) < 2:
            return _("Check at least two volumes.")
        if self.recipe["needs_data"] and self.node.trainSource != "scene" and not self.node.trainData:
            return _("Choose a folder with images or a list.")
        return "" if self.node.trainFolder else _("Choose a folder for the run.")

    def show_readiness(self) -> None:
        if self.node is None:
            return
        missing, goes_on = self.missing(), is_run(self.node.trainFolder)
        stopping = self.running and self.work.state == "stopping"
        self.ui.trainButton.text = _("Stop") if self.running else _("Go on") if goes_on else _("Train")
        self.ui.trainButton.enabled = (self.running and not stopping) or (not self.running and not missing)
        self.ui.trainButton.toolTip = missing or (_("Stop after this step; a checkpoint is written") if self.running else
                                                  _("Go on with the run in the folder") if goes_on else _("Make the network"))
        self.ui.trainMissingLabel.text = missing
        self.ui.trainMissingLabel.visible = bool(missing) and not self.running
        self.ui.trainForm.enabled = self.ui.trainNodesList.enabled = self.ui.trainAdvancedBox.enabled = not self.running

    # --------------------------------------------------------------------------------------------------------- choices

    def recipe_chosen(self) -> None:
        """Another recipe: its own values, none of the old ones."""
        self.node.trainValues, self.node.trainRecipe = "{}", self.chosen(self.ui.recipeBox)
        self.refresh()

    def parameter_changed(self, name: str, value) -> None:
        """Keep what differs from the recipe's values."""
        usual = {p["name"]: p["default"] for p in self.recipe["parameters"]}
        self.node.trainValues = changed_values(self.node.trainValues, usual, name, value)

    def reset(self) -> None:
        self.node.trainValues = "{}"

    # ------------------------------------------------------------------------------------------------------------- run

    def train_or_stop(self) -> None:
        if self.running:
            self.work.cancel()
            self.ui.trainStageLabel.text = _("Stopping after this step")
            return
        self.logic.ensure_torch()
        request = self.request()
        runner, own = self.runner()
        self.work = Training(runner, request, self.on_event, own)
        self.work.start()
        self.logic.work.append(self.work)
        self.ui.trainUseButton.visible = False
        self.show_running(True)
        self.show_curves()
        self.show_picture()
        self.panel.wake()

    def runner(self):
        """(a worker of the run's own, so that registrations need not wait for it; True), or the logic's where that works in this process."""
        if not self.logic.needs_torch:
            return self.logic.runner, False
        from ..job import WorkerRunner

        return WorkerRunner(), True

    def request(self) -> dict:
        """The parameter node as a request. InputError where volumes cannot be read."""
        node, out = self.node, self.node.trainFolder
        common = {"out": out, "device": node.device, "threads": node.threads}
        if is_run(out):
            return {**common, "recipe": recipe_of(out), "resume": True}
        request = {**common, "recipe": self.recipe["id"], "values": json.loads(node.trainValues or "{}"), "steps": node.trainSteps, "seed": node.seed}
        if not self.recipe["needs_data"]:
            return {**request, "dim": int(node.trainDim)}
        if node.trainSource != "scene":
            return {**request, "data": node.trainData}
        return {**request, **images_of(self.list.checked(), slicer.util.getNodesByClass("vtkMRMLSegmentationNode"))}

    def on_event(self, work, event: dict) -> None:
        """Called from the panel's timer, on the main thread."""
        kind = event["event"]
        if kind == "progress":
            self.show_progress(event, _("step {step}").format(step=work.step) if work.step else "", speak=work.state == "running")
            self.show_curves()
        elif kind == "log" and "validation_score" in event:
            self.show_curves()
            self.show_picture()
        elif kind in ("done", "failed", "cancelled"):
            self.show_running(False)
            self.show_curves()
            self.say({"done": "done", "failed": "error", "cancelled": "warning"}[kind], work.message)
            self.ui.trainUseButton.visible = work.weights() is not None
            self.show_readiness()

    def show_curves(self) -> None:
        costs, scores = self.work.costs.points, self.work.scores.points
        texts = [_("cost {value:.4g}").format(value=costs[-1][1]) if costs else _("cost"),
                 _("validation {value:.4g}").format(value=scores[-1][1]) if scores else _("validation")]
        self.ui.trainCurvesLabel.visible = bool(costs)
        if costs:
            self.ui.trainCurvesLabel.pixmap = drawn(PICTURE_WIDTH, CURVES_HEIGHT, (costs, scores), texts)

    def show_picture(self) -> None:
        path = self.work.picture()
        if path is not None and path != self.shown:
            self.ui.trainPictureLabel.pixmap = qt.QPixmap(str(path)).scaledToWidth(PICTURE_WIDTH, qt.Qt.SmoothTransformation)
        self.shown = path
        self.ui.trainPictureLabel.visible = path is not None

    def show_running(self, running: bool) -> None:
        self.ui.trainProgressBar.visible = self.ui.trainStageLabel.visible = running
        self.ui.trainProgressBar.value = 0
        if running:
            self.ui.trainStageLabel.text = _("Preparing")
        self.show_readiness()

    def use(self) -> None:
        """Choose the method that uses these weights, with these weights, under Register. InputError where this version has none."""
        method = self.recipes.entries[self.work.request["recipe"]]["method"]
        entry, _preset = self.logic.methods.split(method)
        if "weights" not in {p["name"] for p in entry["parameters"]}:
            raise InputError(f"the method '{entry['title']}' takes no weights of your own in this version; use the command line")
        self.node.method, self.node.values = f"{method}:default", json.dumps({"weights": str(self.work.weights())})
        self.panel.open("register")

    def tick(self) -> bool:
        return self.running

    def close(self) -> None:
        self.list.clear()
        self.show_running(False)


def volumes(scene) -> list:
    """The visible scalar volumes of a scene that are no label maps."""
    found = scene.GetNodesByClass("vtkMRMLScalarVolumeNode")
    found.UnRegister(None)
    nodes = [found.GetItemAsObject(k) for k in range(found.GetNumberOfItems())]
    return [node for node in nodes if not node.GetHideFromEditors() and not node.IsA("vtkMRMLLabelMapVolumeNode")]
