"""A bounded ring buffer of spans in a SQLite file, written in blocks by a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import chain
from typing import Any, Generic, TypeVar

import msgspec

from synchromesh.runtime import Disk, DiskRuntime, Worker
from synchromesh.telemetry.observed import ObservedCall, observed_calls
from synchromesh.telemetry.span import SpanRecord, SpanRow, to_record

# A row is a block: `last` counts the spans ever written, up to the end of this block.
_SCHEMA = (
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
_BLOCKS_NEWEST_FIRST = "select spans from span_block order by last desc"
_LAST_CLIENT_TRACE = (
    "select client_trace from span_block where client_trace <> '' order by last desc limit 1"
)
_NEWEST_BLOCKS = (
    "select spans from span_block where last > (select max(last) from span_block) - ? order by last"
)

# The spans that are read to learn who calls whom: some 0.3 s in the writer's thread.
OBSERVED_SPANS_MAX = 50_000

_ASKING_BLOCKS = "select spans from span_block where client_trace <> '' order by last desc"

# The kinds of spans that a request from outside begins with.
ASKING = frozenset({"client", "gateway"})

# So many spans are looked at for the newest that somebody asked for.
LOOKED_AT_SPANS = 50_000
# Spans in one row.
BLOCK_SPANS = 2_048
# Spans that are encoded at once, on the loop, in some 10 µs: while the processor's cache still has
# them, and so that their memory serves the next ones. In the writer's thread it took longer, and
# the loop waited for the interpreter meanwhile.
CHUNK_SPANS = 64
# Blocks are long: larger pages are fewer to write.
PAGE_BYTES = 16_384

_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

# What an encoder raises for a value that it cannot store.
_UNSTORABLE = (TypeError, ValueError, OverflowError)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[list[SpanRow]])

_log = logging.getLogger("synchromesh.telemetry")

T = TypeVar("T")


class _Block:
    """Collect encoded spans and the index of their traces, for one row."""

    __slots__ = ("chunks", "client_trace", "count", "traces")

    def __init__(self) -> None:
        self.count = 0
        self.client_trace = ""  # of the newest span of who asks
        self.traces: list[bytes] = []
        self.chunks: list[msgspec.Raw] = []

    def add(self, spans: list[SpanRow]) -> None:
        """Encode spans; raises one of `_UNSTORABLE`, and is as before, where one cannot be."""
        encoded = _encoder.encode(spans)
        # A dict, not a set: a simulated file is the same in each run of its seed.
        self.traces.append(_indexed(dict.fromkeys([span[0] for span in spans])))
        self.chunks.append(msgspec.Raw(encoded))
        self.count += len(spans)
        for span in spans:
            if span[4] in ASKING:
                self.client_trace = span[0]

    def to_row(self) -> tuple[int, str, bytes, bytes]:
        return self.count, self.client_trace, b"".join(self.traces), _encoder.encode(self.chunks)


class _Query(Generic[T]):
    """Run a query in the writer's thread, after all blocks that were queued before it."""

    def __init__(self, find: Callable[[sqlite3.Connection], T], otherwise: T) -> None:
        self.find, self.found = find, otherwise
        self.done = asyncio.Event()


class SqliteRing:
    """Persist the newest spans in a file, across restarts and kills.

    Spans are buffered in blocks. A block is flushed when it is full, when its first span is
    `flush_s` old, or when somebody reads; it becomes one row, with an index of its trace ids. Spans
    are lost that a killed process had not flushed, and those that exceed `pending_max`: best
    effort. A damaged file is moved to `<path>.damaged`, and a new one begun.

    Args:
        path: the file.
        runtime: its disk, and the thread that writes.
        spans_max: the newest spans, which can be read; the file keeps up to a block more.
        flush_s: how long a span is buffered at most.
        pending_max: spans that may wait for the writer.

    Attributes:
        dropped: spans that were lost.
        tap: is shown all spans, some at a time, and neither keeps nor changes the list.
    """

    def __init__(
        self,
        path: str,
        runtime: DiskRuntime,
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
        self._chunk_max = min(CHUNK_SPANS, pending_max)
        self._block_max = min(BLOCK_SPANS, pending_max)
        # For a `Tracer`, see `BufferedSink`; it is the same list all the time.
        self.rows: list[SpanRow] = []
        # The first span of a block has its timer started, and a full chunk is encoded.
        self.full_at = 1
        self._block = _Block()
        self._pending = 0
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._connection: sqlite3.Connection | None = None
        self._has_failed = self._is_closed = False
        self.dropped = 0
        self.tap: Callable[[list[SpanRow]], None] | None = None
        self._lane: Worker[_Block | _Query[Any]] = runtime.worker("synchromesh-spans", self._work)

    def add(self, span: SpanRow, /) -> None:
        """Buffer a finished span; its block is dropped where too many wait."""
        self.rows.append(span)
        if len(self.rows) >= self.full_at:
            self.on_full()

    def on_full(self) -> None:
        """Have the block's timer run, and encode what was buffered if that is a chunk."""
        if self._timer is None:
            self._timer = self._loop.call_later(self._flush_s, self._flush_block)
            self.full_at = self._chunk_max
        if len(self.rows) >= self._chunk_max:
            self._encode_chunk()
            if self._block.count >= self._block_max:
                self._flush_block()

    async def flush(self) -> None:
        """Wait until all spans added so far are written, or dropped."""
        await self._query(lambda _: None, None)

    async def trace(self, trace_id: str) -> list[SpanRecord]:
        """Flush, and return the spans of a trace in order of their start.

        The indexes of all blocks are scanned, in the writer's thread: some 3 ms for a full ring
        written under load, 25 ms where each span is a block of its own.
        """

        return await self._query(partial(_spans_of, trace_id), [])

    async def last_trace_id(self) -> str | None:
        """Flush, and return the trace id of the newest span of `ASKING`; None without one."""

        return await self._query(_last_trace_of, None)

    async def observed(self) -> list[ObservedCall]:
        """Flush, and return what was called by whom, as the newest spans tell."""

        return await self._query(_observed_in, [])

    async def asked(self, limit: int) -> list[SpanRecord]:
        """Flush, and return the newest spans of `ASKING`, in order of their start.

        It looks at the newest `LOOKED_AT_SPANS` spans at most, in the writer's thread.
        """
        return await self._query(partial(_asked, limit), [])

    async def close(self) -> None:
        """Flush, and stop the writer; spans added later are dropped."""
        self._flush_block()
        self._is_closed = True
        await self._lane.close()
        if self._connection is not None:
            self._connection.close()

    async def _query(self, find: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        self._flush_block()
        query = _Query(find, otherwise)
        self._lane.put(query)
        await query.done.wait()
        return query.found

    def _encode_chunk(self) -> None:
        chunk, block = self.rows, self._block
        if self.tap is not None:
            self.tap(chunk)
        try:
            block.add(chunk)
        except _UNSTORABLE:
            # Such as half a surrogate pair, from the name of a file: only its span is lost.
            for span in chunk:
                try:
                    block.add([span])
                except _UNSTORABLE:
                    self.dropped += 1
        chunk.clear()

    def _flush_block(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.full_at = 1
        if self.rows:
            self._encode_chunk()
        block = self._block
        if not block.count:
            return
        self._block = _Block()
        if self._is_closed or self._pending + block.count > self._pending_max:
            self.dropped += block.count
            return
        self._pending += block.count
        self._lane.put(block)

    # -- in the writer's thread ------------------------------------------------------------------

    def _work(self, jobs: list[_Block | _Query[Any]]) -> Callable[[], None]:
        blocks = [job for job in jobs if isinstance(job, _Block)]
        queries = [job for job in jobs if isinstance(job, _Query)]
        failure = self._try(lambda: self._write(blocks), None)[1] if blocks else None
        for query in queries:
            query.found, _ = self._try(partial(self._find, query), query.found)
        return lambda: self._worked(queries, sum(block.count for block in blocks), failure)

    def _try(self, work: Callable[[], T], otherwise: T) -> tuple[T, sqlite3.Error | None]:
        """Run `work` on the file; after a failure reopen it, or replace it if it is damaged."""
        try:
            return work(), None
        except sqlite3.Error as error:
            if self._connection is not None:
                self._connection.close()  # and whatever it was in the midst of
                self._connection = None
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED:
                self._disk.quarantine(self._path)
            return otherwise, error

    def _find(self, query: _Query[T]) -> T:
        return query.find(self._open())

    def _write(self, blocks: Sequence[_Block]) -> None:
        connection = self._open()
        connection.execute("begin immediate")
        for block in blocks:
            connection.execute(_INSERT, block.to_row())
        connection.execute(_TRIM, (self._spans_max,))
        connection.execute("commit")

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None:
            return self._connection
        connection = self._disk.connect(self._path)
        try:
            connection.execute(f"pragma page_size={PAGE_BYTES}")
            connection.execute("pragma journal_mode=wal")
            # Spans may be lost with the power; they must never cost a disk flush.
            connection.execute("pragma synchronous=normal")
            connection.execute(_SCHEMA)
        except sqlite3.Error:
            connection.close()
            raise
        self._connection = connection
        return connection

    # -- in the loop -----------------------------------------------------------------------------

    def _worked(
        self, queries: Sequence[_Query[Any]], count: int, failure: sqlite3.Error | None
    ) -> None:
        self._pending -= count
        if failure is not None:
            self.dropped += count
            if not self._has_failed:
                _log.warning("spans cannot be written to %s: %s", self._path, failure)
            self._has_failed = True
        for query in queries:
            query.done.set()


def kept_spans(path: str, disk: Disk, trace_id: str) -> list[SpanRecord]:
    """Return the spans of a trace in a file that nobody writes; "" is the last that was asked for.

    None are there where the file cannot be read: spans are best effort.
    """
    try:
        with closing(disk.connect(path, read_only=True)) as connection:
            return _spans_of(trace_id or _last_trace_of(connection) or "", connection)
    except sqlite3.Error:
        return []


def kept_calls(path: str, disk: Disk) -> list[ObservedCall]:
    """Return what was called by whom, by a file that nobody writes; nothing where it is damaged."""
    try:
        with closing(disk.connect(path, read_only=True)) as connection:
            return _observed_in(connection)
    except sqlite3.Error:
        return []


def _observed_in(connection: sqlite3.Connection) -> list[ObservedCall]:
    blocks = connection.execute(_NEWEST_BLOCKS, (OBSERVED_SPANS_MAX,))
    return observed_calls(to_record(span) for (block,) in blocks for span in _decoded(block))


def newest_spans(path: str, disk: Disk, spans_max: int) -> list[SpanRecord]:
    """Return the spans that were written last, whether or not somebody writes the file.

    None are there where the file cannot be read: spans are best effort.
    """
    found: list[SpanRecord] = []
    try:
        with closing(disk.connect(path, read_only=True)) as connection:
            for (block,) in connection.execute(_BLOCKS_NEWEST_FIRST):
                found += map(to_record, _decoded(block))
                if len(found) >= spans_max:
                    break
    except sqlite3.Error:
        return found
    return found


def _spans_of(trace_id: str, connection: sqlite3.Connection) -> list[SpanRecord]:
    rows = connection.execute(_BLOCKS_OF_TRACE, (_indexed([trace_id]),))
    spans = (span for (block,) in rows for span in _decoded(block) if span[0] == trace_id)
    return sorted(map(to_record, spans), key=lambda record: record.started_us)


def _last_trace_of(connection: sqlite3.Connection) -> str | None:
    row = connection.execute(_LAST_CLIENT_TRACE).fetchone()
    return None if row is None else str(row[0])


def _asked(limit: int, connection: sqlite3.Connection) -> list[SpanRecord]:
    found: list[SpanRecord] = []
    looked_at = 0
    for (block,) in connection.execute(_ASKING_BLOCKS):
        spans = list(_decoded(block))
        found += [to_record(span) for span in spans if span[4] in ASKING]
        looked_at += len(spans)
        if len(found) >= limit or looked_at >= LOOKED_AT_SPANS:
            break
    return sorted(found, key=lambda record: record.started_us)[-limit:]


def _indexed(trace_ids: Iterable[str]) -> bytes:
    """Join trace ids so that `instr` finds whole ids only: each has a newline on both sides."""
    return "\n".join(("", *trace_ids, "")).encode(errors="surrogatepass")


def _decoded(block: bytes) -> Iterator[SpanRow]:
    try:
        return chain.from_iterable(_decoder.decode(block))
    except ValueError:
        return iter(())  # damage that SQLite does not see
