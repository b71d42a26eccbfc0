"""Options of all rooms refuse what is no number, or is outside its range, where they are made."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import pkgutil
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import synchromesh
from synchromesh.alone import Alone, AloneRuns
from synchromesh.calls.faults import Fault
from synchromesh.errors import BadRequest, ConfigError, ContractError
from synchromesh.events import Decider
from synchromesh.service import Service
from synchromesh.store import Migration
from synchromesh.testing import SimRuntime, run

# What classes of options are called, and those that are so without the word.
NAMED = re.compile(r"\w*(Options|Limits|Policy|Policies|Budget|Faults)")
NUMBERS = re.compile(r"(int|float)\b")
WRONG: list[Any] = [math.nan, True, "3", -1, b"1", [1]]
# The gateway names all mistakes of a definition at once, in `gateway check`.
OF_A_DEFINITION = "synchromesh.gateway."


def classes() -> Iterator[type]:
    """Yield every class of options in the package that can be made without a word."""
    for each in pkgutil.walk_packages(synchromesh.__path__, "synchromesh."):
        if each.name.startswith(("synchromesh.examples", OF_A_DEFINITION)):
            continue
        module = importlib.import_module(each.name)
        for name, found in vars(module).items():
            if (
                inspect.isclass(found)
                and found.__module__ == each.name
                and dataclasses.is_dataclass(found)
                and NAMED.fullmatch(name)
                and all(_has_default(field) for field in dataclasses.fields(found))
            ):
                yield found


def _has_default(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing


NUMERIC = [
    (kind, field)
    for kind in classes()
    for field in dataclasses.fields(kind)
    if NUMBERS.match(str(field.type))
]


def test_all_rooms_are_looked_at() -> None:
    """The classes that are public are among them."""
    found = {kind.__name__ for kind, _ in NUMERIC}
    assert found >= {
        "AloneOptions", "BreakerOptions", "DeliverOptions", "EngineOptions", "ExportOptions",
        "LeaseOptions", "Limits", "NetworkFaults", "Policy", "PoolLimits", "PostgresOptions",
        "ProjectionOptions", "RelayOptions", "RestartOptions", "RunSagasOptions", "SagaPolicy",
        "StopBudget", "StoreOptions",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "field"), NUMERIC, ids=[f"{kind.__name__}.{field.name}" for kind, field in NUMERIC]
)
def test_what_is_no_number_is_refused(kind: type, field: dataclasses.Field[Any]) -> None:
    """One message names the option, the value, and what is right; NaN passes most comparisons."""
    wrong = WRONG if "None" in str(field.type) else [*WRONG, None]
    if str(field.type).startswith("int"):
        wrong = [*wrong, 1.5]
    for value in wrong:
        with pytest.raises(ConfigError, match=rf"\b{field.name} is ") as refused:
            kind(**{field.name: value})
        assert f"{value!r}; make it " in str(refused.value)


def evolve(state: int, event: object) -> int:
    """Fold nothing."""
    return state


async def write(tx: object, event: object) -> None:
    """Write nothing."""


ANY_SERVICE: Any = Service
ANY_MIGRATION: Any = Migration
ANY_FAULT: Any = Fault
ANY_DECIDER: Any = Decider

OTHERS: list[tuple[Any, type[Exception], str]] = [
    (lambda: ANY_FAULT(errors="1"), BadRequest, "a fault fails '1' of all attempts; make it 0"),
    (lambda: ANY_FAULT(latency_s=math.nan), BadRequest, "nan s late; make it 0"),
    (
        lambda: ANY_MIGRATION(True, (), 1),
        ConfigError,
        "Migration: version is True; make it a whole",
    ),
    (lambda: ANY_MIGRATION("1", (), 1), ConfigError, "Migration: version is '1'"),
    (
        lambda: ANY_DECIDER("d", 0, evolve, evolve, (), snapshot_every=-1),
        ConfigError,
        "Decider: snapshot_every is -1; make it a whole number, 0 or more",
    ),
    (lambda: ANY_DECIDER("d", 0, evolve, evolve, (), version="2"), ConfigError, "version is '2'"),
    (lambda: ANY_SERVICE(3), ContractError, "a service is named 3; expected lower-case"),
    (
        lambda: ANY_SERVICE("a").schedule(5),
        ContractError,
        "expression of a schedule is 5; make it a text, such as '0 9",
    ),
    (
        lambda: ANY_SERVICE("a").schedule("0 9 * * *", zone=None),
        ContractError,
        "zone of a schedule is",
    ),
    (
        lambda: ANY_SERVICE("a").projection("p", events=(int,), version=True)(write),
        ContractError,
        "version True",
    ),
    (lambda: ANY_SERVICE("a").projection("p", events=(int,), version="2"), ContractError, "'2'"),
    (lambda: ANY_SERVICE("a").saga(int, deadline=5)(write), ConfigError, "5 is no duration"),
]


@pytest.mark.parametrize(("make", "error", "said"), OTHERS)
def test_other_values_are_refused_where_they_are_written(
    make: Any, error: type[Exception], said: str
) -> None:
    """Definitions, too: not by Python's words, and not at the first use."""
    with pytest.raises(error, match=said):
        make()


def test_times_of_alone_are_refused_before_anything_is_asked() -> None:
    """Those that are arguments and no options."""
    shop: Any = Alone("shop", int)
    store: Any = SimpleNamespace(service="shop")
    runs: Any = AloneRuns(store)

    async def main(_: SimRuntime) -> None:
        with pytest.raises(ConfigError, match="poll_s is nan; make it a number of seconds above 0"):
            await shop.project(None, "p", None, None, poll_s=math.nan)
        with pytest.raises(ConfigError, match="within_s is -1; make it a number of seconds, 0 or"):
            await runs.result(None, "id", within_s=-1)

    run(main)
