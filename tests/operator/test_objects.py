"""A cluster and a folder are one and the same to the operator: both pass these tests."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import kopf
import pytest
import yaml
from kubernetes.client import Configuration

from kube.cluster import Cluster
from polaris.errors import ClusterUnavailable, Conflict, InvalidManifest, NotFound, NotOwner
from polaris.names import FINALIZER
from polaris.spec import Kind
from polaris_cli.up import ports
from polaris_operator import events
from polaris_operator.folder import FolderObjects
from polaris_operator.kubernetes_api import KubernetesObjects, load_configuration
from polaris_operator.objects import Key, Objects, Resource
from scenes.cluster import OPERATOR_ACCOUNT, OPERATOR_NAMESPACE, eventually, path

NAMESPACE = "objects"
KEY = Key("PolarisDatabase", NAMESPACE, "one")


def manifest(name: str = "one", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "polaris.dev/v1alpha1",
        "kind": "PolarisDatabase",
        "metadata": {"name": name, "namespace": NAMESPACE, "annotations": {"polaris.dev/adopt": "a/1"}},
        "spec": {
            "host": "db",
            "database": "polaris",
            "credentials": {"secretRef": {"name": "admin"}},
            **spec,
        },
    }


class Place(Protocol):
    """Where a person puts manifests and Secrets."""

    @property
    def objects(self) -> Objects: ...
    def put(self, manifest: dict[str, Any]) -> None: ...
    def remove(self, name: str) -> None: ...
    def put_secret(self, name: str, data: dict[str, str]) -> None: ...
    def look(self) -> set[Key]: ...


class Folder:
    def __init__(self, folder: Path) -> None:
        self.manifests, self.data = folder / "manifests", folder / "data"
        self.manifests.mkdir()
        self.objects = FolderObjects(self.manifests, self.data)

    def put(self, manifest: dict[str, Any]) -> None:
        (self.manifests / f"{manifest['metadata']['name']}.yaml").write_text(yaml.safe_dump(manifest))

    def remove(self, name: str) -> None:
        (self.manifests / f"{name}.yaml").unlink()

    def put_secret(self, name: str, data: dict[str, str]) -> None:
        folder = self.data / "secrets" / NAMESPACE / name
        folder.mkdir(parents=True)
        for key, value in data.items():
            (folder / key).write_text(value)

    def look(self) -> set[Key]:
        return self.objects.look()


class InCluster:
    def __init__(self, cluster: Cluster, kubeconfig: Path) -> None:
        self._cluster = cluster
        self.objects = KubernetesObjects(load_configuration(str(kubeconfig)), [NAMESPACE])

    def put(self, manifest: dict[str, Any]) -> None:
        self._cluster.apply(json.dumps(manifest))

    def remove(self, name: str) -> None:
        key = Key("PolarisDatabase", NAMESPACE, name)
        self._cluster.api("DELETE", path(key)).raise_for_status()

    def put_secret(self, name: str, data: dict[str, str]) -> None:
        self._cluster.apply(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Secret",
                    "metadata": {"name": name, "namespace": NAMESPACE},
                    "stringData": data,
                }
            )
        )

    def look(self) -> set[Key]:
        return self.objects.relist()


@pytest.fixture(params=["folder", pytest.param("cluster", marks=pytest.mark.kubernetes)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A folder, and a namespace of a real cluster through the operator's own rights."""
    if request.param == "folder":
        folder = Folder(tmp_path)
        yield folder
        folder.objects.close()
        return
    cluster: Cluster = request.getfixturevalue("with_namespace")
    yield InCluster(cluster, cluster.kubeconfig_for(OPERATOR_NAMESPACE, OPERATOR_ACCOUNT))
    secrets = f"/api/v1/namespaces/{NAMESPACE}/secrets"
    cluster.api("DELETE", secrets).raise_for_status()
    for name in ("one", "two"):
        key = Key("PolarisDatabase", NAMESPACE, name)
        patch: dict[str, Any] = {"metadata": {"finalizers": []}}
        cluster.api("PATCH", path(key), patch, content_type="application/merge-patch+json")
        cluster.api("DELETE", path(key))


@pytest.fixture(scope="module")
def with_namespace(installed_cluster: Cluster) -> Cluster:
    """The cluster, with the namespace of these tests."""
    installed_cluster.kubectl("create", "namespace", NAMESPACE)
    return installed_cluster


def read(place: Place, key: Key = KEY) -> Resource:
    found = place.objects.get(key)
    assert found is not None
    return found


def test_an_object_that_is_put_is_seen_with_what_it_says(place: Place) -> None:
    assert place.objects.get(KEY) is None
    assert not place.objects.complete()
    place.put(manifest())
    assert place.look() == {KEY}
    assert place.objects.complete()
    found = read(place)
    assert found.spec["host"] == "db"
    assert found.annotations == {"polaris.dev/adopt": "a/1"}
    assert (found.generation, found.finalizers, found.deleted_at) == (1, (), None)
    assert place.objects.list("PolarisDatabase") == [found]
    assert place.objects.list("PolarisIndex") == []
    assert place.objects.watches(NAMESPACE)


def test_what_did_not_change_is_not_looked_at(place: Place) -> None:
    place.put(manifest())
    place.look()
    assert place.look() == set()


def test_a_change_of_the_spec_is_another_generation(place: Place) -> None:
    place.put(manifest())
    place.look()
    place.put(manifest(host="elsewhere"))
    assert place.look() == {KEY}
    found = read(place)
    assert (found.spec["host"], found.generation) == ("elsewhere", 2)


def test_a_status_is_replaced_whole_and_is_no_reason_to_look(place: Place) -> None:
    place.put(manifest())
    place.look()
    first = place.objects.write_status(
        read(place), {"observedGeneration": 1, "serverVersion": "18.6", "catalog": "c"}
    )
    assert read(place) == first
    place.objects.write_status(first, {"observedGeneration": 1, "catalog": "d"})
    assert read(place).status == {"observedGeneration": 1, "catalog": "d"}
    assert read(place).generation == 1
    assert place.look() == set()


def test_what_was_read_too_long_ago_cannot_be_written(place: Place) -> None:
    place.put(manifest())
    place.look()
    old = read(place)
    place.objects.write_status(old, {"observedGeneration": 1})
    with pytest.raises(Conflict):
        place.objects.write_status(old, {"observedGeneration": 7})
    with pytest.raises(Conflict):
        place.objects.set_finalizer(old, present=True)
    assert read(place).status == {"observedGeneration": 1}


def test_a_deleted_object_without_our_finalizer_is_gone(place: Place) -> None:
    place.put(manifest())
    place.look()
    before = read(place)
    place.remove("one")
    assert place.look() == {KEY}
    assert place.objects.get(KEY) is None
    with pytest.raises(Conflict):
        place.objects.write_status(before, {"observedGeneration": 1})


def test_our_finalizer_holds_a_deleted_object_until_we_let_it_go(place: Place) -> None:
    place.put(manifest())
    place.look()
    held = place.objects.set_finalizer(read(place), present=True)
    assert held.finalizers == (FINALIZER,)
    place.remove("one")
    assert place.look() == {KEY}
    assert read(place).deleted_at is not None
    assert place.look() == set()
    gone = place.objects.set_finalizer(read(place), present=False)
    assert gone.finalizers == ()
    assert place.objects.get(KEY) is None  # At once: a watch that begins now has nothing to say of it.
    place.look()
    assert place.objects.get(KEY) is None


def test_a_secret_of_a_person_is_read_as_it_was_written(place: Place) -> None:
    place.put_secret("admin", {"username": "ana", "password": "ção 'x'"})
    found = place.objects.secret(NAMESPACE, "admin")
    assert found is not None
    assert (found.data, found.owner_uid) == ({"username": "ana", "password": "ção 'x'"}, None)
    assert place.objects.secret(NAMESPACE, "none") is None


def test_a_secret_of_ours_is_owned_changed_whole_and_deleted(place: Place) -> None:
    place.put(manifest())
    place.look()
    owner = read(place)
    place.objects.write_secret(NAMESPACE, "made", {"a": "1", "b": "2"}, owner)
    first = place.objects.secret(NAMESPACE, "made")
    assert first is not None
    assert (first.data, first.owner_uid) == ({"a": "1", "b": "2"}, owner.uid)
    place.objects.write_secret(NAMESPACE, "made", {"b": "3", "ca.crt": "c"}, owner)
    second = place.objects.secret(NAMESPACE, "made")
    assert second is not None
    assert second.data == {"b": "3", "ca.crt": "c"}
    place.objects.delete_secret(NAMESPACE, "made", owner)
    assert place.objects.secret(NAMESPACE, "made") is None
    place.objects.delete_secret(NAMESPACE, "made", owner)


def test_a_secret_of_somebody_else_is_neither_overwritten_nor_deleted(place: Place) -> None:
    place.put(manifest())
    place.put(manifest("two"))
    place.look()
    one, two = read(place), read(place, Key("PolarisDatabase", NAMESPACE, "two"))
    place.put_secret("theirs", {"a": "1"})
    place.objects.write_secret(NAMESPACE, "of-two", {"a": "1"}, two)
    for name in ("theirs", "of-two"):
        with pytest.raises(NotOwner):
            place.objects.write_secret(NAMESPACE, name, {"a": "2"}, one)
        place.objects.delete_secret(NAMESPACE, name, one)
        found = place.objects.secret(NAMESPACE, name)
        assert found is not None
        assert found.data == {"a": "1"}


def test_the_installation_keeps_its_name(place: Place) -> None:
    assert len(place.objects.installation) >= 32
    assert place.objects.installation == place.objects.installation


def test_an_event_is_told_and_never_in_the_way(place: Place) -> None:
    place.put(manifest())
    place.look()
    place.objects.event(read(place), "LoginRefused", "no: " + "ção" * 2000, warning=True)


# --- of the cluster alone


@pytest.fixture
def in_cluster(installed_cluster: Cluster) -> tuple[Cluster, KubernetesObjects]:
    config = installed_cluster.kubeconfig_for(OPERATOR_NAMESPACE, OPERATOR_ACCOUNT)
    return installed_cluster, KubernetesObjects(load_configuration(str(config)), ["alone"])


@pytest.mark.kubernetes
def test_a_token_is_of_the_account_and_for_the_audience_that_was_asked_for(
    in_cluster: tuple[Cluster, KubernetesObjects],
) -> None:
    cluster, objects = in_cluster
    token = objects.service_account_token("default", "default", "vault")
    assert token.value not in repr(token)
    review = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": token.value, "audiences": ["vault"]},
    }
    status = cluster.api("POST", "/apis/authentication.k8s.io/v1/tokenreviews", review).json()["status"]
    assert status["user"]["username"] == "system:serviceaccount:default:default"
    assert status["audiences"] == ["vault"]
    with pytest.raises(NotFound, match="nobody"):
        objects.service_account_token("default", "nobody", "vault")


@pytest.mark.kubernetes
@pytest.mark.usefixtures("with_namespace")
def test_what_the_watch_sees_go_while_everything_is_listed_stays_gone(
    in_cluster: tuple[Cluster, KubernetesObjects], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, elsewhere = in_cluster
    objects = KubernetesObjects(elsewhere.configuration, [NAMESPACE])
    cluster.apply(json.dumps(manifest("brief")))
    key = Key("PolarisDatabase", NAMESPACE, "brief")
    body = cluster.api("GET", path(key)).json()
    listed = objects._list

    def then_it_goes(kind: Kind) -> Iterator[dict[str, Any]]:
        found = list(listed(kind))
        yield from found
        if kind == "PolarisDatabase":
            assert "brief" in {one["metadata"]["name"] for one in found}
            cluster.api("DELETE", path(key)).raise_for_status()
            objects.see(kind, body, gone=True)

    monkeypatch.setattr(objects, "_list", then_it_goes)
    assert key not in objects.relist()
    assert objects.get(key) is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # kopf leaves its session open
def test_a_watch_that_kopf_gives_up_ends_so_that_it_can_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    patient = events.settings

    def hasty() -> kopf.OperatorSettings:
        made = patient()
        made.networking.error_backoffs = [0.01]
        return made

    monkeypatch.setattr(events, "settings", hasty)
    nobody = Configuration()
    nobody.host = f"http://127.0.0.1:{ports.any_free()}"
    watching = events.watch(KubernetesObjects(nobody), lambda _: None, [NAMESPACE], threading.Event())
    with pytest.raises(aiohttp.ClientConnectorError):
        asyncio.run(watching)
    gc.collect()


@pytest.mark.kubernetes
def test_an_api_server_that_is_away_is_unavailable_and_one_that_is_back_is_asked_again(
    in_cluster: tuple[Cluster, KubernetesObjects],
) -> None:
    cluster, objects = in_cluster
    objects.secret("default", "none")
    cluster.stop_api_server()
    try:
        with pytest.raises(ClusterUnavailable):
            objects.secret("default", "none")
    finally:
        cluster.start_api_server()
    assert eventually("an answer", lambda: objects.secret("default", "none") is None)


# --- of the folder alone


def test_a_folder_is_worked_with_by_one_process(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    with pytest.raises(Conflict, match="another process"):
        FolderObjects(folder.manifests, folder.data)
    folder.objects.close()


def test_what_a_folder_keeps_outlives_its_process(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.put(manifest())
    folder.look()
    folder.objects.write_status(read(folder), {"observedGeneration": 1})
    folder.objects.set_finalizer(read(folder), present=True)
    before, name = read(folder), folder.objects.installation
    folder.objects.close()
    folder.remove("one")
    again = FolderObjects(folder.manifests, folder.data)
    assert again.get(KEY) == before
    assert again.installation == name
    assert again.look() == {KEY}
    found = again.get(KEY)
    assert found is not None
    assert found.deleted_at is not None
    again.close()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    made = Folder(tmp_path)
    yield made
    made.objects.close()


def test_a_file_that_is_half_written_keeps_what_it_said_before(folder: Folder) -> None:
    folder.put(manifest())
    folder.look()
    (folder.manifests / "one.yaml").write_text("apiVersion: [")
    assert folder.look() == set()
    assert folder.objects.get(KEY) is not None
    assert any("one.yaml" in problem for problem in folder.objects.problems.values())
    folder.put(manifest(host="again"))
    assert folder.look() == {KEY}
    assert folder.objects.problems == {}


def test_while_a_file_was_never_readable_nothing_counts_as_deleted(folder: Folder) -> None:
    (folder.manifests / "other.yaml").write_text("]")
    folder.put(manifest())
    assert folder.look() == {KEY}
    assert not folder.objects.complete()
    folder.remove("one")
    folder.look()
    assert folder.objects.get(KEY) is not None
    (folder.manifests / "other.yaml").unlink()
    assert folder.look() == {KEY}
    assert folder.objects.complete()
    assert folder.objects.get(KEY) is None


def test_a_folder_that_is_away_for_a_moment_deletes_nothing(folder: Folder) -> None:
    folder.put(manifest())
    folder.look()
    away = folder.manifests.rename(folder.manifests.with_name("away"))
    assert folder.look() == set()
    assert read(folder).deleted_at is None
    assert any("can't be listed" in problem for problem in folder.objects.problems.values())
    away.rename(folder.manifests)
    assert folder.look() == set()
    assert folder.objects.problems == {}


def test_a_manifest_that_is_away_while_an_editor_saves_deletes_nothing(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.objects.close()
    with closing(FolderObjects(folder.manifests, folder.data, absent_seconds=0.05)) as objects:
        folder.put(manifest())
        assert objects.look() == {KEY}
        for saved in (lambda: folder.remove("one"), lambda: (folder.manifests / "one.yaml").write_text("")):
            saved()
            assert objects.look() == set()
            folder.put(manifest())
            time.sleep(0.1)
            assert objects.look() == set()
        assert objects.get(KEY) is not None

        folder.remove("one")
        assert objects.look() == set()
        time.sleep(0.1)
        assert objects.look() == {KEY}
        assert objects.get(KEY) is None


def test_a_single_file_of_manifests_that_is_away_deletes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "manifests.yaml"
    file.write_text(yaml.safe_dump(manifest()))
    with closing(FolderObjects(file, tmp_path / "data")) as objects:
        assert objects.look() == {KEY}
        file.rename(tmp_path / "aside")
        assert objects.look() == set()
        assert objects.get(KEY) is not None
        (tmp_path / "aside").rename(file)
        file.write_text("")
        assert objects.look() == {KEY}


def test_an_object_that_stands_in_two_files_is_the_first_and_a_person_is_told(folder: Folder) -> None:
    folder.put(manifest())
    (folder.manifests / "zwei.yaml").write_text(yaml.safe_dump(manifest(host="other")))
    folder.look()
    assert read(folder).spec["host"] == "db"
    assert any("two places" in problem for problem in folder.objects.problems.values())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kind: Secret\napiVersion: v1\nmetadata: {name: x}\n", "secrets do not belong"),
        ("kind: Pod\napiVersion: v1\nmetadata: {name: x}\n", "none of ours"),
        ("- 1\n", "not a mapping"),
        (yaml.safe_dump({**manifest(), "metadata": {}}), "metadata.name"),
        (yaml.safe_dump({**manifest(), "sepc": {}}), "unknown field sepc"),
    ],
)
def test_what_does_not_belong_there_is_refused_with_the_file(folder: Folder, text: str, words: str) -> None:
    (folder.manifests / "wrong.yaml").write_text(text)
    assert folder.look() == set()
    (problem,) = folder.objects.problems.values()
    assert words in problem
    assert "wrong.yaml" in problem


@pytest.mark.parametrize(
    "change",
    [
        {"spec": "abc"},
        {"kind": ["x"]},
        {1: "x"},
        {"kind": "List", "items": 5},
        {"metadata": "one"},
        *(
            {"metadata": {"name": "one", **wrong}}
            for wrong in (
                {"annotations": [1]},
                {"annotations": {"at": date(2026, 1, 1)}},
                {"annotations": {1: "x"}},
                {"namespace": ["a"]},
                {"namespace": 5},
                {"namespace": "../../x"},
                {"namespace": "a.b"},
                {"namespace": "a" * 64},
                {"name": "../x"},
                {"name": "a\n"},
                {"name": "a" * 64},
            )
        ),
    ],
)
def test_a_manifest_of_a_wrong_shape_is_refused_and_the_others_are_taken(
    folder: Folder, change: dict[Any, Any]
) -> None:
    (folder.manifests / "wrong.yaml").write_text(yaml.safe_dump({**manifest(), **change}, sort_keys=False))
    folder.put(manifest("two"))
    assert folder.look() == {Key("PolarisDatabase", NAMESPACE, "two")}
    (problem,) = folder.objects.problems.values()
    assert "wrong.yaml" in problem


def test_what_the_api_server_would_reject_is_rejected(folder: Folder) -> None:
    folder.put(manifest(port=99999))
    assert folder.look() == set()
    assert any("/spec/port" in problem for problem in folder.objects.problems.values())
    folder.put(manifest())
    folder.look()
    folder.put(manifest(database="other"))
    assert folder.look() == set()
    assert read(folder).spec["database"] == "polaris"
    assert any("cannot be changed" in problem for problem in folder.objects.problems.values())


def test_who_reads_a_secret_while_it_changes_sees_one_version(folder: Folder) -> None:
    folder.put(manifest())
    folder.look()
    place = folder.data / "secrets" / NAMESPACE / "made"
    folder.objects.write_secret(NAMESPACE, "made", {"a": "1", "b": "1"}, read(folder))
    version = (place / "..data").resolve()
    opened = (version / "a").read_text()
    folder.objects.write_secret(NAMESPACE, "made", {"a": "2", "b": "2"}, read(folder))
    assert opened == "1"
    assert {file.name: file.read_text() for file in place.iterdir() if not file.name.startswith("..")} == {
        "a": "2",
        "b": "2",
    }
    for file in ((place / "..data").resolve() / "a", place / "..owner"):
        assert file.stat().st_mode & 0o777 == 0o600
    assert place.stat().st_mode & 0o777 == 0o700


def test_a_secret_whose_writing_was_cut_short_is_ours_and_is_written_again(folder: Folder) -> None:
    folder.put(manifest())
    folder.look()
    place = folder.data / "secrets" / NAMESPACE / "made"
    place.mkdir(parents=True)
    (place / "..owner").write_text(read(folder).uid)
    found = folder.objects.secret(NAMESPACE, "made")
    assert found is not None
    assert (found.data, found.owner_uid) == ({}, read(folder).uid)
    folder.objects.write_secret(NAMESPACE, "made", {"a": "1"}, read(folder))
    found = folder.objects.secret(NAMESPACE, "made")
    assert found is not None
    assert found.data == {"a": "1"}


@pytest.mark.parametrize("left", [[], ["..k3y"]])
def test_a_secret_that_a_crash_left_without_an_owner_is_nobodys_and_is_written(
    folder: Folder, left: list[str]
) -> None:
    folder.put(manifest())
    folder.look()
    place = folder.data / "secrets" / NAMESPACE / "login"
    place.mkdir(parents=True)
    for name in left:
        (place / name).write_text("half an owner")

    assert folder.objects.secret(NAMESPACE, "login") is None
    folder.objects.write_secret(NAMESPACE, "login", {"password": "x"}, read(folder))

    found = folder.objects.secret(NAMESPACE, "login")
    assert found is not None
    assert (found.data, found.owner_uid) == ({"password": "x"}, read(folder).uid)


def test_what_a_crash_left_of_a_deleted_secret_is_in_nobodys_way(folder: Folder) -> None:
    folder.put(manifest())
    folder.look()
    left = folder.data / "secrets" / NAMESPACE / "..login"
    left.mkdir(parents=True)
    (left / "password").write_text("x")
    for _ in range(2):
        folder.objects.write_secret(NAMESPACE, "login", {"password": "y"}, read(folder))
        folder.objects.delete_secret(NAMESPACE, "login", read(folder))
        assert folder.objects.secret(NAMESPACE, "login") is None
    assert list(left.parent.iterdir()) == []


def test_the_secrets_of_an_object_go_with_it(folder: Folder) -> None:
    folder.put(manifest())
    folder.look()
    folder.objects.write_secret(NAMESPACE, "made", {"a": "1"}, read(folder))
    folder.put_secret("theirs", {"a": "1"})
    folder.remove("one")
    folder.look()
    assert folder.objects.secret(NAMESPACE, "made") is None
    assert folder.objects.secret(NAMESPACE, "theirs") is not None


def test_a_folder_has_no_service_accounts_and_says_what_to_use(folder: Folder) -> None:
    with pytest.raises(InvalidManifest, match="appRole"):
        folder.objects.service_account_token(NAMESPACE, "x", "vault")


@pytest.mark.parametrize("name", ["../x", "..", "a/b", "", "A", "a\n"])
def test_no_name_leads_out_of_the_folder(folder: Folder, name: str) -> None:
    with pytest.raises(InvalidManifest):
        folder.objects.secret(NAMESPACE, name)
