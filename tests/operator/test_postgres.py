"""The door to PostgreSQL: who one is in it, what is fenced, and what its errors become."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psycopg2
import pytest

import polaris_migrations
from parts.servers import Database, connect
from parts.servers import run as run_as_superuser
from polaris.errors import (
    Conflict,
    DatabaseRefused,
    DatabaseUnavailable,
    DeadlineExceeded,
    NotOwner,
    PolarisError,
    Prerequisite,
    Refused,
    VaultUnavailable,
)
from polaris.spec import TlsMode
from polaris.sql import Sql
from polaris.status import Reason
from polaris_cli.up import ports
from polaris_cli.up.postgres import LocalPostgres
from polaris_operator import sessions
from polaris_operator.apply import apply
from polaris_operator.conditions.shared import blocked_by
from polaris_operator.doors import Doors
from polaris_operator.folder import FolderObjects
from polaris_operator.lease import Term
from polaris_operator.measurements import Measurements
from polaris_operator.objects import Key, Resource
from polaris_operator.postgres import Identity, Postgres, Server, is_pooled, run
from polaris_operator.steps import (
    Action,
    BuildIndex,
    DeleteVaultRole,
    ExecuteAlone,
    RevokeLease,
    RevokeLogin,
    Step,
    WriteVaultRole,
)
from polaris_operator.vault import TokenMethod, Vault
from polaris_operator.world.database import Process
from scenes.middle import pooler, thief
from scenes.roles import operator_login, operator_session, server_of

pytestmark = pytest.mark.postgres

ME = uuid.UUID(int=7)
Fresh = Callable[[LocalPostgres], Database]


@pytest.fixture
def database(postgres: LocalPostgres, fresh_database: Fresh) -> Database:
    return fresh_database(postgres)


@pytest.fixture
def door(database: Database) -> Iterator[Postgres]:
    """The door to a database with a catalog that this process has taken over."""
    with operator_session(database) as made:
        with made.unfenced() as connection:
            polaris_migrations.upgrade(connection)
        made.take_over(ME, "here", "process-1")
        yield made


def read(door: Postgres, *statements: str) -> None:
    with door.read() as connection:
        for statement in statements:
            run(connection, Sql(statement))


def read_while(door: Postgres, happens: Callable[[], None]) -> None:
    with door.read() as connection:
        happens()
        run(connection, Sql("SELECT 1"))


def cut_all(database: Database) -> None:
    others = "datname = %s AND pid <> pg_backend_pid()"
    cut = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"
    run_as_superuser(database.dsn, cut, database.name)


def write(door: Postgres, *statements: str) -> None:
    with door.write() as connection:
        for statement in statements:
            run(connection, Sql(statement))


def scalar(door: Postgres, statement: str) -> object:
    with door.read() as connection:
        return run(connection, Sql(statement)).scalar_one()


# --- who one is


def test_each_transaction_is_the_operators_role_and_sees_nobodys_functions(door: Postgres) -> None:
    assert scalar(door, "SELECT current_user::text") == "polaris_operator"
    assert scalar(door, "SHOW search_path") == "pg_catalog, public"
    assert str(scalar(door, "SHOW application_name")).partition("/work/")[2].startswith("1/")


def test_what_is_made_belongs_to_the_role_and_never_to_the_login(door: Postgres) -> None:
    with door.write() as connection:
        run(connection, Sql("CREATE TABLE polaris.made (a integer)"))
    assert scalar(door, "SELECT tableowner FROM pg_tables WHERE tablename = 'made'") == "polaris_operator"


def test_a_percent_sign_in_a_statement_is_a_percent_sign(door: Postgres) -> None:
    assert scalar(door, "SELECT '100%' || '%s' || '%(a)s'") == "100%%s%(a)s"


def test_reading_changes_nothing_and_sees_one_moment(door: Postgres, database: Database) -> None:
    with pytest.raises(Exception, match="read-only"), door.read() as connection:
        run(connection, Sql("CREATE TABLE polaris.made (a integer)"))
    with door.read() as connection:
        count = Sql("SELECT count(*) FROM polaris.installations")
        before = run(connection, count).scalar_one()
        run_as_superuser(
            database.dsn, "INSERT INTO polaris.installations (id, name) VALUES (gen_random_uuid(), 'x')"
        )
        assert run(connection, count).scalar_one() == before


def test_another_login_takes_the_place_of_the_first_while_that_one_ends_its_work(
    door: Postgres, database: Database
) -> None:
    run_as_superuser(database.dsn, "CREATE ROLE second_login LOGIN PASSWORD 'x' IN ROLE polaris_operator")
    try:
        with door.write() as connection:
            door.log_in(server_of(database), Identity("second_login", "x"))
            assert run(connection, Sql("SELECT session_user::text")).scalar_one() != "second_login"
        assert scalar(door, "SELECT session_user::text") == "second_login"
        with door.write():
            pass
    finally:
        door.close()
        run_as_superuser(database.dsn, "DROP ROLE second_login")


# --- the fence


def test_nothing_is_written_before_the_catalog_is_taken_over(database: Database) -> None:
    with operator_session(database) as door:
        with door.unfenced() as connection:
            polaris_migrations.upgrade(connection)
        with pytest.raises(Conflict), door.write():
            pass


def test_a_process_that_was_replaced_ends_what_it_is_in_and_begins_nothing(
    door: Postgres, database: Database
) -> None:
    with operator_session(database) as successor:
        with pytest.raises(DatabaseUnavailable):
            read_while(door, lambda: successor.take_over(ME, "here", "process-2"))
        assert door.fence is not None
        assert successor.fence is not None
        assert successor.fence.epoch == door.fence.epoch + 1
        with pytest.raises(NotOwner, match="process-2"), door.write():
            pass
        with pytest.raises(NotOwner):
            door.alone(ExecuteAlone(Sql("SELECT 1")))
        with successor.write():
            pass


def test_a_take_over_ends_a_transaction_that_holds_the_fence(door: Postgres, database: Database) -> None:
    """Whoever has it open may be frozen in it, and would hold the fence for as long as that lasts."""
    with operator_session(database) as successor:

        def go_on_too_late() -> None:
            with door.write() as connection:
                run(connection, Sql("CREATE TABLE polaris.made (a integer)"))
                successor.take_over(ME, "here", "process-2")

        with pytest.raises(DatabaseUnavailable):
            go_on_too_late()
        assert scalar(successor, "SELECT to_regclass('polaris.made')") is None
        with successor.write():
            pass


def test_a_migration_waits_for_no_process_that_was_replaced(database: Database) -> None:
    with operator_login(database) as identity:
        first, second = (
            Postgres(server_of(database), identity, process=Process(ME, "here", holder))
            for holder in ("process-1", "process-2")
        )

        def go_on_too_late() -> None:
            with first.unfenced() as frozen:
                polaris_migrations.upgrade(frozen)
                with second.unfenced() as connection:
                    polaris_migrations.upgrade(connection)

        with closing(first), closing(second):
            with pytest.raises(DatabaseUnavailable):
                go_on_too_late()
            second.take_over(ME, "here", "process-2")


def test_a_take_over_ends_nothing_of_another_installation_or_database(
    door: Postgres, database: Database, postgres: LocalPostgres, fresh_database: Fresh
) -> None:
    elsewhere = fresh_database(postgres)
    with (
        operator_session(database) as successor,
        operator_session(database) as theirs,
        operator_session(elsewhere) as same,
    ):
        theirs.take_over(uuid.uuid4(), "there", "process-1")
        with same.unfenced() as connection:
            polaris_migrations.upgrade(connection)
        same.take_over(ME, "here", "process-1")
        with theirs.write(), same.write():
            successor.take_over(ME, "here", "process-2")
    with pytest.raises(NotOwner), door.write():
        pass


def test_a_build_that_is_under_way_is_adopted_by_a_take_over(door: Postgres, database: Database) -> None:
    make_table(door)
    ended = threading.Event()
    concurrently = Sql(f"CREATE INDEX CONCURRENTLY {INDEX} ON polaris.made (a)")
    with (
        operator_session(database) as successor,
        closing(connect(database.dsn)) as holding,
        holding.cursor() as cursor,
    ):
        holding.autocommit = False
        cursor.execute("LOCK TABLE polaris.made IN SHARE MODE")
        assert door.start_build(
            replace(BUILD, statement=concurrently, settings={"lock_timeout": "0"}), ended.set
        )
        waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = %s"
        while not run_as_superuser(database.dsn, waits, database.name):
            time.sleep(0.01)
        successor.take_over(ME, "here", "process-2")
        successor.beat()
        holding.rollback()
        assert ended.wait(30)
        assert not successor.start_build(BUILD, ended.set)
    assert door.failures == {}


@contextlib.contextmanager
def a_build_of_nobody(door: Postgres) -> Iterator[None]:
    """The session of a process that is frozen before its build begins, or after it has ended."""
    server, login = door.server, door.identity
    with closing(
        psycopg2.connect(
            host=server.host,
            port=server.port,
            dbname=server.database,
            user=login.username,
            password=login.password,
            application_name=sessions.name(ME, "build", 1, "process-1"),
        )
    ) as session:
        session.autocommit = True
        session.cursor().execute("SELECT pg_advisory_lock(42)")
        yield


def test_a_build_that_nobody_begins_or_ends_keeps_no_other_waiting(
    door: Postgres, database: Database
) -> None:
    make_table(door)
    ended = threading.Event()
    with operator_session(database) as successor:
        with a_build_of_nobody(door):
            successor.take_over(ME, "here", "process-2")
            with a_build_of_nobody(door):  # It was under way when we took over.
                assert not successor.start_build(BUILD, ended.set)
                successor.beat()
                while not successor.start_build(BUILD, ended.set):
                    time.sleep(0.01)
        assert ended.wait(30)
        assert successor.failures == {}


@pytest.mark.parametrize(
    "action",
    [WriteVaultRole("role", "group"), DeleteVaultRole("role"), RevokeLease("id"), RevokeLogin(1, "a", "id")],
    ids=lambda action: type(action).__name__,
)
def test_who_was_replaced_asks_vault_nothing(
    door: Postgres, database: Database, tmp_path: Path, action: Action
) -> None:
    key = Key("PolarisDatabase", "team", "main")
    nobody = Vault(f"http://127.0.0.1:{ports.any_free()}", TokenMethod("none"))
    with (
        operator_session(database) as successor,
        closing(nobody),
        closing(FolderObjects(tmp_path / "manifests", tmp_path / "data")) as objects,
    ):
        doors = Doors(
            key,
            objects,
            door,
            nobody,
            None,
            Process(ME, "here", "process-1"),
            lambda _: None,
            Measurements(door),
        )
        step = Step(Reason.DELETED, "it is no longer needed", action)
        with pytest.raises(VaultUnavailable):
            apply([step], doors, Resource(key, "uid", 1, "", {}))
        successor.take_over(ME, "here", "process-2")
        with pytest.raises(NotOwner):
            apply([step], doors, Resource(key, "uid", 1, "", {}))


def test_who_only_looks_beside_an_operator_is_left_alone(door: Postgres, database: Database) -> None:
    """`polaris plan` is of the same installation."""
    with closing(
        Postgres(server_of(database), door.identity, process=Process(ME, "here", "process-2"))
    ) as looking:
        read_while(looking, door.beat)


def test_who_leads_no_more_begins_nothing(door: Postgres, database: Database) -> None:
    term = Term(float("inf"))
    with closing(
        Postgres(server_of(database), door.identity, process=Process(ME, "here", "process-2"), may=term.check)
    ) as frozen:
        frozen.take_over(ME, "here", "process-2")
        term.end()
        with pytest.raises(Conflict, match="does not lead"):
            frozen.take_over(ME, "here", "process-2")
        with pytest.raises(Conflict, match="does not lead"), frozen.write():
            pass
        with pytest.raises(Conflict, match="does not lead"), frozen.unfenced():
            pass
        with pytest.raises(Conflict, match="does not lead"):
            frozen.alone(ExecuteAlone(Sql("SELECT 1")))
        with pytest.raises(Conflict, match="does not lead"):
            frozen.start_build(BUILD, lambda: None)
        frozen.resign()
        assert frozen.builds() is None
    assert scalar(door, "SELECT heartbeat_at IS NOT NULL FROM polaris.installations") is True


def test_the_same_process_may_come_by_two_ways_and_fences_itself_from_neither(
    door: Postgres, database: Database
) -> None:
    with operator_session(database) as other_way:
        other_way.take_over(ME, "here", "process-1")
        assert other_way.fence == door.fence
        with door.write(), other_way.write():
            pass


def test_two_installations_do_not_fence_each_other(door: Postgres, database: Database) -> None:
    with operator_session(database) as theirs:
        theirs.take_over(uuid.UUID(int=8), "there", "process-1")
        with door.write(), theirs.write():
            pass


def test_a_catalog_that_was_made_anew_is_to_be_taken_over_again(door: Postgres, database: Database) -> None:
    run_as_superuser(database.dsn, "DELETE FROM polaris.fences")
    with pytest.raises(Conflict), door.write():
        pass
    assert door.fence is None


def test_a_catalog_that_was_restored_from_a_backup_is_to_be_taken_over_again(
    door: Postgres, database: Database
) -> None:
    door.take_over(ME, "here", "process-2")
    run_as_superuser(database.dsn, "UPDATE polaris.fences SET epoch = 1, holder = 'process-1'")
    with pytest.raises(Conflict, match="restored") as raised, door.write():
        pass
    assert not isinstance(raised.value, NotOwner)
    assert door.fence is None
    door.take_over(ME, "here", "process-2")
    with door.write():
        pass


def test_an_epoch_that_another_process_holds_is_not_ours(door: Postgres, database: Database) -> None:
    run_as_superuser(database.dsn, "UPDATE polaris.fences SET holder = 'process-2'")
    with pytest.raises(NotOwner, match="process-2"), door.write():
        pass


def test_what_was_taken_over_in_one_database_says_nothing_about_another(
    door: Postgres, postgres: LocalPostgres, fresh_database: Fresh
) -> None:
    door.log_in(replace(door.server, ca="of another authority"), door.identity)
    with door.write():
        pass
    door.log_in(server_of(fresh_database(postgres)), door.identity)
    assert door.fence is None
    with pytest.raises(Conflict, match="not taken over"), door.write():
        pass


def test_a_guard_that_is_no_longer_true_stops_the_whole_transaction(door: Postgres) -> None:
    with pytest.raises(Conflict, match="1 = 2"), door.write([Sql("1 = 1"), Sql("1 = 2")]) as connection:
        run(connection, Sql("CREATE TABLE polaris.made (a integer)"))
    assert scalar(door, "SELECT to_regclass('polaris.made')") is None


def test_the_heartbeat_says_that_an_operator_lives_until_it_resigns(door: Postgres) -> None:
    beat = "SELECT heartbeat_at IS NOT NULL FROM polaris.installations"
    door.beat()
    assert scalar(door, beat) is True
    door.resign()
    assert scalar(door, beat) is False


# --- builds

INDEX = "g1_by_a"
BUILD = BuildIndex(INDEX, "polaris", Sql(f"CREATE INDEX {INDEX} ON polaris.made (a)"), 42)


def make_table(door: Postgres) -> None:
    with door.write() as connection:
        run(connection, Sql("CREATE TABLE polaris.made (a integer)"))
        run(connection, Sql("INSERT INTO polaris.made VALUES (1)"))


def test_a_build_runs_by_itself_and_tells_its_end(door: Postgres) -> None:
    make_table(door)
    ended = threading.Event()
    assert door.start_build(BUILD, ended.set)
    assert ended.wait(30)
    assert door.failures == {}
    assert scalar(door, f"SELECT indisvalid FROM pg_index WHERE indexrelid = 'polaris.{INDEX}'::regclass")
    assert not door.start_build(BUILD, ended.set)  # It is there.


def test_where_nobody_answers_it_is_not_known_whether_a_build_lives() -> None:
    with closing(
        Postgres(Server("127.0.0.1", ports.any_free(), "none", TlsMode.DISABLE), Identity("u", "p"))
    ) as door:
        assert door.builds() is None


def test_a_build_that_lives_is_not_started_twice_and_holds_up_its_removal(
    door: Postgres, database: Database
) -> None:
    make_table(door)
    ended = threading.Event()
    with closing(connect(database.dsn)) as blocker, blocker.cursor() as cursor:
        blocker.autocommit = False
        cursor.execute("LOCK TABLE polaris.made IN ROW EXCLUSIVE MODE")
        assert door.start_build(BUILD, ended.set)
        assert not door.start_build(BUILD, ended.set)
        assert door.builds()
        drop = ExecuteAlone(Sql(f"DROP INDEX CONCURRENTLY polaris.{INDEX}"), lock=BUILD.lock)
        with pytest.raises(Conflict, match="build"):
            door.alone(drop)
        blocker.rollback()
    assert ended.wait(30)
    door.alone(drop)
    assert scalar(door, f"SELECT to_regclass('polaris.{INDEX}')") is None


def test_a_build_outlives_the_process_that_started_it(door: Postgres, database: Database) -> None:
    """The backend goes on when its client is gone, and its lock with it; nobody asks in between."""
    make_table(door)
    with closing(connect(database.dsn)) as blocker, blocker.cursor() as cursor:
        blocker.autocommit = False
        cursor.execute("LOCK TABLE polaris.made IN ROW EXCLUSIVE MODE")
        asleep = "SET client_connection_check_interval = 0; SELECT pg_try_advisory_lock(42)"
        client = psycopg2.connect(database.dsn, async_=False)
        client.autocommit = True
        with client.cursor() as starting:
            starting.execute(asleep)
            pid = client.info.backend_pid
        thread = threading.Thread(target=_start_and_lose, args=(client,))
        thread.start()
        waits = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
        while run_as_superuser(database.dsn, waits, pid) != [(1,)]:
            time.sleep(0.01)
        assert not door.start_build(BUILD, lambda: None)
        blocker.rollback()
    thread.join()
    while not scalar(door, f"SELECT to_regclass('polaris.{INDEX}') IS NOT NULL"):
        time.sleep(0.01)


def _start_and_lose(client: psycopg2.extensions.connection) -> None:
    with client.cursor() as cursor:
        cursor.execute(BUILD.statement)
    client.close()


def test_a_build_that_fails_is_remembered_and_counted(door: Postgres) -> None:
    make_table(door)
    with door.write() as connection:
        run(connection, Sql("INSERT INTO polaris.made VALUES (0)"))
    wrong = BuildIndex(INDEX, "polaris", Sql(f"CREATE INDEX {INDEX} ON polaris.made ((1 / a))"), 42)
    for count in (1, 2):
        ended = threading.Event()
        assert door.start_build(wrong, ended.set)
        assert ended.wait(30)
        failure = door.failures["polaris", INDEX]
        assert failure.count == count
        assert "division_by_zero" in failure.message


def test_a_build_that_does_not_get_its_lock_is_late_and_tells_who_has_one(
    door: Postgres, database: Database
) -> None:
    make_table(door)
    patient = replace(BUILD, settings={"lock_timeout": "50ms"}, table="made")
    with closing(connect(database.dsn)) as writer, writer.cursor() as cursor:
        writer.autocommit = False
        cursor.execute("INSERT INTO polaris.made VALUES (2)")
        ended = threading.Event()
        assert door.start_build(patient, ended.set)
        assert ended.wait(30)
        failure = door.failures["polaris", INDEX]
        assert failure.late
        assert f"in use by {database.server.superuser} (pid {writer.info.backend_pid}," in failure.message
    ended.clear()
    assert door.start_build(patient, ended.set)
    assert ended.wait(30)
    assert door.failures == {}


def test_the_settings_of_a_build_are_its_own(door: Postgres) -> None:
    make_table(door)
    statement = Sql("CREATE TABLE polaris.seen AS SELECT current_setting('maintenance_work_mem') AS memory")
    door.alone(ExecuteAlone(statement, {"maintenance_work_mem": "123MB"}))
    assert scalar(door, "SELECT memory FROM polaris.seen") == "123MB"
    assert scalar(door, "SHOW maintenance_work_mem") != "123MB"


# --- what PostgreSQL says

WRONG: list[tuple[str, Callable[[Server, Identity], tuple[Server, Identity]], type[PolarisError], str]] = [
    (
        "a wrong password",
        lambda s, i: (s, Identity(i.username, "wrong")),
        DatabaseRefused,
        "password authentication failed",
    ),
    (
        "nobody listens",
        lambda s, i: (Server(s.host, 1, s.database, s.sslmode), i),
        DatabaseUnavailable,
        "refused",
    ),
    (
        "no such host",
        lambda s, i: (Server("nowhere.invalid", s.port, s.database, s.sslmode), i),
        DatabaseUnavailable,
        "nowhere.invalid",
    ),
    (
        "no such database",
        lambda s, i: (Server(s.host, s.port, "nowhere", s.sslmode), i),
        DatabaseRefused,
        "does not exist",
    ),
    (
        "TLS wanted, and the server has none",
        lambda s, i: (Server(s.host, s.port, s.database, TlsMode.REQUIRE), i),
        DatabaseRefused,
        "SSL",
    ),
]


@pytest.mark.parametrize(("spoil", "error", "words"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_what_keeps_us_out_is_told_apart(
    door: Postgres,
    spoil: Callable[[Server, Identity], tuple[Server, Identity]],
    error: type[PolarisError],
    words: str,
) -> None:
    with (
        closing(Postgres(*spoil(door.server, door.identity))) as wrong,
        pytest.raises(error, match=words) as raised,
        wrong.read(),
    ):
        pass
    assert door.identity.password not in str(raised.value)


def test_a_server_that_asks_for_the_password_itself_does_not_get_it(door: Postgres) -> None:
    heard: list[bytes] = []
    with (
        thief(heard) as port,
        closing(Postgres(replace(door.server, host="127.0.0.1", port=port), door.identity)) as robbed,
        pytest.raises(DatabaseRefused, match="cleartext"),
        robbed.read(),
    ):
        pass
    assert heard == []


def test_a_pooler_is_told_from_postgresql(door: Postgres) -> None:
    with door.probe() as connection:
        assert not is_pooled(connection)
    server = replace(door.server, host="127.0.0.1")
    with (
        pooler(server.port) as port,
        closing(Postgres(replace(server, port=port), door.identity)) as pooled,
        pooled.probe() as connection,
    ):
        assert is_pooled(connection)


def test_a_login_that_is_no_member_of_the_operator_hears_what_grants_it(database: Database) -> None:
    run_as_superuser(database.dsn, "CREATE ROLE stranger LOGIN PASSWORD 'x'")
    try:
        with closing(Postgres(server_of(database), Identity("stranger", "x"))) as door:
            with door.probe() as connection:
                assert run(connection, Sql("SELECT current_user::text")).scalar_one() == "stranger"
            with pytest.raises(Prerequisite) as raised, door.read():
                pass
        assert "polaris_operator" in raised.value.remedy
    finally:
        run_as_superuser(database.dsn, "DROP ROLE stranger")


def test_a_lock_that_is_not_had_in_time_is_a_conflict(door: Postgres, database: Database) -> None:
    make_table(door)
    with closing(connect(database.dsn)) as blocker, blocker.cursor() as cursor:
        blocker.autocommit = False
        cursor.execute("LOCK TABLE polaris.made")
        with pytest.raises(Conflict, match="lock"):
            write(door, "SET LOCAL lock_timeout = 50", "ALTER TABLE polaris.made ADD b integer")


def test_a_statement_that_takes_too_long_is_ended(door: Postgres) -> None:
    with pytest.raises(DeadlineExceeded):
        read(door, "SET LOCAL statement_timeout = 10", "SELECT pg_sleep(10)")


def test_a_right_that_is_missing_is_a_prerequisite(door: Postgres) -> None:
    with pytest.raises(Prerequisite, match="permission denied"), door.write() as connection:
        run(connection, Sql("SELECT * FROM pg_authid"))


@pytest.mark.parametrize(
    ("statement", "state"),
    [
        ("SELEC 'of a document'", "42601 (syntax_error)"),
        ("SELECT 'of a document'::integer", "22P02 (invalid_text_representation)"),
        ("DO $$ BEGIN RAISE 'of a document' USING ERRCODE = 'XX999'; END $$", "XX999"),
    ],
)
def test_of_an_error_that_nobody_expected_the_sqlstate_is_told_and_no_text(
    door: Postgres, statement: str, state: str
) -> None:
    with pytest.raises(Refused) as raised, door.read() as connection:
        run(connection, Sql(statement))
    assert str(raised.value) == f"PostgreSQL refuses with SQLSTATE {state}"
    assert blocked_by(raised.value).reason == Reason.RETRYING


def test_sessions_that_were_cut_are_unavailable_and_the_next_one_works(
    door: Postgres, database: Database
) -> None:
    with pytest.raises(DatabaseUnavailable):
        read_while(door, lambda: cut_all(database))
    assert scalar(door, "SELECT 1") == 1


def test_a_verifier_is_made_here_and_lets_its_password_in(door: Postgres, database: Database) -> None:
    verifier = door.scram_verifier("verified", "s3cret")
    assert verifier.startswith("SCRAM-SHA-256$")
    run_as_superuser(database.dsn, "CREATE ROLE verified LOGIN PASSWORD %s", verifier)
    try:
        assert run_as_superuser(database.dsn_of("verified", "s3cret"), "SELECT 1") == [(1,)]
    finally:
        run_as_superuser(database.dsn, "DROP ROLE verified")
