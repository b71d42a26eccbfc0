"""One part is taken away in one way, under traffic, and brought back: what clients are told.

The same for a system in virtual time and for one that runs: whoever takes the part away is handed
in as a `Subject`. Nobody waits for the answer before: probes are asked on, as clients do.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

from synchromesh.clock import loop_clock, loop_now
from synchromesh.drill.answers import (
    NO_ANSWER,
    NOT_TAKEN,
    Seen,
    ToldAnswer,
    usual_of,
    words_of,
)
from synchromesh.drill.probes import NUMBER, Follow, Probe
from synchromesh.errors import CallError, ConfigError
from synchromesh.http import HttpPool, HttpResponse

GIVES_UP_S = 10.0
WHOLE_WITHIN_S = 60.0
ASKS_EVERY_S = 0.25


class Subject(Protocol):
    """Is a system of which parts can be taken away."""

    async def switch_off(self, part: str, way: str) -> None:
        """Take a part away."""
        ...

    async def switch_on(self, part: str) -> None:
        """Bring it back, and touch nothing else."""
        ...

    async def open_breakers(self) -> set[str]:
        """Return the edges whose breaker is not closed: "orders → billing"."""
        ...


Heard: TypeAlias = Callable[[Probe, HttpResponse, float], None]
"""Is told each answer of 200, and when its request was sent."""


@dataclass(frozen=True, slots=True)
class DrillPace:
    """How long a part is away, and which answers count for what.

    Attributes:
        off_s: how long.
        answered_s: what a command was told by then is followed.
        settled_s: what is asked after that is as it is to stay.
        ends_s: how long after all is whole what goes on behind the answers may take.
    """

    off_s: float = 15.0
    answered_s: float = 9.0
    settled_s: float = 11.0
    ends_s: float = 20.0


@dataclass(frozen=True, slots=True)
class Column:
    """What was seen while a part was away in one way.

    Attributes:
        seen: by route.
        became: by the name of its row, what became of what a command was told meanwhile.
        breakers: the edges whose breakers opened.
        whole_s: how long after its return all was as always; infinity for not at all.
    """

    part: str
    way: str
    seen: dict[str, Seen]
    became: dict[str, str]
    breakers: tuple[str, ...]
    whole_s: float


class DrillClient:
    """A client at the gateway.

    Args:
        pool: sends.
        place: host and port of the gateway.
        credential: returns what is sent in `Authorization`; "" for nothing.
        first: the first number of its requests.
        heard: see `Heard`.
    """

    def __init__(
        self,
        pool: HttpPool,
        place: tuple[str, int],
        credential: Callable[[Probe], str],
        *,
        first: int = 1,
        heard: Heard = lambda *_: None,
    ) -> None:
        self._pool = pool
        self._place = place
        self._credential = credential
        self._numbers = itertools.count(first)
        self._heard = heard

    def number(self) -> int:
        """Return the number of a new request."""
        return next(self._numbers)

    async def ask(self, probe: Probe, number: int) -> ToldAnswer:
        """Ask; a command that has the same number is asked under the same key."""
        headers, body = self._headers(probe), probe.body_of(number)
        if body:
            headers.append(("content-type", "application/json"))
        if probe.is_command:
            headers.append(("idempotency-key", f"drill-{number}"))
        began_s = loop_now()
        try:
            response = await self._send(probe.method, probe.target_of(number), headers, body)
        except CallError:
            return ToldAnswer(NO_ANSWER, loop_now() - began_s)
        if response.status == 200:
            self._heard(probe, response, began_s)
        fields = {name.lower(): value for name, value in response.headers}
        words = words_of(probe, response.status, fields, response.body)
        return ToldAnswer(words, loop_now() - began_s)

    async def became(self, probe: Probe, follow: Follow, number: int) -> str:
        """Ask what became of the request with a number."""
        target = follow.target.replace(NUMBER, str(number))
        try:
            response = await self._send("GET", target, self._headers(probe), b"")
        except CallError:
            return NO_ANSWER
        if response.status == 404:
            return NOT_TAKEN
        asked = Probe(probe.route, word=follow.at)
        return words_of(asked, response.status, {}, response.body)

    def _headers(self, probe: Probe) -> list[tuple[str, str]]:
        credential = self._credential(probe)
        return [("authorization", credential)] if credential else []

    async def _send(
        self, method: str, target: str, headers: list[tuple[str, str]], body: bytes
    ) -> HttpResponse:
        host, port = self._place
        return await self._pool.request(
            host, port, method, target, headers, body, timeout_s=GIVES_UP_S
        )


async def take_away(
    subject: Subject,
    client: DrillClient,
    probes: Sequence[Probe],
    part: str,
    way: str,
    *,
    pace: DrillPace = DrillPace(),
    told: Callable[[str], Awaitable[None]] | None = None,
) -> Column:
    """Take a part away and bring it back under traffic; return what became of everything.

    Whatever happens, it is brought back.

    Args:
        told: is told when the part is "off", before it is "back", and when all is "over".

    Raises:
        ConfigError: a probe is not answered while all is well.
    """
    usual = await _usual(client, probes)
    await asyncio.sleep(2.0)
    traffic = _Traffic(subject, client, probes, pace)
    try:
        await subject.switch_off(part, way)
        # Who asks in the very moment of a kill does not know what became of it.
        await asyncio.sleep(0.1)
        await _tell(told, "off")
        await traffic.flow()
        await _tell(told, "back")
    except BaseException:
        traffic.cancel()
        raise
    finally:
        await subject.switch_on(part)
    back_s = loop_now()
    seen = await traffic.seen(usual, is_replica="#" in part)
    whole_s = await _whole_s(client, probes, usual, back_s)
    await asyncio.sleep(pace.ends_s)
    became = {
        probe.follow.row: await _became(client, probe, probe.follow, usual, traffic.sent)
        for probe in probes
        if probe.follow is not None
    }
    await _tell(told, "over")
    return Column(part, way, seen, became, tuple(sorted(traffic.opened)), whole_s)


async def _tell(told: Callable[[str], Awaitable[None]] | None, stage: str) -> None:
    if told is not None:
        await told(stage)


class _Traffic:
    """What clients ask while a part is away, and which breakers open meanwhile."""

    def __init__(
        self, subject: Subject, client: DrillClient, probes: Sequence[Probe], pace: DrillPace
    ) -> None:
        self._subject, self._client, self._pace = subject, client, pace
        self._probes = probes
        self._tasks: list[list[asyncio.Task[ToldAnswer]]] = [[] for _ in probes]
        self._settled = [0 for _ in probes]
        # By route, the numbers of commands whose answers came before the end.
        self.sent: dict[str, list[int]] = {probe.route: [] for probe in probes}
        self.opened: set[str] = set()

    async def flow(self) -> None:
        """Ask for every probe again and again."""
        pace, clock = self._pace, loop_clock(asyncio.get_running_loop())
        began_s = clock()
        for turn in range(int(pace.off_s / ASKS_EVERY_S)):
            off_s = clock() - began_s
            for probe, tasks in zip(self._probes, self._tasks, strict=True):
                if turn % probe.every == 0:
                    tasks += [self._ask(probe, off_s) for _ in range(probe.times)]
            await asyncio.sleep(ASKS_EVERY_S)
            self.opened |= await self._subject.open_breakers()
            if clock() - began_s <= pace.settled_s:
                self._settled = [len(tasks) for tasks in self._tasks]

    def cancel(self) -> None:
        """Wait for no answer any more."""
        for task in itertools.chain.from_iterable(self._tasks):
            task.cancel()

    async def seen(self, usual: dict[str, str], *, is_replica: bool) -> dict[str, Seen]:
        """Return what was answered, by route, once all has been."""
        found = {}
        for probe, tasks, count in zip(self._probes, self._tasks, self._settled, strict=True):
            told = [await task for task in tasks]
            longest_s = max(each.took_s for each in told)
            first = told[0]
            if is_replica:
                # Whether the first of all waits for it is up to the balancer: one of them does.
                first = replace(first, took_s=longest_s)
            then = usual_of(told[count:] or told[-1:])
            found[probe.route] = Seen(usual[probe.route], first, then, longest_s)
        return found

    def _ask(self, probe: Probe, off_s: float) -> asyncio.Task[ToldAnswer]:
        number = self._client.number()
        if off_s <= self._pace.answered_s:
            self.sent[probe.route].append(number)
        return asyncio.ensure_future(self._client.ask(probe, number))


async def _usual(client: DrillClient, probes: Sequence[Probe]) -> dict[str, str]:
    """Return what is answered while all is well.

    Raises:
        ConfigError: one fails, or something stands in for it.
    """
    found = {}
    for probe in probes:
        told = await client.ask(probe, client.number())
        if told.words == NO_ANSWER or told.words[:1] in "45" or told.words.startswith("stale"):
            raise ConfigError(
                f"{probe.route} is answered {told.words!r} while nothing is off; mend its probe, "
                "or what it asks"
            )
        found[probe.route] = told.words
    return found


async def _whole_s(
    client: DrillClient, probes: Sequence[Probe], usual: dict[str, str], back_s: float
) -> float:
    """Return how long after its return all was as always."""
    clock = loop_clock(asyncio.get_running_loop())
    while clock() - back_s < WHOLE_WITHIN_S:
        asked = [(probe, await client.ask(probe, client.number())) for probe in probes]
        if all(told.words == usual[probe.route] for probe, told in asked):
            return clock() - back_s
        await asyncio.sleep(0.1)
    return math.inf


async def _became(
    client: DrillClient,
    probe: Probe,
    follow: Follow,
    usual: dict[str, str],
    sent: dict[str, list[int]],
) -> str:
    """Return what became of what was told meanwhile; what was not taken is asked for again."""
    words: dict[str, None] = {}
    for number in sent[probe.route]:
        became = await client.became(probe, follow, number)
        if became == NOT_TAKEN:
            again = await client.ask(probe, number)
            if again.words != usual[probe.route]:
                became = f"not taken, and then {again.words}"
        words[became] = None
    # Where some were taken, who was refused knows it: it is those that are followed.
    taken = sorted(words.keys() - {NOT_TAKEN})
    return " or ".join(taken) or NOT_TAKEN
