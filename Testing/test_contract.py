"""Every method of the registry keeps the contract of contract.py: one new method file is one new row of tests, without a list to edit."""

from __future__ import annotations

import contract
import pytest

from DeepRegistrationLib.method import registry

METHODS = registry()
RUNS = [(name, dim) for name, cls in METHODS.items() for dim in cls.card.dims]
PRESETS = [(name, preset) for name, cls in METHODS.items() for preset in cls.card.presets if preset != "default"]


@pytest.mark.parametrize("name", METHODS)
def test_card_is_complete(name):
    contract.card_is_complete(METHODS[name])


@pytest.mark.parametrize("name", METHODS)
def test_what_a_user_reads_is_spelled_the_american_way(name):
    contract.texts_are_american(METHODS[name])


@pytest.mark.parametrize("name", METHODS)
def test_presets_are_valid(name):
    contract.presets_are_valid(METHODS[name])


@pytest.mark.parametrize("name", METHODS)
def test_parameters_round_trip_through_json_and_text(name):
    contract.parameters_round_trip(METHODS[name])


@pytest.mark.parametrize("name, dim", RUNS)
def test_beats_identity_on_the_smallest_truth(name, dim):
    contract.beats_identity(METHODS[name], dim)


@pytest.mark.parametrize("name, preset", PRESETS)
def test_every_preset_beats_identity(name, preset):
    contract.beats_identity(METHODS[name], min(METHODS[name].card.dims), preset)


@pytest.mark.parametrize("name, dim", RUNS)
def test_same_seed_same_result_and_inputs_unchanged(name, dim):
    contract.is_repeatable_and_leaves_inputs(METHODS[name], dim)


@pytest.mark.parametrize("name, dim", RUNS)
def test_stops_at_the_first_step(name, dim):
    contract.stops_at_first_step(METHODS[name], dim)


@pytest.mark.parametrize("name, dim", [(name, dim) for name, dim in RUNS if name in contract.TRAINED])
def test_refuses_without_weights(name, dim):
    contract.refuses_without_weights(METHODS[name], dim)
