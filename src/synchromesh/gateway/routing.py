"""The routes of a gateway at work, as either way finds them."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from synchromesh.gateway.compiled import CompiledRoute
from synchromesh.gateway.origin import Origins
from synchromesh.gateway.router import Finding
from synchromesh.gateway.state import GatewayState


@dataclass(frozen=True, slots=True)
class Routing:
    """Says which routes there are, and what each of them has of its own.

    Attributes:
        entries: the routes.
        closest: those that go before all others, whatever their paths; mostly all of them.
        routes: finds those whose paths have places.
        externals: the upstreams that are not ours.
        origins: tells whom a request comes from.
        state: what is known of their requests.
    """

    entries: Sequence[CompiledRoute]
    closest: Sequence[CompiledRoute]
    routes: Finding[CompiledRoute]
    externals: AbstractSet[str]
    origins: Origins
    state: GatewayState
