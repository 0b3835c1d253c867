"""The bare statement by asyncpg in a closed loop: `python -m bench.sql_loop < JSON`."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import asyncpg
import numpy as np
import uvloop
from pgvector.asyncpg import register_vector

from bench.timing import Timing


async def run(given: dict[str, Any]) -> Timing:
    """Ask with each vector in turn until the time is up."""
    vectors = np.load(given["vectors"])
    connection = await asyncpg.connect(given["dsn"])
    try:
        await register_vector(connection)
        statement = await connection.prepare(given["statement"])
        ef = () if given["ef"] is None else (str(given["ef"]),)
        latencies: list[float] = []
        begun = before = time.perf_counter()
        while before - begun < given["seconds"]:
            await statement.fetch(vectors[len(latencies) % len(vectors)], *ef)
            now = time.perf_counter()
            latencies.append((now - before) * 1000)
            before = now
    finally:
        await connection.close()
    return Timing.of(latencies, before - begun)


def main() -> None:
    """Run what stdin says; print the timing."""
    print(uvloop.run(run(json.load(sys.stdin))).text())


if __name__ == "__main__":
    main()
