"""Running the application: a port, signals, and an end that finishes what was accepted."""

from __future__ import annotations

import logging
import os
import socket
import sys
from contextlib import AbstractAsyncContextManager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from searchr3.errors import SearchR3Error
from searchr3.serving.app import create_app
from searchr3.serving.gate import GRACE
from searchr3.serving.metrics import Traffic
from searchr3.serving.service import Service
from searchr3.serving.settings import Settings

IDLE = 75  # seconds that a connection is kept without a request: longer than clients and proxies keep theirs
BACKLOG = 512  # connections that the system keeps until we look at them


def listen(settings: Settings) -> socket.socket:
    """A socket that listens at the host and port: taken before the model is loaded.

    Raises:
        SearchR3Error: the port is taken, or the address is not ours.
    """
    host, port = settings.host, settings.port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(found[4][:2], family=found[0], backlog=BACKLOG)
    except OSError as error:
        number = error.errno or 0  # below 0: of a name that cannot be resolved
        why = os.strerror(number) if number > 0 else error.strerror or str(error)
        raise SearchR3Error(
            f"{host}:{port}: cannot be listened at ({why}); choose another --port, or --port 0 for any"
        ) from None


def application(service: Service) -> FastAPI:
    """The app of a service whose backend, if it has a beginning and an end, lives as long as the app does."""
    backend: object = service.backend
    lasting = backend if isinstance(backend, AbstractAsyncContextManager) else None
    return create_app(service, (lambda: lasting) if lasting else None)


def server(service: Service) -> Server:
    """A server whose `run(sockets=[listening])` answers requests until SIGTERM or Ctrl-C."""
    app = application(service)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="on",
        ws="none",
        timeout_keep_alive=IDLE,
        timeout_graceful_shutdown=int(service.settings.seconds + 2 * GRACE),
    )
    return Server(config, app.state.traffic)


class Server(uvicorn.Server):
    """Told to end it first refuses new requests with 503, and closes the port once none is at work."""

    def __init__(self, config: uvicorn.Config, traffic: Traffic):
        super().__init__(config)
        self.traffic = traffic

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM or Ctrl-C; the second one ends at once."""
        if self.traffic.draining:
            super().handle_exit(sig, frame)
            self.force_exit = True
        self.traffic.draining = True

    async def on_tick(self, counter: int) -> bool:
        if self.traffic.draining and not self.traffic.active:
            self.should_exit = True
        return await super().on_tick(counter)


def log_to_stderr(debug: bool = False) -> None:
    """A line for each request, without what it holds."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("searchr3.serving")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    logger.propagate = False
