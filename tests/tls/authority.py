"""An authority of a test's own, and certificates as a mounted Secret holds them."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import trustme

from service.made import Secret


class Authority:
    """Issues certificates, and writes them as `kubernetes.io/tls` Secrets have them."""

    def __init__(self) -> None:
        self._ca = trustme.CA()

    @property
    def pem(self) -> str:
        return self._ca.cert_pem.bytes().decode()

    def pair(self, *names: str) -> dict[str, str]:
        """A new certificate with its key, `tls.crt` and `tls.key`."""
        issued = self._ca.issue_cert(*(names or ("localhost", "127.0.0.1")))
        chain = b"".join(pem.bytes() for pem in issued.cert_chain_pems)
        return {"tls.crt": chain.decode(), "tls.key": issued.private_key_pem.bytes().decode()}

    def serving(self, *names: str) -> ssl.SSLContext:
        """A server's context with a new certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._ca.issue_cert(*names).configure_cert(context)
        return context

    def trusted(self) -> ssl.SSLContext:
        """A client's context that believes this authority only."""
        return ssl.create_default_context(cadata=self.pem)

    def file(self, path: Path) -> Path:
        path.write_text(self.pem)
        return path


def mounted(folder: Path, values: dict[str, str]) -> Secret:
    """A Secret in a folder that does not exist yet."""
    secret = Secret(folder)
    secret.write(values)
    return secret


def shown(port: int, context: ssl.SSLContext, name: str = "localhost") -> bytes:
    """The certificate (DER) that a server shows to a new connection."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=name) as wrapped,
    ):
        return wrapped.getpeercert(binary_form=True) or b""


def der(pair: dict[str, str]) -> bytes:
    """A pair's certificate, as `shown` returns it."""
    return ssl.PEM_cert_to_DER_cert(pair["tls.crt"])
