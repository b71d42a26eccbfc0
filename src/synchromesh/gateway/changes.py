"""Tells two definitions of a gateway apart, in words: a pure comparison.

Values are compared as they are shown: the same module that was read again has other objects, and
means the same by them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from synchromesh.calls.contract import Operation
from synchromesh.gateway.change import GatewayChange
from synchromesh.gateway.routes import Aggregate, Forward, Gateway, Route

_CHARS_MAX = 200
_OURS = "synchromesh."
_NOT_FIELDS = frozenset({"routes", "auth"})


def operations_of(gateway: Gateway) -> Iterator[Operation[..., Any]]:
    """Yield the operations that a gateway's routes and branches lead to."""
    for route in gateway.routes:
        if isinstance(route, Route):
            yield route.operation
        elif isinstance(route, Aggregate):
            for branch in route.branches.values():
                yield branch.operation


def definition_changes(before: Gateway, after: Gateway) -> list[GatewayChange]:
    """Return what differs between two definitions: routes, ways to tell who asks, bounds.

    Example:
        >>> from synchromesh.gateway.routes import Forward, Rate
        >>> one = Gateway(routes=[Forward("GET /a", to="x"), Forward("GET /b", to="x")])
        >>> other = Gateway(routes=[Forward("GET /a", to="x", rate=Rate("5/s"))])
        >>> for change in definition_changes(one, other):
        ...     print(change)
        ~ GET /a: rate  none -> Rate(limit='5/s')
        - GET /b  Forward(to='x')
    """
    return [*_routes(before, after), *_auth(before, after), *_rest(before, after)]


def _routes(before: Gateway, after: Gateway) -> Iterator[GatewayChange]:
    old = {name_of(route): route for route in before.routes}
    new = {name_of(route): route for route in after.routes}
    for name in {**old, **new}:
        was, now = old.get(name), new.get(name)
        if was is None or now is None:
            yield GatewayChange(name, shown(was) if was else "", shown(now) if now else "")
        elif type(was) is not type(now):
            yield GatewayChange(name, shown(was), shown(now))
        else:
            yield from _fields(f"{name}: ", was, now)


def name_of(route: Route | Aggregate | Forward) -> str:
    """Return the name by which the engine knows a route: method, host and path."""
    method, _, path = str(route.route).partition(" ")
    return f"{method} {route.host}{path}"


def _auth(before: Gateway, after: Gateway) -> Iterator[GatewayChange]:
    old, new = [_shown(each) for each in before.auth], [_shown(each) for each in after.auth]
    yield from (GatewayChange("auth", _cut(each), "") for each in old if each not in new)
    yield from (GatewayChange("auth", "", _cut(each)) for each in new if each not in old)
    if sorted(old) == sorted(new) and old != new:
        yield GatewayChange("auth: order", _cut(", ".join(old)), _cut(", ".join(new)))


def _rest(before: Gateway, after: Gateway) -> Iterator[GatewayChange]:
    for change in _fields("gateway: ", before, after):
        if change.what.removeprefix("gateway: ") not in _NOT_FIELDS:
            yield change


def _fields(of: str, was: Any, now: Any) -> Iterator[GatewayChange]:
    for each in dataclasses.fields(was):
        old, new = getattr(was, each.name), getattr(now, each.name)
        if _shown(old) != _shown(new):
            yield GatewayChange(f"{of}{each.name}", shown(old), shown(new))


def shown(value: object) -> str:
    """Return a value of a definition as text; what is not ours is told by its type alone.

    An authenticator of somebody's own may hold a secret.

    Example:
        >>> from synchromesh.gateway.routes import Rate
        >>> shown(Rate("20/s", burst=40)), shown(frozenset({"b", "a"})), shown(None)
        ("Rate(limit='20/s', burst=40)", 'a, b', 'none')
    """
    return _cut(_shown(value))


def _cut(text: str) -> str:
    return text if len(text) <= _CHARS_MAX else f"{text[:_CHARS_MAX]}..."


def _shown(value: object) -> str:
    if value is None or value == ():
        return "none"
    if isinstance(value, Operation):
        return value.full_name
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_shown(each)}" for key, each in value.items()) or "none"
    if isinstance(value, AbstractSet):
        return ", ".join(sorted(map(_shown, value))) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value)) or "none"
    if isinstance(value, str):
        return value or "none"
    if isinstance(value, bool | int | float):
        return str(value)
    kind = type(value)
    if callable(value):
        return str(getattr(value, "__qualname__", kind.__name__))
    if dataclasses.is_dataclass(value) and kind.__module__.startswith(_OURS):
        return f"{kind.__name__}({', '.join(_given(value))})"
    return kind.__name__


def _given(value: Any) -> Iterator[str]:
    """Yield the fields that are not left out, but for the name of a route."""
    for each in dataclasses.fields(value):
        own = getattr(value, each.name)
        is_left_out = own == each.default or (
            each.default_factory is not dataclasses.MISSING and own == each.default_factory()
        )
        if each.name != "route" and not is_left_out:
            told = repr(own) if isinstance(own, str) else _shown(own)
            yield f"{each.name}={told}"
