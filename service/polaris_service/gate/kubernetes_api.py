"""The service's door to the Kubernetes API: who is this (TokenReview), may they (SubjectAccessReview).

The `kubernetes` package finds the way in (in-cluster, or KUBECONFIG with all its kinds of
credentials) and renews its token; the two requests go out by httpx, which is here anyway.
`kubernetes.aio` would do both for 10 MiB more and 1.6 s of start-up (measured on version 37).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
from kubernetes.client import Configuration
from kubernetes.config import ConfigException, load_incluster_config, load_kube_config

from polaris import API_GROUP
from polaris.errors import ClusterUnavailable, Overloaded, Unauthenticated
from polaris.telemetry import logger
from polaris_service.gate.access import Access, Caller
from polaris_service.gate.cache import Answers
from polaris_service.trust import transport

_log = logger(__name__)

_SECONDS = 5.0
_RETRY_AFTER = 2.0
# A no is believed for a shorter time: somebody has probably just been told to grant the verb.
_NO_SECONDS = 2.0
_CACHED = 8192
# Questions of one kind that are with the API server at a time, and how long another one waits for its turn.
# Anybody can make up tokens, each of which is a question: they must become no load on the cluster.
REVIEWS = 8
_TURN_SECONDS = 2.0
# The API server rejects longer ones anyway (its limit on request headers).
_TOKEN_BYTES = 64 * 1024


def _configuration(environment: Mapping[str, str]) -> Configuration:
    configuration = Configuration()
    if environment.get("KUBECONFIG"):
        load_kube_config(  # type: ignore[no-untyped-call]
            config_file=environment["KUBECONFIG"], client_configuration=configuration
        )
    else:
        load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    return configuration


def _tls(configuration: Configuration) -> ssl.SSLContext | bool:
    if not configuration.host.startswith("https://"):
        return False
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert or None)
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _client(configuration: Configuration) -> httpx.AsyncClient:
    """Return a client of the API server; the authority that a pod is given is followed when it rotates."""
    plain = configuration.verify_ssl and not configuration.cert_file
    followed = configuration.ssl_ca_cert if plain else None
    return httpx.AsyncClient(
        base_url=configuration.host,
        transport=transport(Path(followed) if followed else None),
        verify=True if followed else _tls(configuration),
        timeout=_SECONDS,
        trust_env=False,
    )


class KubernetesPolicy:
    """Believes the API server, and each of its answers for `seconds`."""

    def __init__(
        self, audiences: Sequence[str], seconds: float, environment: Mapping[str, str] = os.environ
    ) -> None:
        self._audiences = tuple(audiences)
        self._environment = environment
        self._callers: Answers[Caller | None] = Answers(
            _CACHED, lambda caller: seconds if caller else min(seconds, _NO_SECONDS)
        )
        self._decisions: Answers[bool] = Answers(
            _CACHED, lambda yes: seconds if yes else min(seconds, _NO_SECONDS)
        )
        # Apart, so that strangers with tokens of their own making do not keep callers who are known waiting.
        self._reviewing = asyncio.Semaphore(REVIEWS)
        self._deciding = asyncio.Semaphore(REVIEWS)
        self._configuration: Configuration | None = None
        self._client: httpx.AsyncClient | None = None
        self._opening = asyncio.Lock()

    async def start(self) -> None:
        """Find the way to the API server; told in the log, and at each request, where there is none."""
        try:
            await self._door()
        except ClusterUnavailable as error:
            _log.error("no way to the Kubernetes API", why=str(error))

    async def stop(self) -> None:
        """Close connections."""
        if self._client:
            await self._client.aclose()

    async def who(self, token: str | None) -> Caller:
        """Return the user that the API server knows the token of, for one of our audiences.

        Raises Unauthenticated, ClusterUnavailable, Overloaded (too many tokens are asked about).
        """
        if token is None:
            raise Unauthenticated(f"send a token for this service: {self._advice()}")
        if len(token) > _TOKEN_BYTES:
            raise Unauthenticated("the token is too long to be one")
        key = hashlib.sha256(token.encode()).digest()
        caller = await self._callers.get(key, lambda: self._review(token))
        if caller is None:
            raise Unauthenticated(
                "the Kubernetes API does not accept this token for the audience"
                f" {' or '.join(self._audiences)} (expired, or made for another): {self._advice()}"
            )
        return caller

    def _advice(self) -> str:
        return f"kubectl create token SERVICEACCOUNT --audience {self._audiences[0]}"

    async def may(self, caller: Caller, access: Access, namespace: str, name: str) -> bool:
        """Return what RBAC says (or whichever authorizer the API server has)."""
        key = (caller.key, access, namespace, name)
        return await self._decisions.get(key, lambda: self._access(caller, access, namespace, name))

    async def _review(self, token: str) -> Caller | None:
        async with _turn(self._reviewing):
            answer = await self._post(
                "/apis/authentication.k8s.io/v1/tokenreviews",
                {
                    "apiVersion": "authentication.k8s.io/v1",
                    "kind": "TokenReview",
                    "spec": {"token": token, "audiences": list(self._audiences)},
                },
            )
        status = answer.get("status", {})
        # An API server whose authenticator knows no audiences leaves the list out: not for us then.
        if not status.get("authenticated") or set(self._audiences).isdisjoint(status.get("audiences") or ()):
            return None
        user = status.get("user", {})
        extra = {key: tuple(values) for key, values in (user.get("extra") or {}).items()}
        return Caller(
            user.get("username", ""),
            user.get("uid", ""),
            tuple(user.get("groups") or ()),
            MappingProxyType(extra),
        )

    async def _access(self, caller: Caller, access: Access, namespace: str, name: str) -> bool:
        async with _turn(self._deciding):
            answer = await self._post(
                "/apis/authorization.k8s.io/v1/subjectaccessreviews",
                {
                    "apiVersion": "authorization.k8s.io/v1",
                    "kind": "SubjectAccessReview",
                    "spec": {
                        "user": caller.name,
                        "uid": caller.uid,
                        "groups": list(caller.groups),
                        "extra": {key: list(values) for key, values in caller.extra.items()},
                        "resourceAttributes": {
                            "group": API_GROUP,
                            "resource": "polarisindexes",
                            "subresource": access.subresource,
                            "verb": access.verb,
                            "namespace": namespace,
                            "name": name,
                        },
                    },
                },
            )
        return bool(answer.get("status", {}).get("allowed"))

    async def _door(self) -> tuple[httpx.AsyncClient, Configuration]:
        async with self._opening:
            if self._client is None or self._configuration is None:
                try:
                    self._configuration = await asyncio.to_thread(_configuration, self._environment)
                    self._client = _client(self._configuration)
                except (ConfigException, OSError) as error:
                    raise ClusterUnavailable(
                        f"there is no way to the Kubernetes API: {error}", retry_after=_RETRY_AFTER
                    ) from None
            return self._client, self._configuration

    async def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        client, configuration = await self._door()
        try:
            # In a thread: renewing may read a file or run a command.
            token = await asyncio.to_thread(
                configuration.get_api_key_with_prefix, "BearerToken", "authorization"
            )
            response = await client.post(path, json=body, headers={"Authorization": token} if token else {})
        except (httpx.HTTPError, ConfigException, OSError) as error:
            raise ClusterUnavailable(
                f"the Kubernetes API does not answer: {type(error).__name__}", retry_after=_RETRY_AFTER
            ) from None
        if response.status_code not in (200, 201):
            raise ClusterUnavailable(_refusal(path, response), retry_after=_RETRY_AFTER)
        answer: dict[str, Any] = response.json()
        return answer


@contextlib.asynccontextmanager
async def _turn(turns: asyncio.Semaphore) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(_TURN_SECONDS):
            await turns.acquire()
    except TimeoutError:
        raise Overloaded(
            "too many callers are being asked about at the Kubernetes API", retry_after=_RETRY_AFTER
        ) from None
    try:
        yield
    finally:
        turns.release()


def _refusal(path: str, response: httpx.Response) -> str:
    what = path.rpartition("/")[2]
    if response.status_code in (401, 403):
        return (
            f"the Kubernetes API does not let this service create {what}:"
            " bind its ServiceAccount to the ClusterRole system:auth-delegator"
        )
    with contextlib.suppress(ValueError):
        return f"the Kubernetes API answers {response.status_code} to {what}: {response.json()['message']}"
    return f"the Kubernetes API answers {response.status_code} to {what}"
