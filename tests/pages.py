"""Pages of the documentation as a reader follows them: files written, commands typed."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from synchromesh.cli import main

ROOT = Path(__file__).parents[1]
SYNCHROMESH = str(Path(sys.executable).with_name("synchromesh"))
WITHIN_S = 60.0
AGAIN_S = 0.1

FENCE = re.compile(r"^```(\w+)((?: [^\n]*)?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TITLE = re.compile(r' title="([^"]+)"')
# The command line says so of a call that was refused or failed, and exits with 1.
REFUSED = re.compile(r"\w+ \(\d{3}\): ")

# What pytest prints while it runs.
EXPORT = re.compile(r"export ([A-Z_]+)=\$\(synchromesh (.*)\)")
DOTS = re.compile(r"\.+ +\[ *\d+%\]")

# What differs from one run to the next.
VARIABLE = (
    (re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"), "ID"),
    (re.compile(r"\b[0-9a-f]{32}\b"), "TRACE"),
    (re.compile(r"\btoken=[\w-]+"), "token=TOKEN"),
    (re.compile(r"(127\.0\.0\.1:|process )\d+"), r"\1N"),
    (re.compile(r"\b\d+\.\d+ ?(ms|s)\b"), r"N \1"),
    (re.compile(r"\b\d\d:\d\d:\d\d UTC"), "TIME UTC"),
    (re.compile(r"^(\w+ -> \w+ .*?) \d+ +\d+ *$"), r"\1 N N"),  # calls in a breaker's window
    (re.compile(r"^(\S+ +\d+% errors .*?) \d+ *$"), r"\1 N"),  # attempts that a fault has struck
    # How many fit in before a breaker opens.
    (re.compile(r"\d+ attempts, last "), "last "),
    (re.compile(r"█+"), " "),
    (re.compile(r" +"), " "),
)


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    title: str
    body: str


class Typed(NamedTuple):
    """A command of a page and what the page says that it prints; `...` stands for further lines."""

    line: str
    shown: list[str]


def blocks_of(text: str) -> list[Block]:
    """Return the fenced blocks of a page, in their order; the title of one is a file's name."""
    return [
        Block(language, title[1] if (title := TITLE.search(more)) else "", body)
        for language, more, body in FENCE.findall(text)
    ]


def typed_in(block: Block) -> Iterator[Typed]:
    """Yield the commands of a console block, each with the lines below it."""
    command: Typed | None = None
    for line in block.body.splitlines():
        if line.startswith("$ "):
            if command is not None:
                yield command
            command = Typed(line[2:], [])
        elif command is not None:
            command.shown.append(line)
    if command is not None:
        yield command


def constant(line: str) -> str:
    """Return what of a line of output is the same in every run."""
    for pattern, instead in VARIABLE:
        line = pattern.sub(instead, line)
    return line.rstrip()


def is_as_shown(shown: list[str], printed: list[str]) -> bool:
    """Tell whether a page shows what was printed; `...` stands for any number of lines."""
    return _fits([constant(line) for line in shown], [constant(line) for line in printed])


def _fits(shown: list[str], printed: list[str]) -> bool:
    if not shown:
        return not printed
    if shown[0] == "...":
        return any(_fits(shown[1:], printed[at:]) for at in range(len(printed) + 1))
    return printed[:1] == shown[:1] and _fits(shown[1:], printed[1:])


class Reader:
    """Follows a page in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.typed: list[str] = []
        self._patience = 300
        self._dev: subprocess.Popen[str] | None = None
        self._environment = {n: v for n, v in os.environ.items() if not n.startswith("COV")}
        self._environment |= {"COLUMNS": "160", "PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1"}

    def write(self, block: Block) -> None:
        """Write a file that a page shows, over the one of an earlier block."""
        path = self.folder / block.title
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.body)

    def type(self, command: Typed) -> None:
        """Type a command; it prints what the page shows, and exits as that says."""
        words = shlex.split(command.line)
        self.typed.append(command.line)
        match words:
            case ["make", *_] | ["source", *_]:
                return  # whoever reads this page here has done so
            case ["mkdir", name]:
                (self.folder / name).mkdir()
            case ["cd", name]:
                self.folder /= name
            case ["synchromesh", "dev", *_]:
                self.stop()
                self._start(words, command.shown)
            case ["export", *_]:
                self._export(command.line)
            case ["synchromesh", "gateway", "mirror"]:
                self._compare(command.shown)
            case ["synchromesh", *arguments]:
                self._judge(words, command.shown, *self._until_closed(arguments, command.shown))
            case ["python", *_]:
                self._judge(words, command.shown, *self._run(words))
            case _:
                raise AssertionError(f"no reader here can type {command.line!r}")

    def _export(self, line: str) -> None:
        """Set a variable to what a command prints."""
        exported = EXPORT.fullmatch(line)
        assert exported is not None, line
        # In a process of its own: it may import what the page has written.
        code, out, err = self._run(["synchromesh", *shlex.split(exported[2])])
        assert code == 0, f"{line}\n{err}"
        self._environment[exported[1]] = out.strip()

    def _compare(self, shown: list[str]) -> None:
        """Show what has come of copies, which may still be under way."""
        arguments = ["gateway", "mirror"]
        code, out, err = self._invoke(arguments)
        while not is_as_shown(shown, out.splitlines()) and self._patience:
            self._patience -= 1
            threading.Event().wait(AGAIN_S)
            code, out, err = self._invoke(arguments)
        assert is_as_shown(shown, out.splitlines()), out + err
        assert code == int("UTC, trace" in out)

    def stop(self) -> None:
        """Press Ctrl-C where the system runs."""
        if self._dev is not None:
            process, self._dev = self._dev, None
            process.send_signal(signal.SIGINT)
            try:
                told, _ = process.communicate(timeout=WITHIN_S)
            finally:
                process.kill()
            assert (process.returncode, "Traceback" in told) == (0, False), told

    def _start(self, words: list[str], shown: list[str]) -> None:
        self._dev = subprocess.Popen(
            self._program(words),
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._dev.stdout is not None
        printed: list[str] = []
        while line := self._dev.stdout.readline():
            printed.append(line.rstrip("\n"))
            if line.startswith("  console "):
                break
        assert not shown or is_as_shown(shown, printed), "\n".join(printed)

    def _until_closed(self, arguments: list[str], shown: list[str]) -> tuple[int, str, str]:
        """Run a command, and again while a breaker is open that the page says has closed."""
        code, out, err = self._invoke(arguments)
        while "circuit_open" in out and "circuit_open" not in "".join(shown):
            assert self._patience, f"{arguments}\n{out}"
            self._patience -= 1
            threading.Event().wait(AGAIN_S)
            code, out, err = self._invoke(arguments)
        return code, out, err

    def _invoke(self, arguments: list[str]) -> tuple[int, str, str]:
        """Run a command in this process, which saves starting one: it asks the system that runs."""
        out, err = io.StringIO(), io.StringIO()
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as ended,
        ):
            main(["--folder", str(self.folder), *arguments])
        assert isinstance(ended.value.code, int)
        return ended.value.code, out.getvalue(), err.getvalue()

    def _run(self, words: list[str]) -> tuple[int, str, str]:
        done = subprocess.run(
            self._program(words),
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    @staticmethod
    def _judge(words: list[str], shown: list[str], code: int, out: str, err: str) -> None:
        """Check that a command exits as the page says, prints that, and leaves no traceback."""
        told = out + err
        expected = 1 if shown and REFUSED.match(shown[0]) else 0
        assert (code, "Traceback" in told) == (expected, False), f"{words}\n{told}"
        printed = [line for line in out.splitlines() if not DOTS.fullmatch(line)]
        assert not shown or is_as_shown(shown, printed), f"{words}\n{told}"

    @staticmethod
    def _program(words: list[str]) -> list[str]:
        first = SYNCHROMESH if words[0] == "synchromesh" else sys.executable
        return [first, *words[1:]]


@contextlib.contextmanager
def reading(folder: Path) -> Iterator[Reader]:
    """Give a reader, and leave no process behind."""
    reader = Reader(folder)
    try:
        yield reader
    finally:
        reader.stop()


def follow(reader: Reader, page: Path, **instead: str) -> None:
    """Do what a page says, block after block; `instead` replaces what differs here, by name."""
    text = page.read_text()
    for old, new in instead.items():
        text = text.replace(old, new)
    for block in blocks_of(text):
        if block.title:
            reader.write(block)
        elif block.language == "console":
            for command in typed_in(block):
                reader.type(command)


def prepare(reader: Reader, page: Path) -> None:
    """Write the files of a page that another one goes on from, as they are in the end."""
    for block in blocks_of(page.read_text()):
        if block.title:
            reader.write(block)
