"""The door to the Kubernetes API: objects, the Secrets beside them, ServiceAccounts' tokens, the Lease.

Objects are read from a cache that events keep current (`see`) and that is listed anew now and then
(`relist`): a watch can fall silent, and only a list shows what is gone. Each write carries the
resourceVersion that was read, and is made within a term of leading only (`during`). Secrets are asked
for one by one: watching them would mean to hold every Secret of the cluster in memory.

Of the client library only configuration, authentication and transport are used; its models of all
Kubernetes' resources would cost memory and bring nothing.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import kubernetes.config
import urllib3
from kubernetes.client.api_client import ApiClient
from kubernetes.client.configuration import Configuration
from kubernetes.client.exceptions import ApiException

from polaris import API_GROUP, API_VERSION
from polaris.errors import (
    ClusterUnavailable,
    Conflict,
    InvalidManifest,
    NotFound,
    NotOwner,
    PolarisError,
    Prerequisite,
    Unauthenticated,
)
from polaris.names import FINALIZER, MANAGED_BY
from polaris.spec import Kind
from polaris.telemetry import logger
from polaris_operator.callers import Caller
from polaris_operator.lease import DURATION_SECONDS, Record
from polaris_operator.objects import Key, Resource, Secret, Token

log = logger(__name__)

PLURALS: dict[Kind, str] = {"PolarisDatabase": "polarisdatabases", "PolarisIndex": "polarisindexes"}
_API = f"{API_GROUP}/{API_VERSION}"
_TIMEOUT = (5, 30)
# Who leads has to know it in time: an answer that takes longer is none.
_LEASE_TIMEOUT = (2, 3)
_LEASES = "coordination.k8s.io/v1"
_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_PAGE = 250
_TOKEN_SECONDS = 600
_MANAGER = "polaris-operator"
_MESSAGE_BYTES = 1024


def load_configuration(kubeconfig: str = "") -> Configuration:
    """Return how to reach the API server: by a kubeconfig, else by what a pod is given.

    Where neither is there, the kubeconfig at its usual place is taken.
    """
    configuration = Configuration()
    load: Any = kubernetes.config  # Untyped.
    try:
        if kubeconfig:
            load.load_kube_config(kubeconfig, client_configuration=configuration)
        elif os.environ.get("KUBERNETES_SERVICE_HOST"):
            load.load_incluster_config(client_configuration=configuration)
        else:
            usual = str(Path("~/.kube/config").expanduser())
            load.load_kube_config(usual, client_configuration=configuration)
    except load.ConfigException as error:
        raise ClusterUnavailable(f"no cluster is configured: {error}") from None
    # One connection that was closed under us is no reason to fail; more is for the queue.
    configuration.retries = urllib3.Retry(connect=1, read=0, redirect=0, other=0)
    return configuration


def own_namespace() -> str:
    """Return the namespace of this pod; "default" where this is none."""
    with contextlib.suppress(OSError):
        return _OWN_NAMESPACE.read_text().strip()
    return "default"


class KubernetesLease:
    """One Lease of a cluster; implements `Lease`."""

    def __init__(self, objects: KubernetesObjects, namespace: str, name: str) -> None:
        self._objects = objects
        self._namespace = namespace
        self._name = name

    def read(self) -> Record | None:
        """Return what stands in it; None where there is none."""
        return self._objects.lease(self._namespace, self._name)

    def write(self, record: Record) -> Record:
        """Write it, and return it as it is then; Conflict where it is no longer what was read."""
        return self._objects.write_lease(self._namespace, self._name, record)


class KubernetesObjects:
    """Objects of a cluster; implements `Objects`."""

    def __init__(
        self, configuration: Configuration, namespaces: Sequence[str] = (), installation: str = ""
    ) -> None:
        self.configuration = configuration
        self._client = ApiClient(configuration)
        self._namespaces = tuple(namespaces)
        self._installation = installation
        self._lock = threading.Lock()
        self._cache: dict[Key, Resource] = {}
        self._listed = threading.Event()
        self._gone: set[tuple[Key, str]] = set()
        """What went since the last listing began."""
        self.may: Callable[[], None] = lambda: None
        """Called before each write; raises where it is no longer ours."""

    def during(self, may: Callable[[], None]) -> KubernetesObjects:
        """Return the same objects for one term of leading.

        It is asked for after what was read for a write: whoever is frozen in between has a resourceVersion
        of before.
        """
        made = copy.copy(self)
        made.may = may
        return made

    # What is cached

    @property
    def installation(self) -> str:
        """The uid of the namespace kube-system, which lives as long as the cluster; or as was set."""
        if not self._installation:
            namespace = self._call("GET", "/api/v1/namespaces/kube-system")
            self._installation = namespace["metadata"]["uid"]
        return self._installation

    def get(self, key: Key) -> Resource | None:
        """Return the object as last seen; None where there is none."""
        with self._lock:
            return self._cache.get(key)

    def list(self, kind: Kind) -> list[Resource]:
        """Return all objects of a kind that we watch."""
        with self._lock:
            return [resource for key, resource in sorted(self._cache.items()) if key.kind == kind]

    def complete(self) -> bool:
        """Whether everything was listed once: only then does an absent object mean a deleted one."""
        return self._listed.is_set()

    def watches(self, namespace: str) -> bool:
        """Whether objects of this namespace are ours to reconcile."""
        return not self._namespaces or namespace in self._namespaces

    def see(self, kind: Kind, body: Mapping[str, Any], *, gone: bool) -> Key | None:
        """Take in what a watch says; return the object's key where it is to be looked at.

        A change of nothing but the status is our own and no reason to look.
        """
        resource = _resource(kind, body)
        with self._lock:
            known = self._cache.get(resource.key)
            if gone:
                self._gone.add((resource.key, resource.uid))
                if known is not None and known.uid == resource.uid:
                    del self._cache[resource.key]
                return resource.key
            if known is not None and known.uid == resource.uid and not _newer(resource, known):
                return None
            self._cache[resource.key] = resource
        return resource.key if known is None or _asks_more(resource, known) else None

    def relist(self) -> set[Key]:
        """List everything, and return what is to be looked at: the new, the changed and the gone.

        What the watch sees go while we list stays gone: a page may have been read before.
        """
        with self._lock:
            self._gone.clear()
            started = {key: resource.resource_version for key, resource in self._cache.items()}
        found: dict[Key, Resource] = {}
        for kind in PLURALS:
            for body in self._list(kind):
                resource = _resource(kind, body)
                found[resource.key] = resource
        changed = set()
        with self._lock:
            for key, resource in found.items():
                if (key, resource.uid) in self._gone:
                    continue
                known = self._cache.get(key)
                if known is None or known.uid != resource.uid or _newer(resource, known):
                    self._cache[key] = resource
                    if known is None or _asks_more(resource, known):
                        changed.add(key)
            for key, version in started.items():
                # Seen meanwhile by the watch: then it is the watch that knows.
                if key not in found and key in self._cache and self._cache[key].resource_version == version:
                    del self._cache[key]
                    changed.add(key)
        self._listed.set()
        return changed

    def _list(self, kind: Kind) -> Iterator[dict[str, Any]]:
        for path in self._list_paths(kind):
            more = ""
            while True:
                page = self._call("GET", f"{path}?limit={_PAGE}&continue={quote(more)}")
                yield from page["items"]
                more = page["metadata"].get("continue", "")
                if not more:
                    break

    def _list_paths(self, kind: Kind) -> Sequence[str]:
        plural = PLURALS[kind]
        if not self._namespaces:
            return [f"/apis/{_API}/{plural}"]
        return [f"/apis/{_API}/namespaces/{namespace}/{plural}" for namespace in self._namespaces]

    # Writing objects

    def write_status(self, resource: Resource, status: Mapping[str, Any]) -> Resource:
        """Replace the status."""
        body = {
            "apiVersion": _API,
            "kind": resource.key.kind,
            "metadata": {
                "name": resource.key.name,
                "namespace": resource.key.namespace,
                "uid": resource.uid,
                "resourceVersion": resource.resource_version,
            },
            "spec": dict(resource.spec),
            "status": dict(status),
        }
        return self._written(resource, "PUT", f"{_path(resource.key)}/status", body)

    def set_finalizer(self, resource: Resource, *, present: bool) -> Resource:
        """Add or remove our finalizer."""
        others = [name for name in resource.finalizers if name != FINALIZER]
        metadata = {
            "resourceVersion": resource.resource_version,
            "finalizers": [*others, FINALIZER] if present else others,
        }
        return self._written(resource, "PATCH", _path(resource.key), {"metadata": metadata})

    def _written(self, before: Resource, method: str, path: str, body: Any) -> Resource:
        content = "application/merge-patch+json" if method == "PATCH" else "application/json"
        try:
            written = self._call(method, path, body, content=content)
        except NotFound as error:
            self._forget(before)
            raise Conflict(str(error)) from None
        after = _resource(before.key.kind, written)
        if after.deleted_at is not None and not after.finalizers:
            self._forget(after)
            return after
        with self._lock:
            known = self._cache.get(after.key)
            if known is not None and known.uid == after.uid and _newer(after, known):
                self._cache[after.key] = after
        return after

    def _forget(self, resource: Resource) -> None:
        """Know that an object is gone: a watch that begins after that has nothing to say of it."""
        with self._lock:
            self._gone.add((resource.key, resource.uid))
            known = self._cache.get(resource.key)
            if known is not None and known.uid == resource.uid:
                del self._cache[resource.key]

    def event(self, resource: Resource, reason: str, message: str, *, warning: bool) -> None:
        """Tell a person what happened; best effort."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        namespace = resource.key.namespace
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{resource.key.name[:50]}.", "namespace": namespace},
            "involvedObject": {**_reference(resource), "namespace": namespace},
            "reason": reason,
            "message": message.encode()[:_MESSAGE_BYTES].decode(errors="ignore"),
            "type": "Warning" if warning else "Normal",
            "source": {"component": _MANAGER},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        try:
            self._call("POST", f"/api/v1/namespaces/{namespace}/events", body)
        except PolarisError as error:
            log.info("event not told", object=str(resource.key), reason=reason, error=str(error))

    # Secrets and ServiceAccounts

    def secret(self, namespace: str, name: str) -> Secret | None:
        """Return a Secret; None where there is none."""
        try:
            body = self._call("GET", _secret_path(namespace, name))
        except NotFound:
            return None
        return _secret(body)

    def write_secret(self, namespace: str, name: str, data: Mapping[str, str], owner: Resource) -> None:
        """Create or update a Secret that `owner` owns; NotOwner where it is somebody else's."""
        found = self.secret(namespace, name)
        if found is not None and found.owner_uid != owner.uid:
            raise NotOwner(f"Secret {namespace}/{name} exists and belongs to somebody else")
        body: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": {MANAGED_BY: _MANAGER},
                "ownerReferences": [{**_reference(owner), "controller": True, "blockOwnerDeletion": False}],
            },
            "type": "Opaque",
            "data": {key: base64.b64encode(value.encode()).decode() for key, value in data.items()},
        }
        if found is None:
            self._call("POST", f"/api/v1/namespaces/{namespace}/secrets", body)
            return
        body["metadata"]["resourceVersion"] = found.resource_version
        self._call("PUT", _secret_path(namespace, name), body)

    def delete_secret(self, namespace: str, name: str, owner: Resource) -> None:
        """Delete a Secret where `owner` owns it; otherwise leave it."""
        found = self.secret(namespace, name)
        if found is None or found.owner_uid != owner.uid:
            return
        options = {"preconditions": {"resourceVersion": found.resource_version}}
        with contextlib.suppress(NotFound):
            self._call("DELETE", _secret_path(namespace, name), options)

    def service_account_token(self, namespace: str, name: str, audience: str) -> Token:
        """Ask for a token of a ServiceAccount (TokenRequest).

        InvalidManifest where the API server itself would take the token: whoever writes a
        PolarisDatabase says where it is sent, and whoever gets it would be that ServiceAccount,
        perhaps the operator's own.
        """
        path = f"/api/v1/namespaces/{quote(namespace)}/serviceaccounts/{quote(name)}/token"
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"audiences": [audience], "expirationSeconds": _TOKEN_SECONDS},
        }
        status = self._call("POST", path, request)["status"]
        if self._is_taken_by_the_cluster(status["token"], f"system:serviceaccount:{namespace}:{name}"):
            raise InvalidManifest(
                f"audience {audience} is the API server's own: a token for it is not sent to Vault",
                "/spec/credentials/vault/auth/kubernetes/audience",
            )
        return Token(status["token"], datetime.fromisoformat(status["expirationTimestamp"]))

    def _is_taken_by_the_cluster(self, token: str, account: str) -> bool:
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        path = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
        try:
            answer = self._call("POST", path, review, token=token)
        except Unauthenticated:
            return False
        # With a client certificate beside it we are ourselves, whatever the token is.
        return bool(answer["status"]["userInfo"].get("username") == account)

    # Who asks us, and may they

    def review_token(self, token: str, audiences: Sequence[str]) -> Caller | None:
        """Return whose token it is (TokenReview); None where it is nobody's, or not for these audiences."""
        spec = {"token": token, "audiences": list(audiences)}
        status = self._review("authentication.k8s.io/v1", "TokenReview", spec)
        # An API server whose authenticator knows no audiences leaves the list out: not for us then.
        if not status.get("authenticated") or set(audiences).isdisjoint(status.get("audiences") or ()):
            return None
        user = status.get("user", {})
        extra = {key: tuple(values) for key, values in (user.get("extra") or {}).items()}
        groups = tuple(user.get("groups") or ())
        return Caller(user.get("username", ""), user.get("uid", ""), groups, extra)

    def review_access(self, caller: Caller, key: Key, subresource: str, verb: str) -> bool:
        """Return what RBAC says (SubjectAccessReview), or whichever authorizer the API server has."""
        spec = {
            "user": caller.name,
            "uid": caller.uid,
            "groups": list(caller.groups),
            "extra": {name: list(values) for name, values in caller.extra.items()},
            "resourceAttributes": {
                "group": API_GROUP,
                "resource": PLURALS[key.kind],
                "subresource": subresource,
                "verb": verb,
                "namespace": key.namespace,
                "name": key.name,
            },
        }
        return bool(self._review("authorization.k8s.io/v1", "SubjectAccessReview", spec).get("allowed"))

    def _review(self, group: str, kind: str, spec: Mapping[str, Any]) -> dict[str, Any]:
        resource = f"{kind.lower()}s"
        body = {"apiVersion": group, "kind": kind, "spec": spec}
        try:
            status: dict[str, Any] = self._call("POST", f"/apis/{group}/{resource}", body).get("status", {})
        except Prerequisite:
            raise ClusterUnavailable(
                f"the Kubernetes API does not let the operator create {resource}:"
                " bind its ServiceAccount to the ClusterRole system:auth-delegator"
            ) from None
        return status

    # The Lease

    def lease(self, namespace: str, name: str) -> Record | None:
        """Return what stands in a Lease; None where there is none."""
        try:
            body = self._call("GET", _lease_path(namespace, name))
        except NotFound:
            return None
        return _record(body)

    def write_lease(self, namespace: str, name: str, record: Record) -> Record:
        """Make a Lease, or write the one that was read."""
        body: dict[str, Any] = {
            "apiVersion": _LEASES,
            "kind": "Lease",
            "metadata": {"name": name, "namespace": namespace, "labels": {MANAGED_BY: _MANAGER}},
            "spec": {
                "holderIdentity": record.holder,
                "leaseDurationSeconds": int(record.duration_seconds),
                "leaseTransitions": record.transitions,
                "acquireTime": record.acquired_at,
                "renewTime": record.renewed_at,
            },
        }
        if not record.version:
            path = _lease_path(namespace, name).rpartition("/")[0]
            return _record(self._call("POST", path, body))
        body["metadata"]["resourceVersion"] = record.version
        return _record(self._call("PUT", _lease_path(namespace, name), body))

    # One call

    def _call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content: str = "application/json",
        token: str | None = None,
    ) -> dict[str, Any]:
        if method != "GET":
            self.may()
        headers = {"Accept": "application/json", "Content-Type": content}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        try:
            request = self._client.param_serialize(
                method,
                path,
                header_params=headers,
                body=body,
                auth_settings=[] if token is not None else ["BearerToken"],
            )
            response = self._client.call_api(*request, _request_timeout=_timeout(path))
            text: bytes = response.read()  # type: ignore[no-untyped-call]
        except (ApiException, urllib3.exceptions.HTTPError, OSError) as error:
            raise ClusterUnavailable(f"the API server does not answer: {_root(error)}") from None
        if response.status == 401 and token is not None:
            raise Unauthenticated("the API server does not take the token")
        if response.status >= 400:
            raise _refusal(response.status, method, path, text)
        answer: dict[str, Any] = json.loads(text)
        return answer


def _refusal(status: int, method: str, path: str, text: bytes) -> PolarisError:
    """Return our error for what the API server said."""
    try:
        said = json.loads(text)["message"]
    except (ValueError, KeyError, TypeError):
        said = text[:500].decode(errors="replace")
    message = f"{method} {path.partition('?')[0]}: {said}"
    if status == 404:
        return NotFound(message)
    if status == 409:
        return Conflict(message)
    if status == 403:
        return Prerequisite(f"the API server forbids it to the operator: {message}")
    if status in (400, 422):
        return InvalidManifest(message)
    return ClusterUnavailable(f"{status}: {message}")


def _root(error: BaseException) -> BaseException:
    """Return the innermost cause: urllib3's wrappings name objects, and so differ each time."""
    inside = (getattr(error, "reason", None), *error.args)
    cause = next((inner for inner in inside if isinstance(inner, BaseException)), None)
    return error if cause is None else _root(cause)


# --- between JSON and our values


def _path(key: Key) -> str:
    return f"/apis/{_API}/namespaces/{quote(key.namespace)}/{PLURALS[key.kind]}/{quote(key.name)}"


def _secret_path(namespace: str, name: str) -> str:
    return f"/api/v1/namespaces/{quote(namespace)}/secrets/{quote(name)}"


def _timeout(path: str) -> tuple[int, int]:
    return _LEASE_TIMEOUT if path.startswith(f"/apis/{_LEASES}/") else _TIMEOUT


def _lease_path(namespace: str, name: str) -> str:
    return f"/apis/{_LEASES}/namespaces/{quote(namespace)}/leases/{quote(name)}"


def _record(body: Mapping[str, Any]) -> Record:
    spec = body.get("spec") or {}
    return Record(
        holder=spec.get("holderIdentity") or "",
        duration_seconds=spec.get("leaseDurationSeconds") or DURATION_SECONDS,
        transitions=spec.get("leaseTransitions") or 0,
        acquired_at=spec.get("acquireTime") or "",
        renewed_at=spec.get("renewTime") or "",
        version=body["metadata"]["resourceVersion"],
    )


def _reference(resource: Resource) -> dict[str, Any]:
    return {
        "apiVersion": _API,
        "kind": resource.key.kind,
        "name": resource.key.name,
        "uid": resource.uid,
    }


def _resource(kind: Kind, body: Mapping[str, Any]) -> Resource:
    metadata = body["metadata"]
    deleted = metadata.get("deletionTimestamp")
    return Resource(
        key=Key(kind, metadata["namespace"], metadata["name"]),
        uid=metadata["uid"],
        generation=metadata["generation"],
        resource_version=metadata["resourceVersion"],
        spec=body.get("spec", {}),
        status=body.get("status", {}),
        # Not all: kubectl keeps a copy of the whole manifest in one.
        annotations={
            name: value
            for name, value in (metadata.get("annotations") or {}).items()
            if name.startswith(f"{API_GROUP}/")
        },
        finalizers=tuple(metadata.get("finalizers") or ()),
        deleted_at=None if deleted is None else datetime.fromisoformat(deleted),
    )


def _secret(body: Mapping[str, Any]) -> Secret:
    metadata = body["metadata"]
    owner = next(
        (
            reference["uid"]
            for reference in metadata.get("ownerReferences") or ()
            if reference["apiVersion"].partition("/")[0] == API_GROUP
        ),
        None,
    )
    data = {
        key: base64.b64decode(value).decode(errors="replace")
        for key, value in (body.get("data") or {}).items()
    }
    return Secret(data, owner, metadata["resourceVersion"])


def _newer(one: Resource, other: Resource) -> bool:
    """Whether `one` was written later: resourceVersions are numbers that grow (KEP-5504)."""
    if one.resource_version.isdecimal() and other.resource_version.isdecimal():
        return int(one.resource_version) > int(other.resource_version)
    return one.resource_version != other.resource_version


def _asks_more(one: Resource, other: Resource) -> bool:
    return (one.uid, one.generation, one.annotations, one.finalizers, one.deleted_at) != (
        other.uid,
        other.generation,
        other.annotations,
        other.finalizers,
        other.deleted_at,
    )
