"""Who and may, asked of a real Kubernetes API server."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from kube.cluster import Cluster
from polaris.errors import ClusterUnavailable, Unauthenticated
from polaris_service.gate import Access
from polaris_service.gate.kubernetes_api import KubernetesPolicy
from service.made import Index, made_in
from service.rig import Rig, until

pytestmark = [pytest.mark.kubernetes, pytest.mark.anyio]

_SECONDS = 600.0


@dataclass(frozen=True)
class Team:
    """A namespace with service accounts: `service` (as the chart makes it), `reader`, `stranger`."""

    cluster: Cluster
    namespace: str
    kubeconfig: Path

    def token(self, name: str, audience: str | None = "polaris") -> str:
        return self.cluster.token(self.namespace, name, audience=audience)

    def policy(self, seconds: float = _SECONDS, kubeconfig: Path | None = None) -> KubernetesPolicy:
        return KubernetesPolicy(["polaris"], seconds, {"KUBECONFIG": str(kubeconfig or self.kubeconfig)})


@pytest.fixture(scope="module")
def team(cluster: Cluster) -> Team:
    namespace = f"team-{secrets.token_hex(4)}"
    cluster.apply(
        f"""
apiVersion: v1
kind: Namespace
metadata: {{name: {namespace}}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {{name: service, namespace: {namespace}}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {{name: reader, namespace: {namespace}}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {{name: stranger, namespace: {namespace}}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: {namespace}-delegator}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "system:auth-delegator"}}
subjects: [{{kind: ServiceAccount, name: service, namespace: {namespace}}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{name: query, namespace: {namespace}}}
rules:
- {{apiGroups: [polaris.dev], resources: [polarisindexes/query], resourceNames: [handbook], verbs: [get]}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: query, namespace: {namespace}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: query}}
subjects: [{{kind: ServiceAccount, name: reader, namespace: {namespace}}}]
"""
    )
    return Team(cluster, namespace, cluster.kubeconfig_for(namespace, "service"))


@pytest.fixture
async def policy(team: Team) -> AsyncIterator[KubernetesPolicy]:
    made = team.policy()
    await made.start()
    yield made
    await made.stop()


async def test_a_token_for_our_audience_says_who_it_is(team: Team, policy: KubernetesPolicy) -> None:
    caller = await policy.who(team.token("reader"))
    assert caller.name == f"system:serviceaccount:{team.namespace}:reader"
    assert "system:authenticated" in caller.groups
    assert caller.uid


async def test_a_token_for_another_audience_is_not_accepted(team: Team, policy: KubernetesPolicy) -> None:
    for audience in (None, "vault"):
        with pytest.raises(Unauthenticated, match="kubectl create token SERVICEACCOUNT --audience polaris"):
            await policy.who(team.token("reader", audience))


@pytest.mark.parametrize("token", [None, "nonsense", "a.b.c", "x" * 100_000])
async def test_what_is_no_token_is_not_accepted(policy: KubernetesPolicy, token: str | None) -> None:
    with pytest.raises(Unauthenticated):
        await policy.who(token)


async def test_rbac_decides_by_verb_subresource_and_name(team: Team, policy: KubernetesPolicy) -> None:
    reader = await policy.who(team.token("reader"))
    stranger = await policy.who(team.token("stranger"))
    assert await policy.may(reader, Access.QUERY, team.namespace, "handbook")
    assert not await policy.may(stranger, Access.QUERY, team.namespace, "handbook")
    assert not await policy.may(reader, Access.QUERY, team.namespace, "other")
    assert not await policy.may(reader, Access.QUERY, team.namespace, "")
    assert not await policy.may(reader, Access.QUERY, "default", "handbook")
    for access in (Access.READ, Access.WRITE, Access.DELETE, Access.PLAN):
        assert not await policy.may(reader, access, team.namespace, "handbook")


async def test_a_verb_that_is_granted_counts_soon(team: Team, policy: KubernetesPolicy) -> None:
    stranger = await policy.who(team.token("stranger"))
    assert not await policy.may(stranger, Access.WRITE, team.namespace, "granted")
    name = "writes"
    team.cluster.apply(
        f"""
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{name: {name}, namespace: {team.namespace}}}
rules:
- {{apiGroups: [polaris.dev], resources: [polarisindexes/documents], verbs: [create]}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: {name}, namespace: {team.namespace}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: {name}}}
subjects: [{{kind: ServiceAccount, name: stranger, namespace: {team.namespace}}}]
"""
    )

    async def allowed() -> bool:
        return await policy.may(stranger, Access.WRITE, team.namespace, "granted")

    await until(allowed)


async def test_a_service_without_its_own_right_says_which_one(team: Team) -> None:
    weak = team.policy(kubeconfig=team.cluster.kubeconfig_for(team.namespace, "stranger"))
    await weak.start()
    try:
        with pytest.raises(ClusterUnavailable, match="system:auth-delegator"):
            await weak.who(team.token("reader"))
    finally:
        await weak.stop()


async def test_the_authority_of_the_api_server_is_followed(team: Team, tmp_path: Path) -> None:
    authority = tmp_path / "ca.crt"
    authority.write_bytes(trustme.CA().cert_pem.bytes())  # The one before: the file changes when it rotates.
    kubeconfig = yaml.safe_load(team.kubeconfig.read_text())
    (cluster,) = kubeconfig["clusters"]
    cluster["cluster"].pop("certificate-authority-data", None)
    cluster["cluster"]["certificate-authority"] = str(authority)
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(kubeconfig))
    policy = team.policy(kubeconfig=path)
    await policy.start()
    try:
        with pytest.raises(ClusterUnavailable):
            await policy.who(team.token("reader"))
        authority.write_bytes(team.cluster.ca_file.read_bytes())
        await until(lambda: asked(policy, team.token("reader")))
    finally:
        await policy.stop()


async def asked(policy: KubernetesPolicy, token: str) -> bool:
    """Whether the API server is believed, and so answers."""
    try:
        await policy.who(token)
    except ClusterUnavailable:
        return False
    return True


async def test_without_a_way_to_the_api_server_it_starts_and_says_so() -> None:
    lost = KubernetesPolicy(["polaris"], 10, {})
    await lost.start()
    with pytest.raises(ClusterUnavailable, match="no way to the Kubernetes API"):
        await lost.who("token")


@pytest.mark.postgres
async def test_while_the_api_server_is_down_a_yes_that_is_known_still_counts(
    team: Team, postgres: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(team.kubeconfig))
    with made_in(postgres) as made:
        index: Index = made.index("handbook", namespace=team.namespace)
        async with Rig(made, auth="kubernetes", auth_cache_seconds=_SECONDS) as rig:
            known = {"Authorization": f"Bearer {team.token('reader')}"}
            unknown = {"Authorization": f"Bearer {team.token('reader')}x"}
            fresh = {"Authorization": f"Bearer {team.token('stranger')}"}
            assert (await rig.http.get(index.path, headers=known)).status_code == 200
            denied = await rig.http.get(index.path, headers=fresh)
            assert denied.status_code == 403
            assert (
                f"get on polarisindexes/query handbook in namespace {team.namespace}"
                in denied.json()["detail"]
            )
            refused = await rig.http.get(index.path, headers=unknown)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
            assert "kubectl create token" in refused.json()["detail"]
            listed = await rig.http.get("/v1/indexes", headers=known)
            assert [entry["name"] for entry in listed.json()["indexes"]] == ["handbook"]

            other = {"Authorization": f"Bearer {team.token('service')}"}
            team.cluster.stop_api_server()
            try:
                assert (await rig.http.get(index.path, headers=known)).status_code == 200
                down = await rig.http.get(index.path, headers=other)
                assert (down.status_code, down.json()["code"]) == (503, "cluster-unavailable")
                assert int(down.headers["retry-after"]) > 0
                # What was known of another verb is not known of this one.
                write = await rig.http.put(f"{index.path}/documents/a", json={"text": "t"}, headers=known)
                assert write.status_code == 503
            finally:
                await asyncio.to_thread(team.cluster.start_api_server)

            async def back() -> bool:
                return (await rig.http.get(index.path, headers=other)).status_code == 403

            await until(back)
