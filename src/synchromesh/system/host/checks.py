"""External services: which of their URLs are up, and where those are that others tell of."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from synchromesh.calls import HttpTransport, Transport
from synchromesh.discovery import Endpoint, UpstreamHealth
from synchromesh.discovery.readers import FoundResolver, StaticFile
from synchromesh.errors import ConfigError, DiscoveryError, SynchromeshError
from synchromesh.service import Child, Supervisor
from synchromesh.system.config.external_section import ExternalSection
from synchromesh.system.control.local import LocalProcess

_log = logging.getLogger("synchromesh.system")

_FIELDS = (("accept", "*/*"), ("user-agent", "synchromesh-health"))


class HealthChecks:
    """Asks the URLs of one external service whether they are up; `run` is a supervised loop.

    Args:
        name: the service.
        health: decides.
        path: what is asked, below each URL.
        transports: reach the URLs, by their scheme.
        listed: told which endpoints requests may go to, each time that this changes.
    """

    def __init__(
        self,
        name: str,
        health: UpstreamHealth,
        path: str,
        transports: Mapping[str, Transport],
        listed: Callable[[Sequence[Endpoint]], None],
    ) -> None:
        self.health = health
        self._name = name
        self._path = path
        self._transports = transports
        self._listed = listed

    async def run(self) -> None:
        """Check each URL for ever; only cancellation ends it."""
        async with asyncio.TaskGroup() as group:
            for endpoint in self.health.endpoints:
                group.create_task(self._watch(endpoint))

    async def _watch(self, endpoint: Endpoint) -> None:
        loop = asyncio.get_running_loop()
        while True:
            next_s = loop.time() + self.health.options.every_s
            why = await self._ask(endpoint)
            if self.health.observe(endpoint.instance, why):
                _log.warning(
                    "%s of %s is %s%s",
                    endpoint.url,
                    self._name,
                    "down: " if why else "up again",
                    why,
                )
                if len(self.health.down) == len(self.health.endpoints):
                    _log.error("no url of %s is up; requests go to all of them", self._name)
                self._listed(self.health.listed)
            await asyncio.sleep(next_s - loop.time())

    async def _ask(self, endpoint: Endpoint) -> str:
        """Return why an endpoint is not up, "" where it is."""
        transport = self._transports[endpoint.scheme]
        assert isinstance(transport, HttpTransport), "its url begins with http:// or https://"
        try:
            place = transport.place(endpoint)
            response = await transport.pool.request(
                place.host,
                place.port,
                "GET",
                place.prefix + self._path,
                [("host", place.name), *_FIELDS],
                timeout_s=self.health.options.timeout_s,
                is_idempotent=True,
            )
        except SynchromeshError as error:
            return error.message
        return "" if 200 <= response.status < 300 else f"it answered {response.status}"

    def __repr__(self) -> str:
        return f"<HealthChecks of {self._name}: {self.health!r}>"


async def list_external(
    name: str,
    section: ExternalSection,
    folder: Path,
    local: LocalProcess,
    background: Supervisor,
    fix: Callable[..., None],
) -> dict[str, str]:
    """List an external service that others run; return where it is, as far as it is configured.

    What DNS does not know yet it may know later; a file that is wrong is a mistake.

    Args:
        fix: told its endpoints, now and whenever they are others.

    Raises:
        ConfigError: the file that says where it is is missing or wrong.
        MissingExtra: its SRV records need the extra `dns`.
    """
    if section.discover is not None:
        reader = section.discover.reader(folder)
        if isinstance(reader, StaticFile):
            try:
                reader.there()
            except DiscoveryError as error:
                raise ConfigError(f"[external.{name}] discover.file: {error.message}") from error
        found = local.found[name] = FoundResolver(
            name,
            reader,
            every_s=section.discover.every_s,
            listed=lambda each: fix(*each.endpoints, is_stale=each.is_stale),
        )
        await found.refresh()
        background.start(Child(f"discover/{name}", found.run))
        return {}
    endpoints = section.endpoints(name)
    fix(*endpoints)
    if section.health is not None:
        health = local.upstreams[name] = UpstreamHealth(endpoints, section.health.compile())
        path, transports = section.health.path, local.deps.transports
        checks = HealthChecks(name, health, path, transports, lambda up: fix(*up))
        background.start(Child(f"health/{name}", checks.run))
    return {each.instance: each.url for each in endpoints}
