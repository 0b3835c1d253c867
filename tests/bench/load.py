"""Load generators, each in a process of its own: two for HTTP, two for the bare statement."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bench.timing import LoadError, Timing
from polaris_cli.up.postgres import LocalPostgres

_TESTS = Path(__file__).parents[1]


class Load(Protocol):
    """Something that loads in a closed loop."""

    @property
    def name(self) -> str:
        """What it is."""
        ...

    def run(self, connections: int, seconds: float) -> Timing:
        """Load for so long; raises LoadError where an answer was an error."""
        ...


@dataclass(frozen=True)
class Target:
    """Searches of the service: where, and a file with the body of each, one a line."""

    host: str
    port: int
    path: str
    bodies: Path


@dataclass(frozen=True)
class Wrk:
    """wrk (Debian's package), one thread: C, so that the service has the processors to itself."""

    target: Target
    name: str = "wrk"

    def run(self, connections: int, seconds: float) -> Timing:
        """See `Load`."""
        target = self.target
        output = _run(
            [
                "wrk",
                "--threads=1",
                f"--connections={connections}",
                # Whole seconds only.
                f"--duration={max(1, round(seconds))}s",
                f"--script={Path(__file__).with_name('wrk.lua')}",
                f"http://{target.host}:{target.port}",
                "--",
                str(target.bodies),
                target.path,
            ]
        )
        told = json.loads(output.splitlines()[-1])
        if told["errors"] or not told["requests"]:
            raise LoadError(f"wrk saw errors: {output}")
        return Timing(told["requests"], told["microseconds"] / 1e6, told["p50"] / 1000, told["p99"] / 1000)


@dataclass(frozen=True)
class HttpLoop:
    """`bench.http_loop`, where wrk is not installed."""

    target: Target
    name: str = "bench.http_loop"

    def run(self, connections: int, seconds: float) -> Timing:
        """See `Load`."""
        target = self.target
        given = {
            "host": target.host,
            "port": target.port,
            "path": target.path,
            "bodies": str(target.bodies),
            "connections": connections,
            "seconds": seconds,
        }
        return Timing.parse(_python("bench.http_loop", given))


def http(target: Target) -> Load:
    """Return the leanest generator of HTTP that is here."""
    return Wrk(target) if shutil.which("wrk") else HttpLoop(target)


@dataclass(frozen=True)
class PgBench:
    """pgbench with one thread and prepared statements, over TCP as the service; latencies from its log."""

    server: LocalPostgres
    database: str
    script: str
    name: str = "pgbench"

    def run(self, connections: int, seconds: float) -> Timing:
        """See `Load`."""
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder, "script.sql")
            script.write_text(self.script)
            output = _run(
                [
                    str(self.server.installation.binaries / "pgbench"),
                    f"--host={self.server.host}",
                    f"--port={self.server.port}",
                    f"--username={self.server.superuser}",
                    "--no-vacuum",
                    "--protocol=prepared",
                    f"--client={connections}",
                    "--jobs=1",
                    f"--time={max(1, round(seconds))}",
                    f"--file={script}",
                    "--log",
                    "--random-seed=1",
                    self.database,
                ],
                cwd=folder,
                PGPASSWORD=self.server.password,
            )
            (log,) = Path(folder).glob("pgbench_log.*")
            # client, transaction, microseconds, script, seconds, microseconds of the clock
            latencies = [int(line.split()[2]) / 1000 for line in log.read_text().splitlines()]
        throughput = re.search(r"tps = ([\d.]+) \(without initial connection time\)", output)
        if not throughput or not re.search(r"failed transactions: 0\b", output):
            raise LoadError(f"pgbench failed: {output}")
        return Timing.of(latencies, len(latencies) / float(throughput.group(1)))


@dataclass(frozen=True)
class Asyncpg:
    """The bare statement by the service's own driver, vectors in binary; one connection."""

    dsn: str
    statement: str
    ef: int | None
    vectors: Path
    """A .npy file."""
    name: str = "asyncpg"

    def run(self, connections: int, seconds: float) -> Timing:
        """See `Load`."""
        if connections != 1:
            raise LoadError("asyncpg is measured with one connection")
        given = {
            "dsn": self.dsn,
            "statement": self.statement,
            "ef": self.ef,
            "vectors": str(self.vectors),
            "seconds": seconds,
        }
        return Timing.parse(_python("bench.sql_loop", given))


def _python(module: str, given: Mapping[str, Any]) -> str:
    return _run(
        [sys.executable, "-P", "-m", module], stdin=json.dumps(given), PYTHONPATH=str(_TESTS)
    ).splitlines()[-1]


def _run(command: list[str], *, stdin: str | None = None, cwd: str | None = None, **environment: str) -> str:
    done = subprocess.run(
        command,
        check=False,
        input=stdin,
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
    )
    if done.returncode:
        raise LoadError(f"{command[0]} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout
