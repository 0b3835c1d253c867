"""Filters: what is refused and where, what SQL is made, and that it means what the contract says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from polaris.errors import InvalidInput, PolarisError, TooLarge
from polaris.spec import AttributeType
from polaris_service.bodies import parse_json
from polaris_service.search.filters import Limits, compile_filter, parse

pytestmark = pytest.mark.unit

DECLARED = {
    "lang": AttributeType.KEYWORD,
    "year": AttributeType.INTEGER,
    "price": AttributeType.NUMBER,
    "public": AttributeType.BOOLEAN,
    "at": AttributeType.DATETIME,
}

REFUSED: list[tuple[str, Any, str, str]] = [
    ("not an object", [], "/filter", "exactly one of"),
    ("text", "lang", "/filter", "exactly one of"),
    ("an empty object", {}, "/filter", "exactly one of"),
    ("two words", {"eq": ["lang", "pt"], "ne": ["lang", "en"]}, "/filter", "exactly one of"),
    ("an unknown word", {"like": ["lang", "p%"]}, "/filter", "exactly one of"),
    ("a word that is no text", {"and": [{"~/": 1}]}, "/filter/and/0", "exactly one of"),
    ("no list under and", {"and": {"eq": ["lang", "pt"]}}, "/filter/and", "list of filters"),
    ("a list under not", {"not": [{"eq": ["lang", "pt"]}]}, "/filter/not", "exactly one of"),
    ("three in a comparison", {"eq": ["lang", "pt", "en"]}, "/filter/eq", "list of two"),
    ("no list in a comparison", {"eq": "lang"}, "/filter/eq", "list of two"),
    ("an attribute that is no text", {"eq": [1, "pt"]}, "/filter/eq/0", "name of an attribute"),
    ("an unknown attribute", {"or": [{"eq": ["size", 1]}]}, "/filter/or/0/eq/0", "'size' is not"),
    ("a number for a keyword", {"eq": ["lang", 7]}, "/filter/eq/1", "a string"),
    ("null", {"eq": ["lang", None]}, "/filter/eq/1", "a string"),
    ("text for an integer", {"gt": ["year", "2026"]}, "/filter/gt/1", "a whole number"),
    ("a fraction for an integer", {"gt": ["year", 1.5]}, "/filter/gt/1", "a whole number"),
    ("true for an integer", {"eq": ["year", True]}, "/filter/eq/1", "a whole number"),
    ("65 bits", {"eq": ["year", 2**63]}, "/filter/eq/1", "64 bits"),
    ("text for a number", {"lt": ["price", "9"]}, "/filter/lt/1", "a number"),
    ("an integer beyond a double", {"lt": ["price", 10**400]}, "/filter/lt/1", "beyond"),
    ("1 for true", {"eq": ["public", 1]}, "/filter/eq/1", "true or false"),
    ("an order of booleans", {"gt": ["public", False]}, "/filter/gt", "eq, ne and in only"),
    ("a day without time", {"eq": ["at", "2026-11-22"]}, "/filter/eq/1", "with its offset"),
    ("31 February", {"eq": ["at", "2026-02-31T00:00:00Z"]}, "/filter/eq/1", "with its offset"),
    ("a time beyond the calendar", {"eq": ["at", "9999-12-31T23:00:00-05:00"]}, "/filter/eq/1", "beyond"),
    ("no list under in", {"in": ["lang", "pt"]}, "/filter/in/1", "list of values"),
    ("one wrong entry", {"in": ["year", [1, 2, "3"]]}, "/filter/in/1/2", "a whole number"),
    ("a keyword of a kilobyte", {"eq": ["lang", "é" * 600]}, "/filter/eq/1", "1024 bytes"),
]


@pytest.mark.parametrize(("value", "pointer", "words"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_a_filter_that_is_wrong_is_refused_with_a_pointer_to_the_fault(
    value: Any, pointer: str, words: str
) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        parse(value, DECLARED)
    assert caught.value.pointer == pointer


def test_a_filter_nested_500_deep_is_refused_with_a_pointer_and_no_recursion() -> None:
    body = b'{"filter":' + b'{"not":' * 500 + b'{"eq":["lang","pt"]}' + b"}" * 501
    with pytest.raises(TooLarge, match="16 deep") as caught:
        parse(parse_json(body)["filter"], DECLARED)
    assert caught.value.pointer == "/filter" + "/not" * 16


@pytest.mark.parametrize("depth", [1_100, 100_000])
def test_a_body_nested_too_deep_for_any_parser_is_refused(depth: int) -> None:
    with pytest.raises(PolarisError, match=r"nested too deep|not JSON"):
        parse_json(b'{"not":' * depth + b"1" + b"}" * depth)


def test_the_depth_of_a_filter_is_bounded_exactly() -> None:
    value: Any = {"eq": ["lang", "pt"]}
    for _ in range(15):
        value = {"not": value}
    parse(value, DECLARED)
    with pytest.raises(TooLarge):
        parse({"not": value}, DECLARED)


@pytest.mark.parametrize(
    "value",
    [
        {"in": ["year", list(range(5))]},
        {"or": [{"eq": ["year", n]} for n in range(5)]},
        {"and": [{"in": ["year", [1, 2, 3]]}, {"ne": ["year", 9]}, {"in": ["year", []]}]},
        {"and": [{"or": []} for _ in range(5)]},
    ],
)
def test_comparisons_and_entries_of_lists_are_counted_together(value: Any) -> None:
    parse(value, DECLARED, Limits(terms=5))
    with pytest.raises(TooLarge, match="at most 4"):
        parse(value, DECLARED, Limits(terms=4))


def test_the_text_of_a_statement_holds_no_value_and_does_not_depend_on_the_length_of_a_list() -> None:
    evil = "x'; DROP TABLE chunks; --"
    one = compile_filter(parse({"in": ["lang", [evil]]}, DECLARED), first=3)
    many = compile_filter(parse({"in": ["lang", [evil] * 9]}, DECLARED), first=3)
    assert one.sql == many.sql
    assert "$3::text[]" in one.sql
    assert "DROP" not in one.sql
    assert one.values == ([evil],)


def test_parameters_are_numbered_in_the_order_of_their_values() -> None:
    tree = parse(
        {"and": [{"eq": ["lang", "pt"]}, {"not": {"gt": ["year", 3]}}, {"lte": ["price", 2]}]}, DECLARED
    )
    condition = compile_filter(tree, first=2)
    assert [condition.sql.index(f"${n}::") for n in (2, 3, 4)] == sorted(
        condition.sql.index(f"${n}::") for n in (2, 3, 4)
    )
    assert condition.values == ("pt", 3, 2.0)


def test_negations_end_at_comparisons_so_that_bare_ones_can_use_their_index() -> None:
    sql = compile_filter(parse({"not": {"not": {"eq": ["lang", "pt"]}}}, DECLARED), 1).sql
    assert "NOT" not in sql
    sql = compile_filter(parse({"ne": ["lang", "pt"]}, DECLARED), 1).sql
    assert sql.endswith("IS NOT TRUE)")


def test_a_pointer_of_a_key_with_a_slash_is_that_of_its_parent() -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(json.loads('{"and": [{"a/b~c": []}]}'), DECLARED)
    assert caught.value.pointer == "/filter/and/0"
