"""Shows lines of the log to people: one for each record, and of tracebacks their own frames."""

from __future__ import annotations

import re
from pathlib import Path

import click

from synchromesh.cli.output import visible
from synchromesh.system.control.log_files import LEVELS, PRINTED, LogLine

_COLOURS = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "bright_red"}
_FRAME = re.compile(r'  File "(?P<path>[^"]+)", line \d+, in ')
FRAMES_MAX = 8
# Warnings of these say that a call failed, or a breaker opened: its own line tells of the reason.
# Those of migrations are shown at once, also while the system starts.
_QUIET = (
    "synchromesh.calls",
    "synchromesh.gateway",
    "synchromesh.http",
    "synchromesh.migrations",
    "synchromesh.resilience",
)


def shown(line: LogLine, folder: Path) -> str:
    """Return a record as text: time, level, part, message, trace, and where it raised.

    What is in it may be anybody's: it commands no terminal, and passes for no other record.
    """
    # Lines that follow are set in, as those of a traceback are.
    message = visible(line.message).replace("\n", "\n  ")
    if line.logger == PRINTED:
        return f"{click.style(visible(line.part), dim=True)} | {message}"
    colour = _COLOURS.get(line.level)
    head = [
        click.style(visible(line.at[11:23].partition("+")[0]), dim=True),
        click.style(f"{visible(line.level):<7}", fg=colour, bold=colour is not None),
        *([visible(line.part)] if line.part else []),
        message,
    ]
    if line.trace_id and line.trace_id not in line.message:
        head.append(click.style(f"[trace {visible(line.trace_id)}]", dim=True))
    return "\n".join([" ".join(head), *traceback_of(visible(line.exception), folder)])


def traceback_of(text: str, folder: Path) -> list[str]:
    """Return the lines of a traceback that are the user's own, the last of them, and the error.

    Frames of ours, of libraries and of the interpreter say little to whoever wrote the handler.
    """
    if not text:
        return []
    frames: list[list[str]] = []
    error: list[str] = []
    for line in text.splitlines():
        if _FRAME.match(line):
            frames.append([line])
        elif frames and line.startswith("    "):
            frames[-1].append(line)
        elif not line.startswith("Traceback ") and line.strip():
            error.append(line)
    own = [frame for frame in frames if _is_own(frame[0], folder)][-FRAMES_MAX:]
    cut = [line for frame in own for line in frame if set(line.strip()) - set("^~")]
    return [*cut, *(click.style(f"  {each}", fg="red") for each in error[-3:])]


def _is_own(frame: str, folder: Path) -> bool:
    named = _FRAME.match(frame)
    if named is None:
        return False
    path = Path(named["path"])
    if "site-packages" in path.parts:
        return False
    return path.is_relative_to(folder)


def is_for_terminal(line: LogLine) -> bool:
    """Say whether `dev` shows a record: errors, and warnings of what is no single call."""
    if line.logger == PRINTED:
        return True
    rank = LEVELS.get(line.level, 0)
    if rank >= LEVELS["ERROR"]:
        return True
    return rank >= LEVELS["WARNING"] and not line.logger.startswith(_QUIET)
