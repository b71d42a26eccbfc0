"""The gateway, as a client with an API key sees it. Each request, and how it ended, is counted."""

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from demo.account import Account, Degraded, Failure
from demo.running import RunningSystem
from synchromesh.errors import SynchromeshError
from synchromesh.http import HttpPool
from synchromesh.runtime import RealRuntime

ASK_WITHIN_S = 10.0
KEPT_MAX = 5_000
SCOPES = ("orders:write", "orders:read", "fleet:read", "stock:read")
# What services of servo-works say no with. It is their answer, and no failure.
NOES = frozenset({"no_price", "out_of_stock", "fully_booked", "credit_declined"})
# A branch of a page that is one of these is not as it could be.
DEGRADED = frozenset({"stale", "static", "failed"})


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one request.

    Attributes:
        status: of HTTP; 0 where no answer came.
        body: the JSON value; None where there is none.
        code: of the problem; "" where there is none.
        trace_id: names what was done for it.
        fallback: what stands in for a fresh answer; "" for nothing.
        retry_after_s: how long the answer asks to wait.
    """

    status: int
    body: Any = None
    code: str = ""
    trace_id: str = ""
    fallback: str = ""
    retry_after_s: float = 0.0

    @property
    def is_failure(self) -> bool:
        """True where it is neither what was asked for, nor a service's own no."""
        return self.status != 200 and self.code not in NOES


@dataclass(frozen=True, slots=True)
class Asked:
    """One request that had an answer: when it was sent, how long it took, and its trace."""

    at_us: int
    took_s: float
    trace_id: str


@dataclass
class Door:
    """Sends requests to the gateway of a running system, wherever that is by now.

    Attributes:
        key: the API key that opens it.
        asked: the latest requests.
    """

    system: RunningSystem
    pool: HttpPool
    account: Account
    runtime: RealRuntime
    key: str
    asked: deque[Asked] = field(default_factory=lambda: deque(maxlen=KEPT_MAX))

    @classmethod
    async def with_key(cls, system: RunningSystem, pool: HttpPool, account: Account) -> Self:
        """Make an API key for the customers, and return the door that it opens."""
        key = await system.make_key("customers", *SCOPES)
        return cls(system, pool, account, RealRuntime(), key)

    async def ask(
        self,
        route: str,
        *,
        body: object = None,
        key: str = "",
        query: Mapping[str, str] | None = None,
        **places: str,
    ) -> Answer:
        """Send one request by a route such as "GET /stock/{sku}", and return what came of it."""
        method, _, template = route.partition(" ")
        path = template.format_map({name: quote(text, safe="") for name, text in places.items()})
        target = f"{path}?{urlencode(query)}" if query else path
        at_us, act = self.runtime.wall_us(), self.account.act
        self.account.note_request(route)
        answer = await self._send(method, target, body, key, at_us)
        if answer.is_failure:
            reason = answer.code or f"status {answer.status}"
            self.account.failures.append(Failure(at_us, act, route, reason))
        else:
            self.account.degraded += degraded_in(act, f"{method} {path}", answer)
        return answer

    async def _send(self, method: str, target: str, body: object, key: str, at_us: int) -> Answer:
        loop = asyncio.get_running_loop()
        place, began_s = urlsplit(self.system.gateway), loop.time()
        headers = {"authorization": f"Bearer {self.key}"}
        if body is not None:
            headers["content-type"] = "application/json"
        if key:
            headers["idempotency-key"] = key
        try:
            response = await self.pool.request(
                place.hostname or "", place.port or 80, method, target, headers.items(),
                b"" if body is None else msgspec.json.encode(body),
                timeout_s=ASK_WITHIN_S, is_idempotent=method == "GET" or bool(key),
            )  # fmt: skip
        except SynchromeshError as error:
            return Answer(0, code=error.code)
        trace_id = response.headers.get("synchromesh-trace") or ""
        self.asked.append(Asked(at_us, loop.time() - began_s, trace_id))
        try:
            value = msgspec.json.decode(response.body)
        except msgspec.DecodeError:
            value = None
        code = value.get("code", "") if isinstance(value, dict) and response.status != 200 else ""
        fallback = response.headers.get("synchromesh-fallback") or ""
        wait_s = _seconds(response.headers.get("retry-after"))
        return Answer(response.status, value, code, trace_id, fallback, wait_s)


def degraded_in(act: str, page: str, answer: Answer) -> list[Degraded]:
    """Return what of an answer stands in for something: all of it, or branches of a page."""
    if answer.fallback:
        # Such as "stale;age_s=12.300;code=circuit_open" (RFC 9651).
        status, _, rest = answer.fallback.partition(";")
        ages = [float(part[6:]) for part in rest.split(";") if part.startswith("age_s=")]
        return [Degraded(act, page, "", status, ages[0] if ages else None)]
    branches = answer.body.get("branches") if isinstance(answer.body, dict) else None
    return [
        Degraded(act, page, name, mark["status"], mark.get("age_s"))
        for name, mark in (branches or {}).items()
        if mark["status"] in DEGRADED
    ]


def _seconds(text: str | None) -> float:
    """Return the seconds of a Retry-After; 0 where there is none, or a date."""
    return float(text) if text and text.isdecimal() else 0.0
