"""A connection to NATS, and what is wrong with one in words."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from synchromesh.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from nats.aio.client import Client

CONNECT_WITHIN_S = 5.0
RETRY_EVERY_S = 0.1


async def connect(url: str, *, name: str, on_down: Callable[[], None]) -> Client:
    """Return a connection, which ends for good once it is lost; whoever asked closes it.

    The client's own way of coming back would send later what was given up meanwhile, and leaves a
    socket behind with each attempt that fails.

    Args:
        url: of the server, with the user and the password or the token where it wants them; of
            several servers of a cluster, with commas between them.
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

    async def lost() -> None:
        on_down()

    async def failed(error: Exception) -> None:
        failures[:] = [error]

    client = NatsClient()
    try:
        async with asyncio.timeout(CONNECT_WITHIN_S):
            await client.connect(
                url.split(","),
                name=name,
                allow_reconnect=False,
                connect_timeout=CONNECT_WITHIN_S,  # type: ignore[arg-type]
                reconnect_time_wait=RETRY_EVERY_S,  # type: ignore[arg-type]
                closed_cb=lost,
                error_cb=failed,
            )
    except (nats.errors.Error, OSError, TimeoutError, ValueError) as error:
        await client.close()
        why = _why(failures[0] if failures else error)
        raise ConfigError(f"NATS at {shown_url(url)}: {why}") from error
    except BaseException:
        await client.close()
        raise
    return client


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
    parts = [urlsplit(each) for each in url.split(",")]
    return ",".join(f"{each.scheme}://{each.netloc.rpartition('@')[2]}" for each in parts)


def _why(error: Exception) -> str:
    text = str(error)
    if "authorization" in text.lower() or "authentication" in text.lower():
        return "it refuses the credentials in the URL; write nats://USER:PASSWORD@HOST:PORT"
    if isinstance(error, TimeoutError):
        return f"it has not answered within {CONNECT_WITHIN_S:g} s; is that its clients' port?"
    if isinstance(error, ConnectionResetError):
        # It resets a connection that it refuses, and what it said of it may be lost.
        return "it closed the connection; are the credentials in [engine] nats right?"
    return f"it cannot be reached: {text or type(error).__name__}; start it, or mend [engine] nats"
