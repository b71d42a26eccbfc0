"""Runs the sagas of an application in one of its processes; others take over what this one leaves.

It is the engine of a service, on the application's database: a run is one process's at a time, by
the duties that processes of a service share, each under an epoch.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Never

from synchromesh.alone.session_steps import SessionSteps
from synchromesh.calls import Operation
from synchromesh.context import CallContext
from synchromesh.durations import ABOVE_0, FROM_1, refuse_wrong_numbers
from synchromesh.errors import ContractError, Shed, StoreError
from synchromesh.runtime import Runtime
from synchromesh.saga import Engine, EngineOptions, SagaVersions
from synchromesh.store import Store
from synchromesh.telemetry import MemoryRing, Tracer

_PAUSE_S = 1.0
_log = logging.getLogger("synchromesh.alone")


@dataclass(frozen=True, slots=True)
class RunSagasOptions:
    """Bounds the sagas of a process; times in seconds.

    Attributes:
        in_flight_max: runs that are in memory at once; others wait in the database.
        sessions_max: how many `s.write` steps have a transaction at once; not more than the pool of
            your engine has to spare.
        session_limit_s: how long such a transaction may take.

    Example:
        >>> RunSagasOptions(sessions_max=2).in_flight_max
        256
    """

    in_flight_max: int = 256
    sessions_max: int = 4
    session_limit_s: float = 5.0

    def __post_init__(self) -> None:
        refuse_wrong_numbers(
            self,
            (FROM_1, "in_flight_max sessions_max"),
            (ABOVE_0, "session_limit_s"),
        )


class SagaWork:
    """Runs sagas in this process until it is cancelled; outages are waited for.

    Args:
        keep_s: how long what was done under a step's key is remembered.
        look_every_s: how often it is looked for what was started without a wake-up.
    """

    def __init__(
        self,
        store: Store,
        versions: SagaVersions,
        steps: SessionSteps,
        *,
        runtime: Runtime,
        options: RunSagasOptions,
        keep_s: float,
        look_every_s: float,
    ) -> None:
        self._store = store
        self._versions = versions
        self._steps = steps
        self._runtime = runtime
        self._options = EngineOptions(in_flight_max=options.in_flight_max, keep_s=keep_s)
        self._look_every_s = look_every_s

    async def run(self) -> None:
        """Continue what is unfinished, and run what is started; only cancellation ends it."""
        while True:
            engine = self._engine()
            try:
                await engine.recover()
                await self._keep(engine)
            except (StoreError, Shed) as error:
                _log.warning("the sagas of %s wait: %s", self._store.service, error)
            finally:
                await engine.close()
            await asyncio.sleep(_PAUSE_S)

    def _engine(self) -> Engine:
        engine = Engine(
            self._store,
            _NoCalls(),
            service=self._store.service,
            tracer=Tracer(self._store.service, self._runtime, MemoryRing(1)),
            runtime=self._runtime,
            versions=self._versions,
            run_unit=self._steps.run,
            options=self._options,
        )
        engine.write_steps_by(self._steps.write)
        return engine

    async def _keep(self, engine: Engine) -> None:
        async with asyncio.TaskGroup() as group:
            for work in (
                engine.keep_going,
                engine.keep_time,
                engine.keep_answering,
                partial(engine.keep_looking, self._look_every_s),
            ):
                group.create_task(self._again(work))

    async def _again(self, work: Callable[[], Awaitable[None]]) -> Never:
        """Do a part of the work for ever: what it meets passes, or is mended by a person."""
        while True:
            try:
                await work()
            except (StoreError, Shed) as error:
                _log.warning("the sagas of %s wait: %s", self._store.service, error)
            except Exception:  # noqa: BLE001 - one broken run must not end the others
                _log.exception("the sagas of %s wait", self._store.service)
            await asyncio.sleep(_PAUSE_S)


class _NoCalls:
    """Sends no calls: there is no service that could be called."""

    async def send(
        self,
        operation: Operation[..., Any],
        arguments: bytes,  # noqa: ARG002
        *,
        context: CallContext,  # noqa: ARG002
        timeout_s: float | None = None,  # noqa: ARG002
    ) -> bytes:
        """Refuse.

        Raises:
            ContractError: always.
        """
        raise ContractError(
            f"s.call of {operation.full_name}: a saga alone has no services to call. Make the "
            "request in an async function of its own, by the client that you have, and give that "
            "to s.step(function, ...); what is in your own database is s.write(function, ...)"
        )
