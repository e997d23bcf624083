"""The way to a Kubernetes API server: raw JSON in and out, every refusal named.

Objects stay plain dicts: typed models are those of one server version and drop what they don't know. The
client library serves for credentials and connections alone; no process-wide default client is touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

import aiohttp
from kubernetes_asyncio.config.config_exception import ConfigException

from trainguard.core.errors import AccessRefusedError, UnreachableError
from trainguard.transports.kube_access import KubeAccess, new_client
from trainguard.transports.kube_errors import LostAnswerError, error_of

Object = dict[str, Any]
"""An API object as the server wrote it."""

MERGE_PATCH = "application/merge-patch+json"
REQUEST_SECONDS = 20.0
SILENCE_SECONDS = 90.0
"""A watch without a word for so long is taken for dead: bookmarks come about once a minute."""
LINE_BYTES = 8_000_000
"""A longer line is given in pieces. Events are at most 1.5 MB, etcd's limit of an object."""
MAX_RETRY_AFTER = 10.0
TRIES = 4


class Kube:
    """One API server. Made cold; connects when first used; safe for many tasks of one event loop."""

    def __init__(self, access: KubeAccess) -> None:
        self._access = access
        self._client: Any = None
        self._retired: list[Any] = []
        self._lock = asyncio.Lock()
        self._closed = False
        self.requests = 0
        """Requests sent so far, watches among them."""

    async def get(self, path: str, **query: object) -> Object:
        """Read one object or list."""
        return await self._json("GET", path, query)

    async def create(self, path: str, body: Object, **query: object) -> Object:
        """Create an object, or post a review or eviction."""
        return await self._json("POST", path, query, body)

    async def patch(self, path: str, body: Object, **query: object) -> Object:
        """Merge-patch an object. `metadata.uid` and `metadata.resourceVersion` in the body are preconditions."""
        return await self._json("PATCH", path, query, body, MERGE_PATCH)

    async def delete(self, path: str, body: Object, **query: object) -> Object:
        """Delete an object with DeleteOptions."""
        return await self._json("DELETE", path, query, body)

    async def lines(
        self,
        path: str,
        silence: float = REQUEST_SECONDS,
        opened: Callable[[], None] | None = None,
        **query: object,
    ) -> AsyncGenerator[bytes, None]:
        """Stream an answer by lines (a pod log, a watch). A last line without an end comes as it is."""
        response = await self._send("GET", path, query, None, "application/json", silence)
        try:
            if opened is not None:
                opened()
            rest = b""
            while chunk := await self._chunk(response, path):
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    yield line + b"\n"
                if len(rest) > LINE_BYTES:
                    yield rest
                    rest = b""
            if rest:
                yield rest
        finally:
            response.close()

    async def watch(
        self, path: str, opened: Callable[[], None], **query: object
    ) -> AsyncGenerator[Object, None]:
        """Give watch events until the server ends the stream. An ERROR event raises what it says.

        `opened` is called once the server has agreed: from then on nothing is missed.
        """
        stream = self.lines(path, SILENCE_SECONDS, opened, watch="1", allowWatchBookmarks="true", **query)
        async with contextlib.aclosing(stream):
            async for line in stream:
                event = _decoded(line, path)
                if event.get("type") == "ERROR":
                    status = event.get("object") or {}
                    raise error_of(int(status.get("code") or 500), json.dumps(status), {}, "GET", path)
                yield event

    async def close(self) -> None:
        """Free the connections. Later use raises RuntimeError."""
        self._closed = True
        clients, self._client, self._retired = [self._client, *self._retired], None, []
        for one in clients:
            if one is not None:
                await one.close()

    async def _json(
        self,
        method: str,
        path: str,
        query: Mapping[str, object],
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> Object:
        for attempt in range(TRIES):
            try:
                response = await self._send(method, path, query, body, content_type, REQUEST_SECONDS)
            except UnreachableError as error:
                # 429 with Retry-After: the server did not look at the request, so that it may be sent again.
                if error.retry_after is None or attempt == TRIES - 1:
                    raise
                await asyncio.sleep(min(error.retry_after, MAX_RETRY_AFTER))
                continue
            return await self._read(response, method, path)
        raise AssertionError("unreachable")

    async def _read(self, response: aiohttp.ClientResponse, method: str, path: str) -> Object:
        try:
            return _decoded(await response.read(), path)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _lost(method, path, error) from error
        finally:
            response.release()

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, object],
        body: Object | None,
        content_type: str,
        silence: float,
    ) -> aiohttp.ClientResponse:
        for attempt in (1, 2):
            used = await self._connected()
            response = await self._exchange(used, method, path, query, body, content_type, silence)
            if 200 <= response.status <= 299:
                return response
            try:
                text = (await response.read()).decode("utf-8", "replace")
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise _lost(method, path, error) from error
            finally:
                response.release()
            if response.status == 401 and attempt == 1:
                await self._renew(used)
                continue
            raise error_of(response.status, text, response.headers, method, path)
        raise AssertionError("unreachable")

    async def _exchange(
        self,
        used: Any,
        method: str,
        path: str,
        query: Mapping[str, object],
        body: Object | None,
        content_type: str,
        silence: float,
    ) -> aiohttp.ClientResponse:
        self.requests += 1
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=REQUEST_SECONDS, sock_read=silence)
        try:
            response: aiohttp.ClientResponse = await used.call_api(
                path,
                method,
                query_params=[(key, value) for key, value in query.items() if value not in (None, "")],
                header_params={"Content-Type": content_type, "Accept": "application/json, */*"},
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _request_timeout=timeout,
            )
        except aiohttp.ClientConnectorError as error:
            raise UnreachableError(f"{method} {path}: {error}") from error
        except (aiohttp.ClientError, TimeoutError, OSError, ssl.SSLError) as error:
            raise _lost(method, path, error) from error
        except ConfigException as error:
            raise AccessRefusedError(f"credentials: {error}", "renew the kubeconfig's credentials") from error
        return response

    async def _chunk(self, response: aiohttp.ClientResponse, path: str) -> bytes:
        try:
            return await response.content.readany()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnreachableError(f"GET {path}: {_words(error)}") from error

    async def _connected(self) -> Any:
        if self._closed:
            raise RuntimeError("this connection to Kubernetes was closed")
        async with self._lock:
            if self._client is None:
                self._client = await new_client(self._access)
            return self._client

    async def _renew(self, refused: Any) -> None:
        """Read the credentials again: tokens of kubeconfig commands expire within a client's life."""
        async with self._lock:
            if self._client is not refused or self._closed:
                return
            self._client = await new_client(self._access)
            self._retired.append(refused)  # its streams end by themselves; two are enough to outlast them
            while len(self._retired) > 2:
                await self._retired.pop(0).close()


def _decoded(data: bytes, path: str) -> Object:
    try:
        parsed = json.loads(data)
    except ValueError as error:
        raise UnreachableError(f"{path}: the answer is no JSON") from error
    if not isinstance(parsed, dict):
        raise UnreachableError(f"{path}: the answer is no object")
    return parsed


def _lost(method: str, path: str, error: BaseException) -> UnreachableError:
    kind = UnreachableError if method == "GET" else LostAnswerError
    return kind(f"{method} {path}: {_words(error)}")


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__
