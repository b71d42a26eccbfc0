"""What a gateway passes requests on to in a test: services and stand-ins, served by HTTP."""

from __future__ import annotations

from collections.abc import Iterable

from synchromesh.calls import HttpEdge, HttpTransport
from synchromesh.calls.wire import Transport
from synchromesh.gateway import Forward, Gateway
from synchromesh.http import AsgiHandler, Handler, HttpPool, HttpServer
from synchromesh.runtime import DiskRuntime
from synchromesh.service import ServiceInstance


class HttpDoors:
    """Serves by HTTP, on the runtime's network, what requests are passed on to.

    Attributes:
        urls: where each is reached, by name.
        transport: reaches them.
    """

    def __init__(self, runtime: DiskRuntime) -> None:
        self._runtime = runtime
        self._servers: list[HttpServer] = []
        self._pool = HttpPool(network=runtime.network)
        self.urls: dict[str, str] = {}
        self.transport: Transport = HttpTransport(self._pool, runtime=runtime)

    async def open_service(self, instance: ServiceInstance) -> None:
        """Serve a service, or a stand-in for one, by the routes of its contract."""
        edge = HttpEdge(runtime=self._runtime)
        edge.mount(instance.dispatcher, instance.offered)
        await self._open(instance.service.name, HttpServer(edge, network=self._runtime.network))

    async def open_upstream(self, name: str, handler: Handler) -> None:
        """Serve what answers by a function; an ASGI application gets bodies as they come."""
        streaming = handler if isinstance(handler, AsgiHandler) else None
        network = self._runtime.network
        await self._open(name, HttpServer(handler, network=network, streaming=streaming))

    async def close(self) -> None:
        """Stop listening. May be repeated."""
        while self._servers:
            await self._servers.pop().close()
        await self._pool.close()

    def __repr__(self) -> str:
        return f"<HttpDoors of {', '.join(self.urls) or 'nothing'}>"

    async def _open(self, name: str, server: HttpServer) -> None:
        await server.start()
        self._servers.append(server)
        self.urls[name] = server.url


def passed_to(gateway: Gateway) -> Iterable[str]:
    """Return the upstreams that a gateway passes requests on to, each once."""
    found: dict[str, None] = {}
    for route in gateway.routes:
        if isinstance(route, Forward):
            beside = (each for each in (route.split, route.mirror) if each is not None)
            found |= dict.fromkeys((route.to, *(each.to for each in beside)))
    return found
