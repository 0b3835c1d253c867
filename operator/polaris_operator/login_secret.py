"""What stands in the Secret of a login: pure, and the same for writing and for comparing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from urllib.parse import quote, urlencode

from polaris.spec import TlsMode
from polaris_operator.postgres import Server


def contents(
    server: Server, username: str, password: str, epoch: int, expires_at: datetime
) -> dict[str, str]:
    """Return the keys and values of the Secret."""
    who = f"{quote(username, safe='')}:{quote(password, safe='')}"
    where = f"{_bracketed(server.host)}:{server.port}/{quote(server.database, safe='')}"
    made = {
        "username": username,
        "password": password,
        "host": server.host,
        "port": str(server.port),
        "dbname": server.database,
        "sslmode": server.sslmode.value,
        "uri": f"postgresql://{who}@{where}?{urlencode({'sslmode': server.sslmode.value})}",
        "epoch": str(epoch),
        "expires-at": timestamp(expires_at),
    }
    return made if server.ca is None else {**made, "ca.crt": server.ca}


def intact(found: Mapping[str, str], server: Server, username: str, epoch: int, expires_at: datetime) -> bool:
    """Whether a Secret is what we wrote for this login, whose password only the Secret knows."""
    return dict(found) == contents(server, username, found.get("password", ""), epoch, expires_at)


def led_elsewhere(found: Mapping[str, str], server: Server) -> Server:
    """Return where a Secret of this server's login says that it leads; `server` where it can't be read.

    An authority that was replaced, a host that was renamed: the login in it is as good as before.
    """
    try:
        return replace(
            server,
            host=found["host"],
            port=int(found["port"]),
            database=found["dbname"],
            sslmode=TlsMode(found["sslmode"]),
            ca=found.get("ca.crt"),
        )
    except (KeyError, ValueError):
        return server


def epoch_of(found: Mapping[str, str]) -> int | None:
    """Return the epoch that a Secret says it holds."""
    said = found.get("epoch", "")
    return int(said) if said.isdecimal() else None


def timestamp(moment: datetime) -> str:
    """Return RFC 3339 in UTC, whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
