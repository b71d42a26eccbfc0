"""The bucket of a registry in NATS KV: its entries, their timers, and a watch of it.

    $KV.BUCKET.i.SERVICE.INSTANCE   an entry: where the instance is; empty once it has gone
    $KV.BUCKET.t.SERVICE.INSTANCE   its timer: a message that the server delivers to the entry, and
                                    so empties it, unless another one is sent in its place in time

A watch is of entries alone. It is followed message by message: one that is missing, or a silence,
ends it, and the next one begins with all that is there. The client's own watch of a bucket would be
blind for twenty seconds after an outage, and for good where the bucket is made anew.

Source: NATS, ADR-8 (KV), ADR-51 (message schedules).
"""

from __future__ import annotations

import base64
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from synchromesh.clock import loop_now
from synchromesh.codec import encode
from synchromesh.discovery.entries import InstanceEntry, Kept, name_of, place_of, read, token_of
from synchromesh.discovery.nats_connection import cancellable
from synchromesh.discovery.nats_requests import NO_MESSAGE, JetStreamError, NatsRequests
from synchromesh.discovery.view import HEARTBEAT_S
from synchromesh.errors import BadRequest, ConfigError, DiscoveryError, Unauthenticated
from synchromesh.identity import Signer
from synchromesh.runtime import Runtime

if TYPE_CHECKING:
    from nats.aio.subscription import Subscription

# How long an emptied entry is kept: longer than any message to it may be under way.
EMPTY_FOR_S = 60
ENTRY_BYTES_MAX = 16_384

_log = logging.getLogger("synchromesh.nats")


class WatchLost(Exception):
    """Raised where a watch has not told everything: it is to be opened anew."""


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """What a watch tells of one instance.

    Attributes:
        kept: its entry; None where it has gone.
        is_expired: whether it has gone because nobody renewed it.
        pending: how much more there was when this was sent.
    """

    service: str
    instance: str
    kept: Kept | None
    is_expired: bool
    pending: int


class NatsBucket:
    """The registry of one system, as the server has it.

    Args:
        url: of a NATS server, 2.12 or newer, with JetStream.
        system: whose registry it is.
        signer: signs entries, and verifies them (R3).
        runtime: the wall clock, from which revisions begin.
        on_down: called each time the connection is lost.
    """

    def __init__(
        self,
        url: str,
        *,
        system: str,
        signer: Signer,
        runtime: Runtime,
        on_down: Callable[[], None],
    ) -> None:
        self._requests = NatsRequests(url, name=f"synchromesh {system}", on_down=on_down)
        self._system = system
        self._signer = signer
        self._runtime = runtime
        self.name = f"sm_registry_{token_of(system).replace('=', '_').replace('/', '_')}"
        self._entries, self._timers = f"$KV.{self.name}.i.", f"$KV.{self.name}.t."
        # The server's clock less the loop's: timers are set by the server's.
        self._ahead_s = 0.0

    @property
    def there(self) -> str:
        """Where it is, for a message."""
        return self._requests.there

    async def open(self) -> None:
        """Connect, and make the bucket where there is none.

        Raises:
            ConfigError: the server cannot be used, or the bucket is another system's.
            MissingExtra: the extra `nats` is not installed.
        """
        await self._requests.connect()
        try:
            await self._requests.api("INFO", {})
        except DiscoveryError as error:
            raise ConfigError(
                f"{self.there}: JetStream does not answer; start the server with `jetstream {{ "
                "store_dir: ..., sync_interval: always }`, and let its user ask $JS.API.>"
            ) from error
        try:
            await self.ensure()
        except DiscoveryError as error:
            raise ConfigError(error.message) from error

    async def close(self) -> None:
        """Close the connection. May be repeated."""
        await self._requests.close()

    async def ensure(self) -> None:
        """Make the bucket where there is none, and see that it is this system's.

        Raises:
            ConfigError: it is another system's, or the server is too old for it.
            DiscoveryError: the server does not answer, or has no room for it.
        """
        found = await self._requests.marked(
            f"KV_{self.name}",
            self._config(),
            self._signer.marks(f"registry {self._system}"),
            f"the registry of {self._system!r} there belongs to a system with another key; give "
            "this one that key by [system] key, or another [system] name",
        )
        self._note_clock(found["ts"])
        if not found["config"].get("allow_msg_schedules"):
            raise ConfigError(
                f"{self.there}: the server is too old for the registry, or was as it made it; have "
                f"2.12 or newer, and delete the stream KV_{self.name}: it is made again"
            )

    async def read_clock(self) -> None:
        """Learn what the server's clock says. Raises DiscoveryError where it does not answer."""
        began_s = _now()
        try:
            answer = await self._requests.api(f"STREAM.INFO.KV_{self.name}", {})
        except JetStreamError as error:
            raise DiscoveryError(f"{self.there} refuses: {error}") from error
        self._note_clock(answer["ts"], (began_s + _now()) / 2)

    async def arm(self, place: str, ttl_s: float, *, revision: int | None = None) -> None:
        """Set the timer of a place.

        Args:
            revision: of the entry that is to be there; None for any, or none.

        Raises:
            Conflict: there is another one, or none.
            DiscoveryError: the server does not answer, or refuses.
        """
        at = datetime.fromtimestamp(0, UTC) + timedelta(seconds=_now() + self._ahead_s + ttl_s)
        headers = {
            "Nats-Schedule": f"@at {at.isoformat().replace('+00:00', 'Z')}",
            "Nats-Schedule-Target": self._entries + place,
            "Nats-Schedule-TTL": f"{EMPTY_FOR_S}s",
        }
        if revision is not None:
            headers["Nats-Expected-Last-Subject-Sequence"] = str(revision)
            headers["Nats-Expected-Last-Subject-Sequence-Subject"] = self._entries + place
        await self._requests.publish(self._timers + place, b"", headers)

    async def write(self, entry: InstanceEntry, *, expected: int) -> Kept:
        """Write an entry where the revision is the expected one, 0 for none; return it as it is.

        Raises:
            Conflict: the revision is another one.
            DiscoveryError: the server does not answer, or refuses.
        """
        subject = self._entries + place_of(entry.endpoint)
        written = encode(entry)
        data = self._signer.seal(written, audience=subject)
        headers = {"Nats-Expected-Last-Subject-Sequence": str(expected)}
        kept = read(written, await self._requests.publish(subject, data, headers))
        assert kept is not None, "it is not empty"
        return kept

    async def empty(self, kept: Kept) -> None:
        """Empty the place of an entry. Raises as `write` does."""
        headers = {
            "Nats-Expected-Last-Subject-Sequence": str(kept.revision),
            "KV-Operation": "DEL",
            "Nats-TTL": f"{EMPTY_FOR_S}s",
        }
        await self._requests.publish(self._entries + place_of(kept.entry.endpoint), b"", headers)

    async def find(self, place: str) -> tuple[int, Kept | None]:
        """Return the revision of a place, 0 for none, and its entry where it has one.

        Raises:
            DiscoveryError: the server does not answer, or refuses.
        """
        subject = self._entries + place
        try:
            answer = await self._requests.api(
                f"STREAM.MSG.GET.KV_{self.name}", {"last_by_subj": subject}
            )
        except JetStreamError as error:
            if error.code == NO_MESSAGE:
                return 0, None
            raise DiscoveryError(f"{self.there} refuses: {error}") from error
        message = answer["message"]
        revision = int(message["seq"])
        return revision, self._read(base64.b64decode(message.get("data", "")), revision, subject)

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[NatsWatch]:
        """Open a fresh watch, which begins with all that is there; connect where that is needed.

        Raises:
            ConfigError: the bucket is another system's by now.
            DiscoveryError: the server does not answer, or refuses.
        """
        try:
            client = await self._requests.connect()
        except ConfigError as error:
            raise DiscoveryError(error.message) from error
        await self.ensure()
        inbox = client.new_inbox()
        with cancellable():
            subscription = await client.subscribe(inbox)
        try:
            consumer = await self._requests.api(
                f"CONSUMER.CREATE.KV_{self.name}",
                {"stream_name": f"KV_{self.name}", "config": self._consumer(inbox)},
            )
            yield NatsWatch(subscription, int(consumer["num_pending"]), self._entries, self._read)
        except JetStreamError as error:
            raise DiscoveryError(f"{self.there} refuses: {error}") from error
        finally:
            with suppress(Exception), cancellable():
                await subscription.unsubscribe()

    def _read(self, data: bytes, revision: int, subject: str) -> Kept | None:
        """Return the entry of a message; None where it has ended, or is not of this system."""
        try:
            return read(self._signer.unseal(data, audience=subject), revision) if data else None
        except (Unauthenticated, BadRequest) as error:
            _log.warning("%s: what is at %s is passed over: %s", self.there, subject, error)
            return None

    def _note_clock(self, ts: str, at_s: float | None = None) -> None:
        # It has nanoseconds, which a datetime has not.
        there = datetime.fromisoformat(f"{ts.rstrip('Z')[:26]}+00:00")
        self._ahead_s = there.timestamp() - (_now() if at_s is None else at_s)

    def _config(self) -> dict[str, object]:
        """Return the configuration of the bucket, as JetStream takes it.

        It is in memory: leases that nobody renewed are no news after a restart. Its revisions begin
        with the time, so that they ascend over its lives (R2).
        """
        return {
            "name": f"KV_{self.name}",
            "description": f"the registry of the Synchromesh system {self._system}",
            "subjects": [f"$KV.{self.name}.>"],
            "storage": "memory",
            "first_seq": self._runtime.wall_us(),
            "max_msgs_per_subject": 1,
            "max_msg_size": ENTRY_BYTES_MAX,
            "allow_msg_ttl": True,
            "allow_msg_schedules": True,
            "metadata": {"synchromesh.system": self._system},
        }

    def _consumer(self, inbox: str) -> dict[str, object]:
        """Return the configuration of a watch, which the server drops once nobody listens."""
        return {
            "deliver_subject": inbox,
            "deliver_policy": "last_per_subject",
            "ack_policy": "none",
            "filter_subject": f"{self._entries}>",
            "idle_heartbeat": int(HEARTBEAT_S * 1e9),
            "inactive_threshold": int(10 * HEARTBEAT_S * 1e9),
            "mem_storage": True,
            "num_replicas": 1,
        }

    def __repr__(self) -> str:
        return f"<NatsBucket {self.name} of {self.there}>"


class NatsWatch:
    """Hears of each change of a bucket, in its order.

    Attributes:
        pending: what was there already and has not been told yet.
    """

    def __init__(
        self,
        subscription: Subscription,
        pending: int,
        entries: str,
        read: Callable[[bytes, int, str], Kept | None],
    ) -> None:
        self._subscription = subscription
        self._entries = entries
        self._read = read
        self._delivered = 0
        self.pending = pending

    async def next(self, within_s: float) -> WatchEvent | None:
        """Return what it tells next; None where that is only that it lives.

        Raises:
            TimeoutError: it has told nothing in time.
            WatchLost: a message is missing, or the connection has ended.
        """
        from nats.errors import Error

        try:
            with cancellable():
                message = await self._subscription.next_msg(timeout=max(within_s, 0.001))
        except TimeoutError:  # nats.errors.TimeoutError is one
            raise
        except Error as error:
            raise WatchLost from error
        headers = message.headers or {}
        if not message.reply:
            if int(headers.get("Nats-Last-Consumer", self._delivered)) != self._delivered:
                raise WatchLost
            return None
        self._delivered += 1
        metadata = message.metadata
        if metadata.sequence.consumer != self._delivered:
            raise WatchLost
        self.pending = metadata.num_pending
        service, instance = message.subject.removeprefix(self._entries).split(".")
        kept = self._read(message.data, metadata.sequence.stream, message.subject)
        is_expired = "Nats-Scheduler" in headers
        return WatchEvent(name_of(service), name_of(instance), kept, is_expired, self.pending)

    def __repr__(self) -> str:
        return f"<NatsWatch {self._delivered} told, {self.pending} pending>"


def _now() -> float:
    return loop_now()
