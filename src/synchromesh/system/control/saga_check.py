"""What a change of saga code breaks: histories and runs replayed with the code of today."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from synchromesh.errors import ConfigError, SagaError, UnknownSaga
from synchromesh.saga.backlog import last_ended, not_ended, with_records
from synchromesh.saga.recorded import RecordedRun, masked, recorded
from synchromesh.saga.records import SagaRecord
from synchromesh.saga.replaying import Replayer
from synchromesh.saga.seals import opened
from synchromesh.saga.tables import SagaRow
from synchromesh.sealing import NO_KEYS
from synchromesh.service import Service
from synchromesh.store import StoreFactory, StoreReader
from synchromesh.system.config.definitions import load_services
from synchromesh.system.config.histories import read_histories, write_histories
from synchromesh.system.config.reading import load_config
from synchromesh.system.control.old_code import OldCode
from synchromesh.system.control.stopped import databases_of, stores_at

_PAGE_RUNS = 200
_NAMED_MAX = 5
_LOOKED_AT_MAX = 10_000


class SagaDifference(msgspec.Struct, frozen=True):
    """Runs of one version of a saga that do not fit the code, for one reason.

    Attributes:
        differs: the first step that differs, of each version that might continue them.
        runs: how many, by status, are not ended and would wait for code; `ids` are some of them.
        histories: the files that do not fit.
        is_sampled: a run of the other code that was made up does not fit.
        before: whether the other code fits: "yes", "no", or "" where there is none.
    """

    saga: str
    version: int
    differs: str
    runs: dict[str, int]
    ids: list[str]
    histories: list[str]
    is_sampled: bool
    before: str


class CheckedSaga(msgspec.Struct, frozen=True):
    """How much of a saga was looked at: runs that are not ended, histories, and made-up runs."""

    saga: str
    runs: int
    histories: int
    samples: int


class SagaCheck(msgspec.Struct, frozen=True):
    """What a check came to.

    Attributes:
        gone: versions that the other code had for old runs, or sagas named as gone, and that this
            one has not.
    """

    sagas: list[CheckedSaga]
    differences: list[SagaDifference]
    gone: list[str]


@dataclass
class _Group:
    first: RecordedRun
    runs: Counter[str] = field(default_factory=Counter)
    ids: list[str] = field(default_factory=list)
    histories: list[str] = field(default_factory=list)
    is_sampled: bool = False


class _Tally:
    """Counts what fits, and groups what does not."""

    def __init__(self, services: Iterable[Service]) -> None:
        self._replayers = {each.name: Replayer(each.sagas) for each in services}
        self.seen: dict[str, Counter[str]] = {
            f"{each.name}.{saga.name}": Counter() for each in services for saga in each.sagas
        }
        self.groups: dict[tuple[str, int, str], _Group] = {}

    def _differs(self, run: RecordedRun) -> str:
        replayer = self._replayers.get(run.service)
        return "there is no such service" if replayer is None else replayer.differs(run)

    def _group(self, run: RecordedRun, differs: str) -> _Group:
        key = run.saga_name, run.version, differs
        return self.groups.setdefault(key, _Group(run))

    def _count(self, run: RecordedRun, what: str) -> None:
        self.seen.setdefault(run.saga_name, Counter())[what] += 1

    def history(self, name: str, run: RecordedRun) -> None:
        """Take a history."""
        self._count(run, "histories")
        if differs := self._differs(run):
            self._group(run, differs).histories.append(name)

    def sample(self, run: RecordedRun) -> None:
        """Take a run that was made up."""
        self._count(run, "samples")
        if differs := self._differs(run):
            self._group(run, differs).is_sampled = True

    def run(self, service: str, row: SagaRow, records: list[SagaRecord] | SagaError) -> None:
        """Take a run that has not ended."""
        run = recorded(service, row, [] if isinstance(records, SagaError) else records)
        self._count(run, "runs")
        differs = (
            records.message
            if isinstance(records, SagaError)
            else self._replayers[service].differs_from(row, records)
        )
        if differs:
            group = self._group(run, differs)
            group.runs[row.status.value] += 1
            group.ids += [row.id] if len(group.ids) < _NAMED_MAX else []


async def check_sagas(
    folder: Path, place: Path, old: OldCode | None = None, gone: Collection[str] = ()
) -> SagaCheck:
    """Replay the histories beside the code, and the runs in the databases, with the code.

    Nothing is executed but saga functions, and no database is written. A system may run.

    Args:
        old: other code, whose histories and made-up runs are replayed too.
        gone: sagas that may be taken away: runs of them are none of importance.

    Raises:
        ConfigError: a definition, a history or the other code cannot be loaded.
        StoreError: a database cannot be read.
    """
    services = load_services(load_config(folder, environment=os.environ), folder)
    tally = _Tally(services)
    there = read_histories(folder / place)
    for name, run in there.items():
        tally.history(name, run)
    async with stores_at(folder) as stores:
        for service in databases_of(folder):
            async for row, records in _unended(stores, service):
                tally.run(service, row, records)
    taken_away: set[str] = set()
    before: list[str] = []
    if old is not None:
        asked = [group.first for group in tally.groups.values()]
        answer = old.ask(asked)
        before = answer.differs
        kept = {(f"{s.name}.{d.name}", d.version) for s in services for d in s.sagas}
        theirs = {n: r for n, r in old.histories(place).items() if r not in there.values()}
        for name, run in [*theirs.items(), *(("", each) for each in answer.samples)]:
            key = run.saga_name, run.version
            is_old = run.version != answer.newest.get(run.saga_name)
            if key not in kept and (is_old or run.saga_name in gone):
                taken_away.add(f"{run.saga_name} v{run.version}")
            elif name:
                tally.history(f"{name} of {old.named}", run)
            else:
                tally.sample(run)
    return _told(tally, before, is_against=old is not None, gone=sorted(taken_away))


def _told(tally: _Tally, before: list[str], *, is_against: bool, gone: list[str]) -> SagaCheck:
    differences = []
    for number, ((saga, version, differs), group) in enumerate(tally.groups.items()):
        # What came from the other code fits it.
        is_theirs = number >= len(before) or not before[number]
        fitted = "" if not is_against else "yes" if is_theirs else "no"
        differences.append(
            SagaDifference(
                saga,
                version,
                differs,
                dict(group.runs),
                group.ids,
                group.histories,
                group.is_sampled,
                fitted,
            )
        )
    sagas = [
        CheckedSaga(saga, seen["runs"], seen["histories"], seen["samples"])
        for saga, seen in tally.seen.items()
    ]
    return SagaCheck(sagas, differences, gone)


async def record_runs(
    folder: Path, place: Path, ids: Collection[str] = (), mask: Collection[str] = ()
) -> list[str]:
    """Write histories of runs in the databases of a system to files; return their names.

    Of runs that went the same way one is written, and none where there is one already.

    Args:
        ids: these runs; else the newest ones, as far as they have ended.
        mask: fields whose values are written nowhere.

    Raises:
        UnknownSaga: no run has one of these ids.
        SagaError: a run does not fit the code, or cannot be masked.
    """
    config = load_config(folder, environment=os.environ)
    services = {each.name: each for each in load_services(config, folder)}
    if not databases_of(folder):
        raise ConfigError(
            f"no system has run in {folder} yet; start one there with: synchromesh dev"
        )
    left, found = set(ids), []
    async with stores_at(folder) as stores:
        for service in databases_of(folder):
            async with _reader(stores, service) as reader:
                wanted = list(ids) or await last_ended(reader, _LOOKED_AT_MAX)
                async for row, records in _pages(reader, wanted):
                    left.discard(row.id)
                    if isinstance(records, SagaError):
                        raise records
                    found.append(_to_record(services[service], row, records, mask))
    if left:
        raise UnknownSaga(f"no saga has the id {min(left)!r}; synchromesh saga list shows them")
    return write_histories(folder / place, found)


def _to_record(
    service: Service, row: SagaRow, records: list[SagaRecord], mask: Collection[str]
) -> RecordedRun:
    run, replayer = recorded(service.name, row, records), Replayer(service.sagas)
    if differs := replayer.differs(run):
        raise SagaError(f"run {row.id!r} does not fit this code, which is to record it: {differs}")
    if not mask:
        return run
    run = masked(run, mask, service.sagas.fitting(row.name, row.version)[0])
    if differs := replayer.differs(run):
        raise SagaError(f"run {row.id!r} cannot be masked: {differs}")
    return run


async def _unended(
    stores: StoreFactory, service: str
) -> AsyncIterator[tuple[SagaRow, list[SagaRecord] | SagaError]]:
    async with _reader(stores, service) as reader:
        async for each in _pages(reader, await not_ended(reader)):
            yield each


async def _pages(
    reader: StoreReader, ids: list[str]
) -> AsyncIterator[tuple[SagaRow, list[SagaRecord] | SagaError]]:
    for first in range(0, len(ids), _PAGE_RUNS):
        for row, records in await with_records(reader, ids[first : first + _PAGE_RUNS]):
            # Nothing personal is read, and so nothing of it gets into a file.
            its = [] if isinstance(records, SagaError) else records
            row, its = opened(row, its, NO_KEYS)
            yield row, (records if isinstance(records, SagaError) else its)


@asynccontextmanager
async def _reader(stores: StoreFactory, service: str) -> AsyncIterator[StoreReader]:
    reader = await stores.open_reader(service)
    try:
        yield reader
    finally:
        await reader.close()
