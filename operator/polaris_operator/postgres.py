"""The door to PostgreSQL: the only module that opens connections.

Every session first becomes `polaris_operator`: CREATEROLE is not inherited, and what a leased login
itself created or granted could never be dropped with it. The search path is PostgreSQL's catalog and
the schema of pgvector, so nobody's `public` can put a function before ours.

What PostgreSQL says is translated here, by SQLSTATE, into the tree of `polaris.errors`.
"""

from __future__ import annotations

import contextlib
import select
import socket
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import psycopg2
import psycopg2.errorcodes
import psycopg2.extensions
from sqlalchemy import URL, Connection, CursorResult, Engine, create_engine, exc
from sqlalchemy.pool import NullPool, QueuePool

from polaris import names
from polaris.errors import (
    Conflict,
    DatabaseRefused,
    DatabaseUnavailable,
    DeadlineExceeded,
    NotOwner,
    PolarisError,
    Prerequisite,
    Refused,
)
from polaris.spec import TlsMode
from polaris.sql import Sql, compose, identifier, literal
from polaris.status import Reason
from polaris.telemetry import logger
from polaris_operator import bootstrap, sessions
from polaris_operator.steps import BuildIndex, ExecuteAlone
from polaris_operator.world.database import Process
from polaris_operator.world.index import BuildFailure

log = logger(__name__)

_CONNECT_SECONDS = 5
_READ_MILLISECONDS = 60_000
_WRITE_MILLISECONDS = 600_000
# A statement that waits for a lock makes all that come after it wait too.
_LOCK_MILLISECONDS = 5_000
# A server that asks for the password itself does not get it, whoever it is.
_METHODS = "scram-sha-256,md5"
_METHODS_LIBPQ = 160000  # The first that keeps to them.
# Where no authority is named: the system's. libpq's own word for them depends on how it was built.
_SYSTEM_AUTHORITIES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")

_SEARCH_PATH = Sql(
    "SELECT pg_catalog.set_config('search_path', coalesce("
    "(SELECT 'pg_catalog, ' || pg_catalog.quote_ident(n.nspname) FROM pg_catalog.pg_extension e"
    " JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'vector'),"
    " 'pg_catalog'), {local})"
)
# The row of an installation appears with its first operator. The epoch stays where the holder is the
# same process: two PolarisDatabases may lead to one database.
_TAKE_OVER = """
WITH installation AS (
  INSERT INTO polaris.installations (id, name, heartbeat_at) VALUES (%(id)s, %(name)s, now())
  ON CONFLICT (id) DO UPDATE SET name = excluded.name, heartbeat_at = now() RETURNING id
)
INSERT INTO polaris.fences AS fence (installation_id, epoch, holder)
SELECT id, 1, %(holder)s FROM installation
ON CONFLICT (installation_id) DO UPDATE SET holder = excluded.holder,
  epoch = CASE WHEN fence.holder = excluded.holder THEN fence.epoch ELSE fence.epoch + 1 END
RETURNING epoch
"""
_BUILDS = compose(
    "SELECT count(*) FROM pg_stat_activity WHERE usename = session_user AND application_name ~ {builds}",
    builds=sessions.BUILDS,
)
# Who holds a lock that a plain CREATE INDEX waits for, the oldest first.
_HOLDERS = compose(
    """
SELECT {holder}
FROM pg_stat_activity a WHERE a.pid <> pg_backend_pid() AND EXISTS (
  SELECT FROM pg_locks l WHERE l.pid = a.pid AND l.granted AND l.relation = to_regclass(%s)
    AND l.mode NOT IN ('AccessShareLock', 'RowShareLock', 'ShareLock'))
ORDER BY a.xact_start, a.pid LIMIT 3
""",
    holder=sessions.told("a"),
)


@dataclass(frozen=True)
class Server:
    """Where a database is, and how connections to it are protected."""

    host: str
    port: int
    database: str
    sslmode: TlsMode = TlsMode.VERIFY_FULL
    ca: str | None = None
    """Certificates of the authority, PEM; None: the system's authorities."""


@dataclass(frozen=True)
class Identity:
    """A login."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True)
class Fence:
    """Who writes: an installation, and by which process; epochs alone are alike in two databases."""

    installation: uuid.UUID
    epoch: int
    holder: str


def run(connection: Connection, statement: Sql) -> CursorResult[Any]:
    """Execute a statement as it is: nothing in it is taken for a parameter, not even `%`."""
    return connection.exec_driver_sql(statement, execution_options={"no_parameters": True})


def is_pooled(connection: Connection) -> bool:
    """Whether a pooler answers in the server's place: it makes up the pid that a client is told first."""
    driver = cast("psycopg2.extensions.connection", connection.connection.dbapi_connection)
    serves = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
    return bool(driver.info.backend_pid != serves)


class Postgres:
    """One database, for one PolarisDatabase. Used by several threads at a time."""

    def __init__(
        self,
        server: Server,
        identity: Identity,
        *,
        process: Process | None = None,
        may: Callable[[], None] = lambda: None,
    ) -> None:
        """Work as this login, for a process; `may` raises where that is another process's business now.

        It is asked before each transaction and session, and once more in it: one that is frozen after that
        has it open, by its name, and `take_over` ends it.
        """
        self._process = process
        self._may = may
        self._folder = tempfile.TemporaryDirectory(prefix="polaris-postgres-")
        self.fence: Fence | None = None
        """Set by `take_over`; nothing is written without it."""
        self.failures: dict[tuple[str, str], BuildFailure] = {}
        """Builds that this process started and that failed last, by schema and name of the index."""
        self.server = server
        self.identity = identity
        self._pooled, self._single = self._engines()

    # Which login

    def leads_to(self, server: Server) -> bool:
        """Whether this is a way to the same database, by whatever protection."""
        mine = self.server
        return (mine.host, mine.port, mine.database) == (server.host, server.port, server.database)

    def log_in(self, server: Server, identity: Identity) -> None:
        """Use another login (or another protection) from now on; what is under way ends with the old one.

        What was taken over is one database. Where another one is led to, nothing is known of it.
        """
        if not self.leads_to(server):
            self.fence = None
            self.failures = {}
        self.server, self.identity = server, identity
        self._renew()

    def close(self) -> None:
        """Close what is idle; builds go on in PostgreSQL."""
        self._pooled.dispose()
        self._folder.cleanup()

    # Ways in

    @contextlib.contextmanager
    def probe(self) -> Iterator[Connection]:
        """Read as the bare login, before it is known whether `polaris_operator` is there."""
        with self._transaction("READ ONLY", _READ_MILLISECONDS, role=False) as connection:
            yield connection

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """Read one consistent picture: all statements see the same moment."""
        mode = "ISOLATION LEVEL REPEATABLE READ READ ONLY"
        with self._transaction(mode, _READ_MILLISECONDS) as connection:
            yield connection

    @contextlib.contextmanager
    def write(self, guards: Sequence[Sql] = ()) -> Iterator[Connection]:
        """One transaction, committed at the end, in which we hold the fence and every guard is true.

        Raises Conflict where another process has taken over, a guard is false, or a lock is not had
        in time.
        """
        with self._transaction("READ WRITE", _WRITE_MILLISECONDS) as connection:
            self._hold_fence(connection)
            _check(connection, guards)
            yield connection

    @contextlib.contextmanager
    def unfenced(self) -> Iterator[Connection]:
        """One transaction that writes before there is a fence: a migration.

        What other processes of the installation have open is ended first: it could hold us up for ever.
        """
        with self._transaction("READ WRITE", _WRITE_MILLISECONDS) as connection:
            if self._process is not None:
                self._claim(connection, self._process.installation, self._process.holder)
            yield connection

    def alone(self, action: ExecuteAlone) -> None:
        """Run one statement outside of a transaction, in a session of its own.

        Raises Conflict where its lock is held (a build lives) or a guard is false.
        """
        with self._session("alone", action.settings) as connection:
            self._hold_fence(connection)
            if action.lock is not None and not _try_lock(connection, action.lock):
                raise Conflict(f"a build is under way, so this waits: {action.statement}")
            _check(connection, action.guards)
            run(connection, action.statement)

    def start_build(self, action: BuildIndex, ended: Callable[[], None]) -> bool:
        """Start a build and return at once; False where one lives or has just ended.

        `ended` is called from another thread when it is over, well or badly. The build goes on in
        PostgreSQL when this process dies: the lock of its session tells who comes next.
        """
        with contextlib.ExitStack() as stack:
            connection = stack.enter_context(self._session("build", action.settings))
            self._hold_fence(connection)
            if not _try_lock(connection, action.lock) or not _is_due(connection, action):
                return False
            session = stack.pop_all()
        threading.Thread(
            target=self._build, args=(connection, session, action, ended), name=action.index, daemon=True
        ).start()
        return True

    def listen(self, channel: str, heard: Callable[[], None], until: socket.socket) -> None:
        """Call `heard` each time that something was told on a channel, until there is something to read.

        And once at the beginning, for what was told before. Raises DatabaseUnavailable where the session
        is lost; what is told meanwhile nobody hears.
        """
        with self._session("listen", {}) as connection:
            driver = cast("psycopg2.extensions.connection", connection.connection.dbapi_connection)
            run(connection, compose("LISTEN {channel}", channel=identifier(channel)))
            heard()
            while True:
                select.select([driver.fileno(), until.fileno()], [], [])
                if select.select([until.fileno()], [], [], 0)[0]:
                    return
                try:
                    driver.poll()
                except psycopg2.Error as error:
                    raise DatabaseUnavailable(f"nobody tells us anything: {error}") from error
                if driver.notifies:
                    driver.notifies.clear()
                    heard()

    def take_over(self, installation: uuid.UUID, name: str, holder: str) -> None:
        """Become the process that writes for this installation, and end what older ones do.

        Their sessions go before the epoch is raised, since one that is frozen in a transaction would never
        let go of the fence, and once more after it. Builds that are under way go on: whoever comes next
        watches them.
        """
        with self._transaction("READ WRITE", _WRITE_MILLISECONDS) as connection:
            self._claim(connection, installation, holder)
            epoch: int = connection.exec_driver_sql(
                _TAKE_OVER, {"id": str(installation), "name": name, "holder": holder}
            ).scalar_one()
            fence = Fence(installation, epoch, holder)
            _end_others(connection, installation, holder)
        self.fence = fence
        self._renew()  # The name of the sessions tells their epoch.
        log.info("took over", installation=str(installation), epoch=epoch)

    def beat(self) -> None:
        """Say that this installation's operator lives; the command line keeps away from one that does.

        And end what older ones have open: their builds end after we took over, and keep their locks.
        """
        with self.write() as connection:
            if self.fence is not None:
                _end_others(connection, self.fence.installation, self.fence.holder)
            run(connection, self._heartbeat("now()"))

    def resign(self) -> None:
        """Say that no operator lives here any more, as far as that is possible."""
        with contextlib.suppress(PolarisError), self.write() as connection:
            run(connection, self._heartbeat("NULL"))

    def _heartbeat(self, value: str) -> Sql:
        return compose(
            "UPDATE polaris.installations SET heartbeat_at = {value} WHERE id = {id}",
            value=Sql(value),
            id=literal(str(self.fence.installation if self.fence else "")),
        )

    def builds(self) -> bool | None:
        """Whether a build lives in a session of the present login; None where nobody answers."""
        with contextlib.suppress(PolarisError), self.probe() as connection:
            return bool(run(connection, _BUILDS).scalar_one())
        return None

    def hold(self) -> None:
        """Make sure that we still write here, before somebody else is asked for what can't be taken back.

        Raises what `write` raises.
        """
        with self.write():
            pass

    def administer(self, statements: Sequence[Sql]) -> None:
        """Run what administrators grant once (`bootstrap.statements`), as the login, who may."""
        with _translated(), self._single.connect() as pristine:
            connection = pristine.execution_options(isolation_level="AUTOCOMMIT")
            for statement in statements:
                run(connection, statement)

    def scram_verifier(self, username: str, password: str) -> str:
        """Return what PostgreSQL keeps of a password, made here so that it never stands in SQL."""
        with _translated(), self._pooled.connect() as connection:
            # The connection is asked for its encoding only: nothing is sent.
            driver = cast("psycopg2.extensions.connection", connection.connection.dbapi_connection)
            return psycopg2.extensions.encrypt_password(password, username, driver, "scram-sha-256")

    # Underneath

    def _build(
        self,
        connection: Connection,
        session: contextlib.ExitStack,
        action: BuildIndex,
        ended: Callable[[], None],
    ) -> None:
        which = (action.schema, action.index)
        log.info("build started", schema=action.schema, index=action.index)
        try:
            with session:
                run(connection, action.statement)
                if action.afterwards is not None:
                    run(connection, action.afterwards)
        except Exception as error:  # noqa: BLE001  the end of a thread: it is kept and shown
            failed = self.failures.get(which)
            late = isinstance(error, Conflict)
            message = " ".join(str(error).split()) + (self._in_the_way(action) if late else "")
            count = failed.count + 1 if failed and failed.late == late else 1
            self.failures[which] = BuildFailure(message, datetime.now(UTC), count, late, _why_failed(error))
            log.warning("build failed", schema=action.schema, index=action.index, error=message)
        else:
            self.failures.pop(which, None)
            log.info("build done", schema=action.schema, index=action.index)
        finally:
            ended()

    def _in_the_way(self, action: BuildIndex) -> str:
        """Return who works with the table now, as far as that can be told."""
        holders: Sequence[str] = ()
        table = str(identifier(action.schema, action.table))
        with contextlib.suppress(PolarisError), self.read() as connection:
            holders = connection.exec_driver_sql(_HOLDERS, (table,)).scalars().all()
        return f"; the table is in use by {', '.join(holders)}" if holders else ""

    @contextlib.contextmanager
    def _transaction(self, mode: str, timeout: int, *, role: bool = True) -> Iterator[Connection]:
        self._may()
        with _translated(), self._pooled.connect() as connection, connection.begin():
            prelude = compose(
                "SET TRANSACTION {mode}; SET LOCAL statement_timeout = {timeout};"
                " SET LOCAL lock_timeout = {lock}; {search_path}",
                mode=Sql(mode),
                timeout=timeout,
                lock=_LOCK_MILLISECONDS,
                search_path=compose(_SEARCH_PATH, local=Sql("true")),
            )
            run(connection, prelude)
            if role:
                _become_operator(connection, "SET LOCAL ROLE {role}", self.server.database)
            self._may()
            yield connection

    @contextlib.contextmanager
    def _session(self, kind: str, settings: Mapping[str, str]) -> Iterator[Connection]:
        """Open a connection outside of any transaction, with settings of its own."""
        self._may()
        with _translated(), self._single.connect() as pristine:
            connection = pristine.execution_options(isolation_level="AUTOCOMMIT")
            name = self._named(kind)
            # The server is not to give up a build because we are gone (PostgreSQL 14 and newer).
            run(
                connection,
                Sql(
                    "SELECT set_config(name, '0', false) FROM pg_settings"
                    " WHERE name = 'client_connection_check_interval'"
                ),
            )
            chosen = {"application_name": name, "lock_timeout": str(_LOCK_MILLISECONDS), **settings}
            for setting, value in chosen.items():
                set_it = "SELECT set_config({name}, {value}, false)"
                run(connection, compose(set_it, name=literal(setting), value=literal(value)))
            run(connection, compose(_SEARCH_PATH, local=Sql("false")))
            _become_operator(connection, "SET ROLE {role}", self.server.database)
            self._may()
            yield connection

    def _hold_fence(self, connection: Connection) -> None:
        fence = self.fence
        if fence is None:
            raise Conflict("this process has not taken over the catalog yet")
        row = connection.exec_driver_sql(
            "SELECT epoch, holder FROM polaris.fences WHERE installation_id = %s FOR SHARE",
            (str(fence.installation),),
        ).one_or_none()
        if row is None or row.epoch < fence.epoch:
            self.fence = None
            raise Conflict("the catalog was made anew, or restored from a backup: it is taken over again")
        if (row.epoch, row.holder) != (fence.epoch, fence.holder):
            raise NotOwner(f"another operator has taken over: {row.holder}, epoch {row.epoch}")

    def _renew(self) -> None:
        old = self._pooled
        self._pooled, self._single = self._engines()
        old.dispose()

    def _engines(self) -> tuple[Engine, Engine]:
        server, identity = self.server, self.identity
        url = URL.create(
            "postgresql+psycopg2",
            identity.username,
            identity.password,
            server.host,
            server.port,
            server.database,
        )
        arguments = {
            "sslmode": server.sslmode.value,
            "application_name": self._named("work"),
            "connect_timeout": _CONNECT_SECONDS,
            "keepalives_idle": 30,
            "keepalives_interval": 10,
            "keepalives_count": 3,
            "tcp_user_timeout": 60_000,
        }
        if psycopg2.extensions.libpq_version() >= _METHODS_LIBPQ:
            arguments["require_auth"] = _METHODS
        if server.sslmode == TlsMode.VERIFY_FULL:
            arguments["sslrootcert"] = self._authorities()
        return (
            create_engine(
                url,
                connect_args=arguments,
                poolclass=QueuePool,
                pool_size=2,
                max_overflow=8,
                pool_pre_ping=True,
            ),
            create_engine(url, connect_args=arguments, poolclass=NullPool),
        )

    def _claim(self, connection: Connection, installation: uuid.UUID, holder: str) -> None:
        """Let this transaction be seen as one of this process, and end what others have open.

        Only then is it asked whether it may: from here on it does not outlive a take-over.
        """
        named = literal(sessions.name(installation, "work", 0, holder))
        run(connection, compose("SELECT set_config('application_name', {name}, true)", name=named))
        self._may()
        _end_others(connection, installation, holder)

    def _named(self, kind: str) -> str:
        fence = self.fence
        if fence is None:
            return sessions.PROGRAM  # Perhaps somebody who only looks, beside an operator.
        return sessions.name(fence.installation, kind, fence.epoch, fence.holder)

    def _authorities(self) -> str:
        if self.server.ca is None:
            return next((path for path in _SYSTEM_AUTHORITIES if Path(path).exists()), "system")
        path = Path(self._folder.name, f"{names.digest({'ca': self.server.ca})}.crt")
        path.write_text(self.server.ca)
        return str(path)


def _end_others(connection: Connection, installation: uuid.UUID, holder: str) -> None:
    # What was seen of sessions earlier in this transaction would be shown again.
    run(connection, Sql("SELECT pg_stat_clear_snapshot()"))
    run(connection, sessions.end_others(installation, holder))


def _become_operator(connection: Connection, statement: str, database: str) -> None:
    try:
        run(connection, compose(statement, role=identifier(names.OPERATOR_ROLE)))
    except exc.DBAPIError as error:
        if _sqlstate(error) not in ("22023", "42501"):
            raise
        raise Prerequisite(
            f"{_said(error)}: the login must be a member of {names.OPERATOR_ROLE}",
            bootstrap.script(bootstrap.statements(database)),
        ) from None


def _check(connection: Connection, guards: Sequence[Sql]) -> None:
    for guard in guards:
        if not _holds(connection, guard):
            raise Conflict(f"no longer true: {guard}")


def _holds(connection: Connection, guard: Sql) -> bool:
    return run(connection, compose("SELECT ({guard})", guard=guard)).scalar_one() is True


def _try_lock(connection: Connection, key: int) -> bool:
    return connection.exec_driver_sql("SELECT pg_try_advisory_lock(%s)", (key,)).scalar_one() is True


def _is_due(connection: Connection, action: BuildIndex) -> bool:
    """Whether there still is something to build; asked under the lock."""
    if not action.guards:
        return not _relation_exists(connection, action)
    return all(_holds(connection, guard) for guard in action.guards)


def _relation_exists(connection: Connection, action: BuildIndex) -> bool:
    name = identifier(action.schema, action.index)
    found = connection.exec_driver_sql("SELECT to_regclass(%s)", (str(name),)).scalar_one()
    return found is not None


# --- what PostgreSQL says ----------------------------------------------------------------------

# Where no connection comes about libpq gives no SQLSTATE, only text. These are its own words and
# English PostgreSQL's; a server that speaks another language is taken for unavailable, and its words
# are shown as they are.
_REFUSALS = (
    "authentication failed",
    "authentication method requirement",
    "no pg_hba.conf entry",
    "is not permitted to log in",
    "does not exist",
    "permission denied for database",
    "no password supplied",
    "does not support SSL",
    "certificate",
)
# By SQLSTATE, or by its class (the first two characters).
_BY_STATE: dict[str, Callable[[str], PolarisError]] = {
    "55P03": Conflict,  # lock_not_available
    "55006": Conflict,  # object_in_use
    "40": Conflict,  # serialization failures, deadlocks
    # Somebody made or dropped it since it was looked at.
    "23505": Conflict,  # unique_violation: somebody else was first
    "42P01": Conflict,  # undefined_table
    "42P06": Conflict,  # duplicate_schema
    "42P07": Conflict,  # duplicate_table
    "42710": Conflict,  # duplicate_object
    "2BP01": Prerequisite,  # dependent_objects_still_exist: somebody else's, not ours to drop
    "57014": DeadlineExceeded,  # query_canceled, by statement_timeout
    "42501": Prerequisite,  # insufficient_privilege
    "28": DatabaseRefused,
    "08": DatabaseUnavailable,
    "53": DatabaseUnavailable,  # disk, memory or connections run out
    "57": DatabaseUnavailable,  # shutting down, starting up, terminated by an administrator
    "58": DatabaseUnavailable,  # its files can't be read or written
    "25006": DatabaseUnavailable,  # a standby
}


def _sqlstate(error: exc.DBAPIError) -> str | None:
    return getattr(error.orig, "pgcode", None)


def _said(error: exc.DBAPIError) -> str:
    diagnosis = getattr(error.orig, "diag", None)
    said = [getattr(diagnosis, "message_primary", None) or error.orig]
    if _sqlstate(error) == "2BP01":  # Which they are stands in the detail; elsewhere that may be data.
        said.append(f"({getattr(diagnosis, 'message_detail', None)})")
    return " ".join(" ".join(map(str, said)).split())


def _translate(error: exc.DBAPIError) -> PolarisError:
    """Return our error for PostgreSQL's.

    Of what we did not expect only the SQLSTATE is told: the words may hold what stands in the tables.
    """
    state, said = _sqlstate(error), _said(error)
    if state is not None:
        make = _BY_STATE.get(state) or _BY_STATE.get(state[:2])
        return make(said) if make else Refused(f"PostgreSQL refuses with SQLSTATE {_spelled(state)}")
    if isinstance(error.orig, psycopg2.OperationalError | psycopg2.InterfaceError):
        refused = any(words in said for words in _REFUSALS)
        return DatabaseRefused(said) if refused else DatabaseUnavailable(said)
    return Refused(f"PostgreSQL's driver refuses with {type(error.orig).__name__}")


def _why_failed(error: Exception) -> Reason:
    """Return what a build lacked, where PostgreSQL says so."""
    cause = error.__cause__
    state = _sqlstate(cause) if isinstance(cause, exc.DBAPIError) else None
    if state == psycopg2.errorcodes.OUT_OF_MEMORY:
        return Reason.OUT_OF_MEMORY
    if state != psycopg2.errorcodes.DISK_FULL:
        return Reason.BUILD_FAILED
    # Memory that processes share is a file in /dev/shm, of this name in any language.
    return Reason.SHARED_MEMORY_TOO_SMALL if '"/PostgreSQL.' in str(error) else Reason.DISK_FULL


def _spelled(state: str) -> str:
    try:
        name = psycopg2.errorcodes.lookup(state)
    except KeyError:
        return state
    return f"{state} ({name.lower()})"


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except exc.DBAPIError as error:
        raise _translate(error) from error
    except exc.TimeoutError as error:
        raise DatabaseUnavailable(f"no connection of the pool was free in time: {error}") from None
