"""The gateway part of a process, with a server of its own.

Where it is a process of its own, its socket is its supervisor's: the process is handed it, and
neither its end nor its replacement closes it. Clients wait in the backlog meanwhile, and none is
refused.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec import convert, to_builtins

from synchromesh.calls import Caller
from synchromesh.clock import loop_now
from synchromesh.gateway import ApiKey, Gateway, GatewayEngine, KeyRing
from synchromesh.gateway.access_log import AccessLog
from synchromesh.gateway.compiled import CompiledRoute
from synchromesh.gateway.engine import REREAD_EVERY_S
from synchromesh.gateway.health import HealthDoor
from synchromesh.gateway.opening import Reopened, close_all, reopen
from synchromesh.gateway.origin import Origins, read_proxies
from synchromesh.gateway.principal import Auth, Authenticator
from synchromesh.gateway.state import GatewayState
from synchromesh.gateway.traffic import GatewayCounts
from synchromesh.http import HttpServer, Limits
from synchromesh.network import HANDSHAKE_S, Network
from synchromesh.runtime import Disk
from synchromesh.service import Child, Deps
from synchromesh.system.config.gateway_keys import ApiKeysFile, folders_of, own_keys_path
from synchromesh.system.config.keys_on_nats import KeysOnNats
from synchromesh.system.config.rundir import RunDir
from synchromesh.system.config.schema import GATEWAY, SystemConfig
from synchromesh.system.control.mirror_status import DifferentStatus, MirrorStatus
from synchromesh.system.host.access_file import AccessFile
from synchromesh.telemetry import Family

if TYPE_CHECKING:
    from synchromesh.tls import ServerTls

# Of the time of a drain; the rest is for what comes last.
_IDLE_SHARE = 2 / 3
# How long a connection may bring one request more once the authorities of clients have changed.
_RENEWED_WITHIN_S = 2.0
# How long a request may wait for what an authenticator asks, such as an issuer for its keys.
_RETIRED_S = 30.0

_log = logging.getLogger("synchromesh.gateway")


class GatewayPart:
    """Serves the gateway of a system; `start`, then `drain`, then `close`.

    Args:
        rundir: where its keys are.
        config: of the system; its externals are not told who asks.
        tls: what the network it listens on proves itself by; None for plain HTTP.
        keys: the API keys that it shares with other replicas; None where they are in its run
            directory.
        name: its own, which its access log has where there are several.

    Attributes:
        definition: what it serves.
        caller: sends its calls.
        access: writes the access log; None where there is none.
        leave: takes it off the registry; None where it is on none.
    """

    def __init__(
        self,
        definition: Gateway,
        deps: Deps,
        rundir: RunDir,
        disk: Disk,
        *,
        config: SystemConfig,
        tls: ServerTls | None = None,
        keys: KeysOnNats | None = None,
        name: str = GATEWAY,
    ) -> None:
        self._tls = tls
        self._keys = keys
        self._log_name = "access.jsonl" if name == GATEWAY else f"access-{name}.jsonl"
        self._replicas = 1
        self.definition = definition
        self._config = config
        self._deps = deps
        self._rundir = rundir
        self._disk = disk
        self._externals = frozenset(config.external)
        self._is_draining = False
        self.access: AccessFile | None = None
        self.leave: Callable[[], Awaitable[None]] | None = None
        self._tracer = deps.tracer(GATEWAY)
        self.caller = deps.caller(GATEWAY, self._tracer)
        self._authenticators: list[tuple[Auth, Authenticator]] = []
        # What ends that whose place something else has taken, and when nobody asks it any more.
        self._retired: list[tuple[float, Callable[[], Awaitable[None]]]] = []
        self._engine: GatewayEngine | None = None
        self._server: HttpServer | None = None
        self._url = ""

    @property
    def url(self) -> str:
        """The gateway's URL; "" before it has started."""
        return self._url

    async def start(
        self, network: Network, host: str, port: int, entries: Sequence[CompiledRoute]
    ) -> None:
        """Load the keys and start listening; a missing file of keys is created empty.

        Args:
            entries: what `check_gateway` made of the definition.

        Raises:
            ConfigError: the keys have mistakes, or it cannot listen there.
        """
        prepared = await self.prepare(self.definition, entries, self._config)
        engine, door = self._engine_of(prepared, None)
        runtime = self._deps.runtime
        server = self._server = HttpServer(
            door,
            network=network,
            limits=prepared.limits,
            streaming=door,
            client_of=prepared.origins.counted_for,
            refused=engine.state.note_refused,
            wall_us=runtime.wall_us,
        )
        await server.start(host, port)
        self._url = server.url

    async def prepare(
        self,
        definition: Gateway,
        entries: Sequence[CompiledRoute],
        config: SystemConfig,
        *,
        tls: ServerTls | None = None,
    ) -> Prepared:
        """Open what a definition and a configuration need, beside what is at work.

        Args:
            entries: what `check_gateway` made of the definition.
            tls: what it proves itself by from then on; None leaves that as it is.

        Raises:
            ConfigError: something is missing or wrong; nothing was changed.
        """
        for auth in definition.auth:
            path = own_keys_path(auth, self._rundir)
            if path is not None and not path.exists():
                ApiKeysFile(path, self._disk).write(())
        section, access = config.gateway, self.access
        origins = Origins(
            read_proxies(section.trusted_proxies),
            by=section.forwarded_by or "x-forwarded",
            scheme="http" if self._tls is None else "https",
        )
        limits = section.clients.compile()
        # From here on something is open, which nothing but this may leave behind.
        if section.access_share() and access is None:
            runtime = self._deps.runtime
            log = AccessLog(1.0, runtime.rng, runtime.wall_us, Origins())
            access = AccessFile(log, self._rundir.telemetry / self._log_name)
        folders = folders_of(self._rundir)
        try:
            reopened = await reopen(
                definition.auth, self._authenticators, folders, self._deps.runtime
            )
        except BaseException:
            if access is not None and access is not self.access:
                access.close()
            raise
        return Prepared(
            definition=definition,
            entries=entries,
            config=config,
            reopened=reopened,
            origins=origins,
            limits=limits,
            access=access,
            tls=tls,
        )

    async def discard(self, prepared: Prepared) -> None:
        """Close what was prepared and is not taken."""
        if prepared.access is not None and prepared.access is not self.access:
            prepared.access.close()
        await close_all(prepared.reopened.made)

    def take(self, prepared: Prepared, caller: Caller | None = None) -> None:
        """Serve what was prepared from the next request on; none that is under way is lost.

        Args:
            caller: sends its calls from then on; None leaves that as it is.
        """
        assert self._engine is not None
        assert self._server is not None
        self.caller = caller or self.caller
        kept = prepared.reopened.authenticators
        gone_s = loop_now() + _RETIRED_S
        gone = [own.close for _, own in self._authenticators if own not in kept]
        gone.append(self._engine.retire)
        engine, door = self._engine_of(prepared, self._engine.state)
        self._server.take_over(
            door,
            door,
            limits=prepared.limits,
            client_of=prepared.origins.counted_for,
            refused=engine.state.note_refused,
        )
        self._retired += [(gone_s, each) for each in gone]
        self.definition, self._config = prepared.definition, prepared.config
        if self._tls is not None and prepared.tls is not None:
            self._tls.take(prepared.tls)

    def _engine_of(
        self, prepared: Prepared, before: GatewayState | None
    ) -> tuple[GatewayEngine, GatewayEngine | HealthDoor]:
        """Return the engine of what was prepared, and what stands before it."""
        section, log = prepared.config.gateway, None
        rings = list(zip(prepared.definition.auth, prepared.reopened.authenticators, strict=True))
        if self._keys is not None:
            self._replace_keys(rings, self._keys.known.by_id())
        self.access = prepared.access
        if self.access is not None and section.access_share():
            log = self.access.log
            log.share, log.origins = section.access_share(), prepared.origins
        self._authenticators = rings
        state = GatewayState.of(prepared.definition, prepared.entries, log, before)
        for buckets in state.buckets.values():
            buckets.share(self._replicas)
        engine = self._engine = GatewayEngine(
            prepared.definition,
            caller=self.caller,
            tracer=self._tracer,
            authenticators=prepared.reopened.authenticators,
            externals=self._externals,
            origins=prepared.origins,
            entries=prepared.entries,
            state=state,
        )
        if not section.health:
            return engine, engine
        return engine, HealthDoor(engine, section.health, lambda: not self._is_draining)

    def _replace_keys(
        self, rings: Sequence[tuple[Auth, Authenticator]], keys: Mapping[str, ApiKey]
    ) -> None:
        """Have what verifies the system's own keys know these."""
        for auth, ring in rings:
            if isinstance(ring, KeyRing) and own_keys_path(auth, self._rundir) is not None:
                ring.replace(keys)
                return  # commands change the keys of the first

    async def follow_keys(self) -> None:
        """Take up what becomes of the keys that it shares; a supervised loop."""
        assert self._keys is not None

        def changed(keys: Mapping[str, ApiKey]) -> None:
            self._replace_keys(self._authenticators, keys)
            _log.info("the API keys have changed: there are %d", len(keys))

        await self._keys.run(changed)

    def share(self, replicas: int) -> None:
        """Admit by rates as one of so many gateways, from now on."""
        if replicas == self._replicas or self._engine is None:
            return
        self._replicas = replicas
        _log.info("rates are shared by %d gateways", replicas)
        for buckets in self._engine.state.buckets.values():
            buckets.share(replicas)

    def loops(self) -> list[Child]:
        """Return what runs beside it, from its start on."""
        found = [Child("gateway/keys", self.run)]
        if self._keys is not None:
            found.append(Child("gateway/keys on NATS", self.follow_keys))
        return found

    async def run(self) -> None:
        """Read keys and certificates again when their files change; a supervised loop."""
        assert self._server is not None
        loop, tls = asyncio.get_running_loop(), self._tls
        again_s = math.inf
        while True:
            assert self._engine is not None
            self._engine.refresh()
            await self._close_retired(loop.time())
            if tls is not None:
                before = tls.authorities
                tls.refresh(now_s=self._deps.runtime.wall_us() / 1e6)
                is_due = loop.time() >= again_s
                if tls.authorities != before or is_due:
                    # Clients of an authority that was withdrawn are let go of, with all others: and
                    # once more, those whose handshake had begun before.
                    again_s = math.inf if is_due else loop.time() + HANDSHAKE_S + REREAD_EVERY_S
                    self._server.renew(_RENEWED_WITHIN_S)
            await asyncio.sleep(REREAD_EVERY_S)

    def snapshot(self) -> GatewayCounts | None:
        """Return what became of the requests so far, by route; None before it has started."""
        return None if self._engine is None else self._engine.snapshot()

    def families(self) -> list[Family]:
        """Return its metrics; none before it has started."""
        if self._engine is None:
            return []
        return self._engine.state.families("http" if self._tls is None else "https")

    def mirrors(self) -> list[MirrorStatus]:
        """Return what has come of the copies of requests, by route."""
        if self._engine is None:
            return []
        return [
            MirrorStatus(
                route=entry.name,
                first=entry.passage.to,
                to=entry.mirror.passage.to,
                **to_builtins(book.counts),
                in_flight=book.in_flight,
                last_failure=book.last_failure,
                kept=convert(book.kept, list[DifferentStatus], from_attributes=True),
            )
            for entry in self._engine.entries
            if entry.mirror is not None and entry.passage is not None
            for book in (self._engine.state.mirrors[entry.name],)
        ]

    def why_not(self) -> str:
        """Return why it takes no requests; "" where it takes them."""
        if self._is_draining:
            return "it drains"
        return "" if self._url else "it does not run"

    def warnings(self) -> list[str]:
        """Return what a person should know of it, in words."""
        found = []
        if self._keys is not None and self._keys.why_old:
            found.append(f"the API keys may be old: {self._keys.why_old}")
        if self._tls is not None:
            found.append(self._tls.warning(now_s=self._deps.runtime.wall_us() / 1e6))
        return [f"gateway: {each}" for each in found if each]

    async def drain(self, within_s: float) -> None:
        """Finish accepted requests, and cut what is left at the deadline.

        For two thirds of the time each connection may bring one request more: a client that is
        about to send it could not know whether it was run.
        """
        self._is_draining = True
        if self.leave is not None:
            await self.leave()
        if self._server is not None:
            await self._server.drain(within_s, idle_s=within_s * _IDLE_SHARE)

    async def close(self) -> None:
        """Stop listening, and stop the worker that verifies keys. May be repeated."""
        # A reload that is being prepared finds nothing any more that it could be taken by.
        self._is_draining = True
        if self._server is not None:
            await self._server.close()
        if self._engine is not None:
            await self._engine.close()
        await self._close_retired(math.inf)
        if self.access is not None:
            self.access.close()

    async def _close_retired(self, now: float) -> None:
        due = [close for at_s, close in self._retired if at_s <= now]
        self._retired = [each for each in self._retired if each[0] > now]
        for close in due:
            await close()

    @property
    def is_draining(self) -> bool:
        """Whether it takes nothing new any more."""
        return self._is_draining

    def __repr__(self) -> str:
        return f"<GatewayPart {len(self.definition.routes)} routes>"


@dataclass(frozen=True, slots=True)
class Prepared:
    """Is what a gateway needs for another definition or configuration, open and not yet in use.

    Attributes:
        access: writes the access log; None where there is none.
        tls: what it proves itself by; None leaves that as it is.
    """

    definition: Gateway
    entries: Sequence[CompiledRoute]
    config: SystemConfig
    reopened: Reopened
    origins: Origins
    limits: Limits
    access: AccessFile | None
    tls: ServerTls | None
