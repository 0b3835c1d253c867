"""Every error that POLARIS raises on purpose.

::

    PolarisError
    ├── InvalidInput              what the caller sent is wrong; names the field
    │   ├── InvalidManifest       a manifest, before any cluster or database is asked
    │   └── TooLarge
    ├── NotFound
    │   └── Gone                  was here, and was erased on purpose
    ├── Conflict                  true when read, no longer true when written
    │   ├── NotOwner              another object owns what this one claims
    │   └── PreconditionFailed    If-Match named another version
    ├── Denied
    │   ├── Unauthenticated
    │   └── Forbidden
    ├── Unavailable               a part that we need does not answer; trying again may help
    │   ├── DatabaseUnavailable
    │   ├── VaultUnavailable
    │   ├── ClusterUnavailable
    │   ├── EmbedderUnavailable
    │   ├── GeneratorUnavailable
    │   └── Overloaded
    ├── Refused                   a part answered, and said no; trying again will not help
    │   ├── DatabaseRefused
    │   ├── EmbedderRefused
    │   ├── GeneratorRefused
    │   └── VaultRefused
    ├── Prerequisite              what an administrator must grant or install is missing
    │   └── Unsupported           a version that is too old, or too new
    └── DeadlineExceeded

They are translated at the edges only: to conditions by the operator, to problem documents by the
service, to an exit code by the command line.
"""

from __future__ import annotations


class PolarisError(Exception):
    """Base of the tree; `str(error)` is one sentence made from the data, safe to show to a caller."""


class InvalidInput(PolarisError):
    """What the caller sent is wrong.

    `pointer` is a JSON pointer (RFC 6901) to the field, `""` for the whole body.
    """

    def __init__(self, message: str, pointer: str = "") -> None:
        super().__init__(message)
        self.pointer = pointer


class InvalidManifest(InvalidInput):
    """A manifest that the API server would reject, found without one."""


class TooLarge(InvalidInput):
    """Within its type, beyond a limit; the message names both figures."""


class NotFound(PolarisError):
    """The thing named does not exist, or the caller may not know that it does."""


class Gone(NotFound):
    """It existed and was erased on purpose."""


class Conflict(PolarisError):
    """The world moved between reading and writing."""


class NotOwner(Conflict):
    """Another object owns what this one claims."""


class PreconditionFailed(Conflict):
    """`If-Match` named another version than the present one."""


class Denied(PolarisError):
    """The caller may not do this."""


class Unauthenticated(Denied):
    """Nobody knows who the caller is."""


class Forbidden(Denied):
    """The caller is known and lacks the verb; the message names it."""


class Unavailable(PolarisError):
    """A part that we need does not answer.

    `retry_after` is in seconds; None where nothing is known.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DatabaseUnavailable(Unavailable):
    """PostgreSQL does not answer, or there is no login for it yet."""


class VaultUnavailable(Unavailable):
    """Vault or OpenBao does not answer, or is sealed."""


class ClusterUnavailable(Unavailable):
    """The Kubernetes API server does not answer."""


class EmbedderUnavailable(Unavailable):
    """The embedding provider does not answer, is overloaded, or took too long."""


class GeneratorUnavailable(Unavailable):
    """The text generator does not answer, is overloaded, or took too long."""


class Overloaded(Unavailable):
    """We ourselves have as much to do as we accept."""


class Refused(PolarisError):
    """A part answered and said no, or said something that cannot be used."""


class DatabaseRefused(Refused):
    """PostgreSQL does not let this login in, or its certificate is not the one expected."""


class EmbedderRefused(Refused):
    """The embedding provider rejected the request, or its vectors are not what the index needs."""


class GeneratorRefused(Refused):
    """The text generator rejected the request."""


class VaultRefused(Refused):
    """Vault or OpenBao rejected the request."""


class Prerequisite(PolarisError):
    """Something that an administrator grants once is missing.

    `remedy` is the exact text that grants it, as `polaris bootstrap` prints it.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


class Unsupported(Prerequisite):
    """A version outside the range that we run on; the message names both versions."""


class DeadlineExceeded(PolarisError):
    """The caller's time is up."""
