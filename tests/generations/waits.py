"""What PostgreSQL's log says of waits for locks."""

from __future__ import annotations

import re
from pathlib import Path

SETTINGS = ("log_lock_waits = on", "deadlock_timeout = '10ms'")
"""With them each wait for longer than 10 ms is logged once it ends."""

# Of the wait, and of the statement that waited.
_ENDED = re.compile(r"acquired (\w+ on \w+) .* after ([\d.]+) ms\n.* STATEMENT:  (.*)")
# They wait for whoever still writes to a table that is not served: nobody who asks is behind them.
_BESIDE = ("CREATE INDEX", "DROP TABLE")


class Waits:
    """Those that are logged from now on."""

    def __init__(self, log_file: Path) -> None:
        self._log_file = log_file
        self._from = log_file.stat().st_size

    def seen(self) -> list[tuple[float, str, str]]:
        """Waits of more than 10 ms at what serves, the longest first: ms, for which lock, the statement."""
        with self._log_file.open(encoding="utf-8", errors="replace") as log:
            log.seek(self._from)
            ended = _ENDED.findall(log.read())
        told = ((float(ms), lock, statement) for lock, ms, statement in ended)
        return sorted((wait for wait in told if not wait[2].startswith(_BESIDE)), reverse=True)
