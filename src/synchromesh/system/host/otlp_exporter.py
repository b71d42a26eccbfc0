"""Sends spans, log records and metrics to a collector by OTLP/HTTP, beside what is served.

What is recorded is handed over as it is; it is encoded when it is sent, some of it in a turn of the
loop. `ExportQueue` decides what is sent and when, and what is lost; nothing here fails a request.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from math import inf
from typing import Any, Generic, TypeVar

from synchromesh.clock import loop_clock
from synchromesh.errors import CallError
from synchromesh.http import HttpPool
from synchromesh.runtime import Runtime
from synchromesh.telemetry.exporting import ExportOptions, ExportQueue, Outcome, Verdict, outcome_of
from synchromesh.telemetry.log import LogRow, to_log_row
from synchromesh.telemetry.metrics import Family
from synchromesh.telemetry.otlp import HttpRoute, Resource, SpanEncoder, is_exported, log_body
from synchromesh.telemetry.otlp_metrics import CountedMetrics, metrics_body
from synchromesh.telemetry.span import SpanRow

T = TypeVar("T")

TRACES, LOGS, METRICS = "traces", "logs", "metrics"
SIGNALS = (TRACES, LOGS, METRICS)
# Readings that wait for a collector: each is all that was counted, and the next one has it too.
_READINGS_MAX = 10

# A request takes several turns of the loop, which would each wait for another part.
_PAUSE_S = 0.001

_log = logging.getLogger("synchromesh.telemetry")


@dataclass(frozen=True, slots=True)
class ExportTarget:
    """Where telemetry is sent to, and what it is sent as.

    Attributes:
        url: as messages show it.
        host, port, prefix: where it is; `/v1/traces` and the like are put behind the prefix.
        headers: sent with every request, such as a credential.
        signals: which of `SIGNALS` it is sent.
    """

    url: str
    host: str
    port: int
    prefix: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    signals: tuple[str, ...] = SIGNALS


@dataclass(slots=True)
class _Signal(Generic[T]):
    """One kind of telemetry on its way.

    Attributes:
        body: encodes a batch, in parts.
        refill: adds to the queue what has come elsewhere.
        is_due: set where there is something to send sooner than it is looked for.
        told: what people were told last of why it is not taken; "" where it is.
        lost: how much was lost when it was sent last.
    """

    name: str
    queue: ExportQueue[T]
    body: Callable[[Sequence[T]], Iterator[bytes]]
    refill: Callable[[], None] = lambda: None
    is_due: asyncio.Event = field(default_factory=asyncio.Event)
    told: str = ""
    lost: int = 0

    def add(self, items: Sequence[T], now: float) -> None:
        self.queue.add(items, now)
        if self.queue.wait_s(now) <= 0:
            self.is_due.set()


class OtlpExporter:
    """Exports what one process records; `run` sends it, and `close` what is left at the end.

    Args:
        collector: where it goes.
        pool: holds the connections; whoever made it closes it.
        runtime: the wall clock, and the source of jitter.
        resource: what it is of.
        process: the name of what log records are of.
        routes: those of operations, by their full names.
        options: the bounds, for each signal.
        metrics_every_s: how often what was counted is read and sent.

    Attributes:
        read: returns what this process has counted; until it is set nothing is.

    Example:
        >>> from synchromesh.testing import run
        >>> async def main(runtime: Runtime) -> str:
        ...     async with HttpPool(network=runtime.network) as pool:
        ...         collector = ExportTarget("http://127.0.0.1:4318", "127.0.0.1", 4318)
        ...         exporter = OtlpExporter(collector, pool, runtime, Resource({}, "1"), "shop", {})
        ...         return f"{exporter!r}, all was sent: {await exporter.close(1.0)}"
        >>> run(main)
        '<OtlpExporter to http://127.0.0.1:4318: 0 waiting, 0 sent, 0 lost>, all was sent: True'
    """

    def __init__(
        self,
        collector: ExportTarget,
        pool: HttpPool,
        runtime: Runtime,
        resource: Resource,
        process: str,
        routes: Mapping[str, HttpRoute],
        options: ExportOptions | None = None,
        metrics_every_s: float = 60.0,
    ) -> None:
        self._collector = collector
        self._pool = pool
        self._wall_us, self._rng = runtime.wall_us, runtime.rng
        self._options = options = options or ExportOptions()
        self._clock = loop_clock(asyncio.get_running_loop())
        encoder = SpanEncoder(resource, routes)
        self._spans = _Signal(TRACES, ExportQueue[SpanRow](options), encoder.body)
        logged: _Signal[LogRow] = _Signal(
            LOGS,
            ExportQueue(options),
            lambda rows: log_body(rows, resource, process),
            lambda: logged.add(self.log.taken(), self._clock()),
        )
        self.log = LogTap(options.items_max, logged.queue)
        self._readings: _Signal[CountedMetrics] = _Signal(
            METRICS,
            ExportQueue(replace(options, items_max=_READINGS_MAX, batch_max=1)),
            lambda readings: metrics_body(readings, resource, process),
        )
        self._metrics_every_s = metrics_every_s
        self._started_us = runtime.wall_us()
        self.read: Callable[[], Awaitable[list[Family]]] | None = None
        known: tuple[_Signal[Any], ...] = (self._spans, logged, self._readings)
        self._signals = [each for each in known if each.name in collector.signals]

    def take_spans(self, rows: Sequence[SpanRow]) -> None:
        """Take finished spans, those of traces that are sampled."""
        self._spans.add([row for row in rows if is_exported(row)], self._clock())

    async def run(self) -> None:
        """Send what is due; a supervised loop."""
        async with asyncio.TaskGroup() as group:
            for signal in self._signals:
                group.create_task(self._run(signal))
            if self._readings in self._signals:
                group.create_task(self._read())

    async def read_last(self, within_s: float) -> None:
        """Read what was counted once more, for the end; before what is read is closed."""
        if self.read is None or self._readings not in self._signals:
            return
        try:
            async with asyncio.timeout(within_s):
                await self._read_now()
        except TimeoutError:
            _log.warning("metrics were not read before the end within %g s", within_s)
        self.read = None

    async def close(self, within_s: float) -> bool:
        """Send what is left within one deadline for all; return whether all of it was taken.

        It is for when `run` has ended. What was not taken is counted as lost, and said. A collector
        that does not answer, or says that it may later, is not asked again.
        """
        until_s = self._clock() + within_s
        await asyncio.gather(*(self._finish(signal, until_s) for signal in self._signals))
        lost = {signal.name: signal.queue.lost["closed"] for signal in self._signals}
        for name, count in lost.items():
            if count:
                _log.warning("%d %s were not sent before the end", count, name)
        return not any(lost.values())

    def waiting(self) -> dict[str, int]:
        """Return how much waits or is under way, by signal."""
        return {signal.name: len(signal.queue) for signal in self._signals}

    def lost(self) -> dict[str, dict[str, int]]:
        """Return how much was lost so far, by signal and reason."""
        return {signal.name: dict(signal.queue.lost) for signal in self._signals}

    def why(self) -> dict[str, str]:
        """Return why what was tried last is not taken, by signal; of what is taken nothing."""
        return {signal.name: signal.told for signal in self._signals if signal.told}

    def __repr__(self) -> str:
        queues = [signal.queue for signal in self._signals]
        waiting, sent = sum(map(len, queues)), sum(queue.sent for queue in queues)
        lost = sum(queue.lost.total() for queue in queues)
        return (
            f"<OtlpExporter to {self._collector.url}: {waiting} waiting, {sent} sent, {lost} lost>"
        )

    async def _run(self, signal: _Signal[Any]) -> None:
        queue = signal.queue
        while True:
            signal.refill()
            # What comes from threads tells nobody: it is looked for.
            wait_s = min(queue.wait_s(self._clock()), self._options.every_s)
            if wait_s > 0:
                await _either(signal.is_due, wait_s)
            signal.is_due.clear()
            batch = queue.next(self._clock())
            if batch:
                # Where more waits than that they are no longer spread: else it would not be sent.
                pause_s = _PAUSE_S if len(queue) <= 2 * len(batch) else 0.0
                await self._attempt(signal, batch, self._options.timeout_s, pause_s)

    async def _read(self) -> None:
        """Read what was counted, again and again."""
        while True:
            await asyncio.sleep(self._metrics_every_s)
            await self._read_now()

    async def _read_now(self) -> None:
        if self.read is None:
            return
        try:
            families = await self.read()
        except Exception as error:  # noqa: BLE001 - what else is sent goes on
            _log.warning("metrics were not read: %r", error)
            return
        reading = CountedMetrics(self._started_us, self._wall_us(), families)
        self._readings.add([reading], self._clock())

    async def _finish(self, signal: _Signal[Any], until_s: float) -> None:
        queue = signal.queue
        signal.refill()
        while (left_s := until_s - self._clock()) > 0:
            batch = queue.next(self._clock(), at_once=True)
            if not batch:
                break
            outcome = await self._attempt(signal, batch, min(left_s, self._options.timeout_s))
            if outcome.verdict is Verdict.TRY_AGAIN:
                break
        queue.close()

    async def _attempt(
        self, signal: _Signal[T], batch: Sequence[T], within_s: float, pause_s: float = 0.0
    ) -> Outcome:
        parts = []
        for part in signal.body(batch):
            parts.append(part)
            await asyncio.sleep(pause_s)  # requests go before
        outcome = await self._post(signal.name, b"".join(parts), within_s)
        signal.queue.settle(outcome, self._clock(), self._rng)
        self._tell(signal, outcome)
        return outcome

    async def _post(self, name: str, body: bytes, within_s: float) -> Outcome:
        to = self._collector
        try:
            # Taken twice it is told twice, which is better than not at all.
            answer = await self._pool.request(
                to.host, to.port, "POST", f"{to.prefix}/v1/{name}",
                [("content-type", "application/json"), *to.headers], body,
                timeout_s=within_s, is_idempotent=True,
            )  # fmt: skip
        except CallError as error:
            return Outcome(Verdict.TRY_AGAIN, error.message)
        after = answer.headers.get("retry-after")
        return outcome_of(answer.status, answer.body, _after_s(after or "", self._wall_us() / 1e6))

    def _tell(self, signal: _Signal[Any], outcome: Outcome) -> None:
        """Say once why telemetry is not taken, and that it is again."""
        url, lost, why = self._collector.url, signal.queue.lost.total(), outcome.why
        if lost > signal.lost:
            why = why or f"{outcome.rejected} were rejected" * bool(outcome.rejected)
            why = why or "more of them come than it takes"
        if why and signal.told != why:
            _log.warning(
                "not all %s are taken by %s: %s; what is lost is counted", signal.name, url, why
            )
        elif signal.told and not why:
            _log.info("all %s are taken by %s again; %d were lost so far", signal.name, url, lost)
        signal.told, signal.lost = why, lost


class LogTap(logging.Handler):
    """Takes log records of any thread, until they are looked for.

    Args:
        rows_max: how many it keeps; further ones are dropped, and counted as what `queue` has lost.
    """

    def __init__(self, rows_max: int, queue: ExportQueue[LogRow]) -> None:
        super().__init__()
        self._rows_max = rows_max
        self._lost = queue.lost
        self._rows: deque[LogRow] = deque()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record as what is exported of it."""
        if len(self._rows) >= self._rows_max:
            self._lost["queue_full"] += 1
            return
        try:
            self._rows.append(to_log_row(record))
        except Exception:  # noqa: BLE001 - arguments that do not fit are told by the log itself
            self._lost["queue_full"] += 1

    def taken(self) -> list[LogRow]:
        """Return the records that were kept, which are no longer."""
        return [self._rows.popleft() for _ in range(len(self._rows))]


async def _either(event: asyncio.Event, within_s: float) -> None:
    """Wait for an event, but no longer than so many seconds."""
    try:
        async with asyncio.timeout(None if within_s == inf else within_s):
            await event.wait()
    except TimeoutError:
        return


def _after_s(text: str, wall_s: float) -> float | None:
    """Return the seconds of a `Retry-After`, which may be a date; None where it is neither."""
    if text.isascii() and text.isdigit() and len(text) <= 9:
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - wall_s)
    except (ValueError, TypeError, OverflowError):
        return None
