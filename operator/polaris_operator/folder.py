"""Objects as files: life without a cluster.

Manifests are a person's (a folder of YAML, watched by looking). Everything else is kept below a data
folder, and one process at a time works with it:

=================================  ==================================================================
`installation`                     who we are in catalogs: drawn once
`objects/KIND/NAMESPACE/NAME`      what the API server would add: uid, generation, finalizers, deletion
`status/KIND/NAMESPACE/NAME.yaml`  status, for people
`secrets/NAMESPACE/NAME/KEY`       Secrets, one file a key, as the kubelet mounts them
=================================  ==================================================================

A Secret of ours is written into a new folder, and a symlink is swapped: who reads all files from one
resolved folder sees one version. A Secret that a person makes for us is a folder of plain files.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import yaml

from polaris.errors import Conflict, InvalidManifest, NotOwner
from polaris.names import FINALIZER
from polaris.spec import SPECS, Kind, check_transition, parse_spec
from polaris.telemetry import logger
from polaris_operator import manifests
from polaris_operator.manifests import Manifest
from polaris_operator.objects import Key, Resource, Secret, Token

log = logger(__name__)

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_CURRENT = "..data"
ABSENT_SECONDS = 2.0
"""How long a manifest has to be away for its object to be deleted: an editor that saves removes the
file, or empties it, for a moment."""


@dataclass
class _Kept:
    """What the API server would keep of an object."""

    uid: str
    generation: int = 1
    version: int = 1
    spec: dict[str, Any] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    finalizers: list[str] = field(default_factory=list)
    deleted_at: str | None = None
    status: dict[str, Any] = field(default_factory=dict)


class FolderObjects:
    """Objects from a folder of manifests; implements `Objects`."""

    def __init__(self, directory: Path, data: Path, *, absent_seconds: float = 0.0) -> None:
        """Work with a folder of manifests, or a single file, and a data folder.

        A manifest that is missed at one look and, so many seconds later, at another one is a deleted
        object; by default one look is enough.
        """
        self._directory = directory
        self._data = data
        self._absent_seconds = absent_seconds
        self._missed: dict[Key, float] = {}
        self._lock = threading.RLock()
        self._seen: dict[Path, tuple[tuple[int, int], Sequence[Manifest]]] = {}
        self._problems: dict[str, str] = {}
        self._complete = False
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._held = self._hold()
        self._installation = self._drawn()
        self._kept: dict[Key, _Kept] = dict(_kept(data))

    def close(self) -> None:
        """Let another process work with the data folder."""
        self._held.close()

    # Objects

    @property
    def installation(self) -> str:
        """A name of this folder, drawn once."""
        return self._installation

    def get(self, key: Key) -> Resource | None:
        """Return the object as last seen; None where there is none."""
        with self._lock:
            kept = self._kept.get(key)
            return None if kept is None else _resource(key, kept)

    def list(self, kind: Kind) -> list[Resource]:
        """Return all objects of a kind."""
        with self._lock:
            return [_resource(key, kept) for key, kept in sorted(self._kept.items()) if key.kind == kind]

    def complete(self) -> bool:
        """Whether every file could be read: only then does an absent object mean a deleted one."""
        return self._complete

    def watches(self, namespace: str) -> bool:  # noqa: ARG002
        """Whether objects of this namespace are ours: all are."""
        return True

    def write_status(self, resource: Resource, status: Mapping[str, Any]) -> Resource:
        """Replace the status."""
        with self._lock:
            kept = self._present(resource)
            kept.status = dict(status)
            return self._keep(resource.key, kept)

    def set_finalizer(self, resource: Resource, *, present: bool) -> Resource:
        """Add or remove our finalizer; an object that was deleted and has none goes."""
        with self._lock:
            kept = self._present(resource)
            others = [name for name in kept.finalizers if name != FINALIZER]
            kept.finalizers = [*others, FINALIZER] if present else others
            if kept.deleted_at is not None and not kept.finalizers:
                self._drop(resource.key, kept)
                return replace(_resource(resource.key, kept), finalizers=())
            return self._keep(resource.key, kept)

    def event(self, resource: Resource, reason: str, message: str, *, warning: bool) -> None:
        """Tell a person what happened: the log is all there is."""
        say = log.warning if warning else log.info
        say("event", object=str(resource.key), reason=reason, message=message)

    def service_account_token(self, namespace: str, name: str, audience: str) -> Token:  # noqa: ARG002
        """A folder has no ServiceAccounts."""
        raise InvalidManifest(
            "/spec/credentials/vault/auth/kubernetes: a folder has no ServiceAccounts; use token or appRole",
            "/spec/credentials/vault/auth/kubernetes",
        )

    # Secrets

    def secret(self, namespace: str, name: str) -> Secret | None:
        """Return a Secret: the version that the symlink leads to, or a folder of plain files."""
        folder = self._secret_folder(namespace, name)
        if not folder.is_dir():
            return None
        version, owner = folder / _CURRENT, folder / "..owner"
        if not owner.exists():
            # What a person wrote with an editor or `echo` ends with a newline that nobody means.
            written = {key: value.removesuffix("\n") for key, value in _texts(folder).items()}
            # A folder without a key is what a crash left before it was anybody's.
            return Secret(written) if written else None
        data = _texts(version.resolve()) if version.is_symlink() else {}
        return Secret(data, owner.read_text(), str(version.readlink()) if version.is_symlink() else "")

    def write_secret(self, namespace: str, name: str, data: Mapping[str, str], owner: Resource) -> None:
        """Create or update a Secret that `owner` owns; NotOwner where it is somebody else's."""
        with self._lock:
            folder = self._secret_folder(namespace, name)
            found = self.secret(namespace, name)
            if found is not None and found.owner_uid != owner.uid:
                raise NotOwner(f"Secret {namespace}/{name} exists and belongs to somebody else")
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _write(folder / "..owner", owner.uid)
            version = Path(tempfile.mkdtemp(prefix="..", dir=folder))
            for key, value in data.items():
                _write(version / key, value)
            _swap(folder / _CURRENT, version.name)
            self._tidy(folder, version, data)

    def delete_secret(self, namespace: str, name: str, owner: Resource) -> None:
        """Delete a Secret where `owner` owns it; otherwise leave it."""
        with self._lock:
            found = self.secret(namespace, name)
            if found is not None and found.owner_uid == owner.uid:
                _remove(self._secret_folder(namespace, name))

    def _tidy(self, folder: Path, version: Path, data: Mapping[str, str]) -> None:
        """Make a name for each key, as the kubelet does, and remove what older versions left."""
        for key in data:
            if not (folder / key).is_symlink():
                _swap(folder / key, f"{_CURRENT}/{key}")
        for left in folder.iterdir():
            if left.is_symlink() and left.name != _CURRENT and left.name not in data:
                left.unlink()
            elif left.is_dir() and not left.is_symlink() and left != version:
                shutil.rmtree(left)

    def _secret_folder(self, namespace: str, name: str) -> Path:
        for part in (namespace, name):
            if not _NAME.fullmatch(part):
                raise InvalidManifest(f"{part!r} is no name of a Secret or namespace")
        return self._data / "secrets" / namespace / name

    # Looking

    def look(self) -> set[Key]:
        """Look at the folder of manifests; return the objects that are new, changed or deleted.

        A file that can't be read keeps the objects that it had before, and a folder that can't be listed
        all; what is wrong is logged, and `problems` returns it.
        """
        with self._lock:
            problems: dict[str, str] = {}
            found: dict[Key, Manifest] = {}
            files, broken = self._files(problems)
            for file in files:
                try:
                    read = self._read(file)
                except (InvalidManifest, OSError) as error:
                    problems[str(file)] = str(error)
                    broken = broken or file not in self._seen
                    read = self._seen[file][1] if file in self._seen else ()
                for manifest in read:
                    if manifest.key in found:
                        problems[str(file)] = f"{file.name}: {manifest.key} stands in two places"
                    found.setdefault(manifest.key, manifest)
            changed = self._take(found, problems, delete=not broken)
            self._complete = self._complete or not broken
            self._tell(problems)
            return changed

    @property
    def problems(self) -> Mapping[str, str]:
        """What is wrong in the folder of manifests, by file or object."""
        return dict(self._problems)

    def _files(self, problems: dict[str, str]) -> tuple[Sequence[Path], bool]:
        """Return the files, and whether they can't be listed: a folder that is away deletes nothing."""
        try:
            # What is looked for below passes over folders that are away or closed to us.
            if not self._directory.is_file():
                any(self._directory.iterdir())
            return manifests.files(self._directory), False
        except OSError as error:
            problems[str(self._directory)] = f"the folder of manifests can't be listed: {error}"
            return [], True

    def _read(self, file: Path) -> Sequence[Manifest]:
        stat = file.stat()
        stamp = (stat.st_mtime_ns, stat.st_size)
        if file in self._seen and self._seen[file][0] == stamp:
            return self._seen[file][1]
        read = manifests.read(file)
        self._seen[file] = (stamp, read)
        return read

    def _take(self, found: Mapping[Key, Manifest], problems: dict[str, str], *, delete: bool) -> set[Key]:
        changed = set()
        for key, manifest in found.items():
            try:
                if self._admit(key, manifest):
                    changed.add(key)
            except InvalidManifest as error:
                problems[str(key)] = f"{key}: {error}"
        if delete:
            absent = {key for key, kept in self._kept.items() if kept.deleted_at is None} - found.keys()
            for key in self._gone(absent):
                changed.add(key)
                self._delete(key, self._kept[key])
        return changed

    def _gone(self, absent: AbstractSet[Key]) -> Sequence[Key]:
        """Return those that were missed for so long that they are gone; remember since when."""
        now = time.monotonic()
        self._missed = {key: self._missed.get(key, now) for key in absent}
        return sorted(key for key, since in self._missed.items() if now - since >= self._absent_seconds)

    def _admit(self, key: Key, manifest: Manifest) -> bool:
        """Take a manifest over, as the API server would; return whether anything changed."""
        spec, annotations = dict(manifest.spec), dict(manifest.annotations)
        kept = self._kept.get(key)
        if kept is None:
            parse_spec(SPECS[key.kind], spec)
            uid = str(uuid.uuid5(uuid.UUID(self._installation), str(key)))
            self._keep(key, _Kept(uid, 1, 0, spec, annotations))
            return True
        if kept.deleted_at is not None or (kept.spec, kept.annotations) == (spec, annotations):
            return False
        check_transition(parse_spec(SPECS[key.kind], kept.spec), parse_spec(SPECS[key.kind], spec))
        if kept.spec != spec:
            kept.generation += 1
        kept.spec, kept.annotations = spec, annotations
        self._keep(key, kept)
        return True

    def _delete(self, key: Key, kept: _Kept) -> None:
        if not kept.finalizers:
            self._drop(key, kept)
            return
        kept.deleted_at = datetime.now(UTC).isoformat()
        self._keep(key, kept)

    def _tell(self, problems: dict[str, str]) -> None:
        for where, problem in problems.items():
            if self._problems.get(where) != problem:
                log.error("manifest refused", problem=problem)
        self._problems = problems

    # What is kept

    def _hold(self) -> Any:
        held = (self._data / "lock").open("a")
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            held.close()
            raise Conflict(f"another process works with {self._data}") from None
        return held

    def _drawn(self) -> str:
        file = self._data / "installation"
        if not file.exists():
            _write(file, str(uuid.uuid4()))
        return str(uuid.UUID(file.read_text().strip()))

    def _present(self, resource: Resource) -> _Kept:
        kept = self._kept.get(resource.key)
        if kept is None or kept.uid != resource.uid:
            raise Conflict(f"{resource.key} is gone")
        if str(kept.version) != resource.resource_version:
            raise Conflict(f"{resource.key} is no longer what was read")
        return kept

    def _keep(self, key: Key, kept: _Kept) -> Resource:
        kept.version += 1
        self._kept[key] = kept
        _write(self._file("objects", key, "json"), json.dumps(asdict(kept)))
        if kept.status:
            _write(self._file("status", key, "yaml"), yaml.safe_dump(kept.status, sort_keys=False))
        return _resource(key, kept)

    def _drop(self, key: Key, kept: _Kept) -> None:
        """Forget an object, and the Secrets that it owns: nobody else collects them here."""
        del self._kept[key]
        for owner in (self._data / "secrets").glob("*/*/..owner"):
            if owner.read_text() == kept.uid:
                _remove(owner.parent)
        for file in (self._file("objects", key, "json"), self._file("status", key, "yaml")):
            file.unlink(missing_ok=True)

    def _file(self, what: str, key: Key, suffix: str) -> Path:
        return self._data / what / key.kind / key.namespace / f"{key.name}.{suffix}"


def peek(data: Path) -> list[Resource]:
    """Return the objects that a data folder holds, also while another process works with it."""
    return [_resource(key, kept) for key, kept in sorted(_kept(data))]


def _kept(data: Path) -> Iterator[tuple[Key, _Kept]]:
    for kind in SPECS:
        for file in (data / "objects" / kind).glob("*/*.json"):
            with contextlib.suppress(FileNotFoundError):  # deleted while we look
                key = Key(cast("Kind", kind), file.parent.name, file.stem)
                yield key, _Kept(**json.loads(file.read_text()))


def _resource(key: Key, kept: _Kept) -> Resource:
    return Resource(
        key=key,
        uid=kept.uid,
        generation=kept.generation,
        resource_version=str(kept.version),
        spec=kept.spec,
        status=kept.status,
        annotations=kept.annotations,
        finalizers=tuple(kept.finalizers),
        deleted_at=None if kept.deleted_at is None else datetime.fromisoformat(kept.deleted_at),
    )


def _texts(folder: Path) -> dict[str, str]:
    return {
        file.name: file.read_text(encoding="utf-8")
        for file in sorted(folder.iterdir())
        if file.is_file() and not file.name.startswith("..")
    }


def _remove(folder: Path) -> None:
    """Remove a Secret's folder: no crash leaves one of its name that has keys and no owner."""
    if not folder.name.startswith(".."):
        leaving = folder.with_name(f"..{folder.name}")
        if leaving.exists():  # A crash left it the last time.
            shutil.rmtree(leaving)
        folder = folder.replace(leaving)
    shutil.rmtree(folder)


def _write(file: Path, text: str) -> None:
    """Write a file that only we may read; it is there whole, or as it was."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix="..")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as opened:
            opened.write(text)
            opened.flush()
            os.fsync(opened.fileno())
        Path(temporary).replace(file)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise


def _swap(link: Path, target: str) -> None:
    """Make `link` lead to `target`, in one step."""
    temporary = link.with_name(f"..{link.name}.new")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)
