"""A second release of the service reads from a standby: as the page on scale says."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx
import pytest

from mission.system import wait_for
from operations.replication import crash, pair
from operations.site import (
    NAMESPACE,
    database_manifest,
    embedding,
    execute,
    grant,
    index_manifest,
    site,
    uri,
)

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(300)]


def test_a_service_that_reads_from_a_standby_waits_for_it_follows_logins_and_outlives_the_primary(
    folder: Path,
) -> None:
    with embedding() as (_, url), pair(folder) as (primary, standby), site(folder / "site", url) as polaris:
        grant(primary)
        polaris.start()
        polaris.put(database_manifest(primary.port))
        polaris.put(index_manifest())
        with polaris.add_reader(standby.port) as reader:
            # What it is asked for may not have arrived: it waits, as for a worker.
            execute(standby.superuser_dsn, "SELECT pg_wal_replay_pause()")
            written = polaris.load([{"id": "leave", "text": "Leave is 180 days."}])
            after = written[0]["sequence"]
            body = {"query": "leave", "after_sequence": after, "timeout_ms": 300}
            early = reader.post(f"{polaris.path()}/search", json=body)
            assert early.status_code == httpx.codes.GATEWAY_TIMEOUT
            execute(standby.superuser_dsn, "SELECT pg_wal_replay_resume()")
            found = reader.post(f"{polaris.path()}/search", json={**body, "timeout_ms": 20_000})
            assert [hit["document"] for hit in found.json()["hits"]] == ["leave"]

            refused = reader.put(f"{polaris.path()}/documents/x", json={"text": "x"})
            assert refused.status_code == httpx.codes.SERVICE_UNAVAILABLE
            assert "only reads" in refused.json()["detail"]

            # The operator hears of it by the primary, and so its login is replaced as any other.
            shutil.rmtree(polaris.data / "secrets" / NAMESPACE / "polaris-query")
            epochs = "SELECT epoch FROM polaris.consumers WHERE kind = 'query' ORDER BY 1"
            wait_for("both services to have moved", lambda: execute(uri(primary), epochs) == [(2,), (2,)])

            # Where the index is served is where documents are taken too.
            urls = "SELECT query_url FROM polaris.consumers WHERE query_url IS NOT NULL"
            assert execute(uri(primary), urls) == [(polaris.url,)]

            crash(primary)
            again = reader.post(f"{polaris.path()}/search", json={"query": "leave"})
            assert again.status_code == httpx.codes.OK
            assert polaris.http.get(polaris.path()).status_code == httpx.codes.SERVICE_UNAVAILABLE
