"""PostgreSQL and pgvector are upgraded below an index that serves: as the page on operations says."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from mission.system import wait_for
from operations.site import (
    DATABASE,
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
from polaris_cli.up.postgres import LocalPostgres
from polaris_cli.up.process import write_private

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(300)]

DOCUMENTS = [{"id": f"d{n}", "text": f"Text {n} of leave and travel."} for n in range(50)]


def _upgrade(old: LocalPostgres, new: LocalPostgres) -> None:
    """What the page says, as the server's own user, in a folder that it may write to."""
    new.start()  # copies the programs where its user can't reach them
    new.stop()
    shutil.rmtree(new.data)
    owner = old.data.stat()
    working = new.folder / "working"
    working.mkdir()
    password = working / "password"
    write_private(password, old.password)
    for path in (working, password):
        os.chown(path, owner.st_uid, owner.st_gid)
    new.folder.chmod(0o777)
    shell(
        "pg_upgrade",
        installation=new.installation,
        cwd=working,
        user=owner.st_uid,
        PGPASSWORD=old.password,
        OLD_PROGRAMS=str(old.installation.binaries),
        NEW_PROGRAMS=str(new.installation.binaries),
        OLD_DATA=str(old.data),
        NEW_DATA=str(new.data),
        LC_ALL="C.UTF-8",
    )
    new.folder.chmod(0o711)
    with (new.data / "postgresql.conf").open("a") as conf:
        conf.write("include 'polaris.conf'\n")
    write_private(new.folder / "superuser.password", old.password)
    (new.folder / "port").write_text(str(old.port))


def test_from_postgresql_16_to_18_by_pg_upgrade_and_then_pgvector_with_nothing_embedded_again(
    folder: Path,
) -> None:
    old = LocalPostgres(folder / "old", installation=servers.postgres16(), fsync=False)
    new = LocalPostgres(folder / "new", installation=servers.postgres18(), fsync=False)
    with embedding() as (provider, url), site(folder / "site", url) as polaris:
        try:
            old.start()
            grant(old)
            polaris.start()
            polaris.put(database_manifest(old.port))
            polaris.put(index_manifest())
            polaris.load(DOCUMENTS)
            polaris.level()
            before = polaris.search(query="travel 7", k=10)
            embedded = provider.embedded
            assert polaris.status("PolarisDatabase", "main")["vectorVersion"] == "0.8.5"

            old.stop()
            polaris.wait("PolarisDatabase", "main", "DatabaseUnavailable")
            away = polaris.http.post(f"{polaris.path()}/search", json={"query": "travel"})
            assert away.status_code == 503
            assert "retry-after" in away.headers
            _upgrade(old, new)
            new.start()

            polaris.answers_again()
            wait_for(
                "the operator to see the new version",
                lambda: polaris.status("PolarisDatabase", "main")["serverVersion"].startswith("18."),
            )
            # PostgreSQL is new, and the extension's objects are those of before, with the new library.
            assert polaris.status("PolarisDatabase", "main")["vectorVersion"] == "0.8.5"
            polaris.wait("PolarisIndex", "handbook")
            assert polaris.search(query="travel 7", k=10) == before

            # One too old to be trusted: it is said what to do, and what serves goes on serving.
            execute(uri(new), "UPDATE pg_extension SET extversion = '0.8.3' WHERE extname = 'vector'")
            told = polaris.wait("PolarisDatabase", "main", "VersionUnsupported")
            assert told.endswith("run ALTER EXTENSION vector UPDATE")
            assert polaris.search(query="travel 7", k=10) == before
            shell("ALTER EXTENSION", installation=new.installation, NEW=uri(new, DATABASE))
            wait_for(
                "the operator to see the new extension",
                lambda: polaris.status("PolarisDatabase", "main")["vectorVersion"] == "0.8.6",
            )
            polaris.wait("PolarisDatabase", "main")
            polaris.wait("PolarisIndex", "handbook")
            assert polaris.search(query="travel 7", k=10) == before
            # Questions, and no document: three of them after the upgrade.
            assert provider.embedded - embedded <= 4
        finally:
            new.stop()
            old.stop()
