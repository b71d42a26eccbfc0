"""Replays committed histories of sagas in a test."""

from __future__ import annotations

from pathlib import Path

from synchromesh.saga.replaying import Replayer
from synchromesh.service import Service
from synchromesh.system.config.histories import read_histories


def replay_histories(place: Path, *services: Service) -> list[str]:
    """Replay all histories in a folder with the sagas of services; return the files' names.

    Only saga functions are run, on what is recorded.

    Raises:
        AssertionError: a run with one of them would wait for other code; it says which, and the
            first step that differs. It is raised, too, where there is no history at all.
        ConfigError: a file is no history.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as empty:
        ...     replay_histories(Path(empty))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        AssertionError: there is no history in ...
    """
    runs = read_histories(place)
    if not runs:
        raise AssertionError(
            f"there is no history in {place}; record some with: synchromesh saga record"
        )
    replayers = {each.name: Replayer(each.sagas) for each in services}
    bad = []
    for name, run in runs.items():
        replayer = replayers.get(run.service)
        differs = (
            f"no service {run.service!r} was given" if replayer is None else (replayer.differs(run))
        )
        if differs:
            bad.append(f"{name}: {run.saga_name} v{run.version} would wait for {differs}")
    if bad:
        raise AssertionError("\n".join(bad))
    return list(runs)
