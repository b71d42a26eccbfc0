"""The steps of a saga as its code has them, for advice: read, not run."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

from synchromesh.advisor import SagaStepFacts
from synchromesh.calls.contract import Operation

# What a saga does with others, by the name of its method; all else it does with itself.
_STEPS = frozenset({"call", "try_call", "write", "step"})


def steps_of(
    saga: str, fn: Callable[..., Any], shown: Callable[[str], str]
) -> Iterator[SagaStepFacts]:
    """Yield the steps of a saga in the order of its code; none where its code cannot be read.

    What is given by a variable, and not by its name, is not known, and left out.

    Args:
        saga: its name in full.
        shown: returns a path as it is shown.
    """
    fn = inspect.unwrap(fn)
    try:
        lines, first = inspect.getsourcelines(fn)
        (defined,) = ast.parse(textwrap.dedent("".join(lines))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return
    if not isinstance(defined, ast.AsyncFunctionDef) or not defined.args.args:
        return
    s, path = defined.args.args[0].arg, shown(inspect.getsourcefile(fn) or "")
    calls = (node for node in ast.walk(defined) if isinstance(node, ast.Call))
    for node in sorted(calls, key=lambda node: (node.lineno, node.col_offset)):
        if not (
            isinstance(node.func, ast.Attribute)
            and node.func.attr in _STEPS
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == s
            and node.args
        ):
            continue
        given = {each.arg: each.value for each in node.keywords}
        pivot = given.get("pivot")
        has_undo = not _is_none(given.get("undo", ast.Constant(None)))
        is_pivot = isinstance(pivot, ast.Constant) and pivot.value is True
        what = node.args[0]
        place = f"{path}:{first + node.lineno - 1}"
        if node.func.attr in ("call", "try_call"):
            operation = _named(what.func, fn) if isinstance(what, ast.Call) else None
            if isinstance(operation, Operation):
                # A no that is tried is an answer.
                raises = () if node.func.attr == "try_call" else operation.raises
                refuses = tuple(each.code for each in raises)
                yield SagaStepFacts(
                    saga,
                    place,
                    operation.full_name,
                    operation.is_command,
                    has_undo,
                    is_pivot,
                    refuses,
                )
        elif (function := _named(what, fn)) is not None:
            name = getattr(function, "__name__", "")
            yield SagaStepFacts(saga, place, name, True, has_undo, is_pivot)


def _named(node: ast.expr, fn: Callable[..., Any]) -> Any:
    """Return what a dotted name stands for where the function is defined; None for all else."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    found = inspect.getclosurevars(fn).globals.get(node.id)
    for part in reversed(parts):
        found = getattr(found, part, None)
    return found


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None
