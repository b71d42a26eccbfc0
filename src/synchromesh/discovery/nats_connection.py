"""A connection to NATS, and what is wrong with one in words."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from synchromesh.errors import ConfigError, MissingExtra
from synchromesh.tls import ClientFiles, client_context

if TYPE_CHECKING:
    from nats.aio.client import Client

CONNECT_WITHIN_S = 5.0
# The same for each of several servers: one that is silent holds up what the next would answer.
CONNECT_EACH_WITHIN_S = 2.0
RETRY_EVERY_S = 0.1
CLOSE_WITHIN_S = 1.0
_FILES = ("ca", "certificate", "key")


@dataclass(frozen=True, slots=True)
class NatsAddress:
    """The servers of a cluster, and who connects to any of them.

    Attributes:
        servers: the URL of each, without credentials.
        credentials: as the client takes them; those of a URL would not hold for a server that the
            client was told of by another.
        files: whom it believes by TLS, and what it shows: `?ca=PATH`, `certificate=` and `key=`.

    Example:
        >>> found = NatsAddress.of("nats://me:p%40ss@a:4222,b:4222")
        >>> found.servers
        ('nats://a:4222', 'nats://b:4222')
        >>> str(found)
        'a:4222,b:4222'
    """

    servers: tuple[str, ...]
    credentials: dict[str, Any] = field(repr=False)
    files: ClientFiles

    @classmethod
    def of(cls, url: str) -> Self:
        """Return that of a URL, or of several with commas between; what one leaves out is as in the
        first that has it.

        Raises:
            ConfigError: its query has something else than files for TLS.
        """
        scheme = url.partition("://")[0]
        parts = [
            urlsplit(each if "://" in each else f"{scheme}://{each}") for each in url.split(",")
        ]
        servers = tuple(f"{each.scheme}://{each.netloc.rpartition('@')[2]}" for each in parts)
        user, colon, password = next(
            (each.netloc.rpartition("@")[0] for each in parts if "@" in each.netloc), ""
        ).partition(":")
        query = dict(parse_qsl("&".join(each.query for each in parts if each.query)))
        if (unknown := query.keys() - {*_FILES}) or (query and scheme not in ("tls", "wss")):
            named = ", ".join(sorted(unknown)) or "a file for TLS"
            raise ConfigError(
                f"[engine] nats: {named} is not for this URL; write tls://HOST:PORT?ca=PATH, and "
                "certificate= and key= where the server asks for them"
            )
        files = ClientFiles(**{name: Path(query[name]) for name in _FILES if name in query})
        if colon:
            return cls(servers, {"user": unquote(user), "password": unquote(password)}, files)
        return cls(servers, {"token": unquote(user)} if user else {}, files)

    @property
    def is_private(self) -> bool:
        """Whether nothing is to be sent without TLS."""
        return self.servers[0].startswith(("tls://", "wss://"))

    def options(self) -> dict[str, Any]:
        """Return what a client of `client_of` connects by, besides the servers.

        Raises:
            ConfigError: a file is missing, cannot be read, or does not fit the others.
        """
        tls = {"tls": client_context(self.files)} if self.is_private else {}
        return self.credentials | tls

    def __str__(self) -> str:
        return ",".join(each.partition("://")[2] for each in self.servers)


def client_of(address: NatsAddress) -> Client:
    """Return a client, which connects to no server without TLS where the address asks for it.

    The library's own follows what the server says: a `tls://` server that says that it has no TLS,
    or whoever speaks in its place, is sent the password in the plain.
    """
    from nats.aio.client import Client as NatsClient
    from nats.errors import Error

    if not address.is_private or address.servers[0].startswith("wss://"):
        return NatsClient()

    class PrivateClient(NatsClient):
        async def _process_info(
            self, info: dict[str, Any], initial_connection: bool = False
        ) -> None:
            if initial_connection and not info.get("tls_required"):
                raise Error("it has no TLS, and the URL says tls://")
            await super()._process_info(info, initial_connection)

    return PrivateClient()


async def connect(
    url: str,
    *,
    name: str,
    on_down: Callable[[], None],
    on_error: Callable[[Exception], None] = lambda _: None,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> Client:
    """Return a connection, which ends for good once it is lost; whoever asked closes it.

    The client's own way of coming back would send later what was given up meanwhile, leaves a
    socket behind with each attempt that fails, and waits for a server that stands still.

    Args:
        url: of the server, with the user and the password or the token where it wants them; of
            several servers of a cluster, with commas between them, which are tried in this order.
        name: shown by the server's own tools.
        on_down: called when the connection is lost.
        on_error: told what goes wrong beside, as what the server says to nobody in particular.
        more: options of the client.

    Raises:
        ConfigError: nobody answers there for a while, or not as NATS does, or the credentials are
            wrong.
        MissingExtra: the extra `nats` is not installed.
    """
    try:
        import nats.errors
    except ImportError as error:
        raise MissingExtra("nats", needed_for="[engine] nats") from error
    failures: list[Exception] = []
    is_up = False

    async def lost() -> None:
        if is_up:
            on_down()

    async def failed(error: Exception) -> None:
        failures[:] = [error]
        on_error(error)

    address, refused = NatsAddress.of(url), []
    options = {**address.options(), **more}
    within_s = CONNECT_WITHIN_S if len(address.servers) == 1 else CONNECT_EACH_WITHIN_S
    for server in address.servers:
        client, failures[:] = client_of(address), []
        try:
            async with asyncio.timeout(within_s):
                with cancellable():
                    await client.connect(
                        [server],
                        name=name,
                        allow_reconnect=False,
                        connect_timeout=within_s,  # type: ignore[arg-type]
                        reconnect_time_wait=RETRY_EVERY_S,  # type: ignore[arg-type]
                        closed_cb=lost,
                        error_cb=failed,
                        **options,
                    )
        except (nats.errors.Error, OSError, TimeoutError, ValueError) as error:
            await end(client)
            why = _why(failures[0] if failures else error, within_s)
            refused.append(f"NATS at {shown_url(server)}: {why}")
        except BaseException:
            await end(client)
            raise
        else:
            is_up = True
            return client
    raise ConfigError("; ".join(refused))


async def end(client: Client) -> None:
    """Close a client; one whose handshake failed would wait for ever for its connection to end.

    One whose connection was reset meanwhile raises that as it closes. One whose server reads
    nothing waits for that without a bound, and says that it is closed: its socket is ended.
    """
    with suppress(TimeoutError, OSError):
        async with asyncio.timeout(CLOSE_WITHIN_S):
            with cancellable():
                await client.close()
    # The client has no name for it in public; a WebSocket has none at all.
    writer = getattr(getattr(client, "_transport", None), "_io_writer", None)
    if writer is not None:
        writer.transport.abort()


@contextmanager
def cancellable() -> Iterator[None]:
    """Raise the cancellation of this task that the client has swallowed.

    It waits by `asyncio.wait_for`, which until Python 3.12 loses a cancellation that comes with the
    answer, be it to a request or in the handshake; and `publish` loses any. A loop that goes on
    then never ends.
    """
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
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not believed ({error.verify_message}); name its authority, as in "
            "tls://HOST:PORT?ca=PATH"
        )
    if "authorization" in text.lower() or "authentication" in text.lower():
        return "it refuses the credentials in the URL; write nats://USER:PASSWORD@HOST:PORT"
    if isinstance(error, TimeoutError):
        return f"it has not answered within {within_s:g} s; is that its clients' port?"
    if isinstance(error, ConnectionResetError):
        # It resets a connection that it refuses, and what it said of it may be lost.
        return "it closed the connection; are the credentials in [engine] nats right?"
    return f"it cannot be reached: {text or type(error).__name__}; start it, or mend [engine] nats"
