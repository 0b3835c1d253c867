"""Manifests: read from where a person keeps them, and put where they are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from polaris.errors import InvalidManifest
from polaris.spec import SPECS, PolarisDatabaseSpec, PolarisIndexSpec, check_transition, parse_spec
from polaris_cli.flags import WrongUsage
from polaris_cli.up.process import write_private
from polaris_operator import manifests
from polaris_operator.folder import peek
from polaris_operator.manifests import Manifest
from polaris_operator.objects import Key

FOLDER = "manifests"


def read(paths: Sequence[Path]) -> list[Manifest]:
    """Return the manifests at or below the paths, each valid by itself; databases come first.

    Raises WrongUsage for a path that is not there, InvalidManifest for what is wrong in one.
    """
    found: dict[Key, Manifest] = {}
    for path in paths:
        if not path.exists():
            raise WrongUsage(f"there is no file or folder {path}")
        for file in manifests.files(path):
            for manifest in manifests.read(file):
                if manifest.key in found:
                    raise InvalidManifest(f"{file}: {manifest.key} stands in two places")
                parse(manifest)
                found[manifest.key] = manifest
    if not found:
        raise InvalidManifest(f"there is no manifest in {', '.join(map(str, paths))}")
    return [found[key] for key in sorted(found)]


def parse(manifest: Manifest) -> PolarisDatabaseSpec | PolarisIndexSpec:
    """Return the spec; InvalidManifest that names the object and the field."""
    try:
        return parse_spec(SPECS[manifest.key.kind], manifest.spec)
    except InvalidManifest as error:
        raise InvalidManifest(f"{manifest.key}: {error}", error.pointer) from None


def check_changes(wanted: Sequence[Manifest], data: Path) -> None:
    """Raise InvalidManifest for a change that is always refused, by what the data folder holds now."""
    present = {resource.key: resource for resource in peek(data)}
    for manifest in wanted:
        if manifest.key in present:
            before = parse_spec(SPECS[manifest.key.kind], present[manifest.key].spec)
            try:
                check_transition(before, parse(manifest))
            except InvalidManifest as error:
                raise InvalidManifest(f"{manifest.key}: {error}", error.pointer) from None


def put(wanted: Sequence[Manifest], data: Path) -> None:
    """Write manifests into the data folder's, each where it stands already, or into a new file."""
    folder = data / FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = {file: _readable(file) for file in manifests.files(folder)}
    for manifest in wanted:
        file = next((file for file, held in files.items() if manifest.key in held), None)
        if file is None:
            kind, namespace, name = manifest.key.kind, manifest.key.namespace, manifest.key.name
            file = folder / f"{kind.lower()}.{namespace}.{name}.yaml"
            files[file] = {}
        if files[file].get(manifest.key) != manifest:
            files[file][manifest.key] = manifest
            write_private(file, _text(list(files[file].values())))


def _readable(file: Path) -> dict[Key, Manifest]:
    try:
        return {manifest.key: manifest for manifest in manifests.read(file)}
    except InvalidManifest:
        return {}  # The operator tells of it; it is not ours to write over.


def _text(held: Sequence[Manifest]) -> str:
    return yaml.safe_dump_all([manifests.document_of(manifest) for manifest in held], sort_keys=False)
