"""The servers that run ASGI applications in a process of the system: uvicorn, and granian.

Each runs in the loop of the process, takes no signals, and runs no lifespan: that is done around
it. They are imported only where an application is run.
"""

from __future__ import annotations

import asyncio
import importlib
from contextlib import nullcontext
from importlib.util import find_spec
from socket import socket
from typing import TYPE_CHECKING, Any, Protocol

from synchromesh.errors import ConfigError
from synchromesh.http import AsgiApp

if TYPE_CHECKING:
    from synchromesh.tls import ServerFiles

AUTO, UVICORN, GRANIAN = "auto", "uvicorn", "granian"


class AsgiServer(Protocol):
    """A server that has its application, and its address."""

    async def run(self) -> None:
        """Serve until `stop`, and then until what was taken is answered."""

    def stop(self) -> None:
        """Accept nothing more."""


def find_server(wanted: str, service: str) -> str:
    """Return the server that runs an application: the one that is named, or the first there is.

    Raises:
        ConfigError: it is not installed; the message says how to install it.
    """
    found = [each for each in (UVICORN, GRANIAN) if find_spec(each) is not None]
    if wanted in found:
        return wanted
    if wanted == AUTO and found:
        return found[0]
    missing, name = ("neither uvicorn nor granian", UVICORN) if wanted == AUTO else (wanted, wanted)
    what = f"{missing} is installed" if wanted == AUTO else f"{missing} is not installed"
    raise ConfigError(
        f"[services.{service}] app is an ASGI application, which a server runs, and {what}: "
        f"pip install {name}"
    )


def server_of(
    name: str, app: AsgiApp, listening: socket, tls: ServerFiles | None = None
) -> AsgiServer:
    """Return a server for an application at a socket that listens; it owns the socket.

    Args:
        tls: what it proves itself by, and whose certificates it asks for; read once.
    """
    return _Uvicorn(app, listening, tls) if name == UVICORN else _Granian(app, listening, tls)


class _Uvicorn:
    def __init__(self, app: AsgiApp, listening: socket, tls: ServerFiles | None) -> None:
        uvicorn: Any = importlib.import_module(UVICORN)
        options: dict[str, Any] = {"lifespan": "off", "log_config": None, "access_log": False}
        if tls is not None:
            import ssl

            options |= {
                "ssl_certfile": str(tls.certificate),
                "ssl_keyfile": str(tls.key),
                "ssl_ca_certs": str(tls.client_ca),
                "ssl_cert_reqs": int(ssl.CERT_REQUIRED),
            }
        self._server: Any = uvicorn.Server(uvicorn.Config(app, **options))
        # The process has its own, which stop more than this.
        self._server.capture_signals = nullcontext
        self._listening = listening

    async def run(self) -> None:
        await self._server.serve(sockets=[self._listening])

    def stop(self) -> None:
        self._server.should_exit = True

    def __repr__(self) -> str:
        return f"<uvicorn at {self._listening}>"


class _Granian:
    def __init__(self, app: AsgiApp, listening: socket, tls: ServerFiles | None) -> None:
        embed: Any = importlib.import_module("granian.server.embed")
        constants: Any = importlib.import_module("granian.constants")
        host, port = listening.getsockname()[:2]
        # It takes an address, and no socket; ours has kept that free.
        listening.close()
        interface = constants.Interfaces.ASGINL
        secured: dict[str, Any] = {}
        if tls is not None:
            secured = {"ssl_cert": tls.certificate, "ssl_key": tls.key, "ssl_ca": tls.client_ca}
            secured["ssl_client_verify"] = True
        self._server: Any = embed.Server(
            app, address=host, port=port, interface=interface, log_enabled=False, **secured
        )
        self._is_over = asyncio.Event()

    async def run(self) -> None:
        await self._server.serve()

    def stop(self) -> None:
        self._server.stop()

    def __repr__(self) -> str:
        return "<granian>"
