"""A drill in virtual time: each column of a page is a universe of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from synchromesh.calls import Call
from synchromesh.drill.course import Column, DrillClient, Heard, take_away
from synchromesh.drill.probes import FILE_NAME, Probes
from synchromesh.errors import ConfigError
from synchromesh.http import HttpPool
from synchromesh.system.config.definitions import (
    load_attribute,
    load_opening,
    load_services,
    without_applications,
)
from synchromesh.system.config.schema import GATEWAY, SystemConfig
from synchromesh.testing.sim_system import (
    FAILING,
    KILLED,
    REGISTRY,
    STALLED,
    UNWRITABLE,
    SimSystem,
    StandIn,
)

R = TypeVar("R")

UNTIL_S = 3600.0
# How long what the opening has begun may take.
SETTLES_S = 10.0

Stages = Callable[[SimSystem], Callable[[str], Awaitable[None]]]


class SimulatedDrill:
    """Takes the parts of a system away in virtual time; nothing of the real one is touched.

    Args:
        config: of the system.
        folder: where its code is.
        probes: what is asked.

    Raises:
        ConfigError: the system has no gateway, or what is named cannot be imported.
    """

    def __init__(self, config: SystemConfig, folder: Path, probes: Probes) -> None:
        if not config.gateway.app:
            raise ConfigError("a drill asks at the gateway; name one as [gateway] app")
        services = load_services(config, folder)
        # What is not simulated is as if nobody had started it.
        self._config = without_applications(config, services)
        self._folder, self._probes = folder, probes
        self._services = {each.name: each for each in services}
        self._stand_ins: dict[str, StandIn] = {
            name: load_attribute(place, f"{FILE_NAME}: [stand_ins] {name} = {place!r}", folder)
            for name, place in probes.stand_ins.items()
        }
        self._files: Mapping[str, bytes] | None = None

    def columns(self) -> Iterator[tuple[str, str]]:
        """Yield each part with each way in which it can be away, in the order of the page."""
        for name, section in self._config.services.items():
            if section.replicas > 1:
                yield from ((f"{name}#2", way) for way in (KILLED, STALLED, FAILING))
            ways = [KILLED, STALLED, FAILING]
            if self._services[name].state:
                ways.append(UNWRITABLE)
            yield from ((name, way) for way in ways)
        for name in self._config.external:
            yield from ((name, way) for way in (KILLED, STALLED, FAILING))
        yield from ((REGISTRY, way) for way in (KILLED, STALLED))
        yield GATEWAY, KILLED

    def run(
        self, part: str, way: str, *, stages: Stages | None = None, heard: Heard = lambda *_: None
    ) -> Column:
        """Take a part away, in a universe of its own; return what was seen.

        Args:
            stages: given the system, returns what is told how far it is; see `take_away`.
            heard: is told each answer.

        Raises:
            ConfigError: a process cannot be started, or a probe is not answered while all is well.
        """
        system = self._system(f"{part} {way}", self._opened())

        async def main() -> Column:
            await system.start()
            async with HttpPool(network=system.world.network) as pool:
                place = ("127.0.0.1", system.ports[GATEWAY])
                client = DrillClient(pool, place, lambda probe: probe.principal, heard=heard)
                told = None if stages is None else stages(system)
                return await take_away(system, client, self._probes.probe, part, way, told=told)

        return system.world.run(main(), until_s=UNTIL_S)

    def _opened(self) -> Mapping[str, bytes]:
        """Return the databases of a system that has opened; it does so once."""
        if self._files is None:
            dev = self._config.dev
            if self._probes.opening:
                dev = msgspec.structs.replace(dev, opening=self._probes.opening)
            config = msgspec.structs.replace(self._config, dev=dev)
            opening = load_opening(config, self._folder)
            if opening is None:
                self._files = {}
            else:
                system = self._system("it opens", {})

                async def main() -> None:
                    await system.start()
                    await opening(_Opener(system))
                    await asyncio.sleep(SETTLES_S)

                system.world.run(main(), until_s=UNTIL_S)
                self._files = system.files()
        return self._files

    def _system(self, seed: str, files: Mapping[str, bytes]) -> SimSystem:
        return SimSystem(
            self._config,
            self._folder,
            seed=seed,
            stand_ins=self._stand_ins,
            scopes=self._probes.scopes,
            files=files,
        )


class _Opener:
    """What the opening function of a system is given."""

    def __init__(self, system: SimSystem) -> None:
        self._system = system

    async def call(self, call: Call[R], *, key: str) -> R:
        """Send a command under an idempotency key and return its answer."""
        return await self._system.call(call, key=key)
