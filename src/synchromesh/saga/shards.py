"""Which runs are an engine's: those of the shards that it owns, each under an epoch (S10).

A run is in the shard that its starter chose: one of its own, so that a run begins where it is
started. A process that has the database alone owns all, under the epoch of its engine. Where many
write it, shards are duties, which go from one to another.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Protocol
from zlib import crc32

from synchromesh.errors import Fenced
from synchromesh.store import Condition, Fence, Owners, SqlValue, Store, Unit

SHARDS = 60
"""How many there are: as many for each of two, three, four, five or six replicas."""

_ALL = range(SHARDS)
_DUTY = "sagas/"
_DUTIES = tuple(f"{_DUTY}{number}" for number in range(SHARDS))
_TAKE_OVER = (
    "insert into sm_saga_epoch(one, epoch) values (1, 1) "
    "on conflict(one) do update set epoch = sm_saga_epoch.epoch + 1 returning epoch"
)
_OWNS = "select 1 from sm_saga_epoch where epoch = ?"


class Changes(Protocol):
    """Is told which shards come and go."""

    def gained(self) -> None:
        """Continue the runs of all that are owned."""
        ...

    async def lost(self, shards: Collection[int]) -> None:
        """Let their runs leave memory; return once none of them goes on."""
        ...


class RunFence(Protocol):
    """The right to write for runs of some shards, as it was when it was asked for."""

    async def lost(self, unit: Unit) -> Collection[int]:
        """Return, within a unit, the shards that are this engine's no more."""
        ...

    def condition(self) -> Condition | None:
        """Return what holds within a unit where none is lost; None where that cannot be told."""
        ...


class Shards(Protocol):
    """The shards of one engine.

    Attributes:
        mask: a bit for each that it owns, for statements.
        is_sole: it owns all there are, always.
    """

    @property
    def mask(self) -> int:
        """A bit for each that it owns."""
        ...

    @property
    def is_sole(self) -> bool:
        """Whether it owns all that there are."""
        ...

    async def end(self) -> None:
        """Own none any more."""
        ...

    def owns(self, shard: int) -> bool:
        """Return whether a shard is its own."""
        ...

    def pick(self, id: str) -> int:  # noqa: A002
        """Return in which shard a run is started: an own one, if there is any."""
        ...

    def fence(self, shards: Iterable[int]) -> RunFence:
        """Return what checks within a unit that runs of these are its own still."""
        ...


async def shards_of(store: Store, changes: Changes) -> Shards:
    """Own the shards of a store, as far as it is this process's turn.

    Raises:
        StoreError: the store cannot be written.
    """
    if store.owners.is_sole:
        ((epoch,),) = await store.write(
            lambda unit: unit.execute(_TAKE_OVER), name="saga take-over"
        )
        return SoleShards(epoch)
    shared = SharedShards(store.owners, changes)
    await store.owners.add(_DUTIES, shared)
    return shared


def shard_of(id: str) -> int:  # noqa: A002
    """Return the shard of a run that is started where none is owned."""
    return crc32(id.encode()) % SHARDS


class SoleShards:
    """All shards, of a process that has the database alone, under the epoch of its engine.

    Example:
        >>> SoleShards(epoch=3).pick("order-7")
        0
    """

    mask = (1 << SHARDS) - 1
    is_sole = True

    def __init__(self, epoch: SqlValue) -> None:
        self._epoch = epoch

    async def end(self) -> None:
        """Do nothing: the next engine takes over."""

    def owns(self, shard: int) -> bool:  # noqa: ARG002
        """Return True."""
        return True

    def pick(self, id: str) -> int:  # noqa: A002, ARG002
        """Return always the same one."""
        return 0

    def fence(self, shards: Iterable[int]) -> RunFence:  # noqa: ARG002
        """Return itself: it checks the epoch."""
        return self

    async def lost(self, unit: Unit) -> Collection[int]:
        """Return all of them, within a unit, where another engine has taken over."""
        return () if await unit.execute(_OWNS, self._epoch) else _ALL

    def condition(self) -> Condition:
        """Return that no other engine has taken over."""
        return Condition(f"exists ({_OWNS})", [self._epoch])


class SharedShards:
    """The shards that one of several processes owns; they come and go."""

    is_sole = False

    def __init__(self, owners: Owners, changes: Changes) -> None:
        self._owners = owners
        self._changes = changes
        self._owned: list[int] = []
        self.mask = 0

    async def end(self) -> None:
        """Give back all."""
        await self._owners.remove(_DUTIES)

    def owns(self, shard: int) -> bool:
        """Return whether a shard is its own."""
        return bool(self.mask >> shard & 1)

    def pick(self, id: str) -> int:  # noqa: A002
        """Return in which shard a run is started: an own one, if there is any."""
        owned = self._owned
        return owned[crc32(id.encode()) % len(owned)] if owned else shard_of(id)

    def fence(self, shards: Iterable[int]) -> RunFence:
        """Return what checks within a unit that runs of these are its own still."""
        return _DutyFence(self._owners.fence({_DUTIES[each] for each in shards}))

    def gained(self, duties: Collection[str]) -> None:
        """Continue the runs of more."""
        self._own([*self._owned, *map(_number, duties)])
        self._changes.gained()

    async def lost(self, duties: Collection[str]) -> None:
        """Let runs leave memory."""
        gone = set(map(_number, duties))
        self._own([each for each in self._owned if each not in gone])
        await self._changes.lost(gone)

    def _own(self, shards: Iterable[int]) -> None:
        self._owned = sorted(shards)
        self.mask = sum(1 << each for each in self._owned)

    def __repr__(self) -> str:
        return f"<SharedShards {len(self._owned)} of {SHARDS}>"


class _DutyFence:
    def __init__(self, fence: Fence) -> None:
        self._fence = fence

    async def lost(self, unit: Unit) -> Collection[int]:
        return [_number(duty) for duty in await self._fence.lost(unit)]

    def condition(self) -> Condition | None:
        return self._fence.condition()


def fenced(id: str) -> Fenced:  # noqa: A002
    """Return the error that another engine has the run."""
    return Fenced(
        f"saga {id!r} is no longer this engine's, or its records are not those that this one was "
        "to follow; nothing was recorded"
    )


def _number(duty: str) -> int:
    return int(duty.removeprefix(_DUTY))
