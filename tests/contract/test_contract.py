"""The pure parts of the contract: names, composed SQL, changes, errors, settings, logs."""

from __future__ import annotations

import inspect
import io
import json
import logging
import re
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from contract.manifests import MINIMAL, merged
from polaris import changes, errors, layout, names, settings, telemetry
from polaris.attributes import expression, parse_datetime, problem
from polaris.changes import Effect
from polaris.errors import InvalidInput, PolarisError
from polaris.spec import AttributeType, Embedding, IndexType, PolarisIndexSpec, VectorIndex, parse_spec
from polaris.sql import Sql, compose, identifier, literal

SPEC = parse_spec(PolarisIndexSpec, MINIMAL["PolarisIndex"])

# --- names


@given(st.integers(1, 2**31 - 1), st.text(max_size=300))
def test_every_schema_name_fits_and_needs_no_quoting(number: int, name: str) -> None:
    schema = names.index_schema(number, name)
    assert len(schema.encode()) <= names.MAX_BYTES
    assert re.fullmatch(r"[a-z][a-z0-9_]*", schema)


@given(st.integers(1, 2**31 - 1), st.from_regex(r"\A[a-z][a-z0-9_]{0,39}\Z"))
def test_every_derived_name_fits(number: int, attribute: str) -> None:
    derived = [
        names.group_role("0123abcd", "worker"),
        names.index_role("0123abcd", number, "reader"),
        names.login("0123abcd", 2**63 - 1),
        names.vector_index(number, {"m": 16}),
        names.chunks_table(number),
        names.applied_table(number),
        *(names.attribute_index(number, attribute, kind.value) for kind in AttributeType),
    ]
    assert all(len(name.encode()) <= names.MAX_BYTES for name in derived)
    assert len(set(derived)) == len(derived)


def test_a_name_that_postgresql_would_cut_is_refused() -> None:
    with pytest.raises(ValueError, match="has 64 bytes"):
        names.bounded("x" * 64)


# --- composed SQL


def test_a_plain_string_never_gets_into_a_statement() -> None:
    with pytest.raises(TypeError, match="neither Sql nor int"):
        compose("SELECT {x}", x="1; DROP TABLE t")  # type: ignore[arg-type]


def test_names_and_values_are_quoted() -> None:
    assert identifier('a"b', "c") == '"a""b"."c"'
    assert literal("it's") == "'it''s'"
    assert literal("\\") == "E'\\\\'"
    assert compose("SELECT {n}", n=3) == Sql("SELECT 3")


@pytest.mark.parametrize("bad", ["", "a\x00b"])
def test_what_is_no_identifier_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="not an identifier"):
        identifier(bad)


# --- what a change means


def test_every_field_of_an_index_has_an_effect() -> None:
    full = merged(MINIMAL["PolarisIndex"], {"databaseRef": {"namespace": "rag"}, "search": {"mode": "dense"}})
    for path in changes.leaves(parse_spec(PolarisIndexSpec, full)):
        changes.effect_of(path)


@pytest.mark.parametrize(
    ("path", "effect"),
    [
        ("embedding.model", Effect.NEW_GENERATION),
        ("embedding.metric", Effect.BESIDE),
        ("index.m", Effect.BESIDE),
        ("chunking.maxTokens", Effect.NEW_GENERATION),
        ("databaseRef.name", Effect.REFUSED),
        ("build.parallelWorkers", Effect.IN_PLACE),
    ],
)
def test_a_field_has_the_effect_of_the_nearest_row(path: str, effect: Effect) -> None:
    assert changes.effect_of(path) == effect


def test_a_change_says_what_becomes_of_what() -> None:
    new = SPEC.model_copy(update={"index": VectorIndex(m=24)})
    (change,) = changes.changes(SPEC, new)
    assert change.sentence == "index.m: 16 becomes 24"
    assert changes.changes(SPEC, SPEC) == []


# --- the layout


def test_another_parameter_is_another_index_and_exact_is_none() -> None:
    embedding = Embedding(model="m", dimension=8)
    first = layout.vector_index(1, embedding, VectorIndex())
    second = layout.vector_index(1, embedding, VectorIndex(m=8))
    assert first is not None
    assert second is not None
    assert first.name != second.name
    assert layout.vector_index(1, embedding, VectorIndex(type=IndexType.EXACT)) is None


def test_a_vector_is_stored_inline_only_while_its_row_fits_a_page() -> None:
    assert layout.embedding_storage(Embedding(model="m", dimension=3600)) == "PLAIN"
    assert layout.embedding_storage(Embedding(model="m", dimension=3601)) == "EXTERNAL"


# --- attributes


@pytest.mark.parametrize(
    ("kind", "value", "right"),
    [
        (AttributeType.KEYWORD, "pt", True),
        (AttributeType.KEYWORD, 1, False),
        (AttributeType.KEYWORD, "x" * 1025, False),
        (AttributeType.INTEGER, 2**63 - 1, True),
        (AttributeType.INTEGER, 2**63, False),
        (AttributeType.INTEGER, True, False),
        (AttributeType.INTEGER, 1.0, False),
        (AttributeType.NUMBER, 1, True),
        (AttributeType.NUMBER, float("nan"), False),
        (AttributeType.BOOLEAN, False, True),
        (AttributeType.BOOLEAN, 0, False),
        (AttributeType.DATETIME, "2026-11-22T18:00:00Z", True),
        (AttributeType.DATETIME, "2026-02-31T18:00:00Z", False),
        (AttributeType.DATETIME, "2026-11-22T18:00:00", False),
        (AttributeType.DATETIME, "2026-11-22", False),
    ],
)
def test_a_value_is_of_the_declared_type_or_the_problem_is_said(
    kind: AttributeType, value: object, right: bool
) -> None:
    found = problem(kind, value)
    assert (found is None) == right
    assert found is None or found.startswith("must be ")


def test_an_instant_keeps_its_offset() -> None:
    found = parse_datetime("2026-11-22T18:00:00-03:00")
    assert found is not None
    assert found.isoformat() == "2026-11-22T18:00:00-03:00"


def test_an_attribute_called_like_sql_stays_a_value() -> None:
    assert "'; drop'" not in expression("a", AttributeType.KEYWORD)
    assert "\"attributes\" -> 'a'" in expression("a", AttributeType.KEYWORD)


# --- errors


def _tree() -> set[str]:
    found, todo = set(), [PolarisError]
    while todo:
        error = todo.pop()
        found.add(error.__name__)
        todo += error.__subclasses__()
    return found


def test_the_drawing_of_the_errors_names_all_of_them() -> None:
    drawn = set(re.findall(r"[─ ] ?([A-Z]\w+)", (errors.__doc__ or "").split("They are")[0]))
    defined = {n for n, v in vars(errors).items() if inspect.isclass(v) and issubclass(v, PolarisError)}
    assert defined <= drawn
    assert defined <= _tree()


# --- settings


def test_flags_win_over_variables_and_variables_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("port: 1\nhost: 127.0.0.2\npool_size: 3\n")
    environment = {"POLARIS_SETTINGS_FILE": str(file), "POLARIS_PORT": "2", "POLARIS_HOST": "127.0.0.3"}
    made = settings.ServiceSettings.load(environment, {"port": 3, "host": None})
    assert (made.port, made.host, made.pool_size) == (3, "127.0.0.3", 3)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"POLARIS_PORT": "http"}, "POLARIS_PORT"),
        ({"POLARIS_AUTH": "none", "POLARIS_HOST": "0.0.0.0"}, "loopback only"),  # noqa: S104
        ({"POLARIS_AUTH": "tokens"}, "POLARIS_TOKENS_FILE"),
        ({"POLARIS_GENERATOR": "openai"}, "needs a URL and a model"),
        ({"POLARIS_SETTINGS_FILE": "/nowhere/at-all"}, "POLARIS_SETTINGS_FILE"),
    ],
)
def test_a_wrong_setting_is_named(environment: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        settings.ServiceSettings.load(environment)


def test_a_key_of_the_file_that_no_program_has_is_named_and_one_of_another_is_passed_over(
    tmp_path: Path,
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("resync_seconds: 5\nlog_level: debug\n")
    environment = {"POLARIS_SETTINGS_FILE": str(file)}
    assert settings.ServiceSettings.load(environment).log_level == "debug"
    file.write_text("pool_sise: 3\n")
    with pytest.raises(InvalidInput, match=r"no setting pool_sise; is it pool_size\?"):
        settings.ServiceSettings.load(environment)


def test_every_setting_says_what_it_means() -> None:
    for program, variable, _, meaning in settings.rows():
        if variable != "POLARIS_PROVIDERS":
            assert meaning.endswith("."), f"{variable} of {program} has no sentence"


# --- logs


def test_a_log_is_one_json_object_a_line_and_shows_no_secret() -> None:
    root, handlers, level = logging.root, logging.root.handlers[:], logging.root.level
    stream = io.StringIO()
    try:
        telemetry.configure_logging("info")
        handler = logging.root.handlers[0]
        assert isinstance(handler, logging.StreamHandler)
        handler.setStream(stream)
        telemetry.logger("test").info("hello", vault_token="s.123", index=7)
        logging.getLogger("library").warning("it %s", "said")
    finally:
        root.handlers[:], root.level = handlers, level
        structlog.reset_defaults()
    ours, theirs = map(json.loads, stream.getvalue().splitlines())
    assert (ours["event"], ours["index"], ours["vault_token"]) == ("hello", 7, "[redacted]")
    assert (theirs["event"], theirs["level"]) == ("it said", "warning")


@pytest.mark.parametrize("value", [10**400, -(10**309), float("inf"), float("nan"), True, "3", None])
def test_a_number_that_floating_point_does_not_hold_is_refused(value: object) -> None:
    assert "1.7976931348623157e308" in (problem(AttributeType.NUMBER, value) or "")


@pytest.mark.parametrize("value", [0, -0.0, 3, 2**64, 10**308, 1.7976931348623157e308, 5e-324])
def test_a_number_that_floating_point_holds_is_taken(value: object) -> None:
    assert problem(AttributeType.NUMBER, value) is None
