"""What may happen to replicas, gateways and servers: a deck of deeds, and how each is done."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import nats
import nats.errors
import nats.js.errors

from scripts.commit_cuts import CommitCuts
from scripts.postgres_pair import Node, PostgresPair
from synchromesh.system.supervise.nats_engine import NatsEngine

FAILS_OVER_WITHIN_S = 180.0
# Of the commits that pass meanwhile.
CUT_CHANCE = 0.2
NATS_WITHIN_S = 20.0

Deed: TypeAlias = Callable[[], Coroutine[Any, Any, None]]


class Victim(Protocol):
    """A replica or a gateway."""

    name: str

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its process, where one runs."""
        ...


class Works(Protocol):
    """What things happen to: replicas, servers, and the ways to PostgreSQL."""

    postgres: PostgresPair
    nats: NatsEngine
    nats_folder: Path

    @property
    def units(self) -> Sequence[Victim]:
        """The replicas and gateways."""
        ...

    @property
    def ways(self) -> Sequence[CommitCuts]:
        """The ways on which commits are cut."""
        ...


class Storm:
    """Does to replicas and servers what its rng draws, until its time is over."""

    def __init__(self, works: Works, rng: random.Random) -> None:
        self._works, self._rng = works, rng
        self._count: Counter[str] = Counter()
        self._is_busy = {"PostgreSQL": False, "NATS": False}
        # As often each in a round, in any order: so that what is rare comes, too.
        self._deck: dict[Deed, int] = {
            self._kill: 6, self._stop: 4, self._end: 4,
            self._kill_postgres: 1, self._stop_postgres: 1, self._end_postgres: 1,
            self._fail_over: 2, self._lose_standby: 1, self._cut_commits: 3,
            self._kill_nats: 1, self._stop_nats: 1, self._end_nats: 1,
            self._lose_stream: 2, self._lose_disk: 1,
        }  # fmt: skip

    @property
    def count(self) -> Counter[str]:
        """What was done, and how often."""
        cuts = sum((each.count for each in self._works.ways), Counter[str]())
        told = {f"a commit was cut {how}": times for how, times in cuts.items()}
        return self._count + Counter(told)

    async def rage(self, until_s: float) -> None:
        """Do one thing after the other, a new one while others last."""
        clock = asyncio.get_running_loop().time
        async with asyncio.TaskGroup() as group:
            deck: list[Deed] = []
            while clock() < until_s:
                if not deck:
                    deck = [deed for deed, times in self._deck.items() for _ in range(times)]
                    self._rng.shuffle(deck)
                group.create_task(deck.pop()())
                await asyncio.sleep(self._rng.uniform(0.5, 4.0))

    # -- replicas and gateways -----------------------------------------------------------------

    def _victim(self) -> Victim:
        return self._rng.choice(self._works.units)

    async def _kill(self) -> None:
        victim = self._victim()
        victim.signal(signal.SIGKILL)
        self._note("kill -9", victim.name)

    async def _end(self) -> None:
        victim = self._victim()
        victim.signal(signal.SIGTERM)
        self._note("SIGTERM", victim.name)

    async def _stop(self) -> None:
        victim = self._victim()
        self._note("SIGSTOP", victim.name)
        victim.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(self._rng.uniform(0.5, 9.0))
        finally:
            victim.signal(signal.SIGCONT)

    # -- PostgreSQL ----------------------------------------------------------------------------

    async def _kill_postgres(self) -> None:
        async with self._alone("PostgreSQL", "kill -9") as is_free:
            if is_free:
                self._works.postgres.primary.send(signal.SIGKILL)

    async def _stop_postgres(self) -> None:
        async with self._alone("PostgreSQL", "SIGSTOP") as is_free:
            if is_free:
                await self._pause(self._works.postgres.primary)

    async def _end_postgres(self) -> None:
        """End it as an init system does: it waits for its clients, and is told not to."""
        async with self._alone("PostgreSQL", "SIGTERM, then SIGINT") as is_free:
            if is_free:
                primary = self._works.postgres.primary
                primary.send(signal.SIGTERM)
                await asyncio.sleep(self._rng.uniform(0.5, 4.0))
                primary.send(signal.SIGINT)

    async def _fail_over(self) -> None:
        async with self._alone("PostgreSQL", "loss of the primary, its standby promoted") as free:
            if free:
                async with asyncio.timeout(FAILS_OVER_WITHIN_S):
                    await self._works.postgres.fail_over()

    async def _lose_standby(self) -> None:
        """Lose what each commit waits for, for a while."""
        async with self._alone("the standby", "SIGSTOP, then kill -9", of="PostgreSQL") as is_free:
            if is_free:
                standby = self._works.postgres.standby
                await self._pause(standby)
                standby.send(signal.SIGKILL)

    async def _pause(self, node: Node) -> None:
        node.send(signal.SIGSTOP, is_to_all=True)
        try:
            await asyncio.sleep(self._rng.uniform(0.5, 9.0))
        finally:
            node.send(signal.SIGCONT, is_to_all=True)

    async def _cut_commits(self) -> None:
        for each in self._works.ways:
            each.chance = CUT_CHANCE
        try:
            await asyncio.sleep(self._rng.uniform(1.0, 5.0))
        finally:
            for each in self._works.ways:
                each.chance = 0.0

    # -- NATS ----------------------------------------------------------------------------------

    async def _kill_nats(self) -> None:
        async with self._alone("NATS", "kill -9") as is_free:
            if is_free:
                self._send(signal.SIGKILL)

    async def _end_nats(self) -> None:
        async with self._alone("NATS", "SIGTERM") as is_free:
            if is_free:
                self._send(signal.SIGTERM)

    async def _stop_nats(self) -> None:
        async with self._alone("NATS", "SIGSTOP") as is_free:
            if is_free:
                self._send(signal.SIGSTOP)
                try:
                    await asyncio.sleep(self._rng.uniform(0.5, 6.0))
                finally:
                    self._send(signal.SIGCONT)

    async def _lose_stream(self) -> None:
        """Delete a stream with all that is in it: of messages, the registry, or keys."""
        async with self._alone("NATS", "") as is_free:
            if not is_free:
                return
            url = (self._works.nats_folder / "url").read_text().strip()
            with suppress(TimeoutError, OSError, nats.errors.Error):
                async with asyncio.timeout(NATS_WITHIN_S), await nats.connect(url) as client:
                    stream = client.jetstream()
                    names = sorted(each.config.name or "" for each in await stream.streams_info())
                    name = self._rng.choice(names)
                    await stream.delete_stream(name)
                    self._note("loss of a stream", name)

    async def _lose_disk(self) -> None:
        """Kill it, and have it start with nothing."""
        async with self._alone("NATS", "kill -9 and loss of its disk") as is_free:
            if is_free:
                self._send(signal.SIGKILL)
                shutil.rmtree(self._works.nats_folder / "jetstream", ignore_errors=True)

    def _send(self, number: signal.Signals) -> None:
        pid = self._works.nats.pid
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    # -- what they share -----------------------------------------------------------------------

    @asynccontextmanager
    async def _alone(self, whom: str, what: str, *, of: str = "") -> AsyncIterator[bool]:
        """Enter with whether nothing else is done to a server; with False do nothing."""
        server = of or whom
        if self._is_busy[server]:
            yield False
            return
        if what:
            self._note(what, whom)
        self._is_busy[server] = True
        try:
            yield True
        finally:
            self._is_busy[server] = False

    def _note(self, what: str, whom: str) -> None:
        kind = "a gateway" if whom.startswith("gateway") else "a replica" if "@" in whom else whom
        self._count[f"{what} of {kind}"] += 1
