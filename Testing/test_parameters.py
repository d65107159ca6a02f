"""Parameters: described once, converted and checked the same from Python, JSON and the command line."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.parameters import check, describe, from_values, parameter


@dataclass(frozen=True)
class Example:
    steps: int = parameter(10, "Steps", "How many.", minimum=1, maximum=100)
    spacing: tuple[float, ...] = parameter((4.0, 2.0), "Spacing", "One a level.", unit="mm", minimum=0.1)
    weight: float = parameter(0.5, "Weight", "How much.", minimum=0.0)
    kind: str = parameter("lncc", "Kind", "Which.", choices=("lncc", "mi"))
    symmetric: bool = parameter(False, "Symmetric", "Both ways.")


def test_description_follows_the_fields():
    infos = describe(Example)
    assert [p.name for p in infos] == ["steps", "spacing", "weight", "kind", "symmetric"]
    assert (infos[0].type, infos[0].minimum, infos[0].maximum, infos[1].unit, infos[3].choices) == (int, 1, 100, "mm", ("lncc", "mi"))


@pytest.mark.parametrize("values, expected", [
    ({"steps": "7"}, {"steps": 7}), ({"steps": 7.0}, {"steps": 7}), ({"spacing": "8,4,2"}, {"spacing": (8.0, 4.0, 2.0)}),
    ({"spacing": "8x4"}, {"spacing": (8.0, 4.0)}), ({"spacing": [3, 1]}, {"spacing": (3.0, 1.0)}), ({"spacing": 3}, {"spacing": (3.0,)}),
    ({"weight": "1e-3"}, {"weight": 0.001}), ({"weight": 2}, {"weight": 2.0}), ({"symmetric": "yes"}, {"symmetric": True}),
    ({"symmetric": "OFF"}, {"symmetric": False}), ({"symmetric": 1}, {"symmetric": True}), ({"kind": "mi"}, {"kind": "mi"}),
])
def test_values_of_every_origin(values, expected):
    made = from_values(Example, values)
    assert made == replace(Example(), **expected)
    assert all(type(getattr(made, k)) is type(v) for k, v in expected.items())


@pytest.mark.parametrize("values, words", [
    ({"step": 3}, "did you mean 'steps'?"), ({"qqqq": 3}, "known are steps, spacing"), ({"steps": "3.5"}, "a whole number"),
    ({"steps": 3.5}, "a whole number"), ({"steps": True}, "a whole number"), ({"steps": None}, "a whole number"), ({"steps": 0}, "from 1 to 100"),
    ({"steps": 101}, "from 1 to 100"), ({"weight": -1e-9}, "at least 0.0"), ({"weight": "nan"}, "at least 0.0"), ({"spacing": (4.0, 0.0)}, "at least 0.1 mm"),
    ({"spacing": "4,b"}, "a list of"), ({"kind": "lnc"}, "one of lncc, mi"), ({"kind": 3}, "a text"), ({"symmetric": "perhaps"}, "true or false"),
    ({"symmetric": 2}, "true or false"),
])
def test_wrong_values_are_named_with_what_was_expected(values, words):
    with pytest.raises(InputError) as caught:
        from_values(Example, values)
    assert words in str(caught.value) and next(iter(values)) in str(caught.value)


def test_check_finds_what_python_allowed():
    with pytest.raises(InputError, match="parameter 'kind' is 'none'"):
        check(Example(kind="none"))


@given(st.builds(Example, steps=st.integers(1, 100), spacing=st.lists(st.floats(0.1, 1e6), min_size=1, max_size=5).map(tuple),
                 weight=st.floats(0, 1e9), kind=st.sampled_from(("lncc", "mi")), symmetric=st.booleans()))
def test_round_trip_through_json(example):
    check(example)
    assert from_values(Example, json.loads(json.dumps(vars(example)))) == example


@given(st.dictionaries(st.sampled_from(["steps", "spacing", "weight", "kind", "symmetric", "other"]),
                       st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.lists(st.floats(), max_size=3))))
def test_anything_else_is_an_input_error_and_never_another(values):
    try:
        made = from_values(Example, values)
    except InputError as error:
        assert "\n" not in str(error) or any("\n" in str(v) for v in values.values())
    else:
        check(made)
