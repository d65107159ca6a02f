"""The cohort of the 'atlas' commands: a folder with images, or a list of them, as subjects that are read when they are needed.

A folder is searched as for 'train' (label maps by the usual names); a list (.csv, .json) has one image a row: image, and optionally subject,
labels, mask. Paths are relative to the list.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError


def read_group(path: Path, labels: str | None = None):
    """The ``Group`` of a folder or list; ``labels`` is the rule for label maps in a folder. InputError where there is none."""
    from ..problem import Group, Subject
    from ..train.cohort import read_cohort

    cohort = read_cohort(path, labels)
    if cohort.pairs is not None:
        raise InputError(f"{path} lists pairs; an atlas needs one image a row (columns image, subject, labels, mask)")
    names = unique([scan.subject for scan in cohort.scans], [scan.image.name.split(".")[0] for scan in cohort.scans])
    return Group(tuple(Subject(name, scan.image, scan.labels, scan.mask) for name, scan in zip(names, cohort.scans)))


def unique(subjects: list[str], files: list[str]) -> list[str]:
    """Names that can be those of folders: the subject's, with the file's where a subject has several images."""
    names = [subject if subjects.count(subject) == 1 else f"{subject}-{file}" for subject, file in zip(subjects, files)]
    return [name.replace("/", "-").replace("\\", "-") for name in names]
