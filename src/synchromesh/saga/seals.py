"""What is personal in a run: sealed when its row and records are written, opened when it is loaded.

A run in memory has plain values. What it has at rest is sealed by the types of its saga and of its
steps; it is opened by what is sealed, whatever code wrote it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from synchromesh.codec import decode, encode
from synchromesh.personal_types import PersonalFields
from synchromesh.saga.records import RecordKind, Repair, SagaRecord
from synchromesh.saga.tables import SagaRow
from synchromesh.sealing import Vault, open_if_ours

# Each finds documents in which a text occurs: two names of its place, the document and its time.
SEALED_INPUTS = "select name, id, input, started_us from sm_saga where instr(input, ?) limit ?"
SEALED_RESULTS = "select name, id, result, ended_us from sm_saga where instr(result, ?) limit ?"
SEALED_STEPS = (
    "select step, saga, body, at_us from sm_saga_record where kind in ('done', 'woken') "
    "and instr(body, ?) limit ?"
)
SEALED_SIGNALS = "select name, saga, body, at_us from sm_saga_signal where instr(body, ?) limit ?"

# Their bodies are what a step gave.
_ANSWERS = (RecordKind.DONE, RecordKind.WOKEN)


class RunSeal:
    """Seals what one run writes.

    Attributes:
        steps: the personal fields of what steps give, by step, as far as there are any.
    """

    __slots__ = ("_input", "_result", "steps")

    def __init__(self, input: PersonalFields | None, result: PersonalFields | None) -> None:  # noqa: A002
        self._input = input
        self._result = result
        self.steps: dict[str, PersonalFields] = {}

    def row(self, row: SagaRow, vault: Vault) -> SagaRow:
        """Return a row as it is stored."""
        if self._input is None:
            return row
        return replace(row, input=self._input.seal(row.input, input_place(row.id), vault))

    def records(
        self,
        id: str,  # noqa: A002
        records: Sequence[SagaRecord],
        vault: Vault,
    ) -> list[SagaRecord]:
        """Return the records of a run as they are stored."""
        return [self._record(id, each, vault) for each in records]

    def _record(self, id: str, record: SagaRecord, vault: Vault) -> SagaRecord:  # noqa: A002
        if record.kind is RecordKind.ENDED:
            if self._result is None or not record.body:
                return record
            return replace(record, body=self._result.seal(record.body, result_place(id), vault))
        personal = self.steps.get(record.step)
        if personal is None:
            return record
        where = step_place(id, record.step)
        if record.kind in _ANSWERS:
            return replace(record, body=personal.seal(record.body, where, vault))
        if record.kind is RecordKind.REPAIRED:
            repair = decode(record.body, Repair)
            result = msgspec.Raw(personal.seal(bytes(repair.result), where, vault))
            return replace(record, body=encode(replace(repair, result=result)))
        return record

    def __repr__(self) -> str:
        return f"<RunSeal of {', '.join(self.steps) or 'no step'}>"


def opened(
    row: SagaRow, records: Sequence[SagaRecord], vault: Vault
) -> tuple[SagaRow, list[SagaRecord]]:
    """Return a run that was loaded, in the plain."""
    plain = open_if_ours(row.input, input_place(row.id), vault)
    row = row if plain is row.input else replace(row, input=plain)
    return row, [_opened(row.id, each, vault) for each in records]


def _opened(id: str, record: SagaRecord, vault: Vault) -> SagaRecord:  # noqa: A002
    where = step_place(id, record.step)
    if record.kind is RecordKind.ENDED:
        where = result_place(id)
    elif record.kind is RecordKind.REPAIRED:
        repair = decode(record.body, Repair)
        result = msgspec.Raw(open_if_ours(bytes(repair.result), where, vault))
        return replace(record, body=encode(replace(repair, result=result)))
    body = open_if_ours(record.body, where, vault)
    return record if body is record.body else replace(record, body=body)


def input_place(id: str) -> str:  # noqa: A002
    """Return what personal values in the input of a run are sealed for."""
    return f"saga/{id}/input"


def result_place(id: str) -> str:  # noqa: A002
    """Return what personal values in the result of a run are sealed for."""
    return f"saga/{id}/result"


def step_place(id: str, step: str) -> str:  # noqa: A002
    """Return what personal values in what a step gave are sealed for."""
    return f"saga/{id}/step/{step}"


def signal_place(id: str, name: str) -> str:  # noqa: A002
    """Return what personal values in what a run was told are sealed for."""
    return f"saga/{id}/signal/{name}"
