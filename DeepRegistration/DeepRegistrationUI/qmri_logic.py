"""QMRIRegisterLogic: slices into a volume and the motion of repeated scans, from the panel, the Python console and scripts.

    logic = QMRIRegisterLogic()
    found = logic.register(sliceNodes, volumeNode, preset="motion")      # or the path of a folder of DICOM files instead of nodes
    if found["registered"]: print(found["nodes"]["set"].GetName())
    found = logic.motion(scanNodes)                                      # or a sequence node
"""

from __future__ import annotations

from pathlib import Path

from . import torchgate
from .jobrun import JobRun
from .logic import DeepRegistrationLogic
from .methods import Methods
from .qmri_state import METHOD, MOTION, QMRIRegisterParameterNode


class QMRIRegisterLogic(DeepRegistrationLogic):
    """See the file's docstring; worker, ``tick`` and ``shutdown`` are those of DeepRegistrationLogic."""

    def __init__(self, parent=None, runner=None):
        super().__init__(parent, runner)
        self.moduleName, self.methods, self.motion_methods = "QMRIRegister", Methods(problem="Slices"), Methods(problem="Series")

    def getParameterNode(self) -> QMRIRegisterParameterNode:
        """The choices of the panel, kept in the scene."""
        return QMRIRegisterParameterNode(super(DeepRegistrationLogic, self).getParameterNode())

    def register(self, slices, volume, preset: str = "default", values: dict | None = None, *, thickness: float = 0.0, segments: bool = False,
                 placement: dict | None = None, axis=None, degrees: float = 0.0, pixel: float = 0.0, no_value=None,
                 emulated: bool = True, map: bool = False, maps: dict[str, list] | None = None, surface=None, surface_mm: float = 2.0,
                 device: str = "auto", seed: int = 0, threads: int = 0, name: str = "") -> dict:
        """Find where ``slices`` (volume nodes of one slice, or the path of a folder of DICOM files) lie in the ``volume`` node.

        preset: of the method 'qmri'; values: parameters that differ from it. thickness: mm, 0 for that of the headers. segments: start from the bone
        that segmentations of the slices and of the volume show. placement: {'plane', 'flips'} as the job 'qmri' takes it. axis: a markups plane (the
        localizer) or line; with ``degrees`` between slices they are placed about it, whatever their headers say, their pixels ``pixel`` mm large where that
        is given. no_value: pixels of this number (often 0), or of several, have no value. emulated, map: what else
        comes into the scene; maps: quantity -> a node or None a slice, on its pixels, that go where the slices go (see ``qmri_maps.maps_beside``);
        surface: a segmentation node of the volume: a table of its segments, and its surface with the values of pixels at most ``surface_mm`` mm away;
        name: of the folder. Returns the job's result (see commands/jobs.py) with 'nodes', role -> node: empty, and the scene
        unchanged, where 'registered' is False; 'reasons' says why. Raises InputError, RegistrationError or Cancelled with one sentence.
        """
        from .qmri_maps import axis_request, maps_request
        from .qmri_scene import deliver_slices, slices_request, structures_request

        self.methods.split(f"{METHOD}:{preset}")
        nodes, maps = None if isinstance(slices, (str, Path)) else list(slices), dict(maps or {})
        request = slices_request(slices if nodes is None else nodes, volume, segments)
        request |= {"method": f"{METHOD}:{preset}", "values": dict(values or {}), "thickness": thickness, "map": map, "placement": placement,
                    "no_value": no_value, **axis_request(axis, degrees, pixel), **maps_request(nodes, maps), **structures_request(surface, volume, surface_mm),
                    "device": device, "seed": seed, "threads": threads}
        result = self._done(request)
        made = deliver_slices(result, nodes, volume, name, emulated, maps.values()) if result["registered"] else {}
        return {**result, "nodes": made}

    def ensure_for_bones(self) -> None:
        """PyTorch, and the package that learns bones. InputError says what stands in the way."""
        self.ensure_torch()
        if self.needs_torch:
            torchgate.ensure_package(torchgate.SCIKIT_LEARN, "QMRIRegister", "Learning bones from strokes")

    def bones(self, slices, seed: int = 0) -> list:
        """Learn the bone on all ``slices`` (nodes) from what was drawn by hand on some of them: a segmentation whose first segment is bone and whose
        second is anything else, or one whole drawing. Returns a segmentation node a slice, which ``register(segments=True)`` takes. Raises as
        ``register``."""
        from .qmri_scene import bones_request, deliver_bones

        self.ensure_for_bones()
        return deliver_bones(self._done({**bones_request(slices), "seed": seed}), slices)

    def motion(self, scans, preset: str = "default", values: dict | None = None, *, tissues=(), transforms: bool = False, device: str = "auto",
               seed: int = 0, threads: int = 0, name: str = "Motion") -> dict:
        """Find how repeated ``scans`` moved: volume nodes on one lattice, one volume with a scan a component, or a sequence of volumes.

        preset: of the method 'rician-motion'. tissues: maps in the space of the scans, given like these, in the order of the method's
        intensities. Returns the job's result (see commands/jobs.py) with 'nodes', role -> node. Raises as ``register``.
        """
        from .qmri_scene import deliver_motion, scans_request

        self.motion_methods.split(f"{MOTION}:{preset}")
        request = scans_request(scans, tissues)
        request |= {"method": f"{MOTION}:{preset}", "values": dict(values or {}), "device": device, "seed": seed, "threads": threads}
        result = self._done(request)
        return {**result, "nodes": deliver_motion(result, name, transforms)}

    def _done(self, request: dict) -> dict:
        """The result of a job, waited for."""
        self.ensure_torch()
        work = JobRun(self.runner, request)
        self.work.append(work)
        return self._wait(work).result
