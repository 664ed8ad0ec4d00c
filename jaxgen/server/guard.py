"""What every request passes first: its host, key, size and time; and errors as responses."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_LOG = logging.getLogger("jaxgen.server")
#: Hosts by which a server is reached that listens on this machine alone.
LOOPBACK = ("localhost", "127.0.0.1", "::1")
#: Paths that need no key: the page, and whether the server lives.
OPEN_PATHS = ("/", "/health", "/favicon.ico")
#: Of every response: the page takes scripts, styles and data from this server alone, and no other page may frame it.
SECURITY_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
#: Seconds that a request may take to arrive.
BODY_SECONDS = 30.0
#: Seconds for which a client may read nothing of its response.
SEND_SECONDS = 300.0


def error_body(message: str, status: int) -> dict[str, Any]:
    """An error as OpenAI's interface has it."""
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


class Refusal(Exception):
    """A request that is refused before it is read whole."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Guard:
    """ASGI middleware that refuses requests of other hosts and origins, without the key, too large or too slow.

    Args:
        app: The application.
        observe: Called with the path of the route, the status, and the seconds of each request.
        api_key: What ``Authorization: Bearer`` must have, if anything.
        local: Whether the server listens on this machine alone: it then answers to names of this machine only, so that
            no web page can reach it under a name of its own (DNS rebinding).
        origins: Origins of web pages elsewhere that may use it.
        max_bytes: The largest body.
    """

    def __init__(
        self,
        app: Any,
        observe: Callable[[str, int, float], None],
        *,
        api_key: str | None,
        local: bool,
        origins: tuple[str, ...],
        max_bytes: int,
    ) -> None:
        self.app, self.observe, self.api_key = app, observe, api_key
        self.local, self.origins, self.max_bytes = local, origins, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, or pass on what is none."""
        if scope["type"] == "websocket":
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 499  # unless a response begins

        async def watched(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            status = message.get("status", status)
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), *SECURITY_HEADERS]
                if not any(name == b"cache-control" for name, _ in headers):
                    headers.append((b"cache-control", b"no-cache"))  # the page is that of the running version
                message = {**message, "headers": headers}
            try:
                async with asyncio.timeout(SEND_SECONDS):
                    await send(message)
            except TimeoutError:  # the client reads nothing; without a limit its response would stay in memory
                raise ClientDisconnect from None

        try:
            await self._answer(scope, receive, watched)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            self.observe(path, status, time.monotonic() - began)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._check_headers(scope)
            async with asyncio.timeout(BODY_SECONDS):
                body = await self._read(receive)
        except Refusal as refused:
            await _refuse(send, refused.status, str(refused))
            return
        except TimeoutError:
            await _refuse(send, 408, f"The request did not arrive within {BODY_SECONDS:g} seconds.")
            return
        if body is None:  # the client has left
            return
        sent = False

        async def replay() -> MutableMapping[str, Any]:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        try:
            await self.app(scope, replay, send)
        except ClientDisconnect:
            pass
        except Exception:  # the response is sent already
            _LOG.exception("The server failed to answer %s %s", scope["method"], scope["path"])

    def _check_headers(self, scope: Scope) -> None:
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if self.local and _name(host) not in LOOPBACK:
            raise Refusal(403, f"This server answers to {', '.join(LOOPBACK)} only: start it with --host for others.")
        origin = headers.get(b"origin")
        own = bool(host) and (origin or "").partition("://")[2].lower() == host.lower()
        if origin is not None and origin not in self.origins and not own:
            raise Refusal(403, "Pages of other origins may not use this server: start it with --allow-origin.")
        preflight = scope["method"] == "OPTIONS" and origin is not None
        public = scope["path"] in OPEN_PATHS or scope["path"].startswith("/static/")
        if self.api_key is not None and not public and not preflight:
            given = headers.get(b"authorization", "")
            if not hmac.compare_digest(given.encode("latin-1"), f"Bearer {self.api_key}".encode()):
                raise Refusal(401, "The key is missing or wrong: send Authorization: Bearer KEY.")
        length = headers.get(b"content-length", "")
        if length.isascii() and length.isdecimal() and int(length[:20]) > self.max_bytes:
            raise Refusal(413, self._too_large)

    @property
    def _too_large(self) -> str:
        return f"The request has more than {self.max_bytes:,} bytes, the most that is read."

    async def _read(self, receive: Receive) -> bytes | None:
        """The whole body; ``None`` if the client left."""
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            body += message.get("body", b"")
            if len(body) > self.max_bytes:
                raise Refusal(413, self._too_large)
            if not message.get("more_body"):
                return bytes(body)


def _name(host: str) -> str:
    """A host without its port and brackets, in lower case."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


async def _refuse(send: Send, status: int, message: str) -> None:
    body = json.dumps(error_body(message, status)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})
