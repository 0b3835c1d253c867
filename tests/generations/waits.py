"""What PostgreSQL's log says of waits for locks."""

from __future__ import annotations

import re
from pathlib import Path

SETTINGS = ("log_lock_waits = on", "deadlock_timeout = '10ms'")
"""With them each wait for longer than 10 ms is logged once it ends."""

# Waits of a build for older transactions are no locks that anybody else waits for.
_ENDED = re.compile(r"acquired \w+ on (?:relation|tuple|advisory lock|transaction) .*after ([\d.]+) ms")


class Waits:
    """Those that are logged from now on."""

    def __init__(self, log_file: Path) -> None:
        self._log_file = log_file
        self._from = log_file.stat().st_size

    def milliseconds(self) -> list[float]:
        """How long each wait of more than 10 ms was, the longest first."""
        with self._log_file.open(encoding="utf-8", errors="replace") as log:
            log.seek(self._from)
            return sorted(map(float, _ENDED.findall(log.read())), reverse=True)
