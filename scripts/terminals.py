"""Terminals with what a real run printed: recorded once, with its colours, and drawn by rich."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
from io import StringIO
from pathlib import Path

import msgspec
from rich.console import Console
from rich.text import Text

RECORDED = Path(__file__).parents[1] / "docs/pictures/terminals.json"
COLUMNS = 100
SYNCHROMESH = str(Path(sys.executable).with_name("synchromesh"))
SESSIONS = {
    "dev": ["synchromesh dev"],
    "break": [
        "synchromesh break billing:credit_provider --errors 100% --for 20s",
        "synchromesh break inventory --latency 300ms --for 20s",
        "synchromesh call inventory.stock sku=SX90",
    ],
    "status": ["synchromesh status"],
}
# What is typed before a session, and not shown.
BEFORE = {"status": "synchromesh call orders.place order_id=A-3 sku=SX90 qty=1"}


def record() -> None:
    """Run servo-works, break it, and keep what was printed."""
    with tempfile.TemporaryDirectory() as parent:
        subprocess.run([SYNCHROMESH, "new", "servo-works", "--example"], cwd=parent, check=True)
        folder = Path(parent) / "servo-works"
        ours, theirs = pty.openpty()
        system = subprocess.Popen(
            [SYNCHROMESH, "dev"], cwd=folder, stdout=theirs, env=_environment()
        )
        os.close(theirs)
        printed = ""
        try:
            while "  control " not in printed or not printed.endswith("\n"):
                printed += os.read(ours, 65_536).decode()
            told = {"dev": [printed]}
            for name, lines in SESSIONS.items():
                if name in BEFORE:
                    _printed_by(BEFORE[name], folder)
                if name != "dev":
                    told[name] = [_printed_by(line, folder) for line in lines]
        finally:
            system.send_signal(signal.SIGINT)
            system.wait(30.0)
    RECORDED.write_bytes(msgspec.json.format(msgspec.json.encode(told), indent=1) + b"\n")


def _printed_by(command: str, folder: Path) -> str:
    ours, theirs = pty.openpty()
    running = subprocess.Popen(
        [SYNCHROMESH, *command.split()[1:]], cwd=folder, stdout=theirs, env=_environment()
    )
    os.close(theirs)
    printed = b""
    try:
        while block := os.read(ours, 65_536):
            printed += block
    except OSError:  # the other end has gone
        pass
    running.wait(30.0)
    return printed.decode()


def _environment() -> dict[str, str]:
    return {**os.environ, "COLUMNS": str(COLUMNS), "TERM": "xterm-256color"}


def draw(name: str) -> str:
    """Return one terminal, from what was recorded."""
    recorded = msgspec.json.decode(RECORDED.read_bytes(), type=dict[str, list[str]])
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True)
    for command, printed in zip(SESSIONS[name], recorded[name], strict=True):
        console.print(Text(f"$ {command}", style="bold"))
        console.print(Text.from_ansi(printed.replace("\r\n", "\n").rstrip()))
    drawn = console.export_svg(title="synchromesh", unique_id=name)
    # Fonts would be fetched from elsewhere.
    drawn = re.sub(r"\s*@font-face \{.*?\}", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r"\s*<!-- .*? -->", "", drawn)
    drawn = re.sub(r"font-family: [^;]*;", "font-family: monospace;", drawn)
    return "\n".join(part.rstrip() for part in drawn.splitlines()) + "\n"
