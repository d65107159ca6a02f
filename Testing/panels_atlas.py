"""What the tests of AtlasBuilder share: its panel with a runner that follows a script, the rows of its table, a cohort that grows."""

import pytest
import torch
from panels import ScriptedRunner

from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image
from DeepRegistrationLib.io import write_image


@pytest.fixture
def panel(slicer, module_panel):
    """The panel of AtlasBuilder with a runner that follows a script."""
    made = module_panel("AtlasBuilder").panel
    made.logic._runner = ScriptedRunner()
    return made


@pytest.fixture
def page(panel):
    """The page that builds an atlas."""
    return panel.page("build")


def rows(page) -> list[list[str]]:
    """The texts of the table of the cohort: subject, status, time, quality."""
    table = page.ui.atlasTable
    return [[table.item(r, c).text() for c in range(4)] for r in range(table.rowCount)]


def growing(folder):
    """Nine slices of blobs that grow with age, a list with their ages, and one whose age is not known."""
    folder.mkdir()
    grid, lines = Grid.from_parts((16, 16), 2.0), ["image,subject,weeks,sex"]
    x = torch.as_tensor(grid.points()).float()
    for k in range(9):
        middle = torch.tensor([15.0 + k % 2, 15.0])
        values = torch.sigmoid((5 + k // 3 - (x - middle).norm(dim=-1)) / 1.0) + 0.2 * torch.cos(x[..., 0] / 3)
        write_image(Image(values[None, None], grid), folder / f"s{k}.nii.gz")
        lines.append(f"s{k}.nii.gz,s{k},{'' if k == 4 else 8 + k // 3},f")
    (folder / "list.csv").write_text("\n".join(lines), "utf-8")
    return folder
