"""An existing ASGI application as a part of the system: its lifespan, server and registration.

lifespan starts → the process before has ended → it accepts → registered
unlisted → the server has drained → the lease ends → lifespan ends
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable
from dataclasses import dataclass
from socket import AF_INET, AF_INET6, create_server, socket

from synchromesh.calls import Caller
from synchromesh.clock import loop_now
from synchromesh.discovery import Endpoint, Registration
from synchromesh.errors import ConfigError, DiscoveryError, StaleIncarnation
from synchromesh.http import AsgiApp, Lifespan, Receive, Scope, Send
from synchromesh.identity import REGISTRY
from synchromesh.runtime import Runtime
from synchromesh.service import Child, Deps
from synchromesh.system.config.parts import SystemPart
from synchromesh.system.control.local import LocalApplication
from synchromesh.system.host.asgi_servers import AsgiServer, find_server, server_of
from synchromesh.system.host.host import Host
from synchromesh.system.host.joined_app import Joined, MemberApp
from synchromesh.system.host.registries import SharedRegistry
from synchromesh.system.host.service_part import (
    LOCKED_WITHIN_S,
    Listening,
    Superseded,
    end_lease,
)
from synchromesh.system.leases_api.client import RemoteRegistry
from synchromesh.system.supervise.messages import Loaded

# How long a server may take until it accepts.
ACCEPTS_WITHIN_S = 10.0
LOOK_EVERY_S = 0.02
BACKLOG = 2048

_log = logging.getLogger("synchromesh.system")


class ServerEnded(Superseded):
    """Raised where the server of an application has ended by itself, and its process is to."""


@dataclass(frozen=True, slots=True)
class HostedMember:
    """How an application takes part that this process runs for its system."""

    runtime: Runtime
    deps: Deps
    caller: Caller


class ApplicationPart:
    """Runs one instance of an ASGI application; `start`, then `drain`. The host closes the rest.

    Args:
        part: which instance it is.
        app: the application; what `join` returned, too.
        before: the port that the process before it had; taken again where it is free.
        say: told when the application has started, and only its port is waited for.

    Attributes:
        url: where it is reached.
    """

    url: str
    _server: AsgiServer
    _serving: asyncio.Task[None]

    def __init__(
        self,
        part: SystemPart,
        app: AsgiApp,
        host: Host,
        registry: SharedRegistry | RemoteRegistry,
        *,
        before: int,
        say: Callable[[Loaded], None],
    ) -> None:
        section, own = host.config.services[part.service], host.config.system
        self._server_name = find_server(section.server, part.service)
        self._part = part
        self._host = host
        self._registry = registry
        self._listening = Listening(own.host, section.port, before, own.advertise, host.operated_at)
        self._say = say
        deps = host.deps
        member = HostedMember(deps.runtime, deps, deps.caller(part.service))
        self._inner = app.taken_by(member) if isinstance(app, Joined) else app
        self._app = MemberApp(self._inner, part.service, member)
        self._caller = member.caller
        self._registration: Registration | None = None
        self._is_draining = False

    def why_not(self) -> str:
        """Return why it takes no requests; "" where it takes them."""
        if self._is_draining:
            return "it drains"
        return "" if self._registration is not None else "it does not run"

    def told(self) -> LocalApplication:
        """Return what `status` shows of it."""
        return LocalApplication(
            self._part.service, self._caller, self._app.in_flight, self.why_not(), self._is_draining
        )

    async def start(self) -> None:
        """Start the application and its server, and register it.

        Raises:
            ConfigError: it does not start, or cannot listen.
            DiscoveryError: the registry refuses it, or does not answer.
        """
        host, name = self._host, self._part.name
        enter = host.exit
        about = {"version": "3.0", "spec_version": "2.0"}
        lifespan = Lifespan(self._inner, {"type": "lifespan", "asgi": about, "state": {}})
        try:
            await lifespan.startup()
        except ConfigError as error:
            why = error.message.partition(": ")[2]
            raise ConfigError(f"service {self._part.name!r} did not start: {why}") from error
        enter.push_async_callback(lifespan.shutdown)
        self._say(Loaded())
        listening = await self._listen()
        tls = host.config.system.tls.server(host.folder)
        self.url = self._listening.url_of(_url_of(listening, is_secured=tls is not None))
        address = listening.getsockname()[:2]
        stated = _with_state(self._app, lifespan)
        self._server = server_of(self._server_name, stated, listening, tls)
        self._serving = asyncio.create_task(self._server.run(), name=f"server/{name}")
        enter.push_async_callback(self._end_server)
        await self._accepts(*address)
        host.urls[name] = self.url
        host.admin.parts[name] = self.why_not
        host.local.applications[name] = self.told
        await self._register()
        self._keep(Child(f"server/{name}", self._watch))

    async def drain(self) -> None:
        """Leave the list, and answer what was taken."""
        budget, self._is_draining = self._host.budget, True
        if self._registration is not None:
            try:
                await self._registration.drain()
            except DiscoveryError as error:
                _log.info("the registry was not notified of the drain: %s", error)
            else:
                await asyncio.sleep(budget.heard_s)
        self._server.stop()
        await asyncio.wait({self._serving}, timeout=budget.replaced_answer_s)

    async def _register(self) -> None:
        deps, service = self._host.deps, self._part.service
        endpoint = Endpoint(self._part.instance, service, self.url, self._listening.facts)
        token = deps.signer.token(service, audience=REGISTRY, now_us=deps.runtime.wall_us())
        registration = await self._registry.register(endpoint, credential=token)
        self._registration = registration
        self._host.exit.push_async_callback(end_lease, registration)
        self._keep(Child(f"lease/{self._part.name}", lambda: self._renew(registration)))

    def _keep(self, loop: Child) -> None:
        self._host.background.start(loop)
        self._host.exit.push_async_callback(self._host.background.stop, loop.name)

    async def _renew(self, registration: Registration) -> None:
        try:
            await registration.run()
        except StaleIncarnation as error:
            if not self._is_draining:  # else its successor is listed, as it has to be
                raise Superseded(str(error)) from error
        await asyncio.Event().wait()

    async def _listen(self) -> socket:
        """Listen where it is configured, or where the process before did, once that has ended.

        Raises:
            ConfigError: somebody else listens there.
        """
        host, port, before = self._listening.host, self._listening.port, self._listening.before
        family = AF_INET6 if ":" in host else AF_INET
        until_s = loop_now() + (LOCKED_WITHIN_S if before else 0.0)
        while True:
            try:
                return create_server((host, port or before), family=family, backlog=BACKLOG)
            except OSError as error:
                is_over = loop_now() >= until_s
                if not is_over and error.errno == errno.EADDRINUSE:
                    await asyncio.sleep(LOOK_EVERY_S)
                    continue
                if before and not port:
                    # Somebody has taken the port that it had by chance.
                    return create_server((host, 0), family=family, backlog=BACKLOG)
                raise ConfigError(
                    f"service {self._part.name!r} cannot listen on {host}:{port}: "
                    f"{error.strerror or error}; stop what listens there, or choose another port "
                    f"in [services.{self._part.service}], or leave it out to take a free one"
                ) from error

    async def _accepts(self, host: str, port: int) -> None:
        """Wait until the server accepts; raise ConfigError where it does not."""
        within_s = loop_now() + ACCEPTS_WITHIN_S
        while not self._serving.done() and loop_now() < within_s:
            try:
                _, writer = await asyncio.open_connection(host, port)
            except OSError:
                await asyncio.sleep(LOOK_EVERY_S)
                continue
            writer.close()
            return
        why = f"accepted nothing within {ACCEPTS_WITHIN_S:g} s"
        if self._serving.done() and not self._serving.cancelled():
            why = f"ended: {self._serving.exception() or 'by itself'}"
        raise ConfigError(f"service {self._part.name!r} did not start: {self._server_name} {why}")

    async def _watch(self) -> None:
        """Raise where the server ends by itself: its process is for nothing else."""
        await asyncio.wait({self._serving})
        if not self._is_draining:
            failed = None if self._serving.cancelled() else self._serving.exception()
            why = f": {failed!r}" if failed is not None else ""
            raise ServerEnded(f"{self._server_name} of {self._part.name} ended{why}")
        await asyncio.Event().wait()

    async def _end_server(self) -> None:
        self._server.stop()
        _, left = await asyncio.wait({self._serving}, timeout=self._host.budget.hurry_s / 2)
        for task in left:
            task.cancel()
        await asyncio.gather(self._serving, return_exceptions=True)

    def __repr__(self) -> str:
        return f"<ApplicationPart {self._part.name} by {self._server_name}>"


def _with_state(app: AsgiApp, lifespan: Lifespan) -> AsgiApp:
    """Return the application with the state of its lifespan in each request."""

    async def stated(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"] = dict(lifespan.state)
        await app(scope, receive, send)

    return stated


def _url_of(listening: socket, *, is_secured: bool) -> str:
    host, port = listening.getsockname()[:2]
    scheme = "https" if is_secured else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
