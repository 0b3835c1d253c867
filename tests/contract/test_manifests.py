"""The table of manifests, judged by the real API server and by the models."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from contract.manifests import CASES, CHANGES, MINIMAL, Case, merged
from kube.cluster import Cluster
from polaris import crd
from polaris.errors import InvalidManifest
from polaris.spec import SPECS, check_transition, name_rule, parse_spec

CRDS = Path(__file__).parents[2] / "crds"
NAMESPACE = "manifests"


def test_the_yaml_is_what_the_models_say() -> None:
    for kind, plural in crd.PLURALS.items():
        assert yaml.safe_load((CRDS / f"{plural}.yaml").read_text("utf-8")) == crd.definition(kind)


def test_there_are_enough_manifests_and_each_says_something_else() -> None:
    assert len(CASES) >= 40
    assert len({case.sentence for case in CASES}) == len(CASES)


def _judge(kind: str, name: str, spec: dict[str, Any]) -> None:
    """What life without an API server does with a manifest."""
    rule = name_rule(kind)
    if not rule.holds(name):
        raise InvalidManifest(rule.message, "/metadata/name")
    parse_spec(SPECS[kind], spec)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.sentence)
def test_the_models_judge_as_the_table_says(case: Case) -> None:
    spec = case.manifest(NAMESPACE)["spec"]
    if case.words is None:
        _judge(case.kind, case.name, spec)
        return
    with pytest.raises(InvalidManifest) as raised:
        _judge(case.kind, case.name, spec)
    # A rule's own message is the same everywhere; of the rest, the field is named.
    if not case.words.startswith(("spec.", "unknown field")):
        assert case.words in str(raised.value)
    else:
        field = case.words.removeprefix('unknown field "').split(":")[0].strip('"')
        assert raised.value.pointer.startswith("/" + field.split("[")[0].replace(".", "/"))


@pytest.mark.parametrize(("sentence", "kind", "before", "after", "words"), CHANGES, ids=lambda v: str(v)[:60])
def test_the_models_judge_changes_as_the_table_says(
    sentence: str, kind: str, before: dict[str, Any], after: dict[str, Any], words: str | None
) -> None:
    del sentence
    old = parse_spec(SPECS[kind], merged(MINIMAL[kind], before))
    new = parse_spec(SPECS[kind], merged(merged(MINIMAL[kind], before), after))
    if words is None:
        check_transition(old, new)
        return
    with pytest.raises(InvalidManifest) as raised:
        check_transition(old, new)
    assert words in str(raised.value)


@pytest.fixture(scope="module")
def with_crds(cluster: Cluster) -> Cluster:
    """The API server with our CRDs and a namespace."""
    cluster.kubectl("apply", "--server-side", *(f"-f{CRDS / f'{p}.yaml'}" for p in crd.PLURALS.values()))
    names = [f"crd/{plural}.polaris.dev" for plural in crd.PLURALS.values()]
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", *names)
    cluster.kubectl("create", "namespace", NAMESPACE)
    return cluster


def _create(cluster: Cluster, manifest: dict[str, Any], *flags: str) -> subprocess.CompletedProcess[str]:
    return cluster.kubectl("create", *flags, "-f", "-", input=json.dumps(manifest), check=False)


@pytest.mark.kubernetes
def test_the_api_server_judges_as_the_table_says(with_crds: Cluster) -> None:
    wrong = []
    for case in CASES:
        done = _create(with_crds, case.manifest(NAMESPACE), "--dry-run=server")
        accepted = done.returncode == 0
        if accepted != (case.words is None) or (case.words and case.words not in done.stderr):
            wrong.append(f"{case.sentence}: wanted {case.words!r}, got {done.stderr.strip() or 'accepted'!r}")
    assert wrong == []


@pytest.mark.kubernetes
def test_the_api_server_judges_changes_as_the_table_says(with_crds: Cluster) -> None:
    wrong = []
    for number, (sentence, kind, before, after, words) in enumerate(CHANGES):
        manifest = Case(sentence, kind, before, name=f"change-{number}").manifest(NAMESPACE)
        assert _create(with_crds, manifest).returncode == 0
        patch = json.dumps({"spec": after})
        done = with_crds.kubectl(
            "patch",
            f"{kind.lower()}/change-{number}",
            "-n",
            NAMESPACE,
            "--type=merge",
            "-p",
            patch,
            check=False,
        )
        if (done.returncode == 0) != (words is None) or (words and words not in done.stderr):
            wrong.append(f"{sentence}: wanted {words!r}, got {done.stderr.strip() or 'accepted'!r}")
    assert wrong == []


@pytest.mark.kubernetes
def test_an_object_that_nobody_has_seen_is_not_taken_for_ready(with_crds: Cluster) -> None:
    manifest = Case("fresh", "PolarisIndex", {}, name="fresh").manifest(NAMESPACE)
    assert _create(with_crds, manifest).returncode == 0
    got = json.loads(with_crds.kubectl("get", "pidx/fresh", "-n", NAMESPACE, "-o", "json").stdout)
    assert got["status"] == {"observedGeneration": -1}
    waited = with_crds.kubectl(
        "wait", "--for=condition=Ready", "--timeout=1s", "pidx/fresh", "-n", NAMESPACE, check=False
    )
    assert waited.returncode != 0


@pytest.mark.kubernetes
def test_the_api_server_fills_in_the_same_defaults_as_the_models(with_crds: Cluster) -> None:
    for kind in SPECS:
        manifest = Case("defaults", kind, {}, name="defaults").manifest(NAMESPACE)
        done = _create(with_crds, manifest, "--dry-run=server", "-o", "json")
        stored = json.loads(done.stdout)["spec"]
        ours = parse_spec(SPECS[kind], manifest["spec"]).model_dump(
            mode="json", by_alias=True, exclude_none=True
        )
        assert stored == ours


@pytest.mark.kubernetes
def test_kubectl_get_shows_what_a_person_asks_first(with_crds: Cluster) -> None:
    shown = with_crds.kubectl("get", "pidx", "-n", NAMESPACE).stdout.splitlines()[0].split()
    assert shown == ["NAME", "READY", "REASON", "ROWS", "BUILD", "RECALL", "AGE"]
