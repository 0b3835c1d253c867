"""What is planned costs no request: upgrades, rollbacks, drains, evictions; a kill costs those in flight.

A pod asks 50 times a second meanwhile (`load.py`); each test looks at what was due while it ran.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

import polaris
from kube.tool import ToolError
from node import images, waiting
from node.node import Node
from node.test_chart import CHART, use
from polaris_migrations import HEAD

pytestmark = pytest.mark.node

NAMESPACE = "disruption"
RATE = 50
DOCUMENTS = 40
PARTS = ("operator", "service", "worker", "embedder")
# Neither the database nor OpenBao is what is disrupted here: they stay where no node is drained.
DEMO = (
    "--set=demo.enabled=true",
    "--set=demo.index=rules",
    "--set=demo.storage.emptyDir=true",
    r"--set=demo.nodeSelector.kubernetes\.io/hostname=node-1",
)
# In the pod of the demo's PostgreSQL.
SHOW_REVISION = (
    "PGPASSWORD=$(cat /data/postgres/superuser.password) psql --host=127.0.0.1 --username=postgres"
    " --dbname=polaris --tuples-only --no-align --command='SELECT version_num FROM polaris.alembic_version'"
)
ASKER = """
apiVersion: v1
kind: ServiceAccount
metadata: {name: asker}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: asker}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: polaris-writer}
subjects: [{kind: ServiceAccount, name: asker}]
"""
LEVEL = polaris.CATALOG_LEVEL + 1
REVISION = f"{LEVEL:04}"
MIGRATION = f'''
"""What only the changed image has.

Revision ID: {REVISION}
Revises: {HEAD}
"""

import sqlalchemy as sa
from alembic import op

revision = "{REVISION}"
down_revision = "{HEAD}"


def upgrade() -> None:
    op.add_column("indexes", sa.Column("note", sa.Text(), nullable=True), schema="polaris")
    op.add_column("generations", sa.Column("note", sa.Text(), nullable=True), schema="polaris")
    op.execute("UPDATE polaris.catalog SET level = {LEVEL}")


def downgrade() -> None:
    op.execute("UPDATE polaris.catalog SET level = {LEVEL - 1}")
    op.drop_column("generations", "note", schema="polaris")
    op.drop_column("indexes", "note", schema="polaris")
'''


@dataclasses.dataclass(frozen=True)
class Asked:
    """One request of the load; `due` in seconds since 1970, `took` in seconds."""

    due: float
    took: float
    kind: str
    said: str
    refused: int

    @property
    def answered(self) -> float:
        return self.due + self.took


@dataclasses.dataclass(frozen=True)
class System:
    """POLARIS on two nodes, with an index that answers, and a pod that asks."""

    node: Node
    changed: images.Image

    def kubectl(self, *arguments: str, **more: Any) -> str:
        return self.node.kubectl("-n", NAMESPACE, *arguments, **more).stdout

    def asked(self) -> list[Asked]:
        """All that the load has written down so far."""
        lines = self.kubectl("logs", "asker").splitlines()
        return [Asked(**json.loads(line)) for line in lines if line.startswith("{")]

    def pods(self, part: str) -> list[dict[str, Any]]:
        """The pods of a part that are not ending."""
        selector = f"app.kubernetes.io/component={part}"
        found = json.loads(self.kubectl("get", "pods", "-l", selector, "-o", "json"))["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def settled(self) -> None:
        """Wait until every part has all its pods, and none is ending."""
        for part in PARTS:
            self.kubectl("rollout", "status", f"deployment/polaris-{part}", "--timeout=180s")
        deadline = time.monotonic() + 120
        while '"deletionTimestamp"' in self.kubectl("get", "pods", "-o", "json"):
            assert time.monotonic() < deadline
            time.sleep(0.5)

    def revision(self) -> str:
        """The catalog's."""
        command = ("exec", "polaris-demo-0", "-c", "postgres", "--", "sh", "-c", SHOW_REVISION)
        return self.kubectl(*command).strip()

    @contextmanager
    def under_load(self) -> Iterator[list[Asked]]:
        """Do something while requests run; the list has, afterwards, those that were due meanwhile."""
        seen: list[Asked] = []
        begun = time.time()
        time.sleep(1)
        yield seen
        self.settled()
        time.sleep(2)
        ended = time.time()
        deadline = time.monotonic() + 60
        # They are written down when they end: those due by then, by and by.
        while len(written := self._between(begun, ended)) < RATE * (ended - begun) - 1:
            assert time.monotonic() < deadline, f"{len(written)} requests in {ended - begun:.0f} s"
            time.sleep(1)
        seen += written

    def _between(self, begun: float, ended: float) -> list[Asked]:
        return [asked for asked in self.asked() if begun <= asked.due < ended]


def summary(asked: Sequence[Asked]) -> str:
    took = sorted(each.took for each in asked)
    return (
        f"{len(asked)} requests, {failures(asked)} failed, {sum(each.refused > 0 for each in asked)} refused,"
        f" p50 {took[len(took) // 2] * 1000:.0f} ms, p99 {took[len(took) * 99 // 100] * 1000:.0f} ms"
    )


def failures(asked: Sequence[Asked]) -> int:
    return sum(each.said != "ok" for each in asked)


def none_failed(asked: Sequence[Asked]) -> None:
    wrong = [each for each in asked if each.said != "ok" or each.refused]
    kinds = Counter((each.kind, each.said if each.said != "ok" else "refused first") for each in wrong)
    assert not wrong, f"{len(wrong)} of {len(asked)}: {kinds.most_common(10)}; {wrong[:5]}"


@pytest.fixture(scope="module")
def system(
    two_nodes: Node,
    polaris_archive: images.Image,
    embedder_archive: images.Image,
    demo_archive: images.Image,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[System]:
    """The chart on two nodes, Ready, with documents in an index and 50 requests a second."""
    changed = changed_image(polaris_archive, tmp_path_factory.mktemp("image") / "changed.tar")
    for image in (polaris_archive, embedder_archive, demo_archive, changed):
        two_nodes.load(image)
    two_nodes.kubectl("create", "namespace", NAMESPACE)
    two_nodes.kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
    system = System(two_nodes, changed)
    own = (
        *use("image", polaris_archive),
        *use("embedder.image", embedder_archive),
        *use("demo.image", demo_archive),
    )
    two_nodes.helm("install", "polaris", CHART, "-n", NAMESPACE, *own, *DEMO)
    system.kubectl("apply", "-f", "-", input=ASKER)
    try:
        system.settled()
        system.kubectl("wait", "--for=condition=Ready", "pgdb/main", "pidx/rules", "--timeout=120s")
        waiting.for_the_login(system.kubectl, NAMESPACE)
        put_documents(system)
        system.kubectl("apply", "-f", "-", input=asker(polaris_archive))
        system.kubectl("wait", "--for=condition=Ready", "pod/asker", "--timeout=60s")
        begun = time.monotonic()
        while not system.asked():
            assert time.monotonic() < begun + 60, "the load has not begun"
            time.sleep(0.2)
    except (AssertionError, ToolError) as error:
        seen = system.kubectl("get", "pgdb,pidx,pods", "-o", "wide") + system.kubectl("describe", "pods")
        raise AssertionError(f"{error}\n{seen[-10000:]}") from error
    yield system
    # What is left goes with the cluster; the next tests on it need the cores.
    system.kubectl("delete", "pod", "asker", "--wait=false")
    two_nodes.helm("uninstall", "polaris", "-n", NAMESPACE)


def changed_image(image: images.Image, target: Path) -> images.Image:
    """The next version: another version number, and a migration more, without which it is not ready."""
    found = images.files_of(
        image, "polaris/__init__.py", "polaris_migrations/versions/0001_expand_catalog.py"
    )
    (code,) = (path for path in found if path.endswith("polaris/__init__.py"))
    (first,) = (path for path in found if path.endswith("0001_expand_catalog.py"))
    text = found[code].decode()
    text = text.replace('__version__ = "', '__version__ = "1').replace(
        f"CATALOG_LEVEL = {LEVEL - 1}", f"CATALOG_LEVEL = {LEVEL}"
    )
    second = first.replace("0001_expand_catalog", f"{REVISION}_expand_note")
    files = {code: text.encode(), second: MIGRATION.encode()}
    return images.changed(image, f"{image.name}-changed", files, target)


def put_documents(system: System) -> None:
    """Put documents in through the Service, and wait until they are found."""
    token = system.node.token(NAMESPACE, "asker", audience="polaris")
    address = system.kubectl("get", "service", "polaris-service", "-o", "jsonpath={.spec.clusterIP}")
    index = f"/v1/indexes/{NAMESPACE}/rules"
    with (
        system.node.network(),
        httpx.Client(
            base_url=f"http://{address}",
            headers={"Authorization": f"Bearer {token}"},
            timeout=30,
            trust_env=False,
        ) as client,
    ):
        for number in range(DOCUMENTS):
            text = f"Rule {number}. Whoever signs the contract of part {number} meets its deadline."
            answer = client.put(f"{index}/documents/rule-{number}", json={"text": text})
            assert answer.is_success, answer.text
        deadline = time.monotonic() + 60
        while (
            len(
                client.post(f"{index}/search", json={"query": "deadline", "k": DOCUMENTS})
                .json()
                .get("hits", ())
            )
            < DOCUMENTS
        ):
            assert time.monotonic() < deadline
            time.sleep(0.5)


def asker(image: images.Image) -> str:
    """A pod that asks by its ServiceAccount's token, on the node that is never drained."""
    program = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "asker"},
        "data": {"load.py": Path(__file__).with_name("load.py").read_text()},
    }
    container = {
        "name": "asker",
        "image": image.name,
        "imagePullPolicy": "Never",
        "command": ["python", "/load/load.py"],
        "env": [
            {"name": "TARGET", "value": "http://polaris-service"},
            {"name": "INDEX", "value": f"{NAMESPACE}/rules"},
            {"name": "RATE", "value": str(RATE)},
        ],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "load", "mountPath": "/load"},
            {"name": "token", "mountPath": "/var/run/secrets/polaris"},
        ],
    }
    token = {"serviceAccountToken": {"path": "token", "audience": "polaris", "expirationSeconds": 3600}}
    spec = {
        "serviceAccountName": "asker",
        "automountServiceAccountToken": False,
        "nodeName": "node-1",
        "terminationGracePeriodSeconds": 0,
        "securityContext": {
            "runAsNonRoot": True,
            "fsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "load", "configMap": {"name": "asker"}},
            {"name": "token", "projected": {"sources": [token], "defaultMode": 0o440}},
        ],
    }
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "asker"}, "spec": spec}
    return yaml.safe_dump_all([program, pod])


def test_an_upgrade_with_a_migration_and_its_rollback_cost_no_request(
    system: System, report: Callable[[str], None]
) -> None:
    with system.under_load() as asked:
        tag = system.changed.name.rpartition(":")[2]
        upgrade = (
            "upgrade",
            "polaris",
            CHART,
            "-n",
            NAMESPACE,
            "--reset-then-reuse-values",
            f"--set=image.tag={tag}",
        )
        system.node.helm(*upgrade, "--wait", "--timeout=180s")
        system.settled()
        running = {pod["spec"]["containers"][0]["image"] for pod in system.pods("service")}
        assert running == {system.changed.name}
        deadline = time.monotonic() + 60
        while system.revision() != REVISION:
            assert time.monotonic() < deadline
            time.sleep(0.5)
    report(f"upgrade: {summary(asked)}")
    none_failed(asked)
    with system.under_load() as asked:
        system.node.helm("rollback", "polaris", "-n", NAMESPACE, "--wait", "--timeout=180s")
    report(f"rollback: {summary(asked)}")
    none_failed(asked)
    assert system.revision() == REVISION  # which the code of before goes on with
    system.kubectl("wait", "--for=condition=Ready", "pgdb/main", "pidx/rules", "--timeout=60s")


@pytest.mark.parametrize("part", PARTS)
def test_an_evicted_pod_costs_no_request(system: System, part: str, report: Callable[[str], None]) -> None:
    with system.under_load() as asked:
        for pod in system.pods(part):
            name = pod["metadata"]["name"]
            eviction = {
                "apiVersion": "policy/v1",
                "kind": "Eviction",
                "metadata": {"name": name, "namespace": NAMESPACE},
            }
            system.kubectl(
                "create",
                "--raw",
                f"/api/v1/namespaces/{NAMESPACE}/pods/{name}/eviction",
                "-f",
                "-",
                input=json.dumps(eviction),
            )
            system.settled()
    report(f"eviction of each pod of {part}: {summary(asked)}")
    none_failed(asked)


def spread(system: System) -> None:
    """Have the service's pods on both nodes: one eviction after the other may have left them on one."""
    pods = system.pods("service")
    (crowded, *others) = {pod["spec"]["nodeName"] for pod in pods}
    if not others:
        system.node.kubectl("cordon", crowded)
        try:
            system.kubectl("delete", "pod", pods[0]["metadata"]["name"])
            system.settled()
        finally:
            system.node.kubectl("uncordon", crowded)
    assert {pod["spec"]["nodeName"] for pod in system.pods("service")} == {"node-1", "node-2"}


def test_a_drained_node_costs_no_request(system: System, report: Callable[[str], None]) -> None:
    spread(system)
    try:
        with system.under_load() as asked:
            system.node.kubectl(
                "drain", "node-2", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=180s"
            )
    finally:
        system.node.kubectl("uncordon", "node-2")
    report(f"drain of a node: {summary(asked)}")
    none_failed(asked)


def test_a_killed_service_costs_the_requests_in_flight_on_it_and_no_other(
    system: System, report: Callable[[str], None]
) -> None:
    pod = system.pods("service")[0]
    where = int(pod["spec"]["nodeName"].rpartition("-")[2])
    container = pod["status"]["containerStatuses"][0]
    name = container["containerID"].rpartition("/")[2]
    group = f"/sys/fs/cgroup/memory/kubepods/*/pod{pod['metadata']['uid']}/{name}"
    kill = f"kill -9 $(cat {group}/cgroup.procs)"
    with system.under_load() as asked:
        before = time.time()
        system.node.inside("sh", "-c", kill, on=where)
        after = time.time()
        again = "--for=jsonpath={.status.containerStatuses[0].restartCount}"
        again += f"={container['restartCount'] + 1}"
        system.kubectl("wait", again, f"pod/{pod['metadata']['name']}", "--timeout=60s")
    failed = [each for each in asked if each.said != "ok"]
    in_flight = [each for each in asked if each.due <= after and each.answered >= before]
    report(f"SIGKILL of a service pod: {summary(asked)}; {len(in_flight)} in flight")
    assert [each for each in failed if each not in in_flight] == []
