"""All versions of a service's sagas: new runs start with the newest, old ones keep their code."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any, TypeVar

from synchromesh.durations import duration
from synchromesh.errors import ContractError
from synchromesh.saga.definition import SagaDefinition
from synchromesh.saga.policy import SagaPolicy
from synchromesh.saga.saga import Saga

I = TypeVar("I")  # noqa: E741
R = TypeVar("R")


class SagaVersions:
    """Holds the definitions of a service's sagas, several versions of one beside each other.

    Example:
        >>> from synchromesh.saga.saga import Saga
        >>> async def pay(s: Saga, cents: int) -> int:
        ...     return cents
        >>> versions = SagaVersions([SagaDefinition(pay, "pay"), SagaDefinition(pay, "pay", 2)])
        >>> [definition.version for definition in versions.fitting("pay", 1)]
        [1, 2]
        >>> versions.newest("pay").version
        2
    """

    def __init__(self, definitions: Iterable[SagaDefinition[Any, Any]] = ()) -> None:
        self._by_name: dict[str, dict[int, SagaDefinition[Any, Any]]] = {}
        for definition in definitions:
            self.add(definition)

    def add(self, definition: SagaDefinition[Any, Any]) -> None:
        """Add a definition.

        Raises:
            ContractError: this version of the saga is defined already.
        """
        versions = self._by_name.setdefault(definition.name, {})
        if definition.version in versions:
            raise ContractError(
                f"there are two sagas {definition.name!r} of version {definition.version}; rename "
                "one, or give the newer one a higher version="
            )
        versions[definition.version] = definition

    def defining(
        self,
        *,
        name: str,
        version: int,
        deadline: str,
        key: Callable[[I], str | None] | None,
        owner: str,
        policy: SagaPolicy | None,
    ) -> Callable[[Callable[[Saga, I], Coroutine[Any, Any, R]]], SagaDefinition[I, R]]:
        """Return a decorator that defines a saga, adds it and returns it.

        What it decorates raises:
            ContractError: it is no `async def`, or this version is defined already.
            ConfigError: an option is outside its range.
        """

        def define(
            function: Callable[[Saga, I], Coroutine[Any, Any, R]],
        ) -> SagaDefinition[I, R]:
            stored = name or function.__name__
            if not inspect.iscoroutinefunction(function):
                raise ContractError(f"saga {stored!r} is not async; write async def")
            definition = SagaDefinition(
                function,
                name=stored,
                version=version,
                deadline_s=duration(deadline, f"saga {stored!r}: deadline"),
                lock_key=key,
                owner=owner,
                policy=policy or SagaPolicy(),
            )
            self.add(definition)
            return definition

        return define

    def replace(self, definition: SagaDefinition[Any, Any]) -> None:
        """Put a definition in the place of all that have its name."""
        self._by_name[definition.name] = {definition.version: definition}

    def newest(self, name: str) -> SagaDefinition[Any, Any] | None:
        """Return the definition that new runs are started with; None where there is none."""
        versions = self._by_name.get(name)
        return versions[max(versions)] if versions else None

    def not_newest(self, definition: SagaDefinition[Any, Any], service: str) -> ContractError:
        """Return the error that a run is to be started with another definition than the newest."""
        newest = self.newest(definition.name)
        is_old = definition in self.fitting(definition.name, definition.version)
        return ContractError(
            f"version {definition.version} of saga {definition.name!r} is there for its old "
            f"runs; start version {newest.version if newest else 0}"
            if is_old
            else f"saga {definition.name!r} is none of service {service!r}; define it there"
        )

    def fitting(self, name: str, version: int) -> list[SagaDefinition[Any, Any]]:
        """Return the definitions that may continue a run of a version: its own, then newer ones."""
        versions = self._by_name.get(name, {})
        return [versions[each] for each in sorted(versions) if each >= version]

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def __getitem__(self, name: str) -> SagaDefinition[Any, Any]:
        definition = self.newest(name)
        if definition is None:
            raise KeyError(name)
        return definition

    def __iter__(self) -> Iterator[SagaDefinition[Any, Any]]:
        for versions in self._by_name.values():
            yield from versions.values()

    def __len__(self) -> int:
        return len(self._by_name)

    def __repr__(self) -> str:
        named = (
            f"{name} v{', v'.join(map(str, sorted(found)))}"
            for name, found in self._by_name.items()
        )
        return f"<SagaVersions {'; '.join(named)}>"
