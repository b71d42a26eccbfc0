"""The event log against a reference of plain lists: append, conflicts, removal, reading."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from store_fakes import HandRuntime, open_store
from synchromesh.errors import LogGap, VersionConflict
from synchromesh.events import SCHEMA, Checkpoint, NewEvent, append, load, read, remove

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
