"""What all runs of an engine work with."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from synchromesh.calls import Sender
from synchromesh.clock import loop_clock
from synchromesh.context import CallContext
from synchromesh.runtime import Runtime
from synchromesh.saga.batches import BatchWriter
from synchromesh.saga.shards import Shards
from synchromesh.saga.tables import SagaRow
from synchromesh.store import Store, Unit
from synchromesh.telemetry import Record, Tracer
from synchromesh.timers import Timers

R = TypeVar("R")

# Spans are named after steps, of which lists may have ten thousand.
_RECORDERS_MAX = 1024


class Clock:
    """A wall clock that does not jump: read once, then advanced by the loop's clock.

    Stored deadlines are wall-clock microseconds; a run must not turn because somebody set the time.

    Attributes:
        loop_s: the loop's clock.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.loop_s = loop_clock(asyncio.get_running_loop())
        self._base_us = runtime.wall_us() - int(self.loop_s() * 1e6)

    def now_us(self) -> int:
        """Return microseconds since 1970 UTC."""
        return self._base_us + int(self.loop_s() * 1e6)

    def to_loop_s(self, at_us: int) -> float:
        """Return the moment of the loop's clock that a stored one is."""
        return (at_us - self._base_us) / 1e6


class UnitRunner(Protocol):
    """Runs a user's function on what it sees of a unit, and writes what it left to be written."""

    def __call__(
        self, unit: Unit, context: CallContext, body: Callable[[Any], Awaitable[R]], /
    ) -> Awaitable[R]:
        """Return what the function returns; what it raises rolls the unit back."""
        ...


class StepWriter(Protocol):
    """Commits a unit of a step that is not the store's, such as one in a user's own session."""

    def __call__(
        self, row: SagaRow, last: int, body: Callable[[Unit], Awaitable[R]], /
    ) -> Awaitable[R]:
        """Return what the body returns, once that is committed.

        Where it raises nothing was, or that is not known: then the number of the record is in the
        way of a further attempt, which is refused as one of an engine that was replaced.

        Args:
            row: the run's.
            last: the number of the last record that the body writes.
        """
        ...


@dataclass(frozen=True, slots=True)
class SagaDeps:
    """What all runs of an engine work with.

    Attributes:
        shards: say which runs are this engine's; `batches` has them too.
        keep_s: how long those who are asked under a key remember it.
        chance: seeded by the kernel once, for ids of spans and waits are not secret.
        new_span_id: draws an id of it.
        write_step: commits the units of steps; None where the store does.
        recorders: what records spans, by kind and name; `recorder` adds one.
    """

    store: Store
    clock: Clock
    shards: Shards
    batches: BatchWriter
    chance: random.Random
    new_span_id: Callable[[], str]
    sender: Sender
    tracer: Tracer
    run_unit: UnitRunner
    counts: Counter[str]
    keep_s: float
    write_step: StepWriter | None = None
    timers: Timers = field(default_factory=Timers)
    recorders: dict[tuple[str, str], Record] = field(default_factory=dict)

    def recorder(self, kind: str, name: str) -> Record:
        """Return what records the spans of a kind and name, and keep it."""
        if len(self.recorders) >= _RECORDERS_MAX:
            self.recorders.clear()
        made = self.recorders[kind, name] = self.tracer.recorder(kind, name)
        return made
