"""What an operator does with sagas."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from synchromesh.errors import UnknownSaga
from synchromesh.saga.inspection import list_runs, show_run
from synchromesh.store import StoreReader
from synchromesh.system.control.actions import Action, ReadAction, ReadRequest


class ListSagas(ReadRequest, frozen=True):
    """Which runs: the newest of a status; "" is any."""

    status: str = ""
    limit: int = 50


class ShowSaga(ReadRequest, frozen=True, kw_only=True):
    """Which run."""

    id: str


async def _list(reader: StoreReader, wanted: ListSagas) -> list[dict[str, Any]]:
    runs = await list_runs(reader, wanted.status, wanted.limit)
    return [{"service": reader.service, **asdict(run)} for run in runs]


async def _show(reader: StoreReader, wanted: ShowSaga) -> dict[str, Any] | None:
    story = await show_run(reader, wanted.id)
    if story is None:
        return None
    summary = {"service": reader.service, **asdict(story.summary)}
    return {**summary, "lines": story.lines, "not_undone": story.not_undone}


def _unknown(wanted: ShowSaga) -> UnknownSaga:
    return UnknownSaga(f"no saga has the id {wanted.id!r}; synchromesh saga list shows them")


ACTIONS: tuple[Action, ...] = (
    ReadAction("saga.list", ListSagas, _list),
    ReadAction("saga.show", ShowSaga, _show, _unknown),
)
