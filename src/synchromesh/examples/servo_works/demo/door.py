"""The gateway, as clients see it, each with a key or a token of its own.

Every request is counted, by its end. What a rate turns away is counted apart from what fails: a
quicker machine meets more of it.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Self
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from demo.account import NOT_REACHED, OUT_OF_TIME, Account, Degraded, Failure
from demo.issuer import Issuer
from demo.running import RunningSystem
from synchromesh.errors import SynchromeshError
from synchromesh.http import HttpPool
from synchromesh.runtime import RealRuntime

ASK_WITHIN_S = 10.0
KEPT_MAX = 5_000
GIVE_UP_AFTER_S = 300.0
WAIT_BASE_S, WAIT_CAP_S = 0.05, 0.5
# Whoever looks round and buys nothing comes with this one's key.
VISITOR = "visitor"
SCOPES = ("orders:write", "orders:read", "fleet:read", "stock:read")
# What services of servo-works say no with. It is their answer, and no failure.
NOES = frozenset({"no_price", "out_of_stock", "fully_booked", "credit_declined"})
# What no asking again will mend.
MISTAKES = frozenset({400, 401, 403, 404, 415, 422})
# A branch of a page that is one of these is not as it could be.
DEGRADED = frozenset({"stale", "static", "failed"})


@dataclass(frozen=True, slots=True)
class DoorAnswer:
    """The outcome of one request.

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
        """True where it is not what was asked for, nor a service's own no, nor "too soon"."""
        return self.status != 200 and self.code not in NOES and not self.is_turned_away

    @property
    def is_turned_away(self) -> bool:
        """True where it came sooner than its rate allows."""
        return self.code == "rate_limited"

    @property
    def is_out_of_time(self) -> bool:
        """True where it says that there was no answer in time."""
        return self.status != 200 and self.code in OUT_OF_TIME


class Unanswered(Exception):
    """Raised when a request never got an answer, or one that no retry will mend."""


@dataclass(frozen=True, slots=True)
class DoorRequest:
    """One request that had an answer.

    Attributes:
        at_us: when it was sent.
        took_s: how long it took.
        is_fresh: whether it was answered, and nothing stood in for what was asked.
    """

    at_us: int
    took_s: float
    trace_id: str
    route: str
    is_fresh: bool


@dataclass
class Door:
    """Sends requests to the gateways of a running system in turn, wherever those are by now.

    Attributes:
        keys: the API key of each customer who has one, and of the visitors.
        issuer: makes the tokens of the others.
        asked: the latest requests.
    """

    system: RunningSystem
    pool: HttpPool
    account: Account
    runtime: RealRuntime
    keys: Mapping[str, str]
    issuer: Issuer | None = None
    asked: deque[DoorRequest] = field(default_factory=lambda: deque(maxlen=KEPT_MAX))

    @classmethod
    async def with_keys(
        cls,
        system: RunningSystem,
        pool: HttpPool,
        account: Account,
        customers: Iterable[str],
        issuer: Issuer | None = None,
    ) -> Self:
        """Make an API key for customers and for the visitors; return the door for all.

        Where there is an issuer, every second customer has a token of it instead.
        """
        names = sorted(customers)
        with_keys = names if issuer is None else names[::2]
        account.with_keys, account.with_tokens = len(with_keys), len(names) - len(with_keys)
        keys = await system.make_keys({*with_keys, VISITOR}, *SCOPES)
        return cls(system, pool, account, RealRuntime(), keys, issuer)

    async def ask(
        self,
        route: str,
        *,
        who: str = VISITOR,
        body: object = None,
        key: str = "",
        at: str = "",
        query: Mapping[str, str] | None = None,
        **places: str,
    ) -> DoorAnswer:
        """Send one request by a route such as "GET /stock/{sku}", and return what came of it.

        Args:
            who: whose credential it carries.
            key: its idempotency key, where it has one.
            at: the URL of the gateway; "" takes the next one.
        """
        method, _, template = route.partition(" ")
        path = template.format_map({name: quote(text, safe="") for name, text in places.items()})
        target = f"{path}?{urlencode(query)}" if query else path
        at_us, act = self.runtime.wall_us(), self.account.act
        self.account.note_request(route)
        headers = {"authorization": f"Bearer {self._credential(who)}"}
        if key:
            headers["idempotency-key"] = key
        began_s = asyncio.get_running_loop().time()
        answer = await self._send(method, target, body, headers, at or self.system.gateway)
        degraded = degraded_in(act, f"{method} {path}", answer)
        if answer.status:
            took_s = asyncio.get_running_loop().time() - began_s
            is_fresh = answer.status == 200 and not degraded
            self.asked.append(DoorRequest(at_us, took_s, answer.trace_id, route, is_fresh))
        if answer.is_turned_away:
            self.account.note_turned_away(route)
        elif answer.is_failure:
            reason = answer.code or f"status {answer.status}"
            self.account.failures.append(Failure(at_us, act, route, reason))
        else:
            self.account.degraded += degraded
        return answer

    async def try_in(self, route: str, authorization: str, body: object = None) -> DoorAnswer:
        """Send a request with a credential that must not get in; it is counted nowhere."""
        method, _, target = route.partition(" ")
        headers = {"authorization": authorization} if authorization else {}
        return await self._send(method, target, body, headers, self.system.gateway)

    def _credential(self, who: str) -> str:
        key = self.keys.get(who)
        if key is not None:
            return key
        assert self.issuer is not None, who
        return self.issuer.token(who, SCOPES)

    async def _send(
        self, method: str, target: str, body: object, headers: dict[str, str], at: str
    ) -> DoorAnswer:
        is_idempotent = method == "GET" or "idempotency-key" in headers
        place = urlsplit(at)
        if body is not None:
            headers["content-type"] = "application/json"
        try:
            response = await self.pool.request(
                place.hostname or "", place.port or 80, method, target, headers.items(),
                b"" if body is None else msgspec.json.encode(body),
                timeout_s=ASK_WITHIN_S, is_idempotent=is_idempotent,
            )  # fmt: skip
        except SynchromeshError as error:
            return DoorAnswer(0, code=_code_of(error.code, error.message))
        trace_id = response.headers.get("synchromesh-trace") or ""
        self.account.note_way_in(at)
        try:
            value = msgspec.json.decode(response.body)
        except msgspec.DecodeError:
            value = None
        problem = value if isinstance(value, dict) and response.status != 200 else {}
        code = _code_of(problem.get("code", ""), problem.get("detail", ""))
        fallback = response.headers.get("synchromesh-fallback") or ""
        wait_s = _seconds(response.headers.get("retry-after"))
        return DoorAnswer(response.status, value, code, trace_id, fallback, wait_s)


async def ask_until(
    told: Callable[[DoorAnswer], str],
    ask: Callable[[], Awaitable[DoorAnswer]],
    what: str,
    rng: Random,
    not_yet: str = "",
) -> str:
    """Ask again, later each time and no sooner than was asked for, until an answer tells something.

    Waiting because of a rate is no waiting in vain: that time does not count.

    Args:
        told: what an answer tells; "" where it tells nothing yet.
        what: is asked for, in words.
        not_yet: the code of an answer that is no mistake, for what is asked for may come.

    Raises:
        Unanswered: it is a mistake to ask this, or five minutes have passed.
    """
    clock = asyncio.get_running_loop().time
    until_s, wait_s = clock() + GIVE_UP_AFTER_S, WAIT_BASE_S
    while True:
        answer = await ask()
        if found := told(answer):
            return found
        said = answer.code or f"status {answer.status}"
        if answer.status in MISTAKES and said != not_yet:
            raise Unanswered(f"{what} is refused: {said}: {answer.body}")
        if clock() > until_s:
            raise Unanswered(
                f"{what} has had no answer for {GIVE_UP_AFTER_S:g} s; the last attempt came to "
                f"{said}"
            )
        pause_s = max(answer.retry_after_s, rng.uniform(wait_s / 2, wait_s))
        if answer.is_turned_away:
            until_s += pause_s
        await asyncio.sleep(pause_s)
        wait_s = min(2 * wait_s, WAIT_CAP_S)


def degraded_in(act: str, page: str, answer: DoorAnswer) -> list[Degraded]:
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


def _code_of(code: str, said: str) -> str:
    """Return the code of a problem; one that was not reached for want of time says so."""
    return NOT_REACHED if code == "connect_failed" and "did not answer in time" in said else code


def _seconds(text: str | None) -> float:
    """Return the seconds of a Retry-After; 0 where there is none, or a date."""
    return float(text) if text and text.isdecimal() else 0.0
