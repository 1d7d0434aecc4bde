"""A query in short: what becomes of it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.shorthand import parse

WORDS = st.lists(st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=6), min_size=1, max_size=4)


@pytest.mark.parametrize(
    ("query", "parts"),
    [
        ("a red star", [{"text": "a red star"}]),
        (
            "2:golden retriever + @item42 - fruit",
            [{"text": "golden retriever", "weight": 2.0}, {"id": "item42"}, {"text": "fruit", "weight": -1.0}],
        ),
        ("- 0.5:fruit", [{"text": "fruit", "weight": -0.5}]),
        ("+ a dog", [{"text": "a dog"}]),
        ("a black-and-white t-shirt", [{"text": "a black-and-white t-shirt"}]),
        ("C++ -O2", [{"text": "C++ -O2"}]),
        ('"salt - and - pepper" - @a', [{"text": "salt - and - pepper"}, {"id": "a", "weight": -1.0}]),
        ('2:"1:1 scale"', [{"text": "1:1 scale", "weight": 2.0}]),
        ("a -", [{"text": "a -"}]),
        ("2 cats: one", [{"text": "2 cats: one"}]),
        ("a\n+ b", [{"text": "a"}, {"text": "b"}]),
    ],
)
def test_signs_weights_ids_and_quotation_marks_are_understood(query: str, parts: list[dict[str, Any]]) -> None:
    assert parse(query) == parts


@pytest.mark.parametrize("query", ["", "  ", "a + + b", "a + - b", "2:", "- ", '""', "a + @ - b"])
def test_nothing_where_a_text_should_be_is_refused(query: str) -> None:
    with pytest.raises(ValueError, match="give a text, or @ and the id of a picture"):
        parse(query)


@given(st.lists(st.tuples(st.sampled_from("+-"), st.integers(1, 99), WORDS), min_size=1, max_size=6))
def test_what_is_written_is_read(terms: list[tuple[str, int, list[str]]]) -> None:
    query = " ".join(f"{sign} {weight}:{' '.join(words)}" for sign, weight, words in terms)
    wanted = [(" ".join(words), weight if sign == "+" else -weight) for sign, weight, words in terms]
    assert [(part["text"], part.get("weight", 1)) for part in parse(query)] == wanted


@given(st.text())
def test_any_text_is_understood_or_refused(query: str) -> None:
    try:
        parts = parse(query)
    except ValueError:
        return
    assert all(set(part) <= {"text", "id", "weight"} for part in parts)
