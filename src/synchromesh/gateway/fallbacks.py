"""Compiles the fallback of a branch or a route: the answer where its service fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from synchromesh.codec import decode, encode
from synchromesh.durations import duration
from synchromesh.errors import BadRequest, ConfigError
from synchromesh.gateway.routes import Stale, Static
from synchromesh.gateway.shapes import is_a

Note: TypeAlias = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class CompiledFallback:
    """A fallback as the engine runs it.

    Attributes:
        static: the JSON that is answered; None where it is not a static value.
        stale_s: how old a last answer may be that is answered; 0 where it is none.

    Example:
        >>> read_fallback(Stale("10m"), int, print)
        CompiledFallback(static=None, stale_s=600.0)
        >>> read_fallback(Static(0), int, print)
        CompiledFallback(static=b'0', stale_s=0.0)
    """

    static: bytes | None = None
    stale_s: float = 0.0


def read_fallback(
    fallback: Static | Stale | None, result: Any, note: Note
) -> CompiledFallback | None:
    """Compile a fallback, None for none, and collect its mistakes.

    Args:
        result: the type of the operation's answers.
    """
    if fallback is None:
        return None
    try:
        if isinstance(fallback, Stale):
            return CompiledFallback(stale_s=duration(fallback.at_most, "at_most"))
        if is_a(fallback, Static):
            static = encode(fallback.value)
            decode(static, result)
            return CompiledFallback(static)
    except ConfigError as error:
        note(f"its fallback: {error.message}")
    except BadRequest as error:
        note(f"its static value is no answer of the operation: {error.message}")
    else:
        note(f"its fallback is a {type(fallback).__name__}; write Static or Stale")
    return None


def describe_fallback(fallback: Static | Stale | None) -> str:
    """Describe a fallback in words; "" where there is none.

    Example:
        >>> describe_fallback(Stale("10m"))
        'its last answer, at most 10m old'
    """
    if isinstance(fallback, Stale):
        return f"its last answer, at most {fallback.at_most} old"
    return "a static value" if isinstance(fallback, Static) else ""
