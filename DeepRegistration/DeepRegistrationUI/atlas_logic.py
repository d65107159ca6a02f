"""AtlasBuilderLogic: build an atlas, look at the structure of a cohort, find slices in an atlas, from the panel, the Python console and scripts.

    logic = AtlasBuilderLogic()
    nodes = logic.build(volumeNodes, "/data/atlas")              # or the path of a folder or a list instead of nodes
    record = logic.structure("labels", "/data/labels", covariates="/data/people.csv")
    result = logic.identify(atlasNode, "/data/slice.png", "coronal", pixel=0.02)

The work is done in a worker of its own, so that an atlas is built while pairs are registered.
"""

from __future__ import annotations

from pathlib import Path

from DeepRegistrationLib.errors import InputError

from . import torchgate
from .atlas_state import METHOD, AtlasBuilderParameterNode
from .logic import DeepRegistrationLogic
from .methods import Methods


class AtlasBuilderLogic(DeepRegistrationLogic):
    """See the file's docstring; worker, ``tick`` and ``shutdown`` are those of DeepRegistrationLogic."""

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
            torchgate.ensure_package(torchgate.SCIKIT_LEARN, "AtlasBuilder", "The structure of a cohort")

    def build(
        self,
        cohort,
        folder,
        preset: str = "default",
        values: dict | None = None,
        *,
        method: str = METHOD,
        covariate: str = "",
        covariates: str = "",
        workers: int = 1,
        seed: int = 0,
        device: str = "auto",
        transforms: bool = False,
        resume: bool = False,
    ) -> dict:
        """Build an atlas of ``cohort``, volume nodes (segmentations made for them go with them) or the path of a folder or a list, in ``folder``.

        preset: of the ``method``, 'icon-atlas' or 'spatiotemporal-atlas'; values: parameters that differ from it. covariate: for an atlas over age
        the column with the ages, of the list or of the table ``covariates`` (.csv, a subject a row). transforms: also put the map to each subject
        into the scene. resume: go on with the build that was begun in ``folder``. Returns role -> node. Raises InputError,
        RegistrationError or Cancelled with one sentence.
        """
        from .atlas_run import AtlasRun
        from .atlas_scene import deliver_atlas

        self.methods.split(f"{method}:{preset}")
        request = (
            {"out": str(folder), "device": device, "resume": True}
            if resume
            else {
                "out": str(folder),
                "device": device,
                "method": f"{method}:{preset}",
                "values": dict(values or {}),
                "covariate": covariate,
                "covariates": str(covariates),
                "workers": workers,
                "seed": seed,
                **self._cohort(cohort),
            }
        )
        self.ensure_torch()
        work = AtlasRun(self.runner, request)
        work.start()
        self.work.append(work)
        self._wait(work)
        return deliver_atlas(Path(folder), work.record, work.rows, transforms)

    def structure(
        self, kind: str, data, covariates=None, values: dict | None = None, *, folder: str = "", seed: int = 0
    ) -> dict:
        """Is one atlas enough? ``kind``: 'labels', 'maps', 'atlas', 'profiles', 'features' or 'distances', see the command 'atlas structure';
        ``data``: the path that belongs to it, or for 'labels' segmentation and label map nodes. Returns the record (result.json): 'answer',
        'types', 'effects', ...; files go to ``folder`` where it is given. Raises as ``build``."""
        from .jobrun import JobRun
        from .pages.atlas_structure import label_map

        request = {
            "command": "structure",
            "kind": kind,
            "covariates": str(covariates or ""),
            "values": dict(values or {}),
            "out": str(folder),
            "seed": seed,
        }
        request |= (
            {"data": str(data)} if isinstance(data, (str, Path)) else {"label_maps": [label_map(node) for node in data]}
        )
        self.ensure_for_structure()
        work = JobRun(self.runner, request)
        self.work.append(work)
        return self._wait(work).result["record"]

    def identify(self, atlas, slice_, axis: str = "coronal", *, top: int = 5, pixel: float = 0.0, invert: bool = False, seed: int = 0) -> dict:
        """Where in the volume node ``atlas`` a slice lies: ``slice_`` a file or a volume node of one slice; ``axis`` of the plates; ``pixel`` mm of a
        picture whose file does not say it. Returns the job's result ('record', 'matrix', ...); slice and transform go into the scene. Raises as
        ``build``."""
        from . import mrml
        from .atlas_scene import deliver_plane
        from .jobrun import JobRun

        self.ensure_torch()
        given = str(slice_) if isinstance(slice_, (str, Path)) else mrml.volume_of(slice_)
        request = {"command": "identify", "atlas": mrml.volume_of(atlas), "slice": given, "axis": axis, "top": top, "pixel": pixel, "invert": invert,
                   "seed": seed}
        work = JobRun(self.runner, request)
        self.work.append(work)
        result = self._wait(work).result
        deliver_plane(result, atlas)
        return result

    @staticmethod
    def _cohort(cohort) -> dict:
        """The part of a request that says who takes part. InputError for fewer than two nodes."""
        import slicer

        from .atlas_scene import named
        from .training import images_of

        if isinstance(cohort, (str, Path)):
            return {"data": str(cohort)}
        nodes = list(cohort)
        if len(nodes) < 2:
            raise InputError(f"{len(nodes)} volumes were given; an atlas needs at least two")
        sent = images_of(nodes, slicer.util.getNodesByClass("vtkMRMLSegmentationNode"))
        return {**sent, "names": list(named(nodes))}
