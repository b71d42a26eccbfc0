"""Histories of sagas as files beside the code, one for each way that a run went."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from synchromesh.errors import ConfigError
from synchromesh.saga.recorded import FORMAT, RecordedRun

PLACE = Path("histories")
SUFFIX = ".json"


class _Form(msgspec.Struct, frozen=True):
    format: int


def read_histories(place: Path) -> dict[str, RecordedRun]:
    """Return the histories in a folder by the names of their files; none where there is no folder.

    Raises:
        ConfigError: a file is none of ours, damaged, or of a newer release.
    """
    found = {}
    for path in sorted(place.glob(f"*{SUFFIX}")):
        try:
            data = path.read_bytes()
            # A newer format may have other fields: it is told from a damaged file first.
            form = msgspec.json.decode(data, type=_Form).format
            if form > FORMAT:
                raise ConfigError(
                    f"{path} has format {form}, and this release reads up to {FORMAT}; upgrade "
                    "Synchromesh"
                )
            found[path.name] = msgspec.json.decode(data, type=RecordedRun)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{path} is no history of a saga ({error}); take it from version control, or "
                "move it away"
            ) from error
    return found


def write_histories(place: Path, runs: Iterable[RecordedRun]) -> list[str]:
    """Write the histories of runs that went a way which is not there yet; return their files.

    What is there is left as it is.

    Raises:
        ConfigError: the folder cannot be written, or has something else in it.
    """
    there = read_histories(place)
    known = {(run.saga_name, run.version, run.path) for run in there.values()}
    names, written = set(there), []
    try:
        place.mkdir(parents=True, exist_ok=True)
        for run in runs:
            if (run.saga_name, run.version, run.path) in known:
                continue
            known.add((run.saga_name, run.version, run.path))
            name = f"{run.saga_name}.v{run.version}.{run.outcome}"
            name = (
                f"{name}{SUFFIX}"
                if f"{name}{SUFFIX}" not in names
                else (f"{name}.{run.path}{SUFFIX}")
            )
            _write(place / name, msgspec.json.encode(run))
            names.add(name)
            written.append(name)
    except OSError as error:
        raise ConfigError(
            f"{error.filename or place} cannot be written: {error.strerror}; make it writable, or "
            "make room on the disk"
        ) from error
    return written


def _write(path: Path, data: bytes) -> None:
    """Write a file atomically, with lines that a review can read."""
    temporary = path.with_suffix(".new")
    try:
        temporary.write_bytes(msgspec.json.format(data, indent=1) + b"\n")
        os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
