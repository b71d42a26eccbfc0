"""`synchromesh restart` with a release whose contract does not fit what others expect."""

from __future__ import annotations

import asyncio
import json
from asyncio.subprocess import PIPE, create_subprocess_exec
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from processes import COMMAND
from split_world import ControlSocket, running
from synchromesh.http import HttpPool
from synchromesh.system import System

pytestmark = pytest.mark.anyio

TOML = """
[system]
name = "shop"

[services.inventory]
app = "inventory:inventory"

[services.orders]
app = "orders:orders"

[gateway]
app = "way_in:way_in"
"""
CONTRACT = """
from typing import Protocol
from msgspec import Struct
from synchromesh import Contract, PublicEvent, command, event, query

class Hold(Struct):
    id: str
    left: int

class Counted(Struct):
    sku: str

class Inventory(Contract, Protocol, service="inventory", version="1.0"):
    @command("POST /holds")
    async def hold(self, sku: str) -> Hold: ...
    @query("GET /stock/{sku}")
    async def stock(self, sku: str) -> int: ...
    counted: PublicEvent[Counted] = event(Counted, key="sku")
"""
INVENTORY = """
import os
from contracts_inventory import Hold, Inventory
from synchromesh import Context, Service, Transaction

inventory = Service("inventory", implements=Inventory)

@inventory.writes(Inventory.hold)
async def hold(tx: Transaction, sku: str) -> Hold:
    return Hold(id=sku, left=os.getpid())

@inventory.handles(Inventory.stock)
async def stock(ctx: Context, sku: str) -> int:
    return 3
"""
ORDERS = """
from typing import Protocol
from contracts_inventory import Counted, Inventory
from synchromesh import Context, Contract, Service, Transaction, command

class Orders(Contract, Protocol, service="orders", version="1.0"):
    @command("POST /orders")
    async def place(self, sku: str) -> int: ...

orders = Service("orders", implements=Orders)

@orders.handles(Orders.place)
async def place(ctx: Context, sku: str) -> int:
    return (await ctx.call(Inventory.hold(sku))).left

@orders.on(Inventory.counted)
async def counted(tx: Transaction, event: Counted) -> None:
    pass
"""
WAY_IN = """
from contracts_inventory import Inventory
from synchromesh import Gateway, Route

way_in = Gateway(routes=[Route("GET /stock/{sku}", Inventory.stock, public=True)])
"""
GONE = ("    left: int\n", "")
GONE_ANSWER = ("Hold(id=sku, left=os.getpid())", "Hold(id=sku)")
MORE = ("    left: int\n", "    left: int\n    shelf: str = 'A'\n")
FILES = {
    "synchromesh.toml": TOML,
    "contracts_inventory.py": CONTRACT,
    "inventory.py": INVENTORY,
    "orders.py": ORDERS,
    "way_in.py": WAY_IN,
}
LEFT = "inventory.hold: answer left is required, and is not sent (expected by orders)"


def edit(folder: Path, name: str, *changes: tuple[str, str]) -> None:
    """Write a file of the system anew, with changes of its first text."""
    text = FILES[name]
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    (folder / name).write_text(text)


@pytest.fixture
async def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[System]:
    """A system of two services and a gateway, each with a process."""
    # Releases of a second have the same time: what was compiled of the one before must not count.
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    for name in FILES:
        edit(tmp_path, name)
    async with running(tmp_path, TOML) as system:
        yield system


@pytest.fixture
def asking(system: System, pool: HttpPool) -> ControlSocket:
    """Asks that system."""
    return ControlSocket(system, pool)


class Customers:
    """Orders again and again; an answer that is no process is a failure."""

    def __init__(self, asking: ControlSocket) -> None:
        self._asking = asking
        self._is_over = asyncio.Event()
        self.answers: list[Any] = []

    async def run(self) -> None:
        while not self._is_over.is_set():
            self.answers.append(await self._asking.call("orders.place", sku="SX90"))

    async def end(self, ordering: asyncio.Task[None]) -> None:
        """Let one more come through, and end."""
        count = len(self.answers)
        while len(self.answers) < count + 2:
            await asyncio.sleep(0.01)
        self._is_over.set()
        await ordering


async def synchromesh(folder: Path, *words: str) -> tuple[int, str, str]:
    """Run a verb; return its exit code and what it said."""
    verb = await create_subprocess_exec(
        *COMMAND, "--folder", str(folder), *words, stdout=PIPE, stderr=PIPE
    )
    out, err = await verb.communicate()
    assert verb.returncode is not None
    return verb.returncode, out.decode(), err.decode()


async def restart(folder: Path, *words: str) -> tuple[int, dict[str, Any]]:
    """Restart by the command line; return its exit code and what it said."""
    code, out, err = await synchromesh(folder, "restart", *words, "--json")
    assert err == ""
    return code, json.loads(out)


async def while_ordering(
    asking: ControlSocket, folder: Path, *words: str
) -> tuple[int, dict[str, Any], set[Any]]:
    """Restart while orders come; return also what they were answered."""
    customers = Customers(asking)
    ordering = asyncio.ensure_future(customers.run())
    code, told = await restart(folder, *words)
    await customers.end(ordering)
    return code, told, set(customers.answers)


async def test_what_breaks_others_is_refused(asking: ControlSocket, tmp_path: Path) -> None:
    """Exit 1 and what would break whom; the old process answers every call, before and after."""
    before = await asking.pid("inventory")
    edit(tmp_path, "contracts_inventory.py", GONE)
    edit(tmp_path, "inventory.py", GONE_ANSWER)
    code, told, answers = await while_ordering(asking, tmp_path, "inventory")
    assert code == 1
    assert told == {
        "service": "inventory",
        "pids": {"inventory": before},
        "is_refused": True,
        "is_same_code": False,
        "breaks": [LEFT],
    }
    assert answers == {before}
    code, said, _ = await synchromesh(tmp_path, "restart", "inventory")
    assert (code, f"process {before} serves on" in said, f"  {LEFT}\n" in said) == (1, True, True)
    assert "make it in two steps" in said
    status = await asking.ask("GET", "/status")
    assert (status["contract_breaks"], status["findings"]) == ([], [])


async def test_what_fits_is_let_in(asking: ControlSocket, tmp_path: Path) -> None:
    """A new field of an answer is none of its callers' business; no order fails."""
    before = await asking.pid("inventory")
    edit(tmp_path, "contracts_inventory.py", MORE)
    code, told, answers = await while_ordering(asking, tmp_path, "inventory")
    after = await asking.pid("inventory")
    assert (code, told["breaks"], after == before) == (0, [], False)
    assert answers <= {before, after}


async def test_who_breaks_it_on_purpose_is_recorded(
    system: System, asking: ControlSocket, tmp_path: Path
) -> None:
    """The break happens; status and the log keep who, why, and what. It is no reason later on."""
    edit(tmp_path, "contracts_inventory.py", GONE)
    edit(tmp_path, "inventory.py", GONE_ANSWER)
    code, told = await restart(tmp_path, "inventory", "--break", "--reason", "nobody needs it")
    assert (code, told["is_refused"], told["breaks"]) == (0, False, [LEFT])
    assert await asking.call("orders.place", sku="SX90") != told["pids"]["inventory"]
    status = await asking.ask("GET", "/status")
    (record,) = status["contract_breaks"]
    assert record["who"]
    assert (record["reason"], record["differences"]) == ("nobody needs it", [LEFT])
    assert (record["standing"], len(status["findings"])) == ([LEFT], 1)
    log = tmp_path / ".synchromesh" / "telemetry" / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    (logged,) = [line for line in lines if line.get("reason") == "nobody needs it"]
    assert (logged["who"], LEFT in logged["message"]) == (record["who"], True)
    # Which contract it was, is seen before and after.
    offered = [line["offers"] for line in lines if "offers" in line and "hold=" in line["offers"]]
    assert len(offered) == 2
    assert len({line.partition("hold=")[2][:32] for line in offered}) == 2
    code, screen, _ = await synchromesh(tmp_path, "status")
    assert (code, "nobody needs it" in screen, "broken" in screen) == (1, True, True)
    # The contract does not fit before and after the next restart: that one breaks nothing.
    assert await restart(tmp_path, "inventory") == (
        0,
        {
            "service": "inventory",
            "pids": {"inventory": await asking.pid("inventory")},
            "is_refused": False,
            "is_same_code": False,
            "breaks": [],
        },
    )
    # Its caller is replaced, and nothing is broken any more.
    assert (await restart(tmp_path, "orders"))[0] == 0
    code, screen, _ = await synchromesh(tmp_path, "status")
    assert (code, "mended" in screen, "nothing needs a person" in screen) == (0, True, True)


async def test_what_is_expected_must_be_there(asking: ControlSocket, tmp_path: Path) -> None:
    """A caller that comes before its callee is refused, and let in after it."""
    more = ("    @query", '    @query("GET /all")\n    async def all(self) -> int: ...\n    @query')
    handler = (
        "@inventory.handles(Inventory.stock)",
        """@inventory.handles(Inventory.all)
async def every(ctx: Context) -> int:
    return 1

@inventory.handles(Inventory.stock)""",
    )
    edit(tmp_path, "contracts_inventory.py", more)
    edit(tmp_path, "inventory.py", handler)
    code, told = await restart(tmp_path, "orders")
    expected = ["inventory.all: is not offered (expected by orders)"]
    assert (code, told["breaks"]) == (1, expected)
    for name in ("inventory", "orders"):
        assert (await restart(tmp_path, name))[0] == 0


async def test_gateway_and_subscribers_count_too(asking: ControlSocket, tmp_path: Path) -> None:
    """The gateway expects what its routes name, subscribers the events that they take."""
    route = ('"GET /stock/{sku}"', '"GET /left/{sku}"')
    edit(tmp_path, "contracts_inventory.py", route, ("    sku: str\n", "    article: str\n"),
         ('event(Counted, key="sku")', "event(Counted)"))  # fmt: skip
    code, told = await restart(tmp_path, "inventory")
    assert code == 1
    route_gone = "inventory.stock: is GET /left/{}, and was GET /stock/{} (expected by "
    assert sorted(told["breaks"]) == [
        "inventory.counted: field sku is required, and is not sent (expected by orders)",
        f"{route_gone}gateway)",
        f"{route_gone}orders)",
    ]


async def test_a_gateway_is_refused_before_it_takes_a_request(
    system: System, asking: ControlSocket, pool: HttpPool, tmp_path: Path
) -> None:
    """Its route leads to what nobody offers; the old one answers on."""
    edit(tmp_path, "contracts_inventory.py", ('"GET /stock/{sku}"', '"GET /left/{sku}"'))
    before = await asking.pid("gateway")
    code, told = await restart(tmp_path, "gateway")
    assert (code, told["pids"]) == (1, {"gateway": before})
    assert told["breaks"] == [
        "inventory.stock: is GET /stock/{}, and was GET /left/{} (expected by gateway)"
    ]
    port = int(system.info.gateway.rpartition(":")[2])
    answer = await pool.request("127.0.0.1", port, "GET", "/stock/a", timeout_s=30.0)
    assert (answer.status, answer.body) == (200, b"3")


async def test_a_reason_is_needed(system: System, tmp_path: Path) -> None:
    """Exit 2 for either without the other; nothing is restarted."""
    del system
    for words in (("--break",), ("--reason", "so"), ("--break", "--reason", " ")):
        code, _, err = await synchromesh(tmp_path, "restart", "orders", *words)
        assert (code, "--break --reason TEXT" in err) == (2, True)
