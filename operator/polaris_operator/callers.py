"""Who asks the operator over HTTP, and may they: the Kubernetes API decides, or the loopback's own rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from polaris.errors import Forbidden, Unauthenticated
from polaris_operator.objects import Key

# The API server rejects longer ones anyway (its limit on request headers).
_TOKEN_BYTES = 64 * 1024


@dataclass(frozen=True)
class Caller:
    """Who asks, as the API server says."""

    name: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class Reviews(Protocol):
    """The two questions to an API server; both raise ClusterUnavailable."""

    def review_token(self, token: str, audiences: Sequence[str]) -> Caller | None:
        """Return whose token it is; None where it is nobody's, or not for one of these audiences."""
        ...

    def review_access(self, caller: Caller, key: Key, subresource: str, verb: str) -> bool:
        """Return whether the caller may do this with a subresource of an object."""
        ...


class Gate(Protocol):
    """Says who asks, and whether they may see a plan."""

    def who(self, token: str | None) -> Caller:
        """Return the caller; raises Unauthenticated (it says how to get a token) and ClusterUnavailable."""
        ...

    def may(self, caller: Caller, key: Key) -> bool:
        """Return whether the caller may see the plan of an object; ClusterUnavailable."""
        ...


class KubernetesGate:
    """Believes the API server (TokenReview, SubjectAccessReview): verb `get` on `polarisindexes/plan`."""

    def __init__(self, reviews: Reviews, audiences: Sequence[str]) -> None:
        self._reviews = reviews
        self._audiences = tuple(audiences)

    def who(self, token: str | None) -> Caller:
        """Return the caller."""
        advice = f"kubectl create token SERVICEACCOUNT --audience {self._audiences[0]}"
        if token is None:
            raise Unauthenticated(f"send a token for the operator: {advice}")
        if len(token) > _TOKEN_BYTES:
            raise Unauthenticated("the token is too long to be one")
        caller = self._reviews.review_token(token, self._audiences)
        if caller is None:
            raise Unauthenticated(
                "the Kubernetes API does not accept this token for the audience"
                f" {' or '.join(self._audiences)} (expired, or made for another): {advice}"
            )
        return caller

    def may(self, caller: Caller, key: Key) -> bool:
        """Return whether the caller may see the plan of an object."""
        return self._reviews.review_access(caller, key, "plan", "get")


class ClosedGate:
    """Nobody may: over a folder nobody is told apart, and more than this machine reaches the port."""

    def who(self, token: str | None) -> Caller:  # noqa: ARG002
        """Raise Forbidden."""
        raise Forbidden(
            "an operator over a folder knows nobody, so it plans only while its port is the loopback's:"
            " POLARIS_METRICS_HOST=127.0.0.1"
        )

    def may(self, caller: Caller, key: Key) -> bool:  # noqa: ARG002
        """Return False."""
        return False


class OpenGate:
    """Everybody may: for an operator over a folder that only this machine reaches."""

    def who(self, token: str | None) -> Caller:  # noqa: ARG002
        """Return the one caller that there is."""
        return Caller("anonymous")

    def may(self, caller: Caller, key: Key) -> bool:  # noqa: ARG002
        """Return True."""
        return True
