"""`synchromesh advise` on real systems: one with baits, running and stopped, and two clean ones."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from processes import COMMAND, announced, dev, until
from running_works import synchromesh

TOML = """
[system]
name = "market"

[services.stall]
app = "market:stall"

[services.stock]
app = "market:stock"

[gateway]
app = "market:gateway"

[policies."stall:stock"]
breaker = { minimum_calls = 1000 }

[retention]
sagas = ""
"""
MARKET = '''
import threading
from typing import Protocol

from msgspec import Struct

from synchromesh import (
    ApiKeys, Context, Contract, Gateway, Rejection, Route, Saga, Service, command, event, query,
)


class NoRoom(Rejection, code="no_room"):
    """There is no room for it."""


class Buyer(Struct, frozen=True):
    name: str
    home_address: str


class Sold(Struct, frozen=True):
    buyer: Buyer


class Stock(Contract, Protocol, service="stock", version="1.0"):
    @query("GET /items/{sku}")
    async def item(self, sku: str) -> int: ...

    @command("POST /holds")
    async def hold(self, sku: str) -> int: ...

    @command("POST /shelves", raises=(NoRoom,))
    async def shelve(self, sku: str) -> int: ...


class Stall(Contract, Protocol, service="stall", version="1.0"):
    @query("GET /list")
    async def list_all(self) -> int: ...

    @command("POST /sales")
    async def sell(self, sku: str) -> int: ...

    sold = event(Sold)


stock = Service("stock", implements=Stock)
stall = Service("stall", implements=Stall)


@stock.handles(Stock.item)
async def item(ctx: Context, sku: str) -> int:
    return 1


@stock.handles(Stock.hold)
async def hold(ctx: Context, sku: str) -> int:
    return 1


@stock.handles(Stock.shelve)
async def shelve(ctx: Context, sku: str) -> int:
    return 1


@stall.handles(Stall.list_all)
async def list_all(ctx: Context) -> int:
    return sum([await ctx.call(Stock.item(sku=str(at))) for at in range(12)])


@stall.saga(str, version=1, deadline="1m")
async def sale(s: Saga, sku: str) -> int:
    held = await s.call(Stock.hold(sku=sku))
    await s.call(Stock.hold(sku="again"), pivot=True)
    await s.call(Stock.shelve(sku=sku))
    return held


@stall.handles(Stall.sell)
async def sell(ctx: Context, sku: str) -> int:
    threading.Event().wait(1.5)
    return 1


gateway = Gateway(
    auth=[ApiKeys()],
    routes=[
        Route("GET /list", Stall.list_all, public=True),
        Route("POST /sales", Stall.sell, public=True),
    ],
)
'''
# What its code and configuration tell, with the line that each is seen at.
DECLARED = {
    "open-command": ["POST /sales"],
    "over-scoped-key": ["never:asked"],
    "step-without-undo": ["market.py:held = await s.call"],
    "refusal-after-pivot": ["market.py:await s.call(Stock.shelve"],
    "personal-data-in-event": ["market.py:class Sold"],
    "unused-event": ["market.py:class Sold"],
    "unbounded-growth": ["retention.sagas"],
}


def line_of(place: str) -> str:
    """Return "file:line" of what is given as "file:text"."""
    file, colon, text = place.partition(":")
    if not colon or not file.endswith(".py"):
        return place
    (line,) = (at for at, each in enumerate(MARKET.splitlines(), 1) if text in each)
    return f"{file}:{line}"


def advised(folder: Path) -> tuple[int, dict[str, list[Any]]]:
    """Return the exit code of `advise`, and what it said by code."""
    done = subprocess.run(
        [*COMMAND, "advise", "--json"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    told: dict[str, list[Any]] = {}
    for each in json.loads(done.stdout)["advice"]:
        told.setdefault(each["code"], []).append(each)
    return done.returncode, told


def test_a_system_is_advised_while_it_runs_and_after(tmp_path: Path) -> None:
    """By its code and configuration, by what its requests did, and by its log, with evidence."""
    (tmp_path / "synchromesh.toml").write_text(TOML)
    (tmp_path / "market.py").write_text(MARKET)
    synchromesh(tmp_path, "gateway", "key", "add", "k", "--scope", "never:asked")
    with dev(tmp_path) as process:
        announced(process)
        for _ in range(2):
            synchromesh(tmp_path, "call", "stall.list_all")
        synchromesh(tmp_path, "call", "stall.sell", "sku=a")
        # Spans are written within a moment.
        assert until(lambda: "chatty-calls" in advised(tmp_path)[1])
        code, running = advised(tmp_path)
        assert code == 1
        process.terminate()
        process.wait()
    code, stopped = advised(tmp_path)
    assert code == 1
    for found in (running, stopped):
        assert {key: [e for each in found[key] for e in each["evidence"]] for key in DECLARED} == {
            key: [line_of(each) for each in places] for key, places in DECLARED.items()
        }
        (chatty,) = found["chatty-calls"]
        assert chatty["what"] == "stall.list_all calls stock.item 12 times for one request"
        assert len(chatty["evidence"][0]) == 32
        (never,) = found["breaker-never-opens"]
        assert never["evidence"] == ['policies."stall:stock".breaker.minimum_calls']
        (blocking,) = found["blocking-code"]
        assert "market.sell" in blocking["evidence"][0]
        # `sell` is named by a route, `item` by code; nothing names `shelve` but a saga.
        assert "unused-operation" not in found
        assert set(found) == {*DECLARED, "chatty-calls", "breaker-never-opens", "blocking-code"}


@pytest.mark.parametrize("example", [[], ["--example"]], ids=["scaffold", "servo-works"])
def test_what_ships_is_clean(tmp_path: Path, example: list[str]) -> None:
    """Nothing is advised of the scaffold, nor of servo-works, which ignores with a reason."""
    made = synchromesh(tmp_path, "new", "fresh", *example)
    assert advised(Path(made["folder"])) == (0, {})


@pytest.mark.parametrize(
    ("ignored", "said"),
    [
        ('{ teapot = "it is one" }', "names 'teapot', which is no code of advice; there are: "),
        ('{ unused-event = " " }', "ignore.unused-event has no reason; write why"),
    ],
)
def test_what_is_ignored_has_a_code_and_a_reason(tmp_path: Path, ignored: str, said: str) -> None:
    """A mistake in it is told wherever the file is read, with its line."""
    (tmp_path / "synchromesh.toml").write_text(f"{TOML}\n[advice]\nignore = {ignored}\n")
    done = subprocess.run(
        [*COMMAND, "config", "explain"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "synchromesh.toml:21: [advice] ignore" in done.stderr
    assert said in done.stderr
