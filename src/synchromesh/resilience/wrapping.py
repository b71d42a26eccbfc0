"""`Policy.wrap`: which kind of function is guarded in which way."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypeVar, cast

from synchromesh.chance import Chance
from synchromesh.errors import ConfigError
from synchromesh.resilience import blocking, guarded
from synchromesh.resilience.policy_layers import PolicyLayers, refuse_hedge
from synchromesh.runtime import RealRuntime

F = TypeVar("F", bound=Callable[..., object])


def wrap(
    policy: PolicyLayers, fn: F, *, rng: Chance | None, name: str | None, is_idempotent: bool
) -> F:
    """Guard a function; see `Policy.wrap`."""
    named = name or str(getattr(fn, "__qualname__", fn))
    reason = _unfit(fn)
    if reason:
        raise ConfigError(f"{named} {reason}")
    refuse_hedge(policy, named)
    guard: Callable[..., object] = guarded.guard if _is_async(fn) else blocking.guard
    chance = RealRuntime().rng if rng is None else rng
    return cast("F", guard(policy, fn, name=named, rng=chance, is_idempotent=is_idempotent))


def _is_async(fn: Callable[..., object]) -> bool:
    # An object that is called is as async as its method.
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(
        getattr(fn, "__call__", None)  # noqa: B004 - not whether there is one, but of what kind
    )


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
