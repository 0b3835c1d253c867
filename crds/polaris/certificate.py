"""The certificate that we serve by: followed while we serve, so that it rotates without a restart.

The listening context never changes; at each handshake it hands over to the newest one that has proven
itself. So a new connection meets the new certificate, an established one goes on, and a pair that is
half-written or wrong is never met by anybody.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from prometheus_client import CollectorRegistry, Gauge

from polaris.followed import LOOK_SECONDS, Followed, pem
from polaris.settings import Served

# OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which the ssl module does not name: an expired certificate is
# served and measured like any other; to refuse it is the caller's part.
_NO_CHECK_TIME = 0x200000


@dataclass(frozen=True)
class _Pair:
    """A certificate with its key, ready to be served."""

    context: ssl.SSLContext
    not_after: float
    """When it expires, in seconds since 1970."""


class Certificate:
    """The certificate of one listening program."""

    def __init__(self, certificate: Path, key: Path, registry: CollectorRegistry) -> None:
        self._followed = Followed(f"certificate {certificate}, key {key}", (certificate, key), _read)
        self._ended = threading.Event()
        self._expires = Gauge(
            "polaris_tls_certificate_expiry_timestamp_seconds",
            "When the certificate that is served expires, in seconds since 1970.",
            registry=registry,
        )
        self._current = Gauge(
            "polaris_tls_certificate_current",
            "1 while the certificate that is served is the one in the files; 0: those are wrong or gone.",
            registry=registry,
        )

    @classmethod
    def of(cls, settings: Served, registry: CollectorRegistry) -> Self | None:
        """Return the one that the settings name; None where they name none: plain HTTP."""
        if not settings.tls_cert_file:
            return None
        return cls(Path(settings.tls_cert_file), Path(settings.tls_key_file), registry)

    @property
    def problem(self) -> str | None:
        """Why the certificate in the files is not the one that is served; None while it is."""
        found = self._followed.problem
        return None if found is None else f"an older certificate is served: {found}"

    @contextmanager
    def followed(self) -> Iterator[ssl.SSLContext]:
        """Lend the context to listen with, and follow the files meanwhile.

        Raises InvalidInput where the files hold no right pair to begin with.
        """
        self._look()
        listening = self._followed.present().context
        listening.sni_callback = self._hand_over
        thread = threading.Thread(target=self._follow, name="certificate", daemon=True)
        thread.start()
        try:
            yield listening
        finally:
            self._ended.set()
            thread.join()

    def _hand_over(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        """Called by OpenSSL in each handshake, with or without a name, before a certificate is chosen."""
        connection.context = self._followed.present().context

    def _follow(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            self._look()

    def _look(self) -> None:
        if self._followed.look():
            self._expires.set(self._followed.present().not_after)
        self._current.set(self._followed.problem is None)


def _read(paths: tuple[Path, ...]) -> _Pair:
    """Return the pair; raise OSError or ValueError where it is none, or would not work."""
    certificate, key = paths
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
        shown = _shake_hands(context, pem(certificate.read_bytes()))
    except ssl.SSLError as error:
        raise ValueError(f"they are no certificate with its key: {error.reason or error}") from None
    return _Pair(context, ssl.cert_time_to_seconds(shown["notAfter"]))


def _no_password() -> str:
    raise ValueError("the key is encrypted; it has to be readable as it is")


def _shake_hands(context: ssl.SSLContext, chain: str) -> dict[str, Any]:
    """Show the pair to a client in memory that believes exactly it; return what that client saw."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    client.load_verify_locations(cadata=chain)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = context.wrap_bio(there, back, server_side=True), client.wrap_bio(back, there)
    for end in (ends[1], ends[0], ends[1]):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return ends[1].getpeercert() or {}
