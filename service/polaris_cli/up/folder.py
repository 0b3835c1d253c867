"""The data folder of `polaris up`: what lies where, and the manifests in it.

==============  ================================================================================
`postgres`      PostgreSQL: data, log, port, the superuser's password; a link to a folder in
                `/var/lib/polaris` where root's data lies behind a closed door (see `make`)
`openbao`       OpenBao: data, log, port, root token and the key that unseals it
`manifests`     what is wanted: the operator reconciles this folder, and you may change it
`secrets`       Secrets as files: `NAMESPACE/NAME/KEY`
`status`        what is, by the operator: `KIND/NAMESPACE/NAME.yaml`
`run`           pids, ports and logs of our own programs
`handbook`      which handbook was loaded
==============  ================================================================================

Whoever can read the folder can read everything: it is made for its owner only.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from polaris.errors import InvalidManifest, Prerequisite
from polaris_cli.up.process import write_private

_ELSEWHERE = Path("/var/lib/polaris")

NAMESPACE = "default"
DATABASE = "main"
INDEX = "handbook"
LOGIN_SECRET, LOGIN_KEY = "openbao-login", "secret-id"


@dataclass(frozen=True)
class DataFolder:
    """Paths below the data folder."""

    root: Path

    @property
    def postgres(self) -> Path:
        """Of PostgreSQL; where it really is."""
        return (self.root / "postgres").resolve()

    @property
    def openbao(self) -> Path:
        """Of OpenBao."""
        return self.root / "openbao"

    @property
    def manifests(self) -> Path:
        """What is wanted."""
        return self.root / "manifests"

    @property
    def run(self) -> Path:
        """Of our own programs."""
        return self.root / "run"

    @property
    def loaded(self) -> Path:
        """Says which handbook was loaded."""
        return self.root / "handbook"

    def secret(self, name: str) -> Path:
        """Folder of a Secret."""
        return self.root / "secrets" / NAMESPACE / name

    def make(self) -> None:
        """Make it for its owner; as root, PostgreSQL's user must pass through, and reads nothing.

        PostgreSQL refuses to run as root. Where its user can't get here at all (a clone below /root),
        its data goes to a folder of its own elsewhere, and a link to that stands here.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self.root.chmod(0o711 if os.geteuid() == 0 else 0o700)
            for folder in (self.manifests, self.run, self.root / "secrets"):
                folder.mkdir(mode=0o700, exist_ok=True)
            link = self.root / "postgres"
            if os.geteuid() == 0 and not link.exists() and _is_closed(self.root):
                _ELSEWHERE.mkdir(mode=0o711, parents=True, exist_ok=True)
                link.symlink_to(tempfile.mkdtemp(prefix="postgres-", dir=_ELSEWHERE))
        except OSError as error:
            raise Prerequisite(
                f"the data folder {self.root} can't be used: {error.strerror}",
                remedy="choose another with --data or POLARIS_DATA",
            ) from None

    def remove(self) -> None:
        """Remove all of it, what lies elsewhere too. Raises OSError."""
        if (self.root / "postgres").is_symlink():
            shutil.rmtree(self.postgres, ignore_errors=True)
        shutil.rmtree(self.root)


def _is_closed(folder: Path) -> bool:
    """Whether others may not pass through a folder above this one."""
    return any(not parent.stat().st_mode & stat.S_IXOTH for parent in folder.resolve().parents)


def example(name: str) -> str:
    """Return a manifest that comes with POLARIS."""
    return (files("polaris_cli.up") / "manifests" / name).read_text("utf-8")


def handbook() -> Path:
    """Return the folder of the handbook that comes with POLARIS."""
    return Path(str(files("polaris_cli") / "handbook"))


def handbook_digest() -> str:
    """Return what changes whenever a page of the handbook does."""
    digest = hashlib.sha256()
    for page in sorted(handbook().rglob("*.md")):
        digest.update(page.relative_to(handbook()).as_posix().encode() + b"\0" + page.read_bytes() + b"\0")
    return digest.hexdigest()


@dataclass(frozen=True)
class Addresses:
    """Where the parts are since this start."""

    host: str
    port: int
    vault: str
    role_id: str


def write_manifests(folder: DataFolder, addresses: Addresses) -> None:
    """Bring the database's manifest up to date; add the first index when nothing was ever loaded."""
    database = folder.manifests / "database.yaml"
    text = database.read_text("utf-8") if database.exists() else example("database.yaml")
    changed = with_addresses(text, addresses)
    if not database.exists() or changed != text:
        write_private(database, changed)
    index = folder.manifests / f"{INDEX}.yaml"
    if not index.exists() and not folder.loaded.exists():
        write_private(index, example("handbook.yaml"))


def with_addresses(text: str, addresses: Addresses) -> str:
    """Return the manifest with the addresses of this start; everything else stays as it is."""
    try:
        manifest = yaml.safe_load(text)
        before = yaml.safe_dump(manifest)
        spec = manifest["spec"]
        spec["host"], spec["port"] = addresses.host, addresses.port
        vault = spec["credentials"]["vault"]
        vault["address"] = addresses.vault
        vault["auth"]["appRole"]["roleId"] = addresses.role_id
    except (yaml.YAMLError, KeyError, TypeError):
        raise InvalidManifest(
            "database.yaml in the folder of manifests is not the PolarisDatabase that 'polaris up' needs:"
            " remove it, and it is made anew"
        ) from None
    if yaml.safe_dump(manifest) == before:
        return text
    comment = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    return comment + yaml.safe_dump(manifest, sort_keys=False)


def conditions(status: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Yield type, status, reason and message of each condition."""
    for each in status.get("conditions") or ():
        yield each["type"], each["status"], each["reason"], each.get("message", "")
