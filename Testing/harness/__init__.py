"""A stand-in for the Slicer application: real scene and logics from slicer-core, PySide6 with the manners of PythonQt for Qt.

The real application cannot be had from a package index, its parts can. What is real here: scene, nodes, module logics, displayable
managers, ``slicer.util``, Qt. What is ours: ``qt``, ``ctk``, the classes named q* and ctk* (members exactly as listed in
``facts/slicer_classes.json``), ``slicer.app``, ``slicer.modules``, ``slicer.ScriptedLoadableModule``,
``slicer.parameterNodeWrapper`` and ``slicer.packaging``. Where the environment variable SLICER_GIT_DIR names a bare clone of Slicer,
its own Python files take the place of the last three, so that the same tests check the stand-ins against the real ones.

Qt's classes are changed in place; a process that installed the harness must not run other code that is written for PySide6.
Start with ``harness.fixtures``. The back ends of Qt and VTK are chosen here, before either is loaded.
"""

import os

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")
os.environ.setdefault("MPLBACKEND", "Agg")  # with a QApplication around, matplotlib would choose a Qt back end
