"""An external service for a test: an ASGI application that answers calls."""

from __future__ import annotations

from synchromesh.calls import Reply, Request
from synchromesh.context import to_headers
from synchromesh.http import AsgiHandler, Headers, HttpRequest


class AsgiReceiver:
    """Answers calls by an ASGI application that stands for an external service.

    Example:
        >>> from synchromesh.http import AsgiHandler
        >>> async def app(scope, receive, send): ...
        >>> receiver = AsgiReceiver(AsgiHandler(app))
    """

    def __init__(self, handler: AsgiHandler) -> None:
        self._handler = handler

    async def dispatch(self, request: Request) -> Reply:
        """Send the request to the application as HTTP, and return its answer."""
        operation, context = request.operation, request.context
        target, body = operation.to_http(request.arguments)
        path, _, query = target.partition("?")
        headers = Headers(to_headers(context, now=0.0, wall_us=0).items())
        answer = await self._handler(
            HttpRequest(operation.method, target, path, query, headers, body)
        )
        return Reply(answer.status, answer.body)
