"""Generations of a projection against a plain list: each equals the replay of the log up to its
checkpoint, without what was skipped, whatever was done in between (E5)."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from store_fakes import HandRuntime, open_store
from synchromesh.errors import BadRequest
from synchromesh.events import (
    SCHEMA,
    Generation,
    GenerationTables,
    NewEvent,
    Projection,
    ProjectionOptions,
    ProjectionRunner,
    StoredEvent,
    append,
    head,
    list_generations,
)
from synchromesh.store import Unit

OPTIONS = ProjectionOptions(batch_max=3, poll_s=3600.0, attempts_max=2, backoff_s=0.0)
BY = {"who": "ada", "why": "test"}
TABLES = {
    1: GenerationTables("seen", ["create table seen(at integer, n integer)"]),
    2: GenerationTables("seen", ["create table seen(at integer, n integer, twice integer)"]),
}


class ProjectionAgainstReplay(RuleBasedStateMachine):
    """The database against the list of what was appended, and of what was skipped where."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self.store = self.wait(open_store(Path(self.folder.name), HandRuntime(), SCHEMA))
        self.log: dict[int, int] = {}
        self.bad = {3}
        self.skipped: dict[int, set[int]] = {1: set()}
        self.code: tuple[int, ...] = (1,)
        self.restart()

    def wait(self, doing: Awaitable[Any]) -> Any:
        async def done() -> Any:
            return await doing

        return self.loop.run_until_complete(done())

    def teardown(self) -> None:
        self.wait(self.store.close())
        self.loop.close()
        self.folder.cleanup()

    def restart(self) -> None:
        """Start the release that is there now."""
        versions = [
            Projection("seen", self.apply_of(version), version, TABLES[version])
            for version in self.code
        ]
        self.runner = ProjectionRunner(self.store, versions, OPTIONS)
        before = {each.number for each in self.found()}
        self.wait(self.runner.prepare())
        for each in self.found():
            if each.number not in before:
                self.skipped[each.number] = set()

    def apply_of(self, version: int) -> Callable[[Unit, StoredEvent], Awaitable[None]]:
        async def apply(unit: Unit, event: StoredEvent) -> None:
            if event.name != "x.counted":
                return
            n = msgspec.json.decode(event.body, type=int)
            row = [event.position, n] if version == 1 else [event.position, n, 2 * n]
            await unit.execute(f"insert into seen values ({', '.join('?' * len(row))})", *row)
            if n in self.bad:
                raise ValueError(n)

        return apply

    def found(self) -> list[Generation]:
        found: list[Generation] = self.wait(list_generations(self.store, "seen"))
        return found

    @rule(values=st.lists(st.integers(0, 4), min_size=1, max_size=5), runs=st.booleans())
    def append(self, values: list[int], runs: bool) -> None:
        before = self.wait(head(self.store)).position
        new = [NewEvent("x.counted", msgspec.json.encode(n)) for n in values]
        self.wait(
            self.store.write(lambda unit: append(unit, "s", new, expected=None), name="append")
        )
        self.log |= dict(enumerate(values, before + 1))
        if runs:
            self.run_until_nothing_moves()

    @rule(bad=st.sets(st.integers(0, 4), max_size=2))
    def change_what_fails(self, bad: set[int]) -> None:
        """A bug comes, or is mended, with the next release."""
        self.bad = bad
        self.restart()

    @rule(code=st.sampled_from([(1,), (1, 2), (2,)]))
    def release(self, code: tuple[int, ...]) -> None:
        self.code = code
        self.restart()

    @rule()
    def run_until_nothing_moves(self) -> None:
        async def run() -> None:
            task = asyncio.ensure_future(self.runner.run())
            still = 0
            seen: object = None
            while still < 40 and not task.done():
                now = await list_generations(self.store)
                still = still + 1 if now == seen else 0
                seen = now
                await asyncio.sleep(0)
            task.cancel()
            (ended,) = await asyncio.gather(task, return_exceptions=True)
            assert isinstance(ended, asyncio.CancelledError), ended

        self.wait(run())
        end = self.wait(head(self.store)).position
        for each in self.found():
            assert each.position == end or each.parked or each.is_waiting, each

    @precondition(lambda self: any(each.parked for each in self.found()))
    @rule()
    def skip(self) -> None:
        """Only an event that failed can be parked, and only that is left out."""
        each = next(each for each in self.found() if each.parked is not None)
        parked = each.parked
        assert parked is not None
        assert parked.position == each.position + 1
        self.wait(self.runner.skip(by=BY, number=each.number))
        self.skipped[each.number].add(parked.position)
        self.run_until_nothing_moves()

    @rule(takes_skipped=st.booleans())
    def rebuild(self, takes_skipped: bool) -> None:
        live = self.found()[0]
        made = self.wait(self.runner.rebuild(by=BY, takes_skipped=takes_skipped))
        self.skipped[made.number] = set() if takes_skipped else set(self.skipped[live.number])
        self.run_until_nothing_moves()

    @rule()
    def switch(self) -> None:
        live, *others = self.found()
        end = self.wait(head(self.store)).position
        try:
            now = self.wait(self.runner.switch(by=BY))
        except BadRequest:
            assert not others or others[0].parked or others[0].position < end
            return
        assert now.number == others[0].number != live.number
        # What has come before the switch itself is in it.
        assert self.found()[0].position >= end

    @invariant()
    def each_generation_equals_its_replay(self) -> None:
        """Also that which queries read, by its plain name."""
        for each in self.found():
            # What is left out is not tried, or it would fail again.
            assert each.parked is None or each.parked.position not in self.skipped[each.number]
            expected = [
                (position, n) if each.version == 1 else (position, n, 2 * n)
                for position, n in self.log.items()
                if position <= each.position and position not in self.skipped[each.number]
            ]
            sql = f"select * from seen__{each.number} order by at"
            assert self.wait(self.store.read(sql)) == expected
            if each.is_live:
                assert self.wait(self.store.read("select * from seen order by at")) == expected

    @invariant()
    def there_are_two_at_most_and_one_is_live(self) -> None:
        found = self.found()
        assert [each.is_live for each in found] in ([True], [True, False])


TestProjectionAgainstReplay = ProjectionAgainstReplay.TestCase
TestProjectionAgainstReplay.settings = settings(
    max_examples=8, stateful_step_count=18, deadline=None
)
