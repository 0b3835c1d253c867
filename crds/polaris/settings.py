"""Settings: one model a program, made once in its main from flags, environment and a file.

Nothing reads the environment at import. Each setting has one row in `docs/settings.md`, made from
these models (`polaris.generated`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.alias_generators import to_camel

from polaris.errors import InvalidInput

PREFIX = "POLARIS_"

LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Addresses at which nobody but this machine's own is listened to."""

T = TypeVar("T", bound="Settings")

Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0)]


class Settings(BaseModel):
    """Base of a program's settings: the field `auth` is the variable POLARIS_AUTH."""

    model_config = ConfigDict(extra="ignore", frozen=True, use_attribute_docstrings=True)

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level of what is logged."""

    @classmethod
    def load(
        cls,
        environment: Mapping[str, str],
        flags: Mapping[str, Any] | None = None,
    ) -> Self:
        """Return the settings: flags win over variables, variables over POLARIS_SETTINGS_FILE."""
        given = {
            name: environment[variable]
            for name in cls.model_fields
            if (variable := PREFIX + name.upper()) in environment
        }
        merged = {**_read_file(environment), **given, **_set(flags or {})}
        try:
            return cls.model_validate(merged)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            name = str(first["loc"][0]) if first["loc"] else ""
            raise InvalidInput(f"{PREFIX}{name.upper()}: {first['msg']}", f"/{name}") from None


def _read_file(environment: Mapping[str, str]) -> dict[str, Any]:
    path = environment.get(f"{PREFIX}SETTINGS_FILE")
    if not path:
        return {}
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise InvalidInput(f"{PREFIX}SETTINGS_FILE: {error}") from None
    if not isinstance(content, dict):
        raise InvalidInput(f"{PREFIX}SETTINGS_FILE: {path} is not a mapping of settings")
    # One file may be all programs', so a key of another one's is passed over, but none of nobody's.
    known = {name for model in PROGRAMS.values() for name in model.model_fields}
    if unknown := [str(key) for key in content if key not in known]:
        near = difflib.get_close_matches(unknown[0], known, 1)
        hint = f"; is it {near[0]}?" if near else ""
        raise InvalidInput(f"{PREFIX}SETTINGS_FILE: {path}: there is no setting {unknown[0]}{hint}")
    return content


def _set(flags: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value is not None}


class Served(Settings):
    """Settings of a program that shows a certificate to its callers."""

    tls_cert_file: str = ""
    """File with the certificate (PEM, its chain behind it) that is shown to callers; followed when it
    changes, without a restart. Empty: plain HTTP."""
    tls_key_file: str = ""
    """File with that certificate's key."""

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        names = {"POLARIS_TLS_CERT_FILE": self.tls_cert_file, "POLARIS_TLS_KEY_FILE": self.tls_key_file}
        missing = [name for name, value in names.items() if not value]
        if len(missing) == 1:
            raise ValueError(f"{missing[0]} is missing: a certificate is served with its key")
        return self


class OperatorSettings(Served):
    """Settings of `polaris operator`."""

    watch_namespaces: str = ""
    """Namespaces whose objects are reconciled, comma-separated; empty: all."""
    operator_namespace: str = ""
    """Namespace of the Lease that says which operator of an installation leads. Empty: the pod's own."""
    metrics_host: str = "0.0.0.0"  # noqa: S104  kubelet and Prometheus ask from outside
    """Address of /metrics, /livez, /readyz and /v1/plan."""
    metrics_port: Port = 9090
    """Port of /metrics, /livez, /readyz and /v1/plan; 0: any free one."""
    plan_audiences: str = "polaris"
    """Audiences of the tokens that are accepted at /v1/plan, comma-separated."""
    workers: Annotated[int, Field(ge=1, le=64)] = 4
    """Objects that are reconciled at the same time."""
    resync_seconds: Seconds = 60
    """Longest time between two looks at an object whose manifest does not change."""
    installation: str = ""
    """Name of this installation in the catalog, where two operators share a database."""


class Provider(BaseModel):
    """An embedding provider: an entry of `providers` in the settings file."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        alias_generator=to_camel,
        populate_by_name=True,
    )

    name: str
    url: str
    key_file: str = ""
    ca_file: str = ""
    models: list[dict[str, Any]] = []


class _Embedders(Settings):
    embedder: str = "local"
    """The provider `default`: `local` (the model in this process), or the base URL of a service that
    speaks OpenAI's /v1/embeddings."""
    embedder_key_file: str = ""
    """File with the API key of that service; read again when it changes."""
    embedder_ca_file: str = ""
    """File with the certificates (PEM) of the authorities that are believed about that service's
    certificate; followed when it changes. Empty: the public ones."""
    embedder_timeout_seconds: Seconds = 30
    """Longest time of one request to it."""
    providers: list[Provider] = []
    """More providers, each with name, url, keyFile, caFile and models (settings file only)."""
    database_secret: str = ""
    """Folder that holds the login's Secret as files, one a key; followed when it changes."""


class ServiceSettings(_Embedders, Served):
    """Settings of `polaris serve`."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Port = 8080
    """Port to listen on; 0: any free one."""
    query_url: str = ""
    """Where others reach this service, for `status.queryURL`; empty: not said."""
    read_host: str = ""
    """Host of a standby of PostgreSQL that everything is read from; no document is taken then. Empty: the
    Secret's."""
    read_port: Port = 0
    """Port of that standby; 0: the Secret's."""
    auth: Literal["kubernetes", "tokens", "none"] = "kubernetes"
    """Who may ask: by the Kubernetes API, by a file of tokens, or everybody (loopback only)."""
    audiences: str = "polaris"
    """With `kubernetes`: token audiences that are accepted, comma-separated."""
    auth_cache_seconds: Seconds = 10
    """How long an answer of the Kubernetes API is believed."""
    tokens_file: str = ""
    """With `tokens`: file of hashed tokens with name, verbs and indexes. Gone: nobody is let in (503);
    wrong: the last right one holds."""
    generator: Literal["extractive", "openai", "gemini"] = "extractive"
    """What writes answers."""
    generator_url: str = ""
    """Base URL of the generator."""
    generator_model: str = ""
    """The generator's name for the model."""
    generator_key_file: str = ""
    """File with the generator's API key; read again when it changes."""
    generator_ca_file: str = ""
    """File with the certificates (PEM) of the authorities that are believed about the generator's
    certificate; followed when it changes. Empty: the public ones. With it, no proxy of the environment is
    used."""
    generator_timeout_seconds: Seconds = 60
    """Longest time of one generation."""
    max_k: Annotated[int, Field(ge=1, le=1000)] = 1000
    """Most hits of one search."""
    max_body_bytes: Annotated[int, Field(ge=1024)] = 16 * 2**20
    """Largest request body, but for batches, which are streamed."""
    max_document_bytes: Annotated[int, Field(ge=1024)] = 8 * 2**20
    """Largest text of a document, in UTF-8."""
    max_id_bytes: Annotated[int, Field(ge=16, le=2048)] = 1024
    """Longest id of a document, in UTF-8."""
    max_filter_depth: Annotated[int, Field(ge=1, le=64)] = 16
    """Deepest nesting of a filter."""
    max_filter_terms: Annotated[int, Field(ge=1, le=10000)] = 256
    """Most comparisons and list entries of a filter."""
    max_batch_lines: Annotated[int, Field(ge=1)] = 1_000_000
    """Most documents of one batch."""
    pool_size: Annotated[int, Field(ge=1, le=100)] = 8
    """Connections to PostgreSQL."""
    request_timeout_seconds: Seconds = 30
    """Longest time of one search, unless the caller asks for less."""
    sample_questions: bool = True
    """Whether vectors of some questions (64 for an index, never their words) are kept in the catalog, so that
    recall is measured for what is asked."""

    @model_validator(mode="after")
    def _open_only_on_loopback(self) -> Self:
        if self.auth == "none" and self.host not in LOOPBACK:
            raise ValueError(f"auth none is for loopback only, and host is {self.host}")
        if self.auth == "tokens" and not self.tokens_file:
            raise ValueError("auth tokens needs POLARIS_TOKENS_FILE")
        if self.generator != "extractive" and not (self.generator_url and self.generator_model):
            raise ValueError(f"generator {self.generator} needs a URL and a model")
        return self


class WorkerSettings(_Embedders):
    """Settings of `polaris worker`."""

    metrics_host: str = "0.0.0.0"  # noqa: S104  kubelet and Prometheus ask from outside
    """Address of /metrics, /livez and /readyz."""
    metrics_port: Port = 9091
    """Port of /metrics, /livez and /readyz; 0: any free one."""
    batch_chunks: Annotated[int, Field(ge=1, le=4096)] = 64
    """Chunks that are embedded at a time."""
    poll_seconds: Seconds = 5
    """Longest time between two looks for work; a NOTIFY wakes earlier."""
    max_tries: Annotated[int, Field(ge=1, le=100)] = 5
    """Tries before a document is given up on until it changes or is retried."""
    bulk_documents: Annotated[int, Field(ge=100)] = 10_000
    """With more documents than this behind in a small index, load first and index after."""
    backfill_percent: Annotated[int, Field(ge=1, le=100)] = 50
    """Share of its time that a worker takes at most for generations that do not serve, so that queries and
    new documents keep theirs."""


class EmbedderSettings(Served):
    """Settings of `polaris embedder`."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Port = 8081
    """Port to listen on; 0: any free one."""
    embedder_threads: Annotated[int, Field(ge=0, le=256)] = 0
    """Threads of the model; 0: one a core."""


class ClientSettings(Settings):
    """Settings of the commands that talk to a service: `polaris load`, `search`, `ask` and `smoke`."""

    server: str = "http://127.0.0.1:8080"
    """Base address of the service."""
    token_file: str = ""
    """File with the token to show to the service; empty: none is shown."""
    ca_file: str = ""
    """File with the certificates (PEM) of the authorities that are believed about the service's
    certificate. Empty: the public ones."""
    client_timeout_seconds: Seconds = 60
    """Longest wait for an answer of the service."""
    client_retry_seconds: Seconds = 300
    """How long a load goes on trying where the service is busy or away."""

    @field_validator("server")
    @classmethod
    def _is_an_address(cls, server: str) -> str:
        if not re.fullmatch(r"https?://[^/\s]+(/\S*)?", server):
            raise ValueError(f"{server!r} is no address such as http://127.0.0.1:8080")
        return server


class MigrateSettings(Settings):
    """Settings of `polaris migrate`: a login that is a member of `polaris_operator`."""

    database_secret: str = ""
    """Folder that holds the login's Secret as files, one a key."""
    database_url: str = ""
    """Without such a folder: `postgresql://LOGIN:PASSWORD@HOST:PORT/DATABASE?sslmode=…`."""


class FolderSettings(Settings):
    """Settings of the commands that reconcile without a cluster: `polaris plan`, `apply` and `get`."""

    log_level: Literal["debug", "info", "warning", "error"] = "warning"
    """Least level of what is logged."""
    data: Path = Path(".polaris")
    """Folder that holds everything that `polaris up` keeps; Secrets and status of objects too."""


class UpSettings(FolderSettings):
    """Settings of `polaris up`."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level of what is logged."""
    host: str = "127.0.0.1"
    """Address of the service."""
    port: Port = 8080
    """Port of the service."""


PROGRAMS: dict[str, type[Settings]] = {
    "polaris operator": OperatorSettings,
    "polaris serve": ServiceSettings,
    "polaris worker": WorkerSettings,
    "polaris embedder": EmbedderSettings,
    "polaris up": UpSettings,
    "polaris migrate": MigrateSettings,
    "polaris plan, apply, get": FolderSettings,
    "polaris load, search, ask": ClientSettings,
}


def rows() -> Iterator[tuple[str, str, str, str]]:
    """Yield (program, variable, default, meaning) of every setting."""
    for program, model in PROGRAMS.items():
        for name, field in model.model_fields.items():
            default = field.get_default(call_default_factory=True)
            meaning = " ".join((field.description or "").split())
            yield program, PREFIX + name.upper(), "" if default is None else str(default), meaning


def table() -> str:
    """Return the settings as Markdown."""
    lines = ["| variable | of | default | meaning |", "|---|---|---|---|"]
    merged: dict[tuple[str, str, str], list[str]] = {}
    for program, variable, default, meaning in rows():
        merged.setdefault((variable, default, meaning), []).append(program.removeprefix("polaris "))
    for (variable, default, meaning), programs in sorted(merged.items()):
        shown = f"`{default}`" if default else ""
        lines.append(f"| `{variable}` | {', '.join(programs)} | {shown} | {meaning} |")
    return "\n".join(lines) + "\n"
