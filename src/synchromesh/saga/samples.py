"""Sample runs: what a saga asks for where each step gives some value of its type.

They stand for the runs that nobody has recorded. A sample is the same in each process.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import inspect as types

from synchromesh.codec import decode, encode
from synchromesh.errors import SynchromeshError
from synchromesh.saga.definition import SagaDefinition
from synchromesh.saga.function import Function
from synchromesh.saga.recorded import FORMAT, RecordedRun, RecordedStep
from synchromesh.saga.records import PIVOT_BODY, Nap, RecordKind, SagaStatus
from synchromesh.saga.saga import Saga
from synchromesh.saga.steps import (
    EventStep,
    NapStep,
    SideStep,
    Step,
    StepRequest,
    WriteStep,
)

_STEPS_MAX = 1000
_DEPTH_MAX = 4
_TEXTS: dict[type[types.Type], object] = {
    types.DateTimeType: "2020-01-01T00:00:00Z",
    types.DateType: "2020-01-01",
    types.TimeType: "00:00:00",
    types.TimeDeltaType: "PT1S",
    types.UUIDType: "00000000-0000-0000-0000-000000000000",
    types.DecimalType: "1",
    types.BytesType: "",
    types.ByteArrayType: "",
    types.NoneType: None,
    types.BoolType: True,
    types.AnyType: None,
}
_LISTS = (types.ListType, types.SetType, types.FrozenSetType, types.VarTupleType,
          types.CollectionType)  # fmt: skip


class _NoSample(Exception):
    """No sample can be made of a type."""


def sample_run(service: str, definition: SagaDefinition[Any, Any]) -> RecordedRun | None:
    """Return the history of a run in which all goes well; None where none can be made up."""
    try:
        given = encode(sample_of(definition.shape.input))
        value = decode(given, definition.shape.input)
    except (_NoSample, SynchromeshError):
        return None
    saga = Saga("sample", "0" * 32)
    function = Function(saga, lambda: definition.fn(saga, value))
    try:
        records = _records(function)
    finally:
        function.close()
    return RecordedRun(
        FORMAT,
        service,
        definition.name,
        definition.version,
        "sample",
        SagaStatus.RUNNING.value,
        msgspec.Raw(given),
        records,
    )


def _records(function: Function) -> list[RecordedStep]:
    """Run a function on samples as far as it comes."""
    records: list[RecordedStep] = []
    ordinals: dict[str, int] = {}
    results: tuple[object, ...] | None = None
    while len(records) < _STEPS_MAX and isinstance(event := function.resume(results), StepRequest):
        given = []
        try:
            for step in event.steps:
                result = encode(_result_of(step))
                given.append(step.load(result))
                name = step.ask.name
                ordinals[name] = ordinals.get(name, 0) + 1
                records += _records_of(step, f"{name}#{ordinals[name]}", result)
        except (_NoSample, SynchromeshError):
            break
        results = tuple(given)
    return records


def _records_of(step: Step[Any], key: str, result: bytes) -> list[RecordedStep]:
    done = RecordedStep(RecordKind.DONE.value, key, 1, step.ask.digest, msgspec.Raw(result))
    if isinstance(step, WriteStep | SideStep):
        return [msgspec.structs.replace(done, attempt=0)]
    if isinstance(step, NapStep):
        nap = Nap(1, 1, step.ask.nap.awaits if step.ask.nap else "")
        asleep = RecordKind.ASLEEP.value, key, 0, step.ask.digest, msgspec.Raw(encode(nap))
        return [
            RecordedStep(*asleep),
            msgspec.structs.replace(done, kind=RecordKind.WOKEN.value, attempt=0),
        ]
    body = msgspec.Raw(PIVOT_BODY if step.ask.is_pivot else b"null")
    return [msgspec.structs.replace(done, kind=RecordKind.BEGUN.value, body=body), done]


def _result_of(step: Step[Any]) -> object:
    if isinstance(step, NapStep) and not isinstance(step, EventStep):
        return None
    return sample_of(step.result_type)


def sample_of(kind: Any) -> Any:
    """Return the builtins of some value of a type.

    Example:
        >>> sample_of(dict[str, int]), sample_of(list[bool]), sample_of(int | None)
        ({}, [True], 1)
    """
    try:
        return _sample(types.type_info(kind), 0)
    except TypeError as error:
        raise _NoSample(str(error)) from error


def _sample(kind: types.Type, depth: int) -> Any:
    if type(kind) in _TEXTS:
        return _TEXTS[type(kind)]
    if isinstance(kind, types.Metadata):
        return _sample(kind.type, depth)
    if isinstance(kind, types.IntType | types.FloatType):
        return _number(kind)
    if isinstance(kind, types.StrType):
        return "sample" if kind.pattern is None else _no(kind)
    if isinstance(kind, types.LiteralType):
        return kind.values[0]
    if isinstance(kind, types.EnumType):
        return next(iter(kind.cls)).value
    return _container(kind, depth)


def _container(kind: types.Type, depth: int) -> Any:
    if isinstance(kind, types.TupleType):
        return [_sample(each, depth + 1) for each in kind.item_types]
    if isinstance(kind, _LISTS):
        return [_sample(kind.item_type, depth + 1)] if depth < _DEPTH_MAX else []
    if isinstance(kind, types.DictType):
        return {}
    if isinstance(kind, types.UnionType):
        known = [each for each in kind.types if not isinstance(each, types.NoneType)]
        return _sample(known[0], depth)
    if isinstance(kind, types.StructType):
        return _struct(kind, depth)
    if isinstance(kind, types.DataclassType | types.TypedDictType | types.NamedTupleType):
        of = {each.encode_name: _sample(each.type, depth + 1) for each in kind.fields}
        return list(of.values()) if isinstance(kind, types.NamedTupleType) else of
    return _no(kind)


def _struct(kind: types.StructType, depth: int) -> Any:
    if depth > _DEPTH_MAX:
        return _no(kind)
    of = {each.encode_name: _sample(each.type, depth + 1) for each in kind.fields if each.required}
    tag = {} if kind.tag is None else {str(kind.tag_field): kind.tag}
    return list((tag | of).values()) if kind.array_like else tag | of


def _number(kind: types.IntType | types.FloatType) -> float:
    least = max(kind.ge or 0, (kind.gt or 0) + 1, 1)
    most = min(each for each in (kind.le, kind.lt, least) if each is not None)
    step = kind.multiple_of or 1
    return type(least)(least if most == least else most - 1) * step


def _no(kind: types.Type) -> Any:
    raise _NoSample(type(kind).__name__)
