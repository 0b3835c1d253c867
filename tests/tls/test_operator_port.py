"""The operator's own port with a certificate: probes, metrics and plans are behind it."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry

from polaris.certificate import Certificate
from polaris_operator import probes
from tls.authority import Authority, der, mounted, shown

pytestmark = pytest.mark.unit


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_certificate_is_followed_and_who_says_nothing_keeps_nobody_waiting(tmp_path: Path) -> None:
    authority = Authority()
    first, second = authority.pair(), authority.pair()
    secret = mounted(tmp_path / "tls", first)
    trusted = authority.trusted()
    certificate = Certificate(secret.folder / "tls.crt", secret.folder / "tls.key", CollectorRegistry())
    with (
        certificate.followed() as context,
        probes.serving("127.0.0.1", 0, live=lambda: True, ready=lambda: False, tls=context) as port,
        socket.create_connection(("127.0.0.1", port)),  # It never begins its handshake.
    ):

        def status(path: str) -> int:
            return httpx.get(f"https://localhost:{port}{path}", verify=trusted, trust_env=False).status_code

        assert (status("/livez"), status("/readyz"), status("/metrics")) == (200, 503, 200)
        assert shown(port, trusted) == der(first)
        secret.write(second)
        until(lambda: shown(port, trusted) == der(second))
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"https://localhost:{port}/livez", verify=ssl.create_default_context(), trust_env=False)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}/livez", trust_env=False)
        assert status("/livez") == 200
