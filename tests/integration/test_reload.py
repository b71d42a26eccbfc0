"""`dev --reload`: changed code is taken up at the same addresses; broken code replaces nothing."""

from __future__ import annotations

import json
import os
import select
import subprocess
from pathlib import Path
from typing import Any

import pytest

from notes_app import TOML, write_config
from processes import COMMAND, announced, dev, until

SERVICE = """
from typing import Protocol
from synchromesh import Context, Contract, Service, command, query, Transaction, Migration
from {name}_word import WORD

class {cls}(Contract, Protocol, service="{name}", version="1.0"):
    @query("GET /word")
    async def word(self) -> str: ...
    @command("POST /words")
    async def keep(self, word: str) -> int: ...

{name} = Service("{name}", implements={cls}, migrations=[
    Migration(1, ("create table word(word text primary key)",), 1)])

@{name}.handles({cls}.word)
async def word(ctx: Context) -> str:
    return WORD

@{name}.writes({cls}.keep)
async def keep(tx: Transaction, word: str) -> int:
    await tx.execute("insert into word values (?)", word)
    return int(str((await tx.execute("select count(*) from word"))[0][0]))
"""
WAIT_S = 90.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A system of two services, each with a module of its own beside it."""
    text = TOML.partition("[services")[0]
    for name in ("left", "right"):
        (tmp_path / f"{name}.py").write_text(SERVICE.format(name=name, cls=name.title()))
        (tmp_path / f"{name}_word.py").write_text("WORD = 'old'\n")
        text += f'[services.{name}]\napp = "{name}:{name}"\n'
    return write_config(tmp_path, text)


def call(folder: Path, operation: str, *words: str) -> Any:
    """Call an operation; its result, or None where the system does not answer."""
    command = (*COMMAND, "--folder", str(folder), "call", operation, *words, "--json")
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    return json.loads(ran.stdout)["result"] if ran.stdout.startswith("{") else None


def status_of(folder: Path) -> Any:
    """Return the status of the system."""
    command = (*COMMAND, "--folder", str(folder), "status", "--json")
    return json.loads(subprocess.run(command, stdout=-1, check=False).stdout)


def said(process: subprocess.Popen[str], words: str) -> str:
    """Read what the terminal shows until these words are there, and return it."""
    text = ""
    assert process.stderr is not None
    while words not in text:
        # Past the text layer: what that has buffered would not be waited for.
        assert select.select([process.stderr], [], [], WAIT_S)[0], text
        data = os.read(process.stderr.fileno(), 65_536)
        assert data, text
        text += data.decode()
    return text


def test_a_system_of_one_process_starts_anew(folder: Path) -> None:
    """In the same process id, at the same URLs, with what was acknowledged; not on broken code."""
    with dev(folder, "--reload") as process:
        before = announced(process)
        del before["console"]  # its URL lets in once
        assert call(folder, "left.keep", "word=a") == 1
        (folder / "left_word.py").write_text("WORD = = 'broken'\n")
        shown = said(process, "it runs on with what it had")
        assert "left_word.py changed" in shown
        assert call(folder, "left.word") == "old"
        (folder / "left_word.py").write_text("WORD = 'newer'\n")
        after = announced(process)
        del after["console"]
        assert after == before
        assert call(folder, "left.word") == "newer"
        assert call(folder, "left.keep", "word=b") == 2
        process.terminate()
        assert process.wait(WAIT_S) == 0


def test_of_a_split_system_only_what_changed_is_replaced(folder: Path) -> None:
    """The other service keeps its process; a broken edit keeps the old one, and is shown."""
    with dev(folder, "--split", "--reload") as process:
        announced(process)
        pids = {name: each["pid"] for name, each in status_of(folder)["services"].items()}
        # Of another length: bytecode is told from its source by its second and its size.
        (folder / "left_word.py").write_text("WORD = 'newer'\n")
        said(process, "reload: left runs anew")
        assert (call(folder, "left.word"), call(folder, "right.word")) == ("newer", "old")
        (folder / "left_word.py").write_text("raise LookupError('not here')\n")
        assert "not here" in said(process, "reload: left runs on with what it had")
        assert call(folder, "left.word") == "newer"
        now = {name: each["pid"] for name, each in status_of(folder)["services"].items()}
        assert now["left"] != pids["left"]
        assert now["right"] == pids["right"]
        process.terminate()
        assert process.wait(WAIT_S) == 0


def test_without_it_a_change_is_told_of_once(folder: Path) -> None:
    """On the terminal, and in the status, which is no finding; a touched file is no change."""
    with dev(folder) as process:
        announced(process)
        (folder / "right.py").touch()
        (folder / "right_word.py").write_text("WORD = 'newer'\n")
        assert "code has changed since it was started: right_word.py; " in said(process, "changed")
        assert status_of(folder)["code_changed"] == {"right": ["right_word.py"]}
        assert status_of(folder)["findings"] == []
        assert call(folder, "right.word") == "old"
        (folder / "right_word.py").write_text("WORD = 'old'\n")
        assert until(lambda: status_of(folder)["code_changed"] == {})
        process.terminate()
        assert process.stderr is not None
        assert (process.wait(WAIT_S), process.stderr.read()) == (0, "")
