"""A small service for tests of systems: it keeps notes, and fails in the ways it is asked to."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any, Protocol, Self

from msgspec import Struct

from synchromesh import (
    Context,
    Contract,
    Gateway,
    Migration,
    Rejection,
    Route,
    Saga,
    Service,
    Transaction,
    command,
    query,
)
from synchromesh.runtime import RealRuntime
from synchromesh.store import StoreOptions
from synchromesh.system import System, load_config

SECRET = "hunter2"
TESTS = Path(__file__).parent
TOML = """
[system]
name = "notebook"

[services.notes]
app = "notes_app:notes"
"""
# What fails too often ends all of it.
STOPS = TOML.replace("\n[services", 'on_failure = "stop"\n\n[services', 1)
WITH_GATEWAY = TOML + '\n[gateway]\napp = "notes_app:way_in"\n'
# An external service: a program that says that it is ready, and what it does after that.
READY = "import json, os, signal, sys; print(json.dumps({'port': 1}), flush=True); "
PROVIDER = """
[external.provider]
command = ["{python}", "-S", "-c", "%s"]
"""
STAYS = PROVIDER % (READY + "signal.pause()")


class Note(Struct, frozen=True):
    id: str
    text: str
    stars: int = 0


class Written(Struct, frozen=True):
    """Says that a note was written."""

    id: str


class Taken(Rejection, code="taken", status=409):
    """Tells that the id belongs to another note."""


class Notes(Contract, Protocol, service="notes", version="1.0"):
    @command("POST /notes", raises=(Taken,))
    async def write(self, note: Note) -> int: ...
    @command("POST /tags")
    async def tag(self, names: list[str]) -> int: ...
    @command("POST /fill")
    async def fill(self, name: str, size: int) -> None: ...
    @command("POST /dawdle")
    async def dawdle(self, name: str) -> None: ...
    @command("POST /nested")
    async def nested(self, name: str) -> None: ...
    @command("POST /crash")
    async def crash(self, name: str) -> None: ...
    @command("POST /slow")
    async def slow(self, seconds: float) -> None: ...
    @command("POST /plan", raises=(Taken,))
    async def plan(self, name: str) -> str: ...
    @query("GET /who")
    async def who(self) -> str: ...
    @query("GET /count")
    async def count(self) -> int: ...
    @query("GET /page")
    async def page(self, size: int) -> str: ...


notes = Service(
    "notes",
    implements=Notes,
    migrations=[
        Migration(1, ("create table note(id text primary key, text text not null)",), 1),
        Migration(2, ("create table star(id text primary key)",), 1),
    ],
)


class Broken(Contract, Protocol, service="broken", version="1.0"):
    @command("POST /break")
    async def now(self) -> None: ...


broken = Service("broken", implements=Broken)
not_a_service = 4711


async def _insert(tx: Transaction, name: str, text: str) -> int:
    if await tx.execute("select 1 from note where id = ?", name):
        raise Taken(f"there is a note {name}", name=name)
    await tx.execute("insert into note(id, text) values (?, ?)", name, text)
    await tx.append(f"note/{name}", [Written(name)])
    rows = await tx.execute("select count(*) from note")
    return int(str(rows[0][0]))


@notes.writes(Notes.write)
async def write(tx: Transaction, note: Note) -> int:
    return await _insert(tx, note.id, note.text)


@notes.writes(Notes.tag)
async def tag(tx: Transaction, names: list[str]) -> int:
    return len(names)


@notes.writes(Notes.fill)
async def fill(tx: Transaction, name: str, size: int) -> None:
    await _insert(tx, name, "x" * size)


@notes.writes(Notes.dawdle)
async def dawdle(tx: Transaction, name: str) -> None:
    await _insert(tx, name, "waits for something else")
    await asyncio.sleep(0)


@notes.handles(Notes.nested)
async def nested(ctx: Context, name: str) -> None:
    async def calls(tx: Transaction) -> None:
        await _insert(tx, name, "calls out of its unit")
        await ctx.call(Notes.count())

    await ctx.write(calls)


@notes.handles(Notes.crash)
async def crash(ctx: Context, name: str) -> None:
    raise RuntimeError(f"the password {SECRET} was refused")


@notes.handles(Notes.slow)
async def slow(ctx: Context, seconds: float) -> None:
    await asyncio.sleep(seconds)


@notes.handles(Notes.who)
async def who(ctx: Context) -> str:
    who = ctx.principal
    return f"{who.name} may {' '.join(sorted(who.scopes))}" if who.scopes else who.name


@notes.handles(Notes.count)
async def count(ctx: Context) -> int:
    rows = await ctx.read("select count(*) from note")
    return int(str(rows[0][0]))


@notes.handles(Notes.page)
async def page(ctx: Context, size: int) -> str:
    return "x" * size


async def keep(tx: Transaction, name: str) -> str:
    await _insert(tx, name, "planned")
    return name


@notes.saga(str, deadline="1m")
async def planned(s: Saga, name: str) -> str:
    return await s.write(keep, name)


@notes.handles(Notes.plan)
async def plan(ctx: Context, name: str) -> str:
    run = await planned.start(ctx, name, id=f"plan-{name}")
    return await run.result(within_s=5.0) or ""


@notes.projection("stars", events=(Written,))
async def stars(tx: Transaction, event: Any) -> None:
    await tx.execute("insert or ignore into star(id) values (?)", event.id)


@broken.writes(Broken.now)
async def now(tx: Transaction) -> None:
    await tx.append("broken", [Written("now")])


@broken.projection("never", events=(Written,))
async def never(tx: Transaction, event: Any) -> None:
    raise RuntimeError("this projection cannot be made")


async def opens(client: Any) -> None:
    await client.call(Notes.write(Note("first", "the opening wrote it")), key="opening/first")


async def breaks(client: Any) -> None:
    await client.call(Broken.now(), key="opening/break")


async def fails_to_open(client: Any) -> None:
    raise LookupError("the price list is missing")


way_in = Gateway(
    routes=[
        Route("GET /count", Notes.count, public=True),
        Route("POST /notes", Notes.write, public=True),
        Route("POST /slow", Notes.slow, public=True),
        Route("GET /page", Notes.page, public=True),
    ]
)


def no_opening(client: Any) -> None:
    """Is not async."""


def write_config(folder: Path, text: str = TOML) -> Path:
    """Make a folder with a configuration."""
    folder.mkdir(exist_ok=True)
    (folder / "synchromesh.toml").write_text(text)
    return folder


class Running:
    """Runs a system in a thread of its own, so that the command line can be tried against it."""

    def __init__(self, folder: Path, store: StoreOptions = StoreOptions()) -> None:  # noqa: B008
        self._folder = folder
        self._store = store
        self._up = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.loop: asyncio.AbstractEventLoop
        self.system: System

    def __enter__(self) -> Self:
        self._thread.start()
        self._up.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @property
    def log(self) -> list[dict[str, Any]]:
        """What was logged."""
        path = self._folder / ".synchromesh/telemetry/log.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    async def _run(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        try:
            config = load_config(self._folder)
            self.system = System(config, self._folder, RealRuntime(), store=self._store)
            await self.system.start()
        except BaseException as error:
            self._error = error
            return
        finally:
            self._up.set()
        await self.system.wait(self._stop)
        await self.system.stop()
