"""DeepRegistrationLogic: register, transfer, evaluate and batch on nodes of the scene, from the panel, the Python console and scripts.

    logic = DeepRegistrationLogic()
    nodes = logic.register(fixedNode, movingNode, preset="instance-optimisation:default")
    logic.transfer([segmentation, landmarks], nodes)
    rows = logic.evaluate(nodes, fixedStructures=segmentation, movingStructures=otherSegmentation)

No function needs a main window. The work is done in a process of its own that starts with the first request and stays warm;
``shutdown`` ends it.
"""

from __future__ import annotations

import time

import slicer
from slicer.i18n import tr as _
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleLogic

from DeepRegistrationLib.errors import Cancelled, InputError, RegistrationError

from . import records, torchgate
from .evaluation import Evaluation
from .methods import Methods
from .outputs import gray_node
from .registration import ALL_OUTPUTS, Choices, Registration, colored, missing
from .state import DEFAULT_METHOD, DeepRegistrationParameterNode

PAUSE = 0.005
"""Seconds between two ticks of a call that waits."""


class DeepRegistrationLogic(ScriptedLoadableModuleLogic):
    """See the file's docstring. ``runner`` may be replaced before the first run, for tests and for jobs in this process."""

    def __init__(self, parent=None, runner=None):
        ScriptedLoadableModuleLogic.__init__(self, parent)
        self.moduleName = "DeepRegistration"
        self.methods = Methods()
        self._runner, self.work = runner, []
        self._torch_line, self._asked, self._torch_is_there = None, False, False

    @property
    def runner(self):
        """The worker process, made at first use."""
        if self._runner is None:
            from .job import WorkerRunner

            self._runner = WorkerRunner()
        return self._runner

    @property
    def needs_torch(self) -> bool:
        """True where runs happen in a process of this Python, which must have PyTorch."""
        from .job import WorkerRunner

        return isinstance(self.runner, WorkerRunner)

    def ensure_torch(self) -> None:
        """Make PyTorch available to the worker, with a question to the user where it is not there; optional packages are asked for once.
        InputError says what stands in the way."""
        if self.needs_torch and not self._torch_is_there:
            others, self._asked = not self._asked, True
            torchgate.ensure(others=others)
            self._torch_is_there = True

    def warm_up(self) -> bool:
        """Start the worker, so that the first run need not wait for it; True where one starts. Only where PyTorch is there already, and without a
        word where it cannot be started: Apply says why."""
        if not self.needs_torch or self.runner.process_id is not None or not torchgate.state().enough:
            return False
        try:
            self.runner.warm_up()
        except InputError:
            return False
        return True

    @property
    def hello(self) -> dict | None:
        """What the worker has said of itself, None where none runs."""
        return None if self._runner is None else self._runner.hello

    def getParameterNode(self) -> DeepRegistrationParameterNode:
        """The choices of the panel, kept in the scene."""
        return DeepRegistrationParameterNode(super().getParameterNode())

    # -------------------------------------------------------------------------------------------------- without waiting

    def missing(self, choices: Choices) -> str:
        """What has to be chosen before a run, in one sentence; '' where nothing is missing."""
        return missing(choices)

    def colored(self, choices: Choices) -> list:
        """The chosen volume nodes that are color pictures; ``gray`` makes what can be registered."""
        return colored(choices)

    def gray(self, node):
        """A new scalar volume node with the luminance of a color volume node, at its place. InputError where it is no color picture."""
        return gray_node(node)

    def start(self, choices: Choices, listener=None) -> Registration:
        """Start a registration; ``tick`` drives it and ``listener(registration, event)`` hears of it. InputError says what is wrong."""
        run = Registration(choices, self.runner, listener)
        run.start()
        self.work.append(run)
        return run

    def start_evaluation(self, main, fixed_labels=None, moving_labels=None, fixed_points=None, moving_points=None, on_end=None) -> Evaluation:
        """Start to evaluate the registration with the main node ``main``; ``on_end(evaluation, event)`` is called once."""
        work = Evaluation(self.runner, main, on_end)
        work.evaluate(fixed_labels, moving_labels, fixed_points, moving_points)
        self.work.append(work)
        return work

    def start_report(self, main, path, on_end=None) -> Evaluation:
        """Start to write the HTML report of a registration."""
        work = Evaluation(self.runner, main, on_end)
        work.report(path)
        self.work.append(work)
        return work

    def tick(self) -> bool:
        """A slice of work of at most a few hundredths of a second; True while anything runs."""
        if self._runner is None:
            return False
        self._runner.tick()
        for work in list(self.work):
            work.tick()
        self.work = [work for work in self.work if work.running]
        return bool(self.work) or self._runner.busy or self._runner.warming

    def cancel_all(self, why: str) -> None:
        """Stop everything that runs at once, without touching the scene: it is closing, or the module goes away."""
        for work in self.work:
            work.abandon(f"Stopped because {why}.")
        self.work = []
        if self._runner is not None:
            self._runner.tick()

    def shutdown(self) -> None:
        """Stop everything and end the worker; the next run starts a new one."""
        self.cancel_all("the module was closed")
        if self._runner is not None:
            self._runner.stop()

    # ------------------------------------------------------------------------------------------------------------ device

    def device_line(self) -> str:
        """'PyTorch 2.6.0 (CUDA 12.6), RTX 4070, 11.2 GB free' from the worker where it runs, else what the package's metadata say."""
        if not self.hello:
            if self._torch_line is None or "Apply" in self._torch_line:
                self._torch_line = torchgate.state().line()
            return self._torch_line
        names = [(_("CPU") if d["name"] == "cpu" else d["title"], d.get("free_mib")) for d in self.hello["devices"]]
        devices = [_("{device}, {free:.1f} GB free").format(device=name, free=free / 1024) if free else name for name, free in names]
        return f"PyTorch {self.hello['versions']['torch']}; " + "; ".join(devices)

    def devices(self) -> list[tuple[str, str]]:
        """(name, title) of the devices that can be chosen."""
        known = [("auto", _("Automatic")), ("cpu", _("CPU"))]
        if self.hello:
            known += [(d["name"], d["title"]) for d in self.hello["devices"] if d["name"] not in ("auto", "cpu")]
        return known

    # ----------------------------------------------------------------------------------------------------------- waiting

    def register(self, fixedNode, movingNode, preset: str = DEFAULT_METHOD, values: dict | None = None, *, fixedMask=None, movingMask=None,
                 start="", fixedLandmarks=None, movingLandmarks=None, fixedStructures=None, movingStructures=None, device: str = "auto",
                 seed: int = 0, threads: int = 0, outputs=ALL_OUTPUTS, name: str = "", live: bool = False, wait: bool = True, listener=None):
        """Register the volume node ``movingNode`` to ``fixedNode``.

        preset: 'method:preset', see ``python run.py list``; values: parameters that differ from the preset, by name.
        fixedMask, movingMask: segmentation nodes, or volume nodes that are above 0 where voxels count. start: '' (the method's own), 'header', 'center',
        'moments', 'global', 'csngf', 'affine', 'landmarks' (the rigid fit of the pairs), a transform node that carries the moving volume, or the result
        of an earlier run to continue from.
        fixedLandmarks and movingLandmarks: markups nodes whose points correspond by their names or in order; fixedStructures and movingStructures:
        segmentations; both guide the registration. outputs: of 'inverse', 'linearPart', 'warped', 'logJacobian', 'folds', 'metrics',
        'lossChart', 'iterations'; name: of the folder and of the outputs. live: show it in the views.

        Returns role -> node ('linear', 'deformation', 'inverse', 'warped', 'log_jacobian', 'folds', 'metrics', ...); with ``wait`` False
        the Registration itself, which goes on with ``tick``. Raises InputError, RegistrationError or Cancelled with one sentence.
        """
        choices = Choices(
            fixed=fixedNode, moving=movingNode, fixed_mask=fixedMask, moving_mask=movingMask, start=self._start(start),
            fixed_points=fixedLandmarks, moving_points=movingLandmarks, fixed_labels=fixedStructures, moving_labels=movingStructures,
            method=preset, values=dict(values or {}), device=device, seed=seed, threads=threads, live=live,
            outputs=frozenset(outputs), prefix=name)
        self.methods.split(preset)
        self.ensure_torch()
        run = self.start(choices, listener)
        return self._wait(run).nodes if wait else run

    def transfer(self, nodes, registration, direction: str = "moving_to_fixed", reference=None, mode: str = "copy") -> list:
        """Carry nodes (segmentations, label maps, markups, models, volumes) through a registration: what ``register`` returned, or its main
        transform node. ``direction`` 'moving_to_fixed' or 'fixed_to_moving'; ``mode`` 'copy' or 'live'. Returns the nodes on the other side."""
        from .transfer import transfer

        return transfer(nodes, self.roles(registration), direction, reference, mode, self.runner)

    def evaluate(self, registration, fixedStructures=None, movingStructures=None, fixedLandmarks=None, movingLandmarks=None) -> list[dict]:
        """Figures of a registration as rows {'name', 'value', 'unit', 'structure'}: overlap and surface distance of structures, distance
        of landmarks before and after, folds, spread of the log-Jacobian, inverse consistency."""
        work = self.start_evaluation(self.main(registration), fixedStructures, movingStructures, fixedLandmarks, movingLandmarks)
        return self._wait(work).rows

    def batch(self, pairs, folder=None, toScene: bool = False, listener=None, **settings) -> list[dict]:
        """Register many pairs one after the other; one that fails does not stop the rest.

        pairs: (fixedNode, movingNode) tuples, or the path of a manifest (see the command 'batch'). settings: as for ``register``.
        folder: one folder a pair; pairs of files that are done there are not done again, pairs of nodes leave results of others alone. Returns one
        dict a pair: id (the name of its folder), status, seconds, message.
        """
        from .batch import rows_of

        return self._batch(rows_of(pairs), folder, toScene, listener, settings)

    def _batch(self, rows: list[dict], folder, to_scene: bool, listener, settings: dict) -> list[dict]:
        from .batch import Batch

        template = Choices(method=settings.pop("preset", DEFAULT_METHOD), values=dict(settings.pop("values", None) or {}),
                           outputs=frozenset(settings.pop("outputs", ALL_OUTPUTS)), **settings)
        work = Batch(self, rows, template, folder, to_scene, listener)
        work.start()
        self.work.append(work)
        self._wait(work, raise_failures=False)
        return work.rows

    def registerSequence(self, sequenceNode, reference=0, folder=None, listener=None, **settings) -> dict:
        """Register every frame of a sequence of volumes to one ``reference``: a volume node, or the number of a frame from 0.

        settings: as for ``register``; folder: also write the results of each frame there. Returns 'registered' and 'transforms', sequence nodes
        with the index of ``sequenceNode``, 'browser', and 'rows', one dict a frame: status, seconds, message. A frame that fails is left out.
        """
        from . import frames
        from .batch import rows_of_sequence

        rows = self._batch(rows_of_sequence(sequenceNode, reference, []), folder, False, listener, settings)
        made = frames.sequences_of(rows[0]["group"])
        return {**made, "browser": frames.browse(rows[0]["group"], made) if made else None, "rows": rows}

    def main(self, registration):
        """The main transform node of what ``register`` returned, or of a main node itself. InputError for anything else."""
        node = (registration.get("deformation") or registration.get("linear")) if isinstance(registration, dict) else registration
        if not records.is_record(node):
            raise InputError("a registration is needed: what register() returned, or the transform node of one")
        return node

    def roles(self, registration) -> dict:
        return records.roles_of(self.main(registration))

    def _start(self, start):
        """A start for ``Choices``: a name, a node or the main node of an earlier result."""
        return self.main(start) if isinstance(start, dict) else start

    def _wait(self, work, raise_failures: bool = True):
        """Tick until ``work`` has ended, with the application alive where there is one."""
        application = getattr(slicer, "app", None)
        while work.running:
            self.tick()
            if application is not None:
                application.processEvents()
            time.sleep(PAUSE)
        if raise_failures and work.state == "cancelled":
            raise Cancelled(work.message)
        if raise_failures and work.state == "failed":
            raise (InputError if work.kind == "input" else RegistrationError)(work.message)
        return work
