from __future__ import annotations

import os
import pwd
import shutil
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import psutil
import psycopg2
import pytest

from parts import ordinary, servers
from parts.processes import crash, family, wait
from parts.servers import Database, connect, run
from polaris.errors import Conflict, DatabaseUnavailable, Prerequisite
from polaris_cli.up import postgres as module
from polaris_cli.up.postgres import LocalPostgres, PostgresServer
from polaris_cli.up.process import has_ended

AS_ROOT = os.geteuid() == 0

pytestmark = pytest.mark.postgres


@pytest.fixture
def folder() -> Iterator[Path]:
    with servers.open_folder() as made:
        yield made / "postgres"


@pytest.fixture(scope="module")
def initialised() -> Iterator[Path]:
    with servers.running(servers.postgres18()) as server:
        server.stop()
        yield server.folder


@pytest.fixture
def server(folder: Path, initialised: Path) -> Iterator[LocalPostgres]:
    subprocess.run(["cp", "--archive", initialised, folder], check=True)  # quicker than initdb
    made = LocalPostgres(folder, fsync=False)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def remember(server: LocalPostgres, word: str) -> None:
    run(server.superuser_dsn, "CREATE TABLE IF NOT EXISTS words (word text)")
    run(server.superuser_dsn, "INSERT INTO words VALUES (%s)", word)


def words(server: LocalPostgres) -> list[str]:
    return [word for (word,) in run(server.superuser_dsn, "SELECT word FROM words ORDER BY word")]


def test_it_starts_with_pgvector_and_utf8_and_sorts_by_code_point(vector_postgres: LocalPostgres) -> None:
    dsn = vector_postgres.superuser_dsn
    assert run(dsn, "SHOW server_version") == [(vector_postgres.installation.version,)]
    assert run(dsn, "SHOW server_encoding") == [("UTF8",)]
    assert run(dsn, "SELECT 'B' < 'a' AND 'z' < 'á' AND upper('ç') = 'Ç'") == [(True,)]
    assert run(dsn, "SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'") == [(1,)]


def test_the_versions_are_those_that_the_tests_are_meant_for(any_postgres: LocalPostgres) -> None:
    assert any_postgres.installation.major in (15, 16, 18)


def test_it_listens_on_the_loopback_only_and_asks_for_a_password(postgres: LocalPostgres) -> None:
    listening = [c.laddr for c in psutil.Process(postgres.pid).net_connections() if c.status == "LISTEN"]
    assert listening == [("127.0.0.1", postgres.port)]
    with pytest.raises(psycopg2.OperationalError, match="no password supplied"):
        psycopg2.connect(
            host=postgres.host, port=postgres.port, user=postgres.superuser, passfile="/dev/null"
        )


def test_a_second_start_finds_its_data_its_password_and_its_port(server: LocalPostgres) -> None:
    remember(server, "kept")
    before = server.superuser_dsn
    server.stop()
    server.start()
    assert server.superuser_dsn == before
    assert words(server) == ["kept"]


def test_it_is_safe_by_default_and_without_fsync_only_where_that_is_asked_for(
    folder: Path, postgres: LocalPostgres
) -> None:
    safe = LocalPostgres(folder)
    try:
        safe.start()
        assert run(safe.superuser_dsn, "SHOW fsync") == [("on",)]
    finally:
        safe.stop()
    assert run(postgres.superuser_dsn, "SHOW fsync") == [("off",)]


def test_killed_with_all_its_processes_it_has_what_was_committed(server: LocalPostgres) -> None:
    remember(server, "committed")
    crash(server, *family(server.pid))
    server.start()
    assert words(server) == ["committed"]


def test_a_backend_that_outlives_its_killed_postmaster_does_not_keep_it_down(
    server: LocalPostgres,
) -> None:
    remember(server, "committed")
    with closing(connect(server.superuser_dsn)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        backend = psutil.Process((cursor.fetchone() or (0,))[0])

        def count_for_ever() -> None:  # it looks at nothing while it counts
            with suppress(psycopg2.OperationalError):
                cursor.execute("SELECT count(*) FROM generate_series(1, 1e12::bigint)")

        counting = threading.Thread(target=count_for_ever)
        counting.start()
        backend.suspend()  # now it certainly can't notice
        crash(server)
        server.start()
        counting.join()
    assert has_ended(backend)
    assert words(server) == ["committed"]


def test_a_pid_file_that_names_another_process_does_not_keep_it_down(server: LocalPostgres) -> None:
    server.stop()
    owner = server.data.stat().st_uid
    with subprocess.Popen(["sleep", "600"], user=owner if AS_ROOT else None) as other:
        try:
            (server.data / "postmaster.pid").write_text(f"{other.pid}\n{server.data}\n1\n5432\n\n\n\n")
            os.chown(server.data / "postmaster.pid", owner, -1)
            server.start()
            assert other.poll() is None
        finally:
            other.kill()


def test_a_first_start_that_was_cut_short_begins_anew(folder: Path) -> None:
    (folder / "data.new").mkdir(parents=True)
    (folder / "data.new" / "PG_VERSION").write_text("half")
    server = LocalPostgres(folder, fsync=False)
    try:
        server.start()
        assert run(server.superuser_dsn, "SELECT 1") == [(1,)]
    finally:
        server.stop()


def test_where_its_port_was_taken_it_remembers_another(server: LocalPostgres) -> None:
    before = server.port
    server.stop()
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", before))
        squatter.listen()
        server.start()
        assert server.port != before
        assert run(server.superuser_dsn, "SELECT 1") == [(1,)]


def test_a_second_owner_of_the_folder_is_told_who_has_it(server: LocalPostgres) -> None:
    with pytest.raises(Conflict, match=rf"{server.folder} \(process {os.getpid()}\)"):
        LocalPostgres(server.folder).start()
    assert run(server.superuser_dsn, "SELECT 1") == [(1,)]


def test_what_keeps_it_from_starting_is_said_with_its_log(folder: Path) -> None:
    server = LocalPostgres(folder, fsync=False, settings={"shared_buffers": "much"})
    with pytest.raises(DatabaseUnavailable, match=r"FATAL: .*polaris\.conf.*postgres\.log"):
        server.start()
    assert server.pid is None


def test_without_its_password_it_says_so_and_not_that_a_file_is_not_there(server: LocalPostgres) -> None:
    server.stop()
    (server.folder / "superuser.password").unlink()
    with pytest.raises(Prerequisite, match=r"superuser\.password is missing"):
        server.start()


def test_the_password_is_for_the_owner_only(server: LocalPostgres) -> None:
    assert stat.S_IMODE((server.folder / "superuser.password").stat().st_mode) == 0o600
    assert stat.S_IMODE(server.log_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(server.data.stat().st_mode) == 0o700


@pytest.mark.parametrize(("free", "kind"), [(64 << 20, "mmap"), (1 << 30, "posix")])
def test_parallel_workers_share_files_where_shared_memory_is_small(
    monkeypatch: pytest.MonkeyPatch, free: int, kind: str
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(free, 0, free))
    assert module._shared_memory_kind() == kind


def test_it_dies_with_the_process_that_started_it(folder: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from polaris_cli.up.postgres import LocalPostgres\n"
        "server = LocalPostgres(Path(sys.argv[1]), fsync=False); server.start()\n"
        "print(server.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, folder], stdout=subprocess.PIPE, text=True
    ) as owner:
        try:
            assert owner.stdout is not None
            started = family(int(owner.stdout.readline()))
        finally:
            owner.kill()
    wait(started)


def test_databases_of_two_tests_do_not_meet(
    vector_postgres: LocalPostgres, fresh_database: Callable[[PostgresServer], Database]
) -> None:
    one, other = fresh_database(vector_postgres), fresh_database(vector_postgres)
    run(one.dsn, "CREATE TABLE mine (v vector(3))")
    assert run(other.dsn, "SELECT to_regclass('mine')") == [(None,)]


if AS_ROOT:

    def test_as_root_the_server_is_an_ordinary_user(server: LocalPostgres) -> None:
        uid = pwd.getpwnam(module.SERVER_USER).pw_uid
        assert {process.uids().effective for process in family(server.pid)} == {uid}

    def test_a_data_folder_that_the_server_may_not_reach_is_named(folder: Path) -> None:
        closed = folder.parent / "closed"
        closed.mkdir(mode=0o700)
        with pytest.raises(Prerequisite, match=f"may not pass through {closed} to") as refused:
            LocalPostgres(closed / "data" / "postgres").start()
        assert refused.value.remedy.startswith(f"chmod o+x {closed} ")

    def test_programs_in_a_closed_folder_are_copied_to_the_open_one(folder: Path) -> None:
        closed = folder.parent / "closed"
        closed.mkdir(mode=0o700)
        installation = servers.postgres18().copied_to(closed)
        server = LocalPostgres(folder, installation=installation, fsync=False)
        try:
            server.start()
            run(server.superuser_dsn, "CREATE EXTENSION vector")
            assert psutil.Process(server.pid).exe().startswith(str(folder))
        finally:
            server.stop()

    def test_data_that_another_user_made_is_refused_by_name(server: LocalPostgres) -> None:
        server.stop()
        os.chown(server.data, 0, 0)
        with pytest.raises(Prerequisite, match="belongs to the user root"):
            server.start()


if AS_ROOT and ordinary.python():

    def test_an_ordinary_user_runs_it_as_himself(folder: Path) -> None:
        shutil.chown(folder.parent, ordinary.USER)
        program = (
            "import sys, psutil; from pathlib import Path; from parts.servers import run\n"
            "from polaris_cli.up.postgres import LocalPostgres\n"
            "server = LocalPostgres(Path(sys.argv[1]))\n"
            "server.start(); run(server.superuser_dsn, 'CREATE TABLE kept ()')\n"
            "postmaster = psutil.Process(server.pid); postmaster.kill(); postmaster.wait()\n"
            "server.start(); run(server.superuser_dsn, 'TABLE kept')\n"
            "print(psutil.Process(server.pid).username()); server.stop()"
        )
        done = ordinary.run([ordinary.python() or "", "-P", "-c", program, str(folder)])
        assert done.stdout == f"{ordinary.USER}\n", done.stderr
