"""Bodies of HTTP messages for tests: some that have come, and some that come as they are read."""

from __future__ import annotations

from synchromesh.http import Body

PART = b"x" * 16 * 1024


async def everything(body: Body | None) -> bytes:
    """Read a body to its end."""
    parts = []
    while body is not None and (part := await body.read()):
        parts.append(part)
    return b"".join(parts)


def open_body(*parts: bytes, length: int | None = None) -> Body:
    """Return a body of which more may come."""
    body = Body(length=length, on_room=lambda: None)
    for part in parts:
        body.feed(part)
    return body


def body_of(*parts: bytes, length: int | None = None) -> Body:
    """Return a body that has come already."""
    body = open_body(*parts, length=length)
    body.end()
    return body


def long_body(total: int, taken: list[int] | None = None, *, is_known: bool = True) -> Body:
    """Return a body that is made as it is read; `taken[0]` counts how much of it that was."""
    taken = [0] if taken is None else taken

    def more() -> None:
        while taken[0] < total and not body.is_full:
            part = PART[: total - taken[0]]
            taken[0] += len(part)
            body.feed(part)
        if taken[0] >= total and not body.is_ended:
            body.end()

    body = Body(length=total if is_known else None, on_room=more)
    return body
