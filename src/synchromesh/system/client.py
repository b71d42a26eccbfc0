"""Calls from outside: what a script, a job or a notebook calls a running system by.

    credential → registry of the system: who is there, how calls are guarded → the service itself

A call takes the way of a call between services: deadline, retries within a budget, breaker, choice
of an instance, trace. What differs is who it is: a client from outside, with a credential of its
own, which is verified where the call arrives and may do what its grant says (`synchromesh client`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import urlsplit

from synchromesh.calls import Call, Caller, HttpTransport, Operation, Policies, Transport
from synchromesh.clients import ClientSigner
from synchromesh.context import CallContext, check_key
from synchromesh.errors import (
    BadRequest,
    ConfigError,
    ConnectFailed,
    DiscoveryError,
    Unauthenticated,
)
from synchromesh.http import HttpPool
from synchromesh.identity import NOBODY, REGISTRY
from synchromesh.runtime import RealRuntime, Runtime
from synchromesh.system.config.edge_policies import policies_from
from synchromesh.system.config.reading import load_config
from synchromesh.system.config.rundir import RunDir
from synchromesh.system.config.schema import OUTSIDE
from synchromesh.system.leases_api.client import RemoteRegistry
from synchromesh.telemetry import MemoryRing, Tracer

if TYPE_CHECKING:
    from synchromesh.tls import ClientContexts, ClientFiles

R = TypeVar("R")

SPANS_MAX = 256
AGAIN_S = REREAD_EVERY_S = 1.0
REMEDY = (
    "is the system started? In its folder: synchromesh dev. Its control socket answers on its own "
    "machine alone; from any other one call through its gateway"
)
_TRACE_ID = re.compile(r"(?!0{32})[0-9a-f]{32}")

_log = logging.getLogger("synchromesh.client")


class Client:
    """Calls the services of a running system from outside; use it with `async with`.

    One serves a whole program: it keeps connections, and knows who is there. It belongs to the
    event loop that it was opened on.

    Args:
        system: the URL of the system's control socket, such as "http://127.0.0.1:9100", which
            `[system] control_port` keeps at one place; or the system's folder, where the same user
            may read that.
        credential: what `synchromesh client add` has printed.
        policies: how calls are guarded; by default as the system says in `[policies."client:..."]`.
        tls: whom it believes where services are by TLS, and the certificate that it shows them; by
            default those of `[system] tls`, where `system` is a folder and its configuration can be
            read. Files are read again when they change.

    Example:
        >>> from typing import Protocol
        >>> from synchromesh.calls import Contract, command
        >>> class Orders(Contract, Protocol, service="orders", version="1.0"):
        ...     @command("POST /orders")
        ...     async def place(self, sku: str) -> str: ...
        >>> async def nightly(credential: str) -> str:
        ...     async with Client("http://127.0.0.1:9100", credential=credential) as client:
        ...         return await client.call(Orders.place("axle"), key="order A-1", timeout_s=5.0)
    """

    def __init__(
        self,
        system: str | Path,
        *,
        credential: str,
        policies: Policies | None = None,
        tls: ClientFiles | None = None,
    ) -> None:
        self._locate = _locating(system)
        self._folder = None if "://" in str(system) else Path(system).resolve()
        self._tls = tls
        self._signer = ClientSigner(credential)
        self._policies = policies
        self._runtime: Runtime = RealRuntime()
        self._exit = AsyncExitStack()
        self._caller: Caller | None = None

    async def __aenter__(self) -> Self:
        """Find the system.

        Raises:
            ConfigError: no system runs in the folder, or a file for TLS is missing or wrong.
            DiscoveryError: the system does not answer.
            Unauthenticated: the credential has expired, is revoked, or is another system's.
        """
        try:
            await _with_remedy(self._open())
        except BaseException:
            await self._exit.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close all connections; calls that are under way fail."""
        self._caller = None
        await self._exit.aclose()

    def call(
        self,
        call: Call[R],
        *,
        key: str = "",
        timeout_s: float | None = None,
        trace_id: str = "",
    ) -> Coroutine[Any, Any, R]:
        """Send a call and return its answer.

        Args:
            call: an operation of a contract with its arguments, such as `Orders.place("axle")`.
            key: the idempotency key of a command: under one key it takes effect once, however often
                it is sent, also by a later run of the program. A new one where it is "".
            timeout_s: bounds the whole call, retries too; each attempt has the policy's own time.
            trace_id: continues a trace, 32 hex digits; a new one where it is "".

        Raises:
            BadRequest: `call` is none, or the key or the trace id cannot be one.
            Rejection: one of those that the operation declares.
            Forbidden: the credential is not for this operation.
            Unauthenticated: the credential has expired or is revoked.
            CallError: the call failed otherwise; its class says what is known of the outcome.
        """
        context = self.root(key, trace_id)
        calling = self.opened.call(_checked(call), context=context, timeout_s=timeout_s)
        return _with_remedy(calling)

    def root(self, key: str = "", trace_id: str = "") -> CallContext:
        """Return the context of a call: it has the `trace_id` that `synchromesh trace` shows.

        Give it to `opened.call` where the trace has to be known before the answer.

        Raises:
            BadRequest: the key or the trace id cannot be one.
        """
        # Scripts have no types: what is no text is told the same.
        if trace_id and not _TRACE_ID.fullmatch(str(trace_id)):
            raise BadRequest(
                f"{str(trace_id)[:80]!r} is no trace id; make it 32 lower-case hex digits, not all "
                "of them 0, or leave it out for a new trace"
            )
        return self.opened.root(
            key=check_key(key) if key else None, trace_id=trace_id, principal=NOBODY
        )

    @property
    def opened(self) -> Caller:
        """Return what makes the calls.

        Raises:
            ConfigError: the client is not open.
        """
        if self._caller is None:
            raise ConfigError(
                "the client is not open; use it within: async with Client(...) as client"
            )
        return self._caller

    def __repr__(self) -> str:
        state = "closed" if self._caller is None else repr(self._caller)
        return f"<Client {self._signer.client_id}: {state}>"

    async def _open(self) -> None:
        runtime, signer = self._runtime, self._signer
        pool = HttpPool(network=runtime.network)
        self._exit.push_async_callback(pool.close)
        registry = RemoteRegistry(
            self._locate,
            pool=pool,
            credential=lambda: signer.token("", audience=REGISTRY, now_us=runtime.wall_us()),
            runtime=runtime,
        )
        self._locate()  # a system that does not run is named as that
        await registry.refresh()
        policies = self._policies
        if policies is None:
            policies = policies_from(await registry.policies())
        transports: dict[str, Transport] = {"http": HttpTransport(pool, runtime=runtime)}
        contexts = self._contexts()
        if contexts is not None:
            network = runtime.network.secured(client=contexts)
            secured = await self._exit.enter_async_context(HttpPool(network=network))
            transports["https"] = HttpTransport(secured, runtime=runtime)
            self._keep("tls", _reread(contexts))
        self._keep("registry", _follow(registry))
        self._caller = Caller(
            OUTSIDE,
            resolver=registry,
            transports=transports,
            signer=signer,
            tracer=Tracer(OUTSIDE, runtime, MemoryRing(SPANS_MAX)),
            runtime=runtime,
            policies=policies,
        )

    def _contexts(self) -> ClientContexts | None:
        """Return what calls by TLS are secured by; None where no files are named."""
        files = self._tls
        if files is None and self._folder is not None:
            files = _files_of(self._folder)
        if files is None:
            return None
        from synchromesh.tls import ClientContexts

        return ClientContexts(files=files)

    def _keep(self, name: str, loop: Coroutine[Any, Any, None]) -> None:
        self._exit.push_async_callback(_end, asyncio.create_task(loop, name=f"client/{name}"))


class SyncClient:
    """A `Client` for code that is not async; use it with `with`, from any thread.

    It runs an event loop in a thread of its own, so that it works within a notebook, too, where a
    loop runs already.

    Args:
        system, credential, policies, tls: as those of `Client`.

    Example:
        >>> from typing import Protocol
        >>> from synchromesh.calls import Contract, query
        >>> class Stock(Contract, Protocol, service="stock", version="1.0"):
        ...     @query("GET /stock/{sku}")
        ...     async def left(self, sku: str) -> int: ...
        >>> def left(credential: str) -> int:
        ...     with SyncClient("../works", credential=credential) as client:
        ...         return client.call(Stock.left("axle"), timeout_s=5.0)
    """

    def __init__(
        self,
        system: str | Path,
        *,
        credential: str,
        policies: Policies | None = None,
        tls: ClientFiles | None = None,
    ) -> None:
        self._client = Client(system, credential=credential, policies=policies, tls=tls)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Find the system; raises as `Client` does."""
        loop = self._loop = asyncio.new_event_loop()
        # A daemon: a program that ends without `with` must not wait for it.
        self._thread = threading.Thread(
            target=loop.run_forever, name="synchromesh-client", daemon=True
        )
        self._thread.start()
        try:
            self._run(self._client.__aenter__)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Close all connections."""
        try:
            self._run(self._client.__aexit__)
        finally:
            self._stop()

    def call(
        self,
        call: Call[R],
        *,
        key: str = "",
        timeout_s: float | None = None,
        trace_id: str = "",
    ) -> R:
        """Send a call and return its answer, as `Client.call` does."""
        return self._run(
            lambda: self._client.call(call, key=key, timeout_s=timeout_s, trace_id=trace_id)
        )

    def __repr__(self) -> str:
        return f"<SyncClient of {self._client!r}>"

    def _run(self, act: Callable[[], Awaitable[R]]) -> R:
        if self._loop is None:
            raise ConfigError(
                "the client is not open; use it within: with SyncClient(...) as client"
            )

        async def acting() -> R:
            return await act()

        future = asyncio.run_coroutine_threadsafe(acting(), self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # of a Ctrl-C meanwhile; what has ended stays as it is
            raise

    def _stop(self) -> None:
        loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


def _files_of(folder: Path) -> ClientFiles | None:
    """Return what the system of a folder calls by TLS by; None where that is by plain HTTP.

    Its configuration may be under work, or not for this user to read, and the system runs: that
    stops no client of it. One whose services are by TLS is told so where it calls them.
    """
    try:
        return load_config(folder, environment=os.environ).system.tls.client(folder)
    except ConfigError as error:
        _log.warning(
            "calls go without TLS, the system's files for it are not known: %s", error.message
        )
        return None


def _checked(call: Call[R]) -> Call[R]:
    """Return what can be sent; raise BadRequest for what is no call."""
    given: object = call
    if isinstance(given, Call):
        return call
    if isinstance(given, Operation):
        raise BadRequest(
            f"{given.full_name} was given without its arguments; call it with them, such as "
            f"{given.name}(...), also where it takes none"
        )
    raise BadRequest(
        f"{str(given)[:80]!r} is no call; give an operation of a contract with its arguments, such "
        'as Orders.place("axle")'
    )


async def _with_remedy(doing: Coroutine[Any, Any, R]) -> R:
    """Do something at the system; where that is not there, say what to do."""
    try:
        return await doing
    except (ConnectFailed, DiscoveryError) as error:
        if not error.message.endswith(REMEDY):
            error.message = f"{error.message}; {REMEDY}"
            error.args = (error.message, *error.args[1:])
        raise


async def _follow(registry: RemoteRegistry) -> None:
    """Keep the list fresh for as long as the client is open; a refusal is said once."""
    told = False
    while True:
        try:
            await registry.run()
        except Unauthenticated as error:
            if not told:
                _log.warning("the registry refuses this client: %s", error.message)
            told = True
        await asyncio.sleep(AGAIN_S)


async def _reread(contexts: ClientContexts) -> None:
    """Read the files for TLS again when they change."""
    while True:
        await asyncio.sleep(REREAD_EVERY_S)
        contexts.refresh()


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _locating(system: str | Path) -> Callable[[], str]:
    """Return what finds the control socket: at a URL, or where a folder says."""
    text = str(system)
    if "://" not in text:
        rundir = RunDir(Path(system).resolve())
        return lambda: rundir.read().control
    place = urlsplit(text)
    if place.scheme in ("nats", "tls"):
        raise ConfigError(
            f"{text[:80]!r} is a registry on NATS, which clients from outside do not read; give "
            "the folder of a system by synchromesh dev, or its control socket, such as "
            "http://127.0.0.1:9100; where there is none, call through the gateway"
        )
    if place.scheme != "http" or not place.hostname or not place.port:
        raise ConfigError(
            f"{text[:80]!r} is no place of a system; write the URL of its control socket, such as "
            "http://127.0.0.1:9100, or its folder"
        )
    return lambda: text
