"""OpenBao behind a certificate of an authority of its own: the operator believes that one and no other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from parts.servers import Database
from parts.vault import Administrator
from polaris.errors import VaultUnavailable
from polaris_cli.up.openbao import LocalOpenBao
from polaris_cli.up.postgres import LocalPostgres
from scenes.credentials import FromVault, from_vault
from scenes.folder import FolderScene, log_in
from tls.authority import Authority
from tls.front import Front, fronted

pytestmark = pytest.mark.postgres


class Place:
    """A database whose logins come from OpenBao over HTTPS, and the operator over a folder of manifests."""

    def __init__(self, scene: FolderScene, source: FromVault, authority: Authority, front: Front) -> None:
        self.scene, self.source, self.authority, self.front = scene, source, authority, front

    def believe(self, authority: Authority) -> None:
        self.scene.put_secret("vault-authority", **{"ca.crt": authority.pem})

    def apply(self, host: str = "localhost", *, own_authority: bool = True) -> None:
        manifest: dict[str, Any] = self.source.manifest()
        vault = manifest["spec"]["credentials"]["vault"]
        vault["address"] = f"https://{host}:{self.front.port}"
        if own_authority:
            vault["caSecretRef"] = {"name": "vault-authority", "key": "ca.crt"}
        self.scene.apply(manifest)


@pytest.fixture
def place(
    tmp_path: Path,
    postgres: LocalPostgres,
    openbao: LocalOpenBao,
    vault_administrator: Administrator,
    fresh_database: Callable[[LocalPostgres], Database],
) -> Iterator[Place]:
    authority = Authority()
    with ExitStack() as stack:
        front = stack.enter_context(fronted("127.0.0.1", openbao.port, authority, negotiated=False))
        scene = FolderScene(tmp_path / "operator")
        stack.callback(scene.stop)
        database = fresh_database(postgres)
        source = stack.enter_context(from_vault(scene, database, vault_administrator, "approle"))
        made = Place(scene, source, authority, front)
        made.believe(authority)
        yield made


def stands(place: Place) -> tuple[str, str]:
    return place.scene.condition("Ready")[:2]


def test_the_operator_logs_in_by_the_authority_of_the_manifest_and_gets_leases(place: Place) -> None:
    place.apply()
    place.scene.reconcile()
    assert stands(place) == ("True", "Ready")
    assert place.front.taken > 0
    assert len(place.source.leases()) == 3
    assert log_in(place.scene.secret("polaris-query"))


@pytest.mark.parametrize("wrong", ["another authority", "another name", "no authority"])
def test_a_vault_that_cannot_prove_who_it_is_gets_no_secret(place: Place, wrong: str) -> None:
    if wrong == "another authority":
        place.believe(Authority())
    host = "127.0.0.1" if wrong == "another name" else "localhost"
    place.apply(host, own_authority=wrong != "no authority")
    with pytest.raises(VaultUnavailable):
        place.scene.reconcile()
    assert stands(place) == ("False", "VaultUnavailable")
    message = place.scene.condition("Ready")[2]
    assert message.startswith("Vault's certificate is not believed")
    assert "CERTIFICATE_VERIFY_FAILED" in message
    assert place.source.leases() == []


def test_a_new_authority_of_vault_is_followed_when_its_secret_changes(place: Place) -> None:
    place.apply()
    place.scene.reconcile()
    new = Authority()
    place.front.show(new)
    place.believe(new)
    taken = place.front.taken
    place.scene.reconcile()
    assert stands(place) == ("True", "Ready")
    assert place.front.taken > taken
