"""Names what a gateway was given that is of the wrong kind: not every user has a type checker."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cache
from types import ModuleType
from typing import Any, Final, NamedTuple, TypeVar

from synchromesh.calls.contract import Operation
from synchromesh.durations import is_count, is_number
from synchromesh.gateway.principal import Auth
from synchromesh.gateway.routes import Aggregate, Forward, Gateway, Route
from synchromesh.gateway.shapes import members_of

T = TypeVar("T")

_COUNTS: Final = (
    "in_flight_max", "tunnels_max", "buckets_max", "stale_max", "stale_bytes_max", "cache_max",
    "cache_bytes_max",
)  # fmt: skip
# What reading a value raises that is of the wrong kind.
_UNREADABLE: Final = (AttributeError, TypeError, ValueError)
_WORDS: Final[dict[Any, str]] = {
    str: "a text",
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    type(None): "None",
    AbstractSet: "a set",
    Mapping: "a dict",
    Sequence: "a list",
    Collection: "a list",
    Callable: "a function",
}
_SHOWN_MAX: Final = 40


class _Wrong(NamedTuple):
    """What is wrong with one item of a list: what it is, what to do, and what it would be then."""

    what: str
    how: str
    value: str


def sound(gateway: Gateway) -> tuple[Gateway, list[str]]:
    """Return what of a gateway can be read, and what is wrong with the rest, a sentence each.

    Example:
        >>> from synchromesh.gateway import ApiKeys
        >>> sound(Gateway(auth=[ApiKeys], routes=[]))[1]
        ['auth[0] is the class ApiKeys; write a value of it: ApiKeys()']
    """
    auth, wrong_auth = _items("auth", gateway.auth, _wrong_auth)
    routes, wrong_routes = _items("routes", gateway.routes, _wrong_route)
    changed: dict[str, Any] = {"auth": auth, "routes": routes}
    mistakes = [*wrong_auth, *wrong_routes]
    for name in _COUNTS:
        value = getattr(gateway, name)
        if not is_count(value) or value < 1:
            mistakes.append(f"the gateway's {name} is {_told(value)}; make it 1 or more")
            changed[name] = 1
    return dataclasses.replace(gateway, **changed), mistakes


def auth_mistakes(auth: Auth) -> list[str]:
    """Return what is wrong with a way to tell who asks, as far as it says so itself.

    Example:
        >>> from synchromesh.gateway import ApiKeys
        >>> auth_mistakes(ApiKeys(file=None))
        ['ApiKeys: file is None; make it a text']
    """
    noted: list[str] = []
    said: Callable[[], Sequence[str]] = getattr(auth, "mistakes", lambda: ())
    reading(lambda: noted.extend(said()), noted, auth, f"{type(auth).__name__}: ")
    return noted


def reading(read: Callable[[], T], noted: list[str], value: object, head: str = "") -> T | None:
    """Return what a reader makes of a value; None where it cannot be read.

    What is of the wrong kind is noted as well, where the reader has not done so in its own words.

    Args:
        noted: the mistakes of this value, which the reader adds to.
        head: what the others begin with.

    Raises:
        AttributeError, TypeError, ValueError: the reader did, and nothing is of the wrong kind.
    """
    kinds = list(wrong_kinds(value))
    found = None
    try:
        found = read()
    except _UNREADABLE:
        if not kinds:
            raise
    for each in kinds:
        option = each.partition(" ")[0].rpartition(".")[2].partition("[")[0]
        if not any(option in other for other in noted):
            noted.append(f"{head}{each}")
    return found


def wrong_kinds(value: Any, of: str = "") -> Iterator[str]:
    """Yield which options of a value have another kind than is annotated, a sentence each.

    Example:
        >>> from synchromesh.gateway.routes import Rate
        >>> list(wrong_kinds(Rate("5/s", burst="2")))
        ["burst is '2'; make it a whole number or None"]
    """
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return
    hints = _hints(type(value))
    for each in dataclasses.fields(value):
        own, hint = getattr(value, each.name), hints[each.name]
        if not _is_kind(own, hint):
            yield f"{of}{each.name} is {_told(own)}; make it {_words(hint)}"
        elif isinstance(own, Mapping):
            for name, inner in own.items():
                yield from wrong_kinds(inner, f"{of}{each.name}[{name!r}].")
        else:
            yield from wrong_kinds(own, f"{of}{each.name}.")


def _items(
    name: str, given: Any, wrong: Callable[[Any], _Wrong | None]
) -> tuple[tuple[Any, ...], list[str]]:
    """Return the usable items of a list, and what is wrong with others, or with the list."""
    if not isinstance(given, Sequence) or isinstance(given, str | bytes):
        found = wrong(given)
        if found is not None:
            return (), [f"{name} {found.what}; write a list: {name}=[{found.value}]"]
        kind = type(given).__name__
        return (given,), [f"{name} is a bare {kind}; write a list: {name}=[{kind}(...)]"]
    read = [(at, each, wrong(each)) for at, each in enumerate(given)]
    return (
        tuple(each for _, each, found in read if found is None),
        [f"{name}[{at}] {found.what}; {found.how}" for at, _, found in read if found is not None],
    )


def _wrong_auth(each: Any) -> _Wrong | None:
    if isinstance(each, type):
        return _of_class(each)
    if callable(getattr(each, "open", None)) and not isinstance(each, ModuleType):
        return None
    if callable(each):
        name = getattr(each, "__name__", "")
        named = f"the function {name}" if name.isidentifier() else "a function"
        wrapped = f"AuthFunction({name if name.isidentifier() else '...'})"
        return _Wrong(f"is {named}", f"wrap it in {wrapped}", wrapped)
    value = "ApiKeys(), JWT(...), Certificates(...) or AuthFunction(...)"
    return _Wrong(f"is {_told(each)}", f"write {value}", "ApiKeys()")


def _wrong_route(each: Any) -> _Wrong | None:
    if isinstance(each, Route | Aggregate | Forward):
        return None
    if isinstance(each, type):
        return _of_class(each)
    if isinstance(each, Operation):
        value = f'Route("{each.method} {each.path}", ...)'
        return _Wrong(f"is the operation {each.full_name}", f"write {value}", value)
    what = f"is {_told(each)}"
    if isinstance(each, list | tuple):
        return _Wrong(what, "write its routes one by one, or a * before it", "...")
    return _Wrong(what, "write Route, Aggregate or Forward", "Route(...), ...")


def _of_class(kind: type) -> _Wrong:
    fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
    missing = dataclasses.MISSING
    needs = any(f.default is missing and f.default_factory is missing for f in fields)
    value = f"{kind.__name__}({'...' if needs or not fields else ''})"
    return _Wrong(f"is the class {kind.__name__}", f"write a value of it: {value}", value)


@cache
def _hints(kind: type) -> Mapping[str, Any]:
    return typing.get_type_hints(kind)


def _is_kind(value: object, hint: Any) -> bool:
    return any(_is_one(value, member) for member in members_of(hint))


def _is_one(value: object, hint: Any) -> bool:
    if hint is Any or hint is object:
        return True
    if hint is float:
        return is_number(value)
    if hint is int:
        return is_count(value)
    kind, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind is Callable:
        return callable(value)
    if getattr(kind, "_is_protocol", False):
        return not isinstance(value, type)
    if kind is AbstractSet and not isinstance(value, Mapping):
        kind = Collection  # a list of them says the same
    if not isinstance(value, kind) or (isinstance(value, str | bytes) and kind is not str):
        return False
    if isinstance(value, Mapping):
        return not inner or all(
            _is_kind(name, inner[0]) and _is_kind(each, inner[-1]) for name, each in value.items()
        )
    if isinstance(value, Collection) and not isinstance(value, str) and inner:
        return all(_is_kind(each, inner[0]) for each in value)
    return True


def _words(hint: Any) -> str:
    words = []
    for member in members_of(hint):
        kind, inner = typing.get_origin(member) or member, typing.get_args(member)
        word = _WORDS.get(kind) or _with_article(getattr(kind, "__name__", str(kind)))
        if str in inner and kind in (AbstractSet, Sequence, Collection):
            word = f"{word} of texts"
        elif kind is Mapping and inner:
            word = f"{word} of {getattr(inner[-1], '__name__', 'values')} by name"
        words.append(word)
    return " or ".join(dict.fromkeys(words))


def _told(value: object) -> str:
    """Return what a value is; what may be long, or hold a secret, by its kind."""
    if value is None or isinstance(value, bool | int | float):
        return str(value)[:_SHOWN_MAX]
    if isinstance(value, str):
        return repr(value[:_SHOWN_MAX])
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if inspect.isroutine(value):
        return f"the function {value.__name__}"
    return _with_article(type(value).__name__)


def _with_article(name: str) -> str:
    return f"{'an' if name[:1] in 'AEIOUaeiou' else 'a'} {name}"
