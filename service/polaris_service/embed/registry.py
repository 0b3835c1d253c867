"""The embedding providers that settings name."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from polaris.errors import EmbedderRefused, InvalidInput
from polaris.settings import ServiceSettings, WorkerSettings
from polaris_service.embed.local import LocalProvider, default_cache
from polaris_service.embed.provider import Provider
from polaris_service.embed.remote import DeclaredModel, RemoteProvider

DEFAULT = "default"
LOCAL = "local"

_DECLARED = {"model": str, "revision": str, "dimension": int, "maxTokens": int}


class Embedders:
    """Providers by the name that a manifest's `spec.embedding.provider` uses."""

    def __init__(self, providers: Iterable[Provider]) -> None:
        self._providers = {provider.name: provider for provider in providers}

    @classmethod
    def of(
        cls, settings: ServiceSettings | WorkerSettings, environment: Mapping[str, str] = os.environ
    ) -> Embedders:
        """Return the provider `default` and those of `providers`; raise InvalidInput where one is wrong."""
        return cls([_default(settings, environment), *_others(settings, environment)])

    def get(self, name: str) -> Provider:
        """Return a provider; raise EmbedderRefused where the settings name none like it."""
        provider = self._providers.get(name)
        if provider is None:
            known = ", ".join(self._providers)
            raise EmbedderRefused(f"this service's settings have no embedding provider {name}: {known}")
        return provider

    @property
    def names(self) -> frozenset[str]:
        """The names of all providers."""
        return frozenset(self._providers)

    def all(self) -> list[Provider]:
        """Return every provider."""
        return list(self._providers.values())

    async def start(self) -> None:
        """Nothing: providers open what they need when they are first used."""

    async def stop(self) -> None:
        """Close every provider."""
        await asyncio.gather(*(provider.close() for provider in self._providers.values()))


def _default(settings: ServiceSettings | WorkerSettings, environment: Mapping[str, str]) -> Provider:
    return _provider(
        DEFAULT,
        settings.embedder,
        settings.embedder_key_file,
        settings.embedder_ca_file,
        settings.embedder_timeout_seconds,
        (),
        environment,
    )


def _others(settings: ServiceSettings | WorkerSettings, environment: Mapping[str, str]) -> Iterable[Provider]:
    seen = {DEFAULT}
    for number, given in enumerate(settings.providers):
        if given.name in seen:
            raise InvalidInput(f"two providers are named {given.name}", f"/providers/{number}/name")
        seen.add(given.name)
        declared = [
            _declared(model, f"/providers/{number}/models/{place}")
            for place, model in enumerate(given.models)
        ]
        yield _provider(
            given.name,
            given.url,
            given.key_file,
            given.ca_file,
            settings.embedder_timeout_seconds,
            declared,
            environment,
        )


def _provider(  # noqa: PLR0913, PLR0917  what an entry of the settings says
    name: str,
    url: str,
    key_file: str,
    ca_file: str,
    timeout: float,
    declared: Iterable[DeclaredModel],
    environment: Mapping[str, str],
) -> Provider:
    if url == LOCAL:
        return LocalProvider(default_cache(environment), name=name)
    if not url.startswith(("http://", "https://")):
        raise InvalidInput(f"provider {name}: {url!r} is neither {LOCAL} nor an http address")
    return RemoteProvider(
        url,
        name=name,
        key_file=Path(key_file) if key_file else None,
        ca_file=Path(ca_file) if ca_file else None,
        timeout_seconds=timeout,
        declared=tuple(declared),
    )


def _declared(model: Mapping[str, Any], pointer: str) -> DeclaredModel:
    for key, value in model.items():
        kind = _DECLARED.get(key)
        if kind is None or type(value) is not kind:
            raise InvalidInput(f"a model has {', '.join(_DECLARED)}, and not {key}: {value!r}", pointer)
    if "model" not in model:
        raise InvalidInput("a model has a name", f"{pointer}/model")
    return DeclaredModel(
        model["model"], model.get("revision", "1"), model.get("dimension"), model.get("maxTokens")
    )
