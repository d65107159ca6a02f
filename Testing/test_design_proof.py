"""One new file is one new method: a toy that is dropped into a folder appears everywhere, with no other change."""

from __future__ import annotations

import shutil
from pathlib import Path

import contract
import pytest

from DeepRegistrationLib.method import find, registry

SOURCE = Path(__file__).parent / "examples" / "toy_shift.py"


@pytest.fixture
def dropped(tmp_path, monkeypatch):
    """The class of the toy under a name of its own, after its file was dropped into an empty folder."""
    monkeypatch.setenv("DEEPREGISTRATION_METHODS", str(tmp_path))
    assert "dropped-in" not in registry()
    shutil.copy(SOURCE, tmp_path / "dropped_in.py")
    return registry()["dropped-in"]


def test_appears_in_list_show_and_cite(dropped, cli):
    listed = cli("list")
    assert listed.status == 0 and "dropped-in" in listed.out and "careful" in listed.out
    assert "| `dropped-in` | **Toy shift.**" in cli("list", "--markdown").out
    shown = cli("show", "dropped-in").out
    for text in ("Toy shift", "steps = 12  (1 to 100)", "spacing = 2.0 mm  (at least 0.1)", "careful: more steps", "anything but a shift"):
        assert text in shown
    assert cli("cite", "dropped-in").out.startswith("@inproceedings{lucas1981,")


def test_presets_and_settings_reach_it(dropped):
    assert find("dropped-in:careful").steps == 24
    assert find("dropped-in:careful", {"steps": "5"}).steps == 5


@pytest.mark.parametrize("dim", (2, 3))
def test_keeps_the_contract_of_all_methods(dropped, dim):
    contract.card_is_complete(dropped)
    contract.presets_are_valid(dropped)
    contract.parameters_round_trip(dropped)
    contract.beats_identity(dropped, dim)
    contract.is_repeatable_and_leaves_inputs(dropped, dim)
    contract.stops_at_first_step(dropped, dim)


def test_is_gone_when_its_file_is_gone(dropped, cli, tmp_path):
    (tmp_path / "dropped_in.py").unlink()
    assert "dropped-in" not in registry()
    assert "dropped-in" in cli("show", "dropped-in").sentence()
