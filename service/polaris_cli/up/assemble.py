"""`polaris up`: all of POLARIS on this machine, from real parts, in one folder.

PostgreSQL and OpenBao come from wheels and are set up as administrators would do it; operator,
service, worker and embedder are the programs of the same names, each a process of its own: one that
dies takes no other with it, and is started again. The embedder holds the only copy of the model.
"""

from __future__ import annotations

import http.client
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from polaris.errors import Conflict, DeadlineExceeded, Prerequisite, Unavailable
from polaris.settings import ClientSettings, UpSettings
from polaris_cli import checks, names, show
from polaris_cli.client import Service
from polaris_cli.load import files
from polaris_cli.load.document import Options
from polaris_cli.load.send import Loader
from polaris_cli.up import folder as layout
from polaris_cli.up import grant, ports
from polaris_cli.up.folder import DataFolder
from polaris_cli.up.openbao import LocalOpenBao
from polaris_cli.up.postgres import LocalPostgres
from polaris_cli.up.process import Process, write_private
from polaris_cli.up.supervise import Part, State, Supervisor

DATABASE = "polaris"
_FIRST_INDEX = names.IndexName(layout.NAMESPACE, layout.INDEX)
_READY_SECONDS = 120.0
_LOOK_SECONDS = 0.1
# What the status says may be of the run before, or of a moment in which not all was looked at.
_STALLED_SECONDS = 5.0
_PROBE_SECONDS = 1.0


def run(settings: UpSettings) -> None:
    """Start everything, say how to ask a first question, and keep it running until a signal."""
    folder = DataFolder(settings.data.absolute())
    folder.make()
    with Supervisor(folder.root, _report) as supervisor:
        # Only now: where another runs on this data, that is what a person has to know.
        if (problem := checks.port_problem(settings.host, settings.port)) is not None:
            raise Conflict(f"{problem}: choose another with --port or POLARIS_PORT")
        port = settings.port or ports.any_free()
        up = Up(settings.model_copy(update={"port": port}), folder, supervisor)
        up.start()
        supervisor.watch()
        show.say("stopping")


def _report(part: str, state: State, detail: str) -> None:
    """Tell of what nobody asked for; the steps of the start tell of themselves."""
    if state in ("died", "restarting"):
        show.say(f"{part} {state}{': ' if detail else ''}{detail}")


class Up:
    """The parts, and the order in which they are brought up."""

    def __init__(self, settings: UpSettings, folder: DataFolder, supervisor: Supervisor) -> None:
        self._settings = settings
        self._folder = folder
        self._supervisor = supervisor
        self._postgres = LocalPostgres(folder.postgres)
        self._openbao = LocalOpenBao(folder.openbao)
        # Somebody's own embedding service takes the place of ours.
        self._embeds_elsewhere = os.environ.get("POLARIS_EMBEDDER", "")
        self._embedder = self._program("embedder", self._embedder_arguments)
        self._operator = self._program("operator", self._operator_arguments)
        self._worker = self._program("worker", self._worker_arguments)
        self._service = self._program("service", self._service_arguments, port=settings.port)

    @property
    def address(self) -> str:
        """Where the service answers."""
        host = self._settings.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self._settings.port}"

    def start(self) -> None:
        """Bring everything up; raise PolarisError where a part does not come up."""
        began = time.monotonic()
        with ExitStack() as begun:
            # The model takes longest to be ready, and needs nobody.
            if not self._embeds_elsewhere:
                self._begin(begun, self._embedder)
            with show.step(f"PostgreSQL {self._postgres.installation.version} with pgvector"):
                self._supervisor.start(self._postgres)
            with show.step("OpenBao"):
                self._supervisor.start(self._openbao)
            with show.step("roles in PostgreSQL, logins by OpenBao"):
                self._grant()
            for part in (self._operator, self._service, self._worker):
                self._begin(begun, part)
            if not self._embeds_elsewhere:
                with show.step("embedding model"):
                    self._supervisor.start(self._embedder)
            with show.step("operator, service, worker"):
                for part in (self._operator, self._service, self._worker):
                    self._supervisor.start(part)
            begun.pop_all()
        self._first_index()
        self._say_ready(time.monotonic() - began)

    def _begin(self, begun: ExitStack, part: Part) -> None:
        """Start a part without waiting; it ends with the block unless the supervisor has it by then."""
        begun.callback(part.stop)
        part.spawn()

    # --- what administrators do ---

    def _grant(self) -> None:
        dsn = grant.make_database(self._postgres.superuser_dsn, DATABASE)
        grant.grant(dsn, DATABASE)
        password = grant.new_vault_password(dsn)
        secret = self._folder.secret(layout.LOGIN_SECRET)
        file = secret / layout.LOGIN_KEY
        with grant.VaultAdministrator(self._openbao.address, self._openbao.root_token) as administrator:
            administrator.connect_database(self._postgres.host, self._postgres.port, DATABASE, password)
            role_id = administrator.allow_operator()
            present = file.read_text("utf-8") if file.exists() else None
            secret_id = administrator.secret_id(role_id, present)
        if secret_id != present:
            secret.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(file, secret_id)
        addresses = layout.Addresses(self._postgres.host, self._postgres.port, self._openbao.address, role_id)
        layout.write_manifests(self._folder, addresses)

    # --- our own programs ---

    def _program(self, name: str, arguments: Callable[[int], list[str]], port: int | None = None) -> Process:
        """Return a program of ours that is ready when it answers on its port."""
        file = self._folder.run / f"{name}.port"

        def listens_on() -> int:
            return port or int(file.read_text())

        def command() -> list[str]:
            number = port or ports.remembered(file)
            program = [sys.executable, "-P", "-m", "polaris_cli.main", *arguments(number)]
            return [*program, "--log-level", self._settings.log_level]

        def ready() -> bool:
            pid = process.pid
            return pid is not None and ports.listens(pid, listens_on()) and _answers(listens_on(), "/readyz")

        process = Process(
            name=name,
            folder=self._folder.run,
            command=command,
            ready=ready,
            again=lambda: port is None and not ports.is_free(listens_on()),
            environment=_environment(),
        )
        return process

    def _embedder_arguments(self, port: int) -> list[str]:
        return ["embedder", "--host", ports.LOOPBACK, "--port", str(port)]

    def _operator_arguments(self, port: int) -> list[str]:
        where = ["--files", str(self._folder.manifests), "--data", str(self._folder.root)]
        return ["operator", *where, *_probes(port)]

    def _worker_arguments(self, port: int) -> list[str]:
        return ["worker", *self._database("polaris-worker"), *_probes(port)]

    def _service_arguments(self, port: int) -> list[str]:
        return [
            "serve",
            *self._database("polaris-query"),
            *("--host", self._settings.host, "--port", str(port)),
            *("--auth", os.environ.get("POLARIS_AUTH", "none")),
            *("--query-url", self.address),
        ]

    def _database(self, secret: str) -> list[str]:
        return ["--database-secret", str(self._folder.secret(secret)), "--embedder", self._embedder_url()]

    def _embedder_url(self) -> str:
        if self._embeds_elsewhere:
            return self._embeds_elsewhere
        port = (self._folder.run / "embedder.port").read_text().strip()
        return f"http://{ports.LOOPBACK}:{port}/v1"

    # --- until the first question can be asked ---

    def _first_index(self) -> None:
        with show.step("database default/main") as more:
            self._await("PolarisDatabase", layout.DATABASE, more)
        if not self._handbook_manifest().exists():
            return
        try:
            with show.step("index default/handbook") as more:
                self._await("PolarisIndex", layout.INDEX, more)
        except Prerequisite as error:
            # A manifest that its owner has changed; nothing else depends on it.
            show.say(f"{error}; change {self._handbook_manifest()}")
            return
        with self._client() as service:
            service.patiently(lambda: service.get(_FIRST_INDEX.path), show.say)
        digest = layout.handbook_digest()
        if not self._folder.loaded.exists() or self._folder.loaded.read_text("utf-8") != digest:
            self._load_handbook(digest)

    def _handbook_manifest(self) -> Path:
        return self._folder.manifests / f"{layout.INDEX}.yaml"

    def _await(self, kind: str, name: str, more: Callable[[str], None]) -> None:
        """Return once the object is ready; raise with what it says where a person has to do something."""
        file = self._folder.root / "status" / kind / layout.NAMESPACE / f"{name}.yaml"
        deadline = time.monotonic() + _READY_SECONDS
        said = "the operator has not looked at it yet"
        stalled: float | None = None
        while True:
            self._check_parts()
            present = {kind: rest for kind, *rest in layout.conditions(_status(file))}
            state, reason, message = present.get("Ready", ("Unknown", "", said))
            if state == "True":
                return
            stalled = (stalled or time.monotonic()) if "Stalled" in present else None
            if stalled and time.monotonic() > stalled + _STALLED_SECONDS:
                raise Prerequisite(f"{kind} default/{name} is stalled: {': '.join(present['Stalled'][1:])}")
            said = f"{reason}: {message}" if reason else message
            more(said)
            if time.monotonic() > deadline:
                raise DeadlineExceeded(
                    f"{kind} default/{name} is not ready after {_READY_SECONDS:.0f} s: {said}"
                )
            time.sleep(_LOOK_SECONDS)

    def _check_parts(self) -> None:
        for part in (self._postgres, self._openbao, self._operator, self._worker, self._service):
            if part.poll() is not None:
                raise Unavailable(f"{part.name} ended while starting (log: {part.log_file})")

    def _load_handbook(self, digest: str) -> None:
        began = time.monotonic()
        pages = [layout.handbook()]
        with self._client() as service:
            loader = Loader(service, _FIRST_INDEX, show.say)
            with show.meter("handbook: loading", files.count_documents(pages)) as meter:
                loader.load(files.documents(pages, Options()), meter)
            with show.meter("handbook: embedding") as meter:
                loader.wait(meter)
        if not loader.summary.refused:
            write_private(self._folder.loaded, digest)
        show.done("handbook, in English and Portuguese", began)

    def _client(self) -> Service:
        return Service(ClientSettings.load(os.environ, {"server": self.address}))

    def _say_ready(self, seconds: float) -> None:
        program = sys.argv[0] if sys.argv[0].endswith("polaris") else "polaris"
        program = os.path.relpath(program) if os.sep in program else program
        server = "" if self._settings.port == 8080 else f" --server {self.address}"
        print(
            f"POLARIS is ready at {self.address} ({seconds:.1f} s). Ctrl-C stops it; its data stays in"
            f" {self._settings.data}. Ask it something:\n\n"
            f'  {program} ask handbook "How do I delete a document?"{server}\n'
            f'  {program} ask handbook "Como funcionam as citações?"{server}\n',
            flush=True,
        )


def _probes(port: int) -> list[str]:
    return ["--metrics-host", ports.LOOPBACK, "--metrics-port", str(port)]


def _environment() -> Mapping[str, str]:
    """Return the environment of our programs: ours, without what is about `polaris up` itself."""
    environment = dict(os.environ)
    loopback = f"{ports.LOOPBACK},localhost"
    for name in ("NO_PROXY", "no_proxy"):
        environment[name] = f"{environment[name]},{loopback}" if environment.get(name) else loopback
    # Two arenas instead of eight a core: idle threads keep tens of MB otherwise.
    environment.setdefault("MALLOC_ARENA_MAX", "2")
    # Small steps: on a laptop somebody watches the progress of a load.
    environment.setdefault("POLARIS_BATCH_CHUNKS", "16")
    return environment


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection(ports.LOOPBACK, port, timeout=_PROBE_SECONDS)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _status(file: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}
