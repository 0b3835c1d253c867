"""Hears what service and workers tell in the catalog, so that a bulk load need not wait for a resync.

That its session is cut is how an outage is seen first. A hint and nothing more: what is to be done is
decided by the pass that it wakes, and a pass comes without it too.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from uuid import UUID

from polaris.errors import PolarisError
from polaris.names import CATALOG_CHANNEL
from polaris.telemetry import logger
from polaris_operator.objects import Key
from polaris_operator.observe.index import gather_loads
from polaris_operator.postgres import Postgres

log = logger(__name__)

_RETRY_SECONDS = (1.0, 30.0)
_END_SECONDS = 5.0


class Listener:
    """A thread and a session that listen in one database, until `stop`."""

    def __init__(
        self, postgres: Postgres, database: Key, installation: UUID, wake: Callable[[Key], None]
    ) -> None:
        self._postgres = postgres
        self._database = database
        self._installation = installation
        self._wake = wake
        self._ended = threading.Event()
        self._ears = False
        """Whether the session that is lost was had at all."""
        self._lost = False
        """Whether one was had, and none since."""
        self._end, self._told_to_end = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="listener", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Hear nothing more."""
        self._ended.set()
        self._end.send(b"!")
        self._thread.join(_END_SECONDS)
        self._end.close()
        self._told_to_end.close()

    def _run(self) -> None:
        shortest, longest = _RETRY_SECONDS
        wait = shortest
        while not self._ended.is_set():
            self._ears = False
            try:
                self._postgres.listen(CATALOG_CHANNEL, self._heard, self._told_to_end)
            except PolarisError as error:
                log.info("not listening", error=str(error))
            except Exception:
                log.exception("not listening")
            if self._ears and not self._ended.is_set():
                self._lost = True
                self._wake(self._database)  # Perhaps nobody answers there any more.
            wait = shortest if self._ears else min(wait * 2, longest)
            self._ended.wait(wait)

    def _heard(self) -> None:
        self._ears = True
        if self._lost:
            self._lost = False
            self._wake(self._database)  # Somebody does again.
        with self._postgres.read() as connection:
            claims = gather_loads(connection, self._installation)
        for claim in claims:
            self._wake(Key("PolarisIndex", claim.namespace, claim.name))
