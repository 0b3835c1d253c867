"""Measures recall beside the passes: one index of a database after the other.

A measurement takes seconds of comparing rows. An edit of its index, and those of others, need not wait for
it, and PostgreSQL has but one at a time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from polaris.errors import PolarisError
from polaris.telemetry import logger
from polaris_operator.observe.recall import measure
from polaris_operator.plan.recall import TIME_SHARE, record
from polaris_operator.postgres import Postgres, run
from polaris_operator.steps import MeasureRecall

log = logger(__name__)

_RETRY_SECONDS = 30.0
# What took less is no load that anybody else would notice.
_SHORT_SECONDS = 1.0
_MOST_REST_SECONDS = 30.0
_END_SECONDS = 1.0

_Of = tuple[int, int]
"""Number of an index, and of its generation."""


class Measurements:
    """Those of one database. Used by several threads."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres
        self._lock = threading.Lock()
        self._wished: dict[_Of, tuple[MeasureRecall, Callable[[], None]]] = {}
        """In the order in which they came; the one that is under way is among them."""
        self._failed: dict[_Of, float] = {}
        """When one failed, until it may be tried again."""
        self._rests_until = 0.0
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()

    def wish(self, action: MeasureRecall, done: Callable[[], None]) -> None:
        """Measure as soon as may be, and call `done`; nothing where that is wished for already."""
        of = (action.index, action.generation)
        with self._lock:
            if self._ended.is_set() or of in self._wished or self._resists(of):
                return
            self._wished[of] = action, done
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="recall", daemon=True)
                self._thread.start()

    def pending(self) -> dict[int, frozenset[int]]:
        """Return the generations, by index, that are measured, or wait for it, or failed a moment ago.

        What is not among them any more was written down before.
        """
        with self._lock:
            waiting = {*self._wished, *(of for of in self._failed if self._resists(of))}
        found: dict[int, frozenset[int]] = {}
        for index, generation in waiting:
            found[index] = found.get(index, frozenset()) | {generation}
        return found

    @property
    def busy(self) -> bool:
        """Whether one is under way, or waits."""
        with self._lock:
            return bool(self._wished)

    def stop(self) -> None:
        """Begin no other; one that is under way ends with its connection, and is not written down."""
        self._ended.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_END_SECONDS)

    def _resists(self, of: _Of) -> bool:
        failed = self._failed.get(of)
        return failed is not None and time.monotonic() < failed + _RETRY_SECONDS

    def _run(self) -> None:
        while (wish := self._next()) is not None:
            action, done = wish
            of = (action.index, action.generation)
            failed = self._measured(action)
            with self._lock:
                self._failed.pop(of, None)
                if failed:
                    self._failed[of] = time.monotonic()
                self._wished.pop(of, None)
            if not self._ended.is_set():
                done()

    def _next(self) -> tuple[MeasureRecall, Callable[[], None]] | None:
        """Return the next one, those first that nothing is known of; None, where the thread ends."""
        while True:
            with self._lock:
                if self._ended.is_set():
                    self._wished.clear()
                if not self._wished:
                    self._thread = None
                    return None
                waiting = list(self._wished.values())
                wish = next((one for one in waiting if one[0].urgent), waiting[0])
                rest = 0.0 if wish[0].urgent else self._rests_until - time.monotonic()
            if rest <= 0:
                return wish
            # Something urgent may come meanwhile.
            self._ended.wait(min(rest, _SHORT_SECONDS))

    def _measured(self, action: MeasureRecall) -> bool:
        """Measure and write down; whether that failed."""
        began = time.monotonic()
        try:
            found = measure(self._postgres, action)
            if not self._ended.is_set():
                with self._postgres.write() as connection:
                    run(connection, record(action.index, action.generation, found))
        except PolarisError as error:
            log.warning("recall not measured", schema=action.schema, error=str(error))
        except Exception:
            log.exception("recall not measured", schema=action.schema)
        else:
            return False
        finally:
            took = time.monotonic() - began
            rest = min(took / TIME_SHARE, _MOST_REST_SECONDS) if took >= _SHORT_SECONDS else 0.0
            self._rests_until = time.monotonic() + rest
        return True
