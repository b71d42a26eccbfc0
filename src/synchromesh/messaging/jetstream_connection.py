"""A connection to NATS JetStream, what the stream of a system has to be, and what errors mean."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig, StreamInfo

from synchromesh.discovery.nats_connection import NatsAddress, cancellable, connect, end
from synchromesh.durations import ABOVE_0, FROM_0, FROM_1, refuse_wrong_numbers
from synchromesh.errors import (
    BadRequest,
    CallError,
    ConfigError,
    ConnectFailed,
    Shed,
    TimedOut,
)
from synchromesh.identity import Signer
from synchromesh.messaging.passage import StreamNames
from synchromesh.runtime import Runtime

_RECONNECT_S, _LOOK_EVERY_S, _AFTER_FAULT_S = 0.2, 1.0, 5.0
# A server that stands still is noticed after three pings. Nobody waits for it to read meanwhile.
_CLIENT: dict[str, Any] = {"ping_interval": 5, "max_outstanding_pings": 2, "pending_size": 0}
_DUPLICATES_S = 120.0
_PAUSE_S = 0.5
# Of the server's answers: no message, another configuration, too large, under way already.
NO_MESSAGE, _OTHER_CONFIGURATION, _TOO_LARGE, _IN_PROCESS = 10037, 10058, 10054, 10158

# Of what the server tells beside; once for each subject, of which there are not many.
_DENIED, _DENIED_MAX = "permissions violation", 100

T = TypeVar("T")

_log = logging.getLogger("synchromesh.messaging")


@dataclass(frozen=True, slots=True)
class JetStreamOptions:
    """Bounds a stream and those who use it; times in seconds.

    Attributes:
        waiting_max: how many messages of one event may wait in a partition of a subscriber; beyond
            it the server refuses, and the relay waits.
        ack_wait_s: after which time without a sign a message is given to another replica.
        heartbeat_s: how often the server says that there is nothing; whoever hears nothing for
            longer asks again.
        replicas: of a stream that is made: on how many servers it is kept.

    Example:
        >>> JetStreamOptions(replicas=3).ack_wait_s
        5.0
    """

    waiting_max: int = 10_000
    connect_s: float = 10.0
    timeout_s: float = 5.0
    ack_wait_s: float = 5.0
    heartbeat_s: float = 1.0
    asked_max: int = 256
    ask_s: float = 60.0
    taken_every_s: float = 0.5
    backoff_base_s: float = 0.1
    backoff_cap_s: float = 5.0
    replicas: int = 1

    def __post_init__(self) -> None:
        refuse_wrong_numbers(
            self,
            (FROM_1, "waiting_max asked_max replicas"),
            (ABOVE_0, "connect_s timeout_s ack_wait_s heartbeat_s ask_s taken_every_s"),
            (FROM_0, "backoff_base_s backoff_cap_s"),
        )


class JetStreamConnection:
    """Connects a process to the stream of its system; made by `connect`, ended by `close`.

    Attributes:
        place: host and port of the server, without what is secret of its URL.
        anyhow: the names of the stream that are the same in each of its incarnations.
        signer: signs and verifies messages, as hops.

    Example:
        >>> async def names(url: str, signer: Signer, runtime: Runtime) -> StreamNames:
        ...     made = await JetStreamConnection.connect(url, "works", signer, runtime)
        ...     return await made.names()
    """

    def __init__(
        self,
        url: str,
        system: str,
        signer: Signer,
        runtime: Runtime,
        options: JetStreamOptions,
    ) -> None:
        self.place = str(NatsAddress.of(url))
        self.signer = signer
        self.runtime = runtime
        self.options = options
        self.anyhow = StreamNames.of(system)
        self._url = url
        self._system = system
        self._client: Client | None = None
        self._lost = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None
        self._refused, self._refused_at_s = "", -math.inf
        self._denied: set[str] = set()

    @classmethod
    async def connect(
        cls,
        url: str,
        system: str,
        signer: Signer,
        runtime: Runtime,
        options: JetStreamOptions | None = None,
    ) -> JetStreamConnection:
        """Connect, and check the stream of the system; it is made where there is none.

        Raises:
            ConfigError: no such server answers, it refuses who connects, it has no JetStream with
                files, or the stream is of another kind.
        """
        options = options or JetStreamOptions()
        made = cls(url, system, signer, runtime, options)
        try:
            async with asyncio.timeout(options.connect_s):
                await made._connect()
                await made.names()
        except TimeoutError:
            await made.close()
            why = f": {made._refused}" if made._refused else ""
            raise ConfigError(
                f"NATS at {made.place} did not answer within {options.connect_s:g} s{why}; start "
                "it, or correct [engine] nats"
            ) from None
        except BaseException:
            await made.close()
            raise
        made._keeping = asyncio.ensure_future(made._keep_connected())
        return made

    async def _connect(self) -> None:
        """Connect to the first server that answers, however long none does."""
        while True:
            # Its own: the one before may end late.
            lost = self._lost = asyncio.Event()
            try:
                self._client = await connect(
                    self._url,
                    name=f"synchromesh {self._system}",
                    on_down=lost.set,
                    on_error=self._note_error,
                    more=_CLIENT,
                )
                return
            except ConfigError as error:
                self._note_error(error)
            except Exception as error:  # noqa: BLE001 - nobody else would connect again
                self._note_error(error)
                _log.exception(
                    "a connection to NATS at %s failed as none should; it is tried again in %g s",
                    self.place,
                    _AFTER_FAULT_S,
                )
                await asyncio.sleep(_AFTER_FAULT_S)
            await asyncio.sleep(_RECONNECT_S)

    async def _keep_connected(self) -> None:
        """Connect anew each time the connection is lost."""
        while True:
            # A client that cannot get rid of what a server does not read calls nobody back.
            while not self.client.is_closed:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_EVERY_S):
                        await self._lost.wait()
            _log.warning("NATS at %s is away; messages wait in the logs", self.place)
            await end(self.client)
            await self._connect()
            self._denied.clear()
            _log.warning("NATS at %s is there again", self.place)

    async def close(self) -> None:
        """Close the connection. May be repeated."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        if self._client is not None:
            await end(self._client)

    @property
    def client(self) -> Client:
        """The connection as it is now: another one after each loss."""
        assert self._client is not None, "it is connected once, or not given to anybody"
        return self._client

    @property
    def api(self) -> JetStreamContext:
        """What asks the server, within the time limit of a request."""
        return self.client.jetstream(timeout=self.options.timeout_s)

    async def ask(self, request: Awaitable[T]) -> T:
        """Await what the client does, and be cancelled where the client swallows it.

        The client's own limits are of answers, and not of what is to be sent.

        Raises:
            nats.errors.TimeoutError: it has taken twice as long as an answer may.
        """
        try:
            async with asyncio.timeout(2 * self.options.timeout_s):
                with cancellable():
                    return await request
        except nats.errors.Error:
            raise
        except TimeoutError as error:
            raise nats.errors.TimeoutError from error

    async def names(self) -> StreamNames:
        """Return the names of the stream as it is now; waits until there is one.

        Raises:
            ConfigError: it is of another kind, or cannot be made.
        """
        attempt = 0
        while True:
            try:
                return (await self.info(">"))[0]
            except nats.js.errors.NotFoundError:
                await self._make()
            except nats.js.errors.APIError as error:
                if error.err_code is None:
                    # Nobody listens to such requests; a server that comes up does so in a moment.
                    self._refused = "it has no JetStream, or this user may not use it"
                _log.info("%s: %s", self.place, error)
            except CallError as error:
                attempt += 1
                if attempt == 3:
                    _log.warning("the stream of %s waits: %s", self._system, error.message)
            await asyncio.sleep(_PAUSE_S)

    async def info(self, filtered: str) -> tuple[StreamNames, StreamInfo]:
        """Return the names of the stream, and what of it is in some subjects.

        Raises:
            nats.js.errors.APIError: there is no stream, or it cannot be asked now.
            CallError: the server did not answer.
            ConfigError: the stream is of another kind.
        """
        stream = self.anyhow.stream
        try:
            info = await self.ask(self.api.stream_info(stream, subjects_filter=filtered))
        except nats.js.errors.APIError:
            raise
        except nats.errors.Error as error:
            raise self.translated(error) from error
        return self._checked(info.config), info

    async def _make(self) -> None:
        # Wholly random: two that are made within a millisecond differ.
        incarnation = f"{self.runtime.secret_rng.getrandbits(64):016x}"
        names = StreamNames.of(self._system, incarnation)
        wanted = StreamConfig(
            name=names.stream,
            description=f"Messages between the services of {self._system}",
            subjects=[names.subjects],
            retention=RetentionPolicy.WORK_QUEUE,
            storage=StorageType.FILE,
            discard=DiscardPolicy.NEW,
            discard_new_per_subject=True,
            max_msgs_per_subject=self.options.waiting_max,
            duplicate_window=_DUPLICATES_S,
            num_replicas=self.options.replicas,
        )
        try:
            await self.ask(self.api.add_stream(wanted))
        except nats.js.errors.BadRequestError as error:
            if error.err_code != _OTHER_CONFIGURATION:  # another process was first
                raise self._unfit(f"it cannot be made: {error.description}") from error
        except nats.js.errors.APIError as error:
            self._refused = f"no stream can be made: {error.description}"
        except nats.errors.Error as error:
            _log.info("%s: %s", self.place, error)

    def _checked(self, config: StreamConfig) -> StreamNames:
        """Return the names of a stream that is as it has to be, whatever else it has."""
        subjects = config.subjects or [""]
        names = StreamNames.of(self._system, (subjects[0].split(".") + [""] * 3)[2])
        is_right = {
            f"has the subjects {subjects}": subjects == [names.subjects],
            "keeps messages in memory": config.storage == StorageType.FILE,
            "is no work queue": config.retention == RetentionPolicy.WORK_QUEUE,
            "drops old messages when it is full": config.discard == DiscardPolicy.NEW,
            "drops messages by their age": not config.max_age,
            "gives no acknowledgement": not config.no_ack,
        }
        for wrong, is_so in is_right.items():
            if not is_so:
                raise self._unfit(f"it {wrong}")
        return names

    def _unfit(self, why: str) -> ConfigError:
        return ConfigError(
            f"the stream {self.anyhow.stream!r} of NATS at {self.place} cannot "
            f"carry messages: {why}. Mend or delete it: what was not taken is published again, to "
            "one that is made as it has to be"
        )

    def translated(self, error: nats.errors.Error) -> CallError:
        """Return what an error of the client or the server means for a message.

        A request that the user may not make has no answer; what the server said of it beside, of
        which the client tells nobody who waits, is told here.
        """
        is_fresh = (
            asyncio.get_running_loop().time() - self._refused_at_s <= 2 * self.options.timeout_s
        )
        return translated(error, self.place, self._refused if is_fresh else "")

    def _note_error(self, error: Exception) -> None:
        self._refused = str(error).removeprefix("nats: ") or type(error).__name__
        self._refused_at_s = asyncio.get_running_loop().time()
        _log.debug("NATS at %s: %s", self.place, self._refused)
        if _DENIED in self._refused.lower() and len(self._denied) < _DENIED_MAX:
            if self._refused not in self._denied:
                _log.error(
                    "NATS at %s refuses what messages need: %s; give the user of [engine] nats "
                    "these rights, and what waits goes on",
                    self.place,
                    self._refused,
                )
            self._denied.add(self._refused)

    def __repr__(self) -> str:
        is_up = self._client is not None and self._client.is_connected
        state = "connected" if is_up else "away"
        return f"<JetStreamConnection of {self._system} at {self.place}, {state}>"


def translated(error: nats.errors.Error, place: str, said_beside: str = "") -> CallError:
    """Return what an error of the client or the server means for a message.

    Args:
        said_beside: what the server said of late to nobody in particular.

    Example:
        >>> translated(nats.errors.ConnectionClosedError(), "nats:4222").code
        'connect_failed'
    """
    code = getattr(error, "err_code", None)
    said: Any = getattr(error, "description", None) or error
    if isinstance(error, nats.errors.OutboundBufferLimitError):
        said = "the connection is down"  # the client keeps nothing to send later
    if code == _TOO_LARGE or isinstance(error, nats.errors.MaxPayloadError):
        return BadRequest(f"NATS at {place} takes no message of this size: {said}")
    if code == _IN_PROCESS or isinstance(error, nats.errors.TimeoutError):
        beside = f"; it said: {said_beside}" if said_beside else ""
        return TimedOut(f"NATS at {place} has not acknowledged the message: {said}{beside}")
    if isinstance(error, nats.js.errors.ServiceUnavailableError) and code is not None:
        return Shed(f"NATS at {place} has no room for the message: {said}")
    return ConnectFailed(f"NATS at {place} was not reached: {said}")
