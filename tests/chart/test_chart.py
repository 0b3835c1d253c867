"""The chart, rendered by helm and judged by the real API server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import yaml

from chart.rendered import CHART, CRDS, NAMESPACE, ROOT, render
from kube.cluster import Cluster
from kube.helm import helm
from polaris_operator.lease import lease_name
from scenes.cluster import DELEGATOR, LEASE_RULES, RULES

pytestmark = pytest.mark.kubernetes

VARIANTS: dict[str, tuple[str, ...]] = {
    "defaults": (),
    "namespaced, its own namespace": ("--set=rbac.scope=namespaced", "--set=operator.installation=here"),
    "namespaced, two namespaces": (
        "--set=rbac.scope=namespaced",
        "--set=operator.installation=here",
        f"--set=operator.watchNamespaces={{{NAMESPACE},default}}",
    ),
    "a second database: service and worker alone": (
        "--set=operator.enabled=false",
        "--set=embedder.enabled=false",
        "--set=embedder.url=http://first-polaris-embedder.rag.svc:8081",
        "--set=service.databaseSecret=second-query",
        "--set=worker.databaseSecret=second-worker",
    ),
    "the operator alone": (
        "--set=service.enabled=false",
        "--set=worker.enabled=false",
        "--set=embedder.enabled=false",
    ),
    "a generator with a key, digests, names of one's own": (
        "--set=service.generator.kind=openai",
        "--set=service.generator.url=http://vllm.rag.svc:8000",
        "--set=service.generator.model=some-model",
        "--set=service.generator.keySecret=generator-key",
        "--set=embedder.keySecret=embedder-key",
        f"--set=image.digest=sha256:{'0' * 64}",
        "--set=fullnameOverride=rag",
        "--set=service.serviceAccount.name=existing",
        "--set=service.podLabels.team=a",
    ),
    "TLS everywhere": (
        "--set=service.tls.secretName=service-tls",
        "--set=embedder.tls.secretName=embedder-tls",
        "--set=operator.tls.secretName=operator-tls",
        "--set=monitoring.podMonitor.enabled=true",
        "--set=service.ingress.enabled=true",
        "--set=service.httpRoute.enabled=true",
    ),
    "the demo": ("--set=demo.enabled=true",),
    "the demo: namespaced, nothing kept, no index, two databases": (
        "--set=demo.enabled=true",
        "--set=demo.storage.emptyDir=true",
        "--set=demo.index=",
        "--set=demo.databases={one,two}",
        "--set=rbac.scope=namespaced",
        "--set=operator.installation=here",
    ),
    "nothing runs": tuple(
        f"--set={part}.replicas=0" for part in ("operator", "service", "worker", "embedder")
    ),
}


def test_helm_finds_nothing_to_complain_about() -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", CHART, CRDS).stdout


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_rendered_is_accepted_by_the_api_server(judge: Cluster, variant: str) -> None:
    objects = render(*VARIANTS[variant])
    assert all(o["metadata"].get("namespace", NAMESPACE) in (NAMESPACE, "default") for o in objects)
    text = yaml.safe_dump_all(objects)
    done = judge.kubectl("apply", "--server-side", "--dry-run=server", "-f", "-", input=text)
    assert len(done.stdout.splitlines()) == len(objects)
    assert "would violate PodSecurity" not in done.stderr


def test_an_unknown_value_is_refused() -> None:
    done = helm("template", "x", str(CHART), "--set=service.replica=3", check=False)
    assert done.returncode != 0
    assert "additional properties 'replica' not allowed" in done.stderr


def test_without_an_embedder_the_chart_asks_where_text_becomes_vectors() -> None:
    done = helm("template", "x", str(CHART), "--set=embedder.enabled=false", check=False)
    assert "embedder.url must say" in done.stderr


def test_a_namespaced_install_has_to_say_which_cluster_it_is() -> None:
    done = helm("template", "x", str(CHART), "--set=rbac.scope=namespaced", check=False)
    assert "operator.installation must name this cluster" in done.stderr


def test_a_namespaced_install_makes_no_cluster_role() -> None:
    kinds = [o["kind"] for o in render(*VARIANTS["namespaced, its own namespace"])]
    assert "ClusterRole" not in kinds
    # TokenReview and SubjectAccessReview are cluster-wide by nature.
    assert kinds.count("ClusterRoleBinding") == 2, "of service and operator"


def of(objects: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    """Objects of a kind, by the last word of their names."""
    return {o["metadata"]["name"].rsplit("-", 1)[1]: o for o in objects if o["kind"] == kind}


def test_a_budget_stands_only_where_a_pod_can_be_spared() -> None:
    assert set(of(render(), "PodDisruptionBudget")) == {"operator", "service"}
    assert not of(render("--set=service.replicas=1,operator.replicas=1"), "PodDisruptionBudget")
    scaled = ("--set=worker.autoscaling.enabled=true", "--set=service.autoscaling.enabled=true")
    assert set(of(render(*scaled, "--set=worker.replicas=5"), "PodDisruptionBudget")) == {
        "operator",
        "service",
    }
    two = render(*scaled, "--set=worker.autoscaling.minReplicas=2")
    budgets = of(two, "PodDisruptionBudget")
    assert set(budgets) == {"operator", "service", "worker"}
    for budget in budgets.values():
        assert budget["spec"]["maxUnavailable"] == 1
        assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    refused = helm("template", "x", CHART, "--set=service.podDisruptionBudget.maxUnavailable=0", check=False)
    assert refused.returncode != 0


def test_where_an_autoscaler_chooses_nobody_else_does() -> None:
    objects = render("--set=service.autoscaling.enabled=true")
    assert "replicas" not in of(objects, "Deployment")["service"]["spec"]
    assert of(objects, "HorizontalPodAutoscaler")["service"]["spec"]["minReplicas"] == 2
    nothing = (
        "--set=worker.autoscaling.enabled=true",
        "--set=worker.autoscaling.targetCPUUtilizationPercentage=0",
    )
    done = helm("template", "x", CHART, *nothing, check=False)
    assert "worker.autoscaling has nothing to go by" in done.stderr


def test_only_operator_and_service_have_a_token() -> None:
    objects = render("--set=migrations.job.enabled=true")
    mounted = {
        o["metadata"]["name"]: o["spec"]["template"]["spec"]["automountServiceAccountToken"]
        for o in objects
        if o["kind"] in ("Deployment", "Job")
    }
    assert mounted == {
        "polaris-operator": True,
        "polaris-service": True,
        "polaris-worker": False,
        "polaris-embedder": False,
        "polaris-migrate": False,
    }


def test_selectors_and_names_are_those_of_the_first_release() -> None:
    """A Deployment's selector can't change; and an object of another name is another object."""
    deployments = of(render(), "Deployment")
    for part in ("operator", "service", "worker", "embedder"):
        assert deployments[part]["metadata"]["name"] == f"polaris-{part}"
        assert deployments[part]["spec"]["selector"]["matchLabels"] == {
            "app.kubernetes.io/name": "polaris",
            "app.kubernetes.io/instance": "polaris",
            "app.kubernetes.io/component": part,
        }


def test_with_certificates_everybody_speaks_https() -> None:
    objects = render(*VARIANTS["TLS everywhere"])
    pods = {part: o["spec"]["template"]["spec"] for part, o in of(objects, "Deployment").items()}
    said = {
        part: {e["name"]: e.get("value") for e in pod["containers"][0]["env"]} for part, pod in pods.items()
    }
    for part in ("service", "embedder", "operator"):
        (container,) = pods[part]["containers"]
        assert container["ports"][0]["name"] == "https"
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert (container[probe]["httpGet"]["scheme"], container[probe]["httpGet"]["port"]) == (
                "HTTPS",
                "https",
            )
        (port,) = of(objects, "Service")[part]["spec"]["ports"]
        assert port["targetPort"] == "https"
        (mount,) = [m for m in container["volumeMounts"] if m["name"] == "tls"]
        assert "subPath" not in mount
        assert said[part]["POLARIS_TLS_KEY_FILE"] == f"{mount['mountPath']}/tls.key"
        (endpoint,) = of(objects, "PodMonitor")[part]["spec"]["podMetricsEndpoints"]
        assert endpoint["scheme"] == "https"
        assert endpoint["tlsConfig"]["serverName"] == f"polaris-{part}.{NAMESPACE}.svc"
    assert of(objects, "Service")["service"]["spec"]["ports"][0]["port"] == 443
    assert said["service"]["POLARIS_QUERY_URL"] == f"https://polaris-service.{NAMESPACE}.svc:443"
    for part in ("service", "worker"):
        assert said[part]["POLARIS_EMBEDDER"] == f"https://polaris-embedder.{NAMESPACE}.svc:8081"
        # Of the embedder's Secret they get the authority, never the key.
        (ca,) = [v for v in pods[part]["volumes"] if v["name"] == "embedder-ca"]
        assert ca["secret"]["secretName"] == "embedder-tls"
        assert [item["key"] for item in ca["secret"]["items"]] == ["ca.crt"]
    plain = of(objects, "PodMonitor")["worker"]["spec"]["podMetricsEndpoints"][0]
    assert (plain["port"], "scheme" in plain) == ("http", False)


def test_an_authority_of_its_own_wins_over_the_embedder_s_secret() -> None:
    outside = ("--set=embedder.enabled=false", "--set=embedder.url=https://embed.example.com")

    def volumes(*flags: str) -> dict[str, Any]:
        pod = of(render(*flags), "Deployment")["worker"]["spec"]["template"]["spec"]
        return {v["name"]: v for v in pod["volumes"]}

    own = volumes("--set=embedder.tls.secretName=a", "--set=embedder.caSecret=b")
    assert own["embedder-ca"]["secret"]["secretName"] == "b"
    assert "embedder-ca" not in volumes(*outside, "--set=embedder.tls.secretName=a")
    assert "embedder-ca" in volumes(*outside, "--set=embedder.caSecret=b")


POLICIES = ("--set=networkPolicy.enabled=true", "--set=networkPolicy.egress.enabled=true")


def test_nobody_reaches_a_part_but_who_must() -> None:
    policies = of(render(*POLICIES, "--set=migrations.job.enabled=true"), "NetworkPolicy")
    monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    entries = {part: policy["spec"].get("ingress", []) for part, policy in policies.items()}
    assert entries["operator"] == [{"ports": [{"port": 9090}], "from": [monitoring]}]
    assert entries["worker"] == [{"ports": [{"port": 9091}], "from": [monitoring]}]
    assert entries["service"] == [{"ports": [{"port": 8080}]}]
    assert entries["migrate"] == []
    (embedder,) = entries["embedder"]
    assert [
        peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
        for peer in embedder["from"]
        if "podSelector" in peer
    ] == ["service", "worker"]


def test_a_service_of_some_is_still_scraped_and_tested() -> None:
    some = "--set=networkPolicy.service.from[0].podSelector.matchLabels.app=portal"
    (rule,) = of(render(*POLICIES, some), "NetworkPolicy")["service"]["spec"]["ingress"]
    assert len(rule["from"]) == 3
    labels = rule["from"][-1]["podSelector"]["matchLabels"]
    assert labels["app.kubernetes.io/component"] == "test"
    nobody = "--set-json=networkPolicy.metrics.from=[]"
    assert "ingress" not in of(render(*POLICIES, nobody), "NetworkPolicy")["operator"]["spec"]


def test_a_pipeline_is_let_ask_for_a_plan_where_it_is_named() -> None:
    pipelines = "--set=networkPolicy.operator.from[0].podSelector.matchLabels.app=pipeline"
    objects = render(*POLICIES, pipelines)
    (rule,) = of(objects, "NetworkPolicy")["operator"]["spec"]["ingress"]
    assert rule["from"][-1] == {"podSelector": {"matchLabels": {"app": "pipeline"}}}
    (port,) = of(objects, "Service")["operator"]["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (9090, "http")


def test_the_way_out_is_open_to_what_a_part_needs() -> None:
    def ports(*more: str) -> dict[str, set[int]]:
        return {
            part: {p["port"] for rule in policy["spec"]["egress"] for p in rule["ports"]}
            for part, policy in of(render(*POLICIES, *more), "NetworkPolicy").items()
        }

    assert ports("--set=migrations.job.enabled=true") == {
        "operator": {53, 5432, 443, 6443, 8200},
        "service": {53, 5432, 443, 6443, 8081},
        "worker": {53, 5432, 8081},
        "embedder": {53},
        "migrate": {53, 5432},
    }
    outside = ("--set=embedder.enabled=false", "--set=embedder.url=https://embed.example.com")
    assert ports(*outside)["worker"] == {53, 5432, 443}
    another = ("--set=embedder.enabled=false", "--set=embedder.url=http://polaris-embedder.rag.svc:8081")
    assert ports(*another)["worker"] == {53, 5432, 443, 8081}
    writes = ("kind=openai", "url=http://vllm:8000", "model=a")
    asked = ports(*(f"--set=service.generator.{value}" for value in writes))
    assert asked["service"] - asked["worker"] >= {8000}
    assert ports("--set=tracing.endpoint=http://otel:4318")["embedder"] == {53, 4318}
    assert ports("--set=tracing.endpoint=http://otel")["embedder"] == {53, 4318, 80}


def test_a_namespaced_operator_is_let_do_what_it_must_where_it_looks_only() -> None:
    objects = render(
        *VARIANTS["namespaced, two namespaces"], "--set=rbac.vaultServiceAccounts={polaris-vault}"
    )
    roles = [o for o in objects if o["kind"] == "Role" and o["metadata"]["name"] == "polaris-operator"]
    assert sorted(role["metadata"]["namespace"] for role in roles) == [NAMESPACE, "default"]
    for role in roles:
        assert all("namespaces" not in rule["resources"] for rule in role["rules"])
        (token,) = [r for r in role["rules"] if r["resources"] == ["serviceaccounts/token"]]
        assert token["resourceNames"] == ["polaris-vault"]
    to_bind = {o["metadata"]["name"] for o in objects if o["kind"] == "Role"} - {"polaris-operator"}
    to_bind -= {"polaris-lease"}
    assert to_bind == {"polaris-query", "polaris-writer", "polaris-admin", "polaris-database-admin"}


@pytest.mark.parametrize(
    ("values", "accounts"),
    [
        ((), ["polaris-vault"]),
        (("--set=demo.enabled=true",), ["polaris-vault", "polaris-demo-vault"]),
        (("--set-json=rbac.vaultServiceAccounts=[]",), None),
        (("--set=rbac.vaultServiceAccounts={*}",), []),
    ],
    ids=["unless said otherwise", "with the demo", "none", "every one"],
)
def test_the_operator_is_let_be_those_only_that_are_named(
    values: Sequence[str], accounts: list[str] | None
) -> None:
    roles = (o for o in render(*values) if o["kind"] == "ClusterRole")
    (operator,) = (role for role in roles if role["metadata"]["name"].endswith("-operator"))
    tokens = [rule for rule in operator["rules"] if "serviceaccounts/token" in rule["resources"]]
    assert [rule.get("resourceNames", []) for rule in tokens] == ([] if accounts is None else [accounts])


def test_the_operator_s_rights_are_those_with_which_it_is_tested() -> None:
    objects = render("--set=rbac.vaultServiceAccounts={*}")
    (role,) = (
        o for o in objects if o["kind"] == "ClusterRole" and o["metadata"]["name"].endswith("-operator")
    )
    assert role["rules"] == RULES
    (lease,) = (o for o in objects if o["kind"] == "Role")
    assert (lease["metadata"]["namespace"], lease["rules"]) == (NAMESPACE, LEASE_RULES)
    bound = [
        o["roleRef"]["name"]
        for o in objects
        if o["kind"] == "ClusterRoleBinding"
        for subject in o["subjects"]
        if subject["name"].endswith("-operator")
    ]
    assert sorted(bound) == sorted([role["metadata"]["name"], DELEGATOR])


@pytest.mark.parametrize("installation", ["", "one", "two"])
def test_the_lease_that_it_may_use_is_the_one_that_it_uses(installation: str) -> None:
    (lease,) = (o for o in render(f"--set=operator.installation={installation}") if o["kind"] == "Role")
    assert lease["rules"][1]["resourceNames"] == [lease_name(installation)]


def test_operators_are_replaced_one_after_the_other_and_one_may_be_evicted() -> None:
    deployment = of(render(), "Deployment")["operator"]["spec"]
    assert (deployment["replicas"], deployment["strategy"]["rollingUpdate"]["maxUnavailable"]) == (2, 0)
    assert deployment["template"]["spec"]["topologySpreadConstraints"]
    assert of(render(), "PodDisruptionBudget")["operator"]["spec"]["maxUnavailable"] == 1


def test_roles_are_another_s_business_where_the_chart_is_told_so() -> None:
    kinds = {o["kind"] for o in render("--set=rbac.create=false")}
    assert not kinds & {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}
    assert "ClusterRoleBinding" not in {
        o["kind"]
        for o in render(*VARIANTS["namespaced, its own namespace"], "--set=rbac.authDelegator=false")
    }


def test_the_crds_of_the_charts_are_the_crds() -> None:
    own = [yaml.safe_load(path.read_text("utf-8")) for path in sorted((ROOT / "crds").glob("*.yaml"))]
    upgraded = list(yaml.safe_load_all(helm("template", "polaris-crds", CRDS).stdout))
    shown = list(yaml.safe_load_all(helm("show", "crds", CHART).stdout))
    assert [crd["spec"] for crd in upgraded] == [crd["spec"] for crd in own] == [crd["spec"] for crd in shown]
    assert all(crd["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"} for crd in upgraded)
