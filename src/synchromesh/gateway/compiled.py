"""A route as the engine runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from synchromesh.calls.contract import Operation
from synchromesh.gateway.branches import CompiledBranch
from synchromesh.gateway.caching import CompiledCache
from synchromesh.gateway.compiled_beside import CompiledMirror, CompiledSplit
from synchromesh.gateway.cors import CompiledCors
from synchromesh.gateway.fallbacks import CompiledFallback
from synchromesh.gateway.forward import CompiledForward
from synchromesh.gateway.pages import ServedPage
from synchromesh.gateway.router import Template
from synchromesh.priority import Priority


@dataclass(frozen=True, slots=True)
class CompiledRoute:
    """One route as the engine runs it.

    Attributes:
        name: the route as it was written, with its host.
        interval_s, burst: its rate; no limit where `interval_s` is 0.
        operation, stand_in: of a `Route`.
        parts: of an `Aggregate`.
        passage: of a `Forward`.
        page: of what describes the gateway itself.
        priority: of the calls that it makes.
        kinds: the kinds of credentials that it takes; any where there are none.
        cors: what pages of other origins are told; None for nothing.
        split: another upstream that has a share of a `Forward`.
        mirror: another upstream that is sent copies.
        host: what a request has to ask, or a pattern of it; "" for any.
        is_strict: whether a body with unknown or duplicate fields is refused.
        cache: how long its answers may be kept, and for whom; None where nothing is said.
    """

    template: Template
    scopes: frozenset[str]
    is_public: bool
    deadline_s: float
    interval_s: float = 0.0
    burst: int = 0
    operation: Operation[..., Any] | None = None
    stand_in: CompiledFallback | None = None
    parts: Mapping[str, CompiledBranch] = field(default_factory=dict)
    passage: CompiledForward | None = None
    page: ServedPage | None = None
    priority: Priority = Priority.INTERACTIVE
    kinds: frozenset[str] = frozenset()
    cors: CompiledCors | None = None
    split: CompiledSplit | None = None
    mirror: CompiledMirror | None = None
    host: str = ""
    cache: CompiledCache | None = None
    is_strict: bool = False
    name: str = field(init=False)

    def __post_init__(self) -> None:
        name = f"{self.template.method} {self.host}{self.template.path}"
        object.__setattr__(self, "name", name)

    def to_other(self) -> CompiledRoute | None:
        """Return it as one that leads to the upstream of its split alone; None without one."""
        if self.split is None:
            return None
        return replace(self, passage=self.split.passage, split=None, mirror=None)

    def guarded(self) -> CompiledRoute:
        """Return it as one whose paths others guard more closely; see `CompiledForward`."""
        passage, split, mirror = self.passage, self.split, self.mirror
        return replace(
            self,
            passage=passage and replace(passage, is_guarded=True),
            split=split and replace(split, passage=replace(split.passage, is_guarded=True)),
            mirror=mirror and replace(mirror, passage=replace(mirror.passage, is_guarded=True)),
        )

    @property
    def is_read(self) -> bool:
        """Whether it changes nothing."""
        if self.operation is not None:
            return not self.operation.is_command
        return self.template.method in {"GET", "HEAD"}
