"""One document in NATS KV that the processes of a system share, on any number of hosts.

    $KV.BUCKET.NAME   the document, sealed with the system's key: whoever only reaches the server
                      can take it away or put an old one back, and make none

Who changes it names the revision that it has read, and the server refuses where there is another
one: a change that arrives long after it was given up does no harm. It is asked for again and again,
which costs a message without a body: a watch would have to be watched, too.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from synchromesh.discovery.entries import token_of
from synchromesh.discovery.nats_requests import NO_MESSAGE, NO_STREAM, JetStreamError, NatsRequests
from synchromesh.errors import ConfigError, DiscoveryError, Unauthenticated
from synchromesh.identity import Signer

# Of the server's own bound of a message, 1 MiB by default.
DOCUMENT_BYTES_MAX = 1_000_000
# What comes with it: the server counts headers, too, and a seal is before the data.
HEADER_BYTES_MAX, SEAL_BYTES = 512, 64
# Requests without an answer, after which the connection is no longer believed in.
SILENT_MAX = 3
CLOSE_WITHIN_S = 1.0

_log = logging.getLogger("synchromesh.nats")


class Document(NamedTuple):
    """What was found.

    Attributes:
        data: None where there is none.
        revision: 0 where never was one.
        is_old: whether it is sealed by a key that is accepted, and is not the one that signs.
    """

    data: bytes | None
    revision: int
    is_old: bool = False


class NatsDocument:
    """A document of one system; `open`, then `read` and `write`, then `close`.

    Args:
        url: of a NATS server with JetStream.
        bucket: which holds it, besides the system's name, such as "gateway".
        name: of the document, in lower-case letters.
        signer: seals it.
        wall_us: the wall clock, from which revisions begin: they ascend also where the server has
            lost the bucket.

    Example:
        >>> NatsDocument(
        ...     "nats://h:4222", bucket="gateway", name="keys", system="shop",
        ...     signer=Signer(b"0" * 32), wall_us=lambda: 0,
        ... )
        <NatsDocument $KV.sm_gateway_shop.keys, NATS at nats://h:4222>
    """

    def __init__(
        self,
        url: str,
        *,
        bucket: str,
        name: str,
        system: str,
        signer: Signer,
        wall_us: Callable[[], int],
    ) -> None:
        self._wall_us = wall_us
        self._requests = NatsRequests(url, name=f"synchromesh {system} {bucket}")
        self._system = system
        self._signer = signer
        self._bucket = f"sm_{bucket}_{token_of(system).replace('=', '_').replace('/', '_')}"
        self._subject = f"$KV.{self._bucket}.{name}"
        self._silent = 0

    @property
    def there(self) -> str:
        """Where it is, for a message."""
        return self._requests.there

    @property
    def bytes_max(self) -> int:
        """How long it may be: by its bucket, and by what the server takes as one message."""
        most = min(DOCUMENT_BYTES_MAX, self._requests.payload_max)
        return most - HEADER_BYTES_MAX - SEAL_BYTES

    async def open(self) -> None:
        """Connect, and make the bucket where there is none.

        Raises:
            ConfigError: the server cannot be used, or the bucket is another system's.
            DiscoveryError: the server does not answer, or has no room for it.
            MissingExtra: the extra `nats` is not installed.
        """
        await self._requests.connect()
        config = {
            "name": f"KV_{self._bucket}",
            "description": f"what the processes of the Synchromesh system {self._system} share",
            "subjects": [f"$KV.{self._bucket}.>"],
            "storage": "file",
            "first_seq": self._wall_us(),
            "max_msgs_per_subject": 1,
            "max_msg_size": DOCUMENT_BYTES_MAX,
            "deny_delete": True,
            "allow_rollup_hdrs": True,
            "metadata": {"synchromesh.system": self._system},
        }
        await self._requests.marked(
            f"KV_{self._bucket}",
            config,
            self._signer.marks(f"bucket {self._bucket}"),
            f"{self._bucket} there belongs to a system with another key; give this one that key by "
            "[system] key, or another [system] name",
        )

    async def close(self) -> None:
        """Close the connection. May be repeated."""
        await self._requests.close()

    async def read(self, after: int | None = None) -> Document | None:
        """Return the document as it stands.

        Args:
            after: the revision that is known; None is returned while there is no later one.

        Raises:
            ConfigError: the bucket is another system's by now.
            DiscoveryError: the server does not answer, or refuses.
        """
        asked: dict[str, object] = {"last_by_subj": self._subject}
        if after is not None:
            asked = {"next_by_subj": self._subject, "seq": after + 1}
        try:
            answer = await self._asked(asked)
        except JetStreamError as error:
            if error.code == NO_MESSAGE:
                return Document(None, 0) if after is None else None
            if error.code == NO_STREAM:
                await self.open()
                return Document(None, 0)
            raise DiscoveryError(f"{self.there} refuses: {error}") from error
        message = answer["message"]
        data, revision = base64.b64decode(message.get("data", "")), int(message["seq"])
        if not data:
            return Document(None, revision)  # somebody has emptied it
        try:
            unsealed = self._signer.unseal(data, audience=self._subject)
        except Unauthenticated as error:
            _log.error("%s: what is at %s is passed over: %s", self.there, self._subject, error)
            return Document(None, revision)
        is_now = self._signer.is_sealed_now(data, audience=self._subject)
        return Document(unsealed, revision, is_old=not is_now)

    async def write(self, data: bytes, *, expected: int) -> int:
        """Write it where the revision is the expected one, and return the new one.

        Raises:
            Conflict: the revision is another one.
            ConfigError: it is too long.
            DiscoveryError: the server does not answer, so that it may be written yet; or refuses.
        """
        await self._connected()
        if len(data) > self.bytes_max:
            raise ConfigError(
                f"{self._subject} would have {len(data):,} bytes, and {self.there} takes "
                f"{self.bytes_max:,} at most; remove what is not needed, or raise its max_payload"
            )
        sealed = self._signer.seal(data, audience=self._subject)
        headers = {"Nats-Expected-Last-Subject-Sequence": str(expected)}
        return await self._requests.publish(self._subject, sealed, headers)

    async def _asked(self, asked: dict[str, object]) -> dict[str, Any]:
        """Ask the server, over a new connection where the last one has been silent for long."""
        if self._silent >= SILENT_MAX:
            self._silent = 0
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_WITHIN_S):
                    await self._requests.close()
        await self._connected()
        try:
            answer = await self._requests.api(f"STREAM.MSG.GET.KV_{self._bucket}", asked)
        except DiscoveryError:
            self._silent += 1
            raise
        self._silent = 0
        return answer

    async def _connected(self) -> None:
        try:
            await self._requests.connect()
        except ConfigError as error:
            raise DiscoveryError(error.message) from error

    def __repr__(self) -> str:
        return f"<NatsDocument {self._subject}, {self.there}>"
