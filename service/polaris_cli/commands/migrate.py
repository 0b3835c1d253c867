"""`polaris migrate`: the catalog to this version's revision, or back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

import polaris_migrations as migrations
from polaris import names
from polaris.followed import resolve
from polaris.settings import MigrateSettings
from polaris.spec import TlsMode
from polaris_cli import show
from polaris_cli.flags import Format, Output, WrongUsage, with_settings
from polaris_operator.postgres import Identity, Postgres, Server


@with_settings(MigrateSettings)
def migrate(
    *,
    sql: Annotated[bool, typer.Option("--sql", help="Print the SQL, and change nothing.")] = False,
    down: Annotated[
        str | None, typer.Option(metavar="REV", help="Back to this revision; base: no catalog at all.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="With --down: do not ask.")] = False,
    output: Output = Format.TEXT,
    settings: MigrateSettings,
) -> None:
    """Bring the catalog up to date, or take it back."""
    if sql and down:
        raise WrongUsage("--sql prints the way up only: choose it or --down")
    if down is not None and down not in migrations.known_revisions() | {"base"}:
        raise WrongUsage(f"--down {down}: there is no such revision")
    if sql:
        # What the operator is to own is made as the operator's role.
        print(f"SET ROLE {names.OPERATOR_ROLE};\n\n{migrations.offline_sql()}", end="")
        return
    server, identity = _login(settings)
    if down and not (yes or typer.confirm(_question(server, down), err=True)):
        raise typer.Abort
    postgres = Postgres(server, identity)
    try:
        with postgres.unfenced() as connection:
            before = migrations.current_revision(connection)
            if down:
                migrations.downgrade(connection, down)
            else:
                migrations.upgrade(connection)
            after = migrations.current_revision(connection)
    finally:
        postgres.close()
    if output is Format.JSON:
        show.json_out({"before": before, "after": after})
    elif before == after:
        print(f"the catalog is at {after or 'no revision'} already")
    else:
        print(f"the catalog went from {before or 'nothing'} to {after or 'nothing'}")


def _question(server: Server, down: str) -> str:
    lost = "the catalog, which alone knows the indexes" if down == "base" else "what newer revisions added"
    return f"Take the catalog of {server.database} on {server.host} back to {down}, and lose {lost}?"


def _login(settings: MigrateSettings) -> tuple[Server, Identity]:
    if settings.database_secret:
        return _from_secret(Path(settings.database_secret))
    if settings.database_url:
        return _from_url(settings.database_url)
    raise WrongUsage(
        "which database? Name it with --database-url postgresql://LOGIN:PASSWORD@HOST/NAME?sslmode=...,"
        " or a Secret's folder with --database-secret"
    )


def _from_secret(folder: Path) -> tuple[Server, Identity]:
    present = resolve(folder)  # all keys of one version, though it may be swapped meanwhile
    try:
        keys = {key: (present / key).read_text("utf-8").strip() for key in _KEYS}
        ca = (present / "ca.crt").read_text("utf-8") if (present / "ca.crt").exists() else None
        server = Server(keys["host"], int(keys["port"]), keys["dbname"], TlsMode(keys["sslmode"]), ca)
    except (OSError, ValueError) as error:
        raise WrongUsage(f"--database-secret {folder}: {error}") from None
    return server, Identity(keys["username"], keys["password"])


_KEYS = ("username", "password", "host", "port", "dbname", "sslmode")


def _from_url(text: str) -> tuple[Server, Identity]:
    try:
        url = make_url(text)
        mode = TlsMode(str(url.query.get("sslmode", TlsMode.VERIFY_FULL)))
    except (ArgumentError, ValueError) as error:
        raise WrongUsage(f"--database-url: {error}") from None
    if not (url.host and url.database and url.username):
        raise WrongUsage("--database-url must have a login, a host and a database")
    ca = url.query.get("sslrootcert")
    try:
        authority = Path(str(ca)).read_text("utf-8") if ca else None
    except OSError as error:
        raise WrongUsage(f"--database-url, sslrootcert {ca}: {error.strerror}") from None
    server = Server(url.host, url.port or 5432, url.database, mode, authority)
    return server, Identity(url.username, str(url.password or ""))
