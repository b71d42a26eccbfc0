"""Functions as keys of what is known of them, which does not keep them.

One that is made for a request or a run, or is of an object of that, is gone with it, and so is all
that it closes over.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from functools import wraps
from inspect import signature
from types import FunctionType, MethodType, SimpleNamespace
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar, cast
from weakref import ref

from synchromesh.errors import ContractError

F = TypeVar("F", bound=Callable[..., Any])

_NOBODY: Final = object()


class _MethodRef(NamedTuple):
    """A method, whoever's it is: each time that it is asked for, it is another object."""

    function: ref[Callable[..., Any]]

    def __call__(self) -> Callable[..., Any] | None:
        function = self.function()
        return None if function is None else MethodType(function, _NOBODY)


class _Itself(NamedTuple):
    function: Callable[..., Any]

    def __call__(self) -> Callable[..., Any]:
        return self.function


Weakly: TypeAlias = ref[Callable[..., Any]] | _MethodRef | _Itself


def weakly(function: Callable[..., Any]) -> Weakly:
    """Return a key for what is known of a callable; of a plain function it is a `ref`.

    Example:
        >>> weakly(weakly) == ref(weakly), weakly("a".join)() is None
        (True, True)
    """
    if isinstance(function, MethodType):
        return _MethodRef(ref(function.__func__))
    try:
        return ref(function)
    except TypeError:
        # An object with slots, by what it is called by; what is no function at all is itself.
        call = type(function).__call__
        return _MethodRef(ref(call)) if isinstance(call, FunctionType) else _Itself(function)


def there(key: Weakly) -> Callable[..., Any]:
    """Return the callable of a key; whoever asks holds it."""
    function = key()
    assert function is not None, "it is asked for while it is there"
    return function


def with_arguments(written: str) -> Callable[[F], F]:
    """Have a decorator that needs arguments say so where it stands over a function without them.

    Args:
        written: the arguments, as one may write them.

    Example:
        >>> @with_arguments('"POST /orders"')
        ... def command(route: str) -> Callable[[F], F]:
        ...     return lambda function: function
        >>> @command
        ... def place() -> None: ...
        Traceback (most recent call last):
        synchromesh.errors.ContractError: @command stands over place without its arguments; write \
such as @command("POST /orders")
    """

    def around(decorator: F) -> F:
        @wraps(decorator)
        def asked(*args: Any, **named: Any) -> Any:
            owner, given = args if len(args) == 2 else (None, args[0] if args else None)
            if not named and len(args) <= 2 and isinstance(given, FunctionType):
                of = f"{getattr(owner, 'name', '')}." if owner is not None else ""
                name = f"@{of}{decorator.__name__}"
                raise ContractError(
                    f"{name} stands over {given.__name__} without its arguments; write such as "
                    f"{name}({written})"
                )
            return decorator(*args, **named)

        return cast("F", asked)

    return around


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the types that a function which is given something of ours is annotated with.

    That of its first parameter, such as a session, may be imported for type checkers alone, or be
    one of those that have their parameters for them alone: then it is left out.

    Raises:
        NameError, TypeError: another annotation cannot be resolved.

    Example:
        >>> async def save(session: "ForCheckersAlone", order_id: "str") -> "int": ...
        >>> hints_of(save)
        {'order_id': <class 'str'>, 'return': <class 'int'>}
    """
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError):
        noted = dict(getattr(function, "__annotations__", ()))
        names = getattr(function, "__globals__", None)
        first = next(iter(signature(function).parameters), "")
        if names is None or noted.pop(first, None) is None:
            raise
    bare = SimpleNamespace(__annotations__=noted)
    return typing.get_type_hints(bare, globalns=names, include_extras=True)
