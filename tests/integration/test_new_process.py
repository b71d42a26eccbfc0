"""New systems run as they were written: started, called and stopped as real processes."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from processes import COMMAND, announced, dev, family_of, is_alive

WITHIN_S = 60.0


def synchromesh(folder: Path, *words: str) -> str:
    """Run a command of the command line, and return what it printed."""
    done = subprocess.run(
        [*COMMAND, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@contextmanager
def running(folder: Path, *flags: str) -> Iterator[None]:
    """Run `synchromesh dev` in a folder, and stop it as Ctrl-C does; no process is left."""
    with dev(folder, *flags) as process:
        announced(process)
        below = family_of(process.pid)
        yield
        process.send_signal(signal.SIGINT)
        assert process.wait(WITHIN_S) == 0
    assert not any(map(is_alive, below))


@pytest.mark.parametrize("how", [(), ("--split",)], ids=["one process", "split"])
def test_a_new_system_runs(tmp_path: Path, how: tuple[str, ...]) -> None:
    """`new`, `config check`, `dev`, one call, Ctrl-C: without a line changed."""
    synchromesh(tmp_path, "new", "fresh")
    folder = tmp_path / "fresh"
    assert "all is right with" in synchromesh(folder, "config", "check")
    with running(folder, *how):
        called = synchromesh(folder, "call", "greeter.greet", "name=Ada", "--json")
    assert json.loads(called)["result"] == "Hello, Ada!"


@pytest.mark.parametrize("how", [(), ("--split",)], ids=["one process", "split"])
def test_a_running_system_heeds_flags_and_keeps_its_key_to_itself(
    tmp_path: Path, how: tuple[str, ...]
) -> None:
    """`--set` reaches the process; no file of the run has the key that it was given."""
    secret = "5ec4e7" * 11
    synchromesh(tmp_path, "new", "fresh")
    folder = tmp_path / "fresh"
    (tmp_path / "key").write_text(f"{secret}\n")
    flags = ("--set", "system.name=renamed", "--set", "system.key=file:../key")
    with running(folder, *how, *flags):
        info = json.loads((folder / ".synchromesh" / "run.json").read_text())
        assert info["system"] == "renamed"
        assert synchromesh(folder, "call", "greeter.greeted").startswith("[]")
        assert secret not in synchromesh(folder, "status", "--json")
        files = [path for path in (folder / ".synchromesh").rglob("*") if path.is_file()]
        assert not any(secret.encode() in path.read_bytes() for path in files)
