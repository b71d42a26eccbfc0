"""Reloads the gateway of a process: another definition and configuration, whole or not at all.

    file and code → differences → checked as at a start → opened beside the old → one step

What is found wrong before that step is named, and nothing has changed. The step itself only puts
references: the next request is the new one's, those under way end where they have begun.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from synchromesh.errors import BadRequest, CallError, ConfigError
from synchromesh.gateway import Gateway
from synchromesh.gateway.arguments import sound
from synchromesh.gateway.change import GatewayChange
from synchromesh.gateway.changes import definition_changes
from synchromesh.gateway.jwt import TokenVerifier
from synchromesh.runtime import DiskRuntime
from synchromesh.service import Deps
from synchromesh.system.config.edge_policies import policies_of
from synchromesh.system.config.expectations import contracts_of_gateway
from synchromesh.system.config.gateway_check import read_gateway
from synchromesh.system.config.gateway_keys import own_keys_path
from synchromesh.system.config.policy_check import check_policies
from synchromesh.system.config.rundir import RunDir
from synchromesh.system.config.schema import GATEWAY, SystemConfig
from synchromesh.system.control.actions import check_by_whom
from synchromesh.system.control.gateway_changes import (
    ReloadReport,
    ReloadRequest,
    config_changes,
    config_of_gateway,
    later_names,
    left_changes,
    refused_changes,
)
from synchromesh.system.control.status_parts import ReloadStatus
from synchromesh.system.host.gateway_code import GatewayCode, ImportedGateway
from synchromesh.system.host.gateway_part import GatewayPart, Prepared
from synchromesh.system.host.host import Fits
from synchromesh.system.host.securing import terminated

_log = logging.getLogger("synchromesh.system")


class GatewayReload:
    """Takes up what has changed of a gateway that runs.

    Args:
        part: the gateway.
        code: its code as it was loaded.
        config: that of the system as it runs.
        fits: raises where its contracts would not fit those of the services; None where all parts
            have loaded the same.
        took: called once something else is in force.

    Attributes:
        last: what was taken last; None where nothing was.
    """

    def __init__(
        self,
        part: GatewayPart,
        code: GatewayCode,
        config: SystemConfig,
        folder: Path,
        deps: Deps,
        runtime: DiskRuntime,
        *,
        fits: Fits | None,
        took: Callable[[], None],
    ) -> None:
        self._part = part
        self._code = code
        self._config = config
        self._folder = folder
        self._deps = deps
        self._runtime = runtime
        self._fits = fits
        self._took = took
        self._under_way = asyncio.Lock()
        # The sections of who is in the file and not in the system, as of the last request.
        self._later: dict[str, str] = {}
        self.last: ReloadStatus | None = None

    async def reload(self, request: ReloadRequest, now: SystemConfig) -> ReloadReport:
        """Take up what has changed, or say why not.

        Args:
            now: the configuration as it is in the file, the environment and the flags.

        Raises:
            BadRequest: nobody says who asks and why, it drains, or another reload is under way.
        """
        if not request.is_dry_run:
            check_by_whom("gateway reload", request.who, request.why)
        self._refuse_stopped()
        if self._under_way.locked():
            raise BadRequest("the gateway is being reloaded for another request; wait for its end")
        async with self._under_way:
            return await self._reload(request, now)

    async def _reload(self, request: ReloadRequest, now: SystemConfig) -> ReloadReport:
        config, left = config_of_gateway(self._config, now), left_changes(self._config, now)
        self._later = later_names(self._config, now)
        own, shared = self._code.changed()
        changes = [GatewayChange("code", "", name) for name in own]
        changes += config_changes(self._config, config)
        mistakes = list(refused_changes(self._config, now))
        mistakes += [
            f"{name} has changed, which services run too: that takes synchromesh restart of them, "
            "and of the gateway (dev --split), or a new start"
            for name in shared
        ]
        if mistakes:
            return ReloadReport(False, changes, mistakes, left)
        try:
            if not own:
                is_taken = await self._take_up(request, self._part.definition, config, changes)
            else:
                imported = self._code.imported(config)
                taking = self._take_up(request, imported.definition, config, changes, imported)
                is_taken = await imported.run(taking)
        except (ConfigError, CallError) as error:
            return ReloadReport(False, changes, error.message.splitlines(), left)
        if is_taken:
            self._record(request, changes)
        return ReloadReport(is_taken, changes, [], left)

    async def _take_up(
        self,
        request: ReloadRequest,
        definition: Gateway,
        config: SystemConfig,
        changes: list[GatewayChange],
        imported: ImportedGateway | None = None,
    ) -> bool:
        """Check a definition, and take it unless that is not asked for; return whether it did.

        Args:
            changes: what has changed already; what has in the definition is added.
            imported: its code, where that is another.
        """
        # What cannot be read is named with all other mistakes.
        changes += definition_changes(self._part.definition, sound(definition)[0])
        prepared = await self._prepared(definition, config, is_dry_run=request.is_dry_run)
        try:
            if request.is_dry_run or not changes:
                return False
            assert prepared is not None, "only a dry run has nothing to take"
            if self._fits is not None:
                await self._fits(contracts_of_gateway(prepared.entries))
            self._refuse_stopped()
            self._take(prepared, config)
            if imported is not None:
                self._code.keep(imported)
            prepared = None
            return True
        finally:
            if prepared is not None:
                await self._part.discard(prepared)

    def _refuse_stopped(self) -> None:
        if self._part.is_draining:
            raise BadRequest("the gateway is being stopped, and takes up nothing any more")

    async def _prepared(
        self, definition: Gateway, config: SystemConfig, *, is_dry_run: bool
    ) -> Prepared | None:
        """Check everything as a start does, and open it; None where a dry run would write."""
        rundir = RunDir(self._folder)
        check_policies(config, list(self._deps.services.values()))
        reading = await read_gateway(definition, config, rundir, self._runtime, self._later)
        if reading.mistakes:
            raise ConfigError("\n".join(reading.mistakes))
        tls = terminated(config, self._folder, self._runtime.wall_us() / 1e6)
        paths = [own_keys_path(auth, rundir) for auth in definition.auth]
        if is_dry_run and any(path is not None and not path.exists() for path in paths):
            return None
        prepared = await self._part.prepare(definition, reading.entries, config, tls=tls)
        try:
            for authenticator in prepared.reopened.made:
                if isinstance(authenticator, TokenVerifier):
                    await authenticator.ready()
        except BaseException:
            # Also where whoever asked has gone away.
            await self._part.discard(prepared)
            raise
        return prepared

    def _take(self, prepared: Prepared, config: SystemConfig) -> None:
        caller = None
        if policies_of(config, GATEWAY) != policies_of(self._config, GATEWAY):
            deps = replace(self._deps, policies=lambda name: policies_of(config, name))
            caller = deps.caller(GATEWAY)
        self._part.take(prepared, caller)
        self._config = config
        self._took()

    def _record(self, request: ReloadRequest, changes: list[GatewayChange]) -> None:
        self.last = ReloadStatus(self._runtime.wall_us(), request.who, request.why, len(changes))
        _log.info(
            "the gateway was reloaded: %s",
            "; ".join(map(str, changes)),
            extra={"who": request.who, "reason": request.why},
        )

    def __repr__(self) -> str:
        return f"<GatewayReload of {self._part!r}>"
