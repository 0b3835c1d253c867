"""Tokens of ServiceAccounts go to Vault, and the author of an object says where that is."""

from __future__ import annotations

import pytest

from kube.cluster import Cluster
from polaris.errors import InvalidManifest
from polaris_operator.kubernetes_api import KubernetesObjects, load_configuration

pytestmark = pytest.mark.kubernetes


def test_a_token_that_the_api_server_takes_is_never_handed_out(cluster: Cluster) -> None:
    objects = KubernetesObjects(load_configuration(str(cluster.kubeconfig)))
    issuer = cluster.api("GET", "/.well-known/openid-configuration").json()["issuer"]

    with pytest.raises(InvalidManifest, match="API server's own"):
        objects.service_account_token("default", "default", issuer)

    assert objects.service_account_token("default", "default", "vault").value
