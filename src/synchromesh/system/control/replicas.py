"""One replica that nobody supervises, as an operator asks it: by its admin listener."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec

from synchromesh.calls import Reply
from synchromesh.discovery.entries import InstanceEntry
from synchromesh.errors import ConnectFailed, RemoteFailed, SynchromeshError
from synchromesh.http import HttpPool
from synchromesh.system.control.gateway_changes import ReloadReport, ReloadRequest
from synchromesh.system.control.operator import Operator
from synchromesh.system.control.remote import MetricsAnswer, Observed
from synchromesh.system.control.spans import Spans, path_of
from synchromesh.system.control.status import Status
from synchromesh.telemetry import Family, SpanRecord
from synchromesh.telemetry.observed import ObservedCall

T = TypeVar("T")

# Below which path a replica has verbs, and the one of them that is its own: to leave, and to end.
VERBS, DRAIN = "/control", "/drain"
# What the registry is told of a replica: where its verbs are, and its process.
ADMIN, PID = "admin", "pid"
ASK_WITHIN_S = 5.0
RELOAD_WITHIN_S = 90.0


@dataclass(frozen=True, slots=True)
class Asking:
    """Who asks replicas, over which connections, and what the host is called that they ask from.

    Attributes:
        https: the connections by TLS; None where `[system] tls` names nobody to believe.
    """

    operator: Operator
    pool: HttpPool
    here: str
    https: HttpPool | None = None


class Replica:
    """A client of one replica: what `RemoteProcess` is to a supervisor.

    Attributes:
        entry: what the registry has of it.
    """

    def __init__(self, entry: InstanceEntry, asking: Asking) -> None:
        self.entry = entry
        self._asking = asking
        facts = dict(entry.endpoint.metadata)
        self.admin = facts.get(ADMIN, "")
        pid, _, self.node = facts.get(PID, "").partition("@")
        self.pid = int(pid) if pid.isdecimal() else None

    @property
    def service(self) -> str:
        """Whose instance it is; "gateway" for a gateway."""
        return self.entry.endpoint.service

    @property
    def instance(self) -> str:
        """Its name, such as "quoting#2@HOST"."""
        return self.entry.endpoint.instance

    def is_named(self, name: str) -> bool:
        """Return whether a service's name, or an instance's, with its host or not, means it."""
        return name in (self.service, self.instance, self.instance.partition("@")[0])

    def why_not(self) -> str:
        """Return why it cannot be asked from here; "" where that is to be tried."""
        if not self.admin:
            return (
                "it has told no admin listener: not `synchromesh run` of this release runs it; ask "
                "where it runs"
            )
        if is_loopback(urlsplit(self.admin).hostname or "") and self.node != self._asking.here:
            return (
                f"its admin listener is {self.admin}, which only {self.node} reaches: give it an "
                'address that operators reach and clients do not, as in [admin] host = "10.0.0.5", '
                f"and start it anew; or ask on {self.node}"
            )
        return ""

    async def status(self) -> Status:
        """Return what it tells of itself. Raises SynchromeshError where it does not answer."""
        return await self.ask("GET", "/status", Status)

    async def spans(self, trace_id: str, first: int = 0) -> list[SpanRecord]:
        """Return the spans of a trace that it keeps; none where it does not answer."""
        try:
            return (await self.ask("GET", path_of(trace_id, first), Spans)).spans
        except SynchromeshError:
            return []

    async def observed(self) -> list[ObservedCall]:
        """Return what was called by whom, as its spans tell; nothing where it does not answer."""
        try:
            return (await self.ask("GET", "/observed", Observed)).calls
        except SynchromeshError:
            return []

    async def metrics(self) -> list[Family]:
        """Return its metrics; none where it does not answer."""
        try:
            return (await self.ask("GET", "/metrics", MetricsAnswer)).families
        except SynchromeshError:
            return []

    async def reload(self, request: ReloadRequest) -> ReloadReport:
        """Have it reload the gateway. Raises SynchromeshError where it was not reached."""
        body = msgspec.json.encode(request)
        return await self.ask(
            "POST", "/gateway/reload", ReloadReport, body, within_s=RELOAD_WITHIN_S
        )

    async def ask(
        self, method: str, target: str, kind: type[T], body: bytes = b"", *, within_s: float = 0.0
    ) -> T:
        """Send a verb, and return its answer.

        Raises:
            ConnectFailed: it was not reached, so that nothing was done.
            SynchromeshError: it refused, or has not answered.
        """
        if why := self.why_not():
            raise ConnectFailed(why)
        place, pool = urlsplit(self.admin), self._asking.pool
        if place.scheme == "https":
            if self._asking.https is None:
                raise ConnectFailed(
                    f"its admin listener is {self.admin}, and this configuration names nobody to "
                    "believe there: have [system] tls here, too, with the ca of all hosts"
                )
            pool = self._asking.https
        shown = self._asking.operator.credential(self.instance)
        response = await pool.request(
            place.hostname or "", place.port or 80, method, f"{VERBS}{target}",
            [("authorization", f"Bearer {shown}"), ("content-type", "application/json")], body,
            timeout_s=within_s or ASK_WITHIN_S, is_idempotent=method == "GET",
        )  # fmt: skip
        reply = Reply(response.status, response.body)
        if not reply.is_answer:
            raise reply.to_error(())
        try:
            return msgspec.json.decode(response.body, type=kind)
        except msgspec.MsgspecError as error:
            raise RemoteFailed(f"what answers at {self.admin} is not {self.instance}") from error

    def __repr__(self) -> str:
        return f"<Replica {self.instance} at {self.admin}>"


def is_loopback(host: str) -> bool:
    """Return whether an address is of whoever asks it, wherever that is.

    Example:
        >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("10.0.0.5")
        (True, True, False)
    """
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
