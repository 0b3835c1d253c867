"""Settings as flags: every field of a program's settings is an option of its command."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import wraps
from typing import Annotated, Any, TypeVar

import typer

from polaris.errors import InvalidInput
from polaris.settings import PREFIX, Settings

T = TypeVar("T", bound=Settings)

# Lists of objects can't be flags; they come from the settings file.
_FILE_ONLY = {"providers"}


class Format(StrEnum):
    """How a command prints."""

    TEXT = "text"
    JSON = "json"


Output = Annotated[Format, typer.Option("-o", "--output", help="For people, or for programs.")]


class WrongUsage(typer.TyperException):
    """What was asked for makes no sense: exit code 2."""

    exit_code = 2


def with_settings(model: type[T]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command `settings: model`, and an option for each of its fields.

    The decorated function takes `settings` as a keyword, beside parameters of its own.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        own = [
            parameter
            for name, parameter in inspect.signature(function, eval_str=True).parameters.items()
            if name != "settings"
        ]
        options = [_option(model, name) for name in model.model_fields if name not in _FILE_ONLY]

        @wraps(function)
        def command(**given: Any) -> Any:
            flags = {option.name: given.pop(option.name) for option in options}
            return function(settings=read(model, flags), **given)

        command.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
        command.__annotations__ = {}
        return command

    return decorate


def read(model: type[T], flags: Mapping[str, Any] | None = None) -> T:
    """Return the settings from flags, variables and file; WrongUsage where one makes no sense."""
    flags = flags or {}
    try:
        return model.load(os.environ, flags)
    except InvalidInput as error:
        name = error.pointer.removeprefix("/")
        message = str(error).replace(": Value error, ", ": ", 1)
        if flags.get(name) is not None:
            message = message.replace(PREFIX + name.upper(), _spelled(name), 1)
        raise WrongUsage(message.removeprefix(f"{PREFIX}: ")) from None


def _spelled(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _option(model: type[Settings], name: str) -> inspect.Parameter:
    field = model.model_fields[name]
    default = field.get_default(call_default_factory=True)
    shown = "" if default in (None, "") else f" [{default}]"
    text = " ".join((field.description or "").split()) + shown
    option = typer.Option(_spelled(name), help=text, metavar=_metavar(field.annotation), show_default=False)
    # Text: the model converts it, and says what is wrong in its own words.
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, option]
    )


def _metavar(annotation: Any) -> str:
    words = {int: "N", float: "N", bool: "BOOL"}
    return words.get(annotation, "VALUE")
