"""What the author of an object can make us send, and where to: nothing to an address of an index's author.

Beside these: a token that the API server takes is never handed out (`test_tokens`), and a server that asks
for the password in clear does not get it (`test_postgres`, the thief).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from chart.rendered import render
from polaris import crd
from polaris.errors import EmbedderRefused
from polaris.settings import WorkerSettings
from polaris_service.embed.registry import Embedders

ADDRESS = "https://attacker.example:8443/v1"


def _taken(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """The fields that an address could be written into."""
    if schema.get("type") == "string":
        fits = re.search(schema.get("pattern", ""), ADDRESS) and len(ADDRESS) <= schema.get("maxLength", 1e9)
        if fits and "enum" not in schema:
            yield path
    for name, inner in schema.get("properties", {}).items():
        yield from _taken(inner, f"{path}.{name}")
    if isinstance(schema.get("items"), dict):
        yield from _taken(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from _taken(schema["additionalProperties"], f"{path}{{}}")


@pytest.mark.unit
def test_an_index_has_no_field_that_an_address_could_be_written_into() -> None:
    made = crd.definition("PolarisIndex")
    schema = made["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    # What a model is called: it goes to the provider of the settings, in the body of a request.
    assert set(_taken(schema)) == {".embedding.model", ".embedding.revision"}


@pytest.mark.unit
def test_an_address_is_no_provider_and_neither_is_a_name_that_the_settings_do_not_know() -> None:
    embedders = Embedders.of(WorkerSettings.load({}, {"embedder": "https://embedder.rag.svc:8081"}))
    for name in (ADDRESS, "attacker"):
        with pytest.raises(EmbedderRefused, match="have no embedding provider"):
            embedders.get(name)


@pytest.mark.kubernetes
@pytest.mark.parametrize("scope", ["cluster", "namespaced"])
def test_a_database_is_written_by_who_was_given_the_role_for_it_and_by_nobody_else(scope: str) -> None:
    flags = ("--set=rbac.scope=namespaced", "--set=operator.installation=here")
    objects = render(*(flags if scope == "namespaced" else ()))
    roles = [o for o in objects if o["kind"] in {"Role", "ClusterRole"}]
    writers = {
        role["metadata"]["name"].removeprefix("polaris-")
        for role in roles
        for rule in role["rules"]
        if "polarisdatabases" in rule["resources"] and set(rule["verbs"]) & {"create", "delete", "*"}
    }
    assert writers == {"database-admin"}
    for role in roles:
        # Kubernetes' own `edit` and `admin` would take them in by such a label.
        assert not [name for name in role["metadata"].get("labels", {}) if "aggregate-to" in name]
        assert not any("*" in rule["resources"] + rule["verbs"] for rule in role["rules"])
