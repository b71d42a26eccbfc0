"""`is_failure` and `retry_if`: what of a function's outcomes fails, and what is run again."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Callable
from typing import Any

import pytest

from synchromesh import Policy
from synchromesh.errors import CircuitOpen, ConfigError, ConnectFailed, Shed, TimedOut
from synchromesh.resilience import BreakerOptions, RetryOptions
from synchromesh.testing import run

OPENS = BreakerOptions(minimum_calls=2, open_for_s=5.0, open_for_max_s=5.0)
AGAIN = RetryOptions(attempts_max=3, base_s=0.0, cap_s=0.0)
BREAKER = Policy(timeout_s=None, retry=None, breaker=OPENS)
RETRY = Policy(timeout_s=None, retry=AGAIN, budget=None, breaker=None)

Guarded = Callable[[], Any]


class Fixed:
    def random(self) -> float:
        return 0.5


class Status:
    """A response, as clients of HTTP have it."""

    def __init__(self, status_code: int) -> None:
        self.status_code = status_code


class StatementFailed(Exception):
    """An error as database drivers have it: of the statement, or of the connection."""

    def __init__(self, *, connection_invalidated: bool) -> None:
        super().__init__("a statement failed")
        self.connection_invalidated = connection_invalidated


def is_5xx(outcome: Any) -> bool:
    return isinstance(outcome, Exception) or bool(outcome.status_code >= 500)


def is_lost(outcome: Any) -> bool:
    return isinstance(outcome, StatementFailed) and outcome.connection_invalidated


class Play:
    """Runs a script as a guarded async or sync function."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.runs = 0

    def guard(self, policy: Policy, *lines: object, **options: Any) -> Guarded:
        def run_once() -> object:
            line = lines[min(self.runs, len(lines) - 1)]
            self.runs += 1
            if isinstance(line, BaseException):
                raise line
            return line

        if self.kind == "sync":
            return policy.wrap(run_once, rng=Fixed(), name="fetch", **options)

        async def run_async() -> object:
            return run_once()

        return policy.wrap(run_async, rng=Fixed(), name="fetch", **options)

    def ends(self, guarded: Guarded, times: int = 1) -> list[object]:
        """Return what so many calls came to, one after the other."""

        async def main() -> list[object]:
            seen: list[object] = []
            for _ in range(times):
                try:
                    answer = guarded()
                    seen.append(answer if self.kind == "sync" else await answer)
                except Exception as error:
                    seen.append(error)
            return seen

        return run(lambda _: main())


@pytest.fixture(params=["async", "sync"])
def play(request: pytest.FixtureRequest) -> Play:
    return Play(request.param)


def kinds(ends: list[object]) -> list[str]:
    return [type(end).__name__ for end in ends]


def test_a_result_may_be_a_failure_and_is_returned_all_the_same(play: Play) -> None:
    """Two answers of 503 open the breaker; the caller sees each."""
    down = Status(503)
    guarded = play.guard(BREAKER, down, is_failure=is_5xx)
    first, second, third = play.ends(guarded, 3)
    assert first is down
    assert second is down
    assert isinstance(third, CircuitOpen)
    assert play.runs == 2


def test_a_result_that_is_none_is_an_answer(play: Play) -> None:
    """A result that is none is an answer."""
    guarded = play.guard(BREAKER, Status(404), is_failure=is_5xx)
    assert kinds(play.ends(guarded, 5)) == ["Status"] * 5


def test_an_exception_may_be_no_failure_and_is_raised_all_the_same(play: Play) -> None:
    """A broken constraint is an answer of the database; a lost connection is not."""
    own = StatementFailed(connection_invalidated=False)
    guarded = play.guard(BREAKER, own, is_failure=is_lost)
    assert play.ends(guarded, 5) == [own] * 5
    assert own.__context__ is None
    assert own.__cause__ is None


def test_an_exception_that_is_a_failure_opens_the_breaker(play: Play) -> None:
    """An exception that is a failure opens the breaker."""
    lost = StatementFailed(connection_invalidated=True)
    guarded = play.guard(BREAKER, lost, is_failure=is_lost)
    assert kinds(play.ends(guarded, 3)) == ["StatementFailed"] * 2 + ["CircuitOpen"]


def test_failed_results_are_run_again_where_that_does_no_harm(play: Play) -> None:
    """Failed results are run again where that does no harm."""
    ok = Status(200)
    guarded = play.guard(RETRY, Status(503), Status(500), ok, is_failure=is_5xx, is_idempotent=True)
    assert play.ends(guarded) == [ok]
    assert play.runs == 3


def test_the_last_failed_result_is_returned(play: Play) -> None:
    """The last failed result is returned."""
    last = Status(502)
    lines = (Status(500), Status(501), last)
    guarded = play.guard(RETRY, *lines, is_failure=is_5xx, is_idempotent=True)
    assert play.ends(guarded) == [last]
    assert play.runs == 3


def test_failed_results_are_not_run_again_without_leave(play: Play) -> None:
    """Failed results are not run again without leave."""
    guarded = play.guard(RETRY, Status(503), is_failure=is_5xx)
    assert kinds(play.ends(guarded)) == ["Status"]
    assert play.runs == 1


def test_an_answer_is_never_run_again(play: Play) -> None:
    """An answer is never run again."""
    own = StatementFailed(connection_invalidated=False)
    guarded = play.guard(RETRY, own, is_failure=is_lost, is_idempotent=True)
    assert play.ends(guarded) == [own]
    assert play.runs == 1


def test_retry_if_says_which_failures_are_run_again(play: Play) -> None:
    """It is told what was raised, or returned, in place of a word for all."""
    told: list[object] = []

    def is_worth_it(outcome: object) -> bool:
        told.append(outcome)
        return isinstance(outcome, OSError) or getattr(outcome, "status_code", 0) == 503

    refused, down, broken = ConnectionRefusedError(), Status(503), Status(500)
    guarded = play.guard(RETRY, refused, down, broken, is_failure=is_5xx, retry_if=is_worth_it)
    assert play.ends(guarded) == [broken]
    # Of the last attempt nobody asks.
    assert told == [refused, down]


def test_retry_if_needs_no_is_failure(play: Play) -> None:
    """Retry_if needs no is_failure."""
    guarded = play.guard(
        RETRY, ConnectionRefusedError(), ValueError(), retry_if=lambda e: isinstance(e, OSError)
    )
    assert kinds(play.ends(guarded)) == ["ValueError"]
    assert play.runs == 2


@pytest.mark.parametrize(
    ("error", "runs"), [(ConnectFailed("x"), 3), (Shed("x"), 3), (TimedOut("x"), 1)]
)
def test_what_our_errors_say_of_themselves_stands(play: Play, error: Exception, runs: int) -> None:
    """What was certainly not run is run again; `is_failure` is not asked of either."""

    def unasked(outcome: object) -> bool:
        raise AssertionError(f"asked of {outcome!r}")

    no = lambda outcome: False  # noqa: E731
    guarded = play.guard(RETRY, error, is_failure=unasked, retry_if=no)
    assert play.ends(guarded) == [error]
    assert play.runs == runs


def test_a_predicate_that_fails_is_heard_of_and_leaks_nothing(play: Play) -> None:
    """Its error is that of the run: a failure, with its own trace."""
    policy = Policy(timeout_s=None, retry=None, breaker=OPENS)
    guarded = play.guard(policy, {"no": "status"}, is_failure=is_5xx)
    assert kinds(play.ends(guarded, 3)) == ["AttributeError"] * 2 + ["CircuitOpen"]


def test_a_retry_predicate_that_fails_is_heard_of(play: Play) -> None:
    """A retry predicate that fails is heard of."""

    def wrong(outcome: object) -> bool:
        raise ZeroDivisionError

    guarded = play.guard(RETRY, ValueError(), retry_if=wrong)
    assert kinds(play.ends(guarded, 2)) == ["ZeroDivisionError"] * 2


def test_a_cut_is_a_failure_whatever_the_predicate_says() -> None:
    """A cut is a failure whatever the predicate says."""
    policy = Policy(timeout_s=0.1, retry=None, breaker=OPENS)

    async def hangs() -> None:
        await asyncio.sleep(60.0)

    guarded = policy.wrap(hangs, is_failure=lambda _: False)
    seen = Play("async").ends(guarded, 3)
    assert kinds(seen) == ["TimedOut", "TimedOut", "CircuitOpen"]


def test_a_block_tells_failures_by_a_predicate_too() -> None:
    """An exception alone: a block has no result."""

    def ends(error: Exception) -> list[str]:
        guard = BREAKER.guard("db", rng=Fixed(), is_failure=is_lost)

        async def block() -> None:
            async with guard():
                raise error

        return kinds(Play("async").ends(block, 4))

    assert ends(StatementFailed(connection_invalidated=False)) == ["StatementFailed"] * 4
    lost = ["StatementFailed", "StatementFailed", "CircuitOpen", "CircuitOpen"]
    assert ends(StatementFailed(connection_invalidated=True)) == lost
    assert ends(ConnectFailed("x"))[2:] == ["CircuitOpen"] * 2


def test_a_block_whose_predicate_fails_gives_its_place_back() -> None:
    """A block whose predicate fails gives its place back."""
    from synchromesh.resilience import LimitOptions

    policy = Policy(timeout_s=None, retry=None, breaker=None, limit=LimitOptions(in_flight_max=1))
    guard = policy.guard("db", is_failure=lambda error: error.no_such)

    async def block() -> None:
        async with guard():
            raise ValueError("own")

    seen = Play("async").ends(block, 3)
    assert kinds(seen) == ["AttributeError"] * 3
    assert all(isinstance(error, Exception) for error in seen)
    assert isinstance(getattr(seen[0], "__context__", None), ValueError)


@pytest.mark.parametrize("option", ["is_failure", "retry_if", "key"])
def test_what_cannot_be_asked_is_refused(option: str) -> None:
    """What cannot be asked is refused."""

    async def asks(outcome: object) -> bool:
        return True

    for wrong, words in ((asks, "make it a def"), (True, "make it a function")):
        options: dict[str, Any] = {option: wrong}
        with pytest.raises(ConfigError, match=f"{option} is .*{words}"):
            RETRY.wrap(**options)
    with pytest.raises(ConfigError, match="make it a def"):
        BREAKER.guard("x", is_failure=asks)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("option", "wrong", "mend"),
    [
        ("name", 1, "make it a text"),
        ("name", b"x", "make it a text"),
        ("rng", "1", r"make it random\.Random"),
        ("rng", 1, r"make it random\.Random"),
        ("rng", random.Random, r"make it random\.Random"),
        ("is_idempotent", "no", "make it True"),
        ("is_idempotent", 1, "make it True"),
        ("is_idempotent", None, "make it True"),
    ],
)
def test_an_option_of_the_wrong_kind_is_refused_where_it_is_written(
    option: str, wrong: Any, mend: str
) -> None:
    """And not at the first retry, which may be weeks later."""
    options: dict[str, Any] = {option: wrong}
    with pytest.raises(ConfigError, match=f"^{option} is .*; {mend}"):
        RETRY.wrap(**options)
    if option != "is_idempotent":
        with pytest.raises(ConfigError, match=f"^{option} is .*; {mend}"):
            BREAKER.guard(**{"name": "x", **options})


def test_chance_is_whatever_gives_numbers() -> None:
    """The module itself too."""
    for chance in (random, random.Random(1), random.SystemRandom()):
        RETRY.wrap(rng=chance, is_idempotent=True)
        BREAKER.guard("x", rng=chance)


def test_two_words_for_one_thing_are_refused() -> None:
    """Two words for one thing are refused."""
    with pytest.raises(ConfigError, match="one of them"):
        RETRY.wrap(is_idempotent=True, retry_if=is_5xx)


@pytest.mark.parametrize("error", [True, False], ids=["no failure", "failed result"])
def test_calls_with_predicates_leave_no_reference_cycle(error: bool) -> None:
    """Calls with predicates leave no reference cycle."""

    async def answer() -> Status:
        if error:
            raise StatementFailed(connection_invalidated=False)
        return Status(503)

    is_failure = is_lost if error else is_5xx
    guarded = Policy(retry=AGAIN, breaker=None).wrap(answer, is_failure=is_failure, rng=Fixed())

    async def fail(times: int) -> None:
        for _ in range(times):
            try:
                await guarded()
            except StatementFailed:
                continue

    async def main() -> int:
        await fail(5)
        gc.collect()
        gc.disable()
        try:
            await fail(20)
            return gc.collect()
        finally:
            gc.enable()

    assert asyncio.run(main()) == 0
