"""`Policy.wrap`: which kind of function is guarded in which way."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar, cast

from synchromesh.chance import Chance
from synchromesh.durations import is_number
from synchromesh.errors import ConfigError
from synchromesh.resilience import blocking, failures, guarded
from synchromesh.resilience.attempts import MayRepeat
from synchromesh.resilience.failures import Predicate
from synchromesh.resilience.keyed import Keyed, by_key, by_key_sync
from synchromesh.resilience.policy_layers import (
    PolicyLayers,
    refuse_hedge,
    refuse_wrong_words,
)
from synchromesh.runtime import RealRuntime

F = TypeVar("F", bound=Callable[..., object])
Fn = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Wrapping:
    """Holds how functions are guarded; see `Policy.wrap`.

    Raises:
        ConfigError: a value is not what it has to be.
    """

    policy: PolicyLayers
    rng: Chance | None
    name: str | None
    is_idempotent: bool
    retry_if: Predicate | None
    is_failure: Predicate | None
    deadline_s: float | None
    key: Callable[..., Hashable] | None

    def __post_init__(self) -> None:
        for option in ("retry_if", "is_failure", "key"):
            failures.refuse_unasked(option, getattr(self, option))
        refuse_wrong_words(self.name, self.rng)
        # "no" is true as well, and a run is then repeated that must not be.
        if not isinstance(self.is_idempotent, bool):
            raise ConfigError(
                f"is_idempotent is {self.is_idempotent!r}; make it True where a run whose outcome "
                "is unknown may be run again, and else False"
            )
        if self.is_idempotent and self.retry_if is not None:
            raise ConfigError(
                "is_idempotent and retry_if are both given, and each says what is run again; give "
                "one of them"
            )
        within_s = self.deadline_s
        if within_s is not None and not (is_number(within_s) and within_s > 0):
            raise ConfigError(
                f"deadline_s is {within_s!r}; make it a number of seconds above 0, or None for none"
            )

    def around(self, fn: F) -> F:
        """Guard a function.

        Raises:
            ConfigError: it is of a kind that cannot be guarded.
        """
        name = self.name or str(getattr(fn, "__qualname__", fn))
        reason = _unfit(fn)
        if reason:
            raise ConfigError(f"{name} {reason}")
        refuse_hedge(self.policy, name)
        is_async = failures.is_async(fn)
        guard: Fn = guarded.guard if is_async else blocking.guard
        rng = RealRuntime().rng if self.rng is None else self.rng
        may_repeat = self._may_repeat()
        inner: Fn = fn
        if self.is_failure is not None:
            judged: Fn = failures.judged if is_async else failures.judged_sync
            inner = judged(fn, self.is_failure)

        def make(name: str) -> Fn:
            options = {"rng": rng, "may_repeat": may_repeat, "deadline_s": self.deadline_s}
            return cast("Fn", guard(self.policy, inner, name=name, **options))

        outer = make(name)  # with a key too: what cannot be guarded is refused here
        if self.key is not None:
            keyed = Keyed(make, self.key, name)
            outer = by_key(keyed) if is_async else by_key_sync(keyed)
        if self.is_failure is not None:
            outer = (failures.restored if is_async else failures.restored_sync)(outer)
        return cast("F", wraps(fn)(outer))

    def _may_repeat(self) -> MayRepeat:
        retry_if = self.retry_if
        if retry_if is None:
            return self.is_idempotent
        return lambda error: bool(retry_if(failures.outcome_of(error)))


def _unfit(fn: object) -> str:
    if isinstance(fn, staticmethod | classmethod):
        return f"is a {type(fn).__name__} already; put the policy beneath that decorator"
    if not callable(fn):
        return "cannot be called; a policy guards functions and methods"
    if isinstance(fn, type):
        return "is a class; guard the methods that call out"
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        return (
            "is a generator: its consumer has seen the first items before the last one fails, so "
            "that there is no call to time or to retry; guard what fetches a page of them"
        )
    return ""
