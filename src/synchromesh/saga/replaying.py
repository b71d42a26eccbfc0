"""Replays histories with the code of today: whether a run of them would go on.

Only saga functions are run, on what was recorded: no step, no clock, no network, no database.
"""

from __future__ import annotations

import logging
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from synchromesh.errors import SagaError
from synchromesh.propagation import Propagation
from synchromesh.saga.deps import SagaDeps
from synchromesh.saga.fitting import fit
from synchromesh.saga.recorded import RecordedRun, records_of, row_of
from synchromesh.saga.records import RecordKind, SagaRecord, SagaStatus
from synchromesh.saga.tables import SagaRow
from synchromesh.saga.versions import SagaVersions
from synchromesh.sealing import NO_KEYS


class _NoTime:
    """A clock for what is not to depend on one."""

    def now_us(self) -> int:
        """Return no moment."""
        return 0


class _NoTracer:
    """Samples as none would; no span is made."""

    propagation = Propagation()


class _NoStore:
    """A store for what reads none; what is personal is erased to whoever has no keys."""

    vault = NO_KEYS


class Replayer:
    """Replays runs with the sagas of one service.

    Example:
        >>> from synchromesh.saga import SagaDefinition
        >>> from synchromesh.saga.recorded import RecordedRun
        >>> from synchromesh.saga.saga import Saga
        >>> from msgspec import Raw
        >>> async def pay(s: Saga, cents: int) -> None:
        ...     await s.sleep("1h")
        >>> run = RecordedRun(1, "shop", "pay", 1, "A-1", "running", Raw(b"7"), [])
        >>> Replayer(SagaVersions([SagaDefinition(pay, "pay")])).differs(run)
        ''
        >>> Replayer(SagaVersions()).differs(run)
        'code v1: this release has no such saga'
    """

    def __init__(self, versions: SagaVersions) -> None:
        self._versions = versions
        nothing = cast("Any", None)
        self._deps = SagaDeps(
            store=cast("Any", _NoStore()),
            clock=cast("Any", _NoTime()),
            shards=nothing,
            batches=nothing,
            chance=random.Random(0),  # noqa: S311 - it decides nothing
            new_span_id=nothing,
            sender=nothing,
            tracer=cast("Any", _NoTracer()),
            run_unit=nothing,
            counts=Counter(),
            keep_s=math.inf,
        )

    def differs(self, run: RecordedRun) -> str:
        """Return in what the code first differs from a history; "" where a run of it goes on.

        A run that was completed has to come to its end again.
        """
        try:
            row, records = row_of(run), records_of(run)
        except SagaError as error:
            return error.message
        return self.differs_from(row, records)

    def differs_from(self, row: SagaRow, records: Sequence[SagaRecord]) -> str:
        """Return the same of a run that is stored."""
        # As it was before its end: one that has ended is asked for nothing any more.
        had = [each for each in records if each.kind is not RecordKind.ENDED]
        with _silent():
            found = fit(self._deps, self._versions, row, had)
        if isinstance(found, str):
            return found
        status, cause = found.machine.status, found.machine.cause
        found.drop()
        if row.status is SagaStatus.COMPLETED and status in (
            SagaStatus.COMPENSATING,
            SagaStatus.STUCK,
        ):
            return f"it was completed, and would be {status.value}: {cause.reason}"
        return ""


@contextmanager
def _silent() -> Iterator[None]:
    """Log nothing of what a function raises: it is told as what differs."""
    log = logging.getLogger("synchromesh.saga")
    was, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = was
