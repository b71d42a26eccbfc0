"""Durations as people write them, `"300ms"`, `"1.5s"`, `"10m"`; and numbers that options have."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable
from dataclasses import fields
from typing import TYPE_CHECKING

from synchromesh.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_UNITS_MS = {"ms": 1.0, "s": 1e3, "m": 6e4, "h": 3.6e6, "d": 8.64e7}
_FORM = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(ms|s|m|h|d)")


def is_number(value: object) -> bool:
    """Say whether a value is a number: not NaN, no bool, no text, and no int beyond a float.

    NaN passes every check that says what is wrong, and puts timers out of order.

    Example:
        >>> [is_number(each) for each in (1, 0.5, math.inf, math.nan, True, "1", 10**400)]
        [True, True, True, False, False, False, False]
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return not math.isnan(value)
    except OverflowError:
        return False


def is_count(value: object) -> bool:
    """Say whether a value is a whole number, and no bool.

    Example:
        >>> [is_count(each) for each in (3, 3.0, True, "3")]
        [True, False, False, False]
    """
    return isinstance(value, int) and not isinstance(value, bool)


def refuse_no_numbers(
    what: str,
    options: DataclassInstance,
    *,
    counts: Container[str],
    maybe_none: Container[str] = (),
) -> None:
    """Refuse options whose values are no numbers; of those in `counts`, no whole ones.

    Raises:
        ConfigError: one is of the wrong type; the text names it: `what` is "breaker option".
    """
    for name in (each.name for each in fields(options)):
        value, is_whole = getattr(options, name), name in counts
        if value is None and name in maybe_none:
            continue
        if not (is_count(value) if is_whole else is_number(value)):
            kind = "whole number" if is_whole else "number"
            raise ConfigError(f"{what} {name} is {value!r}; make it a {kind}")


def refuse_out_of_range(
    what: str, options: DataclassInstance, checks: Iterable[tuple[str, bool, str]]
) -> None:
    """Refuse options outside their range: the name of each, whether it is right, and what would be.

    Raises:
        ConfigError: one is outside its range.
    """
    for name, is_right, expected in checks:
        if not is_right:
            raise ConfigError(f"{what} {name} is {getattr(options, name)!r}; make it {expected}")


def duration(text: object, option: str = "") -> float:
    """Return the seconds that a number with a unit (ms, s, m, h, d) stands for.

    Args:
        option: what is so long; the message of a mistake begins with it.

    Raises:
        ConfigError: it is no such text, or it is not longer than zero.

    Example:
        >>> duration("700ms"), duration("1.5s"), duration("10m")
        (0.7, 1.5, 600.0)
    """
    head = f"{option}: " if option else ""
    if not isinstance(text, str):
        what, such = f"a {type(text).__name__}", "5s"
        if isinstance(text, int | float) and is_number(text):
            what = str(text)[:40]
            such = f"{text:g}s" if 1e-3 <= text < 1e6 else such
        raise ConfigError(f'{head}{what} is no duration; write a text such as "{such}"')
    matched = _FORM.fullmatch(text)
    # A division is exact where it can be: "700ms" is 0.7.
    length_s = float(matched[1]) * _UNITS_MS[matched[2]] / 1e3 if matched else 0.0
    if length_s <= 0:
        raise ConfigError(
            f"{head}{text[:40]!r} is not a duration; write a number above 0 with ms, s, m, h or d, "
            'such as "300ms", "1.5s" or "10m"'
        )
    return length_s
