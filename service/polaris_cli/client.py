"""The service over HTTP, as the client commands see it; its problems become our errors."""

from __future__ import annotations

import ipaddress
import json
import random
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx

from polaris.errors import (
    Conflict,
    DeadlineExceeded,
    Forbidden,
    Gone,
    InvalidInput,
    NotFound,
    PolarisError,
    Refused,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from polaris.settings import ClientSettings
from polaris_cli.flags import WrongUsage

_ERRORS: dict[int, type[PolarisError]] = {
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    412: Conflict,
    413: TooLarge,
    504: DeadlineExceeded,
}
_LONGEST_PAUSE = 60.0


class Unreachable(Unavailable):
    """Nobody listens there."""


class Service:
    """A connection to the service. Use it as a context manager."""

    def __init__(self, settings: ClientSettings) -> None:
        self._settings = settings
        self._answered = False
        self.address = settings.server.rstrip("/")
        self._client = httpx.Client(
            base_url=self.address,
            timeout=httpx.Timeout(settings.client_timeout_seconds, connect=5),
            # A proxy that the environment names can't reach this machine's own loopback.
            trust_env=not _is_loopback(self.address),
            verify=_trust(self.address, settings.ca_file),
            auth=self._authorise if settings.token_file else None,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def get(self, path: str) -> Any:
        """Return the JSON at a path."""
        return self._json("GET", path)

    def post(self, path: str, body: Any) -> Any:
        """Send JSON, and return the JSON of the answer."""
        return self._json("POST", path, json=body)

    def text(self, path: str) -> str:
        """Return the text at a path."""
        with self._translated():
            response = self._client.get(path)
            self._answered = True
            check(response)
            return response.text.strip()

    def put(self, path: str, body: Any) -> Any:
        """Put JSON at a path, and return the JSON of the answer."""
        return self._json("PUT", path, json=body)

    def delete(self, path: str) -> Any:
        """Delete what stands at a path, and return the JSON of the answer."""
        return self._json("DELETE", path)

    def events(self, path: str, body: Any) -> Iterator[tuple[str, Any]]:
        """Send JSON, and yield the name and JSON of each Server-Sent Event as it comes."""
        name = ""
        with self.stream("POST", path, json=body) as response:
            for line in response.iter_lines():
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    yield name, json.loads(value)

    @contextmanager
    def stream(self, method: str, path: str, **request: Any) -> Iterator[httpx.Response]:
        """Send a request and lend the answer, to be read piece by piece."""
        with self._translated(), self._client.stream(method, path, **request) as response:
            self._answered = True
            if response.is_error:
                response.read()
            check(response)
            yield response

    def patiently(self, attempt: Callable[[], Any], tell: Callable[[str], None]) -> Any:
        """Call `attempt` until the service is not busy or away; Unavailable after long enough.

        Waits as long as Retry-After says, else longer each time, and tells a person once. A service
        that never answered yet is taken for a wrong address.
        """
        deadline = time.monotonic() + self._settings.client_retry_seconds
        pause, told = 0.5, False
        while True:
            try:
                return attempt()
            except Unavailable as error:
                if isinstance(error, Unreachable) and not self._answered:
                    raise
                wait = min(error.retry_after or pause * random.uniform(0.5, 1), _LONGEST_PAUSE)  # noqa: S311
                if time.monotonic() + wait > deadline:
                    raise
                if not told:
                    tell(f"{error}; trying again")
                told = True
                time.sleep(wait)
                pause = min(pause * 2, _LONGEST_PAUSE)

    def _json(self, method: str, path: str, **request: Any) -> Any:
        with self._translated():
            response = self._client.request(method, path, **request)
            self._answered = True
            check(response)
            return response.json()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except httpx.ConnectError as error:
            if refused := _certificate_refused(error):
                raise Refused(
                    f"the certificate of {self.address} is not believed: {refused};"
                    " --ca-file or POLARIS_CA_FILE names the authority that it is of"
                ) from None
            raise Unreachable(
                f"nothing answers at {self.address}: start a service with 'polaris up',"
                " or name another with --server or POLARIS_SERVER"
            ) from None
        except httpx.TimeoutException:
            seconds = self._settings.client_timeout_seconds
            raise Unavailable(f"{self.address} did not answer within {seconds:g} s") from None
        except httpx.TransportError as error:
            raise Unavailable(f"the connection to {self.address} broke: {error}") from None
        except (httpx.InvalidURL, UnicodeError) as error:
            raise WrongUsage(f"{self.address} is no address of a service: {error}") from None
        except ValueError:
            raise Refused(f"{self.address} is no POLARIS service: its answer is not JSON") from None

    def _authorise(self, request: httpx.Request) -> httpx.Request:
        # Read each time: a projected token is replaced while a long load runs.
        try:
            token = Path(self._settings.token_file).read_text("utf-8").strip()
        except OSError as error:
            raise WrongUsage(f"the token file {self._settings.token_file}: {error.strerror}") from None
        request.headers["Authorization"] = f"Bearer {token}"
        return request


def check(response: httpx.Response) -> None:
    """Raise the error that an answer tells of; nothing where it is a success."""
    if not response.is_success:
        raise problem(response.status_code, _body(response), response.headers.get("Retry-After"))


def problem(status: int, body: Any, retry_after: str | None = None) -> PolarisError:
    """Return the error for a problem document (RFC 9457), or for an answer that is none."""
    body = body if isinstance(body, dict) else {}
    detail = str(body.get("detail") or body.get("title") or f"the service answered {status}")
    faults = [fault for fault in body.get("errors") or () if isinstance(fault, dict)]
    places = "; ".join(f"{fault.get('pointer') or 'the body'}: {fault.get('detail')}" for fault in faults)
    repeated = any(str(fault.get("detail")) in detail for fault in faults)
    message = places if repeated else f"{detail} ({places})" if places else detail
    if status in (429, 503):
        return Unavailable(message, _seconds(retry_after))
    if status >= 500 and not body:
        return Unavailable(message)
    return _ERRORS.get(status, InvalidInput if status < 500 else Refused)(message)


def _body(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return None


def _seconds(text: str | None) -> float | None:
    try:
        return max(float(text or ""), 0.05)
    except ValueError:
        return None


def _trust(address: str, ca_file: str) -> ssl.SSLContext | bool:
    """Return what httpx is to believe about certificates; True: the public authorities."""
    if not address.startswith("https:"):
        # Loading the authorities costs 0.2 s, which only TLS needs.
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if not ca_file:
        return True
    try:
        return ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError:
        raise WrongUsage(f"{ca_file} holds no certificate in PEM") from None
    except OSError as error:
        raise WrongUsage(f"the file of authorities {ca_file}: {error.strerror}") from None


def _certificate_refused(error: BaseException | None) -> str | None:
    """Return what is wrong with the certificate, where that is why no connection came about."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message
        error = error.__cause__ or error.__context__
    return None


def _is_loopback(address: str) -> bool:
    host = httpx.URL(address).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
