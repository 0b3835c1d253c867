"""The login's Secret as files: read from one resolved folder, so that no two rotations mix."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from polaris.errors import DatabaseUnavailable
from polaris.followed import pem, resolve

_REQUIRED = ("username", "password", "host", "port", "dbname")


@dataclass(frozen=True)
class Login:
    """A login to the database, with all that is needed to connect."""

    username: str
    password: str = field(repr=False)
    host: str
    port: int
    dbname: str
    sslmode: str = "verify-full"
    epoch: int = 0
    expires_at: str = ""
    """RFC 3339; empty where it is not known."""
    ca: str = field(default="", repr=False)
    """Certificates of the authority, PEM; empty: the system's."""

    def tls(self) -> ssl.SSLContext | bool:
        """Return what asyncpg is to do about TLS: a context, or False for none.

        Raises DatabaseUnavailable where the authority is no certificate.
        """
        if self.sslmode == "disable":
            return False
        try:
            context = ssl.create_default_context(cadata=pem(self.ca) or None)
        except (ssl.SSLError, ValueError) as error:
            raise DatabaseUnavailable(f"the login's ca.crt holds no certificate: {error}") from None
        if self.sslmode != "verify-full":
            context.check_hostname = False
        if self.sslmode == "require":
            # libpq's meaning of the word: encrypted, and nothing is checked. It has to be written
            # out in the manifest (PolarisDatabase, spec.tls.mode).
            context.verify_mode = ssl.CERT_NONE
        return context


def read_login(folder: Path) -> Login | None:
    """Return the login in `folder`; None where there is none yet, or only a part of one.

    Raises DatabaseUnavailable where the files are there and cannot be a login.
    """
    try:
        values = _read(resolve(folder))
    except FileNotFoundError:
        # Swapped while we read; the next look sees the new one.
        return None
    except OSError as error:
        raise DatabaseUnavailable(f"the login's folder cannot be read: {error.strerror}") from None
    if any(not values.get(key) for key in _REQUIRED):
        return None
    try:
        return Login(
            username=values["username"],
            password=values["password"],
            host=values["host"],
            port=int(values["port"]),
            dbname=values["dbname"],
            sslmode=values.get("sslmode") or "verify-full",
            epoch=int(values.get("epoch") or 0),
            expires_at=values.get("expires-at", ""),
            ca=values.get("ca.crt", ""),
        )
    except ValueError:
        raise DatabaseUnavailable("the login's port or epoch is not a number") from None


def _read(folder: Path) -> dict[str, str]:
    names = (*_REQUIRED, "sslmode", "epoch", "expires-at", "ca.crt")
    present = {name: folder / name for name in names if (folder / name).exists()}
    # A password may begin or end with white space; only the others are trimmed of an editor's newline.
    return {
        name: text if name in ("password", "ca.crt") else text.strip()
        for name, path in present.items()
        for text in [path.read_text(encoding="utf-8")]
    }
