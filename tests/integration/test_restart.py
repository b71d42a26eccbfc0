"""`synchromesh restart`: a new release of one service while the system runs, and a bad one."""

from __future__ import annotations

from asyncio.subprocess import PIPE, create_subprocess_exec
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from notes_app import TESTS, TOML, write_config
from processes import COMMAND, is_alive
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
    assert (code, "no process is called 'nobody'" in said, "notes" in said) == (2, True, True)


async def test_one_process_has_nothing_to_replace(folder: Path) -> None:
    """Exit 2, and which way of running has."""
    system = System(load_config(folder), folder, RealRuntime())
    await system.start()
    try:
        code, _, said = await synchromesh(folder, "restart", "notes")
    finally:
        await system.stop()
    assert (code, "--split" in said) == (2, True)
