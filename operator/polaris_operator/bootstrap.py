"""What administrators of the database and of Vault grant once: the text, and nothing that runs it.

The same statements are printed by `polaris bootstrap`, stand in a condition where one of them is
missing, and are run by tests and by `polaris up`. Each may be run again at any time.

Who is who in PostgreSQL (roles are global to a server, so several databases may share these):

====================  =============================================================================
`polaris_operator`    permanent, no login, CREATEROLE: creates, grants and migrates. Each session of
                      the operator sets this role first.
`polaris_issuer`      permanent, no login: may make others members of the groups of logins. Inherits
                      nothing itself.
`polaris_vault`       Vault's own login, a member of `polaris_issuer`: makes and drops leased logins.
====================  =============================================================================

PostgreSQL 16 changed who may grant a membership: CREATEROLE no longer suffices, ADMIN on the group is
needed, and is looked for among the roles that the grantor inherits from. So `polaris_issuer` holds
ADMIN on each group, and the operator hands that on with every group that it makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from textwrap import indent
from typing import Any

from polaris import names
from polaris.sql import Sql, compose, identifier, literal

OPERATOR = identifier(names.OPERATOR_ROLE)
ISSUER = identifier(names.ISSUER_ROLE)
VAULT_LOGIN = "polaris_vault"
ADMIN_LOGIN = "polaris_admin"
VAULT_OPERATOR_ROLE = "polaris-operator"
VAULT_POLICY = "polaris-operator"

PASSWORD_PLACE = "<a long random password>"  # noqa: S105  what a person replaces
LOGIN_SECONDS = 24 * 3600
"""Life asked for each issued login; what the mount allows may be less."""
LOGIN_MAX_SECONDS = 7 * 24 * 3600


class Platform(StrEnum):
    """Where PostgreSQL runs, which decides who may do what."""

    POSTGRESQL = "postgresql"
    CLOUDNATIVEPG = "cloudnativepg"
    RDS = "rds"


class Grant(StrEnum):
    """One thing that an administrator grants, by what it is."""

    EXTENSION = "extension"
    OPERATOR_ROLE = "operator role"
    STATISTICS = "statistics"
    SIGNALS = "signals"
    DATABASE = "database"
    ISSUER_ROLE = "issuer role"
    ISSUER_ADMIN = "issuer admin"
    VAULT_ROLE = "vault role"


NEEDED_WITH_VAULT_ONLY = frozenset({Grant.ISSUER_ROLE, Grant.ISSUER_ADMIN, Grant.VAULT_ROLE})


@dataclass(frozen=True)
class Part:
    """A piece of text, and who runs it where."""

    title: str
    text: str


def _unless_exists(role: str, create: Sql) -> Sql:
    # PostgreSQL has no CREATE ROLE IF NOT EXISTS.
    return compose(
        "DO $polaris$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {name})"
        " THEN {create}; END IF; END $polaris$",
        name=literal(role),
        create=create,
    )


def grant_statements(grant: Grant, database: str, vault_password: str | None = None) -> tuple[Sql, ...]:
    """Return the statements of one grant, to be run in `database`.

    `vault_password` is what Vault's own login gets where it is made now; without it a person
    replaces the placeholder.
    """
    return tuple(
        compose(
            statement,
            operator=OPERATOR,
            issuer=ISSUER,
            vault=identifier(VAULT_LOGIN),
            database=identifier(database),
            make_operator=_unless_exists(
                names.OPERATOR_ROLE, compose("CREATE ROLE {role} NOLOGIN CREATEROLE", role=OPERATOR)
            ),
            make_issuer=_unless_exists(
                names.ISSUER_ROLE, compose("CREATE ROLE {role} NOLOGIN NOINHERIT", role=ISSUER)
            ),
            make_vault=_unless_exists(
                VAULT_LOGIN,
                compose(
                    "CREATE ROLE {role} LOGIN CREATEROLE PASSWORD {password}",
                    role=identifier(VAULT_LOGIN),
                    password=literal(vault_password or PASSWORD_PLACE),
                ),
            ),
        )
        for statement in _GRANTS[grant]
    )


_GRANTS: dict[Grant, tuple[str, ...]] = {
    Grant.EXTENSION: ("CREATE EXTENSION IF NOT EXISTS vector",),
    Grant.OPERATOR_ROLE: ("{make_operator}", "ALTER ROLE {operator} NOLOGIN CREATEROLE"),
    Grant.STATISTICS: ("GRANT pg_read_all_stats TO {operator}",),
    Grant.SIGNALS: ("GRANT pg_signal_backend TO {operator}",),
    Grant.DATABASE: (
        "GRANT CREATE ON DATABASE {database} TO {operator}",
        # With the option, so that logins get in where CONNECT was taken from PUBLIC.
        "GRANT CONNECT ON DATABASE {database} TO {operator} WITH GRANT OPTION",
    ),
    Grant.ISSUER_ROLE: ("{make_issuer}",),
    Grant.ISSUER_ADMIN: ("GRANT {operator} TO {issuer} WITH ADMIN OPTION",),
    Grant.VAULT_ROLE: (
        "{make_vault}",
        "GRANT {issuer} TO {vault}",
        "GRANT pg_signal_backend TO {vault}",
        "GRANT CONNECT ON DATABASE {database} TO {vault}",
    ),
}


def statements(database: str, *, vault: bool = True, vault_password: str | None = None) -> tuple[Sql, ...]:
    """Return all statements, in order, to be run once in `database` by a superuser."""
    return tuple(
        statement
        for grant in Grant
        if vault or grant not in NEEDED_WITH_VAULT_ONLY
        for statement in grant_statements(grant, database, vault_password)
    )


def admin_login_statements(password: str = PASSWORD_PLACE) -> tuple[Sql, ...]:
    """Return the statements that make the login for `credentials.secretRef`, where there is no Vault.

    `password` may be a SCRAM verifier.
    """
    login = identifier(ADMIN_LOGIN)
    secret = literal(password)
    create = compose("CREATE ROLE {role} LOGIN PASSWORD {password}", role=login, password=secret)
    return (
        _unless_exists(ADMIN_LOGIN, create),
        compose("GRANT {operator} TO {login}", operator=OPERATOR, login=login),
    )


def script(statements_: Sequence[Sql]) -> str:
    """Return statements as text for psql."""
    return "".join(f"{statement};\n" for statement in statements_)


def remedy(grant: Grant, database: str) -> str:
    """Return the text that a condition shows where this grant is missing."""
    return script(grant_statements(grant, database))


# --- Vault -------------------------------------------------------------------------------------


def creation_statement(group_role: str) -> Sql:
    """Return the statement with which Vault's database engine makes a login of this group.

    `polaris_operator` gets ADMIN on the login, so that it may drop one that Vault made and forgot
    (its client went away in between: OpenBao 2.7 leaves the role, and no lease). Of logins that are
    members of `polaris_operator` itself it can't have that: memberships don't go in circles.
    """
    admin = "" if group_role == names.OPERATOR_ROLE else f" ADMIN {OPERATOR}"
    return Sql(
        "CREATE ROLE \"{{name}}\" WITH LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'"
        f" IN ROLE {identifier(group_role)}{admin};"
    )


REVOCATION_STATEMENTS: tuple[Sql, ...] = (
    Sql(
        "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity"
        " WHERE usename = '{{name}}';"
    ),
    Sql('DROP ROLE IF EXISTS "{{name}}";'),
)


def vault_policy(mount: str = "database", connection: str = "polaris") -> str:
    """Return the policy of whoever logs in to Vault for a PolarisDatabase.

    It may use and write roles named `polaris-*` of the one engine, but for the role of the operator
    itself, which it may only use. A role holds SQL that Vault runs, so those that are written lead to the
    one connection only: an engine may have others, with other rights. Leases can be listed and revoked
    below the same names: after a crash in the middle of issuing, that is how the lease that nobody wrote
    down is found. The operator's own login is issued by a token that such a login makes for it, with no more
    rights than it has and a short life: renewed once the login is written down, it ends with its maker.
    """
    return f"""\
path "{mount}/creds/polaris-*" {{
  capabilities = ["read"]
}}
path "{mount}/roles/polaris-*" {{
  capabilities = ["create", "read", "update", "delete"]
  allowed_parameters = {{
    "db_name" = ["{connection}"]
    "creation_statements" = []
    "revocation_statements" = []
    "default_ttl" = []
    "max_ttl" = []
  }}
}}
path "{mount}/roles/{VAULT_OPERATOR_ROLE}" {{
  capabilities = ["read"]
}}
path "sys/leases/revoke/{mount}/creds/polaris-*" {{
  capabilities = ["update"]
}}
path "sys/leases/lookup/{mount}/creds/polaris-*" {{
  capabilities = ["list", "sudo"]
}}
path "auth/token/create" {{
  capabilities = ["update"]
  allowed_parameters = {{
    "ttl" = []
    "renewable" = []
  }}
}}
path "auth/token/renew-self" {{
  capabilities = ["update"]
}}
"""


@dataclass(frozen=True)
class VaultSetup:
    """What stands in the commands for Vault's administrator; defaults are those of the manifests."""

    host: str = "<host of PostgreSQL>"
    port: int = 5432
    database: str = "<database>"
    sslmode: str = "verify-full"
    mount: str = "database"
    connection: str = "polaris"
    namespace: str = "<namespace of the PolarisDatabase>"
    service_account: str = "polaris-vault"
    auth_mount: str = "kubernetes"
    auth_role: str = "polaris"
    audience: str = "vault"


def vault_role_parameters(group_role: str, connection: str = "polaris") -> dict[str, Any]:
    """Return a role of Vault's database engine that issues members of a group, as its API takes it."""
    return {
        "db_name": connection,
        "creation_statements": [str(creation_statement(group_role))],
        "revocation_statements": [str(statement) for statement in REVOCATION_STATEMENTS],
        "default_ttl": LOGIN_SECONDS,
        "max_ttl": LOGIN_MAX_SECONDS,
    }


def vault_commands(setup: VaultSetup) -> str:
    """Return the commands for Vault's administrator; `bao` is the same with another name."""
    url = (
        f"postgresql://{{{{username}}}}:{{{{password}}}}@{setup.host}:{setup.port}/{setup.database}"
        f"?sslmode={setup.sslmode}"
    )
    revocation = "\n".join(
        f"  revocation_statements={_quoted(statement)} \\" for statement in REVOCATION_STATEMENTS
    )
    return f"""\
vault secrets enable -path={setup.mount} database
vault write {setup.mount}/config/{setup.connection} \\
  plugin_name=postgresql-database-plugin \\
  allowed_roles='polaris-*' \\
  connection_url='{url}' \\
  username={VAULT_LOGIN} password='{PASSWORD_PLACE}' \\
  password_authentication=scram-sha-256
vault write -force {setup.mount}/rotate-root/{setup.connection}
vault write {setup.mount}/roles/{VAULT_OPERATOR_ROLE} \\
  db_name={setup.connection} \\
  creation_statements={_quoted(creation_statement(names.OPERATOR_ROLE))} \\
{revocation}
  default_ttl={LOGIN_SECONDS}s max_ttl={LOGIN_MAX_SECONDS}s
vault policy write {VAULT_POLICY} - <<'POLICY'
{vault_policy(setup.mount, setup.connection)}POLICY
vault write auth/{setup.auth_mount}/role/{setup.auth_role} \\
  bound_service_account_names={setup.service_account} \\
  bound_service_account_namespaces='{setup.namespace}' \\
  audience={setup.audience} token_policies={VAULT_POLICY} token_ttl={LOGIN_SECONDS}s
"""


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


# --- what is printed ---------------------------------------------------------------------------


def parts(platform: Platform, setup: VaultSetup, *, vault: bool = True) -> tuple[Part, ...]:
    """Return all that administrators of this platform run once, in order."""
    wanted = statements(setup.database, vault=vault)
    sql = script(wanted if vault else (*wanted, *admin_login_statements()))
    database = _DATABASE_PARTS[platform](setup.database, sql)
    if not vault:
        return database
    return (*database, Part("As an administrator of Vault or OpenBao", vault_commands(setup)))


def _postgresql(database: str, sql: str) -> tuple[Part, ...]:
    return (Part(f"As a superuser, in the database {database}: psql --dbname={database}", sql),)


def _rds(database: str, sql: str) -> tuple[Part, ...]:
    title = f"As the master user (a member of rds_superuser), in the database {database}"
    return (Part(title, sql),)


def _cloudnativepg(database: str, sql: str) -> tuple[Part, ...]:
    # CloudNativePG keeps the superuser to itself, but runs SQL as it when a cluster is made, and
    # its kubectl plugin opens psql inside the primary.
    entries = "".join(f"- |\n{indent(line, '  ')}\n" for line in sql.splitlines())
    cluster = (
        "apiVersion: postgresql.cnpg.io/v1\n"
        "kind: Cluster\n"
        "spec:\n"
        "  bootstrap:\n"
        "    initdb:\n"
        f"      database: {database}\n"
        "      postInitApplicationSQL:\n" + indent(entries, "      ")
    )
    return (
        Part("For a new cluster, in its manifest", cluster),
        Part(f"For a cluster that runs: kubectl cnpg psql CLUSTER -- {database}, and there", sql),
    )


_DATABASE_PARTS = {
    Platform.POSTGRESQL: _postgresql,
    Platform.RDS: _rds,
    Platform.CLOUDNATIVEPG: _cloudnativepg,
}


def text(platform: Platform, setup: VaultSetup, *, vault: bool = True) -> str:
    """Return everything as one text with comments between."""
    return "\n".join(f"# {part.title}\n\n{part.text}" for part in parts(platform, setup, vault=vault))
