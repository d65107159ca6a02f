"""What comes of a finished atlas: consensus labels and their probabilities, statistics of the log-Jacobians, and how good each subject is.

Subjects are looked at one at a time; their labels on the atlas lattice lie in the store as files, so consensus needs no cohort in memory.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ..geometry import Grid
from ..image import Image, Labels
from ..ops.sample import sample
from ..runtime import Monitor
from . import cohort_work as work
from .cohort_store import SubjectMap
from .cohort_work import Member, Place
from .consensus import UNSEEN, majority, shares, staple
from .crew import Crew, Lost
from .groupwise import Built


@dataclass(frozen=True, eq=False)
class Final:
    """One subject and its final map: that of ``iteration``; the atlas is the template after it."""

    member: Member
    iteration: int
    place: Place

    @property
    def map(self) -> SubjectMap:
        return self.place.store.corrected(self.iteration, self.member.name)


@dataclass(eq=False)
class Outcome:
    """quality: one dict a subject; labels: 'majority' and 'staple' (empty without labels); maps: 'mean_log_jacobian', 'sd_log_jacobian';
    values: the labels that occur; probability(value) -> Image; remarks: name -> why a subject's labels were left out."""

    quality: list[dict]
    labels: dict[str, Labels]
    maps: dict[str, Image]
    values: list[int] = field(default_factory=list)
    raters: object = None
    grid: Grid | None = None
    remarks: dict[str, str] = field(default_factory=dict)

    def probability(self, value: int) -> Image:
        """The share of the subjects that have this label among those that see the place, on the atlas lattice."""
        (_, share), = shares(self.raters, [value])
        return Image(share.reshape(1, 1, *self.grid.shape), self.grid, name=f"probability of {value}")


def conclude(built: Built, place: Place, crew: Crew, monitor: Monitor) -> Outcome:
    """Judge every subject against the finished atlas and make the consensus of their labels. Cancelled."""
    orders = [Final(member, built.iterations - 1, place) for member in built.members]
    rows: list = [None] * len(orders)
    for number, found in crew.run(described, orders, monitor.part(0.0, 0.7), "judging"):
        rows[number] = {"lost": found.reason} if isinstance(found, Lost) else found
    quality = [{"subject": order.member.name, **row} for order, row in zip(orders, rows)]
    remarks = {row["subject"]: row.pop("lost") for row in quality if "lost" in row}
    remarks |= {row["subject"]: row.pop("labels_lost") for row in quality if "labels_lost" in row}
    note_copies(quality, remarks)
    outcome = Outcome(quality, {}, statistics(place, built), grid=built.grid, remarks=remarks)
    labelled = [row["subject"] for row in quality if row.pop("labelled", False)]
    if labelled:
        outcome.raters = Kept(place.folder, tuple(labelled))
        _agree(outcome, labelled, monitor.part(0.7, 1.0, "consensus"))
    return outcome


def described(order: Final, monitor: Monitor) -> dict | Lost:
    """The figures of one subject against the atlas; its labels on the atlas lattice are kept as a file where it has some."""
    monitor.check()
    made = order.map
    with order.place.working(made.grid):
        try:
            figures = work.judged(order.place.store.template(order.iteration + 1), work.read(order.member), made)
        except work.UNUSABLE as error:
            return Lost(" ".join(str(error).split()))
        try:
            return {**figures, "labelled": True} if keep_labels(order.member, made, order.place) else figures
        except work.UNUSABLE as error:
            return {**figures, "labels_lost": " ".join(str(error).split())}


def keep_labels(member: Member, made: SubjectMap, place: Place) -> bool:
    """Keep the labels of a subject on the atlas lattice as a file, ``UNSEEN`` where its image does not reach (a label map may be cropped to what it shows);
    False where it has none. Raises what ``work.UNUSABLE`` names."""
    labels = member.subject.read_labels()
    if labels is not None:
        seen = work.frame_of(made.grid, member.subject.grid(), made.transform).mask.reshape(-1) > 0
        np.save(label_file(place.folder, member.name), on_lattice(labels, made).masked_fill(~seen, UNSEEN).numpy())
    return labels is not None


def label_file(folder: Path, name: str) -> Path:
    """Where the labels of a subject on the atlas lattice are kept."""
    place = Path(folder) / "labels"
    place.mkdir(parents=True, exist_ok=True)
    return place / f"{name}.npy"


def on_lattice(labels: Labels, made: SubjectMap) -> torch.Tensor:
    """(voxels,) int32: labels pulled back by nearest neighbour; 0 outside their field of view."""
    index = work.frame_of(made.grid, labels.grid, made.transform).moving_index
    return sample(labels.data, index, "nearest", fill=0.0).reshape(-1).to(torch.int32)


@dataclass(frozen=True)
class Kept:
    """The kept label maps as raters, read one at a time."""

    folder: Path
    names: tuple[str, ...]

    def __call__(self):
        for name in self.names:
            yield torch.from_numpy(np.load(label_file(self.folder, name)))


def _agree(outcome: Outcome, labelled: list[str], monitor: Monitor) -> None:
    """Fill in the consensus label maps, the values and each subject's overlap with the majority."""
    given = {name: labels_of(said) for _, name, said in zip(monitor.steps(len(labelled), "labels"), labelled, outcome.raters())}
    note_other_labels(given, outcome.remarks)
    every = sorted({0}.union(*given.values()))
    label, share = majority(shares(outcome.raters, every))
    made = {"majority": label, "staple": staple(outcome.raters, every, label, share) if len(labelled) > 2 else label}
    grid = outcome.grid
    outcome.labels = {name: Labels(values.reshape(1, 1, *grid.shape), grid, name=name) for name, values in made.items()}
    outcome.values = [value for value in every if value != 0]
    rows = {row["subject"]: row for row in outcome.quality}
    for name, said in zip(labelled, outcome.raters()):
        rows[name]["dice"] = mean_dice(label, said, outcome.values)


def mean_dice(one: torch.Tensor, other: torch.Tensor, values: list[int]) -> float:
    """Mean overlap over the labels that ``one`` has where ``other`` sees them."""
    found, seen = [], other != UNSEEN
    for value in values:
        a, b = (one == value) & seen, other == value
        if bool(a.any()):
            found.append(2 * float((a & b).sum()) / float(a.sum() + b.sum()))
    return float(np.mean(found)) if found else 0.0


def labels_of(said: torch.Tensor) -> set[int]:
    """The labels that a rater gave, without the background."""
    return set(torch.unique(said).tolist()) - {0, UNSEEN}


def note_other_labels(given: dict[str, set[int]], remarks: dict[str, str]) -> None:
    """Add a remark on every subject of ``given`` (name -> its labels) that shares none of its labels with any other."""
    counts = Counter(value for own in given.values() for value in own)
    for name, own in given.items():
        if len(given) > 1 and own and all(counts[value] == 1 for value in own):
            numbers = ", ".join(map(str, sorted(own)[:5])) + (", ..." if len(own) > 5 else "")
            _add(remarks, name, f"its labels ({numbers}) are none of those of the others; give equal structures equal numbers")


def _add(remarks: dict[str, str], name: str, text: str) -> None:
    remarks[name] = "; ".join(filter(None, (remarks.get(name), text)))


def note_copies(quality: list[dict], remarks: dict[str, str]) -> None:
    """Add a remark on every subject whose figures are, to the last digit, those of another: it shows the same voxels."""
    first: dict[tuple, str] = {}
    for row in (row for row in quality if "similarity" in row):
        other = first.setdefault((row["similarity"], row["sdlogj"], row["displacement"]), row["subject"])
        if other != row["subject"]:
            _add(remarks, row["subject"], f"it seems to be a copy of {other}, which so counts twice; leave one of them out")


def statistics(place: Place, built: Built) -> dict[str, Image]:
    """Mean and standard deviation over the subjects of the log-Jacobian of atlas -> subject."""
    found = place.store.statistics(built.iterations)
    return {name: Image(torch.from_numpy(found[name]), built.grid, name=name) for name in ("mean_log_jacobian", "sd_log_jacobian")}
