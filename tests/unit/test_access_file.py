"""The access log as files: private, bounded, read by `synchromesh logs`; losses are told."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import stat
from pathlib import Path

import pytest

from notes_app import WITH_GATEWAY, write_config
from split_world import port_of, running
from synchromesh.errors import ConfigError
from synchromesh.gateway.access_log import AccessLog, Told
from synchromesh.gateway.origin import Origins
from synchromesh.http import HttpPool
from synchromesh.system.control.log_files import LogFilter, LogFollower, LogLine, read_logs
from synchromesh.system.host import access_file
from synchromesh.system.host.access_file import AccessFile

EVERYTHING = LogFilter()


def log(lines_max: int = 1000) -> AccessLog:
    return AccessLog(1.0, random.Random(0), lambda: 1_700_000_000_000_000, Origins(),
                     lines_max=lines_max)  # fmt: skip


def add(to: AccessLog, count: int, trace_id: str = "") -> None:
    for _ in range(count):
        to.add(
            "GET", "GET /count", 200, 0.0021, 7, peer="10.0.0.1:1", told=Told((), "shop", trace_id)
        )


def read(folder: Path, wanted: LogFilter = EVERYTHING) -> list[LogLine]:
    return read_logs(folder, wanted)


def test_lines_are_private_and_read_as_those_of_the_gateway(tmp_path: Path) -> None:
    """By service and by trace, with all that they say, also by who follows."""
    file = AccessFile(log(), tmp_path / "access.jsonl")
    follower = LogFollower(tmp_path, wall_us=lambda: 0)
    add(file.log, 1, "a" * 32)
    add(file.log, 1, "b" * 32)
    file.close()
    assert stat.S_IMODE((tmp_path / "access.jsonl").stat().st_mode) == 0o600
    (line,) = read(tmp_path, LogFilter(service="gateway", trace="aaaa"))
    assert (line.part, line.level, line.at) == ("gateway", "INFO", "2023-11-14T22:13:20+00:00")
    assert line.message == "GET /count 200 in 2.1 ms by shop"
    assert line.more == {
        "method": "GET",
        "route": "GET /count",
        "status": 200,
        "duration_ms": 2.1,
        "bytes": 7,
        "principal": "shop",
        "client": "10.0.0.1",
        "request_id": "",
        "ended": "ok",
    }
    assert [each.trace_id[0] for each in follower.poll()] == ["a", "b"]
    follower.close()


def test_files_are_turned_at_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest goes; one that another process has turned already is not turned again."""
    monkeypatch.setattr(access_file, "FILE_BYTES_MAX", 1000)
    path = tmp_path / "access.jsonl"
    file, other = AccessFile(log(), path), AccessFile(log(), path)
    for _ in range(20):
        add(file.log, 2)
        file._write(file.log.take())
    names = sorted(each.name for each in tmp_path.iterdir())
    assert names == ["access.jsonl", *(f"access.jsonl.{number}" for number in range(1, 5))]
    assert all(each.stat().st_size <= 1000 for each in tmp_path.iterdir())
    assert all(stat.S_IMODE(each.stat().st_mode) == 0o600 for each in tmp_path.iterdir())
    before = path.stat().st_ino
    add(other.log, 4)
    other._write(other.log.take())
    assert path.stat().st_ino == before
    file.close()
    other.close()


def test_what_cannot_be_written_is_counted_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a full disk, or where lines come faster than they are taken; then it goes on."""
    file = AccessFile(log(lines_max=3), tmp_path / "access.jsonl")
    add(file.log, 5)
    real = os.write
    monkeypatch.setattr(os, "write", half_then_full())
    file._write(file.log.take())
    assert (file.log.dropped, file.lost) == (2, 3)
    monkeypatch.setattr(os, "write", real)
    add(file.log, 2)
    file.close()
    assert "5 lines of the access log are missing" in caplog.text
    whole = [line for line in read(tmp_path) if line.logger == "synchromesh.gateway.access"]
    assert len(whole) == 2


def half_then_full() -> object:
    """Write a little once, and then nothing more."""
    real = os.write
    written: list[int] = []

    def write(handle: int, data: bytes) -> int:
        if written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(real(handle, data[:30]))
        return written[0]

    return write


def test_a_file_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """Before anything listens, and with what to do."""
    with pytest.raises(ConfigError, match=r"access\.jsonl cannot be written: No such file.*off"):
        AccessFile(log(), tmp_path / "none" / "access.jsonl")


@pytest.mark.anyio
async def test_a_system_writes_it(tmp_path: Path, pool: HttpPool) -> None:
    """A line for each request of the gateway, none for its health, and its rest at the end."""
    settings = 'access_log = "on"\nhealth = "/healthz"\n'
    async with running(tmp_path, WITH_GATEWAY + settings, is_split=False) as system:
        port = port_of(system.info.gateway)
        for path in ("/count", "/healthz", "/none?secret=hunter2"):
            await pool.request("127.0.0.1", port, "GET", path, timeout_s=30.0)
        telemetry = tmp_path / ".synchromesh" / "telemetry"
        async with asyncio.timeout(30.0):
            while len(told := read(telemetry, LogFilter(service="gateway"))) < 2:
                await asyncio.sleep(0.02)
        assert [(each.more["route"], each.more["status"]) for each in told] == [
            ("GET /count", 200),
            ("", 404),
        ]
        assert told[0].more["client"] == "127.0.0.1"
        assert "hunter2" not in (telemetry / "access.jsonl").read_text()
        await pool.request("127.0.0.1", port, "GET", "/count", timeout_s=30.0)
    assert len(read(telemetry, LogFilter(service="gateway"))) == 3


@pytest.mark.anyio
async def test_where_it_is_off_there_is_no_file(tmp_path: Path) -> None:
    """As it is unless somebody asks for it."""
    write_config(tmp_path)
    async with running(tmp_path, WITH_GATEWAY, is_split=False):
        assert not (tmp_path / ".synchromesh" / "telemetry" / "access.jsonl").exists()
