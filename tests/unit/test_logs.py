"""The log of a running system: private JSON lines, bounded, and never in the way."""

from __future__ import annotations

import contextlib
import json
import logging
import stat
from pathlib import Path

import pytest

from synchromesh.errors import ConfigError
from synchromesh.system.host.logs import PrivateFile, log_to


def test_records_become_lines_until_it_is_stopped(tmp_path: Path) -> None:
    """Loggers of the toolkit and of users are written; afterwards all is as it was."""
    before = logging.getLogger().level
    stop = log_to(tmp_path / "log.jsonl")
    logging.getLogger("users.own").info("said %d", 1)
    stop()
    logging.getLogger("users.own").warning("not written")
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["logger"], line["message"]) for line in lines] == [("users.own", "said 1")]
    assert logging.getLogger().level == before


def test_files_are_private_also_after_turning(tmp_path: Path) -> None:
    """Each file of the bounded set is its user's alone."""
    handler = PrivateFile(tmp_path / "log", maxBytes=10, backupCount=2, encoding="utf-8")
    for text in ("one line", "two lines", "three", "four lines"):
        handler.emit(logging.makeLogRecord({"msg": text}))
    handler.close()
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["log", "log.1", "log.2"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_a_record_that_cannot_be_written_is_lost_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A full disk stops no work and prints nothing; when there is room again, the log says so."""
    handler = PrivateFile(tmp_path / "log", encoding="utf-8")
    assert handler.stream is not None
    handler.stream.close()
    with contextlib.suppress(OSError), open("/dev/full", "w", encoding="utf-8") as full:
        handler.stream = full
        handler.emit(logging.makeLogRecord({"msg": "there is no room"}))
        handler.emit(logging.makeLogRecord({"msg": "nor for this"}))
    handler.stream = handler._open()
    for text in ("there is again", "and still"):
        handler.emit(logging.makeLogRecord({"msg": text}))
    handler.close()
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines == ["there is again", "2 log records were lost", "and still"]
    assert handler.lost == 2
    assert capsys.readouterr() == ("", "")


def test_a_full_disk_stops_no_end(tmp_path: Path) -> None:
    """What could not be written by then is lost; whatever ends, ends as it would have."""
    handler = PrivateFile(tmp_path / "log", encoding="utf-8")
    assert handler.stream is not None
    handler.stream.close()
    handler.stream = full = open("/dev/full", "w", encoding="utf-8")  # noqa: SIM115  closed below
    handler.emit(logging.makeLogRecord({"msg": "there is no room"}))
    handler.close()
    assert full.closed


def test_a_log_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    """The system does not start without its log."""
    with pytest.raises(ConfigError, match="cannot be written: Is a directory"):
        log_to(tmp_path)
