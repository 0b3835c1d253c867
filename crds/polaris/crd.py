"""Renders the CustomResourceDefinitions from the models (written by `polaris.generated`).

Pydantic's JSON schema becomes a structural schema: references inlined, what the API server does not
allow left out, defaults written at every level (an absent object must get the defaults below it),
and the rules of `polaris.spec` added as `x-kubernetes-validations`.
"""

from __future__ import annotations

from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from polaris import API_GROUP, API_VERSION
from polaris.spec import SPECS, Part, Rule, Transition, name_rule
from polaris.status import STATUSES

Schema = dict[str, Any]

PLURALS = {"PolarisDatabase": "polarisdatabases", "PolarisIndex": "polarisindexes"}
_SHORT = {"PolarisDatabase": "pgdb", "PolarisIndex": "pidx"}
_DROPPED = {"title", "additionalProperties", "discriminator"}


def _column(name: str, path: str, kind: str = "string", **more: Any) -> Schema:
    return {"name": name, "type": kind, "jsonPath": path, **more}


_READY = ".status.conditions[?(@.type=='Ready')]"
_COLUMNS: dict[str, list[Schema]] = {
    "PolarisDatabase": [
        _column("Ready", f"{_READY}.status"),
        _column("Reason", f"{_READY}.reason"),
        _column("Server", ".status.serverVersion"),
        _column("pgvector", ".status.vectorVersion"),
        _column("Indexes", ".status.indexes", "integer"),
        _column("Age", ".metadata.creationTimestamp", "date"),
        _column("Message", f"{_READY}.message", priority=1),
    ],
    "PolarisIndex": [
        _column("Ready", f"{_READY}.status"),
        _column("Reason", f"{_READY}.reason"),
        _column("Rows", ".status.active.rows", "integer"),
        _column("Build", ".status.candidate.progress"),
        _column("Recall", ".status.verification.recallPercent"),
        _column("Age", ".metadata.creationTimestamp", "date"),
        _column("Model", ".status.active.model", priority=1),
        _column("Message", f"{_READY}.message", priority=1),
    ],
}


class _Structural(GenerateJsonSchema):
    """Pydantic's schema in the dialect of structural schemas."""

    def nullable_schema(self, schema: Any) -> Any:
        # Optional means "may be absent" in Kubernetes; null is pruned to absent.
        return self.generate_inner(schema["schema"])


def _validation(rule: Rule | Transition) -> Schema:
    return {"rule": rule.cel, "message": rule.message}


def _resolve(schema: Any, definitions: Schema) -> Any:
    """Inline references and leave out what a structural schema may not hold."""
    if isinstance(schema, list):
        return [_resolve(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        target = definitions[schema["$ref"].rsplit("/", 1)[1]]
        # What stands beside the reference (a description, a default) is nearer to the field.
        schema = {**target, **{k: v for k, v in schema.items() if k != "$ref"}}
    resolved = {k: _resolve(v, definitions) for k, v in schema.items() if k not in _DROPPED}
    if "properties" in resolved:
        # A field may be called like a keyword that is dropped elsewhere.
        resolved["properties"] = {
            name: _resolve(value, definitions) for name, value in schema["properties"].items()
        }
    if "const" in resolved:
        resolved["enum"] = [resolved.pop("const")]
    if resolved.get("default", ...) is None:
        del resolved["default"]
    return resolved


def _add_rules(schema: Schema, model: type[BaseModel]) -> None:
    """Put the rules of `model` and of the parts below it into its schema."""
    if issubclass(model, Part) and (model.rules or model.transitions):
        rules: list[Rule | Transition] = [*model.rules, *model.transitions]
        schema["x-kubernetes-validations"] = [_validation(rule) for rule in rules]
    for name, field in model.model_fields.items():
        part = _part_of(field.annotation)
        if part is None:
            continue
        below = schema["properties"][field.alias or name]
        _add_rules(below["items"] if below.get("type") == "array" else below, part)


def _part_of(annotation: Any) -> type[Part] | None:
    """Return the part that a field holds: itself, optional, or in a list."""
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if (found := _part_of(argument)) is not None:
            return found
    return None


def _shallow_defaults(schema: Schema) -> None:
    """Turn an object's default into `{}` where its fields carry the same defaults themselves.

    The API server fills them in, and a later version's new field gets its default in objects that
    are stored already. Not where a rule looks at the object: the API server judges a default by its
    rules before it fills it in, and rejects the definition.
    """
    for value in schema.get("properties", {}).values():
        _shallow_defaults(value)
        shallow = "required" not in value and "x-kubernetes-validations" not in value
        if value.get("type") == "object" and "default" in value and shallow:
            value["default"] = {}
    if "items" in schema:
        _shallow_defaults(schema["items"])


def structural(model: type[Part]) -> Schema:
    """Return the structural schema of a model."""
    raw = model.model_json_schema(by_alias=True, schema_generator=_Structural)
    schema: Schema = _resolve(raw, raw.pop("$defs", {}))
    _add_rules(schema, model)
    _shallow_defaults(schema)
    return schema


def _status_schema(kind: str) -> Schema:
    schema = structural(STATUSES[kind])
    # Lists and texts that the operator fills need no defaults of the API server's.
    for value in schema["properties"].values():
        value.pop("default", None)
    schema["default"] = {"observedGeneration": -1}
    return schema


def definition(kind: str) -> Schema:
    """Return the CustomResourceDefinition of `kind`, ready to be written as YAML."""
    plural = PLURALS[kind]
    spec_model = SPECS[kind]
    root: Schema = {
        "type": "object",
        "description": (spec_model.__doc__ or "").strip(),
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": structural(spec_model),
            "status": _status_schema(kind),
        },
        "x-kubernetes-validations": [_validation(name_rule(kind))],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{API_GROUP}"},
        "spec": {
            "group": API_GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": [_SHORT[kind]],
                "categories": ["polaris"],
            },
            "versions": [
                {
                    "name": API_VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": root},
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": _COLUMNS[kind],
                }
            ],
        },
    }


def render(kind: str) -> str:
    """Return the CustomResourceDefinition of `kind` as YAML."""
    head = "# Made from crds/polaris/spec.py by `make crds`. Change it there.\n"
    return head + yaml.safe_dump(definition(kind), sort_keys=False, width=100, allow_unicode=True)
