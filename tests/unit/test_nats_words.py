"""Addresses of NATS, and what its errors mean for a message."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import nats.errors
import nats.js.errors
import pytest

from synchromesh.discovery import nats_connection
from synchromesh.discovery.nats_connection import NatsAddress
from synchromesh.discovery.nats_requests import NatsRequests
from synchromesh.errors import ConfigError
from synchromesh.messaging.jetstream_connection import translated
from synchromesh.system.config.engine_section import EngineSection

ADA = {"user": "ada", "password": "s:e,c"}


@pytest.mark.parametrize(
    ("url", "servers", "credentials"),
    [
        ("nats://a", ("nats://a",), {}),
        ("nats://ada:s%3Ae%2Cc@a:1,nats://b:2", ("nats://a:1", "nats://b:2"), ADA),
        ("nats://a:1,nats://ada:s%3Ae%2Cc@b:2", ("nats://a:1", "nats://b:2"), ADA),
        ("tls://t%40ken@a:1,b:2", ("tls://a:1", "tls://b:2"), {"token": "t@ken"}),
    ],
)  # fmt: skip
def test_an_address_has_servers_and_one_user(
    url: str, servers: tuple[str, ...], credentials: dict[str, Any], tmp_path: Path
) -> None:
    """Any of them is connected to by it, also one that another has told of; no place shows it."""
    assert EngineSection(nats="env:URL").url("nats", tmp_path, {"URL": url}) == url
    found = NatsAddress.of(url)
    assert (found.servers, found.credentials) == (servers, credentials)
    assert str(found) == ",".join(each.partition("://")[2] for each in servers)
    assert "ken" not in repr(found)


@pytest.mark.parametrize(
    "url", ["nats://a:1,ws://b:2", "nats://a,", "nats://u:p@a,nats://v:q@b", "a:1,nats://b:2"]
)
def test_servers_of_one_cluster_are_of_one_kind(url: str, tmp_path: Path) -> None:
    """Of one scheme, and for one user: else some are never connected to."""
    with pytest.raises(ConfigError, match=r"nats://HOST:PORT,nats://HOST:PORT for a cluster"):
        EngineSection(nats="env:URL").url("nats", tmp_path, {"URL": url})


@pytest.mark.parametrize(
    "url", ["nats://me:1,23@a:4222", "nats://me:1,2,3@a:4222", "nats://a:1,me:pass@b:2"]
)
def test_a_comma_in_a_password_is_told_and_no_part_of_it_is_a_server(
    url: str, tmp_path: Path
) -> None:
    """What is before it looks like a host with its port, and would be sent what comes after."""
    with pytest.raises(ConfigError, match="in a password, a comma as %2C") as told:
        EngineSection(nats="env:URL").url("nats", tmp_path, {"URL": url})
    assert "23" not in told.value.message


def _said(code: int, err_code: int, words: str) -> nats.errors.Error:
    with pytest.raises(nats.js.errors.APIError) as caught:
        nats.js.errors.APIError.from_error(
            {"code": code, "err_code": err_code, "description": words}
        )
    return caught.value


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        # Of a stream with replicas: the first one with this id is being stored. It is asked again.
        (
            lambda: _said(409, 10158, "duplicate message id is in process"),
            "timed_out",
            "in process",
        ),
        (nats.errors.TimeoutError, "timed_out", "not acknowledged"),
        (lambda: _said(503, 10077, "maximum messages exceeded"), "shed", "no room"),
        (lambda: _said(400, 10054, "message size exceeds"), "bad_request", "of this size"),
        (nats.errors.MaxPayloadError, "bad_request", "of this size"),
        (nats.js.errors.NoStreamResponseError, "connect_failed", "not reached"),
        (
            nats.errors.OutboundBufferLimitError,
            "connect_failed",
            "not reached: the connection is down",
        ),
    ],
)
def test_what_an_error_means_for_a_message(error: Any, code: str, words: str) -> None:
    """What may be there by now, what waits for room, what never fits, and what was not sent."""
    meant = translated(error(), "nats:4222")
    assert meant.code == code
    assert words in meant.message


class Closing:
    """A connection of the client's that closes as it is told to."""

    def __init__(self, error: BaseException | None) -> None:
        self._error = error

    async def close(self) -> None:
        if self._error is not None:
            raise self._error
        await asyncio.Event().wait()


@pytest.mark.anyio
@pytest.mark.parametrize("error", [None, ConnectionResetError()])
async def test_a_connection_that_does_not_close_keeps_no_process(
    error: BaseException | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client waits for ever for the end of one that it was about to make again."""
    monkeypatch.setattr(nats_connection, "CLOSE_WITHIN_S", 0.01)
    requests = NatsRequests("nats://127.0.0.1:1", name="test")
    monkeypatch.setattr(requests, "_client", Closing(error))
    await requests.close()
    await requests.close()


def test_a_cancellation_that_comes_with_the_handshake_is_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As `asyncio.wait_for` loses it: whoever is cancelled while it connects again goes on else."""

    class Swallows:
        is_closed = False

        async def connect(self, *_: object, **__: object) -> None:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(3600.0)

        async def close(self) -> None:
            self.is_closed = True

    made = Swallows()
    monkeypatch.setattr(nats_connection, "client_of", lambda _: made)

    async def main() -> bool:
        requests = NatsRequests("nats://127.0.0.1:4222", name="test")
        connecting = asyncio.ensure_future(requests.connect())
        await asyncio.sleep(0)
        connecting.cancel()
        await asyncio.wait([connecting])
        return connecting.cancelled()

    assert asyncio.run(main())
    assert made.is_closed
