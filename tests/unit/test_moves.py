"""Which services were taken to the server while the system ran: one copy of each at a time."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from synchromesh.errors import BadRequest
from synchromesh.system.config.engine_section import EngineSection
from synchromesh.system.control.moving import CopyRequest
from synchromesh.system.host.moves import Moves
from synchromesh.testing import SimRuntime, run

WANTED = CopyRequest("me", "to try")


def moves(runtime: SimRuntime, monkeypatch: pytest.MonkeyPatch) -> Moves:
    """Return those of a system with one service, whose file nobody has marked."""
    till = SimpleNamespace(name="till", state=True)
    host: Any = SimpleNamespace(
        deps=SimpleNamespace(services={"till": till}),
        config=SimpleNamespace(engine=EngineSection(sqlite=("till",))),
        rundir=SimpleNamespace(database=lambda name: f"/{name}.db"),
        runtime=runtime,
        local=SimpleNamespace(note=lambda *_: None, engines={}),
    )
    monkeypatch.setattr(Moves, "_wanted", lambda *_: EngineSection(postgres="env:DATABASE_URL"))
    child = SimpleNamespace(copied=None)
    remotes: Any = {"till": SimpleNamespace(child=child)}
    return Moves(host, remotes, lambda: host.config)


def test_a_second_copy_is_refused_while_one_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves the order of the first alone; and once that has ended there may be another."""

    async def main(runtime: SimRuntime) -> None:
        ours, replaced = moves(runtime, monkeypatch), asyncio.Event()

        async def anew() -> dict[str, Any]:
            await replaced.wait()
            return {"is_refused": True}

        first = asyncio.ensure_future(ours.copy("till", WANTED, anew))
        await asyncio.sleep(1.0)
        with pytest.raises(BadRequest, match="till is being copied to the server"):
            await ours.copy("till", WANTED, anew)
        order = ours.taken("till")[1]
        assert order is not None
        assert order.at_us < runtime.wall_us()
        with pytest.raises(BadRequest, match="till is being copied to the server"):
            await ours.copy("till", WANTED, anew)
        replaced.set()
        assert (await first)["is_refused"]
        assert (await ours.copy("till", WANTED, anew))["is_refused"]

    run(main)


def test_an_order_that_nobody_carried_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that had it ended, and the one that serves goes on with the file."""

    async def main(runtime: SimRuntime) -> None:
        async def anew() -> dict[str, Any]:
            return {"is_refused": False}

        with pytest.raises(BadRequest, match="till goes on with its file"):
            await moves(runtime, monkeypatch).copy("till", WANTED, anew)

    run(main)
