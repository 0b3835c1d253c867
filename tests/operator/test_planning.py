"""`POST /v1/plan`: who is answered, what with, and who is not."""

from __future__ import annotations

import io
import json
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
import yaml

from cli.program import Done, polaris
from parts.servers import run
from polaris.errors import DatabaseUnavailable, InvalidManifest, PolarisError
from polaris.status import Reason
from polaris_cli.up.ports import any_free
from polaris_operator import planning, preview
from polaris_operator.callers import ClosedGate, OpenGate
from polaris_operator.objects import Key, Resource
from polaris_operator.planning import MAX_BODY_BYTES, Planning, parse
from polaris_operator.steps import Blocked
from scenes.cluster import OperatorProcess, apply, eventually, get, says
from scenes.town import Town

JSON = "application/json"
YAML = "application/yaml"


def manifest(namespace: str = "team", name: str = "handbook", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "polaris.dev/v1alpha1",
        "kind": "PolarisIndex",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"databaseRef": {"name": "main"}, "embedding": {"model": "e5", "dimension": 8}, **spec},
    }


# --- the body ------------------------------------------------------------------------------------


@pytest.mark.unit
@pytest.mark.parametrize(
    ("media_type", "write"),
    [
        (JSON, json.dumps),
        ("application/json; charset=utf-8", json.dumps),
        ("", json.dumps),
        (YAML, yaml.safe_dump),
    ],
)
def test_a_manifest_is_taken_as_json_and_as_yaml(media_type: str, write: Callable[[Any], str]) -> None:
    found = parse(write(manifest()).encode(), media_type)
    assert found.key == Key("PolarisIndex", "team", "handbook")
    assert found.spec == manifest()["spec"]


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nkind: PolarisIndex\n"
MALFORMED = {
    "nothing": (b"", JSON),
    "half of it": (b'{"kind": ', JSON),
    "not text": (b"\xff\xfe", JSON),
    "a number that is none": (b'{"kind": NaN}', JSON),
    "a very long number": (b"1" * 5000, JSON),
    "very deep JSON": (b"[" * 100_000, JSON),
    "very deep YAML": (b"[" * 5_000, YAML),
    "aliases, which multiply": (BOMB.encode(), YAML),
    "YAML that is none": (b"a: b: c", YAML),
    "two documents": (b"a: b\n---\na: b\n", YAML),
    "a tag that makes an object": (b"!!python/object:os.system {}", YAML),
}


@pytest.mark.unit
@pytest.mark.parametrize("name", MALFORMED)
def test_a_body_that_is_no_document_is_malformed(name: str) -> None:
    with pytest.raises(planning.Malformed):
        parse(*MALFORMED[name])


@pytest.mark.unit
@pytest.mark.parametrize("kind", [JSON, YAML])
def test_what_stands_in_a_body_that_is_wrong_is_not_repeated(kind: str) -> None:
    with pytest.raises(planning.Malformed, match="in line 2") as caught:
        parse(b'{"password":\n "hunter2" "hunter2": [}', kind)
    assert "hunter2" not in str(caught.value)


def without(**changes: Any) -> dict[str, Any]:
    return {**manifest(), **changes}


INVALID: dict[str, tuple[Any, str]] = {
    "a list": ([], ""),
    "no kind": (without(kind=None), "/kind"),
    "a database": (without(kind="PolarisDatabase"), "/kind"),
    "a Secret": (without(kind="Secret", apiVersion="v1"), "/kind"),
    "another group": (without(apiVersion="v1"), ""),
    "an unknown field": (without(data={}), "/data"),
    "no name": (without(metadata={}), "/metadata/name"),
    "a name that is a path": (without(metadata={"name": "../x"}), "/metadata/name"),
    "a namespace that is none": (without(metadata={"name": "x", "namespace": "A"}), "/metadata/namespace"),
    "annotations that are a list": (
        without(metadata={"name": "x", "annotations": [1]}),
        "/metadata/annotations",
    ),
    "a spec that is text": (without(spec="x"), "/spec"),
}


@pytest.mark.unit
@pytest.mark.parametrize("name", INVALID)
def test_a_document_that_is_no_manifest_of_an_index_names_its_field(name: str) -> None:
    document, pointer = INVALID[name]
    with pytest.raises(InvalidManifest) as caught:
        parse(json.dumps(document).encode(), JSON)
    assert caught.value.pointer == pointer


# --- the route, without a cluster ----------------------------------------------------------------


class Held:
    """Objects of which none is there."""

    def __init__(self, *resources: Resource) -> None:
        self.held = {resource.key: resource for resource in resources}

    def get(self, key: Key) -> Resource | None:
        return self.held.get(key)

    def watches(self, namespace: str) -> bool:
        return namespace != "elsewhere"


@dataclass
class Stub:
    """An operator whose databases answer `find` with one thing."""

    found: Any = None
    objects: Any = None

    def __post_init__(self) -> None:
        self.objects = self.objects or Held()
        self.databases: Any = self

    def find(self, *_: object) -> Any:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


def ask(route: Planning, body: Any = None, **environ: Any) -> tuple[int, dict[str, str], Any]:
    raw = body if isinstance(body, bytes) else json.dumps(body or manifest()).encode()
    said: list[Any] = []
    request = {
        "REQUEST_METHOD": "POST",
        "CONTENT_TYPE": JSON,
        "CONTENT_LENGTH": str(len(raw)),
        "HTTP_HOST": "localhost:9090",
        "wsgi.input": io.BytesIO(raw),
        **environ,
    }
    content = b"".join(route(request, lambda *head: said.append(head)))
    status, headers = said[0]
    return int(status.partition(" ")[0]), dict(headers), json.loads(content)


def opened(core: Any = None, **options: Any) -> Planning:
    return Planning(lambda: core, OpenGate(), **options)


def blocked(reason: Reason) -> Blocked:
    return Blocked(reason, "PolarisDatabase team/main: so it is", stalled=False)


ANSWERS: dict[str, tuple[Any, Any, int, str]] = {
    "a replica that stands by": (None, {}, 503, "not-leading"),
    "a database that is not there": (Stub(blocked(Reason.DATABASE_NOT_FOUND)), {}, 404, "database-not-found"),
    "one that is not ready": (Stub(blocked(Reason.DATABASE_NOT_READY)), {}, 409, "database-not-ready"),
    "one of others": (Stub(blocked(Reason.NAMESPACE_NOT_ALLOWED)), {}, 409, "namespace-not-allowed"),
    "one that is away": (Stub(blocked(Reason.DATABASE_UNAVAILABLE)), {}, 503, "database-unavailable"),
    "one that goes away": (Stub(DatabaseUnavailable("it is away")), {}, 503, "database-unavailable"),
    "one that nobody looked at": (Stub(None), {}, 503, "unavailable"),
    "a namespace of others": (Stub(), manifest("elsewhere"), 404, "not-found"),
    "a spec that is wrong": (Stub(), manifest(chunking=7), 422, "invalid-manifest"),
    "no JSON": (Stub(), b"{", 400, "malformed"),
    "a body of more than a mebibyte": (Stub(), b" " * (MAX_BODY_BYTES + 1), 413, "too-large"),
}


@pytest.mark.unit
@pytest.mark.parametrize("name", ANSWERS)
def test_what_stands_in_the_way_is_a_problem_with_a_code(name: str) -> None:
    core, body, status, code = ANSWERS[name]
    found, headers, problem = ask(opened(core), body)
    assert (found, problem["status"], problem["code"]) == (status, status, code)
    assert problem["title"]
    assert problem["detail"]
    assert headers["Content-Type"] == "application/problem+json"
    assert ("Retry-After" in headers) == (status == 503)


@pytest.mark.unit
def test_a_field_that_is_wrong_is_named() -> None:
    wrong = manifest(embedding={"model": "e5", "dimension": "8"})
    _, _, problem = ask(opened(Stub()), wrong)
    assert [error["pointer"] for error in problem["errors"]] == ["/spec/embedding/dimension"]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("environ", "status"),
    [
        ({"CONTENT_TYPE": "application/x-www-form-urlencoded"}, 415),
        ({"HTTP_TRANSFER_ENCODING": "chunked"}, 411),
        ({"CONTENT_LENGTH": "-1"}, 400),
        ({"CONTENT_LENGTH": "100000"}, 400),
        ({"REQUEST_METHOD": "GET"}, 405),
    ],
)
def test_a_request_of_another_shape_is_refused(environ: dict[str, str], status: int) -> None:
    assert ask(opened(Stub()), **environ)[0] == status


@pytest.mark.unit
@pytest.mark.parametrize("found", [RuntimeError("the doors are closed"), PolarisError("does not lead")])
def test_one_that_stops_to_lead_meanwhile_says_so_and_nothing_else(found: Exception) -> None:
    terms = iter([Stub(found), Stub(found), None])
    status, _, problem = ask(Planning(lambda: next(terms), OpenGate()))
    assert (status, problem["code"]) == (503, "not-leading")


@pytest.mark.unit
def test_what_nobody_foresaw_tells_nothing_of_its_text() -> None:
    status, _, problem = ask(opened(Stub(RuntimeError("password=hunter2"))))
    assert status == 500
    assert "hunter2" not in json.dumps(problem)


@pytest.mark.unit
def test_an_error_of_ours_is_what_the_status_would_say(monkeypatch: pytest.MonkeyPatch) -> None:
    def look(*_: object) -> Any:
        raise PolarisError("something of ours")

    monkeypatch.setattr(preview, "look", look)
    status, _, planned = ask(opened(Stub(object())))
    assert (status, planned["blocked"]["reason"]) == (200, "Retrying")


@pytest.mark.unit
def test_over_a_folder_nobody_but_this_machine_is_answered() -> None:
    closed = Planning(Stub, ClosedGate())
    assert ask(closed)[0] == 403
    assert "POLARIS_METRICS_HOST=127.0.0.1" in ask(closed)[2]["detail"]
    here = opened(Stub(blocked(Reason.DATABASE_NOT_READY)), loopback=True)
    for host in ("localhost:9090", "127.0.0.1", "[::1]:1"):
        assert ask(here, HTTP_HOST=host)[0] == 409
    for foreign in (
        {"HTTP_HOST": "evil.example"},
        {"HTTP_HOST": ""},
        {"HTTP_ORIGIN": "https://evil.example"},
        {"HTTP_HOST": "127.0.0.1.evil.example"},
    ):
        assert ask(here, **foreign)[0] == 403


# --- in a real cluster ---------------------------------------------------------------------------


@dataclass
class Asked:
    """An operator with a port of its own, and ServiceAccounts that ask it."""

    town: Town
    process: OperatorProcess
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def token(self, name: str = "pipeline", audience: str | None = "polaris") -> str:
        return self.town.cluster.token(self.town.namespace, name, audience=audience)

    def plan(self, body: Any, token: str | None = None, **headers: str) -> httpx.Response:
        if token:
            headers["Authorization"] = f"Bearer {token}"
        return httpx.post(f"{self.url}/v1/plan", json=body, headers=headers, timeout=30)

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=1).is_success
        except httpx.HTTPError:
            return False


ACCOUNTS = """
apiVersion: v1
kind: ServiceAccount
metadata: {{name: pipeline, namespace: {namespace}}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {{name: stranger, namespace: {namespace}}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{name: plan, namespace: {namespace}}}
rules:
- {{apiGroups: [polaris.dev], resources: [polarisindexes/plan], resourceNames: [handbook], verbs: [get]}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: plan, namespace: {namespace}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: plan}}
subjects: [{{kind: ServiceAccount, name: pipeline, namespace: {namespace}}}]
"""


@pytest.fixture
def start(town: Town, tmp_path: Path) -> Iterator[Callable[..., Asked]]:
    """Start operators, each with its variables; all end with the test."""
    made: list[OperatorProcess] = []

    def start(**environment: str) -> Asked:
        folder, port = tmp_path / str(len(made)), any_free()
        folder.mkdir()
        watched = {"POLARIS_WATCH_NAMESPACES": town.namespace, "POLARIS_METRICS_PORT": str(port)}
        process = OperatorProcess(town.cluster, folder, **watched, **environment)
        made.append(process)
        process.start()
        return Asked(town, process, port)

    yield start
    for process in made:
        process.kill()
        print(process.log())


def settle(town: Town) -> None:
    """Make the database ready, with a model and the accounts."""
    town.cluster.apply(ACCOUNTS.format(namespace=town.namespace))
    apply(town.cluster, town.manifest())
    town.wait_ready()
    run(
        town.database.dsn,
        "INSERT INTO polaris.models (provider, model, revision, reporter, dimension, reported_at)"
        " VALUES ('default', 'e5', '1', 'test', 8, now() + interval '1 day') ON CONFLICT DO NOTHING",
    )


@pytest.fixture
def leader(town: Town, start: Callable[..., Asked]) -> Asked:
    made = start()
    settle(town)
    return made


@pytest.mark.postgres
@pytest.mark.kubernetes
def test_a_plan_is_byte_for_byte_what_the_status_says_and_then_is_done(leader: Asked) -> None:
    town, token = leader.town, leader.token()
    wanted = manifest(town.namespace, change={"approval": "All"})

    first = leader.plan(wanted, token)

    assert first.status_code == 200, first.text
    new = first.json()
    assert (new["blocked"]["reason"], new["steps"]) == ("ApprovalRequired", [])
    assert preview.UID_IS_NOT_KNOWN in new["notices"]
    assert get(town.cluster, Key("PolarisIndex", town.namespace, "handbook")) is None, "nothing is made"
    key = apply(town.cluster, wanted)
    eventually("it to wait", lambda: says(town.cluster, key, "Stalled")[1] == "ApprovalRequired")
    there = get(town.cluster, key)
    assert there is not None
    status = there["status"]["plan"]
    uid = there["metadata"]["uid"]
    shown = json.loads(json.dumps(new["withheld"]).replace(preview.NO_UID, uid))
    assert (new["hash"], shown) == (status["hash"], status["steps"])
    again = leader.plan(wanted, token).json()
    assert (again["hash"], again["withheld"]) == (status["hash"], status["steps"])
    assert preview.UP_TO_THE_FIRST_WAIT in again["notices"]

    approved = manifest(town.namespace, change={"approval": "All", "approvedPlan": status["hash"]})
    to_do = leader.plan(approved, token).json()
    assert (to_do["hash"], to_do["blocked"], to_do["withheld"]) == (status["hash"], None, [])
    assert to_do["steps"]
    apply(town.cluster, approved)
    eventually("it to be ready", lambda: says(town.cluster, key, "Ready")[0] == "True")
    done = leader.plan(approved, token).json()
    assert (done["steps"], done["withheld"], done["blocked"]) == ([], [], None)
    for secret in town.logins():
        assert secret["password"] not in json.dumps([new, again, to_do, done])

    elsewhere = manifest(town.namespace, databaseRef={"name": "other"})
    refused = leader.plan(elsewhere, token)
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid-manifest")


@pytest.mark.postgres
@pytest.mark.kubernetes
def test_those_who_may_not_are_refused_and_told_why(leader: Asked, start: Callable[..., Asked]) -> None:
    town, token = leader.town, leader.token()
    wanted = manifest(town.namespace)

    for nobody in (None, "nonsense", leader.token(audience=None), leader.token(audience="vault")):
        refused = leader.plan(wanted, nobody)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert "kubectl create token SERVICEACCOUNT --audience polaris" in refused.json()["detail"]
    for who, body in (("stranger", wanted), ("pipeline", manifest(town.namespace, "other"))):
        denied = leader.plan(body, leader.token(who))
        assert denied.status_code == 403
        assert "get on polarisindexes/plan" in denied.json()["detail"]

    broken = leader.plan(manifest(town.namespace, embedding={"model": "e5", "dimension": 0}), token)
    assert broken.status_code == 422
    assert broken.json()["errors"][0]["pointer"] == "/spec/embedding/dimension"
    nowhere = leader.plan(manifest(town.namespace, databaseRef={"name": "gone"}), token)
    assert (nowhere.status_code, nowhere.json()["code"]) == (404, "database-not-found")
    long = leader.plan(manifest(town.namespace, comment="x" * MAX_BODY_BYTES), token)
    assert (long.status_code, long.json()["code"]) == (413, "too-large")

    other = start()
    eventually("the other to be ready", other.answers)
    stands_by = other.plan(wanted, token)
    assert (stands_by.status_code, stands_by.json()["code"]) == (503, "not-leading")
    assert int(stands_by.headers["retry-after"]) > 0

    with town.cluster.api_server_stopped():
        away = leader.plan(wanted, token)
        assert (away.status_code, away.json()["code"]) == (503, "cluster-unavailable")


@pytest.mark.postgres
@pytest.mark.kubernetes
def test_a_pipeline_asks_by_https_and_probes_go_on(
    town: Town, start: Callable[..., Asked], tmp_path: Path
) -> None:
    authority = trustme.CA()
    pair = authority.issue_cert("localhost", "127.0.0.1")
    certificate, key, ca = (tmp_path / name for name in ("tls.crt", "tls.key", "ca.crt"))
    certificate.write_bytes(b"".join(blob.bytes() for blob in pair.cert_chain_pems))
    key.write_bytes(pair.private_key_pem.bytes())
    ca.write_bytes(authority.cert_pem.bytes())
    operator = start(POLARIS_TLS_CERT_FILE=str(certificate), POLARIS_TLS_KEY_FILE=str(key))
    settle(town)
    token = tmp_path / "token"
    token.write_text(operator.token())
    path = tmp_path / "manifest.yaml"
    path.write_text(yaml.safe_dump(manifest(town.namespace)))
    server = f"https://localhost:{operator.port}"

    def shown(*arguments: str | Path) -> Done:
        return polaris("plan", "-f", path, "--server", server, *arguments)

    way = ("--token-file", token, "--ca-file", ca)
    told = shown(*way)
    assert told.code == 0, told
    assert f"PolarisIndex {town.namespace}/handbook: " in told.out
    assert "INSERT INTO polaris.indexes" in told.out
    [planned] = json.loads(shown(*way, "-o", "json").out)
    assert planned["steps"]
    untrusted = shown("--token-file", token)
    assert (untrusted.code, "is not believed" in untrusted.err) == (1, True)
    nobody = shown("--ca-file", ca)
    assert (nobody.code, "kubectl create token" in nobody.err) == (1, True)
    trust = ssl.create_default_context(cafile=str(ca))
    for probe in ("livez", "readyz", "metrics"):
        assert httpx.get(f"{server}/{probe}", verify=trust).is_success
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://127.0.0.1:{operator.port}/livez")
