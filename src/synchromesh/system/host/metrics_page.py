"""`GET /metrics` of an admin listener: the metrics, in the format that was asked for.

Prometheus' own library writes them; which of its formats, is read from `Accept` here, for the
library takes what was refused by `q=0` and answers with versions that it does not write.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

from synchromesh.errors import BadRequest
from synchromesh.http import HttpRequest, HttpResponse, error_response, problem_response
from synchromesh.runtime import Runtime
from synchromesh.system.control.metrics import Collector
from synchromesh.system.host.host import Host
from synchromesh.telemetry import Family

PATH = "/metrics"
TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
# In the order in which they are preferred where a client likes both the same.
FORMATS = (OPENMETRICS, TEXT)
_ACCEPT_CHARS_MAX = 4096
_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_ELEMENT = re.compile(rf'(?:[^,"]|{_QUOTED})+')
_RANGE = re.compile(rf"\s*({_WORD})/({_WORD})")
_PARAMETER = re.compile(rf"\s*;\s*(?:({_WORD})=({_WORD}|{_QUOTED}))?")
_Q = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")


class _Range(NamedTuple):
    """A media range of `Accept`, in lower case."""

    kind: str
    parameters: dict[str, str]
    q: float

    def precision(self, offered: str) -> int:
        """Return how much it says of a format; 0 where it is about something else."""
        kind, version, charset = offered.split("; ")
        known = {"version": version, "charset": charset, "escaping": ""}
        for name, value in self.parameters.items():
            if name not in known or (known[name] and known[name] != f"{name}={value}"):
                return 0
        if self.kind == kind:
            return 3 + len(self.parameters)
        return {f"{kind.partition('/')[0]}/*": 2, "*/*": 1}.get(self.kind, 0)


def choose(accept: str) -> str | None:
    """Return the format that an `Accept` likes best, or None where it takes neither.

    Without one it is the text format. Of a format the range counts that says most of it, as in RFC
    9110, section 12.5.1; `charset` is UTF-8 alone, and `escaping` is any, for no name needs some.

    Raises:
        BadRequest: it is no list of media ranges.

    Example:
        >>> choose("text/plain;version=0.0.4, application/openmetrics-text;q=0")
        'text/plain; version=0.0.4; charset=utf-8'
        >>> choose("application/openmetrics-text; version=2.0.0") is None
        True
    """
    if not accept.strip():
        return TEXT
    if len(accept) > _ACCEPT_CHARS_MAX:
        raise BadRequest(f"Accept has {len(accept)} characters, at most {_ACCEPT_CHARS_MAX} do")
    ranges = _ranges(accept)
    liked = {each: _quality(each, ranges) for each in FORMATS}
    best = max(FORMATS, key=lambda each: liked[each])
    return best if liked[best] > 0 else None


def _quality(offered: str, ranges: list[_Range]) -> float:
    told = [(each.precision(offered), each.q) for each in ranges]
    precision, q = max(told)
    return q if precision else 0.0


def _ranges(accept: str) -> list[_Range]:
    if _ELEMENT.sub("", accept).strip(", \t"):
        raise _malformed(accept)
    elements = [each for each in _ELEMENT.findall(accept) if each.strip()]
    return [_range(each) for each in elements]


def _range(element: str) -> _Range:
    found = _RANGE.match(element)
    if found is None or (found[1] == "*" != found[2]):
        raise _malformed(element)
    parameters: dict[str, str] = {}
    at = found.end()
    while element[at:].strip():
        told = _PARAMETER.match(element, at)
        if told is None or (told[1] or "").lower() in parameters:
            raise _malformed(element)
        at = told.end()
        if told[1]:
            value = re.sub(r"\\(.)", r"\1", told[2][1:-1]) if told[2][0] == '"' else told[2]
            parameters[told[1].lower()] = value.lower()
    q = parameters.pop("q", "1")
    if not _Q.fullmatch(q):
        raise _malformed(element)
    return _Range(f"{found[1]}/{found[2]}".lower(), parameters, float(q))


def _malformed(what: str) -> BadRequest:
    return BadRequest(f"Accept is no list of media ranges at {what.strip()[:80]!r}; see RFC 9110")


class MetricsPage:
    """Answers `GET /metrics`.

    Args:
        collect: returns the metrics.
        runtime: has the thread that loads what writes them, at the first scrape.
    """

    def __init__(self, collect: Callable[[], Awaitable[list[Family]]], runtime: Runtime) -> None:
        self._collect = collect
        self._runtime = runtime
        self._library: ModuleType | None = None

    async def answer(self, request: HttpRequest) -> HttpResponse:
        """Answer with all metrics; 406 where the client takes neither format."""
        try:
            kind = choose(", ".join(request.headers.get_all("accept")))
        except BadRequest as error:
            return error_response(error)
        if kind is None:
            return problem_response(406, f"metrics are told as: {' or '.join(FORMATS)}")
        families = await self._collect()
        if self._library is None:
            self._library = await _loaded(self._runtime)
        parts = []
        for part in self._library.exposed(families, is_openmetrics=kind is OPENMETRICS):
            parts.append(part)
            await asyncio.sleep(0)  # requests go first
        fields = [("content-type", kind), ("cache-control", "no-store"), ("vary", "accept")]
        return HttpResponse(200, fields, b"".join(parts))


def serve_metrics(host: Host) -> None:
    """Show the metrics of a process, and of those that it speaks for, on its admin listener."""
    collector = Collector(
        host.local,
        host.name or host.config.system.name,
        remotes=host.control.remotes,
        lag=host.lag,
        sources=(lambda: [] if host.gateway is None else host.gateway.families(),),
    )
    host.control.metrics = collector.families
    host.export.read = collector.own
    host.admin.page(PATH, MetricsPage(collector.families, host.runtime).answer)


async def _loaded(runtime: Runtime) -> ModuleType:
    """Load what writes metrics, which takes a tenth of a second the first time, off the loop."""
    found: asyncio.Future[ModuleType] = asyncio.get_running_loop().create_future()

    def load(_: list[None]) -> Callable[[], None]:
        try:
            module = import_module("synchromesh.telemetry.exposition")
        except Exception as error:  # noqa: BLE001 - a worker raises nothing
            return partial(found.set_exception, error)
        return partial(found.set_result, module)

    worker = runtime.worker("metrics", load)
    worker.put(None)
    try:
        return await asyncio.shield(found)
    finally:
        await worker.close()
