"""The program `polaris`: finds the command, runs it, and turns errors into sentences and exit codes.

0 done · 1 failed · 2 wrong usage. Only the module of the command that is called is imported, so
`polaris --help` and `polaris search` do not pay for what `polaris operator` needs.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

import typer

from polaris import __version__
from polaris.errors import PolarisError, Prerequisite

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True)
class Command:
    """A word of the command line, and the function that it calls."""

    name: str
    module: str
    """Below `polaris_cli.commands`; the function has the command's name."""
    help: str


COMMANDS = (
    Command("up", "up", "Run all of POLARIS on this machine."),
    Command("down", "down", "Remove the data of `polaris up`, after asking."),
    Command("plan", "plan", "Show what manifests would change, statement by statement."),
    Command("apply", "apply", "Make manifests true, without a cluster."),
    Command("get", "get", "List databases and indexes, and whether they are ready."),
    Command("load", "load", "Put files into an index: text, Markdown, HTML, PDF, NDJSON."),
    Command("search", "search", "Find passages in an index."),
    Command("ask", "ask", "Ask an index a question; the answer cites its sources."),
    Command("operator", "programs", "Run the operator, on a cluster or on a folder of manifests."),
    Command("serve", "programs", "Run the query service."),
    Command("worker", "programs", "Run a worker, which embeds what was put in."),
    Command("embedder", "programs", "Serve the local embedding model over HTTP."),
    Command("migrate", "migrate", "Bring the catalog up to date, or take it back."),
    Command("bootstrap", "bootstrap", "Print what administrators grant once."),
    Command("smoke", "smoke", "Check that an index answers, from a document to a citation."),
    Command("demo", "demo", "Run a server of the chart's demo: for trying only."),
    Command("doctor", "doctor", "Say what is missing on this machine, and what to do."),
)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command that the arguments name, and exit."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    given, debug = take_debug(given)
    code = run(given, debug=debug)
    # What is left to be written goes nowhere if the reader (`| head`) has gone.
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def run(given: list[str], *, debug: bool = False) -> int:
    """Run a command and return its exit code; errors become one sentence on stderr."""
    if not given:
        run(["--help"])
        return WRONG_USAGE
    try:
        return int(_program(given)(given, prog_name="polaris", standalone_mode=False) or DONE)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return FAILED  # `| head` has read enough
    except Exception as error:  # noqa: BLE001  the last place where anybody can say what happened
        if debug:
            traceback.print_exc()
        message, code = _sentence(error)
        print(f"polaris: {message}", file=sys.stderr)
        return code


def _sentence(error: Exception) -> tuple[str, int]:
    """Return what to say of an error, and the exit code."""
    match error:
        case typer.TyperException():
            return _about_usage(error), error.exit_code
        case typer.Abort():
            return "nothing was done", FAILED
        case Prerequisite(remedy=remedy) if remedy:
            return f"{error}\n{remedy}", FAILED
        case PolarisError():
            return str(error), FAILED
        case ModuleNotFoundError():
            remedy = "pip install 'polaris-rag[local]'"
            return f"the Python package {error.name} is not installed: {remedy}", FAILED
        case _:
            return f"unexpected {type(error).__name__}: {error} (--debug shows where)", FAILED


def _about_usage(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)  # a parser's error knows which command it is about
    message = error.format_message()
    message = message[:1].lower() + message[1:].rstrip(".") if context else message
    return f"{message} (see {context.command_path} --help)" if context else message


def take_debug(given: list[str]) -> tuple[list[str], bool]:
    """Take `--debug` out, wherever it stands before `--`: it is about the program, not a command."""
    end = given.index("--") if "--" in given else len(given)
    kept = [word for word in given[:end] if word != "--debug"]
    return kept + given[end:], len(kept) < end


def _program(given: list[str]) -> Callable[..., Any]:
    """Return the program with the called command in full, and all others by name only."""
    called = next((word for word in given if not word.startswith("-")), None)
    program = typer.Typer(
        rich_markup_mode=None,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    program.callback()(_root)
    for command in COMMANDS:
        function = _import(command) if command.name == called else _nothing
        program.command(command.name, help=command.help)(function)
    return program


def _import(command: Command) -> Callable[..., Any]:
    module = importlib.import_module(f"polaris_cli.commands.{command.module}")
    function: Callable[..., Any] = getattr(module, command.name)
    return function


def _nothing() -> None:
    """Stands for a command that is not called."""


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")] = False,
) -> None:
    """Retrieval-augmented generation on PostgreSQL.

    Every setting of a command is a flag, else a variable POLARIS_*, else in the file that
    POLARIS_SETTINGS_FILE names.
    """


if __name__ == "__main__":
    main()
