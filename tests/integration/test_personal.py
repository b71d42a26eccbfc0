"""Personal data at rest: sealed in each place that keeps it, and erased with its subject's key."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from persons_app import (
    Address,
    Card,
    Confirmed,
    Customers,
    Letter,
    Post,
    Register,
    Registered,
    customers,
    failing,
    post,
    seen_by_handlers,
)
from synchromesh import Migration, Saga, Service
from synchromesh.codec import encode
from synchromesh.context import CallContext
from synchromesh.errors import KeyReused, PersonalUnreadable
from synchromesh.personal import Erased
from synchromesh.personal_types import personal_fields
from synchromesh.runtime import RealRuntime
from synchromesh.saga.forgetting import archive_lines
from synchromesh.saga.records import RepairVerb
from synchromesh.saga.repair import RepairWish
from synchromesh.service.erasure import erase, give_up_keys
from synchromesh.store import Unit
from synchromesh.testing.serving import InProcess

pytestmark = pytest.mark.anyio

waiting = Service("hearing", migrations=[Migration(1, ("create table heard(id text)",), 1)])
CANARY = b"canary@example.org"
EMAIL, STREET = CANARY.decode(), f"{CANARY.decode()} street"
ANNA = Register("c-17", EMAIL, Address(STREET, "Ulm"))
WITHIN_S = 30.0


@pytest.fixture(autouse=True)
def _fresh() -> None:
    failing.clear()
    seen_by_handlers.clear()


@asynccontextmanager
async def shop(folder: Path, *names: str) -> AsyncIterator[InProcess]:
    served = InProcess(RealRuntime(), [customers, post], folder=str(folder))
    try:
        await served.start(*(names or ("customers", "post")))
        yield served
    finally:
        await served.stop(*reversed(list(served.up)))


async def until(what: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not await what():
            await asyncio.sleep(0.01)


def found_in(folder: Path, what: bytes = CANARY) -> list[str]:
    """Return the files below a folder that hold something, as they are on the disk."""
    files = [each for each in folder.rglob("*") if each.is_file()]
    assert files
    return [each.name for each in files if what in each.read_bytes()]


def erase_everywhere(served: InProcess, subject: str = "c-17") -> list[str]:
    now_us = served.runtime.wall_us()
    return [
        erase(each.store, subject, now_us=now_us, who="ina", why="asked to").was
        for each in served.up.values()
    ]


def by_subject() -> list[object]:
    """Return what handlers saw; messages of two keys come in any order."""
    return sorted(seen_by_handlers, key=lambda each: str(getattr(each, "customer_id", "")))


async def sent(served: InProcess) -> list[str]:
    return await served.call(Post.sent())


async def test_what_is_personal_is_never_written_in_the_plain(tmp_path: Path) -> None:
    """Events, snapshots, messages, requests, answers and saga records hold no personal byte."""
    failing.add("c-18")
    async with shop(tmp_path) as served:
        assert await served.call(Customers.register(ANNA), key="k1") == Card("c-17", EMAIL, 0)
        for visits in range(4):  # a snapshot is taken on the way
            assert await served.call(Customers.visit("c-17")) == Card("c-17", EMAIL, visits)
        await served.call(Customers.change("c-17", f"{EMAIL}.new"), key="k2")
        await served.call(Customers.welcome(ANNA), key="k3")
        await served.call(Customers.register(Register("c-18", EMAIL)))

        async def is_settled() -> bool:
            aside = await served.up["post"].store.read("select state from sm_parked")
            return aside == [("parked",)] and len(await sent(served)) == 2

        await until(is_settled)
        assert seen_by_handlers == [Registered("c-17", EMAIL, Address(STREET, "Ulm"))]
        sealed, expected = {}, {}
        for service, table, column, count in (
            ("customers", "sm_event", "body", 6),
            ("customers", "sm_snapshot", "state", 1),
            ("customers", "sm_inbox", "body", 9),
            ("customers", "sm_saga", "input", 1),
            ("customers", "sm_saga_record", "body", 2),
            ("post", "sm_parked", "payload", 1),
            ("post", "sm_inbox", "body", 2),
        ):
            rows = await served.up[service].store.read(
                f"select count(*) from {table} where instr(cast({column} as text), '$personal')"
            )
            sealed[f"{service}.{table}"] = rows[0][0]
            expected[f"{service}.{table}"] = count
        assert sealed == expected
        lines = await archive_lines(served.up["customers"].store, "welcome-c-17")
        assert b"$personal" in lines[0]
        assert CANARY not in b"".join(lines)
        assert found_in(tmp_path) == []
        assert found_in(tmp_path, b"c-17")  # the files are read, and the subject is no secret
    assert found_in(tmp_path) == []


async def test_after_an_erasure_every_reader_sees_erased(tmp_path: Path) -> None:
    """Streams, snapshots, recorded answers and a rebuilt projection tell of somebody erased."""
    async with shop(tmp_path) as served:
        await served.call(Customers.register(ANNA), key="k1")
        await served.call(Customers.change("c-17", EMAIL), key="k2")
        for _ in range(4):
            await served.call(Customers.visit("c-17"))

        async def is_projected() -> bool:
            return await served.call(Customers.mailed("c-17")) == ["somewhere"]

        await until(is_projected)
        assert erase_everywhere(served) == ["known", "unknown"]
        assert erase_everywhere(served) == ["erased", "erased"]
        gone = Card("c-17", Erased(), 4)
        assert await served.call(Customers.visit("c-17")) == gone
        # Asked again under their keys: what was recorded, as far as it is still there.
        assert await served.call(Customers.register(ANNA), key="k1") == Card("c-17", Erased(), 0)
        assert await served.call(Customers.change("c-17", EMAIL), key="k2") == Card(
            "c-17", Erased(), 0
        )
        other = Register("c-18", EMAIL)
        with pytest.raises(KeyReused):
            await served.call(Customers.register(other), key="k1")
        # What comes late is stored as erased, too.
        assert await served.call(Customers.register(ANNA)) == Card("c-17", Erased(), 0)
        runner = served.up["customers"].projections.runner("mails")
        await runner.rebuild(by={"who": "ina", "why": "erased"})

        async def is_rebuilt() -> bool:
            return all(not each for each in (await served.up["customers"].behind()).values())

        await until(is_rebuilt)
        await runner.switch(by={"who": "ina", "why": "erased"})
        assert await served.call(Customers.mailed("c-17")) == ["", ""]
    async with shop(tmp_path) as served:
        # By snapshot and by replay alike (E6).
        assert await served.call(Customers.visit("c-17")) == Card("c-17", Erased(), 5)
        await served.up["customers"].store.write(
            lambda unit: unit.execute("delete from sm_snapshot"), name="no snapshots"
        )
        assert await served.call(Customers.visit("c-17")) == Card("c-17", Erased(), 6)


async def test_a_saga_in_flight_goes_on_with_what_is_erased(tmp_path: Path) -> None:
    """Its records still match its code, for no digest is made of personal data."""
    async with shop(tmp_path) as served:
        await served.call(Customers.welcome(ANNA))

        async def sleeps() -> bool:
            return (await served.up["customers"].sagas()).get("sleeping") == 1

        await until(sleeps)
        erase_everywhere(served)
    async with shop(tmp_path) as served:
        assert await served.call(Customers.confirm(Confirmed("c-17", EMAIL)))
        engine = served.up["customers"].engine

        async def has_ended() -> bool:
            return (await engine.show("welcome-c-17")).summary.status == "completed"

        await until(has_ended)
        # Asked again with the same id and input: the same run, and its result.
        assert await served.call(Customers.welcome(ANNA)) == Card("c-17", Erased(), 1)
        assert found_in(tmp_path) == []


@pytest.mark.parametrize("is_restarted", [True, False])
async def test_a_saga_of_somebody_erased_is_undone(tmp_path: Path, is_restarted: bool) -> None:
    """Undos are given what was recorded, with what is erased of it; no sleeper has more."""
    async with shop(tmp_path) as served:
        await served.call(Customers.welcome(ANNA))

        async def sleeps() -> bool:
            return (await served.up["customers"].sagas()).get("sleeping") == 1

        await until(sleeps)
        erase_everywhere(served)
        if is_restarted:
            for name in ("post", "customers"):
                await served.stop(name)
            await served.start("customers", "post")
        await served.up["customers"].engine.cancel("welcome-c-17", "asked to")

        async def is_undone() -> bool:
            return (await served.up["customers"].sagas()).get("undone") == 1

        await until(is_undone)
        assert seen_by_handlers == [
            Letter("c-17", Erased(), "welcome"), Card("c-17", Erased(), 0)
        ]  # fmt: skip


async def test_a_saga_that_is_not_erased_goes_on_as_it_was(tmp_path: Path) -> None:
    """What was sealed is opened after a restart, and in a result that is asked for later."""
    async with shop(tmp_path) as served:
        await served.call(Customers.welcome(ANNA))
    async with shop(tmp_path) as served:
        await served.call(Customers.confirm(Confirmed("c-17", "anna")))
        whole = Card("c-17", f"{EMAIL} confirmed by anna", 1)

        async def has_ended() -> bool:
            return await served.call(Customers.welcome(ANNA)) == whole

        await until(has_ended)
    async with shop(tmp_path) as served:
        assert await served.call(Customers.welcome(ANNA)) == whole


async def test_a_message_that_was_set_aside_is_handled_without_what_is_erased(
    tmp_path: Path,
) -> None:
    """Parked messages are sealed with the subscriber's keys; a replay opens what is left."""
    failing.update(("c-17", "c-18"))
    async with shop(tmp_path) as served:
        await served.call(Customers.register(ANNA))
        await served.call(Customers.register(Register("c-18", EMAIL)))
        consumer, store = served.up["post"].consumer, served.up["post"].store

        async def are_parked() -> bool:
            return len(await store.read("select 1 from sm_parked where state = 'parked'")) == 2

        await until(are_parked)
        erase_everywhere(served)
        failing.clear()
        for (number,) in await store.read("select number from sm_parked order by number"):
            assert isinstance(number, int)
            told = await consumer.replay(number, who="ina", why="mended")
            assert told is not None
            assert told.outcome == "handled"
        assert by_subject() == [
            Registered("c-17", Erased(), Erased()), Registered("c-18", EMAIL)
        ]  # fmt: skip
        assert found_in(tmp_path) == []


async def test_a_message_on_its_way_is_delivered_without_what_is_erased(tmp_path: Path) -> None:
    """Whichever of the two services heard of it first, the handler sees nothing of it."""
    async with shop(tmp_path, "customers") as served:
        await served.call(Customers.register(ANNA))
        await served.call(Customers.register(Register("c-18", EMAIL)))
        erase_everywhere(served)
        await served.start("post")
        erase(served.up["post"].store, "c-18", now_us=1, who="ina", why="asked to")

        async def are_handled() -> bool:
            return len(await sent(served)) == 2

        await until(are_handled)
        assert by_subject() == [
            Registered("c-17", Erased(), Erased()), Registered("c-18", Erased())
        ]  # fmt: skip


async def test_a_lost_file_of_keys_is_told_and_can_be_given_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The service serves on; what needs the keys says so, until a person gives them up."""
    async with shop(tmp_path, "customers") as served:
        await served.call(Customers.register(ANNA))
    kept = {each: each.read_bytes() for each in tmp_path.glob("customers.keys*")}
    for each in kept:
        each.unlink()
    async with shop(tmp_path, "customers") as served:
        assert "are not in" in caplog.text
        assert "give-up customers" in caplog.text
        store = served.up["customers"].store
        with pytest.raises(PersonalUnreadable, match="put that file back"):
            store.vault.seal("c-1", "x", b"1")
        assert await served.call(Customers.mailed("nobody")) == []
        assert not list(tmp_path.glob("customers.keys*"))
    for each, data in kept.items():
        each.write_bytes(data)
    async with shop(tmp_path, "customers") as served:
        assert await served.call(Customers.visit("c-17")) == Card("c-17", EMAIL, 0)
    for each in tmp_path.glob("customers.keys*"):
        each.unlink()
    async with shop(tmp_path, "customers") as served:
        store = served.up["customers"].store
        await give_up_keys(store, now_us=1, who="ina", why="the disk died")
        assert await served.call(Customers.visit("c-17")) == Card("c-17", Erased(), 1)
        await served.call(Customers.register(Register("c-18", EMAIL)))
    async with shop(tmp_path, "customers") as served:
        assert await served.call(Customers.visit("c-18")) == Card("c-18", EMAIL, 0)
        assert await served.call(Customers.visit("c-17")) == Card("c-17", Erased(), 2)


async def status_of(served: InProcess, run: str = "welcome-c-17") -> tuple[str, str]:
    story = await served.up["customers"].engine.show(run)
    return story.summary.status, story.summary.reason


@pytest.mark.parametrize("is_put_back", [True, False])
async def test_a_saga_whose_keys_are_lost_waits_for_them(tmp_path: Path, is_put_back: bool) -> None:
    """It says what is lost, and goes on with the keys, or once they are given up."""
    async with shop(tmp_path, "customers") as served:  # the post is not there: it is tried again
        await served.call(Customers.welcome(ANNA))
        assert await status_of(served) == ("running", "")
    kept = {each: each.read_bytes() for each in tmp_path.glob("customers.keys*")}
    for each in kept:
        each.unlink()
    async with shop(tmp_path) as served:

        async def waits() -> bool:
            return (await status_of(served))[0] == "waiting"

        await until(waits)
        reason = (await status_of(served))[1]
        assert reason.startswith("keys: the keys ")
        assert "put that file back" in reason
        if is_put_back:
            for each, data in kept.items():
                each.write_bytes(data)
        else:
            await give_up_keys(
                served.up["customers"].store, now_us=1, who="ina", why="the disk died"
            )
        assert await served.up["customers"].engine.try_again() == 1

        async def sleeps() -> bool:
            return (await status_of(served))[0] == "sleeping"

        await until(sleeps)
        await served.up["customers"].engine.cancel("welcome-c-17", "asked to")

        async def is_undone() -> bool:
            return (await status_of(served))[0] == "undone"

        await until(is_undone)
        email = EMAIL if is_put_back else Erased()
        assert seen_by_handlers == [Letter("c-17", email, "welcome"), Card("c-17", email, 0)]


@waiting.saga(str, deadline="1h")
async def hearing(s: Saga, who: str) -> str:
    told = await s.event(Confirmed, within="30m")
    return f"{who} heard of {told.by}" if told is not None else "nobody"


async def test_a_saga_that_was_told_what_it_cannot_read_is_stuck_by_that(tmp_path: Path) -> None:
    """What it was told is not taken for something else; it goes on once the keys are there."""
    folder = str(tmp_path)
    served = InProcess(RealRuntime(), [waiting], folder=folder)
    await served.start("hearing")
    here = served.up["hearing"]
    context = CallContext(trace_id="0" * 31 + "1", span_id="0" * 15 + "1")
    await here.engine.start(hearing, "ina", id="h-1", context=context)

    async def is_(status: str) -> bool:
        return (await served.up["hearing"].engine.show("h-1")).summary.status == status

    await until(lambda: is_("sleeping"))
    fields = personal_fields(Confirmed)
    assert fields is not None

    async def tell_unheard(unit: Unit) -> None:
        body = fields.seal(
            encode(Confirmed("c-17", "anna")), "saga/h-1/signal/Confirmed", unit.vault
        )
        await unit.execute(
            "insert into sm_saga_signal(saga, name, body, at_us) "
            "values ('h-1', 'Confirmed', ?, 1)",
            body,
        )  # fmt: skip
        await unit.execute("update sm_saga set wake_us = 0 where id = 'h-1'")

    await here.store.write(tell_unheard, name="tell")
    await served.stop("hearing")
    kept = {each: each.read_bytes() for each in tmp_path.glob("hearing.keys*")}
    for each in kept:
        each.unlink()
    await served.start("hearing")
    await until(lambda: is_("stuck"))
    await served.up["hearing"].engine.conclusion("h-1", 60.0)  # it has left memory, too
    reason = (await served.up["hearing"].engine.show("h-1")).summary.reason
    assert "what it was told cannot be read: the keys" in reason
    for each, data in kept.items():
        each.write_bytes(data)
    await served.up["hearing"].engine.repair("h-1", RepairVerb.RETRY, RepairWish("ina", "put back"))
    await until(lambda: is_("completed"))
    told = await served.up["hearing"].engine.conclusion("h-1", 1.0)
    assert told is not None
    assert told.result == b'"ina heard of anna"'
    await served.stop("hearing")


async def test_what_is_left_over_of_an_erased_key_goes_once_nobody_reads_it(tmp_path: Path) -> None:
    """While somebody copies the keys the erasure says so; the service then ends it by itself."""
    async with shop(tmp_path, "customers") as served:
        await served.call(Customers.register(ANNA))
        here = served.up["customers"]
        with closing(sqlite3.connect(tmp_path / "customers.keys")) as reader:
            ((key,),) = reader.execute("select key from subject")
            reader.execute("begin")
            reader.execute("select count(*) from subject").fetchall()
            told = erase(here.store, "c-17", now_us=1, who="ina", why="asked to")
            assert (told.was, told.left_over) == ("known", "another connection reads it")
            assert here.keys_left_over == told.left_over
            assert found_in(tmp_path, key)

        async def is_over() -> bool:
            return not here.keys_left_over

        await until(is_over)
        assert found_in(tmp_path, key) == []
        again = erase(here.store, "c-17", now_us=2, who="ina", why="to see")
        assert (again.was, again.left_over) == ("erased", "")
