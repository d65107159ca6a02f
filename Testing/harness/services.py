"""Stand-ins for parts of the application that tests watch: packages, sample data, PyTorchUtils, translation."""

from __future__ import annotations

import sys
import types


def translation() -> types.ModuleType:
    """``slicer.i18n`` without translations."""
    module = types.ModuleType("slicer.i18n")
    module.tr = lambda text: text
    module.translate = lambda context, text: text
    module.getContext = lambda path: path
    return module


def packaging() -> types.ModuleType:
    """``slicer.packaging`` that installs nothing; ``harness.fixtures.packages`` says what is missing and records what was asked for."""
    module = types.ModuleType("slicer.packaging")

    def load_requirements(path):
        with open(path, encoding="utf-8") as lines:
            return [line.strip() for line in lines if line.strip() and not line.startswith("#")]

    def refuse(*arguments, **named):
        raise RuntimeError("this stand-in installs nothing; use the fixture packages")

    module.load_requirements = load_requirements
    module.pip_check = lambda requirements: True
    module.pip_ensure = module.pip_install = module.pip_uninstall = refuse
    module.isPipInstallInProgress = lambda: False
    return module


def sample_data() -> types.ModuleType:
    """The module ``SampleData``: registrations are kept in ``SampleDataLogic.registered`` and ``.categories``."""
    module = types.ModuleType("SampleData")

    class SampleDataLogic:
        registered: list[dict] = []
        categories: list[tuple] = []

        @staticmethod
        def registerCustomSampleDataSource(category="Custom", sampleName=None, uris=None, fileNames=None, nodeNames=None, customDownloader=None,
                                           thumbnailFileName=None, loadFileTypes=None, loadFiles=None, loadFileProperties=None, checksums=None):
            SampleDataLogic.registered.append(dict(locals()))

        @staticmethod
        def registerCustomSampleDataCategory(category, title=None):
            SampleDataLogic.categories.append((category, title))

    module.SampleDataLogic = SampleDataLogic
    return module


def pytorch_utils(install=None) -> types.ModuleType:
    """A module ``PyTorchUtils`` for ``monkeypatch.setitem(sys.modules, "PyTorchUtils", ...)``; ``install(**named)`` does the installing."""
    module = types.ModuleType("PyTorchUtils")
    module.calls = []

    class PyTorchUtilsLogic:
        def torchInstalled(self):
            return "torch" in sys.modules

        def installTorch(self, askConfirmation=False, forceComputationBackend=None, torchVersionRequirement=None, torchvisionVersionRequirement=None):
            module.calls.append({k: v for k, v in locals().items() if k != "self"})
            return install(**module.calls[-1]) if install else None

    module.PyTorchUtilsLogic = PyTorchUtilsLogic
    return module


class PackageRecord:
    """What ``slicer.packaging`` was asked for; ``missing`` holds requirements that are not installed."""

    def __init__(self):
        self.missing, self.ensured, self.refuses = set(), [], False

    def _names(self, requirements):
        return [requirements] if isinstance(requirements, str) else [str(each) for each in requirements]

    def pip_check(self, requirements):
        return not self.missing & set(self._names(requirements))

    def pip_ensure(self, requirements, **named):
        self.ensured.append((self._names(requirements), named))
        if self.refuses:
            raise RuntimeError("the installation was refused")
        self.missing -= set(self._names(requirements))
