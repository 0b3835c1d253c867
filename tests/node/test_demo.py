"""The demo, as somebody tries it: one installation, documents in, cited answers out, whatever is killed."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import yaml

from docs.pages import README, ROOT, block
from kube.tool import ToolError
from node import images, waiting
from node.conftest import fresh_namespace
from node.kubelet import memory_of_parts
from node.node import Given, Node
from node.test_chart import CHART, use

pytestmark = pytest.mark.node

NAMESPACE = "demo"
INDEX = f"{NAMESPACE}/handbook"
PATH = f"/v1/indexes/{INDEX}"
QUESTION = "How long is the warranty of the blue kettle?"
DOCUMENTS = {
    "kettle": "The blue kettle has a warranty of seven years, from the day on which it was bought.",
    "vacances": "Der Betriebsurlaub beginnt am 23. Dezember und endet am 6. Januar.",
    "férias": "As férias devem ser pedidas com trinta dias de antecedência.",
}
# Run in a pod: asks again and again until what was seen ends as it should.
WATCH = """
import json, sys, time, httpx
path, question, until, seconds, token = sys.argv[1:]
until, seconds = until.split(), float(seconds)
seen, details = [], {}
deadline = time.monotonic() + seconds
with httpx.Client(base_url="http://polaris-service", timeout=30) as client:
    while time.monotonic() < deadline and seen[-len(until):] != until:
        headers = {"Authorization": "Bearer " + open(token).read()}
        answer = client.post(path, json={"question": question}, headers=headers)
        body = answer.json()
        word = body.get("code") or str(answer.status_code)
        details[word] = body.get("detail")
        if seen[-1:] != [word]:
            seen.append(word)
        time.sleep(0.1)
print(json.dumps({"seen": seen, "details": details}))
"""
CALL = """
import json, sys, httpx
method, url, body, token = sys.argv[1:]
headers = {"Authorization": "Bearer " + open(token).read()} if token else {}
answer = httpx.request(method, url, json=json.loads(body), headers=headers, timeout=90)
print(json.dumps([answer.status_code, answer.json()]))
"""


class Answer(NamedTuple):
    """What the service said."""

    status: int
    body: Any


class Release:
    """A release of the chart with the demo, and pods of others who ask it."""

    def __init__(self, node: Node | Given, flags: tuple[str, ...]) -> None:
        self.node = node
        self.flags = flags

    def install(self) -> float:
        """Install it, and return the seconds until all of it is ready."""
        begun = time.monotonic()
        self.node.helm("install", "polaris", CHART, "-n", NAMESPACE, *self.flags)
        self.wait()
        return time.monotonic() - begun

    def upgrade(self, *flags: str) -> None:
        """Change values of it."""
        self.node.helm("upgrade", "polaris", CHART, "-n", NAMESPACE, *self.flags, *flags)

    def uninstall(self) -> None:
        """Uninstall it, and wait until its pods are gone."""
        self.node.helm("uninstall", "polaris", "-n", NAMESPACE, "--ignore-not-found")
        pods = ("pods", "-l", "app.kubernetes.io/instance=polaris")
        self.node.kubectl("wait", "--for=delete", *pods, "-n", NAMESPACE, "--timeout=120s", check=False)

    def wait(self) -> None:
        """Return when all pods, the database and the demo's own index are ready."""
        try:
            for what in ("statefulset/polaris-demo", *map("deployment/polaris-{}".format, PARTS)):
                self.kubectl("rollout", "status", what, "--timeout=120s")
            for each in ("pgdb/main", "pidx/demo"):
                self.kubectl("wait", "--for=condition=Ready", each, "--timeout=120s")
        except ToolError as error:
            raise AssertionError(f"{error}\n{self.story()}") from error

    def kubectl(self, *arguments: str, input: str | None = None) -> str:  # noqa: A002
        """In its namespace."""
        return self.node.kubectl("-n", NAMESPACE, *arguments, input=input).stdout

    def story(self) -> str:
        """What is to be known of a failure."""
        commands = [
            ("get", "pods,pvc,pgdb,pidx", "-o", "wide"),
            ("describe", "pods", "-l", "app.kubernetes.io/instance=polaris"),
            ("get", "pgdb,pidx", "-o", "yaml"),
            *(
                ("logs", "statefulset/polaris-demo", "-c", each, "--tail=40")
                for each in ("postgres", "openbao")
            ),
            ("logs", "deployment/polaris-operator", "--tail=40"),
        ]
        told = [self.node.kubectl(*each, "-n", NAMESPACE, check=False) for each in commands]
        return "\n".join(each.stdout[-6000:] + each.stderr[-500:] for each in told)

    def call(self, pod: str, method: str, url: str, body: Any = None, shown: str = "polaris") -> Answer:
        """Ask the service from a pod, with that token of its (or none)."""
        path = f"/run/tokens/{shown}" if shown else ""
        url = url if url.startswith("http") else f"http://polaris-service{url}"
        run = ("exec", pod, "--", "/opt/polaris/bin/python", "-c", CALL, method, url, json.dumps(body), path)
        return Answer(*json.loads(self.kubectl(*run)))

    def ask(self, pod: str = "writer", question: str = QUESTION, shown: str = "polaris") -> Answer:
        """Ask the index of the tests."""
        return self.call(pod, "POST", f"{PATH}/answer", {"question": question}, shown)

    def watch(self, *until: str, seconds: int = 120) -> Any:
        """Ask until the answers, each kind once, end in that way; what was seen."""
        run = ("/opt/polaris/bin/python", "-c", WATCH, f"{PATH}/answer", QUESTION, " ".join(until))
        told = self.kubectl("exec", "writer", "--", *run, str(seconds), "/run/tokens/polaris")
        return json.loads(told)


PARTS = ("operator", "service", "worker", "embedder")


def client(name: str, image: str) -> list[dict[str, Any]]:
    """A pod that asks as its own ServiceAccount, with a token for POLARIS and one for somebody else."""
    tokens = [{"serviceAccountToken": {"path": each, "audience": each}} for each in ("polaris", "other")]
    security = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    container = {
        "name": "client",
        "image": image,
        "imagePullPolicy": "Never",
        "command": ["sleep", "infinity"],
        "securityContext": security,
        "volumeMounts": [{"name": "tokens", "mountPath": "/run/tokens"}],
    }
    spec = {
        "serviceAccountName": name,
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 0,
        "securityContext": {
            "runAsNonRoot": True,
            "fsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [{"name": "tokens", "projected": {"sources": tokens}}],
    }
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec},
    ]


def may_write(name: str) -> dict[str, Any]:
    """Let a ServiceAccount of that name put documents in and ask, in this namespace."""
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": name},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": "polaris-writer",
        },
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE}],
    }


INDEX_MANIFEST = """
apiVersion: polaris.dev/v1alpha1
kind: PolarisIndex
metadata: {name: handbook}
spec:
  databaseRef: {name: main}
  embedding: {model: multilingual-e5-small, dimension: 384}
"""


@pytest.fixture(scope="module")
def volume(node: Node | Given) -> Iterator[None]:
    """A volume for the demo, where nobody else makes one."""
    if isinstance(node, Given):
        yield
        return
    folder = node.folder / "demo-volume"
    folder.mkdir()
    folder.chmod(0o777)  # as those who make volumes on a laptop do: fsGroup does nothing there
    spec = {
        "capacity": {"storage": "2Gi"},
        "accessModes": ["ReadWriteOnce"],
        "persistentVolumeReclaimPolicy": "Retain",
        "claimRef": {"namespace": NAMESPACE, "name": "data-polaris-demo-0"},
        "hostPath": {"path": str(folder)},
    }
    manifest = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "demo"}, "spec": spec}
    node.apply(yaml.safe_dump(manifest))
    yield
    node.kubectl("delete", "pv", "demo", "--wait=false")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def installed(
    node: Node | Given,
    volume: None,  # noqa: ARG001 - it is there
    polaris_image: images.Image,
    embedder_image: images.Image,
    demo_image: images.Image,
) -> Iterator[tuple[Release, float]]:
    """The release, and the seconds until it was ready. Restricted Pod Security is enforced."""
    own = (
        *use("image", polaris_image),
        *use("embedder.image", embedder_image),
        *use("demo.image", demo_image),
    )
    watched = f"--set=operator.watchNamespaces={{{NAMESPACE}}}"
    release = Release(node, (*own, "--set=demo.enabled=true", watched))
    node.kubectl("create", "namespace", NAMESPACE)
    node.kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
    try:
        seconds = release.install()
        who = [*client("writer", polaris_image.name), *client("stranger", polaris_image.name)]
        release.kubectl("apply", "-f", "-", input=yaml.safe_dump_all([*who, may_write("writer")]))
        yield release, seconds
    finally:
        # Its objects go while there is somebody to let go of them.
        node.kubectl("delete", "pidx,pgdb", "--all", "-n", NAMESPACE, "--timeout=60s", check=False)
        release.uninstall()
        node.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


@pytest.fixture(scope="module")
def release(installed: tuple[Release, float]) -> Release:
    """The release, with an index of the tests' own and documents in it."""
    release, _ = installed
    release.kubectl("apply", "-f", "-", input=INDEX_MANIFEST)
    try:
        release.kubectl("wait", "--for=condition=Ready", "pidx/handbook", "--timeout=60s")
        release.kubectl("wait", "--for=condition=Ready", "pod/writer", "pod/stranger", "--timeout=60s")
        waiting.for_the_login(release.kubectl, NAMESPACE)
        sequence = 0
        for name, text in DOCUMENTS.items():
            put = release.call("writer", "PUT", f"{PATH}/documents/{name}", {"text": text})
            assert put.status == 202, put
            sequence = put.body["sequence"]
        seen = {"query": QUESTION, "after_sequence": sequence, "timeout_ms": 60_000}
        assert release.call("writer", "POST", f"{PATH}/search", seen).status == 200
    except (AssertionError, ToolError) as error:
        raise AssertionError(f"{error}\n{release.story()}") from error
    return release


def check(answer: Answer) -> None:
    """The question is answered, by the characters of the document that says it."""
    assert answer.status == 200, answer
    first = answer.body["citations"][0]
    assert first["document"] == "kettle"
    assert first["text"] == DOCUMENTS["kettle"][slice(*first["span"])]


def test_one_command_gives_a_working_system(
    installed: tuple[Release, float], report: Callable[[str], None]
) -> None:
    """All Ready, the database and a first index too, in 120 seconds where the images are there."""
    _, seconds = installed
    report(f"the demo was ready {seconds:.0f} s after helm install")
    assert seconds <= 120


def test_the_first_page_says_that_command(release: Release) -> None:
    """But for the namespace, and the images that the tests built."""
    install, wait, test = block(README, "sh", "demo.enabled").splitlines()
    assert install.split() == [
        *("helm", "install", "polaris", str(CHART.relative_to(ROOT)), "--namespace", "rag"),
        *("--create-namespace", "--set", "demo.enabled=true"),
    ]
    assert "--set=demo.enabled=true" in release.flags
    for command in (wait, test):
        program, *arguments = shlex.split(command.replace(" rag", f" {NAMESPACE}"))
        getattr(release.node, program)(*arguments)


def test_a_pod_is_answered_with_a_citation(release: Release) -> None:
    check(release.ask())


def test_who_lacks_the_verb_is_refused(release: Release) -> None:
    refused = release.ask("stranger")
    assert (refused.status, refused.body["code"]) == (403, "forbidden")


@pytest.mark.parametrize("shown", ["", "other"], ids=["no token", "another's audience"])
def test_who_shows_no_token_for_polaris_is_told_how_to_get_one(release: Release, shown: str) -> None:
    refused = release.ask(shown=shown)
    assert refused.status == 401
    assert "polaris" in refused.body["detail"]


def test_who_is_not_in_its_pod_is_not_postgresql_s_superuser(release: Release) -> None:
    dsn = "host=polaris-demo user=postgres password=guessed dbname=postgres"
    connect = f"import psycopg2; psycopg2.connect('{dsn}')"
    with pytest.raises(ToolError, match=r"pg_hba\.conf rejects connection"):
        release.kubectl("exec", "writer", "--", "/opt/polaris/bin/python", "-c", connect)


def test_when_postgresql_is_killed_the_service_says_so_and_comes_back(
    release: Release, report: Callable[[str], None]
) -> None:
    """Its pod is deleted, OpenBao with it; nobody does anything else."""
    release.kubectl("delete", "pod", "polaris-demo-0", "--grace-period=1", "--wait=false")
    begun = time.monotonic()
    away = release.watch("database-unavailable", seconds=30)
    assert away["seen"][-1] == "database-unavailable", away
    assert "PostgreSQL" in away["details"]["database-unavailable"]
    back = release.watch("200", seconds=90)
    assert back["seen"][-1] == "200", (back, release.story())
    report(f"queries were answered again {time.monotonic() - begun:.0f} s after the demo's pod was killed")
    release.wait()
    check(release.ask())


def test_when_postgresql_crashes_it_recovers_in_its_container(release: Release) -> None:
    crash = "kill -KILL $(head -1 /data/postgres/data/postmaster.pid)"
    release.kubectl("exec", "polaris-demo-0", "-c", "postgres", "--", "sh", "-c", crash)
    back = release.watch("200", seconds=60)
    assert back["seen"][-1] == "200", (back, release.story())
    release.wait()
    check(release.ask())


def test_when_openbao_is_killed_queries_go_on(release: Release) -> None:
    """The logins live on; the operator comes back to it when it is there."""
    crash = "kill -KILL $(cut -d' ' -f1 /data/openbao/openbao.pid)"
    release.kubectl("exec", "polaris-demo-0", "-c", "openbao", "--", "sh", "-c", crash)
    assert release.watch("never", seconds=5)["seen"] == ["200"]
    health = f"/api/v1/namespaces/{NAMESPACE}/services/polaris-demo:openbao/proxy/v1/sys/health"
    deadline = time.monotonic() + 60
    while release.node.kubectl("get", "--raw", health, check=False).returncode:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    release.wait()


def test_what_pods_take_at_work_is_within_the_goals(release: Release, report: Callable[[str], None]) -> None:
    """Operator ≤ 150 MiB, service ≤ 200 MiB, as the kubelet counts, after all of the above."""
    mebibytes = memory_of_parts(release.node, NAMESPACE)
    report("demo, in MiB: " + ", ".join(f"{part} {size:.0f}" for part, size in sorted(mebibytes.items())))
    assert mebibytes["operator"] <= 150
    assert mebibytes["service"] <= 200


def test_a_second_database_is_served_by_a_release_without_an_operator(release: Release) -> None:
    release.upgrade("--set=demo.databases={polaris,second}")
    release.wait()
    (main,) = yaml.safe_load_all(release.kubectl("get", "pgdb/main", "-o", "yaml"))
    spec = main["spec"] | {
        "database": "second",
        "logins": {"query": {"secretName": "second-query"}, "worker": {"secretName": "second-worker"}},
    }
    database = {
        "apiVersion": "polaris.dev/v1alpha1",
        "kind": "PolarisDatabase",
        "metadata": {"name": "second"},
        "spec": spec,
    }
    index = INDEX_MANIFEST.replace("handbook", "notes").replace("main", "second")
    release.kubectl("apply", "-f", "-", input=f"{yaml.safe_dump(database)}---{index}")
    alone = (
        "--set=operator.enabled=false",
        "--set=embedder.enabled=false",
        "--set=embedder.url=http://polaris-embedder:8081",
        "--set=service.replicas=1",
        "--set=service.databaseSecret=second-query",
        "--set=worker.databaseSecret=second-worker",
        f"--set=tests.index={NAMESPACE}/notes",
    )
    own = [flag for flag in release.flags if ".image." in flag or flag.startswith("--set=image.")]
    release.node.helm("install", "second", CHART, "-n", NAMESPACE, *own, *alone)
    try:
        release.kubectl("wait", "--for=condition=Ready", "pgdb/second", "pidx/notes", "--timeout=90s")
        for part in ("service", "worker"):
            release.kubectl("rollout", "status", f"deployment/second-polaris-{part}", "--timeout=60s")
        where = f"http://second-polaris-service/v1/indexes/{NAMESPACE}/notes"
        text = "The notes say that the office in Porto has moved to Rua das Flores."
        put = release.call("writer", "PUT", f"{where}/documents/porto", {"text": text})
        assert put.status == 202, put
        seen = {"query": "Porto", "after_sequence": put.body["sequence"], "timeout_ms": 60_000}
        found = release.call("writer", "POST", f"{where}/search", seen)
        assert [hit["document"] for hit in found.body["hits"]] == ["porto"]
        # Each service knows the indexes of its database only.
        assert release.call("writer", "GET", f"http://second-polaris-service{PATH}").status == 404
        assert release.call("writer", "GET", f"/v1/indexes/{NAMESPACE}/notes").status == 404
        release.node.helm("test", "second", "-n", NAMESPACE, "--timeout=120s")
    except (AssertionError, ToolError) as error:
        raise AssertionError(f"{error}\n{release.story()}") from error
    finally:
        release.kubectl("delete", "pidx/notes", "--timeout=60s")
        release.kubectl("delete", "pgdb/second", "--timeout=60s")
        release.node.helm("uninstall", "second", "-n", NAMESPACE, "--ignore-not-found")


def test_a_namespaced_installation_beside_it_has_objects_of_its_own(release: Release) -> None:
    """Another operator with another demo; neither sees the other's objects."""
    with fresh_namespace(release.node) as other:
        namespaced = (
            "--set=rbac.scope=namespaced",
            "--set=operator.installation=beside",
            f"--set=operator.watchNamespaces={{{other}}}",
            "--set=demo.storage.emptyDir=true",
            "--set=service.replicas=1",
            "--set=embedder.enabled=false",
            f"--set=embedder.url=http://polaris-embedder.{NAMESPACE}:8081",
        )
        release.node.helm("install", "polaris", CHART, "-n", other, *release.flags, *namespaced)
        try:
            ready = ("wait", "--for=condition=Ready", "pgdb/main", "pidx/demo", "--timeout=120s")
            release.node.kubectl(*ready, "-n", other)
            release.node.helm("test", "polaris", "-n", other, "--timeout=120s")
            installations = {
                namespace: json.loads(
                    release.node.kubectl("get", "pgdb/main", "-o", "json", "-n", namespace).stdout
                )["status"]["catalog"]
                for namespace in (NAMESPACE, other)
            }
            assert len(set(installations.values())) == 2
            service = f"http://polaris-service.{other}"
            # The other service knows none of our indexes, and ours none of its.
            assert release.call("writer", "GET", f"{service}{PATH}").status == 404
            assert release.call("writer", "GET", f"/v1/indexes/{other}/demo").status in (403, 404)
        finally:
            release.node.kubectl("delete", "pidx,pgdb", "--all", "-n", other, "--timeout=60s")
            release.node.helm("uninstall", "polaris", "-n", other)


def test_uninstalled_and_installed_again_it_gives_the_same_answers(release: Release) -> None:
    before = release.ask()
    release.uninstall()
    assert release.kubectl("get", "pvc", "-o", "name").split() == [
        "persistentvolumeclaim/data-polaris-demo-0"
    ]
    release.install()
    again = release.watch("200", seconds=60)
    assert again["seen"][-1] == "200", again
    after = release.ask()
    assert (after.body["answer"], after.body["citations"]) == (
        before.body["answer"],
        before.body["citations"],
    )
