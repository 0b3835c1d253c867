"""The examples for Argo CD and Flux, judged by the API server with these projects' own definitions."""

from __future__ import annotations

import re
import secrets
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from gitops import others
from gitops.judges import SHIPPED
from kube.cluster import Cluster
from kube.helm import helm
from pipeline.build import ROOT, actionlint
from polaris import crd

EXAMPLES = ROOT / "docs/examples/gitops"
TEAM = EXAMPLES / "team-repository"
ENVIRONMENTS = ("staging", "production")
FOLDERS = [f"{folder}/{each}" for folder in ("platform", "databases", "indexes") for each in ENVIRONMENTS]
PLAIN = [
    *sorted((EXAMPLES / "argocd").glob("*.yaml")),
    *sorted(SHIPPED.glob("argocd-*.yaml")),
    *sorted((TEAM / "clusters").rglob("*.yaml")),
]

pytestmark = pytest.mark.kubernetes


@pytest.fixture(scope="module")
def judge(cluster: Cluster) -> Cluster:
    """The API server with the definitions of POLARIS, Argo CD and Flux."""
    definitions = others.definitions()
    ours = [crd.render(kind) for kind in crd.PLURALS]
    # Server-side: they are too long for the annotation of the other kind.
    text = "\n---\n".join([*definitions, *ours])
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input=text)
    cluster.kubectl("wait", "--for=condition=Established", *others.names([*definitions, *ours]))
    return cluster


def accepted(judge: Cluster, text: str) -> list[dict[str, Any]]:
    """Have the API server judge manifests in a namespace of the moment; return them."""
    documents = [each for each in yaml.safe_load_all(text) if each]
    namespace = f"gitops-{secrets.token_hex(4)}"
    judge.kubectl("create", "namespace", namespace)
    for each in documents:
        if each["kind"] != "Namespace":
            each["metadata"]["namespace"] = namespace
    done = judge.kubectl(
        *("create", "--dry-run=server", "--validate=strict", "-f", "-"),
        input=yaml.safe_dump_all(documents),
        check=False,
    )
    judge.kubectl("delete", "namespace", namespace, "--wait=false")
    assert done.returncode == 0, done.stderr
    return documents


@pytest.mark.parametrize("file", PLAIN, ids=lambda file: str(file.relative_to(ROOT)))
def test_what_argo_cd_and_flux_are_given_is_accepted(judge: Cluster, file: Path) -> None:
    assert accepted(judge, file.read_text("utf-8"))


@pytest.mark.parametrize("form", ["ready", "serving"])
def test_a_kustomization_with_the_expressions_that_ship_is_accepted(judge: Cluster, form: str) -> None:
    patch = yaml.safe_load((SHIPPED / f"flux-{form}.yaml").read_text("utf-8"))
    made = list(yaml.safe_load_all((TEAM / "clusters/staging/flux.yaml").read_text("utf-8")))
    (indexes,) = (each for each in made if each["metadata"]["name"] == patch["metadata"]["name"])
    assert accepted(judge, yaml.safe_dump({**indexes, "spec": {**indexes["spec"], **patch["spec"]}}))


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_kustomize_makes_of_a_folder_is_accepted(judge: Cluster, folder: str) -> None:
    assert accepted(judge, judge.kubectl("kustomize", TEAM / folder).stdout)


def test_a_review_may_have_all_of_it_judged_and_writes_nothing(judge: Cluster) -> None:
    rag = f"rag-{secrets.token_hex(4)}"  # Other tests have a namespace of the name that stands in the files.
    text = (EXAMPLES / "review/account.yaml").read_text("utf-8")
    account = text.replace("namespace: rag", f"namespace: {rag}").replace(":rag:", f":{rag}:")
    database = judge.kubectl("kustomize", TEAM / "databases/staging").stdout
    database = database.replace("namespace: rag", f"namespace: {rag}")
    review = f"system:serviceaccount:{rag}:review"
    asks = ("apply", "--server-side", f"--as={review}", "-f", "-")
    judge.kubectl("create", "namespace", rag)
    judge.kubectl("apply", "-f", "-", input=account)
    try:
        # A policy holds a moment after it was made; until then this does no more than it says.
        deadline = time.monotonic() + 60
        while "reviews only ask" not in judge.kubectl(*asks, input=database, check=False).stderr:
            assert time.monotonic() < deadline
            judge.kubectl("delete", "-f", "-", "--ignore-not-found", input=database)
            time.sleep(0.2)
        done = judge.kubectl(*asks, "--dry-run=server", input=database)
        assert done.stdout.count("(server dry run)") == 2
        assert judge.kubectl("get", "pgdb", "-n", rag, "-o", "name").stdout == ""
        # Whatever somebody lets it do one day, to subresources too.
        judge.kubectl("create", "clusterrolebinding", rag, "--clusterrole=cluster-admin", f"--user={review}")
        # What was bound a moment ago holds a moment later.
        deadline = time.monotonic() + 60
        while (
            "reviews only ask"
            not in (
                token := judge.kubectl("create", "token", "review", "-n", rag, f"--as={review}", check=False)
            ).stderr
        ):
            assert token.returncode
            assert time.monotonic() < deadline
            time.sleep(0.2)
        judge.kubectl("apply", "-f", "-", input=database)  # Nobody else is asked.
    finally:
        judge.kubectl("delete", "clusterrolebinding", rag, "--ignore-not-found")
        judge.kubectl("delete", "-f", "-", "--ignore-not-found", input=f"{database}\n---\n{account}")
        judge.kubectl("delete", "namespace", rag, "--wait=false")


def test_a_field_that_flux_has_not_is_refused(judge: Cluster) -> None:
    text = (TEAM / "platform/base/releases.yaml").read_text("utf-8").replace("disableWait", "doNotWait")
    with pytest.raises(AssertionError, match=r"unknown field \"spec\.install\.doNotWait\""):
        accepted(judge, text)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_values_are_values_of_the_chart(environment: str) -> None:
    values = TEAM / "platform" / environment / "values.yaml"
    helm("template", "polaris", ROOT / "charts/polaris", f"--values={values}")


def test_no_namespace_goes_with_its_file() -> None:
    for folder in FOLDERS:
        for file in (TEAM / folder).parent.glob("base/*.yaml"):
            for each in filter(None, yaml.safe_load_all(file.read_text("utf-8"))):
                if each["kind"] == "Namespace":
                    assert each["metadata"]["annotations"] == {
                        "kustomize.toolkit.fluxcd.io/prune": "disabled",
                        "argocd.argoproj.io/sync-options": "Prune=false",
                    }


def test_every_path_that_a_cluster_is_given_is_there() -> None:
    for environment in ENVIRONMENTS:
        text = "".join(file.read_text("utf-8") for file in (TEAM / "clusters" / environment).glob("*.yaml"))
        paths = re.findall(r"path: (?:\./)?(\S+)|\$values/(\S+?)\]", text)
        assert len(paths) == 6
        for path in (TEAM / "".join(pair) for pair in paths):
            assert path.is_file() or (path / "kustomization.yaml").is_file(), path


def test_clusters_differ_by_their_folders_only() -> None:
    for name in ("argocd.yaml", "flux.yaml"):
        staging, production = (TEAM / "clusters" / each / name for each in ENVIRONMENTS)
        assert staging.read_text("utf-8").replace("staging", "production") == production.read_text("utf-8")


def test_what_comes_later_waits_for_what_it_needs() -> None:
    argo = list(yaml.safe_load_all((TEAM / "clusters/staging/argocd.yaml").read_text("utf-8")))
    waves = {
        each["metadata"]["name"]: int(each["metadata"]["annotations"]["argocd.argoproj.io/sync-wave"])
        for each in argo
    }
    assert sorted(waves, key=lambda name: waves[name]) == [
        f"staging-{name}" for name in ("polaris-crds", "polaris", "databases", "indexes")
    ]
    assert len(set(waves.values())) == 4
    flux = list(yaml.safe_load_all((TEAM / "clusters/staging/flux.yaml").read_text("utf-8")))
    needs = {
        each["metadata"]["name"]: [on["name"] for on in each["spec"].get("dependsOn", [])] for each in flux
    }
    assert needs == {"polaris": [], "databases": ["polaris"], "indexes": ["databases"]}
    assert all(each["spec"]["wait"] for each in flux)


def test_the_release_waits_for_nothing_that_comes_after_it() -> None:
    crds, polaris = yaml.safe_load_all((TEAM / "platform/base/releases.yaml").read_text("utf-8"))
    assert not any("disableWait" in crds["spec"].get(step, {}) for step in ("install", "upgrade"))
    assert all(polaris["spec"][step]["disableWait"] for step in ("install", "upgrade", "rollback"))


def test_the_charts_of_the_examples_are_those_of_this_version() -> None:
    version = yaml.safe_load((ROOT / "charts/polaris/Chart.yaml").read_text("utf-8"))["version"]
    for file in [*(TEAM / "clusters").rglob("argocd.yaml"), TEAM / "platform/base/charts.yaml"]:
        named = re.findall(r"(?:targetRevision|tag): (\d\S+?)\}?$", file.read_text("utf-8"), re.MULTILINE)
        assert named == [version, version], file


def test_the_review_of_a_change_is_a_workflow() -> None:
    assert not actionlint([TEAM / "workflows/review.yml"])
