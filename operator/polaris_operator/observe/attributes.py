"""Whether filters can use the indexes of attributes: asked of PostgreSQL, in a pass over one object.

It prints the expression of an index as it stands in its catalogs, and not as it was written. So both, the
index's and the one that filters use, are printed as the planner sees them, in one plan that is not run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from polaris import layout, names
from polaris.attributes import expression
from polaris.spec import Attribute
from polaris.sql import Sql, compose, identifier, join
from polaris_operator.world.index import IndexSeen, IndexWorld


@dataclass(frozen=True)
class _Asked:
    """An index, and the expression that filters use."""

    name: str
    seen: IndexSeen
    wanted: Sql

    @property
    def found(self) -> Sql:
        """The index's own expression; its collation stands elsewhere in the catalogs."""
        found = Sql(self.seen.expression or "NULL")
        if not self.seen.collation:
            return found
        return compose(
            "(({found}) COLLATE {collation})", found=found, collation=identifier(self.seen.collation)
        )

    def outdated(self, wanted: str, found: str) -> bool:
        """Whether the two differ, as printed; of a collation a plan tells only that there is one."""
        collation = "C" if 'COLLATE "C"' in self.wanted else ""
        return wanted != found or self.seen.collation != collation


def compared(
    connection: Connection, world: IndexWorld, attributes: Sequence[Attribute]
) -> Mapping[str, IndexSeen]:
    """Return the world's indexes, with what PostgreSQL says of those of attributes (`outdated`)."""
    generation, subject = world.generation, world.subject
    if generation is None or subject is None:
        return world.indexes
    asked = list(_asked(world, generation.number, attributes))
    if not asked:
        return world.indexes
    statement = compose(
        "EXPLAIN (VERBOSE, FORMAT JSON) SELECT {rows} FROM {chunks}",
        rows=join(
            ", ", [compose("ROW({wanted}), ROW({found})", wanted=a.wanted, found=a.found) for a in asked]
        ),
        chunks=identifier(subject.schema, names.chunks_table(generation.number)),
    )
    plan = connection.exec_driver_sql(statement, execution_options={"no_parameters": True}).scalar_one()
    printed = (plan if isinstance(plan, list) else json.loads(plan))[0]["Plan"]["Output"]
    pairs = zip(asked, printed[::2], printed[1::2], strict=True)
    return {
        **world.indexes,
        **{a.name: replace(a.seen, outdated=a.outdated(wanted, found)) for a, wanted, found in pairs},
    }


def _asked(world: IndexWorld, generation: int, attributes: Sequence[Attribute]) -> Iterator[_Asked]:
    """Yield the indexes that are there and might be the right ones."""
    for attribute in attributes:
        name = layout.attribute_index(generation, attribute).name
        seen = world.indexes.get(name)
        if seen is None or seen.table != names.chunks_table(generation) or seen.keys != 1:
            continue
        if f"attributes -> '{attribute.name}'::text" in (seen.expression or ""):
            yield _Asked(name, seen, expression(attribute.name, attribute.type))
