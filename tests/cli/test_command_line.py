"""What holds for every command: words, exit codes, sentences, and what is not imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cli.program import command, environment, here, polaris
from polaris_cli import names
from polaris_cli.flags import WrongUsage
from polaris_cli.main import COMMANDS
from polaris_cli.show import clean

NOBODY = "http://127.0.0.1:9"  # the discard port, where nobody listens


def test_help_names_every_command() -> None:
    done = polaris("--help")
    assert done.code == 0
    assert all(f"  {each.name} " in done.out for each in COMMANDS)


@pytest.mark.parametrize("name", [each.name for each in COMMANDS])
def test_every_command_has_help_of_its_own(name: str) -> None:
    done = here(name, "--help")
    assert done.code == 0, done.err
    assert f"Usage: polaris {name}" in done.out


def test_without_a_command_the_help_is_shown_and_usage_was_wrong() -> None:
    done = here()
    assert done.code == 2
    assert "Commands:" in done.out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["fly"], "no such command 'fly'"),
        (["search"], "missing argument 'NAME' (see polaris search --help)"),
        (["search", "docs"], "missing argument 'TEXT...'"),
        (["search", "docs", "x", "--colour"], "no such option: --colour"),
        (["search", "docs", "x", "-k", "0"], "invalid value for '-k'"),
        (["search", "a/b/c", "x"], "'a/b/c' is no name of an index"),
        (["search", "Docs", "x"], "'Docs' is no name of an index"),
        (["search", "docs", "x", "--filter", "{"], "--filter is not JSON"),
        (["search", "docs", "x", "--filter", "[1]"], "--filter must be a JSON object"),
        (["search", "docs", "x", "--server", "here"], "--server: 'here' is no address"),
        (["search", "docs", "x", "--token-file", "/nowhere"], "the token file /nowhere"),
        (["ask", "docs", "x", "-o", "xml"], "'xml' is not one of 'text', 'json'"),
        (["load", "docs", "/nowhere"], "there is no file or folder /nowhere"),
        (["load", "docs", ".", "--attribute", "lang"], "--attribute 'lang' is not KEY=VALUE"),
        (["load", "docs", ".", "--encoding", "morse"], "nobody knows an encoding 'morse'"),
        (["serve", "--port", "99999"], "--port: Input should be less than or equal to 65535"),
        (["serve", "--auth", "none", "--host", "::"], "auth none is for loopback only"),
        (["operator", "--files", "/nowhere"], "there is no folder /nowhere"),
        (["operator", "--data", "x"], "--data goes with --files only"),
        (["migrate"], "which database?"),
        (["migrate", "--sql", "--down", "base"], "choose it or --down"),
        (["migrate", "--down", "9999"], "there is no such revision"),
        (["migrate", "--database-url", "nonsense"], "--database-url: "),
        (["migrate", "--database-secret", "/nowhere"], "--database-secret /nowhere"),
        (["demo", "openbao", "--data", "x"], "--service-account is NAMESPACE/NAME"),
        (["smoke", "docs", "--token-file", "/nowhere"], "the token file /nowhere"),
        (["bootstrap", "--apply"], "--apply needs --database-url"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(arguments: list[str], sentence: str) -> None:
    done = here(*arguments)
    assert done.code == 2, done.err
    assert done.out == ""
    assert sentence in done.err
    assert done.err.startswith("polaris: ")
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["search", "docs", "x", "--server", NOBODY], f"nothing answers at {NOBODY}"),
        (["ask", "docs", "x", "--server", NOBODY], "start a service with 'polaris up'"),
        (["bootstrap", "--apply", "--database-url", "host=127.0.0.1 port=9"], "Connection refused"),
        (["bootstrap", "--apply", "--database-url", "nonsense"], "this is no connection string"),
        (["migrate", "--database-url", "postgresql://x:y@127.0.0.1:9/x?sslmode=disable"], "127.0.0.1"),
    ],
)
def test_a_failure_is_one_sentence_and_exit_code_1(arguments: list[str], sentence: str) -> None:
    done = here(*arguments)
    assert done.code == 1, done.err
    assert done.out == ""
    assert sentence in done.err
    assert "Traceback" not in done.err
    assert len(done.err.splitlines()) == 1


def test_debug_may_stand_anywhere_and_shows_where_it_failed() -> None:
    for arguments in (["--debug", "search", "docs", "x"], ["search", "docs", "x", "--debug"]):
        done = here(*arguments, "--server", NOBODY)
        assert done.code == 1
        assert "Traceback" in done.err


def test_debug_after_two_hyphens_is_what_is_looked_for() -> None:
    done = here("search", "--server", NOBODY, "docs", "--", "--debug")
    assert done.code == 1
    assert "Traceback" not in done.err


def test_flags_win_over_variables_and_variables_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("server: http://127.0.0.1:7\n")
    by_file = here("search", "docs", "x", variables={"POLARIS_SETTINGS_FILE": str(file)})
    variables = {"POLARIS_SETTINGS_FILE": str(file), "POLARIS_SERVER": "http://127.0.0.1:8"}
    by_variable = here("search", "docs", "x", variables=variables)
    by_flag = here("search", "docs", "x", "--server", NOBODY, variables=variables)
    assert "http://127.0.0.1:7:" in by_file.err
    assert "http://127.0.0.1:8:" in by_variable.err
    assert f"{NOBODY}:" in by_flag.err


def test_a_wrong_variable_is_named() -> None:
    done = here("search", "docs", "x", variables={"POLARIS_SERVER": "here"})
    assert done.code == 2
    assert "POLARIS_SERVER: 'here' is no address" in done.err


@pytest.mark.parametrize(
    ("called", "absent"),
    [
        (["--help"], {"pydantic", "httpx", "rich", "kopf", "kubernetes", "fastapi", "sqlalchemy"}),
        (
            ["search", "docs", "x", "--server", NOBODY],
            {"kopf", "kubernetes", "fastapi", "sqlalchemy", "hvac"},
        ),
        (["bootstrap"], {"kopf", "kubernetes", "fastapi", "hvac", "psycopg2"}),
    ],
)
def test_a_command_imports_only_what_it_needs(called: list[str], absent: set[str]) -> None:
    program = (
        "import sys, polaris_cli.main as main; code = main.run(sys.argv[1:]);"
        "print('loaded', *sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *called],
        check=True,
        capture_output=True,
        text=True,
        env=environment(),
    )
    loaded = set(done.stderr.splitlines()[-1].split())
    assert "polaris_cli" in loaded
    assert not loaded & absent


def test_a_mistake_in_a_process_of_its_own_is_the_same_sentence_and_code() -> None:
    wrong, failed = polaris("search"), polaris("search", "docs", "x", "--server", NOBODY)
    assert (wrong.code, failed.code) == (2, 1)
    assert wrong.err.startswith("polaris: missing argument")
    assert failed.err.startswith("polaris: nothing answers")


def test_a_reader_that_has_enough_is_no_error() -> None:
    with subprocess.Popen(
        command("migrate", "--sql"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


@pytest.mark.parametrize(
    ("text", "meant"),
    [("docs", ("default", "docs")), ("team-a/docs", ("team-a", "docs")), ("0", ("default", "0"))],
)
def test_an_index_is_named_by_name_or_by_namespace_and_name(text: str, meant: tuple[str, str]) -> None:
    assert names.parse(text) == meant


@pytest.mark.parametrize("text", ["", "/", "a/", "/b", "-a", "a-", "A", "a b", "a\n", "é", "a" * 64])
def test_what_no_index_can_be_called_is_wrong_usage(text: str) -> None:
    with pytest.raises(WrongUsage):
        names.parse(text)


def test_text_of_documents_cannot_command_a_terminal() -> None:
    assert clean("a\x1b[2Jb\x07c\x9bd\r\n\té") == "a\ufffd[2Jb\ufffdc\ufffdd\ufffd\n\té"


def test_bootstrap_prints_json_for_programs() -> None:
    done = here("bootstrap", "-o", "json", "--platform", "cloudnativepg", "--database", "rag")
    assert done.code == 0
    parts = json.loads(done.out)
    assert {"title", "text"} == set(parts[0])
    assert "postInitApplicationSQL" in parts[0]["text"]


def test_migrate_prints_sql_that_begins_as_the_operator() -> None:
    done = here("migrate", "--sql")
    assert done.code == 0
    assert done.out.startswith("SET ROLE polaris_operator;")
    assert "CREATE TABLE polaris.indexes" in done.out
