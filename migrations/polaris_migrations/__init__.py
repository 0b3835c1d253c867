"""Migrations of the catalog, by Alembic, and the one way to run them.

A migration is named `NNNN_expand_…` (it may run before the new code does, and older code goes on
working) or `NNNN_contract_…` (it takes away what only older code used, and raises
`catalog.oldest_code`); either writes its number into `catalog.level`, and code that needs it is not
ready before. Two versions of POLARIS so run side by side during an upgrade, and a roll back of the
code needs no roll back of the catalog.
"""

from polaris_migrations.run import (
    HEAD,
    check_code,
    current_revision,
    downgrade,
    known_revisions,
    offline_sql,
    upgrade,
)

__all__ = ["HEAD", "check_code", "current_revision", "downgrade", "known_revisions", "offline_sql", "upgrade"]
