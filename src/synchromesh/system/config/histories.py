"""Histories of sagas as files beside the code, one for each way that a run went."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from synchromesh.errors import ConfigError
from synchromesh.saga.recorded import FORMAT, RecordedRun
from synchromesh.system.config.kept_files import SUFFIX, read_kept, write_kept

PLACE = Path("histories")


def read_histories(place: Path) -> dict[str, RecordedRun]:
    """Return the histories in a folder by the names of their files; none where there is no folder.

    Raises:
        ConfigError: a file is none of ours, damaged, or of a newer release.
    """
    return {
        path.name: read_kept(path, RecordedRun, newest=FORMAT, what="history of a saga")
        for path in sorted(place.glob(f"*{SUFFIX}"))
    }


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
            write_kept(place / name, msgspec.json.encode(run))
            names.add(name)
            written.append(name)
    except OSError as error:
        raise ConfigError(
            f"{error.filename or place} cannot be written: {error.strerror}; make it writable, or "
            "make room on the disk"
        ) from error
    return written
