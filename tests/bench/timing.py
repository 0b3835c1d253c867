"""What a load generator tells of one round, whatever it loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass


class LoadError(Exception):
    """A load generator failed, or what it loaded answered with errors: the round means nothing."""


@dataclass(frozen=True)
class Timing:
    """One round. Every generator is a closed loop: a connection asks again when it has its answer."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float

    @property
    def per_second(self) -> float:
        """Throughput."""
        return self.requests / self.seconds

    @classmethod
    def of(cls, latencies_ms: Sequence[float], seconds: float) -> Timing:
        """Return the timing of single requests."""
        if not latencies_ms:
            raise LoadError(f"no request was answered in {seconds} s")
        ordered = sorted(latencies_ms)
        return cls(len(ordered), seconds, _percentile(ordered, 50), _percentile(ordered, 99))

    @classmethod
    def parse(cls, text: str) -> Timing:
        """Return what another process printed by `text`."""
        return cls(**json.loads(text))

    def text(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self))


def _percentile(ordered: Sequence[float], percent: int) -> float:
    return ordered[min(len(ordered), math.ceil(len(ordered) * percent / 100)) - 1]
