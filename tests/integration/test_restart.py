"""`synchromesh restart`: a new release of one service while the system runs, and a bad one."""

from __future__ import annotations

import asyncio
import os
from asyncio.subprocess import PIPE, create_subprocess_exec
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from notes_app import STAYS, TESTS, TOML, write_config
from processes import COMMAND, children_of, is_alive
from split_world import ControlSocket, running
from synchromesh.http import HttpPool
from synchromesh.runtime import RealRuntime
from synchromesh.system import System, load_config

pytestmark = pytest.mark.anyio

# The release is a module of the folder, so that it can be replaced as a deploy would.
RELEASE = "restarted_notes.py"
APP = TOML.replace("notes_app:notes", "restarted_notes:notes")
GOOD = "from notes_app import notes\n"
BAD = "from notes_app import nothing\n"
BAD_MIGRATION = """
from notes_app import notes
from synchromesh import Migration

notes.migrations = (*notes.migrations, Migration(3, ("create table note(id text)",), 1))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a system of one service, with its release in it."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    (tmp_path / RELEASE).write_text(GOOD)
    return write_config(tmp_path, APP)


@pytest.fixture
async def split(folder: Path) -> AsyncIterator[System]:
    """That system, with a process for its service."""
    async with running(folder, APP) as system:
        yield system


async def synchromesh(folder: Path, *words: str) -> tuple[int, str, str]:
    """Run a command; return its exit code and what it said."""
    command = await create_subprocess_exec(
        *COMMAND, "--folder", str(folder), *words, stdout=PIPE, stderr=PIPE
    )
    out, err = await command.communicate()
    assert command.returncode is not None
    assert b"Traceback" not in err
    return command.returncode, out.decode(), err.decode()


@pytest.fixture
def asking(split: System, pool: HttpPool) -> ControlSocket:
    """Asks that system."""
    return ControlSocket(split, pool)


async def process_that_answers(asking: ControlSocket) -> int:
    """Return the process of the service, once it has answered a call."""
    assert await asking.call("notes.count") == 0
    return await asking.pid("notes")


async def test_a_service_is_replaced(split: System, folder: Path, asking: ControlSocket) -> None:
    """Another process answers under the same URL; the one before it is gone."""
    url = split.info.services["notes"]
    before = await process_that_answers(asking)
    code, said, _ = await synchromesh(folder, "restart", "notes")
    after = await process_that_answers(asking)
    assert (code, said) == (0, f"notes runs anew, in process {after}\n")
    assert after != before
    assert not is_alive(before)
    assert split.info.services["notes"] == url


@pytest.mark.parametrize(
    ("release", "why"), [(BAD, "nothing"), (BAD_MIGRATION, "table note already exists")]
)
async def test_a_release_that_cannot_be_loaded_topples_nothing(
    folder: Path, asking: ControlSocket, release: str, why: str
) -> None:
    """Exit 2 with its reason; the old process answers on, and the mended release replaces it."""
    before = await process_that_answers(asking)
    (folder / RELEASE).write_text(release)
    code, _, said = await synchromesh(folder, "restart", "notes")
    assert (code, why in said) == (2, True), said
    assert await process_that_answers(asking) == before
    (folder / RELEASE).write_text(GOOD)
    assert (await synchromesh(folder, "restart", "notes"))[0] == 0
    assert await process_that_answers(asking) != before


async def test_a_name_that_nobody_has_is_refused(split: System, folder: Path) -> None:
    """Exit 2, and the names that there are."""
    del split
    code, _, said = await synchromesh(folder, "restart", "nobody")
    assert (code, "is called 'nobody'; there are notes, and" in said) == (2, True)
    code, _, said = await synchromesh(folder, "restart", "nots")
    assert (code, "is called 'nots'; did you mean 'notes'?" in said) == (2, True)


async def test_a_service_of_a_single_process_is_started_anew(folder: Path, pool: HttpPool) -> None:
    """At its URL, with its data; calls that come meanwhile are held, and none fails."""
    write_config(folder, APP + STAYS)
    system = System(load_config(folder), folder, RealRuntime())
    await system.start()
    try:
        asking = ControlSocket(system, pool)
        url, before = system.info.services["notes"], system.instances["notes"]
        is_over, written = asyncio.Event(), list[Any]()

        async def write(customer: int) -> None:
            number = 0
            while not is_over.is_set():
                number += 1
                note = f'{{"id":"{customer}-{number}","text":"x"}}'
                written.append(await asking.call("notes.write", note=note))

        writers = [asyncio.ensure_future(write(n)) for n in range(3)]
        assert await synchromesh(folder, "restart", "notes") == (
            0,
            f"notes runs anew, on the same code, in process {os.getpid()}\n",
            "",
        )
        is_over.set()
        await asyncio.gather(*writers)
        assert sorted(written) == list(range(1, len(written) + 1))
        assert system.instances["notes"] is not before
        assert system.info.services["notes"] == url
        (provider,) = children_of(os.getpid())
        for name in ("notes/projection/stars", "registry", "provider"):
            assert (await synchromesh(folder, "restart", name))[0] == 0
        assert children_of(os.getpid()) not in ([], [provider])
        status = await asking.ask("GET", "/status")
        assert status["findings"] == []
        assert status["services"]["notes"]["instances"][0]["url"] == url
    finally:
        await system.stop()


async def test_a_service_that_cannot_be_started_anew_is_tried_again_by_itself(
    folder: Path, pool: HttpPool
) -> None:
    """Exit 2 and why; the others go on, and it is there once what it lacked is."""
    write_config(folder, APP + '\n[services.broken]\napp = "notes_app:broken"\n')
    system = System(load_config(folder), folder, RealRuntime())
    await system.start()
    try:
        asking = ControlSocket(system, pool)
        data = folder / ".synchromesh/data"
        data.rename(folder / "elsewhere")
        code, _, said = await synchromesh(folder, "restart", "notes")
        assert code == 2
        assert "'notes' could not be started: " in said
        assert said.endswith("it is tried again by itself\n")
        status = await asking.ask("GET", "/status")
        assert any("service/notes is " in finding for finding in status["findings"])
        (folder / "elsewhere").rename(data)
        async with asyncio.timeout(30.0):
            while (await asking.ask("GET", "/status"))["findings"]:
                await asyncio.sleep(0.02)
        assert await asking.call("notes.count") == 0
        assert await asking.call("broken.now") is None
    finally:
        await system.stop()
