"""A drill of a system that runs: a part is broken at its callers, by a fault that ends by itself.

The fault is put in force by the control API, as `synchromesh break` does. It is healed whatever
happens; and it ends little later than it should have been, also where the drill itself is killed.
The part runs on: what it does of its own accord goes on, and who calls it past the system is not
struck.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from synchromesh.drill.course import Column, DrillClient, DrillPace, take_away
from synchromesh.drill.probes import FILE_NAME, Probe
from synchromesh.errors import ConfigError
from synchromesh.http import HttpPool
from synchromesh.network import Network
from synchromesh.system.config.secrets import read_secret

STALLED, FAILING = "stalled", "failing"
BROKEN: dict[str, dict[str, object]] = {STALLED: {"stall": True}, FAILING: {"errors": "100%"}}
# How long after the drill should have healed it a fault ends by itself.
SPARE_S = 10.0
# What answers slower is no news in a system that others use, too.
LIVE_PACE = DrillPace(ends_s=5.0)

Ask: TypeAlias = Callable[[str, str, object], Awaitable[Any]]
"""Asks the control API: method, path, and what is sent as JSON; None for nothing."""


class LiveDrill:
    """Breaks the parts of a running system, one after the other, and heals each of them.

    Args:
        ask: asks its control API.
        network: of the gateway.
        probes: what is asked.
        credential: returns what is sent in `Authorization` for a probe.
        first: the first number of its requests; another one for each drill, for keys are kept.
        pace: how long parts are away.
    """

    def __init__(
        self,
        ask: Ask,
        network: Network,
        probes: Sequence[Probe],
        credential: Callable[[Probe], str],
        *,
        first: int,
        pace: DrillPace = LIVE_PACE,
    ) -> None:
        self._ask, self._network, self._probes = ask, network, probes
        self._credential, self._first, self._pace = credential, first, pace

    @staticmethod
    def columns(parts: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Yield each part with each way in which it can be away."""
        yield from ((part, way) for part in parts for way in BROKEN)

    async def run(self, part: str, way: str) -> Column:
        """Break a part and heal it; return what was seen.

        Raises:
            ConfigError: the system has no gateway, or a probe is not answered while all is well.
            SynchromeshError: the control API does not answer.
        """
        gateway = (await self._ask("GET", "/status", None))["gateway"]
        if gateway is None or not gateway["url"]:
            raise ConfigError("a drill asks at the gateway, and this system serves none")
        url = urlsplit(gateway["url"])
        if url.scheme != "http":
            raise ConfigError(
                f"the gateway is at {gateway['url']}, and a live drill speaks plain HTTP; drill a "
                "system without [gateway] tls"
            )
        place = (url.hostname or "127.0.0.1", url.port or 80)
        async with HttpPool(network=self._network) as pool:
            client = DrillClient(pool, place, self._credential, first=self._first)
            try:
                return await take_away(self, client, self._probes, part, way, pace=self._pace)
            finally:
                self._first = client.number()

    async def switch_off(self, part: str, way: str) -> None:
        """Put a fault in force on a part."""
        lasts = f"{self._pace.off_s + SPARE_S:g}s"
        fault = {"target": part, "for": lasts, **BROKEN[way]}
        breaking = asyncio.ensure_future(self._ask("POST", "/faults", fault))
        try:
            await asyncio.shield(breaking)
        except asyncio.CancelledError:
            # What is on its way cannot be called back: it would be put in force after it is healed.
            await asyncio.wait({breaking})
            raise

    async def switch_on(self, part: str) -> None:
        """Heal it."""
        await self._ask("POST", "/faults/heal", {"target": part})

    async def open_breakers(self) -> set[str]:
        """Return the edges whose breaker is not closed."""
        status = await self._ask("GET", "/status", None)
        return {
            breaker["name"].replace(" -> ", " → ")
            for caller in (*status["clients"].values(), *status["services"].values())
            for breaker in caller.get("breakers", {}).values()
            if breaker["state"] != "closed"
        }


def credential_of(probe: Probe, folder: Path, environment: Mapping[str, str]) -> str:
    """Return what a live drill sends in `Authorization`; "" for nothing.

    Raises:
        ConfigError: the key cannot be read.
    """
    if not probe.key:
        return ""
    name = f"{FILE_NAME}: key of {probe.route}"
    return f"Bearer {read_secret(probe.key, name=name, folder=folder, environment=environment)}"
