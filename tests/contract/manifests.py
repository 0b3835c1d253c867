"""Manifests that must be accepted or rejected, and what a person is told.

The same table is judged by the real API server and by the models, so that neither is more lenient.
Each entry is a sentence, the kind, what is merged into a minimal manifest, and the expected words
(None: accepted). `REMOVE` takes a field away.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

REMOVE = object()

MINIMAL: dict[str, dict[str, Any]] = {
    "PolarisDatabase": {
        "host": "postgres.rag.svc",
        "database": "polaris",
        "credentials": {"secretRef": {"name": "polaris-admin"}},
    },
    "PolarisIndex": {
        "databaseRef": {"name": "main"},
        "embedding": {"model": "multilingual-e5-small", "dimension": 384},
    },
}


@dataclass(frozen=True)
class Case:
    """One manifest: a sentence about it, and the words of its rejection (None: accepted)."""

    sentence: str
    kind: str
    change: dict[str, Any]
    words: str | None = None
    name: str = "case"

    def manifest(self, namespace: str) -> dict[str, Any]:
        """The whole object."""
        return {
            "apiVersion": "polaris.dev/v1alpha1",
            "kind": self.kind,
            "metadata": {"name": self.name, "namespace": namespace},
            "spec": merged(MINIMAL[self.kind], self.change),
        }


def merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Merge as a JSON merge patch would, with REMOVE for null."""
    result = deepcopy(base)
    for key, value in change.items():
        if value is REMOVE:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result


def _vault(**more: Any) -> dict[str, Any]:
    vault = {
        "address": "https://openbao.vault.svc:8200",
        "auth": {"kubernetes": {"role": "polaris", "serviceAccountName": "polaris-vault"}},
    }
    return {"credentials": {"secretRef": REMOVE, "vault": merged(vault, more)}}


def _index(sentence: str, change: dict[str, Any], words: str | None = None, **more: str) -> Case:
    return Case(sentence, "PolarisIndex", change, words, **more)


def _database(sentence: str, change: dict[str, Any], words: str | None = None) -> Case:
    return Case(sentence, "PolarisDatabase", change, words)


_ACCESS = {"name": "reporting", "secretName": "handbook-reporting"}

CASES: tuple[Case, ...] = (
    # Accepted.
    _index("an index needs a database, a model and a dimension only", {}),
    _index("an index may be exact", {"index": {"type": "exact"}}),
    _index("a halfvec has up to 4000 dimensions", {"embedding": {"dimension": 4000}}),
    _index("a vector has up to 2000", {"embedding": {"dimension": 2000, "type": "vector"}}),
    _index("efConstruction may be just twice m", {"index": {"m": 32, "efConstruction": 64}}),
    _index("overlap may be just half of a chunk", {"chunking": {"maxTokens": 80, "overlapTokens": 40}}),
    _index(
        "attributes of each type",
        {
            "attributes": [
                {"name": f"a_{kind}", "type": kind}
                for kind in ("keyword", "integer", "number", "boolean", "datetime")
            ]
        },
    ),
    _index("access with a Secret of its own", {"access": [_ACCESS]}),
    _index("a name of 48 characters", {}, name="n" * 48),
    _index(
        "everything may be written out",
        {
            "search": {"targetRecallPercent": 95, "mode": "dense"},
            "tenancy": {"mode": "none"},
            "build": {"maintenanceWorkMem": "2Gi", "parallelWorkers": 0, "deadlineSeconds": 60},
            "drift": "Report",
            "deletionPolicy": "Delete",
            "deletionDeadlineSeconds": 30,
            "suspend": True,
            "backend": "pgvector",
        },
    ),
    _database("a database needs a host, a name and a login only", {}),
    _database("a login from Vault by a ServiceAccount", _vault()),
    _database(
        "a login from Vault by a token",
        _vault(auth={"kubernetes": REMOVE, "token": {"secretRef": {"name": "t", "key": "token"}}}),
    ),
    _database(
        "a login from Vault by an AppRole",
        _vault(
            auth={"kubernetes": REMOVE, "appRole": {"roleId": "r", "secretRef": {"name": "s", "key": "id"}}}
        ),
    ),
    _database("all namespaces", {"allowedNamespaces": ["*"]}),
    _database("some namespaces", {"allowedNamespaces": ["rag", "team-a"]}),
    _database("no TLS, written out", {"tls": {"mode": "disable"}}),
    # Rejected: what is missing.
    _index("no embedding", {"embedding": REMOVE}, "spec.embedding: Required value"),
    _index("no model", {"embedding": {"model": REMOVE}}, "spec.embedding.model: Required value"),
    _index("no dimension", {"embedding": {"dimension": REMOVE}}, "spec.embedding.dimension: Required value"),
    _index("no database", {"databaseRef": REMOVE}, "spec.databaseRef: Required value"),
    _database("no host", {"host": REMOVE}, "spec.host: Required value"),
    _database(
        "no login", {"credentials": {"secretRef": REMOVE}}, "exactly one of vault and secretRef must be set"
    ),
    # Rejected: what is unknown or of another type.
    _index("an unknown field", {"shards": 3}, 'unknown field "spec.shards"'),
    _index("an unknown field further down", {"index": {"lists": 100}}, 'unknown field "spec.index.lists"'),
    _index("a dimension in quotes", {"embedding": {"dimension": "384"}}, "spec.embedding.dimension"),
    _index("suspend as a word", {"suspend": "yes"}, "spec.suspend"),
    _index("attributes as a mapping", {"attributes": {"lang": "keyword"}}, "spec.attributes"),
    _database("a port as a word", {"port": "postgres"}, "spec.port"),
    # Rejected: limits.
    _index("dimension 0", {"embedding": {"dimension": 0}}, "spec.embedding.dimension"),
    _index("dimension 4001", {"embedding": {"dimension": 4001}}, "spec.embedding.dimension"),
    _index(
        "a vector of 2001 dimensions",
        {"embedding": {"dimension": 2001, "type": "vector"}},
        "a vector has at most 2000 dimensions: use type halfvec, which has up to 4000",
    ),
    _index(
        "efConstruction below twice m",
        {"index": {"m": 33, "efConstruction": 64}},
        "efConstruction must be at least twice m",
    ),
    _index(
        "m alone raised beyond half of the default efConstruction",
        {"index": {"m": 40}},
        "efConstruction must be at least twice m",
    ),
    _index("m of 1", {"index": {"m": 1}}, "spec.index.m"),
    _index(
        "overlap beyond half of a chunk",
        {"chunking": {"maxTokens": 64, "overlapTokens": 33}},
        "overlapTokens must be at most half of maxTokens",
    ),
    _index(
        "maxTokens alone below the default overlap",
        {"chunking": {"maxTokens": 64}},
        "overlapTokens must be at most half of maxTokens",
    ),
    _index(
        "recall of 101 percent", {"search": {"targetRecallPercent": 101}}, "spec.search.targetRecallPercent"
    ),
    _index(
        "memory without a unit",
        {"build": {"maintenanceWorkMem": "268435456"}},
        "spec.build.maintenanceWorkMem",
    ),
    _index(
        "an attribute in capitals",
        {"attributes": [{"name": "Lang", "type": "keyword"}]},
        "spec.attributes[0].name",
    ),
    _index(
        "an attribute twice",
        {"attributes": [{"name": "lang", "type": "keyword"}, {"name": "lang", "type": "integer"}]},
        "spec.attributes[1]: Duplicate value",
    ),
    _index(
        "33 attributes",
        {"attributes": [{"name": f"a{n}", "type": "keyword"} for n in range(33)]},
        "spec.attributes: Too many",
    ),
    _index(
        "access twice by one name",
        {"access": [_ACCESS, {**_ACCESS, "secretName": "other"}]},
        "spec.access[1]: Duplicate value",
    ),
    _index(
        "two accesses into one Secret",
        {"access": [_ACCESS, {**_ACCESS, "name": "other"}]},
        "each entry of access must have a Secret of its own",
    ),
    _index("a name of 49 characters", {}, "metadata.name must have at most 48 characters", name="n" * 49),
    _database("port 0", {"port": 0}, "spec.port"),
    _database("a host with a password in it", {"host": "user:pw@host"}, "spec.host"),
    _database(
        "both logins at once",
        merged(_vault(), {"credentials": {"secretRef": {"name": "x"}}}),
        "exactly one of vault and secretRef must be set",
    ),
    _database(
        "two ways to log in to Vault",
        _vault(auth={"token": {"secretRef": {"name": "t", "key": "token"}}}),
        "exactly one of kubernetes, token and appRole must be set",
    ),
    _database(
        "Vault's address with a path", _vault(address="https://vault/v1/x"), "spec.credentials.vault.address"
    ),
    _database(
        "Vault's address that is a file",
        _vault(address="file:///etc/passwd"),
        "spec.credentials.vault.address",
    ),
    _database(
        "one Secret for both logins",
        {"logins": {"query": {"secretName": "x"}, "worker": {"secretName": "x"}}},
        "query and worker must have Secrets of their own",
    ),
    # Rejected: what is not built yet is in no enum yet.
    _index("tenants are not isolated yet", {"tenancy": {"mode": "isolated"}}, "spec.tenancy.mode"),
    _index("search is not hybrid yet", {"search": {"mode": "hybrid"}}, "spec.search.mode"),
    _index("no other engine yet", {"backend": "weaviate"}, "spec.backend"),
    _index("no personal data is masked yet", {"privacy": {"mask": ["cpf"]}}, 'unknown field "spec.privacy"'),
    _database("no TLS mode that only looks safe", {"tls": {"mode": "verify-ca"}}, "spec.tls.mode"),
)

# (sentence, kind, before, after, words of the rejection or None)
CHANGES: tuple[tuple[str, str, dict[str, Any], dict[str, Any], str | None], ...] = (
    (
        "an index stays in its database",
        "PolarisIndex",
        {},
        {"databaseRef": {"name": "other"}},
        "databaseRef cannot be changed: make another index and load it",
    ),
    (
        "an index stays in its database's namespace",
        "PolarisIndex",
        {},
        {"databaseRef": {"namespace": "other"}},
        "databaseRef cannot be changed: make another index and load it",
    ),
    (
        "a database stays that database",
        "PolarisDatabase",
        {},
        {"database": "other"},
        "database cannot be changed: make another PolarisDatabase",
    ),
    ("a database may move to another host", "PolarisDatabase", {}, {"host": "other.rag.svc"}, None),
    ("a model may be changed", "PolarisIndex", {}, {"embedding": {"model": "other", "dimension": 512}}, None),
    ("m may be changed", "PolarisIndex", {}, {"index": {"m": 24}}, None),
    (
        "an attribute may be added",
        "PolarisIndex",
        {},
        {"attributes": [{"name": "lang", "type": "keyword"}]},
        None,
    ),
    ("an index may be suspended", "PolarisIndex", {}, {"suspend": True}, None),
)
