"""The event log against a reference of plain lists, and decisions against their replay (E6)."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from store_fakes import HandRuntime, open_store
from synchromesh.errors import LogGap, VersionConflict
from synchromesh.events import (
    SCHEMA,
    Checkpoint,
    Decider,
    Decision,
    EventTypes,
    NewEvent,
    append,
    decide,
    load,
    read,
    remove,
    sourcing,
)

STREAMS = st.sampled_from("abc")


class LogAgainstReference(RuleBasedStateMachine):
    """The log equals a list of (stream, version, is_public) with None for what was removed."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self.store = self.loop.run_until_complete(
            open_store(Path(self.folder.name), HandRuntime(), SCHEMA)
        )
        self.log: list[tuple[str, int, bool] | None] = []
        self.versions: dict[str, list[int]] = {}

    def teardown(self) -> None:
        self.loop.run_until_complete(self.store.close())
        self.loop.close()
        self.folder.cleanup()

    @rule(stream=STREAMS, count=st.integers(1, 3), is_public=st.booleans(), off=st.integers(-1, 1))
    def append(self, stream: str, count: int, is_public: bool, off: int) -> None:
        new = [NewEvent("x.y", b"{}", is_public=is_public)] * count
        at = max(self.versions.get(stream, []), default=0)
        expected = None if off == -1 else at + off

        async def go() -> int:
            return await self.store.write(
                lambda unit: append(unit, stream, new, expected=expected), name="append"
            )

        if off == 1:
            with pytest.raises(VersionConflict):
                self.loop.run_until_complete(go())
            return
        assert self.loop.run_until_complete(go()) == at + count
        for version in range(at + 1, at + count + 1):
            self.log.append((stream, version, is_public))
            self.versions.setdefault(stream, []).append(version)

    @rule(data=st.data())
    def remove_some(self, data: st.DataObject) -> None:
        end = max((p for p, each in enumerate(self.log, 1) if each is not None), default=0)
        if not end:
            return
        first = data.draw(st.integers(1, end))
        last = data.draw(st.integers(first, min(end, first + 2)))

        async def go() -> int:
            return await self.store.write(lambda unit: remove(unit, first, last), name="remove")

        gone = [each for each in self.log[first - 1 : last] if each is not None]
        assert self.loop.run_until_complete(go()) == len(gone)
        for stream, version, _ in gone:
            self.versions[stream].remove(version)
        self.log[first - 1 : last] = [None] * (last - first + 1)

    @rule(data=st.data(), limit=st.integers(1, 4), public_only=st.booleans())
    def read(self, data: st.DataObject, limit: int, public_only: bool) -> None:
        after = data.draw(st.integers(0, len(self.log)))
        found = self.loop.run_until_complete(
            read(
                self.store,
                after=Checkpoint(self.store.log_id, after),
                limit=limit,
                public_only=public_only,
            )
        )
        wanted = [
            (position, *each)
            for position, each in enumerate(self.log, 1)
            if position > after and each is not None and (each[2] or not public_only)
        ]
        assert [(e.position, e.stream, e.version, e.is_public) for e in found] == wanted[:limit]

    @invariant()
    def streams_are_folded_whole_or_not_at_all(self) -> None:
        for stream, versions in self.versions.items():
            loading = load(self.store, stream)
            if versions and len(versions) != versions[-1]:
                with pytest.raises(LogGap):
                    self.loop.run_until_complete(loading)
            else:
                found = self.loop.run_until_complete(loading)
                assert [each.version for each in found] == versions


TestLogAgainstReference = LogAgainstReference.TestCase
TestLogAgainstReference.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


class Changed(msgspec.Struct, frozen=True):
    by: int


TYPES = EventTypes("x", Changed)


def _change(by: int, state: list[int]) -> Decision[list[int]]:
    made = tuple(Changed(by + n) for n in range(abs(by) % 4))
    before = list(state)
    if state:
        state.append(99)  # whatever a decider does to its state is not kept
    return Decision(before, made)


def _evolve(state: list[int], event: Changed) -> list[int]:
    # It depends on the order, and on each event but not on how the fold is divided.
    return [*state[-3:], (sum(state) * 31 + event.by) % 1009]


def decider(version: int, every: int) -> Decider[list[int], int, list[int]]:
    """Return one release of a decider."""
    return Decider("s", [], _change, _evolve, (Changed,), version, list[int], every)


class SnapshotsAgainstReplay(RuleBasedStateMachine):
    """What a command is decided on equals the fold of all events, whatever snapshots there are."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self.store = self.loop.run_until_complete(
            open_store(Path(self.folder.name), HandRuntime(), SCHEMA)
        )
        self.events: dict[str, list[Changed]] = {}
        self.patched = pytest.MonkeyPatch()
        self.patched.setattr(sourcing, "FOLD_MAX", 5)

    def teardown(self) -> None:
        self.patched.undo()
        self.loop.run_until_complete(self.store.close())
        self.loop.close()
        self.folder.cleanup()

    def write(self, body: Any) -> Any:
        return self.loop.run_until_complete(self.store.write(body, name="test"))

    @rule(stream=STREAMS, by=st.integers(-9, 9), version=st.integers(1, 3), every=st.integers(0, 4))
    def decide(self, stream: str, by: int, version: int, every: int) -> None:
        release = decider(version, every)
        known = self.events.setdefault(stream, [])
        found = self.write(lambda unit: decide(unit, release, TYPES, stream, by))
        assert found == release.fold(known)
        known.extend(Changed(by + n) for n in range(abs(by) % 4))

    @rule(stream=STREAMS, count=st.integers(1, 12))
    def append_many(self, stream: str, count: int) -> None:
        made = [Changed(n) for n in range(count)]
        new = [TYPES.encode(each) for each in made]
        self.write(lambda unit: append(unit, f"s/{stream}", new, expected=None))
        self.events.setdefault(stream, []).extend(made)

    @rule(stream=STREAMS, cut=st.integers(1, 5))
    def lose_the_end(self, stream: str, cut: int) -> None:
        """An older file was put back, but for its snapshots: they are of another future."""
        known = self.events.get(stream, [])[:-cut]

        async def body(unit: Any) -> None:
            await unit.execute(
                "delete from sm_event where stream = ? and version > ?", f"s/{stream}", len(known)
            )

        self.write(body)
        self.events[stream] = known

    @rule(state=st.sampled_from([b"", b"[1", b'["x"]', b"{}"]))
    def damage_snapshots(self, state: bytes) -> None:
        async def body(unit: Any) -> None:
            await unit.execute("update sm_snapshot set state = ?", state)

        self.write(body)


TestSnapshotsAgainstReplay = SnapshotsAgainstReplay.TestCase
TestSnapshotsAgainstReplay.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None
)
