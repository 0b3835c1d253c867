from __future__ import annotations

from contextlib import closing
from typing import Any

import psycopg2
import pytest

from operator_index.place import MAIN, Place, index_manifest, said_of
from parts import servers
from polaris.errors import Conflict
from polaris.names import ADOPT_ANNOTATION
from polaris.spec import AttributeType
from polaris.status import Reason
from polaris_cli.up.postgres import LocalPostgres
from polaris_operator import reconcile
from polaris_operator.objects import Key

pytestmark = pytest.mark.postgres

LANG = {"name": "lang", "type": "keyword"}
AT = {"name": "at", "type": "datetime"}


# --- from nothing to Ready


def test_from_a_manifest_to_ready_and_then_nothing_is_written(any_here: Place) -> None:
    place = any_here
    key = place.ready(attributes=[LANG, AT])
    version = place.resource(key).resource_version

    place.go(key)
    place.restart()
    place.go(key)

    assert place.resource(key).resource_version == version
    assert place.decide(key).steps == ()


def test_an_index_of_an_attribute_of_any_type_is_known_again(any_here: Place) -> None:
    place = any_here
    attributes = [{"name": f"a_{kind.value}", "type": kind.value} for kind in AttributeType]
    key = place.ready(attributes=attributes)

    _, _, facts = place.look(key)

    assert {kind: seen.outdated for kind, seen in facts.index.indexes.items() if "_by_a_" in kind} == {
        f"g1_by_a_{kind.value}_{kind.value[:4]}": False for kind in AttributeType
    }
    assert place.decide(key).steps == ()


def test_the_catalogs_hold_what_the_layout_says(any_here: Place) -> None:
    place = any_here
    key = place.ready(attributes=[LANG, AT])

    found = place.fingerprint(key)

    owner, reader, writer = (f"polaris_INDEX_{role}" for role in ("owner", "reader", "writer"))
    relations = {name: (kind, whose, grants) for name, kind, whose, grants, _ in found["relations"]}
    tables = {name for name, (kind, _, _) in relations.items() if kind == "r"}
    assert tables == {"stored_documents", "stored_versions", "clock", "g1_chunks", "g1_applied"}
    assert relations.keys() - tables == {"documents", "chunks"}
    assert {whose for _, whose, _ in relations.values()} == {owner}
    for name, (_, _, grants) in relations.items():
        expected = f"{writer}=arwd/{owner}" if name in tables else f"{reader}=r/{owner}"
        assert [grant for grant in grants if not grant.startswith(f"{owner}=")] == [expected]
    # The issuer is a member where the server knows it: whoever uses Vault makes it, once a server.
    roles = [
        (role, login, [member for member in members if member != "polaris_issuer"])
        for role, login, members in found["roles"]
    ]
    assert roles == [
        (owner, False, ["polaris_operator"]),
        (reader, False, ["polaris_operator"]),
        (writer, False, ["polaris_CATALOG_query", "polaris_CATALOG_worker", "polaris_operator"]),
    ]
    (columns,) = (columns for name, *_, columns in found["relations"] if name == "g1_chunks")
    assert columns[-1] == "embedding halfvec(8) t p"
    assert all(valid and complete for _, valid, complete in found["indexes"])
    (hnsw,) = (text for text, _, _ in found["indexes"] if "hnsw" in text)
    assert "(embedding halfvec_cosine_ops) WITH (m='16', ef_construction='64')" in hnsw
    assert sum("g1_by_" in text for text, _, _ in found["indexes"]) == 2


def test_writers_write_readers_read_views_and_nobody_else_anything(here: Place) -> None:
    key, other = here.ready(), here.ready("other")
    here.fill(key, 3)
    mine, theirs = here.schema(key), here.schema(other)

    def run(role: str, statement: str) -> Any:
        return here.sql(f"SET ROLE {here.role(key, role)}; {statement}")

    assert run("reader", f"SELECT count(*) FROM {mine}.chunks")[0][0] == 3
    assert run("reader", f"SELECT document FROM {mine}.documents ORDER BY 1 LIMIT 1") == [("d1-1",)]
    run("writer", f"UPDATE {mine}.clock SET sequence = sequence + 1")
    for role, statement in (
        ("reader", f"SELECT * FROM {mine}.stored_documents"),
        ("reader", f"SELECT * FROM {theirs}.chunks"),
        ("writer", f"SELECT * FROM {theirs}.stored_documents"),
        ("writer", f"CREATE TABLE {mine}.more (a int)"),
        ("writer", f"TRUNCATE {mine}.g1_chunks"),
    ):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            run(role, statement)


def test_a_model_that_nobody_embeds_with_stalls_and_a_worker_that_comes_mends_it(place: Place) -> None:
    place.go(MAIN)
    key = place.put(index_manifest())

    status = place.go(key)

    assert said_of(status, "Stalled")["reason"] == Reason.MODEL_UNAVAILABLE
    assert said_of(status, "Ready")["status"] == "False"
    assert place.sql("SELECT 1 FROM polaris.indexes") == []
    place.offer()
    status = place.go(key)
    assert said_of(status, "Ready")["status"] == "True"
    assert said_of(status, "Stalled") == {}


def test_an_index_waits_for_its_database_and_says_nothing_before_that_was_looked_at(place: Place) -> None:
    key = Key("PolarisIndex", "team", "handbook")
    place.put(index_manifest())
    place.objects.look()

    place.reconciler.reconcile(key)

    assert dict(place.resource(key).status) == {}
    place.reconciler.reconcile(MAIN)
    assert key in place.woken


def test_from_first_sight_to_ready_one_status_is_written(here: Place) -> None:
    key = here.ready()
    here.go()
    # The first version is the person's.
    assert here.resource(key).resource_version == "2"


def test_after_a_restart_nothing_is_written_of_what_did_not_change(here: Place) -> None:
    key = here.ready()
    here.go(MAIN)  # It tells how many indexes there are.
    versions = [here.resource(one).resource_version for one in (MAIN, key)]

    here.restart()
    here.reconciler.reconcile(key)
    here.go()
    here.go()

    assert [here.resource(one).resource_version for one in (MAIN, key)] == versions


def test_an_index_whose_postgresql_is_away_is_not_said_to_serve(here: Place) -> None:
    key = here.ready()

    # To a client this is a server that is starting, full or gone.
    here.sql(f"ALTER ROLE {here.login} CONNECTION LIMIT 0")
    here.sql("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = %s", here.login)
    here.go(key)
    status = here.go(key)
    assert said_of(status, "Serving")["status"] == "Unknown"
    assert said_of(status, "Serving")["reason"] == Reason.DATABASE_UNAVAILABLE
    assert said_of(status, "Ready")["status"] == "False"
    version = here.resource(key).resource_version
    here.go(key)
    assert here.resource(key).resource_version == version

    here.sql(f"ALTER ROLE {here.login} CONNECTION LIMIT -1")
    status = here.go_until(key, "Ready")
    assert said_of(status, "Serving")["status"] == "True"


# --- logins


def test_a_login_of_access_reads_the_views(here: Place) -> None:
    key = here.ready(access=[{"name": "reporting", "secretName": "handbook-reporting"}])
    here.fill(key, 3)
    secret = here.objects.secret("team", "handbook-reporting")
    assert secret is not None

    dsn = here.database.dsn_of(secret.data["username"], secret.data["password"])
    schema = here.schema(key)

    assert servers.run(dsn, f"SELECT count(*) FROM {schema}.chunks") == [(3,)]
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        servers.run(dsn, f"SELECT * FROM {schema}.stored_versions")
    status = here.resource(key).status
    assert said_of(dict(status), "CredentialsFresh")["status"] == "True"
    assert [(c["name"], c["epoch"]) for c in status["credentials"]] == [("reporting", 1)]


def test_a_login_that_is_asked_for_no_more_is_gone(here: Place) -> None:
    key = here.ready(access=[{"name": "reporting", "secretName": "handbook-reporting"}])
    here.put(index_manifest())

    status = here.go(key)

    assert said_of(status, "Ready")["status"] == "True"
    assert status["credentials"] == []
    assert here.objects.secret("team", "handbook-reporting") is None
    assert here.one("SELECT state FROM polaris.credentials WHERE owner = 'index/1'") == "revoked"


def test_a_login_that_resists_its_end_is_in_nobodys_way(here: Place) -> None:
    key = here.ready(access=[{"name": "reporting", "secretName": "handbook-reporting"}])
    old = {}
    for name in ("reporting", "query"):
        old[name] = here.one("SELECT username FROM polaris.credentials WHERE name = %s", name)
        here.sql(f"CREATE TABLE public.of_{name} (); ALTER TABLE public.of_{name} OWNER TO {old[name]}")
    here.sql(
        "UPDATE polaris.credentials SET state = 'superseded', superseded_at = now() - interval '1 hour'"
        " WHERE name = 'query'"
    )
    here.put(index_manifest())

    status, database = here.go(key), here.go(MAIN)

    assert here.errors == []
    for said in (status, database):
        assert said_of(said, "Ready")["status"] == "True"
    published = "SELECT username FROM polaris.credentials WHERE name = 'query' AND state = 'published'"
    assert here.one(published) != old["query"]
    here.sql("DROP TABLE public.of_reporting, public.of_query")
    here.go()
    assert here.sql("SELECT rolname FROM pg_roles WHERE rolname = ANY(%s)", list(old.values())) == []


# --- drift


DRIFT = {
    "a view dropped": "DROP VIEW {s}.documents",
    # As its owner: also where there is none any more, somebody else's would be his to mend.
    "a view with a column more": "SET ROLE {r}_owner; CREATE OR REPLACE VIEW {s}.documents AS"
    " SELECT d.external_id AS document, d.version, v.title, v.uri, v.text, v.attributes, d.updated_at,"
    " 1 AS more FROM {s}.stored_documents d JOIN {s}.stored_versions v"
    " ON v.document_id = d.id AND v.version = d.version WHERE NOT d.deleted",
    "a view's grant": "REVOKE ALL ON {s}.chunks FROM {r}_reader",
    "a table's grant": "REVOKE INSERT ON {s}.g1_applied FROM {r}_writer",
    "the schema's grant": "REVOKE ALL ON SCHEMA {s} FROM {r}_reader",
    "a table's owner": "ALTER TABLE {s}.g1_chunks OWNER TO polaris_operator",
    "a group with a login": "ALTER ROLE {r}_owner LOGIN",
    "a membership": "REVOKE {r}_writer FROM polaris_{c}_query",
    "the readers' role": "DROP OWNED BY {r}_reader; DROP ROLE {r}_reader",
    "an attribute's index": "DROP INDEX {s}.g1_by_lang_keyw",
    "an attribute's index on an older expression": "DROP INDEX {s}.g1_by_lang_keyw; CREATE INDEX"
    " g1_by_lang_keyw ON {s}.g1_chunks ((CASE WHEN jsonb_typeof(attributes -> 'lang') = 'string'"
    " THEN attributes ->> 'lang' END) COLLATE \"C\")",
    "an attribute's index with another collation": "DROP INDEX {s}.g1_by_lang_keyw; CREATE INDEX"
    " g1_by_lang_keyw ON {s}.g1_chunks ((CASE WHEN jsonb_typeof((attributes -> 'lang')) = 'string'"
    " AND octet_length((attributes -> 'lang') #>> '{{}}') <= 1024"
    " THEN (attributes -> 'lang') #>> '{{}}' END) COLLATE \"POSIX\")",
    "an attribute's index with a column more": "DROP INDEX {s}.g1_by_lang_keyw; CREATE INDEX"
    " g1_by_lang_keyw ON {s}.g1_chunks ((attributes -> 'lang'), version)",
    "the vector index": "DROP INDEX {s}.{v}",
    "a btree of the vector index's name": "DROP INDEX {s}.{v}; CREATE INDEX {v} ON {s}.g1_chunks (version)",
    "another graph of the vector index's name": "DROP INDEX {s}.{v}; CREATE INDEX {v} ON {s}.g1_chunks"
    " USING hnsw (embedding halfvec_l2_ops) WITH (m = 4, ef_construction = 16)",
    "the index of sequences": "DROP INDEX {s}.stored_documents_by_sequence",
    "the clock's row": "DELETE FROM {s}.clock",
    "the clock": "DROP TABLE {s}.clock",
    "the storage of vectors": "ALTER TABLE {s}.g1_chunks ALTER COLUMN embedding SET STORAGE EXTERNAL",
    "the generation's row": "DELETE FROM polaris.generations",
    "what was applied": "DROP TABLE {s}.g1_applied",
    "the chunks": "DROP TABLE {s}.g1_chunks CASCADE",
}


def damage(place: Place, key: Key, kind: str) -> None:
    catalog = place.one("SELECT id FROM polaris.catalog")
    vector = place.one(
        "SELECT max(relname) FROM pg_class WHERE relnamespace = to_regnamespace(%s)"
        " AND relname LIKE 'g1_chunks_vector_%%'",
        place.schema(key),
    )
    role = place.role(key, "").removesuffix("_")
    place.sql(DRIFT[kind].format(s=place.schema(key), r=role, c=catalog, v=vector))


def settled(place: Place, key: Key) -> None:
    """Wait until everything is as the spec says and no build is under way."""
    place.go_until(key, "Ready")
    assert place.decide(key).blocked is None


def test_every_kind_of_drift_is_repaired(here: Place) -> None:
    key = here.ready(attributes=[LANG])
    here.fill(key, 40)
    before = here.fingerprint(key)

    for kind in DRIFT:
        damage(here, key, kind)
        settled(here, key)
        assert here.fingerprint(key) == before, kind
        assert here.errors == [], kind


def test_a_clock_that_was_lost_goes_on_where_it_was(here: Place) -> None:
    key = here.ready()
    here.fill(key, 40)

    damage(here, key, "the clock")
    here.go(key)

    assert here.one(f"SELECT sequence FROM {here.schema(key)}.clock") == 40


def test_chunks_that_were_lost_are_behind_again(here: Place) -> None:
    key = here.ready()
    here.fill(key, 40)
    here.sql("UPDATE polaris.generations SET low_water = 40")

    damage(here, key, "the chunks")
    here.go(key)

    schema = here.schema(key)
    assert here.one(f"SELECT count(*) FROM {schema}.g1_applied") == 0
    assert here.one("SELECT low_water FROM polaris.generations") == 0
    assert here.one(f"SELECT count(*) FROM {schema}.stored_versions") == 40


def test_documents_that_were_lost_stall_and_are_not_papered_over(here: Place) -> None:
    key = here.ready()
    here.sql(f"DROP TABLE {here.schema(key)}.stored_versions CASCADE")

    status = here.go(key)

    assert said_of(status, "Stalled")["reason"] == Reason.DRIFTED
    assert "stored_versions is gone" in said_of(status, "Ready")["message"]
    assert said_of(status, "Serving")["status"] == "False"


def test_with_report_drift_is_shown_and_repaired_on_an_edit(here: Place) -> None:
    key = here.ready(drift="Report")
    damage(here, key, "a view dropped")

    status = here.go(key)

    assert said_of(status, "Ready")["reason"] == Reason.DRIFTED
    assert said_of(status, "Serving")["status"] == "True"
    steps = status["plan"]["steps"]
    assert [step["sentence"] for step in steps] == [
        "Make the view documents",
        "Grant readers and writers of polaris_i1_handbook what they lack",
    ]
    assert "CREATE OR REPLACE VIEW" in steps[0]["statement"]
    again = here.go(key)
    assert again["plan"]["hash"] == status["plan"]["hash"]
    here.put(index_manifest(drift="Repair"))
    repaired = here.go(key)
    assert said_of(repaired, "Ready")["status"] == "True"
    assert "plan" not in repaired


def test_suspended_nothing_changes_but_logins_go_on(here: Place) -> None:
    access = [{"name": "reporting", "secretName": "handbook-reporting"}]
    key = here.ready()
    here.put(index_manifest(suspend=True, access=access))
    here.go(key)
    damage(here, key, "a view dropped")

    status = here.go(key)

    assert said_of(status, "Ready")["reason"] == Reason.SUSPENDED
    assert "Make the view documents" in [step["sentence"] for step in status["plan"]["steps"]]
    assert here.objects.secret("team", "handbook-reporting") is not None
    here.put(index_manifest())
    assert said_of(here.go(key), "Ready")["status"] == "True"


# --- changes


def test_an_attribute_comes_and_goes(here: Place) -> None:
    key = here.ready()
    here.fill(key, 40)
    plain = here.fingerprint(key)

    here.put(index_manifest(attributes=[LANG]))
    here.go_until(key, "Ready")
    with_lang = here.fingerprint(key)
    here.put(index_manifest())
    here.go_until(key, "Ready")
    here.sql("UPDATE polaris.indexes SET updated_at = now() - interval '1 hour'")
    here.go_until(key, "Ready")

    assert sum("g1_by_lang_keyw" in text for text, _, _ in with_lang["indexes"]) == 1
    assert here.fingerprint(key) == plain


def test_a_generation_whose_model_nobody_embeds_with_is_shown_while_the_old_one_serves(here: Place) -> None:
    key = here.ready()
    before = here.fingerprint(key)
    here.put(index_manifest(embedding={"model": "other", "dimension": 16}))

    status = here.go(key)

    assert said_of(status, "Stalled")["reason"] == Reason.MODEL_UNAVAILABLE
    assert said_of(status, "Ready")["status"] == "False"
    assert said_of(status, "Serving")["status"] == "True"
    assert status["active"]["model"] == "e5"
    assert any("g2_chunks" in step["statement"] for step in status["plan"]["steps"])
    assert here.fingerprint(key) == before
    here.put(index_manifest())
    assert said_of(here.go(key), "Ready")["status"] == "True"


# --- whose is it


def test_a_database_that_leads_to_another_server_is_taken_over_there_and_again_at_home(
    here: Place, postgres16: LocalPostgres
) -> None:
    key = here.ready()
    for _ in range(2):
        here.restart()  # Each process raises the epoch here.
        here.go()

    with here.elsewhere(postgres16):
        assert here.errors == []
        assert here.one("SELECT epoch FROM polaris.fences") == 1
        here.until(MAIN, lambda _: listens(here))
        here.go_until(key, "Ready")
    here.go()

    assert here.errors == []
    assert said_of(dict(here.resource(MAIN).status), "Ready")["status"] == "True"
    assert said_of(here.go(key), "Ready")["status"] == "True"
    here.until(MAIN, lambda _: listens(here))


def listens(place: Place) -> bool:
    return bool(
        place.sql(
            "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'polaris-operator/%/listen/%'"
            " AND datname = current_database()"
        )
    )


def test_a_server_that_was_restored_from_a_backup_is_taken_over_again(here: Place) -> None:
    here.restart()
    here.go()
    here.sql("UPDATE polaris.fences SET epoch = 1, holder = 'the process of the backup'")

    status = here.go(MAIN)

    assert here.errors == []
    assert said_of(status, "Ready")["status"] == "True"
    assert said_of(status, "Stalled") == {}


def test_a_lock_that_a_step_waits_for_is_told_once_it_is_held_for_long(
    here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = here.ready(deletionPolicy="Delete")
    with closing(servers.connect(here.database.dsn)) as reader, reader.cursor() as cursor:
        reader.autocommit = False
        cursor.execute(f"SELECT count(*) FROM {here.schema(key)}.documents")
        here.remove(key)
        said = here.go(key)
        assert [type(error) for error in here.errors] == [Conflict]
        assert said_of(said, "Reconciling").get("reason") != Reason.RETRYING  # It may pass in a moment.
        monkeypatch.setattr(reconcile, "MOVING_SECONDS", 0.0)
        said = here.go(key)
        assert said_of(said, "Reconciling")["reason"] == Reason.RETRYING
        assert "lock" in said_of(said, "Reconciling")["message"]
        assert said_of(said, "Ready")["status"] != "True"
    here.go(key)
    assert here.objects.get(key) is None


def test_what_nobody_foresaw_is_told_without_its_words(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    key = here.ready()

    def fails(*_: object) -> None:
        raise KeyError("a password, perhaps")

    with monkeypatch.context() as broken:
        broken.setattr(here.reconciler, "_index", fails)
        said = here.go(key)
    assert said_of(said, "Reconciling")["reason"] == Reason.RETRYING
    assert "as nobody foresaw (KeyError)" in said_of(said, "Reconciling")["message"]
    assert "password" not in str(said)
    assert said_of(here.go(key), "Ready")["status"] == "True"


def test_two_installations_that_claim_one_name(here: Place) -> None:
    key = here.ready()
    here.fill(key, 3)
    there = here.neighbour("there")
    there.put(index_manifest())

    refused = there.go(key)

    assert said_of(refused, "Stalled")["reason"] == Reason.NOT_OWNER
    assert said_of(refused, "Serving")["status"] == "False"
    label = here.resource(key).status["catalog"]
    assert label in said_of(refused, "Ready")["message"]
    assert "catalog" not in refused

    there.put(index_manifest(annotations={ADOPT_ANNOTATION: label}))
    adopted = there.go(key)

    assert said_of(adopted, "Ready")["status"] == "True"
    assert said_of(here.go(key), "Stalled")["reason"] == Reason.NOT_OWNER
    assert here.one(f"SELECT count(*) FROM {here.schema(key)}.g1_chunks") == 3


def test_two_objects_that_claim_a_number_at_once(here: Place) -> None:
    one, two = (here.put(index_manifest(name)) for name in ("one", "two"))
    here.objects.look()
    first, second = here.decide(one), here.decide(two)
    assert "as number 1" in first.steps[0].sentence
    assert "as number 1" in second.steps[0].sentence

    here.act(one, first.steps)
    for _ in range(2):
        here.go()

    assert here.sql("SELECT id, name FROM polaris.indexes ORDER BY id") == [(1, "one"), (2, "two")]
    assert said_of(dict(here.resource(two).status), "Ready")["status"] == "True"
