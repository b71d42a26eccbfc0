"""What a service or the gateway offers, and what it expects of others, from the code it imports.

A service may call whatever contract it imports, so that it expects all operations of those; which
of them it does call nobody knows before it does. Of events it expects those that it takes, and the
gateway expects the operations that its routes name.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from synchromesh.calls import Contract, Operation, operations_of
from synchromesh.calls.describing import describe
from synchromesh.calls.description import ContractsOfPart
from synchromesh.service import Service

if TYPE_CHECKING:
    from synchromesh.gateway.compiled import CompiledRoute


def contracts_of_service(service: Service, app: str) -> ContractsOfPart:
    """Describe what a service offers and expects.

    Args:
        app: where it is defined, as "module:attribute".

    Raises:
        ContractError: it does not fit its contract, or a contract has a type that cannot be sent.
    """
    service.check()
    imported = imported_contracts(app.partition(":")[0])
    operations = [op for contract in imported for op in operations_of(contract).values()]
    return ContractsOfPart(
        describe((each.operation for each in service.operations.values()), service.published()),
        describe(
            _of_others(operations, service.name),
            (event for event, _ in service.subscriptions.values()),
        ),
    )


def contracts_of_gateway(entries: Sequence[CompiledRoute]) -> ContractsOfPart:
    """Describe what a gateway expects: it offers nothing to services."""
    routes = (entry.operation for entry in entries if entry.operation is not None)
    branches = (branch.operation for entry in entries for branch in entry.parts.values())
    return ContractsOfPart(expects=describe(_of_others([*routes, *branches], "")))


def _of_others(
    operations: Iterable[Operation[..., Any]], name: str
) -> Iterator[Operation[..., Any]]:
    for operation in operations:
        if operation.service != name and not operation.is_external:
            yield operation


def imported_contracts(module: str) -> list[type]:
    """Return the contracts that a module imports, or a module of the user's that it imports.

    An import within a function counts, too. A module that declares a contract uses none by that,
    whatever it imports.
    """
    found: dict[type, None] = {}
    seen: set[str] = set()
    left = [module]
    while left:
        name = left.pop()
        loaded = sys.modules.get(name)
        if name in seen or loaded is None or not _is_own(loaded):
            continue
        seen.add(name)
        if name != module and _declared(loaded):
            continue
        for source, attribute in _imports(loaded):
            value = getattr(sys.modules.get(source), attribute, None) if attribute else None
            if isinstance(value, type) and _is_contract(value):
                found[value] = None
            elif isinstance(value, ModuleType):
                left.append(value.__name__)
                found.update(dict.fromkeys(_contracts(value)))
            else:
                left.append(source)
                if attribute in ("", "*") and source in sys.modules:
                    found.update(dict.fromkeys(_contracts(sys.modules[source])))
    return list(found)


@cache
def _imports(module: ModuleType) -> tuple[tuple[str, str], ...]:
    """Return what a module's source imports: the module, and the attribute, "" for all of it."""
    try:
        tree = ast.parse(Path(str(module.__file__)).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return ()  # it is loaded, and its source has gone since: nothing is known of it
    return tuple(_imported_by(tree, module))


def _imported_by(tree: ast.Module, module: ModuleType) -> Iterator[tuple[str, str]]:
    package = module.__spec__.parent if module.__spec__ is not None else module.__package__
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((each.name, "") for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            source = importlib.util.resolve_name(relative, package) if node.level else relative
            yield from ((source, each.name) for each in node.names)


def _is_own(module: ModuleType) -> bool:
    """Say whether a module is the user's: neither Python's, nor ours, nor installed."""
    place = getattr(module, "__file__", None)
    root = module.__name__.partition(".")[0]
    if not place or root in sys.stdlib_module_names or root == "synchromesh":
        return False
    return not {"site-packages", "dist-packages"} & set(Path(place).parts)


def _is_contract(value: type) -> bool:
    return Contract in value.__mro__ and value is not Contract


def _contracts(module: ModuleType) -> list[type]:
    """Return the contracts that can be reached by the module's name."""
    return [v for v in vars(module).values() if isinstance(v, type) and _is_contract(v)]


def _declared(module: ModuleType) -> list[type]:
    return [each for each in _contracts(module) if each.__module__ == module.__name__]
