"""Admission of one request, the same for every route and interface."""

from __future__ import annotations

from typing import Protocol

from starlette.requests import Request

from polaris.errors import Forbidden, Unauthenticated
from polaris_service.admission import SCOPE_KEY, Admission
from polaris_service.gate.access import Access, Caller


class Policy(Protocol):
    """A way to know callers and what they may: Kubernetes, a file of tokens, or everybody all."""

    async def who(self, token: str | None) -> Caller:
        """Return who holds the token; raise Unauthenticated, Unavailable."""
        ...

    async def may(self, caller: Caller, access: Access, namespace: str, name: str) -> bool:
        """Return whether the caller may; raise Unavailable.

        An empty name stands for all of the namespace, an empty namespace for all of them.
        """
        ...

    async def start(self) -> None:
        """Open what is needed; never fails for what only is not there at the moment."""
        ...

    async def stop(self) -> None:
        """Close it."""
        ...


class Gate:
    """Asks the policy, and keeps what was asked for the audit."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    async def start(self) -> None:
        """Open the policy."""
        await self._policy.start()

    async def stop(self) -> None:
        """Close the policy."""
        await self._policy.stop()

    async def caller(self, request: Request) -> Caller:
        """Return who asks; raises Unauthenticated, Unavailable."""
        admission = admission_of(request)
        caller = await self._policy.who(bearer(request.headers.get("authorization")))
        admission.caller = caller.name
        return caller

    async def admit(self, request: Request, access: Access, namespace: str, name: str) -> Caller:
        """Return who asks, where they may; raises Unauthenticated, Forbidden, Unavailable.

        Comes before any look at the index, so that a stranger cannot find out which ones there are.
        """
        admission = admission_of(request)
        admission.access, admission.namespace, admission.name = access, namespace, name
        caller = await self.caller(request)
        if not await self._policy.may(caller, access, namespace, name):
            raise Forbidden(f"{caller.name} lacks the verb {access} {name} in namespace {namespace}")
        return caller

    async def allowed(self, caller: Caller, access: Access, namespace: str, name: str) -> bool:
        """Return whether a caller may, without it being an attempt."""
        return await self._policy.may(caller, access, namespace, name)


def admission_of(request: Request) -> Admission:
    """Return the request's admission, made at the first call."""
    found = request.scope.get(SCOPE_KEY)
    if not isinstance(found, Admission):
        found = request.scope[SCOPE_KEY] = Admission()
    return found


def bearer(header: str | None) -> str | None:
    """Return the token of an Authorization header; None without one; raise Unauthenticated."""
    if header is None:
        return None
    scheme, _, token = header.partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated("the Authorization header must be: Bearer TOKEN")
    return token
