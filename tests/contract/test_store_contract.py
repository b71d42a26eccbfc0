"""What every store promises: units of work, the inbox, reads, listeners (I1 to I4, P1)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest

from synchromesh.errors import (
    ConstraintFailed,
    ContractError,
    Fenced,
    ForeignAwait,
    KeyReused,
    KeyUndone,
    Rejection,
    StatementFailed,
    StoreBroken,
)
from synchromesh.store import (
    InboxState,
    Migration,
    Once,
    Recorded,
    Schema,
    SqliteStore,
    Store,
    Unit,
    in_unit,
    inbox,
    refuse_in_unit,
)

pytestmark = pytest.mark.anyio

STOCK = Schema("stock", (Migration(1, ("create table stock(sku text primary key, n bigint)",), 1),))
ONCE = Once("orders", "k-1", "d-1")


class OutOfStock(Rejection, code="out_of_stock"):
    """Tells that too few are left."""


@pytest.fixture
async def store(stores: Any) -> Store:
    opened: Store = await stores.open([STOCK])

    async def fill(unit: Unit) -> None:
        await unit.execute("insert into stock(sku, n) values (?, ?)", "a", 10)

    await opened.write(fill, name="fill")
    return opened


def take(n: int, *, ran: list[int] | None = None) -> Callable[[Unit], Awaitable[bytes]]:
    async def body(unit: Unit) -> bytes:
        if ran is not None:
            ran.append(n)
        await unit.execute("update stock set n = n - ? where sku = 'a'", n)
        rows = await unit.execute("select n from stock where sku = 'a'")
        left = int(rows[0][0] or 0)
        if left < 0:
            raise OutOfStock("too few", left=left + n)
        return str(left).encode()

    return body


async def left(store: Store) -> object:
    return (await store.read("select n from stock where sku = 'a'"))[0][0]


async def test_what_a_unit_wrote_is_there_once_it_is_answered(store: Store) -> None:
    """The result comes after the commit, and reads see it."""
    assert await store.write(take(3), name="take") == b"7"
    assert await left(store) == 7


async def test_a_unit_that_raises_has_written_nothing(store: Store) -> None:
    """All of a unit or nothing (I1), and the caller gets the very error."""
    boom = ValueError("boom")

    async def body(unit: Unit) -> None:
        await unit.execute("update stock set n = 0")
        raise boom

    with pytest.raises(ValueError, match="boom") as caught:
        await store.write(body, name="boom")
    assert caught.value is boom
    assert await left(store) == 10


async def test_concurrent_units_are_as_if_one_after_the_other(store: Store) -> None:
    """64 read-modify-write units lose no update (I1)."""

    async def add(unit: Unit) -> None:
        n = (await unit.execute("select n from stock where sku = 'a'"))[0][0]
        await unit.execute("update stock set n = ? where sku = 'a'", int(n or 0) + 1)

    await asyncio.gather(*(store.write(add, name="add") for _ in range(64)))
    assert await left(store) == 74


async def test_units_that_fail_leave_the_others_alone(store: Store) -> None:
    """Of 32 units asked for at once those that break a constraint fail, the others stand (I4)."""

    async def insert(unit: Unit, sku: str) -> str:
        await unit.execute("insert into stock(sku, n) values (?, 1)", sku)
        return sku

    def body(sku: str) -> Callable[[Unit], Awaitable[str]]:
        return lambda unit: insert(unit, sku)

    wanted = [f"s{number % 24}" for number in range(32)]
    got = await asyncio.gather(
        *(store.write(body(sku), name="insert") for sku in wanted), return_exceptions=True
    )
    assert sorted(each for each in got if isinstance(each, str)) == sorted(set(wanted))
    assert [type(each) for each in got if not isinstance(each, str)] == [ConstraintFailed] * 8
    assert await store.read("select count(*) from stock") == [(25,)]


async def test_one_statement_runs_for_many_rows(store: Store) -> None:
    """In the order of the rows, within the unit; it is checked as any other is."""

    async def insert(more: Any, unit: Unit) -> list[Any]:
        rows = [("b", 1), ("c", 2), more]
        await unit.execute_many("insert into stock(sku, n) values (?, ?)", rows)
        return await unit.execute("select sku, n from stock order by sku")

    inserted = await store.write(partial(insert, ("d", None)), name="insert")
    assert inserted == [("a", 10), ("b", 1), ("c", 2), ("d", None)]
    await store.write(lambda unit: unit.execute("delete from stock where sku > 'a'"), name="delete")
    refused: list[tuple[Any, type[Exception], str]] = [
        (("a", 1), ConstraintFailed, "stock.sku"),
        (("d", float("nan")), StatementFailed, "value 2 is NaN"),
        (("d", 2**63), StatementFailed, "value 2 is a whole number"),
        (("\ud800", 1), StatementFailed, "value 1 is a text with a lone surrogate"),
    ]
    for row, error, words in refused:
        with pytest.raises(error, match=words):
            await store.write(partial(insert, row), name="insert")
    with pytest.raises(StatementFailed, match="steers the engine"):
        await store.write(lambda unit: unit.execute_many("commit", [()]), name="steer")
    assert await store.read("select sku, n from stock") == [("a", 10)]


async def test_a_broken_constraint_can_be_caught_within_the_unit(store: Store) -> None:
    """Only the statement is undone; its error shows no value."""

    async def body(unit: Unit) -> str:
        await unit.execute("update stock set n = 5")
        try:
            await unit.execute("insert into stock(sku, n) values ('a', 987654)")
        except ConstraintFailed as error:
            return error.message
        return ""

    message = await store.write(body, name="caught")
    assert "stock.sku" in message
    assert "insert into stock" in message
    assert "987654" not in message
    assert await left(store) == 5


async def _sleep(unit: Unit) -> None:
    await unit.execute("update stock set n = 0")
    await asyncio.sleep(1)


async def _pause(unit: Unit) -> None:
    await unit.execute("update stock set n = 0")
    await asyncio.sleep(0)


async def _stubborn(unit: Unit) -> None:
    try:
        await _pause(unit)
    finally:
        await asyncio.sleep(0)


async def _future(unit: Unit) -> None:
    await unit.execute("update stock set n = 0")
    await asyncio.get_running_loop().create_future()


@pytest.mark.parametrize("body", [_sleep, _pause, _stubborn, _future])
async def test_a_unit_may_await_nothing_but_itself(
    store: Store, body: Callable[[Unit], Awaitable[None]]
) -> None:
    """Anything else is refused, named, and rolled back (I2); the store goes on."""
    with pytest.raises(ForeignAwait, match=rf"'guilty' \({body.__name__}\)"):
        await store.write(body, name="guilty")
    assert await left(store) == 10
    assert await store.write(take(1), name="take") == b"9"


async def test_a_unit_cannot_write_or_read_outside_of_itself(store: Store) -> None:
    """A nested write, a read beside the unit, and whatever a room guards are refused (I2)."""

    async def write(unit: Unit) -> None:
        await store.write(take(1), name="inner")

    async def write_once(unit: Unit) -> None:
        await store.write_once(take(1), ONCE, name="inner")

    async def read(unit: Unit) -> None:
        await store.read("select 1")

    async def call(unit: Unit) -> None:
        assert in_unit.get() == "outer"
        refuse_in_unit("a call")

    for body in (write, write_once, read, call):
        with pytest.raises(ForeignAwait, match="unit 'outer' tried"):
            await store.write(body, name="outer")
    assert in_unit.get() is None
    assert await left(store) == 10


async def test_a_unit_is_of_no_use_after_its_end(store: Store) -> None:
    """A unit that escaped from its body is refused."""
    escaped: list[Unit] = []

    async def body(unit: Unit) -> None:
        escaped.append(unit)

    await store.write(body, name="leak")
    with pytest.raises(ForeignAwait, match="is over"):
        await escaped[0].execute("update stock set n = 0")
    with pytest.raises(ForeignAwait, match="is over"):
        await escaped[0].execute_many("update stock set n = ?", [(0,)])


async def test_a_unit_runs_in_its_submitters_context(store: Store) -> None:
    """Trace and principal are there inside, and what it sets stays inside."""
    trace: ContextVar[str] = ContextVar("trace", default="none")
    trace.set("t-1")

    async def body(unit: Unit) -> str:
        seen = trace.get()
        trace.set("changed")
        return seen

    assert await store.write(body, name="context") == "t-1"
    assert trace.get() == "t-1"


async def test_a_unit_knows_its_id_time_and_service(store: Store) -> None:
    """Ids differ from unit to unit; the time is the wall clock's."""
    seen: list[tuple[str, int, str]] = []

    async def body(unit: Unit) -> None:
        seen.append((unit.unit_id, unit.now_us, unit.service))

    await store.write(body, name="first")
    await store.write(body, name="second")
    assert seen[0][0] < seen[1][0]
    assert seen[0][1] <= seen[1][1]
    assert {service for _, _, service in seen} == {"shop"} == {store.service}


@pytest.mark.parametrize(
    "sql",
    [
        "commit",
        " /* now */ -- and here\n ROLLBACK",
        "savepoint x",
        "attach ':memory:' as other",
        "pragma query_only = 0",
        "vacuum into '/tmp/copy.db'",
        "; begin",
        "\ufeffcommit",
        "/* a */ commit /* b */",
    ],
)
async def test_what_steers_the_engine_is_refused(store: Store, sql: str) -> None:
    """Transactions, other files and settings are the store's own (P1), in units and reads."""

    async def body(unit: Unit) -> None:
        await unit.execute("update stock set n = 0")
        await unit.execute(sql)

    with pytest.raises(StatementFailed, match="steers the engine"):
        await store.write(body, name="steer")
    with pytest.raises(StatementFailed, match="steers the engine"):
        await store.read(sql)
    assert await left(store) == 10


async def test_a_bad_statement_is_named_without_its_values(store: Store) -> None:
    """The engine's words and the statement's beginning; no literal, no bound value."""

    async def body(unit: Unit) -> None:
        await unit.execute("insert into nowhere values ('secret', ?)", "hidden")

    with pytest.raises(StatementFailed, match=r"insert into nowhere") as caught:
        await store.write(body, name="bad")
    assert "secret" not in caught.value.message
    assert "hidden" not in caught.value.message
    with pytest.raises(StatementFailed, match="select n from nowhere"):
        await store.read("select n from nowhere")


@pytest.mark.parametrize(
    ("sql", "values", "words"),
    [
        ("selct 1", (), "syntax error"),
        ("select n from stok", (), 'no such table: stok|"stok" does not exist'),
        ("select qty from stock", (), 'no such column: qty|"qty" does not exist'),
        ("insert into stock(sku, m) values ('x', 1)", (), 'no column named m|column "m"'),
        ("insert into stock values ('x', 1, 2)", (), "has 2 columns but 3 values|more expressions"),
        ("select unknown(1)", (), "no such function: unknown|function unknown"),
        ("select ? + ?", (1,), "bindings"),
        ("select 1", (1,), "bindings"),
        ("select abs(-9223372036854775807 - 1)", (), "overflow|out of range"),
    ],
)
async def test_a_wrong_statement_is_no_fault_of_the_database(
    store: Store, sql: str, values: tuple[Any, ...], words: str
) -> None:
    """The engine's words, the statement and the line that ran it; no advice to restore a backup."""

    async def body(unit: Unit) -> None:
        await unit.execute("update stock set n = 0")
        await unit.execute(sql, *values)

    for ask in (lambda: store.write(body, name="wrong"), lambda: store.read(sql, *values)):
        with pytest.raises(StatementFailed) as caught:
            await ask()
        said = caught.value.message
        assert re.search(words, said)
        assert " ".join(sql.split()[:1]) in said
        assert "test_store_contract.py" in said
        assert "backup" not in said
    assert await left(store) == 10
    assert await store.write(take(1), name="take") == b"9"


async def test_what_the_data_breaks_is_told_with_its_place(store: Store) -> None:
    """Unique, not null, a check, a foreign key and a type each refuse the unit, not the store."""
    strict = "strict" if isinstance(store, SqliteStore) else ""
    tables = (
        "create table p(id integer primary key, n integer not null check (n > 0))",
        "create table c(p integer references p(id))",
        f"create table s(n integer) {strict}",
        "insert into p values (1, 1)",
    )

    async def prepare(unit: Unit) -> None:
        for each in tables:
            await unit.execute(each)

    await store.write(prepare, name="prepare")
    for sql in (
        "insert into p values (1, 1)",
        "insert into p values (2, null)",
        "insert into p values (2, 0)",
        "insert into p values ('two', 1)",
        "insert into c values (7)",
        "insert into s values ('text')",
    ):

        async def body(unit: Unit, sql: str = sql) -> None:
            await unit.execute(sql)

        with pytest.raises(ConstraintFailed, match=r"nothing was written") as caught:
            await store.write(body, name="insert")
        assert "test_store_contract.py" in caught.value.message
        assert "'" not in caught.value.message.partition("(in: ")[2]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (float("nan"), "value 2 is NaN"),
        (2**63, "value 2 is a whole number of more than 64 bits"),
        (-(2**63) - 1, "value 2 is a whole number of more than 64 bits"),
        ("secret \ud800", "value 2 is a text with a lone surrogate"),
        (object(), "parameter 2"),
    ],
)
async def test_a_value_that_cannot_be_kept_as_it_is_is_refused(
    store: Store, value: Any, words: str
) -> None:
    """Neither stored as another value nor an error of the driver; its place is told, not it."""

    async def body(unit: Unit) -> None:
        await unit.execute("update stock set n = 0")
        await unit.execute("insert into stock(sku, n) values (?, ?)", "b", value)

    with pytest.raises(StatementFailed, match=words) as caught:
        await store.write(body, name="insert")
    assert "insert into stock" in caught.value.message
    assert "secret" not in caught.value.message
    assert str(2**63) not in caught.value.message
    assert await left(store) == 10

    async def many(unit: Unit) -> None:
        await unit.execute_many(
            "insert into stock(sku, n) values (?, ?)", [("c", 1), ("d", value), ("e", 2)]
        )

    with pytest.raises(StatementFailed, match=words) as caught:
        await store.write(many, name="insert")
    assert "secret" not in caught.value.message
    assert await store.read("select sku from stock") == [("a",)]
    with pytest.raises(StatementFailed, match=words):
        await store.read("select ?, ?", 1, value)
    with pytest.raises(StatementFailed, match="lone surrogate"):
        await store.read("select 'secret \ud800'")


async def test_a_statement_for_many_rows_writes_all_of_them_in_order(store: Store) -> None:
    """Each sees those before it; one that is refused is the unit's error like any other."""

    async def fill(unit: Unit) -> None:
        rows = [("b", "a"), ("c", "b")]
        await unit.execute_many(
            "insert into stock(sku, n) values (?, (select n + 1 from stock where sku = ?))", rows
        )
        await unit.execute_many("delete from stock where sku = ?", [])

    await store.write(fill, name="fill")
    assert await store.read("select sku, n from stock") == [("a", 10), ("b", 11), ("c", 12)]

    async def clash(unit: Unit) -> None:
        rows = [("d",), ("a",), ("e",)]
        await unit.execute_many("insert into stock(sku) values (?)", rows)

    async def steer(unit: Unit) -> None:
        await unit.execute_many("commit", [()])

    with pytest.raises(ConstraintFailed, match="insert into stock"):
        await store.write(clash, name="clash")
    with pytest.raises(StatementFailed, match="the store's own"):
        await store.write(steer, name="steer")
    assert len(await store.read("select sku from stock")) == 3


async def test_the_outermost_values_are_kept(store: Store) -> None:
    """64 bits, the infinities and Unicode texts come back as they were given."""
    numbers = (2**63 - 1, -(2**63), float("inf"), float("-inf"), True)
    for value in (*numbers, "π 🙂 \x01", b"\x00", None):
        assert await store.read("select ?", value) == [(value,)]


async def test_a_text_with_a_nul_is_kept_or_refused(store: Store) -> None:
    """Never cut short: PostgreSQL cannot hold it, and says so."""
    if isinstance(store, SqliteStore):
        assert await store.read("select ?", "a\0b") == [("a\0b",)]
        return
    with pytest.raises(StatementFailed, match="value 1 is a text with a NUL character") as caught:
        await store.read("select ?", "a\0b")
    assert "\0" not in caught.value.message


async def test_a_body_that_is_not_async_is_named(store: Store) -> None:
    """A plain function is told to be one, and nothing of it is kept; the store goes on."""

    def plain(unit: Unit) -> Any:
        unit.notify("nothing")

    with pytest.raises(ContractError, match=r"'guilty' \(.*plain\) returned NoneType.* async def"):
        await store.write(plain, name="guilty")
    assert await store.write(take(1), name="take") == b"9"


async def test_two_statements_in_one_are_refused(store: Store) -> None:
    """One execute is one statement."""

    async def body(unit: Unit) -> None:
        await unit.execute("update stock set n = 0; update stock set n = 1")

    with pytest.raises(StatementFailed, match="one statement"):
        await store.write(body, name="two")
    assert await left(store) == 10


async def test_reads_cannot_write(store: Store) -> None:
    """A read runs on a connection that only reads."""
    with pytest.raises(StatementFailed, match="run it in a unit"):
        await store.read("update stock set n = 0")
    assert await left(store) == 10


async def test_a_cancelled_caller_does_not_cancel_the_unit(stores: Any, store: Store) -> None:
    """The unit commits on its own; nobody waits for it."""
    waiting = asyncio.ensure_future(store.write(take(4), name="take"))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await store.close()
    assert await left(await stores.open([STOCK])) == 6


async def test_listeners_hear_of_commits_only(store: Store) -> None:
    """A rollback and a rejection are silent, a commit is heard once a unit's topics are durable."""
    heard: list[object] = []
    stop = store.listen("stock", lambda: heard.append("stock"))
    stop_bad = store.listen("stock", lambda: heard.append(1 / 0))
    store.listen("other", lambda: heard.append("other"))

    async def tell(unit: Unit, *, error: Exception | None) -> bytes:
        unit.notify("stock")
        if error is not None:
            raise error
        return b""

    with pytest.raises(ValueError, match="boom"):
        await store.write(lambda unit: tell(unit, error=ValueError("boom")), name="boom")
    await store.write_once(lambda unit: tell(unit, error=OutOfStock()), ONCE, name="refused")
    assert heard == []
    await store.write(lambda unit: tell(unit, error=None), name="tell")
    await asyncio.sleep(0)
    assert heard == ["stock"]
    stop()
    stop()
    stop_bad()
    await store.write(lambda unit: tell(unit, error=None), name="tell")
    assert heard == ["stock"]


async def test_an_answer_is_recorded_and_replayed(store: Store) -> None:
    """Under one key a unit takes effect once; the second asker gets the record."""
    ran: list[int] = []
    first = await store.write_once(take(3, ran=ran), ONCE, name="take")
    second = await store.write_once(take(3, ran=ran), ONCE, name="take")
    assert first == second == Recorded(InboxState.ANSWER, "d-1", b"7")
    assert ran == [3]
    assert await left(store) == 7


async def test_two_at_once_under_one_key_take_effect_once(store: Store) -> None:
    """Units of one group see each other's records."""
    ran: list[int] = []
    got = await asyncio.gather(
        *(store.write_once(take(2, ran=ran), ONCE, name="take") for _ in range(16))
    )
    assert set(got) == {Recorded(InboxState.ANSWER, "d-1", b"8")}
    assert ran == [2]


async def test_a_rejection_is_recorded_without_its_effects(store: Store) -> None:
    """A business no rolls back what it did, stays no, and is not asked again."""
    ran: list[int] = []
    first = await store.write_once(take(11, ran=ran), ONCE, name="take")
    assert first.kind is InboxState.REJECTION
    assert b'"code":"out_of_stock"' in first.body
    assert b'"left":10' in first.body
    assert await store.write_once(take(11, ran=ran), ONCE, name="take") == first
    assert ran == [11]
    assert await left(store) == 10


async def test_an_error_is_not_recorded(store: Store) -> None:
    """After a fault the same key runs again."""

    async def boom(unit: Unit) -> bytes:
        await unit.execute("update stock set n = 0")
        raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        await store.write_once(boom, ONCE, name="boom")
    assert (await store.write_once(take(1), ONCE, name="take")).body == b"9"


async def test_a_key_with_another_input_is_refused(store: Store) -> None:
    """A key stands for one input."""
    await store.write_once(take(1), ONCE, name="take")
    with pytest.raises(KeyReused, match="another input"):
        await store.write_once(take(2), Once("orders", "k-1", "d-2"), name="take")
    assert (await store.write_once(take(2), Once("billing", "k-1", "d-2"), name="t")).body == b"7"
    assert await left(store) == 7


async def test_an_undone_key_never_runs(store: Store) -> None:
    """Where nothing is recorded an undo leaves a tombstone, which the late call gets (S7)."""
    ran: list[int] = []
    await store.write(lambda unit: inbox.write_tombstone(unit, "orders", "k-1", 60.0), name="undo")
    late = await store.write_once(take(1, ran=ran), ONCE, name="take")
    assert late.kind is InboxState.TOMBSTONE
    assert ran == []
    with pytest.raises(KeyUndone):
        await store.write(
            lambda unit: inbox.begin(unit, "orders", "k-1", "d-1", b"{}", 60.0), name="begin"
        )


async def test_a_tombstone_replaces_no_record(store: Store) -> None:
    """A tombstone never replaces an answer."""
    await store.write_once(take(1), ONCE, name="take")
    await store.write(lambda unit: inbox.write_tombstone(unit, "orders", "k-1", 60.0), name="undo")
    assert (await store.write_once(take(1), ONCE, name="take")).kind is InboxState.ANSWER


async def test_a_call_that_has_begun_is_concluded_under_its_key(store: Store) -> None:
    """BEGUN keeps the request, may be repeated, and gives way to the conclusion; then it fences."""

    async def begin(unit: Unit, digest: str = "d-1") -> Recorded | None:
        await inbox.begin(unit, "orders", "k-1", digest, b'{"n":1}', 60.0)
        return await inbox.look_up(unit, "orders", "k-1")

    for _ in range(2):
        assert await store.write(begin, name="begin") == Recorded(
            InboxState.BEGUN, "d-1", b'{"n":1}'
        )
    with pytest.raises(KeyReused):
        await store.write(lambda unit: begin(unit, "d-2"), name="begin")
    assert (await store.write_once(take(1), ONCE, name="conclude")).kind is InboxState.ANSWER
    with pytest.raises(Fenced, match="concluded by another run"):
        await store.write(begin, name="begin")


async def test_the_inbox_forgets_in_bounded_batches_when_time_is_over(store: Store) -> None:
    """Only what expired while the service ran goes, at most `rows_max` at once."""

    async def fill(unit: Unit) -> None:
        for number in range(5):
            await inbox.write_tombstone(unit, "orders", f"old-{number}", -1000.0)
        await inbox.write_tombstone(unit, "orders", "young", 60.0)

    async def sweep(ran_s: float) -> int:
        return await store.write(
            lambda unit: inbox.sweep(unit, ran_s=ran_s, keep_s=60.0, rows_max=3), name="sweep"
        )

    await set_horizon(store, await store.write(_now_us, name="now") - 2_000_000_000)
    await store.write(fill, name="fill")
    assert await sweep(60.0) == 0, "long over by the wall clock, and nobody saw that go by"
    assert [await sweep(1000.0) for _ in range(3)] == [3, 2, 0]
    assert await store.read("select key from sm_inbox") == [("young",)]


async def test_a_record_that_was_written_under_a_clock_set_back_is_kept_for_its_time(
    store: Store,
) -> None:
    """What lies behind the horizon is not over: it was never seen to expire."""
    await set_horizon(store, await store.write(_now_us, name="now"))

    async def fill(unit: Unit) -> None:
        for number in range(5):
            await inbox.write_tombstone(unit, "orders", f"back-{number}", -3600.0)

    async def sweep(_: int) -> int:
        return await store.write(
            lambda unit: inbox.sweep(unit, ran_s=1.0, keep_s=60.0, rows_max=3), name="sweep"
        )

    await store.write(fill, name="fill")
    assert [await sweep(n) for n in range(2)] == [3, 0]
    ((first_us,),) = await store.read("select min(expires_us) from sm_inbox")
    assert isinstance(first_us, int)
    assert first_us > await store.write(_now_us, name="now") + 60_000_000


async def test_a_record_is_kept_for_its_time_and_a_tenth_more(store: Store) -> None:
    """It may be an answer, a rejection, or what its undo left: who asks in time finds it (S6)."""
    day_s, kept_us = 86_400.0, 95_040_000_000
    began_us = await store.write(_now_us, name="now")

    async def refuse(unit: Unit) -> bytes:
        raise OutOfStock("none left")

    for key, body in (("taken", take(1)), ("refused", refuse)):
        await store.write_once(body, Once("orders", key, "d", day_s), name=key)
    await store.write(
        lambda unit: inbox.write_tombstone(unit, "orders", "undone", day_s), name="undo"
    )
    ended_us = await store.write(_now_us, name="now")
    rows = await store.read("select key, expires_us from sm_inbox order by key")
    assert [key for key, _ in rows] == ["refused", "taken", "undone"]
    for _, expires_us in rows:
        assert isinstance(expires_us, int)
        assert began_us + kept_us <= expires_us <= ended_us + kept_us


async def _now_us(unit: Unit) -> int:
    return unit.now_us


async def set_horizon(store: Store, at_us: int) -> None:
    async def body(unit: Unit) -> None:
        await unit.execute(
            "insert into sm_meta(name, value) values ('inbox_horizon_us', ?) on conflict(name) "
            "do update set value = excluded.value",
            str(at_us),
        )

    await store.write(body, name="set the horizon")


async def test_closing_finishes_what_is_queued_and_refuses_the_rest(store: Store) -> None:
    """Nothing that was accepted is lost; closing twice is fine."""
    waiting = [asyncio.ensure_future(store.write(take(1), name="take")) for _ in range(3)]
    await asyncio.sleep(0)
    await store.close()
    assert sorted(await asyncio.gather(*waiting)) == [b"7", b"8", b"9"]
    await store.close()
    with pytest.raises(StoreBroken, match="closed"):
        await store.write(take(1), name="late")
    with pytest.raises(StoreBroken, match="closed"):
        await store.read("select 1")


async def test_a_database_keeps_its_rows_and_its_log_id(stores: Any, store: Store) -> None:
    """Opened again it is the same; another service's is another."""
    await store.write(take(1), name="take")
    await store.close()
    again = await stores.open([STOCK])
    other = await stores.open([STOCK], service="other")
    assert await left(again) == 9
    assert again.log_id == store.log_id != other.log_id
