"""What the gateway serves of its own: a document or a page that is the same for everybody."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from synchromesh.gateway.caching import IF_NONE_MATCH, etag_of, has_it
from synchromesh.http import HttpRequest, HttpResponse


@dataclass(frozen=True, slots=True)
class ServedPage:
    """A page as it is served, told apart from an earlier one by its `ETag` (RFC 9110, 8.8.3).

    Attributes:
        headers: what it is, and what it may do.
        is_public: caches of others may keep it; each of them asks again before it answers.

    Example:
        >>> page = ServedPage(b"{}", (("content-type", "application/json"),), is_public=True)
        >>> page.etag
        '"2afb9b83f9314e5d029766197f539792"'
    """

    body: bytes
    headers: tuple[tuple[str, str], ...]
    is_public: bool
    etag: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "etag", etag_of(self.body))

    def answer(self, request: HttpRequest, ours: Iterable[tuple[str, str]]) -> HttpResponse:
        """Answer a GET or a HEAD: 304 where the client has it already (RFC 9110, 13.1.2)."""
        caching = "no-cache" if self.is_public else "private, no-cache"
        said = [("etag", self.etag), ("cache-control", caching)]
        fields = [*said, *(pair for pair in ours if pair[0] != "cache-control")]
        if has_it(request.headers.get_all(IF_NONE_MATCH), self.etag):
            return HttpResponse(304, fields)
        return HttpResponse(200, [*self.headers, *fields], self.body)

    def __repr__(self) -> str:
        return f"<ServedPage {len(self.body)} bytes>"
