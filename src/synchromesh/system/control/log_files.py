"""The log files of a run directory, read and followed: those of all processes, as one.

Each process writes JSON lines to a file of its own, which is turned at a size: `log-orders.jsonl`
is renamed to `log-orders.jsonl.1`, and so on. Beside them is the access log of the gateway,
`access.jsonl`. A follower reads on in a file that was turned, and then in what came after it. What
a process prints is in `orders.log`, as it was printed.
"""

from __future__ import annotations

import datetime as dt
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from synchromesh.codec import to_datetime

LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}
TURNED_MAX = 16
# What is read of a file at once, and how long a line may be.
READ_BYTES = 1 << 20
PRINTED = "printed"

_JSON = re.compile(
    r"(?:log(?:-(?P<part>.+))?|(?P<access>access)(?:-(?P<of>.+))?)\.jsonl(?:\.(?P<turned>\d+))?"
)
_OWN = ("at", "level", "logger", "message", "trace_id", "span_id", "exception")


class LogLine(msgspec.Struct, frozen=True):
    """A record of the log.

    Attributes:
        part: whose process wrote it: a service, one of its replicas, the gateway, or "" for the
            whole system; of what was printed, an external service too.
        at: ISO 8601; of what was printed, when a follower saw it come, and "" of what was there.
        level: such as "ERROR"; "" of what was printed.
        exception: the traceback; "" where there is none.
        more: what else was recorded, by name.
    """

    part: str
    at: str
    level: str
    logger: str
    message: str
    trace_id: str = ""
    exception: str = ""
    more: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class LogFilter:
    """Which lines are wanted; what is empty wants all.

    Attributes:
        service: lines of its process; where all run in one, those that name it.
        level: lines of that level or a higher one.
        trace: lines of traces whose id begins so.
        since: ISO 8601, in UTC: lines from then on.
    """

    service: str = ""
    level: str = ""
    trace: str = ""
    since: str = ""

    def takes(self, line: LogLine) -> bool:
        """Say whether a line is wanted.

        Example:
            >>> line = LogLine("orders", "2026-01-01T00:00:00+00:00", "ERROR", "orders", "failed")
            >>> LogFilter(service="orders", level="WARNING").takes(line)
            True
        """
        if self.service and not self._is_of_service(line):
            return False
        if line.logger == PRINTED:
            # Without a time nobody knows whether it is as new as is asked for.
            return not (self.level or self.trace) and line.at >= self.since
        if self.level and LEVELS.get(line.level, 0) < LEVELS[self.level]:
            return False
        if self.trace and not line.trace_id.startswith(self.trace):
            return False
        return line.at >= self.since

    def _is_of_service(self, line: LogLine) -> bool:
        if line.part:
            return self.service in (line.part, line.part.partition("#")[0])
        word = rf"\b{re.escape(self.service)}\b"
        return any(re.search(word, each) for each in (line.message, line.logger, line.exception))


def read_logs(
    folder: Path, wanted: LogFilter, *, is_turned_only: bool = False, holding: bytes = b""
) -> list[LogLine]:
    """Return the lines of all files that are wanted, the oldest first.

    What was printed has no time, and is there only for a service that is asked for, last, and for
    all times.

    Args:
        is_turned_only: only of files that are not written any more; a follower has the others.
        holding: what a line has to have in it as it is stored; others are not even decoded.
    """
    found: list[LogLine] = []
    printed: list[LogLine] = []
    for path in sorted(folder.glob("*.jsonl*")) if folder.is_dir() else ():
        named = _JSON.fullmatch(path.name)
        if named and (named["turned"] or not is_turned_only):
            found += _lines_of(path, _part_of(named), wanted, holding)
    if wanted.service and not is_turned_only:
        for path in sorted(folder.glob(f"{wanted.service}*.log")):
            printed += _lines_of(path, path.stem, wanted, holding)
    return [*sorted(found, key=lambda line: line.at), *printed]


class LogFollower:
    """Reads what is appended to the log files of a folder, in all of them; `poll` it now and then.

    Args:
        wall_us: tells when what is printed has come.
        is_whole: from the beginning of the files of records that are there; else only what comes.
        bytes_max: how much one `poll` reads of each file, about; what is more comes with the next.
    """

    def __init__(
        self,
        folder: Path,
        *,
        wall_us: Callable[[], int],
        is_whole: bool = False,
        bytes_max: int = sys.maxsize,
    ) -> None:
        self._folder = folder
        self._wall_us = wall_us
        self._bytes_max = bytes_max
        self._tails: dict[Path, _Tail] = {}
        self._has_looked = False
        self._look(is_whole=is_whole)

    def poll(self, wanted: LogFilter | None = None, *, is_last: bool = False) -> list[LogLine]:
        """Return the wanted lines that have come since, those of one file in their order.

        Args:
            is_last: nothing is written any more, so that what has no end of line is a line, too.
        """
        self._look(is_whole=True)
        wanted = wanted or LogFilter()
        came = [line for tail in self._tails.values() for line in tail.read(self._bytes_max)]
        if is_last:
            came += [line for tail in self._tails.values() for line in tail.end()]
        now = to_datetime(self._wall_us()).isoformat()
        found = [
            msgspec.structs.replace(line, at=now) if line.logger == PRINTED else line
            for line in came
        ]
        return sorted(filter(wanted.takes, found), key=lambda line: line.at or "9")

    def close(self) -> None:
        """Close the files."""
        for tail in self._tails.values():
            tail.close()
        self._tails.clear()

    def _look(self, *, is_whole: bool) -> None:
        named_so = ("log*.jsonl", "access*.jsonl", "*.log")
        for path in (each for pattern in named_so for each in self._folder.glob(pattern)):
            if path not in self._tails:
                named = _JSON.fullmatch(path.name)
                part = _part_of(named) if named else path.stem
                # What was printed before has no time by which it could be told apart.
                is_new = is_whole and (named is not None or self._has_looked)
                self._tails[path] = _Tail(path, part, is_whole=is_new)
        self._has_looked = True


class _Tail:
    """Reads on in one file, and in those that it becomes when it is turned."""

    def __init__(self, path: Path, part: str, *, is_whole: bool) -> None:
        self._path = path
        self._part = part
        self._file: BinaryIO | None = None
        self._rest = b""
        self._left = 0
        self._open(path, os.SEEK_SET if is_whole else os.SEEK_END)

    def read(self, bytes_max: int) -> Iterator[LogLine]:
        """Yield the whole lines that have come since, or so many bytes of them, about."""
        self._left = bytes_max
        if self._file is None:
            self._open(self._path)
        if self._file is None:
            return
        yield from self._rest_of_file()
        while number := self._turned():
            # Nothing is appended to it any more; what came just before it was turned is its end.
            yield from self._rest_of_file()
            if self._left <= 0:
                return
            name = f"{self._path.name}.{number - 1}" if number > 1 else self._path.name
            self._open(self._path.with_name(name))
            yield from self._rest_of_file()
        yield from self._rest_of_file()

    def end(self) -> Iterator[LogLine]:
        """Yield what was read behind the last end of line."""
        rest, self._rest = self._rest, b""
        if rest.strip():
            yield _parsed(rest, self._part, is_printed=self._path.suffix == ".log")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _open(self, path: Path, where: int = os.SEEK_SET) -> None:
        self.close()
        self._file, self._rest = None, b""
        with suppress(OSError):
            self._file = path.open("rb")
            self._file.seek(0, where)

    def _turned(self) -> int:
        """Return which number the file has by now: 0 where it is still the one that is written."""
        if self._file is None:
            return 0
        own = os.fstat(self._file.fileno())
        for number in range(TURNED_MAX):
            name = f"{self._path.name}.{number}" if number else self._path.name
            with suppress(OSError):
                there = self._path.with_name(name).stat()
                if (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino):
                    if not number and there.st_size < self._file.tell():
                        self._file.seek(0)  # it was emptied
                    return number
        # It has gone, and with it perhaps others: what is written now is all that is left.
        return 1 if self._path.exists() else 0

    def _rest_of_file(self) -> Iterator[LogLine]:
        while self._left > 0 and self._file is not None and (data := self._file.read(READ_BYTES)):
            self._left -= len(data)
            *lines, self._rest = (self._rest + data).split(b"\n")
            if len(self._rest) > READ_BYTES:
                self._rest = b""
            for line in lines:
                if line.strip():
                    yield _parsed(line, self._part, is_printed=self._path.suffix == ".log")


def _part_of(named: re.Match[str]) -> str:
    # The access log is the gateway's, whichever process writes it, or of one of several.
    return named["part"] or named["of"] or ("gateway" if named["access"] else "")


def _lines_of(path: Path, part: str, wanted: LogFilter, holding: bytes) -> list[LogLine]:
    is_printed = path.suffix == ".log"
    try:
        data = path.read_bytes()
    except OSError:
        return []  # it was turned and dropped meanwhile
    if holding not in data:
        return []
    lines = [line for line in data.split(b"\n") if holding in line]
    parsed = (_parsed(line, part, is_printed=is_printed) for line in lines if line.strip())
    return [line for line in parsed if wanted.takes(line)]


def _parsed(line: bytes, part: str, *, is_printed: bool) -> LogLine:
    text = line.decode(errors="replace")
    if not is_printed:
        try:
            record = msgspec.json.decode(line, type=dict[str, Any])
            own = {name: str(record.get(name, "")) for name in _OWN if name != "span_id"}
            more = {name: value for name, value in record.items() if name not in _OWN}
            return LogLine(part, more=more, **own)
        except msgspec.MsgspecError:
            pass  # a power cut left half of it
    return LogLine(part, "", "", PRINTED, text)


def since_of(text: str, now_us: int) -> str:
    """Return the moment that a text stands for: a duration before now, or ISO 8601 itself.

    Raises:
        ConfigError: it is neither.

    Example:
        >>> since_of("90s", 90_000_000)
        '1970-01-01T00:00:00+00:00'
    """
    from synchromesh.durations import duration
    from synchromesh.errors import ConfigError

    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    try:
        at = dt.datetime.fromisoformat(text)
    except ValueError:
        try:
            at = epoch + dt.timedelta(microseconds=now_us, seconds=-duration(text))
        except ConfigError:
            raise ConfigError(
                f"{text[:40]!r} is neither a duration, such as 10m, nor a time, such as "
                "2026-01-31T12:00"
            ) from None
    return (at if at.tzinfo else at.replace(tzinfo=dt.UTC)).astimezone(dt.UTC).isoformat()
