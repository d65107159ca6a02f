"""One run from the nodes of the scene to the nodes of its result: check, upload, live view, delivery. The panel, scripts and the
batch all go this way.

A ``Registration`` is driven by ``tick``, which works for a few hundredths of a second, so nothing here waits. All events go to
one listener, the last one is always 'done', 'failed' or 'cancelled' with one sentence.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from DeepRegistrationLib.commands.output import remark_on
from DeepRegistrationLib.errors import InputError

from . import mrml, outputs, records
from .landmark_start import rigid_fit
from .live import LiveView, lattice_of_previews, preview_request
from .sentences import duration, listed
from .steps import advance

MADE = {"linear": "transform", "inverse": "inverse", "linear_part": "linear part", "warped": "warped volume", "log_jacobian": "log-Jacobian",
        "folds": "fold map", "metrics": "metrics table", "chart": "loss chart", "browser": "iterations"}
WANTED = {"inverse": "inverse", "warped": "warped", "logJacobian": "log_jacobian", "folds": "folds"}
LANDMARKS = "landmarks"
"""The start from the pairs of ``fixed_points`` and ``moving_points``."""
STOPPED = "The registration was stopped; the scene is as it was before."
ALL_OUTPUTS = frozenset(("inverse", "linearPart", "warped", "logJacobian", "folds", "metrics", "lossChart"))


@dataclass(frozen=True)
class Choices:
    """A request in nodes and plain values; see ``DeepRegistrationLogic.register`` for their meaning."""

    fixed: object = None
    moving: object = None
    fixed_mask: object = None
    moving_mask: object = None
    fixed_mask_segment: str = ""
    moving_mask_segment: str = ""
    start: object = ""
    start_by_node: bool = False
    fixed_points: object = None
    moving_points: object = None
    fixed_labels: object = None
    moving_labels: object = None
    method: str = "instance-optimisation:default"
    values: dict = field(default_factory=dict)
    device: str = "auto"
    seed: int = 0
    threads: int = 0
    live: bool = False
    outputs: frozenset = ALL_OUTPUTS
    prefix: str = ""
    half_resolution: bool = False

    def with_(self, **changes) -> "Choices":
        return replace(self, **changes)

    @property
    def name(self) -> str:
        """What the outputs are called."""
        if self.prefix.strip():
            return self.prefix.strip()
        shown = [(node.GetName(), records.shown_frame(node)) for node in (self.moving, self.fixed)]
        return " to ".join(name if frame is None else f"{name} frame {frame['number']}" for name, frame in shown)

    def nodes(self) -> list:
        """All nodes that the run needs until it ends."""
        return [node for node in (self.fixed, self.moving) if node is not None]


def missing(choices: Choices) -> str:
    """What has to be chosen or mended before Apply, in one sentence; '' where nothing is missing."""
    fixed, moving = choices.fixed, choices.moving
    if fixed is None or moving is None:
        which = "a fixed and a moving volume" if fixed is moving else "a fixed volume" if fixed is None else "a moving volume"
        return f"Choose {which}."
    if fixed is moving:
        return f"'{fixed.GetName()}' is both the fixed and the moving volume; choose two different volumes."
    for node in (fixed, moving):
        if node.GetImageData() is None or node.GetImageData().GetNumberOfPoints() == 0:
            return f"'{node.GetName()}' holds no voxels; load an image into it or choose another volume."
    if colored(choices):
        return outputs.color_sentence(colored(choices)[0])
    if choices.start_by_node and choices.start is None:
        return "Choose the transform to start from, or another start."
    if choices.start == LANDMARKS and choices.fixed_points is None and choices.moving_points is None:
        return "Choose the landmarks of both volumes to start from, or another start."
    return _misplaced(choices) or _missing_guides(choices)


def colored(choices: Choices) -> list:
    """The chosen volumes that are color pictures."""
    return [node for node in choices.nodes() if mrml.is_color(node)]


def _misplaced(choices: Choices) -> str:
    """What is wrong with where the volumes are: their transforms, a slice against a volume, a start that is there already."""
    try:
        outputs.planes_of(choices.fixed, choices.moving)
    except InputError as error:
        return f"{error}."
    start = None if isinstance(choices.start, str) else choices.start
    start = records.start_node(start) if records.is_record(start) else start
    if mrml.is_carried(choices.moving, (start,)):
        return (f"'{choices.moving.GetName()}' is under '{start.GetName()}' already, which would count twice as the start too; take the volume out of "
                "this transform, or choose another start.")
    return ""


def _missing_guides(choices: Choices) -> str:
    """Guides come in pairs."""
    for first, second, what in ((choices.fixed_points, choices.moving_points, "landmarks"),
                                (choices.fixed_labels, choices.moving_labels, "structures")):
        if (first is None) != (second is None):
            return f"Choose the {'fixed' if first is None else 'moving'} {what} too, or none at all."
        if first is not None and first is second:
            return f"'{first.GetName()}' is chosen as the {what} of both volumes; choose those of each, or none at all."
    if choices.fixed_points is not None:
        counts = [node.GetNumberOfDefinedControlPoints() for node in (choices.fixed_points, choices.moving_points)]
        if counts == [0, 0]:
            return "The chosen lists of landmarks hold no placed point; place some in both, or choose none."
        if counts[0] != counts[1]:
            return f"There are {counts[0]} fixed and {counts[1]} moving landmarks; place as many in both lists."
    return ""


class Registration:
    """One run of ``choices`` on ``runner``; ``listener(self, event)`` hears of everything. ``nodes`` role -> node when it is done; ``name`` of its
    folder, which no other result has."""

    def __init__(self, choices: Choices, runner, listener=None):
        self.choices, self.runner, self.listener = choices, runner, listener
        self.state, self.job, self.live, self.reading, self.delivery = "new", None, None, None, None
        self.nodes, self.main, self.message, self.kind, self.offers, self.figures = {}, None, "", "", (), {}
        self.name, self.grids, self.above, self.frames, self.remarks = "", (), ((), ()), (), []
        self.began = time.perf_counter()

    @property
    def running(self) -> bool:
        return self.state in ("reading", "running", "delivering")

    def start(self) -> None:
        """Check the request and hand it to the worker; masks, structures and a start are read by ``tick`` before that. InputError where it cannot
        be run; nothing has changed then."""
        sentence = missing(self.choices)
        if sentence:
            raise InputError(sentence)
        self.name = outputs.free_name(self.choices.fixed.GetScene(), self.choices.name)
        self.reading, self.state = self._request(), "reading"
        try:
            self._read(0.0)
        except (InputError, OSError) as error:
            self.state = "failed"
            raise InputError(str(error)) from error

    def _read(self, *seconds: float) -> None:
        """Go on with the request, and submit it when it is complete."""
        ended, request = advance(self.reading, *seconds)
        if ended:
            self.job = self.runner.submit(request, self._event)
            self.state = "running"

    @property
    def _watched(self) -> bool:
        return self.choices.live or "iterations" in self.choices.outputs

    def _open_live(self) -> None:
        """Make the live view, where one is wanted: in the first tick, while the worker gets its data, so that Apply reacts at once."""
        if self._watched and self.live is None:
            c = self.choices
            try:
                self.live = LiveView(c.fixed, c.moving, f"{self.name} live", record="iterations" in c.outputs, arrange=c.live)
            except InputError as error:  # a volume was changed since Apply
                self._abort(str(error))

    def _request(self):
        """The request; a generator."""
        c = self.choices
        self.grids, self.above = zip(*((mrml.grid_of(node), mrml.parents_of(node)) for node in (c.fixed, c.moving)))
        self.frames = [records.shown_frame(node) for node in (c.fixed, c.moving)]
        carriers = records.carriers_around(c.fixed, "fixed"), records.carriers_around(c.moving, "moving")
        start = c.start or None
        if start == LANDMARKS:
            start = [rigid_fit(*mrml.paired_points(c.fixed_points, c.moving_points, carriers))]
        elif not isinstance(start, str) and records.is_record(start):
            start = records.start_node(start)
        request = yield from outputs.request_steps(
            c.fixed, c.moving, fixed_mask=c.fixed_mask, moving_mask=c.moving_mask, fixed_mask_segment=c.fixed_mask_segment,
            moving_mask_segment=c.moving_mask_segment, fixed_points=c.fixed_points, moving_points=c.moving_points, fixed_labels=c.fixed_labels,
            moving_labels=c.moving_labels, initial=start, carriers=carriers)
        self.remarks = yield from outputs.remark_steps(request, c.fixed_labels, c.moving_labels, c.fixed_points, c.moving_points)
        wanted = [name for key, name in WANTED.items() if key in c.outputs]
        preview = preview_request(lattice_of_previews(c.fixed)) if self._watched else None
        return {**request, "method": c.method, "values": c.values, "device": c.device, "seed": c.seed, "threads": c.threads, "preview": preview,
                "outputs": wanted} | ({"coarsen": 2.0} if c.half_resolution else {})

    # ------------------------------------------------------------------------------------------------------------ events

    def _event(self, job, event: dict) -> None:
        if not self.running:
            return
        kind = event["event"]
        if kind == "preview":
            self._preview(event)
        elif kind == "done":
            self._close_live()
            self.state = "delivering"
            self.delivery = outputs.deliver_steps(job, self.choices.fixed, self.choices.moving, self.name, self.choices.outputs)
        elif kind == "failed":
            self._end("failed", event["message"], tuple(event.get("offers", ())), event.get("kind", ""))
        elif kind == "cancelled":
            self._end("cancelled", STOPPED)
        else:
            if kind == "log":
                event = {"event": "log", "figures": {name: value for name, value in event.items() if name != "event"}}
                if self.live is not None:
                    self.live.log(event["figures"])
            self._tell(event)

    def _preview(self, event: dict) -> None:
        self._open_live()
        if self.live is not None:
            (self.live.show if self.choices.live else self.live.record)(event)

    def tick(self) -> bool:
        """A slice of work; True while the run goes on."""
        if not self.running:
            return False
        gone = next((node for node in self.choices.nodes() if node.GetScene() is None), None)
        if gone is not None:
            self._abort(f"'{gone.GetName()}' was deleted during the registration, which was stopped; choose another volume.")
            return False
        if self.state != "running":
            self._go_on()
            return self.running
        self._open_live()
        if self.live is not None:
            self.live.tick()
        return self.running

    def _go_on(self) -> None:
        """A slice of reading the request or of the delivery."""
        try:
            if self.state == "reading":
                self._read()
                return
            ended, nodes = advance(self.delivery)
            if ended:
                self.nodes = nodes
                self._finish()
        except InputError as error:
            self._end("failed", str(error), cause="input")
        except (OSError, MemoryError) as error:
            self._end("failed", str(error) or "The memory of this computer does not hold the data; use smaller images or fewer outputs.")

    def _finish(self) -> None:
        """Add what is made here, note what belongs together, and say so."""
        result, seconds = self.job.result, time.perf_counter() - self.began
        self.nodes.update(self._extras())
        self.figures = {"rows": result["metrics"], "method": self.choices.method, "values": self.choices.values, "seconds": round(seconds, 2),
                        "scalars": result["scalars"], "provenance": result["provenance"]}
        self.main = records.remember(self.nodes, self.choices.fixed, self.choices.moving, self.figures, self.grids, self.above, self.frames)
        made = listed([text for role, text in MADE.items() if role in self.nodes])
        remark = "; ".join(filter(None, (remark_on(result["provenance"]), *self.remarks, records.remark_on_places(self.main))))
        self._end("done", f"Registered in {duration(seconds)}; made {made} in the folder '{self.name}'." + (f" Note: {remark}." if remark else ""))

    def _extras(self) -> dict:
        """The linear part as a node of its own, and the iterations, in the folder of the other nodes."""
        scene, made = self.choices.fixed.GetScene(), {}
        if "linearPart" in self.choices.outputs and "deformation" in self.nodes:
            made["linear_part"] = scene.AddNewNodeByClass("vtkMRMLTransformNode", f"{self.name} linear part")
            copy_matrix(self.nodes["linear"], made["linear_part"])
        if self.live is not None and "browser" in self.live.nodes:
            made.update({f"iterations_{role}": self.live.nodes[role] for role in ("linear", "deformation")})
            made |= {"browser": self.live.nodes["browser"], "iterations_volume": self.live.scrub()}
        records.put_beside(self.nodes["linear"], made.values())
        return made

    # --------------------------------------------------------------------------------------------------------------- end

    def cancel(self) -> None:
        """Stop; the listener hears 'cancelled' from the worker's answer or after its end."""
        if self.state == "delivering":
            self._abort("The registration was stopped while its results were put into the scene.", "cancelled")
        elif self.state == "reading":
            self._abort(STOPPED, "cancelled")
        elif self.running:
            self.job.cancel()

    def _abort(self, sentence: str, kind: str = "failed") -> None:
        if self.job is not None:
            self.job.cancel()
        self._end(kind, sentence)

    def abandon(self, sentence: str) -> None:
        """End without touching the scene any more (it is closing)."""
        if self.running:
            self._abort(sentence, "cancelled")

    def _end(self, kind: str, sentence: str, offers: tuple = (), cause: str = "") -> None:
        for steps in (self.reading, self.delivery):
            if steps is not None:
                steps.close()
        if self.job is not None:
            self.job.discard()
        self._close_live()
        if self.live is not None and kind != "done":
            self.live.forget()
        self.state, self.message, self.offers, self.kind = kind, sentence, offers, cause
        self._tell({"event": kind, "message": sentence, "offers": offers})

    def _close_live(self) -> None:
        """The views as before; the chart of the run goes, the one of the result is made by the delivery."""
        if self.live is not None:
            self.live.close()
            if "chart" in self.live.nodes:
                remove_chart(self.live.nodes.pop("chart"), self.live.nodes.pop("table"))

    def _tell(self, event: dict) -> None:
        if self.listener is not None:
            self.listener(self, event)


def copy_matrix(source, target) -> None:
    """The matrix of a linear transform node into another one, by value."""
    import vtk

    matrix = vtk.vtkMatrix4x4()
    source.GetMatrixTransformFromParent(matrix)
    target.SetMatrixTransformFromParent(matrix)


def remove_chart(chart, table) -> None:
    """A chart with its curves and their table."""
    scene = chart.GetScene()
    if scene is None or scene.IsClosing():
        return
    for index in reversed(range(chart.GetNumberOfPlotSeriesNodes())):
        scene.RemoveNode(chart.GetNthPlotSeriesNode(index))
    for node in (chart, table):
        scene.RemoveNode(node)
