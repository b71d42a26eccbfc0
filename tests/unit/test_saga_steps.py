"""What a saga is made of: definitions, policies, steps, and what an error means for one."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol, assert_type

import pytest

from saga_fakes import (
    CONTEXT,
    THREE,
    Bank,
    Created,
    Hold,
    Order,
    OutOfStock,
    Plant,
    Quote,
    Stock,
    create_order,
    reject_order,
)
from synchromesh.calls import Contract, command
from synchromesh.durations import duration
from synchromesh.errors import (
    BadRequest,
    ConfigError,
    ConnectFailed,
    ConnectionLost,
    ContractError,
    DeadlineExceeded,
    DownstreamFailed,
    Forbidden,
    ForeignAwait,
    InProgress,
    KeyReused,
    NoInstance,
    RateLimited,
    RemoteFailed,
    SagaGone,
    SagaLocked,
    Shed,
    StoreFull,
    TimedOut,
    Unauthenticated,
    UnknownOperation,
)
from synchromesh.saga import Saga, SagaDefinition, SagaPolicy, SagaRun, Step, Together, Unknown
from synchromesh.saga.function import ForeignAwaited, Function, FunctionRaised, FunctionReturned
from synchromesh.saga.outcomes import of_call, of_write, of_write_undo, why
from synchromesh.saga.records import AttemptResult
from synchromesh.saga.steps import CallStep, StepRequest
from synchromesh.store import Unit

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession


@pytest.fixture
def saga() -> Saga:
    return Saga("A-1", CONTEXT.trace_id)


# -- durations, policies, definitions ------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "length_s"),
    [("300ms", 0.3), ("1.5s", 1.5), ("10m", 600.0), ("2h", 7200.0), ("7d", 604_800.0)],
)
def test_a_duration_is_a_number_with_a_unit(text: str, length_s: float) -> None:
    """Durations are texts in options and seconds in code."""
    assert duration(text) == length_s


@pytest.mark.parametrize("text", ["", "10", "m", "0s", "-1s", "1 s", "1w", "1e3s", "1.s", "٣s"])
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    """The error says what would be right."""
    with pytest.raises(ConfigError, match='"300ms"'):
        duration(text)


def test_a_policy_outside_its_range_is_refused() -> None:
    """A wrong value is found where it is written, not in a run."""
    for wrong in (
        {"step_timeout_s": 0.0},
        {"undo_deadline_s": -1.0},
        {"after_pivot_deadline_s": 0.0},
        {"step_timeout_s": math.nan},
        {"undo_deadline_s": math.inf},
        {"after_pivot_deadline_s": True},
        {"attempts_max": 0},
        {"backoff_base_s": 9.0, "backoff_cap_s": 1.0},
    ):
        with pytest.raises(ConfigError):
            SagaPolicy(**wrong)


def test_a_definition_outside_its_range_is_refused() -> None:
    """Versions begin at 1 and deadlines are above 0."""
    for version, deadline_s in ((0, 1.0), (1, 0.0), (1, math.nan), (1, math.inf)):
        with pytest.raises(ConfigError, match="versions begin at 1"):
            SagaDefinition(THREE.fn, "three", version=version, deadline_s=deadline_s)


async def _untyped(s: Saga, order: Any):  # type: ignore[no-untyped-def]
    return order


async def _unresolved(s: Saga, order: Nowhere) -> None:  # type: ignore[name-defined]  # noqa: F821
    return None


def test_a_definition_reads_its_types_from_its_function() -> None:
    """Input and result are stored by their annotations, so these must be there."""
    assert THREE.shape[:2] == (Order, str)
    with pytest.raises(ContractError, match="-> Result"):
        SagaDefinition(_untyped, "untyped").shape  # noqa: B018
    with pytest.raises(ContractError, match="importable"):
        SagaDefinition(_unresolved, "unresolved").shape  # noqa: B018


@pytest.mark.anyio
async def test_a_definition_starts_by_whoever_can_start_it() -> None:
    """A handler's context starts a run in its service's engine."""

    class Context:
        async def start_saga(
            self,
            definition: SagaDefinition[Any, Any],
            input: Any,  # noqa: A002
            *,
            id: str,  # noqa: A002
        ) -> Any:
            return (definition.name, input, id)

    started = await THREE.start(Context(), Order("A-1"), id="A-1")
    assert started == ("three_calls", Order("A-1"), "A-1")  # type: ignore[comparison-overlap]


# -- steps ---------------------------------------------------------------------------------------


def typing_of_steps(s: Saga, order: Order) -> None:
    """What mypy is to infer; never run."""
    assert_type(s.write(create_order, order), Step[Created])
    assert_type(s.write(create_order, order, undo=reject_order), Step[Created])
    assert_type(s.call(Stock.reserve("A", 1), undo=Stock.release), Step[Hold])
    both = s.all(s.call(Plant.quote("A")), s.call(Stock.reserve("A", 1)))
    assert_type(both, Together[tuple[Quote, Hold]])
    s.write(create_order, "no order")  # type: ignore[arg-type]
    s.write(create_order, order, undo=create_order)  # type: ignore[misc]
    s.call(Plant.quote("A"), undo=Stock.release)  # type: ignore[arg-type]
    s.call(Stock.reserve("A", 1), undo=Plant.quote)  # type: ignore[arg-type]


def test_steps_tell_their_input_by_a_digest(saga: Saga) -> None:
    """Equal arguments have equal digests, others have not; the undo does not count."""
    one, same, other = (
        saga.write(create_order, Order("A-1")),
        saga.write(create_order, Order("A-1"), undo=reject_order),
        saga.write(create_order, Order("A-2")),
    )
    assert one.ask.digest == same.ask.digest != other.ask.digest
    assert repr(one) == "<WriteStep create_order>"
    call = saga.call(Stock.reserve("A", 1))
    assert (call.ask.name, call.ask.digest) == ("stock.reserve", Stock.reserve("A", 1).digest)


def test_an_undo_that_could_not_be_found_by_its_key_is_refused(saga: Saga) -> None:
    """Queries and pivots have none, and another service holds no record of the step."""
    undo: Any = Stock.release
    with pytest.raises(ContractError, match="changes nothing"):
        saga.call(Plant.quote("A"), undo=undo)
    with pytest.raises(ContractError, match="never undone"):
        saga.call(Stock.reserve("A", 1), undo=undo, pivot=True)
    with pytest.raises(ContractError, match="its key"):
        saga.call(Bank.charge("A"), undo=undo)


async def _undo_quote(tx: Unit, quote: Quote) -> None:
    return None


async def _undo_any(tx: Unit, *results: Any) -> None:
    return None


async def _undo_either(tx: Unit, result: Created | None) -> None:
    return None


class Renamed(Contract, Protocol, service="stock", version="1.0"):
    @command("POST /renamings")
    async def rename(self, name: str) -> None: ...
    @command("POST /forgets")
    async def forget(self, hold: Hold | None) -> None: ...


def test_an_undo_that_cannot_take_the_steps_result_is_refused(saga: Saga) -> None:
    """Found where it is written, not when the run is stuck; what may be right is let through."""
    wrong: Any = Renamed.rename
    with pytest.raises(ContractError, match="'name' is of type str, and stock"):
        saga.call(Stock.reserve("A", 1), undo=wrong)
    wrong = _undo_quote
    with pytest.raises(ContractError, match="type Quote, and create_order returns Created"):
        saga.write(create_order, Order("A-1"), undo=wrong)
    right: list[Any] = [_undo_any, _undo_either, reject_order, lambda tx, created: None]
    for undo in right:
        saga.write(create_order, Order("A-1"), undo=undo)
    saga.call(Stock.reserve("A", 1), undo=Renamed.forget)


async def _upload(key: str, name: str) -> Hold:
    return Hold(name)


async def _remove(key: str, done: Hold | Unknown) -> None: ...


async def _remove_certain(key: str, done: Hold) -> None: ...


async def _remove_unknown(key: str, done: Unknown) -> None: ...


async def _remove_other(key: str, done: Quote | Unknown) -> None: ...


async def _remove_any(key: str, done: object) -> None: ...


def _upload_sync(key: str, name: str) -> Hold:
    return Hold(name)


@functools.wraps(_upload)
def _upload_wrapped(*args: Any) -> Coroutine[Any, Any, Hold]:
    return _upload(*args)


def asking(saga: Saga, **options: Any) -> list[Callable[[], object]]:
    """Return what describes a step of each kind that has patience of its own."""
    call = Stock.reserve("A", 1)
    return [
        lambda: saga.call(call, **options),
        lambda: saga.try_call(call, OutOfStock, **options),
        lambda: saga.step(_upload, "A", **options),
    ]


@pytest.mark.parametrize("wrong", [math.nan, math.inf, 0.0, -1.0, True, "1", 10**400])
def test_a_timeout_that_is_no_time_is_refused(saga: Saga, wrong: Any) -> None:
    """It is found where the step is made, and the run is undone, not lost from memory."""
    for ask in asking(saga, timeout_s=wrong):
        with pytest.raises(ContractError, match=r"reserve|_upload was given timeout_s .* above 0"):
            ask()
    assert not saga.unawaited


@pytest.mark.parametrize("wrong", [0, -1, 1.0, True, "3", math.inf])
def test_attempts_that_are_no_count_are_refused(saga: Saga, wrong: Any) -> None:
    """A step has at least one."""
    for ask in asking(saga, attempts_max=wrong):
        with pytest.raises(ContractError, match=r"was given attempts_max .* make it 1 "):
            ask()
    assert not saga.unawaited


def test_a_pivot_has_no_attempts_of_its_own(saga: Saga) -> None:
    """An unknown one is asked until it is known; how long one attempt waits is its own."""
    for ask in asking(saga, attempts_max=3, pivot=True):
        with pytest.raises(ContractError, match=r"the pivot .* asked again until it is known"):
            ask()
    for ask in asking(saga, timeout_s=3, pivot=True):
        ask()


def test_a_function_has_to_be_async_and_typed(saga: Saga) -> None:
    """One that is not would stop the process, or leave a result that nothing can read."""
    sync: Any = _upload_sync
    anonymous: Any = lambda key: None  # noqa: E731
    untyped: Any = _untyped
    partial: Any = functools.partial(_upload, name="A")
    with pytest.raises(ContractError, match=r"_upload_sync is given to s\.step .*to_thread"):
        saga.step(sync, "A")
    with pytest.raises(ContractError, match=r"_upload_sync is given to s\.step .*to_thread"):
        saga.step(_upload, "A", undo=sync)
    for fn in (anonymous, partial):
        with pytest.raises(ContractError, match="a function of a name with a return annotation"):
            saga.step(fn)
    with pytest.raises(ContractError, match="_untyped"):
        saga.step(untyped, 1)
    with pytest.raises(BadRequest):
        saga.step(_upload, object())  # type: ignore[arg-type]
    assert not saga.unawaited
    saga.step(_upload_wrapped, "A")


def test_the_undo_of_a_function_takes_what_is_unknown(saga: Saga) -> None:
    """One that does not would fail where it is needed most; one that is not annotated may."""
    certain: Any = _remove_certain
    with pytest.raises(ContractError, match=r"'done' does not take Unknown; .* Hold \| Unknown"):
        saga.step(_upload, "A", undo=certain)
    wrong: list[Any] = [_remove_unknown, _remove_other]
    for undo in wrong:
        with pytest.raises(ContractError, match="'done' does not take Hold"):
            saga.step(_upload, "A", undo=undo)
    with pytest.raises(ContractError, match="pivot _upload is never undone"):
        saga.step(_upload, "A", undo=_remove, pivot=True)
    assert not saga.unawaited
    saga.step(_upload, "A", undo=_remove)
    saga.step(_upload, "A", undo=_remove_any)


def test_undo_arguments_carry_the_result_by_the_undos_own_name(saga: Saga) -> None:
    """`release(hold: Hold)` is given the hold; without one the participant finds it."""
    step = saga.call(Stock.reserve("A", 1), undo=Stock.release)
    assert isinstance(step, CallStep)
    assert step.undo_arguments(b'{"id":"h"}') == b'{"hold":{"id":"h"}}'
    assert step.undo_arguments(None) == b"{}"
    assert Stock.release.canonical(step.undo_arguments(b'{"id":"h"}'))


def test_a_session_may_be_known_to_checkers_alone(saga: Saga) -> None:
    """The first parameter is given by whoever runs the step, so that its type is nobody's need."""

    class Writer:
        async def save(self, session: AsyncSession, sku: str) -> int:
            return len(sku)

    async def save(session: AsyncSession, sku: str) -> int:
        return len(sku)

    for each in (save, Writer().save):
        step = saga.write(each, "SX90")
        assert (step.ask.name, step.result_type) == ("save", int)

    async def checkout(s: AsyncSession, order: Order) -> str:
        return order.id

    assert SagaDefinition[Any, str](checkout, "checkout").shape[:2] == (Order, str)  # type: ignore[arg-type]


def test_a_write_must_say_what_it_returns(saga: Saga) -> None:
    """A recorded result is read by the annotation."""
    anonymous: Any = lambda tx: None  # noqa: E731
    steps: list[Any] = [anonymous, _untyped, 7]
    for fn in steps:
        with pytest.raises(ContractError, match=r"return annotation|annotations must"):
            saga.write(fn)
    with pytest.raises(ContractError, match="importable"):
        saga.write(_unresolved, None)


def test_steps_side_by_side_are_bounded_and_hold_no_pivot(saga: Saga) -> None:
    """A point of no return is passed alone."""
    quote = Plant.quote("A")
    with pytest.raises(ContractError, match="is a pivot"):
        saga.all(saga.call(quote), saga.call(Bank.charge("A"), pivot=True))
    with pytest.raises(ContractError, match="given 65 steps"):
        saga.all(*(saga.call(quote) for _ in range(65)))
    with pytest.raises(ContractError, match="given 0 steps"):
        saga.all()
    no_steps: list[Any] = [quote, saga.each([1], lambda _: saga.call(quote), cap=1)]
    for wrong in no_steps:
        with pytest.raises(ContractError, match=r"s\.all was given a (Call|Together) for a step"):
            saga.all(saga.call(quote), wrong)


def test_a_step_is_awaited_once(saga: Saga) -> None:
    """A second time would be a second effect under a second key."""
    step = saga.call(Plant.quote("A"))

    async def twice(s: Saga) -> None:
        await step
        await s.all(step, s.call(Plant.quote("B")))

    function = Function(saga, lambda: twice(saga))
    assert isinstance(function.resume(None), StepRequest)
    raised = function.resume((Quote("slot"),))
    assert isinstance(raised, FunctionRaised)
    assert "a second time" in str(raised.error)


def test_a_saga_that_has_left_memory_makes_no_steps(saga: Saga) -> None:
    """Every s.* raises, and its repr says why (S11)."""
    made = saga.call(Plant.quote("A"))
    saga.is_gone = True
    assert repr(saga) == "<Saga A-1 gone>"
    for attempt in (
        lambda: saga.write(create_order, Order("A-1")),
        lambda: saga.call(Plant.quote("A")),
        lambda: saga.step(_upload, "A"),
        lambda: saga.all(made),
        lambda: saga.each([1], lambda _: made, cap=1),
        lambda: made.claim(),
    ):
        with pytest.raises(SagaGone, match="no effect"):
            attempt()


# -- the function at work ------------------------------------------------------------------------


class Odd:
    """Yields what no engine knows."""

    def __await__(self) -> Any:
        yield "odd"


def test_a_function_is_driven_from_request_to_request(saga: Saga) -> None:
    """It asks, returns, raises, or awaits something foreign; each is a value."""

    async def asking(s: Saga) -> str:
        quote = await s.call(Plant.quote("A"))
        return quote.slot

    async def raising(s: Saga) -> None:
        raise KeyError("bug")

    async def foreign(s: Saga) -> None:
        await Odd()

    function = Function(saga, lambda: asking(saga))
    asked = function.resume(None)
    assert isinstance(asked, StepRequest)
    assert [step.ask.name for step in asked.steps] == ["plant.quote"]
    assert function.resume((Quote("s-1"),)) == FunctionReturned("s-1")
    assert isinstance(Function(saga, lambda: raising(saga)).resume(None), FunctionRaised)
    odd = Function(saga, lambda: foreign(saga))
    assert odd.resume(None) == ForeignAwaited("str")
    odd.close()


def test_closing_outlives_whatever_the_function_does_then(saga: Saga) -> None:
    """Cleaning up that raises or waits harms nobody."""

    async def stubborn(s: Saga) -> None:
        try:
            await s.call(Plant.quote("A"))
        finally:
            await Odd()

    def never() -> Coroutine[Any, Any, None]:
        raise AssertionError("a function that is closed before it began does not begin")

    function = Function(saga, lambda: stubborn(saga))
    function.resume(None)
    function.close()
    Function(saga, never).close()


# -- what an error means -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (OutOfStock("no"), AttemptResult.REJECTED),
        (Shed("full"), AttemptResult.NOT_RUN),
        # The next attempt has a credential of its own.
        (Unauthenticated("expired"), AttemptResult.NOT_RUN),
        (RateLimited("slow down"), AttemptResult.NOT_RUN),
        (NoInstance("none"), AttemptResult.NOT_RUN),
        (DeadlineExceeded("late"), AttemptResult.NOT_RUN),
        (ConnectFailed("refused"), AttemptResult.NOT_RUN),
        (InProgress("wait"), AttemptResult.UNKNOWN),
        (TimedOut("late"), AttemptResult.UNKNOWN),
        (ConnectionLost("gone"), AttemptResult.UNKNOWN),
        (RemoteFailed("bug"), AttemptResult.UNKNOWN),
        (DownstreamFailed("below"), AttemptResult.UNKNOWN),
        (SagaLocked("busy"), AttemptResult.UNKNOWN),
        (RuntimeError("bug"), AttemptResult.UNKNOWN),
        (BadRequest("shape"), AttemptResult.BROKEN),
        (UnknownOperation("what"), AttemptResult.NOT_OFFERED),
        (Forbidden("who"), AttemptResult.BROKEN),
        (KeyReused("again"), AttemptResult.BROKEN),
    ],
)
def test_what_the_error_of_a_call_means(error: Exception, result: AttemptResult) -> None:
    """Was it run, and can a further attempt help?"""
    assert of_call(error).result is result


def test_what_the_error_of_a_write_means() -> None:
    """A unit that raised was rolled back; only the store's own troubles pass."""
    assert of_write(OutOfStock("no")).result is AttemptResult.REJECTED
    assert of_write(Shed("full", retry_after_s=2.0)).retry_after_s == 2.0
    assert of_write(StoreFull("disk")).result is AttemptResult.UNKNOWN
    assert of_write(ForeignAwait("sleep")).result is AttemptResult.BROKEN
    assert of_write(KeyError("bug")).result is AttemptResult.BROKEN
    assert of_write_undo(KeyError("bug")).result is AttemptResult.UNKNOWN
    assert of_write_undo(OutOfStock("no")).result is AttemptResult.REJECTED


def test_users_exception_texts_stay_out_of_reasons() -> None:
    """A reason is shown to others; the text is in the log of its process (T3)."""
    assert "secret" not in why(ValueError("secret"))
    assert why(Shed("full")) == "shed: full"


def test_a_handle_says_which_run_it_is() -> None:
    """It holds nothing of the run but its id."""
    host: Any = None
    assert repr(SagaRun("A-1", host, bytes.decode)) == "<SagaRun A-1>"
