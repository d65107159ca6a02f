"""The jobs 'qmri' and 'motion' of the worker: maps from where the slices were sent, an order that the user has set, maps in the volume, folders of files."""

import numpy as np
import pytest
import truths_hip

from DeepRegistrationLib import exchange
from DeepRegistrationLib.commands.jobs import do
from DeepRegistrationLib.errors import Cancelled, InputError
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.runtime import Silent

QUICK = {"tried": 400, "steps": 10, "finest": 4.0}
"""Enough for small slices that are a little away."""


class Stopped(Silent):
    """A monitor that is stopped at its first question."""

    def check(self):
        raise Cancelled("stopped")


def known(order=None, flips=None, **more):
    hip = truths_hip.Hip(0)
    return truths_hip.known_set(1, 8.0, 4.0, hip=hip, volume=truths_hip.hip_volume(hip, truths_hip.volume_grid(40)), size=40, order=order,
                                flips=flips, **more)


def volume(image) -> exchange.Volume:
    return exchange.Volume(image.data[0, 0].numpy(), image.grid, image.name)


def request(problem, **more) -> dict:
    return {"command": "qmri", "slices": [volume(image) for image in problem.slices], "volume": volume(problem.volume), "method": "qmri",
            "values": QUICK, "device": "cpu", **more}


def farthest(made: dict, truth) -> float:
    """mm, root mean square over the pixels of the worst slice."""
    return max(truths_hip.errors(row["matrix"].matrix, true, image.grid.points().reshape(-1, 3)[::7])[2]
               for row, true, image in zip(made["slices"], truth.each, truth.problem.slices))


def test_slices_are_placed_and_told_about(tmp_path):
    truth = known()
    made = do(request(truth.problem, map=True), Silent(), tmp_path)
    assert made["registered"], made["reasons"]
    assert farthest(made, truth) < 2.0, "mm"
    row = made["slices"][2]
    assert row["plane"] == 2 and row["flips"] == [False, False] and row["own_shift_mm"] < 1e-6 and 0.1 < row["similarity"] < 1
    assert row["emulated"].grid == truth.problem.slices[2].grid and row["inside"] > 0.5 and "measured" not in row
    assert made["std"]["distance_mm"] < 3 and len(made["curve"]["degrees"]) == len(made["curve"]["set"])
    values = made["maps"][0].array
    assert made["maps"][0].grid == truth.problem.volume.grid and 0.01 < np.isfinite(values).mean() < 0.5
    measured = truth.problem.slices[0].data
    assert np.nanmin(values) >= float(min(s.data.min() for s in truth.problem.slices)) and measured.max() > 20, "values are not rescaled"


class Watching(Silent):
    """A monitor that keeps the sketches of all previews."""

    def __init__(self):
        super().__init__()
        self.seen, self.sketch, self.interval = [], None, 0.0

    def preview(self, transform):
        self.seen.append(self.sketch(transform)[1])


@pytest.mark.parametrize("given", [True, False], ids=["order given", "order found"])
def test_the_search_is_watched_as_the_slices_were_sent(tmp_path, given):
    """Whatever order and directions are set or found, the last picture of a slice is the slice as it was sent."""
    flips = [(False, False)] * 3 + [(True, False)] + [(False, False)] * 2
    truth, watching = known(order=[1, 0, 2, 3, 4, 5], flips=flips), Watching()
    how = {"placement": {"plane": [1, 0, 2, 3, 4, 5], "flips": flips}} if given else {"values": {**QUICK, "placing": "both"}}
    do({**request(truth.problem), **how, "live": {"interval_s": 0.0}}, watching, tmp_path)
    assert len(watching.seen) > 2 and watching.seen[-1].shape == (6, 64, 64)
    for seen, image in zip(watching.seen[-1], truth.problem.slices):
        sent = image.data[0, 0, 0].numpy()
        index = np.linspace(0, 63, len(sent)).round().astype(int)
        made = seen[np.ix_(index, index)]
        valid = np.isfinite(made)
        assert np.corrcoef(made[valid], sent[valid])[0, 1] > 0.6


def test_an_order_that_the_user_has_set_is_kept(tmp_path):
    """Two pictures exchanged and one mirrored: told so, the maps lead from where the slices were sent, pictures stay as they were sent."""
    flips = [(False, False)] * 3 + [(True, False)] + [(False, False)] * 2
    truth = known(order=[1, 0, 2, 3, 4, 5], flips=flips)
    asked = {"plane": [1, 0, 2, 3, 4, 5], "flips": flips}
    made = do(request(truth.problem, placement=asked), Silent(), tmp_path)
    assert farthest(made, truth) < 2.0, "mm"
    assert [row["plane"] for row in made["slices"]] == asked["plane"] and made["slices"][3]["flips"] == [True, False]
    assert made["slices"][0]["own_shift_mm"] < 1e-6 and made["provenance"]["parameters"]["placing"] == "keep"
    for row, image in zip(made["slices"], truth.problem.slices):
        seen = row["emulated"].array
        valid = np.isfinite(seen)
        assert row["emulated"].grid == image.grid and abs(np.corrcoef(seen[valid], image.data[0, 0].numpy()[valid])[0, 1]) > 0.5


def test_pixels_without_a_value_do_not_count(tmp_path):
    truth = known()
    sent = request(truth.problem)
    for value in sent["slices"]:
        value.array[:, :8] = np.nan
    made = do(sent, Silent(), tmp_path)
    assert farthest(made, truth) < 3.0, "mm"


def test_slices_without_places_lie_about_the_axis_of_the_localizer(tmp_path):
    """All headers are one and the same; center and normal of the localizer are known to some mm and degrees, where the first slice begins is not."""
    truth = known()
    axis, start = np.array([0.76, 0.15, -0.6]), truth.problem.slices[0].grid
    header = Grid.from_parts(start.shape, start.spacing)
    sent = request(truth.problem, axis=((11.0, 2.0, -9.0), axis.tolist()), degrees=30.0)
    sent["slices"] = [exchange.Volume(value.array, header, value.name) for value in sent["slices"]]
    made = do(sent, Silent(), tmp_path)
    assert made["registered"], made["reasons"]
    points = header.points().reshape(-1, 3)
    for row, true, image in zip(made["slices"], truth.each, truth.problem.slices):
        true = true @ image.grid.affine @ header.inverse_affine
        assert truths_hip.errors(row["matrix"].matrix, true, points)[2] < 2.0, "mm, from the header that all have"
        assert row["emulated"].grid == header and row["own_shift_mm"] < 1e-6
    with pytest.raises(InputError, match="there is none; give the center and the normal"):
        do({**sent, "axis": None}, Silent(), tmp_path)
    with pytest.raises(InputError, match="slices 61 degrees apart were asked for, 6 of them"):
        do({**sent, "degrees": 61.0}, Silent(), tmp_path)


def test_further_maps_go_along_in_their_own_units(tmp_path):
    """T1 is ten times the slices' values and missing on one slice: each quantity has a volume, a row a structure, and a column of the surface."""
    truth = known()
    labels = truths_hip.Hip(0).labels(truth.problem.volume.grid.points())
    structures = exchange.LabelMap(labels.astype(np.uint8), truth.problem.volume.grid, ((truths_hip.FEMUR, "femur"), (truths_hip.SOCKET, "socket")))
    sent = request(truth.problem, map=True, quantity={"name": "T2", "unit": "ms"}, structures=structures, surface_mm=3.0)
    ten = [exchange.Volume(10 * value.array, value.grid, "T1") for value in sent["slices"]]
    made = do({**sent, "maps": [{"name": "T1", "unit": "s", "images": [None, *ten[1:]]}]}, Silent(), tmp_path)
    own, other = (value.array for value in made["maps"])
    both = np.isfinite(own) & np.isfinite(other)
    assert [value.name for value in made["maps"]] == ["T2 (ms)", "T1 (s)"] and 0 < np.isfinite(other).sum() < np.isfinite(own).sum()
    assert np.median(other[both] / own[both]) == pytest.approx(10, rel=1e-4)
    rows = {(row["map"], row["region"]): row for row in made["regions"]}
    assert rows["T1", "femur"]["unit"] == "s" and rows["T1", "femur"]["pixels"] < rows["T2", "femur"]["pixels"]
    assert rows["T1", "femur"]["mean"] == pytest.approx(10 * rows["T2", "femur"]["mean"], rel=0.1) and ("T2", "socket") in rows
    assert all(f'Name="{name}"' in (tmp_path / "surface.vtp").read_text() for name in ("T2 (ms)", "T1 (s)"))
    with pytest.raises(InputError, match="'T1' does not lie on the pixels of 'slice 1'"):
        do({**sent, "maps": [{"name": "T1", "unit": "", "images": [*ten[1:], None]}]}, Silent(), tmp_path)


def test_a_folder_of_files(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    truth = known()
    for k, image in enumerate(truth.problem.slices):
        made = sitk.GetImageFromArray(np.round(10 * image.data[0, 0].numpy()).astype(np.int16))
        made.SetSpacing(image.grid.spacing.tolist())
        made.SetOrigin(image.grid.origin.tolist())
        made.SetDirection(image.grid.direction.ravel().tolist())
        across, down = image.grid.direction.T[:2]
        headers = {"0008|0060": "MR", "0020|0013": str(k + 1), "0018|0050": "3", "0020|0032": "\\".join(f"{v:.6g}" for v in image.grid.origin),
                   "0020|0037": "\\".join(f"{v:.8f}" for v in (*across, *down))}
        for tag, text in headers.items():
            made.SetMetaData(tag, text)
        sitk.WriteImage(made, str(tmp_path / f"slice{9 - k}.dcm"))
    sent, watching = {**request(truth.problem), "dicom": str(tmp_path), "live": {"interval_s": 0.0}}, Watching()
    made = do({**sent, "slices": None}, watching, tmp_path)
    measured, seen = watching.seen[-1]
    assert measured.shape == seen.shape == (6, 64, 64) and np.corrcoef(measured[np.isfinite(seen)], seen[np.isfinite(seen)])[0, 1] > 0.5
    first = made["slices"][0]["measured"]
    assert len(made["slices"]) == 6 and np.allclose(first.array, 10 * truth.problem.slices[0].data[0, 0].numpy(), atol=0.51)
    assert np.allclose(first.grid.affine, truth.problem.slices[0].grid.affine, atol=1e-2), "instances in their order, where the headers have them"


def test_what_cannot_be_registered_is_one_sentence(tmp_path):
    problem = known().problem
    with pytest.raises(InputError, match="the request has no volume"):
        do({"command": "qmri"}, Silent(), tmp_path)
    with pytest.raises(InputError, match="no slices were given"):
        do({**request(problem), "slices": []}, Silent(), tmp_path)
    with pytest.raises(InputError, match="give every plane from 1 to 6 once"):
        do(request(problem, placement={"plane": [0, 0, 1, 2, 3, 4], "flips": [(0, 0)] * 6}), Silent(), tmp_path)
    with pytest.raises(Cancelled):
        do(request(problem), Stopped(), tmp_path)


def scans(count: int = 4):
    """Blobs that moved by (k - 1.5) * 1.5 mm along x, with Rician noise."""
    grid, draw = Grid.from_parts((10, 14, 16), 3.0), np.random.default_rng(0)
    made = []
    for k in range(count):
        x = grid.points() - grid.centre - [1.5 * (k - 1.5), 0, 0]
        values = 100 * np.exp(-(x**2 / [90.0, 120.0, 60.0]).sum(-1)) + 40 * np.exp(-((x - [6, 4, -3]) ** 2).sum(-1) / 30)
        noisy = np.hypot(values + draw.normal(0, 4, values.shape), draw.normal(0, 4, values.shape))
        made.append(exchange.Volume(noisy.astype(np.float32), grid, f"scan {k + 1}"))
    return made


@pytest.mark.parametrize("joined", [False, True], ids=["volumes", "channels"])
def test_motion_of_repeated_scans(tmp_path, joined):
    sent = scans()
    if joined:
        sent = [exchange.Volume(np.stack([value.array for value in sent]), sent[0].grid, "series")]
    made = do({"command": "motion", "scans": sent, "values": {"rounds": 60}, "device": "cpu"}, Silent(), tmp_path)
    moved = [row["shift_x_mm"] for row in made["motion"]]
    assert np.abs(np.array(moved) - np.mean(moved) - 1.5 * (np.arange(4) - 1.5)).max() < 0.6, moved
    assert made["average"].grid == sent[0].grid and 2 < np.nanmean(made["sigma"].array) < 8 and len(made["transforms"]) == 4
    with pytest.raises(InputError, match="motion is found in volumes of several slices"):
        do({"command": "motion", "scans": [volume(known().problem.slices[0])] * 2}, Silent(), tmp_path)


def test_motion_with_tissue_maps(tmp_path):
    """Maps of the two blobs that the scans are made of; how bright they are is told, one scale aside."""
    sent = scans()
    x = sent[0].grid.points() - sent[0].grid.centre
    maps = [np.exp(-(x**2 / [90.0, 120.0, 60.0]).sum(-1)), np.exp(-((x - [6, 4, -3]) ** 2).sum(-1) / 30)]
    tissues = [exchange.Volume(value.astype(np.float32), sent[0].grid, f"tissue {k + 1}") for k, value in enumerate(maps)]
    asked = {"command": "motion", "scans": sent, "tissues": tissues, "device": "cpu", "values": {"rounds": 30, "means": [100.0, 40.0], "spreads": [5.0, 5.0]}}
    made = do(asked, Silent(), tmp_path)
    assert np.abs([row["shift_x_mm"] - 1.5 * (k - 1.5) for k, row in enumerate(made["motion"])]).max() < 0.5, "against the maps, not against each other"
    other = exchange.Volume(tissues[0].array, sent[0].grid.moved(np.diag([2.0, 2, 2, 1])), "far")
    with pytest.raises(InputError, match="the tissue maps tissue 1 and far lie on different lattices"):
        do({**asked, "tissues": [tissues[0], other]}, Silent(), tmp_path)
