"""A bounded ring of spans in a SQLite file, written beside the work and never in its way."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Generic, TypeAlias, TypeVar

import msgspec

from synchromesh.runtime import Runtime, Worker
from synchromesh.telemetry.span import SpanRecord, SpanRow, to_record

# A row is a block: `last` counts the spans ever written, up to the end of this block.
SCHEMA_SQL = (
    "create table if not exists span_block("
    "last integer primary key, client_trace text not null, traces blob not null, "
    "spans blob not null)"
)
_INSERT = (
    # Counted on in the file: while a process is succeeded by another, both write.
    "insert into span_block select coalesce(max(last), 0) + ?, ?, ?, ? from span_block"
)
_TRIM = "delete from span_block where last <= (select max(last) from span_block) - ?"
# `traces` stands before `spans`: SQLite reads a row up to the column that it needs.
_BLOCKS_OF_TRACE = "select spans from span_block where instr(traces, ?) order by last"
_LAST_CLIENT_TRACE = (
    "select client_trace from span_block where client_trace <> '' order by last desc limit 1"
)

# The spans of one block. Encoding it holds the interpreter for some 0.1 ms.
BLOCK_SPANS = 2_000

_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

# What an encoder raises for a value that it cannot store.
_UNSTORABLE = (TypeError, ValueError, OverflowError)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[SpanRow])

_log = logging.getLogger("synchromesh.telemetry")

T = TypeVar("T")
Block: TypeAlias = list[SpanRow]


class _Look(Generic[T]):
    """A look into the file, after all that was handed over before it has been written."""

    def __init__(self, find: Callable[[sqlite3.Connection], T], otherwise: T) -> None:
        self.find, self.found = find, otherwise
        self.done = asyncio.Event()


class SqliteRing:
    """Keeps the newest spans in a file, across restarts and kills.

    Spans are gathered in blocks. A block is handed to the writer when it is full, when its first
    span is `flush_s` old, or when somebody reads; it becomes one row, with an index of its traces.
    What a killed process had not handed over is lost, as is what comes while `pending_max` wait:
    best effort. A file that a power cut has damaged is set aside, and another begun.

    Args:
        path: the file.
        runtime: its disk, and the thread that writes.
        spans_max: spans that can be read; the file keeps up to a block more.
        flush_s: how long a span waits at most.
        pending_max: spans that may wait for the writer.
    """

    def __init__(
        self,
        path: str,
        runtime: Runtime,
        *,
        spans_max: int = 200_000,
        flush_s: float = 0.1,
        pending_max: int = 20_000,
    ) -> None:
        self._path = path
        self._disk = runtime.disk
        self._spans_max = spans_max
        self._flush_s = flush_s
        self._pending_max = pending_max
        self._block_max = min(BLOCK_SPANS, pending_max)
        self._block: Block = []
        self._pending = 0
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._connection: sqlite3.Connection | None = None
        self._has_failed = self._is_closed = False
        self.dropped = 0
        self._lane: Worker[Block | _Look[Any]] = runtime.worker("synchromesh-spans", self._work)

    def add(self, span: SpanRow, /) -> None:
        """Keep a span, or drop its block where too many wait."""
        block = self._block
        if not block:
            self._timer = self._loop.call_later(self._flush_s, self._hand_over)
        block.append(span)
        if len(block) >= self._block_max:
            self._hand_over()

    async def flush(self) -> None:
        """Wait until everything that was added is written, or dropped."""
        await self._look(lambda _: None, None)

    async def trace(self, trace_id: str) -> list[SpanRecord]:
        """Return the spans of a trace that were added before, in order of their start.

        All blocks are looked through, by their indexes, beside the loop: some 3 ms for a full ring
        that was written under load, 25 ms where each span is a block of its own.
        """

        def find(connection: sqlite3.Connection) -> list[SpanRecord]:
            rows = connection.execute(_BLOCKS_OF_TRACE, (_indexed([trace_id]),))
            spans = (span for (block,) in rows for span in _decoded(block) if span[0] == trace_id)
            return sorted(map(to_record, spans), key=lambda record: record.started_us)

        return await self._look(find, [])

    async def last_trace_id(self) -> str | None:
        """Return the trace of the newest span of kind "client"; None where there is none."""

        def find(connection: sqlite3.Connection) -> str | None:
            row = connection.execute(_LAST_CLIENT_TRACE).fetchone()
            return None if row is None else str(row[0])

        return await self._look(find, None)

    async def close(self) -> None:
        """Write what waits, and end."""
        self._hand_over()
        self._is_closed = True
        await self._lane.close()
        if self._connection is not None:
            self._connection.close()

    async def _look(self, find: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        self._hand_over()
        look = _Look(find, otherwise)
        self._lane.put(look)
        await look.done.wait()
        return look.found

    def _hand_over(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        block, self._block = self._block, []
        if not block:
            return
        if self._is_closed or self._pending + len(block) > self._pending_max:
            self.dropped += len(block)
            return
        self._pending += len(block)
        self._lane.put(block)

    # -- in the writer's thread ------------------------------------------------------------------

    def _work(self, jobs: list[Block | _Look[Any]]) -> Callable[[], None]:
        blocks = [job for job in jobs if isinstance(job, list)]
        looks = [job for job in jobs if isinstance(job, _Look)]
        stored, failure = self._try(lambda: self._write(blocks), 0) if blocks else (0, None)
        for look in looks:
            look.found, _ = self._try(partial(self._find, look), look.found)
        return lambda: self._worked(looks, sum(map(len, blocks)), stored, failure)

    def _try(self, work: Callable[[], T], otherwise: T) -> tuple[T, sqlite3.Error | None]:
        """Do what needs the file. After a failure it is opened again, or begun anew if damaged."""
        try:
            return work(), None
        except sqlite3.Error as error:
            if self._connection is not None:
                self._connection.close()  # and whatever it was in the midst of
                self._connection = None
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED:
                self._disk.quarantine(self._path)
            return otherwise, error

    def _find(self, look: _Look[T]) -> T:
        return look.find(self._open())

    def _write(self, blocks: Sequence[Block]) -> int:
        """Store blocks, and return how many spans of them could be."""
        connection, stored = self._open(), 0
        connection.execute("begin immediate")
        for block in blocks:
            count, *columns = _to_row(block)
            if count:
                connection.execute(_INSERT, (count, *columns))
                stored += count
        connection.execute(_TRIM, (self._spans_max,))
        connection.execute("commit")
        return stored

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None:
            return self._connection
        connection = self._disk.connect(self._path)
        try:
            connection.execute("pragma journal_mode=wal")
            # Spans may be lost with the power; they must never cost a disk flush.
            connection.execute("pragma synchronous=normal")
            connection.execute(SCHEMA_SQL)
        except sqlite3.Error:
            connection.close()
            raise
        self._connection = connection
        return connection

    # -- in the loop -----------------------------------------------------------------------------

    def _worked(
        self, looks: list[_Look[Any]], taken: int, stored: int, failure: sqlite3.Error | None
    ) -> None:
        self._pending -= taken
        self.dropped += taken - stored
        if failure is not None and not self._has_failed:
            _log.warning("spans cannot be written to %s: %s", self._path, failure)
            self._has_failed = True
        for look in looks:
            look.done.set()


def _to_row(block: Block) -> tuple[int, str, bytes, bytes]:
    """Return a block as it is stored: how many, the newest client's trace, the index, the spans."""
    try:
        spans = _encoder.encode(block)
    except _UNSTORABLE:
        # Such as a text with half a surrogate pair, from the name of a file: only its span is lost.
        block = [span for span in block if _is_storable(span)]
        spans = _encoder.encode(block)
    client_trace = next((span[0] for span in reversed(block) if span[4] == "client"), "")
    return len(block), client_trace, _indexed({span[0] for span in block}), spans


def _indexed(trace_ids: Iterable[str]) -> bytes:
    """Return ids so that each is found by its text with a line's end on both sides."""
    return "\n".join(("", *trace_ids, "")).encode(errors="surrogatepass")


def _is_storable(span: SpanRow) -> bool:
    try:
        _encoder.encode(span)
    except _UNSTORABLE:
        return False
    return True


def _decoded(block: bytes) -> Block:
    try:
        return _decoder.decode(block)
    except ValueError:
        return []  # damage that SQLite does not see
