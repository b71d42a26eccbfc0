"""An external service: charges customers' credit over HTTP, with faults on demand.

It shares nothing with the services but its HTTP interface. `Ledger` is what it decides and
remembers; `CreditProviderServer` is an ASGI application around it, with a fault switch; `main`
serves it as a process of its own, with its books in the SQLite file that CREDIT_DB names:

    CREDIT_DB=credit.db python -m credit_provider
"""

import asyncio
import hashlib
import json
import os
import signal
import sqlite3
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from synchromesh.runtime import DiskRuntime

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

DECLINED_CUSTOMERS = frozenset({"brassworks", "pallas-pumps", "orbital-cnc"})
CHARGE_MAX_MINOR = 2_000_000
FAULT_MODES = ("ok", "errors", "stall", "slow")
BODY_BYTES_MAX = 64 * 1024
STALL_S = 30.0
TABLES = (
    """
    create table if not exists answer(
        key text primary key, request text not null, status integer not null, body text not null
    )
    """,
    """
    create table if not exists charge(
        id text primary key, customer text not null, amount_minor integer not null,
        currency text not null, reference text not null
    )
    """,
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered to a request: a status and a JSON object."""

    status: int
    body: dict[str, Any]


class Ledger:
    """Decides on charges, and records every answer under its idempotency key.

    The same key with the same request gets the same answer for ever; it is on disk before it is
    given. The connection is the ledger's own, in autocommit mode.

    Example:
        >>> ledger = Ledger(sqlite3.connect(":memory:", isolation_level=None))
        >>> request = {"customer": "acme", "amount_minor": 100, "currency": "EUR", "reference": "1"}
        >>> ledger.charge("key", request) == ledger.charge("key", request)
        True
        >>> ledger.charged_minor()
        100
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        for statement in ("journal_mode = wal", "synchronous = full", "busy_timeout = 2000"):
            connection.execute(f"pragma {statement}")
        for table in TABLES:
            connection.execute(table)

    def charge(self, key: str, request: dict[str, Any]) -> Answer:
        """Charge a customer once per key, or decline."""
        if not key:
            return _problem(400, "the header Idempotency-Key is missing")
        wrong = _wrong_with(request)
        if wrong:
            return _problem(400, wrong)
        text = json.dumps(request, sort_keys=True)
        self._connection.execute("begin immediate")
        try:
            answer = self._recall(key, text) or self._decide(key, text, request)
        except BaseException:
            self._connection.execute("rollback")
            raise
        self._connection.execute("commit")
        return answer

    def charged_minor(self) -> int:
        """Return the sum of all that was charged."""
        row = self._connection.execute("select coalesce(sum(amount_minor), 0) from charge")
        return int(row.fetchone()[0])

    def close(self) -> None:
        """Close the ledger."""
        self._connection.close()

    def _recall(self, key: str, text: str) -> Answer | None:
        row = self._connection.execute(
            "select request, status, body from answer where key = ?", (key,)
        ).fetchone()
        if row is None:
            return None
        if row[0] != text:
            return _problem(422, "the Idempotency-Key was used before with another request")
        return Answer(row[1], json.loads(row[2]))

    def _decide(self, key: str, text: str, request: dict[str, Any]) -> Answer:
        customer, amount = request["customer"], request["amount_minor"]
        if customer in DECLINED_CUSTOMERS:
            answer = _problem(402, f"{customer} has no credit with us")
        elif amount > CHARGE_MAX_MINOR:
            answer = _problem(402, f"{amount} is more than the {CHARGE_MAX_MINOR} we pay at once")
        else:
            charge_id = "ch_" + hashlib.sha256(key.encode()).hexdigest()[:24]
            self._connection.execute(
                "insert into charge(id, customer, amount_minor, currency, reference) "
                "values (?, ?, ?, ?, ?)",
                (charge_id, customer, amount, request["currency"], request["reference"]),
            )
            answer = Answer(201, {"charge_id": charge_id})
        self._connection.execute(
            "insert into answer(key, request, status, body) values (?, ?, ?, ?)",
            (key, text, answer.status, json.dumps(answer.body)),
        )
        return answer


@dataclass(frozen=True, slots=True)
class ProviderFaults:
    """The provider's faults, until they are changed.

    Attributes:
        mode: `ok`; `errors`: 500, nothing charged; `stall`: it charges and then does not answer
            for `delay_s`; `slow`: it answers `delay_s` late.
    """

    mode: str = "ok"
    delay_s: float = 0.0


class CreditProviderServer:
    """Serves a ledger: POST /charges, GET /health, and the fault switch at /_faults."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.faults = ProviderFaults()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one ASGI connection."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        answer = await self._answer(scope, await _body_of(receive))
        body = json.dumps(answer.body).encode()
        kind = b"application/json" if answer.status < 400 else b"application/problem+json"
        headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Message, body: bytes | None) -> Answer:
        if body is None:
            return _problem(413, f"a body has at most {BODY_BYTES_MAX} bytes")
        route = f"{scope['method']} {scope['path']}"
        if route == "GET /health":
            return Answer(200, {"status": "ok"})
        if route == "GET /_faults":
            return Answer(200, {"mode": self.faults.mode, "delay_s": self.faults.delay_s})
        if route not in ("POST /charges", "POST /_faults"):
            return _problem(404, f"there is no {route}")
        try:
            request = json.loads(body)
        except ValueError:
            return _problem(400, "the body is no JSON")
        if not isinstance(request, dict):
            return _problem(400, "the body is no JSON object")
        if route == "POST /_faults":
            return self._switch(request)
        return await self._charge(_header(scope, b"idempotency-key"), request)

    async def _charge(self, key: str, request: dict[str, Any]) -> Answer:
        faults = self.faults
        if faults.mode == "errors":
            return _problem(500, "our database is in maintenance; please try again later")
        answer = self._ledger.charge(key, request)
        # The money has moved by now: a caller that gives up waiting does not know that.
        if faults.mode in ("stall", "slow"):
            await asyncio.sleep(faults.delay_s)
        return answer

    def _switch(self, request: dict[str, Any]) -> Answer:
        mode = request.get("mode", "ok")
        delay_s = request.get("delay_s", STALL_S if mode == "stall" else 1.0)
        if mode not in FAULT_MODES:
            return _problem(400, f"mode is {mode!r}; expected one of {', '.join(FAULT_MODES)}")
        if not isinstance(delay_s, int | float) or not 0 <= delay_s <= 600:
            return _problem(400, f"delay_s is {delay_s!r}; expected seconds from 0 to 600")
        self.faults = ProviderFaults(mode, float(delay_s) if mode in ("stall", "slow") else 0.0)
        return Answer(200, {"mode": self.faults.mode, "delay_s": self.faults.delay_s})


def _wrong_with(request: dict[str, Any]) -> str:
    for name, kind in (
        ("customer", str),
        ("amount_minor", int),
        ("currency", str),
        ("reference", str),
    ):
        value = request.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            return f"{name} is {value!r}; expected {kind.__name__}"
    if request["amount_minor"] <= 0:
        return f"amount_minor is {request['amount_minor']}; expected more than 0"
    return ""


def _problem(status: int, detail: str) -> Answer:
    return Answer(status, {"status": status, "detail": detail})


def _header(scope: Message, wanted: bytes) -> str:
    values = [value for name, value in scope["headers"] if name == wanted]
    return values[0].decode("latin-1") if values else ""


async def _body_of(receive: Receive) -> bytes | None:
    parts: list[bytes] = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if sum(map(len, parts)) > BODY_BYTES_MAX:
            return None
        if not message.get("more_body", False):
            return b"".join(parts)


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def serve(path: str) -> None:
    """Serve the ledger at `path` on a free port of loopback until SIGTERM."""
    # Any ASGI server would do; this one is at hand.
    from synchromesh.http import AsgiHandler, HttpServer
    from synchromesh.runtime import RealRuntime

    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stopped.set)
    ledger = Ledger(sqlite3.connect(path, isolation_level=None))
    app = AsgiHandler(CreditProviderServer(ledger))
    server = HttpServer(app, network=RealRuntime().network)
    async with app:
        await server.start()
        sys.stdout.write(json.dumps({"port": server.port}) + "\n")
        sys.stdout.flush()
        await stopped.wait()
        await server.drain(1.0)
    ledger.close()


def simulated(runtime: "DiskRuntime", path: str) -> CreditProviderServer:
    """Return the provider for a simulated drill, with its books at `path` of that world's disk."""
    return CreditProviderServer(Ledger(runtime.disk.connect(path)))


def main() -> None:
    """Run the provider; CREDIT_DB names its file."""
    # This is a program of its own, so that its environment is its to read.
    asyncio.run(serve(os.environ.get("CREDIT_DB", "credit_provider.db")))  # noqa: TID251


if __name__ == "__main__":
    main()
