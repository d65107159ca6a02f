"""What the worker does for one request; a request and a result are dicts of plain values and of values of ``exchange``.

register: ``fixed`` and ``moving`` Volumes; optionally ``fixed_mask``, ``moving_mask`` (LabelMaps, > 0 counts), ``fixed_labels``,
    ``moving_labels`` (LabelMaps; structures of one name belong together), ``fixed_points``, ``moving_points`` (PointSets, row by row) as
    guides; ``initial``: parts of a transform, or 'header', 'center', 'moments', 'global', 'csngf', 'affine', or None for the method's own start;
    ``method`` 'id:preset', ``values`` (parameter -> value), ``device``, ``seed``, ``threads``; ``coarsen``: voxel size of the images for
    the registration itself, in units of their own (1); ``preview`` {"interval_s", "lattice" or "spacing_mm"} or None; ``outputs`` of
    'inverse', 'warped', 'log_jacobian', 'folds'.
    -> ``transform`` [Matrix] or [Matrix, Lattice], ``inverse`` parts, ``warped`` and ``log_jacobian`` Volumes and ``folds`` LabelMap (1) on
    the fixed grid, ``metrics`` rows, ``scalars``, ``history`` (a dict a logged step), ``provenance``, ``previews`` (count, share of time).
warp: ``parts`` (points of the space of ``reference`` -> points of the space of the inputs), or ``result`` (folder of a finished register
    job) with ``direction`` 'moving_to_fixed' or 'fixed_to_moving'; ``reference`` Grid (default with ``result``: that image's); ``inputs`` a
    list of {"value": Volume, LabelMap or PointSet, "interpolation": 'linear', 'cubic' or 'nearest', "outside": 'zero', 'nan' or a number}.
    -> ``outputs``: a value for each input, ``validity``: for each a LabelMap, 1 where the input's field of view is (None for points).
evaluate: ``parts`` or ``result``; ``fixed`` and ``moving`` Volumes (default with ``result``: its own); labels and points as above;
    ``inverse`` parts (default: the result's, or the transform is inverted). -> ``rows``.
report: as evaluate, with ``path`` of the HTML file, ``title`` and ``figures``. -> ``path``.
train: ``recipe`` and ``values`` of its parameters, ``out`` the run's folder, ``steps``, ``seed``, ``device``, ``threads``; ``data`` a folder or a list, or
    ``images`` [Volume] with ``labels`` [LabelMap or None], or ``dim`` where the recipe needs no images; ``resume``: go on with the run in ``out``.
    -> ``summary``, see ``train.running``. Its log events are the figures of a step, or of a validation with names 'validation_...'.
cohort: ``data`` a folder or a list. -> ``subjects`` [{name, image, labels}].
atlas: ``out`` the atlas's folder; ``data``, or ``images`` [Volume] with ``names`` and ``labels`` [LabelMap or None]; ``left_out`` names; ``method``
    'icon-atlas:PRESET' and ``values``, for an atlas over age ``covariate`` (a column of the list or of the table ``covariates``); ``workers``,
    ``seed``, ``device``, ``threads``; ``resume``: go on with the build in ``out``. -> ``record`` (atlas.json), ``quality`` rows.
    Its event 'cohort' names the subjects; its log events are the figures of an iteration; work/ holds templates and maps meanwhile.
carry: ``atlas`` the folder of a finished one; ``subjects`` [{name, image: a file or a Volume}]; for an atlas over age ``covariate`` with ``data`` or
    ``covariates`` as in 'atlas' (default: those that it was built with here); ``device``, ``seed``, ``threads``. -> ``rows`` {subject, similarity,
    folds} or {subject, lost}; its event 'carried' is a row. Files go to carried/NAME in the folder.
structure: ``kind`` of ``atlas_structure.SOURCES`` with ``data``, or ``label_maps`` [LabelMap]; ``covariates`` a table; ``values``, ``seed``; ``out`` a folder
    (default: the job's). -> ``record`` (result.json), ``subjects`` rows, ``out``.
identify: ``atlas`` Volume; ``slice`` a file or a Volume of one slice, ``axis`` of its plates, ``top`` how many to list, ``pixel`` mm of a file (0: its own),
    ``invert``; ``values`` of the training, ``device``, ``seed``, ``threads``. -> ``record`` (result.json), ``by_header`` (None for files), ``pictures``
    [rows] and ``frames`` [(4, 4)], (u, v, w) mm -> LPS mm: of the slice (pictures alone), the plane, each plate; ``matrix`` Matrix slice -> atlas;
    ``slice`` and ``plane`` Volumes.
qmri: ``volume`` Volume; ``slices`` [Volume] of one slice each (NaN marks pixels without a value), or ``dicom`` a folder; ``segments`` [LabelMap] with
    ``volume_segment`` LabelMap, a bone in both; ``thickness`` mm (0: the headers'); ``axis`` (point, direction) LPS mm that all planes share, with
    ``degrees``: the headers do not count, slice k lies k * degrees about it, and with ``pixel_mm`` (between columns, between rows) nor do their
    pixel sizes; ``no_value`` a number, or several, that mark pixels of slices and maps without a value; ``method`` 'qmri:PRESET' and ``values``; ``placement``
    {plane: [the plane of which slice each one lies on, from 0], flips: [(along u, along v)]}: order and directions as the user has set them;
    ``quantity`` {name, unit} of the slices' values and further ``maps`` [{name, unit, images: a Volume or None a slice, on its pixels}]; ``map``: also
    carry the values into the volume; ``structures`` LabelMap of the volume: values per label, and with ``surface_mm`` on the surface of what is above 0,
    from pixels at most that far away; ``live`` {interval_s}: preview events with ``pictures`` (S, 64, 64), each slice as the volume shows it now, and
    with ``dicom`` (2, S, 64, 64), the slices themselves first; ``device``, ``seed``, ``threads``.
    -> ``registered``, ``reasons``, ``remarks``, ``matrix`` Matrix of the set and ``slices``
    [{name, plane, flips, matrix, similarity, inside, own_shift_mm, own_turn_degrees, emulated Volume; deformation Lattice where one was
    kept, bend_mm, bend_gain and bend_gain_error where one was asked for; measured Volume with ``dicom``}], both slice
    -> volume; ``std`` {shift_mm, turn_degrees, distance_mm}, ``evidence``, ``start``, ``curve`` {degrees, set}, ``maps`` [Volume] (NaN between),
    ``surface`` path of a .vtp file in LPS mm, ``surface_covered`` share, ``regions`` rows (see ``slice_maps.region_rows``), ``provenance``.
bones: ``slices`` [Volume] of one slice each and ``strokes`` [LabelMap or None], 1 bone and 2 anything else; ``seed``. -> ``segments`` [LabelMap], 1 bone.
motion: ``scans`` [Volume], each one scan or one a channel; ``tissues`` likewise, maps from 0 to 1 in the space of the scans, or none; ``method``
    'rician-motion:PRESET', ``values``, ``device``, ``seed``, ``threads``.
    -> ``average``, ``signal``, ``sigma`` Volumes, ``transforms`` [Matrix] reference -> scan, ``motion`` a row a scan, ``scalars``, ``provenance``.
catalogue: -> ``catalogue``, see ``catalogue.catalogue``.

Rows are {"name", "structure", "unit", "before", "value"}: ``before`` is the figure without the transform (None where that is no question),
``value`` the one with it.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError


def do(request: dict, monitor, folder: Path) -> dict:
    """The result of a request. Raises InputError for one that is not understood, and what the job raises."""
    from . import jobs_atlas, jobs_measure, jobs_motion, jobs_plates, jobs_qmri, jobs_register, jobs_train, jobs_warp

    known = {"register": jobs_register.register, "warp": jobs_warp.warp, "evaluate": jobs_measure.evaluate, "report": jobs_measure.report,
             "train": jobs_train.train, "cohort": jobs_atlas.cohort, "atlas": jobs_atlas.atlas,
             "carry": jobs_atlas.carry, "structure": jobs_atlas.structure, "identify": jobs_plates.identify, "qmri": jobs_qmri.qmri,
             "bones": jobs_qmri.bones, "motion": jobs_motion.motion, "catalogue": _catalogue}
    name = request.get("command")
    if name not in known:
        raise InputError(f"the command '{name}' was given; expected one of {', '.join(known)}")
    return known[name](request, monitor, folder)


def _catalogue(request: dict, monitor, folder: Path) -> dict:
    from .catalogue import catalogue

    return {"catalogue": catalogue()}
