"""What a replica does because it is its turn: the duties that it owns, and the right to write.

On SQLite one process has the database, and with it every duty: `SOLE` costs nothing, no statement
either. Where many processes write one database, `SharedOwners` keeps this one's lease, starts the
duties that it comes to own and stops those that it loses. Its clock decides nothing: whether a
lease runs is the database's to say, and what is written is checked there, in the same transaction.
So a process that stood still for a minute, and has lost its duties without knowing, writes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping
from contextlib import suppress
from typing import Any, Protocol

from synchromesh.errors import Fenced, StoreError
from synchromesh.store.ownership import Ownership, View
from synchromesh.store.unit import Condition, DutyHandler, Fence, Owners, Unit

TOPIC = "owners"
"""What replicas listen to: duties are free, or a replica has come or gone."""

# After a claim that another has won, or an error.
_SOON_S = 0.1
# What does not stop within that time, whatever it does, writes nothing: its duty is given back.
_STOP_S = 10.0
# A lease that is not given back by then runs out by itself.
_LEAVE_S = 1.0
_NOTHING: Mapping[str, int] = {}
_log = logging.getLogger("synchromesh.store")


class _NoFence:
    async def lost(self, unit: Unit) -> Collection[str]:  # noqa: ARG002
        return ()

    async def check(self, unit: Unit) -> None:
        """Do nothing."""

    def condition(self) -> None:
        """Return None."""


NO_FENCE: Fence = _NoFence()
"""Keeps nobody out."""


class SoleOwner:
    """Owns every duty of a database that this process alone writes.

    Example:
        >>> SoleOwner().is_sole
        True
    """

    is_sole = True

    async def run(self, duty: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:  # noqa: ARG002
        """Run the work."""
        await work()

    async def add(self, duties: Collection[str], handler: DutyHandler) -> None:
        """Begin them all."""
        handler.gained(duties)

    async def remove(self, duties: Collection[str]) -> None:
        """Do nothing."""

    def epoch(self, duty: str) -> int:  # noqa: ARG002
        """Return 1."""
        return 1

    def fence(self, duties: Iterable[str]) -> Fence:  # noqa: ARG002
        """Return what keeps nobody out."""
        return NO_FENCE


SOLE: Owners = SoleOwner()


class DutyBook(Protocol):
    """The rows of replicas and duties in a database that many processes write.

    Attributes:
        fence_sql: selects duty and epoch of those of an owner, of a list with a line each, and
            keeps others from them until the unit is over.
    """

    fence_sql: str

    async def renew(self, replica: str, able: Collection[str]) -> View:
        """Renew the lease of a replica, and return what is told of all of them."""
        ...

    async def claim(self, replica: str, duties: Collection[str]) -> dict[str, int]:
        """Claim duties whose owners have no lease; return the epochs of those that were granted."""
        ...

    async def give_back(self, replica: str, duties: Mapping[str, int]) -> None:
        """Give back what is this replica's under these epochs still, and tell the others."""
        ...

    async def leave(self, replica: str) -> None:
        """End the lease of a replica, with all that it owns, and tell the others."""
        ...

    async def close(self) -> None:
        """Release the database."""
        ...


class SharedOwners:
    """Keeps the lease of one replica and does its duties; create and use it on the loop.

    Args:
        id: of the replica, in one life of its process.
        listen: as that of the store.
        renew_s: how often the lease is renewed, and others are looked at; well below its length.
    """

    is_sole = False

    def __init__(
        self,
        book: DutyBook,
        id: str,  # noqa: A002
        listen: Callable[[str, Callable[[], None]], Callable[[], None]],
        *,
        renew_s: float,
    ) -> None:
        self._book = book
        self._id = id
        self._renew_s = renew_s
        self._machine = Ownership(id)
        self._handlers: dict[str, DutyHandler] = {}
        self._stops: set[asyncio.Task[None]] = set()
        self._wanted = asyncio.Event()
        self._turned: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._stop_listening = listen(TOPIC, self.look)

    @property
    def owned(self) -> frozenset[str]:
        """The duties that are this process's."""
        return self._machine.owned

    def look(self) -> None:
        """Look soon: something may have changed."""
        self._wanted.set()

    async def run(self, duty: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run what does a duty, whenever it is this process's."""
        single = _Single()
        await self.add((duty,), single)
        try:
            while True:
                await single.is_mine.wait()
                try:
                    await single.do(work)
                except Fenced as error:
                    _log.info("%s stops here: %s", duty, error.message)
                    await self._look_now()
                    await asyncio.sleep(_SOON_S)
                else:
                    if single.is_mine.is_set():
                        return
        finally:
            await self.remove((duty,))

    async def add(self, duties: Collection[str], handler: DutyHandler) -> None:
        """Own duties as far as it is this process's turn; returns after a first look."""
        self._handlers.update(dict.fromkeys(duties, handler))
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work(), name="duties")
        await self._look_now()

    async def remove(self, duties: Collection[str]) -> None:
        """Own them no more; they are given back once they are over here."""
        owned = self._machine.owned.intersection(duties)
        self._lose(owned)
        for duty in duties:
            self._handlers.pop(duty, None)
        if self._stops:
            await asyncio.wait(tuple(self._stops))
        self.look()

    def epoch(self, duty: str) -> int:
        """Return under which epoch a duty is this process's; 0 where it is not."""
        return self._machine.epoch(duty)

    def fence(self, duties: Iterable[str]) -> Fence:
        """Return what checks within a unit that duties are this process's still."""
        epochs = {duty: self._machine.epoch(duty) for duty in duties}
        return _SharedFence(self._book.fence_sql, self._id, epochs)

    async def close(self) -> None:
        """Give back all that is owned, so that the others go on at once. Idempotent."""
        self._stop_listening()
        if self._task is None:
            return
        self._task.cancel()
        _, late = await asyncio.wait((self._task, *self._stops), timeout=_LEAVE_S)
        for each in late:
            each.cancel()
        if late:
            _log.warning("duties are given back before they have stopped; they write nothing more")
        self._task = None
        _answer(self._turned)
        try:
            async with asyncio.timeout(_LEAVE_S):
                await self._book.leave(self._id)
        except (StoreError, TimeoutError) as error:
            why = str(error) or "the database does not answer"
            _log.warning("duties go on elsewhere once their lease is over: %s", why)
        await self._book.close()

    async def _look_now(self) -> None:
        """Return after a turn that began now or later."""
        self._wanted.set()
        if self._turned is None:
            self._turned = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._turned)

    async def _work(self) -> None:
        wait_s = 0.0
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wanted.wait()
            self._wanted.clear()
            turned, self._turned = self._turned, None
            wait_s = _SOON_S
            try:
                if await self._turn():
                    wait_s = self._renew_s
            except StoreError as error:
                _log.warning("the lease on duties is not renewed: %s", error.message)
            except Exception:  # noqa: BLE001 - whatever it was, without a lease nothing goes on
                _log.exception("the lease on duties is not renewed")
            finally:
                _answer(turned)

    async def _turn(self) -> bool:
        """Renew, look, and do what follows; False where another was faster with a claim."""
        machine, able = self._machine, frozenset(self._handlers)
        if back := machine.to_give_back:
            await self._book.give_back(self._id, back)
            machine.given_back(back)
        turn = machine.turn(await self._book.renew(self._id, able), able)
        self._stop(turn.lost)
        claimed = await self._book.claim(self._id, turn.claims) if turn.claims else _NOTHING
        machine.claimed(claimed)
        gained = turn.gained.union(claimed)
        for handler, duties in self._by_handler(gained).items():
            handler.gained(duties)
        # Removed while they were claimed.
        self._lose(gained.difference(self._handlers))
        if gained or turn.lost:
            _log.info(
                "duties: %d, of them %d new; lost: %d",
                len(machine.owned),
                len(gained),
                len(turn.lost),
            )
        return len(claimed) == len(turn.claims)

    def _lose(self, duties: Collection[str]) -> None:
        self._machine.stop(duties)
        self._stop(duties)

    def _stop(self, duties: Collection[str]) -> None:
        loop = asyncio.get_running_loop()
        for handler, its in self._by_handler(duties).items():
            task = loop.create_task(self._stopping(handler, its), name="duties end")
            self._stops.add(task)
            task.add_done_callback(self._stops.discard)
        if unknown := set(duties).difference(self._handlers):
            self._over(unknown)

    async def _stopping(self, handler: DutyHandler, duties: Collection[str]) -> None:
        try:
            async with asyncio.timeout(_STOP_S):
                await handler.lost(duties)
        except TimeoutError:
            _log.error("%s do not stop; what they write is refused", ", ".join(sorted(duties)))
        self._over(duties)

    def _over(self, duties: Collection[str]) -> None:
        self._machine.stopped(duties)
        self.look()

    def _by_handler(self, duties: Iterable[str]) -> dict[DutyHandler, set[str]]:
        found: dict[DutyHandler, set[str]] = {}
        for duty in duties:
            if (handler := self._handlers.get(duty)) is not None:
                found.setdefault(handler, set()).add(duty)
        return found

    def __repr__(self) -> str:
        return f"<SharedOwners {self._machine!r}>"


def _answer(turned: asyncio.Future[None] | None) -> None:
    """Tell who waits for a turn that it is over."""
    if turned is not None and not turned.done():
        turned.set_result(None)


class _Single:
    """Does one duty: work in a task of its own."""

    def __init__(self) -> None:
        self.is_mine = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def gained(self, duties: Collection[str]) -> None:  # noqa: ARG002
        self.is_mine.set()

    async def lost(self, duties: Collection[str]) -> None:  # noqa: ARG002
        self.is_mine.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def do(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do it until it is lost; raises what the work raises."""
        task = self._task = asyncio.ensure_future(work())
        try:
            await asyncio.wait([task])
        finally:
            task.cancel()
            await asyncio.wait([task])
            self._task = None
        if self.is_mine.is_set() or not task.cancelled():
            task.result()


_HELD = """\
(select count(*) from ({fence}) as held
join unnest((select ?::text[]), (select ?::bigint[])) as own(name, epoch)
using (name, epoch)) = ?"""


class _SharedFence:
    def __init__(self, sql: str, owner: str, epochs: Mapping[str, int]) -> None:
        self._sql = sql
        self._owner = owner
        self._epochs = epochs

    async def lost(self, unit: Unit) -> Collection[str]:
        """Return, within a unit, those that are this process's no more."""
        rows = await unit.execute(self._sql, self._owner, "\n".join(sorted(self._epochs)))
        held = {(duty, epoch) for duty, epoch in rows}
        return [duty for duty, epoch in self._epochs.items() if (duty, epoch) not in held]

    async def check(self, unit: Unit) -> None:
        """Raise `Fenced` where any is this process's no more."""
        if lost := await self.lost(unit):
            raise Fenced(
                f"{', '.join(sorted(lost))}: another process has taken over what this one did; "
                "nothing was written"
            )

    def condition(self) -> Condition:
        """Return what holds within a unit where none is lost."""
        names = sorted(self._epochs)
        epochs = [self._epochs[name] for name in names]
        values = (self._owner, "\n".join(names), names, epochs, len(names))
        return Condition(_HELD.format(fence=self._sql), values)
