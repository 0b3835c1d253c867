"""A PostgreSQL that another one follows, by streaming."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mission.system import wait_for
from operations.site import execute
from polaris_cli.up.postgres import LocalPostgres, _end_backends
from polaris_cli.up.process import write_private

_SETTINGS = {"wal_level": "replica", "max_wal_senders": "4"}
NAME = "follower"


class Standby(LocalPostgres):
    """One that only reads until it is promoted."""

    def ready(self) -> bool:
        """Whether it answers, in recovery or not."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return lines[:1] == [str(self.pid)] and "".join(lines[7:8]).strip() in ("ready", "standby")

    def promote(self) -> None:
        """Make it the one that writes."""
        assert execute(self.superuser_dsn, "SELECT pg_promote()") == [(True,)]


@contextmanager
def pair(folder: Path) -> Iterator[tuple[LocalPostgres, Standby]]:
    """A primary, and a standby that was copied from it and follows it."""
    primary = LocalPostgres(folder / "primary", fsync=False, settings=_SETTINGS)
    standby = Standby(folder / "standby", fsync=False, settings=_SETTINGS)
    try:
        primary.start()
        _copy(primary, standby)
        standby.start()
        wait_for("the standby to follow", lambda: bool(execute(primary.superuser_dsn, _FOLLOWERS)))
        yield primary, standby
    finally:
        standby.stop()
        primary.stop()


_FOLLOWERS = "SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'"


def _copy(primary: LocalPostgres, standby: LocalPostgres) -> None:
    standby.folder.mkdir(mode=0o711)
    write_private(standby.folder / "superuser.password", primary.password)
    subprocess.run(
        [
            primary.installation.binaries / "pg_basebackup",
            f"--pgdata={standby.data}",
            f"--dbname={primary.superuser_dsn}?application_name={NAME}",
            "--write-recovery-conf",
            "--checkpoint=fast",
            "--no-sync",
        ],
        check=True,
        capture_output=True,
    )
    owner = primary.data.stat()
    for path in (standby.data, *standby.data.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid)


def crash(server: LocalPostgres) -> None:
    """End it as a machine that loses its power: nothing more is sent to anybody."""
    assert server.pid
    os.kill(server.pid, signal.SIGKILL)
    _end_backends(server.data)
    wait_for("the server to be gone", lambda: server.poll() is not None)


def set_up(server: LocalPostgres, **settings: str) -> None:
    """Change settings of a server that runs."""
    for name, value in settings.items():
        execute(server.superuser_dsn, f"ALTER SYSTEM SET {name} = '{value}'")
    execute(server.superuser_dsn, "SELECT pg_reload_conf()")
