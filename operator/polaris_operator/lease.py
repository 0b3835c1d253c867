"""Which operator of an installation leads: by a Lease in the cluster, which one holds at a time.

Another machine's clock is never looked at: a holder is taken for dead when its record has not changed for as
long as the record says, on the clock of the one who watches it. A holder counts from before it asked, and
gives up earlier than anybody else may take over; so between two terms there is a time when nobody leads.

What was begun in a term can't be taken back when it ends: a process may be frozen anywhere. So whoever has
an effect asks its term first (`Term.check`), and PostgreSQL ends what an older term had open (`take_over`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Protocol

from polaris.errors import Conflict, NotFound, PolarisError
from polaris.telemetry import logger

log = logger(__name__)

NAME = "polaris-operator"
DURATION_SECONDS = 15
"""So long a record has to stay as it is for its holder to be dead."""
GIVE_UP_SECONDS = 10.0
"""So long a holder leads after it asked for a renewal that was granted."""
RENEW_SECONDS = 2.0
"""Between two renewals, and between two looks of those who stand by."""


def lease_name(installation: str) -> str:
    """Return the Lease's name: installations with a name of their own have a Lease of their own."""
    return f"{NAME}-{sha256(installation.encode()).hexdigest()[:8]}" if installation else NAME


def clock() -> float:
    """Return seconds that also pass while the machine sleeps, where the system counts those."""
    counted = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if counted is None else time.clock_gettime(counted)


# --- what decides


@dataclass(frozen=True)
class Record:
    """What stands in a Lease. Its times are for people."""

    holder: str
    """Empty: it was given back."""
    duration_seconds: float
    transitions: int
    """Terms before this one."""
    acquired_at: str
    renewed_at: str
    version: str = ""
    """As it was read; empty: there is none yet."""


@dataclass(frozen=True)
class Seen:
    """A record, and since when it has been seen as it is."""

    record: Record
    since: float


def seen(before: Seen | None, record: Record, now: float) -> Seen:
    """Return what is known after another look."""
    if before is not None and replace(before.record, version=record.version) == record:
        return Seen(record, before.since)
    return Seen(record, now)


def wait(known: Seen | None, me: str, now: float) -> float:
    """Return in how many seconds the Lease may be taken if its record stays as it is; 0: now."""
    if known is None or known.record.holder in ("", me):
        return 0.0
    return max(known.since + known.record.duration_seconds - now, 0.0)


def taken(known: Seen | None, me: str, moment: datetime) -> Record:
    """Return the record with which I begin a term."""
    before = None if known is None else known.record
    text = _text(moment)
    return Record(
        holder=me,
        duration_seconds=DURATION_SECONDS,
        transitions=0 if before is None else before.transitions + 1,
        acquired_at=text,
        renewed_at=text,
        version="" if before is None else before.version,
    )


def renewed(record: Record, moment: datetime) -> Record:
    """Return the record with which I go on."""
    return replace(record, renewed_at=_text(moment))


def given_back(record: Record, moment: datetime) -> Record:
    """Return the record of a term that ended in order."""
    return replace(record, holder="", renewed_at=_text(moment))


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Term:
    """One time of leading. Over is over: who leads again has another one."""

    def __init__(self, until: float, now: Callable[[], float] = clock) -> None:
        self._now = now
        self._until = until

    @property
    def held(self) -> bool:
        """Whether nobody else can lead at this moment."""
        return self._now() < self._until

    def check(self) -> None:
        """Raise Conflict where it is over: what was to be done is another one's."""
        if not self.held:
            raise Conflict("this operator does not lead any more")

    def go_on(self, until: float) -> None:
        """Lead until then; a term that is over stays over."""
        if self.held:
            self._until = max(until, self._until)

    def end(self) -> None:
        """Lead no more."""
        self._until = float("-inf")


# --- who asks


class Lease(Protocol):
    """One Lease. Both methods raise PolarisError where nobody answers or it is forbidden."""

    def read(self) -> Record | None:
        """Return what stands in it; None where there is none."""
        ...

    def write(self, record: Record) -> Record:
        """Write it, and return it as it is then; Conflict where it is no longer what was read."""
        ...


class Candidate:
    """A thread that takes the Lease when it may, keeps it, and tells when a term begins and ends.

    `lead` and `leave` are called from this thread, in turn; while they last nothing is renewed.
    """

    def __init__(
        self,
        lease: Lease,
        me: str,
        lead: Callable[[Term], None],
        leave: Callable[[], None],
        now: Callable[[], float] = clock,
    ) -> None:
        self._lease = lease
        self._me = me
        self._lead = lead
        self._leave = leave
        self._now = now
        self._known: Seen | None = None
        self._term: Term | None = None
        self._answered = False
        self._said = ""
        self._beginning = threading.Lock()
        self._retired = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether somebody asks."""
        return self._thread.is_alive()

    @property
    def answered(self) -> bool:
        """Whether the Lease could be read at all: an operator that may not would stand by for ever."""
        return self._answered

    def leads(self) -> bool:
        """Whether it leads now."""
        term = self._term
        return term is not None and term.held

    def retire(self) -> None:
        """Begin no term any more; the one that lasts is kept until `release`."""
        with self._beginning:
            self._retired = True

    def release(self) -> None:
        """End, and give the Lease back, so that the next one need not wait."""
        self.retire()
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self._term is None or self._known is None:
            return
        self._term.end()
        try:
            self._lease.write(given_back(self._known.record, datetime.now(UTC)))
        except PolarisError as error:
            log.info("the lease was not given back, and runs out", error=str(error))

    def step(self) -> float:
        """Do what is due; return the seconds until there is more to do."""
        return self._try() if self._term is None else self._keep(self._term)

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                pause = self.step()
            except PolarisError as error:
                self._say("the lease can't be asked for", error=str(error))
                pause = RENEW_SECONDS
            self._ended.wait(pause)

    def _try(self) -> float:
        found = self._lease.read()
        self._answered = True
        self._known = None if found is None else seen(self._known, found, self._now())
        left = wait(self._known, self._me, self._now())
        if left > 0 and found is not None:
            self._say("stands by", leader=found.holder)
            return min(left, RENEW_SECONDS)
        with self._beginning:
            if not self._retired:
                self._begin()
        return RENEW_SECONDS

    def _begin(self) -> None:
        asked = self._now()
        try:
            written = self._lease.write(taken(self._known, self._me, datetime.now(UTC)))
        except Conflict:
            return  # Another one was quicker.
        self._known = Seen(written, asked)
        self._term = Term(asked + GIVE_UP_SECONDS, self._now)
        self._say("leads", term=written.transitions)
        self._lead(self._term)

    def _keep(self, term: Term) -> float:
        if not term.held:
            return self._lose("it was not renewed in time")
        if self._known is None:
            raise AssertionError("a term without a record")
        asked = self._now()
        try:
            written = self._lease.write(renewed(self._known.record, datetime.now(UTC)))
        except (Conflict, NotFound):
            return self._look_again()
        except PolarisError as error:
            self._say("the lease is not renewed", error=str(error))
            return RENEW_SECONDS
        self._known = Seen(written, asked)
        self._say("leads", term=written.transitions)
        term.go_on(asked + GIVE_UP_SECONDS)
        return RENEW_SECONDS

    def _look_again(self) -> float:
        """Somebody wrote: one who took over, a person, or we, and did not hear of it."""
        found = self._lease.read()
        if found is None or found.holder != self._me:
            return self._lose("it is gone" if found is None else f"{found.holder or 'somebody'} wrote it")
        self._known = Seen(found, self._now())
        return 0.0

    def _lose(self, why: str) -> float:
        if self._term is not None:
            self._term.end()
        self._say("leads no more", why=why)
        self._term = None
        self._leave()
        return 0.0

    def _say(self, what: str, **more: object) -> None:
        """Say it once: looks come every other second."""
        said = f"{what} {more}"
        if said != self._said:
            self._said = said
            tell = log.warning if "error" in more else log.info
            tell(what, me=self._me, **more)
