"""`polaris bootstrap`: what administrators of PostgreSQL and of Vault grant once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polaris_cli import show
from polaris_cli.flags import Format, Output, WrongUsage
from polaris_operator import bootstrap as grants
from polaris_operator.bootstrap import Platform, VaultSetup

_DEFAULTS = VaultSetup()


def bootstrap(
    *,
    database: Annotated[str, typer.Option(help="Name of the database.")] = "polaris",
    platform: Annotated[Platform, typer.Option(help="Where PostgreSQL runs.")] = Platform.POSTGRESQL,
    vault: Annotated[bool, typer.Option(help="Logins come from Vault or OpenBao.")] = True,
    host: Annotated[str, typer.Option(help="PostgreSQL's, as Vault reaches it.")] = _DEFAULTS.host,
    port: Annotated[int, typer.Option(help="PostgreSQL's.", min=1, max=65535)] = _DEFAULTS.port,
    sslmode: Annotated[str, typer.Option(help="Of Vault's connections.")] = _DEFAULTS.sslmode,
    mount: Annotated[str, typer.Option(help="Vault's database engine.")] = _DEFAULTS.mount,
    connection: Annotated[str, typer.Option(help="Its connection.")] = _DEFAULTS.connection,
    namespace: Annotated[
        str, typer.Option(help="Of the PolarisDatabase and its ServiceAccount.")
    ] = _DEFAULTS.namespace,
    service_account: Annotated[
        str, typer.Option(help="Who logs in to Vault for the PolarisDatabase.")
    ] = _DEFAULTS.service_account,
    apply: Annotated[
        bool, typer.Option("--apply", help="Run PostgreSQL's part now, as the superuser of --database-url.")
    ] = False,
    database_url: Annotated[
        str, typer.Option(envvar="POLARIS_DATABASE_URL", help="With --apply: postgresql://SUPERUSER@HOST/.")
    ] = "",
    login_to: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="With --apply --no-vault: draw the operator's login, as the files of a Secret.",
        ),
    ] = None,
    output: Output = Format.TEXT,
) -> None:
    """Print what administrators grant once: SQL, and Vault's policy and roles."""
    if login_to is not None and (vault or not apply):
        raise WrongUsage("--login-to goes with --apply --no-vault: with Vault the operator leases its login")
    setup = VaultSetup(
        host=host,
        port=port,
        database=database,
        sslmode=sslmode,
        mount=mount,
        connection=connection,
        namespace=namespace,
        service_account=service_account,
    )
    if not apply:
        _print(grants.parts(platform, setup, vault=vault), output)
        return
    if not database_url:
        raise WrongUsage("--apply needs --database-url, the superuser's, or POLARIS_DATABASE_URL")
    dsn = _apply(database_url, database, vault=vault)
    if login_to is not None:
        _draw_login(database_url, login_to)
    if vault:
        from polaris_cli.up import grant

        password = grant.new_vault_password(dsn)
        commands = grants.vault_commands(setup).replace(grants.PASSWORD_PLACE, password)
        _print((grants.Part("As an administrator of Vault or OpenBao", commands),), output)


def _apply(database_url: str, database: str, *, vault: bool) -> str:
    from polaris_cli.up import grant

    dsn = grant.make_database(database_url, database)
    grant.grant(dsn, database, vault=vault)
    show.say(f"granted in the database {database}")
    return dsn


def _draw_login(database_url: str, folder: Path) -> None:
    """Make the operator's own login; one that was written before stays as it is."""
    from polaris_cli.up import grant
    from polaris_cli.up.process import write_private

    if (folder / "password").exists():
        show.say(f"the operator's login is in {folder} already")
        return
    password = grant.new_admin_password(database_url)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(folder / "username", grants.ADMIN_LOGIN)
    write_private(folder / "password", password)
    show.say(f"the operator's login is in {folder}")


def _print(parts: tuple[grants.Part, ...], output: Format) -> None:
    if output is Format.JSON:
        show.json_out([{"title": part.title, "text": part.text} for part in parts])
        return
    print("\n".join(f"# {part.title}\n\n{part.text}" for part in parts), end="")
