"""The relays of one service: they come, change and go with what its subscribers take.

A relay is made anew where that changes, and starts as at any start of the service: a subscription
that is new begins with the log, and one that has ended ends where the log does (`start_of`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from synchromesh.messaging import Relay, end_subscriptions
from synchromesh.service.supervisor import Child, Supervisor
from synchromesh.store import Store

# Makes a relay to a subscriber that delivers the events of these names.
MakeRelay = Callable[[str, frozenset[str]], Relay]
Subscribers = Callable[[], dict[str, frozenset[str]]]
Listen = Callable[[Callable[[], None]], Callable[[], None]]


class Relays:
    """Runs a relay to each subscriber of one service; `prepare`, then `run` as a supervised child.

    Args:
        own: the public events of the service, by their stored names.
        subscribers: returns which events each service takes now; events of others are left out.
        listen: calls a function whenever that may have changed; it returns what ends that.
        supervisor: keeps the relays, as children of their own.

    Attributes:
        by_subscriber: the relays that there are, by the service that each delivers to.
    """

    def __init__(
        self,
        store: Store,
        make: MakeRelay,
        *,
        own: frozenset[str],
        subscribers: Subscribers,
        listen: Listen,
        supervisor: Supervisor,
    ) -> None:
        self._store = store
        self._make = make
        self._own = own
        self._subscribers = subscribers
        self._listen = listen
        self._supervisor = supervisor
        self._changed = asyncio.Event()
        self.by_subscriber: dict[str, Relay] = {}

    async def prepare(self) -> None:
        """Note who takes nothing any more; to be called before anything is delivered.

        Raises:
            StoreError: the database refused.
        """
        await end_subscriptions(self._store, self._wanted())

    def start(self) -> None:
        """Start the relays that are wanted now."""
        for subscriber, names in self._wanted().items():
            self._start(subscriber, names)

    async def run(self) -> None:
        """Have the relays that are wanted, as that changes; a supervised loop.

        Raises:
            StoreError: the database refused to note who takes nothing any more.
        """
        stop_listening = self._listen(self._changed.set)
        try:
            while True:
                self._changed.clear()
                await self._follow()
                await self._changed.wait()
        finally:
            stop_listening()

    async def _follow(self) -> None:
        wanted = self._wanted()
        for subscriber, relay in [*self.by_subscriber.items()]:
            if wanted.get(subscriber) != relay.names:
                # Until it is made anew it stays, so that a cancelled change is made up for.
                await self._supervisor.stop(relay.checkpoint_name)
                del self.by_subscriber[subscriber]
        await end_subscriptions(self._store, wanted)
        for subscriber, names in wanted.items():
            if subscriber not in self.by_subscriber:
                self._start(subscriber, names)

    def _start(self, subscriber: str, names: frozenset[str]) -> None:
        relay = self.by_subscriber[subscriber] = self._make(subscriber, names)
        name, owners = relay.checkpoint_name, self._store.owners
        self._supervisor.start(Child(name, lambda: owners.run(name, relay.run)))

    def _wanted(self) -> dict[str, frozenset[str]]:
        found = {name: taken & self._own for name, taken in sorted(self._subscribers().items())}
        return {name: names for name, names in found.items() if names}

    def __repr__(self) -> str:
        return f"<Relays to {', '.join(self.by_subscriber) or 'nobody'}>"
