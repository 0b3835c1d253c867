"""The chart's values: what `values.yaml` says of each, as a closed JSON schema and as a page of the docs.

Above each value stands its sentence (`# -- …`, several lines if need be), and below that, where its default
does not tell what else it may be, `# @schema` with a name of `NAMED` or with keywords of JSON Schema. A
value is closed to what its default is: a number, a text, a switch, or the keys of a mapping.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from polaris.settings import EmbedderSettings, OperatorSettings, ServiceSettings, WorkerSettings

Schema = dict[str, Any]

PROGRAMS = (OperatorSettings, ServiceSettings, WorkerSettings, EmbedderSettings)
"""The programs that the chart runs, and whose settings its settings file may hold."""

OWN = frozenset(
    {
        *("log_level", "host", "port", "metrics_host", "metrics_port"),
        *("watch_namespaces", "operator_namespace", "workers", "resync_seconds", "installation"),
        *("database_secret", "embedder", "embedder_key_file", "embedder_threads"),
        *("query_url", "auth", "audiences", "tokens_file", "pool_size", "batch_chunks"),
        *("generator", "generator_url", "generator_model", "generator_key_file", "generator_ca_file"),
        *("tls_cert_file", "tls_key_file", "embedder_ca_file"),
    }
)
"""Settings that the chart gives by variables, which win over the file: there they would be dead."""

_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_NAME = rf"{_LABEL}(\.{_LABEL})*"


def _text(pattern: str, *examples: str, **more: Any) -> Schema:
    return {"type": "string", "pattern": f"^{pattern}$", **more, "examples": list(examples)}


def _list(items: Schema, *example: Any, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more, "examples": [list(example)]}


def _objects(example: Schema, required: str) -> Schema:
    return _list({"type": "object", "required": [required]}, example)


NAMED: dict[str, Schema] = {
    "strings": {"type": "object", "additionalProperties": {"type": "string"}, "examples": [{"team": "a"}]},
    "name": _text(f"({_NAME})?", "another", maxLength=253),
    "names": _list(_text(_NAME, maxLength=253), "another"),
    "accounts": _list(_text(rf"(\*|{_NAME})", maxLength=253), "another"),
    "namespaces": _list(_text(_LABEL, maxLength=63), "default"),
    "secret": _text(_NAME, "another", maxLength=253),
    "optionalSecret": _text(f"({_NAME})?", "another", maxLength=253),
    "tag": _text(r"([\w][\w.-]{0,127})?", "another"),
    "digest": _text("(sha256:[0-9a-f]{64})?", f"sha256:{'0' * 64}"),
    "url": _text(r"(https?://\S+)?", "https://another.example.com:8443/base"),
    "duration": _text("([0-9]+(ms|s|m|h))+", "1m"),
    "hosts": _list(_text(rf"(\*\.)?{_NAME}", maxLength=253), "another.example.com"),
    "ports": _list({"type": "integer", "minimum": 1, "maximum": 65535}, 4242, minItems=1),
    "peers": _list({"type": "object", "minProperties": 1}, {"podSelector": {"matchLabels": {"app": "a"}}}),
    "pullSecrets": _list(
        {
            "type": "object",
            "required": ["name"],
            "additionalProperties": False,
            "properties": {"name": {"type": "string", "minLength": 1}},
        },
        {"name": "another"},
    ),
    "env": _objects({"name": "SOME_VARIABLE", "value": "a"}, "name"),
    "volumes": _objects({"name": "keys", "secret": {"secretName": "provider-keys"}}, "name"),
    "mounts": _objects({"name": "tmp", "mountPath": "/run/keys", "readOnly": True}, "mountPath"),
    "tolerations": _list({"type": "object"}, {"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}),
    "spread": _objects(
        {"maxSkew": 2, "topologyKey": "topology.kubernetes.io/region", "whenUnsatisfiable": "DoNotSchedule"},
        "topologyKey",
    ),
    "affinity": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            name: {"type": "object"} for name in ("nodeAffinity", "podAffinity", "podAntiAffinity")
        },
        "examples": [
            {
                "podAntiAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": [
                        {
                            "topologyKey": "kubernetes.io/hostname",
                            "labelSelector": {"matchLabels": {"a": "b"}},
                        }
                    ]
                }
            }
        ],
    },
    "resources": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "requests": {"type": "object"},
            "limits": {"type": "object"},
            "claims": {"type": "array", "items": {"type": "object"}},
        },
        "examples": [{"requests": {"cpu": "1"}, "limits": {"memory": "2Gi"}}],
    },
    "disruption": {
        "anyOf": [
            {"type": "integer", "minimum": 1},
            {"type": "string", "pattern": "^([1-9][0-9]?|100)%$"},
        ],
        "examples": ["50%", 2],
    },
    "metrics": _objects(
        {
            "type": "Resource",
            "resource": {"name": "memory", "target": {"type": "Utilization", "averageUtilization": 80}},
        },
        "type",
    ),
    "tlsConfig": {"type": "object", "examples": [{"insecureSkipVerify": True}]},
    "behavior": {
        "type": "object",
        "additionalProperties": False,
        "properties": {"scaleUp": {"type": "object"}, "scaleDown": {"type": "object"}},
        "examples": [{"scaleDown": {"stabilizationWindowSeconds": 60}}],
    },
}

_TYPES: dict[type, Schema] = {
    bool: {"type": "boolean"},
    int: {"type": "integer", "minimum": 0},
    float: {"type": "number", "minimum": 0},
    str: {"type": "string"},
}


class ValuesError(Exception):
    """`values.yaml` does not say what it must of a value; the message says of which."""


@dataclass(frozen=True)
class Value:
    """One value, or the mapping around some: `below` is None for a value."""

    path: tuple[str, ...]
    default: Any
    sentence: str
    schema: Schema
    below: tuple[Value, ...] | None = None


def values(text: str) -> Value:
    """Return what `values.yaml` says, as the root of its values.

    Raises ValuesError where a value has no sentence, or does not tell what it may be.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        raise ValuesError("the values are no mapping")
    return Value((), None, "", {}, tuple(_children(root, text.splitlines(), ())))


def _children(node: yaml.MappingNode, lines: list[str], path: tuple[str, ...]) -> Iterator[Value]:
    for key, below in node.value:
        here = (*path, key.value)
        sentence, limits = _comment(lines, key.start_mark.line, here)
        if isinstance(below, yaml.MappingNode) and below.value and limits is None:
            yield Value(here, None, sentence, {}, tuple(_children(below, lines, here)))
        else:
            loader = yaml.SafeLoader("")
            default = loader.construct_document(below)
            loader.dispose()
            if not sentence:
                raise ValuesError(f"{'.'.join(here)} has no sentence")
            yield Value(here, default, sentence, _leaf(here, default, limits or {}))


def _comment(lines: list[str], line: int, path: tuple[str, ...]) -> tuple[str, Schema | None]:
    """Return the sentence above a line, and what `@schema` says there."""
    first = line
    while first and re.match(r" *#", lines[first - 1]):
        first -= 1
    words = [text.strip().removeprefix("#").strip() for text in lines[first:line]]
    limits: Schema | None = None
    if words and words[-1].startswith("@schema"):
        said = yaml.safe_load(words.pop().removeprefix("@schema"))
        if isinstance(said, str) and said not in _named():
            raise ValuesError(f"{'.'.join(path)}: there is no type {said}")
        limits = _named()[said] if isinstance(said, str) else dict(said)
    return " ".join(words).removeprefix("--").strip(), limits


def _leaf(path: tuple[str, ...], default: Any, limits: Schema) -> Schema:
    if "enum" in limits or "anyOf" in limits or limits.get("type") in ("object", "array", "string"):
        return limits
    if isinstance(default, list) and "items" in limits:
        return {"type": "array", **limits}
    if type(default) not in _TYPES:
        raise ValuesError(f"{'.'.join(path)} does not tell what it may be: give it an @schema")
    inferred = dict(_TYPES[type(default)])
    if "exclusiveMinimum" in limits:
        del inferred["minimum"]
    return {**inferred, **limits}


def _named() -> Mapping[str, Schema]:
    return {**NAMED, "settings": _settings()}


def _settings() -> Schema:
    """Return the schema of the settings file: what the chart's programs know and no value gives."""
    properties: Schema = {}
    for model in PROGRAMS:
        schema = model.model_json_schema()
        for name, field in schema["properties"].items():
            if name not in OWN:
                properties[name] = _plain(field, schema.get("$defs", {}))
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": dict(sorted(properties.items())),
        "examples": [{"providers": [{"name": "other", "url": "http://vllm.rag.svc:8000"}], "max_k": 50}],
    }


def _plain(field: Any, definitions: Schema) -> Any:
    """Inline references; leave out titles and defaults, which are the program's."""
    if isinstance(field, list):
        return [_plain(item, definitions) for item in field]
    if not isinstance(field, dict):
        return field
    if "$ref" in field:
        return _plain(definitions[field["$ref"].rsplit("/", 1)[1]], definitions)
    return {
        k: {name: _plain(v_, definitions) for name, v_ in v.items()}
        if k == "properties"
        else _plain(v, definitions)
        for k, v in field.items()
        if k not in ("title", "default")
    }


def schema(text: str) -> str:
    """Return values.schema.json for a values.yaml: closed, each value with its sentence."""
    root = _object(values(text))
    # Set by the charts around this one, for all below them.
    root["properties"]["global"] = {"type": "object"}
    # Draft 7 is what every version of helm 3 and 4 knows.
    closed = {"$schema": "http://json-schema.org/draft-07/schema#", **root}
    return json.dumps(closed, indent=1, ensure_ascii=False) + "\n"


def _object(value: Value) -> Schema:
    assert value.below is not None  # noqa: S101  called for mappings only
    described: Schema = {"description": value.sentence} if value.sentence else {}
    properties = {
        child.path[-1]: _object(child)
        if child.below is not None
        else {"description": child.sentence, **child.schema}
        for child in value.below
    }
    return {"type": "object", **described, "additionalProperties": False, "properties": properties}


def leaves(value: Value) -> Iterator[Value]:
    """Yield the values below, in their order."""
    if value.below is None:
        yield value
    for child in value.below or ():
        yield from leaves(child)


def table(text: str) -> str:
    """Return the values as Markdown, a table for each key at the top."""
    sections: list[str] = []
    single: list[Value] = []
    for child in values(text).below or ():
        if child.below is None:
            single.append(child)
        else:
            sections.append(f"## {child.path[0]}\n\n{child.sentence}\n\n{_rows(list(leaves(child)))}")
    first = [f"## For all parts\n\n{_rows(single)}"] if sections else [_rows(single)]
    return "\n".join([*first, *sections])


def _rows(values_: list[Value]) -> str:
    lines = ["| value | default | may be | meaning |", "|---|---|---|---|"]
    for value in values_:
        default = json.dumps(value.default, ensure_ascii=False) if value.default not in ("", [], {}) else ""
        cells = (
            f"`{'.'.join(value.path)}`",
            f"`{default}`" if default else "",
            _may_be(value.schema),
            value.sentence,
        )
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _may_be(schema_: Schema) -> str:
    if "enum" in schema_:
        return ", ".join(schema_["enum"])
    if "anyOf" in schema_:
        return ", or ".join(_may_be(one) for one in schema_["anyOf"])
    kind = {
        "string": "text",
        "boolean": "true, false",
        "integer": "whole number",
        "number": "number",
        "array": "list",
        "object": "mapping",
    }[schema_["type"]]
    if schema_["type"] == "string" and schema_.get("pattern", "").endswith("%$"):
        return "percentage"
    least, most = schema_.get("minimum"), schema_.get("maximum")
    if schema_["type"] in ("integer", "number"):
        if "exclusiveMinimum" in schema_:
            return f"{kind} > {schema_['exclusiveMinimum']}"
        return f"{kind}, {least} to {most}" if most is not None else f"{kind} ≥ {least}"
    return kind
