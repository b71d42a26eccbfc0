"""A bounded ring of spans in a SQLite file, written beside the work and never in its way."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Sequence

import msgspec

from synchromesh.runtime import Runtime, Worker
from synchromesh.telemetry.span import SpanRecord, SpanRow, to_record

SCHEMA_SQL = (
    "create table if not exists span("
    "id integer primary key, trace_id text not null, span_id text not null, "
    "parent_id text not null, service text not null, kind text not null, name text not null, "
    "started_us integer not null, took_us integer not null, status text not null, "
    "attributes text not null)"
)
_COLUMNS = (
    "trace_id, span_id, parent_id, service, kind, name, started_us, took_us, status, attributes"
)
_INSERT = f"insert into span({_COLUMNS}) values(?,?,?,?,?,?,?,?,?,?)"

_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

_log = logging.getLogger("synchromesh.telemetry")


class SqliteRing:
    """Keeps the newest spans in a file, across restarts and kills.

    Spans are handed over in batches, at the latest `flush_s` after they ended; what a killed
    process had not handed over is lost, as is what comes while `pending_max` wait: best effort. A
    file that a power cut has damaged is set aside, and another begun.
    """

    def __init__(
        self,
        path: str,
        runtime: Runtime,
        *,
        spans_max: int = 200_000,
        flush_s: float = 0.05,
        pending_max: int = 20_000,
    ) -> None:
        self._path = path
        self._disk = runtime.disk
        self._spans_max = spans_max
        self._flush_s = flush_s
        self._pending_max = pending_max
        self._pending: list[SpanRecord] = []
        self._timer: asyncio.TimerHandle | None = None
        self._writer: sqlite3.Connection | None = None
        self._is_writing = False
        self._has_failed = False
        self._idle = asyncio.Event()
        self._idle.set()
        self.dropped = 0
        self._lane: Worker[list[SpanRecord]] = runtime.worker("synchromesh-spans", self._write)

    def add(self, span: SpanRow) -> None:
        """Take a record, or drop it where too many wait."""
        if len(self._pending) >= self._pending_max:
            self.dropped += 1
            return
        self._pending.append(to_record(span))
        if self._timer is None and not self._is_writing:
            self._timer = asyncio.get_running_loop().call_later(self._flush_s, self._flush)

    async def flush(self) -> None:
        """Wait until everything taken so far can be read."""
        self._flush()
        while self._is_writing or self._pending:
            await self._idle.wait()
            self._flush()

    def trace(self, trace_id: str) -> list[SpanRecord]:
        """Return the spans of a trace, in order of their start."""
        where = "where trace_id = ? order by started_us, id"
        return self._read(f"select {_COLUMNS} from span {where}", trace_id)

    def last_trace_id(self, kind: str = "client") -> str | None:
        """Return the trace of the newest span of a kind."""
        rows = self._read(
            f"select {_COLUMNS} from span where kind = ? order by id desc limit 1", kind
        )
        return rows[0].trace_id if rows else None

    async def close(self) -> None:
        """Write what waits, and end."""
        await self.flush()
        await self._lane.close()
        if self._writer is not None:
            self._writer.close()

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._pending and not self._is_writing:
            batch, self._pending = self._pending, []
            self._is_writing = True
            self._idle.clear()
            self._lane.put(batch)

    def _write(self, batches: list[list[SpanRecord]]) -> Callable[[], None]:
        failure: sqlite3.Error | None = None
        try:
            if self._writer is None:
                self._writer = self._open()
            self._writer.execute("begin immediate")
            for batch in batches:
                self._writer.executemany(_INSERT, [_to_row(record) for record in batch])
            self._writer.execute(
                "delete from span where id <= (select max(id) from span) - ?", (self._spans_max,)
            )
            self._writer.execute("commit")
        except sqlite3.Error as error:
            failure = error
            if self._writer is not None and self._writer.in_transaction:
                self._writer.execute("rollback")
            if error.sqlite_errorcode & 0xFF in _DAMAGED:
                self._begin_anew()
        return lambda: self._written(sum(map(len, batches)), failure)

    def _begin_anew(self) -> None:
        """Leave a damaged file; what waited to be written to it is lost, what comes next is not."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._disk.quarantine(self._path)

    def _written(self, count: int, failure: sqlite3.Error | None) -> None:
        self._is_writing = False
        self._idle.set()
        if failure is not None:
            self.dropped += count
            if not self._has_failed:
                _log.warning("spans cannot be written to %s: %s", self._path, failure)
            self._has_failed = True
        if self._pending and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._flush_s, self._flush)

    def _open(self) -> sqlite3.Connection:
        connection = self._disk.connect(self._path)
        try:
            connection.execute("pragma journal_mode=wal")
            # Spans may be lost with the power; they must never cost a disk flush.
            connection.execute("pragma synchronous=normal")
            connection.execute(SCHEMA_SQL)
            connection.execute("create index if not exists span_by_trace on span(trace_id)")
            connection.execute("create index if not exists span_by_kind on span(kind, id)")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _read(self, sql: str, *values: str) -> list[SpanRecord]:
        try:
            connection = self._disk.connect(self._path, read_only=True)
        except sqlite3.Error:
            return []  # nothing has been written yet
        try:
            return [_from_row(row) for row in connection.execute(sql, values).fetchall()]
        except sqlite3.DatabaseError:
            return []  # nor is there anything to read in one that is damaged
        finally:
            connection.close()


def _to_row(record: SpanRecord) -> Sequence[str | int]:
    *plain, attributes = msgspec.structs.astuple(record)
    return [*plain, msgspec.json.encode(attributes).decode()]


def _from_row(row: tuple[str | int, ...]) -> SpanRecord:
    plain = (*row[:-1], msgspec.json.decode(str(row[-1])))
    return msgspec.convert(dict(zip(SpanRecord.__struct_fields__, plain, strict=True)), SpanRecord)
