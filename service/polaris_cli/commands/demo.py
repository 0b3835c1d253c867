"""`polaris demo postgres|openbao`: the servers of the chart's `demo.enabled`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from polaris_cli.flags import WrongUsage


class Server(StrEnum):
    """What a container of the demo runs."""

    POSTGRES = "postgres"
    OPENBAO = "openbao"


def demo(
    server: Annotated[Server, typer.Argument(help="Which of both.")],
    *,
    data: Annotated[Path, typer.Option(help="Folder of both, kept from one start to the next.")],
    database: Annotated[
        list[str] | None, typer.Option(help="With openbao: made where it is missing; may be repeated.")
    ] = None,
    service_account: Annotated[
        str, typer.Option(metavar="NAMESPACE/NAME", help="With openbao: who logs in for a PolarisDatabase.")
    ] = "",
) -> None:
    """Run a server of the chart's demo until a signal says stop: for trying, not for data that matters."""
    from polaris_cli.up import demo as servers

    if server is Server.POSTGRES:
        servers.run_postgres(data)
        return
    namespace, slash, name = service_account.partition("/")
    if not (namespace and slash and name):
        raise WrongUsage("--service-account is NAMESPACE/NAME")
    servers.run_openbao(data, database or ["polaris"], namespace, name)
