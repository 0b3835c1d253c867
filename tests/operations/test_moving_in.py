"""Moving in from a table of pgvector, as LangChain makes it: as the page on operations says."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from psycopg2.extras import execute_values

from docs.pages import block
from embed.doubles import HashedProvider
from operations.site import (
    MODEL,
    NAMESPACE,
    PAGE,
    database_manifest,
    embedding,
    grant,
    index_manifest,
    shell,
    site,
    uri,
)
from parts import servers
from polaris_service.embed.provider import Kind

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(300)]

OLD_TABLES = """
CREATE EXTENSION IF NOT EXISTS vector;
CREATE TABLE langchain_pg_collection (uuid uuid PRIMARY KEY, name varchar UNIQUE NOT NULL, cmetadata json);
CREATE TABLE langchain_pg_embedding (id varchar PRIMARY KEY, collection_id uuid REFERENCES
  langchain_pg_collection ON DELETE CASCADE, embedding vector, document varchar, cmetadata jsonb);
INSERT INTO langchain_pg_collection VALUES ('00000000-0000-0000-0000-000000000001', 'handbook', '{}'),
  ('00000000-0000-0000-0000-000000000002', 'another', '{}');
"""
# With what a format may stumble over: a backslash, a line's end, quotes, a character of four bytes.
HARD = 'C:\\new\\table "leave"\tof\nyear 😀 é'
TOPICS = ("leave", "travel", "expenses", "pensions")
QUESTIONS = ("travel of page 3", "who pays pensions?", HARD, "leave")


async def _fill(dsn: str, provider: HashedProvider) -> None:
    """What LangChain would have put there: pages of chunks, each with its vector."""
    texts, rows = [], []
    for topic in TOPICS:
        for page in range(15):
            text = HARD if (topic, page) == ("leave", 0) else f"Chunk {page} says of {topic} what is true."
            texts.append(text)
            metadata = {"source": f"{topic}.md", "page": page, "lang": "en", "loc": {"lines": [1, 2]}}
            rows.append((f"{topic}-{page:02}", text, json.dumps(metadata)))
    vectors = await provider.embed(MODEL, texts, Kind.PASSAGE)
    connection = servers.connect(dsn)
    try:
        with connection.cursor() as cursor:
            cursor.execute(OLD_TABLES)
            execute_values(
                cursor,
                "INSERT INTO langchain_pg_embedding (collection_id, id, document, cmetadata, embedding)"
                " VALUES %s",
                [
                    ("00000000-0000-0000-0000-000000000001", *row, str(vector.tolist()))
                    for row, vector in zip(rows, vectors, strict=True)
                ]
                + [("00000000-0000-0000-0000-000000000002", "other", "x", "{}", str(vectors[0].tolist()))],
            )
    finally:
        connection.close()


def _nearest(dsn: str, vector: np.ndarray) -> list[str]:
    found = servers.run(
        dsn,
        "SELECT document FROM langchain_pg_embedding WHERE cmetadata ? 'source'"
        " ORDER BY embedding <=> %s::vector, id LIMIT 10",
        str(vector.tolist()),
    )
    return [text for (text,) in found]


def test_a_langchain_table_moves_in_with_its_vectors_and_finds_the_same(folder: Path) -> None:
    with embedding() as (provider, url), servers.running(servers.postgres18()) as server:
        old = uri(server, "postgres")
        asyncio.run(_fill(old, provider))
        grant(server)
        with site(folder / "site", url) as polaris:
            polaris.start()
            polaris.put(database_manifest(server.port))
            manifest = yaml.safe_load(block(PAGE, "yaml", "type: vector"))
            spec = {**manifest["spec"], "databaseRef": {"name": "main"}}
            polaris.put(index_manifest(**spec))
            polaris.put(index_manifest("joined", **spec))
            embedded = provider.embedded
            ways = {"handbook": "one row, one document", "joined": "one source, one document"}
            for name, holding in ways.items():
                shell(
                    holding,
                    installation=server.installation,
                    cwd=folder,
                    change=lambda text: text.replace("team-a/", f"{NAMESPACE}/"),
                    OLD=old,
                    POLARIS_SERVER=polaris.url,
                )
                found = polaris.level(name)
                assert (found["chunks"], found["failed"]) == (60, 0)
            assert provider.embedded == embedded
            for question in QUESTIONS:
                (vector,) = asyncio.run(provider.embed(MODEL, [question], Kind.QUERY))
                wanted = _nearest(old, vector)
                assert [hit["text"] for hit in polaris.search(query=question, k=10)] == wanted
                assert [hit["text"] for hit in polaris.search(vector=vector.tolist(), k=10)] == wanted
                assert [hit["text"] for hit in polaris.search("joined", query=question, k=10)] == wanted
            (hit,) = polaris.search(query="pensions", k=1, filter={"eq": ["page", 7]})
            assert hit["attributes"] == {"lang": "en", "page": 7}
            assert hit["text"] == "Chunk 7 says of pensions what is true."
            whole = polaris.http.get(f"{polaris.path('joined')}/documents/leave.md").json()
            assert whole["text"].startswith(HARD)
