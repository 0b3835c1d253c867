"""What we serve over HTTPS: the certificate rotates under load, and a wrong one is never met."""

from __future__ import annotations

import re
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry

from polaris.certificate import Certificate
from polaris.errors import InvalidInput
from polaris.settings import EmbedderSettings, ServiceSettings
from service.made import Made, Secret
from service.processes import Program, running
from tls.authority import Authority, der, mounted, shown

_PATIENCE_SECONDS = 60.0


def until(true: object, what: str) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


class Load:
    """Requests without a pause over kept connections and over fresh ones."""

    def __init__(self, url: str, trusted: ssl.SSLContext) -> None:
        self.url, self.trusted = url, trusted
        self.answered = {"kept": 0, "fresh": 0}
        self.failed: list[str] = []
        self.kept: set[bytes] = set()
        self._ended = threading.Event()

    def _ask(self, http: httpx.Client, kind: str) -> None:
        try:
            with http.stream("GET", "/v1/indexes/team/none") as response:
                connection = response.extensions["network_stream"].get_extra_info("ssl_object")
                if kind == "kept":
                    self.kept.add(connection.getpeercert(True))
                response.read()
            assert response.status_code == 404, response.text
            self.answered[kind] += 1
        except Exception as error:  # noqa: BLE001  whatever it is, it is a request that failed
            self.failed.append(f"{kind}: {error!r}")

    def _client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, verify=self.trusted, trust_env=False, timeout=30)

    def _keep(self) -> None:
        with self._client() as http:
            while not self._ended.is_set():
                self._ask(http, "kept")
                time.sleep(0.005)

    def _anew(self) -> None:
        while not self._ended.is_set():
            with self._client() as http:
                self._ask(http, "fresh")

    @contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=work) for work in (self._keep, self._keep, self._anew)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._ended.set()
            for thread in threads:
                thread.join()


@contextmanager
def serving(made: Made, folder: Path, secret: Secret) -> Iterator[Program]:
    with running(
        "service",
        made,
        folder,
        tls_cert_file=str(secret.folder / "tls.crt"),
        tls_key_file=str(secret.folder / "tls.key"),
    ) as program:
        yield program


@pytest.mark.postgres
def test_the_certificate_rotates_under_load_and_a_wrong_pair_is_never_met(made: Made, tmp_path: Path) -> None:
    authority = Authority()
    first, second, third = (authority.pair() for _ in range(3))
    secret = mounted(tmp_path / "tls", first)
    trusted = authority.trusted()
    with serving(made, tmp_path, secret) as service:
        load = Load(service.url, trusted)

        def seen() -> bytes:
            return shown(service.port, trusted)

        def get(path: str) -> str:
            return httpx.get(f"{service.url}{path}", verify=trusted, trust_env=False).text

        assert seen() == der(first)
        with load.running():
            secret.write(second)
            until(lambda: seen() == der(second), "the second certificate is not served")
            # The key of another certificate; then half of a file.
            secret.write({"tls.crt": third["tls.crt"], "tls.key": first["tls.key"]})
            until(lambda: "an older certificate is served" in get("/readyz"), "nobody says it is wrong")
            assert "polaris_tls_certificate_current 0.0" in get("/metrics")
            secret.write({"tls.crt": third["tls.crt"][:200], "tls.key": third["tls.key"]})
            assert seen() == der(second)
            secret.write(third)
            until(lambda: seen() == der(third), "the third certificate is not served")
            until(lambda: get("/readyz") == "ok\n", "it still complains")
            answered = dict(load.answered)
            until(
                lambda: load.failed or all(load.answered[kind] > answered[kind] for kind in answered),
                "no more answers",
            )
        assert load.failed == []
        # An established connection goes on with what it began with.
        assert load.kept == {der(first)}
        assert "polaris_tls_certificate_current 1.0" in get("/metrics")
        (expires,) = re.findall(r"^polaris_tls_certificate_expiry_\w+ (.*)$", get("/metrics"), re.MULTILINE)
        assert float(expires) > time.time()
    assert '"event":"files are wrong"' in service.log()


@pytest.mark.postgres
def test_a_client_that_does_not_know_the_authority_or_asks_for_another_name_goes_away(
    made: Made, tmp_path: Path
) -> None:
    authority = Authority()
    with serving(made, tmp_path, mounted(tmp_path / "tls", authority.pair("localhost"))) as service:
        assert shown(service.port, authority.trusted())
        with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
            shown(service.port, Authority().trusted())
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            shown(service.port, authority.trusted(), "polaris.elsewhere")
        old = authority.trusted()
        with pytest.warns(DeprecationWarning, match="TLSv1"):
            old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        with pytest.raises(ssl.SSLError):
            shown(service.port, old)


def _certificate(folder: Path) -> Certificate:
    return Certificate(folder / "tls.crt", folder / "tls.key", CollectorRegistry())


# Its password is `secret`.
_ENCRYPTED = """\
-----BEGIN ENCRYPTED PRIVATE KEY-----
MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAg4iJWLA2elIQICCAAw
DAYIKoZIhvcNAgkFADAdBglghkgBZQMEASoEEI8eW+J4v2OjdE9fOCTZICkEgZAr
vePLt0IklEL/5evyPQctvG8AIQdENQPwxma7yMiqT6eHtPxg48lKFQKUGtC+SKb9
s/i2j6oQXvxLVg1P8cTi+WsAFLmToYaX199NDUynAGudMHXFECVu603aMsqHZoR0
Mq+M2xczuBT6t3/sZS4Eue1/nCOwVRALG4ZtMO4V4IsaxcPYc21uui26vnhrBcw=
-----END ENCRYPTED PRIVATE KEY-----
"""


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("nothing", "No such file"),
        ("another key", "KEY_VALUES_MISMATCH"),
        ("no certificate", "no certificate with its key"),
        ("an encrypted key", "the key is encrypted"),
    ],
)
def test_it_does_not_begin_with_files_that_are_no_pair_and_says_what_is_wrong(
    tmp_path: Path, wrong: str, said: str
) -> None:
    authority = Authority()
    values = authority.pair()
    match wrong:
        case "nothing":
            values = {}
        case "another key":
            values["tls.key"] = authority.pair()["tls.key"]
        case "no certificate":
            values["tls.crt"] = "no certificate"
        case _:
            values["tls.key"] = _ENCRYPTED
    secret = mounted(tmp_path / "tls", values)
    with (
        pytest.raises(InvalidInput, match=rf"certificate .*tls\.crt.*{said}"),
        _certificate(secret.folder).followed(),
    ):
        pass


def test_a_renewed_certificate_in_plain_files_is_followed_too(tmp_path: Path) -> None:
    """Without a cluster nobody swaps a symlink: the files are written over."""
    authority = Authority()
    for name, text in authority.pair().items():
        (tmp_path / name).write_text(text)
    certificate = _certificate(tmp_path)
    with certificate.followed():
        renewed = authority.pair()
        (tmp_path / "tls.crt").write_text(renewed["tls.crt"])
        until(lambda: certificate.problem, "half of a pair is not told")
        (tmp_path / "tls.key").write_text(renewed["tls.key"])
        until(lambda: certificate.problem is None, "the whole pair is not taken")


@pytest.mark.parametrize("settings", [ServiceSettings, EmbedderSettings])
@pytest.mark.parametrize("missing", ["tls_cert_file", "tls_key_file"])
def test_a_certificate_without_a_key_is_refused_by_name(
    settings: type[ServiceSettings | EmbedderSettings], missing: str
) -> None:
    given = {"tls_cert_file": "/tls/tls.crt", "tls_key_file": "/tls/tls.key", missing: ""}
    with pytest.raises(InvalidInput, match=f"POLARIS_{missing.upper()} is missing"):
        settings.load({}, given)
