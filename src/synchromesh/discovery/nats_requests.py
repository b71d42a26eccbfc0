"""Requests to JetStream, as JSON, over a connection that is opened anew where it was lost."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from synchromesh.discovery.nats_connection import cancellable, connect, end, shown_url
from synchromesh.errors import ConfigError, DiscoveryError

if TYPE_CHECKING:
    from nats.aio.client import Client

ASK_WITHIN_S = 1.0
# The server's own default.
PAYLOAD_MAX = 1_048_576
CREATE_ATTEMPTS_MAX = 5
# Of a stream's metadata: whose it is.
MARK = "synchromesh.key"
# What the server calls a change whose expected revision is not the one that is there.
_CONFLICTS = (10071, 10164)
NO_MESSAGE, NO_STREAM, OTHER_CONFIG = 10037, 10059, 10058


class Conflict(Exception):
    """Raised where an entry is not of the revision that was expected."""


class JetStreamError(Exception):
    """Raised for an error that JetStream answers, of a code of its own."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class NatsRequests:
    """Asks JetStream of one server, or of a cluster; whoever makes it closes it.

    Args:
        url: of the server.
        name: of the connection, which the server's own tools show.
        on_down: called each time the connection is lost.

    Attributes:
        there: where it is, for a message.
    """

    def __init__(self, url: str, *, name: str, on_down: Callable[[], None] = lambda: None) -> None:
        self._url = url
        self._name = name
        self._on_down = on_down
        self._client: Client | None = None
        self.there = f"NATS at {shown_url(url)}"

    async def connect(self) -> Client:
        """Return the connection; a new one where there is none, or the last was lost.

        Raises:
            ConfigError: nobody answers there, or not as NATS does, or the credentials are wrong.
            MissingExtra: the extra `nats` is not installed.
        """
        client = self._client
        if client is None or client.is_closed:
            client = self._client = await connect(self._url, name=self._name, on_down=self._on_down)
        return client

    @property
    def payload_max(self) -> int:
        """How many bytes the server takes as one message, headers among them."""
        client = self._client
        told = client.max_payload if client is not None and client.is_connected else 0
        return told or PAYLOAD_MAX

    async def close(self) -> None:
        """Close the connection. May be repeated."""
        client, self._client = self._client, None
        if client is not None:
            await end(client)

    async def api(self, what: str, body: object) -> dict[str, Any]:
        """Ask its API. Raises as `ask` does."""
        return await self.ask(f"$JS.API.{what}", json.dumps(body).encode(), None)

    async def publish(self, subject: str, data: bytes, headers: dict[str, str]) -> int:
        """Store a message, and return its revision.

        Raises:
            Conflict: the revision is not the one that the headers expect.
            DiscoveryError: the server does not answer, or refuses.
        """
        try:
            answer = await self.ask(subject, data, headers)
        except JetStreamError as error:
            if error.code in _CONFLICTS:
                raise Conflict from error
            raise DiscoveryError(f"{self.there} refuses: {error}") from error
        return int(answer["seq"])

    async def made(self, stream: str, config: object) -> dict[str, Any]:
        """Return what there is to know of a stream, which is made where there is none.

        Raises:
            DiscoveryError: the server does not answer, or has no room for it.
        """
        for _ in range(CREATE_ATTEMPTS_MAX):
            try:
                return await self.api(f"STREAM.INFO.{stream}", {})
            except JetStreamError:
                try:
                    return await self.api(f"STREAM.CREATE.{stream}", config)
                except JetStreamError as error:
                    if error.code != OTHER_CONFIG:
                        raise DiscoveryError(f"{self.there}: JetStream refuses: {error}") from error
        raise DiscoveryError(f"{self.there}: {stream} comes and goes")

    async def marked(
        self, stream: str, config: dict[str, Any], marks: Sequence[str], why: str
    ) -> dict[str, Any]:
        """Return what there is to know of a stream of this system, as `made` does.

        Args:
            marks: what tells that it is this system's; another one than the first is replaced.
            why: told where there is none of them.

        Raises:
            ConfigError: it is another system's.
            DiscoveryError: the server does not answer, or has no room for it.
        """
        own = config["metadata"] = {**config["metadata"], MARK: marks[0]}
        found = await self.made(stream, config)
        there = found["config"].get("metadata", {}).get(MARK)
        if there not in marks:
            raise ConfigError(f"{self.there}: {why}")
        if there != marks[0]:
            kept = {**found["config"], "metadata": {**found["config"]["metadata"], **own}}
            try:
                await self.api(f"STREAM.UPDATE.{stream}", kept)
            except JetStreamError as error:
                raise DiscoveryError(f"{self.there}: JetStream refuses: {error}") from error
        return found

    async def ask(
        self, subject: str, data: bytes, headers: dict[str, str] | None
    ) -> dict[str, Any]:
        """Send a request and return the answer.

        Raises:
            DiscoveryError: there is none in time.
            JetStreamError: it is an error.
        """
        client = self._client
        if client is None or client.is_closed:
            raise DiscoveryError(f"{self.there} is not connected; it is tried again and again")
        from nats.errors import Error

        try:
            with cancellable():
                message = await client.request(subject, data, timeout=ASK_WITHIN_S, headers=headers)
            answer: dict[str, Any] = json.loads(message.data)
        except (Error, OSError, TimeoutError, ValueError) as error:
            raise DiscoveryError(f"{self.there} does not answer: {error!r}") from error
        if "error" in answer:
            refused = answer["error"]
            raise JetStreamError(
                int(refused.get("err_code", 0)), str(refused.get("description", ""))
            )
        return answer

    def __repr__(self) -> str:
        return f"<NatsRequests to {self.there}>"
