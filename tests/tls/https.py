"""Any application over HTTPS in a thread of the test's own process, by our own way of serving."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn

from polaris.certificate import Certificate
from polaris_service.serving import listening


@contextlib.contextmanager
def serving(app: Any, certificate: Certificate) -> Iterator[int]:
    """Serve until the context ends, and yield the port."""
    with certificate.followed() as context, listening("127.0.0.1", 0) as bound:
        config = uvicorn.Config(
            app, log_config=None, access_log=False, ssl_context_factory=lambda *_: context, ws="none"
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        try:
            yield bound.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()
