"""The entry of a gateway in the registry: nobody calls it, and operators find it there.

Gateways find each other there, too: a rate is of all of them together.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing

from synchromesh.discovery import Endpoint, Registration, Registry
from synchromesh.errors import DiscoveryError, StaleIncarnation
from synchromesh.identity import REGISTRY, Signer
from synchromesh.system.config.parts import SystemPart
from synchromesh.system.config.schema import GATEWAY
from synchromesh.system.host.gateway_part import GatewayPart
from synchromesh.system.host.service_part import Listening

_log = logging.getLogger("synchromesh.system")


class ListedGateway:
    """Keeps the entry of a gateway; `open`, then `run`, then `leave`.

    Another gateway of the same name may take its place there, and takes no client from it.
    """

    def __init__(
        self, part: SystemPart, registry: Registry, listening: Listening, gateway: GatewayPart
    ) -> None:
        self._gateway = gateway
        gateway.leave = self.leave
        self._registry = registry
        self._endpoint = Endpoint(
            part.instance, GATEWAY, listening.url_of(gateway.url), listening.facts
        )
        self._registration: Registration | None = None

    async def open(self, signer: Signer, now_us: int) -> None:
        """Register it.

        Raises:
            DiscoveryError: the registry does not answer.
        """
        credential = signer.token(GATEWAY, audience=REGISTRY, now_us=now_us)
        self._registration = await self._registry.register(self._endpoint, credential=credential)

    async def run(self) -> None:
        """Renew its lease; a supervised loop."""
        assert self._registration is not None, "it is open"
        try:
            await self._registration.run()
        except StaleIncarnation as error:
            _log.warning(
                "operators do not find this gateway any more: %s; name its host by [system] node",
                error,
            )
        await asyncio.Event().wait()

    async def follow(self) -> None:
        """Tell the gateway how many there are; a supervised loop.

        It counts itself: also where it has not found itself yet, or is not found any more. While
        the registry is away there are as many as there were.
        """
        mine = self._endpoint.instance
        async with aclosing(self._registry.watch(GATEWAY)) as lists:
            async for resolved in lists:
                self._gateway.share(len({mine, *(each.instance for each in resolved.endpoints)}))

    async def leave(self) -> None:
        """Take it off; may be repeated."""
        registration, self._registration = self._registration, None
        if registration is None:
            return
        try:
            await registration.end()
        except DiscoveryError as error:
            _log.info("the registry was not told that the gateway leaves: %s", error)

    def __repr__(self) -> str:
        return f"<ListedGateway {self._endpoint.instance}>"
