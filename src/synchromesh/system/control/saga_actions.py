"""What an operator does with sagas."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from synchromesh.errors import BadRequest, SynchromeshError, UnknownSaga
from synchromesh.saga.history import SagaHistory, SagaPayloads
from synchromesh.saga.inspection import impact_of, list_runs, told_run
from synchromesh.saga.records import RepairVerb
from synchromesh.saga.repair import RepairImpact, RepairWish
from synchromesh.store import StoreReader
from synchromesh.system.control.actions import (
    Action,
    ReadAction,
    ReadRequest,
    RepairAction,
    RepairRequest,
)

if TYPE_CHECKING:
    from synchromesh.service import ServiceInstance


# What of a step is told; a page shows 200 characters of it, and may have hundreds of steps.
STEP_CHARS_MAX = 4_096


class ListSagas(ReadRequest, frozen=True):
    """Which runs: the newest of a status; "" is any."""

    status: str = ""
    limit: int = 50


class AskSaga(ReadRequest, frozen=True, kw_only=True):
    """Which run."""

    id: str


class ShowSaga(AskSaga, frozen=True, kw_only=True):
    """Which run, and how much of it.

    Attributes:
        lines: how many records are told, the newest; 0 is all of them.
        payloads: whether it is told what the run and its steps were given and gave; of what is
            longer than `STEP_CHARS_MAX` a step's length alone.
        impacts: whether it is told what each verb would do, or why none can be judged.
    """

    lines: Annotated[int, msgspec.Meta(ge=0)] = 0
    payloads: bool = False
    impacts: bool = False


async def _list(reader: StoreReader, wanted: ListSagas) -> list[dict[str, Any]]:
    runs = await list_runs(reader, wanted.status, wanted.limit)
    return [{"service": reader.service, **asdict(run)} for run in runs]


async def show(reader: StoreReader, wanted: ShowSaga) -> dict[str, Any] | None:
    """Return a run, told as it is asked for; None where there is no such run."""
    teller = await told_run(reader, wanted.id, wanted.lines or None)
    if teller is None:
        return None
    story = teller.history()
    told = _story(reader.service, story)
    if wanted.payloads:
        told["payloads"] = _bounded(story.payloads)
    if wanted.impacts:
        try:
            told["impacts"], told["not_judged"] = teller.impacts(), ""
        except (SynchromeshError, ValueError) as error:
            told["impacts"], told["not_judged"] = [], str(error)
    return told


def _bounded(payloads: SagaPayloads) -> dict[str, Any]:
    """Return payloads without the long ones of steps, whose lengths are in "left_out", else 0."""
    lengths = [len(each) if len(each) > STEP_CHARS_MAX else 0 for each in payloads.steps]
    steps = ["" if long else each for each, long in zip(payloads.steps, lengths, strict=True)]
    return {
        "input": payloads.input, "result": payloads.result, "steps": steps, "left_out": lengths
    }  # fmt: skip


def _story(service: str, story: SagaHistory) -> dict[str, Any]:
    summary = {"service": service, **asdict(story.summary)}
    return {**summary, "lines": story.lines, "not_undone": story.not_undone}


async def _impact(reader: StoreReader, wanted: AskSaga) -> list[RepairImpact] | None:
    return await impact_of(reader, wanted.id)


class RepairSaga(RepairRequest, frozen=True, kw_only=True):
    """Which run is repaired.

    Attributes:
        result: JSON, of the step that was done by hand; left out where there is none.
        not_done: what the run does not know was looked up, and was not done.
    """

    id: str
    result: msgspec.Raw = msgspec.Raw()
    not_done: bool = False


def _repair(
    verb: RepairVerb,
) -> Callable[[ServiceInstance, RepairSaga], Awaitable[dict[str, Any] | None]]:
    async def run(instance: ServiceInstance, wanted: RepairSaga) -> dict[str, Any] | None:
        if not instance.has_database:
            return None
        wish = RepairWish(wanted.who, wanted.why, bytes(wanted.result) or None, wanted.not_done)
        try:
            story = await instance.engine.repair(wanted.id, verb, wish)
        except UnknownSaga:
            return None
        return _story(instance.service.name, story)

    return run


def _unknown(wanted: AskSaga | RepairSaga) -> UnknownSaga:
    return UnknownSaga(f"no saga has the id {wanted.id[:80]!r}; synchromesh saga list shows them")


def _several(wanted: AskSaga, services: list[str]) -> BadRequest:
    """Ids are of a service each, and many are the number of what a run is about."""
    return BadRequest(
        f"{' and '.join(services)} each have a saga with the id {wanted.id[:80]!r}; say which is "
        f"meant, as in: --service {services[0]}"
    )


_SHOW = ReadAction("saga.show", ShowSaga, show, _unknown, several=_several)


def _look(wanted: RepairSaga) -> tuple[ReadAction[ShowSaga], ShowSaga]:
    """Ask for its story, which is told of a run that nobody can judge, too."""
    return _SHOW, ShowSaga(id=wanted.id, lines=1)


ACTIONS: tuple[Action, ...] = (
    ReadAction("saga.list", ListSagas, _list),
    _SHOW,
    ReadAction("saga.impact", AskSaga, _impact, _unknown, several=_several),
    *(
        RepairAction(f"saga.{verb.value}", RepairSaga, _repair(verb), _unknown, look=_look)
        for verb in RepairVerb
    ),
)
