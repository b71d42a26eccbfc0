"""What a saga is, before any run of it: its function, its deadline, its lock and its patience."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from synchromesh.codec import NO_FIT, decoder_of
from synchromesh.durations import is_count, is_number
from synchromesh.errors import BadRequest, ConfigError, ContractError
from synchromesh.functions import Weakly, hints_of, there, weakly
from synchromesh.personal_types import PersonalFields, personal_fields
from synchromesh.saga.handle import SagaRun
from synchromesh.saga.policy import SagaPolicy
from synchromesh.saga.saga import Saga
from synchromesh.saga.timetable import TellingUnit, tell

I = TypeVar("I")  # noqa: E741
R = TypeVar("R")


class SagaSignature(NamedTuple):
    """The types of a saga's input and result, and their personal fields where they have any.

    Attributes:
        read_input, read_result: read their JSON; each raises one of `codec.NO_FIT`.
    """

    input: Any
    result: Any
    personal: PersonalFields | None
    personal_result: PersonalFields | None
    read_input: Callable[[bytes], Any]
    read_result: Callable[[bytes], Any]


@dataclass(frozen=True)
class SagaDefinition(Generic[I, R]):
    """Names a saga function and says how its runs behave. Defining one starts nothing.

    Attributes:
        fn: the saga: `async def place_order(s: Saga, order: PlaceOrder) -> Placed`. It awaits
            nothing but steps of `s`, and reads neither clock nor chance: it is run again from its
            records after a restart.
        name: what its runs are stored under; stays the same when the function is renamed.
        version: ascends with the code. A run goes on with the code of its version where that is
            still there, else with the next newer one that matches what was recorded; where none
            does it waits for code that does (S11).
        deadline_s: how long a run may take before its pivot; past it the run is undone.
        lock_key: the semantic lock: at most one unfinished run for each text it returns;
            None takes no lock.
        owner: who looks after a stuck run.

    Raises:
        ConfigError: a value is outside its range.
    """

    fn: Callable[[Saga, I], Coroutine[Any, Any, R]]
    name: str
    version: int = 1
    deadline_s: float = 600.0
    lock_key: Callable[[I], str | None] | None = None
    owner: str = ""
    policy: SagaPolicy = field(default_factory=SagaPolicy)

    def __post_init__(self) -> None:
        is_version = is_count(self.version) and self.version >= 1
        if not is_version or not is_number(self.deadline_s) or not 0 < self.deadline_s < math.inf:
            raise ConfigError(
                f"saga {self.name!r} has version {self.version!r} and deadline_s "
                f"{self.deadline_s!r}; versions begin at 1, deadlines are seconds above 0"
            )

    @functools.cached_property
    def shape(self) -> SagaSignature:
        """The types of input and result.

        Raises:
            ContractError: an annotation is missing or cannot be resolved.
        """
        return _shape_of(weakly(self.fn), self.name)

    def load_result(self, result: bytes) -> R:
        """Return the result of a run from its JSON, which is not sealed.

        Raises:
            BadRequest: it is not of the type that the function returns today.
        """
        try:
            loaded: R = self.shape.read_result(result)
        except NO_FIT as error:
            raise BadRequest(f"the data does not fit: {error}") from error
        return loaded

    async def tell(self, tx: TellingUnit, id: str, event: object) -> bool:  # noqa: A002
        """Tell a run something, within a unit of its service; return False where it has ended.

        It is kept until the run asks for it by `s.event`, and wakes a run that sleeps for it.

        Raises:
            UnknownSaga: no run of this saga has this id.
            BadRequest: the event cannot be stored.
        """
        return await tell(tx, self.name, id, event)

    async def start(self, ctx: Starter, input: I, *, id: str) -> SagaRun[R]:  # noqa: A002
        """Start a run and return once it is durable; the same id and input is the same run (S1).

        Raises:
            SagaConflict: the id belongs to a run with another input.
            SagaLocked: another unfinished run holds the semantic lock.
            Shed: too many runs are in flight.
        """
        return await ctx.start_saga(self, input, id=id)


@functools.lru_cache(maxsize=1024)
def _shape_of(weak: Weakly, saga: str) -> SagaSignature:
    fn = there(weak)
    try:
        hints = hints_of(fn)
    except (NameError, TypeError) as error:
        raise ContractError(
            f"saga {saga!r}: {error}; its annotations must be importable"
        ) from error
    names = list(inspect.signature(fn).parameters)
    if len(names) != 2 or names[1] not in hints or "return" not in hints:
        raise ContractError(
            f"saga {saga!r}: expected async def {fn.__name__}(s: Saga, input: Input) -> Result, "
            "with these annotations"
        )
    taken, given = hints[names[1]], hints["return"]
    personal = personal_fields(taken), personal_fields(given)
    for each in personal:
        if each is not None:
            each.check_subject(f"saga {saga!r}")
    return SagaSignature(taken, given, *personal, decoder_of(taken), decoder_of(given))


class Starter(Protocol):
    """Starts sagas: a handler's context does."""

    async def start_saga(
        self,
        definition: SagaDefinition[I, R],
        input: I,  # noqa: A002
        *,
        id: str,  # noqa: A002
    ) -> SagaRun[R]:
        """Start a run in the service's engine."""
        ...
