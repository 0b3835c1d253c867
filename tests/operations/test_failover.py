"""What 202 promises when the primary is lost and a standby takes its place: as the page says."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from mission.system import wait_for
from operations.replication import NAME, crash, pair, set_up
from operations.site import (
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
from scenes.middle import address
from soak import times

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(300)]


class Writer:
    """Puts one document after the other, and remembers what was said of each."""

    def __init__(self, of: Site) -> None:
        self._site = of
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self.acknowledged: list[str] = []
        self.refused: set[tuple[int, str]] = set()
        """Status and code of what was not 202."""

    def _write(self) -> None:
        with httpx.Client(base_url=self._site.url, timeout=60) as http:
            number = 0
            while not self._end.wait(0.01):
                number += 1
                answer = http.put(f"{self._site.path()}/documents/d{number}", json={"text": f"text {number}"})
                if answer.status_code == httpx.codes.ACCEPTED:
                    self.acknowledged.append(f"d{number}")
                else:
                    self.refused.add((answer.status_code, answer.json()["code"]))
                    self._end.wait(0.2)

    def until(self, more: int) -> None:
        """Wait until so many more were acknowledged."""
        wanted = len(self.acknowledged) + more
        wait_for(f"{more} more documents", lambda: len(self.acknowledged) >= wanted)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Write as long as the context."""
        self._thread.start()
        try:
            yield
        finally:
            self._end.set()
            self._thread.join()


def _present(of: Site) -> set[str]:
    """All documents that the index has."""
    found: set[str] = set()
    after = ""
    while True:
        answer = of.http.get(f"{of.path()}/documents", params={"limit": 1000, "after": after}).json()
        ids = [document["id"] for document in answer["documents"]]
        if not ids:
            return found
        found.update(ids)
        after = ids[-1]


@pytest.mark.soak
def test_with_a_synchronous_standby_no_acknowledged_document_is_lost(folder: Path) -> None:
    with embedding() as (_, url), pair(folder) as (primary, standby):
        leads_to = [primary.port]
        with address(leads_to) as port, site(folder / "site", url) as polaris:
            grant(primary)
            polaris.start()
            polaris.put(database_manifest(port))
            polaris.put(index_manifest())
            shell("synchronous_standby_names", installation=primary.installation, PRIMARY=uri(primary))
            wait_for(
                "the standby to be waited for",
                lambda: (
                    execute(
                        primary.superuser_dsn,
                        "SELECT sync_state FROM pg_stat_replication WHERE application_name = %s",
                        NAME,
                    )
                    == [("quorum",)]
                ),
            )
            writer = Writer(polaris)
            with writer.writing():
                writer.until(times(20, 1000))
                crash(primary)
                polaris.wait("PolarisIndex", "handbook", "DatabaseUnavailable")
                wait_for("a 503", lambda: bool(writer.refused))
                standby.promote()
                leads_to[0] = standby.port
                writer.until(20)
            polaris.wait("PolarisIndex", "handbook")
            assert {status for status, _ in writer.refused} <= {503, 504}
            assert set(writer.acknowledged) <= _present(polaris)
            polaris.level()
            hits = polaris.search(query=f"text {writer.acknowledged[0][1:]}", k=1000)
            assert set(writer.acknowledged) <= {hit["document"] for hit in hits}


def test_with_an_asynchronous_standby_what_it_had_not_heard_of_is_lost_and_can_be_put_again(
    folder: Path,
) -> None:
    with embedding() as (_, url), pair(folder) as (primary, standby), site(folder / "site", url) as polaris:
        grant(primary)
        polaris.start()
        polaris.put(database_manifest(primary.port))
        polaris.put(index_manifest())
        early = [{"id": f"early{n}", "text": f"text {n}"} for n in range(5)]
        late = [{"id": f"late{n}", "text": f"text {n}"} for n in range(5)]
        polaris.load(early)
        polaris.level()
        (position,) = execute(primary.superuser_dsn, "SELECT pg_current_wal_lsn()")[0]
        replayed = "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn"
        wait_for("the standby", lambda: execute(standby.superuser_dsn, replayed, position) == [(True,)])
        # It does not hear of what is written from now on: a lag.
        set_up(standby, primary_conninfo="")
        gone = "SELECT count(*) FROM pg_stat_replication"
        wait_for("the standby to be cut off", lambda: execute(primary.superuser_dsn, gone) == [(0,)])
        results = polaris.load(late)
        assert [result["status"] for result in results] == [202] * 5
        crash(primary)
        standby.promote()
        polaris.put(database_manifest(standby.port), wait=False)
        polaris.answers_again()
        wait_for(
            "the promoted one to be served",
            lambda: polaris.http.get(f"{polaris.path()}/documents/late0").status_code == 404,
        )
        assert _present(polaris) == {line["id"] for line in early}
        again = polaris.load([*early, *late])
        assert [result["status"] for result in again] == [200] * 5 + [202] * 5
        polaris.wait("PolarisIndex", "handbook")
        polaris.level()
        assert {hit["document"] for hit in polaris.search(query="text 3", k=20)} == _present(polaris)
