"""servo-works in a folder, as whoever runs it sees it: by `dev`, by URL, by key and by command."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

from processes import COMMAND, announced, dev, ends, family_of, is_alive, until
from synchromesh.system import RunDir

STOP_S = 10.0
NO_HEADERS: Mapping[str, str] = {}


class Told(NamedTuple):
    """What was answered."""

    status: int
    headers: Mapping[str, str]
    body: Any


class Works:
    """servo-works in a folder, as whoever runs it sees it."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.folder = folder
        self.flags = flags
        self.told: dict[str, str] = {}
        self.key = ""
        self._run: ExitStack | None = None

    def start(self) -> None:
        """Run `synchromesh dev`, and wait until it says where it is."""
        self._run = ExitStack()
        self.process = self._run.enter_context(dev(self.folder, *self.flags))
        told = announced(self.process)
        self.control, self.gateway = told["control"], told["gateway"]
        self.services: dict[str, str] = told["services"]

    def stop(self, number: signal.Signals) -> tuple[int, str]:
        """Send a signal, and return the exit code and what was said on standard error."""
        family = family_of(self.process.pid)
        self.process.send_signal(number)
        return self.ended(family)

    def kill(self) -> None:
        """End all of its processes at once, as a power cut would."""
        family = family_of(self.process.pid)
        for pid in (self.process.pid, *family):
            # Children end with their parent, and may be quicker.
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.ended(family)

    def ended(self, family: list[int]) -> tuple[int, str]:
        """Wait for the end; neither a process nor what leads to it may be left."""
        assert self._run is not None
        with self._run:
            assert self.process.stderr is not None
            code, said = self.process.wait(STOP_S), self.process.stderr.read()
        self._run = None
        assert family
        assert all(map(ends, family))
        return code, said

    @property
    def is_running(self) -> bool:
        """Whether it runs."""
        return self._run is not None and is_alive(self.process.pid)

    def leave(self) -> None:
        """End it, whatever state a failed test has left it in."""
        if self._run is not None:
            self._run.close()

    def ask(
        self, method: str, path: str, body: object = None, *, key: str = "", idempotency: str = ""
    ) -> Told:
        """Ask the gateway, with a key that may all, or another."""
        fields = {"x-api-key": key or self.key}
        if idempotency:
            fields["idempotency-key"] = idempotency
        return ask(self.gateway, method, path, body, fields)

    def ask_at_once(self, requests: Iterable[tuple[str, str, object]]) -> list[Told]:
        """Ask the gateway so that the last byte of each request comes when all others are there."""
        fields = {"x-api-key": self.key}
        sent = [Asked(self.gateway, method, path, body, fields) for method, path, body in requests]
        for each in sent:
            each.finish()
        return [each.told() for each in sent]

    def place(self, order_id: str, sku: str, qty: int = 1, customer: str = "counter") -> Told:
        """Order something, and return what became of it."""
        told: list[Told] = []

        def is_decided() -> bool:
            # A busy machine may not decide within the second that is waited for.
            told.append(self.take(order_id, sku, qty, customer))
            return told[-1].status != 200 or told[-1].body["type"] == "placed"

        assert until(is_decided)
        return told[-1]

    def take(self, order_id: str, sku: str, qty: int = 1, customer: str = "counter") -> Told:
        """Order something, and return the first answer."""
        order = {"order_id": order_id, "sku": sku, "qty": qty, "customer": customer}
        told = self.ask("POST", "/orders", order)
        if told.status in (200, 402, 409):
            said = told.body["type"] if told.status == 200 else "rejected"
            # Once it is decided, what is said under the same id is about another order.
            if self.told.get(order_id, "accepted") == "accepted":
                self.told[order_id] = said
        return told

    def order(self, order_id: str) -> str:
        """Return how an order stands."""
        return str(self.ask("GET", f"/orders/{order_id}").body["status"])

    def stock(self, sku: str) -> tuple[int, int]:
        """Return what is on the shelf, and what is held for orders."""
        told = self.ask("GET", f"/stock/{sku}").body
        return told["on_hand"], told["held"]

    def switch(self, mode: str) -> None:
        """Turn the fault switch of the credit provider, which is no part of the system."""
        url = self.services["credit_provider"]
        assert ask(url, "POST", "/_faults", {"mode": mode}).status == 200

    def left(self) -> list[str]:
        """Return what files of the run directory a stopped system has no more use for."""
        rundir = RunDir(self.folder)
        left = [*rundir.path.glob("run.json"), *rundir.path.glob("*.new"), *rundir.data.glob("*-*")]
        return [path.name for path in left]

    def log(self) -> str:
        """Return what all of its processes have logged."""
        logs = RunDir(self.folder).telemetry.glob("*.jsonl")
        return "".join(path.read_text() for path in logs)


class Asked:
    """A request on a connection of its own; all but the last byte of it is sent."""

    def __init__(
        self, url: str, method: str, path: str, body: object, headers: Mapping[str, str]
    ) -> None:
        content = b"" if body is None else json.dumps(body).encode()
        self._connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30.0)
        self._connection.putrequest(method, path)
        for name, value in headers.items():
            self._connection.putheader(name, value)
        if content:
            self._connection.putheader("content-type", "application/json")
            self._connection.putheader("content-length", str(len(content)))
        self._connection.endheaders(content[:-1])
        self._last = content[-1:]

    def finish(self) -> None:
        """Send the last byte."""
        self._connection.send(self._last)

    def told(self) -> Told:
        """Return what is answered."""
        with closing(self._connection), self._connection.getresponse() as answer:
            headers = {name.lower(): value for name, value in answer.getheaders()}
            return Told(answer.status, headers, json.loads(answer.read()))


def ask(
    url: str, method: str, path: str, body: object = None, headers: Mapping[str, str] = NO_HEADERS
) -> Told:
    """Ask over HTTP."""
    asked = Asked(url, method, path, body, headers)
    asked.finish()
    return asked.told()


def synchromesh(folder: Path, *words: str) -> Any:
    """Run a command as a process of its own, and return the JSON that it prints."""
    done = subprocess.run([*COMMAND, *words, "--json"], cwd=folder, stdout=-1, check=True)
    return json.loads(done.stdout)
