"""Durations as people write them, `"300ms"`, `"1.5s"`, `"10m"`; and numbers that options have."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import fields
from typing import TYPE_CHECKING, NamedTuple

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


class Range(NamedTuple):
    """The numbers that an option may be; each is finite, unless `most` is not.

    Attributes:
        least, most: the bounds, which are both included.
        is_above: the least is not included.
        is_below: the most is not included.
    """

    least: float
    most: float = sys.float_info.max
    is_above: bool = False
    is_below: bool = False

    def has(self, value: float) -> bool:
        """Say whether a number is within it.

        Example:
            >>> [ABOVE_0.has(each) for each in (0.0, 0.1, math.inf)]
            [False, True, False]
        """
        is_high = value > self.least if self.is_above else value >= self.least
        return is_high and (value < self.most if self.is_below else value <= self.most)

    def __str__(self) -> str:
        least = f"above {self.least:g}" if self.is_above else f"{self.least:g} or more"
        if self.most >= sys.float_info.max:
            return least
        if not self.is_above and not self.is_below:
            return f"from {self.least:g} to {self.most:g}"
        least = least if self.is_above else f"at least {self.least:g}"
        return f"{least} and {'below' if self.is_below else 'at most'} {self.most:g}"


ABOVE_0 = Range(0.0, is_above=True)
FROM_0 = Range(0.0)
FROM_1 = Range(1.0)
SHARE = Range(0.0, 1.0)
SHARE_ABOVE_0 = Range(0.0, 1.0, is_above=True)
BELOW_1 = Range(0.0, 1.0, is_below=True)
FOR_EVER = Range(0.0, math.inf, is_above=True)


def refuse_wrong_number(name: str, value: object, span: Range, kind: str = "float") -> None:
    """Refuse a value that is no number, or is outside its range.

    Args:
        name: what it is, as the message begins; `_s` at its end says that it is a time.
        kind: its annotation: int is a whole number, and a union with None may be None.

    Raises:
        ConfigError: it is none.

    Example:
        >>> refuse_wrong_number("poll_s", "1", ABOVE_0)
        Traceback (most recent call last):
        synchromesh.errors.ConfigError: poll_s is '1'; make it a number of seconds above 0
    """
    may_be_none = "None" in kind
    if value is None and may_be_none:
        return
    is_whole = kind.startswith("int")
    if (is_count(value) if is_whole else is_number(value)) and span.has(value):  # type: ignore[arg-type]
        return
    what = "a whole number" if is_whole else "a number"
    what += " of seconds" if name.endswith("_s") else ""
    words = str(span)
    comma = "" if words.startswith(("above", "from")) else ","
    raise ConfigError(
        f"{name} is {value!r:.80}; make it {what}{comma} {words}{', or None' * may_be_none}"
    )


def refuse_wrong_numbers(options: DataclassInstance, *ranges: tuple[Range, str]) -> None:
    """Refuse options that are no numbers, or outside their ranges: each with the names it is of.

    Whether one is a whole number, or may be None, is told by its annotation.

    Raises:
        ConfigError: one is; the message names the class, the option, the value, and what is right.
    """
    kinds = {each.name: str(each.type) for each in fields(options)}
    for span, names in ranges:
        for name in names.split():
            what = f"{type(options).__name__}: {name}"
            refuse_wrong_number(what, getattr(options, name), span, kinds[name])


def refuse_misfit(options: DataclassInstance, name: str, is_right: bool, expected: str) -> None:
    """Refuse an option by another rule than the range of a number.

    Raises:
        ConfigError: it is not right; the message is as that of `refuse_wrong_numbers`.
    """
    if not is_right:
        what = f"{type(options).__name__}: {name}"
        raise ConfigError(f"{what} is {getattr(options, name)!r}; make it {expected}")


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
