"""The fast way of a gateway some of whose routes have a host: a gate for each host."""

from __future__ import annotations

from collections.abc import Callable

from synchromesh.gateway.fast import Gate
from synchromesh.gateway.hosts import HostRoutes, Hosts, host_of
from synchromesh.http import HttpExchange


class HostGates:
    """Gives each request to the gate of its host.

    Args:
        hosts: finds the routes of a host.
        gate: makes the gate of such routes.
    """

    def __init__(self, hosts: Hosts, gate: Callable[[HostRoutes], Gate]) -> None:
        self._hosts = hosts
        self._gates = {routes: gate(routes) for routes in hosts.every}

    def begin(self, exchange: HttpExchange) -> bool:
        """Have a request answered, as `Gate.begin` does."""
        return self._gates[self._hosts.of(host_of(exchange.pairs))].begin(exchange)

    def __repr__(self) -> str:
        return f"<HostGates of {self._hosts!r}>"
