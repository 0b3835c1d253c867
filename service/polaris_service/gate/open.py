"""Everybody may all: for a service that only this machine reaches (the settings see to that)."""

from __future__ import annotations

from polaris_service.gate.access import Access, Caller

ANONYMOUS = Caller("anonymous")


class OpenPolicy:
    """Asks nobody anything."""

    async def who(self, token: str | None) -> Caller:  # noqa: ARG002
        """Return the one caller that there is."""
        return ANONYMOUS

    async def may(self, caller: Caller, access: Access, namespace: str, name: str) -> bool:  # noqa: ARG002
        """Return True."""
        return True

    async def start(self) -> None:
        """Nothing to open."""

    async def stop(self) -> None:
        """Nothing to close."""
