"""The credit provider: its ledger, its HTTP interface and its fault switch."""

import asyncio
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from credit_provider import BODY_BYTES_MAX, CHARGE_MAX_MINOR, CreditProviderServer, Ledger

from synchromesh.http import AsgiHandler, Headers, HttpRequest

REQUEST = {"customer": "acme", "amount_minor": 12_900, "currency": "EUR", "reference": "inv-1"}


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    ledger = Ledger(sqlite3.connect(":memory:", isolation_level=None))
    yield ledger
    ledger.close()


# -- the ledger ----------------------------------------------------------------------------------


def test_one_key_is_one_charge(ledger: Ledger) -> None:
    """The same request under the same key has the same answer and moves money once."""
    first = ledger.charge("key-1", REQUEST)
    assert first.status == 201
    assert ledger.charge("key-1", REQUEST) == first
    assert ledger.charged_minor() == 12_900


def test_another_key_is_another_charge(ledger: Ledger) -> None:
    """The provider cannot know that two keys mean one thing."""
    assert ledger.charge("key-1", REQUEST) != ledger.charge("key-2", REQUEST)
    assert ledger.charged_minor() == 25_800


def test_a_key_belongs_to_its_request(ledger: Ledger) -> None:
    """A key that comes with another request is refused, and its first answer stays."""
    first = ledger.charge("key-1", REQUEST)
    assert ledger.charge("key-1", {**REQUEST, "amount_minor": 1}).status == 422
    assert ledger.charge("key-1", REQUEST) == first
    assert ledger.charged_minor() == 12_900


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"customer": "brassworks"}, "no credit"),
        ({"amount_minor": CHARGE_MAX_MINOR + 1}, "more than"),
    ],
)
def test_a_declined_charge_is_declined_for_ever(
    ledger: Ledger, change: dict[str, object], word: str
) -> None:
    """A refusal says why, is remembered under its key, and moves no money."""
    request = {**REQUEST, **change}
    first = ledger.charge("key-1", request)
    assert (first.status, word in first.body["detail"]) == (402, True)
    assert ledger.charge("key-1", request) == first
    assert ledger.charged_minor() == 0


@pytest.mark.parametrize(
    "change",
    [
        {"amount_minor": 0},
        {"amount_minor": -5},
        {"amount_minor": "12900"},
        {"amount_minor": True},
        {"customer": None},
        {"reference": 7},
    ],
)
def test_a_malformed_charge_is_not_remembered(ledger: Ledger, change: dict[str, object]) -> None:
    """The key of a request that was refused as malformed may be used by the mended one."""
    assert ledger.charge("key-1", {**REQUEST, **change}).status == 400
    assert ledger.charge("key-1", REQUEST).status == 201


def test_a_charge_without_a_key_is_refused(ledger: Ledger) -> None:
    """Without a key nobody could ask again."""
    assert ledger.charge("", REQUEST).status == 400
    assert ledger.charged_minor() == 0


def test_the_books_outlive_the_process(tmp_path: Path) -> None:
    """An answer that was given is given again by the process that comes after."""
    answers = []
    for _ in range(2):
        ledger = Ledger(sqlite3.connect(tmp_path / "credit.db", isolation_level=None))
        answers.append(ledger.charge("key-1", REQUEST))
        assert ledger.charged_minor() == 12_900
        ledger.close()
    assert answers[0] == answers[1]


# -- the application -----------------------------------------------------------------------------


async def ask(
    app: CreditProviderServer, method: str, path: str, body: object = None, *, key: str = ""
) -> tuple[int, dict[str, Any]]:
    headers = Headers([("idempotency-key", key)] if key else [])
    raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    response = await AsgiHandler(app)(HttpRequest(method, path, path, "", headers, raw))
    return response.status, json.loads(response.body)


@pytest.mark.anyio
async def test_a_charge_over_http_reaches_the_ledger(ledger: Ledger) -> None:
    """The key is the header Idempotency-Key; the answer names the charge."""
    app = CreditProviderServer(ledger)
    status, body = await ask(app, "POST", "/charges", REQUEST, key="key-1")
    assert status == 201
    assert body == ledger.charge("key-1", REQUEST).body


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/charges", None, 404),
        ("POST", "/elsewhere", {}, 404),
        ("POST", "/charges", b"{", 400),
        ("POST", "/charges", b"\xff", 400),
        ("POST", "/charges", [1], 400),
        ("POST", "/charges", b" " * (BODY_BYTES_MAX + 1), 413),
        ("POST", "/_faults", {"mode": "explode"}, 400),
        ("POST", "/_faults", {"mode": "slow", "delay_s": -1}, 400),
        ("POST", "/_faults", {"mode": "slow", "delay_s": "long"}, 400),
    ],
)
async def test_what_makes_no_sense_is_refused_in_words(
    ledger: Ledger, method: str, path: str, body: object, status: int
) -> None:
    """Bad requests get a status and a reason, and change nothing."""
    app = CreditProviderServer(ledger)
    found, problem = await ask(app, method, path, body, key="key-1")
    assert (found, bool(problem["detail"])) == (status, True)
    assert (app.faults.mode, ledger.charged_minor()) == ("ok", 0)


@pytest.mark.anyio
async def test_errors_charge_nothing_and_end_with_the_switch(ledger: Ledger) -> None:
    """While it fails it fails every charge; health and switch still answer."""
    app = CreditProviderServer(ledger)
    assert await ask(app, "POST", "/_faults", {"mode": "errors"}) == (
        200,
        {"mode": "errors", "delay_s": 0.0},
    )
    status, _ = await ask(app, "POST", "/charges", REQUEST, key="key-1")
    assert (status, ledger.charged_minor()) == (500, 0)
    assert (await ask(app, "GET", "/health"))[0] == 200
    assert (await ask(app, "GET", "/_faults"))[1]["mode"] == "errors"
    await ask(app, "POST", "/_faults", {"mode": "ok"})
    assert (await ask(app, "POST", "/charges", REQUEST, key="key-1"))[0] == 201


@pytest.mark.anyio
async def test_a_stalled_charge_has_happened(ledger: Ledger) -> None:
    """Who gives up waiting was charged all the same, and learns so by asking under the key."""
    app = CreditProviderServer(ledger)
    await ask(app, "POST", "/_faults", {"mode": "stall", "delay_s": 600})
    waiting = asyncio.create_task(ask(app, "POST", "/charges", REQUEST, key="key-1"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert (waiting.done(), ledger.charged_minor()) == (False, 12_900)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await ask(app, "POST", "/_faults", {"mode": "ok"})
    assert (await ask(app, "POST", "/charges", REQUEST, key="key-1"))[0] == 201
    assert ledger.charged_minor() == 12_900


@pytest.mark.anyio
async def test_a_slow_charge_answers_in_the_end(ledger: Ledger) -> None:
    """Slow is late, not wrong."""
    app = CreditProviderServer(ledger)
    await ask(app, "POST", "/_faults", {"mode": "slow", "delay_s": 0})
    assert (await ask(app, "POST", "/charges", REQUEST, key="key-1"))[0] == 201


@pytest.mark.anyio
async def test_its_lifespan_starts_and_ends(ledger: Ledger) -> None:
    """Any ASGI server can run it."""
    async with AsgiHandler(CreditProviderServer(ledger)) as handler:
        response = await handler(HttpRequest("GET", "/health", "/health", "", Headers(), b""))
    assert response.status == 200
