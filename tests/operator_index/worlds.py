"""Objects and worlds for tests of what is decided, without any PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from polaris import layout, names
from polaris.spec import PolarisIndexSpec, parse_spec
from polaris_operator.objects import Key, Resource
from polaris_operator.world.index import (
    Build,
    Column,
    GenerationRow,
    IndexRow,
    IndexSeen,
    IndexWorld,
    Model,
    Relation,
    Role,
    Schema,
    build_lock,
)

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
CATALOG = "c0ffee00"
OURS = UUID(int=1)
OTHERS = UUID(int=2)
NUMBER = 7
PLACE = "polaris_i7_handbook"
MODEL = Model("default", "e5", "1", 8)
_STORAGE = {"PLAIN": "p", "EXTERNAL": "e"}


def spec(**changes: Any) -> PolarisIndexSpec:
    """A small spec; `changes` replace whole fields, by their outside names."""
    plain = {"databaseRef": {"name": "main"}, "embedding": {"model": "e5", "dimension": 8}, **changes}
    return parse_spec(PolarisIndexSpec, plain)


def embedding(**changes: Any) -> dict[str, Any]:
    """The small spec's embedding, with changes."""
    return {"model": "e5", "dimension": 8, **changes}


def resource(of: PolarisIndexSpec, **changes: Any) -> Resource:
    """An object with this spec."""
    plain = of.model_dump(mode="json", by_alias=True, exclude_none=True)
    made = Resource(Key("PolarisIndex", "team", "handbook"), "uid-1", 1, "1", plain)
    return replace(made, **changes)


def row(of: PolarisIndexSpec, **changes: Any) -> IndexRow:
    """The catalog's row of an index that was made true."""
    made = IndexRow(
        number=NUMBER,
        installation=OURS,
        installation_name="here",
        namespace="team",
        name="handbook",
        uid="uid-1",
        state="active",
        deletion_policy=of.deletion_policy.value,
        schema=PLACE,
        spec=of.model_dump(mode="json", by_alias=True, exclude_defaults=True),
        object_generation=1,
        serving=1,
        updated_at=NOW - timedelta(hours=1),
    )
    return replace(made, **changes)


def nothing(**changes: Any) -> IndexWorld:
    """A database that is ready, in which this index is not."""
    groups = {names.group_role(CATALOG, purpose): Role(login=False) for purpose in ("query", "worker")}
    made = IndexWorld(
        catalog=CATALOG,
        database="polaris",
        installation=OURS,
        now=NOW,
        next_number=NUMBER,
        issuer=True,
        models=frozenset({MODEL}),
        roles=groups,
    )
    return replace(made, **changes)


def made(of: PolarisIndexSpec, *, rows: int = 0, **changes: Any) -> IndexWorld:
    """A database in which this index is as its spec says, with so many chunks."""
    chunks, applied = layout.chunks(1, of.embedding), layout.applied(1)
    relations = {
        table.name: _table(table, of)
        for table in (layout.STORED_DOCUMENTS, layout.STORED_VERSIONS, layout.CLOCK, chunks, applied)
    }
    relations[chunks.name] = replace(relations[chunks.name], rows=rows, bytes=8192 if rows else 0)
    relations[names.DOCUMENTS_VIEW] = _view(
        ("document", "version", "title", "uri", "text", "attributes", "updated_at"),
        (names.DOCUMENTS, names.VERSIONS),
    )
    relations[names.CHUNKS_VIEW] = _view(
        (
            *("document", "version", "chunk", "span_start", "span_end"),
            *("text", "attributes", "embedding", "generation"),
        ),
        (names.DOCUMENTS, names.VERSIONS, chunks.name),
    )
    if rows:
        relations[names.DOCUMENTS] = replace(relations[names.DOCUMENTS], rows=rows, bytes=8192)
    vector = layout.vector_index(1, of.embedding, of.index)
    world = nothing(
        row=row(of),
        next_number=NUMBER + 1,
        generations=(generation(of, rows=rows),),
        roles={**nothing().roles, **_roles()},
        schema=Schema(_role("owner"), frozenset({(_role("reader"), "USAGE"), (_role("writer"), "USAGE")})),
        relations=relations,
        indexes={**_indexes(of), **({vector.name: hnsw(of)} if vector else {})},
        clock=rows,
    )
    return replace(world, **changes)


def generation(of: PolarisIndexSpec, *, rows: int = 0, number: int = 1, **changes: Any) -> GenerationRow:
    """The catalog's row of a generation that is as its spec says."""
    vector = layout.vector_index(number, of.embedding, of.index)
    made_ = GenerationRow(
        number=number,
        state="serving",
        embedding=of.embedding.model_dump(mode="json", by_alias=True),
        chunking=of.chunking.model_dump(mode="json", by_alias=True),
        index=of.index.model_dump(mode="json", by_alias=True),
        vector_index=vector.name if vector else None,
        ef_search=64,
        recall=1.0,
        recall_rows=rows,
        recall_at=NOW - timedelta(minutes=1),
        load_requested_at=None,
        valid_since=NOW - timedelta(hours=1),
    )
    return replace(made_, **changes)


def with_another(
    world: IndexWorld, of: PolarisIndexSpec, *, number: int = 2, rows: int = 0, **changes: Any
) -> IndexWorld:
    """The world with one generation more, that is as its spec says but for its row's `changes`."""
    chunks, applied = layout.chunks(number, of.embedding), layout.applied(number)
    relations = {**world.relations, chunks.name: _table(chunks, of), applied.name: _table(applied, of)}
    for name in (chunks.name, applied.name):
        relations[name] = replace(relations[name], rows=rows, bytes=8192 if rows else 0)
    vector = layout.vector_index(number, of.embedding, of.index)
    seen = replace(hnsw(of), table=chunks.name)
    return replace(
        world,
        generations=(*world.generations, generation(of, rows=rows, number=number, **changes)),
        relations=relations,
        indexes={**world.indexes, **({vector.name: seen} if vector else {})},
        models=world.models | {Model("default", of.embedding.model, "1", of.embedding.dimension)},
    )


def vector_name(of: PolarisIndexSpec, number: int = 1) -> str:
    """Name of the spec's vector index."""
    vector = layout.vector_index(number, of.embedding, of.index)
    assert vector is not None
    return vector.name


def hnsw(of: PolarisIndexSpec, **changes: Any) -> IndexSeen:
    """The spec's vector index, valid."""
    seen = IndexSeen(
        table="g1_chunks",
        valid=True,
        method="hnsw",
        opclass=layout.operator_class(of.embedding),
        options={"m": str(of.index.m), "ef_construction": str(of.index.ef_construction)},
        columns=("embedding",),
    )
    return replace(seen, **changes)


def attribute(name: str, **changes: Any) -> IndexSeen:
    """The index of an attribute, valid."""
    expression = f"CASE WHEN (jsonb_typeof((attributes -> '{name}'::text)) = 'string'::text) THEN 1 END"
    seen = IndexSeen("g1_chunks", valid=True, method="btree", expression=expression)
    return replace(seen, **changes)


def live(index: str, *, concurrently: bool = True, pid: int = 42) -> dict[str, Any]:
    """What a live build of this name adds to a world."""
    key = build_lock(PLACE, index)
    build = Build(
        pid=pid,
        table="g1_chunks",
        index=index if concurrently else None,
        locks=frozenset({key}),
        phase="building index: loading tuples",
        done=61,
        total=100,
        started_at=NOW - timedelta(seconds=61),
    )
    return {"builds": (build,), "locks": frozenset({key})}


def with_generation(world: IndexWorld, **changes: Any) -> IndexWorld:
    """The world with another row of its generation."""
    assert world.generation is not None
    return replace(world, generations=(replace(world.generation, **changes),))


def without(
    world: IndexWorld, *, relations: tuple[str, ...] = (), indexes: tuple[str, ...] = ()
) -> IndexWorld:
    """The world without some relations (their indexes go too) and indexes."""
    left = {k: v for k, v in world.indexes.items() if k not in indexes and v.table not in relations}
    return replace(
        world, relations={k: v for k, v in world.relations.items() if k not in relations}, indexes=left
    )


def with_index(world: IndexWorld, name: str, seen: IndexSeen) -> IndexWorld:
    """The world with one index more, or another one."""
    return replace(world, indexes={**world.indexes, name: seen})


def with_relation(world: IndexWorld, name: str, **changes: Any) -> IndexWorld:
    """The world with one relation changed."""
    return replace(world, relations={**world.relations, name: replace(world.relations[name], **changes)})


def _role(kind: Any) -> str:
    return names.index_role(CATALOG, NUMBER, kind)


def _roles() -> Mapping[str, Role]:
    operator = frozenset({names.OPERATOR_ROLE})
    groups = frozenset(names.group_role(CATALOG, purpose) for purpose in ("query", "worker"))
    return {
        _role("owner"): Role(login=False, members=operator, admins=operator),
        _role("reader"): Role(login=False, members=operator, admins=operator | {names.ISSUER_ROLE}),
        _role("writer"): Role(login=False, members=operator | groups, admins=operator),
    }


def _table(table: layout.Table, of: PolarisIndexSpec) -> Relation:
    storage = _STORAGE[layout.embedding_storage(of.embedding)]
    return Relation(
        kind="r",
        owner=_role("owner"),
        columns=tuple(
            Column(c.name, c.type, c.not_null or c.name in table.primary_key, storage) for c in table.columns
        ),
        primary_key=table.primary_key,
        grants=frozenset((_role("writer"), p) for p in ("SELECT", "INSERT", "UPDATE", "DELETE")),
    )


def _view(columns: tuple[str, ...], reads: tuple[str, ...]) -> Relation:
    return Relation(
        kind="v",
        owner=_role("owner"),
        columns=tuple(Column(column, "text", not_null=False) for column in columns),
        grants=frozenset({(_role("reader"), "SELECT")}),
        depends_on=frozenset(reads),
    )


def _indexes(of: PolarisIndexSpec) -> dict[str, IndexSeen]:
    found = {
        "stored_documents_external_id_key": IndexSeen(
            names.DOCUMENTS,
            valid=True,
            method="btree",
            columns=("external_id",),
            unique=True,
            constraint=True,
        ),
        "stored_documents_by_sequence": IndexSeen(
            names.DOCUMENTS, valid=True, method="btree", columns=("sequence",)
        ),
    }
    for one in of.attributes:
        found[layout.attribute_index(1, one).name] = attribute(one.name)
    return found
