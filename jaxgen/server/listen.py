"""Runs the application with uvicorn, from the first connection to an orderly end."""

from __future__ import annotations

import socket
import threading
import time
from types import FrameType
from typing import Any

import uvicorn

from jaxgen.errors import UsageError
from jaxgen.inference.engine import Engine

#: Connections that wait to be accepted, and that may be open.
BACKLOG, MAX_CONNECTIONS = 2_048, 4_096
#: Seconds in which clients may read the ends of their texts after a second signal.
LAST_SECONDS = 1.0


def open_socket(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises ``UsageError`` if the address is in use or unknown."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        found = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(f"--host {host} cannot be used: {error.strerror or error}.") from None
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(BACKLOG)  # from now on clients wait, and are not refused
    except OSError as error:
        found.close()
        reason = error.strerror or error
        raise UsageError(f"--port {port} of {host} cannot be used: {reason}. Give another --port; 0 is free.") from None
    return found


class _Server(uvicorn.Server):
    """The first signal ends the engine, and then the server; a second one ends both, and waits for no client."""

    def __init__(self, config: uvicorn.Config, engine: Engine, finish: bool, grace: float) -> None:
        super().__init__(config)
        self._engine, self._finish, self._grace = engine, finish, grace

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        again = self.should_exit
        super().handle_exit(sig, frame)
        self.force_exit = False  # it would cut off the texts that end now
        threading.Thread(target=self._close, args=(again,), daemon=True).start()

    def _close(self, again: bool) -> None:
        self._engine.close(finish=self._finish and not again, seconds=self._grace)
        if again:
            time.sleep(LAST_SECONDS)
            self.force_exit = True


def listen(app: Any, listening: socket.socket, engine: Engine, *, finish: bool = True, grace: float = 30.0) -> None:
    """Serve until a signal comes; then no request is taken any more, and those that run finish or end.

    Args:
        app: The ASGI application.
        listening: The socket.
        engine: Closed at the end.
        finish: Whether texts finish; otherwise they end as if time were up.
        grace: Seconds in which they have to finish.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(grace) + 5,
        limit_concurrency=MAX_CONNECTIONS,
        backlog=BACKLOG,
        h11_max_incomplete_event_size=64 * 1024,
    )
    server = _Server(config, engine, finish, grace)
    try:
        server.run(sockets=[listening])
    finally:
        engine.close(finish=False)
