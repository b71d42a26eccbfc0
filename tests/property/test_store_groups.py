"""Groups of units against a model: whatever shares a commit is as if run one after the other."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from store_fakes import HandRuntime, open_store
from synchromesh.errors import ConstraintFailed, Rejection
from synchromesh.store import Once, SqliteStore, Unit

NUMBERS = st.integers(1, 4)
ACTS = st.tuples(
    st.sampled_from(["put", "put and fail", "fail", "spoil", "alter and fail", "once", "refuse"]),
    NUMBERS,
)
GROUPS = st.lists(st.lists(ACTS, min_size=1, max_size=6), min_size=1, max_size=4)
Act = tuple[str, int]


class Model:
    """What the database holds, and what each unit is answered, if units run one by one."""

    def __init__(self) -> None:
        self.items = {0}
        self.inbox: dict[int, str] = {}

    def run(self, what: str, number: int) -> str:
        """Run one unit."""
        if what in ("once", "refuse"):
            if number in self.inbox:
                return self.inbox[number]
            if number in self.items:
                return "constraint"
            self.inbox[number] = "answer" if what == "once" else "rejection"
            if what == "once":
                self.items.add(number)
            return self.inbox[number]
        if what == "spoil" or (what.startswith("put") and number in self.items):
            return "constraint"
        if what == "put":
            self.items.add(number)
            return "done"
        return "failed"


def body_of(what: str, number: int) -> Callable[[Unit], Any]:
    """Make the body of a unit."""

    async def body(unit: Unit) -> bytes:
        if what == "spoil":
            await unit.execute("insert or rollback into item(id, n) values (0, 0)")
        if what == "alter and fail":
            await unit.execute("create table extra(n integer)")
        elif what != "fail":
            await unit.execute("insert into item(id, n) values (?, 1)", number)
        if what == "refuse":
            raise Rejection("no")
        if what.endswith("fail"):
            raise ValueError(what)
        return b"1"

    return body


async def run(store: SqliteStore, what: str, number: int) -> str:
    """Run a unit and return its outcome in the model's words."""
    body = body_of(what, number)
    try:
        if what in ("once", "refuse"):
            once = Once("test", str(number), "same")
            return (await store.write_once(body, once, name=what)).kind.value
        await store.write(body, name=what)
    except ConstraintFailed:
        return "constraint"
    except ValueError:
        return "failed"
    return "done"


@settings(deadline=None, max_examples=150)
@given(groups=GROUPS)
def test_units_of_a_group_are_as_if_run_one_after_the_other(groups: list[list[Act]]) -> None:
    """Each has the outcome of its turn, and what failed has left nothing (I1, I4)."""
    model = Model()

    async def main(folder: Path) -> None:
        store = await open_store(folder, HandRuntime())
        await store.write(body_of("put", 0), name="fill")
        for group in groups:
            wanted = [model.run(*act) for act in group]
            assert await asyncio.gather(*(run(store, *act) for act in group)) == wanted
            rows = await store.read("select id from item")
            assert {row[0] for row in rows} == model.items
            inbox = await store.read("select key, kind from sm_inbox")
            assert {int(str(key)): kind for key, kind in inbox} == model.inbox
            assert await store.read("select 1 from sqlite_master where name = 'extra'") == []
        await store.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(Path(folder)))
