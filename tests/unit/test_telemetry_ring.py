"""The ring of spans in a SQLite file: order, bounds, damage."""

import asyncio
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from synchromesh.runtime import RealRuntime
from synchromesh.telemetry import SpanRow, SqliteRing
from synchromesh.telemetry.ring import BLOCK_SPANS
from synchromesh.testing import SimRuntime, run

TRACE = "0af7651916cd43dd8448eb211c80319c"


def row(number: int, kind: str = "call", trace_id: str = TRACE, name: str = "x") -> SpanRow:
    noted = {"n": str(number)}
    return trace_id, f"{number:016x}", "", "orders", kind, name, float(number), 5.0, "ok", noted, 1


def trace_of(number: int) -> str:
    return f"{number:032x}"


def test_a_trace_is_given_back_in_order_of_start_with_all_that_was_noted() -> None:
    """Spans end in another order than they start; they are read as they started."""

    async def main(runtime: SimRuntime) -> None:
        ring = SqliteRing("/spans.db", runtime)
        assert await ring.trace(TRACE) == []
        assert await ring.last_trace_id() is None
        for number in (4, 2, 3, 1):
            ring.add(row(number))
            ring.add(row(number, trace_id=trace_of(number)))
        spans = await ring.trace(TRACE)
        assert [span.started_us for span in spans] == [1, 2, 3, 4]
        first = spans[0]
        assert (first.span_id, first.parent_id, first.service) == (f"{1:016x}", "", "orders")
        assert (first.kind, first.name, first.took_us) == ("call", "x", 5)
        assert (first.status, first.attributes) == ("ok", {"n": "1"})
        await ring.close()

    run(main)


def test_whoever_reads_sees_what_was_added_before() -> None:
    """Nobody has to wait, or to flush, for what ended a moment ago."""

    async def main(runtime: SimRuntime) -> None:
        ring = SqliteRing("/spans.db", runtime, flush_s=3600.0)
        for number in range(3):
            ring.add(row(number, "client", trace_of(number)))
            assert await ring.last_trace_id() == trace_of(number)
            ring.add(row(9, "unit", trace_of(number)))
            assert len(await ring.trace(trace_of(number))) == 2
        assert await ring.last_trace_id() == trace_of(2)
        ring.add(row(9, "gateway", trace_of(7)))
        assert await ring.last_trace_id() == trace_of(7)
        await ring.close()

    run(main)


@pytest.mark.parametrize("wanted", ["", "\n", trace_of(1)[:-1], f"{trace_of(1)}\n{trace_of(2)}"])
def test_part_of_an_id_is_no_id(wanted: str) -> None:
    """A trace is found by its whole id, and by nothing that the index happens to hold."""

    async def main(runtime: SimRuntime) -> None:
        ring = SqliteRing("/spans.db", runtime)
        for number in (1, 2):
            ring.add(row(number, trace_id=trace_of(number)))
        assert await ring.trace(wanted) == []
        await ring.close()

    run(main)


def test_beyond_the_bound_the_oldest_blocks_are_forgotten() -> None:
    """At least the newest `spans_max` can be read, and at most a block more."""

    async def main(runtime: SimRuntime) -> None:
        ring = SqliteRing("/spans.db", runtime, spans_max=30)
        for number in range(100):
            ring.add(row(number))
            if number % 7 == 6:
                await ring.flush()
        kept = [span.started_us for span in await ring.trace(TRACE)]
        assert kept[-30:] == list(range(70, 100))
        assert 30 <= len(kept) < 30 + 7
        await ring.close()

    run(main)


def test_a_full_block_is_written_without_waiting_for_the_time() -> None:
    """Under load memory and the size of a row are bounded by count."""

    async def main(runtime: SimRuntime) -> list[int]:
        ring = SqliteRing("/spans.db", runtime, flush_s=3600.0)
        for number in range(2 * BLOCK_SPANS + 1):
            ring.add(row(number))
        await asyncio.sleep(10.0)
        rows = runtime.disk.connect("/spans.db").execute("select last from span_block").fetchall()
        assert [last for (last,) in rows] == [BLOCK_SPANS, 2 * BLOCK_SPANS]
        spans = await ring.trace(TRACE)
        assert [span.started_us for span in spans] == list(range(2 * BLOCK_SPANS + 1))
        await ring.close()
        return []

    run(main)


def test_spans_are_written_soon_without_being_asked_for() -> None:
    """A span can be read from the file a moment after it ended."""

    async def main(runtime: SimRuntime) -> None:
        ring, other = (SqliteRing("/spans.db", runtime, flush_s=0.05) for _ in range(2))
        ring.add(row(1))
        await asyncio.sleep(0.2)
        assert len(await other.trace(TRACE)) == 1
        await ring.close()
        await other.close()

    run(main)


def test_spans_beyond_what_may_wait_are_dropped_and_counted() -> None:
    """A burst costs bounded memory and never the request (T2)."""

    async def main(runtime: SimRuntime) -> None:
        ring = SqliteRing("/spans.db", runtime, pending_max=2)
        for number in range(5):
            ring.add(row(number))
        await ring.flush()
        assert ring.dropped == 3
        assert [span.started_us for span in await ring.trace(TRACE)] == [0, 1]
        ring.add(row(9))
        assert len(await ring.trace(TRACE)) == 3
        await ring.close()
        ring.add(row(10))
        await asyncio.sleep(1.0)
        assert ring.dropped == 4

    run(main)


def test_a_span_that_cannot_be_stored_takes_no_other_with_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Half a surrogate pair, as in the name of a file that is no UTF-8, costs its own span only."""

    async def main(runtime: SimRuntime) -> None:
        ring = SqliteRing("/spans.db", runtime)
        for number, name in enumerate(["a", "\udc80", "b"]):
            ring.add(row(number, name=name))
        assert [span.name for span in await ring.trace(TRACE)] == ["a", "b"]
        assert await ring.trace("\udc80") == []
        ring.add(row(4, name="\udc80"))
        await ring.flush()
        assert ring.dropped == 2
        await ring.close()

    run(main)
    assert caplog.records == []


@pytest.mark.anyio
async def test_a_ring_that_cannot_be_written_drops_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A broken disk of telemetry fails no request: spans are dropped, one warning is logged."""
    ring = SqliteRing(str(tmp_path / "missing" / "spans.db"), RealRuntime())
    for number in (1, 2):
        ring.add(row(number))
        assert await ring.trace(TRACE) == []
    assert await ring.last_trace_id() is None
    await ring.close()
    assert ring.dropped == 2
    assert [r.levelname for r in caplog.records] == ["WARNING"]


def test_a_ring_goes_on_once_it_can_be_written_again() -> None:
    """What fails for a while, for a lock of somebody else say, costs the spans of that while."""

    async def main(runtime: SimRuntime) -> None:
        ring = SqliteRing("/spans.db", runtime)
        other = runtime.disk.connect("/spans.db")
        for number in range(3):
            if number == 1:
                other.execute("begin immediate")
            ring.add(row(number))
            await ring.flush()
            if number == 1:
                other.execute("rollback")
        assert [span.started_us for span in await ring.trace(TRACE)] == [0, 2]
        assert ring.dropped == 1
        await ring.close()

    run(main)


@pytest.mark.anyio
@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("damage", ["cut", "overwritten", "empty log", "foreign log"])
async def test_a_ring_that_a_power_cut_damaged_begins_anew(
    tmp_path: Path, damage: str, reads: bool
) -> None:
    """What is left is set aside; only what was just being written to it is lost with it."""
    path = tmp_path / "spans.db"
    ring = SqliteRing(str(path), RealRuntime())
    for number in range(200):
        ring.add(row(number))
        if number % 10 == 0:
            await ring.flush()
    await ring.close()
    if damage == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "overwritten":
        path.write_bytes(b"dear diary, " * 1000)
    else:
        log = path.with_name("spans.db-wal")
        log.write_bytes(b"" if damage == "empty log" else b"dear diary, " * 1000)
    ring = SqliteRing(str(path), RealRuntime())
    if reads:
        assert isinstance(await ring.trace("a" * 32), list)
    for trace_id in ("a" * 32, "b" * 32):
        ring.add(row(1, trace_id=trace_id))
        await ring.flush()
    assert len(await ring.trace("b" * 32)) == 1
    await ring.close()
    is_damaged = damage in ("cut", "overwritten")
    assert path.with_name("spans.db.damaged").exists() == is_damaged
    assert ring.dropped == (is_damaged and not reads)


@pytest.mark.anyio
@pytest.mark.parametrize("damage", [b"", b"\xdc", b"\x91\x91\x01", b"\x91\x91\x9a\xa2\xff\xfe"])
async def test_damage_that_sqlite_does_not_see_costs_its_block(
    tmp_path: Path, damage: bytes
) -> None:
    """A block that is no block any more has no spans; its neighbours have theirs."""
    path = tmp_path / "spans.db"
    ring = SqliteRing(str(path), RealRuntime())
    for number in (1, 2, 3):
        ring.add(row(number))
        await ring.flush()
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("update span_block set spans = ? where last = 2", (damage,))
    connection.close()
    assert [span.started_us for span in await ring.trace(TRACE)] == [1, 3]
    await ring.close()


_KILLED = f"""
import asyncio, os, sys
from synchromesh.runtime import RealRuntime
from synchromesh.telemetry import SqliteRing

async def main():
    ring = SqliteRing(sys.argv[1], RealRuntime(), flush_s=3600.0)
    for number in range(3):
        spanned = "{TRACE}", "b" * 16, "", "orders", "call", "x", float(number), 5.0, "ok", None, 1
        ring.add(spanned)
        if number < 2:
            await ring.flush()
    os.kill(os.getpid(), 9)

asyncio.run(main())
"""


@pytest.mark.anyio
async def test_a_kill_costs_what_was_not_handed_over(tmp_path: Path) -> None:
    """What is written stays readable however the process ends, and the next one goes on behind."""
    path = tmp_path / "spans.db"
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    ring = SqliteRing(str(path), RealRuntime())
    assert [span.started_us for span in await ring.trace(TRACE)] == [0, 1]
    ring.add(row(7))
    assert [span.started_us for span in await ring.trace(TRACE)] == [0, 1, 7]
    await ring.close()


@pytest.mark.anyio
async def test_two_processes_may_write_while_one_succeeds_the_other(tmp_path: Path) -> None:
    """Neither takes a place in the ring that the other has."""
    path = str(tmp_path / "spans.db")
    rings = [SqliteRing(path, RealRuntime()) for _ in range(2)]
    for number in range(6):
        rings[number % 2].add(row(number))
        await rings[number % 2].flush()
    for ring in rings:
        assert [span.started_us for span in await ring.trace(TRACE)] == list(range(6))
        await ring.close()
    assert [ring.dropped for ring in rings] == [0, 0]
