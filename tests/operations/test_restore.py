"""A lost installation, brought back from its manifests and a dump: as the page on operations says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from operations.site import (
    RIGHTS,
    Site,
    database_manifest,
    embedding,
    execute,
    grant,
    index_manifest,
    shell,
    site,
    uri,
)
from parts import servers

pytestmark = pytest.mark.postgres

TOPICS = ("leave", "travel", "expenses", "pensions", "training", "security")
DOCUMENTS = [
    {
        "id": f"{topic}/{number}",
        "text": f"{topic.title()} of kind {number}: whoever asks for {topic} gets {10 * number} days. " * 8,
        "attributes": {"topic": topic, "number": number},
    }
    for topic in TOPICS
    for number in range(8)
]
ATTRIBUTES = [{"name": "topic", "type": "keyword"}]
ACCESS = [{"name": "reporting", "secretName": "handbook-reporting"}]
QUESTION = "How many days of pensions of kind 3?"


def _seen(of: Site) -> dict[str, Any]:
    """What callers see of an index."""
    found = of.level()
    document = of.http.get(f"{of.path()}/documents/leave/1").json()
    return {
        "answer": of.answer(QUESTION),
        "filtered": of.search(query="travel", k=20, filter={"eq": ["topic", "travel"]}),
        "before": of.http.get(f"{of.path()}/documents/leave/1", params={"version": 1}).json()["text"],
        "document": document,
        "counts": (found["documents"], found["chunks"], found["generation"]),
    }


def _vectors(dsn: str) -> list[tuple[Any, ...]]:
    ((schema,),) = execute(dsn, "SELECT schema_name FROM polaris.indexes WHERE name = 'handbook'")
    return execute(
        dsn, f"SELECT document_id, ordinal, md5(embedding::text) FROM {schema}.g1_chunks ORDER BY 1, 2"
    )


@pytest.mark.timeout(300)
def test_a_lost_installation_comes_back_from_git_and_a_dump_with_nothing_embedded_again(folder: Path) -> None:
    with (
        embedding() as (provider, url),
        servers.running(servers.postgres18()) as old,
        servers.running(servers.postgres18()) as new,
    ):
        grant(old)
        with site(folder / "old", url) as lost:
            lost.start()
            lost.put(database_manifest(old.port))
            index = index_manifest(attributes=ATTRIBUTES, access=ACCESS)
            lost.put(index)
            lost.load(DOCUMENTS)
            lost.load([{**DOCUMENTS[1], "text": "Leave of kind 1 is 12 days now."}])
            before = _seen(lost)
            label = lost.status("PolarisIndex", "handbook")["catalog"]
            shell("pg_dump", installation=old.installation, cwd=folder, OLD=uri(old))
        vectors, embedded = _vectors(uri(old)), provider.embedded
        old.stop()

        shell(
            "pg_restore",
            installation=new.installation,
            cwd=folder,
            NEW=uri(new),
            NEW_SERVER=new.superuser_dsn,
        )
        execute(uri(new), RIGHTS)
        with site(folder / "new", url) as back:
            back.start()
            back.put(database_manifest(new.port))
            back.put(index, wait=False)
            assert f"polaris.dev/adopt: {label}" in back.wait("PolarisIndex", "handbook", "NotOwner")
            annotated = {**index["metadata"], "annotations": {"polaris.dev/adopt": label}}
            back.put({**index, "metadata": annotated})
            assert _vectors(uri(new)) == vectors
            asked = provider.embedded
            assert _seen(back) == before
            # Only the two questions: no document.
            assert provider.embedded == asked + 2
            assert asked == embedded
