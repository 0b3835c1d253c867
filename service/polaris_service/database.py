"""PostgreSQL for service and worker: a pool that follows the login's folder, and clear failures.

A `Database` needs no database to start. It looks at the folder every two seconds; a login that is
new there is tried on a pool of its own first, then the pools are swapped, and the old one ends when
its last statement does. So a rotation fails no request, and the epoch that is reported to the
operator (`polaris.consumers`) is one that nothing older than it is used beside.

Connections hold no session state, so PgBouncer in transaction mode may stand between (1.21 or newer
with `max_prepared_statements`). LISTEN needs a session: it has a connection of its own, and whoever
listens must look by itself now and then.

With `Purpose.reads`, searches go to a standby. What needs the primary (to report, to LISTEN) has a connection
there; while it is away, reading goes on.

All failures leave as errors of `polaris.errors`; `str(error)` may be shown to a caller.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

import asyncpg
from asyncpg.pool import PoolConnectionProxy
from pgvector.asyncpg import register_vector
from prometheus_client import Histogram

import polaris
from polaris.errors import Conflict, DatabaseUnavailable, DeadlineExceeded, Overloaded, PolarisError
from polaris.followed import LOOK_SECONDS
from polaris.telemetry import logger, span
from polaris_service.login import Login, read_login
from polaris_service.metrics import Metrics

Connection: TypeAlias = "PoolConnectionProxy[asyncpg.Record]"
Heard: TypeAlias = Callable[[str | None], None]
"""Called with a notification's payload; with None when some may have been missed."""

_log = logger(__name__)

_LOOK_AGAIN_SECONDS = 0.5
REPORT_SECONDS = 15.0
_CONNECT_SECONDS = 5.0
_ACQUIRE_SECONDS = 5.0
_DRAIN_SECONDS = 60.0
_WARM = 2

_REPORT = """
INSERT INTO polaris.consumers
  (id, kind, username, epoch, query_url, version, catalog_level, reported_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, now())
ON CONFLICT (id) DO UPDATE SET username = excluded.username, epoch = excluded.epoch,
  query_url = excluded.query_url, version = excluded.version,
  catalog_level = excluded.catalog_level, reported_at = excluded.reported_at
"""
# Those who ended without a word; the operator takes them for gone after 90 s. (The catalog's own module
# says so; it brings SQLAlchemy, a quarter of the service's start and 20 MiB, and is not imported here.)
SWEEP_SECONDS = 3600.0
_SWEEP = "DELETE FROM polaris.consumers WHERE reported_at < now() - make_interval(secs => $1)"
_TYPES = """
SELECT n.nspname FROM pg_catalog.pg_type t
JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
JOIN pg_catalog.pg_depend d ON d.objid = t.oid AND d.deptype = 'e'
JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
WHERE e.extname = 'vector' AND t.typname = 'vector'
"""
# A revoked login still answers SELECT 1 in a session that is open, and fails on every table.
_PROBE = "SELECT id, oldest_code, level FROM polaris.catalog"


class NoDatabaseYet(DatabaseUnavailable):
    """There is no login yet, or the database has no catalog yet: the operator has not come so far."""

    code: ClassVar[str] = "no-database-yet"


class LoginRefused(DatabaseUnavailable):
    """PostgreSQL refuses the login: expired, revoked, or without the right."""

    code: ClassVar[str] = "database-login-refused"


class CatalogMismatch(DatabaseUnavailable):
    """The catalog is not one for this code, so this process is to be sent no requests: another's may be."""


class CatalogTooNew(CatalogMismatch):
    """The catalog no longer serves code as old as this."""

    code: ClassVar[str] = "catalog-too-new"


class CatalogTooOld(CatalogMismatch):
    """The migration that this code needs has not come yet."""

    code: ClassVar[str] = "catalog-too-old"


class TableMissing(DatabaseUnavailable):
    """A table that the catalog told of a moment ago is gone: the index was changed or deleted."""

    code: ClassVar[str] = "index-not-ready"


# In order; the first class that matches decides. What is not here is a fault of ours.
_TRANSLATIONS: tuple[tuple[tuple[type[BaseException], ...], type[PolarisError], str], ...] = (
    (
        (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError),
        LoginRefused,
        "PostgreSQL refuses the login: it is expired or revoked",
    ),
    (
        (asyncpg.InsufficientPrivilegeError, asyncpg.InvalidRoleSpecificationError),
        LoginRefused,
        "PostgreSQL refuses this to the login: it is revoked, or not granted yet",
    ),
    (
        (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError),
        TableMissing,
        "the index is being changed: its tables are not there",
    ),
    (
        (ssl.SSLCertVerificationError,),
        DatabaseUnavailable,
        "PostgreSQL's certificate is not believed: it is not of the login's authority, or for another name",
    ),
    ((asyncpg.InvalidCatalogNameError,), NoDatabaseYet, "the database does not exist yet"),
    ((asyncpg.CannotConnectNowError,), DatabaseUnavailable, "PostgreSQL is starting or stopping"),
    (
        (asyncpg.QueryCanceledError, TimeoutError),
        DeadlineExceeded,
        "PostgreSQL did not answer within the time of the statement",
    ),
    (
        (asyncpg.SerializationError, asyncpg.DeadlockDetectedError, asyncpg.LockNotAvailableError),
        Conflict,
        "another transaction was in the way",
    ),
    ((asyncpg.TooManyConnectionsError,), Overloaded, "PostgreSQL has no connection left"),
    (
        (asyncpg.ReadOnlySQLTransactionError,),
        DatabaseUnavailable,
        "PostgreSQL only reads at present: it is a standby",
    ),
    (
        (asyncpg.InsufficientResourcesError,),
        DatabaseUnavailable,
        "PostgreSQL has no disk, memory or locks left",
    ),
    (
        (
            asyncpg.PostgresConnectionError,
            asyncpg.OperatorInterventionError,
            asyncpg.InterfaceError,
            asyncpg.InternalClientError,
            OSError,
        ),
        DatabaseUnavailable,
        "PostgreSQL is not reachable",
    ),
)


# All that the driver raises on its own account. InternalClientError is what a statement meets on a
# connection whose end the server announced a moment before.
_DRIVERS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
_BROKEN = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.InternalClientError,
    OSError,
)


def _broken(error: BaseException) -> bool:
    """Return whether the connection can be of no use any more, whatever it believes itself."""
    return isinstance(error, _BROKEN) and not isinstance(error, TimeoutError)


def translate(error: BaseException) -> PolarisError | None:
    """Return the error of our tree for one of the driver's or the network's; None: not one of them."""
    for classes, made, message in _TRANSLATIONS:
        if isinstance(error, classes):
            if issubclass(made, DatabaseUnavailable | Overloaded):
                return made(message, retry_after=1.0)
            return made(message)
    return None


class _Stateless(asyncpg.Connection):  # type: ignore[misc,unused-ignore]
    """A connection on which nobody leaves anything: no round trip to reset it on release."""

    __slots__ = ()

    def get_reset_query(self) -> str:
        return ""


@dataclass(eq=False)
class _Bound:
    """A pool and the login that it was made with.

    Who has a connection of it, or waits for one, is counted: the driver's own `Pool.close` closes
    connections under those who waited when it was called.
    """

    login: Login
    pool: asyncpg.Pool
    catalog: str
    vector_schema: str
    users: int = 0
    unused: asyncio.Event = field(default_factory=asyncio.Event)

    async def acquire(self) -> Connection:
        self.users += 1
        try:
            connection: Connection = await self.pool.acquire()
        except BaseException:
            self._one_less()
            raise
        return connection

    async def release(self, connection: Connection) -> None:
        try:
            await self.pool.release(connection)
        finally:
            self._one_less()

    def _one_less(self) -> None:
        self.users -= 1
        self.unused.set()

    async def close(self) -> None:
        """Close when nobody uses it any more; nobody new may come."""
        while self.users:
            self.unused.clear()
            await self.unused.wait()
        await self.pool.close()


@dataclass(frozen=True)
class Standby:
    """A server that follows the one of the login, and only reads."""

    host: str
    port: int
    """0: the login's."""


@dataclass(frozen=True)
class Purpose:
    """Who uses the database, as it is reported to the operator."""

    kind: Literal["query", "worker"]
    query_url: str | None = None
    reads: Standby | None = None
    """Where its pool leads, if not to the login's server."""


class Database:
    """The database of one process. `start` it, take connections, `stop` it."""

    def __init__(
        self,
        folder: Path,
        purpose: Purpose,
        metrics: Metrics,
        *,
        size: int = 8,
        statement_seconds: float = 30.0,
    ) -> None:
        self._folder = folder
        self._purpose = purpose
        self._metrics = metrics
        self._size = size
        self._statement_seconds = statement_seconds
        self._bound: _Bound | None = None
        self._why_not: DatabaseUnavailable = NoDatabaseYet("there is no login for the database yet", 2.0)
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining: set[asyncio.Task[None]] = set()
        self._channels: dict[str, list[Heard]] = {}
        self._histograms: dict[str, Histogram] = {}
        metrics.sql_connections.labels("lent").set_function(lambda: self._connections()[0])
        metrics.sql_connections.labels("idle").set_function(lambda: self._connections()[1])
        metrics.sql_connections.labels("limit").set(size)
        self._look_now = asyncio.Event()
        self._listen_again = asyncio.Event()
        self._report_now = asyncio.Event()
        self.consumer = f"{purpose.kind}/{socket.gethostname()}/{uuid.uuid4().hex[:8]}"
        """Name of this process in `polaris.consumers`, and as reporter of models."""

    # --- life ---

    async def start(self) -> None:
        """Look for a login once, then follow it; never fails for lack of a database."""
        await self._look()
        for loop in (self._follow, self._report, self._listen):
            self._spawn(_without_end(loop), self._tasks)

    async def stop(self) -> None:
        """End what runs in the background, say good-bye in the catalog, and close all connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._bound:
            with contextlib.suppress(PolarisError, TimeoutError):
                async with asyncio.timeout(2), self._primary(self._bound.login) as connection:
                    await connection.execute("DELETE FROM polaris.consumers WHERE id = $1", self.consumer)
            bound, self._bound = self._bound, None
            self._drain(bound, seconds=5)
        await asyncio.gather(*self._draining, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None], among: set[asyncio.Task[None]]) -> None:
        task = asyncio.create_task(work)
        among.add(task)
        task.add_done_callback(among.discard)

    # --- use ---

    @property
    def problem(self) -> DatabaseUnavailable | None:
        """Why there is no pool at present; None while there is one."""
        return None if self._bound else self._why_not

    @property
    def suited(self) -> bool:
        """False where the catalog is of another level than this code works with: send requests elsewhere."""
        return not isinstance(self.problem, CatalogMismatch)

    @property
    def catalog(self) -> str:
        """The catalog's id; raises DatabaseUnavailable where there is no pool."""
        return self._present().catalog

    @property
    def vector_schema(self) -> str:
        """Schema of the extension `vector`; raises DatabaseUnavailable where there is no pool."""
        return self._present().vector_schema

    @property
    def lags(self) -> bool:
        """Whether it is a standby that is read from: what was committed may not be there yet."""
        return self._purpose.reads is not None

    @property
    def epoch(self) -> int | None:
        """Epoch of the login in use."""
        return self._bound.login.epoch if self._bound else None

    def _present(self) -> _Bound:
        if self._bound is None:
            raise type(self._why_not)(str(self._why_not), self._why_not.retry_after)
        return self._bound

    @contextlib.asynccontextmanager
    async def connection(self, kind: str) -> AsyncIterator[Connection]:
        """Lend a connection; `kind` names what it is for, in metrics and traces.

        Vectors go in as numpy arrays, lists of floats or pgvector's own classes, in binary.
        Do no other I/O inside: every OSError in here is taken for the database's.
        Raises DatabaseUnavailable, Overloaded, DeadlineExceeded, Conflict.
        """
        bound, connection = await self._acquire(kind)
        begun = time.perf_counter()
        try:
            with span(f"sql {kind}"):
                yield connection
        except _DRIVERS as error:
            if isinstance(error, asyncpg.InterfaceError) and not _is_closed(connection):
                raise  # It was used wrongly: a fault of ours.
            if _broken(error) and not _is_closed(connection):
                connection.terminate()
            raise self._failed(kind, error) from error
        finally:
            self._seconds(kind).observe(time.perf_counter() - begun)
            # A connection that broke is thrown away by the pool, and says so; nobody needs to know.
            with contextlib.suppress(*_DRIVERS):
                await bound.release(connection)

    @contextlib.asynccontextmanager
    async def transaction(self, kind: str) -> AsyncIterator[Connection]:
        """Lend a connection in a transaction, which commits where the block ends without an error."""
        async with self.connection(kind) as connection:
            transaction = connection.transaction()
            await transaction.start()
            try:
                yield connection
            except BaseException:
                # What went wrong counts, not that a broken connection cannot be rolled back.
                with contextlib.suppress(*_DRIVERS):
                    await transaction.rollback()
                raise
            await transaction.commit()

    def _connections(self) -> tuple[int, int]:
        """Those of the pool that are lent, and those that are open and idle."""
        if self._bound is None:
            return 0, 0
        idle = self._bound.pool.get_idle_size()
        return self._bound.pool.get_size() - idle, idle

    async def _acquire(self, kind: str) -> tuple[_Bound, Connection]:
        with self._metrics.sql_wait_seconds.time():
            return await self._lent(kind)

    async def _lent(self, kind: str) -> tuple[_Bound, Connection]:
        while True:
            bound = self._present()
            try:
                async with asyncio.timeout(_ACQUIRE_SECONDS):
                    return bound, await bound.acquire()
            except TimeoutError:
                self._metrics.sql_errors.labels(kind, "Overloaded").inc()
                raise Overloaded(
                    f"all {self._size} connections to PostgreSQL are busy", retry_after=1.0
                ) from None
            except _DRIVERS as error:
                if self._bound is not bound:
                    continue  # It was swapped while we waited.
                raise self._failed(kind, error) from error

    def _seconds(self, kind: str) -> Histogram:
        found = self._histograms.get(kind)
        if found is None:
            found = self._histograms[kind] = self._metrics.sql_seconds.labels(kind)
        return found

    def _failed(self, kind: str, error: BaseException) -> BaseException:
        made = translate(error)
        if made is None:
            self._metrics.sql_errors.labels(kind, type(error).__name__).inc()
            return error
        self._metrics.sql_errors.labels(kind, type(made).__name__).inc()
        # Not the driver's message: it may quote what a caller sent.
        _log.warning("database failed", kind=kind, error=type(error).__name__, why=str(made))
        if isinstance(made, LoginRefused):
            self._look_now.set()
        return made

    # --- following the login ---

    async def _follow(self) -> None:
        while True:
            wait = LOOK_SECONDS if self._bound else _LOOK_AGAIN_SECONDS
            suspicious = await _wait(self._look_now, wait)
            await self._look(suspicious=suspicious)
            if suspicious:
                await asyncio.sleep(_LOOK_AGAIN_SECONDS)  # However often we are called, no faster.

    async def _look(self, *, suspicious: bool = False) -> None:
        try:
            login = await asyncio.to_thread(read_login, self._folder)
            if login is None:
                raise NoDatabaseYet("there is no login for the database yet", 2.0)
        except DatabaseUnavailable as error:
            # The files may be gone for a moment; a pool that works goes on working.
            self._why_not = error
            return
        if self._bound and self._bound.login == login:
            if suspicious:
                await self._probe_present()
            return
        await self._adopt(login)

    async def _probe_present(self) -> None:
        bound = self._present()
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await bound.pool.fetchrow(_PROBE)
        except _DRIVERS as error:
            problem = translate(error)
            if isinstance(problem, LoginRefused) and self._bound is bound:
                _log.warning("login refused", username=bound.login.username, epoch=bound.login.epoch)
                self._why_not, self._bound = problem, None
                self._metrics.database_up.set(0)
                self._drain(bound, seconds=0)

    async def _adopt(self, login: Login) -> None:
        try:
            fresh = await self._warm(login)
        except DatabaseUnavailable as error:
            if str(error) != str(self._why_not):
                _log.warning("database unavailable", why=str(error), host=login.host, epoch=login.epoch)
            self._why_not = error
            return
        before, self._bound = self._bound, fresh
        self._metrics.database_up.set(1)
        self._metrics.login_epoch.set(login.epoch)
        _log.info("login adopted", username=login.username, epoch=login.epoch)
        self._listen_again.set()
        if before:
            self._drain(before, seconds=_DRAIN_SECONDS)
        else:
            self._report_now.set()

    async def _warm(self, login: Login) -> _Bound:
        """Return a pool that has proven itself with this login, or raise DatabaseUnavailable."""
        pool = None
        try:
            pool = self._pool(login)
            async with asyncio.timeout(2 * _CONNECT_SECONDS):
                await pool
                warm = [await pool.acquire() for _ in range(min(_WARM, self._size))]
                catalog = await _suited(warm[0])
                vector_schema = await warm[0].fetchval(_TYPES)
                for connection in warm:
                    await pool.release(connection)
            if vector_schema is None:
                raise NoDatabaseYet("the database has no extension vector yet", 2.0)
            return _Bound(login, pool, catalog, vector_schema)
        except (*_DRIVERS, PolarisError) as error:
            if pool is not None:
                pool.terminate()
            raise _why(error) from error

    def _pool(self, login: Login) -> asyncpg.Pool:
        reads = self._purpose.reads or Standby(login.host, login.port)
        return asyncpg.create_pool(
            host=reads.host,
            port=reads.port or login.port,
            user=login.username,
            password=login.password,
            database=login.dbname,
            ssl=login.tls(),
            min_size=0,
            max_size=self._size,
            timeout=_CONNECT_SECONDS,
            # The driver's own timer, which cancels the statement: a setting of the session would be
            # lost behind PgBouncer.
            command_timeout=self._statement_seconds,
            connection_class=_Stateless,
            init=_register,
            server_settings={"application_name": f"polaris-{self._purpose.kind}"},
        )

    def _drain(self, bound: _Bound, seconds: float) -> None:
        async def close() -> None:
            try:
                async with asyncio.timeout(seconds or None):
                    await (bound.close() if seconds else _terminate(bound.pool))
            except _DRIVERS:
                bound.pool.terminate()
            self._report_now.set()

        self._spawn(close(), self._draining)

    # --- telling the operator ---

    async def _report(self) -> None:
        """Say every 15 s, and whenever an old login is no longer used, who we are."""
        while True:
            await _wait(self._report_now, REPORT_SECONDS)
            bound = self._bound
            if bound is None:
                continue
            if self._draining and any(not task.done() for task in self._draining):
                continue  # The old login is still in use; reported when it is not.
            try:
                await self._report_once(bound)
            except PolarisError as error:
                _log.warning("not reported", why=str(error))

    async def _report_once(self, bound: _Bound) -> None:
        async with self._primary(bound.login) as connection:
            await connection.execute(
                _REPORT,
                self.consumer,
                self._purpose.kind,
                bound.login.username,
                bound.login.epoch,
                self._purpose.query_url,
                polaris.__version__,
                polaris.CATALOG_LEVEL,
            )
            await connection.execute(_SWEEP, SWEEP_SECONDS)
            try:
                await _suited(connection)
            except CatalogMismatch as error:
                _log.error("catalog does not suit", why=str(error))
                if self._bound is bound:
                    self._why_not, self._bound = error, None
                    self._metrics.database_up.set(0)
                    self._drain(bound, seconds=_DRAIN_SECONDS)

    @contextlib.asynccontextmanager
    async def _primary(self, login: Login) -> AsyncIterator[Connection]:
        """Lend a connection that writes: one of its own where the pool leads to a standby."""
        if self._purpose.reads is None:
            async with self.connection("report") as pooled:
                yield pooled
            return
        try:
            connection = await self._connect(login, f"polaris-{self._purpose.kind}-report")
            try:
                yield connection
            finally:
                await _close(connection)
        except _DRIVERS as error:
            raise self._failed("report", error) from error

    async def _connect(self, login: Login, name: str) -> asyncpg.Connection:
        return await asyncpg.connect(
            host=login.host,
            port=login.port,
            user=login.username,
            password=login.password,
            database=login.dbname,
            ssl=login.tls(),
            timeout=_CONNECT_SECONDS,
            command_timeout=_CONNECT_SECONDS,
            server_settings={"application_name": name},
        )

    # --- listening ---

    def listen(self, channel: str, heard: Heard) -> None:
        """Call `heard` for each notification on `channel`, and with None after every (re)connect."""
        self._channels.setdefault(channel, []).append(heard)
        self._listen_again.set()

    async def _listen(self) -> None:
        while True:
            self._listen_again.clear()
            bound = self._bound
            if bound is None or not self._channels:
                await self._listen_again.wait()
                continue
            try:
                await self._listen_on(bound.login)
            except _DRIVERS:
                await _wait(self._listen_again, 1.0)

    async def _listen_on(self, login: Login) -> None:
        """Listen until the connection breaks, the login changes or a channel is added."""
        connection = await self._connect(login, f"polaris-{self._purpose.kind}-listen")
        try:
            for channel, listeners in tuple(self._channels.items()):
                await connection.add_listener(channel, _spread(listeners))
            for listeners in self._channels.values():
                for heard in listeners:
                    heard(None)
            # The probe finds a connection that died without a word, and a login that was revoked.
            while not await _wait(self._listen_again, REPORT_SECONDS, keep=True):
                await connection.fetchrow(_PROBE)
        finally:
            await _close(connection)


async def _wait(event: asyncio.Event, seconds: float, *, keep: bool = False) -> bool:
    """Wait for the event, at most so long; return whether it came, and reset it unless `keep`."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    if not keep:
        event.clear()
    return True


def _is_closed(connection: Connection) -> bool:
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:  # The pool has taken it back already.
        return True


async def _close(connection: asyncpg.Connection) -> None:
    try:
        await connection.close(timeout=1)
    except _DRIVERS:
        connection.terminate()


async def _terminate(pool: asyncpg.Pool) -> None:
    pool.terminate()


def _spread(listeners: list[Heard]) -> Callable[[Any, int, str, object], None]:
    def heard_all(_: Any, __: int, ___: str, payload: object) -> None:
        for heard in listeners:
            heard(str(payload))

    return heard_all


async def _register(connection: asyncpg.Connection) -> None:
    schema = await connection.fetchval(_TYPES)
    if schema is not None:
        await register_vector(connection, schema=schema)


async def _without_end(loop: Callable[[], Awaitable[None]]) -> None:
    """Run a loop, and again whatever ends it: nobody else follows the login, reports or listens."""
    while True:
        try:
            await loop()
        except Exception:  # noqa: BLE001  it is logged, and nothing else may end the loop
            _log.exception("a loop ended, and begins anew", loop=loop.__name__)
        await asyncio.sleep(_LOOK_AGAIN_SECONDS)


async def _suited(connection: Connection) -> str:
    """Return the id of the catalog that a connection leads to; raises CatalogMismatch or NoDatabaseYet."""
    we = f"this is POLARIS {polaris.__version__} (catalog level {polaris.CATALOG_LEVEL})"
    try:
        row = await connection.fetchrow(_PROBE)
    except asyncpg.UndefinedColumnError:  # Level 1 did not say so yet.
        raise CatalogTooOld(f"{we}, and the catalog is at level 1: it waits to be migrated", 2.0) from None
    if row is None:
        raise NoDatabaseYet("the database has no catalog yet", 2.0)
    if row["oldest_code"] > polaris.CATALOG_LEVEL:
        raise CatalogTooNew(
            f"{we}, and the catalog needs level {row['oldest_code']} or newer: upgrade POLARIS", 30.0
        )
    if row["level"] < polaris.CATALOG_LEVEL:
        raise CatalogTooOld(f"{we}, and the catalog is at level {row['level']}: it waits to be migrated", 2.0)
    return str(row["id"])


def _why(error: BaseException) -> DatabaseUnavailable:
    """Return why a login could not be adopted."""
    if isinstance(error, DatabaseUnavailable):
        return error
    if isinstance(error, asyncpg.UndefinedTableError | asyncpg.InvalidSchemaNameError):
        return NoDatabaseYet("the database has no catalog yet", 2.0)
    if isinstance(error, TimeoutError):
        return DatabaseUnavailable("PostgreSQL is not reachable: no answer in time", 2.0)
    made = translate(error)
    return made if isinstance(made, DatabaseUnavailable) else DatabaseUnavailable(str(error), 2.0)
