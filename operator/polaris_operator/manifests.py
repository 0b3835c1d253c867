"""Manifests in files: read, checked by their shape, and nothing more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml

from polaris import API_GROUP, API_VERSION
from polaris.errors import InvalidManifest
from polaris.spec import MAX_NAME, SPECS, Kind
from polaris_operator.objects import Key

SUFFIXES = frozenset({".yaml", ".yml", ".json"})
DEFAULT_NAMESPACE = "default"


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


def _manifests(document: Any, where: str) -> Iterator[Manifest]:
    if document is None:
        return
    if not isinstance(document, dict):
        raise InvalidManifest(f"{where}: a document is not a mapping")
    kind, group = document.get("kind"), document.get("apiVersion")
    if kind == "List":
        for item in document.get("items") or ():
            yield from _manifests(item, where)
        return
    if kind == "Secret":
        raise InvalidManifest(
            f"{where}: secrets do not belong into the folder of manifests; write each key as a file,"
            " secrets/NAMESPACE/NAME/KEY, below the data folder"
        )
    if group != f"{API_GROUP}/{API_VERSION}" or kind not in SPECS:
        raise InvalidManifest(f"{where}: apiVersion {group}, kind {kind} is none of ours")
    yield _manifest(document, cast("Kind", kind), where)


def _manifest(document: dict[str, Any], kind: Kind, where: str) -> Manifest:
    metadata = document.get("metadata") or {}
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME[kind]:
        raise InvalidManifest(
            f"{where}: metadata.name must be 1 to {MAX_NAME[kind]} characters", "/metadata/name"
        )
    unknown = set(document) - {"apiVersion", "kind", "metadata", "spec", "status"}
    if unknown:
        raise InvalidManifest(f"{where}: unknown field {min(unknown)}", f"/{min(unknown)}")
    return Manifest(
        Key(kind, metadata.get("namespace") or DEFAULT_NAMESPACE, name),
        document.get("spec") or {},
        metadata.get("annotations") or {},
    )
