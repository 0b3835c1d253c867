"""What files say, followed while they change: certificates, authorities, logins.

Kubernetes writes a Secret's new files into a folder of their own and swaps the symlink `..data`. Several
files that belong together are therefore read from one resolved folder, so that no two versions mix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

from polaris.errors import InvalidInput
from polaris.telemetry import logger

T = TypeVar("T")

LOOK_SECONDS = 2.0
"""Between two looks at files that are followed."""

_Seen: TypeAlias = "tuple[tuple[Path, int, int, int, int], ...]"

_log = logger(__name__)


def resolve(folder: Path) -> Path:
    """Return the folder that the files really stand in.

    Kubernetes writes a new folder beside the old one and swaps the symlink `..data`; what was
    resolved before stays whole for whoever reads it.
    """
    data = folder / "..data"
    return (data if data.exists() else folder).resolve()


def pem(text: bytes | str) -> str:
    """Return certificates without what is not ASCII: public bundles have names in comments."""
    raw = text.encode() if isinstance(text, str) else text
    return raw.decode("ascii", "ignore")


def together(paths: Sequence[Path]) -> tuple[Path, ...]:
    """Return the paths of one version of the files; those of one folder are resolved once."""
    folders = {path.parent: resolve(path.parent) for path in paths}
    real = [(path, folders[path.parent] / path.name) for path in paths]
    # A file that is put beside the symlink, by subPath say, is not in the folder that it leads to.
    return tuple(inside if inside.exists() else path for path, inside in real)


class Followed(Generic[T]):
    """What files say. Where they are wrong or gone, the last right one holds, and `problem` says why.

    `look` reads files; two threads must not call it at once. `value` may be read by anybody.
    """

    def __init__(self, what: str, paths: Sequence[Path], read: Callable[[tuple[Path, ...]], T]) -> None:
        """`what` names it in the log; `read` raises OSError or ValueError (ssl.SSLError is an OSError)."""
        self._what = what
        self._paths = tuple(paths)
        self._read = read
        self._seen: _Seen | None = None
        self.value: T | None = None
        self.problem: str | None = None
        """Why what the files say now is not what `value` is; None while it is."""

    def look(self) -> bool:
        """Read the files where they changed, or were wrong; return whether `value` is another one now."""
        try:
            paths = together(self._paths)
            seen = tuple(_stat(path) for path in paths)
            if seen == self._seen:
                return False
            value = self._read(paths)
        except (OSError, ValueError) as error:
            self._say(_words(error))
            return False
        self._seen, self.value, self.problem = seen, value, None
        _log.info("files adopted", what=self._what, path=str(self._paths[0]))
        return True

    def present(self) -> T:
        """Return the value; raise InvalidInput where the files were never right."""
        if self.value is None:
            raise InvalidInput(f"{self._what}: {self.problem or 'not read yet'}")
        return self.value

    def _say(self, problem: str) -> None:
        self._seen = None  # Looked at again even where nothing seems to change.
        if problem != self.problem:
            _log.error("files are wrong", what=self._what, path=str(self._paths[0]), why=problem)
        self.problem = problem


def _stat(path: Path) -> tuple[Path, int, int, int, int]:
    stat = path.stat()
    return path, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)
