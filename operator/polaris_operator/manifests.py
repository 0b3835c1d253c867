"""Manifests in files: read, checked by their shape, and nothing more."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml

from polaris import API_GROUP, API_VERSION
from polaris.errors import InvalidManifest
from polaris.spec import LABEL, MAX_NAME, SPECS, SUBDOMAIN, Kind
from polaris_operator.objects import Key

SUFFIXES = frozenset({".yaml", ".yml", ".json"})
DEFAULT_NAMESPACE = "default"
_MAX_NAMESPACE = 63


@dataclass(frozen=True)
class Manifest:
    """An object as a person wrote it down."""

    key: Key
    spec: Mapping[str, Any]
    annotations: Mapping[str, str] = field(default_factory=dict)


def files(path: Path) -> list[Path]:
    """Return the files of manifests at or below a path, in a stable order; hidden ones are left out."""
    if path.is_file():
        return [path]
    return sorted(
        file
        for file in path.rglob("*")
        if file.suffix in SUFFIXES
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )


def read(file: Path) -> list[Manifest]:
    """Return the manifests of a file; raise InvalidManifest that names the file and what is wrong."""
    try:
        documents = list(yaml.safe_load_all(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidManifest(f"{file.name}: {' '.join(str(error).split())}") from None
    return [manifest for document in documents for manifest in _manifests(document, file.name)]


def document_of(manifest: Manifest) -> dict[str, Any]:
    """Return a manifest as the object that a person wrote down."""
    metadata: dict[str, Any] = {"name": manifest.key.name, "namespace": manifest.key.namespace}
    if manifest.annotations:
        metadata["annotations"] = dict(manifest.annotations)
    return {
        "apiVersion": f"{API_GROUP}/{API_VERSION}",
        "kind": manifest.key.kind,
        "metadata": metadata,
        "spec": dict(manifest.spec),
    }


def only(document: Any, where: str) -> Manifest:
    """Return the manifest that a document is; raise InvalidManifest that names what is wrong."""
    if not isinstance(document, dict):
        raise InvalidManifest(f"{where}: a document is not a mapping")
    if document.get("kind") != "PolarisIndex":
        raise InvalidManifest(f"{where}: kind must be PolarisIndex", "/kind")
    (manifest,) = _manifests(document, where)
    return manifest


def _manifests(document: Any, where: str) -> Iterator[Manifest]:
    if document is None:
        return
    if not isinstance(document, dict):
        raise InvalidManifest(f"{where}: a document is not a mapping")
    kind, group = document.get("kind"), document.get("apiVersion")
    if kind == "List":
        items = document.get("items") or []
        if not isinstance(items, list):
            raise InvalidManifest(f"{where}: items is not a list", "/items")
        for item in items:
            yield from _manifests(item, where)
        return
    if kind == "Secret":
        raise InvalidManifest(
            f"{where}: secrets do not belong into the folder of manifests; write each key as a file,"
            " secrets/NAMESPACE/NAME/KEY, below the data folder"
        )
    if group != f"{API_GROUP}/{API_VERSION}" or not isinstance(kind, str) or kind not in SPECS:
        raise InvalidManifest(f"{where}: apiVersion {group}, kind {kind} is none of ours")
    yield _manifest(document, cast("Kind", kind), where)


def _manifest(document: dict[Any, Any], kind: Kind, where: str) -> Manifest:
    unknown = {str(name) for name in document} - {"apiVersion", "kind", "metadata", "spec", "status"}
    if unknown:
        raise InvalidManifest(f"{where}: unknown field {min(unknown)}", f"/{min(unknown)}")
    metadata = _mapping(document, "metadata", "", where)
    name, namespace = metadata.get("name"), metadata.get("namespace") or DEFAULT_NAMESPACE
    # Both become parts of paths below the data folder.
    if not _is_name(name, SUBDOMAIN, MAX_NAME[kind]):
        raise InvalidManifest(
            f"{where}: metadata.name must be 1 to {MAX_NAME[kind]} characters, lower-case letters, digits,"
            " hyphens and dots",
            "/metadata/name",
        )
    if not _is_name(namespace, LABEL, _MAX_NAMESPACE):
        raise InvalidManifest(
            f"{where}: metadata.namespace must be 1 to {_MAX_NAMESPACE} characters, lower-case letters,"
            " digits and hyphens",
            "/metadata/namespace",
        )
    annotations = _mapping(metadata, "annotations", "/metadata", where)
    if not all(isinstance(text, str) for pair in annotations.items() for text in pair):
        raise InvalidManifest(
            f"{where}: metadata.annotations must be strings; quote numbers, dates and yes or no",
            "/metadata/annotations",
        )
    return Manifest(
        Key(kind, namespace, cast("str", name)), _mapping(document, "spec", "", where), annotations
    )


def _mapping(parent: Mapping[Any, Any], name: str, place: str, where: str) -> dict[Any, Any]:
    found = parent.get(name)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise InvalidManifest(f"{where}: {name} is not a mapping", f"{place}/{name}")
    return found


def _is_name(text: Any, pattern: str, longest: int) -> bool:
    return isinstance(text, str) and len(text) <= longest and re.fullmatch(pattern, text) is not None
