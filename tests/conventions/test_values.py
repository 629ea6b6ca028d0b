"""Values as Python's ``repr`` writes them."""

import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from step_exporter.conventions._values import literal

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(codec="utf-8")) | st.binary()
plain = st.recursive(
    scalars | texts,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(texts | st.integers(), inner),
    max_leaves=10,
)


@given(plain)
def test_what_repr_writes_is_read_back(value: object) -> None:
    assert literal(repr(value)) == value


@pytest.mark.parametrize(
    "text",
    [
        r"{'path': '\d+'}",
        r"[b'\u0041']",
        r"['\400']",
        "[1if 2 else 3]",
        "[0xfor]",
        "['a' is 1]",
        "[f'{x}']",
        r"['''\d''']",
        "[('a' ('b'))]",
        "[Finish.STOP]",
    ],
)
def test_what_no_repr_writes_is_no_literal_and_python_says_nothing_of_it(text: str) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert literal(text) is None
    assert said == []
