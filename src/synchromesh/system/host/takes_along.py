"""The SQLite file of a service, taken to the server by the process that goes on with it there."""

from __future__ import annotations

import logging

from synchromesh.errors import ConfigError
from synchromesh.runtime import Disk
from synchromesh.service import Service
from synchromesh.store.taken_along import CopiedService
from synchromesh.system.control.copying import ServiceCopier
from synchromesh.system.control.offline import owned
from synchromesh.system.host.host import Host
from synchromesh.system.supervise.messages import CopyOrder

_log = logging.getLogger("synchromesh.system")


def takes_along(order: CopyOrder, host: Host, service: Service) -> TakesAlong:
    """Return what takes a service along, as its supervisor has ordered.

    Raises:
        ConfigError: its process has no server.
    """
    server, rundir, runtime = host.databases.server, host.rundir, host.runtime
    if server is None:
        raise ConfigError(f"{service.name} is to be copied, and there is no server to copy it to")
    change = (order.at_us, order.who, order.why)
    copier = ServiceCopier(server, rundir, runtime, change=change)
    return TakesAlong(copier, service, rundir.database(service.name), runtime.disk)


class TakesAlong:
    """Takes a file along: `rehearse` while the process before serves, `take` once that has ended.

    Attributes:
        copied: what became of it; None until `take` has returned.
    """

    def __init__(self, copier: ServiceCopier, service: Service, path: str, disk: Disk) -> None:
        self._copier = copier
        self._service = service
        self._path = path
        self._disk = disk
        self.copied: CopiedService | None = None

    async def rehearse(self) -> None:
        """Do all of it, and take it back: what would fail later fails here, and stops nothing.

        Raises:
            ContractError, StoreError: it would fail with them.
        """
        await self._copier.copy(self._service, is_rehearsal=True)

    async def take(self) -> None:
        """Copy the file as it is now; nothing is done where that was done. May be repeated.

        Raises:
            StoreLocked: the process before has the file still.
            ContractError, StoreError: as `rehearse` does.
        """
        if self.copied is not None:
            return
        with owned(self._path, self._service.name, self._disk):
            self.copied = await self._copier.copy(self._service)
        _log.info(
            "%s goes on at %s, log %s: %s", self._service.name, self.copied.target,
            self.copied.log_id, self.copied.outcome,
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"<TakesAlong {self._path}>"
