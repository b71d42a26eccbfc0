"""Collects the metrics of a process, and those of the other processes of the system.

What is counted is there already; all else is read from the parts when somebody asks. Whoever asks
while it is being read, or within a moment after, gets what was read: a crowd of scrapers costs what
one costs. A process that does not answer in time is told as down, and costs nobody else's metrics.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from synchromesh.calls import Caller, HttpTransport
from synchromesh.errors import StoreError, SynchromeshError
from synchromesh.resilience import BreakerState, Limiter
from synchromesh.service import ServiceInstance
from synchromesh.store.dialect import SQLITE
from synchromesh.store.health import bytes_of
from synchromesh.store.unit_store import UnitStore
from synchromesh.store.vault import vault_path
from synchromesh.system.control import catalogue as of
from synchromesh.system.control.local import LocalProcess
from synchromesh.system.control.remote import RemoteProcess
from synchromesh.system.control.status import Status
from synchromesh.system.control.status_parts import RUNNING, ChildStatus, ServiceStatus
from synchromesh.telemetry.metrics import (
    Family,
    Histogram,
    Metric,
    Sample,
    bounded,
    merge,
    of_instance,
)

# How long what was read is told to others.
FRESH_S = 0.5
# Of those that sleep nobody waits for the end.
_AGEING = ("queued", "running", "compensating", "waiting", "stuck")
# A process tells so many series at most.
SAMPLES_MAX = 20_000

Source = Callable[[], Sequence[Family]]


class Board:
    """Collects samples by metric.

    Example:
        >>> board = Board()
        >>> board.add(of.UP, 1, "shop")
        >>> [(family.metric.name, family.samples) for family in board.families()]
        [('synchromesh.process.up', [Sample(labels=('shop',), value=1.0, counts=())])]
    """

    def __init__(self) -> None:
        self._found: dict[str, Family] = {}

    def add(self, metric: Metric, value: float, *labels: str) -> None:
        """Add a series of a counter or a gauge."""
        self.take(metric, Sample(labels, float(value)))

    def take(self, metric: Metric, sample: Sample) -> None:
        """Add a series."""
        self._found.setdefault(metric.name, Family(metric, [])).samples.append(sample)

    def families(self) -> list[Family]:
        """Return what was added."""
        return list(self._found.values())


class Collector:
    """Collects metrics; `families` is all there is to ask.

    Args:
        local: this process.
        process: its name.
        remotes: the other processes that it speaks for.
        lag: how late its loop was.
        sources: what else is counted here.
    """

    def __init__(
        self,
        local: LocalProcess,
        process: str,
        *,
        remotes: Mapping[str, RemoteProcess],
        lag: Histogram,
        sources: Sequence[Source] = (),
    ) -> None:
        self._local = local
        self._process = process
        self._remotes = remotes
        self._lag = lag
        self._sources = sources
        self._started_us = local.deps.runtime.wall_us()
        self._reading: asyncio.Task[list[Family]] | None = None
        self._fresh_until_s = 0.0

    async def families(self) -> list[Family]:
        """Return the metrics of this process and of those that it speaks for."""
        loop = asyncio.get_running_loop()
        reading = self._reading
        if reading is None or (reading.done() and loop.time() >= self._fresh_until_s):
            reading = self._reading = loop.create_task(self._read(), name="metrics")
            reading.add_done_callback(lambda _: self._note_read(loop.time()))
        # Whoever leaves must not take it from the others.
        return await asyncio.shield(reading)

    def _note_read(self, now: float) -> None:
        self._fresh_until_s = now + FRESH_S

    async def _read(self) -> list[Family]:
        own, *others = await asyncio.gather(
            self.own(), *(_theirs(each) for each in self._remotes.values())
        )
        return merge(own, *others)

    async def own(self) -> list[Family]:
        """Return the metrics of this process alone."""
        local, board, name = self._local, Board(), self._process
        status = Status.merge(await local.status())
        _of_process(board, name, self._started_us, self._lag)
        of_status(board, status, name)
        board.add(of.NAMES_DROPPED, local.deps.metrics.overflowed, name)
        for transport in local.deps.transports.items():
            _of_pool(board, name, *transport)
        for client, caller in local.clients.items():
            _of_edges(board, client, caller)
        for instance_name, instance in local.instances.items():
            await _of_instance(board, instance_name, instance, local.deps.runtime.wall_us())
        counted = [local.deps.metrics.families(), *(source() for source in self._sources)]
        return list(bounded(merge(board.families(), *counted), SAMPLES_MAX))


async def _theirs(remote: RemoteProcess) -> list[Family]:
    try:
        return await remote.metrics()
    except (SynchromeshError, msgspec.ValidationError):  # or it is of another release
        return [Family(of.UP, [Sample((remote.name,), 0)])]


def of_status(board: Board, status: Status, process: str) -> None:
    """Add what the status of a process says."""
    board.add(of.FINDINGS, len(status.findings), process)
    board.add(of.SPANS_DROPPED, status.spans_dropped, process)
    board.add(of.FAULTS, status.faults.struck, process)
    for name, child in status.children.items():
        _of_child(board, ("", ""), name, child)
    for name, service in status.services.items():
        who = of_instance(name)
        health = service.health
        board.add(of.READY, health.is_healthy and not health.is_draining, *who)
        for child_name, child in health.children.items():
            _of_child(board, who, child_name, child)
        _of_service(board, who, service)
        _of_caller(board, who, service.holds.held, service.ejected)
        for outcome in ("bridged", "given_up", "refused"):
            board.add(of.HOLDS, getattr(service.holds, outcome), *who, outcome)
        for callee, breaker in service.breakers.items():
            _of_breaker(board, who, callee, breaker.state, breaker.epoch)
    for name, client in status.clients.items():
        who = of_instance(name)
        _of_caller(board, who, client.holds.held, client.ejected)
        for callee, breaker in client.breakers.items():
            _of_breaker(board, who, callee, breaker.state, breaker.epoch)


def _of_service(board: Board, who: tuple[str, str], service: ServiceStatus) -> None:
    for status, count in service.sagas.items():
        board.add(of.SAGAS, count, *who, status)
    for event, count in service.sagas_since_start.items():
        board.add(of.SAGA_EVENTS, count, *who, event)
    for name, count in service.behind.items():
        kind, _, whose = name.partition("/")
        board.add(of.RELAY_LAG if kind == "relay" else of.PROJECTION_LAG, count, *who, whose)
    parked: dict[str, bool] = {}
    for projection in service.projections:
        is_parked = projection.parked is not None
        parked[projection.name] = parked.get(projection.name, False) or is_parked
    for name, is_parked in parked.items():
        board.add(of.PROJECTION_PARKED, is_parked, *who, name)
    states = dict.fromkeys(("parked", "held", "refused"), 0)
    for group in service.set_aside:
        states[group.state] = states.get(group.state, 0) + group.count
    for state, count in states.items():
        board.add(of.SET_ASIDE, count, *who, state)
    for schedule in service.schedules_failed:
        board.add(of.SCHEDULE_FAILED, 1, *who, schedule)


def _of_caller(
    board: Board, who: tuple[str, str], held: int, ejected: Mapping[str, Sequence[str]]
) -> None:
    board.add(of.HELD, held, *who)
    for callee, instances in ejected.items():
        board.add(of.EJECTED, len(instances), *who, callee)


def _of_breaker(board: Board, who: tuple[str, str], callee: str, state: str, epoch: int) -> None:
    for each in BreakerState:
        board.add(of.BREAKER, each.value == state, *who, callee, each.value)
    board.add(of.BREAKER_CHANGES, epoch, *who, callee)


def _of_child(board: Board, who: tuple[str, str], name: str, child: ChildStatus) -> None:
    board.add(of.CHILD_UP, child.state == RUNNING, *who, name)
    board.add(of.CHILD_RESTARTS, child.restarts, *who, name)


def _of_process(board: Board, name: str, started_us: int, lag: Histogram) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    board.add(of.UP, 1, name)
    board.add(of.STARTED, started_us / 1e6, name)
    board.add(of.CPU, used.ru_utime + used.ru_stime, name)
    # Kilobytes, and on macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    board.add(of.MEMORY, used.ru_maxrss * unit, name)
    board.take(of.LAG, lag.sample(name))


def _of_pool(board: Board, process: str, name: str, transport: object) -> None:
    if isinstance(transport, HttpTransport):
        now = transport.pool.snapshot()
        board.add(of.CONNECTIONS, now.idle, process, name, "idle")
        board.add(of.CONNECTIONS, now.connections - now.idle, process, name, "busy")
        board.add(of.POOL_WAITING, now.waiting, process, name)


def _of_limiter(board: Board, who: tuple[str, str], kind: str, name: str, limiter: Limiter) -> None:
    board.add(of.LIMIT, limiter.in_flight_max, *who, kind, name)
    board.add(of.IN_FLIGHT, limiter.in_flight, *who, kind, name)
    board.add(of.WAITING, limiter.waiting, *who, kind, name)


def _of_edges(board: Board, name: str, caller: Caller) -> None:
    for callee, limiter in caller.limiters.items():
        _of_limiter(board, of_instance(name), "edge", callee, limiter)


async def _of_instance(board: Board, name: str, instance: ServiceInstance, now_us: int) -> None:
    who = of_instance(name)
    _of_edges(board, name, instance.caller)
    for operation, limiter in instance.dispatcher.limiters.items():
        kind = "operation" if operation else "service"
        _of_limiter(board, who, kind, operation or who[0], limiter)
    store = instance.store
    if not isinstance(store, UnitStore):
        return
    load = store.load()
    board.add(of.COMMITS, load.commits, *who)
    board.add(of.UNITS_WAITING, load.waiting, *who)
    board.take(of.GROUPS, load.sizes.sample(*who))
    for use, (busy, places, waiting) in load.places.items():
        board.add(of.STORE_PLACES, busy, *who, use, "busy")
        board.add(of.STORE_PLACES, places - busy, *who, use, "free")
        if use == "reads":
            board.add(of.READS_WAITING, waiting, *who)
    if instance.store.dialect is SQLITE:
        for file, size in _sizes(store.place):
            board.add(of.FILE_SIZE, size, *who, file)
    try:
        if instance.store.dialect is not SQLITE:
            board.add(of.FILE_SIZE, await bytes_of(instance.store), *who, "database")
        oldest = await instance.oldest_sagas()
        for status in _AGEING:
            age_s = (now_us - oldest.get(status, now_us)) / 1e6
            board.add(of.SAGA_AGE, max(0.0, age_s), *who, status)
    except StoreError:
        return  # that it cannot be read is told by its readiness


def _sizes(path: str) -> Iterator[tuple[str, int]]:
    """Yield the sizes of the files of a SQLite database, as far as they are there."""
    paths = {"database": path, "wal": f"{path}-wal", "keys": vault_path(path)}
    for name, each in paths.items():
        try:
            yield name, os.stat(each).st_size
        except OSError:
            continue
