"""Errors: one table, there and back, and nothing in it that could be told wrongly."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest

from synchromesh.errors import (
    BadRequest,
    CallError,
    ContractError,
    DownstreamFailed,
    MissingExtra,
    NotExecuted,
    Rejection,
    RemoteFailed,
    Shed,
    StaleIncarnation,
    SynchromeshError,
    TimedOut,
    UnknownInstance,
    VersionConflict,
    WatchLagged,
    error_table,
    from_problem,
    to_problem,
)


class OutOfStock(Rejection, code="out_of_stock", status=410):
    """Tells that fewer are in stock than were asked for.

    More words.
    """


def made(cls: type[SynchromeshError]) -> SynchromeshError:
    """Return an error of a class, made as its users make it."""
    special: dict[type[SynchromeshError], SynchromeshError] = {
        VersionConflict: VersionConflict("s", expected=1, actual=2),
        UnknownInstance: UnknownInstance("a"),
        StaleIncarnation: StaleIncarnation("a", held=1, current=2),
        WatchLagged: WatchLagged(8),
        MissingExtra: MissingExtra("nats", needed_for="the broker"),
    }
    return special.get(cls) or cls("what happened")


# Code: status, and whether the same call may be made again under its key.
PROMISED = {
    "action_refused": (409, False),
    "bad_request": (400, False),
    "call_failed": (502, False),
    "circuit_open": (503, True),
    "config": (500, False),
    "connect_failed": (503, True),
    "connection_lost": (502, False),
    "constraint_failed": (409, False),
    "statement_failed": (500, False),
    "contract": (500, False),
    "event_too_new": (500, False),
    "contract_mismatch": (502, False),
    "deadline_exceeded": (504, False),
    "discovery_failed": (503, False),
    "downstream_failed": (502, False),
    "fenced": (500, False),
    "forbidden": (403, False),
    "foreign_await": (500, False),
    "in_progress": (409, True),
    "key_reused": (422, False),
    "key_undone": (409, False),
    "log_gap": (500, False),
    "personal_unreadable": (500, False),
    "projection_behind": (503, True),
    "log_replaced": (500, False),
    "method_not_allowed": (405, False),
    "missing_extra": (500, False),
    "no_instance": (503, True),
    "not_executed": (503, False),
    "rate_limited": (429, True),
    "rejected": (409, False),
    "remote_failed": (500, False),
    "saga_conflict": (409, False),
    "saga_failed": (503, False),
    "saga_gone": (503, False),
    "saga_locked": (409, True),
    "saga_stuck": (503, False),
    "saga_undone": (409, False),
    "shed": (503, True),
    "stale_incarnation": (503, False),
    "store_broken": (500, False),
    "store_failed": (500, False),
    "store_full": (507, False),
    "store_locked": (500, False),
    "store_read_only": (500, False),
    "store_too_new": (500, False),
    "store_unavailable": (503, True),
    "synchromesh": (500, False),
    "timed_out": (504, False),
    "too_many_elements": (502, False),
    "unauthenticated": (401, False),
    "unit_too_long": (500, False),
    "unknown_instance": (503, False),
    "unknown_operation": (404, False),
    "unknown_saga": (404, False),
    "version_conflict": (409, False),
    "watch_lagged": (503, False),
}


@pytest.mark.parametrize("code", sorted(error_table()))
def test_every_class_survives_the_table(code: str) -> None:
    """Class, code, status and words are the same after encoding and decoding."""
    error = made(error_table()[code])
    problem = to_problem(error)
    assert problem["type"] == f"urn:synchromesh:error:{code}"
    back = from_problem(problem, status=error.status)
    # A bare rejection is declared by nobody: whoever gets one has another contract.
    expected = BadRequest if type(error) is Rejection else type(error)
    assert type(back) is expected
    assert back.message == error.message


@pytest.mark.parametrize("code", sorted(error_table()))
def test_every_class_says_what_it_is(code: str) -> None:
    """Each has a sentence, a status that HTTP knows, and can be copied with all it holds."""
    error = made(error_table()[code])
    assert type(error).__doc__
    assert 400 <= error.status <= 599
    copied = copy.deepcopy(error)
    assert type(copied) is type(error)
    assert vars(copied) == vars(error)


def test_the_table_changes_only_on_purpose() -> None:
    """Codes, statuses and whether a retry is safe are promised: clients hold them."""
    assert {
        code: (cls.status, cls.is_retry_safe) for code, cls in error_table().items()
    } == PROMISED


def test_codes_are_unique() -> None:
    """Two classes of one code could not be told apart."""
    classes: list[type[SynchromeshError]] = [SynchromeshError]
    for cls in classes:
        classes.extend(c for c in cls.__subclasses__() if c.__module__ == cls.__module__)
    assert len({cls.code for cls in classes}) == len(classes)


def test_what_was_certainly_not_run_is_refused() -> None:
    """A time-out is not `NotExecuted`, for its outcome is unknown; shedding is."""
    assert not issubclass(TimedOut, NotExecuted)
    assert issubclass(Shed, NotExecuted)


def test_numbers_of_a_call_error_travel() -> None:
    """How long to wait, how many attempts were spent, and what the cause was."""
    error = DownstreamFailed(
        "x", cause_code="shed", retry_after_s=1.5, attempts_used=2, is_final=True
    )
    back = from_problem(to_problem(error), status=502)
    assert isinstance(back, DownstreamFailed)
    assert (back.cause_code, back.retry_after_s, back.attempts_used) == ("shed", 1.5, 2)
    assert back.is_final


@pytest.mark.parametrize(
    ("problem", "status", "expected"),
    [
        ({}, 500, RemoteFailed),
        ({}, 302, RemoteFailed),
        ({}, 418, BadRequest),
        ({"code": "of_the_future", "detail": "x"}, 409, BadRequest),
        ({"code": ["shed"]}, 503, RemoteFailed),
        ({"code": "rejected"}, 409, BadRequest),
        ({"code": "shed", "retry_after_s": "soon", "attempts_used": -1}, 503, Shed),
        ({"code": "shed", "attempts_used": True}, 503, Shed),
        ({"code": "remote_failed", "is_final": "yes"}, 500, RemoteFailed),
    ],
)
def test_odd_problems_have_a_class_all_the_same(
    problem: Mapping[str, Any], status: int, expected: type[CallError]
) -> None:
    """A callee that speaks otherwise never makes decoding fail."""
    error = from_problem(problem, status=status)
    assert type(error) is expected
    assert isinstance(error, CallError)
    assert error.retry_after_s is None
    assert error.attempts_used in (0, 1)
    assert error.is_final is False


def test_a_declared_rejection_comes_back_with_its_details() -> None:
    """Also with details whose names a constructor could not take."""
    error = OutOfStock(left=3)
    assert error.message == "Tells that fewer are in stock than were asked for."
    back = from_problem(to_problem(error), status=410, raises=[OutOfStock])
    assert isinstance(back, OutOfStock)
    assert (back.details, back.status) == ({"left": 3}, 410)
    odd = {"code": "out_of_stock", "details": {"message": 1, "self": 2}}
    foreign = from_problem(odd, status=410, raises=[OutOfStock])
    assert isinstance(foreign, OutOfStock)
    assert foreign.details == {"message": 1, "self": 2}
    bare = from_problem({"code": "out_of_stock", "details": [1]}, status=410, raises=[OutOfStock])
    assert isinstance(bare, OutOfStock)
    assert bare.details == {}


def test_a_rejection_is_the_callers_to_mend() -> None:
    """A status outside 400 to 499 would be a fault; subclasses inherit code and status."""
    with pytest.raises(ContractError, match="status 503"):

        class Odd(Rejection, code="odd", status=503):
            """Is wrong."""

    class Sold(OutOfStock):
        """Tells that it is sold."""

    assert (Sold.code, Sold.status) == ("out_of_stock", 410)
