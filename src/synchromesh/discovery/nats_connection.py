"""A connection to NATS, and what is wrong with one in words."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import unquote, urlsplit

from synchromesh.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from nats.aio.client import Client

CONNECT_WITHIN_S = 5.0
# The same for each of several servers: one that is silent holds up what the next would answer.
CONNECT_EACH_WITHIN_S = 2.0
RETRY_EVERY_S = 0.1


@dataclass(frozen=True, slots=True)
class NatsAddress:
    """The servers of a cluster, and who connects to any of them.

    Attributes:
        servers: the URL of each, without credentials.
        credentials: as the client takes them; those of a URL would not hold for a server that the
            client was told of by another.

    Example:
        >>> found = NatsAddress.of("nats://me:p%40ss@a:4222,b:4222")
        >>> found.servers
        ('nats://a:4222', 'nats://b:4222')
        >>> str(found)
        'a:4222,b:4222'
    """

    servers: tuple[str, ...]
    credentials: dict[str, Any] = field(repr=False)

    @classmethod
    def of(cls, url: str) -> Self:
        """Return that of a URL, or of several with commas between; what one leaves out is as in the
        first that has it.
        """
        scheme = url.partition("://")[0]
        parts = [
            urlsplit(each if "://" in each else f"{scheme}://{each}") for each in url.split(",")
        ]
        servers = tuple(f"{each.scheme}://{each.netloc.rpartition('@')[2]}" for each in parts)
        user, colon, password = next(
            (each.netloc.rpartition("@")[0] for each in parts if "@" in each.netloc), ""
        ).partition(":")
        if colon:
            return cls(servers, {"user": unquote(user), "password": unquote(password)})
        return cls(servers, {"token": unquote(user)} if user else {})

    def __str__(self) -> str:
        return ",".join(each.partition("://")[2] for each in self.servers)


async def connect(url: str, *, name: str, on_down: Callable[[], None]) -> Client:
    """Return a connection, which ends for good once it is lost; whoever asked closes it.

    The client's own way of coming back would send later what was given up meanwhile, and leaves a
    socket behind with each attempt that fails.

    Args:
        url: of the server, with the user and the password or the token where it wants them; of
            several servers of a cluster, with commas between them, which are tried in this order.
        name: shown by the server's own tools.
        on_down: called when the connection is lost.

    Raises:
        ConfigError: nobody answers there for a while, or not as NATS does, or the credentials are
            wrong.
        MissingExtra: the extra `nats` is not installed.
    """
    try:
        import nats.errors
        from nats.aio.client import Client as NatsClient
    except ImportError as error:
        raise MissingExtra("nats", needed_for="[engine] nats") from error
    failures: list[Exception] = []

    is_up = False

    async def lost() -> None:
        if is_up:
            on_down()

    async def failed(error: Exception) -> None:
        failures[:] = [error]

    address, refused = NatsAddress.of(url), []
    within_s = CONNECT_WITHIN_S if len(address.servers) == 1 else CONNECT_EACH_WITHIN_S
    for server in address.servers:
        client, failures[:] = NatsClient(), []
        try:
            async with asyncio.timeout(within_s):
                await client.connect(
                    [server],
                    name=name,
                    allow_reconnect=False,
                    connect_timeout=within_s,  # type: ignore[arg-type]
                    reconnect_time_wait=RETRY_EVERY_S,  # type: ignore[arg-type]
                    closed_cb=lost,
                    error_cb=failed,
                    **address.credentials,
                )
        except (nats.errors.Error, OSError, TimeoutError, ValueError) as error:
            await client.close()
            why = _why(failures[0] if failures else error, within_s)
            refused.append(f"NATS at {shown_url(server)}: {why}")
        except BaseException:
            await client.close()
            raise
        else:
            is_up = True
            return client
    raise ConfigError("; ".join(refused))


@contextmanager
def cancellable() -> Iterator[None]:
    """Raise the cancellation of this task that the client has swallowed, as its `publish` does."""
    task = asyncio.current_task()
    assert task is not None, "it is used in a coroutine"
    before = task.cancelling()
    try:
        yield
    finally:
        if task.cancelling() > before:
            raise asyncio.CancelledError


def shown_url(url: str) -> str:
    """Return the URL of a server without what may be a password.

    Example:
        >>> shown_url("nats://me:secret@nats.example:4222")
        'nats://nats.example:4222'
    """
    return ",".join(NatsAddress.of(url).servers)


def _why(error: Exception, within_s: float) -> str:
    text = str(error)
    if "authorization" in text.lower() or "authentication" in text.lower():
        return "it refuses the credentials in the URL; write nats://USER:PASSWORD@HOST:PORT"
    if isinstance(error, TimeoutError):
        return f"it has not answered within {within_s:g} s; is that its clients' port?"
    if isinstance(error, ConnectionResetError):
        # It resets a connection that it refuses, and what it said of it may be lost.
        return "it closed the connection; are the credentials in [engine] nats right?"
    return f"it cannot be reached: {text or type(error).__name__}; start it, or mend [engine] nats"
