"""Histories of runs as data: what a run was given, and all that its steps came to.

A history says nothing of when, for whom and in which trace: it is what the code of a saga has to
follow, so that it can be committed beside that code and read in a review.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from synchromesh.codec import decode, digest
from synchromesh.errors import BadRequest, SagaError, readable
from synchromesh.identity import NOBODY
from synchromesh.saga.definition import SagaDefinition
from synchromesh.saga.function import Function
from synchromesh.saga.records import RecordKind, SagaCause, SagaRecord, SagaStatus
from synchromesh.saga.saga import Saga
from synchromesh.saga.steps import CallStep, Step, StepRequest
from synchromesh.saga.tables import SagaRow

FORMAT = 1
MASK = "masked"
_FREE_TEXT = (RecordKind.TURNED, RecordKind.STUCK, RecordKind.REPAIRED, RecordKind.REJECTED)


class RecordedStep(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One record of a run; `body` is JSON, null where it has none."""

    kind: str
    step: str = ""
    attempt: int = 0
    digest: str = ""
    body: msgspec.Raw = msgspec.Raw(b"null")


class RecordedRun(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The history of one run.

    Attributes:
        status: of the run when it was recorded.
        input: what its function was given.
    """

    format: int
    service: str
    saga: str
    version: int
    id: str
    status: str
    input: msgspec.Raw
    records: list[RecordedStep]

    @property
    def saga_name(self) -> str:
        """The name with that of its service."""
        return f"{self.service}.{self.saga}"

    @property
    def path(self) -> str:
        """What tells it from runs that went another way: a digest of its kinds and steps."""
        went = [[each.kind, each.step] for each in self.records]
        return digest(msgspec.json.encode([self.status, went]))[:6]

    @property
    def outcome(self) -> str:
        """How it ended, and where it turned: "undone-billing.charge"."""
        for each in reversed(self.records):
            if each.kind in (RecordKind.STUCK._value_, RecordKind.TURNED._value_):
                step = decode(bytes(each.body), SagaCause).step.partition("#")[0]
                return f"{self.status}-{step}" if step else self.status
        return self.status


def recorded(service: str, row: SagaRow, records: Sequence[SagaRecord]) -> RecordedRun:
    """Return the history of a run that is stored."""
    return RecordedRun(
        FORMAT,
        service,
        row.name,
        row.version,
        row.id,
        row.status.value,
        msgspec.Raw(row.input),
        [
            RecordedStep(
                each.kind.value,
                each.step,
                each.attempt,
                each.digest,
                msgspec.Raw(each.body or b"null"),
            )
            for each in records
        ],
    )


def row_of(run: RecordedRun) -> SagaRow:
    """Return a row as of this run, as far as its code can see it.

    Raises:
        SagaError: this release knows no such status.
    """
    if run.status not in {each.value for each in SagaStatus}:
        raise SagaError(f"it has the status {run.status!r}, which this release does not know")
    return SagaRow(
        id=run.id,
        name=run.saga,
        version=run.version,
        lock_key=None,
        digest="",
        input=bytes(run.input),
        status=SagaStatus(run.status),
        reason="",
        owner="",
        trace_id="0" * 32,
        span_id="0" * 16,
        caller="",
        principal=NOBODY,
        deadline_us=2**62,
        result=None,
        started_us=0,
        ended_us=None,
    )


def records_of(run: RecordedRun) -> list[SagaRecord]:
    """Return the records of a run.

    Raises:
        SagaError: this release knows no such kind of record.
    """
    known = {each.value: each for each in RecordKind}
    for number, each in enumerate(run.records, 1):
        if each.kind not in known:
            raise SagaError(
                f"record {number} is of the kind {each.kind!r}, which this release does not know"
            )
    return [
        SagaRecord(known[each.kind], each.step, each.attempt, each.digest, _body_of(each))
        for each in run.records
    ]


def _body_of(each: RecordedStep) -> bytes:
    body = bytes(each.body)
    # A step that gives nothing has the result null; other records without a body have none.
    is_result = each.kind in (RecordKind.DONE._value_, RecordKind.WOKEN._value_)
    return body if is_result or body != b"null" else b""


def masked(
    run: RecordedRun, fields: Collection[str], definition: SagaDefinition[Any, Any]
) -> RecordedRun:
    """Return a history in which the values of these fields are masked, wherever they are.

    What tells a step's arguments is made anew, by running the function on what is left: it has to
    go the same way.

    Raises:
        SagaError: it does not, or a masked value is none of its type.
    """
    if not fields:
        return run
    kinds = {each.value for each in _FREE_TEXT}
    records = [
        msgspec.structs.replace(each, body=_mask(each.body, fields, is_told=each.kind in kinds))
        for each in run.records
    ]
    run = msgspec.structs.replace(run, input=_mask(run.input, fields), records=records)
    try:
        digests = _digests(run, definition)
    except (BadRequest, ValueError) as error:
        raise SagaError(
            f"run {run.id!r} cannot be masked: {readable(str(error))}; what is put in the place of "
            "a value has to be one of its type"
        ) from error
    asked = {each.step for each in records if each.digest}
    if missing := sorted(asked - set(digests)):
        raise SagaError(
            f"run {run.id!r} cannot be masked: its code goes another way with masked values, and "
            f"never comes to {missing[0]}"
        )
    return msgspec.structs.replace(
        run,
        records=[
            msgspec.structs.replace(each, digest=digests[each.step]) if each.digest else each
            for each in records
        ],
    )


def _mask(body: msgspec.Raw, fields: Collection[str], *, is_told: bool = False) -> msgspec.Raw:
    # What was told to people may have any value in its text.
    names = {*fields, "detail", "reason", "why", "who"} if is_told else fields
    return msgspec.Raw(msgspec.json.encode(_masked(msgspec.json.decode(body), names)))


def _masked(value: Any, fields: Collection[str]) -> Any:
    if isinstance(value, dict):
        return {
            key: _hidden(each) if key in fields else _masked(each, fields)
            for key, each in value.items()
        }
    return [_masked(each, fields) for each in value] if isinstance(value, list) else value


def _hidden(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _hidden(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_hidden(each) for each in value]
    if isinstance(value, str):
        return MASK
    return value if value is None or isinstance(value, bool) else type(value)(0)


def _digests(run: RecordedRun, definition: SagaDefinition[Any, Any]) -> dict[str, str]:
    """Return what tells the arguments of each step that the function asks for."""
    given = decode(bytes(run.input), definition.shape.input)
    saga = Saga(run.id, "0" * 32)
    function = Function(saga, lambda: definition.fn(saga, given))
    answers = {
        each.step: each
        for each in run.records
        if each.kind in ("done", "woken", "rejected")
    }  # fmt: skip
    ordinals: dict[str, int] = {}
    digests: dict[str, str] = {}
    results: tuple[object, ...] | None = None
    try:
        while isinstance(event := function.resume(results), StepRequest):
            keys = []
            for step in event.steps:
                ordinals[step.ask.name] = ordinals.get(step.ask.name, 0) + 1
                keys.append(f"{step.ask.name}#{ordinals[step.ask.name]}")
                digests[keys[-1]] = step.ask.digest
            if not all(key in answers for key in keys):
                break
            loaded = [
                _load(step, answers[key]) for key, step in zip(keys, event.steps, strict=True)
            ]
            if any(each is _HALT for each in loaded):
                break
            results = tuple(loaded)
    finally:
        function.close()
    return digests


_HALT = object()


def _load(step: Step[Any], answer: RecordedStep) -> object:
    if answer.kind != RecordKind.REJECTED._value_:
        return step.load(bytes(answer.body))
    is_taken = isinstance(step, CallStep) and step.ask.takes
    return step.load_rejection(bytes(answer.body)) if is_taken else _HALT  # type: ignore[attr-defined]
