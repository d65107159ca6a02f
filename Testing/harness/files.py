"""Stand-in for the application's manager of readers and writers, on the storage nodes of slicer-core."""

from __future__ import annotations

import os

WRITERS = ("NRRD (.nrrd)", "MetaImage (.mha)", "NIfTI (.nii.gz)", "NIfTI (.nii)")  # slicer-core names none for volumes
READERS = {"SegmentationFile": "vtkMRMLSegmentationNode", "ModelFile": "vtkMRMLModelNode", "TableFile": "vtkMRMLTableNode", "TextFile": "vtkMRMLTextNode",
           "TransformFile": "vtkMRMLTransformNode", "MarkupsFile": "vtkMRMLMarkupsFiducialNode"}
ENDINGS = {"TransformFile": (".h5", ".tfm", ".txt", ".mat"), "SegmentationFile": (".seg.nrrd",), "ModelFile": (".vtk", ".vtp", ".stl", ".ply", ".obj"),
           "MarkupsFile": (".mrk.json", ".fcsv"), "TableFile": (".tsv", ".csv")}


class FileManager:
    """What ``slicer.util.saveNode``, ``exportNode`` and ``loadNodeFromFile`` need."""

    def extractKnownExtension(self, path, node):
        storage = node.CreateDefaultStorageNode()
        known = storage.GetSupportedFileExtension(path, False, True) if storage else ""
        return known or (".nii.gz" if path.endswith(".nii.gz") else os.path.splitext(path)[1])

    def fileWriterExtensions(self, node):
        kinds = node.CreateDefaultStorageNode().GetSupportedWriteFileTypes()
        return [kinds.GetValue(i) for i in range(kinds.GetNumberOfValues())] or list(WRITERS)

    def fileWriterFileType(self, node):
        return node.GetClassName()

    def fileType(self, path):
        return next((kind for kind, endings in ENDINGS.items() if path.lower().endswith(endings)), "VolumeFile")

    def registeredFileReaderCount(self, kind):
        return 1

    def exportNodes(self, node_ids, paths, properties, harden, messages):
        import slicer

        for node_id, path in zip(node_ids, paths, strict=True):
            node = slicer.mrmlScene.GetNodeByID(node_id)
            storage = node.CreateDefaultStorageNode()
            storage.SetFileName(path)
            if "useCompression" in properties:
                storage.SetUseCompression(int(properties["useCompression"]))
            if not storage.WriteData(node):
                return False
        return True

    def saveNodes(self, kind, properties, messages):
        import slicer

        node = slicer.mrmlScene.GetNodeByID(properties["nodeID"])
        if node.GetStorageNode() is None:
            node.AddDefaultStorageNode()
        node.GetStorageNode().SetFileName(properties["fileName"])
        return bool(node.GetStorageNode().WriteData(node))

    def loadNodes(self, kind, properties, loaded, messages=None):
        import slicer

        path = properties["fileName"]
        if not os.path.exists(path):
            return False
        name = properties.get("name") or os.path.basename(path).split(".")[0]
        if kind == "VolumeFile":
            options = bool(properties.get("labelmap")) + 2 * bool(properties.get("center"))
            node = slicer.modules.volumes.logic().AddArchetypeVolume(path, name, options)
        else:
            node = slicer.mrmlScene.AddNewNodeByClass(READERS[kind], name)
            node.AddDefaultStorageNode()
            node.GetStorageNode().SetFileName(path)
            if not node.GetStorageNode().ReadData(node):
                slicer.mrmlScene.RemoveNode(node)
                node = None
        if node is not None:
            loaded.AddItem(node)
        return node is not None
