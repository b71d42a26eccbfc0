"""Answers in parts: a task that sends what a handler makes, while the request may still come."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeAlias

from synchromesh.errors import SynchromeshError
from synchromesh.http.body import Body, Framing
from synchromesh.http.date import DateLine
from synchromesh.http.message import HttpRequest, HttpResponse, encode_response, has_body
from synchromesh.http.outflow import Outflow, reset
from synchromesh.http.reading import RequestReader
from synchromesh.http.serving import FAILED
from synchromesh.http.tunnel import Switching, switch

_logger = logging.getLogger("synchromesh.http")

Opening: TypeAlias = Callable[[], AbstractAsyncContextManager[HttpResponse]]


class Streamer(Protocol):
    """Is the connection, as the task of an answer in parts sees it.

    Attributes:
        date: says when an answer was made.
        current: the streamed body of the request that is being answered.
        final_response: what is said after all answers.
    """

    transport: asyncio.Transport
    outflow: Outflow
    reader: RequestReader
    date: DateLine
    current: Body | None
    final_response: HttpResponse | None

    @property
    def is_lost(self) -> bool:
        """True once the client has gone."""
        ...

    def stop_reading(self) -> None:
        """Parse nothing more."""
        ...

    def is_last(self) -> bool:
        """Tell whether the answer is the connection's last."""
        ...

    def send(self, response: HttpResponse) -> None:
        """Send an answer whole."""
        ...

    def on_answered(self) -> None:
        """Go on after an answer."""
        ...

    def connection_lost(self, exc: Exception | None) -> None:
        """Release everything: the client has gone."""
        ...


async def answer_streaming(connection: Streamer, request: HttpRequest, opening: Opening) -> None:
    """Answer a request by what a context gives; its body, if it is a stream, comes meanwhile."""
    # Set here: who is cancelled before his first step would never come to end it.
    body = connection.current = request.stream
    has_begun = is_whole = False
    try:
        if not _is_broken(connection, body):
            async with opening() as response:
                has_begun = True
                await _send(connection, response, is_head=request.method == "HEAD")
            is_whole = True
    except asyncio.CancelledError:
        if connection.is_lost:
            raise
        if not _is_broken(connection, body):
            _logger.exception("a handler was cancelled: %r", request)
    except SynchromeshError as error:
        _logger.warning("the answer to %r broke off: %s", request, error)
    except Exception:
        _logger.exception("a handler failed: %r", request)
    if not connection.is_lost:
        connection.current = None
        _end(connection, body, has_begun=has_begun, is_whole=is_whole)


def _end(connection: Streamer, body: Body | None, *, has_begun: bool, is_whole: bool) -> None:
    if has_begun and not is_whole:
        reset(connection.transport)
        return
    is_refused = _is_broken(connection, body)
    if body is not None and not is_refused and connection.reader.coming is body:
        # Nobody reads the rest, and what follows it cannot be found without reading it.
        connection.stop_reading()
    if is_refused and has_begun:
        connection.final_response = None  # the answer is there already
        connection.reader.ready.clear()
    if has_begun or is_refused:
        connection.on_answered()
    else:
        connection.send(FAILED)


def _is_broken(connection: Streamer, body: Body | None) -> bool:
    """Tell whether a streamed body was refused: it is not whole, and will not be."""
    return body is not None and not body.is_ended and connection.reader.coming is not body


async def _send(connection: Streamer, response: HttpResponse, *, is_head: bool) -> None:
    if isinstance(response, Switching):
        await switch(connection, response)
        return
    reader, stream = connection.reader, response.stream
    # What comes after a body that is not read to its end cannot be read either.
    is_last = connection.is_last() or (
        reader.coming is not None and reader.coming is connection.current
    )
    if reader.coming is not None and reader.coming is connection.current:
        # The answer takes the place of 100 Continue, which would be read as a part of it.
        reader.owes_continue = False
    framing = None
    if stream is not None and has_body(response, is_head=is_head):
        is_chunked = not (is_last and reader.is_old)
        framing = Framing(length=response.length, is_chunked=is_chunked)
    wire = encode_response(
        response, is_head=is_head, is_last=is_last, framing=framing, date=connection.date.line()
    )
    await connection.outflow.send(wire)
    if stream is None or framing is None:
        return
    while part := await stream.read():
        await connection.outflow.send(framing.part(part))
    await connection.outflow.send(framing.end())
