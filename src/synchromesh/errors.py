"""One tree of errors, split by whose fault it is and whether a retry is safe.

    SynchromeshError
    ├── CallError                      something went wrong with a call
    │   ├── NotExecuted                certainly not run
    │   │   ├── CircuitOpen            this caller's breaker for the callee is open
    │   │   ├── Shed                   the callee (or the caller's own bound) is full, or drains
    │   │   ├── RateLimited            the caller sent more than it may
    │   │   ├── DeadlineExceeded       no time was left to run it
    │   │   ├── NoInstance             no instance of the service is ready
    │   │   ├── BadRequest             the arguments do not fit the contract
    │   │   ├── UnknownOperation       the service has no such operation
    │   │   ├── MethodNotAllowed       the path is there, for other methods
    │   │   ├── Unauthenticated        the hop carries no valid credential
    │   │   ├── Forbidden              the caller may not do this
    │   │   ├── KeyReused              the idempotency key was used with another input
    │   │   ├── KeyUndone              the key has been undone before its call came
    │   │   └── InProgress             a call under this key still runs
    │   ├── ConnectFailed              the connection could not be made: nothing was sent
    │   ├── TimedOut                   no answer in time: the outcome is unknown
    │   ├── ConnectionLost             the connection broke before the answer: unknown
    │   ├── DownstreamFailed           the callee needs another service that failed
    │   └── RemoteFailed               the callee raised what its contract does not declare
    │       └── ContractMismatch       the answer does not fit the contract that the caller has
    ├── Rejection                      a business no, declared in `raises=`: an answer, not a fault
    ├── StoreError
    │   ├── VersionConflict            a stream is not at the expected version
    │   ├── Fenced                     another owner has taken over
    │   ├── StoreLocked                another process owns the file
    │   ├── StoreFull                  the disk, or the file's page limit, is full
    │   ├── StoreReadOnly              the file cannot be written
    │   ├── StoreTooNew                a newer release wrote it and this one may not read it
    │   ├── ConstraintFailed           a statement broke a constraint of the service's own tables
    │   ├── StatementFailed            a statement, its values or its rows are wrong
    │   ├── StoreBroken                the engine failed in another way
    │   ├── StoreUnavailable           the file fails, and is opened again by itself
    │   ├── ForeignAwait               a unit awaited something else than its transaction
    │   ├── UnitTooLong                a unit outlived its limit and was rolled back
    │   ├── LogReplaced                a checkpoint belongs to another log
    │   ├── LogGap                     positions are missing from the log
    │   ├── ProjectionBehind           a projection has not come to what the caller waits for
    │   └── PersonalUnreadable         a personal value, or the key to it, is not what it was
    ├── DiscoveryError
    │   ├── UnknownInstance, StaleIncarnation, WatchLagged
    ├── SagaError
    │   ├── SagaConflict               the id belongs to a run with another input
    │   ├── SagaLocked                 another run holds the semantic lock
    │   ├── SagaUndone                 the saga was undone for a technical reason
    │   ├── Stuck                      the saga needs a person
    │   ├── SagaGone                   this run has left memory
    │   └── UnknownSaga
    ├── ActionRefused                  an operator's action is unsafe, or has no place
    ├── ContractError                  a contract or its implementation is wrong
    │   └── EventTooNew                a newer release wrote the event and this one may not read it
    ├── ConfigError                    the configuration is wrong
    └── MissingExtra                   an optional package is not installed

Every class has a stable `code`, an HTTP `status`, and says whether a retry under the same key is
safe (`is_retry_safe`). `error_table()` is the one table from codes to classes: transports encode an
error with `to_problem` (RFC 9457) and decode it with `from_problem`, so it has the same class, code
and status on every transport.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

PROBLEM_PREFIX = "urn:synchromesh:error:"


class SynchromeshError(Exception):
    """The root of every error that Synchromesh raises.

    `code` is stable and documented, `status` is its HTTP status, `is_retry_safe` says that the same
    call may be made again. The message says what happened, what was expected and what to do.

    Attributes:
        via: the operation whose call ended with this error; "" where it did not come by a call.
        is_final: the same call would end the same way again, as after a bug of a handler or once
            its saga is undone: no retry is made.
        retry_after_s: how long whoever refused asks the caller to wait, in seconds; None where
            nobody did.

    Example:
        >>> error = Shed("orders is full; ask again later")
        >>> error.code, error.status, error.is_retry_safe
        ('shed', 503, True)
    """

    code: ClassVar[str] = "synchromesh"
    status: ClassVar[int] = 500
    is_retry_safe: ClassVar[bool] = False
    via: str = ""
    is_final: bool = False
    retry_after_s: float | None = None

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.args, self.__dict__))


def _rebuild(cls: type[SynchromeshError], args: tuple[Any, ...], state: dict[str, Any]) -> Any:
    error = cls.__new__(cls, *args)
    Exception.__init__(error, *args)
    error.__dict__.update(state)
    return error


# -- calls ---------------------------------------------------------------------------------------


class CallError(SynchromeshError):
    """Raised when a call failed; the outcome at the callee is unknown unless it is `NotExecuted`.

    Attributes:
        attempts_used: attempts beyond the first that the callee spent below this call (D2).
        is_callees: False where it says nothing about the callee: a client who took his time is the
            reason. No breaker and no limiter learns from it.

    Example:
        >>> try:
        ...     raise ConnectionLost("the connection to billing broke")
        ... except CallError as error:
        ...     isinstance(error, NotExecuted)  # False: it may have been done
        False
    """

    code = "call_failed"
    status = 502
    attempts_used: int = 0
    is_callees: bool = True

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        attempts_used: int = 0,
        is_final: bool = False,
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.attempts_used = attempts_used
        self.is_final = is_final


class NotExecuted(CallError):
    """Raised when the call was certainly not run.

    Example:
        >>> issubclass(CircuitOpen, NotExecuted), issubclass(TimedOut, NotExecuted)
        (True, False)
    """

    code = "not_executed"
    status = 503


class CircuitOpen(NotExecuted):
    """Raised when the circuit breaker of this edge is open (or isolated): nothing was sent."""

    code = "circuit_open"
    is_retry_safe = True


class Shed(NotExecuted):
    """Raised when the callee is overloaded or draining, and refused the call."""

    code = "shed"
    is_retry_safe = True


class RateLimited(NotExecuted):
    """Raised when the caller exceeds its rate limit."""

    code = "rate_limited"
    status = 429
    is_retry_safe = True


class DeadlineExceeded(NotExecuted):
    """Raised when the deadline had passed before any work was done."""

    code = "deadline_exceeded"
    status = 504


class NoInstance(NotExecuted):
    """Raised when no instance of the service is ready."""

    code = "no_instance"
    is_retry_safe = True


class ConnectFailed(CallError):
    """Raised when no connection to the instance could be made: nothing was sent."""

    code = "connect_failed"
    status = 503
    is_retry_safe = True


class BadRequest(NotExecuted):
    """Raised when the arguments do not fit the contract.

    Attributes:
        mistakes: of an HTTP request, each with `detail`, and with the `pointer` to its place in the
            body (RFC 6901) or the `name` of what is `in` the path or the query.
    """

    code = "bad_request"
    status = 400
    mistakes: tuple[Mapping[str, str], ...] = ()


class UnknownOperation(NotExecuted):
    """Raised when the service has no such operation."""

    code = "unknown_operation"
    status = 404


class MethodNotAllowed(NotExecuted):
    """Raised when the path exists for other methods only; HTTP lists them in `Allow`."""

    code = "method_not_allowed"
    status = 405


class Unauthenticated(NotExecuted):
    """Raised when the hop carries no valid credential."""

    code = "unauthenticated"
    status = 401


class Forbidden(NotExecuted):
    """Raised when the caller is authenticated but not authorized."""

    code = "forbidden"
    status = 403


class KeyReused(NotExecuted):
    """Raised when the idempotency key belongs to a call with another input."""

    code = "key_reused"
    status = 422


class KeyUndone(NotExecuted):
    """Raised when the key was undone before its call came, so that the call has no effect."""

    code = "key_undone"
    status = 409


class InProgress(NotExecuted):
    """Raised when a call under this key is still running; ask again under the same key."""

    code = "in_progress"
    status = 409
    is_retry_safe = True


class TimedOut(CallError):
    """Raised when no answer came in time: the call may have run, may run still, or never.

    Attributes:
        limit: what cut it, as it is configured: 'policies."orders:billing".timeout = 2s'; "" where
            that is not known here.

    Example:
        >>> TimedOut("billing did not answer within 0.3 s").is_retry_safe  # only under its key
        False
    """

    code = "timed_out"
    status = 504
    limit = ""


class ConnectionLost(CallError):
    """Raised when the connection broke after the call was sent: its outcome is unknown."""

    code = "connection_lost"
    status = 502


class DownstreamFailed(CallError):
    """Raised when the callee failed because a service it needs failed; breakers do not cascade.

    Attributes:
        cause_code: the code of the error that the callee met.
    """

    code = "downstream_failed"
    status = 502

    def __init__(self, message: str, *, cause_code: str = "call_failed", **more: Any) -> None:
        super().__init__(message, **more)
        self.cause_code = cause_code


class RemoteFailed(CallError):
    """Raised when the callee raised something its contract does not declare.

    Details stay in the callee's log; the trace id leads there. It `is_final` where the handler
    raised it, unless that was an `OSError`, which may pass; not where a server or a proxy spoke.
    """

    code = "remote_failed"
    status = 500


class ContractMismatch(RemoteFailed):
    """Raised when an answer does not fit the caller's contract; the message names the field.

    The call has run. The same call would meet the same answer, so it is final, and says nothing
    about the health of the callee: caller and callee were built from contracts that differ (B5).
    """

    code = "contract_mismatch"
    status = 502

    def __init__(self, message: str, **more: Any) -> None:
        super().__init__(message, **{**more, "is_final": True})


class TooManyElements(RemoteFailed):
    """Raised when an answer has more elements than an aggregate asks something for.

    It is final: the same question would meet the same answer.
    """

    code = "too_many_elements"
    status = 502

    def __init__(self, message: str, **more: Any) -> None:
        super().__init__(message, **{**more, "is_final": True})


class Rejection(SynchromeshError):
    """A business "no": declared in `raises=`, recorded under the key, never retried.

    Subclass it with a code and a status of its own; fields are keyword arguments and travel along.

    Example:
        >>> class OutOfStock(Rejection, code="out_of_stock", status=409):
        ...     "Tells that fewer are in stock than were asked for."
        >>> OutOfStock("3 of SX90 are left", left=3).details
        {'left': 3}
    """

    code = "rejected"
    status = 409

    def __init_subclass__(cls, *, code: str = "", status: int = 0, **more: Any) -> None:
        super().__init_subclass__(**more)
        if code:
            cls.code = code
        if status:
            if not 400 <= status <= 499:
                raise ContractError(
                    f"{cls.__name__} has status {status}; a rejection is the caller's to mend: "
                    "give it a status from 400 to 499"
                )
            cls.status = status

    def __init__(self, message: str = "", **details: Any) -> None:
        super().__init__(message or (type(self).__doc__ or type(self).__name__).splitlines()[0])
        self.details = details


# -- store ---------------------------------------------------------------------------------------


class StoreError(SynchromeshError):
    """Raised when the database of a service cannot do what was asked of it."""

    code = "store_failed"
    status = 500


class VersionConflict(StoreError):
    """Raised when a stream is not at the version that the append expected."""

    code = "version_conflict"
    status = 409

    def __init__(self, stream: str, *, expected: int, actual: int) -> None:
        super().__init__(
            f"stream {stream!r} is at version {actual}, the append expected {expected}; "
            "load it again and decide anew"
        )
        self.stream, self.expected, self.actual = stream, expected, actual


class Fenced(StoreError):
    """Raised when another owner has taken over: this one can write nothing more."""

    code = "fenced"


class StoreLocked(StoreError):
    """Raised when another process owns the database file."""

    code = "store_locked"


class StoreFull(StoreError):
    """Raised when the disk or the file's page limit is full; nothing of the unit was written."""

    code = "store_full"
    status = 507


class StoreReadOnly(StoreError):
    """Raised when the database file cannot be written."""

    code = "store_read_only"


class StoreTooNew(StoreError):
    """Raised when a newer release wrote the database and this one may not use it."""

    code = "store_too_new"


class StoreBroken(StoreError):
    """Raised when the database engine fails for another reason; the message has its error."""

    code = "store_broken"


class StoreUnavailable(StoreError):
    """Raised when the file of a database fails; it is opened again by itself, nothing was run."""

    code = "store_unavailable"
    status = 503
    is_retry_safe = True


class ConstraintFailed(StoreError):
    """Raised when a statement broke a constraint of the tables; nothing of the unit was written."""

    code = "constraint_failed"
    status = 409


class StatementFailed(StoreError):
    """Raised when a statement is wrong: its SQL, its values, or what its rows are read as.

    Nothing is wrong with the database. The message has the engine's words, the statement without
    its literals, and the line of the service's code that ran it.
    """

    code = "statement_failed"


class ForeignAwait(StoreError):
    """Raised when a unit of work awaited something else than its transaction."""

    code = "foreign_await"


class UnitTooLong(StoreError):
    """Raised when a unit of work outlived its limit and was rolled back."""

    code = "unit_too_long"


class LogReplaced(StoreError):
    """Raised when a checkpoint belongs to another log than the one that is read."""

    code = "log_replaced"


class LogGap(StoreError):
    """Raised when positions are missing from the log and no removal recorded them."""

    code = "log_gap"


class ProjectionBehind(StoreError):
    """Raised when a projection does not come to a receipt in time, or is parked before it."""

    code = "projection_behind"
    status = 503
    is_retry_safe = True


class PersonalUnreadable(StoreError):
    """Raised when a personal value cannot be opened: its key is lost, or it is not in its place.

    Attributes:
        is_foreign: the keys are there, and it was not sealed with them for its place.
    """

    code = "personal_unreadable"

    def __init__(self, message: str, *, is_foreign: bool = False) -> None:
        super().__init__(message)
        self.is_foreign = is_foreign


# -- discovery -----------------------------------------------------------------------------------


class DiscoveryError(SynchromeshError):
    """Raised when the registry cannot do what was asked of it."""

    code = "discovery_failed"
    status = 503


class UnknownInstance(DiscoveryError):
    """Raised when an instance is not registered, or no longer; it has to register again."""

    code = "unknown_instance"

    def __init__(self, instance: str) -> None:
        super().__init__(
            f"instance {instance!r} holds no lease: it expired or ended; register again"
        )
        self.instance = instance


class StaleIncarnation(DiscoveryError):
    """Raised when an instance was replaced by a later one of the same name and must stop."""

    code = "stale_incarnation"

    def __init__(self, instance: str, *, held: int, current: int) -> None:
        super().__init__(
            f"instance {instance!r} renews incarnation {held}, but {current} has replaced it; stop"
        )
        self.instance, self.held, self.current = instance, held, current


class WatchLagged(DiscoveryError):
    """Raised when a watcher has fallen too far behind; it has to resolve and watch again."""

    code = "watch_lagged"

    def __init__(self, backlog_max: int) -> None:
        super().__init__(
            f"the watcher fell {backlog_max} changes behind; resolve the service and watch anew"
        )


# -- sagas ---------------------------------------------------------------------------------------


class SagaError(SynchromeshError):
    """Raised when a saga cannot do what was asked of it."""

    code = "saga_failed"
    status = 503


class SagaConflict(SagaError):
    """Raised when the id belongs to a run with another input."""

    code = "saga_conflict"
    status = 409


class SagaLocked(SagaError):
    """Raised when another run holds the semantic lock of this key."""

    code = "saga_locked"
    status = 409
    is_retry_safe = True

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class SagaUndone(SagaError):
    """Raised when the saga ended undone for a technical reason, named in the message.

    That end is final, as the answer under the key: a new attempt needs a new id and a new key.
    """

    code = "saga_undone"
    status = 409
    is_final = True


class Stuck(SagaError):
    """Raised when a saga needs a person: it can neither go forward nor be undone."""

    code = "saga_stuck"


class SagaGone(SagaError):
    """Raised when a run is no longer in memory: nothing it still asks for has an effect."""

    code = "saga_gone"


class UnknownSaga(SagaError):
    """Raised when no run has this id."""

    code = "unknown_saga"
    status = 404


# -- operating ------------------------------------------------------------------------------------


class ActionRefused(SynchromeshError):
    """Raised when an operator's action would be unsafe, or has no place where things stand."""

    code = "action_refused"
    status = 409


# -- definitions and configuration ---------------------------------------------------------------


class ContractError(SynchromeshError):
    """Raised when a contract or its implementation is wrong, at import or at start."""

    code = "contract"


class EventTooNew(ContractError):
    """Raised when a newer release wrote a stored event and this one may not read it."""

    code = "event_too_new"


class ConfigError(SynchromeshError):
    """Raised when the configuration is wrong; the message says where."""

    code = "config"


class MissingExtra(SynchromeshError):
    """Raised when an optional package is missing; the message says how to install it."""

    code = "missing_extra"

    def __init__(self, extra: str, *, needed_for: str) -> None:
        super().__init__(
            f"{needed_for} needs the extra {extra!r}: pip install 'WHEEL[{extra}]', where WHEEL is "
            "the file, folder or name that Synchromesh was installed from"
        )
        self.extra = extra


# -- the one table -------------------------------------------------------------------------------


def error_table() -> dict[str, type[SynchromeshError]]:
    """Return every built-in error class by its code; rejections of users are not in it."""
    table: dict[str, type[SynchromeshError]] = {}
    pending: list[type[SynchromeshError]] = [SynchromeshError]
    while pending:
        cls = pending.pop()
        if cls.__module__ == __name__:
            table[cls.code] = cls
            pending.extend(cls.__subclasses__())
    return table


def to_problem(error: SynchromeshError) -> dict[str, Any]:
    """Describe an error as an RFC 9457 problem; it carries no internals, only its own words."""
    problem: dict[str, Any] = {
        "type": PROBLEM_PREFIX + error.code,
        "title": _title(type(error)),
        "status": error.status,
        "detail": readable(error.message),
        "code": error.code,
    }
    if isinstance(error, Rejection):
        problem["details"] = error.details
    if error.retry_after_s is not None:
        problem["retry_after_s"] = error.retry_after_s
    if error.is_final:
        problem["is_final"] = True
    if isinstance(error, CallError) and error.attempts_used:
        problem["attempts_used"] = error.attempts_used
    if isinstance(error, DownstreamFailed):
        problem["cause_code"] = error.cause_code
    if isinstance(error, BadRequest) and error.mistakes:
        problem["errors"] = [{k: readable(v) for k, v in each.items()} for each in error.mistakes]
    return problem


def readable(text: object) -> str:
    """Return a text as it can be sent and stored: half of a surrogate pair becomes "?".

    Example:
        >>> readable("no \\udcff left"), readable("kein Stück")
        ('no ? left', 'kein Stück')
    """
    words = str(text)
    return words if words.isascii() else words.encode("utf-8", "replace").decode()


def from_problem(
    problem: Mapping[str, Any],
    *,
    status: int,
    raises: Iterable[type[Rejection]] = (),
) -> SynchromeshError:
    """Rebuild the error that a problem describes; `raises` are the rejections that may come.

    An unknown code becomes `RemoteFailed` for 5xx and `BadRequest` for 4xx: the callee speaks a
    newer contract, or is not ours.
    """
    code = str(problem.get("code", ""))
    detail = str(problem.get("detail", "")) or f"the callee answered {status} without a reason"
    for rejection in raises:
        if rejection.code == code:
            details = problem.get("details")
            return _rejection(rejection, detail, details if isinstance(details, dict) else {})
    cls = _TABLE.get(code)
    if cls is None or cls is Rejection:
        return (BadRequest if 400 <= status < 500 else RemoteFailed)(detail)
    more: dict[str, Any] = {}
    if issubclass(cls, CallError | SagaLocked):
        retry_after_s = problem.get("retry_after_s")
        more["retry_after_s"] = retry_after_s if isinstance(retry_after_s, int | float) else None
    if issubclass(cls, CallError):
        used = problem.get("attempts_used", 0)
        more["attempts_used"] = used if isinstance(used, int) and used >= 0 else 0
        more["is_final"] = problem.get("is_final") is True
    if issubclass(cls, DownstreamFailed):
        more["cause_code"] = str(problem.get("cause_code", "call_failed"))
    if issubclass(cls, _BUILDERS):
        # Their constructors build the message; a decoded one already has it.
        error = cls.__new__(cls)
        SynchromeshError.__init__(error, detail)
        return error
    return cls(detail, **more)


def _rejection(cls: type[Rejection], detail: str, details: dict[str, Any]) -> Rejection:
    error = cls.__new__(cls)
    Rejection.__init__(error, detail)
    # Not as keyword arguments: a foreign callee may name one "message".
    error.details = details
    return error


def _title(cls: type[SynchromeshError]) -> str:
    return cls.__name__[0] + "".join(
        f" {c.lower()}" if c.isupper() else c for c in cls.__name__[1:]
    )


_BUILDERS = (VersionConflict, UnknownInstance, StaleIncarnation, WatchLagged, MissingExtra)
_TABLE = error_table()
