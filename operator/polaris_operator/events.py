"""kopf's part: what the API server tells becomes a key in the queue, and nothing else.

`on.event` handlers leave no annotation, finalizer or status behind (classic handlers wrote three times
an object at a first start, and once an object at each restart). What they raise is only logged, so
they decide nothing: retries, back-off and concurrency are the queue's.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import kopf

from polaris import API_GROUP, API_VERSION
from polaris.spec import Kind
from polaris_operator.kubernetes_api import PLURALS, KubernetesObjects
from polaris_operator.objects import Key

_LOOK_SECONDS = 0.2
"""Between two looks whether to stop."""
_SILENT_SECONDS = 20.0
_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 30.0


def registry(objects: KubernetesObjects, add: Callable[[Key], None]) -> kopf.OperatorRegistry:
    """Return the handlers: one a kind."""
    made = kopf.OperatorRegistry()
    for kind, plural in PLURALS.items():
        kopf.on.event(API_GROUP, API_VERSION, plural, registry=made, id=kind)(_handler(kind, objects, add))
    kopf.on.login(registry=made)(lambda **_: _connection(objects))
    return made


def _handler(kind: Kind, objects: KubernetesObjects, add: Callable[[Key], None]) -> Any:
    async def seen(event: kopf.RawEvent, **_: Any) -> None:
        key = objects.see(kind, event["object"], gone=event["type"] == "DELETED")
        if key is not None:
            add(key)

    return seen


def _connection(objects: KubernetesObjects) -> kopf.ConnectionInfo:
    """Return the same way to the API server that everything else here takes; asked again after a 401."""
    found = objects.configuration
    scheme, _, token = (found.get_api_key_with_prefix("BearerToken") or "").rpartition(" ")
    return kopf.ConnectionInfo(
        server=found.host,
        ca_path=found.ssl_ca_cert,
        insecure=not found.verify_ssl,
        username=found.username or None,
        password=found.password or None,
        scheme=scheme or None,
        token=token or None,
        certificate_path=found.cert_file,
        private_key_path=found.key_file,
    )


def settings() -> kopf.OperatorSettings:
    """Return kopf's settings: it only watches."""
    made = kopf.OperatorSettings()
    made.posting.enabled = False
    # The operator lists the objects itself before it begins to watch, so their CRDs are there; and to
    # watch CRDs and namespaces would need rights on all of the cluster.
    made.scanning.disabled = True
    # A watch can fall silent without an end; one of which nothing was heard begins anew where it was.
    made.watching.inactivity_timeout = _SILENT_SECONDS
    made.watching.connect_timeout = made.networking.connect_timeout = _CONNECT_SECONDS
    made.networking.request_timeout = _ANSWER_SECONDS
    # However long the API server was away. After the last, kopf gives up and is begun anew.
    made.networking.error_backoffs = (1, 1, 2, 3, 5, 5, 5, 5)
    return made


async def watch(
    objects: KubernetesObjects,
    add: Callable[[Key], None],
    namespaces: Sequence[str],
    stop: threading.Event,
) -> None:
    """Watch until told to stop; raises what kopf gives up for, when the API server is away for long."""
    told = asyncio.Event()

    async def tell() -> None:
        while not stop.is_set():  # noqa: ASYNC110  it is set by another thread
            await asyncio.sleep(_LOOK_SECONDS)
        told.set()

    # kopf would wait for the other kind of event in a thread, which nothing ends when kopf gives up:
    # the loop could not be closed then, and nobody would begin anew.
    telling = asyncio.create_task(tell())
    try:
        await kopf.operator(
            registry=registry(objects, add),
            settings=settings(),
            clusterwide=not namespaces,
            namespaces=list(namespaces),
            standalone=True,
            stop_flag=told,
        )
    finally:
        telling.cancel()
