"""PostgreSQL and OpenBao for the chart's `demo.enabled`: containers of one pod, with one folder of data.

For trying only. Each container runs one of them as a child of ours, as `polaris up` does, and OpenBao's
does what administrators do once. They share a pod, so that the superuser of PostgreSQL and OpenBao's root
token go nowhere: both stand in files of that folder, and PostgreSQL lets its superuser in from the pod's
own loopback only.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from polaris.errors import DatabaseUnavailable
from polaris_cli import show
from polaris_cli.up import grant, ports
from polaris_cli.up.openbao import LocalOpenBao
from polaris_cli.up.postgres import LocalPostgres
from polaris_cli.up.supervise import State, Supervisor

ALL_ADDRESSES = "0.0.0.0"  # noqa: S104  its Service is what others reach it by
POSTGRES = ports.Listen(ALL_ADDRESSES, 5432)
OPENBAO = ports.Listen(ALL_ADDRESSES, 8200)

_WARNING = "this is POLARIS's demo: for trying only, not for data that matters"
_POSTGRES_SECONDS = 180.0
_LOOK_SECONDS = 0.5


def run_postgres(data: Path) -> None:
    """Run PostgreSQL until a signal says stop."""
    show.say(_WARNING)
    folder = data / "postgres"
    with Supervisor(folder, _report) as supervisor:
        supervisor.start(_postgres(folder))
        supervisor.watch()


def run_openbao(data: Path, databases: Sequence[str], namespace: str, service_account: str) -> None:
    """Run OpenBao until a signal says stop, and grant beforehand what POLARIS needs.

    The databases are made where they are missing. The ServiceAccount is who logs in to OpenBao for a
    PolarisDatabase.
    """
    show.say(f"{_WARNING}: the key that unseals OpenBao stands in a file beside its data")
    folder = data / "openbao"
    openbao = LocalOpenBao(folder, listen=OPENBAO)
    with Supervisor(folder, _report) as supervisor:
        supervisor.start(openbao)
        _grant(_postgres(data / "postgres"), openbao, databases, namespace, service_account)
        show.say(f"granted in {', '.join(databases)}, to the ServiceAccount {namespace}/{service_account}")
        supervisor.watch()


def _grant(
    postgres: LocalPostgres,
    openbao: LocalOpenBao,
    databases: Sequence[str],
    namespace: str,
    service_account: str,
) -> None:
    first, *_ = dsns = [grant.make_database(_superuser(postgres), database) for database in databases]
    for dsn, database in zip(dsns, databases, strict=True):
        grant.grant(dsn, database)
    password = grant.new_vault_password(first)
    with grant.VaultAdministrator(openbao.address, openbao.root_token) as administrator:
        administrator.connect_database(ports.LOOPBACK, postgres.port, databases[0], password)
        administrator.allow_service_account(namespace, service_account)


def _superuser(postgres: LocalPostgres) -> str:
    """Return how the superuser connects, once the other container's PostgreSQL lets it in."""
    deadline = time.monotonic() + _POSTGRES_SECONDS
    while True:
        try:
            grant.connect(postgres.superuser_dsn).close()
        except (OSError, DatabaseUnavailable) as error:  # no password yet, or no answer
            if time.monotonic() > deadline:
                raise DatabaseUnavailable(f"PostgreSQL, in the container beside, is away: {error}") from None
            time.sleep(_LOOK_SECONDS)
        else:
            return postgres.superuser_dsn


def _postgres(folder: Path) -> LocalPostgres:
    return LocalPostgres(folder, listen=POSTGRES)


def _report(part: str, state: State, detail: str) -> None:
    show.say(f"{part} {state}{': ' if detail else ''}{detail}")
