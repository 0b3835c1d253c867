"""The operator's program: wiring, threads, probes, and an orderly end.

In a cluster every replica lists and watches, and the one that holds the Lease reconciles: an `Operator` lives
as long as one term of it. Over a folder of manifests the main thread looks at the folder, whose lock is what
the Lease is there. Either way a few threads take keys from a queue and reconcile them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from prometheus_client import REGISTRY, Gauge

from polaris.certificate import Certificate
from polaris.errors import ClusterUnavailable, PolarisError
from polaris.settings import LOOPBACK, OperatorSettings
from polaris.spec import Kind
from polaris.telemetry import configure_logging, configure_tracing, logger
from polaris_operator import events, probes
from polaris_operator.callers import ClosedGate, Gate, KubernetesGate, OpenGate
from polaris_operator.databases import Databases
from polaris_operator.folder import ABSENT_SECONDS, FolderObjects
from polaris_operator.kubernetes_api import (
    KubernetesLease,
    KubernetesObjects,
    load_configuration,
    own_namespace,
)
from polaris_operator.lease import Candidate, Term, lease_name
from polaris_operator.measured import OBJECTS
from polaris_operator.objects import Key, Objects
from polaris_operator.patrol import patrol
from polaris_operator.planning import PATH, Planning
from polaris_operator.queue import LONGEST_DELAY_SECONDS, Queue
from polaris_operator.reconcile import Reconciler, Sides
from polaris_operator.sides.database import Database
from polaris_operator.sides.index import Index
from polaris_operator.world.database import Process

log = logger(__name__)

T = TypeVar("T")

KINDS: tuple[Kind, ...] = ("PolarisDatabase", "PolarisIndex")
RELIST_SECONDS = 300.0
# An API server that answers again is asked again so soon, also after an hour of failures.
_AWAY_SECONDS = 15.0
_RETRY_SECONDS = 2.0
# Tried again so long after its deadline at the latest, a deleted object goes.
_JUST_AFTER_SECONDS = 0.1
_LOOK_SECONDS = 1.0
_END_SECONDS = 20.0
# Nothing that it still does has an effect, and the next term begins after it.
_LOST_SECONDS = 3.0
# Made of the name of a cluster or folder; the name itself may be anything.
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://polaris.dev/installation")

_WAITING = Gauge("polaris_operator_queue_keys", "Objects that wait to be looked at, due or not.")
_DUE = Gauge("polaris_operator_queue_due", "Objects that wait for a free worker.")
_FAILING = Gauge("polaris_operator_failing", "Objects whose last look failed.")
_LEADS = Gauge("polaris_operator_leader", "1 while this operator leads; 0: it stands by.")


def process_of(objects: Objects) -> Process:
    """Return who this process is, in every catalog."""
    name = objects.installation
    holder = f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}"
    return Process(uuid.uuid5(_NAMESPACE, name), name, holder)


class Operator:
    """The core without its source of events: a queue, workers, and what they are logged in to."""

    def __init__(
        self,
        objects: Objects,
        *,
        workers: int = 4,
        resync_seconds: float = 60.0,
        may: Callable[[], None] = lambda: None,
    ) -> None:
        """Work on these objects as long as `may` does not raise."""
        self.objects = objects
        self.queue: Queue[Key] = Queue()
        self.databases = Databases(objects, process_of(objects), self.queue.add, may)
        sides = Sides(Database(patrol), Index())
        self.reconciler = Reconciler(
            objects, self.databases, sides, self.queue.add, resync_seconds=resync_seconds
        )
        self._threads = [
            threading.Thread(target=self._work, name=f"worker-{number}", daemon=True)
            for number in range(workers)
        ]
        _WAITING.set_function(lambda: len(self.queue))
        _DUE.set_function(self.queue.due)
        _FAILING.set_function(lambda: self.queue.failing)

    def start(self) -> None:
        """Begin to take keys from the queue."""
        for thread in self._threads:
            thread.start()

    def stop(self, within: float = _END_SECONDS) -> None:
        """Finish what is under way, within limits, and log out; builds go on in PostgreSQL."""
        self.queue.close()
        until = time.monotonic() + within
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(until - time.monotonic(), 0.1))
        self.databases.close_all()
        OBJECTS.clear()

    @property
    def alive(self) -> bool:
        """Whether every worker runs."""
        return all(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        while (key := self.queue.take()) is not None:
            self._look(key)

    def _look(self, key: Key) -> None:
        try:
            again = self.reconciler.reconcile(key)
        except PolarisError as error:
            log.warning("not done", object=str(key), error=str(error), kind=type(error).__name__)
            away = isinstance(error, ClusterUnavailable)
            self.queue.failed(key, self._longest(key, _AWAY_SECONDS if away else LONGEST_DELAY_SECONDS))
        except Exception:
            log.exception("not done", object=str(key))
            self.queue.failed(key, self._longest(key, LONGEST_DELAY_SECONDS))
        else:
            # Spread, so that a thousand objects that were first seen together do not stay together.
            self.queue.done(key, None if again is None else again * random.uniform(0.9, 1.0))  # noqa: S311

    def _longest(self, key: Key, seconds: float) -> float:
        """Return how long a key that failed may wait at the most: a deleted object has its deadline."""
        left = self.reconciler.seconds_left(key)
        return seconds if left is None else min(seconds, left + _JUST_AFTER_SECONDS)


def run_operator(settings: OperatorSettings, kubeconfig: str = "") -> None:
    """Reconcile the objects of a cluster until SIGTERM or Ctrl-C."""
    _quieten()
    with _until_told() as stop:
        namespaces = [name.strip() for name in settings.watch_namespaces.split(",") if name.strip()]
        objects = KubernetesObjects(load_configuration(kubeconfig), namespaces, settings.installation)
        cluster = _Cluster(objects, settings, namespaces, stop)
        audiences = [name.strip() for name in settings.plan_audiences.split(",") if name.strip()]
        planning = Planning(cluster.leading, KubernetesGate(objects, audiences))
        with _probes(settings, planning, live=cluster.alive, ready=cluster.ready):
            if _patiently(lambda: objects.installation, stop) is not None:
                cluster.run()


def run_folder(settings: OperatorSettings, directory: Path, data: Path) -> None:
    """Reconcile the manifests of a folder until SIGTERM or Ctrl-C; everything else is kept in `data`."""
    _quieten()
    with (
        _until_told() as stop,
        contextlib.closing(FolderObjects(directory, data, absent_seconds=ABSENT_SECONDS)) as objects,
    ):
        operator = Operator(objects, workers=settings.workers, resync_seconds=settings.resync_seconds)
        _LEADS.set(1)
        loopback = settings.metrics_host in LOOPBACK
        gate: Gate = OpenGate() if loopback else ClosedGate()
        planning = Planning(lambda: operator, gate, loopback=loopback)
        with _probes(settings, planning, live=lambda: operator.alive, ready=objects.complete):
            operator.start()
            try:
                # The first look tells what changed while nobody looked; the rest is looked at too.
                changed = objects.look() | {resource.key for kind in KINDS for resource in objects.list(kind)}
                while True:
                    for key in changed:
                        operator.queue.add(key)
                    if stop.wait(_LOOK_SECONDS):
                        break
                    changed = objects.look()
            finally:
                operator.stop()


@contextlib.contextmanager
def _probes(
    settings: OperatorSettings, planning: Planning, *, live: Callable[[], bool], ready: Callable[[], bool]
) -> Iterator[None]:
    certificate = Certificate.of(settings, REGISTRY)
    routes = {PATH: planning}
    with contextlib.ExitStack() as stack:
        tls = None if certificate is None else stack.enter_context(certificate.followed())
        host, port = settings.metrics_host, settings.metrics_port
        stack.enter_context(probes.serving(host, port, live=live, ready=ready, routes=routes, tls=tls))
        yield


class _Cluster:
    """One replica: it lists now and then, has kopf watch in between, and reconciles while it leads."""

    def __init__(
        self,
        objects: KubernetesObjects,
        settings: OperatorSettings,
        namespaces: list[str],
        stop: threading.Event,
    ) -> None:
        self._objects = objects
        self._settings = settings
        self._namespaces = namespaces
        self._stop = stop
        self._changing = threading.Lock()
        self._operator: Operator | None = None
        """Of the term that lasts."""
        self._runs = False
        self._missed = threading.Event()
        """The watch begins anew, so it may not have seen what is gone: only a listing shows that."""
        self._watching = threading.Thread(target=self._watch, name="kopf", daemon=True)
        namespace = settings.operator_namespace or own_namespace()
        self._candidate = Candidate(
            KubernetesLease(objects, namespace, lease_name(settings.installation)),
            f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}",
            self._lead,
            lambda: self._leave(_LOST_SECONDS),
        )
        _LEADS.set_function(self._candidate.leads)

    def alive(self) -> bool:
        """Whether every thread that should run does."""
        if not self._runs:
            return True
        operator = self._operator
        threads = self._watching.is_alive() and self._candidate.alive
        return threads and (operator is None or operator.alive)

    def ready(self) -> bool:
        """Whether it could lead, or does."""
        return self._objects.complete() and self._candidate.answered

    def leading(self) -> Operator | None:
        """Return the operator of the term that lasts; None where this replica stands by."""
        return self._operator if self._candidate.leads() else None

    def run(self) -> None:
        """Work until told to stop."""
        self._watching.start()
        self._candidate.start()
        self._runs = True
        try:
            while not self._stop.is_set():
                self._relist()
        finally:
            self._runs = False
            self._candidate.retire()
            self._leave(_END_SECONDS)
            self._candidate.release()
            self._watching.join(_END_SECONDS)

    def _lead(self, term: Term) -> None:
        operator = Operator(
            self._objects.during(term.check),
            workers=self._settings.workers,
            resync_seconds=self._settings.resync_seconds,
            may=term.check,
        )
        operator.start()
        self._operator = operator
        # What is seen from now on is added as it is seen.
        for kind in KINDS:
            for resource in self._objects.list(kind):
                operator.queue.add(resource.key)

    def _leave(self, within: float) -> None:
        """End the term's work; it writes nothing where the term is over already."""
        with self._changing:
            operator, self._operator = self._operator, None
        if operator is not None:
            operator.stop(within)

    def _relist(self) -> None:
        for key in _patiently(self._objects.relist, self._stop) or ():
            self._add(key)
        end = time.monotonic() + RELIST_SECONDS
        while not self._stop.wait(_RETRY_SECONDS) and time.monotonic() < end:
            if self._missed.is_set():
                self._missed.clear()
                break

    def _watch(self) -> None:
        """Watch, again and again: kopf gives up when the API server is away for long."""
        again = False
        while not self._stop.is_set():
            # Before the first listing the CRDs may not be there, and kopf looks for them once.
            if not self._objects.complete():
                self._stop.wait(0.1)
                continue
            if again:
                self._missed.set()
            again = True
            try:
                asyncio.run(events.watch(self._objects, self._add, self._namespaces, self._stop))
            except Exception:
                log.exception("watching ended, and begins anew")
            self._stop.wait(_RETRY_SECONDS)

    def _add(self, key: Key) -> None:
        operator = self._operator
        if operator is not None:
            operator.queue.add(key)


def _patiently(ask: Callable[[], T], stop: threading.Event) -> T | None:
    """Ask until there is an answer; None where we are told to stop first."""
    while not stop.is_set():
        try:
            return ask()
        except PolarisError as error:
            log.warning("no answer yet", error=str(error))
            stop.wait(_RETRY_SECONDS)
    return None


@contextlib.contextmanager
def _until_told() -> Iterator[threading.Event]:
    """Hand out an event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _quieten() -> None:
    """Keep others from saying at every look that they looked; what went wrong they still say."""
    for name in ("alembic", "kopf"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.root.level))
    # Signals are ours, so kopf has a thread of its own, and warns that it does not get them there.
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)


def main() -> None:
    """Run the operator of a cluster, with settings from the environment."""
    settings = OperatorSettings.load(os.environ)
    configure_logging(settings.log_level)
    configure_tracing("polaris-operator")
    run_operator(settings, os.environ.get("KUBECONFIG", ""))


if __name__ == "__main__":
    main()
