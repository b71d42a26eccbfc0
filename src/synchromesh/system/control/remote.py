"""Another process of the system, as the control API shows it.

A process that does not answer is shown as one that is down; the others' answers count.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import msgspec

from synchromesh.calls import Reply
from synchromesh.errors import (
    BadRequest,
    ConfigError,
    ConnectFailed,
    ConnectionLost,
    DeadlineExceeded,
    SynchromeshError,
    TimedOut,
    UnknownOperation,
)
from synchromesh.http import HttpPool
from synchromesh.system.config.parts import SystemPart
from synchromesh.system.config.schema import GATEWAY
from synchromesh.system.control.actions import OWN, Action, Answers, RepairAction
from synchromesh.system.control.gateway_changes import ReloadReport, ReloadRequest
from synchromesh.system.control.spans import Spans, path_of
from synchromesh.system.control.status import Status
from synchromesh.system.control.status_parts import (
    PROCESS,
    RUNNING,
    SILENT,
    STOPPED,
    ChildStatus,
    GatewayStatus,
    HealthStatus,
    ServiceStatus,
)
from synchromesh.system.supervise.children import is_stopped
from synchromesh.telemetry import Family, SpanRecord
from synchromesh.telemetry.observed import ObservedCall, merged

if TYPE_CHECKING:
    from synchromesh.system.supervise.child_process import ChildProcess

T = TypeVar("T")

ASK_WITHIN_S = 2.0
RELOAD_WITHIN_S = 60.0


class MetricsAnswer(msgspec.Struct, frozen=True):
    """The answer to `GET /metrics` of the control API."""

    families: list[Family]


class Observed(msgspec.Struct, frozen=True):
    """The answer to `GET /observed`."""

    calls: list[ObservedCall]

    @classmethod
    def of(cls, found: Iterable[list[ObservedCall]]) -> Observed:
        """Return what several processes have observed, counted together."""
        return cls(merged(call for each in found for call in each))


class RemoteProcess:
    """A client of another process's control API: the remote counterpart of `LocalProcess`.

    Args:
        part: which one it runs.
        state: tells how its supervisor sees it.
        revive: starts one that has ended, without waiting for its next try.
    """

    def __init__(
        self,
        part: SystemPart,
        child: ChildProcess,
        *,
        state: Callable[[], ChildStatus],
        revive: Callable[[], Awaitable[None]],
        pool: HttpPool,
        token: str,
    ) -> None:
        self.part = part
        self.name = part.name
        self.child = child
        self._state = state
        self._revive = revive
        self._pool = pool
        self._token = token

    async def status(self) -> Status:
        """Return the status of the process, or that it does not answer."""
        # One that is known to be silent would only be waited for.
        if self._state().state not in (SILENT, STOPPED):
            try:
                return self._renamed(await self._ask("GET", "/status", Status))
            except SynchromeshError as error:
                return self._unanswered(error.message)
        return self._unanswered()

    def _unanswered(self, why: str = "") -> Status:
        pid, seen = self.child.pid, self._state()
        # The one that runs is silent.
        if seen.state == RUNNING:
            is_held = pid is not None and is_stopped(pid)
            seen = ChildStatus(STOPPED if is_held else SILENT, seen.restarts, why)
        elif not seen.last_error:
            seen = msgspec.structs.replace(seen, last_error=why)
        if self.part.is_gateway:
            gateway = GatewayStatus(pid, self.child.url, admin=self.child.admin_url)
            return self._renamed(Status("", 0, gateway=gateway, children={GATEWAY: seen}))
        health = HealthStatus(self.part.service, False, False, {PROCESS: seen})
        silent = ServiceStatus(pid, health, admin=self.child.admin_url)
        return Status("", 0, services={self.name: silent})

    def _renamed(self, status: Status) -> Status:
        """Return what one of several gateways tells under names that it has alone."""
        if not self.part.is_gateway or self.name == GATEWAY or status.gateway is None:
            return status

        def own(names: dict[str, T]) -> dict[str, T]:
            # "gateway" itself, and what is of it, such as "gateway/keys".
            return {
                f"{self.name}{name[len(GATEWAY) :]}"
                if name.partition("/")[0] == GATEWAY
                else name: each
                for name, each in names.items()
            }

        return msgspec.structs.replace(
            status,
            gateway=None,
            gateways={self.name: status.gateway},
            children=own(status.children),
            clients=own(status.clients),
        )

    def why_not(self) -> str:
        """Return why it takes nothing, as its supervisor sees it; "" where it takes requests."""
        seen = self._state()
        if seen.state == RUNNING and self.child.answering is not None:
            return ""
        return f"its process is {'starting' if seen.state == RUNNING else seen.state}"

    async def act(self, action: Action, wanted: Any, body: bytes) -> Answers:
        """Run an action there; a process that does not answer is silent.

        Raises:
            SynchromeshError: what the action raised.
        """
        if wanted.service not in ("", self.part.service):
            return Answers()
        path = f"/actions/{action.name}?{OWN}"
        try:
            return await self._ask("POST", path, Answers, body, within_s=action.within_s)
        except (ConnectFailed, ConnectionLost, DeadlineExceeded, TimedOut):
            return Answers(silent=[self.name])

    async def spans(self, trace_id: str, first: int = 0) -> list[SpanRecord]:
        """Return the spans of a trace that it keeps; none where it does not answer."""
        try:
            return (await self._ask("GET", path_of(trace_id, first), Spans)).spans
        except SynchromeshError:
            return []

    async def metrics(self) -> list[Family]:
        """Return its metrics.

        Raises:
            SynchromeshError: it did not answer.
        """
        if self._state().state in (SILENT, STOPPED):
            raise ConnectFailed("its process is silent")
        return (await self._ask("GET", "/metrics", MetricsAnswer)).families

    async def observed(self) -> list[ObservedCall]:
        """Return what was called by whom, as its spans tell; nothing where it does not answer."""
        try:
            return (await self._ask("GET", "/observed", Observed)).calls
        except SynchromeshError:
            return []

    async def forward(self, path: str, body: bytes) -> None:
        """Forward a command; a process that has ended is skipped.

        Raises:
            BadRequest: the command was not delivered.
        """
        try:
            await self._ask("POST", path, msgspec.Raw, body)
        except SynchromeshError as error:
            if self.child.is_running:
                raise BadRequest(
                    f"{self.name!r} was not reached: {error.message}; try again"
                ) from error

    async def reload(self, request: ReloadRequest) -> ReloadReport:
        """Have it reload the gateway.

        Raises:
            SynchromeshError: it was not reached, or is being reloaded.
        """
        body = msgspec.json.encode(request)
        return await self._ask(
            "POST", "/gateway/reload", ReloadReport, body, within_s=RELOAD_WITHIN_S
        )

    async def restart(self) -> int | None:
        """Restart the process without losing a call, and return the new process id.

        One that has ended is started at once, however long it is to be left alone.

        Raises:
            BadRequest: it is being restarted, or the new one could not be started.
        """
        try:
            await (self.child.restart() if self.child.is_running else self._revive())
        except ConfigError as error:
            # Whoever asked has the mistake to mend: it is not a failure of the system.
            raise BadRequest(error.message) from error
        return self.child.pid

    async def restart_child(self, name: str) -> bool:
        """Restart a background child of the process; False where it has none of that name.

        Raises:
            BadRequest: it was not reached.
        """
        try:
            await self._ask("POST", f"/services/{quote(name, safe='')}/restart", msgspec.Raw, b"{}")
        except UnknownOperation:
            return False
        except SynchromeshError as error:
            raise BadRequest(f"{name!r} was not restarted: {error.message}") from error
        return True

    async def _ask(
        self, method: str, target: str, kind: type[T], body: bytes = b"", *, within_s: float = 0.0
    ) -> T:
        port = self.child.control_port
        if port is None:
            raise ConnectFailed("its process is not ready")
        headers = [("authorization", f"Bearer {self._token}")]
        response = await self._pool.request(
            "127.0.0.1", port, method, target, headers, body,
            timeout_s=within_s or ASK_WITHIN_S, is_idempotent=True,
        )  # fmt: skip
        reply = Reply(response.status, response.body)
        if not reply.is_answer:
            raise reply.to_error(())
        return msgspec.json.decode(response.body, type=kind)

    def __repr__(self) -> str:
        return f"<RemoteProcess {self.name}, {self.child!r}>"


async def act_of(
    processes: Sequence[RemoteProcess], action: Action, wanted: Any, body: bytes
) -> Answers:
    """Run an action at one process of a service: those of a database would each do it.

    What reads is tried at the next one where the first does not answer; what changes something may
    have been done by then.

    Raises:
        SynchromeshError: what the action raised.
    """
    for process in processes:
        found = await process.act(action, wanted, body)
        if not found.silent or isinstance(action, RepairAction):
            break
    return found
