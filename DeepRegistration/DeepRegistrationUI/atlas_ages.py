"""Ages in the panel of AtlasBuilder: which columns may hold them, and an atlas over age in the scene as a sequence with a slider."""

from __future__ import annotations

import json
from pathlib import Path

import slicer

from DeepRegistrationLib.tables import read_rows

from . import views

KNOWN = ("image", "labels", "points", "mask", "id", "subject", "split")
"""Columns of a list that hold something else."""
SEQUENCE = "atlas.seq.nrrd"


def columns_of(path: str) -> list[str]:
    """The columns of a table or a list of images that may hold ages; none where there is no such file."""
    place = Path(path)
    try:
        if not path or not place.is_file():
            return []
        if place.suffix.lower() == ".json":
            heads = list(json.loads(place.read_text("utf-8-sig"))[0])
        else:
            heads, _ = read_rows(place)
    except (OSError, ValueError, LookupError, TypeError):
        return []
    return [head for head in heads if head and head.lower() not in KNOWN]


def is_over_age(folder: str) -> bool:
    """True where a folder holds a finished atlas over age."""
    return bool(folder) and (Path(folder) / SEQUENCE).is_file()


def deliver_sequence(folder: Path) -> dict:
    """The atlases of all ages as a sequence with its browser, whose proxy is a volume; roles -> nodes."""
    scene = slicer.mrmlScene
    for name in ("vtkMRMLSequenceNode", "vtkMRMLSequenceBrowserNode"):
        views.introduce(scene, name)
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode", f"{folder.name} over age")
    storage = scene.AddNewNodeByClass("vtkMRMLVolumeSequenceStorageNode")
    storage.SetFileName(str(folder / SEQUENCE))
    storage.ReadData(sequence)
    sequence.SetAndObserveStorageNodeID(storage.GetID())
    volume = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", f"{folder.name} atlas of an age")
    volume.CreateDefaultDisplayNodes()
    browser = scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", f"{folder.name} ages")
    with slicer.util.NodeModify(browser):
        browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
        browser.AddProxyNode(volume, sequence, False)
        browser.SetOverwriteProxyName(sequence, False)
        browser.SetSelectedItemNumber(0)
    show_item(browser, 0)
    volume.GetDisplayNode().SetAutoWindowLevel(True)
    return {"atlas of an age": volume, "sequence": sequence, "browser": browser}


def show_item(browser, number: int) -> str:
    """Show an item of a sequence; the text of its age."""
    browser.SetSelectedItemNumber(number)
    slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
    return browser.GetMasterSequenceNode().GetNthIndexValue(number)
